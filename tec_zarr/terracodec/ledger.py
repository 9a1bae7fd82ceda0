"""Exact table indexes from inexact arithmetic.

Encoder and decoder compute the indexes of entropy tables in floating point. On two machines, a
value near a rounding boundary may be rounded to different sides of it. One such index ruins the
rest of the stream. So indexes are computed in float64, and the encoder writes every index whose
continuous value lies within `EPSILON` of a boundary into a *ledger*. The decoder reads these
indexes from the ledger. `EPSILON` is far above the noise of float64 (about 1e-11 for these
networks) and far below the width of a bin (1), so that the ledger is almost always empty.

Writer and reader handle the same indexes in the same order. The position of an index is its place
in that order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tec_zarr.errors import FormatError
from tec_zarr.frame.varint import read_varint, write_varint

__all__ = ["EPSILON", "LedgerReader", "LedgerWriter"]

EPSILON = 1e-6
"""Distance to a rounding boundary, in bins, below which an index goes into the ledger."""


@dataclass
class LedgerWriter:
    """The encoder's side: floors continuous indexes and records the ambiguous ones."""

    _entries: list[int] = field(default_factory=list)
    _asked: int = 0

    def floor(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Floor continuous indexes (any shape, float64)."""
        flat = values.ravel()
        index = np.floor(flat).astype(np.int64)
        boundary = np.rint(flat)
        (close,) = np.nonzero(np.abs(flat - boundary) < EPSILON)
        upper = index[close] >= boundary[close]
        self._entries += (2 * (self._asked + close) + upper).tolist()
        self._asked += flat.size
        return index.reshape(values.shape)

    def __len__(self) -> int:
        return len(self._entries)

    def to_bytes(self) -> bytes:
        """Return the ledger as bytes: the number of entries, then one varint for each.

        An entry is twice the distance to the position before, plus 1 for the upper side.
        """
        out = bytearray(write_varint(len(self._entries)))
        last = 0
        for entry in self._entries:
            position = entry >> 1
            out += write_varint(2 * (position - last) + (entry & 1))
            last = position
        return bytes(out)


class LedgerReader:
    """The decoder's side: floors continuous indexes, and reads the ambiguous ones.

    Parameters
    ----------
    data : bytes
        Starts with the result of `LedgerWriter.to_bytes`.

    Attributes
    ----------
    end : int
        Where the ledger ends in `data`.

    Raises
    ------
    FormatError
        If `data` ends too early.
    """

    def __init__(self, data: bytes) -> None:
        count, end = read_varint(data, 0)
        if count > len(data):
            raise FormatError(f"Ledger of {count} entries in {len(data)} bytes: damaged section.")
        positions, uppers, last = [], [], 0
        for _ in range(count):
            entry, end = read_varint(data, end)
            last += entry >> 1
            positions.append(last)
            uppers.append(entry & 1)
        self.end = end
        self._positions = np.array(positions, np.int64)
        self._uppers = np.array(uppers, np.int64)
        self._asked = 0

    def floor(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Floor continuous indexes (any shape, float64) to the encoder's indexes."""
        flat = values.ravel()
        index = np.floor(flat).astype(np.int64)
        first, last = np.searchsorted(self._positions, [self._asked, self._asked + flat.size])
        here = self._positions[first:last] - self._asked
        index[here] = np.rint(flat[here]).astype(np.int64) - 1 + self._uppers[first:last]
        self._asked += flat.size
        return index.reshape(values.shape)
