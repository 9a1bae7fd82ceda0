"""Latents that are narrowed down level by level, in integers: what makes a stream cuttable.

A latent's quantiser cell at one quality is cut into the cells of the next one, and only the cut is
coded: with the probabilities that the entropy networks give at that quality, conditional on what
is known.  By the chain rule of entropy this costs what coding the finer cell at once would, as far
as the networks know as much (nested quantisation, as in Lu et al. 2021, "Progressive neural image
compression with nested quantization and latent ordering", but with cells that follow the
prediction of each level instead of one lattice).

Cells are half-open intervals in 1/4096 DN, the unit of a sixteenth of a quantiser step of a whole
number of 1/256 DN.  Around the predicted mean lies a cell that is wider the less a larger latent is
expected (rate-distortion optimised quantisation, without a choice), then cells of one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tec_zarr.entropy.range_coder import BitDecoder, BitEncoder
from tec_zarr.entropy.tables import Tables
from tec_zarr.errors import FormatError

#: Positions in a step.
GRID = 16
#: Bounds of latents of which nothing is known.
FAR = 1 << 56
#: A cell is not cut so near to its end (in sixteenths of the new step): the sliver is not worth it.
SLIVER = 5
#: Half the width of the middle cell: half a step, and a sixteenth of a step more for so many bits
#: that the next cell costs over it; at most so much.
ZONE_BITS, WIDEST_ZONE = 0.6, 20
#: Steps to each side of the mean that tables know.
REACH = 24
_TOTAL_BITS = 24
_CHANCE_BITS = 16
_MOST_CHANCE = (1 << _CHANCE_BITS) - 1
#: Cells away from the middle that are counted one by one.
_COUNTED = 24
#: Decisions: the middle cell, of a latent of which nothing is known, of one that may lie on both
#: sides of it, or on one side only; which side; whether a latent lies no further out.
OPEN, BETWEEN, BESIDE, SIDE, OUTWARDS = range(5)
KINDS = 5
#: Chances that can be told apart, evenly in log odds; and contexts.
CLASSES, CONTEXTS = 64, 6
_ODDS = 9.0
#: Sums of the neighbours' sizes, in 1/16 step, that contexts after the first begin with.
_CONTEXT_STARTS = (4, 12, 32, 80, 200)


def make_tables(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative frequencies and middle cells, from the tables of whole symbols.

    Between the half-integers where whole symbols say what lies beyond, the logarithm of the
    probability of being further out is interpolated: a density that is exponential piece by piece.
    Tables that code nothing get the spread that the ones after them suggest.

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
        Bounds of what is known.
    index : uint8
        Table of each.
    context : uint8
        What is known of the neighbours, see :func:`contexts`.
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
        As from :func:`make_tables`.
    chances : (KINDS, CLASSES, CONTEXTS) int array
        Chance of a decision, in 1/65536, for what the tables say and what the neighbours say.

    Raises
    ------
    FormatError
        Other numbers than these.
    """

    def __init__(self, cumulative: np.ndarray, zones: np.ndarray, chances: np.ndarray):
        # Weights may come from a stranger.
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
        # Twice the position of every cell of a sixteenth, times its frequency, added up.
        twice = 2 * np.arange(-self.middle, self.middle) + 1
        moments = np.cumsum(np.diff(self.cumulative, axis=1) * twice, axis=1)
        self.moments = np.pad(moments, ((0, 0), (1, 0)))

    def _at(self, table: np.ndarray, index: np.ndarray, place: np.ndarray) -> np.ndarray:
        clipped = np.clip(place, -self.middle, self.middle) + self.middle
        return table.ravel()[index.astype(np.int64) * table.shape[1] + clipped]

    def mass(self, index: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Frequencies of what lies between two places, of 2**24."""
        return self._at(self.cumulative, index, high) - self._at(self.cumulative, index, low)

    def centre(self, cells: Cells) -> np.ndarray:
        """Expected place of latents in their cells; the middle where tables do not reach."""
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
        """Code decisions of which the tables say ``chance``, in 1/65536."""
        return coder.code(self.chances[kind, self.classes[chance], context], ones)

    def narrow(
        self, cells: Cells, coder: BitEncoder | BitDecoder, wanted: np.ndarray | None
    ) -> Cells:
        """Cut cells; which new one it is goes through ``coder``.

        Parameters
        ----------
        cells : Cells
            As known.
        wanted : int64 ndarray, optional
            Places, which an encoder knows.

        Returns
        -------
        Cells
            The new ones; bounds that were not moved are those of ``cells``.
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

        # The middle cell or not.
        (at,) = np.nonzero((first < last) & (first <= 0) & (last >= 0))
        none = np.zeros(len(at), np.int64)
        wide = (first[at] < -_COUNTED) & (last[at] > _COUNTED)
        kind = np.where(wide, OPEN, np.where((first[at] < 0) & (last[at] > 0), BETWEEN, BESIDE))
        part, whole = mass(at, none, none), mass(at, first[at], last[at])
        inside = decide(at, kind, part, whole, goal if goal is None else goal[at] == 0)
        cell[at[inside]] = 0
        # Which side of it.
        side = np.where(first > 0, 1, np.where(last < 0, -1, 0))
        out = at[~inside]
        side[out] = np.where(first[out] == 0, 1, np.where(last[out] == 0, -1, 0))
        out = out[side[out] == 0]
        one = np.ones(len(out), np.int64)
        above, below = mass(out, one, last[out]), mass(out, first[out], -one)
        up = decide(out, SIDE, above, above + below, goal if goal is None else goal[out] > 0)
        side[out] = np.where(up, 1, -1)
        side[at[inside]] = 0
        # How far out.
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
    """The chances, in 1/65536, that classes after the first begin with."""
    odds = np.linspace(-_ODDS, _ODDS, CLASSES + 1)[1:-1]
    return np.rint(65536 / (1 + np.exp(-odds))).astype(np.int64)


def contexts(sizes: np.ndarray, rows: int) -> np.ndarray:
    """What latents' neighbours say, uint8 (P, N) like ``sizes``: their own, in 1/16 step.

    Eight neighbours count, those across a side twice, and the latent itself not: whatever is known
    of them before the level, so that it does not matter which of them come first.
    """
    grid = np.minimum(sizes, 255).reshape(rows, -1, sizes.shape[1])
    padded = np.pad(grid, ((1, 1), (1, 1), (0, 0)))
    across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    total = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:] - 4 * grid
    return np.searchsorted(_CONTEXT_STARTS, total.reshape(sizes.shape), "right").astype(np.uint8)


def _edge_below(number: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Where a cell begins: the middle one is number 0."""
    return np.where(number > 0, zone + GRID * (number - 1), GRID * number - zone)


def _cell_of(place: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """The number of the cell that a place lies in."""
    out = (np.abs(place) - zone - (place < 0)) // GRID + 1
    return np.where(place < 0, -1, 1) * np.maximum(out, 0)


def _golomb(coder: BitEncoder | BitDecoder, count: int, values: np.ndarray | None) -> np.ndarray:
    """Exponential Golomb code of numbers >= 0, in decisions of one bit each."""
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
