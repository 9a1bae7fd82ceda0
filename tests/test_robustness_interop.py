"""A store written here, read by what else reads Zarr, from paths of every kind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import toy
import xarray as xr
import zarr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.provenance import describe

NEW_ZARR = tuple(map(int, zarr.__version__.split(".")[:2])) >= (3, 4)


@pytest.fixture(scope="module")
def ds():
    cube = synthetic.dataset(dates=2, size=64)
    return cube if "reflectance" in cube else cube.to_dataset(name="reflectance")


@pytest.fixture
def write(ds, tmp_path):
    """Write the dataset with TEC; returns the path and what xarray reads from it."""

    def write(path=None, zarr_format=3, **kwargs):
        path = tmp_path / "a.zarr" if path is None else path
        settings = tec_zarr.encoding(ds, zarr_format=zarr_format, model=toy.NAME)
        ds.to_zarr(path, mode="w", encoding=settings, zarr_format=zarr_format, **kwargs)
        return path, xr.open_zarr(path, **kwargs).reflectance.values

    return write


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_raw_zarr_and_dask(write, zarr_format):
    da = pytest.importorskip("dask.array")
    path, expected = write(zarr_format=zarr_format)
    raw = zarr.open_array(f"{path}/reflectance", mode="r")
    factor, shift = raw.attrs.get("scale_factor", 1), raw.attrs.get("add_offset", 0)
    fill = raw.attrs.get("_FillValue")
    values = np.where(raw[:] == fill, np.nan, raw[:] * factor + shift) if factor != 1 else raw[:]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    lazy = da.from_zarr(str(path), component="reflectance")
    np.testing.assert_array_equal(lazy.compute(), raw[:])


@pytest.mark.parametrize(
    "name",
    [
        "with space.zarr", "umlaut ü 雪.zarr", "percent%20sign.zarr",
        pytest.param("hash#mark.zarr", marks=pytest.mark.skipif(
            NEW_ZARR, reason="zarr 3.4 takes what follows # in a path for a fragment"
        )),
        str(PureWindowsPath("C:\\data", "s2", "cube.zarr")),
    ],
)  # fmt: skip
def test_paths_that_other_systems_have(write, tmp_path, name):
    """On this system a Windows path is one name with backslashes: nothing here may split it."""
    path, expected = write(tmp_path / name)
    assert Path(path).is_dir()
    np.testing.assert_array_equal(xr.open_zarr(str(path)).reflectance.values, expected)
    from tec_zarr.stores.info import stored_arrays

    assert any(toy.NAME in a.codec for a in stored_arrays(path))


def test_relative_paths_and_file_urls(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, expected = write("here.zarr")
    for name in (path, f"./{path}", f"file://{tmp_path}/{path}"):
        np.testing.assert_array_equal(xr.open_zarr(name).reflectance.values, expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_fsspec_url(write, zarr_format):
    pytest.importorskip("fsspec")
    url = f"memory://bucket/a prefix/cube-{zarr_format}.zarr"
    path, expected = write(url, zarr_format)
    np.testing.assert_array_equal(xr.open_zarr(path).reflectance.values, expected)


def test_an_s3_url(ds):
    """Against moto on this machine; keys, not files: no folders, no renames."""
    server = pytest.importorskip("moto.server", reason="pip install 'tec_zarr[test]'")
    pytest.importorskip("s3fs", reason="pip install 'tec_zarr[test]'")
    here = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    here.start()
    try:
        host, port = here.get_host_and_port()
        options = {"key": "k", "secret": "s",
                   "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}  # fmt: skip
        import s3fs

        s3fs.S3FileSystem(**options).mkdir("cubes")
        url = "s3://cubes/deep/er/cube.zarr"
        settings = tec_zarr.encoding(ds, model=toy.NAME)
        ds.to_zarr(url, mode="w", encoding=settings, storage_options=options)
        back = xr.open_zarr(url, storage_options=options)
        error = back.reflectance.values.astype(int) - ds.reflectance.values
        assert np.abs(error).max() <= 10
    finally:
        here.stop()


def test_kerchunk_references(write):
    kerchunk = pytest.importorskip("kerchunk.zarr", reason="pip install 'tec_zarr[test]'")
    path, expected = write(zarr_format=2)
    references = kerchunk.single_zarr(str(path))
    mapper = "reference://"
    back = xr.open_zarr(
        mapper, storage_options={"fo": references, "remote_protocol": "file"}, consolidated=False,
        zarr_format=2,
    )  # fmt: skip
    np.testing.assert_array_equal(back.reflectance.values, expected)


def test_virtualizarr(write):
    vz = pytest.importorskip("virtualizarr", reason="VirtualiZarr needs Python 3.11 and zarr 3.1")
    obspec = pytest.importorskip("obspec_utils.registry")
    obstore = pytest.importorskip("obstore")
    path, expected = write()
    registry = obspec.ObjectStoreRegistry({"file://": obstore.store.LocalStore()})
    # VirtualiZarr 2.5.1 cannot make a manifest of an array without dimensions.
    parser = vz.parsers.ZarrParser(skip_variables=["spatial_ref"])
    store = parser(f"file://{path}", registry=registry)
    back = xr.open_zarr(store, consolidated=False, zarr_format=3)
    np.testing.assert_array_equal(back.reflectance.values, expected)


def test_icechunk(ds):
    icechunk = pytest.importorskip("icechunk", reason="pip install 'tec_zarr[test]'")
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    settings = tec_zarr.encoding(ds, model=toy.NAME)
    ds.to_zarr(session.store, mode="w", encoding=settings, consolidated=False)
    expected = xr.open_zarr(session.store, consolidated=False).reflectance.values
    session.commit("TEC")
    again = xr.open_zarr(repository.readonly_session("main").store, consolidated=False)
    np.testing.assert_array_equal(again.reflectance.values, expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_readers_without_the_plugin(ds, tmp_path, zarr_format):
    """What they see is in docs/robustness.md: the name of the codec, and everything lossless."""
    path = tmp_path / "a.zarr"
    settings = tec_zarr.encoding(ds, zarr_format=zarr_format, model=toy.NAME)
    ds = describe(ds, settings)
    ds.to_zarr(path, encoding=settings, zarr_format=zarr_format)
    code = f"""
        import sys, importlib.metadata as metadata
        found = metadata.entry_points
        def without(**wanted):  # as where tec_zarr is not installed
            every = found()  # Python 3.11: a dictionary of groups
            if isinstance(every, dict):
                every = [e for group in every.values() for e in group]
            others = metadata.EntryPoints(e for e in every if "tec_zarr" not in e.value)
            return others.select(**wanted)
        metadata.entry_points = without
        import zarr
        group = zarr.open_group({str(path)!r}, mode="r", use_consolidated=False)
        print(group["time"][:].shape[0], group["tec_compression"].attrs["reader"], sep=": ")
        try:
            zarr.open_array({str(path)!r} + "/reflectance", mode="r")[:]
        except Exception as error:
            print(type(error).__name__, error)
        assert "tec_zarr" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first == f"{ds.sizes['time']}: pip install tec_zarr"
    assert second.startswith("UnknownCodecError")
    assert "'tec'" in second
