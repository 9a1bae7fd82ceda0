"""GDAL and R's terra read TEC arrays of Zarr format 2, with the plugin of readers/gdal."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zarr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.frame.frame import read_frame, write_frame
from tec_zarr.models.registry import find_model
from tec_zarr.stores.virtual import virtual

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests/fixtures/tec-s2" / find_model("tec-s2").weights[0][:16]
MISSING = [name for name in ("cc", "make", "gdal-config", "gdalinfo") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: apt-get install gcc make gdal-bin libgdal-dev"
)


def built(folder, *variables):
    subprocess.run(
        ["make", "-sj2", "-C", ROOT / "readers/gdal", f"BUILD={folder}", "CFLAGS=-O1",
         f"PYTHON={sys.executable}", *variables], check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    built(folder)
    return folder


@pytest.fixture
def run(plugin):
    def run(*command):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True,
            env={**os.environ, "GDAL_DRIVER_PATH": str(plugin)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store whose chunks do not fill the image, and its pixels as Python reads them."""
    path = tmp_path_factory.mktemp("store") / "cube.zarr"
    ds = synthetic.dataset(dates=2, size=150)
    chunks = {"time": 1, "y": 64, "x": 80}
    encoding = tec_zarr.encoding(ds, quality=4, zarr_format=2, chunks=chunks)
    ds.to_zarr(path, zarr_format=2, encoding=encoding)
    return path, zarr.open_array(path / "reflectance", mode="r")[:]


def image(path, *index):
    return f'ZARR:"{path}":/reflectance:' + ":".join(map(str, index))


def raw(file, shape, dtype="u2"):
    return np.fromfile(file, dtype).reshape(shape)


def test_gdalinfo_names_place_and_type_of_a_tec_array(store, run):
    said = json.loads(run("gdalinfo", "-json", image(store[0], 1, 3)))
    y, x = (zarr.open_array(store[0] / name, mode="r")[:] for name in "yx")
    assert said["size"] == [150, 150]
    assert said["bands"][0]["type"] == "UInt16"
    assert said["geoTransform"] == [x[0] - 5, 10, 0, y[0] + 5, 0, -10]


def test_the_attribute_crs_reaches_an_older_gdal(run, tmp_path):
    ds = synthetic.dataset(dates=1, size=32)
    ds.reflectance.attrs["_CRS"] = {"wkt": ds.spatial_ref.attrs["crs_wkt"]}
    encoding = tec_zarr.encoding(ds, zarr_format=2)
    ds.to_zarr(tmp_path / "cube.zarr", zarr_format=2, encoding=encoding)
    said = json.loads(run("gdalinfo", "-json", image(tmp_path / "cube.zarr", 0, 0)))
    assert 'ID["EPSG",32632]' in said["coordinateSystem"]["wkt"]


@pytest.mark.parametrize("index", [(0, 0), (1, 7), (1, 11)])
def test_gdal_translate_has_the_pixels_of_python(store, run, tmp_path, index):
    run("gdal_translate", "-q", "-of", "ENVI", image(store[0], *index), tmp_path / "out")
    np.testing.assert_array_equal(raw(tmp_path / "out", (150, 150)), store[1][index])


def test_gdalwarp_warps_the_array_as_it_warps_its_pixels_in_a_geotiff(store, run, tmp_path):
    run("gdal_translate", "-q", image(store[0], 0, 3), tmp_path / "plain.tif")
    for name, source in (("a", image(store[0], 0, 3)), ("b", tmp_path / "plain.tif")):
        run("gdalwarp", "-q", "-s_srs", "EPSG:32632", "-t_srs", "EPSG:4326", "-r", "bilinear",
            "-of", "ENVI", source, tmp_path / name)  # fmt: skip
    warped = (tmp_path / "a").read_bytes()
    assert any(warped)
    assert warped == (tmp_path / "b").read_bytes()


def array_of(frame, folder):
    """A format-2 array whose only chunk is a frame."""
    header = read_frame(frame).header
    fill = "NaN" if header.dtype.kind == "f" else int(header.nodata[0]) if header.nodata else 0
    folder.mkdir(parents=True)
    (folder / ".zarray").write_text(json.dumps({
        "zarr_format": 2, "shape": header.shape, "chunks": header.shape, "filters": None,
        "dtype": header.dtype.str, "order": "F" if header.fortran else "C", "fill_value": fill,
        "compressor": {"id": "tec"},
    }))  # fmt: skip
    (folder / ".".join("0" * len(header.shape))).write_bytes(frame)


@pytest.mark.parametrize("name", sorted(file.stem for file in GOLDEN.glob("*.tec")))
def test_golden_streams_of_every_dtype_and_layout(run, tmp_path, name):
    frame = (GOLDEN / f"{name}.tec").read_bytes()
    array_of(frame, tmp_path / "in.zarr")
    run("gdalmdimtranslate", "-q", "-of", "Zarr", tmp_path / "in.zarr", tmp_path / "out.zarr",
        "-array", "in")  # fmt: skip
    found = zarr.open_array(tmp_path / "out.zarr" / "in", mode="r")[:]
    np.testing.assert_array_equal(found, tec_zarr.decode_chunk(frame))


def test_tec_as_a_filter(run, tmp_path):
    dn = synthetic.cube(dates=1, size=32).values
    array = zarr.create_array(
        tmp_path / "cube.zarr", shape=dn.shape, dtype=dn.dtype, zarr_format=2,
        filters=[tec_zarr.TEC()], compressors=None,
    )  # fmt: skip
    array[:] = dn
    run("gdal_translate", "-q", "-of", "ENVI", f'ZARR:"{tmp_path}/cube.zarr":/cube:0:3',
        tmp_path / "out")  # fmt: skip
    np.testing.assert_array_equal(raw(tmp_path / "out", (32, 32)), array[0, 3])


def failure(plugin, *command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True,
        env={**os.environ, "GDAL_DRIVER_PATH": str(plugin)},
    )  # fmt: skip
    assert done.returncode != 0
    return done.stderr


def spoiled(frame, place):
    return frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: spoiled(frame, len(frame) - 1), "does not match its CRC32"),
        (lambda frame: spoiled(frame, 10), "the header does not match its CRC32"),
        (lambda frame: frame[:-7], "cut short"),
        (lambda frame: b"no frame", "not a TEC frame"),
        (lambda frame: tec_zarr.encode_chunk(synthetic.cube(dates=2, size=24).values,
                                             tec_zarr.ChunkSpec()), "larger than"),
        (lambda frame: tec_zarr.encode_chunk(synthetic.cube(dates=1, size=16).values,
                                             tec_zarr.ChunkSpec()), ""),
    ],
)  # fmt: skip
def test_damaged_and_foreign_chunks_are_errors(plugin, tmp_path, change, message):
    frame = (GOLDEN / "one-date.tec").read_bytes()
    array_of(frame, tmp_path / "in.zarr")
    (tmp_path / "in.zarr" / "0.0.0.0").write_bytes(change(frame))
    said = failure(plugin, "gdal_translate", "-q", "-of", "ENVI",
                   f'ZARR:"{tmp_path}/in.zarr":/in:0:3', tmp_path / "out")  # fmt: skip
    assert message in said


def test_weights_that_the_plugin_does_not_have_are_named_as_the_reason(plugin, tmp_path):
    parsed = read_frame((GOLDEN / "one-date.tec").read_bytes())
    header = dataclasses.replace(parsed.header, weights=bytes(8))
    frame = write_frame(header, parsed.sections)
    array_of(frame, tmp_path / "in.zarr")
    said = failure(plugin, "gdal_translate", f'ZARR:"{tmp_path}/in.zarr":/in:0:3',
                   tmp_path / "out.tif")  # fmt: skip
    assert "does not have the weights" in said


def test_gdal_reads_the_chunks_of_format_3_through_virtual_metadata(run, tmp_path):
    ds = synthetic.dataset(dates=2, size=80)
    encoding = tec_zarr.encoding(ds, chunks={"time": 1, "y": 64, "x": 48})
    for name in ds.variables:
        encoding.setdefault(name, {}).pop("shards", None)
    ds.to_zarr(tmp_path / "cube.zarr", encoding=encoding)
    virtual(tmp_path / "cube.zarr")
    name = f'ZARR:"{tmp_path}/cube.zarr/reflectance":/c:1:3'
    said = json.loads(run("gdalinfo", "-json", name))
    assert 'ID["EPSG",32632]' in said["coordinateSystem"]["wkt"]
    assert said["geoTransform"][1::4] == [10, -10]
    run("gdal_translate", "-q", "-of", "ENVI", name, tmp_path / "out")
    pixels = zarr.open_array(tmp_path / "cube.zarr/reflectance", mode="r")[1, 3]
    np.testing.assert_array_equal(raw(tmp_path / "out", (80, 80)), pixels)


def test_terra_of_r_has_the_pixels_of_python(store, run):
    script = shutil.which("Rscript")
    if not script or not run(script, "-e", "cat(system.file(package = 'terra'))"):
        pytest.skip("needs R with terra: apt-get install r-cran-terra")
    code = f"""
        library(terra)
        r <- rast('{image(store[0], 1, 7)}')
        writeLines(as.character(values(r)[, 1]))
    """
    found = np.array(run(script, "-e", code).split(), "f8").reshape(150, 150)
    np.testing.assert_array_equal(found, store[1][1, 7])


def test_a_newer_gdal_reads_the_same_pixels_and_finds_the_crs(store, plugin, tmp_path):
    spec = find_spec("rasterio")
    libraries = spec and sorted(Path(spec.origin).parents[1].glob("rasterio.libs/libgdal*.so*"))
    if not libraries:
        pytest.skip("needs a wheel of rasterio, which brings its own GDAL")
    built(plugin, f"GDAL_LIBS={libraries[0]}", f"PLUGIN={tmp_path}/gdal_TEC.so")
    code = f"""
import sys, numpy, rasterio
with rasterio.open('{image(store[0], 1, 3)}') as image:
    assert image.crs.to_epsg() == 32632, image.crs
    numpy.save(sys.argv[1], image.read(1))
"""
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out.npy"], check=True,
        env={**os.environ, "GDAL_DRIVER_PATH": str(tmp_path)},
    )  # fmt: skip
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), store[1][1, 3])
