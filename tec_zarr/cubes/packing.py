"""CF packing: the integers that stand for floats, and the units of stored times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.bounds.request import NamedBounds
from tec_zarr.codec.spec import DTYPES, ChunkSpec
from tec_zarr.cubes.nodata import CF_KEYS, declared, unencoded
from tec_zarr.sentinel2 import DN_PER_REFLECTANCE
from tec_zarr.stores.packing_codecs import packing_of

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

PACKING = ("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset")
"""CF keys of a variable's encoding that define how its values are stored."""

#: Number of samples that are checked at a time, so that copies stay small.
AT_ONCE = 2**22

#: Names of Dask layers of data that were opened, and then only cut, rechunked or transposed.
_AS_READ = re.compile(r"(original-)?open_\w+-.*|getitem-.*|rechunk-.*|transpose-.*")

STACKED_AS_READ = "stacked-as-read-"
"""Prefix of the name of a Dask layer that stacks arrays, all of them as they were read."""


def time_encoding(da: xr.DataArray | xr.Variable) -> dict[str, Any]:
    """Return CF keys for times or durations, with a unit fine enough for times appended later.

    Parameters
    ----------
    da : DataArray or Variable
        Of any dtype and shape. Lazy data stay lazy.

    Returns
    -------
    dict
        ``units`` and ``dtype`` for ``to_zarr(encoding=...)``. Times are whole microseconds, or
        nanoseconds if they have such digits or are lazy. Empty if ``da`` holds no times.

    Notes
    -----
    By default xarray chooses the coarsest unit that the first dates fit into, such as days. It then
    writes an appended clock time in a finer unit, but the store still says days. A unit finer than
    the dtype (datetime64[s]) turns all dates into NaT, unless the reference date has digits of that
    unit. Therefore the reference date of such data has a microsecond.
    """
    if da.dtype.kind not in "mM":
        return {}
    resolution = np.datetime_data(da.dtype)[0]
    if da.dtype.kind == "m":
        return {"units": _UNITS[resolution], "dtype": "int64"}
    units = "microseconds since 1970-01-01"
    if resolution == "ns" and (da.chunks is not None or _below_microseconds(da.values)):
        units = "nanoseconds since 1970-01-01"
    elif resolution in ("s", "ms"):
        units = f"{units}T00:00:00.000001"
    return {"units": units, "dtype": "int64"}


def _below_microseconds(times: np.ndarray) -> bool:
    return bool((times != times.astype("M8[us]"))[~np.isnat(times)].any())


def fill_values(packing: Mapping[str, Any]) -> list[float]:
    """Return the finite nodata values that the CF keys declare."""
    return [v for v in declared(packing, np.dtype("f8"), keys=CF_KEYS) if math.isfinite(v)]


def cf_packing(da: xr.DataArray, spec: ChunkSpec) -> tuple[dict[str, Any], ChunkSpec]:
    """Choose a CF packing of floats as integers, if no value would wrap.

    Returns
    -------
    packing : dict
        CF keys; empty if the floats are stored as floats.
    spec : ChunkSpec
        Settings of the codec. With a packing the codec gets the packed integers, without one it
        gets the floats.
    """
    if da.dtype.kind != "f":
        return {}, _in_stored_units(da, spec)
    stored = stored_packing(da)
    exact = _has_exact_band(spec)
    whole = stored is not None and cf_line(stored) == (1, 0)
    if stored and whole and spec.scale in (None, 1) and holds(da, stored, on_grid=True):
        # Stored integers without a scale factor are DN.
        known = np.dtype(stored["dtype"]).name in DTYPES
        kept = known and not (exact and not _gives_same_bits(da, stored))
        return (stored, spec) if kept else ({}, replace(spec, scale=1))
    if any(spec.fill_values):  # A value that rounds to a nodata value would become nodata.
        return {}, _in_stored_units(da, spec)
    unit = spec.scale or 1 / DN_PER_REFLECTANCE
    if stored and "scale_factor" in stored and np.dtype(stored["dtype"]).name in DTYPES:
        on_grid = spec.max_error is not None
        if not holds(da, stored, on_grid) or (exact and not _gives_same_bits(da, stored)):
            return {}, spec
        return stored, packed_spec(spec, *cf_line(stored))
    packed = any(key in da.attrs for key in PACKING)
    if exact or da.chunks is not None or packed or any(unencoded(da)):
        return {}, _in_stored_units(da, spec)
    cf = {"dtype": "uint16", "_FillValue": 0, "scale_factor": unit, "add_offset": 0.0}
    if not _fits(da, cf, spec.max_error is not None):
        return {}, spec
    return cf, bounds_in(unit, replace(spec, scale=None))


def _has_exact_band(spec: ChunkSpec) -> bool:
    """Return whether some band has a bound of 0, so that its floats must come back bit for bit.

    Packing as integers changes most floats.
    """
    bounds: Any = spec.max_error
    if isinstance(bounds, Mapping):
        bounds = list(bounds.values())
    return bounds is not None and bool((np.asarray(bounds) == 0).any())


def _gives_same_bits(da: xr.DataArray, packing: Mapping[str, Any]) -> bool:
    """Return whether packing and unpacking the floats of ``da`` gives the same bits.

    ``packing`` must hold ``da`` (see `holds`). Of lazy data only the dtype is compared, because
    their values are as they were read.
    """
    plain = {k: v if k == "dtype" else np.asarray(v).item() for k, v in packing.items()}
    attrs = {k: v for k, v in plain.items() if k != "dtype"}
    parts = [np.zeros(0, da.dtype)] if is_as_read(da) else _parts(da)
    for part in parts:
        stored = xr.conventions.encode_cf_variable(xr.Variable("x", part, encoding=plain)).values
        back = xr.conventions.decode_cf_variable("", xr.Variable("x", stored, attrs)).values
        same = back.dtype == part.dtype and np.array_equal(back, part, equal_nan=True)
        if not same or (np.signbit(back) != np.signbit(part))[part == 0].any():
            return False
    return True


def _in_stored_units(da: xr.DataArray, spec: ChunkSpec) -> ChunkSpec:
    """Return settings for stored numbers whose CF scale and offset have not been applied.

    Bounds stay in the units of the stored numbers.
    """
    line = cf_line(da.attrs)
    if spec.scale is not None or line == (1, 0):
        return spec
    return replace(packed_spec(replace(spec, max_error=None), *line), max_error=spec.max_error)


def read_packing(da: xr.DataArray) -> dict[str, Any]:
    """Return ``da.encoding``, with the CF keys that say the same as its Zarr codecs."""
    return {**da.encoding, **(packing_of(da.encoding.get("filters")) or {})}


def stored_packing(da: xr.DataArray) -> dict[str, Any] | None:
    """Return the CF keys of the integers from which xarray or Zarr made the floats of ``da``.

    None if ``da`` does not hold floats that were unpacked from integers.
    """
    stored = {k: v for k, v in read_packing(da).items() if k in PACKING and v is not None}
    if da.dtype.kind != "f" or np.dtype(stored.get("dtype", "f4")).kind not in "iu":
        return None
    if da.encoding.get("_Unsigned"):  # The dtype in the encoding is signed, the integers are not.
        return None
    fills = fill_values({k: stored.pop(k, ()) for k in CF_KEYS})
    # xarray has turned all fill values into NaN, so one of them is enough.
    stored |= {"_FillValue": fills[0]} if fills else {}
    if cf_line(stored) == (1, 0):
        stored = {k: v for k, v in stored.items() if k not in ("scale_factor", "add_offset")}
    return stored


def cf_line(packing: Mapping[str, Any]) -> tuple[float, float]:
    """Return (factor, offset): values are stored numbers times factor plus offset."""
    return float(packing.get("scale_factor") or 1), float(packing.get("add_offset") or 0)


def holds(
    da: xr.DataArray, packing: Mapping[str, Any], on_grid: bool, slack: float = 1e-3
) -> bool:
    """Return whether integers of ``packing`` can hold floats, by the rules of `_fits`.

    xarray does not check this when it packs, and it keeps a packing through arithmetic. Lazy data
    are not computed: they fit only if they are as they were read, from the same packing.
    """
    if is_as_read(da):
        was = read_packing(da)
        fills, read = set(fill_values(packing)), set(fill_values(was))
        same = fills <= read and bool(fills) == bool(read)
        same &= cf_line(was) == cf_line(packing)
        return same and np.dtype(was.get("dtype", da.dtype)) == packing["dtype"]
    return da.chunks is None and _fits(da, packing, on_grid, slack)


def is_as_read(da: xr.DataArray) -> bool:
    """Return whether ``da`` is lazy and its values are as they were read from one store.

    False if something was computed with it, or if it joins several stores.
    """
    if da.chunks is None:
        return not da.variable._in_memory  # Backends have lazy arrays without Dask.
    layers = list(getattr(da.data.dask, "layers", ()))
    stacked = [layer for layer in layers if layer.startswith(STACKED_AS_READ)]
    if stacked:  # `stack_bands` made it from arrays that are all as they were read.
        layers = [n for n in layers if n not in stacked and not n.startswith("stack-")]
    read = sum(layer.startswith("open_") for layer in layers)
    return (len(stacked) == 1 or read == 1) and all(map(_AS_READ.fullmatch, layers))


def _fits(
    da: xr.DataArray, packing: Mapping[str, Any], on_grid: bool, slack: float = 1e-3
) -> bool:
    """Return whether integers of this packing can hold floats in memory.

    They can if no value wraps, no value becomes nodata, and NaN has a number of its own. With
    ``on_grid``, no value may be rounded by more than ``slack``, in stored units.
    """
    return all(_part_fits(part, packing, on_grid, slack) for part in _parts(da))


def _parts(da: xr.DataArray) -> Iterator[np.ndarray]:
    flat = da.values.reshape(-1)
    return (flat[i : i + AT_ONCE] for i in range(0, flat.size, AT_ONCE))


def _part_fits(
    values: np.ndarray, packing: Mapping[str, Any], on_grid: bool, slack: float
) -> bool:
    known = values[~np.isnan(values)]
    factor, added = cf_line(packing)
    exact = (known.astype(np.float64) - added) / factor
    whole, limits, fills = np.rint(exact), np.iinfo(packing["dtype"]), fill_values(packing)
    slack = slack and slack + np.abs(exact) * np.finfo(values.dtype).eps
    return bool(
        (fills or known.size == values.size)
        and (whole >= limits.min).all()
        and (whole <= limits.max).all()
        and not np.isin(whole, fills).any()
        and (not on_grid or (np.abs(exact - whole) <= slack).all())
    )


def packed_spec(spec: ChunkSpec, factor: float, added: float) -> ChunkSpec:
    """Convert settings for values to settings for packed integers.

    Values are integers times ``factor`` plus ``added``.
    """
    unit = spec.scale or 1 / DN_PER_REFLECTANCE
    spec = replace(spec, scale=round(unit / factor, 9), offset=round(spec.offset - added / unit, 6))
    return bounds_in(factor, spec)


def bounds_in(factor: float, spec: ChunkSpec) -> ChunkSpec:
    """Convert bounds from units of values to units of data packed with this scale factor."""
    if spec.max_error is None:
        return spec
    if isinstance(spec.max_error, NamedBounds):
        return replace(spec, max_error=spec.max_error.scaled(factor))
    packed = np.round(np.asarray(spec.max_error) / factor, 6).tolist()
    return replace(spec, max_error=packed)
