"""Stack variables of one band each into one array of all bands, and unstack it again.

TEC encodes the bands of an array together. That takes about half the bytes of separate variables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import (
    BAND,
    band_labels,
    counted,
    find_dim,
    known_bands,
    name_bands,
    reflectance_names,
    stored_spec,
    variable_bands,
    word,
)
from tec_zarr.cubes.nodata import KEYS, unencoded
from tec_zarr.cubes.packing import PACKING, STACKED_AS_READ, is_as_read
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import BANDS

STACKED = "tec_stacked"
"""Attribute of a stacked array: its original variables and their attributes, as JSON."""

SELECTED = "tec_stacked_band"
"""Attribute of a stacked array: the scalar coordinate ``band`` that the variables had."""

NAME = "reflectance"
"""Name of a stacked array."""


def stack_bands(
    obj: xr.DataArray | xr.Dataset,
    bands: Sequence[str] | None = None,
    *,
    said: list[str] | None = None,
) -> xr.Dataset:
    """Stack the bands into one array, which TEC encodes best. Other layers become variables.

    Parameters
    ----------
    obj : DataArray or Dataset
        Bands along a dimension, or as variables. Dtype and units stay as they are. Lazy data stay
        lazy.
    bands : sequence of str, optional
        Names along the band dimension, if the data do not name them.
    said : list of str, optional
        Gets a line about each change.

    Returns
    -------
    Dataset
        Variables of one Sentinel-2 band each become one variable ``reflectance``
        (..., band, y, x), in the order of wavelengths, if they have the same dimensions, dtype,
        packing and nodata. `unstack_bands` undoes that. Layers along a band dimension that are not
        bands (SCL, a mask, a date) become variables.

    Raises
    ------
    UnsupportedArrayError
        ``bands`` does not fit the data.
    """
    said = [] if said is None else said
    ds = obj.to_dataset(name=obj.name or NAME) if isinstance(obj, xr.DataArray) else obj
    ds = name_bands(ds, bands, counted(ds), said)
    if NAME in ds.variables:
        return ds
    found = alike(ds, reflectance_names(ds))
    if len(found) < 2:
        return ds
    where = next(i for i, n in enumerate(ds.data_vars) if str(n) in found)
    image = stacked(ds, found)
    if "band" in ds.coords and ds.band.ndim == 0:
        image.attrs[SELECTED] = ds.band.item()
    rest = [(n, ds[n]) for n in ds.data_vars if str(n) not in found]
    rest.insert(min(where, len(rest)), (NAME, image))
    out = ds.drop_vars(["band", *found], errors="ignore").assign_coords(image.coords)
    pairs = ", ".join(n if n == band else f"{n} as {band}" for n, band in found.items())
    said.append(f"{NAME}: {len(found)} variables stacked: {pairs}")
    return out.assign(dict(rest))[[n for n, _ in rest]]


def alike(ds: xr.Dataset, names: Iterable[str]) -> dict[str, str]:
    """Return the largest group of variables that can form one array, in the order of wavelengths.

    Returns
    -------
    dict of str to str
        Name of the variable to canonical name of its band.
    """
    names = set(names)
    alone = {n: b for n, b in variable_bands(ds.data_vars).items() if n in names}
    groups: dict[str, dict[str, str]] = {}
    for name, band in sorted(alone.items(), key=lambda pair: (list(BANDS).index(pair[1]), pair)):
        group = groups.setdefault(repr(_kind(ds[name])), {})
        if band not in group.values():  # Of B02_10m and B02_20m take the first.
            group[name] = band
    return max(groups.values(), key=len, default={})


def stacked(ds: xr.Dataset, found: Mapping[str, str]) -> xr.DataArray:
    """Stack variables into one array (..., band, y, x).

    Parameters
    ----------
    ds : Dataset
        It holds the variables.
    found : mapping of str to str
        Name of each variable to name of its band, from `alike`.
    """
    parts = [ds[name].variable for name in found]
    *outer, y, x = parts[0].dims
    image = xr.Variable.concat(parts, "band")
    if image.chunks is not None:
        image = image.chunk({"band": -1})
        if all(is_as_read(ds[name]) for name in found):
            name = f"{STACKED_AS_READ}{image.data.name}"
            image.data = image.data.map_blocks(_itself, dtype=image.dtype, name=name)
    image = image.transpose(*outer, "band", y, x)
    own = {name: _plain(ds[name].attrs) for name in found}
    common = shared(list(own.values()))
    own = {n: {k: v for k, v in a.items() if k not in common} for n, a in own.items()}
    image.attrs = {**common, STACKED: json.dumps(own)}
    coords = {n: c for n, c in ds[next(iter(found))].coords.items() if n != "band"}
    bands = np.array(list(found.values()), dtype=object)  # Zarr v3 has no dtype U3.
    out = xr.DataArray(image, coords | {"band": bands}, name=NAME)
    out.encoding = {k: v for k, v in parts[0].encoding.items()
                    if k in (*PACKING, "grid_mapping", "_Unsigned")}  # fmt: skip
    return out


def single_array(ds: xr.Dataset, names: set[str]) -> xr.DataArray:
    """Return the reflectance variables ``names`` of ``ds`` as one array (..., band, y, x).

    Raises
    ------
    UnsupportedArrayError
        ``ds`` has none of these variables.
    """
    chosen = [n for n in ds.data_vars if n in names]
    if not chosen:
        raise UnsupportedArrayError(
            f"no Sentinel-2 reflectance among the variables {[str(n) for n in ds.data_vars]}"
        )
    if len(chosen) == 1:
        return _labelled(ds[chosen[0]])
    found, parts = alike(ds, names), [ds[name] for name in chosen]
    if set(found) == names:
        out = stacked(ds, found)
    else:
        array = ds[chosen].to_array("band")
        order = [d for d in array.dims if d != "band"]
        out = array.transpose(*order[:-2], "band", *order[-2:]).rename(NAME)
        nodata = {value for da in parts for value in unencoded(da)}
        out.attrs = shared([da.attrs for da in parts]) | ({"nodata": [*nodata]} if nodata else {})
        out.encoding = shared([da.encoding for da in parts], PACKING)
    if codec := stored_spec(parts[0]):  # It holds the nodata values that the user gave it.
        out.encoding["serializer"] = codec
    return out


def shared(
    found: Sequence[Mapping[Any, Any]], keys: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return the entries that are the same in all mappings; only those of ``keys``, if given."""
    first, *others = found
    return {
        key: first[key]
        for key in (first if keys is None else keys)
        if key in first and all(key in o and _same(o[key], first[key]) for o in others)
    }


def _labelled(da: xr.DataArray) -> xr.DataArray:
    """Return the array with band names in its coordinate.

    If the coordinate has none, they come from the codec or from descriptions.
    """
    spec, dim = stored_spec(da), find_dim(da, BAND)
    labels = [word(b) for b in da[dim].values] if dim in da.coords else []
    if dim is None or known_bands(labels or ["?"]) is not None:
        return da
    names = spec.bands if spec is not None else known_bands(band_labels(da) or ["?"])
    if names is None or len(names) != da.sizes[dim]:
        return da
    out = da.assign_coords({dim: list(names)})
    out.encoding = da.encoding
    return out


def made_of(da: xr.DataArray) -> list[str]:
    """Return the names of the variables that a stacked array was made from."""
    return list(json.loads(da.attrs[STACKED])) if STACKED in da.attrs else []


def _places(
    da: xr.DataArray, own: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]
) -> dict[str, int]:
    """Return the original variables of a stacked array, and where their bands are in it now."""
    layer = da.isel(band=0, drop=True)
    bands = variable_bands({n: layer.assign_attrs({**common, **a}) for n, a in own.items()})
    labels = [str(b) for b in da["band"].values] if "band" in da.coords else list(bands.values())
    places = {n: labels.index(bands[n]) for n in own if bands.get(n) in labels}
    if not len(places) == len(labels) == da.sizes["band"]:
        raise UnsupportedArrayError(
            f"the bands of {da.name!r} are {', '.join(labels)}, those that were stacked "
            f"{', '.join(map(str, bands.values()))}: give the coordinate 'band' the names of the "
            "latter, or remove the attribute 'tec_stacked'"
        )
    return places


def unstack_bands(ds: xr.Dataset) -> xr.Dataset:
    """Undo `stack_bands`: a variable for each band again.

    Parameters
    ----------
    ds : Dataset
        Shape of ``reflectance``: (..., band, y, x) as `stack_bands` made it, or some of its bands
        in any order. DN or reflectance, of any dtype. Lazy data stay lazy. Other datasets are
        returned as they are.

    Returns
    -------
    Dataset
        The original variables (..., y, x) with their names, attributes, dtype and units. Bands
        that were left out since are not there.

    Raises
    ------
    UnsupportedArrayError
        The coordinate ``band`` does not name the bands that were stacked.
    """
    stacks = {str(n): da for n, da in ds.data_vars.items() if STACKED in da.attrs}
    for name in [n for n, da in stacks.items() if "band" in da.dims]:
        da = ds[name]
        own = json.loads(da.attrs[STACKED])
        common = {k: v for k, v in da.attrs.items() if k not in (STACKED, SELECTED)}
        parts = {}
        for variable, i in _places(da, own, common).items():
            part = da.isel(band=i, drop=True)
            part.attrs, part.encoding = {**common, **own[variable]}, dict(da.encoding)
            for key in ("chunks", "preferred_chunks", "shards", "original_shape"):
                part.encoding.pop(key, None)
            parts[variable] = part
        rest = ds.drop_vars(name)
        if "band" not in {d for v in rest.data_vars.values() for d in v.dims}:
            rest = rest.drop_vars("band")
        order = [v for n in ds.data_vars for v in (parts if n == name else [n])]
        ds = rest.assign(parts)[order]
        if SELECTED in da.attrs and "band" not in ds.variables:
            ds = ds.assign_coords(band=da.attrs[SELECTED])
    return ds


def _kind(da: xr.DataArray) -> tuple[Any, ...]:
    """Return a key that is equal for arrays that can be stacked.

    It includes nodata and packing, because a stacked array has only one of each.
    """
    packing = [str(da.encoding.get(key)) for key in (*PACKING, "grid_mapping")]
    said = [str(da.attrs.get(key)) for key in (*PACKING, *KEYS, "units")]
    return (da.dims, da.shape, str(da.dtype), packing, said)


def _itself(block: np.ndarray) -> np.ndarray:
    return block


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert attributes to values that JSON can hold. All other values become text."""
    return {str(k): v.tolist() if isinstance(v, np.ndarray | np.generic) else v
            if isinstance(v, str | int | float | list | tuple | dict | None) else str(v)
            for k, v in attrs.items()}  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    return repr(_plain({"": a})) == repr(_plain({"": b}))
