import numpy as np
import pytest

from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError
from tec_zarr.sentinel2 import CLOUD_LIKE, L2A_BANDS, SCL_CLASSES


@pytest.fixture(scope="module")
def scene():
    return synthetic.dataset(dates=4, size=120, seed=3)


def test_it_is_labelled_like_a_sentinel2_cube(scene):
    cube = scene["reflectance"]
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.shape == (4, 12, 120, 120)
    assert cube.dtype == np.uint16
    assert tuple(cube["band"].values) == L2A_BANDS
    assert np.issubdtype(cube["time"].dtype, np.datetime64)
    assert (np.diff(cube["time"].values) > np.timedelta64(0, "ns")).all()
    assert (np.diff(cube["x"]) == 10).all()
    assert (np.diff(cube["y"]) == -10).all()
    assert cube["spatial_ref"].attrs["grid_mapping_name"] == "transverse_mercator"


def test_rioxarray_finds_the_crs(scene):
    pytest.importorskip("rioxarray")
    cube = scene["reflectance"].isel(time=0)
    assert cube.rio.crs.to_epsg() == 32632
    assert cube.rio.resolution() == (10, -10)


def test_the_seed_decides_everything():
    first, again, other = (synthetic.cube(dates=2, size=48, seed=seed).values for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_bands_come_in_the_order_asked_for_and_keep_their_pixels(scene):
    some = synthetic.cube(dates=1, size=48, bands=["nir", "B2_10m"], clouds=False, seed=3)
    assert tuple(some["band"].values) == ("B08", "B02")
    assert some.sel(band="B08").mean() > some.sel(band="B02").mean()


@pytest.mark.parametrize(("band", "pixels"), [("B02", 1), ("B11", 2), ("B09", 6)])
def test_coarse_bands_are_imaged_at_their_own_resolution(scene, band, pixels):
    image = scene["reflectance"].sel(band=band).values[0]
    blocks = image.reshape(120 // pixels, pixels, 120 // pixels, pixels)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert (image[:, pixels - 1] != image[:, pixels]).mean() > 0.8


def test_bilinear_resampling_leaves_no_blocks():
    image = synthetic.cube(dates=1, size=60, bands=["B09"], resampling="bilinear").values[0, 0]
    steps = np.abs(np.diff(image.astype(int), axis=1)).mean(axis=0)
    assert steps[5::6].mean() < 1.5 * steps.mean()


def test_nodata_is_one_slanted_corner_of_the_last_date_in_all_bands(scene):
    outside = scene["reflectance"].values == 0
    assert not outside[:-1].any()
    last = outside[-1]
    assert (last == last[:1]).all()
    assert 0.02 < last.mean() < 0.5
    columns = last[0].argmax(axis=1)
    assert columns[-1] > columns[0]
    assert (scene["scl"].values[-1] == 0)[last[0]].all()
    assert (synthetic.cube(dates=2, size=30, nodata_edge=False) > 0).all()


def test_clouds_are_bright_and_in_the_scene_classification(scene):
    scl = scene["scl"].values
    assert set(np.unique(scl)) <= set(SCL_CLASSES)
    blue = scene["reflectance"].sel(band="B02").values
    assert blue[scl == 9].mean() > 3 * blue[scl == 4].mean()
    assert not np.isin(scl[0], list(CLOUD_LIKE)).any()
    assert {3, 9} <= set(np.unique(scl[1:]))
    clear = synthetic.dataset(dates=4, size=60, seed=3, clouds=False, nodata_edge=False)
    assert not np.isin(clear["scl"], list(CLOUD_LIKE)).any()


def test_spectra_are_those_of_water_and_vegetation(scene):
    first = scene.isel(time=2)
    water, green = (first["reflectance"].values[:, first["scl"].values == k] for k in (6, 4))
    assert water.shape[1] > 50
    names = list(L2A_BANDS)
    red, nir = names.index("B04"), names.index("B08")
    assert np.median(water[nir]) < np.median(water[red])
    assert np.median(green[nir]) > 2 * np.median(green[red])


def test_seasons_show(scene):
    cube = synthetic.cube(dates=4, size=90, seed=3, clouds=False, nodata_edge=False).astype(float)
    ndvi = (cube.sel(band="B08") - cube.sel(band="B04")) / (
        cube.sel(band="B08") + cube.sel(band="B04")
    )
    winter, summer = ndvi.isel(time=0).mean(), ndvi.isel(time=2).mean()
    assert summer > winter + 0.05


@pytest.mark.parametrize("size", [1, 7, 61])
def test_any_size(size):
    assert synthetic.dataset(dates=1, size=size)["reflectance"].shape == (1, 12, size, size)


@pytest.mark.parametrize(
    "wrong", [{"dates": 0}, {"size": 0}, {"bands": []}, {"resampling": "cubic"}, {"bands": ["B10"]}]
)
def test_impossible_requests_say_what_is_wrong(wrong):
    with pytest.raises(TecError, match="got"):
        synthetic.cube(**({"dates": 1, "size": 12} | wrong))
