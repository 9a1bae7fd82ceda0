"""``.tec.to_zarr``: xarray's ``to_zarr`` with TEC, and with checks of the data it appends."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr

from tec_zarr.codec.encode import check_unit
from tec_zarr.codec.options import takes_options
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare.align import in_dn
from tec_zarr.compare.tables import error_rows
from tec_zarr.cubes.dims import canonical_order, names_along_bands
from tec_zarr.cubes.encoding import UNNAMED
from tec_zarr.cubes.encoding import encoding as store_encoding
from tec_zarr.cubes.overviews import group_attributes, level_attributes, levels
from tec_zarr.cubes.packing import PACKING, holds
from tec_zarr.cubes.provenance import describe, listing_of
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.info import ATTRIBUTE, kept_bounds
from tec_zarr.stores.packing_codecs import packing_of

#: Keywords that are passed on to xarray's ``to_zarr`` unchanged.
_PASSED_ON = ("safe_chunks", "align_chunks", "write_empty_chunks", "chunkmanager_store_kwargs")
#: Options in the units of the stored numbers. With another scale factor they cannot be compared.
_IN_STORED_UNITS = ("max_error", "scale", "offset")

Region = Mapping[str, slice | Literal["auto"]] | Literal["auto"]


@takes_options(store_encoding)
def to_zarr(
    obj: xr.DataArray | xr.Dataset,
    store: Any,
    mode: str | None = None,
    group: str | None = None,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    zarr_format: int | None = None,
    compute: bool = True,
    append_dim: Hashable | None = None,
    region: Region | None = None,
    consolidated: bool | None = None,
    storage_options: dict[str, Any] | None = None,
    measure: bool = False,
    overviews: bool = False,
    **options: Any,
) -> Any:
    """Write reflectance with TEC and all else losslessly, and record that in the attributes.

    Parameters
    ----------
    obj : DataArray or Dataset
        Dimensions in any order; stored as (time, band, y, x).
    store, mode, group, compute, append_dim, region, consolidated, storage_options
        As for ``xarray.Dataset.to_zarr``, as are ``safe_chunks``, ``align_chunks``,
        ``write_empty_chunks`` and ``chunkmanager_store_kwargs``. Without ``mode`` nothing is
        overwritten.
    encoding : mapping, optional
        As for xarray's ``to_zarr``. Its entries override those of `tec_zarr.encoding`.
    zarr_format : {3, 2}, optional
        Default: the format of the store if it exists, else 3.
    measure : bool
        Read the store back and write the PSNR of every band into the attributes. Not possible
        when dates or regions are added to TEC arrays.
    overviews : bool
        Write the cube into the group ``0``, and overviews of half the resolution, a quarter, ...
        into ``1``, ``2``, ..., each with TEC and made of the original pixels
        (`tec_zarr.cubes.overviews`). ``xarray.open_datatree`` opens all of them. Not possible when
        dates or regions are added.
    **options
        Options of `tec_zarr.encoding`. Arrays that the store already has keep their own.

    Returns
    -------
    The store, or with ``compute=False`` a Dask Delayed.

    Raises
    ------
    UnsupportedArrayError
        Raised before anything is written, for data that `tec_zarr.encoding` refuses; for dates or
        values that the dtype and packing of an array in the store cannot hold, which xarray would
        wrap; and for options that differ from those of the store.

    Notes
    -----
    The attributes are those of `tec_zarr.cubes.provenance`: model, weights, quality or bound, and
    version. Arrays with ``max_error`` also get the largest error of each band, unless the write is
    lazy (``compute=False``) or goes to a ``region``.

    A process that is killed while it writes leaves a store that opens, with nodata in place of
    the missing chunks. ``tec-zarr encode`` and `tec_zarr.recompress` do not: their result can be
    opened only when it is complete.
    """
    if measure and not compute:
        raise UnsupportedArrayError("nothing can be measured before it is written: compute=True")
    passed_on = {key: options.pop(key) for key in _PASSED_ON if key in options}
    if overviews:
        added = append_dim is not None or region is not None or mode not in (None, "w", "w-")
        if added or not compute:
            raise UnsupportedArrayError(
                "overviews are made of whole cubes that are written at once: leave out "
                "append_dim, region, compute and mode, or pass overviews=False"
            )
        where = {"zarr_format": zarr_format, "consolidated": consolidated, "measure": measure,
                 "encoding": encoding, **passed_on, **options}  # fmt: skip
        return write_levels(obj, store, mode or "w-", group or "", storage_options, **where)
    mode = mode or ("a" if append_dim is not None else "r+" if region is not None else "w-")
    root = None if mode in ("w", "w-") else _open(store, group, storage_options)
    stored = {} if root is None else dict(root.arrays())
    zarr_format = _format(zarr_format, root)
    name = None
    if isinstance(obj, xr.DataArray):
        name = str(obj.name or UNNAMED)
        obj = obj.to_dataset(name=name)
    ordered = _storable(canonical_order(obj), stored)
    settings: dict[str, dict[str, Any]] = {}
    if options or not set(map(str, ordered.variables)) <= set(stored):
        settings = store_encoding(ordered[name] if name else ordered, zarr_format=zarr_format,
                                  **options)  # fmt: skip
    for there in set(stored) & set(map(str, ordered.variables)):
        _check_options(there, stored[there], settings.pop(there, {}), options)
        _check_values(there, stored[there], ordered[there])
    settings |= {key: {**settings.get(key, {}), **own} for key, own in (encoding or {}).items()}
    if measure and any(tec_spec(stored[n]) for n in stored if n in ordered):
        raise UnsupportedArrayError("measure=True compares whole arrays, not what is added to them")
    written: Any = describe(ordered, settings)
    if region is not None:  # variables without a dimension of the region are in the store already
        inside = set(written.dims) if region == "auto" else set(region)
        outside = [n for n, v in written.variables.items() if not inside & set(v.dims)]
        written = written.drop_vars([n for n in outside if n in stored])
    done = written.to_zarr(
        store, mode=mode, group=group, encoding=settings, zarr_format=zarr_format,
        compute=compute, append_dim=append_dim, region=region, consolidated=consolidated,
        storage_options=storage_options or None, **passed_on,
    )  # fmt: skip
    bounded = options.get("max_error") is not None or _names_errors(stored.values())
    if measure or (compute and region is None and bounded):
        record(store, ordered if measure else None, group, storage_options)
    return done


def write_levels(
    obj: xr.DataArray | xr.Dataset,
    store: Any,
    mode: Any,
    group: str,
    storage_options: dict[str, Any] | None,
    *,
    zarr_format: int | None = None,
    consolidated: bool | None = None,
    **arguments: Any,
) -> zarr.Group:
    """Write a cube and its overviews, and then the attributes that say how they belong together.

    Parameters
    ----------
    obj, store, mode, group, storage_options, zarr_format, consolidated
        As for `to_zarr`.
    **arguments
        More of them, for each level.

    Returns
    -------
    zarr.Group
        The group that holds the levels.
    """
    ds = obj.to_dataset(name=obj.name or UNNAMED) if isinstance(obj, xr.DataArray) else obj
    names = {k: arguments[k] for k in ("variables", "bands", "nodata") if k in arguments}
    pyramid = levels(canonical_order(ds), **names)
    where: dict[str, Any] = {"storage_options": storage_options or None}
    root = zarr.open_group(store, mode=mode, path=group, zarr_format=zarr_format or 3, **where)  # type: ignore[arg-type]
    names_of = [str(n) for n in range(len(pyramid))]
    for name, level in zip(names_of, pyramid, strict=True):
        path = f"{group}/{name}".strip("/")
        to_zarr(level.assign_attrs(level_attributes(level)), store, "a", path, consolidated=False,
                zarr_format=zarr_format, storage_options=storage_options, **arguments)  # fmt: skip
    root.attrs.update(group_attributes(pyramid, names_of))
    if consolidated is not False:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            zarr.consolidate_metadata(root.store, path=root.path)
    return root


def _open(
    store: Any, group: str | None, storage_options: dict[str, Any] | None
) -> zarr.Group | None:
    """The group to add to; None if it does not exist yet."""
    try:
        return zarr.open_group(
            store, mode="r", path=group, use_consolidated=False,
            storage_options=storage_options or None,
        )  # fmt: skip
    except FileNotFoundError:
        return None


def _format(wanted: int | None, root: zarr.Group | None) -> int:
    found = None if root is None else root.metadata.zarr_format
    if found and wanted not in (None, found):
        raise UnsupportedArrayError(
            f"the store has Zarr format {found}, zarr_format is {wanted}: leave it out"
        )
    return wanted or found or 3


def _storable(ds: xr.Dataset, stored: Mapping[str, zarr.Array]) -> xr.Dataset:
    """Return ``ds`` with the coordinates and dates that Zarr and xarray can store.

    Coordinates of Python objects are loaded, because Zarr determines their type from the values.
    Dates get the precision of the stored units, because xarray turns coarser ones into NaT.
    """
    words = {n: c.compute() for n, c in ds.coords.items() if c.chunks and c.dtype == object}
    dates = {}
    for name, da in ds.variables.items():
        if da.dtype.kind == "M":
            dtype = np.dtype("M8[ns]" if str(name) in stored else "M8[us]")
            if name in stored or np.datetime_data(da.dtype)[0] in ("s", "ms"):
                dates[name] = ds[name].astype(dtype)
    return ds.assign_coords(words).assign(dates)


def _check_options(
    name: str, array: zarr.Array, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Refuse options that differ from those of an array in the store."""
    had = tec_spec(array)
    wanted = settings.get("serializer") or settings.get("compressors")
    if had is None or not isinstance(wanted, ChunkSpec):
        return
    # The data add to nodata what they declare themselves, which may differ from date to date.
    asked = [name for name in wanted.options if name in options and name != "nodata"]
    differ = [name for name in asked if getattr(had, name) != getattr(wanted, name)]
    if settings.get("scale_factor") != array.attrs.get("scale_factor"):
        differ = [name for name in differ if name not in _IN_STORED_UNITS]
    if options.get("chunks") and tuple(settings["chunks"]) != array.chunks:
        differ.append("chunks")
    if differ:
        raise UnsupportedArrayError(
            f"{name!r} of the store was written with another {' and '.join(differ)}, which what is "
            "added gets too: leave it out"
        )


def _check_values(name: str, array: zarr.Array, da: xr.DataArray) -> None:
    """Refuse values that the dtype, units and packing of an array in the store cannot hold."""
    attrs: dict[str, Any] = dict(array.attrs)
    if da.dtype.kind == "M" and "units" in attrs and da.chunks is None:
        keys: dict[str, Any] = {k: attrs[k] for k in ("units", "calendar") if k in attrs}
        variable = xr.Variable(da.dims, da.values, encoding={**keys, "dtype": array.dtype})
        with warnings.catch_warnings():  # xarray warns that it chose other units: refused below
            warnings.simplefilter("ignore")
            packed = xr.conventions.encode_cf_variable(variable)
        if packed.attrs["units"] != keys["units"] or not _same_dates(packed, keys, da.values):
            raise UnsupportedArrayError(
                f"{name!r} of the store counts {keys['units']!r}, in which {da.values.min()} and "
                "what is added with it are no whole numbers: write the store anew with "
                ".tec.to_zarr or tec_zarr.encoding, which count microseconds"
            )
    behind = packing_of(array.filters) if array.metadata.zarr_format == 3 else None
    if da.dtype.kind == "f" and (array.dtype.kind in "iu" or behind):
        packing = {k: attrs[k] for k in PACKING if k in attrs} | {"dtype": array.dtype}
        packing = packing if behind is None else behind
        if array.metadata.zarr_format == 2 and array.fill_value is not None:
            packing["_FillValue"] = array.fill_value
        spec = tec_spec(array)
        if not holds(da, packing, on_grid=spec is None or spec.max_error is not None):
            raise UnsupportedArrayError(
                f"{name!r} of the store is {array.dtype} with {packing}, which does not hold the "
                "values to add, or they are lazy and nobody knows: xarray would wrap them. Load "
                "them to have them looked at (ds.load()); where they may be 0 or less, begin the "
                "store with lazy floats (ds.chunk()), which are stored as floats"
            )
        if spec is not None and behind is None and "scale_factor" not in packing:
            try:
                check_unit(da.values.reshape(-1), replace(spec, scale=spec.scale or 1))
            except UnsupportedArrayError:
                raise UnsupportedArrayError(
                    f"{name!r} of the store holds whole DN, of which rounding would leave nothing "
                    f"of the {da.dtype} values to add: where they are reflectance, add "
                    "(10_000 * ds).round()"
                ) from None


def _same_dates(packed: xr.Variable, keys: Mapping[str, Any], dates: np.ndarray) -> bool:
    back = xr.conventions.decode_cf_variable("", xr.Variable(packed.dims, packed.values, keys))
    return bool(np.array_equal(back.values.astype(dates.dtype), dates, equal_nan=True))


def _names_errors(arrays: Iterable[zarr.Array]) -> bool:
    return any(f"{ATTRIBUTE}_max_error_measured" in array.attrs for array in arrays)


def record(
    store: Any,
    original: xr.DataArray | xr.Dataset | None = None,
    group: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Add the measured errors to the attributes of a store's TEC arrays, after writing.

    ``lossy_compression_max_error_measured`` is added to arrays that were written with
    ``max_error``. It comes from the headers of the chunks. ``lossy_compression_psnr_measured``
    (dB, per band) is added if ``original`` is given. For this the store is read.

    Parameters
    ----------
    store : path or zarr store
        A writable store whose data went through `describe` and ``to_zarr``.
    original : DataArray or Dataset, optional
        The data that were written.
    group, storage_options
        As for ``xarray.open_zarr``.
    """
    where: dict[str, Any] = {"storage_options": storage_options or None}
    root = zarr.open_group(store, mode="r+", path=group, **where)
    consolidated = root.metadata.consolidated_metadata is not None
    decoded = None
    if original is not None:
        decoded = xr.open_zarr(store, group=group, consolidated=consolidated, **where)
    for name, array in zarr.open_group(
        store, mode="r+", path=group, use_consolidated=False, **where
    ).arrays():
        if tec_spec(array) is None or ATTRIBUTE not in array.attrs:
            continue
        found = {}
        behind: dict[str, Any] = packing_of(array.filters) or dict(array.attrs)
        factor = float(behind.get("scale_factor", 1))
        bounds = kept_bounds(array)
        if bounds:
            found["max_error_measured"] = listing_of(
                {b.name: b.error * (1 if b.is_index else factor) for b in bounds}
            )
        if original is not None and decoded is not None:
            before = original if isinstance(original, xr.DataArray) else original[name]
            reference, after = in_dn(before, decoded[name])
            rows = error_rows(reference, after, names_along_bands(before))
            found["psnr_measured"] = listing_of({str(row[0]): row[1] for row in rows[:-1]})
        array.attrs.update({f"{ATTRIBUTE}_{key}": value for key, value in found.items()})
    if consolidated:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            zarr.consolidate_metadata(root.store, path=root.path)
