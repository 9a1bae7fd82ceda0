"""The entropy networks of ``tec-s2`` in integers: what coding uses, on every machine alike.

Same sums as :class:`~tec_zarr.networks.image_net.S2Net` in training, but only at the positions of
each pass and with int8 matrix products accumulated in int32 (or in float64, where the processor's
int8 instructions saturate: no sum reaches 2**24, so both are exact and equal).  Latents are
integers in units of 1/16 quantiser step throughout.

``B`` dates of one size are walked together; rows of a matrix are positions, date by date.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tec_zarr import native
from tec_zarr.entropy.tables import Tables
from tec_zarr.models.constants import ACT_GRID, COARSE_PASSES, GROUPS, MEAN_GRID, SCALES
from tec_zarr.networks.image_net import IntConv, S2Net, anchor_mask, coarse_mask
from tec_zarr.networks.series_net import (
    COARSE_PAST,
    GATE_GRID,
    GATE_LIMIT,
    TemporalCoarse,
    TemporalGroup,
    TemporalNet,
)
from tec_zarr.terracodec.exact import int8_is_exact

_UNITS = int(MEAN_GRID)
HALF = 128
#: Neighbours a pass may look at reach this far.
_MARGIN = 2
SQUARE = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
_PLUS = [(-1, 0), (0, -1), (0, 1), (1, 0)]
#: Latents beyond this many units look alike to the networks.
_COMPAND_REACH = 1 << 15


def companded(units: Tensor) -> Tensor:
    """floor(127 u / (128 + |u|) + 1/2) of latents in 1/16 step, as int8.

    The division is rounded once and the sum once, by 2**-17 in all at most; nothing that floor
    could confuse is nearer than 1 / (2 (128 + 2**15)).
    """
    values = units.float().clamp_(-_COMPAND_REACH, _COMPAND_REACH)
    size = values.abs().add_(8 * _UNITS)
    return values.mul_(127).div_(size).add_(0.5).floor_().to(torch.int8)


class Layer:
    """One :class:`IntConv` over chosen taps, as an int8 matrix.

    Inputs are int8: companded latents as they are, activations (0 .. 255) less 128.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        weight, exponent, bias = conv.integers()
        middle = weight.shape[-1] // 2
        chosen = [weight[:, :, r + middle, c + middle] for r, c in offsets]
        self.matrix = torch.cat(chosen, 1).T.contiguous()
        self.taps = len(offsets)
        self.offset = bias.double()
        if conv.grid == ACT_GRID:
            self.offset = self.offset + HALF * self.matrix.double().sum(0)
        self.unit = torch.exp2(exponent.double()) / conv.grid
        self.float_matrix = self.matrix.double()
        self.exact_int8 = int8_is_exact(weight.device.type)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Of a layer with ``scale`` and ``shift``: what :mod:`tec_zarr.native` takes."""
        weight = self.matrix.T.reshape(self.matrix.shape[1], self.taps, -1).swapaxes(1, 2)
        return {
            "weight": weight.numpy(),
            "scale": self.scale.numpy(),
            "shift": self.shift.numpy(),
        }

    def sums(self, rows: Tensor) -> Tensor:
        """Integer sums of int8 ``rows`` (P, K): int32 (P, N), or their equals in float64."""
        if self.exact_int8:
            return torch._int_mm(rows, self.matrix)
        # Not float32: a process may have traded its precision for speed (TF32, bfloat16).
        return rows.double() @ self.float_matrix


class Hidden(Layer):
    """A layer followed by the 8-bit activation, returned less 128."""

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        super().__init__(conv, offsets)
        self.scale = (self.unit * ACT_GRID).float()
        self.shift = (self.offset * self.unit * ACT_GRID + 0.5).float()

    def __call__(self, rows: Tensor, extra: Tensor | None = None) -> Tensor:
        """``extra`` (P, N) or (1, N) float32, in sixteenths, is added before rounding."""
        # Element by element, one IEEE operation after the other (the product is exact, so that
        # it does not matter whether it is fused with the sum): the same everywhere.
        out = torch.addcmul(self.shift, self.sums(rows).float(), self.scale)
        if extra is not None:
            out += extra
        return out.floor_().clamp_(0, 255).sub_(HALF).to(torch.int8)


class _Term(Layer):
    """A layer that joins the sums of a hidden layer: its ``extra``, in sixteenths."""

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        super().__init__(conv, offsets)
        self.scale = (self.unit * ACT_GRID).float()
        self.shift = (self.offset * self.unit * ACT_GRID).float()

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.sums(rows).float(), self.scale)


class _Gate(Layer):
    """A layer without activation whose value multiplies a prediction: whole 1/64, -2 to 2."""

    def __init__(self, conv: IntConv):
        super().__init__(conv, [(0, 0)])
        self.unit = self.unit * GATE_GRID

    def __call__(self, rows: Tensor) -> Tensor:
        limit = GATE_LIMIT * GATE_GRID
        value = (self.sums(rows).double() + self.offset) * self.unit
        return value.add_(0.5).floor_().clamp_(-limit, limit)


class Head(Layer):
    """A layer without activation: means in the first half of its outputs, scales in the second.

    float32 is exact here: means have at most 24 bits. So have scales; with the prior they are
    rounded once, and between 0 and ``SCALES``, where it matters, they need no more than 24 bits.
    """

    def __init__(self, conv: IntConv):
        super().__init__(conv, [(0, 0)])
        self.size = len(self.unit) // 2
        unit = self.unit.clone()
        unit[: self.size] *= MEAN_GRID
        shift = self.offset * unit
        shift[: self.size] += 0.5
        largest = 128 * self.float_matrix.abs().sum(0) + self.offset.abs() + 0.5 / unit
        fine = float(self.unit.min()) >= 2.0**-18 and float(unit.max()) <= 0.5
        exact = fine and float(largest.max()) < 2**24
        self.dtype = torch.float32 if exact else torch.float64
        self.scale, self.shift = unit.to(self.dtype), shift.to(self.dtype)

    def __call__(
        self, rows: Tensor, prior: Tensor, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Means in 1/16 step, int32, and table indexes, uint8, (B, P, N) both.

        ``prior`` (B, 1, N) float32 holds the prior scale plus one half; ``extra`` (B P, N) float64
        is added to the means, in 1/16 step.
        """
        out = torch.addcmul(self.shift, self.sums(rows).to(self.dtype), self.scale)
        mean, scale = out[:, : self.size], out[:, self.size :]
        if extra is not None:
            mean = mean + extra
        shape = len(prior), -1, self.size
        index = scale.view(*shape).add_(prior).clamp_(0, SCALES - 1).to(torch.int8)
        return mean.floor_().int().view(shape), index.view(torch.uint8)


class _Coarse:
    def __init__(self, module: torch.nn.Module, offsets: list[tuple[int, int]]):
        self.offsets = offsets
        self.first = Hidden(module.first, offsets)
        self.second = Hidden(module.second, [(0, 0)])
        self.head = Head(module.head)
        if isinstance(module, TemporalCoarse):
            self.past = _Term(module.past, SQUARE)
            self.gate = _Gate(module.gate)
        linear = torch.floor(module.integer_linear().detach() * 512 + 0.5)
        self.linear = (
            torch.cat([linear[:, :, r + 2, c + 2] for r, c in offsets], 1).T.double().contiguous()
        )
        if float(self.linear.abs().sum(0).max()) * 2047 >= 2**24:
            raise ValueError("a coarse predictor can leave the exact range of float32")
        self.linear *= MEAN_GRID / 512

    def whole_linear(self) -> np.ndarray:
        """The linear predictor (taps, 4, 4) in 1/512."""
        whole = self.linear * (512 / MEAN_GRID)
        return whole.view(len(self.offsets), GROUPS[0], GROUPS[0]).int().numpy()


class _Fine:
    def __init__(self, module: torch.nn.Module):
        self.first = Hidden(module.first, SQUARE)
        self.second = Hidden(module.second, SQUARE)
        self.anchors = Head(module.anchors)
        self.neighbours = Hidden(module.neighbours, _PLUS)
        self.third = Hidden(module.third, [(0, 0)])
        self.others = Head(module.others)
        if isinstance(module, TemporalGroup):
            self.past = _Term(module.past, SQUARE)
            self.anchors_gate = _Gate(module.anchors_gate)
            self.others_gate = _Gate(module.others_gate)


class Step:
    """One pass to code: the caller reads ``mean`` and ``index`` and calls :meth:`write`.

    Attributes
    ----------
    group : int
        Number of the channel group.
    last : bool
        Whether this is the group's last pass.
    channels : slice
        The group's latent channels.
    places : (P,) int64
        Its positions, flattened over (h, w); the same in every date.
    mean : (B, P, N) int32
        Predicted latents in 1/16 step.
    index : (B, P, N) uint8
        Table of each symbol.
    """

    def __init__(self, group: int, last: bool, places: Tensor, mean: Tensor, index: Tensor):
        self.group, self.last = group, last
        start = sum(GROUPS[:group])
        self.channels = slice(start, start + GROUPS[group])
        self.places, self.mean, self.index = places, mean, index
        self.units: Tensor | None = None
        self.discarded = False

    def discard(self) -> None:
        """In the last pass of a group after the first: the group is not coded after all."""
        self.discarded = True

    def write(self, symbols: Tensor) -> None:
        """Store decoded ``symbols`` (B, P, N) int32."""
        self.write_units(torch.add(self.mean, symbols, alpha=_UNITS))

    def write_units(self, units: Tensor) -> None:
        """Store decoded latents (B, P, N) int32 in 1/16 step."""
        self.units = units


class Geometry:
    """Positions of the passes on a padded grid of ``batch`` dates, and of their neighbours."""

    def __init__(self, batch: int, height: int, width: int):
        self.batch, self.height, self.width = batch, height, width
        self.columns = width + 2 * _MARGIN
        self.area = (height + 2 * _MARGIN) * self.columns
        anchors = anchor_mask(height, width).flatten()
        masks = [coarse_mask(n, height, width).flatten() for n in range(len(COARSE_PASSES))]
        everywhere = torch.arange(height * width)
        self.coarse = [mask.nonzero()[:, 0] for mask in masks]
        self.anchors, self.others = anchors.nonzero()[:, 0], (~anchors).nonzero()[:, 0]
        #: All positions, row by row; and those of one checkerboard pass after the other.
        self.everywhere, self.by_pass = everywhere, torch.cat([self.anchors, self.others])
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
geometry_of = lru_cache(maxsize=4)(Geometry)


class Grid:
    """A padded (B h w, C) grid that neighbours are gathered from."""

    def __init__(self, geometry: Geometry, channels: int, dtype: torch.dtype, outside: int):
        self.geometry = geometry
        self.cells = torch.full((geometry.batch * geometry.area, channels), outside, dtype=dtype)

    def write(self, places: Tensor, rows: Tensor) -> None:
        index = self.geometry.rows(places)
        if self.cells.is_cpu:  # NumPy copies row by row, torch value by value
            self.cells.numpy()[index.numpy()] = rows.numpy()
        else:
            self.cells[index] = rows

    def write_everywhere(self, rows: Tensor) -> None:
        size = self.geometry.height, self.geometry.width
        padded = self.cells.view(self.geometry.batch, -1, self.geometry.columns, rows.shape[1])
        inside = padded[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        inside.copy_(rows.view(len(inside), *size, -1))

    def joined(self, other: Grid) -> Grid:
        """Both grids' channels, side by side."""
        out = copy.copy(self)
        out.cells = torch.cat([self.cells, other.cells], -1)
        return out

    def gather(self, places: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
        """(B P, taps * C): the neighbourhoods of the positions."""
        index = self.geometry.rows(places, offsets)
        return self.cells.index_select(0, index).view(-1, len(offsets) * self.cells.shape[1])


class Past:
    """Latents of the dates' predictions, (B, P, 320) int32 in 1/16 step, as the networks take them.

    Absent (``None`` below) in ``tec-s2``, whose networks know no other dates.
    """

    def __init__(self, units: Tensor, height: int, width: int):
        self.geometry = geometry_of(len(units), height, width)
        self.replace(units)

    def replace(self, units: Tensor) -> None:
        """Have other predictions from the next channel group on."""
        self.units = units.double()
        self.cells = companded(units)

    def term(self, layer: _Term, places: Tensor, channels: int) -> Tensor:
        """What ``layer`` makes of the neighbourhoods of ``places``, of the first ``channels``."""
        grid = Grid(self.geometry, channels, torch.int8, 0)
        grid.write_everywhere(self.cells[:, :, :channels].reshape(-1, channels))
        return layer(grid.gather(places, SQUARE))

    def gated(self, gate: Tensor, places: Tensor, channels: slice) -> Tensor:
        """What gates (B P, N) add to means, in 1/16 step, float64."""
        return gate * self.units[:, places, channels].flatten(0, 1) / GATE_GRID


class IntegerModel:
    """The frozen entropy networks of an :class:`S2Net`, or of a :class:`TemporalNet`."""

    def __init__(self, net: S2Net | TemporalNet):
        self.net = net
        self.coarse = [
            _Coarse(module, offsets)
            for module, (_, offsets) in zip(net.coarse, COARSE_PASSES[1:], strict=True)
        ]
        self.fine = [_Fine(module) for module in net.fine]
        # What follows from the condition: the prior, then every network's bias.
        conditions = [module.condition.weight for module in (*net.coarse, *net.fine)]
        self.condition = torch.cat(
            [in_256ths(net.prior), *(ACT_GRID * in_256ths(weight) for weight in conditions)]
        ).T.contiguous()
        self.condition_sizes = [len(net.prior), *(len(weight) for weight in conditions)]
        self.prior_bias = in_256ths(net.prior_bias) + 0.5

    def terms(self, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What :mod:`tec_zarr.native` takes of a ``condition`` (13,): the biases of all networks,
        and the prior (320,) with one half, float32.
        """
        prior, biases = np.split(
            condition.astype(float) @ self.condition.numpy(), self.condition_sizes[:1]
        )
        return biases.astype(np.float32), (prior + self.prior_bias.numpy()).astype(np.float32)

    def compiled(self, tables: Tables) -> native.Networks | None:
        """The same for :mod:`tec_zarr.native`, where that was built."""
        heads = [net.head for net in self.coarse]
        heads += [head for net in self.fine for head in (net.anchors, net.others)]
        units = [len(net.first.scale) for net in (*self.coarse, *self.fine)]
        if native.library() is None or any(head.dtype != torch.float32 for head in heads):
            return None
        if any(map(native.odd_width, units)):
            return None
        coarse = [
            {name: getattr(net, name).as_arrays() for name in ("first", "second", "head")}
            | {"offsets": net.offsets, "linear": net.whole_linear()}
            for net in self.coarse
        ]
        names = ("first", "second", "anchors", "neighbours", "third", "others")
        fine = [{name: getattr(net, name).as_arrays() for name in names} for net in self.fine]
        return native.Networks(
            coarse, fine, [tables.cumulative(i) for i in range(SCALES)], tables.silent
        )

    def steps(
        self,
        condition: Tensor,
        height: int,
        width: int,
        coded: tuple[bool, ...],
        past: Past | None = None,
    ) -> Iterator[Step]:
        """Walk the decoding order for ``condition`` (B, 13); the caller writes each step back.

        Groups that are not ``coded`` are zero in every date and are walked past.
        """
        batch = len(condition)
        prior, *biases = (condition.double() @ self.condition).split(self.condition_sizes, -1)
        priors = (prior + self.prior_bias).float()[:, None].split(GROUPS, -1)
        biases = [bias.float() for bias in biases]
        geometry = geometry_of(batch, height, width)
        before = Grid(geometry, GROUPS[0], torch.int8, 0)
        if coded[0]:
            whole = Grid(geometry, GROUPS[0], torch.float64, 0)
            passes = [(n, places) for n, places in enumerate(geometry.coarse) if len(places)]
            for number, places in passes:
                if number == 0:
                    shape = batch, len(places), GROUPS[0]
                    index = priors[0].clamp(0, SCALES - 1).to(torch.uint8).expand(shape)
                    mean, index = torch.zeros(shape, dtype=torch.int32), index.contiguous()
                else:
                    layers, bias = self.coarse[number - 1], biases[number - 1]
                    near = before.gather(places, layers.offsets)
                    extra = _each(bias, len(places))
                    if past:
                        extra = extra + past.term(layers.past, places, COARSE_PAST)
                    hidden = layers.second(layers.first(near, extra))
                    linear = whole.gather(places, layers.offsets) @ layers.linear
                    if past:
                        channels = slice(0, GROUPS[0])
                        linear += past.gated(layers.gate(hidden), places, channels)
                    mean, index = layers.head(hidden, priors[0], linear)
                step = Step(0, number == passes[-1][0], places, mean, index)
                yield step
                units = _written(step)
                before.write(places, companded(units))
                rounded = torch.floor((units + _UNITS // 2) / _UNITS).clamp_(-2047, 2047)
                whole.write(places, rounded.double())
        for group, layers in enumerate(self.fine, start=1):
            if not any(coded[group:]):
                return
            mine = Grid(geometry, GROUPS[group], torch.int8, 0)
            if coded[group]:
                bias = biases[len(self.coarse) + group - 1]
                channels = slice(sum(GROUPS[:group]), sum(GROUPS[: group + 1]))
                extra = _each(bias, height * width)
                if past:
                    extra = extra + past.term(layers.past, geometry.everywhere, channels.stop)
                context = self._context(layers, before, extra).view(batch, height * width, -1)
                checkers = [geometry.anchors, geometry.others][: 1 + bool(len(geometry.others))]
                for places in checkers:
                    if places is geometry.anchors:
                        rows = context[:, : len(places)].flatten(0, 1)
                        head, gate = layers.anchors, past and layers.anchors_gate
                    else:
                        rows = context[:, -len(places) :].flatten(0, 1).float().add_(HALF)
                        rows = layers.third(layers.neighbours(mine.gather(places, _PLUS), rows))
                        head, gate = layers.others, past and layers.others_gate
                    put_back = past.gated(gate(rows), places, channels) if past else None
                    mean, index = head(rows, priors[group], put_back)
                    step = Step(group, places is checkers[-1], places, mean, index)
                    yield step
                    mine.write(places, companded(_written(step)))
                if step.discarded:
                    mine.cells.zero_()
            before = before.joined(mine)

    def _context(self, layers: _Fine, before: Grid, extra: Tensor) -> Tensor:
        """What the earlier groups say about every position, in order of the passes."""
        geometry = before.geometry
        near = before.gather(geometry.everywhere, SQUARE)
        hidden = layers.first(near, extra)
        grid = Grid(geometry, hidden.shape[1], torch.int8, -HALF)
        grid.write_everywhere(hidden)
        return layers.second(grid.gather(geometry.by_pass, SQUARE))


def _each(bias: Tensor, places: int) -> Tensor:
    """The dates' biases (B, N) for ``places`` rows each; one row for all of a single date."""
    return bias if len(bias) == 1 else bias.repeat_interleave(places, 0)


def in_256ths(parameter: Tensor) -> Tensor:
    """A parameter on its 1/256 grid, in float64, whose sums are exact."""
    return torch.floor(parameter.detach().double() * 256 + 0.5) / 256


def _written(step: Step) -> Tensor:
    if step.units is None:
        raise RuntimeError("a pass was left without its symbols")
    return step.units.flatten(0, 1)
