"""Overviews: a cube at half the resolution, a quarter, ..., and the GeoZarr attributes of all.

Each level is made of the original pixels, not of the level before. The attributes are those of the
Zarr conventions ``multiscales``, ``spatial:`` and ``proj:`` (github.com/zarr-conventions), which
GeoZarr is made of. The CF grid mapping stays beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import X, Y, chosen_variables, find_dim
from tec_zarr.cubes.encoding import unpacking
from tec_zarr.cubes.geotiff import crs_of
from tec_zarr.cubes.layout import rechunk
from tec_zarr.cubes.nodata import is_nodata, nodata_values, unencoded
from tec_zarr.errors import UnsupportedArrayError

SMALLEST = 256
"""The last level has at most this many pixels along each side."""

#: Name: UUID, repository on GitHub, description.
_CONVENTIONS = {
    "multiscales": (
        "d35379db-88df-4056-af3a-620245f8e347", "zarr-conventions/multiscales",
        "Levels of resolution",
    ),
    "proj:": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f", "zarr-experimental/geo-proj",
        "Coordinate reference system",
    ),
    "spatial:": (
        "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "zarr-conventions/spatial",
        "Where the pixels are",
    ),
}  # fmt: skip


def levels(
    ds: xr.Dataset,
    variables: Iterable[str] | None = None,
    bands: Any = None,
    nodata: Sequence[float] | float | None = 0,
) -> list[xr.Dataset]:
    """Return a cube and its overviews, by halves, down to `SMALLEST` pixels a side.

    Parameters
    ----------
    ds : Dataset
        One grid. Lazy data stay lazy.
    variables, bands, nodata
        As for `tec_zarr.encoding`: which variables are reflectance, and which values mean that
        nothing was measured, beside NaN and what the data declare.

    Returns
    -------
    list of Dataset
        ``ds`` itself first. Reflectance is the mean of the measured original pixels, in the dtype
        of the original; nodata where none was measured. Other variables (classes, masks, angles)
        have the value of one pixel near the middle of the cell. Cells at the end of the image may
        have fewer pixels; coordinates are those of whole cells.

    Raises
    ------
    UnsupportedArrayError
        The variables are on several grids, or have no y and x.
    """
    reflectance = set(chosen_variables(ds, variables, bands))
    y, x = grid_of(ds, reflectance)
    given = [] if nodata is None else np.atleast_1d(nodata).tolist()
    factors = factors_of(ds.sizes[y], ds.sizes[x])[1:]
    return [ds, *(_level(ds, reflectance, (y, x), factor, given) for factor in factors)]


def factors_of(*sides: int) -> list[int]:
    """Return the pixels along each side of a cell, for every level of an image: 1, 2, 4, ..."""
    factors = [1]
    while max(sides) > SMALLEST * factors[-1]:
        factors.append(2 * factors[-1])
    return factors


def grid_of(ds: xr.Dataset, reflectance: Iterable[str]) -> tuple[str, str]:
    """Return the names of the dimensions y and x that all reflectance has."""
    found = {(find_dim(ds[n], Y), find_dim(ds[n], X)) for n in reflectance}
    ((y, x),) = found if len(found) == 1 else {(None, None)}
    if y is None or x is None:
        raise UnsupportedArrayError(
            f"overviews need one grid with y and x, the variables have {sorted(map(str, found))}: "
            "choose some of the variables, or write a store for each grid"
        )
    return y, x


def _level(
    ds: xr.Dataset, reflectance: set[str], grid: tuple[str, str], factor: int, nodata: list[float]
) -> xr.Dataset:
    y, x = grid
    means = {n: _mean(ds[n], {y: factor, x: factor}, nodata) for n in reflectance}
    level = placed(ds, grid, factor).assign(means)
    lazy = any(variable.chunks for variable in level.variables.values())
    return rechunk(level) if lazy else level


def placed(ds: xr.Dataset, grid: tuple[str, str], factor: int) -> xr.Dataset:
    """Return the pixels near the middle of each cell, with the coordinates of the cells.

    Parameters
    ----------
    ds : Dataset
        Lazy data stay lazy.
    grid : tuple of str
        Dimensions y and x.
    factor : int
        Pixels along each side of a cell.
    """
    if factor == 1:
        return ds
    places = {d: middles(ds.sizes[d], factor) for d in grid}
    cells = {d: (d, centres(ds[d].values, factor), ds[d].attrs) for d in grid if d in ds}
    return ds.isel(places).assign_coords(cells)


def middles(size: int, factor: int) -> np.ndarray:
    """Return the position of the pixel near the middle of each cell of an axis."""
    return np.minimum(np.arange(-(-size // factor)) * factor + factor // 2, size - 1)


def centres(values: np.ndarray, factor: int) -> np.ndarray:
    """Return the centres of cells of ``factor`` pixels of a regular axis, in the axis' units."""
    step = (values[-1] - values[0]) / max(1, values.size - 1)
    cells = np.arange(-(-values.size // factor))
    return values[0] + step * (cells * factor + (factor - 1) / 2)


def _mean(da: xr.DataArray, cells: dict[str, int], given: list[float]) -> xr.Variable:
    """Return the mean of the measured samples of each cell, in the dtype of ``da``."""
    floats = da.dtype.kind == "f"
    # The 0 that integers mean by default was measured where floats have NaN.
    declared = unencoded(da) if floats else nodata_values(da)
    nodata = [*declared, *(v for v in given if v == v and (v or not floats))]
    missing = is_nodata(da, nodata, unpacking(da)) if nodata else None
    values = da.variable.astype(np.float64)
    if missing is not None:
        values = values.where(~missing.variable)
    mean = values.coarsen(cells, "mean", boundary="pad")
    fill = nodata[0] if nodata else np.nan
    if not floats:
        mean = mean.round()
        for value in nodata:  # A mean that rounds to one of them was measured all the same.
            mean = mean.where(mean != value, value + 1)
    return mean.fillna(fill).astype(da.dtype)._replace(attrs=da.attrs, encoding=dict(da.encoding))


def group_attributes(pyramid: Sequence[xr.Dataset], names: Sequence[str]) -> dict[str, Any]:
    """Return the attributes of the group that holds the groups of all levels.

    Parameters
    ----------
    pyramid : sequence of Dataset
        From `levels`.
    names : sequence of str
        The group of each level.

    Returns
    -------
    dict
        ``zarr_conventions``, ``multiscales`` with a ``layout`` that gives shape and affine
        transform of each level in the units of the coordinates, ``proj:``, ``spatial:``.
    """
    layout: list[dict[str, Any]] = []
    for n, (ds, name) in enumerate(zip(pyramid, names, strict=True)):
        spatial = _spatial(ds)
        entry: dict[str, Any] = {"asset": name, "transform": {"scale": [1.0, 1.0]}}
        entry |= {key: spatial[key] for key in ("spatial:shape", "spatial:transform")}
        if n:
            entry |= {"derived_from": names[0], "transform": {"scale": [float(2**n)] * 2}}
        layout.append(entry)
    spatial = _spatial(pyramid[0])
    whole = {key: spatial[key] for key in ("spatial:dimensions", "spatial:bbox")}
    return {
        "multiscales": {"layout": layout, "resampling_method": "average"},
        **_conventions("multiscales", pyramid[0]), **whole, **_projection(pyramid[0]),
    }  # fmt: skip


def level_attributes(ds: xr.Dataset) -> dict[str, Any]:
    """Return the attributes of the group of one level: ``spatial:`` and ``proj:``."""
    return {**_conventions(None, ds), **_spatial(ds), **_projection(ds)}


def _conventions(first: str | None, ds: xr.Dataset) -> dict[str, Any]:
    names = [first] if first else []
    names += ["proj:"] if _projection(ds) else []
    return {"zarr_conventions": [
        {
            "uuid": uuid, "name": name, "description": description,
            "schema_url": f"https://raw.githubusercontent.com/{page}/refs/tags/v1/schema.json",
            "spec_url": f"https://github.com/{page}/blob/v1/README.md",
        }
        for name in (*names, "spatial:") for uuid, page, description in [_CONVENTIONS[name]]
    ]}  # fmt: skip


def _spatial(ds: xr.Dataset) -> dict[str, Any]:
    y, x = (next(str(d) for d in ds.dims if str(d).lower() in names) for names in (Y, X))
    steps, corners = {}, {}
    for d in (y, x):
        values = ds[d].values.astype(np.float64)
        steps[d] = float((values[-1] - values[0]) / (values.size - 1)) if values.size > 1 else 1.0
        corners[d] = float(values[0]) - steps[d] / 2
    far = {d: corners[d] + steps[d] * ds.sizes[d] for d in (y, x)}
    low, high = ({d: f(corners[d], far[d]) for d in (y, x)} for f in (min, max))
    return {
        "spatial:dimensions": [y, x],
        "spatial:shape": [ds.sizes[y], ds.sizes[x]],
        "spatial:transform": [steps[x], 0.0, corners[x], 0.0, steps[y], corners[y]],
        "spatial:bbox": [low[x], low[y], high[x], high[y]],
        "spatial:registration": "pixel",
    }


def _projection(ds: xr.Dataset) -> dict[str, str]:
    """Return ``proj:code`` or ``proj:wkt2`` of a cube; nothing if it does not say its CRS."""
    image = next(da for da in ds.data_vars.values() if find_dim(da, Y))
    crs = crs_of(image, ds)
    if isinstance(crs, xr.DataArray):
        code = int(crs) if crs.dtype.kind in "iu" and crs.ndim == 0 else 0
        wkt = crs.attrs.get("crs_wkt") or crs.attrs.get("spatial_ref")
        known = {"proj:code": f"EPSG:{code}"} if code else {}
        return known or ({"proj:wkt2": str(wkt)} if wkt else {})
    if isinstance(crs, int) or str(crs).upper().startswith("EPSG:"):
        return {"proj:code": f"EPSG:{str(crs).upper().removeprefix('EPSG:')}"}
    return {"proj:wkt2": crs} if isinstance(crs, str) else {}
