"""``max_error`` by name: bands, all of them, and normalised differences of two."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import toy
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk, recompress
from tec_zarr.bounds import layer
from tec_zarr.codec.bounded import within_bounds
from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.frame.frame import Section, SectionKind, read_frame, read_header, write_frame
from tec_zarr.sentinel2 import L2A_BANDS

PAIR = ("B08", "B04")
KINDS = ["noise", "vegetation", "water", "dark", "hot", "checkerboard", "negative"]


def spec(**arguments) -> ChunkSpec:
    return ChunkSpec(model=toy.NAME, **arguments)


def index(a, b):
    with np.errstate(all="ignore"):
        return (a - b) / (a + b)


def index_error(original, decoded, first=0, second=1, shift=0.0):
    """Largest error of an index over the pixels where the original has one."""
    before, after = (
        index(*(x[:, c].astype("f8") - shift for c in (first, second))) for x in (original, decoded)
    )
    there = np.isfinite(before)
    return np.abs(after[there] - before[there]).max(initial=0)


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=2, size=48, seed=4).values


def picture(kind, rng, shape):
    """Two bands of DN, where 0 may be nodata."""
    y, x = np.mgrid[: shape[2], : shape[3]]
    relief = 1 + 0.4 * np.sin(x / 7) * np.cos(y / 5)
    return {
        "noise": lambda: rng.integers(0, 1 << 16, shape),
        "vegetation": lambda: np.stack([3000 * relief, 250 / relief])[None] * np.ones(shape)
        + rng.normal(0, 20, shape),
        "water": lambda: rng.integers(1, 60, shape),
        "dark": lambda: 0.3 + 4 * rng.random(shape),
        "hot": lambda: 900 + 64000 * (rng.random(shape) < 0.01),
        "checkerboard": lambda: np.indices(shape).sum(0) % 2 * 9000 + 1,
        "negative": lambda: rng.integers(-300, 300, shape),
    }[kind]()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["<u2", ">u2", "<i2", "<f4", "<f8"]),
    allowed=st.sampled_from([0, 0.0005, 0.01, 0.05, 0.4, 3]),
    every=st.sampled_from([None, 0, 1, 5, 10, 50, 200]),
    offset=st.sampled_from([0, 1000]),
    lost=st.sampled_from([0, 0.02, 0.6]),
    size=st.tuples(st.integers(1, 25), st.integers(1, 25)),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_index_stays_within_its_bound(kind, dtype, allowed, every, offset, lost, size, seed):
    rng = np.random.default_rng(seed)
    dn = picture(kind, rng, (1, 2, *size)) + offset
    native = np.dtype(dtype).newbyteorder("=")
    scale = 1e-4 if native.kind == "f" else 1
    if native.kind != "f":
        dn = np.clip(np.rint(dn), *(np.iinfo(native).min, np.iinfo(native).max))
    array = (dn * scale).astype(dtype)
    missing = rng.random(array.shape) < lost
    array[missing] = np.nan if native.kind == "f" else 0
    bounds = {"ndvi": allowed} | ({} if every is None else {"all": every * scale})

    frame = encode_chunk(array, spec(bands=PAIR, max_error=bounds, offset=offset))
    back = decode_chunk(frame)

    nothing = np.isnan(array) | (array == 0)
    np.testing.assert_array_equal(back[nothing], array[nothing])
    assert not (np.isnan(back) | (back == 0))[~nothing].any()
    original = np.where(nothing, np.nan, array.astype("f8"))
    assert index_error(original, back, shift=offset * scale) <= allowed
    if every is not None:
        slack = 0
        if native.kind == "f" and every > 0:
            slack = np.spacing(np.maximum(np.abs(array), np.abs(back)))
        error = np.abs(back.astype("f8") - array.astype("f8")) - slack
        assert error[~nothing].max(initial=0) <= every * scale
    header = read_frame(frame).header
    assert header.indices[0].error >= index_error(original, back, shift=offset * scale)


def test_an_index_bound_costs_less_than_bands_that_imply_it():
    array = np.rint(picture("vegetation", np.random.default_rng(0), (1, 2, 96, 64))).astype("u2")
    array[..., 40:60] //= 15  # a lake, where a few DN are much of the index
    by_index = encode_chunk(array, spec(bands=PAIR, max_error={"ndvi": 0.02}))
    largest = next(
        e for e in range(4, -1, -1)
        if index_error(array, decode_chunk(encode_chunk(array, spec(max_error=e)))) <= 0.02
    )  # fmt: skip
    assert len(by_index) < 0.7 * len(encode_chunk(array, spec(max_error=largest)))


def test_indices_that_share_bands_hold_together(cube):
    asked = {"NDVI": 0.02, "ndwi": 0.05, "nd:b8a,red": 0.01, "B02": 3, "all": 60}
    back = decode_chunk(encode_chunk(cube, spec(bands=L2A_BANDS, max_error=asked)))
    original = np.where(cube == 0, np.nan, cube)
    at = L2A_BANDS.index
    for pair, allowed in (("B08 B04", 0.02), ("B03 B08", 0.05), ("B8A B04", 0.01)):
        assert 0 < index_error(original, back, *map(at, pair.split())) <= allowed
    worst = np.abs(back.astype(int) - cube).max(axis=(0, 2, 3))
    assert worst[at("B02")] <= 3
    assert worst.max() <= 60
    assert not within_bounds(
        ChunkSpec(bands=L2A_BANDS, max_error={"nd:B8A,B04": 1e-5}), cube, back, cube != 0
    )


def test_bands_that_no_bound_names_are_coded_at_the_quality(cube):
    chosen = spec(quality=5, max_error={"ndvi": 0.01, "B02": 0})
    frame = read_frame(encode_chunk(cube, chosen))
    back = decode_chunk(encode_chunk(cube, chosen))
    plain = decode_chunk(encode_chunk(cube, spec(quality=5)))
    held = [L2A_BANDS.index(b) for b in ("B02", "B04", "B08")]
    others = [c for c in range(12) if c not in held]
    np.testing.assert_array_equal(back[:, others], plain[:, others])
    np.testing.assert_array_equal(back[:, held[0]], cube[:, held[0]])
    assert index_error(np.where(cube == 0, np.nan, cube), back, held[2], held[1]) <= 0.01
    assert np.isnan(np.array(frame.header.errors)[others]).all()
    assert len(frame.payloads(SectionKind.LATENTS)) == 2


def test_the_default_model_takes_what_is_left_of_the_bands(cube):
    back = decode_chunk(encode_chunk(cube[:1], ChunkSpec(max_error={"ndmi": 0.02})))
    original = np.where(cube[:1] == 0, np.nan, cube[:1])
    assert index_error(original, back, L2A_BANDS.index("B08"), L2A_BANDS.index("B11")) <= 0.02


def test_simulation_and_recompression_keep_to_them_too(tmp_path):
    ds = synthetic.dataset(dates=1, size=32)
    bounds = {"ndvi": 0.02, "all": 30}
    ds.to_zarr(tmp_path / "source.zarr")
    done = recompress(tmp_path / "source.zarr", tmp_path / "tec.zarr", max_error=bounds,
                      model=toy.NAME, verify="full")  # fmt: skip
    assert done.complete
    simulated = ds.tec.simulate(model=toy.NAME, max_error=bounds).reflectance.values
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "tec.zarr").reflectance, simulated)
    original = np.where(ds.reflectance == 0, np.nan, ds.reflectance)
    at = [L2A_BANDS.index(b) for b in PAIR]
    assert 0 < index_error(original, simulated, *at) <= 0.02


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_the_largest_errors_stand_in_the_first_bytes_of_a_frame(cube, dtype):
    array = cube if dtype == "u2" else np.where(cube == 0, np.nan, cube * 1e-4).astype("f4")
    scale = 1 if dtype == "u2" else 1e-4
    frame = encode_chunk(array, spec(max_error=[7 * scale] * 11 + [0]))
    header = read_header(frame[:500])
    error = np.nanmax(np.abs(decode_chunk(frame).astype("f8") - array), axis=(0, 2, 3))
    assert (np.array(header.errors) >= error).all()
    np.testing.assert_allclose(header.errors, error, rtol=1e-6)
    assert header.errors[11] == 0 < header.errors[0]


def test_damaged_frames_with_indices_raise(cube):
    frame = encode_chunk(cube[:1, :, :12, :12], spec(max_error={"ndvi": 0.01, "all": 40}))
    for position in range(0, len(frame), 3):
        broken = bytearray(frame)
        broken[position] ^= 1 << position % 8
        with pytest.raises(TecError):
            decode_chunk(bytes(broken))


def test_maps_that_cannot_be_are_refused_though_their_checksums_hold(cube):
    array = np.maximum(cube[:1, :, :12, :12], 1)
    frame = read_frame(encode_chunk(array, spec(max_error={"ndvi": 0.01, "all": 40})))
    others = [s for s in frame.sections if s.kind is not SectionKind.BOUND_MAP]
    levels = np.full((1, 2, 3, 3), 70, np.int32)
    for wrong in (levels, -levels, levels[..., :2] - 65):
        packed = Section(SectionKind.BOUND_MAP, layer.encode(wrong, None, [0, 0]))
        with pytest.raises(TecError):
            decode_chunk(write_frame(frame.header, [packed, *others]))
    packed = Section(SectionKind.BOUND_MAP, layer.encode(levels - 65, None, [0, 0]))
    for sections in (others, [packed, packed, *others], [packed]):
        with pytest.raises(TecError):
            decode_chunk(write_frame(frame.header, sections))


@pytest.mark.parametrize(
    ("bounds", "bands", "message"),
    [
        ({"ndvi": 0.1}, None, r"bands=\[\.\.\.\]"),
        ({"ndvi": 0.1}, ("B02", "B04"), r"ndvi, which needs B08 and B04; .* only B02, B04"),
        ({"B05": 1}, ("B02", "B04"), "B05, which needs B05"),
        ({"ndxi": 0.1}, PAIR, "ndxi.*ndvi.*nd:B08,B04"),
        ({"nd:B08": 0.1}, PAIR, "write nd:B08,B04"),
        ({"nd:B08,B8": 0.1}, PAIR, "no pair of bands"),
        ({"ndvi": -0.1}, PAIR, "0 or more"),
        ({"ndvi": "0.1"}, PAIR, "must be a number"),
        ({"red": 1, "B04": 2}, PAIR, "B04 twice"),
        ({}, PAIR, "names nothing"),
    ],
)
def test_names_that_make_no_sense_are_refused(bounds, bands, message):
    array = np.ones((1, 2, 8, 8), "u2")
    with pytest.raises(UnsupportedArrayError, match=message):
        encode_chunk(array, spec(bands=bands, max_error=bounds))


def test_names_travel_in_the_configuration():
    chosen = spec(bands=PAIR, max_error={"NDVI": 0.01, "red": 5})
    configuration = json.loads(json.dumps(chosen.to_config()))
    assert configuration["max_error"] == {"ndvi": 0.01, "B04": 5.0}
    assert ChunkSpec.from_config(configuration) == chosen == pickle.loads(pickle.dumps(chosen))
    assert len({chosen, ChunkSpec.from_config(configuration)}) == 1


@pytest.mark.parametrize("value", [0, 5, 50])
def test_nothing_costs_more_than_plain_numbers(value):
    """The fallback for what no prediction helps is the index of the value's bin, as it is."""
    rng = np.random.default_rng(0)
    shape = (1, 3, 128, 128)
    noise = rng.integers(0, 1 << 16, shape)
    stripes = np.where(np.indices(shape)[3] // 8 % 2, noise, 30000)
    pairs = rng.integers(0, 2, shape) * 65535
    for array, bits in (
        (noise, np.log2(65536 / (2 * value + 1))),
        (stripes, np.log2(65536 / (2 * value + 1))),
        (pairs, np.log2(65536 / (2 * value + 1))),
        (rng.integers(0, 300, shape), np.log2(299 // (2 * value + 1) + 1)),
    ):
        frame = encode_chunk(array.astype("u2"), spec(nodata=None, max_error=value))
        assert len(frame) <= 1.02 * bits * array.size / 8 + 200


def test_floats_that_are_no_dn_cost_no_more_than_their_bytes(monkeypatch):
    calls = []
    code = layer.code
    monkeypatch.setattr(layer, "code", lambda *a: calls.append(1) or code(*a))
    array = np.random.default_rng(0).random((1, 3, 64, 64)).astype("f4")
    frame = encode_chunk(array, spec(nodata=None, max_error=0))
    np.testing.assert_array_equal(decode_chunk(frame), array)
    assert len(frame) <= 1.02 * array.nbytes + 200
    assert len(calls) <= 5, "encoding takes a bounded number of attempts"
