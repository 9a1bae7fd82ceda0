"""Which numbers mean "nothing measured": the one place that knows where people write them down.

CF says ``_FillValue`` and ``missing_value``; datacube, odc-stac, DEA and titiler say ``nodata``;
xarray's old ``open_rasterio`` says ``nodatavals``; rioxarray reads ``fill_value``, and keeps what
``.rio.set_nodata`` was told outside of the attributes.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.zarr import FillValueCoder

from tec_zarr.errors import UnsupportedArrayError

__all__ = [
    "CF_KEYS",
    "KEYS",
    "declared",
    "fits",
    "is_nodata",
    "nodata_values",
    "number",
    "unencoded",
]

CF_KEYS = ("_FillValue", "missing_value")
"""Attributes that every reader of CF knows; xarray moves them to a variable's encoding."""

KEYS = (*CF_KEYS, "nodata", "nodatavals", "no_data", "nodata_value", "fill_value")
"""Attributes that say what nodata is."""

_NO_VALUE = ("", "none", "null")


def declared(
    attrs: Mapping[str, Any], dtype: np.dtype, name: str = "", keys: tuple[str, ...] = KEYS
) -> tuple[float, ...]:
    """Numbers that attributes say mean nothing measured, NaN and infinities among them.

    Parameters
    ----------
    attrs : mapping
        Of an xarray or Zarr variable, or the tags of a GeoTIFF: numbers, numbers as text, lists
        of them, or base64 as xarray writes fill values of floats in Zarr format 3.
    dtype : dtype
        Of the variable.
    name : str
        What messages call it.
    keys : tuple of str
        Which attributes are looked at.

    Returns
    -------
    tuple of float
        In stored units, each once, in the order of ``keys``.

    Raises
    ------
    UnsupportedArrayError
        Something that is no number.
    """
    found: dict[str, float] = {}
    for key in keys:
        stated: Any = attrs.get(key)
        for value in stated if isinstance(stated, list | tuple) else np.ravel(stated).tolist():
            if value is None or isinstance(value, bool):
                continue
            if key not in CF_KEYS and str(value).strip().lower() in _NO_VALUE:
                continue
            known = number(value, dtype)
            if known is None:
                raise UnsupportedArrayError(
                    f"{key} of array {name!r} is {value!r:.80}, which is no number: correct it, "
                    "or its pixels would be taken for measurements"
                )
            found.setdefault(repr(float(known)), float(known))
    return tuple(found.values())


def nodata_values(da: xr.DataArray) -> tuple[float, ...]:
    """Finite numbers that ``da`` says mean nothing measured, besides NaN.

    Attributes, rioxarray's ``.rio.nodata`` and the CF keys of the encoding are asked. They count
    in stored units: in floats that xarray unpacked from integers NaN stands for ``_FillValue``.
    """
    encoded = declared(da.encoding, da.dtype, str(da.name or ""), CF_KEYS)
    return tuple(dict.fromkeys((*unencoded(da), *filter(math.isfinite, encoded))))


def unencoded(da: xr.DataArray) -> tuple[float, ...]:
    """Those of `nodata_values` that may be found among the values, whatever xarray made NaN of."""
    found = declared(da.attrs, da.dtype, str(da.name or ""))
    told = getattr((getattr(da, "_cache", None) or {}).get("rio"), "_nodata", None)
    if told is not None and told is not False:
        found += (float(told),)
    return tuple(dict.fromkeys(filter(math.isfinite, found)))


def is_nodata(
    values: Any, nodata: Iterable[float], line: tuple[float, float] = (1, 0)
) -> Any | None:
    """Where values are nodata: bool, of the kind and shape of ``values``; None without ``nodata``.

    Parameters
    ----------
    values : DataArray or ndarray
        Lazy or not.
    nodata : iterable of float
        Stored numbers. Some write them down in the units of the values: where that is something
        else, both are looked for, but for 0, which may have been measured.
    line : (factor, sum)
        What made ``values`` of stored numbers.
    """
    missing = None
    factor, added = line
    for value in nodata:
        here = values == value
        if (factor, added) != (1, 0):
            unpacked = abs(values - (value * factor + added)) < abs(factor) / 4
            here = here | unpacked if value else unpacked
        missing = here if missing is None else missing | here
    return missing


def fits(value: float, dtype: np.dtype) -> bool:
    """Whether an array of this dtype can hold ``value``."""
    if dtype.kind == "f":
        return not math.isfinite(value) or abs(value) <= np.finfo(dtype).max
    limits = np.iinfo(dtype)
    return bool(value == round(value, 0) and limits.min <= value <= limits.max)


def number(stated: Any, dtype: np.dtype) -> Any:
    """A fill value as a number; None for what is none.

    xarray keeps those of floats as base64 in Zarr format 3.
    """
    if stated is None or isinstance(stated, int | float | np.number):
        return stated
    for read_as in (float, lambda text: FillValueCoder.decode(text, dtype)):
        with contextlib.suppress(TypeError, ValueError, struct.error):
            return read_as(stated)
    return None
