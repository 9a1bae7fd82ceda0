"""Arrays behind scale_offset and cast_value, as EOPF writes them: read as DN, written, appended."""

from __future__ import annotations

import numpy as np
import pytest
import toy
import xarray as xr
import zarr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.info import stored_arrays
from tec_zarr.stores.packing_codecs import packing_codecs, packing_of

pytest.importorskip(
    "zarr.codecs.scale_offset", reason="zarr 3.2, which needs Python 3.12, has the codecs"
)
pytest.importorskip("cast_value_rs", reason="pip install 'tec_zarr[eopf]'")

PACKING = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
#: Coarsest step that the toy has at quality 8, in reflectance, and what float32 adds.
STEP = 0.5e-4 + 1e-7


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=2, size=48, seed=5)


@pytest.fixture(scope="module")
def reflectance(cube):
    """float32 reflectance with NaN, as DN of baseline 04.00 give it."""
    values = np.where(cube.values == 0, np.nan, cube.values / 1e4).astype("f4")
    return xr.DataArray(values, cube.coords, cube.dims, name="reflectance")


@pytest.fixture
def source(reflectance, tmp_path):
    """A store whose floats are integers behind the two codecs."""
    path = tmp_path / "source.zarr"
    settings = {"filters": packing_codecs(PACKING), "chunks": (1, 12, 48, 48), "_FillValue": np.nan}
    ds = reflectance.to_dataset().assign(scl=(("time", "y", "x"), np.zeros((2, 48, 48), "u1")))
    ds.to_zarr(path, encoding={"reflectance": settings}, consolidated=False)
    return path


def read(path, **how):
    return xr.open_zarr(path, consolidated=False, **how).reflectance


def test_the_codecs_and_cf_say_the_same(source):
    array = zarr.open_group(source, mode="r")["reflectance"]
    assert packing_of(array.filters) == PACKING
    assert packing_of(packing_codecs({"dtype": "int16"})) == {
        "dtype": "int16", "scale_factor": 1.0, "add_offset": 0.0
    }  # fmt: skip
    assert packing_of(None) is None


@pytest.mark.parametrize("lazy", [False, True])
def test_prepare_reads_dn(source, cube, lazy):
    ds = xr.open_zarr(source, consolidated=False)
    out = tec_zarr.prepare(ds if lazy else ds.load())
    assert out.boa_offset_removed.values.tolist() == [1000, 1000]
    np.testing.assert_array_equal(out.reflectance.values, cube.values)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("packing", ["cf", "codecs"])
def test_encoding_packs_the_same_integers_again(source, reflectance, tmp_path, packing, lazy):
    ds = xr.open_zarr(source, consolidated=False)[["reflectance"]]
    ds = ds if lazy else ds.load()
    settings = tec_zarr.encoding(ds, model=toy.NAME, quality=8, packing=packing)
    ds.to_zarr(tmp_path / "tec.zarr", encoding=settings, consolidated=False)
    back = read(tmp_path / "tec.zarr")
    plain = read(tmp_path / "tec.zarr", mask_and_scale=False)
    assert tec_spec(zarr.open_group(tmp_path / "tec.zarr", mode="r")["reflectance"]).offset == 1000
    assert plain.dtype == ("uint16" if packing == "cf" else "float32")
    seen = back if packing == "cf" else plain  # without CF decoding, too
    np.testing.assert_array_equal(np.isnan(seen), np.isnan(reflectance))
    assert np.nanmax(np.abs(seen - reflectance)) <= STEP
    assert any(toy.NAME in a.codec for a in stored_arrays(tmp_path / "tec.zarr"))


def test_new_floats_go_behind_the_codecs_and_bounds_hold(reflectance, tmp_path):
    path = tmp_path / "tec.zarr"
    reflectance.tec.to_zarr(path, packing="codecs", max_error=0.002, consolidated=False)
    back = read(path, mask_and_scale=False)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(reflectance))
    assert np.nanmax(np.abs(back - reflectance)) <= 0.002 + 1e-7
    measured = zarr.open_group(path, mode="r")["reflectance"].attrs
    errors = measured["lossy_compression_max_error_measured"]
    assert 0 < max(float(word) for word in errors.split() if word[0].isdigit()) <= 0.002


def test_what_the_integers_cannot_hold_is_refused_when_appended(reflectance, tmp_path):
    path = tmp_path / "tec.zarr"
    reflectance.tec.to_zarr(path, packing="codecs", consolidated=False, model=toy.NAME)
    later = reflectance.assign_coords(time=reflectance.time + np.timedelta64(400, "D"))
    with pytest.raises(UnsupportedArrayError, match="does not hold"):
        later.copy(data=later.values - 1).tec.to_zarr(path, append_dim="time", consolidated=False)
    later.tec.to_zarr(path, append_dim="time", consolidated=False)
    assert read(path).sizes["time"] == 4


@pytest.mark.parametrize("wrong", [{"zarr_format": 2}, {"packing": "csv"}, {"max_error": 0}])
def test_what_cannot_be_behind_the_codecs_is_refused(reflectance, wrong):
    with pytest.raises(UnsupportedArrayError, match="packing"):
        tec_zarr.encoding(reflectance, **{"packing": "codecs", **wrong})


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("options", [{"quality": 8}, {"max_error": 0.001}], ids=str)
def test_recompress_keeps_the_codecs(source, reflectance, tmp_path, zarr_format, options):
    report = tec_zarr.recompress(
        source, tmp_path / "tec.zarr", zarr_format=zarr_format, model=toy.NAME, verify="full",
        progress=False, **options,
    )  # fmt: skip
    assert report.complete
    made = zarr.open_group(tmp_path / "tec.zarr", mode="r")["reflectance"]
    kept = packing_of(made.filters)
    assert (kept, tec_spec(made).offset) == ((PACKING, 1000) if zarr_format == 3 else (None, 0))
    back = read(tmp_path / "tec.zarr")
    np.testing.assert_array_equal(np.isnan(back), np.isnan(reflectance))
    assert np.nanmax(np.abs(back - reflectance)) <= options.get("max_error", STEP) + 1e-7


def test_a_product_of_three_resolutions_to_one_cube_and_back(tmp_path):
    pytest.importorskip("pyproj", reason="pip install 'tec_zarr[stac]'")
    place = synthetic.dataset(dates=1, size=96, bands=("B02", "B11", "B09"), seed=3)
    groups = {}
    for band, metres in (("B02", 10), ("B11", 20), ("B09", 60)):
        step = metres // 10
        dn = place.reflectance[0].sel(band=band).values[::step, ::step]
        side = 96 // step
        values = np.where(dn == 0, np.nan, dn / 1e4).astype("f4")
        coords = {"y": 5_300_040 - metres * (np.arange(side) + 0.5),
                  "x": 600_000 + metres * (np.arange(side) + 0.5)}  # fmt: skip
        attrs = {"proj:epsg": 32632}
        ds = xr.Dataset({band.lower(): (("y", "x"), values, attrs)}, coords)
        ds[band.lower()].encoding = {"filters": packing_codecs(PACKING), "_FillValue": np.nan}
        groups[f"/measurements/reflectance/r{metres}m"] = ds
    properties = {"datetime": "2023-06-12T10:20:31Z", "proj:epsg": 32632}
    root = xr.Dataset(attrs={"stac_discovery": {"properties": properties}})
    xr.DataTree.from_dict({"/": root, **groups}).to_zarr(tmp_path / "product.zarr")

    product = xr.open_datatree(tmp_path / "product.zarr", engine="zarr", chunks={})
    cube = tec_zarr.prepare(product)
    assert cube.boa_offset_removed.values.tolist() == [1000]
    cube.tec.to_zarr(tmp_path / "tec.zarr", max_error=2)
    again = tec_zarr.to_groups(xr.open_zarr(tmp_path / "tec.zarr"))
    for path, ds in groups.items():
        ((name, expected),) = ds.data_vars.items()
        back = again[path][name]
        np.testing.assert_array_equal(back.x, ds.x)
        np.testing.assert_array_equal(back.y, ds.y)
        known = np.isfinite(expected.values)
        np.testing.assert_array_equal(back[0].values != 0, known)
        errors = back[0].values.astype(float) - np.nan_to_num(expected.values * 1e4)
        assert np.abs(errors).max() <= 2.01
