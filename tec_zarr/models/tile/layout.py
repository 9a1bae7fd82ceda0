"""Lays out a tile as planes: each band on its own grid, at one of two levels.

Level 0 has the pixels of the tile. Level 1 has cells of 2 x 2 pixels; its bands lie on grids of an
even factor whose cells start on the same rows and columns. The grid of a band may have larger
cells than its level. Then the plane of the band is smooth, and its mean over each cell is the
native value. So a decoded band lies exactly on its grid, whatever its coefficients lost.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.grids import MAX_FACTOR, Found, Grid, Kind, find
from tec_zarr.models.klt import BitReader, BitWriter

UNITS = 64
"""Units of decoded planes in a DN."""

_MOST_GRIDS = 6  # the number 7 says that a map follows


@dataclass(frozen=True)
class Layout:
    """The grids of the bands of a tile.

    Attributes
    ----------
    grids : tuple of Grid or None
        One for each band; None for a band that was measured on the tile's pixels.
    shape : (int, int)
        Height and width of the tile in pixels.
    """

    grids: tuple[Grid | None, ...]
    shape: tuple[int, int]

    @cached_property
    def _lead(self) -> Grid | None:
        """The grid of the cells of level 1. They start where most grids of even factor start."""
        even = Counter(
            (g.row % 2, g.column % 2) for g in self.grids if g is not None and g.factor % 2 == 0
        )
        if not even:
            return None
        (row, column), _ = min(even.items(), key=lambda item: (-item[1], item[0]))
        return Grid(Kind.REPEATED, 2, row, column)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The level of each band."""
        lead = self._lead
        return tuple(
            int(
                g is not None and lead is not None and g.factor % 2 == 0
                and (g.row % 2, g.column % 2) == (lead.row, lead.column)
            )
            for g in self.grids
        )  # fmt: skip

    @property
    def fine(self) -> list[int]:
        """Bands of level 0."""
        return [b for b, level in enumerate(self.levels) if level == 0]

    @property
    def coarse(self) -> list[int]:
        """Bands of level 1."""
        return [b for b, level in enumerate(self.levels) if level == 1]

    @property
    def margin(self) -> tuple[int, int]:
        """Rows and columns before the tile that complete the first cells of level 1."""
        return (0, 0) if self._lead is None else (self._lead.row, self._lead.column)

    def plane_shape(self, level: int) -> tuple[int, int]:
        """Height and width of the planes of a level."""
        rows, columns = (n + m for n, m in zip(self.shape, self.margin, strict=True))
        return (rows, columns) if level == 0 else (-(-rows // 2), -(-columns // 2))

    def cells(self, band: int) -> Grid | None:
        """Return the cells of a band's grid; None if each value of its plane is one cell.

        For level 1 the cells are those of the plane; for level 0 those of the tile, without the
        margin.
        """
        grid, level = self.grids[band], self.levels[band]
        if grid is None:
            return None
        factor = grid.factor >> level
        if factor == 1:
            return None
        row, column = (
            ((start + margin) >> 1) % factor if level else start
            for start, margin in zip((grid.row, grid.column), self.margin, strict=True)
        )
        return Grid(Kind.REPEATED, factor, row, column)

    @classmethod
    def of(
        cls, cube: np.ndarray, known: np.ndarray | None, error: float = 0.5
    ) -> tuple[Layout, list[np.ndarray]]:
        """Find the layout of a tile, and the values of its bands.

        Parameters
        ----------
        cube : ndarray of int32, (T, C, h, w)
            DN.
        known : ndarray of bool or None
            True for measured samples. None: all were measured.
        error : float
            Largest RMS error, in DN, of a band's samples on a grid.

        Returns
        -------
        layout : Layout
        values : list of ndarray
            For each band (T, ., .): its samples, or the native values of the cells in the tile.
        """
        found = find(cube, known, search=False)
        grids = [
            None if f is None or _missed(f, cube, known, band) > error else f.grid
            for band, f in enumerate(found)
        ]
        kinds = {g for g in grids if g is not None}
        if len(kinds) > _MOST_GRIDS:
            grids = [None] * len(grids)
        layout = cls(tuple(grids), cube.shape[2:])
        values = []
        for band, (f, grid) in enumerate(zip(found, grids, strict=True)):
            if f is None or grid is None:
                values.append(cube[:, band])
                continue
            native = f.native
            if known is not None:  # cells without a measured sample go on smoothly
                means = np.stack([grid.mean(image) for image in cube[:, band]])
                native = np.where(grid.touched(known[:, band]), native, means.astype(np.int64))
            rows, columns = grid.axes(layout.shape)
            inside = [slice(axis.cell[0], axis.cell[-1] + 1) for axis in (rows, columns)]
            values.append(native[:, *inside])
        return layout, values

    def plane(self, band: int, values: np.ndarray) -> np.ndarray:
        """Return the plane of a band, float64, from the values of one date."""
        level, cells = self.levels[band], self.cells(band)
        plane = values.astype(np.float64)
        if cells is not None:
            plane = _smooth(plane, cells, self.plane_shape(1) if level else self.shape)
        if level == 0:
            plane = np.pad(plane, [(self.margin[0], 0), (self.margin[1], 0)], mode="edge")
        return plane

    def samples(self, band: int, plane: np.ndarray) -> np.ndarray:
        """Return the samples of a band, int32 DN, from its decoded plane in whole `UNITS`."""
        grid, cells = self.grids[band], self.cells(band)
        if self.levels[band] == 0:
            plane = plane[self.margin[0] :, self.margin[1] :]
        if grid is None:
            return (plane + UNITS // 2) // UNITS
        total, count = (plane.astype(np.int64), 1) if cells is None else _cell_sums(plane, cells)
        native = (2 * total + UNITS * count) // (2 * UNITS * count)
        # Bilinear samples at an edge lie between its cells and cells beyond the edge.
        rows, columns = grid.axes(self.shape)
        around = [
            (int(axis.cell[0]), axis.cells - int(axis.cell[-1]) - 1) for axis in (rows, columns)
        ]
        return grid.enlarge(np.pad(native, around, mode="edge"), self.shape)

    def write(self, bits: BitWriter) -> None:
        """Write the grids of the bands."""
        kinds = list(dict.fromkeys(g for g in self.grids if g is not None))
        bits.put(len(kinds), 3)
        for g in kinds:
            bits.put(int(g.kind), 1)
            bits.put(g.factor - 1, 3)
            bits.put(g.row, 3)
            bits.put(g.column, 3)
        if kinds:
            size = len(kinds).bit_length()
            for grid in self.grids:
                bits.put(0 if grid is None else kinds.index(grid) + 1, size)

    @classmethod
    def read(cls, bits: BitReader, bands: int, shape: tuple[int, int]) -> Layout:
        """Read a layout that `write` wrote.

        Raises
        ------
        FormatError
            The bits are not a layout.
        """
        found: list[Grid | None] = [None]
        count = bits.get(3)
        if count > _MOST_GRIDS:
            raise FormatError("a section has too many grids")
        for _ in range(count):
            kind, factor, row, column = bits.get(1), bits.get(3) + 1, bits.get(3), bits.get(3)
            if not 2 <= factor <= MAX_FACTOR or max(row, column) >= factor:
                raise FormatError("a section names a grid that does not exist")
            found.append(Grid(Kind(kind), factor, row, column))
        if len(found) == 1:
            return cls((None,) * bands, shape)
        size = (len(found) - 1).bit_length()
        numbers = [bits.get(size) for _ in range(bands)]
        if max(numbers) >= len(found):
            raise FormatError("a section puts a band on a grid that it does not name")
        return cls(tuple(found[n] for n in numbers), shape)


def _missed(found: Found, cube: np.ndarray, known: np.ndarray | None, band: int) -> float:
    """Return the RMS error, in DN, of a band's measured samples on a grid."""
    if not found.wrong:
        return 0.0
    off = (found.grid.enlarge(found.native, cube.shape[2:]) - cube[:, band]).astype(np.float64)
    return float(np.sqrt(np.mean(off[... if known is None else known[:, band]] ** 2)))


def _cell_sums(plane: np.ndarray, cells: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over the cells of a plane, and the number of values in each.

    Sums of integers are exact.
    """
    counts = []
    total = plane if plane.dtype.kind == "f" else plane.astype(np.int64)
    for axis, of in enumerate(cells.axes(plane.shape)):
        starts = np.flatnonzero(np.diff(of.cell, prepend=-1))
        total = np.add.reduceat(total, starts, axis=axis)
        counts.append(np.diff(starts, append=len(of.cell)))
    return total, np.multiply.outer(*counts)


def _smooth(native: np.ndarray, cells: Grid, shape: tuple[int, int]) -> np.ndarray:
    """Return a plane without edges at cells, whose means over the cells are the native values."""
    plane = _between(native, cells, shape)
    for _ in range(4):
        total, count = _cell_sums(plane, cells)
        plane += _between(native - total / count, cells, shape)
    total, count = _cell_sums(plane, cells)
    rows, columns = cells.axes(shape)
    return plane + (native - total / count)[rows.cell[:, None], columns.cell]


def _between(native: np.ndarray, cells: Grid, shape: tuple[int, int]) -> np.ndarray:
    """Interpolate linearly between the centres of cells."""
    for axis, (size, start) in enumerate(zip(shape, (cells.row, cells.column), strict=True)):
        k, count = cells.factor, native.shape[axis]
        first = -(-start // k)  # cells before the first whole one
        place = (np.arange(size) - start + 0.5) / k - 0.5 + first
        place = np.clip(place, 0, count - 1)
        low = np.minimum(place.astype(int), max(count - 2, 0))
        part = (place - low).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.minimum(low + 1, count - 1)
        native = np.take(native, low, axis) * (1 - part) + np.take(native, high, axis) * part
    return native
