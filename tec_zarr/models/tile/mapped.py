"""Finds and writes the map that a section of a resampled tile begins with.

The section of the map's source follows. `grids/nearest.py` defines maps; the core reads them.
"""

from __future__ import annotations

import numpy as np

from tec_zarr.grids import FoundMap, find_nearest, may_have_map
from tec_zarr.grids.nearest import Nearest

MARK = 7
"""Stands at the beginning of a section, where another has the number of its grids."""


_MISSED = 8
"""The part of a step that the largest error of a map may be, as root mean square of a band."""


def map_of(
    cube: np.ndarray, known: np.ndarray | None, factors: np.ndarray, step: float
) -> FoundMap | None:
    """Find the map of a tile, DN (T, C, h, w), if what it misses is little beside a step.

    `factors` are those of the bands' grids without a map; 0 for a band on no grid.
    """
    loose = np.flatnonzero(factors == 0)
    if not may_have_map(cube[:, loose], None if known is None else known[:, loose]):
        return None
    values = float(np.sum(cube[0, 0].size / np.maximum(factors, 1) ** 2))
    found = find_nearest(cube, known, values)
    return found if found is not None and found.missed <= step / _MISSED else None


class _Bits:
    """Bits, the highest of a byte first."""

    def __init__(self) -> None:
        self.value, self.length = 0, 0

    def put(self, value: int, bits: int) -> None:
        self.value = self.value << bits | value
        self.length += bits

    def to_bytes(self) -> bytes:
        pad = -self.length % 8
        return (self.value << pad).to_bytes((self.length + pad) // 8, "big")


def write_map(nearest: Nearest) -> bytes:
    """Return the bytes of a map."""
    bits = _Bits()
    bits.put(MARK, 3)
    for axis in (nearest.rows, nearest.columns):
        for value in axis:
            _put_number(bits, abs(value))
            if value:
                bits.put(value < 0, 1)
    _put_number(bits, len(nearest.exceptions))
    before = [-1, *(sample for sample, _ in nearest.exceptions)]
    gaps = [a - b - 1 for a, b in zip(before[1:], before, strict=False)]
    if gaps:
        size = max(gaps).bit_length()
        bits.put(size, 5)
        for gap, (_, number) in zip(gaps, nearest.exceptions, strict=True):
            bits.put(gap, size)
            bits.put(number, 3)
    return bits.to_bytes()


def _put_number(bits: _Bits, value: int) -> None:
    bits.put(value.bit_length(), 5)
    bits.put(value, value.bit_length())
