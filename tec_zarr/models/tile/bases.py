"""Writes and reads a spectral basis for each class of spatial frequency, in a few dozen bytes.

Bands differ more in their fine texture than in their brightness, and coarse bands have no fine
texture at all. So each class of frequencies has a Karhunen-Loeve transform of its own. A basis is
sent as the angles of Givens rotations, so the decoded basis is always orthonormal: coarse angles
cost a little decorrelation, but no fidelity. The basis of a class is sent as a rotation of that of
the class before, so most angles are small. A component without energy has no column and no bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.models.klt import MOST_BANDS, BitReader, BitWriter, eigenvectors
from tec_zarr.native import core

SPREAD_LOW, SPREAD_HIGH = -24, 72
"""Lowest and highest spread of a component over the quantiser step, in quarter octaves."""

BASIS_BITS = 12
_SILENT = (-16, -12)
"""Components at or below this spread are not coded: in the class of block means, in the others."""

_FINER, _LEAST, _MOST = 6, 3, 15
_GRID = 2.0**24


@dataclass(frozen=True)
class Basis:
    """The basis of a class of frequencies.

    Attributes
    ----------
    vectors : ndarray of int32, (bands, components)
        In 1/2^12.
    spreads : ndarray of int, (components,)
        Quarter octaves of standard deviation over the quantiser step.
    full : ndarray of float64, (bands, bands)
        All vectors, in whole 1/2^24. The basis of the next class is a rotation of them.
    """

    vectors: np.ndarray
    spreads: np.ndarray
    full: np.ndarray

    @property
    def components(self) -> int:
        """Number of components that are coded."""
        return len(self.spreads)


NO_BASIS = Basis(np.empty((0, 0), np.int32), np.empty(0, int), np.empty((0, 0)))
"""The basis of a class without bands."""


def _angle_bits(spread: int) -> int:
    return min(max(math.ceil(spread / 4) + _FINER, _LEAST), _MOST)


def _rotations(count: int, components: int) -> list[tuple[int, int]]:
    """Return (column, row) of each angle, in order. The last column has no angles."""
    return [(j, i) for j in range(min(components, count - 1)) for i in range(j + 1, count)]


def write(
    bits: BitWriter, covariance: np.ndarray, step: float, class_: int, before: Basis
) -> Basis:
    """Write the basis of a class; return the basis that a decoder reads.

    Parameters
    ----------
    bits : BitWriter
        Takes the bits of the basis.
    covariance : ndarray, (bands, bands)
        Covariance of the class's coefficients, in the units of `step`, squared.
    step : float
        Quantiser step.
    class_ : int
        Number of the class; 0 is the class of the block means.
    before : Basis
        Basis of the class before.
    """
    count = len(covariance)
    start = _start(count, before)
    values, vectors = eigenvectors(covariance)
    work = start.T @ vectors
    ratio = np.log2(np.sqrt(np.maximum(values, 1e-9)) / step)
    spreads = np.clip(np.rint(4 * ratio), SPREAD_LOW, SPREAD_HIGH).astype(int)
    spreads = spreads[: int((spreads > _SILENT[class_ > 0]).sum())]
    bits.put(len(spreads), 5)
    expected = SPREAD_HIGH if class_ == 0 else 20
    for spread in spreads.tolist():
        bits.put_signed(expected - spread, 2)
        expected = spread
    angles = []
    for column, row in _rotations(count, len(spreads)):
        if row == column + 1 and work[column, column] < 0:
            work[:, column] *= -1  # so that no angle is larger than a quarter turn
        size = _angle_bits(int(spreads[column]))
        unit = math.pi / 2**size
        pivot, other = work[column].copy(), work[row].copy()
        code = min(round(math.atan2(other[column], pivot[column]) / unit), (1 << size - 1) - 1)
        _put_angle(bits, code, size, len(before.full) == count)
        angles.append((column, row, code << 15 - size))
        cosine, sine = math.cos(code * unit), math.sin(code * unit)
        work[column] = cosine * pivot + sine * other
        work[row] = cosine * other - sine * pivot
    return _basis(start, angles, spreads)


def read(bits: BitReader, count: int, class_: int, before: Basis) -> Basis:
    """Read the basis of a class of `count` bands.

    Raises
    ------
    FormatError
        The bits are not a basis.
    """
    components = bits.get(5)
    if components > min(count, MOST_BANDS):
        raise FormatError(f"a section of {count} bands claims {components} spectral components")
    expected = SPREAD_HIGH if class_ == 0 else 20
    spreads = []
    for _ in range(components):
        expected -= bits.get_signed(2)
        if not _SILENT[class_ > 0] < expected <= SPREAD_HIGH:
            raise FormatError("a section's spectral spreads are out of range")
        spreads.append(expected)
    angles = []
    for column, row in _rotations(count, components):
        size = _angle_bits(spreads[column])
        code = _get_angle(bits, size, len(before.full) == count)
        angles.append((column, row, code << 15 - size))
    return _basis(_start(count, before), angles, np.array(spreads, int))


def _put_angle(bits: BitWriter, code: int, size: int, small: bool) -> None:
    """Write an angle between minus and plus a quarter turn.

    `small` angles, those after a class with a basis, get a code in which small values are short.
    """
    if small:
        bits.put_signed(code, max(size - 5, 0))
    else:
        bits.put(code + (1 << size - 1), size)


def _get_angle(bits: BitReader, size: int, small: bool) -> int:
    if small:
        return min(max(bits.get_signed(max(size - 5, 0)), -(1 << size)), 1 << size)
    return bits.get(size) - (1 << size - 1)


def _start(count: int, before: Basis) -> np.ndarray:
    return before.full if len(before.full) == count else np.eye(count)


def _basis(start: np.ndarray, angles: list[tuple[int, int, int]], spreads: np.ndarray) -> Basis:
    whole = (start * _GRID).astype(np.int64) @ core.rotated(len(start), angles)
    whole = (whole + (1 << 23)) >> 24
    vectors = (whole[:, : len(spreads)] + (1 << 11)) >> 24 - BASIS_BITS
    return Basis(vectors.astype(np.int32), spreads, whole / _GRID)
