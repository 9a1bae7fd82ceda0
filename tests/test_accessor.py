"""``.tec``: registered by the import alone, lazy, and nothing of the object is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
import xarray as xr

import tec_zarr
from tec_zarr.compare.report import preview, report
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.simulate import simulate, weigh
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.write import to_zarr
from tec_zarr.inpaint.clouds import NothingClearWarning
from tec_zarr.stores.info import stored_arrays

TOY = {"model": toy.NAME, "quality": 6.0}


@pytest.fixture
def cube():
    return synthetic.dataset(dates=3, size=48, bands=["B02", "B03", "B04", "B08"])


@pytest.mark.parametrize(
    "imports",
    [
        "import tec_zarr, xarray as xr",
        "import xarray as xr, tec_zarr",
        "import tec_zarr; import zarr, xarray as xr",
    ],
)
def test_the_import_registers_in_either_order_without_torch(imports):
    code = (
        f"import sys; {imports}\n"
        "xr.DataArray([[1, 2]], dims=('y', 'x')).tec; xr.Dataset().tec\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asking_whether_there_is_an_xarray_does_not_lose_it():
    code = (
        "import tec_zarr, importlib.util; assert importlib.util.find_spec('xarray')\n"
        "import xarray as xr; xr.Dataset().tec\n"
        "import sys; assert not [f for f in sys.meta_path if 'tec_zarr' in type(f).__module__]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_import_alone_does_not_import_xarray():
    code = "import sys, tec_zarr; assert not {'xarray', 'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_simulation_packs_as_writing_does(cube, tmp_path, lazy, zarr_format):
    """ESA's packing, a reflectance of exactly 0, and NaN; edge chunks."""
    values = (cube.reflectance * 1e-4).where(cube.reflectance != 0)
    values[0, 0, :20] = 0.0
    packing = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    values.to_zarr(tmp_path / "s.zarr", encoding={"reflectance": packing})
    source = tec_zarr.drop_encoding(xr.open_zarr(tmp_path / "s.zarr"))
    source = source if lazy else source.load()
    options = TOY | {"chunks": {"x": 32, "y": 32}, "zarr_format": zarr_format}
    expected = source.tec.simulate(**options).load()
    source.tec.to_zarr(tmp_path / "a.zarr", **options)
    back = xr.open_zarr(tmp_path / "a.zarr").load()
    np.testing.assert_array_equal(back.reflectance, expected.reflectance)


def test_simulation_knows_the_run_length_of_temporal_models(cube, tmp_path):
    options = {"model": "tec-tt-s2", "quality": 2.0, "chunks": {"time": 3}}
    sizes = []
    for gop in (1, 3):
        cube.tec.to_zarr(tmp_path / f"{gop}.zarr", gop=gop, **options)
        stored = xr.open_zarr(tmp_path / f"{gop}.zarr").reflectance
        simulated = cube.tec.simulate(gop=gop, **options).reflectance
        np.testing.assert_array_equal(stored, simulated)
        sizes.append(cube.tec.weigh(gop=gop, **options))
    assert sizes[0] != sizes[1]
    with pytest.raises(UnsupportedArrayError, match="temporal models"):
        simulate(cube, gop=2, **TOY)


@pytest.mark.parametrize("function", [simulate, weigh])
def test_variables_that_are_not_there_are_named(cube, function):
    with pytest.raises(UnsupportedArrayError, match="nope"):
        function(cube, variables=["nope"], **TOY)


@pytest.mark.parametrize("lazy", [False, True])
def test_simulation_is_what_writing_and_reading_gives(cube, tmp_path, lazy):
    if lazy:
        cube = cube.chunk({"time": 2, "y": 32, "x": 48})
    expected = cube.tec.simulate(**TOY)
    assert expected.reflectance.chunks is not None
    cube.tec.to_zarr(tmp_path / "a.zarr", **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(back.reflectance, expected.reflectance)
    assert (back.reflectance != cube.reflectance).any()
    chunks = [p for p in (tmp_path / "a.zarr/reflectance/c").rglob("*") if p.is_file()]
    stored = sum(p.stat().st_size for p in chunks)
    assert 0.9 * stored <= cube.tec.weigh(**TOY) <= stored


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simulation_of_reflectance(cube, tmp_path, dtype):
    da = cube.reflectance.where(cube.reflectance != 0).astype(dtype) * np.dtype(dtype).type(1e-4)
    out = da.tec.simulate(**TOY).compute()
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.isnan(out), np.isnan(da))
    assert 0 < float(np.abs(out - da).max()) < 3e-4


def test_dimensions_in_any_order_come_back(cube):
    turned = cube.reflectance.transpose("band", "x", "time", "y")
    out = simulate(turned, **TOY)
    assert out.dims == turned.dims
    xr.testing.assert_equal(
        out.compute().transpose(*cube.reflectance.dims), simulate(cube.reflectance, **TOY).compute()
    )


def test_attributes_coordinates_encoding_and_crs_stay(cube):
    out = cube.tec.simulate(**TOY)
    assert out.reflectance.attrs == cube.reflectance.attrs
    assert out.reflectance.encoding == cube.reflectance.encoding
    assert set(out.coords) == set(cube.coords)
    pytest.importorskip("rioxarray")
    assert out.reflectance.rio.crs.to_epsg() == 32632
    xr.testing.assert_identical(out.scl, cube.scl)


@pytest.mark.filterwarnings("ignore::tec_zarr.errors.SeparateBandsWarning")
def test_a_dataset_of_bands(cube, tmp_path):
    bands = cube.reflectance.to_dataset("band").assign(scl=cube.scl)
    to_zarr(bands, tmp_path / "a.zarr", **TOY)
    codecs = {a.path: a.codec for a in stored_arrays(tmp_path / "a.zarr")}
    assert "TEC" in codecs["B04"]
    assert "TEC" not in codecs["scl"]
    table = xr.open_zarr(tmp_path / "a.zarr").tec.report(bands)
    assert {"B02", "B08", "all", "NDVI"} <= set(table.index)


def test_written_twice_is_refused_and_turned_cubes_are_put_in_order(cube, tmp_path):
    cube.transpose("x", "y", "band", "time").tec.to_zarr(tmp_path / "a.zarr", **TOY)
    assert xr.open_zarr(tmp_path / "a.zarr").reflectance.dims == ("time", "band", "y", "x")
    with pytest.raises(FileExistsError):
        cube.tec.to_zarr(tmp_path / "a.zarr", **TOY)


def test_decode_and_encoding_are_those_of_the_package(cube, tmp_path):
    assert cube.tec.encoding(**TOY) == tec_zarr.encoding(cube, **TOY)
    cube.tec.to_zarr(tmp_path / "a.zarr", **TOY)
    opened = xr.open_zarr(tmp_path / "a.zarr")
    assert "serializer" not in opened.tec.decode().reflectance.encoding


def test_report_counts_in_dn_and_leaves_nodata_out(cube):
    shifted = cube.reflectance.where(cube.reflectance == 0, cube.reflectance + 10)
    table = report(shifted, cube.reflectance)
    assert table.loc[["B02", "B04", "all"], "mean_error"].tolist() == [10, 10, 10]
    assert table.loc["all", "max_error"] == 10
    assert 0 < table.loc["all", "sam"] < 5
    assert table.loc["B04", "ssim"] > 0.9
    assert 0 < table.loc["NDVI", "mean_abs_error"] < 0.1
    reflectance = cube.reflectance.where(cube.reflectance != 0) * 1e-4
    same = report(reflectance, cube.reflectance)
    assert same.loc["all", "max_error"] < 0.01  # float32


def test_shapes_that_differ_are_named(cube):
    with pytest.raises(UnsupportedArrayError, match=r"\(3, 4, 48, 48\).*\(2, 4, 48, 48\)"):
        cube.isel(time=slice(2)).tec.report(cube)


def test_bands_split_over_dask_chunks_say_how_to_rechunk(cube):
    with pytest.raises(UnsupportedArrayError, match=r"chunk\(\{'band': -1\}\)"):
        cube.reflectance.chunk({"band": 1}).tec.simulate(**TOY)


def test_preview_is_a_picture_with_black_nodata(cube):
    picture = preview(cube, time=2)
    assert (picture.dtype, picture.dims, picture.shape[-1]) == ("uint8", ("y", "x", "rgb"), 3)
    nodata = (cube.reflectance[2] == 0).all("band")
    assert nodata.any()
    assert (picture.where(nodata, 0) == 0).all()
    assert picture.max() == 255


def test_weight_grows_with_quality(cube):
    assert weigh(cube, model=toy.NAME, quality=2) < weigh(cube, model=toy.NAME, quality=8)


def test_harmonize_takes_the_offset_off(cube):
    carrying = cube.reflectance.where(cube.reflectance == 0, cube.reflectance + 1000)
    out = carrying.astype("uint16").tec.harmonize(offset=1000)
    assert out.reflectance.chunks is None
    np.testing.assert_array_equal(out.reflectance, cube.reflectance)


@pytest.mark.parametrize("bound", [5, {"B04": 2, "all": 20}])
def test_simulation_under_a_bound_keeps_it(cube, bound):
    out = simulate(cube.reflectance, max_error=bound).compute()
    error = np.abs(out.astype(int) - cube.reflectance.astype(int))
    limits = [bound] * 4 if isinstance(bound, int) else [20, 20, 2, 20]
    assert (error.max(("time", "y", "x")) <= limits).all()
    assert int(error.max()) > 0
    assert cube.tec.weigh(max_error=bound) < cube.tec.weigh(max_error=0)


# ------------------------------------------------------- what stackstac, odc-stac and EOPF give


@pytest.fixture(scope="module")
def examples():
    """The catalogue and product that the examples draw."""
    for package in ("odc.stac", "stackstac", "rioxarray", "pystac_client"):
        pytest.importorskip(package, reason="pip install 'tec_zarr[test]'")
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import local_catalog

    return local_catalog


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("loader", ["odc-stac", "stackstac"])
def test_what_stac_loaders_give_is_one_call_from_a_store_with_its_crs(examples, tmp_path, loader):
    from tec_zarr.stac.load import load, search

    catalog = examples.make_catalog(
        tmp_path, examples.ARCHIVE[1:4], bands=("B02", "B03", "B04", "B08"), size=64
    )
    items = search(catalog, bbox=(-180, -90, 180, 90), datetime="2015/2030")
    loaded = load(items, bands=["B02", "B03", "B04", "B08"], loader=loader)
    cube = loaded.tec.harmonize(items=items)
    crs = cube.rio.crs
    assert crs is not None
    filled = cube.chunk(time=-1).tec.inpaint_clouds()
    filled.tec.to_zarr(tmp_path / "a.zarr", **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")
    assert back.rio.crs == crs
    assert back.reflectance.rio.transform() == cube.reflectance.rio.transform()
    assert back.tec.preview().shape[-1] == 3
    assert float(back.tec.report(filled).loc["all", "max_error"]) <= 2
    simulated = cube.tec.simulate(**TOY)
    assert simulated.reflectance.rio.crs == crs


def test_an_eopf_product_is_one_cube(examples, tmp_path):
    product = xr.open_datatree(
        examples.make_eopf_product(tmp_path / "S2.zarr"), engine="zarr", chunks={}
    )
    cube = product.tec.harmonize()
    assert cube.band.values.tolist() == ["B02", "B04", "B11"]
    product.tec.to_zarr(tmp_path / "a.zarr", **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr", decode_coords="all")
    assert back.rio.crs.to_epsg() == 32632
    assert float(back.tec.report(cube).loc["all", "max_error"]) <= 2
    np.testing.assert_array_equal(
        product.tec.simulate(**TOY).reflectance, cube.tec.simulate(**TOY).reflectance
    )


def test_an_eopf_product_is_looked_at_once_until_it_changes(examples, tmp_path):
    path = examples.make_eopf_product(tmp_path / "S2.zarr")
    product = xr.open_datatree(path, engine="zarr", chunks={})
    first = product.tec.encoding(**TOY)
    loaded = product.load()
    shutil.rmtree(path)
    assert product.tec.encoding(**TOY) == first
    before = loaded.tec.simulate(**TOY).reflectance
    band = "/measurements/reflectance/r10m/b02"
    loaded[band] = loaded[band] - 0.002
    assert (loaded.tec.simulate(**TOY).reflectance != before).any()


def test_clouds_of_an_eopf_product_of_one_date_stay_nodata_and_it_is_said(examples, tmp_path):
    product = xr.open_datatree(
        examples.make_eopf_product(tmp_path / "S2.zarr"), engine="zarr", chunks={}
    )
    cube = product.tec.harmonize().compute()
    bright = cube.reflectance.sel(band="B02", drop=True)
    mask = bright > bright.median()
    with pytest.warns(NothingClearWarning):
        out = product.tec.inpaint_clouds(mask).compute()
    assert (out.reflectance.where(mask, 0) == 0).all()
    assert (out.reflectance == cube.reflectance).where(~mask, True).all()
    assert out.rio.crs == cube.rio.crs


# ------------------------------------------------------------------ what report compares, and how


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_what_is_missing_in_the_decoded_cube_makes_nothing_better(cube, dtype):
    nodata = 0 if dtype == "uint16" else np.nan
    measured = cube.reflectance != 0
    original = cube.reflectance.where(measured, nodata).astype(dtype)
    noisy = (original + 3).where(measured, nodata).astype(dtype)
    holed = noisy.copy(deep=True)
    holed[1, 2] = nodata
    whole, table = report(noisy, original), report(holed, original)
    assert table.loc["B04", "psnr"] < whole.loc["B04", "psnr"]
    assert table.loc["B04", "ssim"] < whole.loc["B04", "ssim"]
    assert table.loc["B04", "max_error"] == cube.reflectance[1, 2].max()
    assert table.loc["all", "nodata_differs"] == measured[1, 2].sum()
    assert (whole["nodata_differs"].dropna() == 0).all()


@pytest.mark.parametrize("other", ["uint16", "float32", "float64"])
def test_floats_that_are_dn_are_compared_as_dn(cube, other):
    original = cube.reflectance.where(cube.reflectance != 0).astype("float32")
    decoded = (cube.reflectance + 10).where(cube.reflectance != 0, 0).astype(other)
    assert report(decoded, original).loc["all", ["mean_error", "max_error"]].tolist() == [10, 10]


def test_floats_of_both_sides_have_the_units_of_the_original(cube):
    original = (cube.reflectance * np.float32(1e-4)).astype("float32")
    table = report(original * 10_000, original)
    assert table.loc["all", "max_error"] > 1e6, "DN taken for reflectance is no small error"


@pytest.mark.parametrize("dims", [("x",), ("sample", "time", "band", "y", "x")])
def test_what_is_no_image_is_refused(dims):
    array = xr.DataArray(np.ones((2,) * len(dims), "uint16"), dims=dims)
    with pytest.raises(UnsupportedArrayError, match="needs \\(time, band, y, x\\)"):
        report(array, array)


def test_bands_in_another_order_are_put_in_that_of_the_original(cube):
    turned = cube.reflectance[:, ::-1].assign_coords(band=["nir", "red", "b3", "B2"])
    table = report(turned, cube.reflectance)
    assert table.loc["all", "max_error"] == 0
    nameless = report(turned.drop_vars("band"), cube.reflectance)
    assert nameless.loc["all", "max_error"] > 0, "without names by position"
    with pytest.raises(UnsupportedArrayError, match=r"B03, B04, B08, .*has B02, B03, B04"):
        report(cube.reflectance.assign_coords(band=["B02", "B03", "B04", "B05"]), cube.reflectance)
    with pytest.raises(UnsupportedArrayError, match=r"bands B04, .*has B08"):
        report(cube.reflectance.sel(band="B08").rename("B08"),
               cube.reflectance.sel(band="B04").rename("B04"))  # fmt: skip


@pytest.mark.parametrize(
    ("dim", "shift"), [("time", np.timedelta64(1, "h")), ("y", 10), ("x", -5)]
)
def test_other_dates_or_pixels_are_refused(cube, dim, shift):
    moved = cube.reflectance.assign_coords({dim: cube[dim] + shift})
    with pytest.raises(UnsupportedArrayError, match=f"differ along '{dim}', first at position 0"):
        report(moved, cube.reflectance)
    assert report(moved.drop_vars(dim), cube.reflectance).loc["all", "max_error"] == 0


def test_labels_may_be_rounded_but_not_of_another_kind(cube):
    seconds = cube.time.astype("datetime64[s]")
    rounded = cube.reflectance.assign_coords(time=seconds, x=cube.x + 0.01)
    assert report(rounded, cube.reflectance).loc["all", "max_error"] == 0
    with pytest.raises(UnsupportedArrayError, match="differ along 'time'"):
        report(cube.reflectance.assign_coords(time=[0, 1, 2]), cube.reflectance)


def test_dates_are_appended_and_regions_filled_as_by_xarray(cube, tmp_path):
    """`append_dim`, `region`, `group`, `consolidated`, `storage_options`, `encoding`."""
    where = {"store": str(tmp_path / "a.zarr"), "group": "cubes", "storage_options": {}}
    cube.isel(time=[0]).tec.to_zarr(
        **where, chunks={"time": 1}, encoding={"scl": {"chunks": (1, 48, 48)}}, consolidated=False,
        max_error=5, **TOY,
    )  # fmt: skip
    late = cube.isel(time=[1]).assign_coords(time=np.array(["2024-01-02T10:10:31"], "M8[s]"))
    late.transpose("x", "y", "band", "time").tec.to_zarr(**where, append_dim="time")
    opened = xr.open_zarr(where["store"], group="cubes", consolidated=False)
    np.testing.assert_array_equal(opened.time, np.r_[cube.time[:1], late.time])
    assert opened.scl.encoding["chunks"] == (1, 48, 48)
    assert np.abs(opened.reflectance.astype(int) - cube.reflectance.values[:2]).max() <= 5
    assert "lossy_compression_max_error_measured" in opened.reflectance.attrs
    turned = cube.isel(time=[0, 1]).assign_coords(time=opened.time).isel(time=[1, 0])
    first = turned.isel(time=[1]).assign_coords(time=opened.time[:1])
    changed = first.copy(deep=True)
    changed.scl.values[:] = 7
    changed.tec.to_zarr(**where, region="auto")
    again = xr.open_zarr(where["store"], group="cubes", consolidated=False)
    assert (again.scl[0] == 7).all()
    assert not (again.scl[1] == 7).all()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_the_store_cannot_hold_is_refused_before_it_is_appended(cube, tmp_path, zarr_format):
    store = tmp_path / "a.zarr"
    reflectance = cube.assign(reflectance=cube.reflectance.where(cube.reflectance > 0) * 1e-4)
    options = TOY | {"chunks": {"time": 1}, "zarr_format": zarr_format}
    reflectance.isel(time=[0]).tec.to_zarr(store, **options)
    before = xr.open_zarr(store).load()
    later = reflectance.isel(time=[1]).copy(deep=True)
    later.reflectance.values[0, 0, 0] = -0.02
    nanosecond = later.time.values + np.timedelta64(17, "ns")
    for bad, message, more in (
        (later, "does not hold", {}),
        (later.chunk(), "does not hold", {}),
        (reflectance.isel(time=[1]).assign_coords(time=nanosecond), "no whole number", {}),
        (reflectance.isel(time=[1]), "another quality", {"quality": 3}),
    ):
        with pytest.raises(UnsupportedArrayError, match=message):
            bad.tec.to_zarr(store, append_dim="time", **more)
        xr.testing.assert_identical(xr.open_zarr(store).load(), before)
    reflectance.isel(time=[1]).tec.to_zarr(store, append_dim="time")
    assert xr.open_zarr(store).sizes["time"] == 2
