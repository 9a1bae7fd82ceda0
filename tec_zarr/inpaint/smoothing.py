"""Series without gaps: a weighted mean over time of every pixel, at dates that may be chosen.

The weights are those of hidden dates (:mod:`tec_zarr.inpaint.kriging`). They smooth, because the
rules give each date a share that it has with no other.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tec_zarr.cubes.dims import BAND, TIME, find_dim
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.inpaint.blocks import half_widths_like, merged, nodata_of, times_of
from tec_zarr.inpaint.kriging import Rules
from tec_zarr.inpaint.samples import Times
from tec_zarr.metrics import dn_per_unit

SEEN = 0.1
"""Least share of clear pixels of a date whose filled pixels count as measured.

What was filled into other dates comes from time alone and says nothing new."""

_SHAPED = ("chunks", "preferred_chunks", "shards", "original_shape", "source")


def smooth_series(
    filled: xr.DataArray,
    covered: Any,
    dates: NDArray[np.datetime64] | None,
    uncertain: bool,
) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Smooth a filled cube over time.

    Parameters
    ----------
    filled : DataArray
        The cube after filling. Its Dask chunks hold all dates and bands.
    covered : Variable of bool
        Where it was filled, with its dimensions (size 1 where all are alike).
    dates : ndarray of datetime64, optional
        The dates to estimate, by default those of the cube.
    uncertain : bool
        Whether half widths are wanted.

    Returns
    -------
    DataArray
        With ``dates`` along time. Every value is an estimate. Coordinates along time are left out,
        if there are other dates. Pixels that are never clear are nodata.
    DataArray or None
        Half widths, float32.
    """
    time = str(find_dim(filled, TIME))
    times = times_of(filled, time)
    moments = times.stamps
    if dates is not None:
        if not times.dated:
            raise UnsupportedArrayError(
                f"a series at other dates needs times, and {time!r} is no datetime64: give the "
                f"dates, cube.assign_coords({time}=...)"
            )
        moments = (dates - filled[time].values.min()) / np.timedelta64(1, "D")
    band = find_dim(filled, BAND)
    axis = filled.dims.index(time)
    smooth = partial(
        _smooth, axis=axis, band=None if band is None else filled.dims.index(band), times=times,
        moments=moments, nodata=nodata_of(filled), uncertain=uncertain,
    )  # fmt: skip
    whole = partial(_whole, kind=filled.dtype, nodata=nodata_of(filled))
    if filled.chunks is None:
        found: Any = smooth(filled.values, np.broadcast_to(covered.values, filled.shape))
        data = whole(found[0])
    else:
        import dask.array

        hidden = dask.array.broadcast_to(dask.array.asarray(covered.data), filled.shape)
        sizes = list(filled.chunks)
        sizes[axis] = (len(moments),)
        found = dask.array.map_blocks(
            smooth, filled.data, hidden.rechunk(filled.chunks), dtype="f4", new_axis=0,
            chunks=((1 + uncertain,), *sizes), meta=np.empty((0,) * (filled.ndim + 1), "f4"),
        )  # fmt: skip
        data = found[0].map_blocks(whole, dtype=filled.dtype)
    out = filled.copy(data=data) if dates is None else _at(filled, time, dates, data)
    return out, half_widths_like(out, found[1]) if uncertain else None


def _at(da: xr.DataArray, time: str, dates: NDArray[np.datetime64], data: Any) -> xr.DataArray:
    """``data`` with what ``da`` says of the other dimensions."""
    coords = {n: c for n, c in da.coords.items() if time not in c.dims}
    stamps = xr.Variable((time,), dates, da[time].attrs)
    out = xr.DataArray(data, {**coords, time: stamps}, da.dims, da.name, da.attrs)
    out.encoding = {k: v for k, v in da.encoding.items() if k not in _SHAPED}
    return out


def _whole(estimate: np.ndarray, *, kind: np.dtype, nodata: tuple[float, ...]) -> np.ndarray:
    everywhere = np.ones(estimate.shape, bool)
    return merged(np.zeros(estimate.shape, kind), everywhere, estimate, nodata=nodata)


def _smooth(
    values: np.ndarray,
    hidden: np.ndarray,
    *,
    axis: int,
    band: int | None,
    times: Times,
    moments: NDArray[np.float64],
    nodata: tuple[float, ...],
    uncertain: bool,
) -> np.ndarray:
    """Estimates of a block at ``moments`` along ``axis``, then half widths if they are wanted."""
    shape = list(values.shape)
    shape[axis] = len(moments)
    found = np.full((1 + uncertain, *shape), np.nan, np.float32)
    if values.size == 0:
        return found
    there = [a for a in (axis, band) if a is not None]
    pages = np.moveaxis(found, [a + 1 for a in there], range(1, 1 + len(there)))
    cube, cover = (np.moveaxis(v, there, range(len(there))) for v in (values, hidden))
    if band is None:
        cube, cover, pages = cube[:, None], cover[:, None], pages[:, :, None]
    rest = cube.shape[2:]
    cube, cover = (v.reshape(*v.shape[:2], -1) for v in (cube, cover))
    known = np.isfinite(cube) if cube.dtype.kind == "f" else np.ones(cube.shape, bool)
    for value in nodata:
        known &= cube != value
    measured = (known & ~cover).mean((1, 2)) >= SEEN
    known &= measured[:, None, None] | ~cover
    used = np.flatnonzero(known.any((0, 2)))
    if not len(used):
        return found
    open_ = np.logical_and.reduce(known[:, used], axis=1)
    unit = np.float32(dn_per_unit(cube[known]) if cube.dtype.kind == "f" else 1)
    flat = cube[:, used].astype(np.float32) * unit
    for place, moment in enumerate(moments):
        rules = Rules.of(flat, open_, float(moment), times)
        estimate, deviation = rules.estimate(flat, open_)
        pages[0, place, used] = (estimate / unit).reshape(-1, *rest)
        if uncertain:
            half_width = deviation * rules.factor(flat, open_) / unit
            pages[1, place, used] = half_width.reshape(-1, *rest)
    return found
