"""The command line, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy
import xarray as xr

from tec_zarr import synthetic
from tec_zarr.cli import main

SHARED = Path(__file__).parents[2] / "shared" / "data" / "eval"
TOY = ["--model", toy.NAME, "--quality", "6"]


@pytest.fixture
def cube():
    return synthetic.dataset(dates=2, size=64)


@pytest.fixture
def source(cube, tmp_path):
    cube.to_zarr(tmp_path / "source.zarr")
    return tmp_path / "source.zarr"


def run(*arguments):
    return main([str(a) for a in arguments])


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", ["encode", "decode", "transcode"])
def test_the_source_is_never_the_target(source, tmp_path, monkeypatch, capsys, command):
    before = contents(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(source)
    tokens = ["--tokens", 2] if command == "transcode" else []
    for target in (source, f"../{source.name}", tmp_path / "link", tmp_path):
        assert run(command, source, target, "--overwrite", *tokens) == 1
        assert "is the source, or holds it" in capsys.readouterr().err
    (tmp_path / "link").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "typo.zarr", "--overwrite"),
        ("encode", "source.zarr", "--overwrite", "--quality", 9),
        ("encode", "source.zarr", "--overwrite", "--max-bytes", 5),
        ("encode", "source.zarr"),
        ("decode", "typo.zarr", "--overwrite"),
        ("transcode", "source.zarr", "--overwrite", "--tokens", 99),
    ],
)
def test_what_fails_leaves_everything_as_it_was(source, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    command, name, *options = arguments
    for there in (False, True):
        if there:
            xr.Dataset({"kept": ("x", [1, 2, 3])}).to_zarr("good.zarr")
        elif len(options) == 0:
            continue
        before = contents(tmp_path)
        assert run(command, name, "good.zarr", *options) == 1
        assert contents(tmp_path) == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["good.zarr"] * there + [source.name]


def test_an_address_that_is_none_is_named(source, tmp_path, capsys):
    pytest.importorskip("distributed")
    assert run("recompress", source, tmp_path / "out.zarr", "--scheduler", "localhost") == 1
    assert "--scheduler localhost" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()


def test_overwrite_replaces_a_store(source, tmp_path):
    target = tmp_path / "new" / "good.zarr"
    assert run("encode", source, target, *TOY) == 0
    (target / "leftover").write_text("of another store")
    assert run("encode", source, target, "--overwrite", *TOY) == 0
    assert not (target / "leftover").exists()
    assert xr.open_zarr(target).reflectance.shape == (2, 12, 64, 64)
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_demo_prints_a_table_and_draws_a_picture(tmp_path, capsys):
    assert run("demo", "--out", tmp_path, *TOY) == 0
    out = capsys.readouterr().out
    for word in ("raw size", "ratio", "bits per pixel per band", "PSNR", "MB/s", "B8A"):
        assert word in out
    assert "nodata exact             yes" in out
    assert (tmp_path / "quicklook.png").read_bytes()[:4] == b"\x89PNG"


def test_encode_info_verify_decode(source, tmp_path, capsys):
    tec, plain = tmp_path / "tec.zarr", tmp_path / "plain.zarr"
    assert run("encode", source, tec, *TOY) == 0
    assert run("info", tec) == 0
    out = capsys.readouterr().out
    assert "TEC toy q=6" in out
    assert run("verify", source, tec) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split()[0] == "band"
    worst = float(next(r for r in rows if r.startswith("all")).split()[-1])
    assert 0 < worst <= 2.6
    assert run("decode", tec, plain) == 0
    xr.testing.assert_identical(xr.open_zarr(plain).load(), xr.open_zarr(tec).load())


def test_zarr_format_2(source, tmp_path, capsys):
    assert run("encode", source, tmp_path / "tec.zarr", "--zarr-format", 2, *TOY) == 0
    assert "TEC toy" in capsys.readouterr().out


def test_geotiffs_out_and_in_again(source, cube, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    tec, tiffs = tmp_path / "tec.zarr", tmp_path / "tiffs"
    assert run("encode", source, tec, *TOY) == 0
    assert run("decode", tec, tiffs, "--to", "geotiff") == 0
    files = sorted(tiffs.glob("reflectance_*.tif"))
    assert len(files) == 2
    with rasterio.open(files[0]) as file:
        assert file.crs is not None
        assert file.descriptions[1] == "B02"
        decoded = xr.open_zarr(tec).reflectance[0].values
        np.testing.assert_array_equal(file.read(), decoded)
    for scl in tiffs.glob("scl_*"):
        scl.unlink()
    assert run("verify", source, tiffs) == 0


def test_netcdf_in(cube, tmp_path):
    pytest.importorskip("h5netcdf")
    cube.to_netcdf(tmp_path / "cube.nc", engine="h5netcdf")
    assert run("encode", tmp_path / "cube.nc", tmp_path / "tec.zarr", *TOY) == 0
    assert run("verify", tmp_path / "cube.nc", tmp_path / "tec.zarr") == 0


def test_an_existing_target_is_not_replaced_by_accident(source, tmp_path, capsys):
    (tmp_path / "tec.zarr").mkdir()
    assert run("encode", source, tmp_path / "tec.zarr", *TOY) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run("encode", source, tmp_path / "tec.zarr", "--overwrite", *TOY) == 0


@pytest.mark.parametrize("command", ["encode", "decode", "verify"])
def test_a_missing_input_is_named(command, tmp_path, capsys):
    assert run(command, tmp_path / "nothing.zarr", tmp_path / "out.zarr") == 1
    assert "nothing.zarr does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/eval beside this checkout")
def test_demo_runs_on_an_evaluation_cube(tmp_path, capsys):
    path = min(SHARED.glob("*.npz"), key=lambda p: p.stat().st_size)
    assert run("demo", "--input", path, "--out", tmp_path, *TOY) == 0
    assert "nodata exact             yes" in capsys.readouterr().out
