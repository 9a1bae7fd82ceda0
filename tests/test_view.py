"""``tec-zarr view``: its server, its folder for static hosts, and the page in Chromium."""

import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import xarray as xr

import tec_zarr
from tec_zarr.cubes import overviews, synthetic
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face import view
from tec_zarr.face.cli import main

READER = Path(__file__).parents[1] / "readers" / "js"
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))
BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page that stands in for the one that `make readers` makes."""
    folder = tmp_path / "page"
    (folder / "app").mkdir(parents=True)
    (folder / "index.html").write_text('<body data-store="store/">')
    (folder / "app" / "page.js").write_text("0")
    monkeypatch.setattr(view, "PAGE", folder)
    return folder


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "cube.zarr"
    (path / "c").mkdir(parents=True)
    (path / "zarr.json").write_text("{}")
    (path / "c" / "0").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_text("secret")
    return path


@contextmanager
def serving(path):
    with view.server(None if path is None else str(path), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield view.address(server, None if path is None else str(path))
        finally:
            server.shutdown()
            thread.join()


def ask(address, path, method="GET", **headers):
    """Ask a server for a path as it stands: urllib would tidy it."""
    connection = http.client.HTTPConnection(address.split("/")[2])
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_server_answers_with_page_store_and_parts_of_files(page, store):
    chunk = bytes(range(100))
    with serving(store) as address:
        assert ask(address, "/?url=x")[1] == (page / "index.html").read_bytes()
        status, body, headers = ask(address, "/app/page.js")
        assert (status, body, headers["Content-Type"]) == (200, b"0", "text/javascript")
        assert ask(address, "/store/c/0")[:2] == (200, chunk)
        status, body, headers = ask(address, "/store/c/0", "HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", "100")
        for asked, wanted in (("10-19", chunk[10:20]), ("90-", chunk[90:]), ("-7", chunk[-7:]),
                              ("95-200", chunk[95:]), ("-500", chunk)):  # fmt: skip
            status, body, headers = ask(address, "/store/c/0", Range=f"bytes={asked}")
            assert (status, body) == (206, wanted)
        assert headers["Content-Range"] == "bytes 0-99/100"
        for asked in ("bytes=100-", "bytes=-", "bytes=9-5", "words=1-2"):
            assert ask(address, "/store/c/0", Range=asked)[0] == 416


@pytest.mark.parametrize("path", ["/../secret", "/store/../../secret", "/store/..%2fsecret",
                                  "/store/%2e%2e/secret", "/store/..%5csecret", "/c:/x",
                                  "/store", "/store/c/1", "/app"])  # fmt: skip
def test_the_server_answers_with_nothing_else(page, store, path):
    with serving(store) as address:
        assert ask(address, path)[0] == 404


def test_a_folder_for_a_static_host_holds_page_and_store(page, store, tmp_path, capsys):
    assert main(["view", str(store), "--export", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'site'}\n"
    assert (tmp_path / "site" / "store" / "c" / "0").read_bytes() == bytes(range(100))
    assert (tmp_path / "site" / "app" / "page.js").is_file()
    with pytest.raises(UnsupportedArrayError, match="is not empty"):
        view.export(tmp_path / "site", str(store))


def test_an_exported_page_opens_a_store_elsewhere(page, tmp_path):
    view.export(tmp_path / "site", "https://example.org/a&b.zarr")
    text = (tmp_path / "site" / "index.html").read_text()
    assert text == '<body data-store="https://example.org/a&amp;b.zarr/">'
    with serving(None) as address:
        assert ask(address, "/store/zarr.json")[0] == 404
    with view.server("https://example.org/c.zarr", 0) as server:
        assert view.address(server, "https://example.org/c.zarr").endswith(
            "/?url=https%3A%2F%2Fexample.org%2Fc.zarr"
        )


def test_what_is_no_store_or_has_no_page_is_said(page, tmp_path, capsys):
    assert main(["view", str(tmp_path)]) == 1
    assert "is not the folder of a Zarr store" in capsys.readouterr().err
    (page / "index.html").unlink()
    assert main(["view", "--export", str(tmp_path / "site")]) == 1
    assert "make readers" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@pytest.fixture
def stores(tmp_path, monkeypatch):
    """Stores of one cube by name: TEC in both formats, without TEC, and with an overview."""
    ds = synthetic.dataset(dates=3, size=128, bands=BANDS, clouds=False)[["reflectance"]]
    chunks = {"time": 2, "y": 64, "x": 64}
    for name, zarr_format in (("v3", 3), ("v2", 2)):
        tec = tec_zarr.encoding(ds, chunks=chunks, zarr_format=zarr_format)
        ds.to_zarr(tmp_path / f"{name}.zarr", encoding=tec, zarr_format=zarr_format)
    plain = ds.reflectance.to_dataset("band")
    plain.to_zarr(tmp_path / "plain.zarr")
    monkeypatch.setattr(overviews, "SMALLEST", 96)  # cells of the last row and column are cut
    wide = synthetic.dataset(dates=3, size=191, bands=BANDS, clouds=False)[["reflectance"]]
    wide.tec.to_zarr(tmp_path / "levels.zarr", overviews=True, chunks=chunks)
    return {name: tmp_path / f"{name}.zarr" for name in ("v3", "v2", "plain", "levels")}


def test_the_page_shows_stores(stores, tmp_path):
    if not shutil.which("node") or not (READER / "node_modules").is_dir():
        pytest.skip("Node.js or the npm packages are missing: make readers-test")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    sources = [p for p in (READER.parent / "view").iterdir() if p.suffix != ".mjs"]
    index = view.PAGE / "index.html"
    if not index.is_file() or index.stat().st_mtime < max(p.stat().st_mtime for p in sources):
        pytest.skip("the page is missing or older than its sources: make readers")
    cases, servers = [], []
    for name, path in stores.items():
        ds = xr.open_zarr(path, group="0" if name == "levels" else None)
        pixels = (
            ds.reflectance
            if name != "plain"
            else ds[BANDS].to_dataarray("band").transpose("time", ...)
        )
        servers.append(serving(path))
        cases.append({
            "name": name, "address": servers[-1].__enter__(),
            "bands": [*map(str, pixels.band.values)],
            "dates": [str(d)[:10] for d in pixels.time.values], "values": pixels.values.tolist(),
            "overviews": int(name == "levels"),
        })  # fmt: skip
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    try:
        done = subprocess.run(
            ["node", "--test", "test/view.test.js"], cwd=READER, capture_output=True, text=True,
            timeout=300, env={**os.environ, "TEC_VIEW_CASES": str(tmp_path / "cases.json")},
        )  # fmt: skip
    finally:
        for server in servers:
            server.__exit__(None, None, None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE), done.stdout
