"""Warns when decoded pixels are encoded a second time.

Zarr decodes, merges and re-encodes a whole chunk when only a part of it is written (a region or an
append that does not end at a chunk boundary). ``open_zarr(...).to_zarr(...)`` encodes decoded data
again. The codec is told neither. But the untouched pixels of a chunk equal those that were just
decoded, and a stretch of a row does not repeat by chance. So this module keeps fingerprints of
stretches of the chunks that were decoded last.

The pixels themselves determine the middle of a stretch. So a crop, a choice of bands, another
order of dates or a mirrored image has the same stretches. Three kinds of re-encoding go unnoticed:
with changed values (another packing, resampling), with rows turned into columns, and of pieces
that are narrower than a stretch or have few pixels.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict, deque

import numpy as np

from tec_zarr.errors import SecondGenerationWarning

_EVERY_ROW = 4
"""Of a decoded chunk, the stretches of every fourth row are kept. Of a chunk to encode, those of
all rows are looked up."""

_REACH = 16
"""Pixels of a stretch on each side of its middle."""

_RARITY = 2**9
"""One pixel in this many is the middle of a stretch."""

_MIN_DISTINCT = 16
"""Least number of different values in a stretch. Flatter stretches may repeat by chance."""

_KEPT_SEGMENTS = 2**16
"""Most stretches that are kept, and about the most that are taken from one chunk."""

_decoded: OrderedDict[int, None] = OrderedDict()
_waiting: deque[np.ndarray] = deque()
"""Stretches (n, 33) of decoded chunks, the oldest first. Their fingerprints are computed only when
a chunk is encoded."""

_waiting_segments = 0
"""Number of stretches in ``_waiting``. It is kept, so that no chunk has to add them all up."""

_lock = threading.Lock()


def _new_lock() -> None:
    """Replace the lock after a fork: the thread that held it does not exist in the child."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def remember_decoded(samples: np.ndarray) -> None:
    """Keep stretches of a decoded chunk (T, C, H, W), to recognise it when it is encoded."""
    global _waiting_segments
    segments = _segments(samples[:, :, ::_EVERY_ROW])
    if not len(segments):  # narrower than a stretch, or flat
        return
    with _lock:
        _waiting.append(segments)
        _waiting_segments += len(segments)
        while len(_waiting) > 1 and _waiting_segments > _KEPT_SEGMENTS:
            _waiting_segments -= len(_waiting.popleft())


def forget_decoded() -> None:
    """Forget all chunks that were decoded."""
    global _waiting_segments
    with _lock:
        _waiting.clear()
        _waiting_segments = 0
        _decoded.clear()


def warn_if_decoded_before(samples: np.ndarray) -> None:
    """Warn if a chunk (T, C, H, W) to encode has pixels that this process decoded before."""
    global _waiting_segments
    if not _decoded and not _waiting:
        return
    prints = _fingerprints(_segments(samples))
    with _lock:
        while _waiting:
            for key in _fingerprints(_waiting.popleft()):
                _decoded[key] = None
                _decoded.move_to_end(key)
        _waiting_segments = 0
        while len(_decoded) > _KEPT_SEGMENTS:
            _decoded.popitem(last=False)
        known = sum(map(_decoded.__contains__, prints))
    if known:
        share = min(_EVERY_ROW * known / len(prints), 1)
        warnings.warn(
            f"about {share:.0%} of the pixels of a chunk of shape {samples.shape} were decoded "
            "from TEC before: encoding them again loses quality a second time. Write regions and "
            "appends aligned to whole chunks, and start from the source data, or store decoded "
            "data losslessly (tec_zarr.drop_encoding).",
            SecondGenerationWarning,
            stacklevel=3,
        )


def _segments(samples: np.ndarray) -> np.ndarray:
    """Return stretches (n, 33) of rows of (T, C, H, W).

    A pixel and its two neighbours determine whether it is the middle of a stretch.
    """
    width = samples.shape[-1]
    if width <= 2 * _REACH:
        return np.zeros((0, 2 * _REACH + 1), samples.dtype)
    rows = samples.reshape(-1, width)  # a copy where rows are left out
    bits = _low_bits(rows)
    # The hash of a pixel and its two neighbours is the same for the mirrored row.
    hashed = bits[:, 1:-1] * np.uint16(40503) + (bits[:, :-2] + bits[:, 2:]) * np.uint16(25717)
    chosen = hashed[:, _REACH - 1 : width - _REACH - 1] < 2**16 // _RARITY
    row, left = np.nonzero(chosen)
    few = slice(None, None, 1 + len(row) // _KEPT_SEGMENTS)  # flat ground would give too many
    windows = np.lib.stride_tricks.sliding_window_view(rows, 2 * _REACH + 1, axis=1)
    return windows[row[few], left[few]]


def _low_bits(samples: np.ndarray) -> np.ndarray:
    """Return a uint16 hash of each sample that differs between most values."""
    bits = np.ascontiguousarray(samples).view(f"u{samples.dtype.itemsize}")
    while bits.dtype.itemsize > 2:  # the low bits of most floats are 0
        half = 4 * bits.dtype.itemsize
        bits = (bits ^ (bits >> half)).astype(f"u{bits.dtype.itemsize // 2}")
    return bits


def _fingerprints(segments: np.ndarray) -> list[int]:
    """Return hashes of the stretches with enough different values.

    A mirrored stretch has the same hash.
    """
    ordered = np.sort(segments, axis=1)
    distinct = 1 + np.count_nonzero(ordered[:, 1:] > ordered[:, :-1], axis=1)
    some = np.ascontiguousarray(segments[distinct >= _MIN_DISTINCT])
    bits = some.view(f"u{some.dtype.itemsize}").astype(np.uint64)
    weights = _mixed(np.arange(1, 2 * _REACH + 2, dtype=np.uint64))
    return (_mixed(bits @ weights) + _mixed(bits @ weights[::-1])).tolist()


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return uint64 of which each bit depends on all lower ones."""
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    return x ^ (x >> np.uint64(29))
