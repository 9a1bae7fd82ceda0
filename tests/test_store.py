"""tec_zarr.encoding and tec_zarr.drop_encoding with real to_zarr and open_zarr calls."""

from __future__ import annotations

import warnings
from pathlib import Path

import dask.array
import numpy as np
import pytest
import toy
import xarray as xr
from test_chunk import scene

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.errors import (
    SecondGenerationWarning,
    SeparateBandsWarning,
    UnsuitedDataWarning,
    UnsupportedArrayError,
)
from tec_zarr.stores.info import stored_arrays

QUALITY = 6.0
TOLERANCE = 2.6  # DN: half the toy's step, and rounding


def encoding(obj, **kwargs):
    return tec_zarr.encoding(obj, model=toy.NAME, quality=QUALITY, **kwargs)


@pytest.fixture
def cube():
    return synthetic.dataset(dates=3, size=80)


def reflectance_cube(dtype="float32", **kwargs):
    """Float reflectance with NaN, as stackstac gives."""
    dn = scene((3, 12, 70, 90)) * 1e-4
    dn[1, :, 10:30, 40:] = np.nan
    bands = list(synthetic.cube(dates=1, size=8).band.values)
    return xr.DataArray(
        dn.astype(dtype), dims=("time", "band", "y", "x"), coords={"band": bands}, name="refl",
        **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_dataset_goes_out_and_comes_back(cube, tmp_path, zarr_format, lazy):
    if lazy:
        cube = cube.chunk({"time": 1, "y": 64, "x": 64})
    settings = encoding(cube, zarr_format=zarr_format)
    cube.to_zarr(tmp_path / "a.zarr", encoding=settings, zarr_format=zarr_format)
    back = xr.open_zarr(tmp_path / "a.zarr").load()
    assert back.reflectance.dtype == "uint16"
    error = np.abs(back.reflectance.astype(int) - cube.reflectance).max()
    assert 0 < error <= TOLERANCE
    np.testing.assert_array_equal(back.reflectance == 0, cube.reflectance == 0)
    for name in ("scl", "time", "band", "y", "x"):
        np.testing.assert_array_equal(back[name], cube[name])
    codecs = {a.path: a.codec for a in stored_arrays(tmp_path / "a.zarr")}
    assert "TEC" in codecs.pop("reflectance")
    assert not any("TEC" in c for c in codecs.values())


def test_shards_gather_small_chunks(tmp_path):
    da = synthetic.cube(dates=1, size=520)
    settings = encoding(da)["reflectance"]
    assert settings["chunks"] == (1, 12, 260, 260)
    assert settings["shards"] == (1, 12, 520, 520)
    assert "shards" not in encoding(da, shards=False)["reflectance"]


@pytest.mark.parametrize("size", [1, 255, 264, 383, 385, 1000, 10980])
def test_no_chunk_is_a_sliver(size):
    dims = ("time", "band", "y", "x")
    da = xr.DataArray(np.broadcast_to(np.uint16(5), (1, 12, 8, size)), dims=dims)
    length = encoding(da)["__xarray_dataarray_variable__"]["chunks"][-1]
    assert length <= 384
    assert size % length == 0 or size % length > 0.8 * length


@pytest.mark.parametrize("time", [1, 2, 6])
@pytest.mark.parametrize("side", [250, 256, 300, 512, 1024])
def test_any_usual_dask_chunks_can_be_written(tmp_path, time, side):
    zeros = dask.array.zeros((7, 12, 1100, 1100), dtype="uint16", chunks=(time, 12, side, side))
    da = xr.DataArray(zeros, dims=("time", "band", "y", "x"), name="dn")
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da), compute=False)  # checks alignment


def test_one_band_per_dask_chunk_says_how_to_rechunk():
    da = reflectance_cube().chunk({"band": 1})
    with pytest.raises(UnsupportedArrayError, match=r"refl = refl\.chunk\(\{'band': -1\}\)"):
        encoding(da)


def test_float_reflectance_becomes_packed_dn(tmp_path):
    da = reflectance_cube()
    settings = encoding(da)["refl"]
    assert settings["dtype"] == "uint16"
    assert (settings["_FillValue"], settings["scale_factor"]) == (0, 1e-4)
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da))
    back = xr.open_zarr(tmp_path / "a.zarr").refl.load()
    np.testing.assert_array_equal(np.isnan(back), np.isnan(da))
    assert np.abs(back - da).max() <= TOLERANCE * 1e-4
    raw = xr.open_zarr(tmp_path / "a.zarr", mask_and_scale=False).refl
    assert raw.dtype == "uint16"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lazy_floats_and_negative_reflectance_survive(tmp_path, dtype):
    da = reflectance_cube(dtype)
    da[0, 0, 0, :5] = [-0.02, -0.5, 0.0, 6.9, np.inf]
    for name, source in (("memory", da), ("lazy", da.chunk({"time": 1}))):
        source.to_zarr(tmp_path / f"{name}.zarr", encoding=encoding(source))
        back = xr.open_zarr(tmp_path / f"{name}.zarr").refl.load()
        assert back.dtype == dtype
        np.testing.assert_array_equal(np.isnan(back), np.isnan(da))
        np.testing.assert_array_equal(back[0, 0, 0, 1:5], da[0, 0, 0, 1:5])
        assert np.abs((back - da).where(np.isfinite(da))).max() <= TOLERANCE * 1e-4


def test_a_packed_product_with_an_offset_shows_the_codec_plain_dn(tmp_path):
    """As in EOPF: uint16 with scale_factor 1e-4 and add_offset -0.1."""
    da = reflectance_cube()
    packing = {"dtype": "uint16", "_FillValue": 0, "scale_factor": 1e-4, "add_offset": -0.1}
    da.to_zarr(tmp_path / "source.zarr", encoding={"refl": packing})
    opened = tec_zarr.drop_encoding(xr.open_zarr(tmp_path / "source.zarr"))
    settings = encoding(opened)
    codec = settings["refl"]["serializer"]
    assert (codec.offset, codec.scale, settings["refl"]["add_offset"]) == (1000, 1, -0.1)
    opened.to_zarr(tmp_path / "a.zarr", encoding=settings)
    back = xr.open_zarr(tmp_path / "a.zarr").refl.load()
    assert np.abs(back - da).max() <= TOLERANCE * 1e-4
    np.testing.assert_array_equal(np.isnan(back), np.isnan(da))


def test_one_variable_per_band(tmp_path):
    cube = synthetic.cube(dates=2, size=64, bands=["B04", "B08"])
    ds = cube.to_dataset("band")
    ds["spatial_ref"] = 0
    ds["elevation"] = ("y", "x"), np.random.default_rng(0).normal(500, 9, (64, 64))
    with pytest.warns(SeparateBandsWarning, match="stack_bands"):
        settings = encoding(ds)
    assert settings["B04"]["serializer"].bands == ("B04",)
    assert "serializer" not in settings["elevation"]
    ds.to_zarr(tmp_path / "a.zarr", encoding=settings)
    back = xr.open_zarr(tmp_path / "a.zarr").load()
    assert np.abs(back.B08.astype(int) - ds.B08).max() <= TOLERANCE
    np.testing.assert_array_equal(back.elevation, ds.elevation)


def test_nothing_that_looks_like_reflectance_says_so():
    ds = xr.Dataset({"foo": (("y", "x"), np.ones((4, 4), "uint16"))})
    with pytest.raises(UnsupportedArrayError, match="variables="):
        encoding(ds)
    assert "serializer" in encoding(ds, variables=["foo"])["foo"]


def test_dimensions_in_another_order_say_so():
    with pytest.raises(UnsupportedArrayError, match="transpose"):
        encoding(reflectance_cube().transpose("band", "time", "y", "x"))


def test_saving_a_tec_array_again_warns_and_decode_is_the_way_out(cube, tmp_path):
    cube.to_zarr(tmp_path / "tec.zarr", encoding=encoding(cube))
    opened = xr.open_zarr(tmp_path / "tec.zarr")
    with pytest.warns(SecondGenerationWarning, match="tec_zarr.drop_encoding"):
        encoding(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecondGenerationWarning)
        tec_zarr.drop_encoding(opened).to_zarr(tmp_path / "plain.zarr")
    assert not any("TEC" in a.codec for a in stored_arrays(tmp_path / "plain.zarr"))
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "plain.zarr").load(), opened.load())


def test_an_append_inside_a_chunk_warns(cube, tmp_path):
    first = cube.isel(time=slice(0, 2))
    first.to_zarr(tmp_path / "a.zarr", encoding=encoding(cube, chunks={"time": 3}, shards=False))
    with pytest.warns(SecondGenerationWarning):
        cube.isel(time=slice(2, 3)).to_zarr(tmp_path / "a.zarr", append_dim="time")


def test_decode_keeps_the_crs_link(cube, tmp_path):
    cube.reflectance.encoding["grid_mapping"] = "spatial_ref"
    assert tec_zarr.drop_encoding(cube).reflectance.encoding["grid_mapping"] == "spatial_ref"


def test_the_old_name_of_drop_encoding_still_works_and_warns(cube):
    with pytest.warns(DeprecationWarning, match=r"tec_zarr\.drop_encoding"):
        plain = tec_zarr.decode(cube)
    xr.testing.assert_identical(plain, tec_zarr.drop_encoding(cube))


# ---- what is no reflectance


CLASSES = np.random.default_rng(0).integers(0, 12, (3, 40, 44)).astype("uint16")


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("SCL", {}),
        ("qa60", {}),
        ("cloud_mask", {}),
        ("s2_view_zenith", {}),
        ("elevation", {}),
        ("layer", {"flag_values": [0, 1, 2]}),
        ("layer", {"standard_name": "solar_azimuth_angle"}),
    ],
)
def test_classes_masks_and_angles_are_never_rounded(tmp_path, name, attrs):
    bands = ["B02", "B03", "B04"]
    image = xr.DataArray(CLASSES, dims=("band", "y", "x"), coords={"band": bands})
    ds = xr.Dataset({"reflectance": image + np.uint16(900), name: image.assign_attrs(attrs)})
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding(ds))
    back = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(back[name], CLASSES)
    assert (back.reflectance != ds.reflectance).any()
    with pytest.raises(UnsupportedArrayError, match="variables="):
        encoding(ds[name])
    assert "serializer" in encoding(ds[name], variables=name)[name]


@pytest.mark.parametrize(
    "name", ["classification_free_composite", "cloud_mask_applied", "unmasked", "probav", "quality"]
)
def test_names_that_only_hold_such_words_are_reflectance(name):
    image = xr.DataArray(CLASSES, dims=("band", "y", "x"), coords={"band": ["B02", "B03", "B04"]})
    image.attrs["standard_name"] = "Surface Reflectance"
    assert "serializer" in encoding(image.rename(name))[name]


def test_bands_without_names_yield_to_those_that_have_them(tmp_path):
    image = xr.DataArray(CLASSES, dims=("band", "y", "x"))
    assert "serializer" in encoding(image.to_dataset(name="counts"))["counts"]
    ds = xr.Dataset({"counts": image, "B04": image[0].drop_vars("band", errors="ignore")})
    settings = encoding(ds)
    assert "serializer" in settings["B04"]
    assert "serializer" not in settings["counts"]


def test_what_is_stored_without_loss_keeps_its_packing(cube, tmp_path):
    cube.scl.encoding["_FillValue"] = 0
    cube.to_zarr(tmp_path / "source.zarr")
    opened = xr.open_zarr(tmp_path / "source.zarr").load()
    assert opened.scl.dtype.kind == "f", "xarray makes NaN of class 0"
    opened.to_zarr(tmp_path / "a.zarr", encoding=encoding(opened))
    raw = xr.open_zarr(tmp_path / "a.zarr", mask_and_scale=False).scl
    assert raw.dtype == "uint8"
    np.testing.assert_array_equal(raw, cube.scl)
    opened["scl"] = opened.scl.copy(data=opened.scl.values + 0.5)
    opened.to_zarr(tmp_path / "b.zarr", encoding=encoding(opened))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "b.zarr").scl, opened.scl)


# ---- packed data that xarray unpacked


EOPF = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}


def packed(path, da, **packing):
    da.to_zarr(path, encoding={da.name: EOPF | packing})
    return xr.open_zarr(path)


@pytest.mark.parametrize("lazy", [False, True])
def test_nan_by_missing_value_stays_nan(tmp_path, lazy):
    da = reflectance_cube()
    source = packed(tmp_path / "s.zarr", da, _FillValue=None, missing_value=0)
    source = source if lazy else source.load()
    assert np.isnan(source.refl).any()
    source.to_zarr(tmp_path / "a.zarr", encoding=encoding(source))
    back = xr.open_zarr(tmp_path / "a.zarr").refl
    np.testing.assert_array_equal(np.isnan(back), np.isnan(da))


@pytest.mark.filterwarnings("ignore:.*multiple fill values")
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", ["refl", "qa"])
@pytest.mark.parametrize(
    "fills",
    [{"_FillValue": 0, "missing_value": 9}, {"missing_value": [0, 9]}, {"_Unsigned": "true"}],
)
def test_unusual_packings_keep_their_values(tmp_path, lazy, name, fills):
    """Two values for nodata, and NetCDF's unsigned numbers in signed types."""
    attrs = {"scale_factor": 1e-4, "_FillValue": 0} | fills
    if "_FillValue" not in fills and "_Unsigned" not in fills:
        del attrs["_FillValue"]
    stored = np.random.default_rng(0).integers(0, 60000, (12, 20, 20)).astype("uint16")
    stored[0, :9] = 9
    stored[1, :9] = 0
    if name == "qa":
        del attrs["scale_factor"]
    signed = stored.view("int16") if "_Unsigned" in fills else stored
    bands = list(synthetic.cube(dates=1, size=8).band.values)
    raw = xr.Dataset({name: (("band", "y", "x"), signed, attrs)}, {"band": bands})
    pytest.importorskip("h5netcdf")
    raw.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    ds = xr.open_dataset(tmp_path / "a.nc", chunks={} if lazy else None)
    assert ds[name].dtype.kind == "f"
    if name == "qa":
        ds["refl"] = ds.qa.copy(data=ds.qa.data * 0 + 0.1)
        ds.refl.encoding = {}
    ds = tec_zarr.drop_encoding(ds)
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding(ds))
    back = xr.open_zarr(tmp_path / "a.zarr")[name]
    np.testing.assert_array_equal(np.isnan(back), np.isnan(ds[name]))
    allowed = 0 if name == "qa" else TOLERANCE * 1e-4 + 1e-6
    assert np.abs(back - ds[name]).max() <= allowed


@pytest.mark.parametrize("lazy", [False, True])
def test_a_packing_that_outlived_its_values_wraps_nothing(tmp_path, lazy):
    """Dates without ESA's offset, then dates with it: xarray keeps the first packing."""
    da = reflectance_cube()
    other = da.copy(deep=True)
    other[0, 0, 0, :3] = [-0.01, 0.0, 6.3]
    parts = [packed(tmp_path / "0.zarr", da, add_offset=0.0), packed(tmp_path / "1.zarr", other)]
    both = xr.concat(parts if lazy else [p.load() for p in parts], "time")
    assert both.refl.encoding["add_offset"] == 0
    both.to_zarr(tmp_path / "a.zarr", encoding=encoding(both))
    back = xr.open_zarr(tmp_path / "a.zarr").refl.load()
    np.testing.assert_array_equal(np.isnan(back), np.isnan(both.refl))
    assert np.abs(back - both.refl).max() <= TOLERANCE * 1e-4


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("bound", [0, 2e-4])
def test_a_bound_holds_after_arithmetic_on_packed_data(tmp_path, lazy, bound):
    source = packed(tmp_path / "s.zarr", reflectance_cube("float64")).refl
    source = source if lazy else source.load()
    changed = source.copy(data=source.data + 4e-5)
    assert changed.encoding["scale_factor"] == 1e-4
    changed.to_zarr(tmp_path / "a.zarr", encoding=encoding(changed, max_error=bound))
    back = xr.open_zarr(tmp_path / "a.zarr").refl
    assert np.abs(back - changed).max() <= bound * (1 + 1e-9)


def test_nodata_of_floats_is_exact_in_memory_too(tmp_path):
    da = reflectance_cube().fillna(0.1)
    da[:, :, 5:10] = 2.0
    da[0, 0, 0, :2] = [2.00004, 1.99997]
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da, nodata=2.0))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").refl == 2.0, da == 2.0)


def test_cf_attributes_that_arithmetic_kept_do_not_stop_writing(tmp_path):
    """As ``rioxarray.open_rasterio(...) / 10000`` leaves them."""
    da = reflectance_cube().assign_attrs(scale_factor=1.0, add_offset=0.0, _FillValue=-9999.0)
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da))
    back = xr.open_zarr(tmp_path / "a.zarr").refl
    np.testing.assert_array_equal(np.isnan(back), np.isnan(da))
    assert np.abs(back - da).max() <= TOLERANCE * 1e-4


# ---- arguments


@pytest.mark.parametrize("size", [{"x": 0}, {"time": 0}])
def test_empty_arrays_are_written_and_appended_to(cube, tmp_path, size):
    empty = cube.isel({dim: slice(n) for dim, n in size.items()})
    empty.time.encoding["units"] = "seconds since 1970-01-01"  # of no dates xarray takes days
    empty.to_zarr(tmp_path / "a.zarr", encoding=encoding(empty))
    assert xr.open_zarr(tmp_path / "a.zarr").sizes == empty.sizes
    if "time" in size:
        cube.to_zarr(tmp_path / "a.zarr", append_dim="time")
        back = xr.open_zarr(tmp_path / "a.zarr").reflectance
        assert np.abs(back.astype(int) - cube.reflectance).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunks": {"time": 0}}, "-1 for all"),
        ({"chunks": {"time": 1.5}}, "-1 for all"),
        ({"chunks": {"time": "auto"}}, "-1 for all"),
        ({"chunks": 64}, "name dimensions"),
        ({"variables": 0}, "list of names"),
        ({"variables": ["nope"]}, "nope"),
        ({"gop": 2}, "temporal models"),
        ({"max_error": [1, 2]}, "2 entries.*12 bands"),
        ({"bands": ["B04"]}, "1 entries.*12 bands"),
        ({"bands": "B04"}, "1 entries.*12 bands"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_before_anything_is_written(
    cube, arguments, message
):
    with pytest.raises(UnsupportedArrayError, match=message):
        encoding(cube, **arguments)


def test_chunks_of_any_whole_number_and_of_all(cube):
    found = encoding(cube, chunks={"time": -1, "y": np.int64(40)})["reflectance"]["chunks"]
    assert found == (3, 12, 40, 80)
    assert type(found[2]) is int
    assert "serializer" in encoding(cube, variables="reflectance")["reflectance"]


def test_a_psnr_beyond_all_numbers_is_without_loss(cube, tmp_path):
    small = cube.isel(x=slice(16), y=slice(16), time=[0])
    small.to_zarr(tmp_path / "a.zarr", encoding=encoding(small, psnr=1e9))
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance
    np.testing.assert_array_equal(back, small.reflectance)


def test_one_selected_band_keeps_its_name(cube):
    twelve = xr.concat([cube] * 4, "time").reflectance.sel(band="B08")
    assert encoding(twelve)["reflectance"]["serializer"].bands == ("B08",)


def test_without_loss_there_is_nothing_to_warn_of(cube, tmp_path):
    cube.to_zarr(tmp_path / "tec.zarr", encoding=encoding(cube))
    opened = xr.open_zarr(tmp_path / "tec.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecondGenerationWarning)
        opened.to_zarr(tmp_path / "a.zarr", encoding=encoding(opened, max_error=0))
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "a.zarr").load(), opened.load())


def test_a_tree_leaves_tec_too(cube, tmp_path):
    cube.to_zarr(tmp_path / "a.zarr", group="inner", encoding=encoding(cube))
    tree = tec_zarr.drop_encoding(xr.open_datatree(tmp_path / "a.zarr", engine="zarr"))
    tree.to_zarr(tmp_path / "plain.zarr")
    assert not any("TEC" in a.codec for a in stored_arrays(tmp_path / "plain.zarr"))
    plain = xr.open_zarr(tmp_path / "plain.zarr", group="inner")
    xr.testing.assert_equal(plain.reflectance, tree["inner"].reflectance)


# ---- names of bands


def counting(count=3, **attrs):
    """As rioxarray opens a GeoTIFF: bands 1 to N."""
    data = np.full((count, 32, 32), 300, "int16")
    return xr.DataArray(data, {"band": np.arange(count) + 1}, ("band", "y", "x"), attrs=attrs)


def test_bands_that_only_count_are_named_by_descriptions_or_by_the_user():
    described = counting(long_name=("B2", "green", "B4, central wavelength 665 nm"))
    alone = xr.Dataset({"image": counting()})
    names = ("B02", "B03", "B04")
    assert encoding(described.to_dataset(name="image"))["image"]["serializer"].bands == names
    assert encoding(alone, bands=names)["image"]["serializer"].bands == names
    with pytest.raises(UnsupportedArrayError, match=r"the 3 bands of 'image'.*bands=\["):
        encoding(alone)
    with pytest.raises(UnsupportedArrayError):
        encoding(alone, bands=names[:2])
    beside = xr.Dataset({"other": counting().rename(band="channel"), "image": described})
    assert "serializer" not in encoding(beside)["other"]


def test_bands_as_variables_are_named_by_their_descriptions():
    """rioxarray.open_rasterio(band_as_variable=True): band_1 is no B01."""
    image = (("y", "x"), np.full((32, 32), 300, "int16"))
    ds = xr.Dataset({f"band_{i}": (*image, {"long_name": n})
                     for i, n in ((1, "B04"), (2, "B03"), (3, "cloud cover"))})  # fmt: skip
    with pytest.warns(SeparateBandsWarning):
        settings = encoding(ds)
    assert settings["band_1"]["serializer"].bands == ("B04",)
    assert "serializer" not in settings["band_3"]
    bare = ds.map(lambda da: da.drop_attrs(), keep_attrs=False)
    with pytest.raises(UnsupportedArrayError, match=r"variables=\['band_1'\]"):
        encoding(bare)


def test_what_is_asked_for_is_named(cube):
    with pytest.raises(UnsupportedArrayError, match=r"'reflectance' is int32.*make it uint16"):
        encoding(cube.astype("int32"))
    with pytest.raises(UnsupportedArrayError, match="DataTree"):
        tec_zarr.encoding(xr.DataTree.from_dict({"/r10m": cube}))
    with pytest.raises(UnsupportedArrayError, match=r"variables=\['foo'\]"):
        encoding(cube.rename(reflectance="foo").isel(band=0, drop=True))


def test_one_band_selected_from_a_dataset_keeps_its_name(cube):
    one = encoding(cube.sel(band="B04"))
    assert one["reflectance"]["serializer"].bands == ("B04",)
    assert "serializer" not in one["scl"]


# ---- bands in one array


def separate(dtype="int16", **attrs):
    """As DEA has them, with a band twice as fine beside them and classes."""
    cube = synthetic.cube(dates=2, size=64, bands=["B02", "B04", "B08"]).astype(dtype)
    cube = cube.where(cube != 0, -999) if dtype == "int16" else cube
    names = {"B08": "nbart_nir", "B04": "nbart_red", "B02": "nbart_blue"}
    ds = xr.Dataset({n: cube.sel(band=b, drop=True).assign_attrs(attrs, source=b)
                     for b, n in names.items()})  # fmt: skip
    for da in ds.data_vars.values():
        da.encoding = {"_FillValue": -999} if dtype == "int16" else {}
    ds["oa_fmask"] = ds.nbart_red % 5
    return ds


def test_stacked_bands_are_one_array_and_variables_again():
    ds = separate(units="1").assign_coords(band=1)  # which rasterio's files of one band have
    said = []
    one = tec_zarr.stack_bands(ds, said=said)
    assert set(one.data_vars) == {"reflectance", "oa_fmask"}
    assert one.reflectance.dims == ("time", "band", "y", "x")
    assert one.band.values.tolist() == ["B02", "B04", "B08"]
    assert "nbart_red as B04" in said[0]
    np.testing.assert_array_equal(one.reflectance.sel(band="B04"), ds.nbart_red)
    assert one.reflectance.encoding["_FillValue"] == -999
    back = tec_zarr.unstack_bands(one)
    xr.testing.assert_identical(back, ds)
    assert back.nbart_red.encoding["_FillValue"] == -999


@pytest.mark.filterwarnings("ignore:saving variable:xarray.SerializationWarning")
def test_reflectance_is_not_appended_to_a_store_of_dn(tmp_path):
    """Rounded to DN, all of it would be 0 or 1, and most of that nodata."""
    ds = synthetic.dataset(dates=2, size=48)
    ds.isel(time=[0]).tec.to_zarr(tmp_path / "a.zarr")
    later = ds.isel(time=[1])
    floats = later.reflectance.astype("float32")
    with pytest.raises(UnsupportedArrayError, match="reflectance"):
        later.assign(reflectance=floats / 1e4).tec.to_zarr(tmp_path / "a.zarr", append_dim="time")
    assert xr.open_zarr(tmp_path / "a.zarr").sizes["time"] == 1
    later.assign(reflectance=floats).tec.to_zarr(tmp_path / "a.zarr", append_dim="time")
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance[1]
    assert float(abs(back.astype(float) - floats[0]).mean()) < 100


@pytest.mark.parametrize("order", [["B08", "B04", "B02"], ["B04"], ["B08", "B02"]])
def test_bands_that_were_picked_or_turned_become_the_variables_that_they_were(order):
    ds = separate()
    back = tec_zarr.unstack_bands(tec_zarr.stack_bands(ds).sel(band=order))
    names = {"B02": "nbart_blue", "B04": "nbart_red", "B08": "nbart_nir"}
    assert set(back.data_vars) == {*(names[b] for b in order), "oa_fmask"}
    for band in order:
        np.testing.assert_array_equal(back[names[band]], ds[names[band]])
    strange = tec_zarr.stack_bands(ds).assign_coords(band=["B02", "B03", "B08"])
    with pytest.raises(UnsupportedArrayError, match="those that were stacked B02, B04, B08"):
        tec_zarr.unstack_bands(strange)


def test_only_bands_of_one_grid_and_nodata_are_stacked():
    ds = separate()
    ds.nbart_nir.attrs["no_data"] = -1
    assert set(tec_zarr.stack_bands(ds).data_vars) == {"reflectance", "nbart_nir", "oa_fmask"}
    with pytest.warns(SeparateBandsWarning, match="2 bands|3 bands"):
        encoding(ds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoding(tec_zarr.stack_bands(separate()))


def test_what_is_no_band_is_split_off(cube):
    scl = cube.scl.astype("uint16").expand_dims(band=["SCL"])
    both = xr.concat([cube.reflectance, scl.transpose("time", "band", "y", "x")], "band")
    for mixed in (both, both.to_dataset(name="reflectance")):
        with pytest.raises(UnsupportedArrayError, match=r"'SCL'.*stack_bands"):
            encoding(mixed)
        split = tec_zarr.stack_bands(mixed)
        assert split.reflectance.sizes["band"] == 12
        np.testing.assert_array_equal(split.SCL, cube.scl)
        settings = encoding(split)
        assert settings["reflectance"]["serializer"].bands == tuple(cube.band.values)
        assert "serializer" not in settings["SCL"]


def test_what_files_say_of_each_band_follows_a_band_that_is_split_off():
    image = counting(4, scales=[1e-4, 1e-4, 1.0, 1e-3], long_name=["B02", "B03", "SCL", "B04"])
    split = tec_zarr.stack_bands(image)
    assert split.reflectance.attrs["scales"] == [1e-4, 1e-4, 1e-3]
    assert split.reflectance.attrs["long_name"] == ["B02", "B03", "B04"]
    assert split.SCL.attrs["scales"] == [1.0]
    assert len(image.attrs["scales"]) == 4


def dated(cube, times, unit="ns"):
    """Dates of ``cube`` under other names, in this resolution of datetime64."""
    times = np.array(times, f"M8[{unit}]")
    return cube.isel(time=slice(len(times))).assign_coords(time=times, seen=("time", times))


@pytest.mark.parametrize(
    ("zarr_format", "way", "unit"),
    [(3, "encoding", "ns"), (2, "accessor", "ns"), (3, "accessor", "us"), (2, "encoding", "s")],
)
@pytest.mark.parametrize("later", ["2023-06-11T10:10:31", "2023-06-11T10:10:31.024"])
def test_clock_times_can_follow_plain_days(cube, tmp_path, zarr_format, way, unit, later):
    first = dated(cube, ["2023-06-01"], unit)
    if way == "encoding":
        settings = encoding(first, zarr_format=zarr_format, chunks={"time": 1})
        first.to_zarr(tmp_path / "a.zarr", encoding=settings, zarr_format=zarr_format)
    else:
        first.tec.to_zarr(tmp_path / "a.zarr", model=toy.NAME, zarr_format=zarr_format,
                          chunks={"time": 1})  # fmt: skip
    dated(cube, [later]).to_zarr(tmp_path / "a.zarr", append_dim="time", mode="a")
    back = xr.open_zarr(tmp_path / "a.zarr")
    wanted = np.array(["2023-06-01", later], "M8[ns]")
    for name in ("time", "seen"):
        np.testing.assert_array_equal(back[name], wanted)


def test_dates_with_nanoseconds_keep_them(cube, tmp_path):
    """As xarray reads them from days or seconds in floating point."""
    first = dated(cube, ["2023-06-01T10:10:31.024000017"])
    first.to_zarr(tmp_path / "a.zarr", encoding=encoding(first))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").time, first.time)


@pytest.mark.filterwarnings("ignore:variable None has data in the form of a dask array")
@pytest.mark.parametrize("source", [2, 3])
@pytest.mark.parametrize("target", [2, 3])
def test_a_store_of_one_zarr_format_goes_into_the_other(cube, tmp_path, source, target):
    words = np.array(["R065", "R022", "R108"], object)
    cube = cube.assign_coords(orbit=("time", words), tile="32TPT", hours=np.timedelta64(3, "h"))
    one_chunk = {"reflectance": {"chunks": cube.reflectance.shape}}
    cube.to_zarr(tmp_path / "a.zarr", zarr_format=source, encoding=one_chunk)
    opened = xr.open_zarr(tmp_path / "a.zarr", decode_timedelta=True)
    settings = encoding(opened, zarr_format=target)
    assert set(settings) == set(opened.variables)
    opened.to_zarr(tmp_path / "b.zarr", encoding=settings, zarr_format=target)
    back = xr.open_zarr(tmp_path / "b.zarr", decode_timedelta=True)
    xr.testing.assert_equal(back.drop_vars("reflectance"), opened.drop_vars("reflectance"))


def test_a_wrong_scale_is_refused_before_anything_is_written():
    reflectance = reflectance_cube() + 0.5  # all of it rounds to 1 DN
    with pytest.raises(UnsupportedArrayError, match="leave scale out"):
        encoding(reflectance, scale=1)
    with pytest.raises(UnsupportedArrayError, match="scale=1"):
        encoding(reflectance * 1e4)
    encoding(reflectance * 1e4, scale=1)


def packed_stores(cube, folder):
    """Reflectance of two dates in two stores: uint16, and floats where the second is negative."""
    reflectance = cube.assign(reflectance=cube.reflectance.where(cube.reflectance > 0) * 1e-4)
    reflectance.reflectance.values[1, :, 4:12, 4:12] = -0.02
    for date in (0, 1):
        one = reflectance.isel(time=[date])
        one.to_zarr(folder / f"{date}.zarr", encoding=encoding(one))
    return [str(folder / f"{date}.zarr") for date in (0, 1)]


def test_what_leaves_tec_wraps_nothing(cube, tmp_path):
    """Neither where stores of different packings are one, nor where values were changed."""
    stores = packed_stores(cube, tmp_path)
    both = xr.concat(list(map(xr.open_zarr, stores)), "time", data_vars="minimal",
                     coords="minimal", compat="override", join="exact")  # fmt: skip
    changed = xr.open_zarr(stores[0]).load()
    changed.reflectance.values[0, :, :, :2] = (-0.02, 0.12345)
    whole = xr.open_zarr(stores[0]).load()
    whole["reflectance"] = whole.reflectance.copy(data=np.full(whole.reflectance.shape, -20))
    for number, ds in enumerate((both, changed, whole)):
        tec_zarr.drop_encoding(ds).to_zarr(tmp_path / f"plain{number}.zarr")
        plain = xr.open_zarr(tmp_path / f"plain{number}.zarr").reflectance
        np.testing.assert_array_equal(plain, ds.reflectance)


def test_what_leaves_tec_unchanged_keeps_its_packing_and_stays_lazy(cube, tmp_path):
    store = packed_stores(cube, tmp_path)[0]
    for ds in (xr.open_zarr(store), xr.open_zarr(store, chunks=None), xr.open_zarr(store).load()):
        plain = tec_zarr.drop_encoding(ds)
        assert plain.reflectance.encoding["scale_factor"] == 1e-4
        assert plain.reflectance.variable._in_memory == ds.reflectance.variable._in_memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bound", [0, {"B04": 0, "all": 0.001}])
def test_lossless_is_the_same_bits_for_the_reader(tmp_path, dtype, bound):
    array = reflectance_cube(dtype)
    array = array.copy(data=(np.rint(array.values * 1e4) / 1e4).astype(dtype))  # DN, in floats
    array.to_zarr(tmp_path / "a.zarr", encoding=encoding(array, max_error=bound))
    back = xr.open_zarr(tmp_path / "a.zarr").refl.load()
    assert back.dtype == dtype
    exact = slice(None) if bound == 0 else back.band == "B04"
    kind = f"u{array.dtype.itemsize}"
    np.testing.assert_array_equal(
        back[:, exact].values.view(kind), array[:, exact].values.view(kind)
    )


def test_lossless_keeps_integers_that_xarray_unpacked(cube, tmp_path):
    packed = cube.reflectance.assign_attrs(scale_factor=1e-4, add_offset=-0.1, _FillValue=0)
    packed.to_dataset().to_zarr(tmp_path / "a.zarr")
    lazy = xr.open_zarr(tmp_path / "a.zarr", chunks={"band": -1})
    for number, ds in enumerate((lazy.compute(), lazy)):
        out = tmp_path / f"{number}.zarr"
        ds.to_zarr(out, encoding=encoding(ds, max_error=0))
        xr.testing.assert_identical(xr.open_zarr(out).reflectance, ds.reflectance)
        assert xr.open_zarr(out, mask_and_scale=False).reflectance.dtype == "uint16"


def test_what_is_lossless_is_not_rounded_to_its_old_integers(cube, tmp_path):
    depth = xr.DataArray(np.full((80, 80), 3.0005, "f4"), dims=("y", "x"))
    depth.encoding = {"dtype": "int16", "_FillValue": -1}
    cube = cube.assign(depth=depth)
    cube.to_zarr(tmp_path / "a.zarr", encoding=encoding(cube))
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "a.zarr").depth, depth)


def test_a_codec_kept_from_more_bands_is_refused_before_anything_is_written(cube, tmp_path):
    store = tmp_path / "a.zarr"
    cube.to_zarr(store, encoding=encoding(cube, chunks={"time": 1}))
    opened = xr.open_zarr(store)
    nir = opened.reflectance.sel(band="B08", drop=True).rename("nir").to_dataset()
    with pytest.raises(UnsupportedArrayError, match=r"tec_zarr\.drop_encoding"):
        nir.to_zarr(store, mode="a")
    assert "nir" not in xr.open_zarr(store, consolidated=False)
    plain = tec_zarr.drop_encoding(nir)
    plain.to_zarr(store, mode="a")
    np.testing.assert_array_equal(xr.open_zarr(store).nir, nir.nir)


@pytest.mark.parametrize(
    "dims", [("y", "x", "band", "time"), ("band", "time", "y", "x"), ("time", "y", "x", "band")]
)
def test_a_codec_kept_from_other_dimensions_is_refused(cube, tmp_path, dims):
    """It would take 12 columns for 12 bands, and a minute."""
    cube.to_zarr(tmp_path / "a.zarr", encoding=encoding(cube))
    turned = xr.open_zarr(tmp_path / "a.zarr").load().transpose(*dims)
    with pytest.raises(UnsupportedArrayError, match=r"tec_zarr\.drop_encoding"):
        turned.to_zarr(tmp_path / "b.zarr")


@pytest.mark.parametrize("zarr_format", [3, 2])
def test_a_turned_cube_in_its_old_shards_is_warned_of(tmp_path, zarr_format):
    """Zarr shows a codec neither the array that shards are for, nor any array of format 2."""
    da = synthetic.cube(dates=2, size=96)
    how = encoding(da, chunks={"y": 32, "x": 32}, zarr_format=zarr_format)
    how["reflectance"] |= {"shards": (2, 12, 64, 64)} if zarr_format == 3 else {}
    da.to_zarr(tmp_path / "a.zarr", encoding=how, zarr_format=zarr_format)
    turned = xr.open_zarr(tmp_path / "a.zarr").load().transpose("y", "x", "band", "time")
    with pytest.raises(UnsuitedDataWarning, match=r"\.tec\.to_zarr"):
        turned.to_zarr(tmp_path / "b.zarr", zarr_format=zarr_format)


def test_cubes_that_end_in_thin_chunks_are_not_warned_of(tmp_path):
    da = synthetic.cube(dates=8, size=36)
    how = encoding(da, chunks={"time": 1, "y": 32, "x": 32})
    da.to_zarr(tmp_path / "a.zarr", encoding=how)


def test_a_page_says_what_a_killed_write_leaves(cube, tmp_path):
    cube.chunk().to_zarr(tmp_path / "a.zarr", encoding=encoding(cube), compute=False)
    left = xr.open_zarr(tmp_path / "a.zarr")
    assert (left.reflectance == 0).all(), "metadata are there, chunks are not"
    page = Path(__file__).parents[1].joinpath("docs", "writing.md").read_text(encoding="utf-8")
    assert "leaves a store that opens and shows missing chunks as nodata" in page


# ---- nodata, wherever it is written down


SAID = {
    "datacube, odc-stac": lambda da: da.assign_attrs(nodata=-999),
    "text, as in GeoTIFF tags": lambda da: da.assign_attrs(nodata="-999.0"),
    "CF": lambda da: da.assign_attrs(missing_value=np.array([-5, -999], "int16")),
    "encoding": lambda da: da.assign_attrs() if da.encoding.update(_FillValue=-999) else da,
    "xarray's old open_rasterio": lambda da: da.assign_attrs(nodatavals=(-999.0, -999.0)),
    "rioxarray": lambda da: pytest.importorskip("rioxarray") and da.rio.set_nodata(-999),
}


@pytest.mark.filterwarnings("ignore:.*multiple fill values")
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("dtype", ["int16", "float64"])
def test_nodata_is_found_wherever_it_is_written_down(tmp_path, said, dtype):
    dn = scene((2, 12, 40, 40)).round()
    gone = np.broadcast_to(np.indices((40, 40)).sum(0) % 3 == 0, dn.shape)
    bands = list(synthetic.cube(dates=1, size=8).band.values)
    da = xr.DataArray(
        np.where(gone, -999, dn).astype(dtype), {"band": bands}, ("time", "band", "y", "x"),
        name="dn",
    )  # fmt: skip
    da = SAID[said](da)
    units = {"scale": 1} if dtype == "float64" else {}
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da, **units))
    stored = xr.open_zarr(tmp_path / "a.zarr", mask_and_scale=False).dn
    np.testing.assert_array_equal(stored == -999, gone)
    back = xr.open_zarr(tmp_path / "a.zarr").dn
    table = da.tec.report(back)
    assert table.loc["all", "nodata_differs"] == 0
    assert table.loc["all", "max_error"] <= TOLERANCE


def test_nodata_that_is_no_number_is_refused(cube):
    cube.reflectance.attrs["nodata"] = "clouds"
    with pytest.raises(UnsupportedArrayError, match="nodata of array 'reflectance' is 'clouds'"):
        encoding(cube)
    cube.reflectance.attrs["nodata"] = "none"
    encoding(cube)


def test_zeros_that_the_user_does_not_call_nodata_are_compared(cube, tmp_path):
    da = cube.reflectance.astype("int16").where(cube.reflectance != 0, -999)
    da[0, 0, :40] = np.random.default_rng(0).integers(0, 9, (40, 80))
    da.attrs["_FillValue"] = -999
    settings = encoding(da, nodata=-999, zarr_format=2)
    da.to_zarr(tmp_path / "a.zarr", encoding=settings, zarr_format=2)
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance
    assert np.any((da.values != 0) & (back.values == 0))
    table = back.tec.report(da)
    assert table.loc["all", "nodata_differs"] == 0
    assert table.loc["all", "max_error"] <= TOLERANCE


# ---- integers that xarray made floats of, because they have a fill value


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("dtype", "fill"), [("int16", 32767), ("uint16", 65535), ("int16", -999)])
def test_dn_with_a_fill_value_are_stored_as_the_file_did(tmp_path, lazy, dtype, fill):
    """As openEO writes NetCDF."""
    dn = scene((2, 12, 40, 40)).round()
    dn[:, :, :9] = np.nan
    bands = list(synthetic.cube(dates=1, size=8).band.values)
    raw = xr.DataArray(dn, {"band": bands}, ("time", "band", "y", "x"), name="dn")
    raw.to_zarr(tmp_path / "s.zarr", encoding={"dn": {"dtype": dtype, "_FillValue": fill}})
    ds = tec_zarr.drop_encoding(xr.open_zarr(tmp_path / "s.zarr"))
    ds = ds if lazy else ds.load()
    assert ds.dn.dtype == "float32"
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding(ds))
    stored = xr.open_zarr(tmp_path / "a.zarr", mask_and_scale=False).dn
    assert (stored.dtype, stored.attrs["_FillValue"]) == (dtype, fill)
    np.testing.assert_array_equal(stored == fill, np.isnan(dn))
    back = xr.open_zarr(tmp_path / "a.zarr").dn
    assert float(np.abs(back - raw).max()) <= TOLERANCE


def test_dn_of_other_integers_are_taken_for_dn(tmp_path):
    dn = scene((1, 12, 40, 40)).round()
    dn[:, :, :9] = np.nan
    raw = xr.DataArray(dn, dims=("time", "band", "y", "x"), name="dn")
    raw.to_zarr(tmp_path / "s.zarr", encoding={"dn": {"dtype": "int32", "_FillValue": -1}})
    ds = tec_zarr.drop_encoding(xr.open_zarr(tmp_path / "s.zarr"))
    ds.to_zarr(tmp_path / "a.zarr", encoding=encoding(ds))
    back = xr.open_zarr(tmp_path / "a.zarr").dn
    np.testing.assert_array_equal(np.isnan(back), np.isnan(dn))
    assert float(np.abs(back - raw).max()) <= TOLERANCE


def test_reflectance_that_kept_the_encoding_of_dn_is_reflectance(tmp_path):
    dn = scene((1, 12, 40, 40)).round()
    dn[:, :, :9] = np.nan
    raw = xr.DataArray(dn, dims=("time", "band", "y", "x"), name="dn")
    raw.encoding = {"dtype": np.dtype("int16"), "_FillValue": -999}
    da = raw.copy(data=dn * 1e-4)
    assert "_FillValue" in da.encoding
    da.to_zarr(tmp_path / "a.zarr", encoding=encoding(da))
    back = xr.open_zarr(tmp_path / "a.zarr").dn
    assert float(np.abs(back - da).max()) <= TOLERANCE * 1e-4
