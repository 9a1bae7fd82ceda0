"""tec-tt-s2: dates given other dates, exactly predicted."""

from __future__ import annotations

import numpy as np
import pytest
import series_reference
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nearest import a_map, native
from tiles import tensors

import tec_zarr
from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import FormatError, TecError, UnsupportedArrayError
from tec_zarr.frame.frame import Section, SectionKind, read_frame, write_frame
from tec_zarr.native import core

MODEL = "tec-tt-s2"


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=4, size=64, seed=41, clouds=False, nodata_edge=False).values


@pytest.fixture(scope="module")
def still(cube):
    """One scene with noise of its own on each of eight dates."""
    noise = np.random.default_rng(5).normal(0, 40, (8, *cube.shape[1:]))
    return np.rint(cube[:1] + noise).clip(1).astype(np.uint16)


def latents(frame):
    return read_frame(frame).of(SectionKind.LATENTS)


def references(frame):
    """Numbers of the dates that each date refers to."""
    found = []
    for number, section in enumerate(latents(frame)):
        bits = series_reference.tile.Bits(section.data[1:])
        found.append([number - bits.s(2) for _ in range(section.data[0] & 3)])
    return found


def finer(frame):
    return [section.data[0] >> 2 for section in latents(frame)]


def forged(frame, sections):
    """The frame with other sections, whose checksums are as they were."""
    read = read_frame(frame)
    rest = [s for s in read.sections if s.kind != SectionKind.LATENTS]
    crcs = [s.latents_crc for s in latents(frame)]
    new = [
        Section(SectionKind.LATENTS, data, crc) for data, crc in zip(sections, crcs, strict=True)
    ]
    return write_frame(read.header, rest + new)


def psnr(decoded, original):
    return 10 * np.log10(1e8 / (1e-3 + np.mean((decoded.astype(float) - original) ** 2)))


def test_a_series_takes_fewer_bytes_than_its_dates_alone(still):
    alone, series = (encode_chunk(still, ChunkSpec(model, 5)) for model in ("tec-s2", MODEL))
    assert len(series) < 0.8 * len(alone)
    assert psnr(decode_chunk(series), still) > psnr(decode_chunk(alone), still) - 0.5


@pytest.mark.parametrize("quality", [1.0, 4.0, 7.0])
def test_one_date_is_coded_as_by_the_image_model(cube, quality):
    image, series = (
        encode_chunk(cube[:1], ChunkSpec(model, quality)) for model in ("tec-s2", MODEL)
    )
    assert latents(series)[0].data == b"\0" + latents(image)[0].data
    np.testing.assert_array_equal(decode_chunk(series), decode_chunk(image))


def test_a_date_refers_to_whichever_is_like_it_also_later_ones(cube):
    """Two scenes in turn: each date is explained by the other one of its kind."""
    other = synthetic.cube(dates=2, size=64, seed=77, clouds=False, nodata_edge=False).values
    mixed = np.stack([cube[0], other[0], cube[1], other[1]])
    found = references(encode_chunk(mixed, ChunkSpec(MODEL)))
    used = {(date, reference) for date, of in enumerate(found) for reference in of}
    assert used & {(0, 2), (2, 0)}
    assert used & {(1, 3), (3, 1)}


def test_a_date_that_all_others_depend_on_is_coded_finer(still):
    frame = encode_chunk(still, ChunkSpec(MODEL, 3))
    key = int(np.argmax(finer(frame)))
    decoded = decode_chunk(frame)
    quality = [psnr(*pair) for pair in zip(decoded, still, strict=True)]
    assert finer(frame)[key] > 0
    assert quality[key] == max(quality)


def test_dates_that_explain_nothing_of_one_another_are_coded_alike():
    strangers = np.concatenate(
        [
            synthetic.cube(dates=1, size=64, seed=seed, clouds=False, nodata_edge=False).values
            for seed in (41, 77, 78)
        ]
    )
    frame = encode_chunk(strangers, ChunkSpec(MODEL))
    assert max(finer(frame)) <= 1
    image = encode_chunk(strangers)
    assert len(frame) <= 1.02 * len(image)


def test_dates_refer_to_one_another_within_runs_of_gop_only(still):
    frame = encode_chunk(still, ChunkSpec(MODEL, gop=2))
    for date, used in enumerate(references(frame)):
        assert all(reference // 2 == date // 2 for reference in used)
    assert len(frame) > len(encode_chunk(still, ChunkSpec(MODEL)))


def test_gop_is_refused_where_it_means_nothing(cube):
    with pytest.raises(UnsupportedArrayError, match="gop=2 is for temporal models"):
        encode_chunk(cube, ChunkSpec("tec-s2", gop=2))
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises(UnsupportedArrayError, match="gop is"):
            ChunkSpec(MODEL, gop=wrong)


def test_a_few_dates_are_those_of_the_whole(still):
    frame = encode_chunk(still, ChunkSpec(MODEL, 4))
    whole = decode_chunk(frame)
    for dates in ([5], [7, 0], [3, 3]):
        np.testing.assert_array_equal(decode_chunk(frame, dates=dates), whole[dates])


@settings(max_examples=12, deadline=None)
@given(
    dates=st.integers(1, 4),
    bands=st.integers(1, 14),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    quality=st.floats(1, 8),
    kind=st.sampled_from(["series", "noise", "constant"]),
    holes=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_cube_comes_back_with_its_nodata(
    dates, bands, height, width, quality, kind, holes, seed
):
    rng = np.random.default_rng(seed)
    shape = dates, bands, height, width
    base = rng.integers(500, 4000, (1, bands, height, width))
    array = {
        "series": lambda: base + rng.integers(-50, 50, shape),
        "noise": lambda: rng.integers(1, 20000, shape),
        "constant": lambda: np.full(shape, 1234),
    }[kind]().astype(np.uint16)
    if holes:
        array[rng.random(shape) < 0.2] = 0
    spec = ChunkSpec(MODEL, quality)
    decoded = decode_chunk(encode_chunk(array, spec))  # the latents' checksum is verified inside
    np.testing.assert_array_equal(decoded == 0, array == 0)
    if kind == "constant":
        assert np.abs(decoded.astype(int) - array).max() <= 40


def scenes():
    """Small cubes that use every part of a section."""
    rng = np.random.default_rng(8)
    still = synthetic.cube(dates=4, size=40, seed=9, clouds=False, nodata_edge=False).values[:, :6]
    yield "dates", np.ascontiguousarray(still[:, :, :37, :33])
    noise = rng.normal(0, 60, (4, 3, 24, 70))
    wide = still[:1, :3, :24, :24].repeat(3, 3)[..., :70]
    yield "still", np.rint(wide + noise).clip(1).astype("u2")
    cells = still[:3, :4, :20, :20].copy()
    cells[:, 2:] = cells[:, 2:, ::2, ::2].repeat(2, 2).repeat(2, 3)
    yield "cells", cells
    shape = (120, 130)
    plain = a_map((0.6, 0.55), 0.02, shape)
    source = native(rng, plain.source_shape(shape), 1)[:1, :2]
    dates = np.concatenate([source, source + rng.integers(-20, 20, source.shape)])
    yield "mapped", plain.gather(dates, shape).astype("u2")


@pytest.mark.parametrize("quality", [1.5, 5.0, 8.0])
@pytest.mark.parametrize(("name", "cube"), list(scenes()), ids=[n for n, _ in scenes()])
def test_a_decoder_written_from_the_page_gives_the_same(name, cube, quality):
    frame = encode_chunk(cube, ChunkSpec(MODEL, quality))
    points = read_frame(frame).payloads(SectionKind.POINTS)
    sections = latents(frame)
    assert quality < 5 or any(references(frame)), name
    image, checksums = series_reference.decode_series(
        [s.data for s in sections], cube.shape[1], cube.shape[2:], quality, tensors()
    )
    assert checksums == [s.latents_crc for s in sections]
    decoded = decode_chunk(frame).astype(int)
    differ = decoded != image.clip(1, 65535)  # 0 is nodata, which is written as 1
    assert differ.mean() < (0.01 if points else 1e-9)


def test_circles_and_strangers_among_references_are_refused(still):
    frame = encode_chunk(still[:2], ChunkSpec(MODEL, 4))
    good = [s.data for s in latents(frame)]
    alone = next(n for n, data in enumerate(good) if not data[0] & 3)
    predicted = good[1 - alone]
    circle = list(good)
    # A section begins with S(2) of the difference to its reference: 001 is -1, 010 is 1.
    back, forth = (0b010, 0b001) if alone else (0b001, 0b010)
    circle[alone] = bytes([predicted[0], back << 5]) + predicted[2:]
    with pytest.raises(FormatError):
        decode_chunk(forged(frame, circle))
    for difference in (0b000, 0b011, forth):  # itself, and dates beyond the chunk
        stranger = list(good)
        stranger[1 - alone] = bytes([predicted[0], difference << 5]) + predicted[2:]
        with pytest.raises(FormatError):
            decode_chunk(forged(frame, stranger))


def test_damaged_sections_never_become_pixels(still):
    frame = encode_chunk(still[:3, :, :24, :24], ChunkSpec(MODEL, 3))
    whole, good = decode_chunk(frame), [s.data for s in latents(frame)]
    rng = np.random.default_rng(0)
    for _ in range(150):
        number = int(rng.integers(3))
        broken = bytearray(good[number])
        if rng.random() < 0.3:
            del broken[int(rng.integers(len(broken))) :]
        else:
            broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        damaged = [bytes(broken) if n == number else s for n, s in enumerate(good)]
        try:
            found = decode_chunk(forged(frame, damaged))
        except TecError:
            continue
        # The checksum covers the latents; headers are covered by that of the frame.
        assert found.shape == whole.shape


@pytest.mark.parametrize("kernel", core.kernels())
def test_every_kernel_writes_and_reads_the_same(monkeypatch, still, kernel):
    frame = encode_chunk(still[:3], ChunkSpec(MODEL, 4))
    pixels = decode_chunk(frame)
    monkeypatch.setenv("TEC_NATIVE", kernel)
    assert encode_chunk(still[:3], ChunkSpec(MODEL, 4)) == frame
    np.testing.assert_array_equal(decode_chunk(frame), pixels)


def test_it_writes_and_opens_like_any_other_model(cube, tmp_path):
    dims = ("time", "band", "y", "x")
    bands = list(tec_zarr.sentinel2.L2A_BANDS)
    da = xr.DataArray(cube, dims=dims, coords={"band": bands}, name="s2")
    ds = da.to_dataset()
    encoding = tec_zarr.encoding(ds, model=MODEL, gop=3, chunks={"time": 4})
    ds.to_zarr(tmp_path / "cube.zarr", zarr_format=3, encoding=encoding)
    opened = xr.open_zarr(tmp_path / "cube.zarr", decode_cf=False).s2
    assert psnr(opened.values, cube) > 40
