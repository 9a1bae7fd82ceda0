"""recompress(overviews=True): levels of the original pixels, as .tec.to_zarr makes them."""

from __future__ import annotations

import numpy as np
import pytest
import recompress_worker
import toy
import xarray as xr
import zarr
from recompress_worker import DEADLY
from test_overviews import average, ds, small  # noqa: F401  fixtures

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.recompression import overviews
from tec_zarr.recompression.run import recompress
from tec_zarr.stores.chunks import tec_spec

LOSSLESS = {"model": toy.NAME, "max_error": 0}
LEVELS = ("0", "1", "2")


@pytest.fixture
def source(ds, tmp_path):  # noqa: F811
    ds.to_zarr(tmp_path / "source.zarr", encoding={"reflectance": {"chunks": (1, 3, 32, 32)}})
    return tmp_path / "source.zarr"


@pytest.mark.parametrize("new", [2, 3])
def test_it_writes_what_the_accessor_writes(ds, source, tmp_path, new, monkeypatch):  # noqa: F811
    """Pixels, places and attributes, also where a level is read in many pieces."""
    monkeypatch.setattr(overviews, "PIECE_BYTES", 4000)
    ds.tec.to_zarr(tmp_path / "a.zarr", overviews=True, zarr_format=new, **LOSSLESS)
    report = recompress(
        source, tmp_path / "b.zarr", overviews=True, zarr_format=new, verify="full", **LOSSLESS
    )
    assert report.complete
    a, b = (xr.open_datatree(tmp_path / name, engine="zarr") for name in ("a.zarr", "b.zarr"))
    assert tuple(b.children) == LEVELS
    for n, name in enumerate(LEVELS):
        new_level, old_level = (tree[name].to_dataset() for tree in (b, a))
        xr.testing.assert_equal(new_level, old_level)
        expected = average(ds.reflectance.values, 2**n)
        assert np.abs(new_level.reflectance.values.astype(int) - expected).max() <= bool(n)
        for key in ("spatial:transform", "spatial:shape", "proj:code"):
            assert new_level.attrs[key] == old_level.attrs[key]
    assert b.attrs["multiscales"] == a.attrs["multiscales"]
    for name in LEVELS:
        assert tec_spec(zarr.open_group(tmp_path / "b.zarr")[f"{name}/reflectance"]) is not None


def test_packed_reflectance_is_averaged_where_it_was_measured(ds, tmp_path):  # noqa: F811
    packed = ds.drop_vars("scl")
    packed["reflectance"] = packed.reflectance.where(packed.reflectance != 0) / 1e4 - 0.1
    packing = {"dtype": "uint16", "_FillValue": 0, "scale_factor": 1e-4, "add_offset": -0.1}
    packed.to_zarr(tmp_path / "a.zarr", encoding={"reflectance": packing})
    settings = {"model": toy.NAME, "quality": 8, "overviews": True}
    assert recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", **settings).complete
    level = xr.open_zarr(tmp_path / "b.zarr", group="1").reflectance
    expected = average(ds.reflectance.values, 2)
    np.testing.assert_array_equal(level.isnull(), expected == 0)
    known = expected != 0
    np.testing.assert_allclose(level.values[known], expected[known] / 1e4 - 0.1, atol=2.1e-4)


def test_it_continues_and_appends(ds, tmp_path):  # noqa: F811
    source, target = tmp_path / "source.zarr", tmp_path / "tec.zarr"
    long = xr.concat([ds.assign_coords(time=ds.time + np.timedelta64(90 * i, "D"))
                      for i in range(3)], "time", data_vars="minimal")  # fmt: skip
    long.isel(time=slice(0, 5)).to_zarr(source)

    def fail(calls):
        if calls == 2:
            raise KeyError("stop")

    recompress_worker.register(fail)
    settings = {"model": DEADLY, "quality": 8, "overviews": True}
    assert not recompress(source, target, retries=0, threads=1, **settings).complete
    recompress_worker.register()
    report = recompress(source, target, **settings)
    assert report.complete
    assert report.resumed
    later = long.isel(time=slice(5, None))
    later.drop_vars([n for n in later.variables if "time" not in later[n].dims]).to_zarr(
        source, append_dim="time"
    )
    assert recompress(source, target, append=True).complete
    assert recompress(source, tmp_path / "whole.zarr", **settings).complete
    for name in LEVELS:
        new, old = (xr.open_zarr(path, group=name) for path in (target, tmp_path / "whole.zarr"))
        xr.testing.assert_equal(new, old)
        assert new.sizes["time"] == 6


def test_the_public_validator_accepts_it(source, tmp_path):
    toolkit = pytest.importorskip("geozarr_toolkit", reason="pip install geozarr-toolkit")
    command = ["recompress", str(source), str(tmp_path / "b.zarr"), "--overviews"]
    assert main([*command, "--model", toy.NAME]) == 0
    root = zarr.open_group(tmp_path / "b.zarr", mode="r")
    for group in (root, *(group for _, group in root.groups())):
        assert not any(toolkit.validate_group(group).values())
    assert toolkit.validate_multiscales(dict(root.attrs))[0]


def test_titiler_draws_a_level(ds, tmp_path):  # noqa: F811
    pytest.importorskip("titiler.xarray", reason="pip install titiler.xarray")
    pytest.importorskip("rioxarray")
    from titiler.xarray.io import Reader

    source, target = tmp_path / "a.zarr", tmp_path / "b.zarr"
    ds.reflectance.encoding.clear()
    ds.drop_vars("spatial_ref").rio.write_crs(32632).to_zarr(source)
    assert recompress(source, target, overviews=True, **LOSSLESS).complete
    shown = xr.open_zarr(target, group="1").reflectance
    date = f"time={shown.time.values[1]}"
    with Reader(str(target), variable="reflectance", group="1", sel=[date]) as reader:
        image = reader.preview(max_size=None)
    np.testing.assert_array_equal(image.array.filled(0), shown[1].values)


def test_several_groups_have_no_overviews(tmp_path):
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    array = root.create_array("r10m/b02", data=np.ones((80, 80), "u2"))
    array.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    with pytest.raises(UnsupportedArrayError, match=r"has \['r10m'\]: recompress each group"):
        recompress(tmp_path / "a.zarr", tmp_path / "b.zarr", overviews=True, model=toy.NAME)
    assert not (tmp_path / "b.zarr").exists()


def test_icechunk_takes_levels(source):
    icechunk = pytest.importorskip("icechunk", reason="pip install 'tec_zarr[test]'")
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    assert recompress(source, repository, overviews=True, **LOSSLESS).complete
    tree = xr.open_datatree(
        repository.readonly_session("main").store, engine="zarr", consolidated=False
    )
    assert sorted(tree.children) == list(LEVELS)
    assert recompress(source, repository, append=True).regions == 0
