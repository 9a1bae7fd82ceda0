"""Decide which arrays of a source are reflectance, and how the target stores these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import dask.array
import numpy as np
import xarray as xr
import zarr

from tec_zarr.bounds.request import index_bands
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    find_dim,
    known_bands,
    likely,
    may_have_bands,
    names_bands,
    variable_bands,
    word,
)
from tec_zarr.cubes.encoding import encoding
from tec_zarr.cubes.layout import CHUNK, SHARD_SIDE
from tec_zarr.cubes.nodata import declared
from tec_zarr.cubes.packing import bounds_in, cf_line, fill_values, packed_spec
from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.recompression.settings import Settings
from tec_zarr.sentinel2 import DN_PER_REFLECTANCE
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.packing_codecs import packing_of

REGION_BYTES = 256 * 2**20
"""Largest size in memory that a region of reflectance grows to."""


COPY_BYTES = 32 * 2**20
"""Size in memory of the regions in which all other arrays are copied."""


DIMENSIONS = "_ARRAY_DIMENSIONS"
"""Attribute in which Zarr format 2 stores the names of the dimensions."""


def describe_array(
    path: str, array: zarr.Array, sources: Mapping[str, zarr.Array], settings: Settings
) -> xr.DataArray:
    """Return a DataArray with the array's name, dimensions and bands. Its data are lazy zeros."""
    shape, name = array.shape, path.rpartition("/")[2]
    dims = dimensions(array)
    if dims is None and array.ndim == 4 and _is_called_reflectance(path, settings):
        dims = ("time", "band", "y", "x")
    dims = tuple(d or f"dim_{i}" for i, d in enumerate(dims or [None] * array.ndim))
    dtype = array.dtype if array.dtype.kind in "biuf" else np.dtype("uint8")
    data = dask.array.zeros(shape, dtype=dtype, chunks=shape or ())
    da = xr.DataArray(data, dims=dims, name=name, attrs=dict(array.attrs))
    band = find_dim(da, BAND)
    folder = path[: len(path) - len(name)]
    coordinate = sources.get(f"{folder}{band}")
    if band is not None and coordinate is not None and coordinate.shape == (da.sizes[band],):
        da = da.assign_coords({band: [word(b) for b in np.asarray(coordinate[:]).tolist()]})
    return da


def _is_called_reflectance(path: str, settings: Settings) -> bool:
    """Return whether the user or its own name calls an array reflectance.

    This is asked of arrays whose dimensions have no names: these could also hold classes.
    """
    name = path.rpartition("/")[2]
    if settings.variables is not None:
        return path in settings.variables or name in settings.variables
    return name == "reflectance" or known_bands([name]) is not None


def dimensions(array: zarr.Array) -> Sequence[str | None] | None:
    """Return the names of an array's dimensions; None if it has none."""
    if array.metadata.zarr_format == 3:
        return array.metadata.dimension_names
    return cast("Sequence[str | None] | None", array.attrs.get(DIMENSIONS))


def reflectance_array(sources: Mapping[str, zarr.Array], settings: Settings) -> set[str]:
    """Return the paths of the arrays to encode with TEC.

    Raises
    ------
    UnsupportedArrayError
        A variable of the settings does not exist, or no array looks like reflectance.
    RecompressError
        An array is stored with TEC already.
    """
    if settings.variables is None:
        chosen = set()
        found = {path: describe_array(path, array, sources, settings)
                 for path, array in sources.items() if array.ndim > 1}  # fmt: skip
        for group in {path.rpartition("/")[0] for path in found}:
            beside = {p: da for p, da in found.items() if p.rpartition("/")[0] == group}
            alone = variable_bands({da.name: da for da in beside.values()})
            chosen |= likely({p: names_bands(da.name or "array", da, str(da.name) in alone)
                              for p, da in beside.items()})  # fmt: skip
        if not chosen and settings.bands is not None:
            chosen = {p for p, da in found.items() if may_have_bands(da.name, da)
                      and da.sizes[find_dim(da, BAND)] == len(settings.bands)}  # fmt: skip
    else:
        meant = {v: {p for p in sources if v in (p, p.rpartition("/")[2])}
                 for v in settings.variables}  # fmt: skip
        missing = sorted(v for v, paths in meant.items() if not paths)
        if missing:
            raise UnsupportedArrayError(f"no arrays {missing} in {sorted(sources)}")
        chosen = set().union(*meant.values())
    if not chosen:
        images = sorted(path for path, array in sources.items() if array.ndim > 1)
        raise UnsupportedArrayError(
            f"none of {sorted(sources)} looks like Sentinel-2 reflectance: name the arrays "
            f"(variables={images[:1]}, --variables), an array without a name as '', or "
            "the bands of arrays that only number them (bands=['B02', ...], --bands)"
        )
    coded = sorted(p for p in chosen if tec_spec(sources[p]) is not None)
    if coded:
        raise RecompressError(
            f"{coded} are stored with TEC already: coding them again would lose quality a second "
            "time. Start from the source data, or leave TEC first (tec-zarr decode). To the other "
            "Zarr format, or into shards, tec-zarr transcode moves them without any loss"
        )
    return chosen


def tec_storage(
    path: str, da: xr.DataArray, array: zarr.Array, settings: Settings
) -> dict[str, Any]:
    """Return chunks, shards and codec of a reflectance array, as from :func:`tec_zarr.encoding`."""
    attrs: dict[str, Any] = dict(array.attrs)
    name = str(da.name or "array")
    arguments: dict[str, Any] = settings.options | {
        "nodata": tuple(dict.fromkeys((*settings.fill_values, *_missing(path, array)))),
        "zarr_format": settings.zarr_format,
        "chunks": settings.chunks,
        "shards": settings.shards,
        "variables": [name],
    }
    aligned = da.chunk(dict(zip(da.dims, _block(da, array), strict=True)))
    try:
        storage = encoding(aligned.rename(name), **arguments)[name]
    except UnsupportedArrayError:
        # Perhaps no chunk of a sensible size divides the source's chunks: ignore these. If the
        # error has another cause, it is raised again.
        storage = encoding(da.rename(name), **arguments)[name]
    slot = "serializer" if settings.zarr_format == 3 else "compressors"
    behind = packing_of(array.filters)
    if behind is not None and settings.zarr_format == 3:
        # The target's floats are made by the codecs of the source, so TEC gets the same integers.
        spec = packed_spec(storage[slot], *cf_line(behind))
        storage |= {slot: replace(spec, nodata=fill_values(behind)), "filters": array.filters}
        _check_bounds(path, storage[slot], behind["scale_factor"])
        return storage
    factor = attrs.get("scale_factor")
    if factor:
        storage[slot] = bounds_in(float(factor), storage[slot])
        _check_bounds(path, storage[slot], float(factor))
    return storage


def _check_bounds(path: str, spec: ChunkSpec, factor: float) -> None:
    """Refuse bounds that were meant in DN, although the data have a scale factor.

    Such bounds would be a reflectance of 1 or more, and would destroy the data.
    """
    bounds: Any = spec.max_error
    if isinstance(bounds, Mapping):
        bounds = [value for name, value in bounds.items() if index_bands(name) is None]
    largest = 0 if bounds is None else max(np.atleast_1d(bounds), default=0)
    if largest >= DN_PER_REFLECTANCE * (spec.scale or 1):
        raise UnsupportedArrayError(
            f"max_error of {largest * factor:g} for array {path!r} is a reflectance of 1 or more, "
            f"because its scale_factor is {factor:g}: bounds are in the units that CF readers see, "
            f"in which 5 DN are {5 / DN_PER_REFLECTANCE:g}"
        )


def _missing(path: str, array: zarr.Array) -> tuple[float, ...]:
    """Return the nodata values that the fill value or the attributes declare."""
    padding = declared({"_FillValue": array.fill_value}, array.dtype, path)
    return tuple(v for v in (*padding, *declared(array.attrs, array.dtype, path)) if v == v)


def _block(da: xr.DataArray, array: zarr.Array) -> tuple[int, ...]:
    """Return a shape of whole source chunks, about as long as a shard, up to REGION_BYTES."""
    roles: dict[Any, str] = {find_dim(da, TIME): "time", find_dim(da, BAND): "band",
             find_dim(da, Y): "space", find_dim(da, X): "space"}  # fmt: skip

    def sides(space: int) -> tuple[int, ...]:
        wanted = {"time": CHUNK["time"], "space": space}
        return tuple(
            size
            if roles.get(dim) == "band"
            else min(size, max(1, wanted.get(roles.get(dim, ""), 1) // chunk) * chunk)
            for dim, size, chunk in zip(da.dims, da.shape, array.chunks, strict=True)
        )

    for space in (SHARD_SIDE, SHARD_SIDE // 2):
        if math.prod(sides(space)) * array.dtype.itemsize <= REGION_BYTES:
            return sides(space)
    return sides(CHUNK["space"])


def region_of(array: zarr.Array, da: xr.DataArray, made: zarr.Array) -> tuple[int, ...]:
    """Return the shape of a region of an array to encode, in whole shards (or chunks)."""
    outer = made.shards or made.chunks
    return tuple(
        -(-size // step) * step if block >= size else block if block % step == 0 else step
        for size, block, step in zip(array.shape, _block(da, array), outer, strict=True)
    )
