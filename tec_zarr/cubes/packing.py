"""Which stored numbers stand for times, so that what is appended later fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def time_encoding(da: xr.DataArray | xr.Variable) -> dict[str, Any]:
    """CF keys of a variable that holds times or durations, fine enough for what is appended later.

    Parameters
    ----------
    da : DataArray or Variable
        Of any dtype and shape. Lazy data stay lazy.

    Returns
    -------
    dict
        ``units`` and ``dtype`` for ``to_zarr(encoding=...)``. Dates are whole microseconds, or
        nanoseconds where they have such digits or are lazy. Empty for what holds no times.

    Notes
    -----
    Left to itself, xarray counts the coarsest unit that the first dates fit into, such as days. It
    writes an appended clock time in a finer unit, and the store still says days. A unit finer than
    the dtype (datetime64[s]) makes NaT of all dates unless the reference date has digits of that
    unit, hence the microsecond in the reference date of such data.
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
