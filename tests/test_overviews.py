"""Overviews: each level is the average of the originals, where it says it is, in TEC."""

from __future__ import annotations

import numpy as np
import pytest
import toy
import xarray as xr
import zarr

import tec_zarr
from tec_zarr.cubes import overviews, synthetic
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.stores.chunks import tec_spec

STEP = {"model": toy.NAME, "quality": 8}  # the toy keeps whole DN


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Levels down to 24 pixels, so that small cubes have some."""
    monkeypatch.setattr(overviews, "SMALLEST", 24)


@pytest.fixture
def ds():
    """70 x 90 pixels: odd cells at the end of both axes on every level."""
    cube = synthetic.dataset(dates=2, size=96, bands=("B02", "B04", "B08"), seed=4)
    cube = cube.isel(y=slice(0, 70), x=slice(0, 90)).drop_encoding()
    cube.reflectance.encoding["grid_mapping"] = "spatial_ref"
    mapping = {"grid_mapping_name": "transverse_mercator"}
    return cube.assign_coords(spatial_ref=xr.DataArray(np.int32(32632), attrs=mapping))


def average(dn, n):
    """Mean of the samples that are not 0, cell by cell, without xarray."""
    out = np.zeros((*dn.shape[:2], -(-dn.shape[2] // n), -(-dn.shape[3] // n)), dn.dtype)
    for y, x in np.ndindex(out.shape[2:]):
        cell = dn[..., y * n : y * n + n, x * n : x * n + n].astype(float)
        known = (cell != 0).sum((2, 3))
        out[..., y, x] = np.rint(cell.sum((2, 3)) / np.maximum(known, 1))
    return out


@pytest.mark.parametrize("lazy", [False, True])
def test_each_level_is_the_average_of_the_originals(ds, tmp_path, lazy):
    written = ds.chunk({"time": 1, "y": 40, "x": 40}) if lazy else ds
    written.tec.to_zarr(tmp_path / "a.zarr", overviews=True, **STEP)
    tree = xr.open_datatree(tmp_path / "a.zarr", engine="zarr")
    assert list(tree.children) == ["0", "1", "2"]
    for n in range(3):
        level = tree[str(n)].to_dataset()
        assert level.reflectance.dtype == "uint16"
        expected = average(ds.reflectance.values, 2**n)
        np.testing.assert_array_equal(level.reflectance == 0, expected == 0)
        assert np.abs(level.reflectance.values.astype(int) - expected).max() <= 1
        array = zarr.open_array(tmp_path / "a.zarr" / str(n) / "reflectance", mode="r")
        assert tec_spec(array).model == toy.NAME
    assert set(np.unique(tree["2"]["scl"])) <= set(np.unique(ds.scl))


@pytest.mark.parametrize("attribute", [False, True])
def test_floats_average_what_was_measured(ds, attribute):
    values = np.where(ds.reflectance == 0, -1.0 if attribute else np.nan, ds.reflectance / 1e4)
    floats = ds.drop_vars("scl").assign(reflectance=(ds.reflectance.dims, values.astype("f4")))
    if attribute:
        floats.reflectance.attrs["nodata"] = -1.0
    level = overviews.levels(floats)[1].reflectance
    expected = average(ds.reflectance.values, 2)
    missing = (level == -1) if attribute else level.isnull()
    np.testing.assert_array_equal(missing, expected == 0)
    assert level.dtype == "f4"
    np.testing.assert_allclose(level.where(~missing, 0) * 1e4, expected, atol=0.51)


def test_levels_lie_where_the_first_one_lies(ds, tmp_path):
    ds.tec.to_zarr(tmp_path / "a.zarr", overviews=True, **STEP)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    layout = root.attrs["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == ["0", "1", "2"]
    west, north = float(ds.x[0]) - 5, float(ds.y[0]) + 5
    for n, entry in enumerate(layout):
        side = 10.0 * 2**n
        group = root[entry["asset"]]
        assert entry["spatial:transform"] == [side, 0, west, 0, -side, north]
        assert entry["spatial:transform"] == group.attrs["spatial:transform"]
        assert entry["spatial:shape"] == list(group["reflectance"].shape[2:])
        assert group.attrs["proj:code"] == root.attrs["proj:code"] == "EPSG:32632"
        level = xr.open_zarr(tmp_path / "a.zarr", group=str(n), decode_coords="all")
        assert float(level.x[0]) == west + side / 2
        assert float(level.y[0]) == north - side / 2
        assert set(np.diff(level.x)) == {side}
        assert "spatial_ref" in level.coords  # the CF grid mapping stays


def test_the_public_validator_accepts_it(ds, tmp_path):
    toolkit = pytest.importorskip("geozarr_toolkit", reason="pip install geozarr-toolkit")
    ds.tec.to_zarr(tmp_path / "a.zarr", overviews=True, **STEP)
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    for group in (root, *(group for _, group in root.groups())):
        found = toolkit.detect_conventions(dict(group.attrs))
        assert {"spatial", "proj"} <= set(found)
        assert not any(toolkit.validate_group(group).values())
    assert toolkit.validate_multiscales(dict(root.attrs))[0]


def test_the_command_line_writes_them(ds, tmp_path, capsys):
    ds.to_zarr(tmp_path / "in.zarr", zarr_format=2)
    command = ["encode", str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"), "--overviews"]
    assert main([*command, "--model", toy.NAME, "--quality", "8"]) == 0
    assert "2/reflectance" in capsys.readouterr().out
    level = xr.open_zarr(tmp_path / "out.zarr", group="1").reflectance
    expected = average(ds.reflectance.values, 2)
    assert np.abs(level.values.astype(int) - expected).max() <= 1


def test_what_is_added_has_no_overviews(ds, tmp_path):
    with pytest.raises(UnsupportedArrayError, match="overviews"):
        ds.tec.to_zarr(tmp_path / "a.zarr", append_dim="time", overviews=True)
    coarse = ds.reflectance.isel(y=slice(0, 35), x=slice(0, 45)).rename(y="lat", x="lon")
    two = ds.drop_vars("scl").assign(B11=coarse.isel(band=0, drop=True))
    with pytest.raises(UnsupportedArrayError, match="one grid"):
        two.tec.to_zarr(tmp_path / "b.zarr", overviews=True)
    assert not (tmp_path / "b.zarr").exists()
    assert tec_zarr.encoding(ds)  # the cube itself can be written
