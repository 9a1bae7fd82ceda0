"""Make a canonical cube from data that stackstac, odc-stac or an EOPF product gives.

A canonical cube holds DN without the offset of baseline 04.00 (:mod:`tec_zarr.stac.offset`),
0 = nodata, canonical band names, and the scene classes as a second variable. The form of the data
shows where they come from; none of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import BAND, TIME, X, Y, find_dim
from tec_zarr.cubes.geotiff import crs_of
from tec_zarr.cubes.layout import rechunk
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import BANDS, DN_PER_REFLECTANCE, NODATA, band_names
from tec_zarr.stac.eopf import flatten
from tec_zarr.stac.offset import REMOVED, item_record, items_of_date, known_band, remove_offset

__all__ = ["harmonize", "prepare", "to_reflectance"]


def prepare(
    obj: xr.DataArray | xr.Dataset | xr.DataTree,
    *,
    items: Iterable[Any] | None = None,
    offset: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Make the canonical cube of loaded data, in Dask chunks that suit TEC.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        A stackstac array (float64 reflectance with NaN, or DN; SCL may be one of its bands), an
        odc-stac Dataset of bands, or an EOPF product as ``xarray.open_datatree`` gives it.
    items : iterable of pystac.Item or dict, optional
        Items that the data were loaded from. They are needed to decide about the offset of data
        from odc-stac, which keeps none of their properties. Items within an hour of a date belong
        to that date.
    offset : int or sequence of int, optional
        DN added to the pixels of all dates, or of each date: 0 or 1000. Overrules all metadata.

    Returns
    -------
    Dataset
        ``reflectance`` (time, band, y, x) uint16 DN, 0 = nodata. Dark pixels that would be 0 or
        less without the offset are 1. ``scl`` (time, y, x) uint8 if the data have scene classes.
        Coordinates that Zarr can store, ``spatial_ref`` (CF), ``item_id`` for each date, and
        ``boa_offset_removed``: the DN subtracted from each date. Bands are in the order of
        wavelengths, dates in order of time. Lazy data stay lazy.
        ``attrs["history"]`` describes each change in words.

    Raises
    ------
    OffsetError
        Baseline, flag, ``raster:bands`` and pixels contradict one another, or none of them tells
        whether the offset is there.
    UnsupportedArrayError
        There are no Sentinel-2 bands, or they are on several grids.

    Notes
    -----
    Two dark bands of the middle 512 x 512 pixels of each date are read. Dark pixels can prove that
    the offset is not there. Bright scenes prove nothing.
    """
    said: list[str] = []
    image, scl = _gather(obj, said)
    records = [item_record(item) for item in items or ()]
    crs = crs_of(image, obj)
    image = _centre(image, said)
    if scl is not None:
        scl = _centre(scl, [])
    image = remove_offset(image, records, offset, said)
    variables: dict[str, xr.DataArray] = {"reflectance": image}
    if scl is not None:
        variables["scl"] = _classes(scl)
    ds = xr.Dataset({name: da.drop_attrs(deep=False) for name, da in variables.items()})
    ds = _clean(ds, records, said)
    before_sorting = ds
    ds = in_time_order(ds)
    if ds is not before_sorting:
        said.append("dates sorted")
    ds = ds.assign_coords(band=ds.band.values.astype(object))  # Zarr v3 has no dtype U3.
    if crs is not None:
        ds = _with_crs(ds, crs)
    before = _chunk_words(ds.reflectance)
    ds = rechunk_images(ds)
    after = _chunk_words(ds.reflectance)
    if before != after:
        said.append(f"rechunked from {before} to {after}")
    ds.reflectance.attrs = {
        "long_name": "surface reflectance x 10000",
        "units": "1e-4",
        "source": "Copernicus Sentinel-2",
        "nodata": NODATA,  # odc-stac, rioxarray and titiler look for this attribute.
    }
    if "scl" in ds:
        ds.scl.attrs = {"long_name": "scene classification"}
    ds.attrs["history"] = "\n".join(f"tec_zarr.prepare: {line}" for line in said)
    return ds


def harmonize(obj: xr.DataArray | xr.Dataset, *, items: Iterable[Any] | None = None,
              offset: int | Sequence[int] | None = None) -> xr.Dataset:  # fmt: skip
    """Subtract the +1000 DN of baseline 04.00 and later from the dates that carry it.

    Dates from which the offset was removed before are not changed.

    Parameters
    ----------
    obj : DataArray or Dataset
        Of stackstac or odc-stac, or a canonical cube: (time, band, y, x), or variables
        (time, y, x).
    items, offset
        As in `prepare`.

    Returns
    -------
    Dataset
        As of `prepare`, uint16 DN, with the chunks of ``obj``; in memory if ``obj`` is.

    Raises
    ------
    OffsetError
        Baseline, flag, ``raster:bands`` and pixels contradict one another, or none of them tells
        whether the offset is there.
    UnsupportedArrayError
        There are no Sentinel-2 bands, or they are on several grids.
    """
    ds = prepare(obj, items=items, offset=offset)
    chunks = obj.chunksizes
    if not chunks:
        return ds.compute()
    # Leave out the chunks of a dimension whose length changed: SCL is no longer one of the bands.
    return ds.chunk({d: c for d, c in chunks.items() if ds.sizes.get(d) == sum(c)})


def to_reflectance(cube: xr.DataArray) -> xr.DataArray:
    """Convert a canonical cube from DN to float32 reflectance, with NaN for nodata."""
    out = (cube.where(cube != NODATA) / np.float32(DN_PER_REFLECTANCE)).astype("float32")
    out.attrs = {k: v for k, v in cube.attrs.items() if k not in ("units", "nodata")}
    out.attrs["units"] = "1"
    out.encoding = {k: v for k, v in cube.encoding.items() if k == "grid_mapping"}
    return out


def _gather(obj: Any, said: list[str]) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Return the bands as one array (time, band, y, x), and the scene classes or None."""
    if isinstance(obj, xr.DataTree):
        obj = flatten(obj, said)
    if isinstance(obj, xr.DataArray):
        dim = find_dim(obj, BAND)
        if dim is None or dim not in obj.coords:
            raise UnsupportedArrayError(
                f"an array with dimensions {obj.dims} has no band coordinate: name its bands, "
                "cube.assign_coords(band=['B02', ...])"
            )
        layers = {str(n): obj.sel({dim: n}, drop=True) for n in obj[dim].values}
    else:
        if "reflectance" in obj and find_dim(obj["reflectance"], BAND):
            scl = _ordered(obj["scl"]) if "scl" in obj else None
            return _ordered(_by_wavelength(_named(obj["reflectance"]), said)), scl
        layers = {str(n): obj[n] for n in obj.data_vars if obj[n].ndim >= 2}
    known, scl_name = sort_layers(layers)
    if not known:
        raise UnsupportedArrayError(f"none of {list(layers)} is a Sentinel-2 band")
    if isinstance(obj, xr.DataArray):
        chosen = obj.sel({dim: list(known.values())})
        image = _named(chosen)
    else:
        parts = [_ordered(layers[name]) for name in known.values()]
        if len({p.shape for p in parts}) > 1:
            raise UnsupportedArrayError(
                "the bands have shapes "
                f"{ {n: p.shape for n, p in zip(known, parts, strict=True)} }: load them on one "
                "grid (resolution=10)"
            )
        index = xr.IndexVariable("band", list(known))
        image = xr.concat(parts, index, coords="minimal", compat="override", join="exact")
        image.attrs, image.encoding = dict(parts[0].attrs), dict(parts[0].encoding)
    if list(known) != list(known.values()):
        said.append(f"bands named {', '.join(known)}")
    return _ordered(image), _ordered(layers[scl_name]) if scl_name else None


def sort_layers(names: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Find the bands and the scene classes among names.

    Returns
    -------
    bands : dict of str to str
        Canonical name of each band to the given name, in the order of wavelengths.
    scl : str or None
        The given name of the scene classes.
    """
    known: dict[str, str] = {}
    scl = None
    for name in sorted(names):  # B02_10m comes before B02_20m, so the finest is taken.
        if name.lower().split("_")[0] == "scl":
            scl = scl or name
            continue
        if band := known_band(name):
            known.setdefault(band, name)
    return {b: known[b] for b in BANDS if b in known}, scl


def _named(image: xr.DataArray) -> xr.DataArray:
    """Rename the band dimension to ``band`` and give it canonical names."""
    dim = find_dim(image, BAND)
    image = image.rename({dim: "band"}) if dim != "band" else image
    return image.assign_coords(band=list(band_names(image.band.values.tolist())))


def _by_wavelength(image: xr.DataArray, said: list[str]) -> xr.DataArray:
    """Sort bands with canonical names by wavelength."""
    order = list(BANDS)
    places = [order.index(name) for name in image.band.values]
    if places == sorted(places):
        return image
    said.append("bands sorted by wavelength")
    return image.isel(band=np.argsort(places, kind="stable"))


def _ordered(da: xr.DataArray) -> xr.DataArray:
    """Transpose to (time, band, y, x). A scalar time becomes a dimension."""
    time = find_dim(da, TIME)
    if time is None and "time" in da.coords:
        da = da.expand_dims("time")
    elif time is None:
        raise UnsupportedArrayError(
            f"an array with dimensions {da.dims} has no time: "
            "cube.expand_dims(time=[np.datetime64('2023-06-12')])"
        )
    elif time != "time":
        da = da.rename({time: "time"})
    y, x = find_dim(da, Y), find_dim(da, X)
    if y is None or x is None:
        raise UnsupportedArrayError(f"no y and x among the dimensions {da.dims}")
    return da.transpose("time", *(["band"] if "band" in da.dims else []), y, x)


def _centre(image: xr.DataArray, said: list[str]) -> xr.DataArray:
    """Move coordinates from the corners of the pixels to their centres, if they are at corners.

    stackstac labels pixels by their top left corner, rioxarray and CF by their centre.
    """
    grid = image.attrs.get("transform")
    y, x = find_dim(image, Y), find_dim(image, X)
    if grid is None or x not in image.coords or y not in image.coords:
        return image
    width, _, west, _, height, north = tuple(grid)[:6]
    if image[x][0] == west and image[y][0] == north:
        said.append("coordinates moved from the corners of the pixels to their centres")
        attrs = {k: v for k, v in image.attrs.items() if k != "transform"}
        moved = image.assign_coords({x: image[x] + width / 2, y: image[y] + height / 2})
        return moved.assign_attrs(attrs)
    return image


def _classes(scl: xr.DataArray) -> xr.DataArray:
    """Convert scene classes to uint8.

    Loaders make floats with NaN from them if the item does not state the dtype.
    """
    return scl.fillna(0).round().astype("uint8") if scl.dtype.kind == "f" else scl.astype("uint8")


def _clean(ds: xr.Dataset, records: list[dict[str, Any]], said: list[str]) -> xr.Dataset:
    """Keep only coordinates that Zarr can store. Change them so that later dates fit too."""
    dropped = []
    for name, coord in ds.coords.items():
        if name in (*ds.dims, "spatial_ref", REMOVED):
            continue
        values = None if _of_source_grid(str(name)) else _storable(coord.values)
        if values is None:
            dropped.append(str(name))
            ds = ds.drop_vars([name])
        elif coord.ndim == 0:  # These dates share one value, but appended dates may have another.
            ds = ds.assign_coords({name: ("time", np.full(ds.sizes["time"], values))})
        else:
            ds = ds.assign_coords({name: (coord.dims, values)})
    if dropped:
        said.append(f"coordinates left out: {', '.join(sorted(dropped))}")
    if records:
        ids = [
            ",".join(sorted(r["id"] for r in items_of_date(records, ds, i)))
            for i in range(ds.sizes["time"])
        ]
        ds = ds.assign_coords(item_id=("time", np.array(ids, dtype=object)))
    elif "id" in ds.coords and ds["id"].dims == ("time",):
        ds = ds.rename({"id": "item_id"})
    return ds.drop_vars("id", errors="ignore")


def _of_source_grid(name: str) -> bool:
    """Return whether a coordinate describes the grid of the files.

    ``spatial_ref`` describes the grid of the cube.
    """
    return name == "epsg" or name.startswith("proj:")


def _storable(values: np.ndarray) -> np.ndarray | None:
    """Convert values of a coordinate to a dtype that Zarr can store; None if that is impossible.

    Integers become floats, with NaN for None. Strings get any length, with "" for None.
    """
    if values.dtype.kind in "iu":
        return values.astype(np.float64)
    if values.dtype.kind in "bfM":
        return values
    cells = values.astype(object).ravel()
    there = [c for c in cells if c is not None and c == c]
    filled: list[Any]
    if all(isinstance(c, str) for c in there):
        filled = [c if isinstance(c, str) else "" for c in cells]
        out = np.array(filled, dtype=object)
    elif all(isinstance(c, int | float) and not isinstance(c, bool) for c in there):
        out = np.array([np.nan if c is None else c for c in cells], dtype=np.float64)
    else:
        return None
    return out.reshape(values.shape)


def _with_crs(ds: xr.Dataset, crs: Any) -> xr.Dataset:
    """Add the coordinate ``spatial_ref``. Its value is the EPSG code, as odc-stac writes it.

    A value of 0 would be Zarr's fill value, which Zarr does not store. VirtualiZarr 2.5 fails on
    such a coordinate.
    """
    if isinstance(crs, xr.DataArray):
        code, attrs = int(crs) if crs.dtype.kind in "iu" else 0, crs.attrs
    else:
        try:
            from pyproj import CRS
        except ImportError as error:
            raise UnsupportedArrayError(
                f"reading the CRS {crs!r} needs pyproj: pip install 'tec_zarr[stac]'"
            ) from error
        known = CRS.from_user_input(crs)
        code, attrs = known.to_epsg() or 0, known.to_cf()
    plain = {k: v for k, v in attrs.items() if isinstance(v, str | int | float | list | tuple)}
    ds = ds.assign_coords(spatial_ref=xr.DataArray(np.int32(code), attrs=plain))
    for da in ds.data_vars.values():
        da.encoding["grid_mapping"] = "spatial_ref"
    return ds


def in_time_order(ds: xr.Dataset) -> xr.Dataset:
    """Sort by time, if dates are not in order. ``sel(time=slice(...))`` needs them in order."""
    return ds if ds.indexes["time"].is_monotonic_increasing else ds.sortby("time")


def rechunk_images(ds: xr.Dataset) -> xr.Dataset:
    """Rechunk images for TEC and load coordinates into memory."""
    coords = {n: c.compute() for n, c in ds.coords.items() if n not in ds.dims}
    return rechunk(ds).assign_coords(coords)


def _chunk_words(da: xr.DataArray) -> str:
    if da.chunks is None:
        return "one array in memory"
    return " x ".join(f"{dim} {sizes[0]}" for dim, sizes in da.chunksizes.items())
