"""From a STAC search to a store in TEC that can grow.

`from_stac` searches, loads (odc-stac or stackstac), makes the canonical cube
(:mod:`tec_zarr.stac.canonical`) and writes it; `append` adds dates later.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import xarray as xr

from tec_zarr.cubes.encoding import decode, encoding
from tec_zarr.cubes.layout import CHUNK
from tec_zarr.cubes.packing import time_encoding
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA, band_names
from tec_zarr.stac.canonical import in_time_order, prepare, rechunk_images, sort_layers
from tec_zarr.stac.offset import SAME_PASS, item_record

if TYPE_CHECKING:
    import pystac

__all__ = ["EARTH_SEARCH", "append", "from_stac", "load", "search", "write"]

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
"""The catalogue searched by default: open, needs no key."""

_NOT_SAID = {"f": np.nan, "O": "", "T": "", "U": ""}
"""What stands, by kind of dtype, in a coordinate that the items of later dates do not have."""

_EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"

_EPSG = ("proj:epsg", "proj:code")

_ALL_BANDS = "all-bands"
"""Name of the asset of an item whose bands are one file."""

_PROJECTION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"


@contextmanager
def _without_zarr_notes() -> Iterator[None]:
    """Strings and consolidated metadata have no specification in v3 yet: nothing to act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        yield


@_without_zarr_notes()
def from_stac(
    out: str | Path,
    *,
    bbox: Sequence[float],
    datetime: str,
    catalog: str | Path = EARTH_SEARCH,
    collection: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    resolution: float = 10,
    crs: str | int | None = None,
    loader: str = "odc-stac",
    offset: int | None = None,
    quality: float = 4.0,
    model: str = "tec-s2",
    append_dates: bool = False,
) -> xr.Dataset:
    """Search, load, prepare and write: from an area and a period to a store in TEC.

    Parameters
    ----------
    out : str or Path
        Zarr store: a new one, or with ``append_dates`` one of an earlier call.
    bbox, datetime, catalog, collection
        As in `search`.
    bands, resolution, crs, loader
        As in `load`.
    offset
        As in `prepare`.
    quality, model
        As in `tec_zarr.encoding`; unused with ``append_dates``.
    append_dates : bool
        Add later dates to ``out``.

    Returns
    -------
    Dataset
        The store, opened.
    """
    items = search(catalog, bbox=bbox, datetime=datetime, collection=collection)
    loaded = load(items, bbox=bbox, bands=bands, resolution=resolution, crs=crs, loader=loader)
    cube = prepare(loaded, items=items, offset=offset)
    if append_dates:
        append(cube, out)
    else:
        write(cube, out, quality=quality, model=model)
    return xr.open_zarr(out, decode_coords="all")


def search(
    catalog: str | Path,
    *,
    bbox: Sequence[float],
    datetime: str,
    collection: str = "sentinel-2-l2a",
) -> list[pystac.Item]:
    """Items of a STAC API, or of a static catalogue on disk, sorted by time.

    Parameters
    ----------
    catalog : str or Path
        URL of a STAC API (Earth Search, Planetary Computer), or path of a ``catalog.json`` or a
        ``collection.json``, in which ``collection`` is not asked for.
    bbox : sequence of float
        West, south, east, north in degrees.
    datetime : str
        ``"2023-06"``, ``"2023-06-01/2023-08-31"``.
    collection : str
        In a STAC API.

    Raises
    ------
    UnsupportedArrayError
        ``datetime`` is not what it should be.
    TecError
        Nothing found, a catalogue that cannot be read, or a package is missing.
    """
    period = _period(datetime)
    if urlparse(str(catalog)).scheme in ("http", "https"):
        found = _search_api(str(catalog), bbox, datetime, collection)
    else:
        found = _search_files(Path(catalog), bbox, period)
    if not found:
        raise TecError(f"no items in {catalog} for bbox {tuple(bbox)} and {datetime}")
    return sorted(found, key=lambda item: (item.properties["datetime"], item.id))


def load(
    items: Sequence[pystac.Item],
    *,
    bbox: Sequence[float] | None = None,
    bands: Sequence[str] | None = None,
    resolution: float = 10,
    crs: str | int | None = None,
    loader: str = "odc-stac",
) -> xr.DataArray | xr.Dataset:
    """Load items lazily, granules of one overpass merged.

    Parameters
    ----------
    items : sequence of pystac.Item
        For instance from `search`.
    bbox : sequence of float, optional
        West, south, east, north in degrees; what no item covers is left out. Default: all that
        the items cover.
    bands : sequence of str, optional
        Any spelling. Default: every band that all items have. SCL always comes with them.
    resolution : float
        Metres.
    crs : str or int, optional
        Such as ``"EPSG:32632"``. Default: that of most items.
    loader : {"odc-stac", "stackstac"}
        Which library reads.

    Returns
    -------
    Dataset (odc-stac) or DataArray (stackstac)
        Native DN, for `prepare`.

    Raises
    ------
    UnsupportedArrayError
        Bands that the items do not share, a ``crs`` that is no EPSG code, a ``resolution`` that
        is not a positive number.
    TecError
        Items that say no projection, or another loader.
    """
    if not (np.isfinite(resolution) and resolution > 0):
        raise UnsupportedArrayError(
            f"resolution is {resolution}, it must be a positive number: the side of a pixel in "
            "metres, such as 10"
        )
    epsg = _epsg(crs) if crs is not None else _common_epsg(items)
    names = _asset_names(items, bands)
    area: Any = _covered(items, bbox)
    if loader == "odc-stac":
        import odc.stac

        return odc.stac.load(
            [_with_projection(item) for item in items], bands=names, bbox=area,
            crs=f"EPSG:{epsg}", resolution=resolution, groupby="solar_day",
            chunks={"y": 1024, "x": 1024},
        )  # fmt: skip
    if loader == "stackstac":
        import stackstac

        if any(_ALL_BANDS in item.assets for item in items):
            raise TecError("stackstac reads one band of a file: pass loader='odc-stac'")

        cube = stackstac.stack(
            [_plain_with_epsg(item) for item in items], assets=names, bounds_latlon=area,
            epsg=epsg, resolution=resolution, dtype="uint16", rescale=False,
            fill_value=np.uint16(NODATA), xy_coords="center",
        )  # fmt: skip
        return _merge_granules(cube)
    raise TecError(f"loader is {loader!r}, it must be 'odc-stac' or 'stackstac'")


@_without_zarr_notes()
def write(
    cube: xr.Dataset, out: str | Path, *, quality: float = 4.0, model: str = "tec-s2"
) -> None:
    """Write a canonical cube so that dates can be appended.

    Parameters
    ----------
    cube : Dataset
        From `prepare`, in any Dask chunks; dates are stored in their order.
    out : str or Path
        A Zarr v3 store that does not exist yet.
    quality, model
        As in `tec_zarr.encoding`.

    Notes
    -----
    ``xr.open_zarr(out, decode_coords="all")`` shows all dates. Those of a last time chunk that
    is not full yet are also kept losslessly, in a group ``tail-N``, so that `append` codes them
    again from what was measured and not from what was decoded.
    """
    out = Path(out)
    if out.exists():
        raise UnsupportedArrayError(f"{out} exists: choose another name, or append to it")
    cube = rechunk_images(in_time_order(cube))
    settings = encoding(cube, quality=quality, model=model, chunks={"time": CHUNK["time"]})
    for name, da in cube.data_vars.items():
        if "chunks" not in settings[str(name)] and "time" in da.dims:
            chunks = {d: s[0] for d, s in da.chunksizes.items()} or dict(da.sizes)
            settings[str(name)]["chunks"] = tuple({**chunks, "time": CHUNK["time"]}.values())
    _to_zarr(decode(cube), out, mode="w", encoding=settings)
    _commit(out, cube)


@_without_zarr_notes()
def append(cube: xr.Dataset, out: str | Path) -> int:
    """Append the dates of a canonical cube that are later than those of a store of `write`.

    Full time chunks are not touched. The last one, if it is not full, is coded again together
    with the new dates, from its lossless copy. An interrupted append is repaired by the next.

    Parameters
    ----------
    cube : Dataset
        From `prepare`, with the same bands and CRS, and pixels on the same lattice: what is
        outside the store's area is cut off, what is missing is nodata. Dates that the store has
        are skipped.
    out : str or Path
        The store; one writer at a time.

    Returns
    -------
    int
        Number of dates added.

    Raises
    ------
    UnsupportedArrayError
        Another grid, other bands, dates before the last one, or a store of something else.
    """
    import zarr

    out = Path(out)
    root = zarr.open_group(out, mode="r+", use_consolidated=False)
    if "tec_dates" not in root.attrs:
        raise UnsupportedArrayError(
            f"{out} was not written by tec_zarr.stac.load.write: cannot append"
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
    rewritten = decode(rechunk_images(both)).assign_attrs(root.attrs.asdict())
    _to_zarr(rewritten, out, append_dim="time")
    _commit(out, both, before=whole)
    return new.sizes["time"]


def _search_api(
    url: str, bbox: Sequence[float], datetime: str, collection: str
) -> list[pystac.Item]:
    from pystac_client import Client

    sign = None
    if "planetarycomputer.microsoft.com" in url:
        try:
            import planetary_computer
        except ImportError as error:
            raise TecError("Planetary Computer: pip install planetary-computer") from error
        sign = planetary_computer.sign_inplace
    try:
        client = Client.open(url, modifier=sign)
        found = client.search(collections=[collection], bbox=list(bbox), datetime=datetime)
        return list(found.items())
    except Exception as error:  # pystac-client's, those of requests, and of whatever signs
        raise TecError(
            f"the catalogue {url} cannot be searched ({type(error).__name__}: {error}): look at "
            "its address, the name of the collection and the network"
        ) from error


def _period(datetime: str) -> tuple[np.datetime64, np.datetime64]:
    """First moment of a period, and the first one after it."""
    start, slash, end = datetime.partition("/")
    last = (end or start) if slash else start
    try:
        low = np.datetime64("0001-01-01" if start in ("", "..") else start.removesuffix("Z"))
        high = np.datetime64("9999-12-31" if last in ("", "..") else last.removesuffix("Z"))
    except ValueError as error:
        raise UnsupportedArrayError(
            f"datetime is {datetime!r} ({error}): give a year, month or day such as '2023-06', or "
            "two of them with a slash in between, '2023-06-01/2023-08-31'"
        ) from error
    return low, high + 1


def _search_files(
    path: Path, bbox: Sequence[float], period: tuple[np.datetime64, np.datetime64]
) -> list[pystac.Item]:
    import pystac

    west, south, east, north = bbox
    low, high = period
    try:
        catalog = pystac.read_file(str(path))
        if not isinstance(catalog, pystac.Catalog):  # which a Collection is
            raise pystac.STACError(f"it is a STAC {type(catalog).__name__}")
    except Exception as error:  # no such file, no JSON, JSON of something else
        raise TecError(
            f"{path} is neither a STAC API's address nor a catalogue on disk "
            f"({type(error).__name__}: {error})"
        ) from error
    found = []
    for item in catalog.get_items(recursive=True):
        w, s, e, n = item.bbox or (-180, -90, 180, 90)
        moment = item_record(item)["time"].astype("M8[s]")
        if w < east and e > west and s < north and n > south and low <= moment < high:
            item.make_asset_hrefs_absolute()
            found.append(_with_same_assets(item))
    return found


def _with_same_assets(item: pystac.Item) -> pystac.Item:
    """One name for the file of all bands, which openEO calls differently in every item.

    What the item does not say (projection, dtype, nodata) is read from the file.
    """
    several = [name for name, asset in item.assets.items() if len(_eo_bands(asset)) > 1]
    if len(several) != 1 or not sort_layers(_eo_bands(item.assets[several[0]]))[0]:
        return item
    asset = item.assets[_ALL_BANDS] = item.assets.pop(several[0])
    bands: list[dict[str, Any]] = [{"name": name} for name in _eo_bands(asset)]
    if Path(asset.href).is_file():
        import rasterio

        with rasterio.open(asset.href) as file:
            for band, dtype, nodata in zip(bands, file.dtypes, file.nodatavals, strict=True):
                band |= {"data_type": dtype} | ({} if nodata is None else {"nodata": nodata})
            code = file.crs.to_epsg() if file.crs else None
        if code is not None and not any(item.properties.get(k) for k in _EPSG):
            item.properties["proj:epsg"] = code
    asset.extra_fields["bands"] = bands
    if not any("/eo/" in url for url in item.stac_extensions):  # odc-stac looks no further
        item.stac_extensions.append(_EO)
    return item


def _eo_bands(asset: pystac.Asset) -> list[str]:
    """Names of the bands in an asset's file, in its order."""
    listed = asset.extra_fields.get("eo:bands") or asset.extra_fields.get("bands") or ()
    return [str(band.get("name")) for band in listed]


def _asset_names(items: Sequence[pystac.Item], bands: Sequence[str] | None) -> list[str]:
    shared = set.intersection(*(_layers(item) for item in items))
    known, scl = sort_layers(shared)
    wanted = list(known) if bands is None else list(band_names(bands))
    missing = [b for b in wanted if b not in known]
    if missing or not wanted:
        raise UnsupportedArrayError(
            f"the items share the assets {sorted(shared)}; no bands {missing or ''} among them"
        )
    return [known[b] for b in wanted] + ([scl] if scl else [])


def _layers(item: pystac.Item) -> set[str]:
    """What can be loaded of an item: assets, or the bands of the one file of all bands."""
    names = set(item.assets)
    return names | set(_eo_bands(item.assets[_ALL_BANDS])) if _ALL_BANDS in names else names


def _covered(items: Sequence[pystac.Item], bbox: Sequence[float] | None) -> list[float] | None:
    """Part of ``bbox`` that items cover: loaders would fill the rest with nodata."""
    if bbox is None or any(item.bbox is None for item in items):
        return None if bbox is None else list(bbox)
    boxes = np.array([item.bbox for item in items])
    low = np.maximum(bbox[:2], boxes[:, :2].min(axis=0))
    high = np.minimum(bbox[2:], boxes[:, 2:].max(axis=0))
    return [*low.tolist(), *high.tolist()]


def _epsg(crs: str | int) -> int:
    code = str(crs).upper().removeprefix("EPSG:")
    if not code.isdecimal():
        raise UnsupportedArrayError(
            f"the CRS {crs!r} is no EPSG code: pass crs='EPSG:...', such as 'EPSG:32632'"
        )
    return int(code)


def _item_epsg(item: pystac.Item) -> int:
    stated = next((item.properties[k] for k in _EPSG if item.properties.get(k)), None)
    if stated is None:
        raise TecError(f"item {item.id} says no projection: pass crs='EPSG:...'")
    return _epsg(stated)


def _common_epsg(items: Sequence[pystac.Item]) -> int:
    codes = [_item_epsg(item) for item in items]
    return max(dict.fromkeys(codes), key=codes.count)


def _with_projection(item: pystac.Item) -> pystac.Item:
    """odc-stac reads ``proj:`` fields only of items that list the extension."""
    if any("/projection/" in url for url in item.stac_extensions):
        return item
    item = item.clone()
    item.stac_extensions = [*item.stac_extensions, _PROJECTION]
    return item


def _plain_with_epsg(item: pystac.Item) -> dict[str, Any]:
    """stackstac knows ``proj:epsg``, not the newer ``proj:code``."""
    plain = json.loads(json.dumps(item.to_dict(transform_hrefs=False)))
    plain["properties"]["proj:epsg"] = _item_epsg(item)
    for name, asset in plain["assets"].items():
        asset["href"] = item.assets[name].get_absolute_href()
    return plain


def _merge_granules(cube: xr.DataArray) -> xr.DataArray:
    """One date for each overpass: the first granule that measured a pixel gives it."""
    import dask.array

    starts = [0, *(np.flatnonzero(np.diff(cube.time.values) > SAME_PASS) + 1).tolist()]
    dates = []
    for start, stop in zip(starts, [*starts[1:], cube.sizes["time"]], strict=True):
        granules = [cube.data[i] for i in range(start, stop)]
        merged = granules[0]
        for granule in granules[1:]:
            merged = dask.array.where(merged != NODATA, merged, granule)
        dates.append(merged)
    return cube.isel(time=starts).copy(data=dask.array.stack(dates))


def _to_zarr(ds: xr.Dataset, out: Path, **arguments: Any) -> None:
    ds.to_zarr(out, zarr_format=3, consolidated=False, **arguments)


def _commit(out: Path, written: xr.Dataset, before: int | None = None) -> None:
    """Keep the dates of the last, partly filled chunk; then say how many dates are complete."""
    import zarr

    dates = (before or 0) + written.sizes["time"]
    started = dates % CHUNK["time"]
    name = f"tail-{dates}"
    if started:
        last = decode(written.isel(time=slice(-started, None)))
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
    zarr.consolidate_metadata(out)


def _tail(out: Path, root: Any) -> xr.Dataset | None:
    dates = int(root.attrs["tec_dates"])
    if dates % CHUNK["time"] == 0:
        return None
    opened = xr.open_zarr(out, group=f"tail-{dates}", consolidated=False, decode_coords="all")
    return decode(opened).load()


def _on_grid_of(old: xr.Dataset, new: xr.Dataset, out: Path) -> xr.Dataset:
    """``new`` on the pixels of ``old``, which catalogues cover more or less of each time."""
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
