"""From ``tec-s2`` latents to pixels in whole numbers: the same pixels on every machine.

Weights files that hold a :class:`PixelNet` decode by it; those of before, in float32
(:mod:`tec_zarr.networks.transform`).  A small integer network corrects the latents of the coded
channels; a sparse matrix of 14 bits makes samples of them, in half DN; the overlap and the KLT
follow in 11 and 12 bits.  docs/format-tec-s2.md, "Pixels", says every rounding.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr import native
from tec_zarr.errors import FormatError
from tec_zarr.models import klt
from tec_zarr.models.constants import (
    ACT_GRID,
    BLOCK,
    CHANNELS,
    COMPAND_GRID,
    COMPONENTS,
    GROUPS,
    MEAN_GRID,
)
from tec_zarr.networks.checks import Part, check, integer_parts
from tec_zarr.networks.image_net import (
    IntConv,
    S2Net,
    activation,
    compand,
    full_precision,
    overlap,
    quantised,
)
from tec_zarr.networks.transform import blocks_of, with_margin
from tec_zarr.networks.walk import HALF, SQUARE, Grid, Hidden, Layer, companded, geometry_of

#: Fixed-point digits of the synthesis, of the overlap and of a KLT's basis.
SYNTHESIS_BITS, OVERLAP_BITS, BASIS_BITS = 14, 11, 12
#: Corrections are whole 1/64 step, steps whole 1/256 DN, coefficients and samples whole half DN.
CORRECTION_GRID, STEP_BITS, SAMPLE_GRID = 64, 8, 2
#: Far beyond what pixels of 16 bits lead to: latents (1/16 step), coefficients, samples (half DN).
LATENT_REACH, COEFFICIENT_REACH, SAMPLE_REACH = 1 << 20, 1 << 22, 1 << 18

_LAYERS = ("first", "one", "two", "last")


class PixelNet(nn.Module):
    """The network behind whole-number pixels, for training.

    Parameters
    ----------
    width : int
        Hidden units of the correction.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first = IntConv(CHANNELS, width, 1, COMPAND_GRID)
        self.one = IntConv(width, width, 3, ACT_GRID)
        self.two = IntConv(width, width, 3, ACT_GRID)
        self.last = IntConv(width, CHANNELS, 1, ACT_GRID, zero=True)
        #: In 16ths, like the condition's part in :class:`~tec_zarr.networks.image_net.Correction`.
        self.condition = nn.Parameter(torch.zeros(width, COMPONENTS + 1))
        for layer in (self.first, self.one, self.two):
            # Smaller than IntConv's own: with that, a correction of no use is all that is learned
            # in an hour.
            bound = layer.weight[0].numel() ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)
        self.synthesis = nn.Parameter(torch.zeros(COMPONENTS, BLOCK * BLOCK, CHANNELS))
        #: Which channels each component is made of.
        self.register_buffer("pairs", torch.ones(COMPONENTS, CHANNELS, dtype=torch.bool))
        self.overlap = nn.Parameter(torch.eye(BLOCK))

    def correction(self, latents: Tensor, condition: Tensor) -> Tensor:
        """What is added to latents (B, 320, h, w), in steps; zero where no group is coded."""
        term = F.linear(condition, quantised(self.condition * 16.0) / 256.0)[:, :, None, None]
        hidden = activation(self.first(compand(latents), term))
        inner = activation(self.one(hidden))
        hidden = activation(self.two(inner) + hidden)
        live = torch.stack([g.flatten(1).any(1) for g in latents.split(GROUPS, 1)], 1)
        coded = live.flip(1).cummax(1).values.flip(1)
        sizes = torch.tensor(GROUPS, device=latents.device)
        return self.last(hidden) * torch.repeat_interleave(coded, sizes, 1)[:, :, None, None]

    def forward(self, latents: Tensor, steps: Tensor, condition: Tensor) -> Tensor:
        """Components (B, 12, 8h, 8w) in DN of latents (B, 320, h, w) in steps (B, 320, 1, 1)."""
        count, _, rows, columns = latents.shape
        size = count, -1, BLOCK * rows, BLOCK * columns
        with full_precision(latents):
            scaled = (latents + self.correction(latents, condition)) * steps
            matrix = (self.synthesis * self.pairs[:, None]).flatten(0, 1)
            blocks = (scaled.permute(0, 2, 3, 1) @ matrix.T).unflatten(-1, (-1, BLOCK, BLOCK))
            image = blocks.permute(0, 3, 1, 4, 2, 5).reshape(size)
            grid = 2.0**OVERLAP_BITS
            return overlap(image, quantised(self.overlap * grid) / grid)

    def tensors(self) -> dict[str, Tensor]:
        """What a weights file holds of it."""
        out = {"pixels.condition.weight": _whole(self.condition.detach(), 4)}
        for name in _LAYERS:
            parts = zip(("weight", "exponent", "bias"), getattr(self, name).integers(), strict=True)
            out |= {f"pixels.{name}.{part}": tensor for part, tensor in parts}
        component, channel = self.pairs.nonzero().T
        chosen = self.synthesis.detach().permute(0, 2, 1)[self.pairs]
        return out | {
            "pixels.component": component.to(torch.uint8),
            "pixels.channel": channel.to(torch.int16),
            "pixels.synthesis": _whole(chosen, SYNTHESIS_BITS),
            "pixels.overlap": _whole(self.overlap.detach(), OVERLAP_BITS),
        }


def _whole(x: Tensor, bits: int) -> Tensor:
    return torch.floor(x.double() * 2.0**bits + 0.5).to(torch.int16)


class _Correction(Layer):
    """A layer without activation: whole 1/64 step, float32, rounded like a hidden layer."""

    def __init__(self, conv: IntConv):
        super().__init__(conv, [(0, 0)])
        scale = self.unit * CORRECTION_GRID
        self.scale, self.shift = scale.float(), (self.offset * scale + 0.5).float()

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.sums(rows).float(), self.scale).floor_()


def check_pixels(tensors: dict[str, Tensor]) -> None:
    """Raise FormatError unless these are what :meth:`PixelNet.tensors` makes: weights may come from
    a stranger.
    """
    first, component = (tensors.get(f"pixels.{n}") for n in ("first.bias", "component"))
    width = 0 if first is None else first.numel()
    pairs = 0 if component is None else component.numel()
    whole = (torch.int16,)
    largest = float(1 << SYNTHESIS_BITS)
    layout = {
        "condition.weight": Part((width, COMPONENTS + 1), whole),
        "component": Part((pairs,), (torch.uint8,), (0, COMPONENTS - 1)),
        "channel": Part((pairs,), whole, (0, CHANNELS - 1)),
        "synthesis": Part((pairs, BLOCK * BLOCK), whole, (-largest, largest)),
        "overlap": Part((BLOCK, BLOCK), whole),
        **integer_parts("first", (width, CHANNELS, 1, 1)),
        **integer_parts("one", (width, width, 3, 3)),
        **integer_parts("two", (width, width, 3, 3)),
        **integer_parts("last", (CHANNELS, width, 1, 1)),
    }
    check(tensors, {f"pixels.{name}": part for name, part in layout.items()}, "a way to pixels")
    places = tensors["pixels.component"].long() * CHANNELS + tensors["pixels.channel"].long()
    if len(places.unique()) != pairs:
        raise FormatError("a way to pixels names a pair of component and channel twice")
    # Sums of int32, along columns and along rows.
    if int(tensors["pixels.overlap"].int().abs().sum(1).max()) >= 2 ** (OVERLAP_BITS + 1):
        raise FormatError("an overlap matrix can leave the range of 32 bits")


class PixelSynthesis:
    """Pixels from decoded latents, for single dates; by the compiled library where it is there.

    Parameters
    ----------
    net : S2Net
        Whose quantiser steps the latents have.
    tensors : dict of Tensor
        What :meth:`PixelNet.tensors` made.

    Raises
    ------
    FormatError
        The tensors are not of this model, or sums of theirs could leave what is exact.
    """

    def __init__(self, net: S2Net, tensors: dict[str, Tensor]):
        check_pixels(tensors)
        self.net = net
        # Whole 256ths, that sums of activations, in sixteenths, gain.
        self.condition = tensors["pixels.condition.weight"].double().numpy() * (ACT_GRID / 256)
        grids = COMPAND_GRID, ACT_GRID, ACT_GRID, ACT_GRID
        convs = []
        for name, grid in zip(_LAYERS, grids, strict=True):
            weight, *rest = (tensors[f"pixels.{name}.{p}"] for p in ("weight", "exponent", "bias"))
            convs.append(IntConv(weight.shape[1], len(weight), weight.shape[2], grid))
            convs[-1].freeze(weight, *rest)
        self.first = Hidden(convs[0], [(0, 0)])
        self.one, self.two = Hidden(convs[1], SQUARE), Hidden(convs[2], SQUARE)
        self.last = _Correction(convs[3])
        component, channel = (tensors[f"pixels.{n}"].long() for n in ("component", "channel"))
        pairs = np.zeros((COMPONENTS, CHANNELS), bool)
        pairs[component, channel] = True
        synthesis = torch.zeros(COMPONENTS, CHANNELS, BLOCK * BLOCK, dtype=torch.float64)
        synthesis[component, channel] = tensors["pixels.synthesis"].double()
        self.channels = [channel[component == k].sort().values for k in range(COMPONENTS)]
        self.synthesis = [synthesis[k, chosen] for k, chosen in enumerate(self.channels)]
        self.overlap = tensors["pixels.overlap"].double()
        self.library = None
        if native.library() and not native.odd_width(len(self.first.scale)):
            layers = (self.first, self.one, self.two, self.last)
            self.library = native.Pixels(
                {name: layer.as_arrays() for name, layer in zip(_LAYERS, layers, strict=True)},
                synthesis.transpose(1, 2).numpy(),
                pairs,
                self.overlap.numpy().astype(int),
            )
        #: Chunks of one archive share a quality, or few.
        self.steps = lru_cache(maxsize=8)(self._steps)

    def _steps(self, quality: float) -> np.ndarray:
        steps = self.net.steps(torch.tensor([quality], dtype=torch.float64))[0, :, 0, 0]
        return np.floor(steps.numpy() * 2.0**STEP_BITS + 0.5)

    def __call__(
        self,
        latents: np.ndarray,
        channels: int,
        quality: float,
        condition: Tensor,
        spectral: klt.Klt,
        out: np.ndarray,
    ) -> None:
        """Write whole DN into ``out`` (C, h, w), float32, or uint16 where it saturates.

        Parameters
        ----------
        latents : (P, 320) int32 ndarray
            In 1/16 step, block by block; zero from channel ``channels`` on.
        condition : (1, 13) float32 Tensor
        """
        bias = (self.condition @ condition[0].numpy().astype(float)).astype(np.float32)
        basis = np.rint(spectral.basis[:, : spectral.used] * 2.0**BASIS_BITS).astype(np.int32)
        unit = SAMPLE_GRID << BASIS_BITS
        mean = (np.rint(spectral.mean * unit).astype(np.int64) + unit // 2).astype(np.int32)
        if self.library:
            last = int(np.cumsum(GROUPS).searchsorted(channels))
            steps = self.steps(quality)
            self.library.draw(latents, last, bias, steps, basis, mean, out)
        else:
            values = self._drawn(latents, channels, quality, bias, basis, mean, out.shape)
            out[:] = values.clip(0, 65535) if out.dtype == np.uint16 else values

    @torch.inference_mode()
    def _drawn(
        self,
        latents: np.ndarray,
        channels: int,
        quality: float,
        bias: np.ndarray,
        basis: np.ndarray,
        mean: np.ndarray,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """Whole DN (C, h, w), int32, without the library."""
        height, width = shape[1:]
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        image, inside = with_margin(len(basis.T), rows, columns, torch.float64)
        self._samples(latents, channels, quality, bias, blocks_of(inside))
        self._overlap(image)
        # Sums modulo 2**32: only what no encoder writes goes beyond.
        flat = inside[:, :height, :width].reshape(len(image), -1).numpy()
        sums = basis.astype(float) @ flat
        sums += mean[:, None]
        whole = sums.astype(np.int64).astype(np.int32)
        whole >>= BASIS_BITS + 1
        return whole.reshape(shape)

    def _samples(
        self, latents: np.ndarray, channels: int, quality: float, bias: np.ndarray, out: Tensor
    ) -> None:
        """Samples in half DN, into blocks (used, rows, 8, columns, 8) float64."""
        used, rows, _, columns, _ = out.shape
        value = torch.from_numpy(latents).clamp(-LATENT_REACH, LATENT_REACH).double()
        value.mul_(CORRECTION_GRID / MEAN_GRID).add_(self._correction(latents, bias, rows, columns))
        unit = CORRECTION_GRID * 2.0**STEP_BITS / SAMPLE_GRID
        whole = value.mul_(torch.from_numpy(self.steps(quality))).div_(unit).add_(0.5).floor_()
        by_channel = whole.clamp_(-COEFFICIENT_REACH, COEFFICIENT_REACH).T.contiguous()
        for k in range(used):
            there = self.channels[k] < channels
            # Exact, in any order: sums are below 2**53.
            sums = by_channel[self.channels[k][there]].T @ self.synthesis[k][there]
            sums = sums.div_(2.0**SYNTHESIS_BITS).add_(0.5).floor_()
            sums = sums.clamp_(-SAMPLE_REACH, SAMPLE_REACH).view(rows, columns, BLOCK, BLOCK)
            out[k].copy_(sums.transpose(1, 2))

    def _correction(
        self, latents: np.ndarray, bias: np.ndarray, rows: int, columns: int
    ) -> Tensor:
        """Corrections (P, 320) in 1/64 step, float32."""
        geometry = geometry_of(1, rows, columns)
        hidden = self.first(companded(torch.from_numpy(latents)), torch.from_numpy(bias))
        grid = Grid(geometry, hidden.shape[1], torch.int8, -HALF)
        grid.write_everywhere(hidden)
        inner = self.one(grid.gather(geometry.everywhere, SQUARE))
        grid.write_everywhere(inner)
        hidden = self.two(grid.gather(geometry.everywhere, SQUARE), hidden.float().add_(HALF))
        return self.last(hidden)

    def _overlap(self, image: Tensor) -> None:
        """Apply the overlap across inner boundaries, along columns and then rows, in place.

        Blocks of an image with a margin lie across boundaries; the outermost are left alone.
        """
        edges = slice(None, BLOCK), slice(-BLOCK, None)
        kept = [image[:, edge].clone() for edge in edges]
        folded = image.view(-1, BLOCK, image.shape[2])
        mixed = torch.bmm(self.overlap.expand(len(folded), -1, -1), folded)
        image.copy_(mixed.div_(2.0**OVERLAP_BITS).add_(0.5).floor_().view(image.shape))
        for edge, before in zip(edges, kept, strict=True):
            image[:, edge] = before
        kept = [image[:, :, edge].clone() for edge in edges]
        thin = image.view(-1, BLOCK).numpy()  # NumPy's BLAS is faster for so thin a product
        across = torch.from_numpy(thin @ np.ascontiguousarray(self.overlap.T.numpy()))
        image.copy_(across.div_(2.0**OVERLAP_BITS).add_(0.5).floor_().view(image.shape))
        for edge, before in zip(edges, kept, strict=True):
            image[:, :, edge] = before
