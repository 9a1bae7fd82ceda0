"""tec-flex-s2: one stream for all qualities, narrowed down step by step."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import tec_zarr
from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.entropy.range_coder import BitDecoder, BitEncoder
from tec_zarr.errors import FormatError, TecError, UnsupportedArrayError
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.models.intervals import CONTEXTS, GRID, OUTWARDS, REACH, Cells, contexts
from tec_zarr.models.registry import get_model
from tec_zarr.models.tokens import FlexSection, cut
from tec_zarr.models.weights import needed_weights
from tec_zarr.recompression.transcode import transcode
from tec_zarr.stores.transcode import preview_chunk, transcode_chunk

MODEL = "tec-flex-s2"
QUALITY = 6.0


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=3, size=64, seed=41, clouds=False, nodata_edge=False).values


@pytest.fixture(scope="module")
def frame(cube):
    return encode_chunk(cube, ChunkSpec(MODEL, QUALITY))


def psnr(decoded, original):
    return 10 * np.log10(1e8 / (1e-3 + np.mean((decoded.astype(float) - original) ** 2)))


# ---- steps of a stream


def test_every_step_is_a_stream_and_more_bytes_are_better(cube, frame):
    steps = [transcode_chunk(frame, k) for k in range(1, 13)]
    assert steps[-1] == frame
    sizes = [len(step) for step in steps]
    assert sizes == sorted(set(sizes))
    found = [psnr(decode_chunk(step), cube) for step in steps]
    assert all(np.diff(found[1::2]) > 1.5)  # whole qualities
    assert all(np.diff(found) > -0.05)
    assert found[-1] - found[1] > 10


def test_cutting_twice_is_cutting_once(frame):
    assert transcode_chunk(transcode_chunk(frame, 7), 4) == transcode_chunk(frame, 4)
    assert transcode_chunk(frame, 16) == frame


def test_it_costs_little_over_one_stream_for_one_quality(cube):
    sizes, errors = [], []
    for quality in np.arange(2, 7, 0.5):
        fixed = encode_chunk(cube, ChunkSpec("tec-tt-s2", float(quality)))
        sizes.append(np.log(len(fixed)))
        errors.append(psnr(decode_chunk(fixed), cube))
    whole = encode_chunk(cube, ChunkSpec(MODEL, QUALITY))
    for quality in range(3, 7):
        step = transcode_chunk(whole, 2 * quality)
        expected = np.exp(np.interp(psnr(decode_chunk(step), cube), errors, sizes))
        # 2,000 bytes a date: headers of six qualities and twelve ends of streams weigh more here
        # than in real tiles, where it is 4 to 10 %.
        assert len(step) < 1.25 * expected, quality


def test_dates_help_one_another_at_every_step():
    still = synthetic.cube(dates=1, size=128, seed=5, clouds=False, nodata_edge=False).values
    noise = np.random.default_rng(1).normal(0, 20, (3, *still.shape[1:]))
    series = np.rint(np.repeat(still, 3, 0) + noise).clip(1).astype("u2")
    together = encode_chunk(series, ChunkSpec(MODEL, QUALITY))
    alone = encode_chunk(series, ChunkSpec(MODEL, QUALITY, gop=1))
    for steps in (5, 8, 12):
        assert len(transcode_chunk(together, steps)) < 0.8 * len(transcode_chunk(alone, steps))


def test_a_few_dates_are_those_of_the_whole_at_any_step(cube):
    model = get_model(MODEL)
    encoded = model.encode(cube.astype("f4"), 4.0, None)
    for steps in (3, 8):
        sections = cut(encoded.sections, [steps] * 3).sections
        whole, _ = model.decode(sections, cube.shape, 4.0, None)
        some, _ = model.decode_dates(sections, cube.shape, 4.0, [2, 0])
        np.testing.assert_array_equal(some, whole[[2, 0]])


@pytest.mark.filterwarnings("ignore::tec_zarr.errors.UnsuitedDataWarning")  # 31 bands
@pytest.mark.parametrize("shape", [(1, 12, 1, 1), (2, 1, 9, 30), (2, 31, 8, 8), (3, 4, 17, 16)])
def test_any_shape(shape):
    data = np.random.default_rng(3).integers(1, 3000, shape).astype("u2")
    got, fixed = (
        decode_chunk(encode_chunk(data, ChunkSpec(model, 8.0))) for model in (MODEL, "tec-tt-s2")
    )
    assert got.shape == shape
    assert psnr(got, data) > min(psnr(fixed, data), 60) - 1


@pytest.mark.parametrize("value", [1, 10_000, 65_535])
def test_what_says_nothing_costs_next_to_nothing(value):
    data = np.full((2, 12, 32, 32), value, "u2")
    stored = encode_chunk(data, ChunkSpec(MODEL))
    np.testing.assert_array_equal(decode_chunk(stored), data)
    assert len(stored) < 600


def test_outliers_are_met_at_the_last_step():
    data = np.full((1, 12, 32, 32), 900, "u2")
    data[0, 4, 10, 11] = 60_000
    got = decode_chunk(encode_chunk(data, ChunkSpec(MODEL, 8.0))).astype(int)
    assert np.abs(got - data).max() < 400


def test_targets_are_met(cube):
    assert psnr(decode_chunk(encode_chunk(cube[:2], ChunkSpec(MODEL, psnr=42))), cube[:2]) >= 42
    assert len(encode_chunk(cube[:2], ChunkSpec(MODEL, max_bytes=2500))) <= 2500


def test_it_needs_the_weights_of_the_models_it_is_made_of():
    names = [name for name, _ in needed_weights(MODEL, get_model(MODEL).weights_sha256)]
    assert names == [MODEL, "tec-tt-s2", "tec-s2"]


# ---- stored arrays


def test_an_array_is_lowered_and_shown_without_encoding_it_again(cube, tmp_path):
    stored = cube.copy()
    stored[:, :, :9] = 0  # nodata
    array = zarr.create_array(
        tmp_path / "fine.zarr", shape=stored.shape, chunks=(3, 12, 32, 32), dtype="u2",
        serializer=tec_zarr.TECCodec(model=MODEL, quality=QUALITY, nodata=[0]), compressors=None,
    )  # fmt: skip
    array[:] = stored
    assert transcode(tmp_path / "fine.zarr", tmp_path / "coarse.zarr", 6) == 4
    coarse = zarr.open_array(tmp_path / "coarse.zarr", mode="r")
    assert coarse.metadata.to_dict()["codecs"][0]["configuration"]["quality"] == 3.0
    found = coarse[:]
    np.testing.assert_array_equal(found == 0, stored == 0)
    assert 35 < psnr(found, stored) < psnr(array[:], stored)
    chunk = encode_chunk(stored, ChunkSpec(MODEL, QUALITY, nodata=(0,)))
    np.testing.assert_array_equal(preview_chunk(chunk, 3), decode_chunk(transcode_chunk(chunk, 3)))


def test_dates_are_cut_together(frame, tmp_path):
    with pytest.raises(UnsupportedArrayError, match="give one number, not \\[4, 2, 4\\]"):
        transcode_chunk(frame, [4, 2, 4])
    zarr.create_array(
        tmp_path / "fine.zarr", shape=(3, 12, 64, 64), chunks=(3, 12, 64, 64), dtype="uint16",
        serializer=tec_zarr.TECCodec(model=MODEL, quality=QUALITY), compressors=None,
    )  # fmt: skip
    with pytest.raises(UnsupportedArrayError, match="give one number, not \\[4, 2, 4\\]"):
        transcode(tmp_path / "fine.zarr", tmp_path / "coarse.zarr", [4, 2, 4])
    assert not (tmp_path / "coarse.zarr").exists()
    model = get_model(MODEL)
    sections = read_frame(frame).payloads(SectionKind.LATENTS)
    with pytest.raises(FormatError, match="was cut less than one it refers to"):
        model.decode(_one_cut(sections, model), (3, 12, 64, 64), QUALITY, None)


def _one_cut(sections, model):
    """One date that others refer to, cut on its own."""
    from tec_zarr.models.progressive_section import read_head

    shape = (3, 12, 64, 64)
    heads = [read_head(FlexSection.from_bytes(s).head, n, shape) for n, s in enumerate(sections)]
    (used, *_) = [r.date for head in heads for r in head.parsed.references]
    return [cut([s], [5]).sections[0] if n == used else s for n, s in enumerate(sections)]


# ---- damage


def test_damaged_steps_never_become_pixels(cube):
    model = get_model(MODEL)
    sections = model.encode(cube[:2].astype("f4"), 3.0, None).sections
    rng = np.random.default_rng(0)
    for _ in range(60):
        number = int(rng.integers(2))
        broken = bytearray(sections[number])
        place = int(rng.integers(len(broken)))
        broken[place] ^= 1 << int(rng.integers(8))
        damaged = [bytes(broken) if n == number else s for n, s in enumerate(sections)]
        try:
            _, crc = model.decode(damaged, cube[:2].shape, 3.0, None)
        except TecError:
            continue
        # A bit that the coder did not need, or one of the header (its frame has a checksum).
        groups = [FlexSection.from_bytes(s).groups for s in (damaged[number], sections[number])]
        header = groups[0] == groups[1]
        same = crc == check_of(sections)
        assert header or same


def check_of(sections):
    return [FlexSection.from_bytes(section).check() for section in sections]


@pytest.mark.parametrize("length", [0, 1, 3, 20])
def test_a_header_that_ends_early_is_refused(cube, length):
    model = get_model(MODEL)
    (section,) = model.encode(cube[:1].astype("f4"), 3.0, None).sections
    part = FlexSection.from_bytes(section)
    short = FlexSection(1, part.head[:length], part.groups).to_bytes()
    with pytest.raises(TecError):
        model.decode([short], cube[:1].shape, 3.0, None)


def test_more_steps_than_qualities_are_refused(cube):
    model = get_model(MODEL)
    (section,) = model.encode(cube[:1].astype("f4"), 2.0, None).sections
    part = FlexSection.from_bytes(section)
    longer = FlexSection(1, part.head, (*part.groups, part.groups[-1])).to_bytes()
    with pytest.raises(FormatError, match="a date of 2 qualities has 5 steps"):
        model.decode([longer], cube[:1].shape, 2.0, None)


# ---- cells


@st.composite
def latents(draw):
    count = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    wanted = np.rint(rng.laplace(0, draw(st.sampled_from([1, 10, 200, 20_000])), count))
    width = rng.integers(0, draw(st.sampled_from([2, 12, 40, 500])), (2, count))
    low, high = wanted - width[0], wanted + 1 + width[1]
    unknown = rng.random(count) < draw(st.sampled_from([0, 0.5, 1]))
    low, high = np.where(unknown, -(1 << 20), low), np.where(unknown, 1 << 20, high)
    tables = get_model(MODEL).tables
    index = rng.integers(0, len(tables.zones), count).astype(np.uint8)
    context = rng.integers(0, CONTEXTS, count).astype(np.uint8)
    whole = (x.astype(np.int64) for x in (wanted, low, high))
    wanted, low, high = whole
    return Cells(low, high, index, context), np.clip(wanted, low, high - 1)


@given(latents())
@settings(max_examples=200)
def test_cells_shrink_around_their_latents_alike_for_writer_and_readers(drawn):
    cells, wanted = drawn
    tables = get_model(MODEL).tables
    encoder = BitEncoder()
    new = tables.narrow(cells, encoder, wanted)
    assert (new.low <= wanted).all()
    assert (wanted < new.high).all()
    assert (cells.low <= new.low).all()
    assert (new.high <= cells.high).all()
    centre = tables.centre(new)
    assert ((new.low <= centre) & (centre <= new.high)).all()
    # What is left is a cell of one step, and slivers; the middle one is wider.
    assert (new.high - new.low <= np.where(np.abs(new.low + new.high) < 60, 80, 3 * GRID)).all()
    data = encoder.finish()
    assert len(data) * 8 <= encoder.bits + 64
    for reference in (False, True):
        read = tables.narrow(cells, BitDecoder(data, reference), None)
        np.testing.assert_array_equal(read.low, new.low)
        np.testing.assert_array_equal(read.high, new.high)


def test_a_second_look_at_the_same_quality_costs_next_to_nothing():
    tables = get_model(MODEL).tables
    rng = np.random.default_rng(2)
    wanted = np.rint(rng.laplace(0, 30, 5000)).astype(np.int64)
    far = np.full(5000, 1 << 20)
    cells = Cells(-far, far, np.full(5000, 40, np.uint8), np.zeros(5000, np.uint8))
    first, second = BitEncoder(), BitEncoder()
    tables.narrow(tables.narrow(cells, first, wanted), second, wanted)
    assert second.bits < 0.05 * first.bits


def test_neighbours_count_on_every_side_and_the_latent_itself_does_not():
    sizes = np.zeros((25, 2), np.int64)
    sizes[12, 1] = 50
    found = contexts(sizes, 5)
    assert not found[:, 0].any()
    grid = found[:, 1].reshape(5, 5)
    assert grid[2, 2] == 0
    assert (grid[2, [1, 3]] == grid[[1, 3], 2]).all()
    assert grid[2, 1] > grid[1, 1] > 0
    assert not grid[0].any()


def test_chances_are_those_of_released_tables():
    tables = get_model(MODEL).tables
    assert (np.diff(tables.cumulative, axis=1) > 0).all()
    assert (tables.cumulative[:, 0] == 0).all()
    assert (tables.cumulative[:, -1] == 1 << 24).all()
    assert tables.cumulative.shape[1] == 2 * REACH * GRID + 1
    assert ((tables.chances > 0) & (tables.chances < 1 << 16)).all()
    # The surer the networks are, the surer is what was counted.
    # Not further out, though: beyond the tables a chance is a guess.
    said = tables.chances[:OUTWARDS]
    assert (said[:, 8:] > said[:, :-8] - 6000).all()
