"""Unsigned integers in groups of seven bits, the lowest first: LEB128 of at most five bytes."""

from __future__ import annotations

from tec_zarr.errors import FormatError

_BYTES = 5


def write_varint(value: int) -> bytes:
    """A number below 2^35 in one to five bytes."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, start: int) -> tuple[int, int]:
    """Read a number at ``start``; return it and the position after it."""
    value = 0
    for k, byte in enumerate(data[start : start + _BYTES]):
        value |= (byte & 127) << 7 * k
        if byte < 128:
            if k and not byte:
                raise _without_end(start)
            return value, start + k + 1
    raise _without_end(start)


def _without_end(start: int) -> FormatError:
    return FormatError(
        f"TEC frame damaged or cut short: a number from byte {start} on of the header or of a "
        "section has no end"
    )
