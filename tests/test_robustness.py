"""Hostile frames and metadata, and what they may cost."""

from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import toy
import zarr
from test_chunk import scene

import tec_zarr
from tec_zarr import config
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import (
    ChecksumError,
    FormatError,
    LimitError,
    TecError,
    UnsupportedArrayError,
)
from tec_zarr.frame.frame import Axes, Header, Section, SectionKind, read_frame, write_frame
from tec_zarr.frame.mask import Mask, pack_mask
from tec_zarr.recompression.manifest import FOLDER, Manifest
from tec_zarr.stores import embed
from tec_zarr.stores.objects import write

SPEC = ChunkSpec(model=toy.NAME, quality=6)


def header(shape, dtype="<u2", **changes) -> Header:
    plain = Header(
        model_id=0, model_name=toy.NAME, weights=bytes.fromhex(toy.SHA256)[:8], quality=4.0,
        axes=Axes.TCYX, shape=shape, dtype=np.dtype(dtype), nodata=(0,),
        scale=1.0 if dtype[-2] in "ui" else 1e-4,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def peak(work) -> int:
    """Most bytes that ``work`` held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def attempt(frame: bytes) -> None:
    with pytest.raises(TecError):
        decode_chunk(frame)


# ---- limits


def test_a_hundred_bytes_that_claim_a_terabyte_cost_nothing():
    mask = Section(SectionKind.MASK, bytes([1]) + struct.pack("<H", 7) + b"\x01\x01")
    frame = write_frame(header((1, 1, 2**20, 2**19)), [mask])
    assert len(frame) <= 100
    assert peak(lambda: attempt(frame)) < 100_000
    with pytest.raises(LimitError, match=r"549755813888 samples.*MAX_CHUNK_SAMPLES"):
        decode_chunk(frame)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_passes_on_that_a_frame_claims_too_much(zarr_format):
    store = {}
    codec = {"compressors": tec_zarr.TEC(model=toy.NAME)} if zarr_format == 2 else {
        "serializer": tec_zarr.TECCodec(model=toy.NAME), "compressors": None
    }  # fmt: skip
    array = zarr.create_array(
        store, shape=(1, 1, 8, 8), chunks=(1, 1, 8, 8), dtype="u2", fill_value=0,
        zarr_format=zarr_format, **codec,
    )  # fmt: skip
    array[:] = 5
    key = next(k for k in store if k.endswith("0/0/0/0") or k == "0.0.0.0")
    frame = write_frame(header((1, 1, 2**20, 2**19)), [])
    store[key] = zarr.buffer.cpu.Buffer.from_bytes(frame)
    with pytest.raises(LimitError, match="MAX_CHUNK_SAMPLES"):
        array[:]


@pytest.mark.parametrize("dtype", ["<u2", "<f4", "<f8"])
def test_a_chunk_of_one_value_takes_twice_its_size_at_most(dtype):
    array = np.full((1, 4, 512, 512), 7, dtype)
    frame = encode_chunk(array, SPEC)
    assert len(frame) < 100
    assert peak(lambda: decode_chunk(frame)) <= 2 * array.nbytes + 100_000


def test_an_inflating_mask_takes_twice_the_chunk_at_most():
    # 31 values in the table need labels of five bits; a zlib bomb of them is 300 bytes or so.
    labels = np.full((1, 4, 512, 512), 31, np.uint8)
    labels[0, 0, 0, 0] = 1
    values = np.arange(1, 32, dtype="u2")
    packed, _ = pack_mask(Mask(labels, values, values[:0]))
    frame = write_frame(header(labels.shape), [Section(SectionKind.MASK, packed)])
    assert len(frame) < labels.size // 1000
    assert peak(lambda: decode_chunk(frame)) <= 2 * 2 * labels.size + 100_000


@pytest.mark.parametrize("dtype", ["<u2", "<f8"])
def test_a_chunk_that_is_listed_exactly_takes_two_and_a_half_times_its_size(dtype):
    rng = np.random.default_rng(0)
    array = rng.integers(30_000, 60_000, (1, 4, 512, 512)).astype(dtype)
    frame = encode_chunk(array, ChunkSpec(model=toy.NAME, scale=1.0))
    # The compressed bytes are nearly as large as the array, and stay in memory beside it.
    allowed = 2.5 * array.nbytes + 2 * len(frame) + 3 * 2**20
    assert peak(lambda: decode_chunk(frame)) <= allowed


@pytest.mark.parametrize(("limit", "least"), [("MAX_LATENTS_BYTES", 100), ("MAX_MASK_BYTES", 100)])
def test_limits_of_latents_and_masks_are_read_at_every_call(monkeypatch, limit, least):
    array = scene((1, 12, 64, 64)).astype("u2")
    array[0, :, ::2, ::3] = 0
    array[0, 0, 1] = 65535
    frame = encode_chunk(array, SPEC)
    decode_chunk(frame)
    monkeypatch.setattr(config, limit, least)
    with pytest.raises(LimitError, match=limit):
        decode_chunk(frame)


def test_thousands_of_tiny_dates_are_refused_before_any_work(monkeypatch):
    dates = np.arange(1, 5001, dtype="u2").reshape(-1, 1, 1, 1)
    spec = ChunkSpec(model=toy.NAME, bands=["B04"])
    with pytest.raises(LimitError, match=r"5000.*MAX_LATENT_SECTIONS.*fewer dates"):
        encode_chunk(dates, spec)
    monkeypatch.setattr(tec_zarr.config, "MAX_LATENT_SECTIONS", 5000)
    frame = encode_chunk(dates, spec)
    np.testing.assert_array_equal(decode_chunk(frame).shape, dates.shape)
    monkeypatch.undo()
    monkeypatch.setattr(toy.ToyModel, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(LimitError, match="5000 latent sections"):
        decode_chunk(frame)


def test_encoding_has_the_same_limit_of_samples(monkeypatch):
    monkeypatch.setattr(config, "MAX_CHUNK_SAMPLES", 100)
    with pytest.raises(LimitError, match="MAX_CHUNK_SAMPLES"):
        encode_chunk(scene((1, 12, 8, 8)).astype("u2"), SPEC)


def test_tiles_without_latents_are_not_even_listed():
    # A column of 2 ** 27 pixels would be 262,144 tiles.
    frame = write_frame(header((1, 1, 2**27, 1)), [Section(SectionKind.LATENTS, b"")])
    assert peak(lambda: attempt(frame)) < 100_000
    with pytest.raises(FormatError, match="1 latent sections"):
        decode_chunk(frame)


def test_weights_scattered_over_millions_of_chunks_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "cache"))
    sha256 = "ab" * 32
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    codec = tec_zarr.TECCodec(weights_sha256=sha256)
    group.create_array("dn", shape=(1, 1, 8, 8), dtype="u2", serializer=codec, compressors=None)
    group.create_array(
        f"{embed.GROUP}/{sha256}", shape=(2**30,), chunks=(1,), dtype="u1", compressors=None
    )
    with pytest.raises(FormatError, match="1073741824 chunks"):
        tec_zarr.use_embedded_weights(tmp_path / "a.zarr")


# ---- bugs that fuzzing found


@pytest.mark.parametrize(
    "nodata", [np.finfo("f4").min.item(), np.finfo("f4").max.item(), -3.4e38, 1e300, -32768.0]
)
def test_nodata_at_the_ends_of_the_float_range(nodata):
    data = (scene((2, 12, 16, 16)) * 1e-4).astype("f4")
    possible = abs(nodata) <= float(np.finfo("f4").max)
    if possible:
        data[0, :, :5] = nodata
    hole = data < -1000 if nodata < 0 else data > 1000
    assert hole.any() == possible
    back = decode_chunk(encode_chunk(data, dataclasses.replace(SPEC, nodata=[nodata])))
    np.testing.assert_array_equal(back[hole], data[hole])
    assert np.abs(back - data)[~hole].max() < 1e-3


def test_infinite_nodata_is_kept_exactly_like_any_infinity():
    data = (scene((1, 12, 16, 16)) * 1e-4).astype("f4")
    data[0, :, :5] = -np.inf
    back = decode_chunk(encode_chunk(data, dataclasses.replace(SPEC, nodata=[-np.inf])))
    np.testing.assert_array_equal(np.isneginf(back), np.isneginf(data))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_forged_nodata_is_damage(value):
    frame = write_frame(header((1, 1, 8, 8), "<f4", nodata=(value,)), [])
    with pytest.raises(FormatError, match="nodata"):
        decode_chunk(frame)


@pytest.mark.parametrize("dtype", ["<u2", "<f4"])
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_forged_scales_make_no_warnings(dtype, scale):
    frame = read_frame(encode_chunk(scene((1, 12, 16, 16)).astype("u2"), SPEC))
    forged = dataclasses.replace(frame.header, scale=scale, dtype=np.dtype(dtype))
    out = decode_chunk(write_frame(forged, frame.sections))
    assert out.dtype == dtype


def test_many_neighbouring_nodata_values_leave_a_value_for_what_was_measured():
    nodata = tuple(range(1990, 2010))
    frame = read_frame(encode_chunk(scene((1, 12, 16, 16)).astype("u2"), SPEC))
    forged = dataclasses.replace(frame.header, nodata=nodata)
    out = decode_chunk(write_frame(forged, frame.sections))
    assert not np.isin(out, nodata).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"quality": "high"}, {"quality": None}, {"quality": True}, {"quality": 10**400},
        {"bands": "B02"}, {"bands": 5}, {"nodata": "x"}, {"nodata": [[0]]}, {"nodata": {"a": 1}},
        {"scale": "1"}, {"offset": "1"}, {"model": ["toy"]}, {"model": 3}, {"weights_sha256": 3},
        {"weights_sha256": "../../etc/passwd"}, {"max_error": []}, {"max_error": "a"},
        {"max_error": [[1]]}, {"psnr": "a"}, {"max_bytes": [1]}, {"psnr": float("nan")},
    ],
)  # fmt: skip
def test_metadata_of_the_wrong_type_say_which(changes):
    metadata = {"name": "tec", "configuration": {"model": toy.NAME, **changes}}
    with pytest.raises(UnsupportedArrayError, match=next(iter(changes))):
        tec_zarr.TECCodec.from_dict(metadata)
    with pytest.raises(UnsupportedArrayError, match=next(iter(changes))):
        tec_zarr.TEC.from_config({"model": toy.NAME, **changes})


@pytest.mark.parametrize("configuration", [[1], "tec", 7])
def test_a_configuration_that_is_no_object_is_refused(configuration):
    with pytest.raises(UnsupportedArrayError, match="must be an object"):
        tec_zarr.TECCodec.from_dict({"name": "tec", "configuration": configuration})


def test_numpy_numbers_become_json():
    spec = ChunkSpec(
        model=toy.NAME, quality=np.float32(4), scale=np.float32(0.5), nodata=np.array([0, 7], "i2"),
        offset=np.int16(1000),
    )  # fmt: skip
    assert json.loads(json.dumps(spec.to_config())) == spec.to_config()


@pytest.mark.parametrize(
    "item", [[], 5, None, {}, {"objects": []}, {"objects": {"c/0": 1}}, {"objects": {}, "x": 1}]
)
def test_a_forged_record_of_a_recompression_counts_as_none(item):
    record = Manifest(zarr.storage.MemoryStore())
    body = json.dumps(item, sort_keys=True)
    text = json.dumps({"crc32": zlib.crc32(body.encode()), "item": item}).encode()
    write(record.store, f"{FOLDER}/done/0-0.json", text)
    assert record.finished() == {}


def test_a_record_nested_beyond_the_stack_counts_as_none():
    record = Manifest(zarr.storage.MemoryStore())
    write(record.store, f"{FOLDER}/done/0-0.json", b"[" * 100_000)
    assert record.finished() == {}


def test_embedded_weights_of_another_shape_are_an_error_of_ours(tmp_path, monkeypatch):
    from hashlib import sha256

    save = pytest.importorskip("safetensors.numpy", reason="pip install torch").save
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path))
    for tensors in ({}, {"tables": np.zeros((2, 3), "f4")}, {"tables": np.zeros(0, "i8")}):
        data = save(tensors)
        digest = sha256(data).hexdigest()
        with pytest.raises(FormatError):
            embed.keep_embedded("tec-s2", data, digest)


@pytest.mark.parametrize("empty", [b"", bytearray(), np.empty(0, np.uint8), memoryview(b"")])
def test_an_empty_object_is_a_frame_cut_short(empty):
    with pytest.raises(FormatError, match="cut short"):
        tec_zarr.TEC(model=toy.NAME).decode(empty)


def test_a_model_that_panics_is_damage(monkeypatch):
    frame = encode_chunk(scene((1, 12, 16, 16)).astype("u2"), SPEC)

    def fail(*_):
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(toy.ToyModel, "decode", fail)
    with pytest.raises(ChecksumError, match="ZeroDivisionError"):
        decode_chunk(frame)


# ---- what is declared


def test_the_lowest_versions_that_are_tested_are_those_declared():
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    declared = dict(item.replace("[array]", "").split(">=") for item in project["dependencies"])
    pinned = dict(
        line.split("==")
        for line in (root / "tests/minimum-versions.txt").read_text().split()
        if "==" in line
    )
    assert declared == pinned


# ---- limits that had no test


def test_more_bands_than_the_limit_are_refused_before_they_are_listed(monkeypatch):
    frame = write_frame(header((1, 2**20, 1, 1)), [Section(SectionKind.LATENTS, b"")])
    assert peak(lambda: attempt(frame)) < 100_000
    with pytest.raises(LimitError, match=r"1048576 bands.*MAX_BANDS = 4096"):
        decode_chunk(frame)
    with pytest.raises(LimitError, match="use smaller chunks"):
        encode_chunk(np.ones((1, 5000, 1, 1), "u2"), SPEC)


def test_embedded_weights_share_one_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "MAX_WEIGHTS_BYTES", 100)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    sha256 = "ab" * 32
    group.create_array(
        "dn", shape=(1, 1, 8, 8), dtype="u2", compressors=None,
        serializer=tec_zarr.TECCodec(weights_sha256=sha256),
    )  # fmt: skip
    group.create_array(f"{embed.GROUP}/{sha256}", shape=(101,), dtype="u1", compressors=None)
    with pytest.raises(LimitError, match="MAX_WEIGHTS_BYTES = 100"):
        tec_zarr.use_embedded_weights(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["a.npz", "a.nc", "a.tif", "zarr.json", "a.txt"])
@pytest.mark.parametrize("command", ["info", "encode"])
def test_damaged_files_end_in_one_line(tmp_path, capsys, name, command):
    from tec_zarr.face.cli import main

    (tmp_path / name).write_bytes(b"PK\x03\x04 not what it says")
    source = tmp_path if name == "zarr.json" else tmp_path / name
    target = [str(tmp_path / "out.zarr")] if command == "encode" else []
    assert main([command, str(source), *target]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.startswith(f"tec-zarr: {source}")


def test_a_file_without_reflectance_cannot_be_compared(tmp_path, capsys):
    import xarray as xr

    from tec_zarr.face.cli import main

    path = str(tmp_path / "a.zarr")
    xr.Dataset({"height": (("y", "x"), np.zeros((4, 4), "u2"))}).to_zarr(path, zarr_format=2)
    assert main(["verify", path, path]) == 1
    assert "no Sentinel-2 reflectance among the variables ['height']" in capsys.readouterr().err


def test_bounded_chunks_decode_in_bounded_memory():
    rng = np.random.default_rng(0)
    ramp = np.linspace(500, 3000, 256)[:, None]
    array = (ramp + rng.normal(0, 60, (1, 4, 256, 256))).clip(1).astype("u2")
    frame = encode_chunk(array, ChunkSpec(model=toy.NAME, max_error=0))
    decode_chunk(frame)  # probability tables are made once
    constant = 12 * 2**20  # regressors of 2048 pixels
    assert peak(lambda: decode_chunk(frame)) < 20 * array.nbytes + constant
