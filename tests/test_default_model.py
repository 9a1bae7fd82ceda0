"""What a user gets without choosing anything: the embedded model, and the README as pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tec_zarr
from tec_zarr import metrics
from tec_zarr.cubes import synthetic

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=2, size=128)


@pytest.fixture(scope="module")
def store(cube, tmp_path_factory):
    path = tmp_path_factory.mktemp("default") / "tec.zarr"
    cube.to_zarr(path, encoding=tec_zarr.encoding(cube))
    return path


def test_pixels_come_back_close_and_nodata_exactly(cube, store):
    back = xr.open_zarr(store).reflectance.load()
    np.testing.assert_array_equal(back == 0, cube == 0)
    assert metrics.psnr(cube, back, cube != 0) > 36


def test_finer_quality_is_larger_and_closer(cube):
    dn = cube.values[:1]
    results = []
    for quality in (1, 2.5, 6, 8):
        codec = tec_zarr.TEC(quality=quality)
        frame = codec.encode(dn)
        results.append((len(frame), metrics.psnr(dn, codec.decode(frame), dn != 0)))
    assert results == sorted(results)
    assert len(set(results)) == len(results)


@pytest.mark.parametrize(
    ("shape", "bands"),
    [((1, 12, 1, 1), None), ((13, 9, 31), None), ((3, 20, 17), ["B04"]), ((7, 5), ["B08"]),
     ((2, 3, 65, 9), ["B12", "B02", "B8A"]), ((1, 5, 24, 40), None)],
)  # fmt: skip
def test_any_shape_and_bands(shape, bands):
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    noise = np.random.default_rng(0).normal(0, 40, shape)
    dn = (2000 + 900 * np.sin(x / 9) + 500 * np.cos(y / 7) + noise).astype("uint16")
    codec = tec_zarr.TEC(quality=7, bands=bands)
    back = codec.decode(codec.encode(dn))
    assert back.shape == dn.shape
    assert np.abs(back.astype(int) - dn).mean() < 40


def test_a_chunk_beside_nodata_is_not_worse(cube):
    dn = cube.values[:1].copy()
    codec = tec_zarr.TEC(quality=5)
    whole = codec.decode(codec.encode(dn)).astype(int) - dn
    y, x = np.mgrid[:128, :128]
    lost = x + y // 3 < 70
    beside = ~lost & (x + y // 3 < 74)
    cut = np.where(lost, np.uint16(0), dn)
    part = codec.decode(codec.encode(cut)).astype(int) - cut
    rms = [np.sqrt(np.mean(error[..., beside] ** 2.0)) for error in (whole, part)]
    assert rms[1] < 1.2 * rms[0]


def test_neither_reading_nor_writing_loads_torch(store, tmp_path):
    code = f"""
import sys
import xarray as xr
ds = xr.open_zarr({str(store)!r})
assert "torch" not in sys.modules
assert ds.reflectance[0, 0, 5, 5].values > 0
import tec_zarr
ds = tec_zarr.drop_encoding(ds.load())
ds.to_zarr({str(tmp_path / "again.zarr")!r}, encoding=tec_zarr.encoding(ds))
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_python_blocks_of_the_readme_run_as_pasted(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
