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

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import BAND, TIME, X, XrObject, Y, find_dim, reflectance_names, word
from tec_zarr.cubes.nodata import fits, nodata_values
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.inpaint import pixelwise, tiles
from tec_zarr.inpaint.masks import DILATE, Given, Mask, resolve_mask
from tec_zarr.inpaint.pixelwise import How, fill_pixels
from tec_zarr.inpaint.samples import COVERAGE, Times
from tec_zarr.inpaint.tiles import HALO, fill_tiles
from tec_zarr.sentinel2 import NODATA

if TYPE_CHECKING:
    from typing import Literal

    from tec_zarr.terracodec.codec import FamilyModel

__all__ = ["METHODS", "NothingClearWarning", "inpaint_clouds"]

METHODS = (*(name for name in tiles.METHODS if name != tiles.PUBLISHED), *pixelwise.METHODS)
"""The methods that need no published model."""

SEAM = 16
"""Pixels on both sides of a border of Dask chunks over which their estimates are blended."""

_Axes = tuple[int, int | None, int | None, int | None]


class NothingClearWarning(UserWarning):
    """Masked pixels stay nodata, because no clear date or pixel is in reach."""


@overload
def inpaint_clouds(
    obj: XrObject,
    mask: Mask | None = ...,
    *,
    scl: xr.DataArray | None = ...,
    method: str = ...,
    dilate: int = ...,
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
        Pixels outside the mask keep their exact values, nodata included. Pixels inside the mask
        depend only on values outside it. If no clear data are in reach they are nodata: NaN in
        floats, else the value that the array declares (``_FillValue``, ``nodata``, ...) or 0. Dask
        arrays stay lazy.
    DataArray or Dataset
        Only with ``return_uncertainty``: the half widths, float32 in units of ``obj``. They are 0
        outside the mask, and NaN where there is no estimate or no clear data to calibrate with.

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
    if method == tiles.PUBLISHED and model is None:
        raise TecError(
            f"method={method!r} fills with a published model: pass model=, its name and lambda "
            f"or a loaded one. Methods without a model are {', '.join(METHODS)}"
        )
    if method not in (*METHODS, tiles.PUBLISHED):
        raise TecError(f"method is {method!r}, it must be one of {', '.join(METHODS)}")
    if model is not None and method != tiles.PUBLISHED:
        raise TecError(f"model={model!r} goes with method='tec-tt', not with {method!r}")
    how = How(method, model, return_uncertainty, progress)
    given = mask(obj) if callable(mask) else mask
    if given is None and mask is not None:
        raise UnsupportedArrayError("the function given as mask= returned None, not a mask")
    if isinstance(obj, xr.Dataset):
        return _inpaint_dataset(obj, given, scl, dilate, how)
    filled, half_width = _inpaint(obj, resolve_mask(obj, given, scl, dilate), how)
    return (filled, half_width) if return_uncertainty else filled


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
            filled[name] = ds[name].copy(data=done.data[n])
            wide[name] = None if half_width is None else _like(ds[name], half_width.data[n])
    out = ds.assign(filled)
    return (out, xr.Dataset({n: wide[n] for n in names})) if how.uncertain else out


def _alike(ds: xr.Dataset, names: Sequence[Any]) -> list[list[Any]]:
    """Group variables to fill together: bands in separate variables of the same shape and kind."""
    groups: dict[Any, list[Any]] = {}
    for name in names:
        da = ds[name]
        alone = find_dim(da, BAND) is not None
        key = name if alone else (da.dims, da.shape, da.dtype, da.chunks, _nodata_of(da))
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
    axes = cast(_Axes, (da.dims.index(time), *others))
    labels = [str(v)[:10] for v in da[time].values]
    wide = np.dtype("f4") if da.dtype in (np.uint8, np.uint16, np.int16, np.float32) else "f8"
    estimate = partial(
        _estimate, how=how, axes=axes, times=_times(da, time), nodata=_nodata_of(da),
        labels=labels, dtype=np.dtype(wide), bands=_bands(da),
    )  # fmt: skip
    merge = partial(_merge, nodata=_nodata_of(da))
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
    half_width = _like(da, found[1].astype("f4")) if how.uncertain else None
    return da.copy(data=data), half_width


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


def _like(da: xr.DataArray, half_width: Any) -> xr.DataArray:
    out = da.copy(data=half_width).drop_attrs()
    out.encoding = {k: v for k, v in da.encoding.items() if k == "grid_mapping"}
    out.attrs = {"long_name": f"half width of the {COVERAGE:.0%} interval"}
    return out


def _bands(da: xr.DataArray) -> tuple[str, ...] | None:
    dim = find_dim(da, BAND)
    return tuple(word(b) for b in da[dim].values) if dim is not None and dim in da.coords else None


def _times(da: xr.DataArray, time: str) -> Times:
    """Days since the first date, or the positions of the dates if time is not datetime64."""
    if time in da.coords and da[time].dtype.kind == "M":
        values = da[time].values
        if np.isnat(values).any():
            raise UnsupportedArrayError(
                f"date {int(np.isnat(values).argmax())} is NaT, which has no place between others: "
                f"leave it out, cube = cube.isel({time}=cube[{time!r}].notnull()), in cube and mask"
            )
        days = (values - values.min()) / np.timedelta64(1, "D")
        if np.all(np.diff(days) > 0):
            return Times(days, dated=True)
        dates, counts = np.unique(values, return_counts=True)
        if counts.max() > 1:
            raise UnsupportedArrayError(
                f"{counts.max()} dates are {dates[counts.argmax()]}: merge them, or keep the first "
                f"of equal dates, cube = cube.drop_duplicates({time!r}), in cube and mask"
            )
        raise UnsupportedArrayError(f"the dates do not rise: cube = cube.sortby({time!r})")
    return Times(np.arange(da.sizes[time], dtype=np.float64), dated=False)


# ---- blocks as NumPy arrays


def _estimate(
    values: np.ndarray,
    hidden: np.ndarray,
    *,
    how: How,
    axes: _Axes,
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
        cube, open_, cover = (_canonical(v, axes) for v in (values, clear, hidden))
        fill_tiles(cube, open_, cover, pages if axes[1] is not None else pages[:, :, None],
                    times, how, bands)  # fmt: skip
    else:
        cube, open_, cover = (np.moveaxis(v, axes[0], 0) for v in (values, clear, hidden))
        fill_pixels(cube, open_, cover, np.moveaxis(found, axes[0] + 1, 1), times.stamps,
                    how)  # fmt: skip
    if how.uncertain:
        found[1][~hidden] = 0
    _warn_of_nothing(np.moveaxis(hidden, axes[0], 0), np.moveaxis(found[0], axes[0], 0), labels)
    return found


def _nodata_of(da: xr.DataArray) -> tuple[float, ...]:
    """Nodata values besides NaN; integers that declare none have 0."""
    found = tuple(v for v in nodata_values(da) if fits(v, da.dtype))
    return found or ((float(NODATA),) if da.dtype.kind in "iu" else ())


def _ranks(axes: _Axes) -> list[int]:
    return list(range(1, 1 + sum(a is not None for a in axes)))


def _canonical(values: np.ndarray, axes: _Axes) -> np.ndarray:
    """View of an array as (T, C, H, W)."""
    there = [a for a in axes if a is not None]
    turned = np.moveaxis(values, there, range(len(there)))
    return turned if axes[1] is not None else turned[:, None]


def _merge(
    values: np.ndarray, hidden: np.ndarray, estimate: np.ndarray, *, nodata: tuple[float, ...]
) -> np.ndarray:
    """Copy of ``values`` with the hidden ones replaced by their estimates.

    In integers, the first value of ``nodata`` replaces samples without an estimate.
    """
    out = np.array(values)
    chosen = estimate[hidden]
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        whole = np.rint(chosen).clip(limits.min, limits.max)
        for value in nodata:  # an estimate that equals a nodata value moves by 1
            whole[whole == value] = value + (1 if value < limits.max else -1)
        chosen = np.where(np.isnan(chosen), nodata[0], whole)
    out[hidden] = chosen.astype(out.dtype)
    return out


def _warn_of_nothing(hidden: np.ndarray, found: np.ndarray, labels: Sequence[str]) -> None:
    names = [
        label
        for label, cover, estimate in zip(labels, hidden, found, strict=True)
        if cover.any() and np.isnan(estimate[cover]).all()
    ]
    if names:
        dates = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        warnings.warn(
            f"nothing clear is in reach of what is masked on {dates}: it stays nodata",
            NothingClearWarning,
            stacklevel=2,
        )
