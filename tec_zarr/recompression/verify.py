"""What was written read again and compared with the source."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr

from tec_zarr.codec.bounded import within_bounds
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import VerificationError
from tec_zarr.frame.frame import default_scale
from tec_zarr.metrics import PEAK
from tec_zarr.recompression.plan import ArrayPlan

Verify = Literal["sample", "full", "none"]


MIN_PSNR = 20.0
"""Verified samples below this many dB are not a coarse quality but a defect."""


def values_in(array: zarr.Array, region: tuple[slice, ...]) -> np.ndarray:
    """Part of an array in its own dtype, in the machine's byte order.

    Zarr returns the value of an array without dimensions as a scalar, and NumPy gives a text
    scalar the width of its text.
    """
    dtype = array.dtype if array.dtype.kind in "OT" else array.dtype.newbyteorder("=")
    return np.asarray(array[region]).astype(dtype, copy=False)


def inside_source(part: tuple[slice, ...], region: tuple[slice, ...]) -> tuple[Any, ...]:
    """Where a part of a region lies in it; the dots make it an array also without dimensions."""
    return *(slice(p.start - r.start, p.stop - r.start)
             for p, r in zip(part, region, strict=True)), ...  # fmt: skip


def verify_region(
    array: ArrayPlan, region: tuple[slice, ...], block: np.ndarray, verify: Verify, number: int
) -> tuple[int, float, int, float]:
    """Samples verified, squared error (DN), samples in it, largest error (DN)."""
    parts = [] if verify == "none" else array.chunk_slices(region)
    if verify == "sample":  # any chunk, but the same one in every run
        at = zlib.crc32(f"{array.path}:{number}".encode()) % len(parts)
        parts = parts[at : at + 1]
    verified, squared, compared, worst = 0, 0.0, 0, 0.0
    for part in parts:
        reference, decoded = block[inside_source(part, region)], values_in(array.target, part)
        verified += reference.size
        if array.spec is None:
            if not _equal(reference, decoded):
                raise VerificationError("what was read back differs from the source")
            continue
        errors = _dn_errors(array.spec, array.target.fill_value, reference, decoded)
        squared += errors.squared
        compared += errors.compared
        worst = max(worst, errors.largest)
    if psnr_of(squared, compared) < MIN_PSNR:
        raise VerificationError(
            f"the PSNR of what was read back is {psnr_of(squared, compared):.1f} dB"
        )
    return verified, squared, compared, worst


class _Errors(NamedTuple):
    squared: float
    """Sum over the measured samples, DN squared, both sides clipped as for PSNR."""
    compared: int
    """How many samples that sum has."""
    largest: float
    """Largest absolute difference in DN, not clipped."""


def _dn_errors(
    spec: ChunkSpec, fill: float | None, reference: np.ndarray, decoded: np.ndarray
) -> _Errors:
    """Compare one chunk of reflectance; nodata and bounds have to hold without exception."""
    nodata = [*spec.fill_values, *(() if fill is None else (fill,))]
    missing, lost = (where_missing(a, nodata) for a in (reference, decoded))
    if not np.array_equal(missing, lost) or not _equal(reference[missing], decoded[missing]):
        raise VerificationError("nodata was not kept where it was")
    before, after = reference.astype(np.float64), decoded.astype(np.float64)
    before[missing] = after[missing] = 0
    with np.errstate(invalid="ignore"):
        error = after - before
    if reference.dtype.kind == "f":
        error[reference == decoded] = 0  # infinities too
    scale = spec.scale or default_scale(reference.dtype)
    largest = max(float(error.max(initial=0)), -float(error.min(initial=0)))
    if spec.max_error is not None:
        known = np.isfinite(reference) & ~missing
        if not within_bounds(spec, reference, decoded, known):
            raise VerificationError(f"errors reach {largest:g}, over the bound")
    for values in (before, after):
        values /= scale
        values -= spec.offset
        np.clip(values, 0, PEAK, out=values)
    clipped = (after - before).ravel()  # zero where nodata is
    return _Errors(float(clipped @ clipped), missing.size - int(missing.sum()), largest / scale)


def where_missing(values: np.ndarray, nodata: Iterable[float]) -> np.ndarray:
    """Where there is nodata or NaN."""
    floats = values.dtype.kind == "f"
    missing = np.isnan(values) if floats else np.zeros(values.shape, bool)
    for value in nodata:
        # Integers are compared as such: ten times faster than by way of float64.
        missing |= values == (value if floats or value % 1 else int(value))
    return missing


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def psnr_of(squared: float, count: int) -> float:
    if not count:
        return math.nan
    return math.inf if squared == 0 else 10 * math.log10(PEAK**2 * count / squared)
