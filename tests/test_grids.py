"""Grids that enlarged bands come from: found, fitted and enlarged, whatever the crop."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr.grids import Grid, Kind, find, fit, refine

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval"
FACTORS = st.integers(2, 8)


def scene(rng, height, width, dates=1, noise=40.0):
    """Native DN with texture, int64 (dates, height, width)."""
    y, x = np.mgrid[:height, :width]
    relief = 900 * np.sin(y / 3.0) * np.cos(x / 4.0) + 500 * ((y // 5 + x // 7) % 2)
    return np.rint(2500 + relief + rng.normal(0, noise, (dates, height, width))).astype(np.int64)


def enlarged(grid, rng, shape, dates=1):
    native = scene(rng, *grid.native_shape(shape), dates)
    return native, grid.enlarge(native, shape)


def as_defined(grid, native, shape):
    """The enlargement sample by sample, in Python's whole numbers, as its module defines it."""
    k = grid.factor
    rows, columns = (
        [(i - phase) // k for i in range(size)]
        if grid.kind == Kind.REPEATED
        else [(2 * (i - phase) + 1 - k) // (2 * k) for i in range(size)]
        for size, phase in zip(shape, (grid.row, grid.column), strict=True)
    )
    out = np.zeros(shape, np.int64)
    for y in range(shape[0]):
        for x in range(shape[1]):
            j, i = rows[y] - rows[0], columns[x] - columns[0]
            if grid.kind == Kind.REPEATED:
                out[y, x] = native[j, i]
                continue
            r = (2 * (y - grid.row) + 1 - k) % (2 * k)
            s = (2 * (x - grid.column) + 1 - k) % (2 * k)
            total = sum(
                int(native[j + (b > 0), i + (d > 0)])
                * (r if b else 2 * k - r)
                * (s if d else 2 * k - s)
                for b in ((0, 1) if r else (0,))
                for d in ((0, 1) if s else (0,))
            )
            out[y, x] = (total + 2 * k * k) // (4 * k * k)
    return out


@st.composite
def grids(draw):
    k = draw(FACTORS)
    phases = st.integers(0, k - 1)
    return Grid(draw(st.sampled_from(Kind)), k, draw(phases), draw(phases))


@settings(max_examples=60, deadline=None)
@given(grid=grids(), height=st.integers(1, 21), width=st.integers(1, 21), seed=st.integers(0, 99))
def test_enlargement_is_that_of_the_definition(grid, height, width, seed):
    rng = np.random.default_rng(seed)
    native = rng.integers(-(1 << 31), 1 << 31, grid.native_shape((height, width)))
    samples = grid.enlarge(native, (height, width))
    assert samples.dtype == np.int32
    np.testing.assert_array_equal(samples, as_defined(grid, native, (height, width)))


@settings(max_examples=60, deadline=None)
@given(grid=grids(), row=st.integers(0, 9), column=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_crop_of_enlarged_samples_lies_on_the_cropped_grid(grid, row, column, seed):
    rng = np.random.default_rng(seed)
    native, samples = enlarged(grid, rng, (30, 33))
    part = samples[:, row:, column:]
    cropped = grid.cropped(row, column)
    shape = cropped.native_shape(part.shape[1:])
    rows, columns = (
        a.first[start] if grid.kind else a.cell[start]
        for a, start in zip(grid.axes((30, 33)), (row, column), strict=True)
    )
    inside = native[:, rows : rows + shape[0], columns : columns + shape[1]]
    np.testing.assert_array_equal(cropped.enlarge(inside, part.shape[1:]), part)


@settings(max_examples=60, deadline=None)
@given(grid=grids(), bound=st.integers(0, 50), seed=st.integers(0, 2**32 - 1))
def test_an_error_of_native_values_is_no_larger_in_samples(grid, bound, seed):
    rng = np.random.default_rng(seed)
    native, samples = enlarged(grid, rng, (19, 23))
    off = native + rng.integers(-bound, bound + 1, native.shape)
    extreme = native + rng.choice([-bound, bound], native.shape)
    for other in (off, extreme, native + bound, native - bound):
        assert np.abs(grid.enlarge(other, (19, 23)) - samples).max() <= bound


@settings(max_examples=40, deadline=None)
@given(
    grid=grids(),
    height=st.integers(40, 70),
    width=st.integers(40, 70),
    dates=st.integers(1, 3),
    hidden=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
    dtype=st.sampled_from([np.uint16, np.int16, np.int32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_grids_are_found_and_fitted(grid, height, width, dates, hidden, dtype, seed):
    rng = np.random.default_rng(seed)
    _, samples = enlarged(grid, rng, (height, width), dates)
    samples = samples.astype(dtype)
    valid = None
    if hidden:
        valid = np.ones(samples.shape, bool)
        holes = rng.random((dates, height // 8 + 1, width // 8 + 1)) < hidden
        valid &= ~holes.repeat(8, 1).repeat(8, 2)[:, :height, :width]
        valid &= rng.random(samples.shape) > hidden / 20
        samples[~valid] = 0
    found = find(samples[:, None], None if valid is None else valid[:, None])[0]
    assert found is not None
    assert found.grid == grid
    better = refine(found.native, samples, valid, grid)
    wrong = grid.enlarge(better, (height, width)) != samples
    wrong = wrong if valid is None else wrong & valid
    assert wrong.mean() <= (0.01 if grid.kind else 0)
    assert wrong.sum() <= found.wrong * (wrong.size if valid is None else valid.sum()) + 0.5


def test_each_band_has_its_own_grid():
    rng = np.random.default_rng(5)
    shape = (96, 90)
    wanted = [
        None,
        Grid(Kind.BILINEAR, 2, 1, 0),
        Grid(Kind.REPEATED, 3, 2, 1),
        None,
        Grid(Kind.BILINEAR, 6, 4, 3),
        Grid(Kind.REPEATED, 2, 0, 1),
        Grid(Kind.BILINEAR, 3, 0, 2),
    ]
    bands = [scene(rng, *shape, 2) if g is None else enlarged(g, rng, shape, 2)[1] for g in wanted]
    found = find(np.stack(bands, axis=1).astype(np.int32))
    assert [f and f.grid for f in found] == wanted


@pytest.mark.parametrize("kind", ["noise", "constant", "two values", "gradient", "tiny"])
def test_arrays_without_grids_have_none_or_one_that_is_right(kind):
    rng = np.random.default_rng(6)
    shape = (1, 3, 12, 12) if kind == "tiny" else (1, 3, 64, 64)
    samples = {
        "noise": lambda: rng.integers(0, 1 << 16, shape),
        "constant": lambda: np.full(shape, 7),
        "two values": lambda: rng.integers(0, 2, shape),
        "gradient": lambda: np.indices(shape).sum(0) * 3,
        "tiny": lambda: np.repeat(rng.integers(0, 99, (1, 3, 12, 6)), 2, axis=3),
    }[kind]().astype(np.int32)
    for band, found in enumerate(find(samples)):
        if found is not None:
            back = found.grid.enlarge(found.native, shape[2:])
            assert (back != samples[:, band]).mean() == found.wrong <= 0.08


def test_a_chunk_without_grids_is_refused_in_milliseconds():
    samples = scene(np.random.default_rng(7), 256, 256, 12).astype(np.int32)[None]
    find(samples)
    start = time.process_time()
    assert find(samples) == [None] * 12
    assert time.process_time() - start < 0.05


def test_means_over_cells_are_of_the_samples_in_them():
    grid = Grid(Kind.BILINEAR, 3, 1, 2)
    plane = np.arange(7 * 8).reshape(7, 8).astype(float)
    mean = grid.mean(plane)
    assert mean.shape == grid.native_shape((7, 8))
    assert mean[1, 1] == np.floor(plane[1:4, 2:5].mean())
    assert mean[0, 1] == np.floor(plane[0:1, 2:5].mean())
    np.testing.assert_array_equal(Grid(Kind.REPEATED, 2, 0, 0).mean(plane[:6]).shape, (3, 4))


def test_native_values_know_the_samples_that_they_have_a_part_in():
    rng = np.random.default_rng(8)
    for grid in (
        Grid(Kind.BILINEAR, 3, 2, 0),
        Grid(Kind.BILINEAR, 4, 1, 3),
        Grid(Kind.REPEATED, 5, 3, 1),
    ):
        native, samples = enlarged(grid, rng, (17, 22))
        valid = rng.random(samples.shape) > 0.8
        touched = grid.touched(valid)
        bounds = rng.integers(1, 90, (17, 22)).astype(float)
        for y, x in np.ndindex(*native.shape[1:]):
            other = native.copy()
            other[0, y, x] += 10_000
            changed = grid.enlarge(other, (17, 22)) != samples
            assert touched[0, y, x] == (changed & valid).any()
            assert grid.smallest(bounds)[y, x] == bounds[changed[0]].min()


@pytest.mark.parametrize(
    "path", sorted(EVAL.glob("terracodec*.npz")) or [None], ids=lambda p: p and p.stem
)
def test_seasonal_cubes_are_enlarged_by_two_and_six(path):
    if path is None:
        pytest.skip(f"no evaluation cubes in {EVAL}")
    dn = np.load(path)["dn"][:1, [0, 1, 5, 9], 10:142, 7:135].astype(np.int32)
    found = find(dn)
    assert [f and f.grid.factor for f in found] == [6, None, 2, 6]
    assert all(f is None or f.grid.kind == Kind.BILINEAR for f in found)
    exact = refine(found[2].native, dn[:, 2], None, found[2].grid)
    assert (found[2].grid.enlarge(exact, dn.shape[2:]) != dn[:, 2]).mean() < 0.004


def test_fits_of_a_grid_that_is_wrong_say_so():
    rng = np.random.default_rng(9)
    _, samples = enlarged(Grid(Kind.BILINEAR, 2, 0, 0), rng, (64, 64))
    other = Grid(Kind.BILINEAR, 2, 1, 0)
    assert (other.enlarge(fit(samples, None, other), (64, 64)) != samples).mean() > 0.3
