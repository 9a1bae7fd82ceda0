"""The HTML report: self-contained, bounded in size, and it says what was measured."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import toy
import xarray as xr
import zarr
from zarr.codecs import ShardingCodec

import tec_zarr
from tec_zarr.compare import classical
from tec_zarr.compare import curves as compare_curves
from tec_zarr.compare import page as html_report
from tec_zarr.cubes import synthetic
from tec_zarr.errors import LimitError, UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.stores import chunks

TOY = ["--model", toy.NAME, "--quality", "6"]


@pytest.fixture(scope="module")
def cube():
    return synthetic.dataset(dates=2, size=64)[["reflectance"]]


@pytest.fixture
def source(cube, tmp_path):
    cube.to_zarr(tmp_path / "source.zarr")
    return tmp_path / "source.zarr"


@pytest.fixture
def quick(monkeypatch):
    """Without the curves of the codecs, which take most of the time."""
    monkeypatch.setattr(compare_curves, "QUALITIES", (4.0,))
    monkeypatch.setattr(classical, "available", lambda: ())


def _data(text):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def _noisy(cube, dn=40):
    noise = np.random.default_rng(0).integers(-dn, dn + 1, cube.reflectance.shape)
    values = np.where(cube.reflectance == 0, 0, np.clip(cube.reflectance + noise, 1, 65535))
    return cube.reflectance.copy(data=values.astype("uint16"))


def test_the_command_writes_a_page_that_loads_nothing(source, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(source), str(page), *TOY]) == 0
    text = page.read_text()
    assert "default-src 'none'" in text
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", text) == []
    assert "://" not in re.sub(r'id="data">.*?</script>', "", text, flags=re.S)
    assert "made for this report" in text
    assert "JPEG 2000" in text


def test_the_page_of_a_store_says_what_is_stored(source, cube, tmp_path, quick):
    store = tmp_path / "tec.zarr"
    settings = tec_zarr.encoding(cube, model=toy.NAME, quality=6, chunks={"y": 32, "x": 32})
    cube.to_zarr(store, encoding=settings)
    page = tmp_path / "page.html"
    assert main(["report", str(source), str(store), "--html", str(page)]) == 0
    text = page.read_text()
    array = zarr.open_group(store)["reflectance"]
    assert f"{cube.reflectance.nbytes / array.nbytes_stored():.1f} : 1" in text
    bits = _data(text)["chunks"]["bits"]
    assert np.shape(bits) == (1, 2, 2)
    mean = 8 * chunks.chunk_bytes(array).sum() / array.size
    assert np.mean(bits) == pytest.approx(mean, rel=1e-3)
    assert "&quot;quality&quot;: 6.0" in text


def test_the_tables_are_those_of_report(cube, quick):
    decoded = _noisy(cube)
    table = decoded.tec.report(cube.reflectance)
    text = html_report.page(cube.reflectance, decoded)
    assert f"{table.loc['all', 'psnr']:.2f} dB" in text
    row = re.search(r"<tr><td>B8A</td>(.*?)</tr>", text)[1]
    assert f"<td>{table.loc['B8A', 'psnr']:.2f}</td>" in row
    assert f"<td>{table.loc['B8A', 'max_error']:.0f}</td>" in row
    assert f"<td>{table.loc['NDVI', 'mean_abs_error']:.5f}</td>" in text


def test_the_accessor_writes_the_same_page(cube, quick, tmp_path):
    decoded = _noisy(cube)
    decoded.tec.report(cube.reflectance, html=tmp_path / "page.html")
    text = html_report.page(cube.reflectance, decoded)
    assert (tmp_path / "page.html").read_text() == text


def test_maps_and_histograms_show_the_errors(cube, quick):
    decoded = cube.reflectance.copy(deep=True)
    values = decoded.values.astype(np.int32)
    values[1, 3, 8:12, 20:24] += 300
    decoded.values[...] = np.where(cube.reflectance == 0, 0, values).astype("uint16")
    data = _data(html_report.page(cube.reflectance, decoded))
    maps = data["maps"]
    shape = len(maps["dates"]), len(maps["bands"]), maps["rows"], maps["columns"]
    image = np.frombuffer(base64.b64decode(maps["values"]), np.uint8).reshape(shape)
    band = maps["bands"].index("B04")
    assert image[0].max() == 0
    assert set(zip(*np.nonzero(image[1, band]), strict=True)) == {
        (y, x) for y in range(8, 12) for x in range(20, 24)
    }
    assert maps["largest"][len(maps["bands"]) + band] == 300
    errors = data["errors"]
    assert sum(errors["shares"][errors["bands"].index("B04")]) == pytest.approx(1, abs=0.01)


def test_pictures_are_png_of_the_original_and_the_decoded(cube, quick):
    imagecodecs = pytest.importorskip("imagecodecs")
    decoded = cube.reflectance.copy(deep=True)
    decoded.values[0, 3] += np.uint16(500)
    data = _data(html_report.page(cube.reflectance, decoded))
    assert data["composites"] == ["true colour", "near infrared", "short-wave infrared"]
    images = data["pictures"][0]["images"][0]
    before, after = (imagecodecs.png_decode(base64.b64decode(i)).astype(int) for i in images)
    assert before.shape == (64, 64, 3)
    red, *others = np.abs(after - before).reshape(-1, 3).mean(axis=0)
    assert red > 1
    assert max(others) == 0


def test_every_codec_of_the_rate_card_has_a_curve_of_its_own(cube, monkeypatch):
    def code(dn, level):
        return round(dn.nbytes / level), dn + np.uint16(level)

    codecs = tuple(classical.Quick(f"codec {n}", (2 + n, 9 + n), code) for n in range(7))
    monkeypatch.setattr(compare_curves, "QUALITIES", (4.0,))
    monkeypatch.setattr(classical, "available", lambda: codecs)
    text = html_report.page(cube.reflectance, _noisy(cube))
    curves = re.findall(r'<polyline points="([^"]+)"[^>]*style="([^"]+)"/>', text)
    marks = re.findall(r'<i style="([^"]+)"></i>([^<]+)</span>', text)
    assert [name for _, name in marks][1:] == [codec.title for codec in codecs]
    assert len({style for _, style in curves}) == len({style for style, _ in marks}) == 8
    assert len({points for points, _ in curves}) == 8


def test_wrong_nodata_stands_out(cube, quick):
    assert ">exact</b><span>nodata" in html_report.page(cube.reflectance, _noisy(cube))
    decoded = _noisy(cube)
    decoded.values[0, 0, 5, 5] = 0
    assert ">1 wrong</b><span>nodata" in html_report.page(cube.reflectance, decoded)


def test_noise_of_any_size_stays_under_ten_megabytes(quick, monkeypatch):
    values = np.random.default_rng(0).integers(1, 9000, (4, 12, 300, 300)).astype("uint16")
    names = {"band": list(synthetic.L2A_BANDS)}
    noise = xr.DataArray(values, names, ("time", "band", "y", "x"))
    monkeypatch.setattr(compare_curves, "rate_card", lambda *_: "")
    monkeypatch.setattr("tec_zarr.compare.page.rate_card", lambda *_: "")
    text = html_report.page(noise, noise.copy(data=values[..., ::-1]))
    assert 4e6 < len(text.encode()) < 10e6


def test_one_band_and_one_date_are_enough(quick):
    values = np.random.default_rng(0).integers(1, 9000, (40, 50)).astype("uint16")
    image = xr.DataArray(values, dims=("y", "x"), name="B08")
    data = _data(html_report.page(image, image))
    assert data["composites"] == ["B08 only"]
    assert data["maps"]["bands"] == ["all bands", "B08"]


def test_text_of_the_data_cannot_break_the_page(cube, quick):
    evil = cube.reflectance.assign_attrs(title="</script><script>alert(1)</script>")
    text = html_report.page(evil, evil, title="<b>&", facts={"a<i>": "</table>"})
    assert "<script>alert" not in text
    assert "&lt;b&gt;&amp;" in text
    assert "a&lt;i&gt;" in text


def test_what_can_not_be_compared_is_refused(cube, monkeypatch):
    with pytest.raises(UnsupportedArrayError, match="nothing to compare"):
        html_report.page(cube.reflectance, cube.reflectance[:1])
    small = cube.reflectance[..., :8, :8]
    with pytest.raises(UnsupportedArrayError, match="too few"):
        html_report.page(small, small)
    monkeypatch.setattr(html_report, "MAX_SAMPLES", 1000)
    with pytest.raises(LimitError, match="isel"):
        html_report.page(cube.reflectance, cube.reflectance)


@pytest.mark.parametrize("shards", [None, (2, 64)])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_bytes_of_chunks_are_those_in_the_store(tmp_path, zarr_format, shards):
    if zarr_format == 2 and shards:
        pytest.skip("Zarr 2 has no shards")
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, shape=(3, 100), chunks=(1, 32), shards=shards, dtype="uint16", fill_value=0,
        zarr_format=zarr_format, config={"write_empty_chunks": False},
    )  # fmt: skip
    array[:, :64] = np.random.default_rng(0).integers(1, 999, (3, 64))
    sizes = chunks.chunk_bytes(zarr.open_array(path))
    assert sizes.shape == (3, 4)
    assert (sizes[:, :2] > 0).all()
    assert (sizes[:, 2:] == 0).all()
    if shards is None:
        skip = {".zarray", ".zattrs", "zarr.json"}
        files = [p for p in path.rglob("*") if p.is_file() and p.name not in skip]
        assert sizes.sum() == sum(p.stat().st_size for p in files)


@pytest.mark.parametrize(("location", "found"), [("end", 8), ("start", 0)])
def test_headers_of_all_chunks_of_a_shard_are_read(tmp_path, location, found):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2, 3, 32, 32), dtype="uint16",
        chunks=(2, 3, 32, 32), compressors=None,
        serializer=ShardingCodec(
            chunk_shape=(1, 3, 16, 16), codecs=[tec_zarr.TECCodec(max_error=0)],
            index_location=location,
        ),
    )  # fmt: skip
    array[:] = np.random.default_rng(0).integers(1, 999, array.shape)
    assert len(list(chunks.frame_heads(array))) == found
    assert chunks.holds_frames(array) == bool(found)
    assert (chunks.chunk_bytes(array) > 100).sum() == 8


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_runs_the_page_without_an_error(cube, tmp_path, quick):
    page = tmp_path / "page.html"
    page.write_text(html_report.page(cube.reflectance, _noisy(cube)))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000",
               "--dump-dom", f"file://{page}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Uncaught" not in done.stderr
    assert "Refused" not in done.stderr
    assert done.stdout.count("<option") > 20
    assert 'class="bar"' in done.stdout  # the histogram that the script drew
    assert re.search(r'<span id="step">[\d.]+</span>', done.stdout)
