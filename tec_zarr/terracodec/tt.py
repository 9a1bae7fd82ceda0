"""TEC-TT: ELIC transforms and the VCT entropy transformer (Mentzer et al., NeurIPS 2022).

The latent of a date is cut into windows of 4x4 cells (16 tokens). A window is predicted token
by token from its own earlier tokens and from the 8x8 windows around it in the two dates before:

    latent of an earlier date -> `encoder_sep` -+
    latent of the date before -> `encoder_sep` -+-> `encoder_joint` -> z_joint
    tokens before this one -> `decoder` (sees z_joint) -> mean, scale, features z_cur

The first date sees a learned constant instead of earlier dates. Its windows are all alike, so
one window is computed. Every date's own encoding is computed once and serves the next two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr.models.tokens import TOKENS
from tec_zarr.terracodec.blocks import (
    EPSILON,
    BlockCache,
    Bottleneck,
    ChannelConstant,
    Dequantizer,
    Position,
    Stack,
    StartSymbol,
    head_of,
)
from tec_zarr.terracodec.layers import (
    round_ste,
)
from tec_zarr.terracodec.transforms import Transform

__all__ = ["ContextEncoder", "EntropyTransformer", "TemporalTransformer", "TokenDecoder"]

LATENT_SCALE = 1 / 35
"""Latents enter the transformer multiplied by this."""

WINDOW = 4
"""Cells along a side of the windows that are predicted."""

CONTEXT_WINDOW = 8
"""Cells along a side of the windows in earlier dates that a prediction sees."""

_TOKENS_AT_ONCE = {"cpu": 512}  # bounds the memory of a pass; the result does not depend on it
_ON_DEVICES = 8192


def cut_windows(latent: Tensor, size: int, repack: bool = False) -> Tensor:
    """Cut latents (B, C, h, w) into windows around every 4x4 block.

    Parameters
    ----------
    latent : Tensor, shape (B, C, h, w)
        h and w are padded by reflection to multiples of 4, and by (size - 4) / 2 all around.
    size : int
        4 for the blocks themselves, 8 for their surroundings.
    repack : bool
        Latent Repacking (FlexTEC): token i holds the i-th slice of channels of all cells.

    Returns
    -------
    Tensor, shape (B * blocks, size * size, C)
    """
    height, width = latent.shape[-2:]
    margin = (size - WINDOW) // 2
    right, bottom = margin + -width % WINDOW, margin + -height % WINDOW
    latent = F.pad(latent, (margin, right, margin, bottom), mode="reflect")
    windows = latent.unfold(2, size, WINDOW).unfold(3, size, WINDOW)
    tokens = windows.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(0, 2)
    return repack_tokens(tokens) if repack else tokens


def join_windows(tokens: Tensor, height: int, width: int, repack: bool = False) -> Tensor:
    """Put 4x4 windows (B * blocks, 16, C) together again: (B, C, height, width)."""
    if repack:
        tokens = repack_tokens(tokens)
    rows, columns = -(-height // WINDOW), -(-width // WINDOW)
    cells = tokens.unflatten(1, (WINDOW, WINDOW)).unflatten(0, (-1, rows, columns))
    joined = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return joined[..., :height, :width]


def repack_tokens(tokens: Tensor) -> Tensor:
    """Swap tokens and channel slices of every window (B, n, C); its own inverse."""
    count = tokens.shape[1]
    return tokens.unflatten(2, (count, -1)).transpose(1, 2).flatten(2)


class EntropyTransformer(nn.Module):
    """Predicts the distribution of a date's latent from the two dates before it.

    Parameters
    ----------
    channels : int
        Latent channels. Published: 192.
    width, heads : int
        Model width and attention heads. Published: 768 and 16.
    depths : tuple of three int
        Blocks of `encoder_sep`, `encoder_joint` and `decoder`. Published: (6, 4, 5).
    flexible : bool
        FlexTEC: with Latent Repacking and mask tokens.
    """

    CONTEXT = 2

    def __init__(
        self,
        channels: int = 192,
        width: int = 768,
        heads: int = 16,
        depths: tuple[int, int, int] = (6, 4, 5),
        flexible: bool = False,
    ) -> None:
        super().__init__()
        self.repack = flexible
        self.channels = channels
        self.width = width
        self.bottleneck = Bottleneck()
        self.encoder_sep = Stack(depths[0], width, heads)
        self.encoder_joint = Stack(depths[1], width, heads)
        self.decoder = Stack(depths[2], width, heads, causal=TOKENS)
        self.learned_zero = StartSymbol(channels)
        if flexible:
            self.mask_token = nn.Parameter(torch.rand(channels) * 2 - 1)
            self.z_cur_mask_token = nn.Parameter(torch.rand(width) * 2 - 1)
        cells = CONTEXT_WINDOW**2
        self.enc_position_sep = Position(cells, width)
        self.enc_position_joint = Position(cells * self.CONTEXT, width)
        self.dec_position = Position(TOKENS, width)
        self.post_embedding_layernorm = nn.LayerNorm(width, eps=EPSILON)
        self.encoder_embedding = nn.Linear(channels, width)
        self.decoder_embedding = nn.Linear(channels, width)
        self.mean_head = head_of(width, channels)
        self.scale_head = head_of(width, channels)

    def tokens(self, latent: Tensor) -> Tensor:
        """Windows to predict, (B * blocks, 16, C), of latents (B, C, h, w)."""
        return cut_windows(latent, WINDOW, self.repack)

    def join(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Inverse of `tokens`; also for features (B * blocks, 16, d)."""
        return join_windows(tokens, height, width, self.repack)

    def encode_date(self, windows: Tensor) -> Tensor:
        """Encoding (n, 64, d) of the context windows (n, 64, C) of one date."""
        x = self.post_embedding_layernorm(self.encoder_embedding(windows * LATENT_SCALE))
        x = x + self.enc_position_sep.at(0, x.shape[1])
        return _in_batches(self.encoder_sep, x)

    def join_dates(self, encoded: list[Tensor]) -> Tensor:
        """Joint context z_joint (n, 128, d) of the encodings of one or two dates."""
        x = torch.cat([encoded[0], encoded[-1]], dim=1)
        x = x + self.enc_position_joint.at(0, x.shape[1])
        return _in_batches(self.encoder_joint, x)

    def predict(self, tokens: Tensor, joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, raw scales and features of all tokens at once, given the true ones."""
        return TokenDecoder(self, joint, len(tokens)).advance(self.shifted(tokens))

    def shifted(self, tokens: Tensor) -> Tensor:
        """Decoder inputs: the start symbol, then every token but the last."""
        start = self.learned_zero.sym.to(tokens.dtype).expand(len(tokens), 1, -1)
        return torch.cat([start, tokens[:, :-1]], dim=1)


def _in_batches(stack: Stack, x: Tensor) -> Tensor:
    """``stack(x)``, written over x where no gradient is wanted.

    Block by block and, within each, some windows at a time: a block's weights are read once for
    all windows, and temporary tensors are small.
    """
    if torch.is_grad_enabled():
        return stack(x)
    windows = max(1, _TOKENS_AT_ONCE.get(x.device.type, _ON_DEVICES) // x.shape[1])
    for block in stack.blocks:
        for part in x.split(windows):
            part.copy_(block.encode(part))
    return x


class TokenDecoder:
    """The autoregressive decoder over the windows of one date, with cached keys and values.

    Parameters
    ----------
    model : EntropyTransformer
    joint : Tensor, shape (n, 128, d) or (1, 128, d)
        Context from `EntropyTransformer.join_dates`.
    windows : int
        Windows to decode; with one context window it serves all of them.
    """

    def __init__(self, model: EntropyTransformer, joint: Tensor, windows: int) -> None:
        self._model = model
        self._windows = windows
        self._caches = [
            BlockCache(block.cross_attention.keys_values(joint)) for block in model.decoder.blocks
        ]
        self._done = 0

    def advance(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the next tokens.

        Parameters
        ----------
        inputs : Tensor, shape (windows, m, C)
            For each token to predict the token before it (first: the start symbol).

        Returns
        -------
        means, raw scales, features : Tensor
            Shapes (windows, m, C), (windows, m, C), (windows, m, d).
        """
        model, start = self._model, self._done
        self._done += inputs.shape[1]
        x = model.decoder_embedding(inputs.float() * LATENT_SCALE)
        x = model.post_embedding_layernorm(x)
        x = x + model.dec_position.at(start, self._done)
        for block, cache in zip(model.decoder.blocks, self._caches, strict=True):
            x = block.decode(x, cache)
        return model.mean_head(x), model.scale_head(x), x


@dataclass
class ContextEncoder:
    """What the prediction of a date sees of the dates before it, each encoded once.

    Parameters
    ----------
    model : EntropyTransformer
    constant : Tensor, shape (1, C, 1, 1)
        The learned stand-in for the dates before the first.
    """

    model: EntropyTransformer
    constant: Tensor
    _encoded: list[Tensor] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """True before the first date was pushed."""
        return not self._encoded

    def joint(self) -> Tensor:
        """Context of the next date; one window for all at the first date."""
        if not self._encoded:
            channels = self.constant.shape[1]
            latent = self.constant.expand(1, channels, WINDOW, WINDOW)
            windows = cut_windows(latent, CONTEXT_WINDOW, self.model.repack)
            return self.model.join_dates([self.model.encode_date(windows)])
        return self.model.join_dates(self._encoded)

    def push(self, latent_q: Tensor) -> None:
        """Add the quantised latent (B, C, h, w) of the date just coded."""
        windows = cut_windows(latent_q.float(), CONTEXT_WINDOW, self.model.repack)
        encoded = self.model.encode_date(windows)
        self._encoded = [*self._encoded[-(self.model.CONTEXT - 1) :], encoded]


class _Pipeline(nn.Module):
    """Holds the parts under the reference's names."""

    def __init__(self, transform: Transform, entropy_model: EntropyTransformer) -> None:
        super().__init__()
        self.transform = transform
        self.entropy_model = entropy_model
        width = entropy_model.width
        self._temporal_pad_token_maker = ChannelConstant(entropy_model.channels)
        self._dequantizer = Dequantizer(entropy_model.channels, width)


class TemporalTransformer(nn.Module):
    """TEC-TT of TerraCodec 1.0.

    Parameters
    ----------
    bands : int
        Input bands: 12 (L2A) or 13 (L1C).
    channels : tuple of four int
        Widths of the transforms' stages; the last is the number of latent channels.
    width, heads, depths
        See `EntropyTransformer`.
    """

    FLEXIBLE = False

    def __init__(
        self,
        bands: int = 12,
        channels: tuple[int, int, int, int] = (128, 160, 192, 192),
        width: int = 768,
        heads: int = 16,
        depths: tuple[int, int, int] = (6, 4, 5),
    ) -> None:
        super().__init__()
        self.config = {
            "bands": bands,
            "channels": tuple(channels),
            "width": width,
            "heads": heads,
            "depths": tuple(depths),
        }
        entropy_model = EntropyTransformer(channels[-1], width, heads, depths, self.FLEXIBLE)
        self.model = _Pipeline(Transform(bands, channels), entropy_model)

    @staticmethod
    def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the constructor's arguments off a state dict (all but the number of heads)."""
        stem = "model.entropy_model."
        depths = tuple(
            sum(f"{stem}{stack}.layers.encoder_layer_{i}.norm1a.weight" in state for i in range(99))
            for stack in ("encoder_sep", "encoder_joint", "decoder")
        )
        first = state["model.transform.analysis_transform.transforms.0.weight"]
        return {
            "bands": first.shape[1],
            "channels": Transform.channels_of(state, "model.transform."),
            "width": state[f"{stem}encoder_embedding.weight"].shape[0],
            "depths": depths,
        }

    @property
    def entropy_model(self) -> EntropyTransformer:
        """The entropy transformer."""
        return self.model.entropy_model

    def analyse(self, x: Tensor) -> Tensor:
        """Latents (B, C, H/16, W/16) of images (B, bands, H, W)."""
        return self.model.transform.analysis_transform(x)

    def synthesise(self, latent_q: Tensor, features: Tensor) -> Tensor:
        """Images of quantised latents (B, C, h, w) and decoder features (B, d, h, w)."""
        return self.model.transform.synthesis_transform(self.model._dequantizer(latent_q, features))

    def contexts(self) -> ContextEncoder:
        """An empty context, for a series that starts."""
        constant = self.model._temporal_pad_token_maker.weight
        return ContextEncoder(self.entropy_model, constant)

    def forward(self, series: Tensor) -> tuple[Tensor, list[int]]:
        """Reconstruct a series and estimate its rate, as the reference's forward does.

        Parameters
        ----------
        series : Tensor, shape (B, T, C, H, W), (T, C, H, W) or (C, H, W)
            Standardised reflectance; H and W multiples of 16.

        Returns
        -------
        reconstruction : Tensor, shape (B, T, C, H, W)
        bits : list of int
            Estimated bits of every date, over the batch.
        """
        series = series.reshape(-1, *series.shape[-4:]) if series.ndim > 3 else series[None, None]
        dates = list(self.dates(series))
        bits = [int(rate.sum().item()) for _, rate in dates]
        return torch.stack([image for image, _ in dates], dim=1), bits

    def dates(self, series: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Reconstruction (B, C, H, W) and rate in bits (B,) of every date of (B, T, C, H, W)."""
        return ((image, bits_of(part, len(image))) for image, part in self.likelihoods(series))

    def likelihoods(self, series: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Reconstruction of every date of (B, T, C, H, W), and the likelihoods of what is sent."""
        contexts = self.contexts()
        for image in series.unbind(1):
            latent = self.analyse(image)
            size = latent.shape[-2:]
            tokens = self.entropy_model.tokens(latent)
            means, raw, features = self.entropy_model.predict(round_ste(tokens), contexts.joint())
            quantised, likelihood = self.entropy_model.bottleneck(tokens, means, raw)
            latent_q = self.entropy_model.join(quantised, *size)
            yield self.synthesise(latent_q, self.entropy_model.join(features, *size)), likelihood
            # As in the reference's training, no gradient flows into the first date's latent.
            contexts.push(latent_q.detach() if contexts.empty else latent_q)


def bits_of(likelihood: Tensor, images: int) -> Tensor:
    """Information (images,) of likelihoods, in bits; images come one after the other."""
    return -torch.log2(likelihood).reshape(images, -1).sum(1)
