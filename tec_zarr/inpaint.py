"""Fill clouds from the clear dates of the same pixel.

Nothing is invented: every filled value comes from what was measured at that pixel, in that band,
on other dates; where there is none it stays nodata.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr

from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.sentinel2 import CLOUD_LIKE, NODATA
from tec_zarr.store import TIME, X, Y, find_dim

__all__ = ["METHODS", "cloud_mask", "inpaint_clouds"]

METHODS = ("linear", "previous", "median")

DILATE = 8
"""Pixels by which masks of SCL grow by default: SCL misses cloud edges, and what a lossy codec
spreads of a cloud reaches one 8 x 8 block further."""

Mask = xr.DataArray | Callable[[xr.DataArray], xr.DataArray]


def inpaint_clouds(
    da: xr.DataArray,
    mask: Mask | None = None,
    *,
    scl: xr.DataArray | None = None,
    method: str = "linear",
    dilate: int = DILATE,
) -> xr.DataArray:
    """Replace masked pixels by an estimate from the clear dates of the same pixel.

    Parameters
    ----------
    da : DataArray
        Cube with time, y and x, in any order, with or without bands. DN or reflectance.
    mask : DataArray of bool or callable, optional
        True where the ground is not seen, with time, y and x (and bands, if it differs by
        band); or a function that makes it of ``da``. Taken as it is, not dilated.
    scl : DataArray, optional
        Scene classification on the same grid, instead of ``mask``: see `cloud_mask`.
    method : {"linear", "previous", "median"}
        ``linear``: the nearest clear dates before and after, weighed by their distance in time
        (in days if time is datetime64, else in dates), or the one of them that there is.
        ``previous``: the last clear date before. ``median``: of all clear dates.
    dilate : int
        Pixels by which the mask from ``scl`` grows.

    Returns
    -------
    DataArray
        Dimensions, dtype, coordinates, attributes and encoding of ``da``. Pixels outside the
        mask are bit for bit what they were, nodata included. Pixels inside depend on nothing
        inside the mask. Where nothing clear is in reach they are nodata: NaN in floats, else
        ``_FillValue`` or 0. Dask arrays stay lazy.

    Raises
    ------
    UnsupportedArrayError
        No time dimension, a mask on another grid, Dask chunks that split time.
    TecError
        An unknown method.

    Notes
    -----
    No uncertainty is given: these methods have none that was calibrated.
    """
    if method == "tec-tt":
        raise TecError(
            "method 'tec-tt' needs the temporal model, which this version does not have; "
            f"use one of {', '.join(METHODS)}"
        )
    if method not in METHODS:
        raise TecError(f"method is {method!r}, it must be one of {', '.join(METHODS)}")
    time = find_dim(da, TIME)
    if time is None:
        raise UnsupportedArrayError(f"no time among the dimensions {da.dims}: nothing to fill from")
    if da.chunks is not None and len(da.chunksizes[time]) > 1:
        name = da.name or "cube"
        raise UnsupportedArrayError(
            f"the Dask chunks of {name!r} hold {da.chunksizes[time][0]} of {da.sizes[time]} dates; "
            f"filling needs all dates of a pixel: {name} = {name}.chunk({{{time!r}: -1}})"
        )
    covered = _resolve_mask(da, mask, scl, dilate)
    axis = da.dims.index(time)
    fill = partial(
        _fill, method=method, axis=axis, moments=_moments(da, time), nodata=_nodata(da)
    )
    if da.chunks is None:
        data = fill(da.values, np.broadcast_to(covered.values, da.shape))
    else:
        import dask.array

        hidden = dask.array.broadcast_to(dask.array.asarray(covered.data), da.shape)
        data = dask.array.map_blocks(fill, da.data, hidden.rechunk(da.chunks), dtype=da.dtype)
    return da.copy(data=data)


def cloud_mask(scl: xr.DataArray, dilate: int = DILATE) -> xr.DataArray:
    """Where the ground is not seen, after the scene classification.

    Parameters
    ----------
    scl : DataArray
        Classes of `tec_zarr.sentinel2.SCL_CLASSES`, with dimensions y and x.
    dilate : int
        Pixels by which saturated pixels, cloud, cirrus and shadow (1, 3, 8, 9, 10) grow, as
        squares. Nodata (0) is masked but does not grow: pixels beside it were measured.

    Returns
    -------
    DataArray of bool
        Lazy where ``scl`` is.
    """
    y, x = find_dim(scl, Y), find_dim(scl, X)
    if y is None or x is None:
        raise UnsupportedArrayError(f"no y and x among the dimensions {scl.dims} of the classes")
    axes = (scl.dims.index(y), scl.dims.index(x))
    grow = partial(_cloudy, axes=axes, radius=dilate)
    if scl.chunks is None:
        return scl.copy(data=grow(scl.values)).drop_attrs()
    import dask.array

    depth = dict.fromkeys(axes, dilate)
    data = dask.array.map_overlap(grow, scl.data, depth=depth, boundary="none", dtype=bool)
    return scl.copy(data=data).drop_attrs()


def _cloudy(classes: np.ndarray, *, axes: tuple[int, int], radius: int) -> np.ndarray:
    hidden = np.isin(classes, sorted(CLOUD_LIKE - {0}))
    for axis in axes:
        hidden = _grow(hidden, axis, radius)
    return hidden | (classes == 0)


def _grow(hidden: np.ndarray, axis: int, radius: int) -> np.ndarray:
    """True within ``radius`` of a True along one axis: windowed sums of a running count."""
    count = np.cumsum(np.moveaxis(hidden, axis, -1), axis=-1, dtype=np.int32)
    count = np.concatenate([np.zeros_like(count[..., :1]), count], axis=-1)
    index = np.arange(hidden.shape[axis])
    high = count[..., np.minimum(index + radius + 1, index.size)]
    return np.moveaxis(high > count[..., np.maximum(index - radius, 0)], -1, axis)


def _resolve_mask(
    da: xr.DataArray, mask: Mask | None, scl: xr.DataArray | None, dilate: int
) -> xr.DataArray:
    """Boolean mask with the dimensions of ``da``, size 1 along those that it does not have."""
    if (mask is None) == (scl is None):
        raise UnsupportedArrayError(
            "pass either mask=, or scl= (the scene classification of the same dates and grid)"
        )
    found = cloud_mask(scl, dilate) if scl is not None else mask(da) if callable(mask) else mask
    assert found is not None
    if found.dtype != bool:
        raise UnsupportedArrayError(f"the mask is {found.dtype}, it must be bool (True = hidden)")
    for dim in found.dims:
        if dim not in da.dims or found.sizes[dim] != da.sizes[dim]:
            raise UnsupportedArrayError(
                f"the mask has {dict(found.sizes)}, the cube {dict(da.sizes)}: bring it to the "
                "cube's dates and grid (mask.reindex_like(cube, method='nearest'))"
            )
        if dim in da.indexes and dim in found.indexes and not da.indexes[dim].equals(
            found.indexes[dim]
        ):
            raise UnsupportedArrayError(f"the mask has other coordinates along {dim!r}")
    missing = {dim: 1 for dim in da.dims if dim not in found.dims}
    return found.variable.set_dims({**found.sizes, **missing}).transpose(*da.dims)


def _moments(da: xr.DataArray, time: str) -> np.ndarray:
    """Days since the first date, or the numbers of the dates."""
    if time in da.coords and da[time].dtype.kind == "M":
        values = da[time].values
        days = (values - values.min()) / np.timedelta64(1, "D")
        if np.all(np.diff(days) > 0):
            return days
        raise UnsupportedArrayError(f"the dates do not rise: cube = cube.sortby({time!r})")
    return np.arange(da.sizes[time], dtype=np.float64)


def _nodata(da: xr.DataArray) -> float:
    if da.dtype.kind == "f":
        return np.nan
    for source in (da.encoding, da.attrs):
        if source.get("_FillValue") is not None:
            return float(source["_FillValue"])
    return float(NODATA)


def _fill(
    values: np.ndarray,
    hidden: np.ndarray,
    *,
    method: str,
    axis: int,
    moments: np.ndarray,
    nodata: float,
) -> np.ndarray:
    """Copy of ``values`` with the hidden ones replaced; time along ``axis``."""
    out = np.array(values)
    cube, result = np.moveaxis(values, axis, 0), np.moveaxis(out, axis, 0)
    hidden = np.moveaxis(hidden, axis, 0)
    missing = np.isnan(cube) if cube.dtype.kind == "f" else cube == nodata
    clear = ~hidden & ~missing
    if method == "median":
        estimate = _median(cube, clear)
        for date in range(len(cube)):
            _put(result[date], hidden[date], estimate, nodata)
        return out
    before = _nearest_clear(clear)
    after = _nearest_clear(clear[::-1])[::-1] if method == "linear" else None
    for date in range(len(cube)):
        if not hidden[date].any():
            continue
        value, known, gap = _take(cube, before[date], moments, date)
        if after is not None:
            last = len(cube) - 1
            later = np.where(after[date] < 0, -1, last - after[date])
            value2, known2, gap2 = _take(cube, later, moments, date)
            both = known & known2
            span = np.where(gap + gap2 > 0, gap + gap2, 1)  # 0 where the date itself is clear
            with np.errstate(invalid="ignore", over="ignore"):  # infinities
                mixed = (value * gap2 + value2 * gap) / span
            value = np.where(both, mixed, np.where(known, value, value2))
            known = known | known2
        _put(result[date], hidden[date], np.where(known, value, np.nan), nodata)
    return out


def _nearest_clear(clear: np.ndarray) -> np.ndarray:
    """Index of the last clear date up to each date, -1 where there is none yet."""
    dates = np.arange(len(clear), dtype=np.int32).reshape(-1, *([1] * (clear.ndim - 1)))
    return np.maximum.accumulate(np.where(clear, dates, np.int32(-1)), axis=0)


def _take(
    cube: np.ndarray, index: np.ndarray, moments: np.ndarray, date: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the dates ``index``, where there are such, and their distance in time."""
    known = index >= 0
    found = np.maximum(index, 0)
    value = np.take_along_axis(cube, found[None], axis=0)[0].astype(np.float64)
    return np.where(known, value, 0.0), known, np.abs(moments[found] - moments[date])


def _median(cube: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Median of the clear dates, NaN where there is none."""
    ranked = np.sort(np.where(clear, cube.astype(np.float64), np.inf), axis=0)
    count = clear.sum(axis=0)
    picks = [np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(cube) - 1)]
    low, high = (np.take_along_axis(ranked, pick[None], axis=0)[0] for pick in picks)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, np.nan)


def _put(result: np.ndarray, hidden: np.ndarray, estimate: np.ndarray, nodata: float) -> None:
    """Write the estimate where hidden, nodata where it is NaN."""
    chosen = estimate[hidden]
    if result.dtype.kind in "iu":
        chosen = np.where(np.isnan(chosen), nodata, np.rint(chosen))
    result[hidden] = chosen.astype(result.dtype)
