"""Streams of every released weights file decode for ever to what they decoded to at release."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import golden_family
import make_golden
import numpy as np
import pytest

from tec_zarr import encode_chunk
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.models.registry import find_model
from tec_zarr.native import core

GOLDEN = [
    pytest.param(folder, name, id=f"{folder.name}-{name}")
    for folder in sorted(make_golden.FIXTURES.glob("tec-*/*"))
    for name in json.loads((folder / "golden.json").read_text())
]


def check(folder: Path, name: str) -> None:
    expected = json.loads((folder / "golden.json").read_text())[name]
    frame = (folder / f"{name}.tec").read_bytes()
    assert hashlib.sha256(frame).hexdigest() == expected["frame"], "a released stream was changed"
    pixels, latents = make_golden.decode(frame)
    assert latents == expected["latents"]
    with np.load(folder / "pixels.npz") as stored:
        then = stored[name]
    header = read_frame(frame).header
    assert pixels.shape == then.shape
    assert pixels.dtype == header.dtype
    assert pixels.dtype.newbyteorder("=") == then.dtype.newbyteorder("=")
    assert np.isfortran(pixels) == header.fortran
    np.testing.assert_array_equal(np.isnan(pixels), np.isnan(then))
    for nodata in header.nodata:
        np.testing.assert_array_equal(pixels == nodata, then == nodata)
    np.testing.assert_array_equal(pixels, then)


@pytest.mark.parametrize(("folder", "name"), GOLDEN)
def test_a_released_stream_decodes_as_at_release(folder, name):
    check(folder, name)


@pytest.mark.parametrize("kind", golden_family.KINDS)
def test_a_stream_of_the_family_decodes_as_ever(kind):
    golden_family.check(golden_family.FIXTURES / f"{kind}.npz")


def test_every_released_weights_file_has_its_golden_streams():
    for model in make_golden.MODELS:
        for weights in find_model(model).weights:
            folder = make_golden.FIXTURES / model / weights[:16]
            assert (folder / "golden.json").is_file(), "run tests/make_golden.py and commit it"
            assert set(json.loads((folder / "golden.json").read_text())) <= {
                file.stem for file in folder.glob("*.tec")
            }


@pytest.fixture(scope="module")
def fresh_folders(tmp_path_factory):
    fixtures = tmp_path_factory.mktemp("golden")
    return {model: make_golden.write(model, fixtures) for model in make_golden.MODELS}


@pytest.fixture(scope="module")
def fresh(fresh_folders):
    return fresh_folders["tec-s2"]


@pytest.mark.parametrize(
    ("model", "name"), [(m, name) for m in make_golden.MODELS for name in make_golden.cases(m)]
)
def test_streams_made_now_pass_the_same_check(fresh_folders, model, name):
    check(fresh_folders[model], name)


@pytest.mark.parametrize("kernel", core.kernels())
@pytest.mark.parametrize("model", make_golden.MODELS)
def test_every_kernel_writes_and_reads_the_same_streams(fresh_folders, monkeypatch, model, kernel):
    monkeypatch.setenv("TEC_NATIVE", kernel)
    for name, (array, spec) in make_golden.cases(model).items():
        if name != "cut":  # is transcoded
            stream = (fresh_folders[model] / f"{name}.tec").read_bytes()
            assert encode_chunk(array, spec) == stream, name
    for folder in sorted((make_golden.FIXTURES / model).iterdir()):
        for name in json.loads((folder / "golden.json").read_text()):
            check(folder, name)


def test_golden_streams_are_small_and_cover_every_part_of_a_frame(fresh):
    assert sum(file.stat().st_size for file in fresh.iterdir()) < 310_000
    frames = [read_frame(file.read_bytes()) for file in fresh.glob("*.tec")]
    headers = [frame.header for frame in frames]
    assert {header.dtype.name for header in headers} == {"uint16", "int16", "float32", "float64"}
    assert len({header.axes for header in headers}) == 4
    assert any(header.fortran for header in headers)
    assert {section.kind.name for frame in frames for section in frame.sections} >= {
        "MASK",
        "EXACT",
        "LATENTS",
        "BOUND",
        "BOUND_MAP",
        "POINTS",
    }


def test_released_streams_are_not_overwritten(fresh_folders, monkeypatch):
    folder = fresh_folders["tec-tt-s2"]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(make_golden, "encode_chunk", lambda *_: pytest.fail("encoded again"))
    make_golden.write("tec-tt-s2", folder.parent.parent)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_golden_streams_cover_dates_that_are_finer_than_their_chunk():
    for weights in find_model("tec-tt-s2").weights:
        folder = make_golden.FIXTURES / "tec-tt-s2" / weights[:16]
        frame = read_frame((folder / "finer.tec").read_bytes())
        heads = [section[0] for section in frame.payloads(SectionKind.LATENTS)]
        assert any(head >> 2 for head in heads)


def test_a_changed_stream_is_noticed(fresh, tmp_path):
    folder = tmp_path / fresh.name
    folder.mkdir()
    for file in fresh.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    array, spec = make_golden.cases("tec-s2")["one-date"]
    (folder / "one-date.tec").write_bytes(encode_chunk(array + np.uint16(1), spec))
    with pytest.raises(AssertionError, match="released stream was changed"):
        check(folder, "one-date")
