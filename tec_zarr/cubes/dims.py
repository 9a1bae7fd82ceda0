"""Dimensions and bands of xarray objects, and which of their variables are reflectance.

Bands are named by the band coordinate. If that only counts (rioxarray's 1 to N), they are named by
descriptions, or by the name of the variable, or by the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from tec_zarr.codec.spec import DTYPES, ChunkSpec
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import UnknownBandError, band_name, band_names

TIME = ("time", "t")
BAND = ("band", "bands", "variable", "channel")
Y = ("y", "lat", "latitude", "northing")
X = ("x", "lon", "longitude", "easting")

#: Attributes in which files describe a band.
_DESCRIPTIONS = ("long_name", "DESCRIPTION", "description", "band_name", "common_name",
                 "eo:common_name")  # fmt: skip
#: Attributes of GeoTIFFs that have one entry per band.
_PER_BAND = (*_DESCRIPTIONS, "scales", "offsets", "band_tags", "nodatavals")
#: A band number as rioxarray and others write it: 1, band_1, "Band 1".
_NUMBER = re.compile(r"(?:band[ _]?)?(0|[1-9]\d*)(?:\.0)?", re.I)

#: Endings of names of variables that are not reflectance, whatever their dimensions and dtype.
_OTHER_WORDS = re.compile(
    r"(?<![a-z])(scl|masks?|msk|qa|flags?|class(es|ification)?|labels?|prob(ability|abilities)?"
    r"|cldprb|snwprb|aot|wvp|angles?|zenith|azimuth|elevation|dem|dsm|dtm)([\W\d_]*|_?\d+m)$"
)

XrObject = TypeVar("XrObject", xr.DataArray, xr.Dataset)
XrTree = TypeVar("XrTree", xr.DataArray, xr.Dataset, xr.DataTree)


def find_dim(da: xr.DataArray, names: tuple[str, ...]) -> str | None:
    """Return the first dimension of ``da`` that is called by one of ``names``; None if none is."""
    return next((str(d) for d in da.dims if str(d).lower() in names), None)


def word(value: Any) -> str:
    """Return a name as text. Files may hold fixed-length text as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def known_bands(names: Iterable[Any]) -> tuple[str, ...] | None:
    """Return the canonical names of bands; None unless all are names of Sentinel-2 bands."""
    try:
        return band_names([word(n) for n in names]) or None
    except UnknownBandError:
        return None


def is_band(name: Any, beside: Iterable[Any] = ()) -> bool:
    """Return whether ``name`` names a Sentinel-2 band.

    ``beside`` are the names of the bands beside it: some names are clear only among these.
    """
    try:
        return bool(band_name(word(name), [word(n) for n in beside]))
    except UnknownBandError:
        return False


def band_labels(da: xr.DataArray) -> list[str] | None:
    """Return the names that the file gives to the bands along the band dimension, known or not.

    Returns
    -------
    list of str or None
        One name per band; None if the file only numbers the bands.
    """
    dim = find_dim(da, BAND)
    if dim is None:
        return None
    count = da.sizes[dim]
    sources: list[Sequence[Any]] = []
    if dim in da.coords:
        sources.append(da[dim].values.tolist())
    for key in _DESCRIPTIONS:
        given = da.attrs.get(key)
        if isinstance(given, list | tuple | np.ndarray) and len(given) == count:
            sources.append(list(given))
        elif isinstance(given, str) and count == 1:
            sources.append([given])
    sources += [c.values.tolist() for n, c in da.coords.items()
                if c.dims == (dim,) and n != dim and c.dtype.kind in "OSUT"]  # fmt: skip
    sources = [names for names in sources if not _only_count(names)]
    if not sources:
        return None
    # If several sources name as many bands, max takes the first.
    best = max(sources, key=lambda names: sum(is_band(n, names) for n in names))
    return [word(n) if n else f"unnamed_{i}" for i, n in enumerate(best, start=1)]


def variable_bands(arrays: Mapping[Any, xr.DataArray]) -> dict[str, str]:
    """Return the variables without a band dimension that are one Sentinel-2 band each.

    Parameters
    ----------
    arrays : mapping of str to DataArray
        All variables of one dataset: a name such as ``swir_2`` is clear only beside the others.

    Returns
    -------
    dict of str to str
        Name of the variable to canonical name of the band. Several variables may be the same band
        (B02_10m, B02_20m).
    """
    alone = [(str(n), da) for n, da in arrays.items() if find_dim(da, BAND) is None]
    counted = [name for name, _ in alone if _NUMBER.fullmatch(name)]
    counted = counted if _only_count(sorted(counted, key=lambda n: (len(n), n))) else []
    labels = {}
    for name, da in alone:
        own = [] if name in counted else [name]
        said = [da.attrs[k] for k in _DESCRIPTIONS if isinstance(da.attrs.get(k), str)]
        labels[name] = next((text for text in (*own, *said) if is_band(text)), None)
    beside = [label for label in labels.values() if label is not None]
    return {n: band_name(label, beside) for n, label in labels.items() if label is not None}


def selected_band(da: xr.DataArray) -> str | None:
    """Return the canonical name of a band selected by ``.sel(band="B04")``, or None."""
    for name, coord in da.coords.items():
        if str(name).lower() in BAND and coord.ndim == 0 and is_band(coord.item()):
            return band_name(str(coord.item()))
    return None


def mixed_bands(da: xr.DataArray) -> list[str]:
    """Return the names along the band dimension that are not Sentinel-2 bands, if others are."""
    labels = band_labels(da) or []
    strange = [name for name in labels if not is_band(name, labels)]
    return strange if len(strange) < len(labels) else []


def name_bands(
    ds: xr.Dataset,
    bands: Sequence[str] | None,
    images: Iterable[str],
    said: list[str],
) -> xr.Dataset:
    """Give bands their Sentinel-2 names, and split off layers that are not bands as variables.

    Parameters
    ----------
    ds : Dataset
        As it was opened.
    bands : sequence of str, optional
        Names of the bands, from the user, in the order of the file. They overrule the names in the
        file. Layers with other names than those of bands, such as SCL, are split off.
    images : iterable of str
        Variables that may be reflectance.
    said : list of str
        Gets a line about every band that was renamed or split off.

    Raises
    ------
    UnsupportedArrayError
        No variable has as many bands as ``bands`` has names, or a name occurs twice.
    """
    arrays = {name: ds[name] for name in images if find_dim(ds[name], BAND) is not None}
    if bands is not None:
        bands = [bands] if isinstance(bands, str) else [str(b) for b in bands]
        _check_known(bands)
        counts = {name: da.sizes[str(find_dim(da, BAND))] for name, da in arrays.items()}
        arrays = {name: arrays[name] for name, count in counts.items() if count == len(bands)}
        if not arrays:
            there = ", ".join(f"{name!r} has {count}" for name, count in counts.items())
            raise UnsupportedArrayError(
                f"bands names {len(bands)} bands ({', '.join(bands)}); "
                f"{there or 'nothing here has a band dimension'}: give one name for each band, "
                "in the order of the file"
            )
    for name, da in arrays.items():
        labels = bands or band_labels(da)
        if labels is not None and any(is_band(label, labels) for label in labels):
            ds = _named(ds, name, labels, said)
    return ds


def _named(ds: xr.Dataset, name: str, labels: Sequence[str], said: list[str]) -> xr.Dataset:
    dim = str(find_dim(ds[name], BAND))
    before = ds[name][dim].values.tolist() if dim in ds.coords else range(1, len(labels) + 1)
    keep = [i for i, label in enumerate(labels) if is_band(label, labels)]
    given = [labels[i] for i in keep]
    if known_bands(given) is None:  # The same band occurs twice: `encoding` will raise an error.
        return ds
    extras = [i for i in range(len(labels)) if i not in keep]
    shared = [n for n in ds.data_vars if dim in ds[n].dims and str(n) != name]
    if extras and shared:  # Another variable needs the whole band dimension.
        return ds
    canonical = dict(zip(keep, known_bands(given) or (), strict=True))
    taken = [f"{before[i]} as {band}" for i, band in canonical.items() if _differs(before[i], band)]
    if taken:
        said.append(f"{name}: bands taken: {', '.join(taken)}")
    split = {}
    for i in extras:
        variable = labels[i] if labels[i] not in ds.variables else f"{name}_{labels[i]}"
        part = ds[name].isel({dim: i}, drop=True)
        split[variable] = part.drop_vars([c for c in part.coords if dim in ds[c].dims])
        split[variable].encoding = dict(ds[name].encoding)
        split[variable].attrs = _of_bands(ds[name].attrs, len(labels), [i])
        split[variable].attrs.pop("long_name", None)
        said.append(f"{labels[i]} is no Sentinel-2 band: kept without loss, as {variable!r}")
    out = ds.isel({dim: keep}) if extras else ds
    if taken or dim not in ds.coords:
        names = np.array(list(canonical.values()), object)  # Zarr v3 has no dtype U3.
        out = out.assign_coords({dim: (dim, names, _attrs(ds, dim))})
    out = out.assign(split)
    if extras:
        out[name].attrs = _of_bands(ds[name].attrs, len(labels), keep)
    return out


def _of_bands(attrs: Mapping[Any, Any], count: int, chosen: Sequence[int]) -> dict[Any, Any]:
    """Return attributes with the entries of the ``chosen`` of ``count`` bands only."""
    return {
        key: [value[i] for i in chosen]
        if key in _PER_BAND and isinstance(value, list | tuple | np.ndarray) and len(value) == count
        else value
        for key, value in attrs.items()
    }


def _attrs(ds: xr.Dataset, dim: str) -> Mapping[Any, Any]:
    return ds[dim].attrs if dim in ds.coords else {}


def _check_known(bands: Sequence[str]) -> None:
    """Raise an error if no name is one of a band, or if a name occurs twice."""
    if not any(is_band(b, bands) for b in bands):
        band_names(bands)  # Raises an error that lists the known names.
    known_twice = [b for b in bands if is_band(b, bands)]
    band_names(known_twice)
    if len(set(bands)) < len(bands):
        raise UnsupportedArrayError(f"bands {', '.join(bands)}: give each name once")


def _differs(before: Any, band: str) -> bool:
    """Return whether a name differs from that of its band. B2 and b02_10m count as B02."""
    return not re.fullmatch(rf"b0?{band[1:].lstrip('0').lower()}(_\d+m)?", str(before).lower())


def _only_count(names: Sequence[Any]) -> bool:
    """Return whether names only count: 0 to N - 1 or 1 to N, with or without the word band."""
    numbers = [_NUMBER.fullmatch(str(name)) for name in names]
    found = [int(number[1]) for number in numbers if number]
    count = len(names)
    return len(found) == count and found in ([*range(count)], [*range(1, count + 1)])


def chosen_variables(
    ds: xr.Dataset, variables: Iterable[str] | None, bands: Iterable[str] | None = None
) -> set[str]:
    """Return the variables of ``ds`` to encode as reflectance.

    Parameters
    ----------
    ds : Dataset
        Its variables are searched.
    variables : iterable of str, optional
        Names of the variables. Default: those that look like reflectance.
    bands : iterable of str, optional
        Names of the bands. Without ``variables``, and if nothing looks like reflectance, a
        variable with as many unnamed bands is taken.

    Raises
    ------
    UnsupportedArrayError
        Some ``variables`` do not exist, or none were given and none were found.
    """
    if isinstance(ds, xr.DataTree):
        raise UnsupportedArrayError(
            "this is a DataTree: pass one of its groups, tree['/group'].to_dataset(), or the one "
            "cube that tec_zarr.prepare(tree) makes of an EOPF product"
        )
    if isinstance(variables, str):
        variables = [variables]
    try:
        names = reflectance_names(ds) if variables is None else {str(n) for n in variables}
    except TypeError:
        raise UnsupportedArrayError(
            f"variables is {variables!r}, it must be a list of names"
        ) from None
    known = [str(n) for n in ds.data_vars]
    if not names and bands is not None:
        count = 1 if isinstance(bands, str) else len(tuple(bands))
        names = {n for n in counted(ds) if ds[n].sizes[find_dim(ds[n], BAND)] == count}
    if not names:
        raise UnsupportedArrayError(_why_none(ds))
    missing = sorted(names - set(known))
    if missing:
        raise UnsupportedArrayError(f"no variables {missing} among {known}")
    return names


def may_have_bands(name: Any, da: xr.DataArray) -> bool:
    """Return whether ``da`` may be reflectance with a band dimension, its bands named or not."""
    return _could_be_reflectance(name, da) and find_dim(da, BAND) is not None


def counted(ds: xr.Dataset) -> list[str]:
    """Return the variables of ``ds`` that may be reflectance: images with a band dimension."""
    return [str(n) for n, da in ds.data_vars.items() if may_have_bands(n, da)]


def _why_none(ds: xr.Dataset) -> str:
    """Return a message that says why no variable is taken for reflectance, and what to do."""
    arrays = {str(n): da for n, da in ds.data_vars.items()}
    images = {n: da for n, da in arrays.items() if find_dim(da, Y) and find_dim(da, X)}
    alone = variable_bands(ds.data_vars)
    for name, da in images.items():
        named = name in alone or known_bands(band_labels(da) or ["?"]) is not None
        if named and da.dtype.name not in DTYPES and not is_something_else(name, da):
            return (
                f"{name!r} is {da.dtype}, TEC takes {', '.join(DTYPES)}: make it uint16 or int16 "
                "if all its values fit (.astype, gdal_translate -ot), else float64 with scale=1"
            )
    for name in counted(ds):
        da = ds[name]
        if strange := mixed_bands(da):
            return split_off(name, strange)
        if band_labels(da) is None:
            count = da.sizes[find_dim(da, BAND)]
            return (
                f"the {count} bands of {name!r} have no names: pass them in their order, such as "
                f"bands=['B02', 'B03', ...] (--bands B02 B03 ...)"
            )
    likely_meant = [n for n, da in images.items() if da.dtype.name in DTYPES]
    if not likely_meant:
        return (
            f"none of {list(arrays)} can be Sentinel-2 reflectance: that is {', '.join(DTYPES)} "
            "with dimensions y and x"
        )
    first = next((n for n in likely_meant if not is_something_else(n, images[n])), likely_meant[0])
    return (
        f"none of {likely_meant} looks like Sentinel-2 reflectance by its name or those of its "
        f"bands: name what is, such as variables=[{first!r}] (--variables {first})"
    )


def split_off(name: str, strange: list[str]) -> str:
    """Return a message that says what to do about layers that are not Sentinel-2 bands."""
    return (
        f"{', '.join(map(repr, strange))} among the bands of {name!r} is no Sentinel-2 band, and "
        "would not be kept exactly: tec_zarr.stack_bands(ds) splits it off (as tec-zarr encode "
        "does); bands=[...] gives Sentinel-2 names to all"
    )


def holds_tec(da: xr.DataArray) -> bool:
    """Return whether ``da`` was read from TEC chunks, by its encoding."""
    return stored_spec(da) is not None


def stored_spec(da: xr.DataArray) -> ChunkSpec | None:
    """TEC's settings for the chunks that ``da`` was read from, by its encoding, if TEC made them.
    """
    return spec_in(da.encoding)


def spec_in(encoding: Mapping[Any, Any]) -> ChunkSpec | None:
    """TEC's settings among the codecs of xarray's encoding of one array, None if there are none."""
    stored = [encoding.get(key) for key in ("serializer", "compressor", "compressors", "filters")]
    each = [c for some in stored for c in (some if isinstance(some, list | tuple) else (some,))]
    return next((codec for codec in each if isinstance(codec, ChunkSpec)), None)


def reflectance_names(ds: xr.Dataset) -> set[str]:
    """Return the variables of ``ds`` that look like Sentinel-2 reflectance."""
    alone = variable_bands(ds.data_vars)
    return likely({str(n): names_bands(n, da, str(n) in alone) for n, da in ds.data_vars.items()})


def likely(named: Mapping[str, bool | None]) -> set[str]:
    """Return which arrays of one group are reflectance.

    ``named`` maps each array to the result of `names_bands`. Arrays without band names are
    reflectance only if no array of the group has band names.
    """
    found = {name for name, known in named.items() if known}
    return found or {name for name, known in named.items() if known is False}


def names_bands(name: Any, da: xr.DataArray, alone: bool) -> bool | None:
    """Return whether ``da`` names the Sentinel-2 bands it holds; None if it is not reflectance.

    With False, `likely` takes it for reflectance only if no array beside it has band names.
    ``alone`` says whether `variable_bands` takes the variable for one band.
    """
    if not _could_be_reflectance(name, da):
        return None
    if holds_tec(da):
        return True
    dim = find_dim(da, BAND)
    if dim is None:  # A selected band is a coordinate of all variables: it proves little.
        return True if alone else None if selected_band(da) is None else False
    labels = band_labels(da)
    if labels is None:
        return False if dim not in da.coords else None
    return known_bands(labels) is not None or None


def _could_be_reflectance(name: Any, da: xr.DataArray) -> bool:
    """Return whether dtype and dimensions fit, and nothing marks ``da`` as something else."""
    image = find_dim(da, Y) is not None and find_dim(da, X) is not None
    return da.dtype.name in DTYPES and image and not is_something_else(name, da)


def is_something_else(name: Any, da: xr.DataArray) -> bool:
    """Return whether flags, CF attributes or the name mark ``da`` as a class, mask, angle, ..."""
    if holds_tec(da):  # It was written as reflectance.
        return False
    standard = str(da.attrs.get("standard_name", "")).lower()
    return (
        any(key in da.attrs for key in ("flag_values", "flag_masks", "flag_meanings"))
        or bool(standard and not re.search("reflectance|radiance", standard))
        or bool(_OTHER_WORDS.search(str(name).lower()))
    )


def canonical_order(obj: XrObject) -> XrObject:
    """Transpose images to (..., time, band, y, x), the order in which TEC stores them."""
    if isinstance(obj, xr.DataArray):
        return transposed(obj)
    return obj.map(transposed, keep_attrs=True)


def transposed(da: xr.DataArray) -> xr.DataArray:
    """Transpose an image to (time, band, y, x). Arrays with other dimensions stay as they are."""
    dims = [find_dim(da, names) for names in (TIME, BAND, Y, X)]
    known = [d for d in dims if d is not None]
    if dims[2] is None or dims[3] is None or len(known) != da.ndim:
        return da
    return da.transpose(*known)


def same_labels(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where two coordinates agree, apart from rounding in files.

    Numbers may differ by a tenth of a pixel. Times may differ by a second. If one side has only
    dates, the times of day are ignored.
    """
    if before.dtype.kind == after.dtype.kind == "M":
        seconds = [moments.astype("M8[ns]").astype("M8[s]") for moments in (before, after)]
        days = [moments.astype("M8[D]") for moments in seconds]
        if any((s == d).all() for s, d in zip(seconds, days, strict=True)):
            return days[0] == days[1]
        return np.abs(seconds[0] - seconds[1]) <= np.timedelta64(1, "s")
    if before.dtype.kind not in "iuf" or after.dtype.kind not in "iuf":
        return np.asarray(before == after, bool)
    pixel = np.abs(np.diff(before.astype(np.float64))).min(initial=np.inf)
    near = 0.1 * pixel if np.isfinite(pixel) else 1e-6 * np.abs(before)
    return np.abs(after.astype(np.float64) - before) <= near


def image_dims(cube: xr.DataArray) -> tuple[str, ...] | None:
    """Return the dimensions of an image in the order (time, band, y, x); None without y and x."""
    kinds = dims_by_kind(cube)
    return tuple(d for d in kinds if d is not None) if None not in kinds[2:] else None


def dims_by_kind(cube: xr.DataArray) -> list[str | None]:
    """Return the dimensions for time, band, y and x; None for each that the cube lacks."""
    return [find_dim(cube, names) for names in (TIME, BAND, Y, X)]


def names_along_bands(da: xr.DataArray) -> list[str]:
    """Return the names along the band dimension; the array's name if it has no such dimension."""
    dim = find_dim(da, BAND)
    if dim is None:
        return [str(da.name)]
    return [word(b) for b in da[dim].values]
