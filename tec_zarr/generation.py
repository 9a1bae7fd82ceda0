"""Notice pixels that go through a lossy codec a second time.

Zarr decodes, merges and re-encodes a whole chunk when only a part of it is written (a region
or an append that does not end at a chunk boundary), and ``open_zarr(...).to_zarr(...)`` encodes
decoded data again. Neither tells the codec. But the pixels nobody touched are exactly those
that were just decoded, and over a stretch of a row that does not happen by chance: so
fingerprints of some stretches of the chunks decoded last are kept.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict, deque

import numpy as np

from tec_zarr.errors import SecondGenerationWarning

_ROWS_PER_DATE = 32
_SEGMENT = 32
_MIN_DISTINCT = 16
"""Shorter or flatter stretches of a row may come back unchanged by chance."""

_KEPT_SEGMENTS = 2**16

_decoded: OrderedDict[int, None] = OrderedDict()
_waiting: deque[np.ndarray] = deque()
"""Stretches (n, 32) of chunks whose fingerprints nobody has asked for yet, the oldest first."""

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
    segments = _segments(samples).copy()
    if not len(segments):  # narrower than a stretch
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
        warnings.warn(
            f"{known / len(prints):.0%} of the pixels sampled from a chunk of shape "
            f"{samples.shape} were decoded from TEC before: encoding them again loses quality a "
            "second time. Write regions and appends aligned to whole chunks, and start from the "
            "source data, or store decoded data losslessly (tec_zarr.decode).",
            SecondGenerationWarning,
            stacklevel=3,
        )


def _segments(samples: np.ndarray) -> np.ndarray:
    """Stretches (n, 32) of rows of each date's middle band."""
    _, c, h, w = samples.shape
    rows = samples[:, c // 2, :: -(-h // _ROWS_PER_DATE), : w - w % _SEGMENT]
    return rows.reshape(-1, _SEGMENT)


def _fingerprints(segments: np.ndarray) -> list[int]:
    """Hashes of the stretches with enough different values."""
    with np.errstate(invalid="ignore"):  # infinities
        distinct = 1 + np.count_nonzero(np.diff(np.sort(segments, axis=1), axis=1) > 0, axis=1)
    return [hash(segment.tobytes()) for segment in segments[distinct >= _MIN_DISTINCT]]
