"""Notice pixels that go through a lossy codec a second time.

Zarr decodes, merges and re-encodes a whole chunk when only a part of it is written (a region
or an append that does not end at a chunk boundary), and ``open_zarr(...).to_zarr(...)`` encodes
decoded data again. Neither tells the codec. But the pixels nobody touched are, row by row,
exactly those that were just decoded, and by chance that does not happen: so a fingerprint of
some rows of the chunks decoded last is kept.
"""

from __future__ import annotations

import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from tec_zarr.errors import SecondGenerationWarning

_ROWS_PER_DATE = 64
_KEPT_ROWS = 2**16
_MIN_DISTINCT = 24
"""Shorter or flatter rows may come back unchanged by chance."""

_decoded: OrderedDict[int, None] = OrderedDict()
_lock = threading.Lock()


def remember_decoded(samples: np.ndarray) -> None:
    """Keep fingerprints of a decoded chunk (T, C, H, W)."""
    rows = list(_fingerprints(samples))
    with _lock:
        for row in rows:
            _decoded[row] = None
            _decoded.move_to_end(row)
        while len(_decoded) > _KEPT_ROWS:
            _decoded.popitem(last=False)


def warn_if_decoded_before(samples: np.ndarray) -> None:
    """Warn when rows of a chunk (T, C, H, W) to encode were decoded in this process."""
    if not _decoded:
        return
    rows = list(_fingerprints(samples))
    with _lock:
        known = sum(row in _decoded for row in rows)
    if known:
        warnings.warn(
            f"{known} of {len(rows)} rows sampled from a chunk of shape {samples.shape} were "
            "decoded from TEC before: encoding them again loses quality a second time. Write "
            "regions and appends aligned to whole chunks, and start from the source data, or "
            "store decoded data losslessly (tec_zarr.decode).",
            SecondGenerationWarning,
            stacklevel=3,
        )


def _fingerprints(samples: np.ndarray) -> Iterator[int]:
    """CRC32 of the rows of every date's middle band that have enough different values."""
    _, c, h, _ = samples.shape
    for row in samples[:, c // 2, :: -(-h // _ROWS_PER_DATE)].reshape(-1, samples.shape[-1]):
        if row.size >= _MIN_DISTINCT and np.unique(row).size >= _MIN_DISTINCT:
            yield zlib.crc32(np.ascontiguousarray(row))
