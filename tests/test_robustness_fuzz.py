"""The fuzz targets on what hypothesis makes up, and a short coverage-guided run of each.

The long run is ``make fuzz``; what it did is in ``docs/robustness.md``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).parent / "fuzz"
sys.path.insert(0, str(FUZZ))

import targets

from tec_zarr import config

FAST = ("stream", "mask", "chunk", "config", "manifest")


@pytest.fixture(autouse=True, scope="module")
def _as_while_fuzzing():
    largest = config.MAX_CHUNK_SAMPLES
    with warnings.catch_warnings():
        targets.prepare()
        yield
    config.MAX_CHUNK_SAMPLES = largest


def mutations(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with some bytes exchanged, cut out or put in."""

    @st.composite
    def mutated(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            end = min(len(data), at + draw(st.sampled_from([0, 0, 1, 1, 2, 8, 200])))
            data[at:end] = draw(st.binary(max_size=9))
        return bytes(data)

    return mutated()


@pytest.mark.parametrize("name", [*FAST, "bounds", "section", "command_line"])
def test_what_hypothesis_makes_up_raises_documented_errors_only(name):
    target, seeds = targets.TARGETS[name]
    inputs = st.one_of(st.binary(max_size=300), mutations(seeds()))

    @settings(max_examples=150 if name in FAST else 25)
    @given(inputs)
    def run(data: bytes) -> None:
        target(data)

    run()


@pytest.mark.parametrize("seed", range(30))
def test_changed_weights_are_refused_or_decode_something(seed):
    """Whatever a stranger writes into real weights: compiled code must not be led astray by it."""
    random = np.random.default_rng(seed)
    targets.weights(bytes([1 + seed]) + random.bytes(8 * int(random.integers(1, 4))))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
KEYS = ("model", "quality", "bands", "nodata", "scale", "offset", "weights_sha256", "max_error",
        "psnr", "max_bytes", "name", "configuration")  # fmt: skip


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3))
def test_any_json_as_metadata_raises_documented_errors_only(item):
    targets.codec_config(json.dumps(item).encode())
    targets.codec_config(json.dumps({"model": "toy", **item}).encode())


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["array", "region", "objects", "seconds"]), json_values))
def test_any_json_as_a_record_raises_documented_errors_only(item):
    targets.manifest(json.dumps(item).encode())


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4))
def test_any_arguments_end_with_a_message(capsys, arguments):
    from tec_zarr.face.cli import main

    names = ["info", "verify", "decode"]
    for name in names:
        try:
            status = main([name, *arguments, "--", "/nowhere/\0" if "\0" in arguments else "/no"])
        except SystemExit as end:  # of argparse
            status = end.code
        assert status in (0, 1, 2)
    capsys.readouterr()


@pytest.mark.parametrize("name", ["stream", "chunk"])
def test_a_short_coverage_guided_run(name, tmp_path):
    pytest.importorskip("atheris", reason="atheris has no wheel for this platform or Python")
    done = subprocess.run(
        [sys.executable, FUZZ / "run.py", name, "--runs", "5000", "--seconds", "20", "--corpus",
         tmp_path / "corpus", "--out", tmp_path / "out.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())[name]["edges"] > 50
