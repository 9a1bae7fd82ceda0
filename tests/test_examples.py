"""Every example runs as it is: on a catalogue on disk, and against a STAC API on this machine."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
import xarray as xr

from tec_zarr.cubes import synthetic
from tec_zarr.stac.canonical import prepare
from tec_zarr.stac.load import EARTH_SEARCH
from tec_zarr.stores.info import stored_arrays

EXAMPLES = Path(__file__).parents[1] / "examples"
for package in ("odc.stac", "stackstac", "rioxarray", "pystac_client", "uvicorn", "starlette"):
    pytest.importorskip(package, reason="pip install 'tec_zarr[test]'")
sys.path.insert(0, str(EXAMPLES))
from local_catalog import (  # noqa: E402
    ARCHIVE,
    EARTH_SEARCH_ARCHIVE,
    make_catalog,
    make_eopf_product,
)
from local_server import serving, stac_api  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
BANDS = ("B02", "B03", "B04", "B08")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return make_catalog(tmp_path_factory.mktemp("catalog"), ARCHIVE[1:5], bands=BANDS, size=64)


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """A STAC API whose items are as those of Earth Search."""
    folder = tmp_path_factory.mktemp("earth-search")
    catalog = make_catalog(folder, EARTH_SEARCH_ARCHIVE, bands=BANDS, size=64, common_names=True)
    with serving(stac_api(catalog)) as url:
        yield url


@pytest.fixture
def online(api, monkeypatch):
    """What is asked of Earth Search is answered by the API on this machine."""
    from pystac_client import Client

    asked, open_client = [], Client.open

    def elsewhere(url, **options):
        asked.append(url)
        return open_client(api, **options)

    monkeypatch.setattr(Client, "open", elsewhere)
    return asked


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder; returns what it printed, keeps its names."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        run.names = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small store of several chunks in one shard, with nodata and a CRS."""
    path = tmp_path_factory.mktemp("store") / "cube.zarr"
    ds = prepare(synthetic.dataset(dates=2, size=128, bands=BANDS, seed=3), offset=0)
    ds.tec.to_zarr(path, model=toy.NAME, quality=8, chunks={"y": 64, "x": 64})
    return path


def test_every_example_is_in_some_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    scripts = [p.name for p in EXAMPLES.glob("*.py") if not p.name.startswith("local_")]
    assert [name for name in scripts if f'"{name}"' not in tests] == []


# ------------------------------------------------------------------- from a search to a cube


def test_ten_lines_of_the_readme_give_a_compressed_cube(online, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) <= 10
    names = {}
    exec(code, names)
    assert online == [EARTH_SEARCH]
    assert names["cube"].band.values.tolist() == list(BANDS)
    assert names["cube"].sizes["time"] == 3
    assert "TEC" in {a.path: a.codec for a in stored_arrays(tmp_path / "my-area.zarr")}[
        "reflectance"
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stac_odc.py", "2023-06-12 S2A_32UPU_20230612_L2A -0 DN"),
        ("stac_stackstac.py", "quality 8"),
        ("append_dates.py", "now: 3 dates, the last on 2021-07-05"),
    ],
)
def test_without_arguments_they_search_earth_search(online, run, name, expected):
    assert expected in run(name)
    assert set(online) == {EARTH_SEARCH}


def test_odc_stac_on_disk(run, catalog, tmp_path):
    text = run("stac_odc.py", catalog)
    assert "2023-06-12 S2A_32UPU_20230612_L2A -1000 DN" in text
    assert (tmp_path / "kaufbeuren.zarr").is_dir()


def test_stackstac_on_disk(run, catalog, tmp_path):
    text = run("stac_stackstac.py", catalog)
    assert "time chunks (1, 1)" in text
    assert (tmp_path / "kaufbeuren-stackstac.zarr").is_dir()


def test_append_and_fill_clouds_on_disk(run, catalog):
    text = run("append_dates.py", catalog)
    assert "first: 1 dates" in text
    assert "now: 2 dates, the last on 2021-07-05" in text
    assert "clouds filled" in text


def test_eopf(run, tmp_path):
    text = run("eopf_to_tec.py", make_eopf_product(tmp_path / "S2.zarr"))
    assert "1000 DN off 1 date" in text
    assert "B11" in text


# ------------------------------------------------------------------------- served over HTTP


def test_files_over_http(run, store, tmp_path):
    """Chunks in a shard are read by byte ranges."""
    pytest.importorskip("aiohttp", reason="pip install 'tec_zarr[test]'")
    assert "window.png" in run("serve_http.py", store)
    assert (tmp_path / "window.png").read_bytes()[:4] == b"\x89PNG"


def test_map_tiles_show_the_pixels_of_the_store(run, store, tmp_path):
    pytest.importorskip("titiler.xarray", reason="pip install 'tec_zarr[test]'")
    import morecantile
    from matplotlib import image
    from pyproj import Transformer

    text = run("serve_tiles.py", store)
    z, x, y = map(int, re.search(r"WebMercatorQuad/(\d+)/(\d+)/(\d+)\.png", text).groups())
    tile = image.imread(tmp_path / "tile.png")
    assert tile.shape == (256, 256, 4)
    grid = morecantile.tms.get("WebMercatorQuad")
    bounds = grid.xy_bounds(morecantile.Tile(x, y, z))
    step = (bounds.right - bounds.left) / 256
    ds = xr.open_zarr(store, decode_coords="all")
    middles = (np.arange(256) + 0.5) * step
    east, north = Transformer.from_crs(3857, ds.rio.crs, always_xy=True).transform(
        *np.meshgrid(bounds.left + middles, bounds.top - middles)
    )
    column = np.floor((east - ds.x.values[0]) / 10 + 0.5).astype(int)
    row = np.floor((ds.y.values[0] - north) / 10 + 0.5).astype(int)
    inside = (column >= 0) & (column < 128) & (row >= 0) & (row < 128)
    assert inside.sum() > 5_000
    rgb = ds.reflectance[-1].sel(band=["B04", "B03", "B02"]).values
    there = np.moveaxis(rgb[:, row[inside], column[inside]], 0, -1)
    opaque = tile[..., 3] > 0
    measured = (there > 0).all(axis=1)
    assert (opaque[inside] == measured).mean() > 0.98
    shade = np.clip((there.astype(float) - 1) / 2499, 0, 1)
    both = opaque[inside] & measured
    close = np.abs(tile[inside][both][:, :3] - shade[both]).max(axis=1) < 2 / 255
    assert close.mean() > 0.9  # nearest neighbours, but for GDAL's approximation of the warp
    assert not opaque[~inside & (np.abs(column - 64) > 70)].any()


def test_plain_zarr_for_clients_without_tec_zarr(run, store):
    pytest.importorskip("xpublish_zarr", reason="pip install 'tec_zarr[test]'")
    text = run("serve_plain.py", store)
    assert "sent with bytes zstd" in text
    assert "the same pixels as in the store: True" in text


# -------------------------------------------------------------------- by reference, versions


def test_kerchunk(run):
    pytest.importorskip("kerchunk", reason="pip install 'tec_zarr[test]'")
    assert "references" in run("kerchunk_reference.py")


def test_icechunk(online, run):
    pytest.importorskip("icechunk", reason="pip install 'tec_zarr[test]'")
    assert "now: 4 dates; as of the first commit: 2" in run("icechunk_versions.py")
    assert set(online) == {EARTH_SEARCH}


def test_virtual_archive_of_several_stores(online, run, tmp_path):
    pytest.importorskip("icechunk", reason="pip install 'tec_zarr[test]'")
    for package in ("virtualizarr", "arro3.core"):
        pytest.importorskip(package, reason="pip install 'tec_zarr[test]'")
    run("virtual_archive.py")
    parts = [xr.open_zarr(tmp_path / f"{year}.zarr").reflectance.values for year in (2021, 2023)]
    np.testing.assert_array_equal(run.names["archive"].reflectance, np.concatenate(parts))
    assert set(online) == {EARTH_SEARCH}
