"""Moves a map until it breaks as few borders and equal pairs as it can. Encoder only.

A border says that an edge between two cells lies between two samples, an equal pair that none
does. So each sample near an edge bounds the map from one side. The map is moved by Newton's method
on the squares of what is beyond the bounds, with margins that shrink to nearly nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tec_zarr.grids.nearest_borders import Borders, terms

FACTORS = (1, 2, 3, 6)
"""Pixels of the finest source along a side of a pixel of a coarser band."""

_STAGES = ((0.1, 8), (0.1, 8), (0.03, 4), (0.03, 4), (0.01, 2), (0.01, 2), (0.003, 1), (0.001, 1))
"""Margin in source pixels, and the step between the lines whose pairs are looked at."""

_REACH = 5.0  # margins by which a bound may be missed; those farther off have another cause
_FARTHEST = 0.3  # source pixels, the same
_NEWTON = 4
_PULL = 1e-3
_SMALL = 64  # samples along a side up to which a map has no terms of the second degree
_WRONG = 0.12  # largest share of pairs that a level's cells may say wrong


@dataclass(frozen=True)
class _Cells:
    """The pixels of a resolution in pixels of the finest source."""

    size: int
    starts: tuple[int, int]


@dataclass(frozen=True)
class _Side:
    """How pairs lie along an axis: the nearest edge, and by how much it is not between them."""

    low: np.ndarray
    high: np.ndarray
    edge: np.ndarray
    off: np.ndarray
    turned: np.ndarray


class _Pairs:
    """Some pairs of a level: rows and columns of both samples."""

    def __init__(self, level: Borders, step: int):
        parts = []
        for pairs, (down, right) in (
            (level.across[::step], (0, 1)),
            (level.down[:, ::step], (1, 0)),
        ):
            row, column = np.nonzero(pairs >= 0)
            border = pairs[row, column] > 0
            row, column = (row * step, column) if right else (row, column * step)
            parts.append((border, row, column, row + down, column + right))
        border, *places = (np.concatenate(part) for part in zip(*parts, strict=True))
        self.border = border
        self.samples = ((places[0], places[1]), (places[2], places[3]))

    def along(self, place: np.ndarray, cells: _Cells, axis: int) -> _Side:
        first, second = (place[at] for at in self.samples)
        turned = first > second
        low, high = np.minimum(first, second), np.maximum(first, second)
        start, size = cells.starts[axis], cells.size
        edge = np.rint(((low + high) / 2 - start) / size) * size + start
        return _Side(low, high, edge, np.maximum(np.maximum(low - edge, edge - high), 0), turned)


def refined(
    levels: list[Borders], columns: np.ndarray, rows: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return better maps of columns and rows (the terms of rows begin with the row)."""
    lines = [columns.copy(), rows.copy()]
    used = 3 if max(shape) <= _SMALL else 6
    for line in lines:
        line[used:] = 0
    for margin, step in _STAGES:
        step = min(step, max(1, min(shape) // 64))
        places = _places(lines, shape)
        bounds: list[list[tuple[np.ndarray, ...]]] = [[], []]
        for level in levels:
            pairs = _Pairs(level, step)
            cells = _cells(pairs, places)
            if cells is not None:
                for axis in (0, 1):
                    bounds[axis] += _bounds(pairs, places, cells, axis, margin)
        lines = [
            _moved(line, bound, axis, used)
            for axis, (line, bound) in enumerate(zip(lines, bounds, strict=True))
        ]
    return lines[0], lines[1]


def _places(lines: list[np.ndarray], shape: tuple[int, int]) -> list[np.ndarray]:
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])
    out = []
    for line, x, y in ((lines[0], column, row), (lines[1], row, column)):
        o, a, b, d, e, f = line
        out.append(o + a * x + b * y + (d * x + e * y) * x + f * y * y)
    return out


def _cells(pairs: _Pairs, places: list[np.ndarray]) -> _Cells | None:
    """Return the cells with which a map says most pairs right; None if that is too few."""
    best: tuple[float, _Cells | None] = (_WRONG, None)
    middles = []
    for place in places:
        first, second = (place[at] for at in pairs.samples)
        steep = pairs.border & (np.abs(second - first) > 0.04)
        middles.append(np.rint((first + second)[steep] / 2).astype(int))
    for size in FACTORS:
        starts = [int(np.argmax(np.bincount(m % size, minlength=size))) for m in middles]
        cells = _Cells(size, (starts[0], starts[1]))
        apart = np.zeros(len(pairs.border), bool)
        for place, start in zip(places, starts, strict=True):
            cell = np.floor((place - start) / size)
            apart |= cell[pairs.samples[0]] != cell[pairs.samples[1]]
        wrong = float(np.mean(apart != pairs.border))
        if wrong < best[0]:
            best = (wrong, cells)
    return best[1]


def _bounds(
    pairs: _Pairs, places: list[np.ndarray], cells: _Cells, axis: int, margin: float
) -> list[tuple[np.ndarray, ...]]:
    """Return bounds of samples as rows, columns, values, and 1 for a lower or -1 for an upper one.

    Bounds far from the map are left out.
    """
    side = pairs.along(places[axis], cells, axis)
    other = pairs.along(places[1 - axis], cells, 1 - axis)
    # A border belongs to the axis along which the map has an edge there, or almost has one: the
    # faster the map advances along an axis, the farther off its edge may be.
    likely = side.off * (other.high - other.low) <= other.off * (side.high - side.low)
    between = pairs.border & (other.off > 0) & likely
    start, size = cells.starts[axis], cells.size
    inside = np.floor(((side.low + side.high) / 2 - start) / size) * size + start
    reach = min(_REACH * margin, _FARTHEST)
    # A pair between whose samples the map hardly advances says nothing of the distance to an edge.
    margins = np.minimum(margin, (side.high - side.low) / 2)
    out: list[tuple[np.ndarray, ...]] = []
    for chosen, upper_one, bound, sign in (
        (between, False, side.edge - margins, -1),
        (between, True, side.edge + margins, 1),
        (~pairs.border, False, inside + margins, 1),
        (~pairs.border, True, inside + size - margins, -1),
    ):
        value = side.high if upper_one else side.low
        near = np.flatnonzero(chosen & (np.abs(bound - value) < reach))
        second = side.turned[near] != upper_one
        row, column = (
            np.where(second, pairs.samples[1][i][near], pairs.samples[0][i][near]) for i in (0, 1)
        )
        out.append((row, column, bound[near], np.full(len(near), sign)))
    return out


def _moved(
    line: np.ndarray, bounds: list[tuple[np.ndarray, ...]], axis: int, used: int
) -> np.ndarray:
    """Move a map towards its bounds."""
    if not bounds:
        return line
    row, column, value, sign = (np.concatenate(part) for part in zip(*bounds, strict=True))
    if len(row) < used:
        return line
    term = (terms(row, column) if axis == 0 else terms(column, row))[:, :used]
    scale = np.sqrt(np.mean(term * term, axis=0)) + 1e-12
    term = term / scale
    pull = _PULL * (term.T @ term)
    moved = line[:used] * scale
    for _ in range(_NEWTON):
        off = value - term @ moved
        beyond = off * sign > 0
        near = term[beyond]
        moved = moved + np.linalg.solve(
            near.T @ near + pull + 1e-9 * np.eye(used), near.T @ off[beyond]
        )
    return np.concatenate([moved / scale, line[used:]])
