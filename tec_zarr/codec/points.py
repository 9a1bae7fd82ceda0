"""Lists exactly the samples that the model misses by far, such as ships, fires and roofs.

A transform code distributes its bits by energy. A target of one pixel in one band has little
energy, so the model flattens it, whatever its height. The encoder therefore decodes its own output
and writes the samples with the largest errors into the frame. The decoder writes these values over
those of the model.
"""

from __future__ import annotations

import math

import numpy as np

from tec_zarr.frame.mask import shuffled, squeeze
from tec_zarr.frame.varint import write_varint

MULTIPLE = 7.0
"""From ``FULL_QUALITY`` on, a sample is listed if its error exceeds this multiple of the RMS error
of the chunk, and of the RMS error of its neighbourhood. On the training cubes the lists then take
less than 1 % of the bytes; ``docs/when-not-to-use.md`` has the numbers."""

COARSEST_MULTIPLE = 10.0
"""The same multiple at quality 1. It is larger, because a chunk has only a few hundred bytes."""

FULL_QUALITY = 3.0
"""``MULTIPLE`` applies from this quality on. At lower qualities the multiple is larger."""

_LEAST_RMS = 1.0
"""Least RMS error assumed, in DN. Rounding alone makes errors of half a DN."""

_REACH, _OWN = 4, 1
"""The neighbourhood of a sample: 9 x 9 pixels of its band without the 3 x 3 in the middle. A target
spreads over the 3 x 3."""

_AT_ONCE = 2**12
"""Samples whose neighbourhoods are looked at together, so that they take little memory."""

_ROUNDS = 4
"""Most rounds of the search. Each round leaves the samples found so far out of the RMS error. The
search ends when a round finds no more samples."""


def multiple(quality: float) -> float:
    """Return the multiple of the RMS error from which on a sample is listed at this quality."""
    coarse = max(FULL_QUALITY - quality, 0.0) / (FULL_QUALITY - 1.0)
    return MULTIPLE + coarse * (COARSEST_MULTIPLE - MULTIPLE)


def find_points(errors: np.ndarray, coded: np.ndarray | None, quality: float) -> np.ndarray:
    """Find the samples whose errors are much larger than the errors around them.

    Parameters
    ----------
    errors : ndarray of float32, (T, C, H, W)
        Absolute errors in DN, 0 where the model codes nothing.
    coded : ndarray of bool, (T, C, H, W), optional
        True for samples that the model codes. None: all of them.
    quality : float
        1 to 8.

    Returns
    -------
    ndarray of int64, (n,)
        Flat indices in the order (time, y, x, band), rising.
    """
    t, c, h, w = errors.shape
    count = errors.size if coded is None else int(np.count_nonzero(coded))
    # One date at a time, because the squares of a whole chunk take much memory.
    energy = math.fsum(float(np.vdot(date, date)) for date in errors.reshape(t, -1))
    factor = multiple(quality)
    places = np.zeros(0, np.int64)
    values = np.zeros(0)
    for _ in range(_ROUNDS):
        left = max(energy - float(np.square(values).sum()), 0.0)
        rms = max(math.sqrt(left / max(count - len(places), 1)), _LEAST_RMS)
        far = np.flatnonzero(errors.reshape(-1) > factor * rms)
        parts = np.split(far, range(_AT_ONCE, len(far), _AT_ONCE))
        found = far[np.concatenate([_far_out(errors, coded, part, factor) for part in parts])]
        if len(found) == len(places):
            break
        places, values = found, errors.reshape(-1)[found].astype(np.float64)
    date, band, y, x = np.unravel_index(places, errors.shape)
    return np.sort(((date * h + y) * w + x) * c + band)


def _far_out(
    errors: np.ndarray, coded: np.ndarray | None, places: np.ndarray, factor: float
) -> np.ndarray:
    """Return whether the errors at ``places`` exceed ``factor`` times the RMS around them, (n,)."""
    date, band, row, column = np.unravel_index(places, errors.shape)
    height, width = errors.shape[2:]
    down, right = np.indices((2 * _REACH + 1,) * 2).reshape(2, -1, 1) - _REACH
    around = np.maximum(abs(down), abs(right))[:, 0] > _OWN
    y, x = row + down[around], column + right[around]
    there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = date, band, y.clip(0, height - 1), x.clip(0, width - 1)
    energy = (np.where(there, errors[at], 0).astype(np.float64) ** 2).sum(axis=0)
    count = np.count_nonzero(there if coded is None else there & coded[at], axis=0)
    own = errors[date, band, row, column].astype(np.float64)
    return own > factor * np.sqrt(energy / np.maximum(count, 1))


def pack_points(places: np.ndarray, samples: np.ndarray) -> bytes:
    """Serialise ``places`` and the values of ``samples`` there.

    Parameters
    ----------
    places : ndarray of int64, (n,)
        Flat indices in the order (time, y, x, band), rising, from :func:`find_points`.
    samples : ndarray, (T, C, H, W)
        The chunk.
    """
    gaps = np.diff(places, prepend=-1) - 1
    values = samples[_at(places, samples.shape)]
    numbers = b"".join(map(write_varint, [len(places), *gaps.tolist()]))
    return numbers + squeeze(shuffled(values))


def _at(places: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return the index of ``places`` into an array of ``shape`` (T, C, H, W)."""
    t, c, h, w = shape
    date, y, x, band = np.unravel_index(places, (t, h, w, c))
    return date, band, y, x
