"""Writes and reads the map that a section of a resampled tile begins with.

The section of the map's source follows. `grids/nearest.py` defines maps.
"""

from __future__ import annotations

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.grids import FoundMap, find_nearest, may_have_map
from tec_zarr.grids.nearest import BITS, Axis, Nearest
from tec_zarr.models.klt import BitReader, BitWriter

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


def is_mapped(section: bytes) -> bool:
    """Whether a section begins with a map."""
    return len(section) > 0 and section[0] >> 5 == MARK


def write_map(nearest: Nearest) -> bytes:
    """Return the bytes of a map."""
    bits = BitWriter()
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


def read_map(section: bytes, shape: tuple[int, int]) -> tuple[Nearest, tuple[int, int], bytes]:
    """Read the map of a tile of a shape; return it, the shape of its source, and its section.

    Raises
    ------
    FormatError
        The bytes are not those of a map, or the map leaves its source.
    """
    bits = BitReader(section)
    if not is_mapped(section):
        raise FormatError("a section has no map")
    bits.get(3)
    axes = [_get_axis(bits), _get_axis(bits)]
    count = bits.get(bits.get(5))
    size = bits.get(5) if count else 0
    if count * (size + 3) > bits.left:
        raise FormatError("a section's map ends too soon")
    exceptions, at = [], -1
    for _ in range(count):
        at += 1 + bits.get(size)
        exceptions.append((at, bits.get(3)))
    if at >= shape[0] * shape[1]:
        raise FormatError("a section's map names samples beyond the tile")
    nearest = Nearest(axes[0], axes[1], tuple(exceptions))
    source = nearest.source_shape(shape)
    if source is None:
        raise FormatError("a section's map leaves its source")
    return nearest, source, section[len(section) - bits.left // 8 :]


def _put_number(bits: BitWriter, value: int) -> None:
    bits.put(value.bit_length(), 5)
    bits.put(value, value.bit_length())


def _get_axis(bits: BitReader) -> Axis:
    values = []
    for most in BITS:
        size = bits.get(5)
        if size > most:
            raise FormatError("a section's map has a coefficient out of range")
        value = bits.get(size)
        values.append(-value if size and bits.get(1) else value)
    o, a, b, d, e, f = values
    return o, a, b, d, e, f
