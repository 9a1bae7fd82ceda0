"""Stores which samples of a chunk the model does not code, and their exact values.

Every sample has a label:

- 0: the model or the bound layer codes the sample.
- k, from 1 to the length n of a short table: the sample is the k-th value of the table (nodata
  values, NaN, a constant).
- n + 1: the value is listed on its own, because it is outside the range of the model (saturated
  or far below 0).

For the model, :mod:`tec_zarr.codec.fill` replaces labelled samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tec_zarr import config
from tec_zarr.errors import FormatError, LimitError
from tec_zarr.frame.varint import read_varint, write_varint

MAX_VALUES = 32
"""Largest number of values in the table of a mask."""

_BLOCK = 2**20
"""Number of samples restored at once. It limits the memory that comparisons of labels take."""

_PLAIN, _DEFLATED = 0, 1
_DATE_CLEAR, _DATE_UNIFORM, _DATE_SHARED, _DATE_PER_BAND, _DATE_AS_BEFORE = range(5)
_DATES_AS_BEFORE = 5

_SHORT_RUN = 8
"""Runs of at most this many equal dates are stored date by date."""


@dataclass(frozen=True)
class Mask:
    """Labels of a chunk, and the exact values of its labelled samples.

    Attributes
    ----------
    labels : ndarray of uint8, (T, C, H, W)
        0 for samples that the model or the bound layer codes.
    values : ndarray, (n,)
        Table: label k stands for ``values[k - 1]``. Dtype of the array.
    listed : ndarray, (m,)
        Values of the samples labelled n + 1, in C order. Dtype of the array.
    """

    labels: np.ndarray
    values: np.ndarray
    listed: np.ndarray

    def restore(self, samples: np.ndarray) -> None:
        """Write the exact values into decoded ``samples`` (T, C, H, W), in place."""
        flat, labels = samples.reshape(-1), self.labels.reshape(-1)
        done = 0
        for start in range(0, len(flat), _BLOCK):
            part, part_labels = flat[start : start + _BLOCK], labels[start : start + _BLOCK]
            for k, value in enumerate(self.values, start=1):
                part[part_labels == k] = value
            listed = part_labels == len(self.values) + 1
            count = int(np.count_nonzero(listed))
            part[listed] = self.listed[done : done + count]
            done += count


def find_mask(
    samples: np.ndarray, nodata: tuple[float, ...], low: float, high: float
) -> Mask | None:
    """Label the samples that the model must not see.

    Parameters
    ----------
    samples : ndarray, (T, C, H, W)
        The chunk, native byte order.
    nodata : tuple of float
        Values that mean "nothing measured".
    low, high : float
        Range of the model, in the units of ``samples``. Samples outside are listed exactly.

    Returns
    -------
    Mask or None
        None if no sample is labelled.
    """
    labels = np.zeros(samples.shape, np.uint8)
    table: list[np.generic] = []

    def add(value: np.generic, where: np.ndarray) -> None:
        if where.any():
            table.append(value)
            labels[where] = len(table)

    for value in nodata:
        add(samples.dtype.type(value), samples == value)
    if samples.dtype.kind == "f":
        add(samples.dtype.type(np.nan), np.isnan(samples))
    open_ = labels == 0
    if open_.any():
        first = samples.flat[np.argmax(open_)]
        if (samples == first)[open_].all():
            add(first, open_)
    listed_at = (labels == 0) & ((samples < low) | (samples > high))
    labels[listed_at] = len(table) + 1
    if not labels.any():
        return None
    return Mask(labels, np.array(table, samples.dtype), samples[listed_at])


def list_exactly(mask: Mask | None, samples: np.ndarray, which: np.ndarray) -> Mask:
    """Return ``mask`` in which the samples at ``which``, bool (T, C, H, W), are listed too."""
    if mask is None:
        labels, values = np.zeros(samples.shape, np.uint8), np.zeros(0, samples.dtype)
    else:
        labels, values = mask.labels.copy(), mask.values
    labels[which] = len(values) + 1
    return Mask(labels, values, samples[labels == len(values) + 1])


def pack_mask(mask: Mask) -> tuple[bytes, bytes]:
    """Serialise a mask to the payloads of the sections MASK and EXACT; EXACT may be empty."""
    modes = bytearray()
    planes: list[np.ndarray] = []
    before: np.ndarray | None = None
    for date, run in _runs(mask.labels):
        first = date.flat[0]
        if (date == first).all():
            modes += bytes([_DATE_UNIFORM, first] if first else [_DATE_CLEAR])
        elif before is not None and np.array_equal(date, before):
            modes.append(_DATE_AS_BEFORE)
        elif (date == date[:1]).all():
            modes.append(_DATE_SHARED)
            planes.append(date[:1])
        else:
            modes.append(_DATE_PER_BAND)
            planes.append(date)
        if run > 1:
            modes += bytes([_DATES_AS_BEFORE]) + write_varint(run - 1)
        before = date
    bits = _pack_planes(np.concatenate(planes), _depth(len(mask.values))) if planes else b""
    head = bytes([len(mask.values)]) + _little(mask.values).tobytes() + bytes(modes)
    return head + squeeze(bits), squeeze(shuffled(mask.listed)) if mask.listed.size else b""


def _runs(labels: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (labels of a date, number of equal dates); short runs are yielded date by date."""
    changes = [i for i in range(1, len(labels)) if not np.array_equal(labels[i], labels[i - 1])]
    for start, end in pairwise([0, *changes, len(labels)]):
        if end - start > _SHORT_RUN:
            yield labels[start], end - start
        else:
            yield from ((date, 1) for date in labels[start:end])


def unpack_mask(
    packed: bytes, exact: bytes, shape: tuple[int, int, int, int], dtype: np.dtype
) -> Mask:
    """Parse the payloads that :func:`pack_mask` wrote.

    Raises
    ------
    FormatError
        The sections are damaged, or they do not fit the shape or one another.
    LimitError
        The sections inflate to more than ``tec_zarr.config.MAX_MASK_BYTES``.
    """
    t, c, h, w = shape
    dtype = dtype.newbyteorder("=")
    if not packed or packed[0] > MAX_VALUES:
        raise FormatError("TEC frame damaged: the mask section has no valid table")
    n = packed[0]
    at = 1 + n * dtype.itemsize
    if len(packed) < at + 1:
        raise FormatError(f"TEC frame damaged: mask section of {len(packed)} bytes is cut short")
    values = np.frombuffer(packed[1:at], dtype.newbyteorder("<")).astype(dtype)
    dates, at = _read_dates(packed, at, t)
    counts = [{_DATE_SHARED: 1, _DATE_PER_BAND: c}.get(mode, 0) for mode, _, _ in dates]
    depth = _depth(n)
    size = sum(counts) * depth * -(-h * w // 8)
    _check_size("mask", size, shape)
    planes = _unpack_planes(unsqueeze(packed[at:], size), (sum(counts), h, w), depth)
    labels = np.zeros(shape, np.uint8)
    start = i = 0
    for (mode, label, run), count in zip(dates, counts, strict=True):
        if count:
            labels[i] = planes[start : start + count]
            start += count
        elif mode == _DATE_UNIFORM:
            labels[i] = label
        elif mode in (_DATE_AS_BEFORE, _DATES_AS_BEFORE):
            labels[i : i + run] = labels[i - 1]
        i += run
    del planes  # as large as the labels
    if labels.max(initial=0) > n + 1:
        raise FormatError(f"TEC frame damaged: the mask has a label beyond {n + 1}")
    m = int(np.count_nonzero(labels == n + 1))
    _check_size("exact values", m * dtype.itemsize, shape)
    if exact and not m:
        raise FormatError("TEC frame damaged: exact values of samples that the mask does not list")
    listed = unshuffled(unsqueeze(exact, m * dtype.itemsize), dtype) if m else values[:0]
    return Mask(labels, values, listed)


def _read_dates(packed: bytes, at: int, t: int) -> tuple[list[tuple[int, int, int]], int]:
    """Read (mode, label, number of dates) of each entry from ``at`` on.

    Returns the entries and the offset of the planes behind them.
    """
    dates: list[tuple[int, int, int]] = []
    left = t
    while left:
        if at >= len(packed):
            raise FormatError(
                f"TEC frame damaged: mask section of {len(packed)} bytes is cut short"
            )
        mode, at = packed[at], at + 1
        label, run = 0, 1
        if mode == _DATE_UNIFORM:
            label, at = (packed[at] if at < len(packed) else 0), at + 1
        elif mode == _DATES_AS_BEFORE:
            run, at = read_varint(packed, at)
        first = not dates and mode in (_DATE_AS_BEFORE, _DATES_AS_BEFORE)
        if mode > _DATES_AS_BEFORE or first or not 0 < run <= left or at > len(packed):
            raise FormatError("TEC frame damaged: the mask section's dates cannot be read")
        dates.append((mode, label, run))
        left -= run
    return dates, at


def _check_size(what: str, size: int, shape: tuple[int, ...]) -> None:
    if size > config.MAX_MASK_BYTES:
        raise LimitError(
            f"the {what} of a chunk of shape {shape} inflate to {size} bytes, more than "
            f"tec_zarr.config.MAX_MASK_BYTES = {config.MAX_MASK_BYTES}: raise that limit if you "
            "trust the source of this frame"
        )


def _depth(n_values: int) -> int:
    """Return the number of bits of a label."""
    return (n_values + 1).bit_length()


def _pack_planes(labels: np.ndarray, depth: int) -> bytes:
    """Pack labels (N, H, W) into bits, each row as its XOR with the row above it."""
    rows = labels.copy()
    rows[:, 1:] ^= labels[:, :-1]
    flat = rows.reshape(len(rows), 1, -1)
    bits = flat >> np.arange(depth, dtype=np.uint8)[:, None] & 1
    return np.packbits(bits, axis=-1).tobytes()


def _unpack_planes(bits: bytes, shape: tuple[int, int, int], depth: int) -> np.ndarray:
    """Reverse :func:`_pack_planes`."""
    n, h, w = shape
    packed = np.frombuffer(bits, np.uint8).reshape(n, depth, -(-h * w // 8))
    labels = np.zeros(shape, np.uint8)
    for plane, bit_planes in zip(labels.reshape(n, h * w), packed, strict=True):
        for k, bit_plane in enumerate(bit_planes):
            plane |= np.unpackbits(bit_plane, count=h * w) << np.uint8(k)
    return np.bitwise_xor.accumulate(labels, axis=1, out=labels)


def _little(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("<"))


def shuffled(values: np.ndarray) -> bytes:
    """Return all lowest bytes of the values, then all next bytes, ..., which deflate better."""
    raw = np.frombuffer(_little(values).tobytes(), np.uint8)
    return raw.reshape(-1, values.dtype.itemsize).T.tobytes()


def unshuffled(raw: bytes, dtype: np.dtype) -> np.ndarray:
    """Reverse :func:`shuffled`."""
    columns = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, -1)
    values = np.empty(columns.shape[1], dtype.newbyteorder("<"))
    values.view(np.uint8).reshape(-1, dtype.itemsize)[:] = columns.T
    return values.astype(dtype, copy=False)


def squeeze(raw: bytes) -> bytes:
    """Deflate bytes if that makes them shorter. No bytes stay no bytes."""
    deflated = zlib.compress(raw, 9)
    if not raw:
        return b""
    if len(deflated) < len(raw):
        return bytes([_DEFLATED]) + deflated
    return bytes([_PLAIN]) + raw


def unsqueeze(packed: bytes, size: int) -> bytes:
    """Reverse :func:`squeeze`. Raises FormatError unless the result has ``size`` bytes."""
    method, body = packed[:1], packed[1:]
    if not size:
        if packed:
            raise FormatError("TEC frame damaged: bytes of a mask that has no planes")
        return b""
    if method == bytes([_DEFLATED]):
        inflater = zlib.decompressobj()
        try:
            body = inflater.decompress(body, size + 1)
        except zlib.error as error:
            raise FormatError(f"TEC frame damaged: mask or exact section: {error}") from None
        if not inflater.eof or inflater.unused_data:
            raise FormatError("TEC frame damaged: mask or exact section has no proper end")
    elif method != bytes([_PLAIN]):
        raise FormatError("TEC frame damaged: mask or exact section of unknown coding")
    if len(body) != size:
        raise FormatError(
            f"TEC frame damaged: mask or exact section of {len(body)} bytes instead of {size}"
        )
    return body
