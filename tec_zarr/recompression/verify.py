"""Verify a region: read it back from the target and compare it with the source."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr

from tec_zarr.codec.bounded import within_bounds
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.packing import cf_line, fill_values
from tec_zarr.errors import VerificationError
from tec_zarr.frame.frame import default_scale
from tec_zarr.metrics import PEAK
from tec_zarr.recompression.plan import ArrayPlan
from tec_zarr.stores.packing_codecs import packing_of

Verify = Literal["sample", "full", "none"]


MIN_PSNR = 20.0
"""PSNR in dB. A lower one is a defect: no quality setting is that coarse."""


def values_in(array: zarr.Array, region: tuple[slice, ...]) -> np.ndarray:
    """Read part of an array as an ndarray of the array's dtype, in the machine's byte order.

    Zarr returns the value of an array without dimensions as a scalar, and NumPy makes the dtype of
    a text scalar only as wide as its text. Hence the conversion to the array's dtype.
    """
    dtype = array.dtype if array.dtype.kind in "OT" else array.dtype.newbyteorder("=")
    return np.asarray(array[region]).astype(dtype, copy=False)


def inside_source(part: tuple[slice, ...], region: tuple[slice, ...]) -> tuple[Any, ...]:
    """Return the index of a part inside its region.

    The ellipsis at its end makes the result an array, even if it has no dimensions.
    """
    return *(slice(p.start - r.start, p.stop - r.start)
             for p, r in zip(part, region, strict=True)), ...  # fmt: skip


def verify_region(
    array: ArrayPlan, region: tuple[slice, ...], block: np.ndarray, verify: Verify, number: int
) -> tuple[int, float, int, float]:
    """Read back a region or one of its chunks, and compare it with ``block``.

    Returns
    -------
    verified : int
        Samples read back and compared.
    squared : float
        Sum of squared errors of reflectance, DN squared, clipped as for the PSNR.
    compared : int
        Number of samples in that sum.
    worst : float
        Largest absolute error, DN.

    Raises
    ------
    VerificationError
        What was read back differs from the source more than it may.
    """
    parts = [] if verify == "none" else array.chunk_slices(region)
    if verify == "sample":  # Pick a chunk by a hash, so that every run picks the same one.
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
        fill, behind = array.target.fill_value, packing_of(array.target.filters)
        if behind is not None:  # The settings are those of the integers behind the floats.
            reference, decoded = (_packed(values, behind) for values in (reference, decoded))
            fill = None
        errors = _dn_errors(array.spec, fill, reference, decoded)
        squared += errors.squared
        compared += errors.compared
        worst = max(worst, errors.largest)
    if psnr_of(squared, compared) < MIN_PSNR:
        raise VerificationError(
            f"the PSNR of what was read back is {psnr_of(squared, compared):.1f} dB"
        )
    return verified, squared, compared, worst


def _packed(values: np.ndarray, packing: Mapping[str, Any]) -> np.ndarray:
    """Return the integers that Zarr's codecs store for floats, in the machine's byte order."""
    factor, added = cf_line(packing)
    whole = np.rint((values.astype(np.float64) - added) / factor)
    fills = fill_values(packing)
    return np.where(np.isnan(whole), fills[0] if fills else 0, whole).astype(packing["dtype"])


class _Errors(NamedTuple):
    squared: float
    """Sum of squared errors over samples that are not nodata, DN squared, clipped as for PSNR."""
    compared: int
    """Number of samples in that sum."""
    largest: float
    """Largest absolute error in DN, not clipped."""


def _dn_errors(
    spec: ChunkSpec, fill: float | None, reference: np.ndarray, decoded: np.ndarray
) -> _Errors:
    """Compare one chunk of reflectance with its source.

    Raises
    ------
    VerificationError
        Nodata is not where it was, or an error exceeds its bound.
    """
    nodata = [*spec.fill_values, *(() if fill is None else (fill,))]
    missing, lost = (where_missing(a, nodata) for a in (reference, decoded))
    if not np.array_equal(missing, lost) or not _equal(reference[missing], decoded[missing]):
        raise VerificationError("nodata was not kept where it was")
    before, after = reference.astype(np.float64), decoded.astype(np.float64)
    before[missing] = after[missing] = 0
    with np.errstate(invalid="ignore"):
        error = after - before
    if reference.dtype.kind == "f":
        error[reference == decoded] = 0  # The difference of two equal infinities is NaN.
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
    clipped = (after - before).ravel()  # 0 for nodata
    return _Errors(float(clipped @ clipped), missing.size - int(missing.sum()), largest / scale)


def where_missing(values: np.ndarray, nodata: Iterable[float]) -> np.ndarray:
    """Return where ``values`` are NaN or one of the ``nodata`` values; bool, of the same shape."""
    floats = values.dtype.kind == "f"
    missing = np.isnan(values) if floats else np.zeros(values.shape, bool)
    for value in nodata:
        # Comparing integers with an integer is ten times faster than with a float64.
        missing |= values == (value if floats or value % 1 else int(value))
    return missing


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def psnr_of(squared: float, count: int) -> float:
    if not count:
        return math.nan
    return math.inf if squared == 0 else 10 * math.log10(PEAK**2 * count / squared)
