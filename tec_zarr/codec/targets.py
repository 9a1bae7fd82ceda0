"""Searches the quality that reaches a PSNR or keeps within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tec_zarr.bounds.request import Limits
from tec_zarr.codec.bounded import code_bounded
from tec_zarr.codec.decode import decode_samples
from tec_zarr.codec.part import Coded, Part, at_quality
from tec_zarr.codec.spec import QUALITY_RANGE
from tec_zarr.codec.values import to_dn
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.frame.frame import read_frame

PEAK_DN = 10_000.0
"""Peak of the PSNR that ``psnr=`` asks for, in DN: reflectance 1."""


_SEARCH_STEPS = 64
"""Number of qualities per whole step of quality that the search can choose."""


def _lowest(good: Callable[[float], Coded | None]) -> Coded | None:
    """Return the chunk coded at the lowest quality that is ``good``, or None if none is.

    The error falls as quality rises, but for a wobble smaller than one step. So bisection finds a
    quality that is good while the next lower one is not.
    """
    low, high = (round(q * _SEARCH_STEPS) for q in QUALITY_RANGE)
    found = good(high / _SEARCH_STEPS)
    if found is None:
        return None
    while low < high:
        middle = (low + high) // 2
        coded = good(middle / _SEARCH_STEPS)
        if coded is None:
            low = middle + 1
        else:
            high, found = middle, coded
    return found


def for_psnr(part: Part, psnr: float, frame: Callable[[Coded], bytes]) -> Coded:
    """Encode a chunk at the lowest quality that reaches ``psnr`` (dB).

    If no quality of the model reaches it, the bound layer codes the chunk.
    """
    limit = PEAK_DN**2 * 10 ** (-psnr / 10)
    measured = part.measured
    wanted = _clipped_dn(part.samples, part)[measured]

    def good(quality: float) -> Coded | None:
        coded = at_quality(part, quality)
        decoded = coded.decoded
        if decoded is None:
            data = frame(coded)
            decoded = decode_samples(data, read_frame(data))
        error = np.square(_clipped_dn(decoded, part)[measured] - wanted)
        return coded if not error.size or error.mean() <= limit else None

    found = _lowest(good)
    # The model cannot code noise this well. The bound layer limits each error to the RMS error
    # that the PSNR allows.
    held = math.floor(math.sqrt(limit)) * part.scale
    return found or code_bounded(part, Limits((held,) * part.samples.shape[1]))


def for_size(part: Part, max_bytes: int, frame: Callable[[Coded], bytes]) -> bytes:
    """Return the frame of the highest quality that has at most ``max_bytes`` bytes."""
    best: list[bytes] = []

    def too_large(quality: float) -> Coded | None:
        coded = at_quality(part, quality)
        data = frame(coded)
        if len(data) > max_bytes:
            return coded
        best.append(data)
        return None

    _lowest(too_large)
    if not best:
        raise UnsupportedArrayError(
            f"a chunk of shape {part.samples.shape} needs more than max_bytes={max_bytes} even at "
            f"quality {QUALITY_RANGE[0]:g}: allow more bytes"
        )
    return best[-1]  # of frames that fit, each has a higher quality than the one before


def _clipped_dn(samples: np.ndarray, part: Part) -> np.ndarray:
    """Convert samples to DN, clipped to 0 .. ``PEAK_DN``, float64."""
    dn = to_dn(samples, part.scale, part.spec.offset)
    return np.clip(dn.astype(np.float64), 0, PEAK_DN)
