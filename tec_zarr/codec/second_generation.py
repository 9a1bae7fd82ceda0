"""Notice pixels that go through a lossy codec a second time.

Zarr decodes, merges and re-encodes a whole chunk when only a part of it is written (a region
or an append that does not end at a chunk boundary), and ``open_zarr(...).to_zarr(...)`` encodes
decoded data again. Neither tells the codec. But the pixels nobody touched are exactly those
that were just decoded, and over a stretch of a row that does not happen by chance: so
fingerprints of some stretches of the chunks decoded last are kept. The pixels themselves say where
a stretch lies, so that a crop, some of the bands, another order of dates or a mirrored image still
has the same ones. What changes values (another packing, resampling) or turns rows into columns
goes unnoticed, and so do pieces that are narrower than a stretch or have few pixels.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict, deque

import numpy as np

from tec_zarr.errors import SecondGenerationWarning

_EVERY_ROW = 4
"""Rows from one whose stretches are remembered to the next; all rows of a chunk to encode are
looked through."""

_REACH = 16
"""Pixels of a stretch to either side of its middle."""

_RARITY = 2**9
"""One pixel in so many is the middle of a stretch."""

_MIN_DISTINCT = 16
"""Shorter or flatter stretches of a row may come back unchanged by chance."""

_KEPT_SEGMENTS = 2**16

_decoded: OrderedDict[int, None] = OrderedDict()
_waiting: deque[np.ndarray] = deque()
"""Stretches (n, 33) of chunks whose fingerprints nobody has asked for yet, the oldest first."""

_waiting_segments = 0
"""How many they are: a sum over many small chunks would be taken at every one of them."""

_lock = threading.Lock()


def _new_lock() -> None:
    """After a fork: the thread that held the lock is not there to give it back."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def remember_decoded(samples: np.ndarray) -> None:
    """Keep fingerprints of a decoded chunk (T, C, H, W), to be taken when one is encoded."""
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
    """Warn when a chunk (T, C, H, W) to encode has pixels that this process decoded."""
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
        known = sum(key in _decoded for key in prints)
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
    """Stretches (n, 33) of rows of (T, C, H, W): their middles are chosen by what is there."""
    width = samples.shape[-1]
    if width <= 2 * _REACH:
        return np.zeros((0, 2 * _REACH + 1), samples.dtype)
    rows = samples.reshape(-1, width)  # a copy where rows are left out
    bits = _low_bits(rows)
    # A pixel and what its neighbours have in common: the same from the left and from the right.
    hashed = bits[:, 1:-1] * np.uint16(40503) + (bits[:, :-2] + bits[:, 2:]) * np.uint16(25717)
    chosen = hashed[:, _REACH - 1 : width - _REACH - 1] < 2**16 // _RARITY
    row, left = np.nonzero(chosen)
    few = slice(None, None, 1 + len(row) // _KEPT_SEGMENTS)  # flat ground repeats itself
    windows = np.lib.stride_tricks.sliding_window_view(rows, 2 * _REACH + 1, axis=1)
    return windows[row[few], left[few]]


def _low_bits(samples: np.ndarray) -> np.ndarray:
    """uint16 of the same shape that tells most values apart."""
    bits = np.ascontiguousarray(samples).view(f"u{samples.dtype.itemsize}")
    while bits.dtype.itemsize > 2:  # the lower bits of few floats are anything but 0
        half = 4 * bits.dtype.itemsize
        bits = (bits ^ (bits >> half)).astype(f"u{bits.dtype.itemsize // 2}")
    return bits


def _fingerprints(segments: np.ndarray) -> list[int]:
    """Hashes of the stretches with enough different values, the same for a mirrored one."""
    with np.errstate(invalid="ignore"):  # infinities
        distinct = 1 + np.count_nonzero(np.diff(np.sort(segments, axis=1), axis=1) > 0, axis=1)
    some = segments[distinct >= _MIN_DISTINCT]
    both = zip(some, some[:, ::-1], strict=True)
    return [hash(min(one.tobytes(), other.tobytes())) for one, other in both]
