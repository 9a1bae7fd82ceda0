"""Values of an array to DN and back; nodata stays apart from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tec_zarr.frame.frame import Header

DN_RANGE = (-1000.0, 20000.0)
"""DN that the model codes; samples outside are listed exactly."""


def to_dn(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    if (scale, offset) == (1.0, 0.0):
        return values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # labelled samples, replaced by the fill
        return (values.astype(np.float64) / scale - offset).astype(np.float32)


def values_of(dn: np.ndarray, header: Header) -> np.ndarray:
    return from_dn(dn, header.scale, header.offset, header.dtype, header.nodata)


def from_dn(
    dn: np.ndarray, scale: float, offset: float, dtype: np.dtype, nodata: tuple[float, ...]
) -> np.ndarray:
    """Whole DN to the array's own values; what was measured never becomes nodata.

    ``dn`` is written over; if it is of uint16, it holds these values already but for nodata.
    """
    native = dtype.newbyteorder("=")
    if dn.dtype == np.uint16:
        return _kept_apart(dn, native, scale, nodata)
    values = np.rint(dn, out=dn if dn.dtype.kind == "f" else None)
    with np.errstate(over="ignore", invalid="ignore"):  # a forged scale, a stranger's weights
        if (scale, offset) != (1.0, 0.0):
            values = (values.astype(np.float64) + offset) * scale
        if native.kind in "iu":
            limits = np.iinfo(native)
            values = np.rint(values, out=values) if values is not dn else values
            values = np.clip(values, limits.min, limits.max, out=values)
        values = values.astype(native)
    return _kept_apart(values, native, scale, nodata)


def _kept_apart(
    values: np.ndarray, native: np.dtype, scale: float, nodata: tuple[float, ...]
) -> np.ndarray:
    """Move values (written over) that are nodata to the nearest that are not."""
    for wrong, right in _substitutes(native, scale, nodata).items():
        values[values == wrong] = right
    return values


def _substitutes(
    native: np.dtype, scale: float, nodata: tuple[float, ...]
) -> dict[float, float]:
    """Nearest value that is not nodata, for each nodata value, the upper one first."""
    whole = native.kind in "iu"
    limits = np.iinfo(native) if whole else np.finfo(native)
    out = {}
    for value in nodata:
        step: float = 1
        if not whole:  # the last value has no neighbour above it, so no spacing of its own
            largest = np.nextafter(limits.max, native.type(0))
            unit = scale if scale < float(limits.max) / 1024 else 0.0  # forged, beyond the dtype
            step = max(unit, float(np.spacing(min(native.type(abs(value)), largest))))
        # Two steps may round to one float, so twice as many as there are values to avoid.
        near = (value + sign * k * step for k in range(1, 2 * len(nodata) + 2) for sign in (1, -1))
        inside = (v for v in near if float(limits.min) <= v <= float(limits.max))
        out[value] = next(v for v in inside if native.type(v) not in nodata)
    return out


def possible_values(values: Sequence[float] | dict, dtype: np.dtype) -> tuple[float, ...]:
    """Those of ``values`` that an array of ``dtype`` can hold, as it holds them; no NaN."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for the dtype
            held = [dtype.type(float(v)).item() for v in values]
        return tuple(dict.fromkeys(v for v in held if math.isfinite(v)))
    limits = np.iinfo(dtype)
    return tuple(int(v) for v in values if v == v and limits.min <= v <= limits.max and v == int(v))
