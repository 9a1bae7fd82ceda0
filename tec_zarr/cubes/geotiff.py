"""Read GeoTIFFs as a cube and write a cube as GeoTIFFs, with names, dates, tags and CRS."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    band_labels,
    find_dim,
    is_band,
    known_bands,
    reflectance_names,
    same_labels,
    word,
)
from tec_zarr.cubes.nodata import KEYS, declared, fits, nodata_values
from tec_zarr.cubes.stacking import shared
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA, band_name

_BAND_IN_NAME = re.compile(r"(?<![A-Za-z0-9])B(?:0?[1-9]|1[0-2]|0?8A)(?![A-Za-z0-9])", re.I)


#: Tags whose content GeoTIFFs also hold in fields of their own. The fields are read instead.
_NO_TAGS = (*KEYS, "scale_factor", "add_offset", "scales", "offsets", "long_name", "crs",
            "grid_mapping", "transform", "coordinates", "dtype", "calendar",
            "_Unsigned")  # fmt: skip


_DATE_IN_NAME = re.compile(
    r"(?<!\d)(20\d{2})-?([01]\d)-?([0-3]\d)"
    r"(?:T([01]\d|2[0-3])([0-5]\d)([0-5]\d)(?:\.(\d{9}))?)?(?!\d)"
)


def open_tiffs(paths: list[Path]) -> xr.Dataset:
    """Open GeoTIFFs of one grid lazily as one cube.

    Parameters
    ----------
    paths : list of Path
        Files with one date each. Files of the same date hold different bands. Dates are read from
        the file names.

    Returns
    -------
    Dataset
        ``reflectance`` (time, band, y, x).

    Raises
    ------
    UnsupportedArrayError
        The files differ in grid, nodata, scale or offset, some name Sentinel-2 bands and others do
        not, or rioxarray is missing.
    """
    try:
        import rioxarray
    except ImportError as error:
        raise UnsupportedArrayError(
            f"{paths[0]} is a GeoTIFF: pip install 'tec_zarr[geotiff]'"
        ) from error
    by_date: dict[str, list[xr.DataArray]] = {}
    facts: dict[Path, _Facts] = {}
    named: dict[bool, Path] = {}
    grids: dict[Path, xr.DataArray] = {}
    for path in paths:
        with warnings.catch_warnings():  # `_cube_attrs` handles scales that differ between bands.
            warnings.filterwarnings("ignore", ".*differ across bands")
            opened = rioxarray.open_rasterio(path, chunks={}, mask_and_scale=False)
        image = cast(xr.DataArray, opened)
        facts[path] = _Facts.of(path, image)
        names = _tiff_bands(path, image, facts[path])
        named.setdefault(names is not None, path)
        if names:
            image = image.assign_coords(band=names)
        image = grids[path] = _on_grid(path, image, grids)
        date = _DATE_IN_NAME.search(path.stem)
        key = _moment(date) if date else _BAND_IN_NAME.sub("", path.stem)
        by_date.setdefault(key, []).append(image)
    if len(named) == 2:
        raise UnsupportedArrayError(
            f"{named[False]} names no Sentinel-2 bands, {named[True]} does: move what is no part "
            "of the cube elsewhere, or describe its bands"
        )
    dates = [xr.concat(images, "band", join="exact") for images in by_date.values()]
    cube = xr.concat(dates, "time", join="exact").drop_attrs(deep=False)
    if all(_DATE_IN_NAME.search(key) for key in by_date):
        cube = cube.assign_coords(time=np.array(list(by_date), "datetime64[ns]"))
    cube = cube.assign_attrs(_cube_attrs(facts, cube.dtype, cube.sizes["band"]))
    return cube.rename("reflectance").chunk({"band": -1}).to_dataset()


@dataclass(frozen=True)
class _Facts:
    """Metadata of the pixels of one GeoTIFF.

    Attributes
    ----------
    nodata : tuple of float
        Nodata value of the file or of a tag; empty if none is declared.
    scales, offsets : tuple of float
        For each band: values are stored numbers times scale plus offset.
    tags : dict
        Tags of the file.
    band_tags : list of dict
        Tags of each band.
    descriptions : tuple of str
        Description of each band; "" if it has none.
    """

    nodata: tuple[float, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    tags: dict[str, str]
    band_tags: list[dict[str, str]]
    descriptions: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, image: xr.DataArray) -> _Facts:
        import rasterio

        with rasterio.open(path) as file:
            each = [file.tags(i) for i in file.indexes]
            tags, scales, offsets = file.tags(), tuple(file.scales), tuple(file.offsets)
            nodata: Any = () if file.nodata is None else (float(file.nodata),)
            descriptions = tuple(text or "" for text in file.descriptions)
        nodata = nodata or declared(tags, image.dtype, str(path))[:1]
        if set(scales) == {1.0} and set(offsets) == {0.0}:  # CF attributes may be stored as tags.
            scales = (_number(tags, "scale_factor", 1.0),) * len(scales)
            offsets = (_number(tags, "add_offset", 0.0),) * len(offsets)
        return cls(
            nodata, scales, offsets, {k: v for k, v in tags.items() if k not in _NO_TAGS},
            [{k: v for k, v in own.items() if k not in _NO_TAGS} for own in each], descriptions,
        )  # fmt: skip


def _number(tags: Mapping[str, str], key: str, usual: float) -> float:
    try:
        return float(tags[key])
    except (KeyError, ValueError):
        return usual


def _cube_attrs(facts: Mapping[Path, _Facts], dtype: np.dtype, bands: int) -> dict[str, Any]:
    """Return the attributes of the cube: nodata, scale, offset, and the tags that all files share.

    Scale and offset become the CF attributes ``scale_factor`` and ``add_offset``. CF has no
    attributes for values that differ between bands. Those become ``scales`` and ``offsets``, the
    names that rioxarray uses.
    """
    attrs: dict[str, Any] = shared([f.tags for f in facts.values()])
    nodata = _common_nodata({path: f.nodata for path, f in facts.items()}, dtype)
    if any(f.nodata for f in facts.values()):
        # xarray converts integers with a _FillValue to floats. Avoid that for the usual value 0.
        integer = dtype.kind != "f"
        key = "nodata" if integer and nodata == NODATA else "_FillValue"
        attrs[key] = dtype.type(nodata).item() if fits(nodata, dtype) else nodata
        if not fits(nodata, dtype) or (integer and math.isnan(nodata)):
            del attrs[key]
    lines = {path: (f.scales, f.offsets) for path, f in facts.items()}
    one = {path: {*zip(*line, strict=True)} for path, line in lines.items()}
    first = next(iter(facts))
    for path, line in one.items():
        if line != one[first]:
            raise UnsupportedArrayError(
                f"{first} has scale and offset {sorted(one[first])}, {path} has {sorted(line)}: "
                "write all files with the same first (gdal_edit -scale 0.0001 -offset -0.1)"
            )
    scales, offsets = lines[first]
    if len(one[first]) > 1:
        attrs |= {"scales": list(scales), "offsets": list(offsets)}
    elif one[first] != {(1.0, 0.0)}:
        attrs |= {"scale_factor": scales[0], "add_offset": offsets[0]}
    tags = shared([{"band_tags": f.band_tags} for f in facts.values()])
    if len(facts[first].band_tags) == bands and any(tags.get("band_tags", ())):
        attrs |= tags
    words = shared([{"long_name": list(f.descriptions)} for f in facts.values()])
    described = words.get("long_name", [])
    usual = list(known_bands(described) or ())  # The band coordinate holds these names already.
    if len(described) == bands and any(described) and described != usual:
        attrs |= words
    return attrs


def _common_nodata(found: Mapping[Path, tuple[float, ...]], dtype: np.dtype) -> float:
    """Return the nodata value that all files share.

    A file that declares none has the usual value: 0, as always in Sentinel-2 data, or NaN in
    floats.

    Raises
    ------
    UnsupportedArrayError
        The files have different nodata values.
    """
    usual = math.nan if dtype.kind == "f" else float(NODATA)
    values = {path: v[0] if v else usual for path, v in found.items()}
    first, value = next(iter(values.items()))
    for path, other in values.items():
        if other != value and not (math.isnan(other) and math.isnan(value)):
            raise UnsupportedArrayError(
                f"{first} has nodata {value:g}, {path} has {other:g} ({usual:g} where none is "
                "declared): "
                f"write all files with the same first (gdalwarp -dstnodata {value:g})"
            )
    return value


def _moment(date: re.Match[str]) -> str:
    """Return the date in a file name as ISO 8601; midnight if it has no time of day."""
    year, month, day, hour, minute, second, fraction = date.groups(default="00")
    return f"{year}-{month}-{day}T{hour}:{minute}:{second}.{fraction}"


def _on_grid(
    path: Path, image: xr.DataArray, others: Mapping[Path, xr.DataArray]
) -> xr.DataArray:
    """Check that an image has the grid of the first file, and give it the same coordinates."""
    for other, first in others.items():
        if image.shape[-2:] != first.shape[-2:]:
            sizes = [f"{h} x {w}" for h, w in (first.shape[-2:], image.shape[-2:])]
            raise UnsupportedArrayError(
                f"{other} has {sizes[0]} pixels, {path} has {sizes[1]}: a cube has one grid. Give "
                "each resolution or place a folder of its own, or resample first "
                "(gdalwarp -tr 10 10 -te WEST SOUTH EAST NORTH)"
            )
        for dim in ("y", "x"):
            if not same_labels(first[dim].values, image[dim].values).all():
                raise UnsupportedArrayError(
                    f"{other} and {path} lie in different places ({dim} from "
                    f"{first[dim].values[0]:.10g} and {image[dim].values[0]:.10g}): give each "
                    "place a folder of its own, or cut both to one area (gdalwarp -te)"
                )
        return image.assign_coords(y=first.y, x=first.x)
    return image


def _tiff_bands(path: Path, image: xr.DataArray, facts: _Facts) -> list[str] | None:
    """Return the names of a file's bands; None if none of them is a Sentinel-2 band.

    They come from the descriptions, from openEO's tags DESCRIPTION, or, if there is only one band,
    from the name of the file.
    """
    tagged = [tags.get("DESCRIPTION") or f"unnamed_{i}"
              for i, tags in enumerate(facts.band_tags, start=1)]  # fmt: skip
    found = [band_labels(image.drop_vars("band")) or [], tagged]
    if image.sizes["band"] == 1:
        found.append(_BAND_IN_NAME.findall(path.stem)[:1])
    for labels in found:
        if any(is_band(name, labels) for name in labels):
            return [band_name(n, labels) if is_band(n, labels) else n for n in labels]
    return None


def write_geotiffs(ds: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write every image of ``ds`` as GeoTIFFs, one per date.

    Parameters
    ----------
    ds : Dataset
        Variables with dimensions (time, band, y, x), time and band optional.
    folder : str or Path
        Created if it does not exist.

    Returns
    -------
    list of Path
        The files, ``NAME_DATE.tif``. `open_cube` reads them as a cube again. Images that are not
        reflectance, such as classes, are written to folders of their own inside ``folder``.
    """
    import rioxarray  # noqa: F401  registers the .rio accessor

    cubes = reflectance_names(ds)
    written = []
    for name, da in ds.data_vars.items():
        if not is_image(da):
            continue
        # In the folder of a cube, other images would be read as bands of that cube.
        place = Path(folder) if name in cubes or not cubes else Path(folder) / str(name)
        place.mkdir(parents=True, exist_ok=True)
        time, crs = find_dim(da, TIME), crs_of(da, ds)
        images = [da.isel({time: i}) for i in range(da.sizes[time])] if time else [da]
        labels = _date_labels(da, time) if time else [""]
        for image, label in zip(images, labels, strict=True):
            file = place / f"{name}{label}.tif"
            _raster(image, crs).rio.to_raster(file, compress="deflate")
            written.append(file)
    return written


def is_image(da: xr.DataArray) -> bool:
    """Return whether an array has the two axes of an image, y and x."""
    return find_dim(da, Y) is not None and find_dim(da, X) is not None


def _raster(image: xr.DataArray, crs: Any) -> xr.DataArray:
    """Convert an image to a form that rioxarray can write.

    Bool becomes uint8, band names become descriptions. Only plain attributes are kept. There is
    one nodata value, a scale and an offset for every band, and a CRS.
    """
    if image.dtype == bool:
        image = image.astype("uint8")
    band = find_dim(image, BAND)
    count = image.sizes[band] if band else 1
    attrs = dict(image.attrs)
    kept: dict[str, list[Any]] = {}
    for key in ("long_name", "scales", "offsets", "band_tags"):
        value = attrs.pop(key, [])
        kept[key] = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    plain: dict[str, Any] = {k: v for k, v in attrs.items() if isinstance(v, str | int | float)}
    if crs is not None:
        plain.pop("crs", None)  # GDAL warns of old spellings such as +init=epsg.
    for key in ("scales", "offsets"):
        values = kept[key] * (count if len(kept[key]) == 1 else 1)
        if len(values) == count:
            plain[key] = tuple(float(v) for v in values)
    if len(kept["band_tags"]) == count and all(isinstance(t, dict) for t in kept["band_tags"]):
        plain["band_tags"] = kept["band_tags"]
    words = [str(text) for text in kept["long_name"]]
    if band and band in image.coords:
        names = [word(b) for b in image[band].values]
        plain["long_name"] = tuple(words if known_bands(words) == known_bands(names) else names)
        image = image.drop_vars(band)
    elif words:
        plain["long_name"] = tuple(words) if len(words) == count else words[0]
    nodata: list[float] = []
    if image.dtype.kind != "f" or not np.isfinite(image.encoding.get("_FillValue", np.nan)):
        with contextlib.suppress(UnsupportedArrayError):  # A GeoTIFF cannot hold words as nodata.
            nodata = [v for v in nodata_values(image) if fits(v, image.dtype)]
    image = image.drop_attrs(deep=False).assign_attrs(plain)
    image = image.rio.set_spatial_dims(x_dim=find_dim(image, X), y_dim=find_dim(image, Y))
    if nodata:
        image.encoding.pop("_FillValue", None)
        image = image.rio.write_nodata(nodata[0])
    if crs is not None and image.rio.crs is None:
        image = image.rio.write_crs(crs.attrs if isinstance(crs, xr.DataArray) else crs)
    return image


def _date_labels(da: xr.DataArray, time: str) -> list[str]:
    """Return a different ending for the file name of each date.

    It is the time in seconds. If seconds are not enough to tell all dates apart, it is the time in
    nanoseconds. If some dates are equal, their numbers are added.
    """
    numbers = [f"_{i:04d}" for i in range(da.sizes[time])]
    if time not in da.coords or da[time].dtype.kind != "M":
        return numbers
    moments = [re.sub("[-:]", "", str(m)) for m in da[time].values.astype("datetime64[ns]")]
    for length in (len("20230601T103021"), None):
        labels = [f"_{moment[:length]}" for moment in moments]
        if len(set(labels)) == len(labels):
            return labels
    return [label + number for label, number in zip(labels, numbers, strict=True)]


def crs_of(image: xr.DataArray, obj: Any = None) -> Any:
    """Return the coordinate reference system that the data declare; None if they declare none.

    Parameters
    ----------
    image : DataArray
        Its grid mapping, ``crs`` and ``proj:`` fields are looked at first.
    obj : DataArray, Dataset or DataTree, optional
        The object that ``image`` is part of.

    Returns
    -------
    DataArray, str, int or dict
        The variable with the CF attributes, or a value that pyproj can read.
    """
    whole = obj if isinstance(obj, xr.Dataset) else image.to_dataset(name="image")
    for name in ("spatial_ref", image.encoding.get("grid_mapping"), "crs"):
        for place in (image.coords, whole):
            if name in place and place[name].attrs:
                return place[name]
    for attrs in (image.attrs, whole.attrs, *(da.attrs for da in whole.data_vars.values())):
        if attrs.get("crs"):
            return re.sub(r"^\+init=epsg:", "EPSG:", str(attrs["crs"]), flags=re.I)
    for key in ("epsg", "proj:epsg"):
        if key in image.coords and image[key].ndim == 0:
            return int(image[key])
    sources = [image.attrs]
    if isinstance(obj, xr.DataTree):
        sources += [obj.attrs.get("stac_discovery", {}).get("properties", {}), obj.attrs]
        sources.append(obj.attrs.get("other_metadata", {}))
    for attrs in sources:
        for key in ("proj:epsg", "proj:code", "proj:wkt2", "horizontal_CRS_code"):
            if attrs.get(key):
                return attrs[key]
    return None
