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
from tec_zarr.errors import LimitError
from tec_zarr.frame.varint import write_varint
from tec_zarr.native import frame as native_frame

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
    least, most = samples.min(), samples.max()
    apart = not any(least <= value <= most for value in nodata)
    if apart and low <= least < most <= high:  # never with NaN
        return None
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
    dtype = dtype.newbyteorder("=")
    labels, listed = native_frame.labels(packed, shape, dtype.itemsize)
    _check_size("exact values", listed * dtype.itemsize, shape)
    table = np.frombuffer(packed[1 : 1 + packed[0] * dtype.itemsize], dtype.newbyteorder("<"))
    exactly = native_frame.unpack(exact, listed * dtype.itemsize)
    return Mask(labels, table.astype(dtype), unshuffled(exactly, dtype))


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


def _little(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("<"))


def shuffled(values: np.ndarray) -> bytes:
    """Return all lowest bytes of the values, then all next bytes, ..., which deflate better."""
    raw = np.frombuffer(_little(values).tobytes(), np.uint8)
    return raw.reshape(-1, values.dtype.itemsize).T.tobytes()


def unshuffled(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Reverse :func:`shuffled`; ``raw`` is uint8."""
    columns = np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T)
    return columns.view(dtype.newbyteorder("<")).reshape(-1).astype(dtype, copy=False)


def squeeze(raw: bytes) -> bytes:
    """Deflate bytes if that makes them shorter. No bytes stay no bytes."""
    deflated = zlib.compress(raw, 9)
    if not raw:
        return b""
    if len(deflated) < len(raw):
        return bytes([_DEFLATED]) + deflated
    return bytes([_PLAIN]) + raw
