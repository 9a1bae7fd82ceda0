"""Write a canonical cube to a store, and append later dates to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.abc.store import Store

from tec_zarr.cubes.encoding import drop_encoding, encoding
from tec_zarr.cubes.layout import CHUNK
from tec_zarr.cubes.packing import time_encoding
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA
from tec_zarr.stac.canonical import in_time_order, rechunk_images
from tec_zarr.stores.objects import list_keys
from tec_zarr.stores.sessions import committed, reopened

Out = Path | Store

_NOT_SAID = {"f": np.nan, "O": "", "T": "", "U": ""}
"""Values, by kind of dtype, for a coordinate that the items of appended dates lack."""


@contextmanager
def without_zarr_notes() -> Iterator[None]:
    """Silence Zarr's warnings that v3 does not specify strings and consolidated metadata yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        yield


@without_zarr_notes()
def write(cube: xr.Dataset, out: Any, **options: Any) -> None:
    """Write a canonical cube so that dates can be appended.

    Parameters
    ----------
    cube : Dataset
        From `prepare`, in any Dask chunks. Dates are sorted.
    out : path, or Icechunk repository
        A new Zarr v3 store. Icechunk: an empty Repository, Session or session store, or
        ``"icechunk:"`` and a path or URL; it gets one commit at the end.
    **options
        Options of a chunk, as in `tec_zarr.encoding`.

    Notes
    -----
    ``xr.open_zarr(out, decode_coords="all")`` shows all dates. If the last time chunk is not full,
    its dates are also stored without loss, in a group ``tail-N``. From there `append` encodes them
    again without a second loss.
    """
    with committed(out, "Write TEC from STAC items") as store:
        _write(cube, store if isinstance(store, Store) else Path(store), **options)


def open_written(out: Any) -> xr.Dataset:
    """Open what `write` or `append` has written, as it is now."""
    store = reopened(out)
    return xr.open_zarr(store, decode_coords="all", consolidated=None if store is out else False)


def _write(cube: xr.Dataset, out: Out, **options: Any) -> None:
    if out.exists() if isinstance(out, Path) else list_keys(out, ""):
        raise UnsupportedArrayError(f"{out} exists: choose another name, or append to it")
    cube = rechunk_images(in_time_order(cube))
    settings = encoding(cube, **options, chunks={"time": CHUNK["time"]})
    for name, da in cube.data_vars.items():
        if "chunks" not in settings[str(name)] and "time" in da.dims:
            chunks = {d: s[0] for d, s in da.chunksizes.items()} or dict(da.sizes)
            settings[str(name)]["chunks"] = tuple({**chunks, "time": CHUNK["time"]}.values())
    _to_zarr(drop_encoding(cube), out, mode="w", encoding=settings)
    _commit(out, cube)


@without_zarr_notes()
def append(cube: xr.Dataset, out: Any) -> int:
    """Append later dates of a canonical cube to a store that `write` made.

    Full time chunks are not changed. If the last time chunk is not full, it is encoded again
    together with the new dates, from its lossless copy. If an append is interrupted, the next one
    repairs the store.

    Parameters
    ----------
    cube : Dataset
        From `prepare`, with the bands and the CRS of the store, and pixels on the same lattice.
        Pixels outside the store's area are cut off. Pixels that the cube lacks become nodata. Dates
        that the store has already are skipped.
    out : path, or Icechunk repository
        The store, as for `write`. Where it is no Icechunk, it allows one writer at a time.

    Returns
    -------
    int
        Number of dates added.

    Raises
    ------
    UnsupportedArrayError
        The cube has another grid, other bands, or new dates before the last one of the store; or
        `write` did not make the store.
    RecompressError
        Somebody else has committed to the Icechunk branch meanwhile: nothing of this is visible.
    """
    with committed(out, "Append dates with TEC, from STAC items") as store:
        return _append(cube, store if isinstance(store, Store) else Path(store))


def _append(cube: xr.Dataset, out: Out) -> int:
    import zarr

    root = zarr.open_group(out, mode="r+", use_consolidated=False)
    if "tec_dates" not in root.attrs:
        raise UnsupportedArrayError(
            f"{out} was not written by tec_zarr.stac.append.write: cannot append"
        )
    dates = int(root.attrs["tec_dates"])  # type: ignore[arg-type]
    whole = dates - dates % CHUNK["time"]
    tail = _tail(out, root)
    if root.attrs.get("tec_appending"):
        _truncate(root, whole)
        if tail is not None:
            _to_zarr(rechunk_images(tail).assign_attrs(root.attrs.asdict()), out, append_dim="time")
        root.attrs["tec_appending"] = False
    old = xr.open_zarr(out, consolidated=False, decode_coords="all")
    times = old.time.values[:whole] if tail is None else np.r_[old.time.values[:whole], tail.time]
    new = cube.isel(time=~np.isin(cube.time.values, times))
    if new.sizes["time"] == 0:
        return 0
    if times.size and new.time.values.min() <= times.max():
        raise UnsupportedArrayError(
            f"{out} ends on {np.datetime_as_string(times.max(), 's')}, the cube has new dates from "
            f"{np.datetime_as_string(new.time.values.min(), 's')} on: only later ones can follow"
        )
    new = _on_grid_of(old, in_time_order(new), out)
    per_date = [n for n, v in old.variables.items() if "time" in v.dims]
    new = new[[n for n in per_date if n in new.data_vars]]
    kept = [c for c in new.coords if c in old.variables and old[c].dims == new[c].dims]
    new = new.drop_vars([c for c in new.coords if c not in kept])
    new = new.assign_coords({
        n: ("time", np.full(new.sizes["time"], _NOT_SAID[old[n].dtype.kind]))
        for n in per_date
        if n not in new.variables and n in old.coords and old[n].dtype.kind in _NOT_SAID
    })  # fmt: skip
    lacking = [n for n in per_date if n not in new.variables]
    if lacking:
        raise UnsupportedArrayError(f"{out} has {lacking} for every date, the new dates do not")
    both = new
    if tail is not None:
        both = xr.concat(
            [tail, new], "time", coords="minimal", data_vars="minimal", compat="override"
        ).assign_attrs(new.attrs)
    root.attrs["tec_appending"] = True
    _truncate(root, whole)
    rewritten = drop_encoding(rechunk_images(both)).assign_attrs(root.attrs.asdict())
    _to_zarr(rewritten, out, append_dim="time")
    _commit(out, both, before=whole)
    return new.sizes["time"]


def _to_zarr(ds: xr.Dataset, out: Out, **arguments: Any) -> None:
    ds.to_zarr(out, zarr_format=3, consolidated=False, **arguments)


def _commit(out: Out, written: xr.Dataset, before: int | None = None) -> None:
    """Store a lossless copy of the last time chunk if it is not full, then the number of dates."""
    import zarr

    dates = (before or 0) + written.sizes["time"]
    started = dates % CHUNK["time"]
    name = f"tail-{dates}"
    if started:
        last = drop_encoding(written.isel(time=slice(-started, None)))
        for da in last.variables.values():
            da.encoding = {k: v for k, v in da.encoding.items() if k == "grid_mapping"}
        last["time"].encoding = time_encoding(last["time"])
        _to_zarr(rechunk_images(last), out, group=name, mode="w")
    root = zarr.open_group(out, mode="r+", use_consolidated=False)
    attrs: dict[str, Any] = {"tec_dates": dates, "tec_appending": False}
    if before is not None:
        attrs["history"] = f"{root.attrs.get('history', '')}\n{written.attrs.get('history', '')}"
    root.attrs.update(attrs)
    for group in list(root.group_keys()):
        if group.startswith("tail-") and not (started and group == name):
            del root[group]
    if isinstance(out, Path):
        zarr.consolidate_metadata(out)


def _tail(out: Out, root: Any) -> xr.Dataset | None:
    """Return the lossless copy of the last time chunk; None if that chunk is full."""
    dates = int(root.attrs["tec_dates"])
    if dates % CHUNK["time"] == 0:
        return None
    opened = xr.open_zarr(out, group=f"tail-{dates}", consolidated=False, decode_coords="all")
    return drop_encoding(opened).load()


def _on_grid_of(old: xr.Dataset, new: xr.Dataset, out: Out) -> xr.Dataset:
    """Return ``new`` on the pixels of ``old``. Each search may cover another part of these.

    Raises
    ------
    UnsupportedArrayError
        CRS or bands differ, or no pixel is shared.
    """
    codes = [ds.spatial_ref.attrs.get("crs_wkt") if "spatial_ref" in ds else None
             for ds in (old, new)]  # fmt: skip
    if codes[0] != codes[1]:
        raise UnsupportedArrayError(f"{out} and the cube have different CRS: pass crs=...")
    if not np.array_equal(old.band, new.band):
        raise UnsupportedArrayError(
            f"{out} has the bands {old.band.values.tolist()}, the cube {new.band.values.tolist()}"
        )
    grid = {dim: old[dim].values for dim in map(str, new.reflectance.dims[-2:])}
    for dim, values in grid.items():
        if not np.isin(new[dim].values, values).any():
            raise UnsupportedArrayError(
                f"no {dim} of the cube ({new[dim].values[0]} ... {new[dim].values[-1]}) is one of "
                f"{out} ({values[0]} ... {values[-1]}): load it with the same bbox and resolution"
            )
    same = all(np.array_equal(new[dim], values) for dim, values in grid.items())
    return new if same else new.reindex(grid, fill_value=NODATA)


def _truncate(root: Any, dates: int) -> None:
    """Cut every array of the group to its first ``dates`` dates."""
    for _, array in root.arrays():
        names = array.metadata.dimension_names or ()
        if "time" in names and array.shape[names.index("time")] != dates:
            array.resize(tuple(
                dates if n == "time" else s for n, s in zip(names, array.shape, strict=True)
            ))  # fmt: skip
