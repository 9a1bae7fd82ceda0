"""The same bytes decode to the same latents whatever instructions, library paths and threads do the work.

Every setting runs in a process of its own, writes frames and reads those of all settings before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tec_zarr import synthetic

WORKER = Path(__file__).parent / "exactness_worker.py"
SETTINGS = {
    "default": ({}, 2),
    "one-thread": ({}, 1),
    "sse41": ({"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}, 1),
    "avx2": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, 2),
    "avx512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}, 1),
    "mkl-compatible": ({"MKL_CBWR": "COMPATIBLE"}, 2),
    "no-onednn": ({}, 2),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exactness")
    cube = synthetic.cube(dates=2, size=104, seed=11).values
    noise = np.random.default_rng(0).integers(1, 12000, (1, 4, 40, 40)).astype(np.uint16)
    np.savez(folder / "cubes.npz", cube=cube, noise=noise)
    found = {}
    for name, (environment, threads) in SETTINGS.items():
        run = subprocess.run(
            [sys.executable, str(WORKER), str(folder), name, str(threads)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, f"{name}:\n{run.stderr[-3000:]}"
        with np.load(folder / f"{name}.npz") as pixels:
            found[name] = json.loads((folder / f"{name}.json").read_text()) | {"pixels": dict(pixels)}
    return found


def test_latents_are_identical_under_every_setting(results):
    first = results["default"]["latents"]
    assert len(first) == 9
    for name, result in results.items():
        assert result["latents"] == first, name


def test_the_same_pixels_give_the_same_bytes_under_every_setting(results):
    first = results["default"]["frames"]
    for name, result in results.items():
        assert result["frames"] == first, name


def test_pixels_differ_by_one_at_most(results, record_property):
    first = results["default"]["pixels"]
    for name, result in results.items():
        for key, pixels in result["pixels"].items():
            if key in first:
                difference = np.abs(pixels.astype(np.int64) - first[key])
                assert difference.max() <= 1, (name, key)
                record_property(f"{name} {key}", float((difference > 0).mean()))

