"""inpaint_clouds: what is clear stays, what is hidden leaves no trace, nothing is made up."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tec_zarr
from tec_zarr import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.inpaint import METHODS, cloud_mask, inpaint_clouds

DAYS = np.array(["2023-06-01", "2023-06-11", "2023-06-16", "2023-07-01"], "datetime64[ns]")


def series(*values, dtype="uint16"):
    """One pixel over time."""
    data = np.array(values, dtype).reshape(-1, 1, 1)
    return xr.DataArray(data, {"time": DAYS[: len(values)]}, ("time", "y", "x"), name="b04")


def hidden(*values):
    return series(*values, dtype=bool)


def filled(values, mask, method):
    return inpaint_clouds(series(*values), hidden(*mask), method=method).values.ravel().tolist()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("linear", [100, 300, 400, 700]),  # 10 of 30 days after 100, 15 of 30 days
        ("previous", [100, 100, 100, 700]),
        ("median", [100, 400, 400, 700]),
    ],
)
def test_estimates_are_what_their_names_say(method, expected):
    assert filled([100, 9999, 9999, 700], [False, True, True, False], method) == expected


def test_linear_uses_the_one_side_there_is_and_previous_only_the_past():
    values, mask = [9999, 500, 600, 9999], [True, False, False, True]
    assert filled(values, mask, "linear") == [500, 500, 600, 600]
    assert filled(values, mask, "previous") == [0, 500, 600, 600]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_clear_in_reach_stays_nodata(method):
    assert filled([9, 8, 0, 7], [True, True, False, True], method) == [0, 0, 0, 0]
    floats = inpaint_clouds(series(0.1, 0.2, dtype="f4"), hidden(True, True), method=method)
    assert floats.dtype == "float32"
    assert np.isnan(floats).all()


def test_nodata_is_no_clear_value():
    assert filled([100, 9999, 0, 300], [False, True, False, False], "linear") == [100, 167, 0, 300]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from(["uint16", "int16", "float32", "float64"]),
    shape=st.tuples(*(st.integers(1, n) for n in (6, 3, 5, 5))),
)
def test_outside_bit_for_bit_and_inside_no_trace_of_what_was_hidden(seed, method, dtype, shape):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape).astype(dtype)
    if values.dtype.kind == "f":
        values[rng.random(shape) < 0.2] = np.nan
        values[rng.random(shape) < 0.1] = -0.0
    cover = rng.random((shape[0], *shape[2:])) < 0.5
    dims = ("time", "band", "y", "x")
    mask = xr.DataArray(cover, dims=("time", "y", "x"))
    out = inpaint_clouds(xr.DataArray(values, dims=dims), mask, method=method).values
    clear = np.broadcast_to(~cover[:, None], shape)
    assert out[clear].tobytes() == values[clear].tobytes()
    other = np.where(clear, values, rng.integers(5, 10_000, shape).astype(dtype))
    again = inpaint_clouds(xr.DataArray(other, dims=dims), mask, method=method).values
    assert again.tobytes() == out.tobytes()


@pytest.fixture
def scene():
    return synthetic.dataset(dates=4, size=64, bands=["B04", "B08"])


def test_clouds_of_a_scene_are_filled_from_its_classes(scene):
    out = scene.tec.inpaint_clouds(dilate=2)
    covered = cloud_mask(scene.scl, 2)
    assert 0.02 < float(covered.mean()) < 0.9
    before, after = scene.reflectance, out.reflectance
    assert (before == after).where(~covered, True).all()
    cloudy = (scene.scl == 9) & (before.sel(band="B04") > 3000)
    assert cloudy.any()
    assert float(after.sel(band="B04").where(cloudy).median()) < 2500
    xr.testing.assert_identical(out.scl, scene.scl)
    pytest.importorskip("rioxarray")
    assert out.reflectance.rio.crs == scene.reflectance.rio.crs
    assert out.reflectance.encoding == scene.reflectance.encoding
    assert out.reflectance.attrs == scene.reflectance.attrs


def test_dask_gives_the_same_and_stays_lazy(scene):
    lazy = scene.chunk({"time": -1, "y": 24, "x": 40})
    out = lazy.tec.inpaint_clouds()
    assert out.reflectance.chunks is not None
    xr.testing.assert_identical(out.compute(), scene.tec.inpaint_clouds())


def test_dates_in_several_dask_chunks_say_how_to_rechunk(scene):
    with pytest.raises(UnsupportedArrayError, match=r"reflectance\.chunk\(\{'time': -1\}\)"):
        scene.chunk({"time": 1}).tec.inpaint_clouds()


def test_any_order_of_dimensions_comes_back(scene):
    turned = scene.reflectance.transpose("x", "band", "time", "y")
    out = inpaint_clouds(turned, scl=scene.scl)
    assert out.dims == turned.dims
    xr.testing.assert_identical(
        out.transpose(*scene.reflectance.dims), inpaint_clouds(scene.reflectance, scl=scene.scl)
    )


def test_the_mask_grows_in_a_square_and_nodata_does_not():
    classes = np.full((1, 9, 9), 4, np.uint8)
    classes[0, 4, 4], classes[0, 0, 0] = 9, 0
    mask = cloud_mask(xr.DataArray(classes, dims=("time", "y", "x")), 2).values[0]
    assert mask[2:7, 2:7].all()
    assert mask.sum() == 26
    assert mask[0, 0]


@pytest.mark.parametrize("value", [0, 1, 3, 8, 9, 10])
def test_classes_in_which_the_ground_is_not_seen(value):
    scl = xr.DataArray(np.array([[4, value]], np.uint8), dims=("y", "x"))
    assert cloud_mask(scl, 0).values.tolist() == [[False, True]]


def test_a_callable_makes_the_mask(scene):
    da = scene.reflectance
    out = inpaint_clouds(da, lambda cube: cube.sel(band="B04", drop=True) > 4000)
    xr.testing.assert_identical(out, inpaint_clouds(da, da.sel(band="B04", drop=True) > 4000))


def test_the_temporal_model_is_not_pretended(scene):
    with pytest.raises(TecError, match=r"tec-tt.*does not have.*linear"):
        tec_zarr.inpaint_clouds(scene.reflectance, scl=scene.scl, method="tec-tt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either mask=, or scl="),
        ({"method": "nearest"}, "must be one of"),
        ({"mask": xr.DataArray(np.zeros((4, 3, 3), bool), dims=("time", "y", "x"))}, "reindex"),
        ({"mask": xr.DataArray(np.zeros((4, 64, 64)), dims=("time", "y", "x"))}, "must be bool"),
    ],
)
def test_what_cannot_be_says_why(scene, arguments, message):
    with pytest.raises(TecError, match=message):
        inpaint_clouds(scene.reflectance, **arguments)
