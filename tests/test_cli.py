"""The command line, as a user runs it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy
import xarray as xr

from tec_zarr import interrupted
from tec_zarr.cubes import synthetic
from tec_zarr.errors import SecondGenerationWarning
from tec_zarr.face.cli import main

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


def test_overwrite_follows_a_link_and_spares_the_working_folder(source, tmp_path, monkeypatch):
    elsewhere = tmp_path / "disk" / "real.zarr"
    elsewhere.parent.mkdir()
    (tmp_path / "link.zarr").symlink_to(elsewhere)
    for _ in range(2):
        assert run("encode", source, tmp_path / "link.zarr", "--overwrite", *TOY) == 0
        assert (tmp_path / "link.zarr").is_symlink()
        assert xr.open_zarr(elsewhere).reflectance.shape == (2, 12, 64, 64)
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    before = contents(tmp_path)
    for target in (".", ".."):
        assert run("encode", source, target, "--overwrite", *TOY) == 1
    assert contents(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interruption_leaves_nothing(tmp_path, name):
    """Once the command is repeated, where it was killed."""
    synthetic.dataset(dates=12, size=128).to_zarr(tmp_path / "s.zarr")
    code = (
        "import os, signal, sys, threading, time\n"
        "from pathlib import Path\n"
        "from tec_zarr.face.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal\n"
        "def stop():\n"
        "    while not list(Path().glob('.o.zarr-*/o.zarr/reflectance/c/*')): time.sleep(0.005)\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        "sys.exit(main(['encode', 's.zarr', 'o.zarr', '--quality', '6']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True
    )
    if name == "SIGKILL":
        assert done.returncode == -signal.SIGKILL
        assert [p.name[:8] for p in sorted(tmp_path.iterdir())] == [".o.zarr-", "s.zarr"]
        assert run("encode", tmp_path / "missing.zarr", tmp_path / "o.zarr") == 1
    else:
        assert done.returncode == 128 + getattr(signal, name), done.stderr
        assert done.stderr.splitlines()[-1] == b"tec-zarr: interrupted"
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("killed", [True, False])
def test_interrupted_between_two_renames(source, tmp_path, monkeypatch, killed):
    """Neither lost: the old one is back at once, or after the next run that names it."""
    target = tmp_path / "good.zarr"
    xr.Dataset({"kept": ("x", [1, 2, 3])}).to_zarr(target)
    before = contents(target)
    rename = Path.rename

    def interrupt(self, to):
        if to == target and self.name == target.name:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupt)
        if killed:  # nothing is tidied, and the kernel drops the lock
            patch.setattr(interrupted, "_remove", lambda *_: None)
        assert run("encode", source, target, "--overwrite", *TOY) == 130
    if killed:
        assert not target.exists()
        other = tmp_path / "good.zarr-2"
        assert run("encode", source, other, *TOY) == 0  # its name begins alike
        assert run("encode", source, target, *TOY) == 1  # exists: it is back
        shutil.rmtree(other)
    assert contents(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.zarr", "source.zarr"]


def test_what_another_process_is_writing_stays(source, tmp_path):
    target = tmp_path / "out.zarr"
    with interrupted.hidden_folder(target) as folder:
        (folder / target.name).write_text("half")
        assert run("encode", source, target, *TOY) == 0
        assert (folder / target.name).read_text() == "half"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.zarr", "source.zarr"]


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


def lines(text, *starts):
    return {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.startswith(starts)}


@pytest.mark.parametrize("kind", ["dn", "reflectance"])
def test_verify_fails_where_a_date_is_gone(cube, tmp_path, capsys, kind):
    there = cube[["reflectance"]]
    if kind == "reflectance":
        there = there.where(there != 0) * np.float32(1e-4)
    there.to_zarr(tmp_path / "a.zarr")
    gone = there.copy(deep=True)
    gone.reflectance[1] = 0 if kind == "dn" else np.nan
    gone.to_zarr(tmp_path / "b.zarr")
    count = int((cube.reflectance[1] != 0).sum())
    for first, second, words in (
        ("a", "b", f"{count} are missing in B, 0 in A"),
        ("b", "a", f"0 are missing in B, {count} in A"),
    ):
        assert run("verify", tmp_path / f"{first}.zarr", tmp_path / f"{second}.zarr") == 1
        out = capsys.readouterr().out
        assert f"nodata differs in {count} samples: {words}" in out
        psnr, worst = (float(lines(out, "all")["all"][i]) for i in (0, -1))
        if first == "a":
            assert psnr < 30
            assert worst == pytest.approx(int(cube.reflectance[1].max()), abs=0.01)


def test_verify_reads_floats_that_are_dn_as_dn(cube, source, tmp_path, capsys):
    shifted = (cube.reflectance + 10).where(cube.reflectance != 0).astype("float32")
    shifted.to_dataset().to_zarr(tmp_path / "floats.zarr")
    assert run("verify", source, tmp_path / "floats.zarr") == 0
    assert lines(capsys.readouterr().out, "all")["all"][1:] == ["10.00", "10.00", "10.00"]


def test_verify_aligns_bands_and_refuses_other_dates(cube, source, tmp_path, capsys):
    cube.isel(band=slice(None, None, -1)).to_zarr(tmp_path / "turned.zarr")
    assert run("verify", source, tmp_path / "turned.zarr") == 0
    assert lines(capsys.readouterr().out, "all")["all"] == ["inf", "0.00", "0.00", "0.00"]
    later = cube.assign_coords(time=cube.time + np.timedelta64(1, "D"))
    later.to_zarr(tmp_path / "later.zarr")
    assert run("verify", source, tmp_path / "later.zarr") == 1
    assert f"{source} and {tmp_path / 'later.zarr'} differ along 'time'" in capsys.readouterr().err
    assert run("report", source, tmp_path / "later.zarr", "--html", tmp_path / "page.html") == 1


@pytest.fixture
def tiffs(cube, tmp_path):
    """A folder of int16 GeoTIFFs, one per date, with nodata -999."""
    pytest.importorskip("rioxarray")
    folder = tmp_path / "tiffs"
    folder.mkdir()
    for date in cube.reflectance.astype("int16").where(cube.reflectance != 0, -999):
        date.encoding.clear()
        image = date.assign_attrs(long_name=tuple(date.band.values)).drop_vars("band")
        file = folder / f"S2_{date.time.dt.strftime('%Y%m%dT%H%M%S').item()}.tif"
        image.rio.write_nodata(-999).rio.to_raster(file)
    return folder


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_nodata_of_geotiffs_is_nodata_of_the_store(cube, tiffs, tmp_path, capsys, zarr_format):
    tec = tmp_path / "tec.zarr"
    assert run("encode", tiffs, tec, "--zarr-format", zarr_format, *TOY) == 0
    back = xr.open_zarr(tec).reflectance
    assert (cube.reflectance == 0).any()
    np.testing.assert_array_equal(np.isnan(back), cube.reflectance == 0)
    np.testing.assert_array_equal(back.time, cube.time)
    assert float(abs(back - cube.reflectance).max()) < 3
    assert run("verify", tiffs, tec) == 0
    assert float(lines(capsys.readouterr().out, "all")["all"][-1]) < 3
    assert run("decode", tec, tmp_path / "again", "--to", "geotiff") == 0
    import rasterio

    with rasterio.open(min((tmp_path / "again").iterdir())) as file:
        assert (file.nodata, file.dtypes[0]) == (-999, "int16")


def test_float_geotiffs_with_a_nodata_value_have_nan(cube, tmp_path):
    pytest.importorskip("rioxarray")
    image = cube.reflectance[1].assign_attrs(long_name=tuple(cube.band.values)).drop_vars("band")
    image.encoding.clear()
    floats = image.astype("float32").where(image != 0, -9999)
    floats.rio.write_nodata(-9999).rio.to_raster(tmp_path / "a.tif")
    assert run("encode", tmp_path / "a.tif", tmp_path / "tec.zarr", "--scale", 1, *TOY) == 0
    back = xr.open_zarr(tmp_path / "tec.zarr").reflectance[0]
    np.testing.assert_array_equal(np.isnan(back), image == 0)
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "tif", "--to", "geotiff") == 0
    import rasterio

    with rasterio.open(next((tmp_path / "tif").iterdir())) as file:
        assert (file.nodata, file.dtypes[0]) == (-9999, "float32")
        np.testing.assert_array_equal(file.read() == -9999, image == 0)


def test_geotiffs_of_several_nodata_values_are_refused(tiffs, tmp_path, capsys):
    import rasterio

    first, last = sorted(tiffs.iterdir())
    with rasterio.open(last, "r+") as file:
        file.nodata = 0
    assert run("encode", tiffs, tmp_path / "tec.zarr", *TOY) == 1
    assert f"{first} has nodata -999, {last} has 0" in capsys.readouterr().err


def test_what_decode_writes_as_geotiffs_encode_reads_again(cube, source, tmp_path, capsys):
    pytest.importorskip("rioxarray")
    cube = cube.assign(water=cube.scl == 6, sun_zenith=("time", [40.0, 41.0]))
    cube.to_zarr(source, mode="w")
    tiffs, back = tmp_path / "tiffs", tmp_path / "back.zarr"
    assert run("decode", source, tiffs, "--to", "geotiff") == 0
    said = capsys.readouterr().out
    assert "wrote 6 GeoTIFFs" in said
    assert "images only: sun_zenith" in said
    assert run("encode", tiffs, back, "--max-error", 0, *TOY) == 0
    again = xr.open_zarr(back)
    for coordinate in ("time", "band", "y", "x"):
        np.testing.assert_array_equal(again[coordinate], cube[coordinate])
    np.testing.assert_array_equal(again.reflectance, cube.reflectance)
    assert run("verify", source, back) == 0
    import rasterio

    for name in ("scl", "water"):
        for path, image in zip(sorted((tiffs / name).glob("*.tif")), cube[name], strict=True):
            with rasterio.open(path) as file:
                assert file.dtypes == ("uint8",)
                np.testing.assert_array_equal(file.read(1), image)


def test_geotiffs_beside_a_cube_that_are_no_bands_are_named(cube, source, tmp_path, capsys):
    pytest.importorskip("rioxarray")
    assert run("decode", source, tmp_path / "tiffs", "--to", "geotiff") == 0
    stray = min((tmp_path / "tiffs" / "scl").iterdir()).rename(tmp_path / "tiffs" / "scl_0.tif")
    assert run("encode", tmp_path / "tiffs", tmp_path / "tec.zarr", *TOY) == 1
    assert f"{stray} names no Sentinel-2 bands" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "reads"),
    [(np.timedelta64(300, "ms"), True), (np.timedelta64(1, "ns"), True),
     (np.timedelta64(0, "s"), False)],
)  # fmt: skip
def test_every_date_has_a_geotiff_of_its_own(cube, tmp_path, step, reads):
    pytest.importorskip("rioxarray")
    from tec_zarr.cubes.files import open_cube
    from tec_zarr.cubes.geotiff import write_geotiffs

    close = cube.time.values[:1] + np.arange(2) * step
    files = write_geotiffs(cube.assign_coords(time=close), tmp_path)
    assert len(set(files)) == 4 == len([*tmp_path.rglob("*.tif")])
    if reads:
        again = open_cube(tmp_path)
        np.testing.assert_array_equal(again.time, close)
        np.testing.assert_array_equal(again.reflectance, cube.reflectance)


@pytest.mark.parametrize(
    "arrays",
    [
        {"dn": (1, 5, 16, 16)},
        {"dn": (1, 5, 16, 16), "present": (12,)},
        {"dn": (1, 12, 16, 16), "present": (5,)},
        {"dn": (12, 16, 16)},
    ],
)
def test_an_npz_of_another_shape_says_what_it_must_hold(arrays, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **{name: np.ones(shape, int) for name, shape in arrays.items()})
    assert run("encode", tmp_path / "a.npz", tmp_path / "tec.zarr", *TOY) == 1
    error = capsys.readouterr().err
    assert f"a.npz has 'dn' of shape {arrays['dn']}" in error
    assert "must hold 'dn' (time, 12, y, x)" in error


def test_present_of_an_npz_may_be_numbers(cube, tmp_path):
    from tec_zarr.cubes.files import open_cube

    present = np.arange(12) % 2
    np.savez(tmp_path / "a.npz", dn=cube.reflectance.values, present=present)
    opened = open_cube(tmp_path / "a.npz").reflectance
    np.testing.assert_array_equal(opened, cube.reflectance[:, 1::2])
    assert opened.band.values.tolist() == cube.band.values[1::2].tolist()


def test_info_of_what_is_not_there_says_so(tmp_path, capsys):
    assert run("info", tmp_path / "nothing.zarr") == 1
    assert "nothing.zarr does not exist" in capsys.readouterr().err


def test_writing_geotiffs_leaves_the_cube_as_it_was(cube, tmp_path):
    pytest.importorskip("rioxarray")
    from tec_zarr.cubes.geotiff import write_geotiffs

    image = cube.isel(time=0, drop=True)
    image.reflectance.attrs["levels"] = [1, 2]
    write_geotiffs(image, tmp_path)
    assert image.reflectance.attrs["levels"] == [1, 2]


def test_verify_knows_what_files_and_readers_change(source, cube, tmp_path, capsys):
    """Names of dimensions, fractions of seconds, and files by day."""
    cube["time"] = cube.time + np.timedelta64(24, "ms")
    cube.to_zarr(tmp_path / "ms.zarr")
    renamed = cube.rename(y="latitude", x="longitude", time="t")
    renamed.to_zarr(tmp_path / "renamed.zarr")
    days = cube.assign_coords(time=cube.time.values.astype("M8[D]").astype("M8[ns]"))
    days.to_zarr(tmp_path / "days.zarr")
    for other in (source, tmp_path / "renamed.zarr", tmp_path / "days.zarr"):
        assert run("verify", tmp_path / "ms.zarr", other) == 0
    later = cube.assign_coords(time=cube.time + np.timedelta64(2, "s"))
    later.to_zarr(tmp_path / "later.zarr")
    assert run("verify", tmp_path / "ms.zarr", tmp_path / "later.zarr") == 1
    assert "differ along 'time'" in capsys.readouterr().err


def test_a_measured_reflectance_of_zero_is_no_nodata(cube, tmp_path):
    """As in EOPF: 0 is stored as 1000."""
    values = (cube.reflectance * 1e-4).where(cube.reflectance != 0)
    values[0, 0, :20] = 0.0
    packing = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
    values.to_dataset().to_zarr(tmp_path / "s.zarr", encoding={"reflectance": packing})
    assert run("encode", tmp_path / "s.zarr", tmp_path / "a.zarr", *TOY) == 0
    assert run("verify", tmp_path / "s.zarr", tmp_path / "a.zarr") == 0


def test_encode_takes_the_arrays_that_are_named(cube, tmp_path):
    cube.rename(reflectance="dem").drop_vars("band").to_zarr(tmp_path / "s.zarr")
    assert run("encode", tmp_path / "s.zarr", tmp_path / "a.zarr", *TOY) == 1
    named = ("--variables", "dem")
    assert run("encode", tmp_path / "s.zarr", tmp_path / "a.zarr", *TOY, *named) == 0
    assert run("verify", tmp_path / "a.zarr", tmp_path / "a.zarr") == 0


def test_zeros_of_float_geotiffs_without_nodata_are_zeros(tmp_path):
    rioxarray = pytest.importorskip("rioxarray")
    values = np.linspace(0, 0.5, 3 * 20 * 20, dtype="float32").reshape(3, 20, 20)
    values[:, :4] = 0
    places = {"y": 5e6 - 10.0 * np.arange(20), "x": 4e5 + 10.0 * np.arange(20)}
    image = xr.DataArray(values, places, ("band", "y", "x")).rio.write_crs("EPSG:32632")
    image.attrs["long_name"] = ("B02", "B03", "B04")
    (tmp_path / "tif").mkdir()
    image.rio.to_raster(tmp_path / "tif" / "a_20230601T250000.tif")
    image.rio.write_nodata(np.nan).rio.to_raster(tmp_path / "tif" / "a_20230602.tif")
    assert rioxarray.open_rasterio(tmp_path / "tif" / "a_20230602.tif").rio.nodata is not None
    assert run("encode", tmp_path / "tif", tmp_path / "a.zarr", "--max-error", 0, *TOY[:2]) == 0
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance
    np.testing.assert_array_equal(back, np.stack([values, values]))


# ---- what people have


def tiff(file, values, *, names=None, tags=None, nodata=None, west=4e5):
    """A GeoTIFF of bands (band, y, x) with descriptions or tags, or without."""
    rasterio = pytest.importorskip("rasterio")
    count, height, width = values.shape
    file.parent.mkdir(exist_ok=True, parents=True)
    with rasterio.open(
        file, "w", driver="GTiff", dtype=values.dtype, count=count, height=height, width=width,
        crs="EPSG:32632", transform=rasterio.transform.from_origin(west, 5e6, 10, 10),
        nodata=nodata,
    ) as out:  # fmt: skip
        out.write(values)
        for i, name in enumerate(names or (), start=1):
            out.set_band_description(i, name)
        for i, name in enumerate(tags or (), start=1):
            out.update_tags(i, DESCRIPTION=name)
    return file


THREE = ("B04", "B03", "B02")


@pytest.fixture
def image(cube):
    return cube.reflectance.sel(band=list(THREE))[0].values


def test_geotiffs_without_names_are_named_once(image, tmp_path, capsys):
    """And verified, reported and demoed without naming them again."""
    bare, tec = tiff(tmp_path / "a_20230601.tif", image), tmp_path / "tec.zarr"
    assert run("encode", bare, tec, *TOY) == 1
    assert "the 3 bands of 'reflectance' have no names" in capsys.readouterr().err
    assert run("encode", bare, tec, *TOY, "--bands", *THREE[:2]) == 1
    assert "bands names 2 bands (B04, B03); 'reflectance' has 3" in capsys.readouterr().err
    assert run("encode", bare, tec, *TOY, "--bands", *THREE) == 0
    assert "bands taken: 1 as B04, 2 as B03, 3 as B02" in capsys.readouterr().out
    assert xr.open_zarr(tec).band.values.tolist() == list(THREE)
    assert run("verify", bare, tec) == 0
    assert lines(capsys.readouterr().out, *THREE).keys() == set(THREE)
    assert run("report", bare, tec, "--html", tmp_path / "page.html") == 0
    assert "B04" in (tmp_path / "page.html").read_text()
    with pytest.warns(SecondGenerationWarning):
        assert run("demo", "--input", tec, "--out", tmp_path / "demo", *TOY) == 0
    assert run("demo", "--input", bare, "--out", tmp_path / "demo", *TOY, "--bands", *THREE) == 0


def test_arrays_that_count_their_bands_are_named_in_every_command(image, tmp_path, capsys):
    ds = xr.Dataset({"cube": (("band", "y", "x"), image)}, {"band": [1, 2, 3]})
    ds.to_zarr(tmp_path / "a.zarr")
    named = (*TOY, "--bands", *THREE)
    assert run("recompress", tmp_path / "a.zarr", tmp_path / "b.zarr", *TOY) == 1
    assert "--bands" in capsys.readouterr().err
    assert run("recompress", tmp_path / "a.zarr", tmp_path / "b.zarr", *named) == 0
    capsys.readouterr()
    assert run("verify", tmp_path / "a.zarr", tmp_path / "b.zarr") == 0
    assert lines(capsys.readouterr().out, *THREE).keys() == set(THREE)
    assert run("report", tmp_path / "a.zarr", tmp_path / "page.html", *named) == 0


@pytest.mark.parametrize(
    "said",
    [{"tags": THREE}, {"names": ("red", "green", "nbart_blue")},
     {"names": ("B4, central wavelength 665 nm", "B3, central wavelength 560 nm", "B2 (490 nm)")}],
)  # fmt: skip
def test_what_a_geotiff_says_of_its_bands_is_heard(image, tmp_path, said):
    file = tiff(tmp_path / "a.TIF", image, **said)
    assert run("encode", file, tmp_path / "tec.zarr", *TOY) == 0
    back = xr.open_zarr(tmp_path / "tec.zarr").reflectance
    assert back.band.values.tolist() == list(THREE)
    assert np.abs(back[0].values.astype(int) - image).max() < 3


def test_a_band_that_is_none_is_kept_without_loss_beside_the_others(cube, tmp_path, capsys):
    image = cube.reflectance[0].astype("int16").values
    classes = np.random.default_rng(0).integers(0, 12, (1, *image.shape[1:])).astype("int16")
    both = np.concatenate([image[:3], classes, image[3:]])
    names = [*cube.band.values[:3], "SCL", *cube.band.values[3:]]
    file = tiff(tmp_path / "a_20230601.tif", both, names=names)
    unnamed = tiff(tmp_path / "b_20230601.tif", both)
    for source, said in ((file, ()), (unnamed, ("--bands", *names))):
        tec = tmp_path / f"{source.stem}.zarr"
        assert run("encode", source, tec, *TOY, *said) == 0
        assert "SCL is no Sentinel-2 band: kept without loss" in capsys.readouterr().out
        back = xr.open_zarr(tec)
        np.testing.assert_array_equal(back.SCL[0], classes[0])
        assert back.reflectance.sizes["band"] == 12
        assert np.abs(back.reflectance[0].values.astype(int) - image).max() < 3
    assert run("verify", file, tmp_path / "a_20230601.zarr") == 0


def test_one_variable_a_band_is_stacked_and_comes_back_as_variables(cube, tmp_path, capsys):
    pytest.importorskip("h5netcdf")
    ds = cube.reflectance.sel(band=["B08", "B04"]).to_dataset("band")
    for name, da in ds.data_vars.items():
        da.attrs["long_name"] = f"band {name}"
    ds = ds.rename(B08="nbart_nir", B04="nbart_red").assign(scl=cube.scl)
    ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert run("encode", tmp_path / "a.nc", tmp_path / "tec.zarr", *TOY) == 0
    out = capsys.readouterr().out
    assert "2 variables stacked: nbart_red as B04, nbart_nir as B08" in out
    assert xr.open_zarr(tmp_path / "tec.zarr").reflectance.dims == ("time", "band", "y", "x")
    assert run("verify", tmp_path / "a.nc", tmp_path / "tec.zarr") == 0
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "plain.zarr") == 0
    back = xr.open_zarr(tmp_path / "plain.zarr").load()
    assert {"nbart_nir", "nbart_red", "scl"} <= set(back.data_vars)
    assert not {"reflectance", "band"} & set(back.variables)
    assert back.nbart_red.attrs["long_name"] == "band B04"
    assert np.abs(back.nbart_red.astype(int) - ds.nbart_red).max() < 3
    assert run("verify", tmp_path / "a.nc", tmp_path / "plain.zarr") == 0


def test_words_of_a_netcdf_stay_words(cube, tmp_path):
    pytest.importorskip("scipy")
    ds = cube[["reflectance"]].assign_coords(product=("time", ["first", "second, longer"]))
    ds["spatial_ref"] = ds.spatial_ref.astype("int32")
    ds.astype("int16").to_netcdf(tmp_path / "a.nc", engine="scipy", format="NETCDF3_64BIT")
    assert run("encode", tmp_path / "a.nc", tmp_path / "tec.zarr", *TOY) == 0
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as opened:
        opened.load().tec.to_zarr(tmp_path / "again.zarr", model=toy.NAME, quality=6)
    for store in (tmp_path / "tec.zarr", tmp_path / "again.zarr"):
        back = xr.open_zarr(store)
        assert back["product"].values.tolist() == ["first", "second, longer"]
        assert [str(b) for b in back.band.values] == cube.band.values.tolist()


def test_files_that_are_no_cube_say_what_to_do(image, tmp_path, capsys):
    tiff(tmp_path / "sizes" / "B02_20230601.tif", image[:1])
    tiff(tmp_path / "sizes" / "B05_20230601.tif", image[:1, ::2, ::2])
    tiff(tmp_path / "places" / "B02_20230601.tif", image[:1])
    tiff(tmp_path / "places" / "B02_20230602.tif", image[:1], west=5e5)
    tiff(tmp_path / "deep" / "20230601" / "B02.tif", image[:1])
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("sizes", "has 64 x 64 pixels.*has 32 x 32.*gdalwarp"),
        ("places", "lie in different places"),
        ("deep", r"holds no GeoTIFFs itself, but 1 in folders, such as .*B02\.tif"),
        ("empty", "holds neither a Zarr store nor GeoTIFFs"),
    ):
        assert run("encode", tmp_path / name, tmp_path / "tec.zarr", *TOY) == 1
        error = capsys.readouterr().err
        assert re.search(words, error)
        assert "damaged" not in error


def test_coordinates_of_files_that_differ_by_rounding_are_one_grid(image, tmp_path):
    tiff(tmp_path / "t" / "B02_20230601.tif", image[:1])
    tiff(tmp_path / "t" / "B03_20230601.tif", image[:1], west=4e5 + 1e-9)
    assert run("encode", tmp_path / "t", tmp_path / "tec.zarr", *TOY) == 0


def test_info_of_a_file_lists_what_is_in_it(cube, image, tmp_path, capsys):
    pytest.importorskip("h5netcdf")
    cube.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert run("info", tmp_path / "a.nc") == 0
    assert lines(capsys.readouterr().out, "reflectance")["reflectance"][0] == "2x12x64x64"
    assert run("info", tiff(tmp_path / "a.tif", image)) == 0
    assert lines(capsys.readouterr().out, "reflectance")["reflectance"][1] == "uint16"


def test_floats_have_one_raw_size_in_all_commands(cube, tmp_path, capsys):
    floats = (cube.reflectance * 1e-4).where(cube.reflectance != 0).astype("float32")
    floats.to_dataset().to_zarr(tmp_path / "a.zarr")
    raw = {}
    assert run("encode", tmp_path / "a.zarr", tmp_path / "tec.zarr", *TOY) == 0
    raw["encode"] = lines(capsys.readouterr().out, "reflectance")["reflectance"]
    assert run("info", tmp_path / "tec.zarr") == 0
    raw["info"] = lines(capsys.readouterr().out, "reflectance")["reflectance"]
    assert run("demo", "--input", tmp_path / "a.zarr", "--out", tmp_path / "demo", *TOY) == 0
    said = lines(capsys.readouterr().out, "raw size", "stored size")
    assert raw["encode"][3:5] == raw["info"][3:5] == said["raw"][1:]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_reader_that_has_seen_enough_is_no_error(source):
    command = [sys.executable, "-W", "ignore", "-m", "tec_zarr.face.cli", "info", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


# ---- what files say beside their values


@pytest.mark.parametrize("command", ["encode", "recompress"])
def test_nodata_can_be_told(cube, tmp_path, capsys, command):
    pytest.importorskip("rioxarray")
    import rasterio

    cube["reflectance"] = cube.reflectance.astype("int16").where(cube.reflectance != 0, -999)
    gone = (cube.reflectance == -999).values
    cube.to_zarr(tmp_path / "s.zarr")
    told = ("--nodata", -999, *TOY)
    assert run(command, tmp_path / "s.zarr", tmp_path / "tec.zarr", *told) == 0
    back = xr.open_zarr(tmp_path / "tec.zarr").reflectance
    np.testing.assert_array_equal(back == -999, gone)
    assert run("verify", tmp_path / "s.zarr", tmp_path / "tec.zarr") == 0
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "plain.zarr") == 0
    assert xr.open_zarr(tmp_path / "plain.zarr").reflectance.attrs["nodata"] == -999
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "tif", "--to", "geotiff") == 0
    with rasterio.open(min((tmp_path / "tif").glob("reflectance*"))) as file:
        assert (file.nodata, file.dtypes[0]) == (-999, "int16")


@pytest.fixture
def scaled(cube, tmp_path):
    """Two GeoTIFFs of DN that scale and offset make reflectance of, with tags and descriptions."""
    pytest.importorskip("rioxarray")
    (tmp_path / "scaled").mkdir()
    dn = (cube.reflectance + 1000).where(cube.reflectance != 0, 0).astype("uint16")
    for i, date in enumerate(dn.isel(band=[1, 2])):
        image = date.drop_vars("band").drop_attrs(deep=False)
        image.encoding.clear()
        image.attrs = {
            "long_name": ("B02", "B03"), "scale_factor": 1e-4, "add_offset": -0.1,
            "PROCESSOR": "sen2r", "DATE": str(i),
            "band_tags": [{"wavelength": "490"}, {"wavelength": "560"}],
        }  # fmt: skip
        image.rio.write_nodata(0).rio.to_raster(tmp_path / "scaled" / f"a_2023060{i + 1}.tif")
    return tmp_path / "scaled"


def test_geotiffs_keep_scale_offset_tags_and_descriptions_both_ways(cube, scaled, tmp_path):
    import rasterio

    assert run("encode", scaled, tmp_path / "tec.zarr", *TOY) == 0
    back = xr.open_zarr(tmp_path / "tec.zarr").reflectance
    truth = cube.reflectance.isel(band=[1, 2]) * 1e-4
    difference = np.abs(back.values - truth.values)[truth.values > 0]
    assert difference.max() < 3e-4
    codec = xr.open_zarr(tmp_path / "tec.zarr").reflectance.encoding["serializer"]
    assert (codec.offset, codec.scale) == (1000, 1)
    assert run("verify", scaled, tmp_path / "tec.zarr") == 0
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "tif", "--to", "geotiff") == 0
    old, new = (sorted(folder.iterdir()) for folder in (scaled, tmp_path / "tif"))
    for before, after in zip(old, new, strict=True):
        with rasterio.open(before) as a, rasterio.open(after) as b:
            assert b.scales == a.scales == (1e-4, 1e-4)
            assert b.offsets == a.offsets == (-0.1, -0.1)
            assert b.descriptions == a.descriptions == ("B02", "B03")
            assert (b.nodata, b.dtypes, b.crs) == (a.nodata, a.dtypes, a.crs)
            assert b.tags()["PROCESSOR"] == "sen2r"
            assert "DATE" not in b.tags()  # not the same in all files
            assert [b.tags(i)["wavelength"] for i in (1, 2)] == ["490", "560"]
            np.testing.assert_array_equal(a.read() == 0, b.read() == 0)
            assert np.abs(a.read().astype(int) - b.read()).max() < 3


def test_geotiffs_with_different_scales_are_kept_or_refused(scaled, tmp_path, capsys):
    import rasterio

    first, last = sorted(scaled.iterdir())
    with rasterio.open(last, "r+") as file:
        file.scales, file.offsets = (1e-4, 1e-3), (0.0, 0.0)
    assert run("encode", scaled, tmp_path / "tec.zarr", *TOY) == 1
    assert f"{first} has scale and offset [(0.0001, -0.1)], {last} has" in capsys.readouterr().err
    first.unlink()
    assert run("encode", scaled, tmp_path / "tec.zarr", *TOY) == 0
    assert run("verify", scaled, tmp_path / "tec.zarr") == 0
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "tif", "--to", "geotiff") == 0
    with rasterio.open(min((tmp_path / "tif").iterdir())) as file:
        assert (file.scales, file.offsets) == ((1e-4, 1e-3), (0.0, 0.0))


@pytest.mark.parametrize("holder", ["reflectance", "scl", None])
def test_attributes_of_the_old_open_rasterio_become_geotiffs(cube, tmp_path, holder):
    """``scales``, ``offsets``, ``nodatavals``: one number, or one a band; ``crs`` as text."""
    pytest.importorskip("rioxarray")
    import rasterio

    from tec_zarr.cubes.geotiff import write_geotiffs

    cube = cube.isel(time=[0]).drop_vars("spatial_ref")
    for da in cube.variables.values():
        da.attrs.pop("grid_mapping", None)
        da.encoding.pop("grid_mapping", None)
    (cube if holder is None else cube[holder]).attrs["crs"] = "+init=epsg:32652"
    cube.reflectance.attrs |= {"scales": np.ones(12), "offsets": 0.0, "nodatavals": (7.0,) * 12}
    cube.scl.attrs |= {"scales": 1.0, "offsets": [0.0], "res": [10.0, 10.0]}
    cube.to_zarr(tmp_path / "s.zarr")
    assert len(write_geotiffs(cube, tmp_path / "tif")) == 2
    for path in (tmp_path / "tif").rglob("*.tif"):
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32652
            assert set(file.scales) == {1.0}
            assert file.nodata == (7 if path.name.startswith("refl") else None)


def test_bands_in_variables_keep_their_nodata(cube, tmp_path):
    """As DEA and odc-stac store them: one array in the store, variables again after it."""
    dn = cube.reflectance.astype("int16").where(cube.reflectance != 0, -999)
    ds = dn.isel(band=[1, 2, 3]).to_dataset("band")
    for name in ds.data_vars:
        ds[name].attrs = {"nodata": -999.0}
    ds.to_zarr(tmp_path / "s.zarr")
    assert run("encode", tmp_path / "s.zarr", tmp_path / "tec.zarr", *TOY) == 0
    assert run("verify", tmp_path / "s.zarr", tmp_path / "tec.zarr") == 0
    assert run("decode", tmp_path / "tec.zarr", tmp_path / "plain.zarr") == 0
    back = xr.open_zarr(tmp_path / "plain.zarr")
    for name in ds.data_vars:
        np.testing.assert_array_equal(back[name] == -999, ds[name] == -999)
        assert back[name].attrs["nodata"] == -999


def test_tags_say_what_the_fields_of_a_geotiff_do_not(cube, tmp_path):
    """As converters of NetCDF leave them."""
    pytest.importorskip("rioxarray")
    image = cube.reflectance[1].astype("int16").where(cube.reflectance[1] != 0, -999)
    image = image.assign_attrs(long_name=tuple(cube.band.values)).drop_vars("band")
    image.encoding.clear()
    image.rio.to_raster(
        tmp_path / "a.tif", tags={"NC_nodata": "x", "no_data": "-999", "calendar": "never"}
    )
    assert run("encode", tmp_path / "a.tif", tmp_path / "tec.zarr", *TOY) == 0
    back = xr.open_zarr(tmp_path / "tec.zarr", mask_and_scale=False).reflectance[0]
    np.testing.assert_array_equal(back == -999, image == -999)
    assert back.attrs["_FillValue"] == -999
    assert back.attrs["NC_nodata"] == "x"
