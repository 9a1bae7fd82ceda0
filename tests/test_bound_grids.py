"""The bound layer on bands that were enlarged: native values, corrections, and the bound."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.bounds import layer
from tec_zarr.errors import TecError
from tec_zarr.grids import Grid, Kind

GRIDS = [
    None,
    Grid(Kind.BILINEAR, 2, 1, 0),
    Grid(Kind.REPEATED, 2, 0, 1),
    Grid(Kind.BILINEAR, 6, 4, 3),
    Grid(Kind.REPEATED, 6, 5, 2),
    Grid(Kind.BILINEAR, 3, 0, 2),
]


def bands(grids, shape=(48, 52), dates=1, seed=0, noise=25.0):
    """Bands (dates, C, H, W) int32 of one relief, each enlarged from its own grid."""
    rng = np.random.default_rng(seed)
    out = []
    for grid in grids:
        grid = grid or Grid(Kind.REPEATED, 2, 0, 0)
        k = grid.factor
        native = grid.native_shape(shape)
        y, x = (np.arange(n) * k for n in native)
        relief = 700 * np.sin(y / 11.0)[:, None] * np.cos(x / 9.0) + 400 * (y[:, None] > x)
        gains = rng.uniform(0.5, 1.5, (dates, 1, 1))
        values = np.rint(2000 + gains * relief + rng.normal(0, noise, (dates, *native)))
        out.append(grid.enlarge(values.astype(np.int64), shape))
    fine = [i for i, grid in enumerate(grids) if grid is None]
    for i in fine:
        out[i] = np.rint(out[i] + rng.normal(0, noise, out[i].shape)).astype(np.int32)
    return np.stack(out, axis=1)


def round_trip(original, bounds, valid=None):
    data = layer.encode(original, valid, bounds)
    decoded = layer.decode(data, valid, original.shape, bounds)
    for band, limit in enumerate(bounds):
        error = np.abs(decoded[:, band].astype(np.int64) - original[:, band])
        error = error if valid is None else np.where(valid[:, band], error, 0)
        assert np.all(error <= limit)
    return data, decoded


@settings(max_examples=40, deadline=None)
@given(
    grids=st.lists(st.sampled_from(GRIDS), min_size=1, max_size=4),
    height=st.integers(20, 50),
    width=st.integers(20, 50),
    dates=st.integers(1, 2),
    bounds=st.lists(st.sampled_from([0, 1, 4, 10, 50]), min_size=4, max_size=4),
    hidden=st.sampled_from([0.0, 0.05, 0.4]),
    spoilt=st.sampled_from([0.0, 0.01, 0.2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bound_holds_on_mixed_grids(grids, height, width, dates, bounds, hidden, spoilt, seed):
    rng = np.random.default_rng(seed)
    original = bands(grids, (height, width), dates, seed)
    wrong = rng.random(original.shape) < spoilt
    original = np.where(wrong, rng.integers(-900, 20_000, original.shape), original)
    valid = None
    if hidden:
        holes = rng.random((dates, len(grids), height // 4 + 1, width // 4 + 1)) < hidden
        valid = ~holes.repeat(4, 2).repeat(4, 3)[:, :, :height, :width]
    round_trip(original.astype(np.int32), bounds[: len(grids)], valid)


@pytest.mark.parametrize("value", [0, 5, 20])
@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("factor", [2, 3, 6])
def test_an_enlarged_band_costs_what_its_native_values_do(kind, factor, value):
    grid = Grid(kind, factor, factor - 1, 1)
    rng = np.random.default_rng(1)
    shape = (96, 96)
    native = rng.integers(1000, 3000, (1, *grid.native_shape(shape)))
    needed = len(round_trip(native[:, None].astype(np.int32), [value])[0])
    data, _ = round_trip(grid.enlarge(native, shape)[:, None], [value])
    assert len(data) <= 1.1 * needed + 100


def test_few_samples_that_differ_cost_little():
    grid = Grid(Kind.BILINEAR, 2, 0, 0)
    rng = np.random.default_rng(2)
    native = rng.integers(1000, 3000, (1, 1, *grid.native_shape((96, 96))))
    whole = grid.enlarge(native, (96, 96))
    spoilt = whole + rng.choice([-1, 0, 1], whole.shape, p=[0.01, 0.98, 0.01]).astype(np.int32)
    plain = len(round_trip(whole, [0])[0])
    assert len(round_trip(spoilt, [0])[0]) < 1.2 * plain


def test_grids_pay_beside_bands_of_full_resolution_and_through_nodata():
    two, six = Grid(Kind.BILINEAR, 2, 1, 1), Grid(Kind.BILINEAR, 6, 2, 3)
    shape = (72, 80)
    original = bands([None, two, two, six], shape, dates=2, seed=3)
    valid = np.ones(original.shape, bool)
    valid[0, :, 20:40, 30:] = False
    valid[:, 1, :3] = False
    rng = np.random.default_rng(4)
    blurred = original + rng.integers(-2, 3, original.shape)  # on no grid any longer
    for value in (0, 10):
        on_grids = len(round_trip(original, [value] * 4, valid)[0])
        on_none = len(round_trip(blurred.astype(np.int32), [value] * 4, valid)[0])
        assert on_grids < 0.85 * on_none


def test_bounds_for_each_pixel_hold_on_grids():
    original = bands([None, GRIDS[1], GRIDS[4]], (48, 48), dates=2, seed=5)
    rng = np.random.default_rng(6)
    blocks = rng.choice([0, 1, 5, 40], (2, 12, 12)).repeat(4, 1).repeat(4, 2)
    valid = rng.random(original.shape) > 0.1
    round_trip(original, [3, blocks, blocks], valid)


@pytest.mark.parametrize("max_error", [0, 5e-4, {"ndvi": 0.01, "all": 1e-3}])
def test_reflectance_on_grids_comes_back_within_its_bound(max_error):
    names = ["B08", "B04", "B05", "B01"]
    dn = bands([None, None, GRIDS[1], GRIDS[3]], (48, 48), dates=2, seed=7)
    array = (dn / 1e4).astype(np.float32)
    array[0, :, 10:20, 5:30] = np.nan
    frame = encode_chunk(array, ChunkSpec(toy.NAME, bands=names, max_error=max_error))
    decoded = decode_chunk(frame)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(array))
    there = ~np.isnan(array)
    if max_error == 0:
        np.testing.assert_array_equal(decoded.view("u4"), array.view("u4"))
    elif max_error == 5e-4:
        assert np.abs(decoded - array)[there].max() <= 5e-4 + 1e-7
    else:
        a, b = (x[:, :2].astype("f8") for x in (array, decoded))
        index = [(x[:, 0] - x[:, 1]) / (x[:, 0] + x[:, 1]) for x in (a, b)]
        assert np.nanmax(np.abs(index[1] - index[0])) <= 0.01
        assert np.abs(decoded - array)[there].max() <= 1e-3 + 1e-7


def test_damaged_grids_are_refused():
    original = bands([None, GRIDS[1]], (32, 32), seed=8)
    rng = np.random.default_rng(9)
    data = layer.encode(original, None, [1, 1])
    for _ in range(40):
        forged = bytearray(data)
        forged[rng.integers(4, 28)] ^= 1 << rng.integers(8)
        with pytest.raises(TecError):
            layer.decode(bytes(forged), None, original.shape, [1, 1])
