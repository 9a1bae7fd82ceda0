"""Range coding of integer symbols under stored integer tables.

The coder is constriction's range coder (32-bit words, 64-bit state, 24-bit probabilities); the
tables are 16-bit integer frequencies that travel with a model's weights, so nothing here depends
on floating point.  :class:`ReferenceDecoder` is the same decoder in a page of plain Python: the
executable specification of the byte stream, and the way to read an archive where no constriction
wheel exists.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tec_zarr.entropy.tables import CODER_BITS, ESCAPE_BITS, TABLE_BITS, Tables
from tec_zarr.errors import FormatError

try:
    import constriction
except ImportError:  # pragma: no cover - platforms without a wheel decode with the reference
    constriction = None

_WORD = 32
_MASK = (1 << 64) - 1
_BERNOULLI = constriction and constriction.stream.model.Bernoulli(perfect=False)


class _Source(Protocol):
    """What hands out symbols in order: constriction's decoder or the reference."""

    def take(self, tables: Tables, index: int, count: int) -> np.ndarray: ...

    def uniform(self, count: int) -> np.ndarray: ...


class _FastDecoder:
    def __init__(self, words: np.ndarray):
        self.decoder = constriction.stream.queue.RangeDecoder(words)
        self.escapes = constriction.stream.model.Uniform(1 << ESCAPE_BITS)

    def take(self, tables: Tables, index: int, count: int) -> np.ndarray:
        return self.decoder.decode(tables.models[index], count)

    def uniform(self, count: int) -> np.ndarray:
        return self.decoder.decode(self.escapes, count)


class ReferenceDecoder:
    """The range decoder in plain Python integers."""

    def __init__(self, words: np.ndarray):
        self.words = [int(w) for w in words]
        self.position = 2
        self.low, self.range = 0, _MASK
        self.point = self._word(0) << _WORD | self._word(1)

    def _word(self, position: int) -> int:
        return self.words[position] if position < len(self.words) else 0

    def _symbol(self, cumulative: np.ndarray) -> int:
        scale = self.range >> CODER_BITS
        quantile = ((self.point - self.low) & _MASK) // scale
        if quantile >= 1 << CODER_BITS:
            raise FormatError("the entropy-coded bytes are not a valid stream")
        symbol = int(np.searchsorted(cumulative, quantile, side="right")) - 1
        self.low = (self.low + scale * int(cumulative[symbol])) & _MASK
        self.range = scale * int(cumulative[symbol + 1] - cumulative[symbol])
        if self.range < 1 << _WORD:
            self.low = self.low << _WORD & _MASK
            self.range = self.range << _WORD & _MASK
            self.point = (self.point << _WORD | self._word(self.position)) & _MASK
            self.position += 1
        return symbol

    def take(self, tables: Tables, index: int, count: int) -> np.ndarray:
        cumulative = tables.cumulative(index)
        return np.array([self._symbol(cumulative) for _ in range(count)], np.int32)

    def decision(self, chance: int) -> bool:
        """A decision that is a one with ``chance`` in 1/65536."""
        zero = ((1 << TABLE_BITS) - chance) * ((1 << CODER_BITS) - 2) >> TABLE_BITS
        return bool(self._symbol(np.array([0, zero + 1, 1 << CODER_BITS])))

    def uniform(self, count: int) -> np.ndarray:
        step = 1 << CODER_BITS - ESCAPE_BITS
        cumulative = np.arange((1 << ESCAPE_BITS) + 1) * step
        return np.array([self._symbol(cumulative) for _ in range(count)], np.int32)


class SymbolEncoder:
    """Collects symbols pass by pass; within a call they are coded in order of their table."""

    def __init__(self, tables: Tables):
        self.tables = tables
        self.encoder = constriction.stream.queue.RangeEncoder()
        self.escapes = constriction.stream.model.Uniform(1 << ESCAPE_BITS)

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None:
        """Code 1-D int ``symbols`` with the tables ``index`` (uint8), same length."""
        order = np.argsort(index, kind="stable")
        symbols, counts = symbols[order], np.bincount(index, minlength=len(self.tables.rows))
        reach = self.tables.reach[index[order]]
        inside = np.clip(symbols, -reach, reach)
        start = 0
        for table in np.flatnonzero(counts):
            stop = start + counts[table]
            shifted = (inside[start:stop] + self.tables.reach[table]).astype(np.int32)
            self.encoder.encode(shifted, self.tables.models[table])
            start = stop
        beyond = np.abs(symbols) - reach
        beyond = beyond[beyond >= 0]
        if len(beyond):
            self.encoder.encode(
                np.minimum(beyond, (1 << ESCAPE_BITS) - 1).astype(np.int32), self.escapes
            )

    def finish(self) -> bytes:
        return self.encoder.get_compressed().astype("<u4").tobytes()


def words_of(data: bytes) -> bytes:
    """``data``, which is to be whole 32-bit words, or FormatError."""
    if len(data) % 4:
        raise FormatError(f"{len(data)} entropy-coded bytes are not whole 32-bit words")
    return data


class SymbolDecoder:
    """Mirror of :class:`SymbolEncoder`."""

    def __init__(self, tables: Tables, data: bytes, reference: bool = False):
        words = np.frombuffer(words_of(data), "<u4").astype(np.uint32)
        self.tables = tables
        slow = reference or constriction is None
        self.source: _Source = ReferenceDecoder(words) if slow else _FastDecoder(words)

    def get(self, index: np.ndarray) -> np.ndarray:
        """Symbols (int32) of 1-D table indexes (uint8), in the order given.

        Zero where the table codes nothing.

        Raises
        ------
        FormatError
            The bytes are not a stream of these tables.
        """
        tables, out = self.tables, np.zeros(len(index), np.int32)
        # Most of a picture's symbols may be of tables that code nothing: leave them out of the
        # sorting, unless they are few.
        live = index >= tables.silent
        count = np.count_nonzero(live)
        if 2 * count > len(index):
            places = np.argsort(index, kind="stable")[len(index) - count :]
        else:
            places = np.flatnonzero(live)
            places = places[np.argsort(index[places], kind="stable")]
        edges = np.searchsorted(index[places], np.arange(len(tables.rows) + 1, dtype=np.uint8))
        counts = edges[1:] - edges[:-1]
        used = np.flatnonzero(counts)
        try:
            parts = [
                self.source.take(tables, table, number)
                for table, number in zip(used.tolist(), counts[used].tolist(), strict=True)
            ]
            if not parts:
                return out
            symbols = np.concatenate(parts)
            reach = np.repeat(tables.reach[used], counts[used])
            symbols -= reach
            escaped = np.flatnonzero(np.abs(symbols) == reach)
            if len(escaped):
                symbols[escaped] += np.sign(symbols[escaped]) * self.source.uniform(len(escaped))
        except (AssertionError, ValueError) as error:
            raise FormatError(f"the entropy-coded bytes are not a valid stream ({error})") from None
        out[places] = symbols
        return out


def shortest(encoder: Any) -> bytes:
    """The fewest bytes that, with zeros after them, are what a range encoder has encoded.

    Big-endian words are one long number, and any number of the encoder's last interval will do:
    the one with most zeros at its end is taken and these are cut off. :func:`whole_words` is the
    way back.
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
    """Words (uint32) of what :func:`shortest` wrote, and two zeros that a decoder looks at."""
    return np.frombuffer(data + bytes(8 + -len(data) % 4), ">u4").astype(np.uint32)


class BitEncoder:
    """Collects decisions, each with the chance of a one in 1/65536."""

    def __init__(self) -> None:
        self.ones: list[np.ndarray] = []
        self.chances: list[np.ndarray] = []

    def code(self, chance: np.ndarray, ones: np.ndarray | None) -> np.ndarray:
        """Code 1-D bool ``ones`` with int ``chance`` (1 to 65535); returns them."""
        assert ones is not None
        self.ones.append(ones)
        self.chances.append(chance)
        return ones

    def extend(self, other: BitEncoder) -> None:
        """Code what another one has collected."""
        self.ones += other.ones
        self.chances += other.chances

    @property
    def bits(self) -> float:
        """What the decisions take."""
        chances = [np.where(o, c, 65536 - c) for o, c in zip(self.ones, self.chances, strict=True)]
        return float(-np.log2(np.concatenate([*chances, [65536]]) / 65536).sum())

    def finish(self) -> bytes:
        """The coded bytes, as :func:`shortest` makes them."""
        ones = np.concatenate([*self.ones, np.zeros(0, bool)]).astype(np.int32)
        if not len(ones):
            return b""
        chances = np.concatenate(self.chances)
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(ones, _BERNOULLI, chances / 65536)
        return shortest(encoder)


class BitDecoder:
    """Mirror of :class:`BitEncoder`; ``reference`` decodes with plain Python integers."""

    def __init__(self, data: bytes, reference: bool = False):
        words = whole_words(data)
        slow = reference or constriction is None
        self.slow = ReferenceDecoder(words) if slow else None
        self.fast: Any = None if slow else constriction.stream.queue.RangeDecoder(words)

    def code(self, chance: np.ndarray, ones: np.ndarray | None = None) -> np.ndarray:
        """Bool decisions of 1-D int ``chance``; ``ones`` is what an encoder would be given.

        Raises
        ------
        FormatError
            The bytes are not a stream of such decisions.
        """
        if not len(chance):
            return np.zeros(0, bool)
        del ones
        if self.slow:
            return np.array([self.slow.decision(int(c)) for c in chance], bool)
        try:
            return self.fast.decode(_BERNOULLI, chance / 65536).astype(bool)
        except (AssertionError, ValueError) as error:
            raise FormatError(f"the entropy-coded bytes are not a valid stream ({error})") from None
