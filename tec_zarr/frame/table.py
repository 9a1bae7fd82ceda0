"""The section table of a frame: which sections there are, their lengths and checksums."""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from tec_zarr.errors import FormatError, VersionError
from tec_zarr.frame.varint import read_varint, write_varint


class SectionKind(enum.IntEnum):
    """Kind of the content of a section. A frame has its sections in the order of their kinds."""

    MASK = 1
    EXACT = 2
    LATENTS = 3
    BOUND_MAP = 4
    BOUND = 5
    POINTS = 6


CODED = (SectionKind.LATENTS, SectionKind.BOUND_MAP, SectionKind.BOUND)
_SKIPPABLE = 0x80
"""Kinds from here on change no sample: a reader that does not know them skips them."""


@dataclass(frozen=True)
class Section:
    """One part of a frame; its bytes have a checksum of their own.

    Attributes
    ----------
    kind : SectionKind
    data : bytes
    latents_crc : int
        CRC32 of the latents that the bytes decode to. 0 for other kinds than ``LATENTS``.
    """

    kind: SectionKind
    data: bytes
    latents_crc: int = 0


class Row(NamedTuple):
    """A row of the section table. ``kind`` is a plain number if this package does not know it."""

    kind: SectionKind | int
    length: int
    crc: int
    latents_crc: int = 0


class Cursor:
    """Reads little-endian fields from a buffer and never past its end."""

    def __init__(self, data: memoryview):
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    @property
    def at(self) -> int:
        return self._at

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise FormatError(
                f"TEC frame cut short: {n} bytes needed at byte {self._at}, {self.left} are here"
            )
        self._at += n
        return bytes(self._data[self._at - n : self._at])

    def unpack(self, fmt: str) -> tuple:
        return struct.unpack("<" + fmt, self.take(struct.calcsize("<" + fmt)))

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value, self._at = read_varint(self._data, self._at)
        return value


def write_table(sections: Iterable[Section]) -> Iterator[bytes]:
    """Yield the bytes of the section table of sections in the order of their kinds."""
    for kind, run in groupby(sections, key=lambda s: s.kind):
        members = list(run)
        yield bytes([kind]) + write_varint(len(members))
        for s in members:
            yield write_varint(len(s.data)) + struct.pack("<I", zlib.crc32(s.data))
            if kind is SectionKind.LATENTS:
                yield struct.pack("<I", s.latents_crc)


def read_table(c: Cursor) -> list[Row]:
    """Read the section table, up to the end of a header's body."""
    table: list[Row] = []
    while c.left:
        kind, count = c.byte(), c.varint()
        if not count or (table and kind <= table[-1].kind):
            raise FormatError("TEC frame damaged: the section table is not in order")
        if kind in list(SectionKind):
            kind = SectionKind(kind)
        elif kind < _SKIPPABLE:
            raise VersionError(
                f"TEC frame with a section of kind {kind}, which this tec_zarr does not know: "
                "pip install --upgrade tec_zarr"
            )
        checks = "II" if kind == SectionKind.LATENTS else "I"
        least = 1 + struct.calcsize("<" + checks)
        if count * least > c.left:
            raise FormatError(f"TEC frame damaged: {count} sections in {c.left} bytes of table")
        table += [Row(kind, c.varint(), *c.unpack(checks)) for _ in range(count)]
    return table
