"""The entropy networks of ``tec-s2`` in integers: what coding uses, on every machine alike.

Same sums as :class:`~tec_zarr.models.s2_net.S2Net` in training, but only at the positions of each
pass and with int8 matrix products accumulated in int32 (or in float64, where the processor's int8
instructions saturate: no sum reaches 2**24, so both are exact and equal).  Latents are integers in
units of 1/16 quantiser step throughout.

``B`` dates of one size are walked together; rows of a matrix are positions, date by date.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from tec_zarr.models.s2_net import (
    ACT_GRID,
    COARSE_PASSES,
    GROUPS,
    MEAN_GRID,
    SCALES,
    IntConv,
    S2Net,
    anchor_mask,
    coarse_mask,
)

_UNITS = int(MEAN_GRID)
_HALF = 128
#: Neighbours a pass may look at reach this far.
_MARGIN = 2
_SQUARE = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
_PLUS = [(-1, 0), (0, -1), (0, 1), (1, 0)]
#: Latents beyond this many units look alike to the networks.
_COMPAND_REACH = 1 << 15


def _compand_table() -> Tensor:
    """round_half_up(127 x / (8 + |x|)) for x in 1/16 steps, as int8, by integer division alone."""
    units = torch.arange(-_COMPAND_REACH, _COMPAND_REACH + 1)
    below = 8 * _UNITS + units.abs()
    return torch.div(254 * units + below, 2 * below, rounding_mode="floor").to(torch.int8)


@cache
def _int8_is_exact(device_type: str) -> bool:
    """Whether int8 products do not saturate on the way (some libraries' do on x86 before VNNI)."""
    try:
        ones = torch.full((32, 64), 127, dtype=torch.int8, device=device_type)
        signs = torch.where(torch.arange(64, device=device_type) % 4 < 2, 127, -127).to(torch.int8)
        for right in (ones.T.contiguous()[:, :32], (signs[:, None].expand(64, 32)).contiguous()):
            for left in (ones, (-1 * ones - 1).to(torch.int8)):
                exact = left.double() @ right.double()
                if not torch.equal(torch._int_mm(left, right).double(), exact):
                    return False
    except (RuntimeError, AttributeError):
        return False
    return True


class _Layer:
    """One :class:`IntConv` over chosen taps, as an int8 matrix.

    Inputs are int8: companded latents as they are, activations (0 .. 255) less 128.
    """

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        weight, exponent, bias = conv.integers()
        middle = weight.shape[-1] // 2
        chosen = [weight[:, :, r + middle, c + middle] for r, c in offsets]
        self.matrix = torch.cat(chosen, 1).T.contiguous()
        self.offset = bias.double()
        if conv.grid == ACT_GRID:
            self.offset = self.offset + _HALF * self.matrix.double().sum(0)
        self.unit = torch.exp2(exponent.double()) / conv.grid
        self.float_matrix = self.matrix.double()
        self.exact_int8 = _int8_is_exact(weight.device.type)

    def sums(self, rows: Tensor) -> Tensor:
        """Integer sums of int8 ``rows`` (P, K): int32 (P, N), or their equals in float64."""
        if self.exact_int8:
            return torch._int_mm(rows, self.matrix)
        # Not float32: a process may have traded its precision for speed (TF32, bfloat16).
        return rows.double() @ self.float_matrix


class _Hidden(_Layer):
    """A layer followed by the 8-bit activation, returned less 128."""

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        super().__init__(conv, offsets)
        self.scale = (self.unit * ACT_GRID).float()
        self.shift = (self.offset * self.unit * ACT_GRID + 0.5).float()

    def __call__(self, rows: Tensor, extra: Tensor | None = None) -> Tensor:
        """``extra`` (P, N) or (1, N) float32, in sixteenths, is added before rounding."""
        # Element by element, one IEEE operation after the other: the same everywhere.
        out = self.sums(rows).float().mul_(self.scale).add_(self.shift)
        if extra is not None:
            out += extra
        return out.floor_().clamp_(0, 255).sub_(_HALF).to(torch.int8)


class _Head(_Layer):
    """A layer without activation, in float64 (exact)."""

    def __call__(self, rows: Tensor) -> Tensor:
        return (self.sums(rows).double() + self.offset) * self.unit


class _Coarse:
    def __init__(self, module: torch.nn.Module, offsets: list[tuple[int, int]]):
        self.offsets = offsets
        self.first = _Hidden(module.first, offsets)
        self.second = _Hidden(module.second, [(0, 0)])
        self.head = _Head(module.head, [(0, 0)])
        self.condition = module.condition
        linear = torch.floor(module.integer_linear().detach() * 512 + 0.5)
        self.linear = (
            torch.cat([linear[:, :, r + 2, c + 2] for r, c in offsets], 1).T.double().contiguous()
        )
        if float(self.linear.abs().sum(0).max()) * 2047 >= 2**24:
            raise ValueError("a coarse predictor can leave the exact range of float32")


class _Fine:
    def __init__(self, module: torch.nn.Module):
        self.first = _Hidden(module.first, _SQUARE)
        self.second = _Hidden(module.second, _SQUARE)
        self.anchors = _Head(module.anchors, [(0, 0)])
        self.neighbours = _Hidden(module.neighbours, _PLUS)
        self.third = _Hidden(module.third, [(0, 0)])
        self.others = _Head(module.others, [(0, 0)])
        self.condition = module.condition


class Step:
    """One pass to code: the caller reads ``mean`` and ``index`` and calls :meth:`write`.

    Attributes
    ----------
    channels : slice
        The pass's latent channels.
    places : (P,) int64
        Its positions, flattened over (h, w); the same in every date.
    mean : (B, P, N) int32
        Predicted latents in 1/16 step.
    index : (B, P, N) uint8
        Table of each symbol.
    """

    def __init__(self, channels: slice, places: Tensor, mean: Tensor, index: Tensor):
        self.channels, self.places, self.mean, self.index = channels, places, mean, index
        self.units: Tensor | None = None

    def write(self, symbols: Tensor) -> None:
        """Store decoded ``symbols`` (B, P, N) int32."""
        self.units = symbols * _UNITS + self.mean


class _Geometry:
    """Positions of the passes on a padded grid of ``batch`` dates, and of their neighbours."""

    def __init__(self, batch: int, height: int, width: int):
        self.batch, self.height, self.width = batch, height, width
        self.columns = width + 2 * _MARGIN
        self.area = (height + 2 * _MARGIN) * self.columns
        anchors = anchor_mask(height, width).flatten()
        masks = [coarse_mask(n, height, width).flatten() for n in range(len(COARSE_PASSES))]
        self.everywhere = torch.arange(height * width)
        self.coarse = [mask.nonzero()[:, 0] for mask in masks]
        self.anchors, self.others = anchors.nonzero()[:, 0], (~anchors).nonzero()[:, 0]
        self._rows: dict[tuple[int, tuple[tuple[int, int], ...]], Tensor] = {}

    def rows(self, places: Tensor, offsets: Sequence[tuple[int, int]] = ((0, 0),)) -> Tensor:
        """Flat rows (B P taps,) of the neighbours of ``places``, one of this geometry's."""
        key = (id(places), tuple(offsets))
        if key not in self._rows:
            inner = (places // self.width + _MARGIN) * self.columns + places % self.width + _MARGIN
            start = (torch.arange(self.batch)[:, None] * self.area + inner).flatten()
            shift = torch.tensor([r * self.columns + c for r, c in offsets])
            self._rows[key] = (start[:, None] + shift).flatten()
        return self._rows[key]


#: Chunks of one archive share a shape or two.
_geometry = lru_cache(maxsize=4)(_Geometry)


class _Grid:
    """A padded (B h w, C) grid that neighbours are gathered from."""

    def __init__(self, geometry: _Geometry, channels: int, dtype: torch.dtype, outside: int):
        self.geometry = geometry
        self.cells = torch.full((geometry.batch * geometry.area, channels), outside, dtype=dtype)

    def write(self, places: Tensor, rows: Tensor) -> None:
        self.cells[self.geometry.rows(places)] = rows

    def joined(self, other: _Grid) -> _Grid:
        """Both grids' channels, side by side."""
        out = copy.copy(self)
        out.cells = torch.cat([self.cells, other.cells], -1)
        return out

    def gather(self, places: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
        """(B P, taps * C): the neighbourhoods of the positions."""
        index = self.geometry.rows(places, offsets)
        return self.cells.index_select(0, index).view(-1, len(offsets) * self.cells.shape[1])


class IntegerModel:
    """The frozen entropy networks of an :class:`S2Net`."""

    def __init__(self, net: S2Net):
        self.net = net
        self.coarse = [
            _Coarse(module, offsets)
            for module, (_, offsets) in zip(net.coarse, COARSE_PASSES[1:], strict=True)
        ]
        self.fine = [_Fine(module) for module in net.fine]
        self.compand = _compand_table()
        self.prior = _in_256ths(net.prior).T.contiguous()
        self.prior_bias = _in_256ths(net.prior_bias)

    def steps(
        self, condition: Tensor, height: int, width: int, coded: tuple[bool, ...]
    ) -> Iterator[Step]:
        """Walk the decoding order for ``condition`` (B, 13); the caller writes each step back.

        Groups that are not ``coded`` are zero in every date and are walked past.
        """
        batch = len(condition)
        condition = condition.double()
        prior = (condition @ self.prior + self.prior_bias)[:, None]
        bounds = [0, *(sum(GROUPS[: i + 1]) for i in range(len(GROUPS)))]
        slices = [slice(a, b) for a, b in pairwise(bounds)]
        geometry = _geometry(batch, height, width)
        first = _Grid(geometry, GROUPS[0], torch.int8, 0)
        if coded[0]:
            whole = _Grid(geometry, GROUPS[0], torch.float32, 0)
            for number, places in enumerate(geometry.coarse):
                if len(places) == 0:
                    continue
                if number == 0:
                    mean = torch.zeros(batch, len(places), GROUPS[0], dtype=torch.float64)
                    scale = torch.zeros_like(mean)
                else:
                    mean, scale = self._coarse(
                        self.coarse[number - 1], first, whole, places, condition
                    )
                step = self._step(slices[0], places, mean, scale + prior[:, :, slices[0]])
                yield step
                units = _written(step)
                first.write(places, self._companded(units))
                whole.write(places, torch.floor((units + _UNITS // 2) / _UNITS).clamp(-2047, 2047))
        before = first
        for group, layers in enumerate(self.fine, start=1):
            size = GROUPS[group]
            mine = _Grid(geometry, size, torch.int8, 0)
            if coded[group]:
                context = self._context(layers, before, condition)
                for places in (geometry.anchors, geometry.others):
                    if len(places) == 0:
                        continue
                    rows = context.view(batch, height * width, -1)[:, places].flatten(0, 1)
                    if places is geometry.anchors:
                        out = layers.anchors(rows)
                    else:
                        rows = layers.neighbours(
                            mine.gather(places, _PLUS), rows.float().add_(_HALF)
                        )
                        out = layers.others(layers.third(rows))
                    mean, scale = out.view(batch, len(places), 2 * size).chunk(2, -1)
                    step = self._step(
                        slices[group], places, mean, scale + prior[:, :, slices[group]]
                    )
                    yield step
                    mine.write(places, self._companded(_written(step)))
            before = before.joined(mine)

    def _coarse(
        self, layers: _Coarse, fine: _Grid, whole: _Grid, places: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch = len(condition)
        bias = _sixteenths(layers.condition, condition, len(places))
        hidden = layers.second(layers.first(fine.gather(places, layers.offsets), bias))
        mean, scale = layers.head(hidden).view(batch, len(places), -1).chunk(2, -1)
        linear = whole.gather(places, layers.offsets).double() @ layers.linear
        return mean + linear.view_as(mean) / 512, scale

    def _context(self, layers: _Fine, before: _Grid, condition: Tensor) -> Tensor:
        everywhere = before.geometry.everywhere
        bias = _sixteenths(layers.condition, condition, len(everywhere))
        hidden = layers.first(before.gather(everywhere, _SQUARE), bias)
        grid = _Grid(before.geometry, hidden.shape[1], torch.int8, -_HALF)
        grid.write(everywhere, hidden)
        return layers.second(grid.gather(everywhere, _SQUARE))

    def _companded(self, units: Tensor) -> Tensor:
        return self.compand[units.clamp(-_COMPAND_REACH, _COMPAND_REACH).add_(_COMPAND_REACH)]

    def _step(self, channels: slice, places: Tensor, mean: Tensor, scale: Tensor) -> Step:
        index = torch.floor(scale + 0.5).clamp_(0, SCALES - 1).to(torch.uint8)
        return Step(channels, places, torch.floor(mean * MEAN_GRID + 0.5).int(), index)


def _sixteenths(condition_layer: torch.nn.Module, condition: Tensor, places: int) -> Tensor:
    """A layer's condition bias in units of its activation: a row each position, or one for all."""
    bias = (condition @ _in_256ths(condition_layer.weight).T * ACT_GRID).float()
    return bias if len(bias) == 1 else bias.repeat_interleave(places, 0)


def _in_256ths(parameter: Tensor) -> Tensor:
    """A parameter on its 1/256 grid, in float64, whose sums are exact."""
    return torch.floor(parameter.detach().double() * 256 + 0.5) / 256


def _written(step: Step) -> Tensor:
    if step.units is None:
        raise RuntimeError("a pass was left without its symbols")
    return step.units.flatten(0, 1)
