"""Codes latents level by level in integers, so that a stream can be cut at any level.

The quantiser cell of a latent at one quality is divided into the cells of the next quality. Only
the choice among these is coded, with the probabilities that the entropy networks give at that
quality, conditional on the known cell. By the chain rule of entropy this costs as much as coding
the finer cell at once, if the networks know as much. This is nested quantisation (Lu et al. 2021,
"Progressive neural image compression with nested quantization and latent ordering"), but cells
follow the prediction of each level instead of one lattice.

Cells are half-open intervals in units of 1/4096 DN: quantiser steps are multiples of 1/256 DN, and
positions are sixteenths of a step. The middle cell lies around the predicted mean. It is wider if
larger latents are less probable, as in rate-distortion optimised quantisation. The other cells are
one step wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tec_zarr.entropy.range_coder import BitDecoder, BitEncoder
from tec_zarr.entropy.tables import Tables
from tec_zarr.errors import FormatError

#: Number of positions in a step.
GRID = 16
#: Bounds of unknown latents are this far from 0.
FAR = 1 << 56
#: Cells are not cut nearer to their ends than this, in sixteenths of the new step.
SLIVER = 5
#: Half the width of the middle cell, in sixteenths of a step, is 8, plus 1 for every ``ZONE_BITS``
#: bits that the next cell costs more, but at most ``WIDEST_ZONE``.
ZONE_BITS, WIDEST_ZONE = 0.6, 20
#: Tables reach this many steps to each side of the mean.
REACH = 24
_TOTAL_BITS = 24
_CHANCE_BITS = 16
_MOST_CHANCE = (1 << _CHANCE_BITS) - 1
#: Up to this many cells away from the middle, there is a decision for each cell.
_COUNTED = 24
#: Kinds of decisions. OPEN, BETWEEN, BESIDE: is it the middle cell? OPEN is for unknown latents,
#: BETWEEN for latents that can be on both sides of it, BESIDE for those that can be on one side
#: only. SIDE: is it above the middle cell? OUTWARDS: is it this cell, and none farther out?
OPEN, BETWEEN, BESIDE, SIDE, OUTWARDS = range(5)
KINDS = 5
#: Number of classes of chances, spaced evenly in log odds, and number of contexts.
CLASSES, CONTEXTS = 64, 6
_ODDS = 9.0
#: Contexts after the first begin at these sums of the neighbours' sizes, in 1/16 step.
_CONTEXT_STARTS = (4, 12, 32, 80, 200)


def make_tables(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Return cumulative frequencies and middle cells, from the tables of whole symbols.

    The tables of whole symbols give the probability of lying beyond each half-integer. Its
    logarithm is interpolated in between, so that the density is piecewise exponential. Tables that
    code nothing get a spread extrapolated from the tables after them.

    Returns
    -------
    cumulative : (N, 32 * REACH + 1) int32
        From 0 to 2**24, strictly increasing, at sixteenths of a step from ``-REACH`` to ``REACH``.
    zones : (N,) int32
        Half widths of the middle cells, in sixteenths.
    """
    out, zones = [], []
    slopes = np.full(len(tables.rows), np.nan)
    for i, row in enumerate(tables.rows[tables.silent :], start=tables.silent):
        slopes[i] = -2 * np.log(max(1 - row[len(row) // 2] / row.sum(), 1e-9))
    known = np.arange(tables.silent, min(tables.silent + 8, len(slopes)))
    trend = np.polyfit(known, np.log(slopes[known]), 1)
    at = np.arange(REACH * GRID + 1) / GRID
    for i, row in enumerate(tables.rows):
        reach = int(tables.reach[i])
        if reach:
            half = row / row.sum()
            half = half[reach:] + half[reach::-1]
            half[0] /= 2
            beyond = np.clip(1 - np.cumsum(half)[:reach], 1e-9, 1.0)
            places, logs = np.append(0, np.arange(reach) + 0.5), np.append(0, np.log(beyond))
            excess = float(np.log2(row[reach] / max(half[1] * row.sum() / 2, 1)))
        else:
            slope = float(np.exp(np.polyval(trend, i)))
            places, logs, excess = np.array([0.0, 0.5]), np.array([0.0, -slope / 2]), np.inf
        last = (logs[-1] - logs[-2]) / (places[-1] - places[-2])
        tail = np.interp(at, places, logs) + np.maximum(at - places[-1], 0) * min(last, -0.05)
        cells = -np.diff(np.exp(tail))
        whole = np.concatenate([cells[::-1], cells])
        free = (1 << _TOTAL_BITS) - len(whole)
        frequencies = np.floor(whole / whole.sum() * free).astype(np.int64) + 1
        frequencies[[len(whole) // 2 - 1, len(whole) // 2]] += (
            (1 << _TOTAL_BITS) - int(frequencies.sum())
        ) // 2
        frequencies[-1] += (1 << _TOTAL_BITS) - int(frequencies.sum())
        out.append(np.append(0, np.cumsum(frequencies)).astype(np.int32))
        zones.append(min(GRID // 2 + round(max(min(excess / ZONE_BITS, 99.0), 0.0)), WIDEST_ZONE))
    return np.stack(out), np.array(zones, np.int32)


@dataclass(frozen=True)
class Cells:
    """Latents of one pass, one-dimensional, in sixteenths of a step from their predicted means.

    Attributes
    ----------
    low, high : int64
        Bounds of the known cells.
    index : uint8
        Table of each latent.
    context : uint8
        Context of each latent, from its neighbours, see :func:`contexts`.
    """

    low: np.ndarray
    high: np.ndarray
    index: np.ndarray
    context: np.ndarray


class IntervalTables:
    """Probabilities of cells, exact on every machine.

    Parameters
    ----------
    cumulative, zones : ndarray
        From :func:`make_tables`.
    chances : (KINDS, CLASSES, CONTEXTS) int array
        Chance of a decision, in 1/65536, by its kind, the class of the tables' chance, and the
        context.

    Raises
    ------
    FormatError
        The numbers are out of their ranges.
    """

    def __init__(self, cumulative: np.ndarray, zones: np.ndarray, chances: np.ndarray):
        # Weights may come from a stranger, so their ranges are checked.
        if not (
            (cumulative[:, 0] == 0).all()
            and (cumulative[:, -1] == 1 << _TOTAL_BITS).all()
            and (cumulative[:, 1:] > cumulative[:, :-1]).all()
        ):
            raise FormatError("cumulative frequencies do not rise from 0 to 2**24")
        if zones.min() < GRID // 2 or zones.max() > WIDEST_ZONE:
            raise FormatError(f"middle cells are not {GRID // 2} to {WIDEST_ZONE} sixteenths wide")
        if chances.min() < 1 or chances.max() > _MOST_CHANCE:
            raise FormatError("chances of decisions are not 1 to 65535 in 1/65536")
        self.cumulative = cumulative.astype(np.int64)
        self.zones = zones.astype(np.int64)
        self.chances = chances.astype(np.int64)
        self.classes = np.searchsorted(class_starts(), np.arange(1 << _CHANCE_BITS), "right")
        self.middle = cumulative.shape[1] // 2
        # Cumulative sums of twice the centre of each sixteenth, times its frequency.
        twice = 2 * np.arange(-self.middle, self.middle) + 1
        moments = np.cumsum(np.diff(self.cumulative, axis=1) * twice, axis=1)
        self.moments = np.pad(moments, ((0, 0), (1, 0)))

    def _at(self, table: np.ndarray, index: np.ndarray, place: np.ndarray) -> np.ndarray:
        clipped = np.clip(place, -self.middle, self.middle) + self.middle
        return table.ravel()[index.astype(np.int64) * table.shape[1] + clipped]

    def mass(self, index: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the frequencies of latents between two places, out of 2**24."""
        return self._at(self.cumulative, index, high) - self._at(self.cumulative, index, low)

    def centre(self, cells: Cells) -> np.ndarray:
        """Return the expected places of latents in their cells.

        It is the middle of a cell that the tables do not reach.
        """
        low, high = cells.low, cells.high
        mass = self.mass(cells.index, low, high)
        moment = self._at(self.moments, cells.index, high) - self._at(
            self.moments, cells.index, low
        )
        expected = (moment + mass) // np.maximum(2 * mass, 1)
        return np.where(mass > 0, np.clip(expected, low, high), (low + high) >> 1)

    def decide(
        self,
        coder: BitEncoder | BitDecoder,
        kind: np.ndarray,
        chance: np.ndarray,
        context: np.ndarray,
        ones: np.ndarray | None,
    ) -> np.ndarray:
        """Code decisions to which the tables give ``chance``, in 1/65536."""
        return coder.code(self.chances[kind, self.classes[chance], context], ones)

    def narrow(
        self, cells: Cells, coder: BitEncoder | BitDecoder, wanted: np.ndarray | None
    ) -> Cells:
        """Divide cells, and code with ``coder`` in which of the new cells each latent lies.

        Parameters
        ----------
        cells : Cells
            The known cells.
        coder : BitEncoder or BitDecoder
            It codes the decisions.
        wanted : int64 ndarray, optional
            Places of the latents, if encoding.

        Returns
        -------
        Cells
            The new cells. Bounds that did not move are those of ``cells``.
        """
        index = cells.index
        zone = self.zones[index]
        first = _cell_of(cells.low + SLIVER, zone)
        last = np.maximum(first, _cell_of(cells.high - SLIVER, zone))
        goal = None if wanted is None else np.clip(_cell_of(wanted, zone), first, last)
        cell = first.copy()

        def lower(number: np.ndarray, at: np.ndarray) -> np.ndarray:
            edge = _edge_below(number, zone[at])
            return np.where(number <= first[at], cells.low[at], edge)

        def upper(number: np.ndarray, at: np.ndarray) -> np.ndarray:
            edge = _edge_below(number + 1, zone[at])
            return np.where(number >= last[at], cells.high[at], edge)

        def mass(at: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
            return self.mass(index[at], lower(begin, at), upper(end, at))

        def decide(
            at: np.ndarray,
            kind: np.ndarray | int,
            part: np.ndarray,
            whole: np.ndarray,
            ones: np.ndarray | None,
        ) -> np.ndarray:
            chance = np.clip((part << _CHANCE_BITS) // np.maximum(whole, 1), 0, _MOST_CHANCE)
            kinds = np.broadcast_to(kind, at.shape)
            return self.decide(coder, kinds, chance, cells.context[at], ones)

        # Is it the middle cell?
        (at,) = np.nonzero((first < last) & (first <= 0) & (last >= 0))
        none = np.zeros(len(at), np.int64)
        wide = (first[at] < -_COUNTED) & (last[at] > _COUNTED)
        kind = np.where(wide, OPEN, np.where((first[at] < 0) & (last[at] > 0), BETWEEN, BESIDE))
        part, whole = mass(at, none, none), mass(at, first[at], last[at])
        inside = decide(at, kind, part, whole, goal if goal is None else goal[at] == 0)
        cell[at[inside]] = 0
        # On which side of the middle cell is it?
        side = np.where(first > 0, 1, np.where(last < 0, -1, 0))
        out = at[~inside]
        side[out] = np.where(first[out] == 0, 1, np.where(last[out] == 0, -1, 0))
        out = out[side[out] == 0]
        one = np.ones(len(out), np.int64)
        above, below = mass(out, one, last[out]), mass(out, first[out], -one)
        up = decide(out, SIDE, above, above + below, goal if goal is None else goal[out] > 0)
        side[out] = np.where(up, 1, -1)
        side[at[inside]] = 0
        # How many cells from the middle is it?
        (at,) = np.nonzero((side != 0) & (first < last))
        near = np.where(side > 0, np.maximum(first, 1), np.minimum(last, -1))
        far = np.where(side > 0, last, first)
        cell[at] = near[at]
        for _ in range(_COUNTED):
            at = at[cell[at] != far[at]]
            if not len(at):
                break
            here, end, up = cell[at], far[at], side[at] > 0
            whole = mass(at, np.where(up, here, end), np.where(up, end, here))
            part = mass(at, here, here)
            stays = decide(at, OUTWARDS, part, whole, goal if goal is None else goal[at] == here)
            at = at[~stays]
            cell[at] += side[at]
        at = at[cell[at] != far[at]]
        if len(at):
            beyond = None if goal is None else np.abs(goal[at] - cell[at])
            cell[at] += side[at] * _golomb(coder, len(at), beyond)
            cell = np.clip(cell, first, last)
        everywhere = np.arange(len(cell))
        return Cells(lower(cell, everywhere), upper(cell, everywhere), index, cells.context)


def class_starts() -> np.ndarray:
    """Return the chances, in 1/65536, at which the classes after the first begin."""
    odds = np.linspace(-_ODDS, _ODDS, CLASSES + 1)[1:-1]
    return np.rint(65536 / (1 + np.exp(-odds))).astype(np.int64)


def contexts(sizes: np.ndarray, rows: int) -> np.ndarray:
    """Return the contexts of latents, uint8 (P, N), from ``sizes`` (P, N) in 1/16 step.

    A context sums the sizes of the eight neighbours; those across a side count twice. The sizes are
    those known before the level, so the order in which latents are coded does not matter.
    """
    grid = np.minimum(sizes, 255).reshape(rows, -1, sizes.shape[1])
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    total = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:] - 4 * grid
    return np.searchsorted(_CONTEXT_STARTS, total.reshape(sizes.shape), "right").astype(np.uint8)


def _edge_below(number: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Return where a cell begins. The middle cell is number 0."""
    return np.where(number > 0, zone + GRID * (number - 1), GRID * number - zone)


def _cell_of(place: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Return the number of the cell in which a place lies."""
    out = (np.abs(place) - zone - (place < 0)) // GRID + 1
    return np.where(place < 0, -1, 1) * np.maximum(out, 0)


def _golomb(coder: BitEncoder | BitDecoder, count: int, values: np.ndarray | None) -> np.ndarray:
    """Code numbers >= 0 in the exponential Golomb code, in decisions of one bit each."""
    half = 1 << _CHANCE_BITS - 1
    plus = None if values is None else values + 1
    size = np.zeros(count, np.int64)
    at = np.arange(count)
    for _ in range(40):
        more = coder.code(
            np.full(len(at), half), None if plus is None else plus[at] >> (size[at] + 1) > 0
        )
        at = at[more]
        size[at] += 1
        if not len(at):
            break
    found = np.ones(count, np.int64)
    for bit in range(int(size.max(initial=0)) - 1, -1, -1):
        (at,) = np.nonzero(size > bit)
        low = coder.code(
            np.full(len(at), half), None if plus is None else (plus[at] >> bit & 1).astype(bool)
        )
        found[at] = 2 * found[at] + low
    return found - 1
