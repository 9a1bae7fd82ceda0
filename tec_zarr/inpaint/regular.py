"""`regularize`: series without gaps at equal steps of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from tec_zarr.cubes.dims import TIME, find_dim
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.inpaint.clouds import fill
from tec_zarr.inpaint.masks import DILATE, Mask

if TYPE_CHECKING:
    from tec_zarr.terracodec.codec import FamilyModel

__all__ = ["regularize"]


def regularize(
    obj: Any,
    mask: Mask | None = None,
    *,
    freq: str = "5D",
    start: Any = None,
    end: Any = None,
    scl: xr.DataArray | None = None,
    method: str = "regression",
    dilate: int = DILATE,
    return_uncertainty: bool = False,
    model: str | FamilyModel | None = None,
) -> Any:
    """Make a series without gaps at equal steps of time.

    **Every value changes**: all are estimates, those of clear pixels too, and the dates are new
    ones. `tec_zarr.inpaint_clouds` leaves what is clear as it is. First masked pixels are filled as
    `tec_zarr.inpaint_clouds` does it. Then each pixel gets a weighted mean over time at each new
    date (:mod:`tec_zarr.inpaint.smoothing`).

    Parameters
    ----------
    obj : DataArray or Dataset
        Cube with datetime64 times, as `tec_zarr.inpaint_clouds` takes it. The times may have any
        steps.
    mask, scl, method, dilate, model
        As for `tec_zarr.inpaint_clouds`.
    freq : str
        Step between dates, as `pandas.date_range` takes it.
    start, end : date, optional
        First date, and last possible date. By default those of ``obj``, by the day. Series of
        several places that begin on different days get the same dates where ``start`` is the same.
    return_uncertainty : bool
        Also return the half width of the interval that holds a clear measurement on that date in
        nine of ten cases.

    Returns
    -------
    DataArray or Dataset
        With dimensions, dtype and attributes of ``obj`` and the new dates, in DN or reflectance as
        ``obj``. Coordinates along time, and variables along time that are no reflectance (SCL), are
        left out. Pixels that are never clear are nodata. Before the first clear date and after the
        last, values tend towards the mean of the dates next to them. Dask arrays stay lazy.
    DataArray or Dataset
        Only with ``return_uncertainty``: the half widths, float32 in units of ``obj``.

    Raises
    ------
    UnsupportedArrayError
        No datetime64 times, or what `tec_zarr.inpaint_clouds` refuses.
    TecError
        ``freq``, ``start`` and ``end`` give no dates, or an unknown method.
    """
    arrays = [obj] if isinstance(obj, xr.DataArray) else list(obj.data_vars.values())
    time = next((dim for dim in (find_dim(da, TIME) for da in arrays) if dim is not None), None)
    if time is None or time not in obj.coords or obj[time].dtype.kind != "M":
        raise UnsupportedArrayError(
            f"regularize needs datetime64 times, and there is no such coordinate along {time!r}: "
            "give the dates, cube.assign_coords(time=...)"
        )
    stamps = obj[time].values
    try:
        first = pd.Timestamp(stamps.min() if start is None else start)
        last = pd.Timestamp(stamps.max() if end is None else end)
        dates = pd.date_range(first if start is not None else first.normalize(), last, freq=freq)
    except (ValueError, TypeError) as error:
        raise TecError(f"freq={freq!r}, start={start!r}, end={end!r}: {error}") from error
    if not len(dates):
        raise TecError(
            f"freq={freq!r}, start={start!r}, end={end!r} give no date between {first} and {last}"
        )
    new = dates.to_numpy().astype(np.asarray(stamps).dtype)
    return fill(
        obj, mask, scl=scl, method=method, dilate=dilate, model=model, progress=False,
        uncertain=return_uncertainty, smooth=True, dates=new,
    )  # fmt: skip
