"""What compressed an array stands in its attributes, in CF's shape, and stays with it."""

from __future__ import annotations

import numpy as np
import pytest
import toy
import xarray as xr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.encoding import CONTAINER
from tec_zarr.cubes.provenance import describe
from tec_zarr.face.cli import main
from tec_zarr.face.write import record

TOY = {"model": toy.NAME}


@pytest.fixture
def cube():
    return synthetic.dataset(dates=2, size=32, bands=["B02", "B03", "B04", "B08"])


def parsed(text):
    words = text.replace(":", "").split()
    return dict(zip(words[::2], map(float, words[1::2]), strict=True))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_written_store_says_what_was_done_to_it(cube, tmp_path, zarr_format):
    cube.tec.to_zarr(tmp_path / "a.zarr", quality=5, zarr_format=zarr_format, measure=True, **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr")
    container = back[back.reflectance.attrs["lossy_compression"]]
    assert container.attrs == {
        "algorithm": "terracodec",
        "implementation": f"tec_zarr version {tec_zarr.__version__}",
        "reader": "pip install tec_zarr",
        "model": toy.NAME,
        "weights_sha256": toy.SHA256,
    }
    assert back.reflectance.attrs["lossy_compression_quality"] == 5
    measured = parsed(back.reflectance.attrs["lossy_compression_psnr_measured"])
    table = back.tec.report(cube)
    assert list(measured) == ["B02", "B03", "B04", "B08"]
    np.testing.assert_allclose([*measured.values()], table.loc[[*measured], "psnr"], rtol=1e-6)
    assert not any("lossy" in key for key in back.scl.attrs)
    assert not any("lossy" in key for key in cube.reflectance.attrs), "the cube itself is untouched"


@pytest.mark.parametrize("lazy", [False, True])
def test_the_psnr_of_floats_that_are_dn_is_that_of_dn(cube, tmp_path, lazy):
    floats = cube.reflectance.where(cube.reflectance != 0).astype("float32").to_dataset()
    cube.tec.to_zarr(tmp_path / "a.zarr", measure=True, **TOY)
    (floats.chunk() if lazy else floats).tec.to_zarr(
        tmp_path / "b.zarr", measure=True, scale=1, **TOY
    )
    key = "lossy_compression_psnr_measured"
    expected, found = (
        parsed(xr.open_zarr(tmp_path / f"{n}.zarr").reflectance.attrs[key]) for n in "ab"
    )
    assert found == pytest.approx(expected)
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("kind", ["dn", "packed", "floats"])
def test_bounds_asked_and_measured_are_in_the_units_of_the_data(cube, tmp_path, kind):
    unit = 1 if kind == "dn" else 1e-4
    if kind != "dn":
        cube["reflectance"] = cube.reflectance.where(cube.reflectance != 0) * 1e-4
        cube = cube.chunk() if kind == "floats" else cube
    bounds = {"ndvi": 0.02, "B02": 4 * unit, "all": 40 * unit}
    cube.tec.to_zarr(tmp_path / "a.zarr", max_error=bounds, **TOY)
    back = xr.open_zarr(tmp_path / "a.zarr").load()
    attrs = back.reflectance.attrs
    assert parsed(attrs["lossy_compression_max_error"]) == pytest.approx(bounds)
    assert "lossy_compression_quality" not in attrs
    measured = parsed(attrs["lossy_compression_max_error_measured"])
    stored, given = (c.reflectance.astype("f8") for c in (back, cube))
    if kind == "packed":  # float32 readings of whole DN are off by up to 2e-4 of the error
        stored, given = (np.rint(c / unit) * unit for c in (stored, given))
    error = np.abs(stored - given)
    worst = error.max(["time", "y", "x"]).values
    np.testing.assert_allclose([measured[b] for b in back.band.values], worst, rtol=1e-4)
    assert 0 < measured["ndvi"] <= 0.02
    assert measured["B02"] <= bounds["B02"] * 1.0001


def test_saved_again_without_tec_it_still_says_so_and_once(cube, tmp_path):
    cube.tec.to_zarr(tmp_path / "a.zarr", **TOY)
    opened = xr.open_zarr(tmp_path / "a.zarr").load()
    tec_zarr.drop_encoding(opened).to_zarr(tmp_path / "plain.zarr")
    plain = xr.open_zarr(tmp_path / "plain.zarr").load()
    xr.testing.assert_identical(plain, opened)
    opened.tec.to_zarr(tmp_path / "b.zarr", max_error=0, **TOY)
    lossless = xr.open_zarr(tmp_path / "b.zarr")
    assert CONTAINER not in lossless.coords, "what was replaced is not there as well"
    settings = tec_zarr.encoding(cube, **TOY)
    once = describe(cube, settings)
    xr.testing.assert_identical(describe(once, settings), once)


def test_an_append_keeps_it(cube, tmp_path):
    cube.tec.to_zarr(tmp_path / "a.zarr", chunks={"time": 1}, shards=False, max_error=9, **TOY)
    later = cube.assign_coords(time=cube.time + np.timedelta64(400, "D"))
    later["reflectance"] = later.reflectance + np.uint16(3)
    later.to_zarr(tmp_path / "a.zarr", append_dim="time")
    record(tmp_path / "a.zarr")
    back = xr.open_zarr(tmp_path / "a.zarr")
    assert back.sizes["time"] == 4
    assert back[CONTAINER].ndim == 0
    assert back.reflectance.attrs["lossy_compression_max_error"] == 9
    assert parsed(back.reflectance.attrs["lossy_compression_max_error_measured"])["B04"] == 9


def test_netcdf_takes_the_attributes(cube, tmp_path):
    pytest.importorskip("h5netcdf")
    cube.tec.to_zarr(tmp_path / "a.zarr", max_error=[5, 6, 7, 8], **TOY)
    opened = tec_zarr.drop_encoding(xr.open_zarr(tmp_path / "a.zarr").load())
    opened.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    back = xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf")
    assert back.reflectance.attrs["lossy_compression_max_error"].tolist() == [5, 6, 7, 8]
    assert back[CONTAINER].attrs["model"] == toy.NAME


def test_measuring_what_is_not_written_yet_is_refused(cube, tmp_path):
    with pytest.raises(tec_zarr.TecError, match="compute=True"):
        cube.tec.to_zarr(tmp_path / "a.zarr", compute=False, measure=True, **TOY)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_info_shows_bounds_beside_what_was_measured(cube, tmp_path, capsys, zarr_format):
    cube.to_zarr(tmp_path / "source.zarr")
    arguments = [tmp_path / "source.zarr", tmp_path / "tec.zarr", "--model", toy.NAME,
                 "--zarr-format", zarr_format,
                 "--max-error", "ndvi=0.02", "--max-error", "B02=6"]  # fmt: skip
    assert main(["encode", *map(str, arguments)]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "tec.zarr")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[1]: row[2:] for row in rows if row and row[0] == "reflectance" and len(row) < 5}
    assert found["B02"] == ["6", "6"]
    assert found["ndvi"][0] == "0.02"
    assert 0 < float(found["ndvi"][1]) <= 0.02
    assert len(found["B08"]) == 1, "no bound of its own, but its error is known"
    assert "B03" not in found


@pytest.mark.parametrize("wrong", [["5", "ndvi=0.1"], ["ndvi=0.1", "5"], ["x"], ["ndvi="]])
def test_bounds_that_cannot_be_read_are_refused(wrong, tmp_path):
    with pytest.raises(SystemExit):
        main(["encode", "a", "b", *(w for value in wrong for w in ("--max-error", value))])
