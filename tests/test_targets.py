"""``max_error``, ``psnr`` and ``max_bytes``: what was asked for is what comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr import TEC, ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.metrics import psnr


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=1, size=48, seed=4).values


def roundtrip(array, **arguments):
    return decode_chunk(encode_chunk(array, ChunkSpec(model="toy", **arguments)))


DN_KINDS = ["noise", "flat", "hot", "checker", "gradient"]


def picture(kind, rng, dtype, shape):
    limits = np.iinfo(dtype)
    out = np.full(shape, rng.integers(limits.min, limits.max), dtype)
    if kind == "noise":
        out[:] = rng.integers(limits.min, limits.max, shape, endpoint=True)
    elif kind == "hot":
        out[..., rng.integers(shape[-2]), rng.integers(shape[-1])] = limits.max
    elif kind == "checker":
        out[..., ::2, ::2] = limits.max
    elif kind == "gradient":
        out[:] = np.linspace(limits.min, limits.max, shape[-1]).astype(dtype)
    return out


@settings(max_examples=40)
@given(
    st.sampled_from(DN_KINDS), st.sampled_from([0, 1, 5, 10, 50, 200]),
    st.sampled_from(["u2", ">u2", "i2"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_sample_is_within_the_bound(kind, bound, dtype, seed):
    rng = np.random.default_rng(seed)
    shape = (1, int(rng.integers(1, 4)), int(rng.integers(1, 20)), int(rng.integers(1, 20)))
    array = picture(kind, rng, np.dtype(dtype), shape).astype(dtype)
    back = roundtrip(array, max_error=bound)
    assert back.dtype == array.dtype
    assert np.abs(back.astype(int) - array.astype(int)).max() <= bound
    assert np.array_equal(back == 0, array == 0)


@settings(max_examples=15)
@given(st.integers(1, 9999), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_bound_holds_beside_any_nodata_value(nodata, bound, seed):
    rng = np.random.default_rng(seed)
    array = rng.integers(nodata - 3, nodata + 4, (1, 2, 9, 11)).clip(0).astype("u2")
    back = roundtrip(array, max_error=bound, nodata=nodata)
    assert np.abs(back.astype(int) - array.astype(int)).max() <= bound
    assert np.array_equal(back == nodata, array == nodata)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_lossless_floats_are_bit_for_bit(cube, dtype):
    array = (cube * np.dtype(dtype).type(1e-4)).astype(dtype)
    array[0, :, :5, 7] = np.nan
    array[0, 3, 9, 9] = np.inf
    array[0, 4, 9, 9] = 0.12345678  # between two DN
    assert np.array_equal(roundtrip(array, max_error=0), array, equal_nan=True)


@pytest.mark.parametrize("bound", [0.0005, 0.002])
def test_bounds_of_reflectance_are_reflectance(cube, bound):
    array = (cube * 1e-4).astype("f4")
    array[cube == 0] = np.nan
    back = roundtrip(array, max_error=bound)
    assert np.array_equal(np.isnan(back), np.isnan(array))
    last_place = np.spacing(np.maximum(array, back))
    assert np.nanmax(np.abs(back.astype("f8") - array) - last_place) <= bound
    assert len(encode_chunk(array, ChunkSpec(model="toy", max_error=bound))) < array.nbytes / 8


def test_each_band_has_its_bound(cube):
    bounds = [0, 2, 4, 8, 16, 32, 0, 2, 4, 8, 16, 32]
    back = roundtrip(cube, max_error=bounds)
    worst = np.abs(back.astype(int) - cube).max(axis=(0, 2, 3))
    assert (worst <= bounds).all()
    assert worst[5] > 0
    with pytest.raises(UnsupportedArrayError, match="3 values for the 12 bands"):
        roundtrip(cube, max_error=[1, 2, 3])


def test_looser_bounds_cost_less(cube):
    sizes = [len(encode_chunk(cube, ChunkSpec(max_error=b))) for b in (0, 5, 20, 100)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < cube.nbytes * 0.6


def test_damaged_bounded_frames_raise(cube):
    frame = encode_chunk(cube[:, :2, :12, :12], ChunkSpec(max_error=3))
    for position in range(0, len(frame), 3):
        broken = bytearray(frame)
        broken[position] ^= 1 << position % 8
        with pytest.raises(TecError):
            decode_chunk(bytes(broken))


@pytest.mark.parametrize("asked", [36.0, 42.0])
def test_psnr_is_reached_and_not_by_much(cube, asked):
    tec = TEC(psnr=asked)
    back = tec.decode(tec.encode(cube))
    reached = psnr(cube, back, valid=np.broadcast_to(cube != 0, cube.shape))
    assert asked <= reached < asked + 0.7


def test_psnr_of_noise_is_reached_too():
    noise = np.random.default_rng(0).integers(1, 10000, (1, 2, 16, 16)).astype("u2")
    assert psnr(noise, TEC().decode(TEC(psnr=75).encode(noise))) >= 75


def test_max_bytes_is_kept_and_used(cube):
    frame = TEC(max_bytes=4000).encode(cube)
    assert 3600 < len(frame) <= 4000
    assert len(TEC(max_bytes=10**7).encode(cube)) == len(TEC(quality=8).encode(cube))
    with pytest.raises(UnsupportedArrayError, match="max_bytes=90"):
        TEC(max_bytes=90).encode(cube)


@pytest.mark.parametrize(
    "arguments",
    [{"max_error": 1, "psnr": 40}, {"max_error": -1}, {"psnr": float("nan")}, {"max_bytes": -5}],
)
def test_targets_that_make_no_sense_are_refused(arguments):
    with pytest.raises(UnsupportedArrayError):
        ChunkSpec(**arguments)


def test_targets_travel_in_the_configuration():
    spec = ChunkSpec(max_error=[1, 2])
    assert ChunkSpec.from_config(spec.to_config()) == spec
