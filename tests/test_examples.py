"""Every example runs as it is, on a catalogue on disk."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
for package in ("odc.stac", "stackstac", "rioxarray"):
    pytest.importorskip(package, reason="pip install 'tec_zarr[test]'")
sys.path.insert(0, str(EXAMPLES))
from local_catalog import ARCHIVE, make_catalog, make_eopf_product  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    return make_catalog(folder, ARCHIVE[1:5], bands=("B02", "B03", "B04", "B08"), size=64)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run an example in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_odc_stac_and_then_http(run, catalog, tmp_path):
    text = run("stac_odc.py", catalog)
    assert "2023-06-12 S2A_32UPU_20230612_L2A -1000 DN" in text
    pytest.importorskip("aiohttp")
    assert "tile.png" in run("serve_http.py", tmp_path / "kaufbeuren.zarr")
    assert (tmp_path / "tile.png").read_bytes()[:4] == b"\x89PNG"


def test_stackstac(run, catalog, tmp_path):
    text = run("stac_stackstac.py", catalog)
    assert "time chunks (1, 1)" in text
    assert "quality 8" in text
    assert (tmp_path / "kaufbeuren.zarr").is_dir()


def test_append(run, catalog):
    text = run("append_dates.py", catalog)
    assert "first: 1 dates" in text
    assert "now: 4 dates, the last on 2023-06-22" in text


def test_eopf(run, tmp_path):
    text = run("eopf_to_tec.py", make_eopf_product(tmp_path / "S2.zarr"))
    assert "1000 DN off 1 date" in text
    assert "B11" in text


def test_kerchunk(run):
    pytest.importorskip("kerchunk")
    assert "references" in run("kerchunk_reference.py")
