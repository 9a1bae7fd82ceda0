"""One array of all bands instead of one variable a band, and back.

TEC codes bands together: stacked they cost about half of what they cost one by one.
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
"""Attribute of a stacked array: JSON of the variables it was made of, and their attributes."""

SELECTED = "tec_stacked_band"
"""Attribute of a stacked array: the scalar coordinate ``band`` that the variables had."""

NAME = "reflectance"
"""What a stacked array is called."""


def stack_bands(
    obj: xr.DataArray | xr.Dataset,
    bands: Sequence[str] | None = None,
    *,
    said: list[str] | None = None,
) -> xr.Dataset:
    """The bands in one array, as TEC codes them best; what is no band beside it.

    Parameters
    ----------
    obj : DataArray or Dataset
        Bands along a dimension, or as variables. Dtype and units stay as they are, lazy data
        stay lazy.
    bands : sequence of str, optional
        Names along the band dimension, where nothing else says them.
    said : list of str, optional
        Gets a line about everything that was done.

    Returns
    -------
    Dataset
        Variables of the same dimensions, dtype, packing and nodata that are one Sentinel-2 band
        each are one variable ``reflectance`` (..., band, y, x), in the order of wavelengths;
        `unstack_bands` gives them back. Bands along a dimension that are none (SCL, a mask, a
        date) are variables of their own.

    Raises
    ------
    UnsupportedArrayError
        ``bands`` that do not fit.
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
    """The most variables that can be one array, in the order of wavelengths, with their bands."""
    names = set(names)
    alone = {n: b for n, b in variable_bands(ds.data_vars).items() if n in names}
    groups: dict[str, dict[str, str]] = {}
    for name, band in sorted(alone.items(), key=lambda pair: (list(BANDS).index(pair[1]), pair)):
        group = groups.setdefault(repr(_kind(ds[name])), {})
        if band not in group.values():  # of B02_10m and B02_20m the first
            group[name] = band
    return max(groups.values(), key=len, default={})


def stacked(ds: xr.Dataset, found: Mapping[str, str]) -> xr.DataArray:
    """Variables in one array (..., band, y, x): names to bands, as of `alike`."""
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
    bands = np.array(list(found.values()), dtype=object)  # U3 is no type of Zarr v3
    out = xr.DataArray(image, coords | {"band": bands}, name=NAME)
    out.encoding = {k: v for k, v in parts[0].encoding.items()
                    if k in (*PACKING, "grid_mapping", "_Unsigned")}  # fmt: skip
    return out


def single_array(ds: xr.Dataset, names: set[str]) -> xr.DataArray:
    """One (..., band, y, x) array of the reflectance variables ``names`` of ``ds``.

    Raises
    ------
    UnsupportedArrayError
        If there are none.
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
    if codec := stored_spec(parts[0]):  # it knows what it was told of nodata
        out.encoding["serializer"] = codec
    return out


def shared(
    found: Sequence[Mapping[Any, Any]], keys: Iterable[str] | None = None
) -> dict[str, Any]:
    """Entries (of ``keys``, default all) that are the same in all of several attributes."""
    first, *others = found
    return {
        key: first[key]
        for key in (first if keys is None else keys)
        if key in first and all(key in o and _same(o[key], first[key]) for o in others)
    }


def _labelled(da: xr.DataArray) -> xr.DataArray:
    """With the bands' names that the codec or a description has, where the coordinate has none."""
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
    """Names of the variables that a stacked array was made of."""
    return list(json.loads(da.attrs[STACKED])) if STACKED in da.attrs else []


def unstack_bands(ds: xr.Dataset) -> xr.Dataset:
    """The variables that `stack_bands` stacked, with their names and attributes."""
    for name in [str(n) for n, da in ds.data_vars.items() if STACKED in da.attrs]:
        da = ds[name]
        own = json.loads(da.attrs[STACKED])
        common = {k: v for k, v in da.attrs.items() if k not in (STACKED, SELECTED)}
        parts = {}
        for i, (variable, attrs) in enumerate(own.items()):
            part = da.isel(band=i, drop=True)
            part.attrs, part.encoding = {**common, **attrs}, dict(da.encoding)
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
    """Equal for arrays that can be one: a difference in nodata or packing would be lost."""
    packing = [str(da.encoding.get(key)) for key in (*PACKING, "grid_mapping")]
    said = [str(da.attrs.get(key)) for key in (*PACKING, *KEYS, "units")]
    return (da.dims, da.shape, str(da.dtype), packing, said)


def _itself(block: np.ndarray) -> np.ndarray:
    return block


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON has them; what it cannot hold as text."""
    return {str(k): v.tolist() if isinstance(v, np.ndarray | np.generic) else v
            if isinstance(v, str | int | float | list | tuple | dict | None) else str(v)
            for k, v in attrs.items()}  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    return repr(_plain({"": a})) == repr(_plain({"": b}))
