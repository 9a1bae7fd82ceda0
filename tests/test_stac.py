"""From a catalogue to a store and on: both loaders, every trap of theirs, append, the offset."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toy
import xarray as xr

from tec_zarr.cubes import synthetic
from tec_zarr.errors import SecondGenerationWarning, TecError, UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.inpaint.clouds import METHODS
from tec_zarr.inpaint.masks import cloud_mask
from tec_zarr.sentinel2 import L2A_BANDS
from tec_zarr.stac.append import append, write
from tec_zarr.stac.canonical import harmonize, prepare, sort_layers, to_reflectance
from tec_zarr.stac.load import from_stac, load, search
from tec_zarr.stac.offset import Evidence, OffsetError
from tec_zarr.stores.info import stored_arrays

stackstac = pytest.importorskip("stackstac", reason="pip install 'tec_zarr[test]'")
odc_stac = pytest.importorskip("odc.stac", reason="pip install 'tec_zarr[test]'")
for package in ("rioxarray", "pystac_client", "uvicorn", "starlette"):
    pytest.importorskip(package, reason="pip install 'tec_zarr[test]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from local_catalog import Scene, make_catalog, make_eopf_product  # noqa: E402
from local_server import serving, stac_api  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
SIZE = 64
BANDS = ("B02", "B04", "B08", "B11")
TRUTH = synthetic.dataset(dates=6, size=SIZE, bands=BANDS, seed=3)
WORLD = (-180, -90, 180, 90)
TOY = {"model": toy.NAME, "quality": 8}
TOLERANCE = 0.5  # DN: the toy's step at quality 8 is 1


def earth_search(carry=0, flag=True):
    """As Earth Search says it: raster:bands are -0.1 whatever the flag."""
    properties = {"earthsearch:boa_offset_applied": flag}
    return Scene("2023-06-12", "05.10", carry, properties=properties, raster_offset=-0.1)


MIXED = (
    Scene("2021-06-10", "03.01", 0),
    Scene("2021-06-20", "03.01", 0),
    Scene("2022-03-05", "04.00", 1000),
    Scene("2022-06-05", "05.10", 0, raster_offset=-0.1,
          properties={"earthsearch:boa_offset_applied": True}),
    Scene("2023-06-12", "05.10", 1000),
    Scene("2023-06-12", "05.10", 1000, epsg=32633),
    Scene("2023-06-22", "05.10", 1000, raster_offset=-0.1),
)  # fmt: skip
"""What differs between catalogues, baselines and zones, in one."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return make_catalog(tmp_path_factory.mktemp("mixed"), MIXED, bands=BANDS, size=SIZE)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_catalog(tmp_path_factory.mktemp("archive"), bands=BANDS, size=SIZE)


@pytest.fixture
def items(archive):
    return search(archive, bbox=WORLD, datetime="..")


def one_scene(tmp_path, scene, **options):
    path = make_catalog(tmp_path, [scene], bands=BANDS, size=SIZE, **options)
    return search(path, bbox=WORLD, datetime="..")


def with_epsg(items):
    """Plain items as catalogues with the older projection extension serve them."""
    plain = [json.loads(json.dumps(i.to_dict(transform_hrefs=False))) for i in items]
    for item in plain:
        code = item["properties"].pop("proj:code", None)
        if code:
            item["properties"]["proj:epsg"] = int(code.removeprefix("EPSG:"))
    return plain


def stacked(items, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stackstac.stack(with_epsg(items), resolution=10, **options)


def land(date=slice(None)):
    """What the scenes show; B11 was imaged at 20 m."""
    return TRUTH.reflectance[date].sel(band=list(BANDS))


# ------------------------------------------------------------------- whole pipelines


@pytest.mark.filterwarnings("ignore:nothing clear is in reach")  # "previous", on the first date
@pytest.mark.parametrize("loader", ["odc-stac", "stackstac"])
def test_write_reopen_append_inpaint(mixed, tmp_path, loader):
    """Old and new baselines, with and without the offset, two UTM zones, classes."""
    out = tmp_path / "cube.zarr"
    box = search(mixed, bbox=WORLD, datetime="2021")[0].bbox
    area = {"catalog": mixed, "bbox": box, "loader": loader}
    from_stac(out, datetime="2021-01-01/2022-03-31", **area, **TOY)
    assert (out / "tail-3").is_dir()
    ds = from_stac(out, datetime="2021-01-01/2023-12-31", **area, append_dates=True)
    assert ds.boa_offset_removed.values.tolist() == [0, 0, 1000, 0, 1000, 1000]
    days = ["2021-06-10", "2021-06-20", "2022-03-05", "2022-06-05", "2023-06-12", "2023-06-22"]
    assert ds.time.values.astype("M8[D]").astype(str).tolist() == days
    assert ds.item_id.values[0] == "S2A_32UPU_20210610_L2A"
    assert ds.item_id.values[4] == "S2A_32UPU_20230612_L2A,S2A_33UUP_20230612_L2A"
    assert ds.rio.crs.to_epsg() == 32632
    assert ds.band.values.tolist() == list(BANDS)

    inner = ds.sel(y=slice(5300040, 5300040 - 10 * SIZE), x=slice(600000, 600000 + 10 * SIZE))
    assert inner.sizes["y"] == inner.sizes["x"] == SIZE
    place = synthetic.dataset(dates=len(MIXED), size=SIZE, bands=BANDS, seed=3)
    place = place.isel(time=[i for i, scene in enumerate(MIXED) if scene.epsg == 32632])
    one_zone = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(
        inner.scl[one_zone], place.scl[one_zone, ::2, ::2].values.repeat(2, 1).repeat(2, 2)
    )
    ten_metre = ["B02", "B04", "B08"]
    shown = inner.reflectance.sel(band=ten_metre).astype(int).values
    truth = place.reflectance.sel(band=ten_metre).astype(int).values
    assert np.abs(shown - truth)[one_zone].max() <= TOLERANCE
    measured = truth[4] > 0  # where this zone measured nothing, the other zone may have
    assert np.abs(shown - truth)[4][measured].max() <= TOLERANCE
    codecs = {a.path: a.codec for a in stored_arrays(out)}
    assert "TEC" in codecs["reflectance"]
    assert "TEC" not in codecs["scl"]

    hidden = cloud_mask(ds.scl).compute()
    assert 0.05 < float(hidden.mean()) < 0.95
    before = ds.reflectance.compute()
    for method in METHODS:
        clear = ds.chunk({"time": -1}).tec.inpaint_clouds(method=method).reflectance
        assert clear.chunks is not None
        after = clear.compute()
        assert (after == before).where(~hidden, True).all()
        assert (after != before).where(hidden).any()
        assert after.rio.crs.to_epsg() == 32632


@pytest.mark.parametrize("loader", ["odc-stac", "stackstac"])
def test_clouds_filled_before_writing(mixed, tmp_path, loader):
    """A step between prepare and write: what is coded was never decoded."""
    items = search(mixed, bbox=WORLD, datetime="..")
    cube = prepare(load(items, bbox=items[0].bbox, loader=loader), items=items)
    filled = cube.chunk({"time": -1}).tec.inpaint_clouds(method="median")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecondGenerationWarning)
        write(filled, tmp_path / "a.zarr", **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance.astype(int)
    assert int(np.abs(back - filled.reflectance.astype(int)).max()) <= 1
    np.testing.assert_array_equal(back == 0, filled.reflectance == 0)


def test_both_loaders_give_the_same_cube(items):
    a, b = (prepare(load(items, loader=name), items=items) for name in ("odc-stac", "stackstac"))
    for name in ("reflectance", "scl", "y", "x", "band"):
        np.testing.assert_array_equal(a[name], b[name])


def test_two_utm_zones_on_one_grid_and_one_date(tmp_path):
    scenes = [Scene("2023-06-12"), Scene("2023-06-12", epsg=32633), Scene("2023-06-22")]
    path = make_catalog(tmp_path, scenes, bands=["B04"], size=32)
    items = search(path, bbox=WORLD, datetime="2023")
    assert {i.properties["proj:code"] for i in items} == {"EPSG:32632", "EPSG:32633"}
    both = [i for i in items if "20230612" in i.id]
    box = both[0].bbox
    for loader in ("odc-stac", "stackstac"):
        cube = prepare(load(items, bands=["red"], bbox=box, loader=loader), items=items)
        assert cube.sizes["time"] == 2
        assert cube.spatial_ref.attrs["crs_wkt"].find("zone 32N") > 0
        assert cube.item_id.values[0].split(",") == sorted(i.id for i in both)


def test_a_period_or_area_without_items_says_so(archive):
    with pytest.raises(ValueError, match="no items"):
        search(archive, bbox=WORLD, datetime="1999-01")
    with pytest.raises(ValueError, match="no items"):
        search(archive, bbox=(50, 50, 51, 51), datetime="..")


@pytest.mark.parametrize("datetime", ["june", "2023-06-31", "2023-06/august"])
def test_a_period_that_is_none_is_refused_before_anybody_is_asked(archive, datetime):
    for catalog in (archive, "http://127.0.0.1:9/v1"):
        with pytest.raises(UnsupportedArrayError, match=f"datetime is '{datetime}'.*2023-06"):
            search(catalog, bbox=WORLD, datetime=datetime)


def test_a_catalogue_that_is_not_there_says_so(tmp_path):
    url = "http://127.0.0.1:9/v1"
    with pytest.raises(TecError, match=rf"the catalogue {url} cannot be searched"):
        search(url, bbox=WORLD, datetime="2023")
    with pytest.raises(TecError, match=r"nothing\.json is neither"):
        search(tmp_path / "nothing.json", bbox=WORLD, datetime="2023")


@pytest.mark.parametrize("loader", ["odc-stac", "stackstac"])
def test_grids_that_are_none_are_refused(items, loader):
    with pytest.raises(UnsupportedArrayError, match="'WGS84' is no EPSG code"):
        load(items, crs="WGS84", loader=loader)
    for resolution in (0, -10, float("nan")):
        with pytest.raises(UnsupportedArrayError, match=r"resolution is .* positive"):
            load(items, resolution=resolution, loader=loader)


def test_a_stac_api_page_by_page(archive, tmp_path):
    """pystac-client over HTTP; Earth Search and Planetary Computer answer the same requests."""
    with serving(stac_api(archive, page=2)) as url:
        found = search(url, bbox=(10, 47, 11, 48), datetime="2021-06-15/2023-06-30")
        days = [item.datetime.strftime("%Y-%m-%d") for item in found]
        assert days == ["2021-06-20", "2021-07-05", "2023-06-12", "2023-06-22"]
        assert len(search(url, bbox=(10, 47, 11, 48), datetime="2023")) == 3
        with pytest.raises(TecError, match="no items"):
            search(url, bbox=(50, 50, 51, 51), datetime="2023")
        with pytest.raises(TecError, match="no items"):
            search(url, bbox=(10, 47, 11, 48), datetime="2023", collection="landsat-c2-l2")
        ds = from_stac(tmp_path / "a.zarr", catalog=url, bbox=found[0].bbox, datetime="2021", **TOY)
    assert ds.sizes["time"] == 3


def test_planetary_computer_is_asked_with_signed_addresses(monkeypatch):
    asked = {}

    def open_client(url, modifier=None):
        asked.update(url=url, modifier=modifier)
        raise ConnectionError

    monkeypatch.setattr("pystac_client.Client.open", open_client)
    url = "https://planetarycomputer.microsoft.com/api/stac/v1"
    monkeypatch.setitem(sys.modules, "planetary_computer", None)
    with pytest.raises(TecError, match="pip install planetary-computer"):
        search(url, bbox=WORLD, datetime="2023")
    signing = SimpleNamespace(sign_inplace=lambda item: item)
    monkeypatch.setitem(sys.modules, "planetary_computer", signing)
    with pytest.raises(TecError, match="cannot be searched"):
        search(url, bbox=WORLD, datetime="2023")
    assert asked == {"url": url, "modifier": signing.sign_inplace}


EARTH_SEARCH_ASSETS = """aot aot-jp2 blue blue-jp2 coastal coastal-jp2 granule_metadata green
    green-jp2 nir nir-jp2 nir08 nir08-jp2 nir09 nir09-jp2 red red-jp2 rededge1 rededge1-jp2 rededge2
    rededge2-jp2 rededge3 rededge3-jp2 scl scl-jp2 swir16 swir16-jp2 swir22 swir22-jp2 thumbnail
    tileinfo_metadata visual visual-jp2 wvp wvp-jp2"""
PLANETARY_COMPUTER_ASSETS = """AOT B01 B02 B03 B04 B05 B06 B07 B08 B09 B11 B12 B8A SCL WVP
    datastrip-metadata granule-metadata inspire-metadata preview product-metadata rendered_preview
    safe-manifest tilejson visual"""
COPERNICUS_ASSETS = """AOT_10m AOT_20m AOT_60m B01_20m B01_60m B02_10m B02_20m B02_60m B03_10m
    B03_20m B03_60m B04_10m B04_20m B04_60m B05_20m B05_60m B06_20m B06_60m B07_20m B07_60m B08_10m
    B09_60m B11_20m B11_60m B12_20m B12_60m B8A_20m B8A_60m SCL_20m SCL_60m TCI_10m TCI_20m TCI_60m
    WVP_10m WVP_20m WVP_60m Product safe_manifest thumbnail"""


@pytest.mark.parametrize(
    ("assets", "near_infrared", "classes"),
    [
        (EARTH_SEARCH_ASSETS, "nir", "scl"),
        (PLANETARY_COMPUTER_ASSETS, "B08", "SCL"),
        (COPERNICUS_ASSETS, "B08_10m", "SCL_20m"),
    ],
)
def test_of_all_assets_the_bands_are_taken_once_and_finest(assets, near_infrared, classes):
    bands, scl = sort_layers(assets.split())
    assert list(bands) == list(L2A_BANDS)
    assert bands["B08"] == near_infrared
    assert scl == classes
    twins = [name for name in bands.values() if name.endswith(("jp2", "60m"))]
    assert set(twins) <= {"B09_60m"}  # there is no finer one


def openeo_job(folder):
    """A collection on disk as openEO writes it: per date one int16 file of all bands, called after
    its date, with eo:bands and without a projection."""
    import rasterio.warp

    cube = TRUTH.reflectance[:2].astype("int16")
    west, north = float(cube.x[0]) - 5, float(cube.y[0]) + 5
    crs = TRUTH.spatial_ref.attrs["crs_wkt"]
    corners = west, north - 10 * SIZE, west + 10 * SIZE, north
    bbox = list(rasterio.warp.transform_bounds(crs, "EPSG:4326", *corners))
    w, s, e, n = bbox
    ring = [[w, s], [e, s], [e, n], [w, n], [w, s]]
    links = []
    for date in cube:
        name = f"openEO_{date.time.dt.strftime('%Y-%m-%d').item()}Z.tif"
        with rasterio.open(
            folder / name, "w", driver="GTiff", dtype="int16", count=4, width=SIZE, height=SIZE,
            nodata=-32768, crs=crs,
            transform=rasterio.transform.from_origin(west, north, 10, 10),
        ) as file:
            file.write(date.where(date != 0, -32768).values)
        asset = {"href": f"./{name}", "roles": ["data"], "type": "image/tiff; application=geotiff",
                 "eo:bands": [{"name": band, "common_name": None} for band in BANDS]}  # fmt: skip
        item = {"type": "Feature", "stac_version": "1.0.0", "id": name, "links": [],
                "bbox": bbox, "assets": {name: asset},
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"datetime": str(date.time.values)[:19] + "Z"}}  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(item))
        links.append({"href": f"./{name}.json", "rel": "item", "type": "application/geo+json"})
    extent = {"spatial": {"bbox": [list(WORLD)]}, "temporal": {"interval": [[None, None]]}}
    collection = {"type": "Collection", "stac_version": "1.0.0", "id": "job", "description": "job",
                  "license": "unknown", "extent": extent, "links": links}  # fmt: skip
    (folder / "collection.json").write_text(json.dumps(collection))
    return folder / "collection.json"


def test_a_collection_on_disk_whose_items_are_one_file_each(tmp_path):
    collection = openeo_job(tmp_path)
    asked = {"bbox": WORLD, "datetime": "..", "catalog": collection, "offset": 0, **TOY}
    cube = from_stac(tmp_path / "a.zarr", **asked).reflectance
    assert cube.band.values.tolist() == list(BANDS)
    truth = TRUTH.reflectance[:2]
    here = cube.sel(x=truth.x, y=truth.y, method="nearest").values
    np.testing.assert_allclose(here, truth.values, atol=TOLERANCE)
    np.testing.assert_array_equal(here == 0, truth.values == 0)
    with pytest.raises(TecError, match="loader='odc-stac'"):
        from_stac(tmp_path / "b.zarr", **asked, loader="stackstac")
    item = next(tmp_path.glob("*Z.tif.json"))
    with pytest.raises(TecError, match="neither a STAC API's address nor a catalogue on disk"):
        search(item, bbox=WORLD, datetime="..")


def test_command_line(archive, tmp_path, capsys):
    out = tmp_path / "cube.zarr"
    common = ["from-stac", "--catalog", str(archive), "--bbox", *map(str, WORLD)]
    first = [*common, "--datetime", "2021", "--model", toy.NAME, str(out)]
    assert main(first) == 0
    capsys.readouterr()
    assert main(first) == 1
    assert "exists" in capsys.readouterr().err
    assert main([*common, "--datetime", "2023", "--append", str(out)]) == 0
    text = capsys.readouterr().out
    assert "1000 DN off 3 dates" in text
    assert "6 dates" in text
    assert xr.open_zarr(out).sizes["time"] == 6


# ------------------------------------------------------------------------- appending


def canonical(dates=11, size=32):
    ds = synthetic.dataset(dates=dates, size=size, bands=["B04", "B08"])
    return prepare(ds, offset=0)


def test_appends_leave_full_chunks_alone_and_never_code_decoded_pixels(tmp_path):
    ds, out = canonical(), tmp_path / "a.zarr"
    write(ds.isel(time=slice(0, 6)), out, model=toy.NAME, quality=2)
    whole = out / "reflectance" / "c" / "0" / "0" / "0" / "0"
    before = whole.read_bytes(), whole.stat().st_mtime_ns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert append(ds.isel(time=slice(0, 7)), out) == 1
        assert append(ds.isel(time=slice(6, 11)), out) == 4
    assert (whole.read_bytes(), whole.stat().st_mtime_ns) == before
    at_once = tmp_path / "b.zarr"
    write(ds, at_once, model=toy.NAME, quality=2)
    for name in ("reflectance", "scl", "time"):
        np.testing.assert_array_equal(xr.open_zarr(out)[name], xr.open_zarr(at_once)[name])


def test_the_unfinished_chunk_is_there_losslessly_until_it_is_full(tmp_path):
    ds, out = canonical(8), tmp_path / "a.zarr"
    write(ds.isel(time=slice(0, 5)), out, model=toy.NAME, quality=2)
    tail = xr.open_zarr(out, group="tail-5", consolidated=False)
    np.testing.assert_array_equal(tail.reflectance, ds.reflectance[4:5])
    append(ds.isel(time=slice(5, 7)), out)
    assert not (out / "tail-5").exists()
    tail = xr.open_zarr(out, group="tail-7", consolidated=False)
    np.testing.assert_array_equal(tail.reflectance, ds.reflectance[4:7])
    append(ds.isel(time=slice(7, 8)), out)
    assert not list(out.glob("tail-*"))


def test_dates_in_any_order_are_stored_in_theirs(tmp_path):
    """Otherwise sel(time=slice(...)) fails on what was stored."""
    ds = prepare(synthetic.dataset(dates=9, size=32, bands=["B04", "B08"]), offset=0)
    out = tmp_path / "a.zarr"
    write(ds.isel(time=[3, 0, 2, 1, 4]), out, **TOY)
    assert append(ds.isel(time=[8, 6, 5, 7]), out) == 4
    stored = xr.open_zarr(out)
    np.testing.assert_array_equal(stored.time, ds.time)
    np.testing.assert_array_equal(stored.scl, ds.scl)
    assert abs(stored.reflectance.astype(int) - ds.reflectance).max() <= 1
    chosen = slice(ds.time.values[1], ds.time.values[6])
    xr.testing.assert_equal(stored.sel(time=chosen), stored.isel(time=slice(1, 7)))


def test_prepare_sorts_bands_and_dates_of_whatever_it_is_given():
    ds = synthetic.dataset(dates=3, size=32, bands=BANDS)
    expected = prepare(ds, offset=0)
    mixed = ds.isel(time=[2, 0, 1], band=[3, 1, 0, 2])
    layers = mixed.reflectance.to_dataset("band").assign(SCL=mixed.scl)
    for given in (mixed, layers, prepare(ds, offset=0).isel(time=[1, 2, 0], band=[2, 3, 1, 0])):
        found = prepare(given, offset=0)
        assert found.band.values.tolist() == list(BANDS)
        xr.testing.assert_equal(found, expected)
    assert prepare(mixed.reflectance, offset=0).reflectance.equals(expected.reflectance)
    # The offsets of dates are those of the dates as they were given.
    carried = mixed.reflectance.where(mixed.reflectance == 0, mixed.reflectance + 1000)
    carried = carried.astype("uint16").where(mixed.time != mixed.time[0], mixed.reflectance)
    found = prepare(carried, offset=[0, 1000, 1000])
    np.testing.assert_array_equal(found.reflectance, expected.reflectance)
    assert found.boa_offset_removed.values.tolist() == [1000, 1000, 0]


def test_an_interrupted_append_is_repaired_by_the_next(tmp_path, monkeypatch):
    ds, out = canonical(9), tmp_path / "a.zarr"
    write(ds.isel(time=slice(0, 6)), out, model=toy.NAME, quality=2)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tec_zarr.stac.append._commit", killed)
        with pytest.raises(KeyboardInterrupt):
            append(ds.isel(time=slice(6, 9)), out)
    assert append(ds.isel(time=slice(6, 9)), out) == 3
    write(ds, tmp_path / "b.zarr", model=toy.NAME, quality=2)
    b = xr.open_zarr(tmp_path / "b.zarr")
    np.testing.assert_array_equal(xr.open_zarr(out).reflectance, b.reflectance)


def test_appends_that_do_not_fit_say_why(tmp_path):
    ds, out = canonical(6), tmp_path / "a.zarr"
    write(ds.isel(time=slice(2, 4)), out, model=toy.NAME)
    with pytest.raises(UnsupportedArrayError, match="only later ones"):
        append(ds, out)
    later = ds.isel(time=slice(4, 6))
    with pytest.raises(UnsupportedArrayError, match="bands"):
        append(later.isel(band=[0]), out)
    with pytest.raises(UnsupportedArrayError, match="same bbox"):
        append(later.assign_coords(x=later.x + 3), out)
    assert append(later.isel(y=slice(0, 20)), out) == 2
    assert (xr.open_zarr(out).reflectance[2:, :, 20:] == 0).all()
    later.to_zarr(tmp_path / "other.zarr")
    with pytest.raises(UnsupportedArrayError, match="not written by"):
        append(later, tmp_path / "other.zarr")


def test_later_items_that_say_more_less_or_other_things_can_follow(tmp_path):
    """stackstac makes one value of what all items share, and NaN or None of what one lacks."""
    ds, out = canonical(9), tmp_path / "a.zarr"

    def with_coords(dates, **coords):
        return prepare(ds.isel(time=dates).drop_vars("boa_offset_removed").assign_coords(coords),
                       offset=0)  # fmt: skip

    first = with_coords(slice(0, 3), platform="sentinel-2a", cover=0, sun=("time", [1.5, 2, 3]))
    write(first, out, **TOY)
    cover = ("time", np.array([12.5, None], object))
    later = with_coords(slice(3, 5), platform=("time", ["sentinel-2a", "sentinel-2b"]), cover=cover)
    append(later, out)
    append(with_coords(slice(5, 9), cover=7, other="new"), out)
    back = xr.open_zarr(out)
    assert back.platform.values.tolist() == ["sentinel-2a"] * 4 + ["sentinel-2b"] + [""] * 4
    np.testing.assert_array_equal(back.cover, [0, 0, 0, 12.5, np.nan, 7, 7, 7, 7])
    np.testing.assert_array_equal(back.sun, [1.5, 2, 3, *[np.nan] * 6])
    assert "other" not in back
    np.testing.assert_allclose(back.reflectance.astype(int), ds.reflectance.astype(int), atol=1)


# -------------------------------------------------------------------- traps of loaders


def test_stackstac_floats_with_nan_come_back_to_dn(items):
    cube = stacked(items[3:])
    assert cube.dtype == "float64"
    ds = prepare(cube)
    assert (ds.reflectance.dtype, ds.scl.dtype) == ("uint16", "uint8")
    np.testing.assert_array_equal(ds.reflectance.sel(band="B04"), land(slice(3, 6)).sel(band="B04"))
    np.testing.assert_array_equal(ds.scl[:, ::2, ::2], TRUTH.scl[3:, ::2, ::2])
    assert ds.boa_offset_removed.values.tolist() == [1000] * 3


def test_stackstac_reflectance_rescaled_by_wrong_raster_bands_is_undone(tmp_path):
    """Earth Search: raster:bands say -0.1 also where the offset is no longer in the pixels."""
    items = one_scene(tmp_path, earth_search())
    cube = stacked(items, assets=["B04", "B02"])
    assert float(cube.min()) < -0.05
    ds = prepare(cube, items=items)
    np.testing.assert_array_equal(ds.reflectance.sel(band="B04"), truth_of(1, "B04"))
    with pytest.raises(OffsetError, match="items="):
        prepare(cube.drop_vars("raster:bands", errors="ignore"))


def test_reflectance_that_somebody_made_is_not_corrected_a_second_time(tmp_path):
    """Baseline 05.10 in the coordinates speaks of the files, not of these values."""
    items = one_scene(tmp_path, earth_search(1000, False))
    cube = stacked(items, assets=["B04", "B02"]).drop_vars("raster:bands", errors="ignore")
    ds = prepare(cube)
    assert ds.boa_offset_removed.values.tolist() == [0]
    np.testing.assert_array_equal(ds.reflectance.sel(band="B04"), truth_of(1, "B04"))
    with pytest.raises(OffsetError, match="nothing says"):
        prepare(cube + 0.2)


def test_floats_with_nothing_in_the_middle_are_looked_at_elsewhere():
    dn = TRUTH.reflectance[:1].pad(x=(600, 600), constant_values=0).astype("float32")
    dn = dn.where(dn != 0).drop_vars("x")
    out = prepare(dn, offset=0).reflectance[..., 600:-600]
    np.testing.assert_array_equal(out, TRUTH.reflectance[:1])


def truth_of(dates, band):
    """The land of a catalogue of ``dates`` scenes."""
    place = synthetic.dataset(dates=dates, size=SIZE, bands=BANDS, seed=3)
    return place.reflectance.sel(band=band)


def test_stackstac_chunks_of_one_date_are_joined_and_it_is_said(items):
    cube = stacked(items)
    assert cube.chunks[0] == (1,) * 6
    ds = prepare(cube)
    assert ds.reflectance.chunks[:2] == ((4, 2), (4,))
    assert "rechunked from time 1 x band 1" in ds.attrs["history"]


def test_stackstac_objects_that_zarr_cannot_store_are_gone(items, tmp_path):
    cube = stacked(items).assign_coords(mixed=("time", np.array([{}, 1, None] * 2, object)))
    ds = prepare(cube)
    assert "mixed" not in ds.coords
    assert "mixed" in ds.attrs["history"]
    ds.to_zarr(tmp_path / "a.zarr", encoding=ds.tec.encoding(**TOY))
    back = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")
    assert back.rio.crs.to_epsg() == 32632
    assert back["s2:processing_baseline"].values.tolist() == ["03.01"] * 3 + ["05.10"] * 3


def test_stackstac_corner_coordinates_become_centres(items):
    corners, centres = (prepare(stacked(items[:1], xy_coords=how)) for how in ("topleft", "center"))
    assert corners.x[0] == 600005
    np.testing.assert_array_equal(corners.x, centres.x)
    np.testing.assert_array_equal(corners.y, centres.y)
    assert corners.rio.bounds()[0] == 600000


def test_stackstac_items_with_proj_code_only(items):
    assert "proj:epsg" not in items[0].properties
    plain = [i.to_dict(transform_hrefs=False) for i in items]
    with pytest.raises(ValueError, match="common CRS"):
        stackstac.stack(plain, resolution=10)
    assert prepare(load(items, loader="stackstac"), items=items).rio.crs.to_epsg() == 32632


def test_stackstac_bounds_do_not_grow(items):
    plain = [i.to_dict(transform_hrefs=False) for i in items]
    assert stackstac.stack(plain, resolution=10, epsg=32632).sizes["x"] > SIZE  # its own way
    cube = prepare(load(items, loader="stackstac"), items=items)
    assert cube.rio.bounds() == (600000, 5300040 - 10 * SIZE, 600000 + 10 * SIZE, 5300040)


def test_stackstac_uint16_with_fill_value_0(items):
    """Under NumPy 2 stackstac refuses 0 for uint16: "incompatible ... use int64"."""
    with pytest.raises(ValueError, match="incompatible"):
        stacked(items, dtype="uint16", fill_value=0, rescale=False)
    cube = load(items, loader="stackstac")
    assert cube.dtype == "uint16"  # a quarter of the memory of its float64
    assert int((cube == 0).sum()) > 0


def test_stackstac_with_affine_3_shows_no_warnings(items, tmp_path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for hidden in (DeprecationWarning, PendingDeprecationWarning):  # as Python does
            warnings.simplefilter("ignore", hidden)
        cube = prepare(load(items, loader="stackstac"), items=items)
        write(cube, tmp_path / "a.zarr", **TOY)
    assert [str(w.message) for w in shown] == []


def test_stackstac_crs_survives_the_store(items, tmp_path):
    write(prepare(stacked(items)), tmp_path / "a.zarr", **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")
    assert back.rio.crs.to_epsg() == 32632
    assert "epsg" not in back  # of the files; the cube's own is in spatial_ref
    assert not any(name.startswith("proj:") for name in back.variables)


def test_stackstac_raster_bands_of_one_item_do_not_speak_for_the_others(mixed):
    """Two of the items have raster:bands: stackstac makes one coordinate for all dates of it."""
    items = search(mixed, bbox=WORLD, datetime="..")
    cube = load(items, bbox=items[0].bbox, loader="stackstac")
    assert cube["raster:bands"].dims == ("band",)
    ds = prepare(cube, items=items)
    assert ds.boa_offset_removed.values.tolist() == [0, 0, 1000, 0, 1000, 1000]


def test_stackstac_rescaled_items_among_others_are_refused(mixed):
    """stackstac rescales items that have raster:bands, and leaves the others in DN."""
    items = [i for i in search(mixed, bbox=WORLD, datetime="..") if "32U" in i.id]
    with pytest.raises(OffsetError, match=r"2022-06-05.*looks like reflectance.*rescale=False"):
        prepare(stacked(items), items=items)


def test_odc_stac_reads_crs_of_items_that_forgot_the_extension(items):
    for item in items:
        item.stac_extensions = []
    with pytest.raises(ValueError, match="CRS"):
        odc_stac.load(items, bands=["B04"], chunks={})
    assert load(items).B04.odc.crs.to_epsg() == 32632


def test_odc_stac_native_dn_are_not_scaled_and_0_is_nodata(tmp_path):
    items = one_scene(tmp_path, Scene("2023-06-12", raster_offset=-0.1))
    cube = load(items, bands=["B04"])
    assert (cube.B04.dtype, cube.B04.attrs["nodata"]) == ("uint16", 0)
    out = prepare(cube, items=items).reflectance
    np.testing.assert_array_equal(out.sel(band="B04"), truth_of(1, "B04"))
    assert out.rio.nodata == 0
    assert "nodata" not in to_reflectance(out).attrs


def test_odc_stac_chunks_of_one_date_are_joined(items, tmp_path):
    cube = load(items)
    assert cube.chunksizes["time"] == (1,) * 6
    assert prepare(cube, items=items).chunksizes["time"] == (4, 2)


def test_odc_stac_classes_in_floats_become_classes(items):
    cube = load(items)
    assert cube.SCL.dtype == "float32"  # the item does not say the dtype
    assert prepare(cube, items=items).scl.dtype == "uint8"


def test_odc_stac_crs_survives_the_store(items, tmp_path):
    write(prepare(load(items[:4]), items=items), tmp_path / "a.zarr", **TOY)
    plain = xr.open_zarr(tmp_path / "a.zarr")
    assert plain.rio.crs is None or plain.rio.crs.to_epsg() == 32632
    assert xr.open_zarr(tmp_path / "a.zarr", decode_coords="all").rio.crs.to_epsg() == 32632
    settings = plain.tec.decode().tec.encoding(model=toy.NAME)  # spatial_ref is a variable here
    assert "serializer" in settings["reflectance"]


def test_odc_stac_as_an_array_of_bands(items):
    ds = load(items, bands=["B04", "B08"])
    array = ds[["B04", "B08"]].to_array("band").transpose("band", "time", "y", "x")
    out = prepare(array, items=items).reflectance
    np.testing.assert_array_equal(out, prepare(ds, items=items).reflectance)


def test_lazycogs_floats_with_bands_first(items):
    """Float32 DN with NaN, dimensions (band, time, y, x)."""
    ds = load(items, bands=["B04", "B08"])
    array = ds[["B04", "B08"]].to_array("band").transpose("band", "time", "y", "x")
    floats = array.where(array > 0).astype("float32")
    out = prepare(floats, items=items).reflectance
    np.testing.assert_array_equal(out, prepare(ds, items=items).reflectance)


def test_classes_never_go_through_tec(items, tmp_path):
    cube = prepare(load(items), items=items)
    write(cube, tmp_path / "a.zarr", **TOY)
    assert {a.path: a.codec for a in stored_arrays(tmp_path / "a.zarr")}["scl"].find("TEC") < 0
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").scl, cube.scl)


def test_common_names_of_earth_search(tmp_path):
    items = one_scene(tmp_path, earth_search(), common_names=True)
    ds = prepare(load(items, bands=["red", "B08"]), items=items)
    assert ds.band.values.tolist() == ["B04", "B08"]
    assert "scl" in ds


def test_names_of_copernicus_with_resolutions():
    dims = ("time", "y", "x")
    image = TRUTH.reflectance[:1, 0]
    fine, coarse = image.variable, image.variable * 0
    ds = xr.Dataset({"B02_20m": (dims, coarse.data), "B02_10m": (dims, fine.data),
                     "SCL_20m": (dims, TRUTH.scl[:1].data)}, {"time": TRUTH.time[:1]})  # fmt: skip
    out = prepare(ds, offset=0)
    assert out.band.values.tolist() == ["B02"]
    np.testing.assert_array_equal(out.reflectance[:, 0], fine)
    assert "scl" in out


@pytest.mark.parametrize("decoded", [False, True])
def test_eopf_groups_at_two_resolutions(tmp_path, decoded):
    product = make_eopf_product(tmp_path / "product.zarr", SIZE)
    tree = xr.open_datatree(product, engine="zarr", mask_and_scale=decoded)
    ds = prepare(tree)
    assert ds.band.values.tolist() == ["B02", "B04", "B11"]
    place = synthetic.dataset(dates=1, size=SIZE, bands=("B02", "B04", "B11"), seed=3)
    truth = place.reflectance[0].values
    np.testing.assert_array_equal(ds.reflectance[0, :2], truth[:2])
    coarse = truth[2, ::2, ::2]
    np.testing.assert_array_equal(ds.reflectance[0, 2], coarse.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(ds.scl[0, ::2, ::2], place.scl[0, ::2, ::2])
    assert ds.boa_offset_removed.values.tolist() == [1000]
    assert str(ds.time.values[0]).startswith("2023-06-12T10:20:31")
    assert ds.rio.crs.to_epsg() == 32632


def test_what_is_no_sentinel_2_is_named():
    with pytest.raises(UnsupportedArrayError, match="elevation"):
        prepare(xr.Dataset({"elevation": (("time", "y", "x"), np.ones((1, 4, 4)))}))


# ----------------------------------------------------------------------- the offset


@pytest.mark.parametrize(
    ("evidence", "offset"),
    [
        ({"baseline": "03.01"}, 0),
        ({"baseline": "05.10"}, 1000),
        ({"baseline": "05.10", "removed": True, "raster": 1000}, 0),  # Earth Search, normal
        ({"baseline": "05.10", "removed": False, "raster": 1000}, 1000),
        ({"baseline": "03.01", "removed": False, "raster": 1000}, 0),
        ({"baseline": "05.10", "raster": 1000}, 1000),
        ({"baseline": "05.10", "raster": 0, "absent": True}, 0),
        ({"raster": 1000}, 1000),
        ({"absent": True}, 0),
    ],
)
def test_the_offset_follows_from_what_is_said(evidence, offset):
    assert Evidence("2023-06-12", **evidence).decide() == offset


@pytest.mark.parametrize(
    "evidence",
    [
        {},
        {"absent": False},
        {"baseline": "05.10", "absent": True},
        {"baseline": "05.10", "raster": 0},
        {"baseline": "03.01", "raster": 1000},
        {"baseline": "05.10", "removed": False, "raster": 0},
        {"baseline": "05.10", "removed": False, "absent": True},  # earth-search issue 71
        {"raster": 500},
    ],
)
def test_contradictions_and_silence_are_refused(evidence):
    with pytest.raises(OffsetError, match=r"2023-06-12.*offset=0 or offset=1000"):
        Evidence("2023-06-12", **evidence).decide()


@pytest.mark.parametrize("scene", [
    Scene("2023-06-12", "05.10", 1000),
    Scene("2023-06-12", "05.10", 1000, raster_offset=-0.1),
    Scene("2021-06-12", "03.01", 0, raster_offset=0.0),
    earth_search(0, True),
    earth_search(1000, False),
])  # fmt: skip
def test_every_convention_gives_the_same_land(tmp_path, scene):
    items = one_scene(tmp_path, scene)
    ds = prepare(load(items), items=items)
    np.testing.assert_array_equal(ds.reflectance.sel(band="B04"), truth_of(1, "B04"))
    assert ds.boa_offset_removed.values.tolist() == [scene.pixels_carry]


def test_the_names_of_copernicus_say_the_same(tmp_path):
    items = with_epsg(one_scene(tmp_path, Scene("2023-06-12", "05.10", 1000)))
    properties = items[0]["properties"]
    properties["processing:version"] = properties.pop("s2:processing_baseline")
    for asset in items[0]["assets"].values():
        asset |= {"raster:scale": 1e-4, "raster:offset": -0.1}
    dn = xr.Dataset({"B04": TRUTH.reflectance[:1, 1] + 1000}).assign_coords(
        time=[np.datetime64("2023-06-12T10:20:31", "ns")]
    )
    assert prepare(dn, items=items).boa_offset_removed.values.tolist() == [1000]
    properties["processing:version"] = "03.01"
    with pytest.raises(OffsetError, match="the baseline and raster:bands disagree"):
        prepare(dn, items=items)


def test_pixels_that_belie_the_flag_are_refused_until_one_decides(tmp_path):
    items = one_scene(tmp_path, earth_search(0, False))
    with pytest.raises(OffsetError, match=r"S2A_32UPU_20230612.*too dark"):
        prepare(load(items), items=items)
    ds = prepare(load(items), items=items, offset=0)
    np.testing.assert_array_equal(ds.reflectance.sel(band="B04"), truth_of(1, "B04"))


def test_a_flag_over_bright_pixels_warns(tmp_path):
    items = one_scene(tmp_path, earth_search(1000, True))
    with pytest.warns(UserWarning, match=r"no sampled pixel is below 1000"):
        prepare(load(items), items=items)


def test_items_of_one_date_that_disagree_are_refused(items):
    twin = items[-1].clone()
    twin.id, twin.properties["s2:processing_baseline"] = "twin", "03.01"
    with pytest.raises(OffsetError, match="disagree about s2:processing_baseline"):
        prepare(load(items), items=[*items, twin])


def test_dark_pixels_stay_measured_and_nodata_stays_nodata():
    ds = TRUTH.isel(time=[0]).copy(deep=True)
    ds.reflectance[0, :, 0, :4] = np.array([0, 1, 1000, 1001], np.uint16)
    out = prepare(ds, offset=1000).reflectance[0, :, 0, :4]
    assert out[0].values.tolist() == [0, 1, 1, 1]
    with pytest.raises(OffsetError, match="0 or 1000"):
        prepare(ds, offset=500)


def test_harmonizing_twice_changes_nothing():
    raw = TRUTH.copy(deep=True)
    raw["reflectance"] = raw.reflectance.where(raw.reflectance == 0, raw.reflectance + 1000)
    once = harmonize(raw, offset=1000)
    np.testing.assert_array_equal(once.reflectance, TRUTH.reflectance)
    xr.testing.assert_equal(harmonize(once), once)


def test_the_way_back_to_reflectance():
    out = to_reflectance(prepare(TRUTH, offset=0).reflectance)
    assert out.dtype == "float32"
    np.testing.assert_array_equal(np.isnan(out), TRUTH.reflectance == 0)
    measured = TRUTH.reflectance.where(TRUTH.reflectance != 0)
    assert float(np.abs(out * 10_000 - measured).max()) < 0.01


def test_the_table_of_traps_names_tests_that_are_here():
    page = (Path(__file__).parents[1] / "docs" / "stac.md").read_text()
    table = page.split("## Traps")[1].split("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    assert len(named) >= 20
    assert named <= set(globals())


@pytest.mark.parametrize("lazy", [False, True])
def test_a_measured_zero_of_floats_stays_measured(lazy):
    """Where NaN is nodata 0 is not, and neither is what rounds to a DN of 0."""
    ds = TRUTH.isel(time=[0])
    ds = ds.assign(reflectance=ds.reflectance * 1e-4)
    for i, value in enumerate((np.nan, -0.001, 0.0, 0.00003, 0.0001)):
        ds.reflectance.values[0, :, 0, i] = value
    out = prepare(ds.chunk({"band": 1}) if lazy else ds, offset=0).reflectance
    assert out[0, 0, 0, :5].values.tolist() == [0, 1, 1, 1, 1]


def test_floats_without_nan_are_empty_where_all_bands_are_zero():
    ds = TRUTH.isel(time=[0])
    ds = ds.assign(reflectance=ds.reflectance * 1e-4)
    ds.reflectance.values[0, :, 0, 0] = 0
    ds.reflectance.values[0, 1, 0, 1] = 0
    out = prepare(ds, offset=0).reflectance[0, :, 0]
    assert out[:, 0].values.tolist() == [0] * len(BANDS)
    assert out[1, 1] == 1
    told = ds.assign(reflectance=ds.reflectance.assign_attrs(nodata=0))
    assert prepare(told, offset=0).reflectance[0, 1, 0, 1] == 0


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_nodata_of_prepared_cubes_is_what_they_declare(dtype):
    cube = TRUTH.isel(time=[0]).reflectance.astype(dtype)
    cube.values[0, :, 0, :3] = np.array([-9999, 0, 5], dtype)
    ds = cube.assign_attrs(nodata="-9999").to_dataset(name="reflectance")
    out = prepare(ds, offset=0).reflectance[0, 0, 0, :3]
    assert out.values.tolist() == [0, 1, 5]
