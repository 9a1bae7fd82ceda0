"""Probability tables for residuals, the same bits on every machine, and the coder that uses them.

A table is named by a shape (how heavy the tails are) and a scale index (how large residuals are
expected to be, in quarter octaves of the mean magnitude). The tables are computed, not stored:
only with additions, multiplications, divisions and square roots of float64 taken one element at
a time, which IEEE 754 rounds identically everywhere, and with sums taken in a fixed order.
Nothing here calls ``exp`` or ``pow`` of a mathematics library, whose last bit may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Protocol

import constriction
import numpy as np

from tec_zarr.errors import FormatError

QUARTER_OCTAVES = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)
SHAPES = 4
"""Generalised normal densities exp(-|x/a|**b) with b = 1 (Laplace), 0.75, 1.5 and 2 (normal)."""
_FIRST = -44  # the smallest mean magnitude is 2 ** (_FIRST / 4) quantiser steps
_TABLES = 59  # per shape: up to 2 ** 3.5; larger scales send their low bits as they are
SCALES = _TABLES + 4 * 34
"""Number of scale indexes: enough for residuals of any int32 array."""
_SUBSAMPLES = 4
_TOTAL = float(1 << 22)

_UNIFORM_BITS = 16


def quarter_octave(index: int) -> float:
    """Return 2 ** (index / 4), correctly rounded from four stored constants."""
    octave, quarter = divmod(index, 4)
    return float(np.ldexp(QUARTER_OCTAVES[quarter], octave))


_BETWEEN = 1.0905077326652577 * np.array([quarter_octave(_FIRST + i) for i in range(SCALES - 1)])


def scale_thresholds(step: float) -> np.ndarray:
    """Return the mean magnitudes between neighbouring scale indexes, float64 (SCALES - 1,).

    Parameters
    ----------
    step : float
        Quantiser step in the units of the mean magnitudes to be looked up.
    """
    return step * _BETWEEN


def _exp_negative(x: np.ndarray) -> np.ndarray:
    """exp(-x) for x >= 0, by range reduction and a Taylor polynomial, element by element."""
    x = np.minimum(x, 40.0)
    whole = np.floor(x * 1.4426950408889634)
    rest = x - whole * 0.6931471805599453
    value = np.ones_like(x)
    for order in range(12, 0, -1):
        value = 1.0 - rest * value / order
    return np.ldexp(value, -whole.astype(np.int32))


def _density(x: np.ndarray, shape: int) -> np.ndarray:
    if shape == 1:
        root = np.sqrt(x)
        return _exp_negative(root * np.sqrt(root))
    if shape == 2:
        return _exp_negative(x * np.sqrt(x))
    return _exp_negative(x * x)


def _bins(width: float, limit: int, shape: int) -> np.ndarray:
    """Weights of the symbols 0..limit under a density of this width (not normalised)."""
    points = (
        np.arange(limit + 1)[None, :] * _SUBSAMPLES
        + np.arange(_SUBSAMPLES)[:, None]
        - 0.5 * (_SUBSAMPLES - 1)
    )
    values = _density(np.abs(points) / (_SUBSAMPLES * width), shape)
    total = values[0].copy()
    for row in values[1:]:
        total = total + row
    return total


def _mean_magnitude(weights: np.ndarray) -> float:
    both = weights * 2.0
    both[0] = weights[0]
    magnitude = np.add.accumulate(both * np.arange(len(both)))[-1]
    return float(magnitude / np.add.accumulate(both)[-1])


@cache
def table_limit(scale: int) -> int:
    """Largest magnitude that the table of this scale index codes without an escape."""
    return min(127, 6 + int(12 * quarter_octave(_FIRST + scale)))


@cache
def frequencies(shape: int, scale: int) -> np.ndarray:
    """Return the integer weights of one table.

    Parameters
    ----------
    shape : int
        0 .. SHAPES - 1.
    scale : int
        0 .. the last tabulated scale index.

    Returns
    -------
    ndarray
        float64 integers, symbols -limit .. limit and then the escape.
    """
    mean = quarter_octave(_FIRST + scale)
    limit = table_limit(scale)
    if shape == 0:
        # The integrated Laplace density has u / (1 - u * u) as mean magnitude.
        u = (np.sqrt(1.0 + 4.0 * mean * mean) - 1.0) / (2.0 * mean)
        half = np.empty(limit + 1)
        half[0] = 1.0 - u
        value = 0.5 * u * (1.0 - u * u)
        for k in range(1, limit + 1):
            half[k] = value
            value = value * (u * u)
    else:
        low, high = 0.05, 8.0 * mean + 1.0
        for _ in range(24):
            width = 0.5 * (low + high)
            if _mean_magnitude(_bins(width, limit, shape)) < mean:
                low = width
            else:
                high = width
        half = _bins(0.5 * (low + high), limit, shape)
    both = np.concatenate([half[:0:-1], half])
    total = np.add.accumulate(both)[-1]
    return np.concatenate([np.floor(both / total * _TOTAL) + 1.0, [2.0]])


@cache
def _model(shape: int, scale: int) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(frequencies(shape, scale), perfect=False)


@cache
def code_lengths(shape: int) -> np.ndarray:
    """Return the bits of each magnitude, float64 (SCALES, 129); for choices of the encoder only.

    The last column is the escape, with an estimate of what follows it. Magnitudes are those left
    after the low bits that a large scale sends as they are.
    """
    bits = np.empty((SCALES, 129))
    for scale in range(_TABLES):
        weights = frequencies(shape, scale)
        limit = table_limit(scale)
        line = np.log2(weights.sum()) - np.log2(weights)
        bits[scale] = line[-1] + 18.0
        bits[scale, : limit + 1] = line[limit:-1]
    for scale in range(_TABLES, SCALES):
        bits[scale] = bits[scale - 4] + 1.0
    return bits


def _shift(scale: int) -> int:
    return max(0, -(-(scale - _TABLES + 1) // 4))


SHIFTS = np.array([_shift(i) for i in range(SCALES)], np.int64)
"""Low bits that a scale index sends as they are, int64 (SCALES,)."""


class SymbolCoder(Protocol):
    """What both directions share, so that one walk through a plane encodes and decodes it.

    Each method takes what the encoder knows (None when decoding) and returns it.
    """

    def number(self, value: int | None, size: int) -> int:
        """Code one integer of 0 .. size - 1, all equally likely."""

    def uniform(self, values: np.ndarray | None, count: int, size: int) -> np.ndarray:
        """Code ``count`` integers of 0 .. size - 1, all equally likely."""

    def symbols(self, values: np.ndarray | None, scales: np.ndarray, shape: int) -> np.ndarray:
        """Code signed integers, each with the table of its scale index."""


def _groups(scales: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (scale index, positions) in rising scale index."""
    order = np.argsort(scales.astype(np.uint8), kind="stable")
    ordered = scales[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ends = np.append(starts[1:], len(order))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(ordered[start]), order[start:end]


class SymbolEncoder:
    """Writes symbols to a range coder; see :class:`SymbolCoder`."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def getvalue(self) -> bytes:
        """Return everything written so far."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def number(self, value: int | None, size: int) -> int:
        assert value is not None
        self.uniform(np.array([value], np.int64), 1, size)
        return int(value)

    def uniform(self, values: np.ndarray | None, count: int, size: int) -> np.ndarray:
        assert values is not None
        rest, bits = values, max(size - 1, 0).bit_length()
        while bits > _UNIFORM_BITS:
            self._flat(rest & 0xFFFF, 1 << _UNIFORM_BITS)
            rest, bits = rest >> _UNIFORM_BITS, bits - _UNIFORM_BITS
            size = ((size - 1) >> _UNIFORM_BITS) + 1
        if size > 1:
            self._flat(rest, size)
        return values

    def _flat(self, values: np.ndarray, size: int) -> None:
        self._coder.encode(values.astype(np.int32), constriction.stream.model.Uniform(size))

    def symbols(self, values: np.ndarray | None, scales: np.ndarray, shape: int) -> np.ndarray:
        assert values is not None
        for scale, where in _groups(scales):
            shift = int(SHIFTS[scale])
            table = scale - 4 * shift
            limit = table_limit(table)
            group = values[where]
            if shift:
                group = group + (1 << (shift - 1))
            high = group >> shift
            inside = np.where(np.abs(high) <= limit, high + limit, 2 * limit + 1)
            self._coder.encode(inside.astype(np.int32), _model(shape, table))
            if shift:
                self.uniform(group & ((1 << shift) - 1), len(group), 1 << shift)
            self._escapes(high[np.abs(high) > limit], limit)
        return values

    def _escapes(self, values: np.ndarray, limit: int) -> None:
        if not len(values):
            return
        rest = np.abs(values) - limit
        self.uniform((values < 0).astype(np.int64), len(values), 2)
        lengths = np.array([int(v).bit_length() - 1 for v in rest], np.int64)
        self.uniform(lengths, len(values), 40)
        for length in np.unique(lengths).tolist():
            chosen = rest[lengths == length]
            self.uniform(chosen - (1 << length), len(chosen), 1 << length)


class SymbolDecoder:
    """Reads what :class:`SymbolEncoder` wrote."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise FormatError(f"bound section: {len(data)} bytes of symbols are not whole words")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def number(self, value: int | None, size: int) -> int:
        return int(self.uniform(None, 1, size)[0])

    def uniform(self, values: np.ndarray | None, count: int, size: int) -> np.ndarray:
        result, place, bits = (
            np.zeros(count, np.int64),
            0,
            max(size - 1, 0).bit_length(),
        )
        while bits > _UNIFORM_BITS:
            result |= self._flat(count, 1 << _UNIFORM_BITS) << place
            place, bits = place + _UNIFORM_BITS, bits - _UNIFORM_BITS
            size = ((size - 1) >> _UNIFORM_BITS) + 1
        if size > 1:
            result |= self._flat(count, size) << place
        return result

    def _flat(self, count: int, size: int) -> np.ndarray:
        model = constriction.stream.model.Uniform(size)
        return self._coder.decode(model, count).astype(np.int64)

    def symbols(self, values: np.ndarray | None, scales: np.ndarray, shape: int) -> np.ndarray:
        result = np.empty(len(scales), np.int64)
        for scale, where in _groups(scales):
            shift = int(SHIFTS[scale])
            table = scale - 4 * shift
            limit = table_limit(table)
            inside = self._coder.decode(_model(shape, table), len(where)).astype(np.int64)
            high = inside - limit
            low = self.uniform(None, len(where), 1 << shift) if shift else 0
            escaped = np.flatnonzero(inside == 2 * limit + 1)
            if len(escaped):
                high[escaped] = self._escapes(len(escaped), limit)
            group = (high << shift) + low
            result[where] = group - (1 << (shift - 1)) if shift else group
        return result

    def _escapes(self, count: int, limit: int) -> np.ndarray:
        negative = self.uniform(None, count, 2).astype(bool)
        lengths = self.uniform(None, count, 40)
        rest = np.zeros(count, np.int64)
        for length in np.unique(lengths).tolist():
            chosen = np.flatnonzero(lengths == length)
            rest[chosen] = self.uniform(None, len(chosen), 1 << length) + (1 << length)
        rest += limit
        return np.where(negative, -rest, rest)
