"""The entropy networks of ``tec-s2`` and ``tec-tt-s2`` in integers, as coding uses them.

They compute the same sums as :class:`~tec_zarr.networks.image_net.S2Net` in training, but only at
the positions of each pass.  The sums are int8 matrix products with int32 results, or float64 where
the processor's int8 instructions saturate.  No sum reaches 2**24, so both are exact and equal on
every machine.  Latents are integers in units of 1/16 quantiser step.

``B`` dates of one size are coded together; rows of a matrix are positions, date by date.
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
#: Distance of the farthest neighbours that a pass sees, in positions.
_MARGIN = 2
SQUARE = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
_PLUS = [(-1, 0), (0, -1), (0, 1), (1, 0)]
#: Latents are clipped to this many units before the networks see them.
_COMPAND_REACH = 1 << 15


def companded(units: Tensor) -> Tensor:
    """Return floor(127 u / (128 + |u|) + 1/2) of latents u in 1/16 step, as int8.

    The float32 result is exact. The division and the sum are rounded by at most 2**-17 in all, and
    no value other than a whole number is nearer to one than 1 / (2 (128 + 2**15)).
    """
    values = units.float().clamp_(-_COMPAND_REACH, _COMPAND_REACH)
    size = values.abs().add_(8 * _UNITS)
    return values.mul_(127).div_(size).add_(0.5).floor_().to(torch.int8)


class Layer:
    """One :class:`IntConv` over chosen taps, as an int8 matrix.

    Inputs are int8: companded latents, or activations (0 .. 255) minus 128.
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
        """Return the layer as arrays for :mod:`tec_zarr.native`; needs ``scale`` and ``shift``."""
        weight = self.matrix.T.reshape(self.matrix.shape[1], self.taps, -1).swapaxes(1, 2)
        return {
            "weight": weight.numpy(),
            "scale": self.scale.numpy(),
            "shift": self.shift.numpy(),
        }

    def sums(self, rows: Tensor) -> Tensor:
        """Return the integer sums of int8 ``rows`` (P, K): (P, N), int32 or equal float64."""
        if self.exact_int8:
            return torch._int_mm(rows, self.matrix)
        # Not float32: a process may have let torch use TF32 or bfloat16 in its products.
        return rows.double() @ self.float_matrix


class Hidden(Layer):
    """A layer followed by the 8-bit activation; it returns the activation minus 128, int8."""

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        super().__init__(conv, offsets)
        self.scale = (self.unit * ACT_GRID).float()
        self.shift = (self.offset * self.unit * ACT_GRID + 0.5).float()

    def __call__(self, rows: Tensor, extra: Tensor | None = None) -> Tensor:
        """Compute the layer; ``extra`` (P, N) or (1, N), float32 in 1/16, joins before rounding."""
        # These are single IEEE operations on each element, so results are the same everywhere. The
        # product is exact, so fusing it with the sum changes nothing.
        out = torch.addcmul(self.shift, self.sums(rows).float(), self.scale)
        if extra is not None:
            out += extra
        return out.floor_().clamp_(0, 255).sub_(HALF).to(torch.int8)


class _Term(Layer):
    """A layer whose result is the ``extra`` of a hidden layer, in sixteenths."""

    def __init__(self, conv: IntConv, offsets: list[tuple[int, int]]):
        super().__init__(conv, offsets)
        self.scale = (self.unit * ACT_GRID).float()
        self.shift = (self.offset * self.unit * ACT_GRID).float()

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.sums(rows).float(), self.scale)


class _Gate(Layer):
    """A layer without activation whose result multiplies a prediction.

    The result is a whole number of 1/64, from -2 to 2.
    """

    def __init__(self, conv: IntConv):
        super().__init__(conv, [(0, 0)])
        self.unit = self.unit * GATE_GRID

    def __call__(self, rows: Tensor) -> Tensor:
        limit = GATE_LIMIT * GATE_GRID
        value = (self.sums(rows).double() + self.offset) * self.unit
        return value.add_(0.5).floor_().clamp_(-limit, limit)


class Head(Layer):
    """A layer without activation: means in the first half of its outputs, scales in the second.

    float32 is used where it is exact: means and scales have at most 24 bits. The sum of scale and
    prior is rounded once. Between 0 and ``SCALES``, the range of table indexes, it needs no more
    than 24 bits.
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
        """Return means in 1/16 step, int32, and table indexes, uint8, both (B, P, N).

        ``prior`` (B, 1, N) float32 is the prior scale plus one half.  ``extra`` (B P, N) float64 is
        added to the means, in 1/16 step.
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
        """Return the linear predictor, (taps, 4, 4) in whole 1/512."""
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
        """Do not code the group after all. Only the last pass of a group after the first may."""
        self.discarded = True

    def write(self, symbols: Tensor) -> None:
        """Store decoded ``symbols`` (B, P, N) int32."""
        self.write_units(torch.add(self.mean, symbols, alpha=_UNITS))

    def write_units(self, units: Tensor) -> None:
        """Store decoded latents (B, P, N) int32 in 1/16 step."""
        self.units = units


class Geometry:
    """Positions of the passes, and of their neighbours, on a padded grid of ``batch`` dates."""

    def __init__(self, batch: int, height: int, width: int):
        self.batch, self.height, self.width = batch, height, width
        self.columns = width + 2 * _MARGIN
        self.area = (height + 2 * _MARGIN) * self.columns
        anchors = anchor_mask(height, width).flatten()
        masks = [coarse_mask(n, height, width).flatten() for n in range(len(COARSE_PASSES))]
        everywhere = torch.arange(height * width)
        self.coarse = [mask.nonzero()[:, 0] for mask in masks]
        self.anchors, self.others = anchors.nonzero()[:, 0], (~anchors).nonzero()[:, 0]
        #: All positions: row by row, and ordered by checkerboard pass.
        self.everywhere, self.by_pass = everywhere, torch.cat([self.anchors, self.others])
        self._rows: dict[tuple[int, tuple[tuple[int, int], ...]], Tensor] = {}

    def rows(self, places: Tensor, offsets: Sequence[tuple[int, int]] = ((0, 0),)) -> Tensor:
        """Return the flat rows (B P taps,) of the neighbours of ``places``.

        ``places`` is one of this object's position tensors: results are cached by its identity.
        """
        key = (id(places), tuple(offsets))
        if key not in self._rows:
            inner = (places // self.width + _MARGIN) * self.columns + places % self.width + _MARGIN
            start = (torch.arange(self.batch)[:, None] * self.area + inner).flatten()
            shift = torch.tensor([r * self.columns + c for r, c in offsets])
            self._rows[key] = (start[:, None] + shift).flatten()
        return self._rows[key]


#: Cached, because the chunks of an archive share a shape or two.
geometry_of = lru_cache(maxsize=4)(Geometry)


class Grid:
    """A padded grid of ``C`` channels from which passes gather neighbours."""

    def __init__(self, geometry: Geometry, channels: int, dtype: torch.dtype, outside: int):
        self.geometry = geometry
        self.cells = torch.full((geometry.batch * geometry.area, channels), outside, dtype=dtype)

    def write(self, places: Tensor, rows: Tensor) -> None:
        index = self.geometry.rows(places)
        if self.cells.is_cpu:  # NumPy is faster: it copies row by row, torch value by value
            self.cells.numpy()[index.numpy()] = rows.numpy()
        else:
            self.cells[index] = rows

    def write_everywhere(self, rows: Tensor) -> None:
        size = self.geometry.height, self.geometry.width
        padded = self.cells.view(self.geometry.batch, -1, self.geometry.columns, rows.shape[1])
        inside = padded[:, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        inside.copy_(rows.view(len(inside), *size, -1))

    def joined(self, other: Grid) -> Grid:
        """Return a grid with the channels of both."""
        out = copy.copy(self)
        out.cells = torch.cat([self.cells, other.cells], -1)
        return out

    def gather(self, places: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
        """Return the neighbourhoods of the positions, (B P, taps * C)."""
        index = self.geometry.rows(places, offsets)
        return self.cells.index_select(0, index).view(-1, len(offsets) * self.cells.shape[1])


class Past:
    """Latents of the dates' predictions, (B, P, 320) int32 in 1/16 step, for the networks.

    It is None for ``tec-s2``, whose networks see no other dates.
    """

    def __init__(self, units: Tensor, height: int, width: int):
        self.geometry = geometry_of(len(units), height, width)
        self.replace(units)

    def replace(self, units: Tensor) -> None:
        """Use other predictions from the next channel group on."""
        self.units = units.double()
        self.cells = companded(units)

    def term(self, layer: _Term, places: Tensor, channels: int) -> Tensor:
        """Apply ``layer`` to the first ``channels`` channels around ``places``."""
        grid = Grid(self.geometry, channels, torch.int8, 0)
        grid.write_everywhere(self.cells[:, :, :channels].reshape(-1, channels))
        return layer(grid.gather(places, SQUARE))

    def gated(self, gate: Tensor, places: Tensor, channels: slice) -> Tensor:
        """Return the gated prediction to add to means, (B P, N) float64 in 1/16 step."""
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
        # Weights of the condition: those of the prior, then those of every network's bias.
        conditions = [module.condition.weight for module in (*net.coarse, *net.fine)]
        self.condition = torch.cat(
            [in_256ths(net.prior), *(ACT_GRID * in_256ths(weight) for weight in conditions)]
        ).T.contiguous()
        self.condition_sizes = [len(net.prior), *(len(weight) for weight in conditions)]
        self.prior_bias = in_256ths(net.prior_bias) + 0.5

    def terms(self, condition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the terms of a ``condition`` (13,) for :mod:`tec_zarr.native`, float32.

        They are the biases of all networks, and the prior plus one half, (320,).
        """
        prior, biases = np.split(
            condition.astype(float) @ self.condition.numpy(), self.condition_sizes[:1]
        )
        return biases.astype(np.float32), (prior + self.prior_bias.numpy()).astype(np.float32)

    def compiled(self, tables: Tables) -> native.Networks | None:
        """Return the same networks for :mod:`tec_zarr.native`.

        None if that was not built, or does not support these networks.
        """
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
        """Yield the passes in decoding order for ``condition`` (B, 13).

        The caller writes each step back.  Groups that are not ``coded`` are zero in every date and
        are skipped.
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
        """Return the context of every position from the earlier groups, in order of the passes."""
        geometry = before.geometry
        near = before.gather(geometry.everywhere, SQUARE)
        hidden = layers.first(near, extra)
        grid = Grid(geometry, hidden.shape[1], torch.int8, -HALF)
        grid.write_everywhere(hidden)
        return layers.second(grid.gather(geometry.by_pass, SQUARE))


def _each(bias: Tensor, places: int) -> Tensor:
    """Repeat the dates' biases (B, N) for ``places`` rows each; a single date keeps one row."""
    return bias if len(bias) == 1 else bias.repeat_interleave(places, 0)


def in_256ths(parameter: Tensor) -> Tensor:
    """Round a parameter to its 1/256 grid, in float64, so that sums are exact."""
    return torch.floor(parameter.detach().double() * 256 + 0.5) / 256


def _written(step: Step) -> Tensor:
    if step.units is None:
        raise RuntimeError("a pass was left without its symbols")
    return step.units.flatten(0, 1)
