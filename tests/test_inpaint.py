"""inpaint_clouds: what is clear stays, what is hidden leaves no trace, nothing is made up."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.inpaint.clouds import NothingClearWarning, inpaint_clouds
from tec_zarr.inpaint.masks import cloud_mask

quiet = pytest.mark.filterwarnings("ignore::tec_zarr.inpaint.clouds.NothingClearWarning")
PIXEL = ("linear", "previous", "median")
"""Methods that look at one pixel alone."""

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


@quiet
def test_linear_uses_the_one_side_there_is_and_previous_only_the_past():
    values, mask = [9999, 500, 600, 9999], [True, False, False, True]
    assert filled(values, mask, "linear") == [500, 500, 600, 600]
    assert filled(values, mask, "previous") == [0, 500, 600, 600]


@quiet
@pytest.mark.parametrize("method", ["regression", *PIXEL])
def test_nothing_clear_in_reach_stays_nodata(method):
    assert filled([9, 8, 0, 7], [True, True, False, True], method) == [0, 0, 0, 0]
    floats = inpaint_clouds(series(0.1, 0.2, dtype="f4"), hidden(True, True), method=method)
    assert floats.dtype == "float32"
    assert np.isnan(floats).all()


@pytest.mark.parametrize("method", ["regression", *PIXEL])
def test_a_date_that_nothing_can_fill_is_named(method):
    cover = hidden(True, True, True, True)
    with pytest.warns(NothingClearWarning, match="2023-06-11"):
        inpaint_clouds(series(9, 8, 7, 6), cover, method=method)


def test_nodata_is_no_clear_value():
    assert filled([100, 9999, 0, 300], [False, True, False, False], "linear") == [100, 167, 0, 300]


@quiet
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(("regression", "tec-tt", *PIXEL)),
    dtype=st.sampled_from(["uint16", "int16", "float32", "float64"]),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 3), *(st.sampled_from([1, 5, 24]),) * 2),
    uncertain=st.booleans(),
)
def test_outside_bit_for_bit_and_inside_no_trace_of_what_was_hidden(
    seed, method, dtype, shape, uncertain
):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape).astype(dtype)
    if values.dtype.kind == "f":
        values[rng.random(shape) < 0.2] = np.nan
        values[rng.random(shape) < 0.1] = -0.0
    cover = rng.random((shape[0], *shape[2:])) < rng.random()
    dims = ("time", "band", "y", "x")
    mask = xr.DataArray(cover, dims=("time", "y", "x"))

    def fill(data):
        cube = xr.DataArray(data, dims=dims)
        model = Published() if method == "tec-tt" else None
        found = inpaint_clouds(cube, mask, method=method, model=model, return_uncertainty=uncertain)
        return [da.values for da in (found if uncertain else (found,))]

    out, *half_width = fill(values)
    clear = np.broadcast_to(~cover[:, None], shape)
    assert out[clear].tobytes() == values[clear].tobytes()
    assert all((width[clear] == 0).all() for width in half_width)
    other = np.where(clear, values, rng.integers(5, 10_000, shape).astype(dtype))
    again, *other_width = fill(other)
    assert again.tobytes() == out.tobytes()
    assert [w.tobytes() for w in other_width] == [w.tobytes() for w in half_width]


@quiet
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from(("regression", "tec-tt", *PIXEL)),
    dtype=st.sampled_from(["uint16", "float32"]),
    shape=st.tuples(st.integers(2, 6), st.integers(1, 2), *(st.sampled_from([1, 12]),) * 2),
)
def test_a_smooth_or_regular_series_has_no_trace_of_what_was_hidden(seed, method, dtype, shape):
    """They change clear pixels, but what is hidden is not read either."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, shape).astype(dtype)
    cover = rng.random((shape[0], *shape[2:])) < rng.random()
    mask = xr.DataArray(cover, dims=("time", "y", "x"))
    days = np.datetime64("2023-01-01", "ns") + np.cumsum(rng.integers(1, 30, shape[0])) * (
        np.timedelta64(1, "D")
    )

    def made(data):
        cube = xr.DataArray(data, {"time": days}, ("time", "band", "y", "x"))
        how = {"method": method, "model": Published() if method == "tec-tt" else None,
               "return_uncertainty": True}  # fmt: skip
        smooth = inpaint_clouds(cube, mask, smooth=True, **how)
        steps = cube.tec.regularize(mask, freq="7D", **how)
        return [da.values.tobytes() for da in (*smooth, *steps)]

    other = np.where(cover[:, None], rng.integers(5, 10_000, shape).astype(dtype), values)
    assert made(values) == made(other)


@pytest.fixture
def scene():
    return synthetic.dataset(dates=4, size=64, bands=["B04", "B08"])


@quiet
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


@pytest.mark.parametrize("lazy", [False, True])
def test_classes_that_were_opened_as_floats_hide_their_nodata(scene, lazy):
    floats = scene.scl.astype("float32").where(scene.scl != 0)
    assert np.isnan(floats).any()
    floats = floats.chunk({"y": 32}) if lazy else floats
    xr.testing.assert_identical(cloud_mask(floats, 2).compute(), cloud_mask(scene.scl, 2))


@quiet
@pytest.mark.parametrize("lazy", [False, True])
def test_a_numpy_mask_is_taken_by_its_shape(scene, lazy):
    cube = scene.reflectance.chunk({"y": 32}) if lazy else scene.reflectance
    mask = cloud_mask(scene.scl, 2)
    by_band = mask.expand_dims(band=cube.band).transpose(*cube.dims) & (cube.band == "B08")
    for named in (mask, by_band):
        expected = inpaint_clouds(cube, named, method="linear").compute()
        for nameless in (named.values, lambda _, named=named: named.values):
            found = inpaint_clouds(cube, nameless, method="linear")
            xr.testing.assert_identical(found.compute(), expected)
    bands = scene.reflectance.to_dataset("band").tec.inpaint_clouds(mask.values, method="linear")
    whole = inpaint_clouds(scene.reflectance, mask, method="linear")
    np.testing.assert_array_equal(bands["B08"], whole.sel(band="B08"))


def test_a_dataset_without_reflectance_is_refused(scene):
    with pytest.raises(UnsupportedArrayError, match=r"none of \['data', 'scl'\] looks like"):
        scene.isel(band=0, drop=True).rename(reflectance="data").tec.inpaint_clouds()


@quiet
def test_equal_dates_are_named_with_a_way_out_that_works(scene):
    twice = scene.isel(time=[0, 1, 1, 2])
    with pytest.raises(UnsupportedArrayError, match=r"2 dates are 20.*drop_duplicates\('time'\)"):
        twice.tec.inpaint_clouds()
    twice.drop_duplicates("time").tec.inpaint_clouds()
    with pytest.raises(UnsupportedArrayError, match="sortby"):
        scene.isel(time=[1, 0, 2]).tec.inpaint_clouds()


def test_masks_do_not_shrink(scene):
    with pytest.raises(UnsupportedArrayError, match="dilate is -3"):
        inpaint_clouds(scene, dilate=-3)


@quiet
@pytest.mark.parametrize("method", ["regression", "linear"])
def test_dask_gives_the_same_and_stays_lazy(scene, method):
    """Chunks that see the whole image in their halo do exactly what one block does."""
    lazy = scene.chunk({"time": -1, "y": 32, "x": 32})
    out = lazy.tec.inpaint_clouds(method=method)
    assert out.reflectance.chunks is not None
    xr.testing.assert_identical(out.compute(), scene.tec.inpaint_clouds(method=method))


@quiet
def test_dask_gives_intervals_too(scene):
    lazy = scene.chunk({"time": -1, "y": 32, "x": 32}).reflectance
    out, half_width = inpaint_clouds(lazy, scl=scene.scl, return_uncertainty=True)
    assert half_width.chunks == out.chunks
    expected = inpaint_clouds(scene.reflectance, scl=scene.scl, return_uncertainty=True)
    np.testing.assert_array_equal(out, expected[0])
    np.testing.assert_array_equal(half_width, expected[1])


@pytest.mark.parametrize("dim", ["time", "band"])
def test_split_dates_or_bands_say_how_to_rechunk(scene, dim):
    with pytest.raises(UnsupportedArrayError, match=rf"reflectance\.chunk\(\{{'{dim}': -1\}}\)"):
        scene.chunk({dim: 1}).tec.inpaint_clouds()


@quiet
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


@quiet
@pytest.mark.parametrize("apart", [False, True], ids=["one variable", "a variable for each band"])
def test_a_callable_makes_the_mask_of_the_dataset_that_was_passed(scene, apart):
    ds = scene
    if apart:
        bands = scene.reflectance.to_dataset("band")
        ds = bands.assign(scl=scene.scl)
    seen = []

    def clouds(given):
        seen.append(given)
        return given.scl.isin([8, 9])

    out = inpaint_clouds(ds, clouds, method="linear")
    xr.testing.assert_identical(seen[0], ds)
    assert len(seen) == 1
    xr.testing.assert_identical(out, inpaint_clouds(ds, scene.scl.isin([8, 9]), method="linear"))
    xr.testing.assert_identical(out, ds.tec.inpaint_clouds(clouds, method="linear"))
    changed = out["B04"] != ds["B04"] if apart else (out != ds).reflectance.any("band")
    assert changed.any()
    assert not changed.where(~scene.scl.isin([8, 9]), False).any()


def test_a_callable_makes_the_mask(scene):
    da = scene.reflectance
    out = inpaint_clouds(da, lambda cube: cube.sel(band="B04", drop=True) > 4000)
    xr.testing.assert_identical(out, inpaint_clouds(da, da.sel(band="B04", drop=True) > 4000))


# ------------------------------------------------------------- regression and published models


def hole(size=96, share=0.4, seed=1):
    """A clear series of four dates and a mask with a round cloud on the second."""
    cube = synthetic.cube(4, size, seed=seed, clouds=False, nodata_edge=False)
    y, x = np.mgrid[:size, :size] - size / 2
    cover = np.zeros((4, size, size), bool)
    cover[1] = np.hypot(y, x) < size * np.sqrt(share / np.pi)
    return cube, xr.DataArray(cover, cube.isel(band=0).coords, ("time", "y", "x")).drop_vars("band")


def error(filled, cube, mask):
    difference = filled.astype(float) - cube.astype(float)
    return float(np.sqrt((difference.where(mask) ** 2).mean()))


def test_regression_is_far_closer_than_what_looks_at_one_pixel():
    cube, mask = hole()
    errors = {m: error(inpaint_clouds(cube, mask, method=m), cube, mask) for m in PIXEL}
    assert error(inpaint_clouds(cube, mask), cube, mask) < 0.7 * min(errors.values())


def test_a_date_that_is_hidden_altogether_is_as_near_as_the_best_pixel_method():
    cube, mask = hole()
    mask[1] = True
    errors = {m: error(inpaint_clouds(cube, mask, method=m), cube, mask) for m in PIXEL}
    assert error(inpaint_clouds(cube, mask), cube, mask) < 1.1 * min(errors.values())


@pytest.mark.parametrize(("steps", "rule"), [("drift", "linear"), ("weather", "mean")])
def test_a_hidden_date_is_weighted_as_the_other_dates_say(steps, rule):
    """Dates that drift on from one another are interpolated, independent ones are averaged."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 300, (7, 1, 32, 32)).astype("f4")
    values = 5_000 + (noise.cumsum(0) if steps == "drift" else noise)
    cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
    mask = xr.DataArray(np.arange(7) == 3, dims="time").broadcast_like(cube.isel(band=0))
    off = {m: error(inpaint_clouds(cube, mask, method=m), cube, mask) for m in PIXEL}
    off["mean"] = error(cube.where(~mask.isel(y=0, x=0)).mean("time"), cube, mask)
    best = error(inpaint_clouds(cube, mask), cube, mask)
    assert best < 1.05 * off[rule]
    assert best < 0.95 * off[{"linear": "mean", "mean": "linear"}[rule]]
    assert best < 0.9 * off["previous"]


def test_reflectance_and_dn_are_filled_alike():
    cube, mask = hole(64)
    reflectance = (cube * np.float32(1e-4)).astype("float32")
    dn = inpaint_clouds(cube, mask).astype(float)
    np.testing.assert_allclose(inpaint_clouds(reflectance, mask) * 1e4, dn, atol=2)


@pytest.mark.parametrize("method", ["regression", *PIXEL])
def test_intervals_hold_nine_truths_of_ten(method):
    held = []
    for seed in (1, 2, 3):
        cube, mask = hole(96, 0.3, seed)
        out, half_width = inpaint_clouds(cube, mask, method=method, return_uncertainty=True)
        miss = np.abs(out.astype(float) - cube.astype(float))
        held.append(float((miss <= half_width).where(mask).mean()))
        assert (half_width.where(~mask, 0) == 0).all()
        assert half_width.dtype == "float32"
    assert 0.8 < np.mean(held) < 0.98


def test_intervals_of_hidden_dates_hold_nine_truths_of_ten():
    """They can only be calibrated on other dates, so that single dates may be off."""
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 200, (24, 7, 2, 24, 24)) + rng.normal(0, 200, (24, 7, 2, 1, 1))
    held = []
    for values in (5_000 + noise).astype("f4"):
        cube = xr.DataArray(values, dims=("time", "band", "y", "x"))
        mask = xr.DataArray(np.arange(7) == 3, dims="time").broadcast_like(cube.isel(band=0))
        out, half_width = inpaint_clouds(cube, mask, return_uncertainty=True)
        held.append(float((np.abs(out - cube) <= half_width).where(mask).mean()))
    assert 0.85 < np.mean(held) < 0.95


def test_no_seam_where_the_mask_ends():
    """Just inside the mask, residuals are those of just outside."""
    cube, mask = hole(96)
    out = inpaint_clouds(cube, mask)
    seen = mask[1].values
    edge = seen[:, 1:] != seen[:, :-1]
    steps = [np.abs(np.diff(c[1].astype(float), axis=-1))[:, edge].mean() for c in (out, cube)]
    assert steps[0] < 1.5 * steps[1]


def test_tiles_meet_without_a_seam(monkeypatch):
    cube, mask = hole(96)
    whole = inpaint_clouds(cube, mask)
    monkeypatch.setattr("tec_zarr.inpaint.tiles.TILE", 48)
    monkeypatch.setattr("tec_zarr.inpaint.tiles.HALO", 16)
    tiles = inpaint_clouds(cube, mask)
    assert error(tiles, cube, mask) < 1.5 * error(whole, cube, mask)
    step = np.abs(np.diff(tiles[1].astype(float) - cube[1].astype(float), axis=-1))
    across = step[:, 30:66, 47].mean()
    assert across < 2 * step[:, 30:66, 30:66].mean()


def test_dask_chunks_meet_without_a_seam():
    """Each is fitted for itself; errors must not jump where they meet."""
    cube, mask = hole(128, 0.6)
    whole = inpaint_clouds(cube, mask)
    lazy = inpaint_clouds(cube.chunk(time=-1, band=-1, y=32, x=32), mask).compute()
    assert error(lazy, cube, mask) < 1.1 * error(whole, cube, mask)
    hidden = mask[1].values
    down, across = hidden[1:] & hidden[:-1], hidden[:, 1:] & hidden[:, :-1]

    def steps(out):
        miss = out[1].values.astype(float) - cube[1].values.astype(float)
        return [
            np.abs(np.diff(miss, axis=-2))[:, 31::32][:, down[31::32]].mean(),
            np.abs(np.diff(miss, axis=-1))[..., 31::32][..., across[:, 31::32]].mean(),
        ]

    assert all(a < 1.2 * b for a, b in zip(steps(lazy), steps(whole), strict=True))


def test_bands_as_variables_help_each_other_as_bands_of_an_array_do():
    cube, mask = hole(64)
    bands = cube.to_dataset("band")
    out, half_width = bands.tec.inpaint_clouds(mask, return_uncertainty=True)
    xr.testing.assert_equal(
        out.to_array("band").transpose(*cube.dims), inpaint_clouds(cube, mask).drop_attrs()
    )
    assert set(half_width.data_vars) == set(bands.data_vars)


def test_a_band_that_is_nowhere_measured_stays_nodata_and_harms_no_other():
    cube, mask = hole(64)
    cube[:, 3] = 0
    out = inpaint_clouds(cube, mask)
    assert (out[:, 3] == 0).all()
    others = cube.isel(band=[b for b in range(12) if b != 3])
    np.testing.assert_array_equal(
        np.delete(out.values, 3, axis=1), inpaint_clouds(others, mask).values
    )


def test_a_bar_counts_the_tiles(capsys):
    cube, mask = hole(48)
    inpaint_clouds(cube, mask, progress=True)
    assert "1/1" in capsys.readouterr().err


def test_a_regular_series_has_no_gaps_and_follows_the_ground():
    """A yearly course, seen on days of many steps through clouds, is found on every fifth day."""
    rng = np.random.default_rng(0)
    days = np.sort(rng.choice(np.arange(3, 240), 40, replace=False))
    course = lambda d: 3000 + 1500 * np.sin(2 * np.pi * np.asarray(d) / 365)  # noqa: E731
    place = rng.uniform(0.6, 1.4, (2, 16, 16))
    values = (course(days)[:, None, None, None] * place).astype("uint16")
    cover = rng.random((40, 16, 16)) < 0.4
    cover[5:9] = True
    values[np.broadcast_to(cover[:, None], values.shape)] = 9_000
    start = np.datetime64("2023-01-01", "ns")
    stamps = start + days * np.timedelta64(1, "D") + np.timedelta64(37_000, "s")
    cube = xr.DataArray(values, {"time": stamps, "y": np.arange(16)}, ("time", "band", "y", "x"),
                        attrs={"units": "DN"})  # fmt: skip
    cube = cube.assign_coords(orbit=("time", np.arange(40)))
    mask = xr.DataArray(cover, dims=("time", "y", "x"))
    out, half_width = cube.tec.regularize(
        mask, freq="5D", start="2023-01-10", end="2023-08-20", return_uncertainty=True
    )
    assert np.unique(np.diff(out.time.values)).tolist() == [5 * 86_400 * 10**9]
    assert out.time.values[0] == np.datetime64("2023-01-10")
    assert (out.dims, out.dtype, out.attrs) == (cube.dims, cube.dtype, cube.attrs)
    assert set(out.coords) == {"time", "y"}
    since = (out.time.values - start) / np.timedelta64(1, "D")
    truth = course(since)[:, None, None, None] * place
    assert np.abs(out - truth).mean() < 60
    assert float((np.abs(out - truth) <= half_width).mean()) > 0.8
    # Places that begin on other days get the same dates.
    later = cube.isel(time=slice(3, None)).tec.regularize(
        mask.isel(time=slice(3, None)), start="2023-01-10", end="2023-08-20"
    )
    np.testing.assert_array_equal(later.time, out.time)


def test_a_regular_series_is_lazy_and_the_same_of_a_dataset(scene):
    days = np.datetime64("2023-05-01", "ns") + np.array([0, 9, 17, 40]) * np.timedelta64(1, "D")
    ds = scene.assign_coords(time=days)
    out = ds.tec.regularize(dilate=2, freq="10D")
    assert "scl" not in out
    assert out.sizes["time"] == 5
    assert not (out.reflectance == 0).all(("time", "band")).any()
    lazy = ds.chunk(time=-1, band=-1, y=64, x=64).tec.regularize(dilate=2, freq="10D")
    assert lazy.reflectance.chunks is not None
    xr.testing.assert_equal(lazy.compute().reflectance, out.reflectance)
    apart = ds.reflectance.to_dataset("band").assign(scl=ds.scl)
    bands = apart.tec.regularize(dilate=2, freq="10D", method="linear", return_uncertainty=True)
    assert [sorted(map(str, part.data_vars)) for part in bands] == [["B04", "B08"]] * 2
    assert all(part.sizes["time"] == 5 for part in bands)


@quiet
@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(-60, 60),
    step=st.integers(1, 20),
    chunk=st.sampled_from([5, 8, 12]),
    method=st.sampled_from(("regression", *PIXEL)),
)
def test_a_regular_series_starts_on_any_day_and_is_computed_when_it_is_asked_for(
    first, step, chunk, method
):
    """A start before the first date, between dates or late: the days asked for, each filled."""
    dask = pytest.importorskip("dask")
    rng = np.random.default_rng(0)
    days = np.datetime64("2023-01-01", "ns") + np.cumsum(rng.integers(1, 30, 8)) * (
        np.timedelta64(1, "D")
    )
    values = rng.integers(500, 600, (8, 2, 12, 12)).astype("uint16")
    cube = xr.DataArray(values, {"time": days}, ("time", "band", "y", "x"))
    mask = xr.DataArray(rng.random((8, 12, 12)) < 0.4, dims=("time", "y", "x"))
    start = np.datetime64("2023-02-01") + np.timedelta64(first, "D")
    end = start + np.timedelta64(90, "D")
    asked = {"freq": f"{step}D", "start": start, "end": end, "method": method}

    def refuse(*graph, **options):
        raise AssertionError("computed before it was asked for")

    with dask.config.set(scheduler=refuse):
        lazy = cube.chunk(y=chunk, x=chunk).tec.regularize(mask, **asked)
    expected = start + np.arange(0, 91, step) * np.timedelta64(1, "D")
    np.testing.assert_array_equal(lazy.time.values.astype("datetime64[D]"), expected)
    out = lazy.compute().values
    assert out.shape == (len(expected), 2, 12, 12)
    assert ((out >= 480) & (out <= 620)).mean() > 0.95
    if method != "regression":  # it is fitted for each chunk
        memory = cube.tec.regularize(mask, **asked).values
        assert np.abs(out.astype(int) - memory.astype(int)).max() <= 1 or chunk < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"freq": "every week"}, "freq='every week'"),
        ({"start": "2030-01-01"}, "give no date between"),
        ({"method": "nearest"}, "must be one of"),
    ],
)
def test_a_regular_series_that_cannot_be_says_why(arguments, message):
    with pytest.raises(TecError, match=message):
        series(1, 2, 3).tec.regularize(hidden(False, True, False), **arguments)


def test_a_regular_series_needs_times():
    undated = series(1, 2, 3).drop_vars("time")
    with pytest.raises(UnsupportedArrayError, match="needs datetime64 times"):
        undated.tec.regularize(np.zeros((3, 1, 1), bool))


def test_smoothing_changes_clear_pixels_and_lessens_their_noise():
    rng = np.random.default_rng(1)
    course = 2000 + 10 * np.arange(30)[:, None, None, None] * np.ones((1, 2, 12, 12))
    noisy = (course + rng.normal(0, 150, course.shape)).astype("float32")
    stamps = np.datetime64("2023-03-01", "ns") + np.arange(30) * np.timedelta64(5, "D")
    cube = xr.DataArray(noisy, {"time": stamps}, ("time", "band", "y", "x"))
    mask = np.broadcast_to((np.arange(30) % 7 == 3)[:, None, None], (30, 12, 12))
    plain, smooth = (inpaint_clouds(cube, mask, smooth=s, method="linear") for s in (False, True))
    assert (smooth.time == cube.time).all()
    assert float(((smooth - course) ** 2).mean()) < 0.5 * float(((plain - course) ** 2).mean())


class Published:
    """Stands in for a FamilyModel: hidden pixels become what was seen before, plus one."""

    def inpaint(self, cube, cloudy, bands):
        assert bands in (("B02", "B03"), None)
        out = cube.copy()
        for date in range(1, len(cube)):
            out[date] = np.where(cloudy[date], out[date - 1] + 1, cube[date])
        return out


def test_a_published_model_is_asked_from_both_ends_of_time():
    data = np.repeat([100, 9999, 9999, 700], 2).reshape(4, 2, 1, 1).astype("uint16")
    cube = xr.DataArray(data, {"time": DAYS, "band": ["B02", "B03"]}, ("time", "band", "y", "x"))
    mask = xr.DataArray(data[:, 0] == 9999, {"time": DAYS}, ("time", "y", "x"))
    out = inpaint_clouds(cube, mask, method="tec-tt", model=Published())
    # 10 of 30 days after 100 + 1 and before 700 + 2; 15 of 30 days between 100 + 2 and 700 + 1.
    assert out.values[:, 0].ravel().tolist() == [100, 301, 402, 700]
    for end, value in ((0, 702), (3, 101)):  # nothing clear on one side
        ends = xr.zeros_like(mask)
        ends[[0, 1, 2] if end == 0 else [1, 2, 3]] = True
        values = inpaint_clouds(cube, ends, method="tec-tt", model=Published()).values[end, 0]
        assert abs(values.item() - value) <= 2
    with pytest.raises(TecError, match="goes with method='tec-tt'"):
        inpaint_clouds(cube, mask, model=Published())


def test_a_published_model_may_be_named(monkeypatch):
    from tec_zarr.terracodec import hub

    asked = []
    monkeypatch.setattr(hub, "load_codec", lambda *name: asked.append(name) or Published())
    cube, mask = hole(24)
    cube = cube.isel(band=[1, 2])
    inpaint_clouds(cube, mask, method="tec-tt", model="terracodec_v1_tt_s2l2a/lambda-20")
    assert set(asked) == {("terracodec_v1_tt_s2l2a", "20")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either mask=, or scl="),
        ({"method": "nearest"}, "must be one of"),
        ({"method": "tec-tt"}, "pass model=.*regression, linear, previous, median"),
        ({"mask": xr.DataArray(np.zeros((4, 3, 3), bool), dims=("time", "y", "x"))}, "reindex"),
        ({"mask": xr.DataArray(np.zeros((4, 64, 64)), dims=("time", "y", "x"))}, "must be bool"),
        ({"mask": np.zeros((4, 3, 3), bool)}, r"shape \(4, 3, 3\).*'time', 'y', 'x'"),
        ({"mask": np.zeros((4, 64, 64))}, "must be bool"),
        ({"mask": [[True]]}, "is a list"),
        ({"mask": lambda cube: cube.to_dataset(name="mask")}, "is a Dataset"),
        ({"mask": lambda cube: None}, "returned None"),
    ],
)
def test_what_cannot_be_says_why(scene, arguments, message):
    with pytest.raises(TecError, match=message):
        inpaint_clouds(scene.reflectance, **arguments)


def test_a_mask_whose_coordinates_are_rounded_fits():
    ds = synthetic.dataset(dates=3, size=16)
    mask = xr.zeros_like(ds.reflectance[:, 0], bool)
    mask[1, 4:8] = True
    near = mask.assign_coords(x=mask.x + 1e-9)
    xr.testing.assert_identical(inpaint_clouds(ds, near), inpaint_clouds(ds, mask))
    with pytest.raises(UnsupportedArrayError, match="other coordinates along 'x', first at pos"):
        inpaint_clouds(ds, mask.assign_coords(x=mask.x + 10))


def test_a_date_that_is_none_is_not_to_be_sorted():
    dates = DAYS[:3].copy()
    dates[1] = "NaT"
    cube = series(1, 2, 3).assign_coords(time=dates)
    with pytest.raises(UnsupportedArrayError, match="date 1 is NaT") as raised:
        inpaint_clouds(cube, np.zeros(cube.shape, bool))
    assert "notnull" in str(raised.value)
    there = cube.isel(time=cube["time"].notnull())  # what it says
    assert inpaint_clouds(there, np.zeros(there.shape, bool)).sizes["time"] == 2


@quiet
@pytest.mark.parametrize("method", PIXEL)
def test_a_declared_nodata_value_is_never_an_observation(method):
    for dtype in ("int16", "float32"):
        cube = series(100, -999, 5000, 700, dtype=dtype).assign_attrs(nodata=-999)
        out = inpaint_clouds(cube, hidden(False, False, True, False), method=method)
        assert out[1] == -999
        assert 100 <= out[2] <= 700
    empty = series(9, -999, dtype="int16").assign_attrs(nodata=-999)
    assert inpaint_clouds(empty, hidden(True, True), method=method).values.ravel().tolist() == [
        -999, -999,
    ]  # fmt: skip
