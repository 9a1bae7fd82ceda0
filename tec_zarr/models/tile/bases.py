"""A spectral basis for each class of spatial frequency, in a few dozen bytes.

Bands differ more in their fine texture than in their brightness, and coarse bands have no fine
texture at all. So each class of frequencies has a Karhunen-Loeve transform of its own. A basis is
sent as the angles of Givens rotations: whatever is read back is orthonormal, so that coarse angles
cost a little decorrelation, never fidelity. A component without energy has no column and no bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.models.klt import MOST_BANDS, BitReader, BitWriter, rotate, rotated, rotations

SPREAD_LOW, SPREAD_HIGH = -24, 72
"""Quarter octaves of a component's spread over the quantiser step that can be told apart."""

BASIS_BITS = 12
_SILENT = (-20, -16)
"""Components at or below this spread carry nothing: of the class of block means, of the others."""

_FINER, _LEAST, _MOST = 6, 3, 15


@dataclass(frozen=True)
class Basis:
    """The basis of a class of frequencies.

    Attributes
    ----------
    vectors : ndarray of int32, (bands, components)
        In 1/2^12.
    spreads : ndarray of int, (components,)
        Quarter octaves of standard deviation over the quantiser step.
    """

    vectors: np.ndarray
    spreads: np.ndarray

    @property
    def components(self) -> int:
        """How many components are coded."""
        return len(self.spreads)


def _angle_bits(spread: int) -> int:
    return min(max(math.ceil(spread / 4) + _FINER, _LEAST), _MOST)


def write(bits: BitWriter, covariance: np.ndarray, step: float, class_: int) -> Basis:
    """Write the basis of a class, and return it as it is read.

    Parameters
    ----------
    bits : BitWriter
    covariance : ndarray, (bands, bands)
        Of the class's coefficients, in the units of `step`, squared.
    step : float
        Quantiser step.
    class_ : int
        Number of the class; 0 is that of the block means.
    """
    count = len(covariance)
    values, work = np.linalg.eigh(covariance)
    values, work = values[::-1], work[:, ::-1].copy()
    largest = np.abs(work).argmax(axis=0)
    work *= np.where(work[largest, np.arange(count)] < 0, -1.0, 1.0)
    ratio = np.log2(np.sqrt(np.maximum(values, 1e-9)) / step)
    spreads = np.clip(np.rint(4 * ratio), SPREAD_LOW, SPREAD_HIGH).astype(int)
    spreads = spreads[: int((spreads > _SILENT[class_ > 0]).sum())]
    bits.put(len(spreads), 5)
    before = SPREAD_HIGH if class_ == 0 else 20
    for spread in spreads.tolist():
        bits.put_signed(before - spread, 2)
        before = spread
    angles = []
    for column, row, turn in rotations(count, len(spreads)):
        size = _angle_bits(int(spreads[column])) + turn
        unit = math.pi / 2 ** (size - turn)
        code = round(math.atan2(work[row, column], work[row - 1, column]) / unit)
        # Below a pivot that is already positive an angle lies in [0, pi): no wrapping round.
        code = code % (1 << size) if turn else min(max(code, 0), (1 << size) - 1)
        bits.put(code, size)
        angles.append((row, code * unit))
        rotate(work, row, angles[-1][1])
    return Basis(_whole(count, angles, len(spreads)), spreads)


def read(bits: BitReader, count: int, class_: int) -> Basis:
    """Read the basis of a class of `count` bands.

    Raises
    ------
    FormatError
        The bits are no basis.
    """
    components = bits.get(5)
    if components > min(count, MOST_BANDS):
        raise FormatError(f"a section of {count} bands claims {components} spectral components")
    before = SPREAD_HIGH if class_ == 0 else 20
    spreads = []
    for _ in range(components):
        before -= bits.get_signed(2)
        if not _SILENT[class_ > 0] < before <= SPREAD_HIGH:
            raise FormatError("a section's spectral spreads are out of range")
        spreads.append(before)
    angles = []
    for column, row, turn in rotations(count, components):
        size = _angle_bits(spreads[column]) + turn
        angles.append((row, bits.get(size) * math.pi / 2 ** (size - turn)))
    return Basis(_whole(count, angles, components), np.array(spreads, int))


def _whole(count: int, angles: list[tuple[int, float]], components: int) -> np.ndarray:
    basis = rotated(count, angles)[:, :components]
    return np.rint(basis * 2**BASIS_BITS).astype(np.int32)
