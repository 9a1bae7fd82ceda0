"""Nearest neighbours under a map: which source pixel each sample of a tile is a copy of.

Tools that bring an image to another projection by nearest neighbour copy pixels of the source.
Where the map is turned or stretched, no row and no column of the result is repeated as a whole,
but most neighbours are copies of one pixel. A map says where the sample at row `r` and column `c`
came from: the source row is `floor(p)`, with `p` a polynomial of the second degree,

    p = o + a c + b r + d c c + e c r + f r r

and the source column likewise, with coefficients of its own. All are whole numbers: `o` in 1/2^14,
`a` and `b` in 1/2^22, `d`, `e` and `f` in 1/2^32 of a source pixel. Some samples are exceptions:
they came from one of the eight pixels around the one that the map says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIGITS = (14, 22, 22, 32, 32, 32)
"""Binary digits after the point of the coefficients o, a, b, d, e and f."""

BITS = (26, 24, 24, 22, 22, 22)
"""Binary digits of the largest magnitude of the coefficients."""

LARGEST = 1 << 12
"""Most rows and columns of a tile with a map."""

AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Rows and columns by which the source pixel of an exception is off, by its number."""

_WHOLE = 32

Axis = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Nearest:
    """A map from the samples of a tile to the pixels of its source.

    Attributes
    ----------
    rows, columns : tuple of int
        Coefficients o, a, b, d, e, f of the source's row and column.
    exceptions : tuple of (int, int)
        Flat index of a sample, rising, and the number of its pixel in `AROUND`.
    """

    rows: Axis
    columns: Axis
    exceptions: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for axis in (self.rows, self.columns):
            if any(abs(v) >> bits for v, bits in zip(axis, BITS, strict=True)):
                raise ValueError(f"no map: {self}")

    def source_shape(self, shape: tuple[int, int]) -> tuple[int, int] | None:
        """Return height and width of the source of a tile; None if samples lie outside of it.

        A source begins at row 0 and column 0, and ends with the last ones that the polynomials
        reach. It has at most four times as many pixels as the tile, and 4096.
        """
        if max(shape) > LARGEST:
            return None
        rows, columns = self._polynomials(shape)
        height, width = int(rows.max()) + 1, int(columns.max()) + 1
        most = 4 * shape[0] * shape[1] + 4096
        if min(rows.min(), columns.min()) < 0 or height * width > most:
            return None
        rows, columns = self._corrected(rows, columns)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return (height, width) if inside.all() else None

    def places(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return source rows and columns of the samples of a tile: int64 (H, W) each."""
        return self._corrected(*self._polynomials(shape))

    def gather(self, source: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Return the samples of a tile from its source: (..., h, w) to (..., H, W)."""
        rows, columns = self.places(shape)
        return source[..., rows, columns]

    def _polynomials(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return _polynomial(self.rows, shape), _polynomial(self.columns, shape)

    def _corrected(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.exceptions:
            samples, numbers = np.array(self.exceptions).T
            off = np.array(AROUND)[numbers]
            rows.reshape(-1)[samples] += off[:, 0]
            columns.reshape(-1)[samples] += off[:, 1]
        return rows, columns


def rounded(coefficients: np.ndarray) -> Axis:
    """Return the coefficients of an axis, o to f in pixels, as whole numbers."""
    o, a, b, d, e, f = (
        round(float(v) * (1 << digits)) for v, digits in zip(coefficients, DIGITS, strict=True)
    )
    return o, a, b, d, e, f


def moved(axis: Axis, pixels: int) -> Axis:
    """Return the coefficients of an axis whose places are a number of pixels larger."""
    return (axis[0] + (pixels << DIGITS[0]), *axis[1:])


def _polynomial(axis: Axis, shape: tuple[int, int]) -> np.ndarray:
    row = np.arange(shape[0], dtype=np.int64)[:, None]
    column = np.arange(shape[1], dtype=np.int64)
    o, a, b, d, e, f = (v << (_WHOLE - digits) for v, digits in zip(axis, DIGITS, strict=True))
    return (o + a * column + b * row + (d * column + e * row) * column + f * row * row) >> _WHOLE
