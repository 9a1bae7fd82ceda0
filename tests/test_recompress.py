"""tec_zarr.recompression.run.recompress: what arrives, from anywhere, on every scheduler."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import recompress_worker
import toy
import xarray as xr
import zarr
from test_chunk import scene
from test_gather import Device
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from tec_zarr.codec import batching
from tec_zarr.cubes.encoding import drop_encoding, encoding
from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.models import registry
from tec_zarr.recompression import progress
from tec_zarr.recompression.estimate import estimate
from tec_zarr.recompression.plan import make_plan
from tec_zarr.recompression.run import recompress
from tec_zarr.recompression.settings import Settings
from tec_zarr.sentinel2 import L2A_BANDS
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.info import stored_arrays
from tec_zarr.stores.objects import open_source

DATES = 9
TOY = {"model": toy.NAME, "quality": 6.0}
TOLERANCE = 2.6  # DN: half the toy's step, and rounding


def make_archive(dates: int = DATES) -> xr.Dataset:
    """Reflectance with nodata and CF packing, classes, and coordinates of several kinds."""
    dn = scene((dates, 12, 40, 40)).astype("uint16")
    dn[1, :, :9] = 0
    dn[4:8] = 0  # a whole region without data
    ds = xr.Dataset(
        {
            "reflectance": (
                ("time", "band", "y", "x"), dn,
                {"scale_factor": 1e-4, "add_offset": -0.1, "units": "1", "grid_mapping": "crs"},
            ),
            "scl": (("time", "y", "x"), (dn[:, 3] % 11).astype("uint8"), {"flag_meanings": "a b"}),
            "snow": (("time", "y", "x"), dn[:, 2] * np.float32(0.5), {"_FillValue": 7.0}),
            "crs": ((), np.int64(0), {"crs_wkt": "PROJCS[...]"}),
        },
        {
            "band": list(L2A_BANDS),
            "time": np.arange("2024-01", "2025-01", dtype="datetime64[M]")[:dates].astype("M8[ns]"),
            "y": np.arange(40.0), "x": np.arange(40.0),
        },
        {"title": "archive"},
    )  # fmt: skip
    return xr.decode_cf(ds, decode_times=False)


def write_archive(path, zarr_format: int = 2, ds: xr.Dataset | None = None) -> None:
    """The archive as users have it: blosc, chunks of one date."""
    ds = make_archive() if ds is None else ds
    blosc = (
        {"compressors": numcodecs.Blosc("zstd", 3)}
        if zarr_format == 2
        else {"compressors": zarr.codecs.BloscCodec(cname="zstd", clevel=3)}
    )
    packing = {"dtype": "uint16", "_FillValue": 0, "scale_factor": 1e-4, "add_offset": -0.1}
    settings = {
        "reflectance": {"chunks": (1, 12, 20, 20), **packing, **blosc},
        "scl": {"chunks": (1, 40, 40), **blosc},
    }
    ds.to_zarr(path, zarr_format=zarr_format, encoding=settings, consolidated=zarr_format == 2)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives")
    for zarr_format in (2, 3):
        write_archive(folder / f"v{zarr_format}.zarr", zarr_format)
    return folder


@pytest.fixture
def source(archives):
    return archives / "v2.zarr"


def tree(folder) -> dict[str, bytes]:
    """All files under a folder."""
    folder = Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_same_archive(target, source, **kwargs):
    """Everything is equal, attributes and all, but for reflectance, which is near."""
    new = xr.open_zarr(target, **kwargs).load()
    old = xr.open_zarr(source, consolidated=str(source).endswith("v2.zarr")).load()
    new.attrs.pop("tec_zarr")
    np.testing.assert_array_equal(np.isnan(new.reflectance), np.isnan(old.reflectance))
    assert 0 < np.abs(new.reflectance - old.reflectance).max() <= TOLERANCE * 1e-4
    xr.testing.assert_identical(
        new.drop_vars("reflectance"), old.drop_vars("reflectance")
    )
    xr.testing.assert_identical(new.reflectance * 0, old.reflectance * 0)
    assert new.reflectance.attrs == old.reflectance.attrs
    packing = ("scale_factor", "add_offset", "_FillValue", "dtype")
    for key in packing:
        assert new.reflectance.encoding[key] == old.reflectance.encoding[key]


@pytest.mark.parametrize("old", [2, 3])
@pytest.mark.parametrize("new", [2, 3])
def test_any_format_becomes_any_format(archives, tmp_path, old, new):
    report = recompress(
        archives / f"v{old}.zarr", tmp_path / "tec.zarr", zarr_format=new, verify="full", **TOY
    )
    assert report.complete
    assert not report.failures
    assert report.verified == report.samples
    assert 60 < report.psnr < 90
    assert 0 < report.max_error <= TOLERANCE
    consolidated = 2 in (old, new)
    assert_same_archive(
        tmp_path / "tec.zarr", archives / f"v{old}.zarr", consolidated=consolidated
    )
    array = zarr.open(tmp_path / "tec.zarr")["reflectance"]
    assert array.metadata.zarr_format == new
    assert array.chunks == (4, 12, 40, 40)
    spec = tec_spec(array)
    assert (spec.model, spec.quality, spec.offset) == (toy.NAME, 6, 1000)
    codecs = {a.path: a.codec for a in stored_arrays(tmp_path / "tec.zarr")}
    assert [path for path, codec in codecs.items() if "TEC" in codec] == ["reflectance"]
    assert not (tmp_path / "tec.zarr" / "_tec").exists()


def test_small_chunks_gather_in_shards(source, tmp_path):
    recompress(source, tmp_path / "tec.zarr", chunks={"y": 20, "x": 20}, **TOY)
    array = zarr.open(tmp_path / "tec.zarr")["reflectance"]
    assert (array.chunks, array.shards) == ((4, 12, 20, 20), (4, 12, 40, 40))
    assert_same_archive(tmp_path / "tec.zarr", source)


@pytest.mark.parametrize("bound", [0, 3])
def test_an_error_bound_is_kept_and_verified(source, tmp_path, bound):
    report = recompress(
        source, tmp_path / "tec.zarr", max_error=bound * 1e-4, verify="full", **TOY
    )
    assert report.complete
    assert report.max_error <= bound
    new, old = (zarr.open(p)["reflectance"][:].astype(int) for p in (tmp_path / "tec.zarr", source))
    assert (bound and 1) <= np.abs(new - old).max() <= bound


@pytest.mark.parametrize("bounds", [5, [0] * 11 + [1], {"ndvi": 0.1, "all": 50}], ids=str)
def test_bounds_in_dn_of_packed_reflectance_are_refused(source, tmp_path, bounds):
    with pytest.raises(UnsupportedArrayError, match=r"scale_factor is 0\.0001.*5 DN are 0\.0005"):
        recompress(source, tmp_path / "tec.zarr", max_error=bounds, **TOY)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    "bounds", [0.0005, [0.0005] * 12, {"ndvi": 0.02, "B02": 0.0005, "all": 0.003}], ids=str
)
def test_bounds_mean_what_they_mean_to_encoding(source, tmp_path, zarr_format, bounds):
    """Units of the data as xarray shows them, and so they are on record."""
    target = tmp_path / "tec.zarr"
    settings = {"zarr_format": zarr_format, "max_error": bounds, "model": toy.NAME}
    assert recompress(source, target, **settings).complete
    slot = "serializer" if zarr_format == 3 else "compressors"
    shown = drop_encoding(xr.open_zarr(source))
    expected = encoding(shown, **settings)["reflectance"][slot]
    found = tec_spec(zarr.open(target)["reflectance"])
    assert found.max_error == expected.max_error
    assert (found.scale, found.offset) == (expected.scale, expected.offset)
    assert zarr.open(target).attrs["tec_zarr"]["max_error"] == bounds


def test_a_group_in_a_group_and_an_array_alone(tmp_path):
    dn = scene((12, 30, 30)).astype("uint16")
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2, attributes={"stac": {"id": 1}})
    nested = root.create_group("measurements/r10m", attributes={"proj": 32632})
    for name, data in (("b02", dn[0]), ("b03", dn[1])):
        array = nested.create_array(name, data=data, chunks=(30, 30))
        array.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    quality = root.create_array("quality", data=dn[0] > 500, chunks=(8, 30))
    quality.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **TOY).complete
    new = zarr.open(tmp_path / "b.zarr")
    assert new.attrs["stac"] == {"id": 1}
    assert new["measurements/r10m"].attrs["proj"] == 32632
    b02 = new["measurements/r10m/b02"]
    assert tec_spec(b02).bands == ("B02",)
    assert b02.metadata.dimension_names == ("y", "x")
    assert np.abs(b02[:].astype(int) - dn[0]).max() <= TOLERANCE
    np.testing.assert_array_equal(new["quality"][:], dn[0] > 500)
    assert recompress(nested["b03"], tmp_path / "c.zarr", variables=[""], **TOY).complete
    alone = zarr.open(tmp_path / "c.zarr", mode="r")
    assert np.abs(alone[:].astype(int) - dn[1]).max() <= TOLERANCE


def test_strings_and_missing_chunks_are_copied(tmp_path):
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=2)
    names = group.create_array("names", shape=(3,), dtype="str", chunks=(2,))
    names[:] = np.array(["S2A", "S2B", ""])
    scene_ = group.create_array("B04", shape=(20, 20), dtype=">u2", chunks=(10, 10), fill_value=7)
    scene_.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    scene_[:10] = 500
    assert recompress(store, tmp_path / "b.zarr", verify="full", **TOY).complete
    new = zarr.open(tmp_path / "b.zarr")
    assert new["names"][:].tolist() == ["S2A", "S2B", ""]
    np.testing.assert_array_equal(new["B04"][:], scene_[:])


@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification")
@pytest.mark.parametrize("new", [2, 3])
@pytest.mark.parametrize("old", [2, 3])
def test_text_of_every_kind_is_copied(tmp_path, old, new):
    """Also empty and without dimensions, as the ``crs`` of every NetCDF of openEO."""
    texts = {
        "crs": np.array(b"", "S1"), "empty": np.array("", "U4"), "short": np.array("ab", "U4"),
        "bytes": np.array([b"", b"abc"]), "names": np.array(["", "abc"]),
    }  # fmt: skip
    ds = xr.Dataset({"B04": (("y", "x"), scene((20, 20)).astype("uint16"))})
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=old, consolidated=False)
    group = zarr.open_group(tmp_path / "a.zarr")
    for name, text in texts.items():
        group.create_array(name, data=text)
    for name, value in (("title", ""), ("titles", ["", "Aue"])):
        array = group.create_array(name, shape=np.shape(value), dtype="str")
        array[...] = texts[name] = np.array(value, object)
    report = recompress(group, tmp_path / "b.zarr", zarr_format=new, verify="full", **TOY)
    assert report.complete, report.failures
    copied = zarr.open(tmp_path / "b.zarr")
    for name, text in texts.items():
        assert np.asarray(copied[name][...]).tolist() == text.tolist()
        assert copied[name].dtype == group[name].dtype


@pytest.mark.parametrize("new", [2, 3])
@pytest.mark.parametrize(("old", "fill"), [(2, None), (2, False), (2, True), (3, None), (3, True)])
def test_masks_stay_bool(tmp_path, old, new, fill):
    """No value of a bool is nodata, so that none becomes NaN in a reader that knows CF."""
    dn = scene((12, 30, 30)).astype("uint16")
    clear = dn[3] > np.median(dn[3])
    ds = xr.Dataset({"B04": (("y", "x"), dn[3]), "clear": (("y", "x"), clear)})
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=old, consolidated=False)
    group = zarr.open_group(tmp_path / "a.zarr")
    if fill is not None:  # as Zarr itself makes masks, with False
        name = {"attributes": {"_ARRAY_DIMENSIONS": ["y", "x"]}} if old == 2 else {
            "dimension_names": ("y", "x")}  # fmt: skip
        group.create_array(
            "clear", data=clear, fill_value=fill, overwrite=True, **name
        )
    assert recompress(group, tmp_path / "b.zarr", zarr_format=new, verify="full", **TOY).complete
    back = xr.open_zarr(tmp_path / "b.zarr", consolidated=False)
    assert back.clear.dtype == bool
    xr.testing.assert_identical(back.clear, ds.clear)


@pytest.mark.parametrize("new", [2, 3])
@pytest.mark.parametrize("old", [2, 3])
def test_clock_times_can_be_appended(tmp_path, old, new):
    """Days become microseconds, which milliseconds of a later date fit into."""
    ds = make_archive()[["reflectance"]].drop_encoding()
    times = ds.time.values.copy()
    times[2] = np.datetime64("NaT", "ns")
    ds["made"] = ("time", times)
    missing = {"dtype": "int32", "units": "days since 2020-01-01", "_FillValue": -9}
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=old, encoding={"made": missing})
    assert "days" in zarr.open(tmp_path / "a.zarr")["time"].attrs["units"]
    report = recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", zarr_format=new, **TOY)
    assert report.complete
    back = xr.open_zarr(tmp_path / "b.zarr", consolidated=False)
    np.testing.assert_array_equal(back.time, ds.time)
    np.testing.assert_array_equal(back.made, ds.made)
    later = ds.isel(time=[0]).assign_coords(
        time=np.array(["2025-06-01T10:31:07.123"], "M8[ns]")
    )
    later["made"] = ("time", later.time.values)
    later.to_zarr(tmp_path / "b.zarr", append_dim="time", consolidated=False, zarr_format=new)
    back = xr.open_zarr(tmp_path / "b.zarr", consolidated=False)
    np.testing.assert_array_equal(back.time[-1], later.time[0])
    np.testing.assert_array_equal(back.made[-1], later.made[0])
    np.testing.assert_array_equal(back.time[:-1], ds.time)


@pytest.mark.parametrize(
    ("units", "dtype"),
    [("days since 2000-01-01", "f8"), ("microseconds since 2000-01-01", "i8"), ("days", "i8")],
)
def test_times_that_are_fine_or_no_dates_stay_as_they_are(tmp_path, units, dtype):
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    dn = scene((12, 30, 30)).astype("uint16")
    group.create_array("B04", data=dn[3]).attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    time = group.create_array("time", data=np.array([7, 8, 2**40], dtype))
    time.attrs.update({"_ARRAY_DIMENSIONS": ["time"], "units": units})
    assert recompress(group, tmp_path / "b.zarr", zarr_format=2, **TOY).complete
    back = zarr.open(tmp_path / "b.zarr")["time"]
    assert (back.dtype, dict(back.attrs)) == (time.dtype, dict(time.attrs))
    np.testing.assert_array_equal(back[:], time[:])


def test_empty_chunks_are_left_out_as_zarr_does_it(tmp_path):
    """Also one beside full ones, and not one that merely begins with nodata."""
    dn = scene((2, 12, 90, 50)).astype("uint16")
    dn[:, :, :20, :20] = 0
    dn[:, :, 40:, 20] = 0
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    array = group.create_array("dn", data=dn, chunks=(1, 12, 20, 20), fill_value=0)
    array.attrs["_ARRAY_DIMENSIONS"] = ["time", "band", "y", "x"]
    settings = {"variables": ["dn"], "chunks": {"y": 20, "x": 20}, **TOY}
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **settings).complete
    new = zarr.open(tmp_path / "b.zarr")["dn"]
    assert new.shards is not None
    plain = zarr.from_array(tmp_path / "c.zarr", data=new, write_data=False)
    plain[:] = dn
    data = {name: b for name, b in tree(tmp_path / "c.zarr").items() if name.startswith("c/")}
    assert data == {
        name.removeprefix("dn/"): b
        for name, b in tree(tmp_path / "b.zarr").items() if name.startswith("dn/c/")
    }  # fmt: skip
    np.testing.assert_array_equal(new[:] == 0, dn == 0)


@pytest.mark.filterwarnings("ignore:variable 'reflectance' has multiple fill values")
@pytest.mark.parametrize("new", [2, 3])
@pytest.mark.parametrize(
    ("old", "encoding", "attributes"),
    [
        (3, {"_FillValue": -999.0}, {}),
        (2, {"_FillValue": -999.0}, {}),
        (3, {}, {"missing_value": -999.0}),
        (3, {}, {"missing_value": [-1.0, -999.0]}),
        (2, {"_FillValue": None}, {"_FillValue": "-999"}),
        (3, {"fill_value": -999.0}, {}),
        (3, {}, {"nodata": -999}),
        (2, {}, {"nodatavals": [-999.0, -999.0]}),
    ],
)
def test_what_marks_floats_as_missing_stays_exact(tmp_path, old, new, encoding, attributes):
    """Also as xarray says it in format 3, in base64."""
    dn = scene((2, 12, 40, 40)).astype("float32")
    gone = np.broadcast_to((np.indices((40, 40)).sum(0) % 3 == 0), dn.shape)
    dn[gone] = np.nan if encoding.get("_FillValue") else -999
    ds = xr.Dataset({"reflectance": (("time", "band", "y", "x"), dn)}, {"band": list(L2A_BANDS)})
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=old, encoding={"reflectance": encoding})
    group = zarr.open_group(tmp_path / "a.zarr", use_consolidated=False)
    group["reflectance"].attrs.update(attributes)
    report = recompress(
        group, tmp_path / "b.zarr", zarr_format=new, scale=1, verify="full", **TOY
    )
    assert report.complete
    assert -999 in tec_spec(zarr.open(tmp_path / "b.zarr")["reflectance"]).nodata
    found = zarr.open(tmp_path / "b.zarr")["reflectance"][:]
    np.testing.assert_array_equal(found == -999, gone)
    if not attributes.keys() & {"_FillValue", "nodata", "nodatavals"}:
        before, after = (
            xr.open_zarr(tmp_path / name, consolidated=False).reflectance.isnull()
            for name in ("a.zarr", "b.zarr")
        )
        np.testing.assert_array_equal(after, before)


def test_a_fill_value_that_nobody_understands_is_refused(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    array = group.create_array("B04", shape=(9, 9), dtype="f4", dimension_names=("y", "x"))
    array.attrs["_FillValue"] = "none"
    with pytest.raises(UnsupportedArrayError, match="_FillValue of array 'B04' is 'none'"):
        recompress(group, tmp_path / "b.zarr", **TOY)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_classes_whose_dimensions_have_no_names_are_copied(tmp_path, zarr_format):
    dn = scene((2, 12, 30, 30)).astype("uint16")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format)
    group.create_array("reflectance", data=dn)
    group.create_array("classes", data=dn % 11)
    assert recompress(group, tmp_path / "b.zarr", **TOY).complete
    new = zarr.open(tmp_path / "b.zarr")
    np.testing.assert_array_equal(new["classes"][:], dn % 11)
    assert [name for name, array in new.arrays() if tec_spec(array)] == ["reflectance"]
    assert recompress(group, tmp_path / "c.zarr", variables=["classes"], **TOY).complete
    assert tec_spec(zarr.open(tmp_path / "c.zarr")["classes"]) is not None
    with pytest.raises(UnsupportedArrayError, match=r"variables=\[''\], .* as ''"):
        recompress(group["classes"], tmp_path / "d.zarr", **TOY)


@pytest.mark.parametrize("name", ["flags", "view_zenith", "counts"])
def test_what_is_marked_or_named_as_something_else_is_copied(tmp_path, name):
    """As ``tec_zarr.encoding`` does; and bands without names yield to those that have them."""
    values = scene((2, 4, 30, 30)).astype("uint16")
    dims = ("time", "band", "y", "x")
    ds = xr.Dataset({"reflectance": (dims, values)}, {"band": ["B02", "B03", "B04", "B08"]})
    ds[name] = (("time", "channel", "y", "x") if name == "counts" else dims, values)
    ds[name].attrs = {"flag_masks": [1, 2, 4]} if name == "flags" else {}
    ds.to_zarr(tmp_path / "a.zarr")
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **TOY).complete
    back = xr.open_zarr(tmp_path / "b.zarr")
    np.testing.assert_array_equal(back[name], values)
    assert (back.reflectance != values).any()


def test_names_of_bands_may_be_bytes(tmp_path):
    """As xarray writes the text of a classic NetCDF."""
    dn = scene((2, 2, 40, 40)).astype("uint16")
    group = zarr.create_group(tmp_path / "a.zarr")
    dims = ("time", "band", "y", "x")
    group.create_array("dn", data=dn, chunks=dn.shape, dimension_names=dims)
    group.create_array("band", data=np.array([b"B2", b"B8A"]), dimension_names=("band",))
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **TOY).complete
    assert tec_spec(zarr.open(tmp_path / "b.zarr")["dn"]).bands == ("B02", "B8A")
    opened = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    assert encoding(opened)["dn"]["serializer"].bands == ("B02", "B8A")


def test_masks_named_like_a_band_are_copied(tmp_path):
    """As ``conditions/mask/detector_footprint/r10m/b02`` of EOPF products, uint8."""
    dn = scene((40, 40)).astype("uint16")
    for group, data in (("reflectance", dn), ("footprint", (dn % 13).astype("uint8"))):
        ds = xr.Dataset({"b02": (("y", "x"), data)})
        ds.to_zarr(tmp_path / "a.zarr", group=group, mode="a", consolidated=False)
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **TOY).complete
    back = zarr.open(tmp_path / "b.zarr")
    np.testing.assert_array_equal(back["footprint/b02"][:], dn % 13)
    assert tec_spec(back["reflectance/b02"]) is not None


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_was_added_after_consolidation_is_there(tmp_path, zarr_format):
    dn = scene((9, 12, 30, 30)).astype("uint16")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=zarr_format)
    array = group.create_array("reflectance", data=dn[:4], chunks=(1, 12, 30, 30))
    zarr.consolidate_metadata(group.store)
    array.resize(dn.shape)
    array[4:] = dn[4:]
    group.create_array("angles", data=np.arange(9.0))
    if zarr_format == 2:  # in format 3 they and the consolidated metadata are one document
        group.attrs["later"] = True
    for number, source in enumerate([tmp_path / "a.zarr", zarr.open(tmp_path / "a.zarr")]):
        target = tmp_path / f"b{number}.zarr"
        assert recompress(source, target, **TOY).complete
        new = zarr.open(target)
        assert np.abs(new["reflectance"][:].astype(int) - dn).max() <= TOLERANCE
        np.testing.assert_array_equal(new["angles"][:], np.arange(9.0))
        assert ("later" in new.attrs) == (zarr_format == 2)
        assert new.metadata.consolidated_metadata is not None


def test_a_store_that_cannot_be_listed_is_read_by_its_consolidated_metadata(source, tmp_path):
    class Unlisted(WrapperStore):
        async def list_dir(self, prefix):
            raise NotImplementedError
            yield  # a generator

    assert recompress(Unlisted(LocalStore(source)), tmp_path / "tec.zarr", **TOY).complete
    assert_same_archive(tmp_path / "tec.zarr", source)


def test_regions_follow_the_chunks_of_the_source():
    """So that a source chunk is decoded once; EOPF's 5490 pixels have no multiple of 256."""
    for length in (512, 549, 1098, 5490, 10980):
        group = zarr.create_group(MemoryStore())
        group.create_array(
            "b02", shape=(10980, 10980), dtype="u2", chunks=(length, length),
            dimension_names=("y", "x"),
        )  # fmt: skip
        (array,) = make_plan(open_source(group, None), MemoryStore(), Settings()).arrays
        assert array.read_amplification == 1
        outer = array.target.shards
        assert all(r % s == 0 for r, s in zip(array.region, outer, strict=True))
        assert 128 <= array.target.chunks[0] <= 256
    deep = zarr.create_group(MemoryStore())
    deep.create_array(
        "refl", shape=(400, 12, 2048, 2048), dtype="u2", chunks=(200, 12, 128, 128),
        dimension_names=("time", "band", "y", "x"),
    )  # fmt: skip
    (array,) = make_plan(deep, MemoryStore(), Settings(variables=["refl"])).arrays
    assert np.prod(array.region) * 2 <= 320e6
    assert array.read_amplification == 1


def test_nothing_is_made_of_tec_again(source, tmp_path):
    recompress(source, tmp_path / "tec.zarr", **TOY)
    with pytest.raises(RecompressError, match="second time"):
        recompress(tmp_path / "tec.zarr", tmp_path / "again.zarr", **TOY)


def test_what_cannot_be_done_is_refused_before_it_begins(source, tmp_path):
    with pytest.raises(UnsupportedArrayError, match=r"no arrays \['nir'\]"):
        recompress(source, tmp_path / "a.zarr", variables=["nir"], **TOY)
    bands_last = MemoryStore()
    zarr.create_array(bands_last, shape=(9, 9, 12), dtype="u2", dimension_names=("y", "x", "band"))
    with pytest.raises(UnsupportedArrayError, match=r"\('y', 'x', 'band'\)"):
        recompress(bands_last, tmp_path / "a.zarr", variables=[""], **TOY)
    with pytest.raises(RecompressError, match=r"nothing\.zarr cannot be opened"):
        recompress(tmp_path / "nothing.zarr", tmp_path / "a.zarr", **TOY)
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "thesis.txt").write_text("mine")
    with pytest.raises(RecompressError, match="not empty"):
        recompress(source, tmp_path / "b.zarr", **TOY)
    with pytest.raises(RecompressError, match="gpu=True needs a Dask cluster"):
        recompress(source, tmp_path / "a.zarr", gpu=True, **TOY)
    assert not (tmp_path / "a.zarr").exists()


def test_a_finished_target_is_left_alone(source, tmp_path):
    recompress(source, tmp_path / "tec.zarr", **TOY)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "tec.zarr").rglob("*") if p.is_file()}
    report = recompress(source, tmp_path / "tec.zarr", **TOY)
    assert report.complete
    assert report.resumed == report.regions
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "tec.zarr").rglob("*") if p.is_file()}
    assert before == after
    with pytest.raises(RecompressError, match=r"quality was 6\.0, is 5\.0"):
        recompress(source, tmp_path / "tec.zarr", model=toy.NAME, quality=5.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_error": (0.0005,) * 12},
        {"max_error": np.full(12, 0.0005)},
        {"max_error": {"B8A": np.float32(0.0005), "all": 0.001}},
        {"quality": np.float32(4)},
        {"retries": np.int64(1)},
        {"max_bytes": np.int64(200_000)},
        {"bands": np.array(L2A_BANDS)},
    ],
    ids=lambda settings: str(*settings),
)
def test_arguments_of_any_kind_can_be_repeated(source, tmp_path, settings):
    settings = {"model": toy.NAME, "variables": "reflectance", **settings}
    for _ in range(2):
        assert recompress(source, tmp_path / "tec.zarr", **settings).complete


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"zarr_format": 4}, "zarr_format is 4, it must be 2 or 3"),
        ({"verify": "bogus"}, "verify is 'bogus', it must be one of sample, full, none"),
        ({"retries": -1}, "retries is -1, it must be a whole number from 0"),
        ({"retries": 1.5}, r"retries is 1\.5"),
        ({"quality": 9}, "quality is 9, it must be 1"),
        ({"max_error": "five"}, "max_error is 'five', it must be"),
        ({"max_error": [-1]}, "it must be 0 or more"),
    ],
    ids=lambda part: part if isinstance(part, str) else str(*part),
)
def test_arguments_out_of_their_range_are_refused(source, tmp_path, argument, message):
    with pytest.raises(UnsupportedArrayError, match=message):
        recompress(source, tmp_path / "tec.zarr", **{"model": toy.NAME, **argument})
    assert not (tmp_path / "tec.zarr").exists()
    with pytest.raises(UnsupportedArrayError, match="sample is 0, it must be a whole number"):
        estimate(source, sample=0)


def test_the_log_is_json(source, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="tec_zarr.recompress")
    report = recompress(source, tmp_path / "tec.zarr", **TOY)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert len(lines) > 2
    assert lines[-1]["regions"] == lines[-1]["of"] == report.regions
    assert lines[-1]["eta_s"] == 0
    assert lines[-1]["ratio"] == pytest.approx(report.ratio, abs=0.01)


def test_an_estimate_writes_nothing_and_is_near(archives, tmp_path):
    before = tree(archives)
    guess = estimate(archives / "v2.zarr", **TOY)
    report = recompress(archives / "v2.zarr", tmp_path / "tec.zarr", **TOY)
    assert (guess.regions, guess.raw_bytes) == (report.regions, report.raw_bytes)
    assert guess.stored_bytes == pytest.approx(report.stored_bytes, rel=0.1)
    assert guess.core_seconds > 0
    assert tree(archives) == before


def test_the_command(source, tmp_path, capsys):
    arguments = ["recompress", str(source), str(tmp_path / "tec.zarr"), "--model", toy.NAME]
    assert main([*arguments, "--dry-run", "--price", "0.05"]) == 0
    assert "per core hour" in capsys.readouterr().out
    assert not (tmp_path / "tec.zarr").exists()
    assert main([*arguments, "--quality", "6", "--report", str(tmp_path / "report.json")]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["complete"]
    assert_same_archive(tmp_path / "tec.zarr", source)
    assert main([*arguments, "--quality", "5"]) == 1
    assert "begun with another configuration" in capsys.readouterr().err


@contextlib.contextmanager
def workers_of(**workers):
    """A client of workers in this process: name, and options of each."""
    distributed = pytest.importorskip("distributed")
    common = {"nthreads": 1, "dashboard": False}
    with (
        distributed.SpecCluster(
            scheduler={"cls": distributed.Scheduler, "options": {"port": 0, "dashboard": False}},
            workers={
                name: {"cls": distributed.Worker, "options": {**common, **options}}
                for name, options in workers.items()
            },
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(len(workers))
        yield client


@pytest.fixture(scope="module")
def mixed_cluster():
    """One worker with a stand-in GPU, one without."""
    with workers_of(gpu={"resources": {"GPU": 1}}, cpu={}) as client:
        yield client


def where_tasks_ran(client, *args, **kwargs):
    """Recompress; return the report, and (first word of a task's key, name of its worker)."""
    import distributed

    names = {a: w["id"] for a, w in client.scheduler_info()["workers"].items()}
    with distributed.get_task_stream(client) as stream:
        report = recompress(*args, client=client, gpu=True, **kwargs)
    return report, {(str(t["key"]).partition("-")[0], names[t["worker"]]) for t in stream.data}


def test_gpu_workers_encode_and_the_others_read_and_copy(mixed_cluster, source, tmp_path):
    one = {"variables": "reflectance", **TOY}
    only = zarr.open_group(source)["reflectance"]
    report, ran = where_tasks_ran(
        mixed_cluster, only, tmp_path / "one.zarr", bands=L2A_BANDS, **TOY
    )
    assert report.complete
    assert ran == {("read", "cpu"), ("recompress", "gpu")}
    report, ran = where_tasks_ran(mixed_cluster, source, tmp_path / "tec.zarr", **one)
    assert report.complete
    assert ran == {("read", "cpu"), ("recompress", "gpu"), ("recompress", "cpu")}
    recompress(source, tmp_path / "threads.zarr", **one)
    assert tree(tmp_path / "tec.zarr") == tree(tmp_path / "threads.zarr")


def test_an_embedded_model_encodes_on_all_workers_whatever_gpu_says(
    mixed_cluster, source, tmp_path
):
    with pytest.warns(UserWarning, match="brings nothing here: the embedded models run on the CPU"):
        report, ran = where_tasks_ran(mixed_cluster, source, tmp_path / "tec.zarr")
    assert report.complete
    assert {("recompress", "cpu")} <= ran <= {("recompress", "gpu"), ("recompress", "cpu")}
    recompress(source, tmp_path / "threads.zarr")
    assert tree(tmp_path / "tec.zarr") == tree(tmp_path / "threads.zarr")


def test_the_threads_of_a_gpu_worker_fill_one_batch_from_several_regions(
    source, tmp_path, monkeypatch
):
    settings = {"chunks": {"time": 1}, "shards": False, **TOY}
    how = {"verify": "none", **settings}
    plan = make_plan(open_source(source, None), LocalStore(tmp_path), Settings(**settings), False)
    (array,) = (array for array in plan.arrays if array.spec and array.path == "reflectance")
    most = max(len(array.chunk_slices(array.region_slices(n))) for n in array.numbers)
    recompress(source, tmp_path / "alone.zarr", **settings)
    model = Device()
    monkeypatch.setattr(batching, "WAIT_SECONDS", 2)
    monkeypatch.setattr(batching, "LARGEST", 2 * most)  # such a batch waits no longer
    with (
        workers_of(gpu={"nthreads": 4, "resources": {"GPU": 1}}) as client,
        registry.as_new_process(),
    ):
        registry.register_model(toy.NAME, lambda: model, toy.SHA256)
        report = recompress(source, tmp_path / "tec.zarr", client=client, gpu=True, **how)
    assert report.complete
    assert most < max(size for size, *_ in model.batches) <= 2 * most
    assert tree(tmp_path / "tec.zarr") == tree(tmp_path / "alone.zarr")


def test_a_gpu_worker_codes_the_chunks_of_a_region_together(
    mixed_cluster, source, tmp_path, monkeypatch
):
    settings = {"chunks": {"y": 20, "x": 20}, **TOY}
    recompress(source, tmp_path / "alone.zarr", **settings)
    model = Device()
    monkeypatch.setattr(batching, "WAIT_SECONDS", 0.2)
    with registry.as_new_process():  # the workers are threads of this one
        registry.register_model(toy.NAME, lambda: model, toy.SHA256)
        report = recompress(
            source, tmp_path / "tec.zarr", client=mixed_cluster, gpu=True, verify="full", **settings
        )
    assert report.complete
    assert {size for size, *_ in model.batches} & {2, 3, 4}
    assert tree(tmp_path / "tec.zarr") == tree(tmp_path / "alone.zarr")


def test_a_gpu_that_nobody_has_is_an_error_at_once(source, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
        pytest.raises(
            RecompressError, match=r"none of the 1 workers has the resource GPU.*or leave"
        ),
    ):
        recompress(source, tmp_path / "tec.zarr", client=client, gpu=True, **TOY)


def test_an_existing_client_with_stores_of_its_own(mixed_cluster, source, tmp_path):
    target = LocalStore(tmp_path / "tec.zarr")
    report = recompress(LocalStore(source), target, client=mixed_cluster, **TOY)
    assert report.complete
    assert_same_archive(tmp_path / "tec.zarr", source)
    with pytest.raises(RecompressError, match="this process's memory"):
        recompress(source, MemoryStore(), client=mixed_cluster, **TOY)


def test_dask_watches_itself_less_while_it_runs_and_as_before_afterwards(mixed_cluster):
    from tec_zarr.recompression.dask_worker import WarmUp

    def watching(dask_worker):
        callbacks = dask_worker.periodic_callbacks
        return callbacks["tick"].callback_time, callbacks["profile"].is_running()

    before = mixed_cluster.run(watching)
    mixed_cluster.register_plugin(WarmUp([]), name="quiet")
    during = mixed_cluster.run(watching)
    mixed_cluster.unregister_worker_plugin("quiet")
    assert set(during.values()) == {(1000, False)}
    assert mixed_cluster.run(watching) == before
    assert all(tick < 1000 and profile for tick, profile in before.values())


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "key", "secret": "secret",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
    }  # fmt: skip
    import s3fs

    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket="bucket")
    yield options
    server.stop()


def test_from_s3_to_s3_with_an_interruption(s3, source, tmp_path):
    import s3fs

    files = s3fs.S3FileSystem(**s3, skip_instance_cache=True, use_listings_cache=False)
    for name, data in tree(source).items():
        files.pipe(f"bucket/source.zarr/{name}", data)
    options = {"source_options": s3, "target_options": s3, "model": recompress_worker.DEADLY}

    def fail(calls):
        if calls == 2:
            raise KeyError("once")

    recompress_worker.register(fail)
    run = lambda **more: recompress(  # noqa: E731
        "s3://bucket/source.zarr", "s3://bucket/tec.zarr", quality=6.0, **options, **more
    )
    first = run(retries=0)
    assert not first.complete
    assert len(first.failures) == 1
    assert not files.exists("bucket/tec.zarr/zarr.json")
    second = run()
    assert second.complete
    assert second.resumed == first.finished
    assert recompress_worker.Deadly.calls == 3
    assert_same_archive("s3://bucket/tec.zarr", source, storage_options=s3)
    assert not files.exists("bucket/tec.zarr/_tec")


def test_icechunk_is_a_source_and_a_target(archives, tmp_path):
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    plain = drop_encoding(xr.open_zarr(archives / "v3.zarr", consolidated=False).load())
    plain.to_zarr(session.store, consolidated=False)
    session.commit("source")
    store = repository.readonly_session("main").store
    assert recompress(store, tmp_path / "tec.zarr", **TOY).complete
    assert_same_archive(tmp_path / "tec.zarr", archives / "v3.zarr", consolidated=False)
    # On disk, because workers of a cluster that is still there read it too.
    target = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    assert recompress(store, target, **TOY).complete
    shown = target.readonly_session("main").store
    assert_same_archive(shown, archives / "v3.zarr", consolidated=False)
