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

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr.models.tokens import TOKENS
from tec_zarr.terracodec.attention import Attention, Gelu
from tec_zarr.terracodec.layers import (
    LowerBound,
    TableBuffers,
    conv,
    gaussian_likelihood,
    round_ste,
)
from tec_zarr.terracodec.transforms import Transform

__all__ = ["ContextEncoder", "EntropyTransformer", "TemporalTransformer", "TokenDecoder"]

LATENT_SCALE = 1 / 35
"""Latents enter the transformer multiplied by this."""

SCALE_MIN, SCALE_MAX, SCALE_LEVELS, MEAN_LEVELS = 0.01, 256.0, 256, 100
"""Grid of the reference's bottleneck: log-spaced scales, 100 fractional means."""

WINDOW = 4
"""Cells along a side of the windows that are predicted."""

CONTEXT_WINDOW = 8
"""Cells along a side of the windows in earlier dates that a prediction sees."""

_EPSILON = 1e-6  # of the layer normalisations

_TOKENS_AT_ONCE = {"cpu": 512}  # bounds the memory of a pass; the result does not depend on it
_ON_DEVICES = 8192


def verysoftplus(x: Tensor) -> Tensor:
    """1 + x above zero, 1 / (1 - x) below: positive, with slope 1 at zero."""
    return torch.where(x > 0, 1 + x.clamp(min=0), 1 / (1 - x.clamp(max=0)))


def scale_of(raw: Tensor) -> Tensor:
    """The scale predicted as `raw`: 0.01 and more."""
    return verysoftplus(raw) + SCALE_MIN


def scale_grid_position(scale: Tensor) -> Tensor:
    """Position of a scale on the log grid of 256 levels from 0.01 to 256.01 (continuous)."""
    span = math.log(SCALE_MAX / SCALE_MIN + 1)
    return torch.log(scale / SCALE_MIN) * ((SCALE_LEVELS - 1) / span)


class _ScaleShiftBuffers(TableBuffers):
    """Buffers of the reference's bottleneck; streams here use
    :mod:`tec_zarr.entropy.gaussian_tables`.
    """

    TABLES = (
        "_offset",
        "_quantized_cdf",
        "_cdf_length",
        "_indexes_table",
        "_prior_mean",
        "_prior_scale",
    )

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_bound", torch.tensor([SCALE_MIN]))
        for name in ("_indexes_table", "_prior_mean", "_prior_scale"):
            self.register_buffer(name, torch.empty(0))
        self.likelihood_lower_bound = LowerBound(1e-9)
        self.lower_bound_scale = LowerBound(SCALE_MIN)
        self.lower_bound_zero = LowerBound(0.0)
        self.upper_bound_mean = LowerBound(-(MEAN_LEVELS - 1.0))
        self.upper_bound_scale = LowerBound(-(SCALE_LEVELS - 1.0))

    def bounded(self, position: Tensor, upper: LowerBound) -> Tensor:
        """Clip positions on a grid to its ends, trainably."""
        return -upper(-self.lower_bound_zero(position))


class _Bottleneck(nn.Module):
    """Codes ``x - round(mean)`` with a Gaussian at ``mean - round(mean)``."""

    def __init__(self) -> None:
        super().__init__()
        self._entropy_model = _ScaleShiftBuffers()

    def forward(self, x: Tensor, means: Tensor, raw_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised x and its likelihoods, as the reference's forward estimates them."""
        model = self._entropy_model
        base = round_ste(means)
        position = scale_grid_position(scale_of(raw_scales))
        if not self.training:
            position = torch.round(position)
        level = model.bounded(position, model.upper_bound_scale)
        span = math.log(SCALE_MAX / SCALE_MIN + 1)
        scales = torch.exp(level * (span / (SCALE_LEVELS - 1))) * SCALE_MIN
        fraction = model.bounded((means - base + 0.5) * MEAN_LEVELS, model.upper_bound_mean)
        centred = x - base
        noisy = centred + torch.rand_like(x) - 0.5 if self.training else torch.round(centred)
        likelihood = gaussian_likelihood(noisy - (fraction / MEAN_LEVELS - 0.5), scales)
        return round_ste(centred) + base, model.likelihood_lower_bound(likelihood)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = _linear(width, width)
        self.k = _linear(width, width)
        self.v = _linear(width, width)
        self.proj = _linear(width, width)
        self.attention = Attention()

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x (B, n, d), each (B, heads, n, d / heads)."""
        keys = self.attention.keys(self._split(self.k(x)))
        return keys, self.attention.values(self._split(self.v(x)))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
        """Attention of queries x (B, m, d); causal: the last m keys are x's own positions."""
        queries = self._split(self.q(x))
        mask = None
        if causal and x.shape[1] > 1:
            shape = (x.shape[1], keys.shape[2])
            mask = torch.ones(shape, dtype=torch.bool, device=x.device)
            mask = mask.tril(keys.shape[2] - x.shape[1])
        if len(keys) != len(queries):  # one context window for all
            keys = keys.expand(len(queries), -1, -1, -1)
            values = values.expand(len(queries), -1, -1, -1)
        out = self.attention(queries, keys, values, mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.fc1 = _linear(width, expansion * width)
        self.fc2 = _linear(expansion * width, width)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Attention, MLP, attention, MLP; the second attention of a decoder looks at the context."""

    def __init__(self, width: int, heads: int, causal_tokens: int | None = None) -> None:
        super().__init__()
        if causal_tokens is not None:
            mask = torch.ones(causal_tokens, causal_tokens, dtype=torch.bool).triu(1)
            self.register_buffer("look_ahead_mask", mask)
        self.norm1a = nn.LayerNorm(width, eps=_EPSILON)
        self.norm1b = nn.LayerNorm(width, eps=_EPSILON)
        self.norm2a = nn.LayerNorm(width, eps=_EPSILON)
        self.norm2b = nn.LayerNorm(width, eps=_EPSILON)
        self.self_attention = _Attention(width, heads)
        self.cross_attention = _Attention(width, heads)
        self.mlp1 = _MLP(width, 4)
        self.mlp2 = _MLP(width, 4)

    def encode(self, x: Tensor) -> Tensor:
        seen = self.norm1a(x)
        x = x + self.self_attention.attend(seen, *self.self_attention.keys_values(seen))
        x = x + self.mlp1(self.norm1b(x))
        seen = self.norm2a(x)
        x = x + self.cross_attention.attend(seen, *self.cross_attention.keys_values(seen))
        return x + self.mlp2(self.norm2b(x))

    def decode(self, x: Tensor, cache: _BlockCache) -> Tensor:
        seen = self.norm1a(x)
        keys, values = cache.extend(*self.self_attention.keys_values(seen))
        x = x + self.self_attention.attend(seen, keys, values, causal=True)
        x = x + self.mlp1(self.norm1b(x))
        x = x + self.cross_attention.attend(self.norm2a(x), *cache.context)
        return x + self.mlp2(self.norm2b(x))


@dataclass
class _BlockCache:
    """Keys and values of one decoder block: the context's and those of the tokens so far."""

    context: tuple[Tensor, Tensor]
    own: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.own is not None:
            keys = torch.cat([self.own[0], keys], dim=2)
            values = torch.cat([self.own[1], values], dim=2)
        self.own = keys, values
        return self.own


class _Stack(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, causal: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"encoder_layer_{i}": _Block(width, heads, causal) for i in range(layers)}
        )

    @property
    def blocks(self) -> list[_Block]:
        return cast("list[_Block]", list(self.layers.values()))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block.encode(x)
        return x


class _Position(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self._pos = nn.Parameter(torch.randn(1, tokens, width) * 0.02)

    def at(self, start: int, stop: int) -> Tensor:
        return self._pos[:, start:stop]


class _StartSymbol(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sym = nn.Parameter(torch.rand(channels) * 6 - 3)


class _ChannelConstant(nn.Module):
    """Learned stand-in for the date before the first one: a constant per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, channels, 1, 1))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.constant_(layer.bias, 0.01)
    return layer


def _head(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, channels),
    )


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
        self.bottleneck = _Bottleneck()
        self.encoder_sep = _Stack(depths[0], width, heads)
        self.encoder_joint = _Stack(depths[1], width, heads)
        self.decoder = _Stack(depths[2], width, heads, causal=TOKENS)
        self.learned_zero = _StartSymbol(channels)
        if flexible:
            self.mask_token = nn.Parameter(torch.rand(channels) * 2 - 1)
            self.z_cur_mask_token = nn.Parameter(torch.rand(width) * 2 - 1)
        cells = CONTEXT_WINDOW**2
        self.enc_position_sep = _Position(cells, width)
        self.enc_position_joint = _Position(cells * self.CONTEXT, width)
        self.dec_position = _Position(TOKENS, width)
        self.post_embedding_layernorm = nn.LayerNorm(width, eps=_EPSILON)
        self.encoder_embedding = nn.Linear(channels, width)
        self.decoder_embedding = nn.Linear(channels, width)
        self.mean_head = _head(width, channels)
        self.scale_head = _head(width, channels)

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


def _in_batches(stack: _Stack, x: Tensor) -> Tensor:
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
            _BlockCache(block.cross_attention.keys_values(joint)) for block in model.decoder.blocks
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


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, 1)
        self.conv2 = conv(channels, channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))))


class _Dequantizer(nn.Module):
    """Latents for synthesis: the quantised ones plus a function of the decoder's features."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.process_conv = nn.Sequential(
            conv(width, channels, 1, 1), nn.LeakyReLU(), _ResidualBlock(channels)
        )

    def forward(self, latent_q: Tensor, features: Tensor) -> Tensor:
        return latent_q + self.process_conv(features)


class _Pipeline(nn.Module):
    """Holds the parts under the reference's names."""

    def __init__(self, transform: Transform, entropy_model: EntropyTransformer) -> None:
        super().__init__()
        self.transform = transform
        self.entropy_model = entropy_model
        width = entropy_model.width
        self._temporal_pad_token_maker = _ChannelConstant(entropy_model.channels)
        self._dequantizer = _Dequantizer(entropy_model.channels, width)


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
