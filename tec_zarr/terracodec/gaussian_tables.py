"""Codes integers with Gaussian probability tables that are the same on every machine.

One table of the normal distribution is computed by correctly rounded decimal arithmetic. All
Gaussian tables are derived from it by integer arithmetic alone. Symbols are grouped by table and
coded by constriction's range coder.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from tec_zarr.errors import FormatError

__all__ = [
    "SymbolDecoder",
    "SymbolEncoder",
    "Table",
    "gaussian_table",
    "gaussian_table_ids",
    "normal_cdf",
    "scale_edges",
    "shortest",
    "whole_words",
]

Symbols = npt.NDArray[np.int64]

SCALE_LEVELS = 256
"""Number of log-spaced scales from 0.01 to 256.01: level k is 0.01 * 25601 ** (k / 255)."""

MEAN_STEPS = 200
"""Means between -1/2 and 1/2 are multiples of 1/200, numbered from 0."""

_ESCAPE_WIDTHS = 40
"""Escaped symbols may lie up to 2**40 beyond their table, which is farther than any latent."""

_MASK = (1 << 64) - 1
_CDF_BITS = 32
_STEPS_PER_SIGMA = 256
_SIGMAS = 8


@dataclass(frozen=True, slots=True)
class Table:
    """Frequencies of the symbols ``first``, ``first + 1``, ... and of the escape, which is last.

    Parameters
    ----------
    first : int
        Smallest symbol with a frequency of its own.
    size : int
        Number of such symbols, without the escape.
    model : constriction Categorical
    """

    first: int
    size: int
    model: Any

    @classmethod
    def from_frequencies(cls, first: int, frequencies: npt.NDArray[np.int64]) -> Table:
        """Build a table from integer frequencies; that of the escape is the last."""
        weights = frequencies.astype(np.float64)
        model = constriction.stream.model.Categorical(weights, perfect=False)
        return cls(first, len(frequencies) - 1, model)


@functools.cache
def normal_cdf() -> npt.NDArray[np.int64]:
    """Return the standard normal distribution at k / 256, k = 0 ... 2048, in units of 2**-32."""
    with localcontext() as context:
        context.prec = 40
        # pi to 40 digits; every operation below is correctly rounded, hence portable.
        pi = Decimal("3.141592653589793238462643383279502884197169")
        density_at_0 = 1 / (2 * pi).sqrt()
        values = []
        for k in range(_SIGMAS * _STEPS_PER_SIGMA + 1):
            z = Decimal(k) / _STEPS_PER_SIGMA
            term = total = z
            n = 1
            while term > Decimal("1e-14") * total:
                n += 2
                term = term * z * z / n
                total += term
            half = density_at_0 * (-z * z / 2).exp() * total
            values.append(int(((Decimal("0.5") + half) * 2**_CDF_BITS).to_integral_value()))
    return np.array(values, np.int64)


@functools.cache
def _scales() -> list[int]:
    """Return the 256 scales in units of 2**-20."""
    return [int((scale * 2**20).to_integral_value()) for scale in _log_spaced(range(SCALE_LEVELS))]


@functools.cache
def scale_edges() -> npt.NDArray[np.float64]:
    """Return the scales halfway (in their logarithm) between levels, ascending, shape (255,).

    ``numpy.searchsorted`` of a scale in them is the level of the scale.
    """
    halves = (Decimal(2 * k + 1) / 2 for k in range(SCALE_LEVELS - 1))
    return np.array([float(scale) for scale in _log_spaced(halves)])


def _log_spaced(levels: Iterable[int | Decimal]) -> list[Decimal]:
    with localcontext() as context:
        context.prec = 40
        span = Decimal(25601).ln() / (SCALE_LEVELS - 1)
        return [(span * level).exp() / 100 for level in levels]


def gaussian_table_ids(scale_level: Symbols, mean_step: Symbols) -> Symbols:
    """Return the numbers of Gaussian tables, from scale levels (0-255) and mean steps (0-200)."""
    return scale_level * (MEAN_STEPS + 1) + mean_step


@functools.cache
def gaussian_table(table_id: int) -> Table:
    """Return the Gaussian of one of 256 scales and 201 means, integrated over unit bins.

    Parameters
    ----------
    table_id : int
        Number from `gaussian_table_ids`.

    Returns
    -------
    Table
        It holds all symbols within six standard deviations.
    """
    level, mean_step = divmod(table_id, MEAN_STEPS + 1)
    scale = _scales()[level]
    mean = mean_step - MEAN_STEPS // 2  # in 1/200
    reach = -(-6 * scale // 2**20) + 1
    edges = np.arange(-reach, reach + 2, dtype=np.int64)  # edge j lies at j - 1/2
    distance = MEAN_STEPS * edges - MEAN_STEPS // 2 - mean  # in 1/200
    position = (np.abs(distance) << 36) // (MEAN_STEPS * scale)  # in sigma / 2**16
    position = np.minimum(position, (_SIGMAS << 16) - 1)
    cell, fraction = position >> 8, position & 255
    cdf = normal_cdf()
    above = cdf[cell] + (((cdf[cell + 1] - cdf[cell]) * fraction) >> 8)
    cumulative = np.where(distance < 0, (1 << _CDF_BITS) - above, above)
    escape = np.array([1 << (_CDF_BITS - 16)], np.int64)
    return Table.from_frequencies(-reach, np.concatenate([np.diff(cumulative), escape]))


@functools.cache
def _uniform(size: int) -> Any:
    return constriction.stream.model.Uniform(size)


@dataclass
class SymbolEncoder:
    """Codes arrays of symbols into one stream."""

    _coder: Any = field(default_factory=constriction.stream.queue.RangeEncoder)

    def code(self, symbols: Symbols, ids: Symbols, tables: Callable[[int], Table]) -> Symbols:
        """Append symbols (any shape), each with the table of its id; return the symbols."""
        flat, ids = symbols.ravel(), ids.ravel()
        order, starts = _groups(ids)
        escaped = []
        for start, stop in itertools.pairwise(starts):
            table = tables(int(ids[order[start]]))
            place = flat[order[start:stop]] - table.first
            outside = (place < 0) | (place >= table.size)
            if outside.any():
                beyond = np.where(place < 0, -2 * place - 1, 2 * (place - table.size))
                escaped += (beyond[outside] + 1).tolist()
                place = np.where(outside, table.size, place)
            self._coder.encode(place.astype(np.int32), table.model)
        for beyond in escaped:
            self._escape(beyond)
        return symbols

    def _escape(self, beyond: int) -> None:
        width = beyond.bit_length() - 1
        self._coder.encode(width, _uniform(_ESCAPE_WIDTHS))
        for shift in range(0, width, 16):
            bits = min(16, width - shift)
            self._coder.encode(beyond >> shift & (1 << bits) - 1, _uniform(1 << bits))

    def to_bytes(self) -> bytes:
        """Return the stream so far, in little-endian words of 32 bits."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def to_shortest(self) -> bytes:
        """Return the stream so far in the fewest bytes.

        See :func:`shortest`.
        """
        return shortest(self._coder)


class SymbolDecoder:
    """Decodes the stream of a `SymbolEncoder`. It needs the same ids in the same order.

    Parameters
    ----------
    data : bytes

    Raises
    ------
    FormatError
        `data` is not such a stream.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise FormatError(f"Entropy stream of {len(data)} bytes, not a multiple of 4: damaged.")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def code(self, ids: Symbols, tables: Callable[[int], Table]) -> Symbols:
        """Decode one symbol for each id (any shape)."""
        flat_ids = ids.ravel()
        out = np.empty(flat_ids.size, np.int64)
        order, starts = _groups(flat_ids)
        escaped = []
        for start, stop in itertools.pairwise(starts):
            where = order[start:stop]
            table = tables(int(flat_ids[where[0]]))
            place = self._decode(table.model, len(where))
            out[where] = place.astype(np.int64) + table.first
            escaped += [(w, table) for w in where[place == table.size].tolist()]
        for where, table in escaped:
            half, below = divmod(self._escape() - 1, 2)
            out[where] = table.first + (-half - 1 if below else table.size + half)
        return out.reshape(ids.shape)

    def _decode(self, model: Any, count: int) -> npt.NDArray[np.int32]:
        try:
            return self._coder.decode(model, count)
        except (AssertionError, ValueError) as error:
            raise FormatError(f"Entropy stream cannot be decoded: {error}") from error

    def _escape(self) -> int:
        width = int(self._decode(_uniform(_ESCAPE_WIDTHS), 1)[0])
        beyond = 1 << width
        for shift in range(0, width, 16):
            bits = min(16, width - shift)
            beyond |= int(self._decode(_uniform(1 << bits), 1)[0]) << shift
        return beyond


def _groups(ids: Symbols) -> tuple[Symbols, Symbols]:
    """Return the stable order by id, and the start of the run of each id, then the last end."""
    order = np.argsort(ids, kind="stable")
    (breaks,) = np.nonzero(np.diff(ids[order]))
    return order, np.concatenate([[0], breaks + 1, [ids.size]]) if ids.size else np.zeros(1, int)


def shortest(encoder: Any) -> bytes:
    """Return the stream of a range encoder in the fewest bytes.

    The stream in big-endian words is one long number, and any number in the encoder's last
    interval decodes to the same symbols. The number with most zero bytes at its end is taken, and
    these are cut off. :func:`whole_words` appends them again.
    """
    before, (low, size) = encoder.pos()
    words = np.zeros(before + 2, ">u4")
    found = encoder.get_compressed()
    words[: len(found)] = found
    inside = int.from_bytes(words.tobytes(), "big")
    first = inside - (inside - low & _MASK)
    for zeros in range(8 * words.nbytes, -1, -8):
        number = -(-first >> zeros) << zeros
        if number < first + size:
            return number.to_bytes(words.nbytes, "big").rstrip(b"\0")
    raise AssertionError("an encoder's last interval is empty")


def whole_words(data: bytes) -> np.ndarray:
    """Return the words (uint32) of a stream from :func:`shortest`.

    Two zero words follow, because a decoder reads ahead.
    """
    return np.frombuffer(data + bytes(8 + -len(data) % 4), ">u4").astype(np.uint32)
