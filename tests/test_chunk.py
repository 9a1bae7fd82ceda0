"""encode_chunk and decode_chunk with the toy model, whose error is at most half its step."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from tec_zarr.codec import encode, second_generation
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import (
    ChecksumError,
    FormatError,
    LimitError,
    SecondGenerationWarning,
    TecError,
    UnknownModelError,
    UnsupportedArrayError,
    WeightsMismatchError,
)
from tec_zarr.frame.frame import SectionKind, read_frame, write_frame
from tec_zarr.models import registry
from tec_zarr.sentinel2 import BANDS, L2A_BANDS

QUALITY = 5.0
HALF_STEP = 2 ** (8 - QUALITY) / 2 + 0.51  # and rounding to whole DN


def spec(**kwargs) -> ChunkSpec:
    return ChunkSpec(model=toy.NAME, quality=kwargs.pop("quality", QUALITY), **kwargs)


def scene(shape, seed=0, low=1, high=12000):
    """Smooth DN with some noise, never nodata."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    base = 3000 + 2000 * np.sin(x / 17) * np.cos(y / 23)
    return np.clip(base + rng.normal(0, 300, shape), low, high).round()


shapes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 13), st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
dtypes = st.sampled_from(["<u2", ">u2", "<i2", ">i2", "<f4", ">f4", "<f8", ">f8"])


@given(shapes, dtypes, st.sampled_from("CF"), st.integers(0, 99), st.data())
def test_any_shape_dtype_and_order_comes_back(shape, dtype, order, seed, data):
    native = np.dtype(dtype).newbyteorder("=")
    unit = 1e-4 if native.kind == "f" else 1
    values = scene(shape, seed, low=-500 if native.kind != "u" else 1)
    values[values == 0] = 1
    rng = np.random.default_rng(seed)
    array = (values * unit).astype(native)
    fills = {"u": [0, 65535], "i": [0, -9999], "f": [0, np.nan, -9999, np.inf]}[native.kind]
    lost = rng.random(shape) < data.draw(st.sampled_from([0, 0.01, 0.6, 1]))
    array[lost] = rng.choice(fills, np.count_nonzero(lost)).astype(native)
    array = np.asarray(array.astype(dtype), order=order)

    back = decode_chunk(encode_chunk(array, spec(nodata=(0, -9999, 65535))))

    assert back.shape == array.shape
    assert back.dtype == array.dtype
    assert back.flags.c_contiguous == array.flags.c_contiguous
    np.testing.assert_array_equal(back[lost], array[lost])
    measured = array.astype("f8")[~lost] / unit
    assert np.abs(back.astype("f8")[~lost] / unit - measured).max(initial=0) <= HALF_STEP + 0.01
    assert not np.isin(back[~lost], [0, -9999, 65535]).any()


@given(st.permutations(list(BANDS)), st.integers(1, 13))
def test_any_subset_and_order_of_bands(order, count):
    bands = tuple(order[:count])
    array = scene((2, count, 9, 11)).astype("uint16")
    frame = encode_chunk(array, spec(bands=bands))
    assert read_frame(frame).header.bands == bands
    assert decode_chunk(frame).shape == array.shape


def test_twelve_bands_need_no_names():
    for shape in [(2, 12, 8, 8), (12, 8, 8)]:
        assert read_frame(encode_chunk(scene(shape).astype("u2"), spec())).header.bands == L2A_BANDS


def test_a_wrong_number_of_bands_says_so():
    with pytest.raises(UnsupportedArrayError, match=r"\(2, 3, 8, 8\) has 3 bands.*given 2"):
        encode_chunk(scene((2, 3, 8, 8)).astype("u2"), spec(bands=["B02", "B03"]))


def test_nothing_measured_costs_under_100_bytes():
    for dtype, value in [("u2", 0), ("f4", np.nan), ("f8", 0), ("i2", -9999)]:
        array = np.full((4, 12, 256, 256), value, dtype)
        frame = encode_chunk(array, spec(nodata=(0, -9999)))
        assert len(frame) < 100
        np.testing.assert_array_equal(decode_chunk(frame), array)


@pytest.mark.parametrize(
    ("shape", "dtype", "bound"),
    [((60, 12, 8, 8), "u2", None), ((365, 12, 8, 8), "u2", None), ((365, 4, 8, 8), "f4", 0),
     ((2, 300, 8, 8), "f4", 0.01), ((2, 300, 8, 8), "f8", 0.01),
     ((2, 12, 8, 8), "f8", {"ndvi": 0.01})],
)  # fmt: skip
def test_nor_does_it_with_many_dates_bands_or_bounds(shape, dtype, bound):
    array = np.zeros(shape, dtype)
    frame = encode_chunk(array, spec(max_error=bound))
    assert len(frame) < 100
    np.testing.assert_array_equal(decode_chunk(frame), array)


def test_a_constant_chunk_is_exact_and_costs_next_to_nothing():
    array = np.full((4, 12, 256, 256), 0.1234567, "f4")
    assert len(encode_chunk(array, spec())) < 100
    array[1, :, :20] = np.nan
    frame = encode_chunk(array, spec())
    assert len(frame) < 150
    np.testing.assert_array_equal(decode_chunk(frame), array)


def test_values_outside_the_model_come_back_exactly():
    array = scene((1, 12, 32, 32)).astype("i4")
    odd = {(0, 0, 3, 4): -32768, (0, 3, 5, 5): -5000, (0, 3, 31, 31): 32767, (0, 11, 0, 0): 25000}
    for at, value in odd.items():
        array[at] = value
    array = array.astype("i2")
    back = decode_chunk(encode_chunk(array, spec()))
    for at, value in odd.items():
        assert back[at] == value
    assert np.abs(back.astype(int) - array).max() <= HALF_STEP


def test_saturated_pixels_do_not_wrap():
    array = scene((1, 12, 64, 64)).astype("u2")
    array[:, :, 10:30, 10:30] = 65535
    array[:, 4, 40:50, 40:50] = 18000
    back = decode_chunk(encode_chunk(array, spec()))
    assert (back[:, :, 10:30, 10:30] == 65535).all()
    assert np.abs(back.astype(int) - array).max() <= HALF_STEP


def test_a_dark_measured_pixel_never_becomes_nodata():
    array = np.random.default_rng(0).integers(1, 4, (1, 12, 32, 32)).astype("u2")
    back = decode_chunk(encode_chunk(array, spec(quality=1)))
    assert back.min() == 1


def test_a_pixel_beside_nodata_is_not_worse():
    array = scene((1, 12, 96, 96)).astype("u2")
    array[:, :, 30:60, :40] = 0
    back = decode_chunk(encode_chunk(array, spec()))
    error = np.abs(back.astype(int) - array)
    assert error[:, :, 28:62, :42].max() <= HALF_STEP


def test_padding_of_the_caller_is_kept_exactly():
    array = scene((1, 12, 32, 32)).astype("u2")
    array[..., 20:] = 7
    back = decode_chunk(encode_chunk(array, spec(), padding=(7,)))
    assert (back[..., 20:] == 7).all()
    assert not (back[..., :20] == 7).any()


def test_dates_without_data_are_not_coded():
    array = scene((3, 12, 32, 32)).astype("u2")
    array[1] = 0
    frame = encode_chunk(array, spec())
    assert len(read_frame(frame).payloads(SectionKind.LATENTS)) == 2
    assert (decode_chunk(frame)[1] == 0).all()


def test_chunks_larger_than_a_tile_come_back():
    array = scene((1, 2, 530, 1100)).astype("u2")
    array[:, :, 300:, 800:] = 0
    frame = encode_chunk(array, spec(bands=["B04", "B08"]))
    assert np.abs(decode_chunk(frame).astype(int) - array).max() <= HALF_STEP


def test_an_offset_is_taken_off_before_the_model_and_put_back():
    array = scene((1, 12, 32, 32)).astype("u2")
    frame = encode_chunk(array + np.uint16(1000), spec(offset=1000))
    plain = encode_chunk(array, spec())
    latents = SectionKind.LATENTS
    assert read_frame(frame).payloads(latents) == read_frame(plain).payloads(latents)
    np.testing.assert_array_equal(decode_chunk(frame), decode_chunk(plain) + np.uint16(1000))


def test_floats_that_are_dn_must_be_called_dn():
    array = scene((1, 12, 32, 32)).astype("f4")
    with pytest.raises(UnsupportedArrayError, match="scale=1"):
        encode_chunk(array, spec())
    back = decode_chunk(encode_chunk(array, spec(scale=1)))
    assert np.abs(back - array).max() <= HALF_STEP


def test_same_input_same_bytes_from_any_thread():
    array = scene((2, 12, 64, 64)).astype("u2")
    array[0, :, :9] = 0
    with ThreadPoolExecutor(8) as pool:
        frames = set(pool.map(lambda _: encode_chunk(array, spec()), range(24)))
    assert len(frames) == 1


def test_same_input_same_bytes_after_a_restart():
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests'); import toy; toy.register()\n"
        "from test_chunk import scene, spec; from tec_zarr.codec.encode import encode_chunk\n"
        "a = scene((2, 12, 40, 40)).astype('u2'); a[0, :, :9] = 0\n"
        "print(hashlib.sha256(encode_chunk(a, spec(nodata=(0, 65535)))).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(digests) == 1
    assert "\n" in digests.pop()


@pytest.mark.parametrize("array", [scene((1, 2, 6, 6)).astype("u2"), np.zeros((2, 5, 5), "f4")])
def test_every_flipped_bit_of_a_chunk_raises(array):
    frame = encode_chunk(array, spec())
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TecError):
            decode_chunk(bytes(damaged))


def test_latents_that_differ_from_the_encoders_raise(monkeypatch):
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())
    model = registry.get_model(toy.NAME)
    monkeypatch.setattr(model, "decode", lambda s, shape, q, b: (np.zeros(shape, "f4"), [1]))
    with pytest.raises(ChecksumError, match="decoded other latents"):
        decode_chunk(frame)


def test_a_decoder_that_fails_is_reported_as_such(monkeypatch):
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())

    def fail(*_):
        raise AssertionError("invalid for the employed entropy model")

    monkeypatch.setattr(registry.get_model(toy.NAME), "decode", fail)
    with pytest.raises(ChecksumError, match=r"toy.*could not decode.*entropy model"):
        decode_chunk(frame)


class _Alarm(Exception):
    """What a signal handler may raise."""


@pytest.mark.parametrize(
    "error", [TimeoutError("late"), MemoryError(), OSError("disk"), _Alarm(), RecursionError(),
              ImportError("torch"), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
              RuntimeWarning("as an error")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_the_machine_or_the_caller_does_is_not_blamed_on_the_data(monkeypatch, error):
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())

    def fail(*_):
        raise error

    monkeypatch.setattr(registry.get_model(toy.NAME), "decode", fail)
    with pytest.raises(type(error)) as caught:
        decode_chunk(frame)
    assert caught.value is error


def test_a_missing_model_says_what_to_install():
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())
    with (
        registry.as_new_process(),
        pytest.raises(UnknownModelError, match=r"toy.*pip install --upgrade tec_zarr"),
    ):
        decode_chunk(frame)


def test_other_weights_are_named():
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())
    with registry.as_new_process():
        registry.register_model(toy.NAME, toy.ToyModel, "ab" * 32)
        with pytest.raises(WeightsMismatchError, match=f"{toy.SHA256[:16]}.*abababab"):
            decode_chunk(frame)


def test_another_shape_than_expected_raises_before_decoding():
    frame = encode_chunk(scene((1, 12, 8, 8)).astype("u2"), spec())
    with pytest.raises(FormatError, match="another array"):
        decode_chunk(frame, expected_shape=(1, 12, 8, 9))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 12, 8, 8), "u1"), "not uint8"),
        (np.zeros((1, 12, 8, 8), "c8"), "not complex64"),
        (np.zeros(8, "u2"), "1 dimension"),
        (np.zeros((1, 1, 1, 8, 8), "u2"), "5 dimensions"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, message):
    with pytest.raises(UnsupportedArrayError, match=message):
        encode_chunk(array, spec())


def test_an_empty_chunk_is_refused():
    with pytest.raises(LimitError):
        encode_chunk(np.zeros((0, 12, 8, 8), "u2"), spec())


@pytest.mark.parametrize(
    "wrong", [{"quality": 0.5}, {"quality": 9}, {"scale": 0}, {"bands": ["B99"]}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(TecError):
        spec(**wrong)


def test_an_unknown_model_is_refused_at_once():
    with pytest.raises(UnknownModelError, match="no-such-model"):
        ChunkSpec(model="no-such-model")


def test_quality_is_continuous():
    array = scene((1, 12, 64, 64)).astype("u2")
    sizes = [len(encode_chunk(array, spec(quality=q))) for q in np.linspace(1, 8, 15)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == len(sizes)


def test_encoding_decoded_pixels_again_warns():
    array = scene((1, 12, 64, 64)).astype("u2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = encode_chunk(array, spec())
        back = decode_chunk(frame)
        encode_chunk(array, spec())  # the source again: nothing is lost
    back[:, :, :32] = 1234
    with pytest.warns(SecondGenerationWarning, match="decoded from TEC before"):
        encode_chunk(back, spec())


def _pieces(decoded):
    yield "crop off any grid", decoded[:, :, 9:120, 21:140]
    yield "one band", decoded[:, 3:4]
    yield "other order of bands", decoded[:, [7, 3, 2]]
    yield "mirrored left to right", decoded[..., ::-1]
    yield "mirrored top to bottom", decoded[:, :, ::-1]
    yield "last date", decoded[1:]
    yield "crop of one band", decoded[:1, 5:6, 50:130, 61:160]


def test_so_do_pieces_of_them():
    array = scene((2, 12, 160, 160)).astype("u2")
    back = decode_chunk(encode_chunk(array, spec()))
    for name, piece in _pieces(back):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            encode_chunk(piece, spec(bands=L2A_BANDS[: piece.shape[1]]))
        assert [w.category for w in caught] == [SecondGenerationWarning], name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _, piece in _pieces(array):
            encode_chunk(piece, spec(bands=L2A_BANDS[: piece.shape[1]]))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
def test_pieces_of_other_dtypes_warn_too(dtype):
    array = (scene((1, 12, 96, 96)) * (1e-4 if dtype[0] == "f" else 1)).astype(dtype)
    back = decode_chunk(encode_chunk(array, spec()))
    with pytest.warns(SecondGenerationWarning):
        encode_chunk(back[:, :, 5:90, 7:91], spec())


# ---- without loss, and bounds


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 0])
def test_without_loss_floats_come_back_bit_for_bit(dtype, nodata):
    array = np.random.default_rng(0).random((1, 2, 8, 8)).astype(dtype)
    whole = array.view(f"u{array.itemsize}")
    array[0, 0, 0, :4] = [-0.0, 0.0, np.nan, np.finfo(dtype).smallest_subnormal]
    whole[0, 0, 1, 0] = whole[0, 0, 0, 2] | 1  # a NaN with a payload
    array[0, 0, 1, 1] = -array[0, 0, 0, 2]
    back = decode_chunk(encode_chunk(array, spec(max_error=0, nodata=nodata)))
    assert back.tobytes() == array.tobytes()
    with np.errstate(all="raise"):
        encode_chunk(array, spec(max_error=1e-3, nodata=nodata))


@pytest.mark.parametrize(
    ("dtype", "arguments"),
    [
        ("float32", {"max_error": 1e305}),
        ("uint16", {"max_error": 1e308, "scale": 0.1}),
    ],
)
def test_bounds_beyond_all_numbers_make_frames_that_decode(dtype, arguments):
    array = (scene((1, 2, 9, 9)) * (1e-4 if dtype == "float32" else 1)).astype(dtype)
    back = decode_chunk(encode_chunk(array, spec(**arguments)))
    assert np.abs(back.astype("f8") - array).max() <= arguments["max_error"]


@pytest.mark.parametrize("bound", [np.float32(5), np.int64(5), np.array(5.0), np.full(3, 5)])
def test_bounds_may_be_numbers_of_numpy(bound):
    same = spec(max_error=[5.0] * 3 if np.ndim(bound) else 5.0)
    assert spec(max_error=bound) == same
    assert hash(spec(max_error=bound)) == hash(same)
    assert spec(max_error=bound).to_config() == same.to_config()
    with pytest.raises(UnsupportedArrayError, match="max_error"):
        spec(max_error=[[5.0]])


def test_max_bytes_takes_the_finest_quality_tried_that_fits(monkeypatch):
    """Small chunks have many qualities of one size."""
    array = scene((1, 3, 8, 8)).astype("uint16")
    tried = []

    def spy(header, sections):
        frame = write_frame(header, sections)
        tried.append((len(frame), header.quality))
        return frame

    monkeypatch.setattr(encode, "write_frame", spy)
    least = len(encode_chunk(array, spec(quality=1)))
    for most in range(least, 2 * least, 9):
        tried.clear()
        data = encode_chunk(array, ChunkSpec(model=toy.NAME, max_bytes=most))
        assert len(data) <= most
        assert read_frame(data).header.quality == max(q for n, q in tried if n <= most)


def test_a_header_of_endless_dates_allocates_nothing():
    code = (
        "import resource, numpy as np\n"
        "from tec_zarr import decode_chunk, errors\n"
        "from tec_zarr.models.registry import find_model\n"
        "from tec_zarr.frame.frame import Axes, Header, write_frame\n"
        "weights = bytes.fromhex(find_model('tec-s2').weights[0])[:8]\n"
        "header = Header(1, weights, 4.0, Axes.TCYX, (2**28, 1, 1, 1), np.dtype('<u2'))\n"
        "frame = write_frame(header, [])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode_chunk(frame)\n"
        "except errors.TecError: pass\n"
        "else: raise SystemExit('decoded')\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dates", [["a"], [1.5], [None]])
def test_dates_that_are_no_numbers_are_refused(dates):
    data = encode_chunk(scene((2, 3, 8, 8)).astype("uint16"), spec())
    with pytest.raises(UnsupportedArrayError, match="whole numbers"):
        decode_chunk(data, dates=dates)


def test_weights_that_are_not_there_say_so(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "weights_file", lambda name, sha256: tmp_path / "gone")
    with (
        registry.as_new_process(),
        pytest.raises(WeightsMismatchError, match=r"gone.*force-reinstall"),
    ):
        registry.get_model("tec-s2")


def test_what_was_decoded_is_remembered_within_bounds():
    """Also of chunks that are too narrow to be recognised, however many a process decodes."""
    narrow = np.random.default_rng(0).integers(0, 9000, (8, 8, 64, 32)).astype(np.uint16)
    wide = np.random.default_rng(0).integers(0, 9000, (8, 8, 64, 256)).astype(np.uint16)
    tracemalloc.start()
    try:
        for number in range(400):
            second_generation.remember_decoded(narrow + np.uint16(number))
        assert tracemalloc.get_traced_memory()[0] < 1e5
        for number in range(400):
            second_generation.remember_decoded(wide + np.uint16(number))
        assert tracemalloc.get_traced_memory()[0] < 1e7
    finally:
        tracemalloc.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second_generation.warn_if_decoded_before(wide)  # so long ago that it is forgotten
    with pytest.warns(SecondGenerationWarning):
        second_generation.warn_if_decoded_before(wide + np.uint16(399))


@pytest.mark.parametrize("fill", [1e20, -9999.0, 9999.0])
def test_a_fill_is_no_reason_to_call_reflectance_dn(fill):
    array = (scene((1, 12, 32, 32)) * 1e-4).astype("f4")
    array[:, :, :, :20] = fill
    back = decode_chunk(encode_chunk(array, spec()))
    np.testing.assert_array_equal(back == np.float32(fill), array == np.float32(fill))
    assert np.abs(back - array)[..., 20:].max() <= HALF_STEP * 1e-4
    for nodata in (0, fill):
        with pytest.raises(UnsupportedArrayError, match="leave scale out"):
            encode_chunk(array, spec(scale=1, nodata=nodata))
    dn = np.where(array == np.float32(fill), array, array * np.float32(1e4))
    with pytest.raises(UnsupportedArrayError, match="scale=1"):
        encode_chunk(dn, spec())
    encode_chunk(dn, spec(scale=1))
