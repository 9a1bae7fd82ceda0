"""The core decodes whole frames: to what models beside it decode to, and damage is an error."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_golden import FIXTURES

import tec_zarr
from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import ChecksumError, FormatError, TecError
from tec_zarr.frame.frame import NAMED_MODEL, SectionKind, read_frame, write_frame
from tec_zarr.models.protocol import Model
from tec_zarr.models.registry import find_model, get_model, register_model
from tec_zarr.native import frame as native_frame

NEWEST = find_model("tec-s2").newest


class Beside(Model):
    """The image model, whose frames the core does not decode as a whole."""

    name = "beside"
    weights_sha256 = NEWEST

    def decode(self, sections, shape, quality, bands):
        found, checksums = tiles.decoded(get_model("tec-s2"), sections, shape, quality)
        return found.astype(np.float32), checksums


def beside(frame: bytes) -> bytes:
    """Return the frame with another model of the same sections."""
    register_model(Beside.name, Beside, NEWEST)
    parsed = read_frame(frame)
    header = dataclasses.replace(parsed.header, model_id=NAMED_MODEL, model_name=Beside.name)
    return write_frame(header, parsed.sections)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether arrays are equal bit by bit."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    return a.tobytes() == b.tobytes()


@st.composite
def chunks(draw):
    """Arrays of every dtype, rank and memory order, with every kind of gap, and settings."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rank, wide = draw(st.integers(2, 4)), draw(st.integers(0, 12)) == 0
    t, c = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    h, w = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    if wide:
        t, c, h, w = 1, 1, 520, 9
    shape = ((h, w), (t, h, w), (t, c, h, w))[rank - 2]
    kind = draw(st.sampled_from(["u2", "i2", "f4", "f8"]))
    floats = kind[0] == "f"
    scales = [1.0, 1e-3, 1e-4, 0.37] if floats else [1.0, 2.0, 0.5]
    scale = draw(st.sampled_from(scales))
    offset = draw(st.sampled_from([0.0, 1000.0, -37.5, 0.25]))
    nodata = draw(st.sampled_from(
        [(0,), (), (0, 1, 2, 3), (-9999, 0.5, 7, 8), (100, 101, 99, 102), (0, 1e-4, -1e-4)]
    ))  # fmt: skip
    dn = rng.integers(0, 4000, shape) + rng.normal(0, 30, shape)
    values = (dn + offset) * scale
    array = values.astype(kind) if floats else np.rint(values).clip(-900, 32767).astype(kind)
    if draw(st.booleans()):
        gap = rng.random(shape) < draw(st.sampled_from([0.01, 0.3, 0.95]))
        if rank == 4 and draw(st.booleans()):
            gap[:] = gap[:1, :1]
        if rank > 2 and draw(st.booleans()):
            gap[0] = True
        array[gap] = np.nan if floats and draw(st.booleans()) else 0
    if draw(st.booleans()):
        array.flat[rng.integers(array.size)] = 32767
    if floats and draw(st.booleans()):
        array.flat[rng.integers(array.size)] = np.inf
        array.flat[rng.integers(array.size)] = -0.0
    array = array.astype(np.dtype(kind).newbyteorder(draw(st.sampled_from("<>"))))
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    quality = draw(st.sampled_from([1.0, 3.3, 8.0]))
    return array, ChunkSpec("tec-s2", quality=quality, scale=scale, offset=offset, nodata=nodata)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(chunks(), st.data())
@pytest.mark.filterwarnings("ignore")
def test_the_core_decodes_frames_as_models_beside_it(chunk, data):
    array, spec = chunk
    frame = encode_chunk(array, spec)
    there, here = decode_chunk(frame), decode_chunk(beside(frame))
    assert same(there, here)
    assert there.flags.f_contiguous == here.flags.f_contiguous
    if array.ndim == 4:
        dates = data.draw(st.lists(st.integers(0, len(array) - 1), max_size=5))
        assert same(decode_chunk(frame, dates=dates), there[dates])


@pytest.fixture(scope="module")
def frames():
    """Small frames with every kind of section that the core decodes."""
    dn = synthetic.cube(dates=2, size=16, seed=3, nodata_edge=False).values[:, :3]
    gaps = dn.copy()
    gaps[0, :, :5] = 0
    gaps[1, 1, 3, 3:6] = 65535, 60000, 50000
    ship = synthetic.cube(dates=1, size=24, seed=21, nodata_edge=False).values[:, :4]
    ship[0, 2, 8, 3] += np.uint16(6000)
    floats = np.where(gaps == 0, np.nan, gaps * 1e-4).astype(np.float32)
    bands = ["B02", "B03", "B04", "B08"]
    return [
        encode_chunk(dn, ChunkSpec(bands=bands[:3])),
        encode_chunk(gaps, ChunkSpec(bands=bands[:3], nodata=(0, 7))),
        encode_chunk(floats, ChunkSpec(bands=bands[:3], offset=10.0, quality=2)),
        encode_chunk(ship, ChunkSpec(bands=bands)),
        encode_chunk(np.full((2, 3, 8, 8), 7, np.int16), ChunkSpec(bands=bands[:3])),
        encode_chunk(gaps, ChunkSpec(bands=bands[:3], max_error={"B02": 5, "nd:B03,B04": 0.02})),
        encode_chunk(gaps, ChunkSpec(bands=bands[:3], max_error={"B03": 0})),
    ]


def in_core(frame: bytes, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Decode in the core alone, without the checks that Python makes before."""
    samples = np.empty(shape, dtype)
    native_frame.decode(frame, get_model("tec-s2").core, None, samples)
    return samples


def test_every_damage_is_noticed_in_the_core_itself(frames):
    kinds = {section.kind for frame in frames for section in read_frame(frame).sections}
    assert kinds == set(SectionKind)
    rng = np.random.default_rng(0)
    for frame in frames:
        header = read_frame(frame).header
        shape, dtype = header.shape4, header.dtype
        for size in range(len(frame)):
            with pytest.raises(TecError):
                in_core(frame[:size], shape, dtype)
        for place in range(len(frame)):
            damaged = bytearray(frame)
            damaged[place] ^= int(rng.integers(1, 256))
            with pytest.raises(TecError):
                in_core(bytes(damaged), shape, dtype)
        with pytest.raises(FormatError, match="foreign bytes"):
            in_core(frame + b"0", shape, dtype)


def test_latents_that_are_not_those_encoded_are_noticed(frames):
    parsed = read_frame(frames[0])
    sections = [dataclasses.replace(s, latents_crc=s.latents_crc ^ 1) for s in parsed.sections]
    forged = write_frame(parsed.header, sections)
    with pytest.raises(ChecksumError, match="other latents"):
        decode_chunk(forged)
    only_second = [parsed.sections[0], *sections[1:]]
    forged = write_frame(parsed.header, only_second)
    assert same(decode_chunk(forged, dates=[0]), decode_chunk(frames[0])[:1])
    with pytest.raises(ChecksumError, match="other latents"):
        decode_chunk(forged, dates=[1])


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY])
@pytest.mark.parametrize("kind", ["none", "noise", "runs", "text", "far"])
def test_what_zlib_deflates_comes_back(level, strategy, kind):
    rng = np.random.default_rng(7)
    raw = {
        "none": b"\0",
        "noise": rng.bytes(70_000),
        "runs": np.repeat(
            rng.integers(0, 4, 900).astype("u1"), rng.integers(1, 400, 900)
        ).tobytes(),
        "text": b" ".join(b"%d" % n for n in rng.integers(0, 9999, 20_000)),
        "far": (head := rng.bytes(300)) + bytes(32_468) + head,
    }[kind]
    deflater = zlib.compressobj(level, strategy=strategy)
    packed = b"\1" + deflater.compress(raw) + deflater.flush()
    assert native_frame.unpack(packed, len(raw)).tobytes() == raw
    for size in (len(raw) - 1, len(raw) + 1):
        with pytest.raises(FormatError):
            native_frame.unpack(packed, size)
    with pytest.raises(FormatError):
        native_frame.unpack(packed + b"\0", len(raw))
    for size in {0, 1, 5, len(packed) // 2, len(packed) - 1}:
        with pytest.raises(FormatError):
            native_frame.unpack(packed[:size], len(raw))


@settings(max_examples=400, deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(1, 300), st.booleans())
def test_inflating_any_bytes_does_as_zlib(body, size, headed):
    stream = (b"\x78\x9c" if headed else b"") + body
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(stream, size + 1)
        sound = inflater.eof and not inflater.unused_data and len(raw) == size
    except zlib.error:
        sound = False
    if sound:
        assert native_frame.unpack(b"\1" + stream, size).tobytes() == raw
    else:
        with pytest.raises(FormatError):
            native_frame.unpack(b"\1" + stream, size)


@pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="needs a C compiler and make"
)
def test_a_program_in_c_decodes_the_golden_streams(tmp_path):
    readers, program = Path(tec_zarr.__file__).parents[1] / "readers", tmp_path / "tec_decode"
    subprocess.run(
        ["make", "-sj2", "-C", readers / "c", f"BUILD={tmp_path}", "CFLAGS=-O1",
         f"PYTHON={sys.executable}"], check=True,
    )  # fmt: skip
    for file in sorted((FIXTURES / "tec-s2" / NEWEST[:16]).glob("*.tec")):
        header = read_frame(file.read_bytes()).header
        out = tmp_path / "samples"
        done = subprocess.run([program, file, out], capture_output=True, text=True)
        assert done.returncode == 0, (file.name, done.stderr)
        expected = np.ascontiguousarray(decode_chunk(file.read_bytes())).astype(
            header.dtype.newbyteorder("=")
        )
        assert out.read_bytes() == expected.tobytes(), file.name
        assert header.weights.hex() in done.stdout
