"""The grid of an enlarged band, and the enlargement in whole numbers.

A *grid* says how a plane of samples was enlarged from native values by a whole factor `k`. Each
native value has a cell of `k` x `k` samples. Cells at the edges of the plane may be cut. Along an
axis with the phase `p`, sample `i` lies in the cell `floor((i - p) / k)`: the first whole cell
starts at sample `p`.

- **Repeated**: a sample has the value of its cell.
- **Bilinear**, pixel centres aligned: let `a = 2 (i - p) + 1 - k`. Sample `i` lies between the
  cells `j = floor(a / 2k)` and `j + 1`, with the weights `2k - r` and `r`, where `r = a - 2k j`.
  If `r = 0`, the second cell has no part in it. The weights of rows and columns are multiplied. A
  sample is `floor((S + 2k^2) / 4k^2)`, where `S` is the weighted sum of four native values; this
  rounds their mean by `floor(x + 1/2)`.

The native plane holds every cell that has a part in a sample. So a bilinear one may hold a cell
beyond each edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np

MAX_FACTOR = 8


class Kind(IntEnum):
    """The method by which native values were enlarged to samples."""

    REPEATED = 0
    BILINEAR = 1


@dataclass(frozen=True)
class Axis:
    """One axis of an enlargement.

    Attributes
    ----------
    cells : int
        Native values along the axis.
    first, second : ndarray
        int64 (size,): the two native values between which a sample lies. They are the same if
        only one has a part in the sample.
    weight : ndarray
        int64 (size,): weight of the second native value, out of `unit`.
    cell : ndarray
        int64 (size,): the cell that a sample lies in.
    unit : int
        Sum of the two weights.
    """

    cells: int
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    cell: np.ndarray
    unit: int

    @property
    def starts(self) -> np.ndarray:
        """First sample of each run of samples between the same two native values."""
        return np.flatnonzero(np.diff(self.first, prepend=-1))


@cache
def _axis(kind: Kind, factor: int, phase: int, size: int) -> Axis:
    place = np.arange(size, dtype=np.int64) - phase
    cell = place // factor
    if kind == Kind.REPEATED:
        first, weight, unit = cell, np.zeros(size, np.int64), 1
    else:
        unit = 2 * factor
        first, weight = np.divmod(2 * place + 1 - factor, unit)
    second = first + (weight > 0)
    low = int(first[0])
    axis = Axis(int(second[-1]) - low + 1, first - low, second - low, weight, cell - low, unit)
    for array in (axis.first, axis.second, axis.weight, axis.cell):
        array.flags.writeable = False
    return axis


@dataclass(frozen=True, order=True)
class Grid:
    """The grid of one band.

    Attributes
    ----------
    kind : Kind
    factor : int
        Samples along a side of a cell, 1 to 8.
    row, column : int
        First row and column of the first whole cell, less than the factor.
    """

    kind: Kind
    factor: int
    row: int
    column: int

    def __post_init__(self) -> None:
        if not (
            2 <= self.factor <= MAX_FACTOR
            and 0 <= self.row < self.factor
            and 0 <= self.column < self.factor
        ):
            raise ValueError(f"no grid: {self}")

    def axes(self, shape: tuple[int, int]) -> tuple[Axis, Axis]:
        """Enlargement of rows and columns to a plane of this shape."""
        return (
            _axis(self.kind, self.factor, self.row, shape[0]),
            _axis(self.kind, self.factor, self.column, shape[1]),
        )

    def cropped(self, row: int, column: int) -> Grid:
        """The grid of the same samples without the first rows and columns."""
        k = self.factor
        return Grid(self.kind, k, (self.row - row) % k, (self.column - column) % k)

    def native_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the native plane of samples of this shape."""
        rows, columns = self.axes(shape)
        return rows.cells, columns.cells

    def scaled(self, native: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Weighted sums of native values, before the division by the square of the unit.

        Parameters
        ----------
        native : ndarray
            Integers (..., h, w) of less than 2**31.
        shape : (int, int)
            Height and width of the samples.

        Returns
        -------
        ndarray
            int64 (..., H, W).
        """
        rows, columns = self.axes(shape)
        plane = native.astype(np.int64)
        return _blend(_blend(plane, rows, -2), columns, -1)

    def enlarge(self, native: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Samples of native values: int32 (..., H, W) from integers (..., h, w)."""
        rows, columns = self.axes(shape)
        if self.kind == Kind.REPEATED:
            return native[..., rows.cell[:, None], columns.cell].astype(np.int32)
        area = rows.unit * columns.unit
        return ((self.scaled(native, shape) + area // 2) // area).astype(np.int32)

    def touched(self, valid: np.ndarray) -> np.ndarray:
        """Native values that have a part in a valid sample: bool (..., H, W) to (..., h, w)."""
        return self._gathered(valid, np.logical_or, False)

    def smallest(self, plane: np.ndarray) -> np.ndarray:
        """The smallest of the samples that a native value has a part in: (H, W) to (h, w)."""
        return self._gathered(plane, np.minimum, np.inf)

    def _gathered(self, plane: np.ndarray, reduce: np.ufunc, start: float) -> np.ndarray:
        rows, columns = self.axes(plane.shape[-2:])
        return _gathered(_gathered(plane, rows, -2, reduce, start), columns, -1, reduce, start)

    def mean(self, plane: np.ndarray) -> np.ndarray:
        """Means of whole numbers over the cells, rounded down: float64 (H, W) to (h, w).

        The sums have to be less than 2**53: then no order of addition matters. A cell beyond the
        edge has the mean of the cell next to it.
        """
        rows, columns = self.axes(plane.shape)
        total, height = _cell_sums(plane, rows, 0)
        total, width = _cell_sums(total, columns, 1)
        return np.floor(total / np.multiply.outer(height, width))

    def spread_out(self, native: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """The native value of its cell for each sample: (..., h, w) to (..., H, W)."""
        rows, columns = self.axes(shape)
        return native[..., rows.cell[:, None], columns.cell]


def _blend(plane: np.ndarray, axis: Axis, along: int) -> np.ndarray:
    if axis.unit == 1:
        return np.take(plane, axis.cell, along)
    weight = axis.weight if along == -1 else axis.weight[:, None]
    out = np.take(plane, axis.first, along) * (axis.unit - weight)
    out += np.take(plane, axis.second, along) * weight
    return out


def _gathered(
    plane: np.ndarray, axis: Axis, along: int, reduce: np.ufunc, start: float
) -> np.ndarray:
    """Reduce, for each native value, the samples that it has a part in."""
    moved = np.moveaxis(plane, along, 0)
    out = np.full((axis.cells, *moved.shape[1:]), start, plane.dtype)
    for cell, parts in ((axis.first, axis.weight < axis.unit), (axis.second, axis.weight > 0)):
        where = np.flatnonzero(parts)
        starts = np.flatnonzero(np.diff(cell[where], prepend=-1))
        if len(where):
            into = cell[where][starts]
            out[into] = reduce(out[into], reduce.reduceat(moved[where], starts, axis=0))
    return np.moveaxis(out, 0, along)


def _cell_sums(plane: np.ndarray, axis: Axis, along: int) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.diff(axis.cell, prepend=axis.cell[0] - 1))
    sums = np.add.reduceat(plane, starts, axis=along)
    sizes = np.diff(starts, append=len(axis.cell)).astype(np.float64)
    inside = np.clip(np.arange(axis.cells) - axis.cell[0], 0, len(starts) - 1)
    return np.take(sums, inside, along), sizes[inside]
