"""Which Sentinel-2 bands an xarray object holds: by coordinate, description, name, or its user.

A band coordinate that only counts (rioxarray's 1 to N) names nothing. Then the descriptions
count, and after them what the user says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import UnknownBandError, band_name, band_names

TIME = ("time", "t")
BAND = ("band", "bands", "variable", "channel")
Y = ("y", "lat", "latitude", "northing")
X = ("x", "lon", "longitude", "easting")

#: Attributes in which writers of files say what a band is.
_DESCRIPTIONS = ("long_name", "DESCRIPTION", "description", "band_name", "common_name",
                 "eo:common_name")  # fmt: skip
#: Attributes that GeoTIFFs leave with one entry a band.
_PER_BAND = (*_DESCRIPTIONS, "scales", "offsets", "band_tags", "nodatavals")
#: A number, or what rioxarray and others make of it: band_1, "Band 1".
_NUMBER = re.compile(r"(?:band[ _]?)?(0|[1-9]\d*)(?:\.0)?", re.I)


def find_dim(da: xr.DataArray, names: tuple[str, ...]) -> str | None:
    """First of the usual ``names`` that is a dimension of ``da``."""
    return next((str(d) for d in da.dims if str(d).lower() in names), None)


def word(value: Any) -> str:
    """A name as text: fixed-length text of files is bytes where nothing says that it is text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def known_bands(names: Iterable[Any]) -> tuple[str, ...] | None:
    """Canonical names of bands, None if they are not all those of Sentinel-2 bands."""
    try:
        return band_names([word(n) for n in names]) or None
    except UnknownBandError:
        return None


def is_band(name: Any, beside: Iterable[Any] = ()) -> bool:
    """Whether a name is one of a Sentinel-2 band."""
    try:
        return bool(band_name(word(name), [word(n) for n in beside]))
    except UnknownBandError:
        return False


def band_labels(da: xr.DataArray) -> list[str] | None:
    """What the file calls the bands along the band dimension, known or not.

    Returns
    -------
    list of str or None
        One name a band; None where nothing but numbers stands there.
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
    best = max(sources, key=lambda names: sum(is_band(n, names) for n in names))  # first of equals
    return [word(n) if n else f"unnamed_{i}" for i, n in enumerate(best, start=1)]


def variable_bands(arrays: Mapping[Any, xr.DataArray]) -> dict[str, str]:
    """Variables without a band dimension that are one Sentinel-2 band each.

    Parameters
    ----------
    arrays : mapping of str to DataArray
        What lies beside one another: ``swir_2`` is understood beside the others.

    Returns
    -------
    dict of str to str
        Variable to canonical name. One band may stand there several times (B02_10m, B02_20m).
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
    """Canonical name of the one band that was selected, ``.sel(band="B04")``."""
    for name, coord in da.coords.items():
        if str(name).lower() in BAND and coord.ndim == 0 and is_band(coord.item()):
            return band_name(str(coord.item()))
    return None


def mixed_bands(da: xr.DataArray) -> list[str]:
    """Names along the band dimension that are no Sentinel-2 bands, beside others that are."""
    labels = band_labels(da) or []
    strange = [name for name in labels if not is_band(name, labels)]
    return strange if len(strange) < len(labels) else []


def name_bands(
    ds: xr.Dataset,
    bands: Sequence[str] | None,
    images: Iterable[str],
    said: list[str],
) -> xr.Dataset:
    """Bands called by Sentinel-2's names, and what is no band split off as a variable.

    Parameters
    ----------
    ds : Dataset
        As it was opened.
    bands : sequence of str, optional
        What the user calls them, in the order of the file; overrules what the file says. Names
        of no band, such as SCL, are split off.
    images : iterable of str
        Variables that may be reflectance.
    said : list of str
        Gets a line about everything that was taken for something else than it is called.

    Raises
    ------
    UnsupportedArrayError
        As many ``bands`` as no variable has, or the same band twice.
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
    if known_bands(given) is None:  # the same band twice: encoding says so
        return ds
    extras = [i for i in range(len(labels)) if i not in keep]
    shared = [n for n in ds.data_vars if dim in ds[n].dims and str(n) != name]
    if extras and shared:  # another variable needs all of them
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
        names = np.array(list(canonical.values()), object)  # U3 is no type of Zarr v3
        out = out.assign_coords({dim: (dim, names, _attrs(ds, dim))})
    out = out.assign(split)
    if extras:
        out[name].attrs = _of_bands(ds[name].attrs, len(labels), keep)
    return out


def _of_bands(attrs: Mapping[Any, Any], count: int, chosen: Sequence[int]) -> dict[Any, Any]:
    """Attributes of some of ``count`` bands."""
    return {
        key: [value[i] for i in chosen]
        if key in _PER_BAND and isinstance(value, list | tuple | np.ndarray) and len(value) == count
        else value
        for key, value in attrs.items()
    }


def _attrs(ds: xr.Dataset, dim: str) -> Mapping[Any, Any]:
    return ds[dim].attrs if dim in ds.coords else {}


def _check_known(bands: Sequence[str]) -> None:
    """Some bands, none of them twice."""
    if not any(is_band(b, bands) for b in bands):
        band_names(bands)  # says which are known
    known_twice = [b for b in bands if is_band(b, bands)]
    band_names(known_twice)
    if len(set(bands)) < len(bands):
        raise UnsupportedArrayError(f"bands {', '.join(bands)}: give each name once")


def _differs(before: Any, band: str) -> bool:
    """Whether a name says less than the band's: B2 and b02_10m say the same as B02."""
    return not re.fullmatch(rf"b0?{band[1:].lstrip('0').lower()}(_\d+m)?", str(before).lower())


def _only_count(names: Sequence[Any]) -> bool:
    """0 to N - 1 or 1 to N, bare or after the word band, which names nothing."""
    numbers = [_NUMBER.fullmatch(str(name)) for name in names]
    found = [int(number[1]) for number in numbers if number]
    count = len(names)
    return len(found) == count and found in ([*range(count)], [*range(1, count + 1)])
