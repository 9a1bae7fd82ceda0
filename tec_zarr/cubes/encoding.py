"""Make the ``encoding`` that xarray passes to Zarr, and remove it again.

`encoding` makes the settings that write a dataset with TEC. `drop_encoding` removes them, so that
the data can be written without TEC.

xarray hands each variable's ``encoding`` to Zarr unchanged. The right settings depend on the Zarr
format, the dtype and the Dask chunks, and mistakes show only much later. So this module alone
decides them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr

from tec_zarr.codec.encode import check_unit
from tec_zarr.codec.options import takes_options
from tec_zarr.codec.spec import ChunkSpec, check_gop
from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    XrTree,
    Y,
    band_labels,
    chosen_variables,
    find_dim,
    holds_tec,
    is_something_else,
    known_bands,
    mixed_bands,
    selected_band,
    split_off,
    variable_bands,
)
from tec_zarr.cubes.layout import layout
from tec_zarr.cubes.nodata import nodata_values, unencoded
from tec_zarr.cubes.packing import (
    AT_ONCE,
    PACKING,
    cf_line,
    cf_packing,
    fill_values,
    holds,
    stored_packing,
    time_encoding,
)
from tec_zarr.errors import SecondGenerationWarning, SeparateBandsWarning, UnsupportedArrayError
from tec_zarr.stores.packing_codecs import packing_codecs

CONTAINER = "tec_compression"
"""Name of the scalar coordinate that describes the compression (`tec_zarr.cubes.provenance`)."""

_Packing = Literal["cf", "codecs"]

UNNAMED = "__xarray_dataarray_variable__"
"""Name that xarray gives in a store to an array without a name."""

_STORAGE_KEYS = ("chunks", "shards", "preferred_chunks", "compressors", "compressor", "filters",
                 "serializer", "source", "original_shape", "write_empty_chunks",
                 "chunk_key_encoding", "cache_metadata", "fill_value")  # fmt: skip


@takes_options(ChunkSpec)
def encoding(
    obj: xr.DataArray | xr.Dataset,
    *,
    zarr_format: int = 3,
    chunks: Mapping[str, int] | None = None,
    shards: bool = True,
    variables: Iterable[str] | None = None,
    packing: _Packing = "cf",
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Return the encoding to pass to ``to_zarr``: TEC for reflectance, lossless for all else.

    Parameters
    ----------
    obj : DataArray or Dataset
        Dimensions (time, band, y, x), or without time or band. Other usual names are understood.
    zarr_format : {3, 2}
        Must equal the ``zarr_format`` passed to ``to_zarr``.
    chunks : mapping, optional
        Dimension name to chunk length, -1 for a whole dimension. Default: about 4 dates, all
        bands, and about 256 x 256 pixels. Lengths divide the image into nearly equal parts, and fit
        the Dask chunks if there are any.
    shards : bool
        Gather chunks into shards of up to 1024 x 1024 pixels, because TEC chunks are small. Only
        for Zarr v3.
    variables : iterable of str, optional
        Variables that are reflectance. Default: those with a band dimension whose coordinate
        names Sentinel-2 bands, and those named like a band. If there are none, those with a band
        dimension without names. Variables with flags, with another ``standard_name``, or with a
        name such as ``scl``, ``mask`` or ``view_zenith`` are never taken by default.
    packing : {"cf", "codecs"}
        Who makes floats of packed integers when they are read: xarray, from CF attributes, or Zarr
        itself, with its codecs ``scale_offset`` and ``cast_value`` behind TEC, as in EOPF
        products. These need zarr 3.2 (``pip install 'tec_zarr[eopf]'``).
    {options}

    Returns
    -------
    dict
        Name of every variable and coordinate to its encoding. The unit of times is fine enough for
        clock times appended later (`tec_zarr.cubes.packing.time_encoding`).

    Raises
    ------
    UnsupportedArrayError
        TEC cannot encode the data as they are. The message says how to change them.

    Warns
    -----
    SecondGenerationWarning
        The data were read from a TEC store. Encoding them again loses more.
    SeparateBandsWarning
        Bands of one grid are separate variables, which takes twice the bytes.

    Notes
    -----
    `tec_zarr.codec.spec.ChunkSpec` explains ``quality`` and the options after it at length. Here
    they may be left to the data:

    - ``bands=None`` takes the names from the band coordinate, or from descriptions (``long_name``)
      if that only counts, or from the name of a variable that has no band dimension.
    - The values that the data declare (``_FillValue``, ``missing_value``, ``nodata``,
      ``.rio.nodata``, ...) are added to ``nodata``.
    - ``scale`` and ``offset`` are about the values that a reader sees. The CF packing of stored
      integers is taken into account. Floats that xarray made from integers without a scale factor
      are DN, and are stored as these integers.
    - ``max_error`` is in the units of the data: DN, or reflectance for floats. Bands that a
      mapping does not name are coded at ``quality``.

    Floating-point data in memory become uint16 DN if they fit. The CF attributes ``scale_factor``
    and ``_FillValue`` 0 (NaN) make any reader see reflectance. Data that xarray unpacked from
    integers are packed in the same way again. Other data keep their dtype: lazy results of a
    computation, and values outside the range of the integers. The codec takes floats too, and
    makes the same bytes from them. xarray packs dates that are appended later without checking
    their range. If these may hold zero or less, write the first dates as lazy floats
    (``ds.chunk()``).
    """
    if zarr_format not in (2, 3):
        raise UnsupportedArrayError(f"zarr_format is {zarr_format}, it must be 2 or 3")
    if packing not in get_args(_Packing):
        raise UnsupportedArrayError(
            f"packing is {packing!r}, it must be one of {', '.join(get_args(_Packing))}"
        )
    bands = options.pop("bands", None)
    if bands is not None and not isinstance(bands, str):
        bands = tuple(bands)
    if isinstance(obj, xr.DataArray):
        # A copy of the object loses what .rio.set_nodata has set: keep it as an attribute.
        obj = obj.assign_attrs(nodata=unencoded(obj))
        obj = obj.to_dataset(name=UNNAMED if obj.name is None else str(obj.name))
        name, da = next(iter(obj.data_vars.items()))
        strange = mixed_bands(da) if bands is None else []
        if strange and variables is None:
            raise UnsupportedArrayError(split_off(str(name), strange))
        if variables is None and not is_something_else(name, da):
            variables = [str(name)]
    reflectance = chosen_variables(obj, variables, bands)
    alone = variable_bands(obj.data_vars)
    _warn_separate_bands({n: obj[n] for n in reflectance if n in alone})
    arrays = {str(n): obj[n] for n in obj.variables}
    out: dict[str, dict[str, Any]] = {}
    for name, da in arrays.items():
        if name in reflectance:
            names = _bands_of(name, da, bands, alone)
            spec = ChunkSpec(bands=names, **options)
            check_gop(spec)
            if not spec.is_lossless:
                _warn_second_generation(name, da)
            out[name] = _tec(name, da, spec, zarr_format, chunks, shards, packing)
        else:  # Text and scalars need an entry too: without one xarray keeps their old codecs.
            numbers = da.ndim and da.dtype.kind in "biufmM"
            out[name] = (_lossless(zarr_format) if numbers else {}) | _lossless_packing(da)
        if "grid_mapping" in da.encoding:  # to_zarr drops it unless it is in this encoding.
            out[name]["grid_mapping"] = da.encoding["grid_mapping"]
    if spec.is_lossless:
        out.pop(CONTAINER, None)  # `provenance.describe` drops this coordinate.
    return out


def drop_encoding(obj: XrTree) -> XrTree:
    """Remove the encoding that a store gave to the data, so that they can be written without TEC.

    ``tec_zarr.drop_encoding(ds).to_zarr("plain.zarr")`` writes a plain store. Lazy data stay lazy.
    Codecs, chunks and shards are removed. Encoding that belongs to the values (units, CRS, CF
    packing) is kept. A CF packing that does not fit the values is removed too, because xarray would
    wrap integers that are out of range. It may not fit if the values were changed, or come from
    several stores.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        Any dimensions and dtype, for instance from ``xarray.open_zarr``.

    Returns
    -------
    DataArray, Dataset or DataTree
        A shallow copy: the same values, in DN or reflectance as they were.
    """
    if isinstance(obj, xr.DataTree):
        return obj.map_over_datasets(drop_encoding)
    out = without_codecs(obj)
    for member in _members(out):
        if not _is_packed_right(member):
            for key in PACKING:
                member.encoding.pop(key, None)
    return out


def decode(obj: XrTree) -> XrTree:
    """Old name of `drop_encoding`, which decodes nothing.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        Any dimensions and dtype.

    Returns
    -------
    DataArray, Dataset or DataTree
        A shallow copy: the same values, in DN or reflectance as they were.

    Warns
    -----
    DeprecationWarning
        Always.
    """
    warnings.warn(
        "tec_zarr.decode is now called tec_zarr.drop_encoding", DeprecationWarning, stacklevel=2
    )
    return drop_encoding(obj)


def without_codecs(obj: XrTree) -> XrTree:
    """Return a shallow copy without codecs, chunks and shards. The CF packing is kept."""
    out: XrTree = obj.copy(deep=False)
    for member in _members(out):
        for key in _STORAGE_KEYS:
            member.encoding.pop(key, None)
        if member.encoding.pop("char_dim_name", None):  # NetCDF stores text as rows of characters.
            member.encoding.pop("dtype", None)
    return out


def _members(obj: Any) -> list[xr.DataArray]:
    """Return the array or the variables of a dataset, and the coordinates."""
    arrays = [obj] if isinstance(obj, xr.DataArray) else obj.data_vars.values()
    return [*arrays, *obj.coords.values()]


def _bands_of(
    name: str, da: xr.DataArray, bands: Iterable[str] | None, alone: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Return the band names that the codec gets; None if they are not known.

    ``alone`` maps variables that are one band each to the names of these bands.
    """
    if bands is not None:
        return (bands,) if isinstance(bands, str) else tuple(bands)
    if find_dim(da, BAND) is None:  # Ask the variable's name, then the selected band.
        label = alone.get(name) or selected_band(da)
        return None if label is None else (label,)
    labels = band_labels(da)
    return None if labels is None else known_bands(labels)


def _warn_second_generation(name: str, da: xr.DataArray) -> None:
    if holds_tec(da):
        warnings.warn(
            f"{name!r} was read from a TEC store: encoding it again loses quality a second time. "
            "Start from the source data, or leave TEC with "
            "tec_zarr.drop_encoding(ds).to_zarr(...) without this encoding.",
            SecondGenerationWarning,
            stacklevel=3,
        )


def _warn_separate_bands(arrays: Mapping[str, xr.DataArray]) -> None:
    """Warn if several bands that could be one array are separate: they take twice the bytes."""
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
    packing: _Packing,
) -> dict[str, Any]:
    order = [find_dim(da, names) for names in (TIME, BAND, Y, X)]
    present = tuple(d for d in order if d is not None)
    if order[2] is None or order[3] is None or da.dims != present:
        raise UnsupportedArrayError(
            f"{name!r} has dimensions {da.dims}; TEC needs (time, band, y, x), in this order, "
            "time and band only where there are several: rename or transpose it first"
        )
    _check_count(name, da, spec, order[1])
    chunk, shard = layout(name, da, order, chunks, shards and zarr_format == 3)
    out: dict[str, Any] = {"chunks": chunk}
    cf, packed = cf_packing(da, spec)
    _check_unit(da, spec if cf else packed, cf)
    spec = replace(packed, nodata=(*packed.fill_values, *_stored_nodata(da, cf)))
    out |= cf if packing == "cf" else _behind_codecs(name, da, cf, zarr_format)
    arguments = spec.to_config()
    if zarr_format == 3:
        from tec_zarr.codec.zarr_codec import TECCodec

        out |= {"serializer": TECCodec(**arguments), "compressors": ()}
        return out | ({"shards": shard} if shard else {})
    from tec_zarr.codec.numcodecs_codec import TEC

    return out | {"compressors": TEC(**arguments), "filters": None}


def _behind_codecs(
    name: str, da: xr.DataArray, cf: Mapping[str, Any], zarr_format: int
) -> dict[str, Any]:
    """Return the encoding of floats that Zarr's codecs pack as ``cf`` says."""
    if zarr_format != 3 or da.dtype.kind != "f" or "scale_factor" not in cf:
        raise UnsupportedArrayError(
            f"{name!r} cannot be packed by Zarr's codecs: that takes Zarr format 3, and "
            "reflectance that fits uint16 without wrapping, in memory (ds.load()) or as it was "
            'read from such integers. Leave out packing="codecs"'
        )
    return {"dtype": da.dtype, "_FillValue": np.nan, "fill_value": np.nan,
            "filters": packing_codecs(cf)}  # fmt: skip


def _check_unit(da: xr.DataArray, spec: ChunkSpec, cf: Mapping[str, Any]) -> None:
    """Raise an error if floats in memory are plainly not in the unit of ``spec``.

    Floats that ``cf`` packs as integers without a scale factor are DN, and need no check.
    """
    whole = bool(cf) and "scale_factor" not in cf
    if da.dtype.kind != "f" or da.chunks is not None or spec.max_error is not None or whole:
        return
    some = da.values.reshape(-1)[:: max(1, da.size // AT_ONCE) | 1]
    check_unit(some, replace(spec, nodata=(*spec.fill_values, *unencoded(da))))


def _check_count(name: str, da: xr.DataArray, spec: ChunkSpec, band: str | None) -> None:
    """Raise an error unless there is one name, and one bound, for each band."""
    count = da.sizes[band] if band else 1
    for label, given in (("bands", spec.bands), ("max_error", spec.max_error)):
        if isinstance(given, tuple) and len(given) != count:
            raise UnsupportedArrayError(
                f"{label} has {len(given)} entries, {name!r} has {count} bands: give one for each"
            )


def _stored_nodata(da: xr.DataArray, cf: Mapping[str, Any]) -> list[float]:
    """Return the nodata values that ``da`` declares, in stored units with the packing ``cf``."""
    if cf and cf != stored_packing(da):  # New integers, made from floats: only NaN was nodata.
        return fill_values(cf)
    found = [*fill_values(cf), *nodata_values(da)]
    line = unpacking(da)
    if not cf and line != (1, 0):  # Floats unpacked from integers, and now stored as floats.
        found += [float(da.dtype.type(value * line[0] + line[1])) for value in found]
    return found


def unpacking(da: xr.DataArray) -> tuple[float, float]:
    """Return scale and offset that made floats from the stored integers of ``da``; else 1 and 0."""
    stored = stored_packing(da)
    return (1, 0) if stored is None else cf_line(stored)


def _lossless_packing(da: xr.DataArray) -> dict[str, Any]:
    """Return the CF keys of a variable stored without loss.

    Floats that xarray made from integers with a fill value are stored as integers again.
    """
    if da.dtype.kind in "mM":
        return time_encoding(da)
    stored = stored_packing(da)
    whole = stored is not None and "scale_factor" not in stored and "add_offset" not in stored
    return stored if stored and whole and holds(da, stored, on_grid=True, slack=0) else {}


def _is_packed_right(da: xr.DataArray) -> bool:
    """Return whether the CF packing in the encoding, if there is one, can hold the values."""
    kept = da.encoding.get("dtype", da.dtype)
    if da.dtype.kind not in "iuf" or da.encoding.get("_Unsigned"):
        return True
    if cf_line(da.encoding) == (1, 0) and kept == da.dtype:
        return True
    stored = stored_packing(da)
    if stored is None:  # Floats packed as floats keep their precision. Integers would not.
        return da.dtype.kind == "f" and ("scale_factor" in da.encoding or kept == da.dtype)
    return holds(da, stored, on_grid=True)


def _lossless(zarr_format: int) -> dict[str, Any]:
    if zarr_format == 3:
        from zarr.codecs import BloscCodec

        return {"compressors": (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),)}
    from numcodecs import Blosc

    return {"compressors": Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE), "filters": None}
