"""Search a STAC catalogue, load its items, and write them to a store in TEC.

`from_stac` does all of this: it searches, loads (odc-stac or stackstac), makes the canonical cube
(:mod:`tec_zarr.stac.canonical`), and writes it or appends it to a store
(:mod:`tec_zarr.stac.append`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import xarray as xr

from tec_zarr.codec.options import takes_options
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA, band_names
from tec_zarr.stac.append import append, open_written, without_zarr_notes, write
from tec_zarr.stac.canonical import prepare, sort_layers
from tec_zarr.stac.offset import SAME_PASS, item_record

if TYPE_CHECKING:
    import pystac

__all__ = ["EARTH_SEARCH", "from_stac", "load", "search"]

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
"""The catalogue searched by default. It is open and needs no key."""

_EO = "https://stac-extensions.github.io/eo/v1.1.0/schema.json"

_EPSG = ("proj:epsg", "proj:code")

_ALL_BANDS = "all-bands"
"""Name given to the asset of an item that has all its bands in one file."""

_PROJECTION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"


@takes_options(ChunkSpec)
@without_zarr_notes()
def from_stac(
    out: Any,
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
    append_dates: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Search an area and a period, load and prepare the data, and write them to a store in TEC.

    Parameters
    ----------
    out : path, or Icechunk repository
        A new store as for `tec_zarr.stac.append.write`, or, with ``append_dates``, that of an
        earlier call.
    bbox : sequence of float
        West, south, east, north in degrees.
    datetime : str
        A period, such as ``"2023-06"`` or ``"2023-06-01/2023-08-31"``.
    catalog : str or Path
        URL of a STAC API, or path of a ``catalog.json`` or a ``collection.json``.
    collection : str
        Collection of a STAC API. Not used for a catalogue on disk.
    bands : sequence of str, optional
        Bands in any spelling. Default: all that every item has.
    resolution : float
        Side of a pixel in metres.
    crs : str or int, optional
        Such as ``"EPSG:32632"``. Default: that of most items.
    loader : {"odc-stac", "stackstac"}
        Library that reads the items.
    offset : int, optional
        DN that were added to all pixels, 0 or 1000. Default: what metadata and pixels say, as in
        `prepare`.
    append_dates : bool
        Whether to append later dates to an existing store. The options that follow are then those
        of the store.
    {options}

    Returns
    -------
    Dataset
        The opened store: ``reflectance`` (time, band, y, x) uint16 DN, 0 = nodata, and ``scl``
        (time, y, x) uint8 if the items have it. Lazy.

    Raises
    ------
    TecError
        The search finds no items, or a package of ``tec_zarr[stac]`` is missing.
    OffsetError
        It cannot be told whether the pixels hold the +1000 DN of baseline 04.00.
    UnsupportedArrayError
        An option is out of its range, or the dates cannot be appended to the store.
    """
    items = search(catalog, bbox=bbox, datetime=datetime, collection=collection)
    loaded = load(items, bbox=bbox, bands=bands, resolution=resolution, crs=crs, loader=loader)
    cube = prepare(loaded, items=items, offset=offset)
    if append_dates:
        append(cube, out)
    else:
        write(cube, out, **options)
    return open_written(out)


def search(
    catalog: str | Path,
    *,
    bbox: Sequence[float],
    datetime: str,
    collection: str = "sentinel-2-l2a",
) -> list[pystac.Item]:
    """Search a STAC API, or a static catalogue on disk. Returns the items sorted by time.

    Parameters
    ----------
    catalog : str or Path
        URL of a STAC API (Earth Search, Planetary Computer), or path of a ``catalog.json`` or a
        ``collection.json``.
    bbox : sequence of float
        West, south, east, north in degrees.
    datetime : str
        A period, such as ``"2023-06"`` or ``"2023-06-01/2023-08-31"``.
    collection : str
        Collection of a STAC API. Not used for a catalogue on disk.

    Raises
    ------
    UnsupportedArrayError
        ``datetime`` cannot be read as a period.
    TecError
        No item was found, the catalogue cannot be read, or a package is missing.
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
    """Load items lazily, and merge the granules of one overpass.

    Parameters
    ----------
    items : sequence of pystac.Item
        For instance from `search`.
    bbox : sequence of float, optional
        West, south, east, north in degrees. It is cut to the area that the items cover. Default:
        that whole area.
    bands : sequence of str, optional
        Bands to load, in any spelling. Default: every band that all items have. SCL is always
        loaded too, if all items have it.
    resolution : float
        Side of a pixel in metres.
    crs : str or int, optional
        CRS such as ``"EPSG:32632"``. Default: that of most items.
    loader : {"odc-stac", "stackstac"}
        Library that reads the items.

    Returns
    -------
    Dataset (odc-stac) or DataArray (stackstac)
        Native DN, for `prepare`.

    Raises
    ------
    UnsupportedArrayError
        Some items lack a band, ``crs`` is not an EPSG code, or ``resolution`` is not a positive
        number.
    TecError
        An item states no projection, or the loader is unknown.
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
    except Exception as error:  # pystac-client, requests and the signing raise their own.
        raise TecError(
            f"the catalogue {url} cannot be searched ({type(error).__name__}: {error}): look at "
            "its address, the name of the collection and the network"
        ) from error


def _period(datetime: str) -> tuple[np.datetime64, np.datetime64]:
    """Return the first moment of a period, and the first moment after it."""
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
    unit: Any = np.datetime_data(high.dtype)[0]
    return low, high + np.timedelta64(1, unit)


def _search_files(
    path: Path, bbox: Sequence[float], period: tuple[np.datetime64, np.datetime64]
) -> list[pystac.Item]:
    import pystac

    west, south, east, north = bbox
    low, high = period
    try:
        catalog = pystac.read_file(str(path))
        if not isinstance(catalog, pystac.Catalog):  # A Collection is a Catalog.
            raise pystac.STACError(f"it is a STAC {type(catalog).__name__}")
    except Exception as error:  # The file is missing, is not JSON, or is other JSON.
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
    """Rename the asset that holds all bands in one file to `_ALL_BANDS`.

    openEO gives it another name in every item. Projection, dtype and nodata are read from the file
    if the item does not state them.
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
    # odc-stac reads the bands of an asset only if the item lists this extension.
    if not any("/eo/" in url for url in item.stac_extensions):
        item.stac_extensions.append(_EO)
    return item


def _eo_bands(asset: pystac.Asset) -> list[str]:
    """Return the names of the bands in an asset's file, in the order of the file."""
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
    """Return the names of all layers of an item: its assets, and the bands of `_ALL_BANDS`."""
    names = set(item.assets)
    return names | set(_eo_bands(item.assets[_ALL_BANDS])) if _ALL_BANDS in names else names


def _covered(items: Sequence[pystac.Item], bbox: Sequence[float] | None) -> list[float] | None:
    """Return the part of ``bbox`` that items cover. Loaders would fill the rest with nodata."""
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
    """Return an item that lists the projection extension.

    odc-stac reads the ``proj:`` fields only of such items.
    """
    if any("/projection/" in url for url in item.stac_extensions):
        return item
    item = item.clone()
    item.stac_extensions = [*item.stac_extensions, _PROJECTION]
    return item


def _plain_with_epsg(item: pystac.Item) -> dict[str, Any]:
    """Return an item as JSON with ``proj:epsg``, because stackstac does not know ``proj:code``."""
    plain = json.loads(json.dumps(item.to_dict(transform_hrefs=False)))
    plain["properties"]["proj:epsg"] = _item_epsg(item)
    for name, asset in plain["assets"].items():
        asset["href"] = item.assets[name].get_absolute_href()
    return plain


def _merge_granules(cube: xr.DataArray) -> xr.DataArray:
    """Merge the granules of each overpass into one date.

    Each pixel comes from the first granule that is not nodata there.
    """
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
