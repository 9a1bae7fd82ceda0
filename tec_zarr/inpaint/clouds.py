"""Fill clouds from clear pixels: `inpaint_clouds` for xarray objects, in memory or lazy.

``regression`` estimates the ground under the clouds of a date from other dates, before and after,
and from the clear pixels of the date itself (:mod:`tec_zarr.inpaint.regression`). ``linear``,
``previous`` and ``median`` combine the clear dates of the same pixel
(:mod:`tec_zarr.inpaint.pixelwise`). ``tec-tt`` asks a published model. Pixels outside the mask do
not change. Values inside the mask are never used. Masked pixels without clear data in reach become
nodata.

This module prepares the arrays, splits and blends Dask chunks, and merges the estimates into the
cube.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import BAND, TIME, X, XrObject, Y, find_dim, reflectance_names, word
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.inpaint import pixelwise, tiles
from tec_zarr.inpaint.blocks import (
    Axes,
    NothingClearWarning,
    canonical,
    half_widths_like,
    merged,
    nodata_of,
    times_of,
    warn_of_nothing,
)
from tec_zarr.inpaint.masks import DILATE, Given, Mask, resolve_mask
from tec_zarr.inpaint.pixelwise import How, fill_pixels
from tec_zarr.inpaint.samples import Times
from tec_zarr.inpaint.smoothing import smooth_series
from tec_zarr.inpaint.tiles import HALO, fill_tiles

if TYPE_CHECKING:
    from typing import Literal

    from tec_zarr.terracodec.codec import FamilyModel

__all__ = ["METHODS", "NothingClearWarning", "inpaint_clouds"]

METHODS = (*(name for name in tiles.METHODS if name != tiles.PUBLISHED), *pixelwise.METHODS)
"""The methods that need no published model."""

SEAM = 16
"""Pixels on both sides of a border of Dask chunks over which their estimates are blended."""


@overload
def inpaint_clouds(
    obj: XrObject,
    mask: Mask | None = ...,
    *,
    scl: xr.DataArray | None = ...,
    method: str = ...,
    dilate: int = ...,
    smooth: bool = ...,
    return_uncertainty: Literal[False] = ...,
    model: str | FamilyModel | None = ...,
    progress: bool = ...,
) -> XrObject: ...
@overload
def inpaint_clouds(
    obj: XrObject,
    mask: Mask | None = ...,
    *,
    scl: xr.DataArray | None = ...,
    method: str = ...,
    dilate: int = ...,
    smooth: bool = ...,
    return_uncertainty: bool,
    model: str | FamilyModel | None = ...,
    progress: bool = ...,
) -> Any: ...
def inpaint_clouds(
    obj: Any,
    mask: Mask | None = None,
    *,
    scl: xr.DataArray | None = None,
    method: str = "regression",
    dilate: int = DILATE,
    smooth: bool = False,
    return_uncertainty: bool = False,
    model: str | FamilyModel | None = None,
    progress: bool = False,
) -> Any:
    """Replace masked pixels by an estimate from clear ones.

    Parameters
    ----------
    obj : DataArray or Dataset
        Cube with time, y and x, in any order, with or without bands. DN or reflectance. In a
        Dataset, every reflectance variable is filled. Bands that are separate variables are filled
        together, as one cube.
    mask : DataArray or ndarray of bool, or callable, optional
        True where the ground is not seen. It has time, y and x, and bands if it differs by band.
        An ndarray has the dimension order of the cube. A function is called once with ``obj``,
        DataArray or Dataset, and returns the mask. The mask is not dilated.
    scl : DataArray, optional
        Scene classification on the same grid, instead of ``mask``: see
        `tec_zarr.inpaint.masks.cloud_mask`. By default the variable ``scl`` (or ``SCL``) of a
        Dataset.
    method : {"regression", "linear", "previous", "median", "tec-tt"}
        ``regression``: map the spectra of other dates to this date by a regression on clear pixels
        (see :mod:`tec_zarr.inpaint.regression`). ``linear``: interpolate between the nearest
        clear dates before and after, by their distance in time (in days if time is datetime64,
        else in dates); if only one of them exists, take that one. ``previous``: take the last
        clear date before. ``median``: take the median of all clear dates. ``tec-tt``: ask the
        published TerraCodec TT given as ``model``.
    dilate : int
        Pixels by which the mask from ``scl`` grows.
    smooth : bool
        Smooth the filled series over time (see :mod:`tec_zarr.inpaint.smoothing`). **Then pixels
        outside the mask change too.** `tec_zarr.regularize` does it at equal steps of time.
    return_uncertainty : bool
        Also return the half width of the interval that holds the truth in nine of ten cases.
    model : str or FamilyModel, optional
        For ``tec-tt``, which needs it: a published model. Give its name and lambda
        (``"terracodec_v1_tt_s2l2a/lambda-20"``: the weights must be on this machine, see
        `tec_zarr.terracodec.hub`), or the result of `tec_zarr.terracodec.hub.load_codec`.
    progress : bool
        Show a progress bar. For lazy arrays, use ``with dask.diagnostics.ProgressBar():`` instead.

    Returns
    -------
    DataArray or Dataset
        The filled data, with dimensions, dtype, coordinates, attributes and encoding of ``obj``.
        Without ``smooth``, pixels outside the mask keep their exact values, nodata included. Pixels
        inside the mask depend only on values outside it. If no clear data are in reach they are
        nodata: NaN in floats, else the value that the array declares (``_FillValue``, ``nodata``,
        ...) or 0. Dask arrays stay lazy.
    DataArray or Dataset
        Only with ``return_uncertainty``: the half widths, float32 in units of ``obj``. They are 0
        outside the mask (without ``smooth``), and NaN where there is no estimate or no clear data
        to calibrate with.

    Raises
    ------
    UnsupportedArrayError
        No time dimension, a mask on another grid, Dask chunks that split time or bands, a
        Dataset without reflectance.
    TecError
        An unknown method, ``tec-tt`` without ``model``, or ``model`` with another method.

    Warns
    -----
    NothingClearWarning
        Pixels stay nodata; the message lists the dates. Lazy arrays warn when they are computed.

    Notes
    -----
    ``regression`` and ``tec-tt`` work on one tile of 256 x 256 pixels at a time. They also use a
    margin of 32 pixels around it, and blend neighbouring tiles. Dask chunks use up to 32 pixels of
    their neighbours (at most the size of the smallest chunk). They are blended over 16 pixels on
    both sides of their borders.
    """
    return fill(
        obj, mask, scl=scl, method=method, dilate=dilate, model=model, progress=progress,
        uncertain=return_uncertainty, smooth=smooth, dates=None,
    )  # fmt: skip


def fill(
    obj: Any,
    mask: Mask | None,
    *,
    scl: xr.DataArray | None,
    method: str,
    dilate: int,
    model: str | FamilyModel | None,
    progress: bool,
    uncertain: bool,
    smooth: bool,
    dates: np.ndarray | None,
) -> Any:
    """Fill, and smooth if wanted, at other ``dates`` if given: see `inpaint_clouds`."""
    if method == tiles.PUBLISHED and model is None:
        raise TecError(
            f"method={method!r} fills with a published model: pass model=, its name and lambda "
            f"or a loaded one. Methods without a model are {', '.join(METHODS)}"
        )
    if method not in (*METHODS, tiles.PUBLISHED):
        raise TecError(f"method is {method!r}, it must be one of {', '.join(METHODS)}")
    if model is not None and method != tiles.PUBLISHED:
        raise TecError(f"model={model!r} goes with method='tec-tt', not with {method!r}")
    how = How(method, model, uncertain, progress, smooth, dates)
    given = mask(obj) if callable(mask) else mask
    if given is None and mask is not None:
        raise UnsupportedArrayError("the function given as mask= returned None, not a mask")
    if isinstance(obj, xr.Dataset):
        return _inpaint_dataset(obj, given, scl, dilate, how)
    filled, half_width = _inpaint(obj, resolve_mask(obj, given, scl, dilate), how)
    return (filled, half_width) if uncertain else filled


def _inpaint_dataset(
    ds: xr.Dataset, mask: Given | None, scl: xr.DataArray | None, dilate: int, how: How
) -> Any:
    if mask is None and scl is None:
        scl = next((ds[n] for n in ds.data_vars if str(n).lower() == "scl"), None)
    names = [n for n in ds.data_vars if n in reflectance_names(ds)]
    if not names:
        raise UnsupportedArrayError(
            f"none of {list(ds.data_vars)} looks like Sentinel-2 reflectance: take the variable to "
            "fill, ds['name'].tec.inpaint_clouds(...)"
        )
    filled: dict[Any, xr.DataArray] = {}
    wide: dict[Any, xr.DataArray | None] = {}
    for group in _alike(ds, names):
        first = ds[group[0]]
        if len(group) == 1:
            covered = resolve_mask(first, mask, scl, dilate)
            filled[group[0]], wide[group[0]] = _inpaint(first, covered, how)
            continue
        cube = xr.Variable.concat([ds[n].variable for n in group], "band")
        stacked = xr.DataArray(cube, {**first.coords, "band": group}, name="cube")
        stacked.encoding = first.encoding
        if stacked.chunks is not None:
            stacked = stacked.chunk(band=-1)
        done, half_width = _inpaint(stacked, resolve_mask(stacked, mask, scl, dilate), how)
        for n, name in enumerate(group):
            own = done.isel(band=n, drop=True).rename(name)
            own.attrs, own.encoding = ds[name].attrs, {**ds[name].encoding}
            filled[name] = own if how.smooth else ds[name].copy(data=done.data[n])
            wide[name] = (
                half_width
                if half_width is None
                else half_widths_like(filled[name], half_width.data[n])
            )
    if how.dates is None:
        out = ds.assign(filled)
    else:
        out = ds.drop_dims(cast(str, find_dim(ds[names[0]], TIME))).assign(filled)
    return (out, xr.Dataset({n: wide[n] for n in names})) if how.uncertain else out


def _alike(ds: xr.Dataset, names: Sequence[Any]) -> list[list[Any]]:
    """Group variables to fill together: bands in separate variables of the same shape and kind."""
    groups: dict[Any, list[Any]] = {}
    for name in names:
        da = ds[name]
        alone = find_dim(da, BAND) is not None
        key = name if alone else (da.dims, da.shape, da.dtype, da.chunks, nodata_of(da))
        groups.setdefault(str(key), []).append(name)
    return list(groups.values())


def _inpaint(
    da: xr.DataArray, covered: xr.DataArray, how: How
) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Return the filled array, and its half widths or None if they are not wanted."""
    time = cast(str, find_dim(da, TIME))
    spatial = how.method in tiles.METHODS
    order = [find_dim(da, names) for names in (TIME, BAND, Y, X)]
    if spatial and (None in order[2:] or len([d for d in order if d]) != da.ndim):
        raise UnsupportedArrayError(
            f"{how.method!r} takes cubes of time, band, y and x, not of {da.dims}"
        )
    for dim in order[:2] if spatial else [time]:
        if dim and da.chunks is not None and len(da.chunksizes[dim]) > 1:
            name = da.name or "cube"
            raise UnsupportedArrayError(
                f"the Dask chunks of {name!r} hold {da.chunksizes[dim][0]} of {da.sizes[dim]} "
                f"along {dim!r}; filling needs all of them: {name} = {name}.chunk({{{dim!r}: -1}})"
            )
    _, *others = (None if d is None else da.dims.index(d) for d in order)
    axes = cast(Axes, (da.dims.index(time), *others))
    labels = [str(v)[:10] for v in da[time].values]
    wide = np.dtype("f4") if da.dtype in (np.uint8, np.uint16, np.int16, np.float32) else "f8"
    estimate = partial(
        _estimate, how=how, axes=axes, times=times_of(da, time), nodata=nodata_of(da),
        labels=labels, dtype=np.dtype(wide), bands=_bands(da),
    )  # fmt: skip
    merge = partial(merged, nodata=nodata_of(da))
    if da.chunks is None:
        hidden: Any = np.broadcast_to(covered.values, da.shape)
        found: Any = estimate(da.values, hidden)
        data = merge(da.values, hidden, found[0])
    else:
        import dask.array
        from dask.array import overlap

        hidden = dask.array.broadcast_to(dask.array.asarray(covered.data), da.shape)
        hidden = hidden.rechunk(da.chunks)
        space = dict.fromkeys(range(da.ndim), 0)
        if spatial:
            space |= {a: min(HALO, *da.chunks[a]) for a in axes[2:] if a is not None}
        wider = [overlap.overlap(x, depth=space, boundary="none") for x in (da.data, hidden)]
        pages = 1 + how.uncertain
        found = dask.array.map_blocks(
            estimate, *wider, dtype=wide, new_axis=0, chunks=((pages,), *wider[0].chunks),
            meta=np.empty((0,) * (da.ndim + 1), wide),
        )  # fmt: skip
        meet = {a + 1: min(SEAM, n) for a, n in space.items()}
        beyond = {0: 0, **{a + 1: n - meet[a + 1] for a, n in space.items()}}
        found = overlap.trim_internal(found, beyond, boundary="none")
        for axis in (a for a, n in meet.items() if n):
            found = _meet_neighbours(found, axis, meet[axis])
        found = overlap.trim_internal(found, {0: 0, **meet}, boundary="none")
        data = dask.array.map_blocks(merge, da.data, hidden, found[0], dtype=da.dtype)
    filled = da.copy(data=data)
    if how.smooth:
        return smooth_series(filled, covered, how.dates, how.uncertain)
    return filled, half_widths_like(da, found[1].astype("f4")) if how.uncertain else None


def _meet_neighbours(found: Any, axis: int, reach: int) -> Any:
    """Blend the estimates of neighbouring Dask chunks where they overlap.

    Each chunk extends ``reach`` pixels into its neighbours along ``axis``. Chunks get copies of
    the overlapping strips of their neighbours, because views would keep every chunk of a row in
    memory.
    """
    import dask.array

    count = found.numblocks[axis]
    if count == 1:
        return found

    def strips(place: slice, kept: slice) -> Any:
        """Strips of the neighbours, one for each block; NaN at the end without a neighbour."""
        sizes = list(found.chunks)
        sizes[axis] = (2 * reach,) * count
        cut = partial(_strip, axis=axis, place=place)
        there = found.map_blocks(cut, dtype=found.dtype, chunks=tuple(sizes))
        sizes[axis] = (2 * reach,)
        shape = tuple(sum(n) for n in sizes)
        none = dask.array.full(shape, np.nan, found.dtype, chunks=tuple(sizes))
        there = there.blocks[(slice(None),) * axis + (kept,)]
        parts = [none, there] if kept.start is None else [there, none]
        return dask.array.concatenate(parts, axis=axis)

    before = strips(slice(-2 * reach, None), slice(None, -1))
    after = strips(slice(None, 2 * reach), slice(1, None))
    blend = partial(_blend, axis=axis, reach=reach)
    return dask.array.map_blocks(
        blend, found, before, after, dtype=found.dtype, chunks=found.chunks
    )


def _strip(block: np.ndarray, *, axis: int, place: slice) -> np.ndarray:
    return block[(slice(None),) * axis + (place,)].copy()


def _blend(
    own: np.ndarray, before: np.ndarray, after: np.ndarray, *, axis: int, reach: int
) -> np.ndarray:
    """Blend ``own`` with the strips of its neighbours; their share grows towards the neighbour."""
    out = own.copy()
    turned = np.moveaxis(out, axis, -1)
    rise = ((np.arange(2 * reach) + 0.5) / (2 * reach)).astype(own.dtype)
    for place, other, share in (
        (slice(None, 2 * reach), before, 1 - rise),
        (slice(-2 * reach, None), after, rise),
    ):
        mine, theirs = turned[..., place], np.moveaxis(other, axis, -1)
        both = mine + share * (theirs - mine)  # in this form, equal values stay exactly equal
        both = np.where(np.isnan(mine), theirs, both)
        turned[..., place] = np.where(np.isnan(theirs), mine, both)
    return out


def _bands(da: xr.DataArray) -> tuple[str, ...] | None:
    dim = find_dim(da, BAND)
    return tuple(word(b) for b in da[dim].values) if dim is not None and dim in da.coords else None


# ---- blocks as NumPy arrays


def _estimate(
    values: np.ndarray,
    hidden: np.ndarray,
    *,
    how: How,
    axes: Axes,
    times: Times,
    nodata: tuple[float, ...],
    labels: Sequence[str],
    dtype: np.dtype,
    bands: tuple[str, ...] | None,
) -> np.ndarray:
    """Estimate the hidden samples of a block.

    Returns an array (1 or 2, *shape): the estimates, NaN where there is none, then the half widths
    if they are wanted. At other samples the estimates are arbitrary and the half widths are 0.
    """
    found = np.full((1 + how.uncertain, *values.shape), np.nan, dtype)
    if values.size == 0:
        return found
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    for value in nodata:
        missing |= values == value
    clear = ~hidden & ~missing
    pages = np.moveaxis(found, [a + 1 for a in axes if a is not None and a >= 0], _ranks(axes))
    if how.method in tiles.METHODS:
        cube, open_, cover = (canonical(v, axes) for v in (values, clear, hidden))
        fill_tiles(cube, open_, cover, pages if axes[1] is not None else pages[:, :, None],
                    times, how, bands)  # fmt: skip
    else:
        cube, open_, cover = (np.moveaxis(v, axes[0], 0) for v in (values, clear, hidden))
        fill_pixels(cube, open_, cover, np.moveaxis(found, axes[0] + 1, 1), times.stamps,
                    how)  # fmt: skip
    if how.uncertain:
        found[1][~hidden] = 0
    warn_of_nothing(np.moveaxis(hidden, axes[0], 0), np.moveaxis(found[0], axes[0], 0), labels)
    return found


def _ranks(axes: Axes) -> list[int]:
    return list(range(1, 1 + sum(a is not None for a in axes)))
