"""The residual layer: the bound holds on every valid pixel, whatever the array."""

import os
import subprocess
import sys
from pathlib import Path

import bound_reference
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr import ChunkSpec, encode_chunk
from tec_zarr.bounds import layer
from tec_zarr.errors import ChecksumError, FormatError, TecError, UnsupportedArrayError
from tec_zarr.grids import Grid, Kind

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval"
CPU = Path("/proc/cpuinfo")
BOUNDS = (0, 1, 5, 10, 50, 200)


def round_trip(original, bounds, valid=None):
    data = layer.encode(original, valid, bounds)
    decoded = layer.decode(data, valid, original.shape, bounds)
    assert decoded.dtype == np.int32
    assert decoded.shape == original.shape
    error = np.abs(decoded.astype(np.int64) - original)
    allowed = np.asarray(bounds)[None, :, None, None]
    assert np.all((error <= allowed) | ~(np.ones_like(error, bool) if valid is None else valid))
    return data, decoded


def scene(seed=0, shape=(2, 3, 40, 56)):
    """Smooth bands that share structure, with sensor-like noise, int32 DN."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[2], : shape[3]]
    relief = 800 * np.sin(y / 9.0) * np.cos(x / 7.0) + 300 * (y > x)
    gains = rng.uniform(0.5, 1.5, shape[:2])[..., None, None]
    return np.rint(2000 + gains * relief + rng.normal(0, 12, shape)).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 37), st.integers(1, 37)),
    bounds=st.lists(st.sampled_from(BOUNDS), min_size=4, max_size=4),
    kind=st.sampled_from(
        ["noise16", "int16", "int32", "scene", "every other", "constant", "checkerboard", "hot"]
    ),
    masked=st.sampled_from([None, 0.0, 0.03, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bound_holds_for_any_array(shape, bounds, kind, masked, seed):
    rng = np.random.default_rng(seed)
    original = {
        "noise16": lambda: rng.integers(0, 1 << 16, shape),
        "int16": lambda: rng.integers(-(1 << 15), 1 << 15, shape),
        "int32": lambda: rng.integers(-(1 << 31), 1 << 31, shape),
        "scene": lambda: scene(seed, shape),
        "every other": lambda: every_other(scene(seed, shape), rng.integers(0, 4000)) + seed % 2,
        "constant": lambda: np.full(shape, rng.integers(0, 10000)),
        "checkerboard": lambda: np.indices(shape).sum(0) % 2 * 10000,
        "hot": lambda: 100 + 65435 * (rng.random(shape) < 0.002),
    }[kind]().astype(np.int32)
    valid = None if masked is None else rng.random(shape) >= masked
    round_trip(original, bounds[: shape[1]], valid)


@pytest.mark.parametrize("value", BOUNDS)
@pytest.mark.parametrize("path", sorted(EVAL.glob("*.npz")) or [None], ids=lambda p: p and p.stem)
def test_bound_holds_on_real_scenes(path, value):
    if path is None:
        pytest.skip(f"no evaluation cubes in {EVAL}")
    original = np.load(path)["dn"][:1, ::3, 40:104, 40:104].astype(np.int32)
    round_trip(original, [value] * original.shape[1])


def test_zero_bound_is_lossless_and_smaller_than_the_array():
    original = scene(shape=(1, 4, 128, 128))
    data, decoded = round_trip(original, [0, 0, 0, 0])
    np.testing.assert_array_equal(decoded, original)
    assert len(data) < 0.5 * original.astype("<u2").nbytes


def test_larger_bounds_make_smaller_sections():
    original = scene(shape=(1, 3, 96, 96))
    sizes = [len(round_trip(original, [b] * 3)[0]) for b in (0, 2, 10, 50)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.2 * sizes[0]


def test_bounds_may_differ_from_pixel_to_pixel():
    original = scene(shape=(2, 3, 60, 44))
    rng = np.random.default_rng(11)
    blocks = rng.choice([0, 1, 5, 40], (2, 15, 11)).repeat(4, 1).repeat(4, 2)
    for valid in (None, rng.random(original.shape) > 0.2):
        data = layer.encode(original, valid, [3, blocks, 0])
        decoded = layer.decode(data, valid, original.shape, [3, blocks, 0])
        error = np.abs(decoded - original) * (True if valid is None else valid)
        assert (error[:, 1] <= blocks).all()
        assert error[:, 1].max() > 5
        assert error[:, 0].max() <= 3
        assert error[:, 2].max() == 0
    other = blocks.copy()
    other[0, 0, 0] += 1
    with pytest.raises(ChecksumError):
        layer.decode(data, valid, original.shape, [3, other, 0])
    with pytest.raises(UnsupportedArrayError, match="bounds of shape"):
        layer.encode(original, None, [3, blocks[:1], 0])


def test_bounds_are_per_band():
    original = scene(shape=(1, 3, 64, 64))
    _, decoded = round_trip(original, [0, 20, 0])
    np.testing.assert_array_equal(decoded[:, ::2], original[:, ::2])
    assert np.any(decoded[:, 1] != original[:, 1])


def test_noise_costs_hardly_more_than_its_bits():
    rng = np.random.default_rng(1)
    original = rng.integers(0, 1 << 16, (1, 3, 96, 96)).astype(np.int32)
    assert len(round_trip(original, [0] * 3)[0]) <= 1.02 * original.astype("<u2").nbytes


@pytest.mark.parametrize(("factor", "phase"), [(2, 0), (2, 1), (6, 0), (6, 4)])
def test_repeated_pixels_cost_next_to_nothing(factor, phase):
    rng = np.random.default_rng(2)
    fine = rng.integers(0, 1 << 12, (40, 40)).astype(np.int32)
    big = fine.repeat(factor, 0).repeat(factor, 1)[phase : phase + 96, phase : phase + 96]
    needed = big[::factor, ::factor].size * 12 / 8
    data, _ = round_trip(np.ascontiguousarray(big)[None, None], [0])
    assert len(data) <= 1.1 * needed + 100


def test_repeated_pixels_are_found_through_nodata():
    rng = np.random.default_rng(3)
    big = rng.integers(1, 1 << 12, (32, 32)).astype(np.int32).repeat(2, 0).repeat(2, 1)[None, None]
    valid = rng.random(big.shape) > 0.1
    big = np.where(valid, big, 0).astype(np.int32)
    assert len(round_trip(big, [0], valid=valid)[0]) <= 1.1 * 32 * 32 * 12 / 8 + 150


def test_pixels_that_share_no_valid_row_or_column_are_not_taken_for_equal():
    original = np.tile(np.array([[7, 0], [0, 900]], np.int32), (16, 16))[None, None]
    round_trip(original, [0], valid=original > 0)


def test_sparse_valid_pixels_keep_their_values():
    rng = np.random.default_rng(10)
    original = rng.integers(1, 50, (1, 2, 96, 40)).astype(np.int32)
    for share in (0.003, 0.01, 0.03):
        round_trip(original, [0, 10], valid=rng.random(original.shape) < share)


@pytest.mark.parametrize("value", [0, 65535])
def test_constant_arrays_cost_a_header(value):
    original = np.full((2, 3, 128, 128), value, np.int32)
    assert len(round_trip(original, [0] * 3)[0]) < 60


def test_invalid_pixels_are_free_and_deterministic():
    original = np.random.default_rng(6).integers(0, 1 << 16, (1, 2, 64, 64)).astype(np.int32)
    nothing = np.zeros(original.shape, bool)
    data, first = round_trip(original, [0, 0], valid=nothing)
    assert len(data) < 40
    np.testing.assert_array_equal(first, layer.decode(data, nothing, original.shape, [0, 0]))


def test_decoded_values_stay_within_the_range_of_the_valid_ones():
    original = np.random.default_rng(7).integers(1, 30, (1, 1, 64, 64)).astype(np.int32)
    _, decoded = round_trip(original, [20])
    assert decoded.min() >= 1, "a valid pixel must not turn into nodata"


def test_damaged_bytes_are_refused():
    original = scene(shape=(1, 2, 32, 32))
    data = layer.encode(original, None, [1, 1])
    rng = np.random.default_rng(8)
    for position in [*range(9), *rng.integers(9, len(data), 40)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        with pytest.raises((FormatError, ChecksumError)):
            layer.decode(bytes(damaged), None, original.shape, [1, 1])
    for length in (0, 5, 9, len(data) // 2, len(data) - 1):
        with pytest.raises((FormatError, ChecksumError)):
            layer.decode(data[:length], None, original.shape, [1, 1])


def test_random_bytes_are_refused():
    rng = np.random.default_rng(9)
    shape = (1, 2, 24, 24)
    for _ in range(200):
        with pytest.raises(TecError):
            layer.decode(rng.bytes(int(rng.integers(0, 240))), None, shape, [1, 1])


def test_wrong_side_information_is_refused():
    original = scene(shape=(1, 2, 32, 32))
    valid = original > 1500
    data = layer.encode(original, valid, [1, 1])
    for other in (
        (~valid, original.shape, [1, 1]),
        (None, original.shape, [1, 1]),
        (valid, original.shape, [1, 2]),
    ):
        with pytest.raises(ChecksumError):
            layer.decode(data, *other)


@pytest.mark.parametrize("bounds", [[-1, 0], [0.5, 0], [0], [0, 0, 0], [2**31, 0]])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(UnsupportedArrayError, match="bound"):
        layer.encode(scene(shape=(1, 2, 8, 8)), None, bounds)


_DECODE = """
import sys, numpy as np
from tec_zarr.bounds import layer as bound
from tec_zarr import decode_chunk
with np.load(sys.argv[1]) as case:
    shape = tuple(case["original"].shape)
    decoded = bound.decode(case["data"].tobytes(), None, shape, case["bounds"])
    assert np.abs(decoded.astype(np.int64) - case["original"]).max() <= 3
    a, b = decode_chunk(case["frame"].tobytes())[0].astype(float)
    c, d = case["pair"][0].astype(float)
    assert np.abs((a - b) / (a + b) - (c - d) / (c + d)).max() <= 0.01
"""


@pytest.mark.parametrize(
    "setting",
    [
        {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX2 FMA3"},
        {"OPENBLAS_CORETYPE": "PRESCOTT"},
        {"OPENBLAS_CORETYPE": "HASWELL", "OPENBLAS_NUM_THREADS": "1"},
        pytest.param(
            {"OPENBLAS_CORETYPE": "SKYLAKEX", "OPENBLAS_NUM_THREADS": "2"},
            marks=pytest.mark.skipif(
                not (CPU.exists() and "avx512f" in CPU.read_text()),
                reason="this processor has no AVX-512, or nothing says so",
            ),
        ),
    ],
    ids=lambda setting: " ".join(f"{k}={v}" for k, v in setting.items()),
)
def test_other_instruction_sets_decode_the_same(setting, tmp_path):
    original = scene(shape=(2, 3, 160, 144))
    bounds = [0, 1, 3]
    data = np.frombuffer(layer.encode(original, None, bounds), np.uint8)
    pair = original[:1, :2].astype("u2")
    by_index = ChunkSpec(bands=["B08", "B04"], max_error={"ndvi": 0.01})
    frame = np.frombuffer(encode_chunk(pair, by_index), np.uint8)
    np.savez(
        tmp_path / "case.npz",
        original=original, data=data, bounds=bounds, pair=pair, frame=frame,
    )  # fmt: skip
    # The section holds a checksum of what the encoder decoded, so that any other result raises.
    run = subprocess.run(
        [sys.executable, "-c", _DECODE, str(tmp_path / "case.npz")],
        env={**os.environ, **setting},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_float_arrays_are_refused():
    with pytest.raises(UnsupportedArrayError, match="float64"):
        layer.encode(scene(shape=(1, 2, 8, 8)).astype(float), None, [0, 0])


def test_a_decoder_written_from_the_page_decodes_the_same():
    """docs/error-bounds.md, "Bytes": whoever writes a decoder has nothing else."""
    rng = np.random.default_rng(12)
    two, six = Grid(Kind.BILINEAR, 2, 1, 0), Grid(Kind.REPEATED, 3, 0, 2)
    original = np.concatenate([scene(3, (2, 6, 20, 30)), scene(4, (2, 2, 20, 30))], axis=1)
    for band, grid in ((1, two), (4, six)):
        native = original[:, band][
            :, : grid.native_shape((20, 30))[0], : grid.native_shape((20, 30))[1]
        ]
        original[:, band] = grid.enlarge(native, (20, 30))
    original[1, 1, 4::9, 3::11] += 9
    original[1, 4, 19, 29] += 9
    original[:, 5] = rng.integers(0, 1 << 16, original[:, 5].shape)
    original[:, 6] *= 1 << 16
    blocks = rng.choice([0, 1, 5, 40], (2, 5, 8)).repeat(4, 1).repeat(4, 2)[:, :20, :30]
    bounds = [0, 3, 0, blocks, 1, 0, 40_000, 20]
    for valid in (None, rng.random(original.shape) > 0.15):
        data = layer.encode(original, valid, bounds)
        decoded = layer.decode(data, valid, original.shape, bounds)
        by_page = bound_reference.decode(data, valid, original.shape, bounds)
        np.testing.assert_array_equal(by_page, decoded)
    wide = scene(5, (1, 2, 4, 400))
    stretched = scene(6, (1, 2, 40, 40)) * 5 // 2  # three values of five never occur
    stretched[0, 1] = stretched[0, 1] * 4 + rng.integers(0, 3, (40, 40)) ** 2
    even = every_other(scene(9, (1, 3, 30, 30)), 1900)
    for array, bounds in ((wide, [0, 10]), (stretched, [0, 0]), (even, [1, 2, 40])):
        data = layer.encode(array, None, bounds)
        by_page = bound_reference.decode(data, None, array.shape, bounds)
        np.testing.assert_array_equal(by_page, layer.decode(data, None, array.shape, bounds))


def every_other(counts, limit):
    """Values below ``limit``, and from there on even ones only."""
    return np.where(counts >= limit, counts & ~1, counts)


def test_every_other_value_takes_wider_steps():
    """Bands of level 2 have even DN only from 1024 on: within 1 DN, a step of 4 holds them."""
    counts = scene(8, (1, 1, 128, 128))
    size = len(round_trip(counts, [1])[0])
    for limit in (0, 2000, 2001):
        array = every_other(counts, limit)
        saved = 8 * (size - len(round_trip(array, [1])[0])) / (array >= limit).sum()
        assert saved > 0.3  # log2(4 / 3) is 0.415
    data, _ = round_trip(array + 1, [1])
    assert len(data) < size  # odd ones


def test_values_that_never_occur_cost_nothing():
    """Products of level 2 are stretched whole numbers: a gain of 1.6 leaves three of eight out."""
    counts = scene(7, (1, 1, 192, 192))
    size = len(layer.encode(counts, None, [0]))
    stretched = len(layer.encode(np.rint(counts * 1.6).astype(np.int32), None, [0]))
    bits = 8 * (stretched - size) / counts.size
    assert bits < 0.4  # log2(1.6) is 0.68
