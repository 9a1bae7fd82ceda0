"""Converts values of an array to DN and back. No measured sample becomes nodata."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tec_zarr.frame.frame import Header
from tec_zarr.native import frame as native_frame

DN_RANGE = (-1000.0, 20000.0)
"""Lowest and highest DN that the model codes; samples outside are listed exactly."""

_MOST_DN = 2.0**30
"""DN beyond this are cut off. It fits int32, and no array of reflectance comes near it."""


def to_dn(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    """Convert values of an array to DN, float32."""
    if (scale, offset) == (1.0, 0.0):
        return values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # labelled samples, which are filled later
        return (values.astype(np.float64) / scale - offset).astype(np.float32)


def values_of(dn: np.ndarray, header: Header) -> np.ndarray:
    """Convert DN to values of the array that a frame describes. ``dn`` may be overwritten."""
    return from_dn(dn, header.scale, header.offset, header.dtype, header.nodata)


def from_dn(
    dn: np.ndarray, scale: float, offset: float, dtype: np.dtype, nodata: tuple[float, ...]
) -> np.ndarray:
    """Convert DN to values of the array, none of which is nodata. ``dn`` may be overwritten."""
    if dn.dtype.kind == "f":
        whole = np.rint(dn, out=dn)
        dn = np.clip(whole, -_MOST_DN, _MOST_DN, out=whole)
    with np.errstate(invalid="ignore"):  # weights may be forged
        return native_frame.values(dn.astype(np.int32, copy=False), dtype, scale, offset, nodata)


def possible_values(values: Sequence[float] | dict, dtype: np.dtype) -> tuple[float, ...]:
    """Return those of ``values`` that ``dtype`` can hold, rounded to it; without NaN."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for the dtype
            held = [dtype.type(float(v)).item() for v in values]
        return tuple(dict.fromkeys(v for v in held if math.isfinite(v)))
    limits = np.iinfo(dtype)
    return tuple(int(v) for v in values if v == v and limits.min <= v <= limits.max and v == int(v))
