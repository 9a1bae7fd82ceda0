"""The conformance kit stands alone: its C program passes its check, and wrong readers do not."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tec_zarr import decode_chunk

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("make_kit", ROOT / "readers/kit/make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("kit") / "tec-conformance"
    module.make(folder)
    return folder


def checked(kit, *program):
    return subprocess.run(
        [sys.executable, kit / "check.py", *program], capture_output=True, text=True
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_program_in_the_kit_passes_its_check(kit, tmp_path):
    subprocess.run(
        ["cc", "-O1", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-w", "-o",
         tmp_path / "tec_decode", *(kit / "c").glob("*.c"), "-lm"], check=True,
    )  # fmt: skip
    done = checked(kit, tmp_path / "tec_decode")
    assert done.returncode == 0, done.stdout
    assert "none failed" in done.stdout


def test_the_manifest_says_what_is_there(kit):
    manifest = json.loads((kit / "manifest.json").read_text())
    assert len(manifest["streams"]) > 20
    for stream in manifest["streams"] + manifest["refused"]:
        frame = (kit / stream["frame"]).read_bytes()
        assert hashlib.sha256(frame).hexdigest() == stream["frame_sha256"]
        if "samples" not in stream:
            continue
        samples = np.fromfile(kit / stream["samples"], np.dtype(stream["dtype"]))
        samples = samples.reshape(stream["shape"])
        decoded = decode_chunk(frame)
        np.testing.assert_array_equal(samples, decoded.reshape(stream["shape"]))
        assert decoded.dtype.str == stream["array"]["dtype"]
        assert list(decoded.shape) == stream["array"]["shape"]
    weights = {hashlib.sha256(f.read_bytes()).hexdigest() for f in (kit / "weights").iterdir()}
    assert {stream["weights"] for stream in manifest["streams"]} == weights


LIAR = """
case $2 in *refused*) [ $1 = takes ]; exit;; esac
samples=${2%.tec}.raw
case $1 in
    changes) { head -c -1 $samples; printf T; } > $3;;
    shortens) head -c -1 $samples > $3;;
    takes) cp $samples $3;;
esac
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("changes", "other samples, from byte"),
        ("shortens", "bytes of samples"),
        ("takes", "was not refused"),
    ],
)
def test_a_reader_that_is_wrong_fails_the_check(kit, tmp_path, how, said):
    (tmp_path / "liar.sh").write_text(LIAR)
    done = checked(kit, "sh", tmp_path / "liar.sh", how)
    assert done.returncode == 1
    assert said in done.stdout
