"""Passes over a plane, and what is known around each sample when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

TOP_SPACING = 64


SPREAD_UNIT = 256  # spreads are stored in 1/256 DN


_BAND_PIXELS = 2048  # whose regressors are there at once


_NEAREST = {
    1: ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    2: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    3: ((-1, 0), (0, -1), (0, 1), (1, 0)),
}


def _own_offsets(kind: int, radius2: int) -> tuple[tuple[int, int], ...]:
    """Decoded neighbours of a pass beyond the nearest four, nearest first."""
    known = {1: ((1, 1),), 2: ((0, 1), (1, 0)), 3: ((0, 1), (1, 0), (1, 1))}[kind]
    found = [
        (dy, dx)
        for dy in range(-3, 4)
        for dx in range(-3, 4)
        if (dy & 1, dx & 1) in known and dy * dy + dx * dx <= radius2
    ]
    found = [offset for offset in found if offset not in _NEAREST[kind]]
    return tuple(sorted(found, key=lambda o: (o[0] ** 2 + o[1] ** 2, o)))


_FARTHER = {1: _own_offsets(1, 18), 2: _own_offsets(2, 10), 3: _own_offsets(3, 9)}


_AROUND = (
    *((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
    *((-2, 0), (0, -2), (0, 2), (2, 0), (-2, -1), (-2, 1), (-1, -2), (-1, 2)),
    *((1, -2), (1, 2), (2, -1), (2, 1), (-2, -2), (-2, 2), (2, -2), (2, 2)),
)  # of a reference, nearest first


Pass = tuple[int, int, int, int]
"""Kind, spacing, first row and first column."""


@dataclass(frozen=True)
class Reference:
    """A decoded plane that helps to predict another one.

    Attributes
    ----------
    values : ndarray
        int32 (H, W), DN.
    spread : ndarray or None
        float64 (H, W), how wrong its own prediction was, 1/256 DN.
    same : bool
        It shows the same quantity (a reconstruction or an earlier date of this band).
    wide : bool
        Its neighbours are regressors too, not the pixel alone.
    """

    values: np.ndarray
    spread: np.ndarray | None
    same: bool
    wide: bool


class _Lattices:
    """Shifted views of a plane on the lattice of a pass, replicated at the edges."""

    def __init__(self, plane: np.ndarray, pass_: Pass) -> None:
        _, self._spacing, self._row, self._column = pass_
        self._plane = plane
        self._rows, self._columns = _lattice_shape(plane.shape, pass_)
        self._padded: dict[tuple[int, int], np.ndarray] = {}

    def at(self, dy: int, dx: int, rows: slice) -> np.ndarray | None:
        """Values ``dy``, ``dx`` half spacings away, float64 (n,); None where none exist."""
        half = self._spacing // 2
        y, x = self._row + dy * half, self._column + dx * half
        up, first = divmod(y, self._spacing) if self._spacing > 1 else (y, 0)
        left, start = divmod(x, self._spacing) if self._spacing > 1 else (x, 0)
        padded = self._padded.get((first, start))
        if padded is None:
            lattice = self._plane[first :: self._spacing, start :: self._spacing]
            if not lattice.size:
                return None
            extra = (
                max(0, self._rows - lattice.shape[0]),
                max(0, self._columns - lattice.shape[1]),
            )
            padded = _replicated(lattice, *extra)
            self._padded[first, start] = padded
        view = padded[
            2 + up + rows.start : 2 + up + rows.stop,
            2 + left : 2 + left + self._columns,
        ]
        return view.astype(np.float64).ravel()

    def near(self, offsets: Iterable[tuple[int, int]], rows: slice) -> list[np.ndarray]:
        """Those of :meth:`at` that exist."""
        return [v for v in (self.at(*o, rows) for o in offsets) if v is not None]

    def mean4(self, kind: int, rows: slice) -> np.ndarray | None:
        """Four times the mean of the nearest decoded neighbours, rounded down."""
        found = self.near(_NEAREST[kind], rows)
        if not found:
            return None
        total = summed(found)
        return total if len(found) == 4 else np.floor(total * 4.0 / len(found))


def _lattice_shape(shape: tuple[int, ...], pass_: Pass) -> tuple[int, int]:
    _, spacing, row, column = pass_
    return len(range(row, shape[0], spacing)), len(range(column, shape[1], spacing))


def _replicated(lattice: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``lattice`` with two edge pixels more on each side, and more below and on the right."""
    height, width = lattice.shape
    out = np.empty((height + 4 + rows, width + 4 + columns), lattice.dtype)
    inner = out[:, 2 : 2 + width]
    inner[2 : 2 + height] = lattice
    inner[:2] = lattice[0]
    inner[2 + height :] = lattice[-1]
    out[:, :2] = inner[:, :1]
    out[:, 2 + width :] = inner[:, -1:]
    return out


def passes(height: int, width: int) -> list[Pass]:
    """Return (kind, spacing, first row, first column) of each pass over a plane, in order."""
    spacing = 1
    while spacing < TOP_SPACING and spacing * 2 < max(height, width):
        spacing *= 2
    order = [(0, spacing, 0, 0)]
    while spacing > 1:
        half = spacing // 2
        order += [
            (1, spacing, half, half),
            (2, spacing, 0, half),
            (3, spacing, half, 0),
        ]
        spacing = half
    return [p for p in order if p[2] < height and p[3] < width]


def quarter(four: np.ndarray) -> np.ndarray:
    return np.floor((four + 2.0) * 0.25)


def summed(arrays: list[np.ndarray]) -> np.ndarray:
    """Sum in the order given (that of ``np.sum`` over an axis is not promised)."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


class Surroundings:
    """What is decoded around the pixels of a pass, some of its rows at a time."""

    def __init__(
        self,
        decoded: np.ndarray,
        spread: np.ndarray,
        references: list[Reference],
        pass_: Pass,
        middle: float,
    ) -> None:
        self._kind, self._spacing = pass_[:2]
        self._middle = middle
        self.shape = _lattice_shape(decoded.shape, pass_)
        self._own = _Lattices(decoded, pass_)
        self._errors = _Lattices(spread, pass_)
        self._references = [
            (
                r,
                _Lattices(r.values, pass_),
                r.spread is not None and _Lattices(r.spread, pass_),
            )
            for r in references
        ]

    def bands(self) -> Iterator[tuple[slice, slice]]:
        """Yield (rows, pixels) of the pass from top to bottom."""
        height, width = self.shape
        step = max(1, _BAND_PIXELS // max(width, 1))
        for row in range(0, height, step):
            rows = slice(row, min(row + step, height))
            yield rows, slice(rows.start * width, rows.stop * width)

    def whole(self, some: Callable[[slice], list[np.ndarray]]) -> list[np.ndarray]:
        """What ``some`` says of rows, for all pixels of the pass."""
        out: list[np.ndarray] = []
        for rows, pixels in self.bands():
            found = some(rows)
            out = out or [np.empty(self.shape[0] * self.shape[1]) for _ in found]
            for line, values in zip(out, found, strict=True):
                line[pixels] = values
        return out

    def level(self, rows: slice) -> tuple[np.ndarray, bool]:
        """Four times the value expected before regression, (n,); whether neighbours say so."""
        level = self._own.mean4(self._kind, rows) if self._kind else None
        if level is not None:
            return level, True
        return np.full((rows.stop - rows.start) * self.shape[1], 4.0 * self._middle), False

    def start(self, rows: slice) -> list[np.ndarray]:
        """What :meth:`level` says, for :meth:`whole`."""
        return [self.level(rows)[0]]

    def activity(self, rows: slice) -> list[np.ndarray]:
        """Regressors of the spread, 1/256 DN, each (n,) and >= 0."""
        level, anchored = self.level(rows)
        if not anchored:
            return []
        fine = self._spacing <= 32
        mean = self._errors.mean4(self._kind, rows)
        assert mean is not None  # where values are, spreads are
        activity = [mean * 0.25]
        far = self._errors.near(_FARTHER[self._kind][:8], rows)
        if far:
            activity.append(summed(far) / len(far))
        own = self._own_columns(rows, level, 3)
        if own:
            activity.append(summed([np.abs(v) for v in own]) * (SPREAD_UNIT / 16))
        for reference, lattices, errors in self._references[:4]:
            around = lattices.mean4(self._kind, rows)
            if around is None or not reference.wide:
                continue
            if not errors:
                activity.append(np.abs(self._centre(lattices, rows) - around) * (SPREAD_UNIT / 4))
                continue
            activity += errors.near([(0, 0)], rows)
            mean = errors.mean4(2, rows) if fine else None
            if mean is not None:
                activity.append(mean * 0.25)
        return activity

    def columns(self, rows: slice) -> list[np.ndarray]:
        """Regressors, most useful first, each (n,)."""
        level, anchored = self.level(rows)
        fine = self._spacing <= 32 and anchored
        offset = 4.0 * self._middle
        first, second, third = [], [], []
        for reference, lattices, _ in self._references:
            centre = self._centre(lattices, rows)
            around = lattices.mean4(self._kind, rows) if anchored else None
            if around is None:
                first.append(centre - offset)
                continue
            first.append(centre - around)
            if reference.same:
                first.append(centre - level)
            if reference.wide and fine:
                beside = (o for o in _AROUND if o != _NEAREST[self._kind][-1])
                third += [_apart(v, around) for v in lattices.near(beside, rows)]
            if not fine or reference.wide:
                second.append(around - offset)
        if anchored:
            second.append(level - offset)
        second.append(np.full(len(level), 256.0))
        own = self._own_columns(rows, level, None) if anchored else []
        return first + own + third + second

    def _own_columns(self, rows: slice, level: np.ndarray, count: int | None) -> list[np.ndarray]:
        """How far decoded neighbours are from the level, nearest first; all but one of the four."""
        near = self._own.near(_NEAREST[self._kind], rows)[:-1]
        if self._spacing <= 32 and (count is None or len(near) < count):
            near += self._own.near(_FARTHER[self._kind], rows)
        return [_apart(v, level) for v in near[:count]]

    @staticmethod
    def _centre(lattices: _Lattices, rows: slice) -> np.ndarray:
        """Four times what stands at the pixels themselves."""
        centre = lattices.at(0, 0, rows)
        assert centre is not None
        centre *= 4.0
        return centre


def _apart(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """``4 * values - level``, in place."""
    values *= 4.0
    values -= level
    return values
