"""The frame: what is written comes back, and what was damaged never does."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tec_zarr import config
from tec_zarr.errors import ChecksumError, FormatError, LimitError, TecError, VersionError
from tec_zarr.frame.frame import (
    NO_BOUND,
    Axes,
    Header,
    IndexBound,
    Section,
    SectionKind,
    read_frame,
    read_header,
    write_frame,
)
from tec_zarr.sentinel2 import L2A_BANDS

DEFAULT = Header(
    model_id=1,
    weights=bytes(range(8)),
    quality=4.0,
    axes=Axes.TCYX,
    shape=(4, 12, 256, 256),
    dtype=np.dtype("<u2"),
    bands=L2A_BANDS,
)
SECTIONS = [Section(SectionKind.LATENTS, bytes([i]) * 5000, 0xDEADBEEF + i) for i in range(4)]


def _header_size(frame: bytes) -> int:
    return read_frame(frame).header_bytes


def test_header_of_a_default_chunk_has_71_bytes():
    assert _header_size(write_frame(DEFAULT, SECTIONS)) == 71


@st.composite
def headers(draw):
    axes = draw(st.sampled_from(Axes))
    shape = tuple(draw(st.integers(1, 40)) for _ in range(axes.ndim))
    n_bands = axes.to_4d(shape)[1]
    number = st.floats(0.001, 1000)
    dtype = draw(st.sampled_from(["<u2", ">u2", "<i2", ">i2", "<f4", ">f4", "<f8", ">f8"]))
    nodata = draw(st.lists(st.integers(0, 1000), unique=True, max_size=5).map(tuple))
    model_id = draw(st.integers(0, 3))
    bounds, errors, indices = draw(st.none() | st.just((5,) * n_bands)), None, ()
    if bounds is not None:
        error = st.integers(0, 65535) if dtype[1] in "ui" else st.floats(0, 1e6, width=32)
        errors = tuple(draw(error) for _ in range(n_bands))
        if n_bands > 1 and draw(st.booleans()):
            indices = (IndexBound(0, n_bands - 1, 0.01, 0.009),)
    return Header(
        model_id=model_id,
        model_name="" if model_id else draw(st.sampled_from(["mine", "a-b.c"])),
        weights=draw(st.binary(min_size=8, max_size=8)),
        quality=draw(st.integers(4096, 8 * 4096)) / 4096,
        axes=axes,
        shape=shape,
        dtype=np.dtype(dtype),
        fortran=draw(st.booleans()),
        bands=draw(st.sampled_from([None, tuple(L2A_BANDS[i % 12] for i in range(n_bands))])),
        nodata=nodata,
        scale=draw(st.just(1.0) | number),
        offset=draw(st.just(0.0) | number),
        bounds=bounds,
        errors=errors,
        indices=indices,
    )


@st.composite
def some_sections(draw):
    kind = draw(st.sampled_from(SectionKind))
    crc = draw(st.integers(0, 2**32 - 1)) if kind is SectionKind.LATENTS else 0
    return Section(kind, draw(st.binary(max_size=300)), crc)


@given(headers(), st.lists(some_sections(), max_size=6))
def test_frames_come_back_as_written(header, sections):
    frame = read_frame(write_frame(header, sections))
    assert frame.header == header
    assert list(frame.sections) == sorted(sections, key=lambda s: s.kind)


def _resealed(frame: bytes, table: bytes, payloads: bytes) -> bytes:
    """Append rows to the section table of a frame, and payloads to its end."""
    start = _header_size(frame)
    body = frame[5 : start - 4] + table
    head = frame[:4] + bytes([len(body)]) + body
    return head + struct.pack("<I", zlib.crc32(head)) + frame[start:] + payloads


def _group(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 1, len(payload)]) + struct.pack("<I", zlib.crc32(payload))


def test_a_section_that_changes_no_sample_is_skipped_and_another_one_refused():
    frame = write_frame(DEFAULT, SECTIONS)
    skipped = _resealed(frame, _group(0x80, b"hello"), b"hello")
    assert read_frame(skipped).sections == tuple(SECTIONS)
    with pytest.raises(ChecksumError, match="kind 128"):
        read_frame(skipped[:-1] + b"0")
    with pytest.raises(VersionError, match="kind 7"):
        read_frame(_resealed(frame, _group(7, b"hello"), b"hello"))


@pytest.mark.parametrize("kind", [1, 3])
def test_a_section_table_that_is_not_in_order_is_refused(kind):
    frame = write_frame(DEFAULT, SECTIONS)
    with pytest.raises(FormatError, match="not in order"):
        read_frame(_resealed(frame, _group(kind, b"hello"), b"hello"))
    with pytest.raises(FormatError, match="not in order"):
        read_frame(_resealed(frame, bytes([5, 0]), b""))


def test_a_number_with_needless_bytes_is_refused():
    frame = write_frame(DEFAULT, SECTIONS)
    row = bytes([5, 1, 0x85, 0]) + struct.pack("<I", zlib.crc32(b"hello"))
    with pytest.raises(FormatError, match="number"):
        read_frame(_resealed(frame, row, b"hello"))


@pytest.mark.parametrize("quality", [0.5, 8.5])
def test_a_quality_out_of_range_is_refused(quality):
    with pytest.raises(FormatError, match="quality"):
        read_frame(write_frame(dataclasses.replace(DEFAULT, quality=quality), SECTIONS))


def test_bands_without_a_bound_have_no_error_but_those_of_an_index():
    bounds = (5, NO_BOUND, NO_BOUND, 0)
    header = dataclasses.replace(
        DEFAULT, shape=(1, 4, 8, 8), bands=None, bounds=bounds, errors=(4, 3, float("nan"), 0),
        indices=(IndexBound(0, 1, 0.5, 0.25),),
    )  # fmt: skip
    assert header.bounded == [0, 1, 3]
    back = read_header(write_frame(header, SECTIONS)[:200])
    np.testing.assert_array_equal(back.errors, header.errors)
    assert dataclasses.replace(back, errors=None) == dataclasses.replace(header, errors=None)
    assert dataclasses.replace(header, errors=None, indices=()).bounded == [0, 3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"indices": (IndexBound(0, 4, 0.5, 0.25),)},
        {"indices": (IndexBound(1, 1, 0.5, 0.25),)},
        {"indices": (IndexBound(0, 1, -0.5, 0.25),)},
        {"indices": (IndexBound(0, 1, 0.5, float("nan")),)},
    ],
)
def test_errors_that_cannot_be_are_refused(wrong):
    fields = {"bounds": (5,) * 4, "errors": (5, 4, 3, 2), "shape": (1, 4, 8, 8), "bands": None}
    frame = write_frame(dataclasses.replace(DEFAULT, **fields | wrong), SECTIONS)
    with pytest.raises(FormatError):
        read_frame(frame)


def test_every_flipped_bit_is_noticed():
    header = dataclasses.replace(
        DEFAULT, model_id=0, model_name="mine", shape=(1, 12, 8, 8), nodata=(0, 7), scale=2.0
    )
    sections = [Section(SectionKind.MASK, b"mask"), Section(SectionKind.LATENTS, b"latents!")]
    frame = write_frame(header, sections)
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TecError):
            read_frame(bytes(damaged))


def test_every_truncation_is_noticed():
    frame = write_frame(DEFAULT, [Section(SectionKind.LATENTS, b"abc")])
    for size in range(len(frame)):
        with pytest.raises(FormatError):
            read_frame(frame[:size])


def test_foreign_bytes_behind_a_frame_are_noticed():
    with pytest.raises(FormatError, match="foreign bytes"):
        read_frame(write_frame(DEFAULT, SECTIONS) + b"\0")


@given(st.binary(max_size=400))
def test_arbitrary_bytes_raise_a_tec_error(data):
    with pytest.raises(TecError):
        read_frame(data)


@given(st.binary(max_size=80))
def test_arbitrary_headers_with_a_good_checksum_raise_a_tec_error_or_parse(body):
    head = b"TEC\x01" + bytes([len(body)]) + body
    data = head + struct.pack("<I", zlib.crc32(head))
    with contextlib.suppress(TecError):
        read_frame(data)


def test_a_newer_format_names_the_upgrade():
    frame = bytearray(write_frame(DEFAULT, SECTIONS))
    frame[3] = 9
    with pytest.raises(VersionError, match="pip install --upgrade tec_zarr"):
        read_frame(bytes(frame))


def test_damage_names_section_and_place():
    frame = bytearray(write_frame(DEFAULT, SECTIONS))
    frame[-1] ^= 1
    with pytest.raises(ChecksumError, match=r"latents section .*\(4, 12, 256, 256\)"):
        read_frame(bytes(frame))


def test_a_huge_shape_is_refused_before_anything_is_allocated():
    frame = write_frame(dataclasses.replace(DEFAULT, shape=(60000, 12, 60000, 60000)), [])
    with pytest.raises(LimitError, match="MAX_CHUNK_SAMPLES"):
        read_frame(frame)


def test_the_limit_can_be_raised(monkeypatch):
    frame = write_frame(dataclasses.replace(DEFAULT, shape=(1, 12, 2**14, 2**14)), [])
    with pytest.raises(LimitError):
        read_frame(frame)
    monkeypatch.setattr(config, "MAX_CHUNK_SAMPLES", 2**40)
    assert read_frame(frame).header.shape == (1, 12, 2**14, 2**14)


def test_something_else_is_called_that():
    with pytest.raises(FormatError, match="not a TEC frame"):
        read_frame(b"(\xb5/\xfd some zstd")
