"""Find the nodata values of an array: the numbers that mean "nothing measured".

Only this module knows where libraries write them. CF uses ``_FillValue`` and ``missing_value``.
datacube, odc-stac, DEA and titiler use ``nodata``. ``xarray.open_rasterio`` used ``nodatavals``.
rioxarray reads ``fill_value``, and keeps the value of ``.rio.set_nodata`` outside the attributes.
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
"""Attributes that declare nodata values."""

_NO_VALUE = ("", "none", "null")


def declared(
    attrs: Mapping[str, Any], dtype: np.dtype, name: str = "", keys: tuple[str, ...] = KEYS
) -> tuple[float, ...]:
    """Return the nodata values that attributes declare, including NaN and infinities.

    Parameters
    ----------
    attrs : mapping
        Attributes of an xarray or Zarr variable, or tags of a GeoTIFF. Values may be numbers,
        numbers as text, lists of these, or base64, as which xarray writes the fill values of
        floats in Zarr format 3.
    dtype : dtype
        Dtype of the variable.
    name : str
        Name of the variable, for messages.
    keys : tuple of str
        Attributes to look at.

    Returns
    -------
    tuple of float
        Nodata values in stored units, each once, in the order of ``keys``.

    Raises
    ------
    UnsupportedArrayError
        A value is not a number.
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
    """Return the finite nodata values that ``da`` declares, in stored units.

    They come from attributes, rioxarray's ``.rio.nodata`` and the CF keys of the encoding. In
    floats that xarray unpacked from integers, ``_FillValue`` has become NaN. `unencoded` leaves
    it out.
    """
    encoded = declared(da.encoding, da.dtype, str(da.name or ""), CF_KEYS)
    return tuple(dict.fromkeys((*unencoded(da), *filter(math.isfinite, encoded))))


def unencoded(da: xr.DataArray) -> tuple[float, ...]:
    """Return those of `nodata_values` that may still occur among the values.

    That leaves out the CF keys of the encoding, which xarray has turned into NaN.
    """
    found = declared(da.attrs, da.dtype, str(da.name or ""))
    told = getattr((getattr(da, "_cache", None) or {}).get("rio"), "_nodata", None)
    if told is not None and told is not False:
        found += (float(told),)
    return tuple(dict.fromkeys(filter(math.isfinite, found)))


def is_nodata(
    values: Any, nodata: Iterable[float], line: tuple[float, float] = (1, 0)
) -> Any | None:
    """Return where values are nodata.

    Parameters
    ----------
    values : DataArray or ndarray
        Lazy or not.
    nodata : iterable of float
        Nodata values in stored units. Some files declare them in the units of the values instead.
        So both are looked for if these units differ. The exception is a value of 0, which may have
        been measured.
    line : (factor, offset)
        ``values`` are stored numbers times factor plus offset.

    Returns
    -------
    DataArray or ndarray of bool, or None
        Of the type and shape of ``values``; None if ``nodata`` is empty.
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
    """Return whether an array of this dtype can hold ``value``."""
    if dtype.kind == "f":
        return not math.isfinite(value) or abs(value) <= np.finfo(dtype).max
    limits = np.iinfo(dtype)
    return bool(value == round(value, 0) and limits.min <= value <= limits.max)


def number(stated: Any, dtype: np.dtype) -> Any:
    """Convert a fill value to a number; None if it is not a number.

    xarray writes the fill values of floats as base64 in Zarr format 3.
    """
    if stated is None or isinstance(stated, int | float | np.number):
        return stated
    for read_as in (float, lambda text: FillValueCoder.decode(text, dtype)):
        with contextlib.suppress(TypeError, ValueError, struct.error):
            return read_as(stated)
    return None
