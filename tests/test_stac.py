"""From a catalogue to a store and on: both loaders, every trap of theirs, append, the offset."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import toy
import xarray as xr

from tec_zarr import synthetic
from tec_zarr.canonical import harmonize, prepare, to_reflectance
from tec_zarr.cli import main
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.offset import Evidence, OffsetError
from tec_zarr.report import stored_arrays
from tec_zarr.stac import append, from_stac, load, search, write

stackstac = pytest.importorskip("stackstac", reason="pip install 'tec_zarr[test]'")
odc_stac = pytest.importorskip("odc.stac", reason="pip install 'tec_zarr[test]'")
pytest.importorskip("rioxarray", reason="pip install 'tec_zarr[test]'")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from local_catalog import Scene, make_catalog, make_eopf_product  # noqa: E402

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


@pytest.mark.parametrize("loader", ["odc-stac", "stackstac"])
def test_write_reopen_append_inpaint(archive, tmp_path, loader):
    out = tmp_path / "cube.zarr"
    area = {"catalog": archive, "bbox": WORLD, "loader": loader}
    from_stac(out, datetime="2021-01-01/2023-06-15", **area, **TOY)
    ds = from_stac(out, datetime="2021-01-01/2023-12-31", **area, append_dates=True)
    assert ds.sizes["time"] == 6
    assert ds.boa_offset_removed.values.tolist() == [0, 0, 0, 1000, 1000, 1000]
    assert ds.item_id.values[0] == "S2A_32UPU_20210610_L2A"
    assert ds.rio.crs.to_epsg() == 32632
    assert ds.band.values.tolist() == list(BANDS)
    np.testing.assert_array_equal(ds.time.values.astype("M8[D]")[[0, -1]],
                                  np.array(["2021-06-10", "2023-07-07"], "M8[D]"))  # fmt: skip
    inner = ds.sel(y=slice(5300040, 5300040 - 10 * SIZE), x=slice(600000, 600000 + 10 * SIZE))
    assert inner.sizes["y"] == inner.sizes["x"] == SIZE
    coarse = TRUTH.scl[:, ::2, ::2].values
    np.testing.assert_array_equal(inner.scl, coarse.repeat(2, 1).repeat(2, 2))
    error = inner.reflectance.astype(int) - land().values
    ten_metre = error.sel(band=["B02", "B04", "B08"])
    assert np.abs(ten_metre).max() <= TOLERANCE
    codecs = {a.path: a.codec for a in stored_arrays(out)}
    assert "TEC" in codecs["reflectance"]
    assert "TEC" not in codecs["scl"]
    clear = ds.chunk({"time": -1}).tec.inpaint_clouds()
    assert clear.reflectance.chunks is not None
    changed = (clear.reflectance != ds.reflectance).mean()
    assert 0 < float(changed) < 1


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


def test_an_interrupted_append_is_repaired_by_the_next(tmp_path, monkeypatch):
    ds, out = canonical(9), tmp_path / "a.zarr"
    write(ds.isel(time=slice(0, 6)), out, model=toy.NAME, quality=2)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tec_zarr.stac._commit", killed)
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
    cube = load(items, loader="stackstac")
    assert cube.shape[-2:] == (SIZE, SIZE)  # and the bounds did not grow
    assert cube.dtype == "uint16"  # and fill_value=0 passed NumPy 2


def test_odc_stac_reads_crs_of_items_that_forgot_the_extension(items):
    for item in items:
        item.stac_extensions = []
    with pytest.raises(ValueError, match="CRS"):
        odc_stac.load(items, bands=["B04"], chunks={})
    assert load(items).B04.odc.crs.to_epsg() == 32632


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
