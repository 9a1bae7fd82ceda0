"""tec_zarr.encoding and tec_zarr.decode with real to_zarr and open_zarr calls."""

from __future__ import annotations

import warnings

import dask.array
import numpy as np
import pytest
import toy
import xarray as xr
from test_chunk import scene

import tec_zarr
from tec_zarr import synthetic
from tec_zarr.errors import SecondGenerationWarning, UnsupportedArrayError
from tec_zarr.report import stored_arrays

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
    opened = tec_zarr.decode(xr.open_zarr(tmp_path / "source.zarr"))
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
    with pytest.warns(SecondGenerationWarning, match="tec_zarr.decode"):
        encoding(opened)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SecondGenerationWarning)
        tec_zarr.decode(opened).to_zarr(tmp_path / "plain.zarr")
    assert not any("TEC" in a.codec for a in stored_arrays(tmp_path / "plain.zarr"))
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "plain.zarr").load(), opened.load())


def test_an_append_inside_a_chunk_warns(cube, tmp_path):
    first = cube.isel(time=slice(0, 2))
    first.to_zarr(tmp_path / "a.zarr", encoding=encoding(cube, chunks={"time": 3}, shards=False))
    with pytest.warns(SecondGenerationWarning):
        cube.isel(time=slice(2, 3)).to_zarr(tmp_path / "a.zarr", append_dim="time")


def test_decode_keeps_the_crs_link(cube, tmp_path):
    cube.reflectance.encoding["grid_mapping"] = "spatial_ref"
    assert tec_zarr.decode(cube).reflectance.encoding["grid_mapping"] == "spatial_ref"
