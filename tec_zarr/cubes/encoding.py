"""How xarray objects are laid out in a Zarr store: ``encoding`` to write, ``decode`` to leave.

``xarray`` hands each variable's ``encoding`` to Zarr unchanged. What has to stand there differs
by Zarr format, by dtype and by Dask chunks, and mistakes show only much later; so it is decided
here, once.
"""

from __future__ import annotations

import math
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from tec_zarr.bounds.request import NamedBounds
from tec_zarr.codec.encode import check_unit
from tec_zarr.codec.spec import DTYPES, ChunkSpec, check_gop
from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    band_labels,
    find_dim,
    known_bands,
    mixed_bands,
    selected_band,
    variable_bands,
)
from tec_zarr.cubes.nodata import CF_KEYS, declared, nodata_values, unencoded
from tec_zarr.cubes.packing import time_encoding
from tec_zarr.errors import SecondGenerationWarning, SeparateBandsWarning, UnsupportedArrayError
from tec_zarr.sentinel2 import DN_PER_REFLECTANCE

XrObject = TypeVar("XrObject", xr.DataArray, xr.Dataset, xr.DataTree)

CHUNK = {"time": 4, "space": 256}
"""Default chunk: as many dates and pixels as are read together, and all bands."""

SHARD_SIDE = 1024
"""Longest side of a shard in pixels: an object of about 1 MB instead of sixteen of 60 kB."""

PACKING = ("dtype", "_FillValue", "missing_value", "scale_factor", "add_offset")
"""Keys of a variable's encoding that say which stored numbers its values are, by CF."""

CONTAINER = "tec_compression"
"""Name of the scalar coordinate that says what compressed the data
(`tec_zarr.cubes.provenance`).
"""

UNNAMED = "__xarray_dataarray_variable__"
"""What xarray calls an array without a name in a store."""

_STORAGE_KEYS = ("chunks", "shards", "preferred_chunks", "compressors", "compressor", "filters",
                 "serializer", "source", "original_shape", "write_empty_chunks",
                 "chunk_key_encoding", "cache_metadata", "fill_value")  # fmt: skip

#: What the names of what is no reflectance end in, whatever its dimensions and dtype.
_OTHER_WORDS = re.compile(
    r"(?<![a-z])(scl|masks?|msk|qa|flags?|class(es|ification)?|labels?|prob(ability|abilities)?"
    r"|cldprb|snwprb|aot|wvp|angles?|zenith|azimuth|elevation|dem|dsm|dtm)([\W\d_]*|_?\d+m)$"
)
#: Samples of an array in memory that are looked at together, so that copies stay small.
_AT_ONCE = 2**22
#: Dask's layers of data that a store was opened to and that were cut or rechunked since.
_AS_READ = re.compile(r"(original-)?open_\w+-.*|getitem-.*|rechunk-.*|transpose-.*")

STACKED_AS_READ = "stacked-as-read-"
"""What the name of Dask's layer of stacked arrays starts with, if all are as they were read."""


def encoding(
    obj: xr.DataArray | xr.Dataset,
    *,
    quality: float = 4.0,
    model: str = "tec-s2",
    zarr_format: int = 3,
    bands: Iterable[str] | None = None,
    nodata: float | Sequence[float] | None = 0,
    scale: float | None = None,
    max_error: float | Sequence[float] | Mapping[str, float] | None = None,
    psnr: float | None = None,
    max_bytes: int | None = None,
    gop: int | None = None,
    chunks: Mapping[str, int] | None = None,
    shards: bool = True,
    variables: Iterable[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Encoding to pass to ``to_zarr``: reflectance by TEC, everything else lossless.

    Parameters
    ----------
    obj : DataArray or Dataset
        With dimensions (time, band, y, x), or without time or band; the usual names are known.
    quality : float
        1 (smallest) to 8 (finest).
    model : str
        Name of the learned model.
    zarr_format : {3, 2}
        What ``to_zarr`` is called with.
    bands : iterable of str, optional
        Sentinel-2 names along the band dimension; None takes the band coordinate, descriptions
        (``long_name``) where that only counts, or the variable's name when it has no such
        dimension.
    nodata : number or sequence of numbers, optional
        Values besides NaN that mean "nothing measured"; None for no such value. What the data
        declare (``_FillValue``, ``missing_value``, ``nodata``, ``.rio.nodata``, ...) comes on top.
    scale : float, optional
        Units of floating-point data: 1e-4 for reflectance (the default), 1 for DN. Floats that
        xarray made of integers without a scale factor are DN, and are stored as these integers.
    max_error : number, sequence of numbers or mapping, optional
        Largest absolute error of every sample, in the units of the data (DN, or reflectance for
        floats), for all bands or for each; 0 is lossless. A mapping names them, and indices:
        ``{"ndvi": 0.01}``, ``{"nd:B8A,B04": 0.02, "B02": 5, "all": 50}``. Instead of
        ``quality``, at which only bands are coded that no name stands for.
    psnr, max_bytes : number, optional
        PSNR (dB) that every chunk reaches, or bytes that no chunk exceeds, with the quality
        chosen for each chunk. Instead of ``quality``.
    gop : int, optional
        For temporal models (``model="tec-tt-s2"``): dates of a chunk refer to one another only
        within runs of this many. None: within the chunk, whose length in time is the other way
        to say how much has to be decoded for one date.
    chunks : mapping, optional
        Dimension name to chunk length, -1 for a whole dimension. Default: about 4 dates, all
        bands, about 256 x 256 in equal parts without a sliver at the end, fitted to the Dask
        chunks if there are any.
    shards : bool
        Gather chunks into shards of up to 1024 x 1024 pixels (Zarr v3 only): TEC chunks are tiny.
    variables : iterable of str, optional
        Variables that are reflectance. Default: those with a band dimension whose coordinate
        names Sentinel-2 bands, and those named like a band; if there are none, those with a
        band dimension without names. Never those that flags, a ``standard_name`` or a name such
        as ``scl``, ``mask`` or ``view_zenith`` make something else.

    Returns
    -------
    dict
        Name of every variable and coordinate to its encoding. Times have a unit that clock times
        appended later fit into (`tec_zarr.cubes.packing.time_encoding`).

    Raises
    ------
    UnsupportedArrayError
        Data that TEC cannot take as it is; the message says how to change it.

    Warns
    -----
    SecondGenerationWarning
        When the data were read from a TEC store: encoding them again loses more.
    SeparateBandsWarning
        When bands of one grid are variables of their own, which costs twice the bytes.

    Notes
    -----
    Floating-point data in memory that fit become uint16 DN with the CF attributes
    ``scale_factor`` and ``_FillValue`` 0 (NaN), so that any reader sees reflectance; data that
    xarray unpacked from integers are packed the same way again. Lazy data that were computed
    with, and data with values that integers would wrap, keep their dtype: the codec takes floats
    too and makes the same bytes of them. xarray packs what is appended later without looking:
    where it may hold zero or less, write the first dates as lazy floats (``ds.chunk()``).
    """
    if zarr_format not in (2, 3):
        raise UnsupportedArrayError(f"zarr_format is {zarr_format}, it must be 2 or 3")
    if bands is not None and not isinstance(bands, str):
        bands = tuple(bands)
    if isinstance(obj, xr.DataArray):
        obj = obj.assign_attrs(nodata=unencoded(obj))  # .rio.set_nodata is of this object only
        obj = obj.to_dataset(name=UNNAMED if obj.name is None else str(obj.name))
        name, da = next(iter(obj.data_vars.items()))
        strange = mixed_bands(da) if bands is None else []
        if strange and variables is None:
            raise UnsupportedArrayError(_split_off(str(name), strange))
        if variables is None and not _is_something_else(name, da):
            variables = [str(name)]
    reflectance = chosen_variables(obj, variables, bands)
    alone = variable_bands(obj.data_vars)
    _warn_separate_bands({n: obj[n] for n in reflectance if n in alone})
    arrays = {str(n): obj[n] for n in obj.variables}
    out: dict[str, dict[str, Any]] = {}
    for name, da in arrays.items():
        if name in reflectance:
            names = _bands_of(name, da, bands, alone)
            spec = ChunkSpec(
                model=model, quality=quality, bands=names, nodata=nodata, scale=scale,
                max_error=max_error, psnr=psnr, max_bytes=max_bytes, gop=gop,
            )  # fmt: skip
            check_gop(spec)
            if not spec.is_lossless:
                _warn_second_generation(name, da)
            out[name] = _tec(name, da, spec, zarr_format, chunks, shards)
        else:  # also for text and scalars: xarray keeps the codecs of what has no entry
            numbers = da.ndim and da.dtype.kind in "biufmM"
            out[name] = (_lossless(zarr_format) if numbers else {}) | _lossless_packing(da)
        if "grid_mapping" in da.encoding:  # to_zarr forgets what is not repeated
            out[name]["grid_mapping"] = da.encoding["grid_mapping"]
    if spec.is_lossless:
        out.pop(CONTAINER, None)  # describe drops it
    return out


def chosen_variables(
    ds: xr.Dataset, variables: Iterable[str] | None, bands: Iterable[str] | None = None
) -> set[str]:
    """Variables of ``ds`` that are to be coded as reflectance.

    ``bands``, if given, names those of the variables that have as many bands and no names.

    Raises
    ------
    UnsupportedArrayError
        ``variables`` that are not there, or none given and none found.
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
    """Whether ``da`` may be reflectance of bands that only have to be named."""
    return _could_be_reflectance(name, da) and find_dim(da, BAND) is not None


def counted(ds: xr.Dataset) -> list[str]:
    """Variables of ``ds`` that may be reflectance: images with a band dimension."""
    return [str(n) for n, da in ds.data_vars.items() if may_have_bands(n, da)]


def _why_none(ds: xr.Dataset) -> str:
    """Why no variable is taken for reflectance, and what makes one of it."""
    arrays = {str(n): da for n, da in ds.data_vars.items()}
    images = {n: da for n, da in arrays.items() if find_dim(da, Y) and find_dim(da, X)}
    alone = variable_bands(ds.data_vars)
    for name, da in images.items():
        named = name in alone or known_bands(band_labels(da) or ["?"]) is not None
        if named and da.dtype.name not in DTYPES and not _is_something_else(name, da):
            return (
                f"{name!r} is {da.dtype}, TEC takes {', '.join(DTYPES)}: make it uint16 or int16 "
                "if all its values fit (.astype, gdal_translate -ot), else float64 with scale=1"
            )
    for name in counted(ds):
        da = ds[name]
        if strange := mixed_bands(da):
            return _split_off(name, strange)
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
    first = next((n for n in likely_meant if not _is_something_else(n, images[n])), likely_meant[0])
    return (
        f"none of {likely_meant} looks like Sentinel-2 reflectance by its name or those of its "
        f"bands: name what is, such as variables=[{first!r}] (--variables {first})"
    )


def _split_off(name: str, strange: list[str]) -> str:
    """What to do about a band that is none."""
    return (
        f"{', '.join(map(repr, strange))} among the bands of {name!r} is no Sentinel-2 band, and "
        "would not be kept exactly: tec_zarr.stack_bands(ds) splits it off (as tec-zarr encode "
        "does); bands=[...] gives Sentinel-2 names to all"
    )


def decode(obj: XrObject) -> XrObject:
    """Same data without the encoding of its store: the way out of TEC.

    Lazy data stay lazy. What belongs to the values (units, CRS, CF packing) is kept, codecs,
    chunks and shards are not: ``tec_zarr.decode(ds).to_zarr("plain.zarr")`` is a plain store.
    Nor is a CF packing that does not hold the values any more, because they were changed or
    come from several stores: they are written as they are, since xarray would wrap them.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        For instance from ``xarray.open_zarr``.

    Returns
    -------
    DataArray, Dataset or DataTree
        A shallow copy.
    """
    if isinstance(obj, xr.DataTree):
        return obj.map_over_datasets(decode)
    out = without_codecs(obj)
    for member in _members(out):
        if not _is_packed_right(member):
            for key in PACKING:
                member.encoding.pop(key, None)
    return out


def without_codecs(obj: XrObject) -> XrObject:
    """A shallow copy without codecs, chunks and shards, and with the packing that it has."""
    out: XrObject = obj.copy(deep=False)
    for member in _members(out):
        for key in _STORAGE_KEYS:
            member.encoding.pop(key, None)
        if member.encoding.pop("char_dim_name", None):  # netCDF's rows of characters
            member.encoding.pop("dtype", None)
    return out


def _members(obj: Any) -> list[xr.DataArray]:
    """The array itself or the variables, and the coordinates."""
    arrays = [obj] if isinstance(obj, xr.DataArray) else obj.data_vars.values()
    return [*arrays, *obj.coords.values()]


def rechunk(ds: xr.Dataset) -> xr.Dataset:
    """Images in Dask chunks that are whole shards, so that no two tasks write the same one."""
    lengths: dict[str, int] = {}
    for da in ds.data_vars.values():
        time, band, y, x = (find_dim(da, names) for names in (TIME, BAND, Y, X))
        if y and x:
            lengths |= {y: SHARD_SIDE, x: SHARD_SIDE}
            lengths |= {time: CHUNK["time"]} if time else {}
            lengths |= {band: -1} if band else {}
    return words_in_memory(ds.chunk(lengths))


def words_in_memory(ds: xr.Dataset) -> xr.Dataset:
    """``ds`` whose words are not lazy: Zarr has to see what kind of words they are."""
    return ds.assign({n: ds[n].compute() for n, v in ds.variables.items()
                      if v.chunks is not None and v.dtype == object})  # fmt: skip


def holds_tec(da: xr.DataArray) -> bool:
    """Whether the encoding of ``da`` says that it was read from TEC chunks."""
    return stored_spec(da) is not None


def stored_spec(da: xr.DataArray) -> ChunkSpec | None:
    """TEC's settings for the chunks that ``da`` was read from, by its encoding, if TEC made them.
    """
    stored = [da.encoding.get("serializer"), da.encoding.get("compressor")]
    for key in ("compressors", "filters"):
        stored += da.encoding.get(key) or ()
    return next((codec for codec in stored if isinstance(codec, ChunkSpec)), None)


def reflectance_names(ds: xr.Dataset) -> set[str]:
    """Variables of ``ds`` that look like Sentinel-2 reflectance."""
    alone = variable_bands(ds.data_vars)
    return likely({str(n): names_bands(n, da, str(n) in alone) for n, da in ds.data_vars.items()})


def likely(named: Mapping[str, bool | None]) -> set[str]:
    """Which of several arrays beside one another are reflectance, from what `names_bands` says."""
    found = {name for name, known in named.items() if known}
    return found or {name for name, known in named.items() if known is False}


def names_bands(name: Any, da: xr.DataArray, alone: bool) -> bool | None:
    """Whether ``da`` says which Sentinel-2 bands it holds; None if it is no reflectance.

    Without names, False, it is reflectance if nothing beside it has names. ``alone``: whether it
    is called like one band.
    """
    if not _could_be_reflectance(name, da):
        return None
    if holds_tec(da):
        return True
    dim = find_dim(da, BAND)
    if dim is None:  # what was selected is a coordinate of everything beside it, too
        return True if alone else None if selected_band(da) is None else False
    labels = band_labels(da)
    if labels is None:
        return False if dim not in da.coords else None
    return known_bands(labels) is not None or None


def _could_be_reflectance(name: Any, da: xr.DataArray) -> bool:
    """By dtype and dimensions, and not marked or named as something else."""
    image = find_dim(da, Y) is not None and find_dim(da, X) is not None
    return da.dtype.name in DTYPES and image and not _is_something_else(name, da)


def _is_something_else(name: Any, da: xr.DataArray) -> bool:
    """Whether flags, CF or the name say that ``da`` is a class, mask, angle, elevation, ..."""
    if holds_tec(da):  # somebody said so before
        return False
    standard = str(da.attrs.get("standard_name", "")).lower()
    return (
        any(key in da.attrs for key in ("flag_values", "flag_masks", "flag_meanings"))
        or bool(standard and not re.search("reflectance|radiance", standard))
        or bool(_OTHER_WORDS.search(str(name).lower()))
    )


def _bands_of(
    name: str, da: xr.DataArray, bands: Iterable[str] | None, alone: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Names that the codec gets; ``alone``: the bands that are variables of their own."""
    if bands is not None:
        return (bands,) if isinstance(bands, str) else tuple(bands)
    if find_dim(da, BAND) is None:  # by the variable's name or by what was selected
        label = alone.get(name) or selected_band(da)
        return None if label is None else (label,)
    labels = band_labels(da)
    return None if labels is None else known_bands(labels)


def _warn_second_generation(name: str, da: xr.DataArray) -> None:
    if holds_tec(da):
        warnings.warn(
            f"{name!r} was read from a TEC store: encoding it again loses quality a second time. "
            "Start from the source data, or leave TEC with "
            "tec_zarr.decode(ds).to_zarr(...) without this encoding.",
            SecondGenerationWarning,
            stacklevel=3,
        )


def _warn_separate_bands(arrays: Mapping[str, xr.DataArray]) -> None:
    """Bands that could be one array cost about twice as much one by one."""
    shapes = Counter((da.dims, da.shape, da.dtype) for da in arrays.values())
    most = max(shapes.values(), default=0)
    if most > 1:
        warnings.warn(
            f"{most} bands are variables of their own: TEC codes bands together, and needs about "
            "half the bytes for ds = tec_zarr.stack_bands(ds); tec_zarr.unstack_bands(ds) makes "
            "variables of them again",
            SeparateBandsWarning,
            stacklevel=3,
        )


def _tec(
    name: str,
    da: xr.DataArray,
    spec: ChunkSpec,
    zarr_format: int,
    chunks: Mapping[str, int] | None,
    shards: bool,
) -> dict[str, Any]:
    order = [find_dim(da, names) for names in (TIME, BAND, Y, X)]
    present = tuple(d for d in order if d is not None)
    if order[2] is None or order[3] is None or da.dims != present:
        raise UnsupportedArrayError(
            f"{name!r} has dimensions {da.dims}; TEC needs (time, band, y, x), in this order, "
            "time and band only where there are several: rename or transpose it first"
        )
    _check_count(name, da, spec, order[1])
    chunk, shard = _layout(name, da, order, chunks, shards and zarr_format == 3)
    out: dict[str, Any] = {"chunks": chunk}
    cf, packed = _cf_packing(da, spec)
    _check_unit(da, spec if cf else packed, cf)
    spec = replace(packed, nodata=(*packed.fill_values, *_stored_nodata(da, cf)))
    out |= cf
    arguments = spec.to_config()
    if zarr_format == 3:
        from tec_zarr.codec.zarr_codec import TECCodec

        out |= {"serializer": TECCodec(**arguments), "compressors": ()}
        return out | ({"shards": shard} if shard else {})
    from tec_zarr.codec.numcodecs_codec import TEC

    return out | {"compressors": TEC(**arguments), "filters": None}


def _check_unit(da: xr.DataArray, spec: ChunkSpec, cf: Mapping[str, Any]) -> None:
    """Refuse floats in memory that are plainly not in the unit of ``spec``; integers without a
    scale factor, which ``cf`` makes of them again, are DN.
    """
    whole = bool(cf) and "scale_factor" not in cf
    if da.dtype.kind != "f" or da.chunks is not None or spec.max_error is not None or whole:
        return
    some = da.values.reshape(-1)[:: max(1, da.size // _AT_ONCE) | 1]
    check_unit(some, replace(spec, nodata=(*spec.fill_values, *unencoded(da))))


def _check_count(name: str, da: xr.DataArray, spec: ChunkSpec, band: str | None) -> None:
    """Names and bounds have to be as many as there are bands."""
    count = da.sizes[band] if band else 1
    for label, given in (("bands", spec.bands), ("max_error", spec.max_error)):
        if isinstance(given, tuple) and len(given) != count:
            raise UnsupportedArrayError(
                f"{label} has {len(given)} entries, {name!r} has {count} bands: give one for each"
            )


def _fills(packing: Mapping[str, Any]) -> list[float]:
    """Finite numbers that stand for nodata by CF."""
    return [v for v in declared(packing, np.dtype("f8"), keys=CF_KEYS) if math.isfinite(v)]


def _stored_nodata(da: xr.DataArray, cf: Mapping[str, Any]) -> list[float]:
    """What ``da`` says is nodata, in the units in which it is stored with the packing ``cf``."""
    if cf and cf != _stored_packing(da):  # integers made now: nothing but NaN was nodata
        return _fills(cf)
    found = [*_fills(cf), *nodata_values(da)]
    line = unpacking(da)
    if not cf and line != (1, 0):  # floats made of integers, stored as floats
        found += [float(da.dtype.type(value * line[0] + line[1])) for value in found]
    return found


def unpacking(da: xr.DataArray) -> tuple[float, float]:
    """Factor and sum that made values of the integers that ``da`` was stored as; else 1 and 0."""
    stored = _stored_packing(da)
    return (1, 0) if stored is None else cf_line(stored)


def _cf_packing(da: xr.DataArray, spec: ChunkSpec) -> tuple[dict[str, Any], ChunkSpec]:
    """CF keys that make integers of floats where that wraps nothing, and the codec's settings.

    With CF packing the codec sees the packed integers, without it the floats themselves.
    """
    if da.dtype.kind != "f":
        return {}, _in_stored_units(da, spec)
    stored = _stored_packing(da)
    exact = _has_exact_band(spec)
    whole = stored is not None and cf_line(stored) == (1, 0)
    if stored and whole and spec.scale in (None, 1) and holds(da, stored, on_grid=True):
        # A file of integers without a scale factor holds DN.
        known = np.dtype(stored["dtype"]).name in DTYPES
        kept = known and not (exact and not _gives_same_bits(da, stored))
        return (stored, spec) if kept else ({}, replace(spec, scale=1))
    if any(spec.fill_values):  # what rounds to a nodata value would be one
        return {}, _in_stored_units(da, spec)
    unit = spec.scale or 1 / DN_PER_REFLECTANCE
    if stored and "scale_factor" in stored and np.dtype(stored["dtype"]).name in DTYPES:
        on_grid = spec.max_error is not None
        if not holds(da, stored, on_grid) or (exact and not _gives_same_bits(da, stored)):
            return {}, spec
        return stored, packed_spec(spec, *cf_line(stored))
    packed = any(key in da.attrs for key in PACKING)
    if exact or da.chunks is not None or packed or any(unencoded(da)):
        return {}, _in_stored_units(da, spec)
    cf = {"dtype": "uint16", "_FillValue": 0, "scale_factor": unit, "add_offset": 0.0}
    if not _fits(da, cf, spec.max_error is not None):
        return {}, spec
    return cf, bounds_in(unit, replace(spec, scale=None))


def _has_exact_band(spec: ChunkSpec) -> bool:
    """Whether some band has to come back bit for bit, which integers do not do for most floats."""
    bounds: Any = spec.max_error
    if isinstance(bounds, Mapping):
        bounds = list(bounds.values())
    return bounds is not None and bool((np.asarray(bounds) == 0).any())


def _gives_same_bits(da: xr.DataArray, packing: Mapping[str, Any]) -> bool:
    """Whether a reader gets the very floats of ``da`` from integers of the packing, which holds
    them. Lazy data are as they were read: only their dtype can differ."""
    plain = {k: v if k == "dtype" else np.asarray(v).item() for k, v in packing.items()}
    attrs = {k: v for k, v in plain.items() if k != "dtype"}
    parts = [np.zeros(0, da.dtype)] if is_as_read(da) else _parts(da)
    for part in parts:
        stored = xr.conventions.encode_cf_variable(xr.Variable("x", part, encoding=plain)).values
        back = xr.conventions.decode_cf_variable("", xr.Variable("x", stored, attrs)).values
        same = back.dtype == part.dtype and np.array_equal(back, part, equal_nan=True)
        if not same or (np.signbit(back) != np.signbit(part))[part == 0].any():
            return False
    return True


def _in_stored_units(da: xr.DataArray, spec: ChunkSpec) -> ChunkSpec:
    """Settings for numbers that CF attributes, not applied yet, make reflectance of.

    Bounds are in the units of the numbers.
    """
    line = cf_line(da.attrs)
    if spec.scale is not None or line == (1, 0):
        return spec
    return replace(packed_spec(replace(spec, max_error=None), *line), max_error=spec.max_error)


def _stored_packing(da: xr.DataArray) -> dict[str, Any] | None:
    """CF keys of the integers that xarray made floats of when it read ``da``, if it did."""
    stored = {k: da.encoding[k] for k in PACKING if da.encoding.get(k) is not None}
    if da.dtype.kind != "f" or np.dtype(stored.get("dtype", "f4")).kind not in "iu":
        return None
    if da.encoding.get("_Unsigned"):  # integers that are not what their dtype says
        return None
    fills = _fills({k: stored.pop(k, ()) for k in CF_KEYS})
    stored |= {"_FillValue": fills[0]} if fills else {}  # all of them are NaN by now
    if cf_line(stored) == (1, 0):
        stored = {k: v for k, v in stored.items() if k not in ("scale_factor", "add_offset")}
    return stored


def cf_line(packing: Mapping[str, Any]) -> tuple[float, float]:
    """Factor and sum that make values of stored numbers."""
    return float(packing.get("scale_factor") or 1), float(packing.get("add_offset") or 0)


def _lossless_packing(da: xr.DataArray) -> dict[str, Any]:
    """CF keys of a variable that is stored without loss: integers with NaN stay integers."""
    if da.dtype.kind in "mM":
        return time_encoding(da)
    stored = _stored_packing(da)
    whole = stored is not None and "scale_factor" not in stored and "add_offset" not in stored
    return stored if stored and whole and holds(da, stored, on_grid=True, slack=0) else {}


def _is_packed_right(da: xr.DataArray) -> bool:
    """Whether the packing in the encoding of numbers, if there is one, holds them as they are."""
    kept = da.encoding.get("dtype", da.dtype)
    if da.dtype.kind not in "iuf" or da.encoding.get("_Unsigned"):
        return True
    if cf_line(da.encoding) == (1, 0) and kept == da.dtype:
        return True
    stored = _stored_packing(da)
    if stored is None:  # floats packed in floats stay as precise as they were, if they are floats
        return da.dtype.kind == "f" and ("scale_factor" in da.encoding or kept == da.dtype)
    return holds(da, stored, on_grid=True)


def holds(
    da: xr.DataArray, packing: Mapping[str, Any], on_grid: bool, slack: float = 1e-3
) -> bool:
    """Whether ``packing`` holds floats, as `_fits` says. xarray packs without looking, and keeps a
    packing through arithmetic. Lazy data fit if they are as they were read, in the same packing.
    """
    if is_as_read(da):
        fills, read = set(_fills(packing)), set(_fills(da.encoding))
        same = fills <= read and bool(fills) == bool(read)
        same &= cf_line(da.encoding) == cf_line(packing)
        return same and np.dtype(da.encoding.get("dtype", da.dtype)) == packing["dtype"]
    return da.chunks is None and _fits(da, packing, on_grid, slack)


def is_as_read(da: xr.DataArray) -> bool:
    """Whether ``da`` is lazy and nobody has computed with it, nor put several stores together."""
    if da.chunks is None:
        return not da.variable._in_memory  # a backend's own lazy array
    layers = list(getattr(da.data.dask, "layers", ()))
    stacked = [layer for layer in layers if layer.startswith(STACKED_AS_READ)]
    if stacked:  # of several arrays, each of which is as it was read
        layers = [n for n in layers if n not in stacked and not n.startswith("stack-")]
    read = sum(layer.startswith("open_") for layer in layers)
    return (len(stacked) == 1 or read == 1) and all(map(_AS_READ.fullmatch, layers))


def _fits(
    da: xr.DataArray, packing: Mapping[str, Any], on_grid: bool, slack: float = 1e-3
) -> bool:
    """Whether integers of this packing can hold floats in memory: none wraps, none becomes nodata,
    NaN has a number of its own and, with ``on_grid``, none is rounded by more than ``slack``.
    """
    return all(_part_fits(part, packing, on_grid, slack) for part in _parts(da))


def _parts(da: xr.DataArray) -> Iterator[np.ndarray]:
    flat = da.values.reshape(-1)
    return (flat[i : i + _AT_ONCE] for i in range(0, flat.size, _AT_ONCE))


def _part_fits(
    values: np.ndarray, packing: Mapping[str, Any], on_grid: bool, slack: float
) -> bool:
    known = values[~np.isnan(values)]
    factor, added = cf_line(packing)
    exact = (known.astype(np.float64) - added) / factor
    whole, limits, fills = np.rint(exact), np.iinfo(packing["dtype"]), _fills(packing)
    slack = slack and slack + np.abs(exact) * np.finfo(values.dtype).eps
    return bool(
        (fills or known.size == values.size)
        and (whole >= limits.min).all()
        and (whole <= limits.max).all()
        and not np.isin(whole, fills).any()
        and (not on_grid or (np.abs(exact - whole) <= slack).all())
    )


def packed_spec(spec: ChunkSpec, factor: float, added: float) -> ChunkSpec:
    """The same settings for integers that ``factor`` and ``added`` make the values of."""
    unit = spec.scale or 1 / DN_PER_REFLECTANCE
    spec = replace(spec, scale=round(unit / factor, 9), offset=round(-added / unit, 6))
    return bounds_in(factor, spec)


def bounds_in(factor: float, spec: ChunkSpec) -> ChunkSpec:
    """The same bounds for data that are packed with this scale factor."""
    if spec.max_error is None:
        return spec
    if isinstance(spec.max_error, NamedBounds):
        return replace(spec, max_error=spec.max_error.scaled(factor))
    packed = np.round(np.asarray(spec.max_error) / factor, 6).tolist()
    return replace(spec, max_error=packed)


def _layout(
    name: str,
    da: xr.DataArray,
    order: list[str | None],
    chunks: Mapping[str, int] | None,
    shards: bool,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk and shard of an array, fitted to its Dask chunks."""
    wanted = _wanted(name, da, chunks)
    chunk, shard = [], []
    for dim in map(str, da.dims):
        size = da.sizes[dim]
        blocks = da.variable.chunksizes[dim] if da.chunks is not None else (size,)
        if dim == order[1]:
            if len(blocks) > 1:
                raise UnsupportedArrayError(
                    f"the Dask chunks of {name!r} hold {blocks[0]} of {size} bands; TEC codes all "
                    f"bands together: {name} = {name}.chunk({{{dim!r}: -1}})"
                )
            length, side = wanted.get(dim, size), size
            if length != size:
                raise UnsupportedArrayError(
                    f"chunks={{{dim!r}: {length}}}: TEC codes all {size} bands together"
                )
        else:
            target = CHUNK["time"] if dim == order[0] else CHUNK["space"]
            length = wanted.get(dim) or _length(blocks, target)  # never 0, see _wanted
            if dim not in wanted and length * 4 < min(target, size) and dim != order[0]:
                raise UnsupportedArrayError(
                    f"the Dask chunks of {name!r} along {dim!r} ({blocks[0]}, ...) have no "
                    f"divisor near {target}: {name} = {name}.chunk({{{dim!r}: {SHARD_SIDE}}})"
                )
            side = _fit(blocks, max(length, SHARD_SIDE), length) if dim != order[0] else length
        chunk.append(length)
        shard.append(side)
    return tuple(chunk), tuple(shard) if shards and shard != chunk else None


def _wanted(
    name: str, da: xr.DataArray, chunks: Mapping[str, int] | None
) -> dict[str, int]:
    """Chunk lengths that were asked for, by dimension."""
    if chunks is not None and not isinstance(chunks, Mapping):
        raise UnsupportedArrayError(
            f"chunks is {chunks!r}, it must name dimensions, such as {{'time': 12}}"
        )
    unknown = sorted(set(chunks or {}) - {str(d) for d in da.dims})
    if unknown:
        raise UnsupportedArrayError(f"chunks name {unknown}, {name!r} has dimensions {da.dims}")
    out = {}
    for dim, given in (chunks or {}).items():
        try:
            length = operator.index(given)
        except TypeError:
            length = 0
        if length < 1 and length != -1:
            raise UnsupportedArrayError(
                f"chunks={{{dim!r}: {given!r}}}: give a chunk's length in {dim}, or -1 for all"
            )
        out[dim] = max(da.sizes[dim], 1) if length == -1 else length
    return out


def _length(blocks: tuple[int, ...], target: int) -> int:
    """Chunk length near ``target`` that leaves no sliver at the end, or fits the Dask blocks."""
    if len(blocks) > 1:
        return _fit(blocks, target)
    if blocks[0] == 0:  # to be appended to
        return target
    return -(-blocks[0] // max(1, round(blocks[0] / target)))


def _fit(blocks: tuple[int, ...], limit: int, step: int = 1) -> int:
    """Largest multiple of ``step`` up to ``limit`` that divides all Dask blocks but the last."""
    common = math.gcd(*blocks[:-1])
    if common == 0:  # a single block: anything fits; no longer than the array needs
        return max(min(limit // step, -(-blocks[0] // step)), 1) * step
    fits = [n for n in range(step, min(limit, common) + 1, step) if common % n == 0]
    return max(fits, default=step)


def _lossless(zarr_format: int) -> dict[str, Any]:
    if zarr_format == 3:
        from zarr.codecs import BloscCodec

        return {"compressors": (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),)}
    from numcodecs import Blosc

    return {"compressors": Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE), "filters": None}
