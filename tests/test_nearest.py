"""Maps by which nearest neighbours were taken: found, proved, and their sources resampled."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tec_zarr.grids import Grid, Kind, Nearest, find_nearest
from tec_zarr.grids.nearest import AROUND, moved, rounded

TRAIN = Path(__file__).parents[2] / "shared" / "data" / "train"


def native(rng, shape, dates=1):
    """Bands of 10, 20 and 60 m of one place on its own grid, int32 (dates, 6, *shape)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    relief = 700 * np.sin(y / 5.0) * np.cos(x / 7.0) + 400 * ((y // 9 + x // 11) % 2)
    bands = []
    for factor in (1, 1, 2, 2, 2, 6):
        grid = Grid(Kind.REPEATED, factor, 0, 0) if factor > 1 else None
        fine = 2500 + relief + rng.normal(0, 60, (dates, *shape))
        fine = np.rint(fine).astype(np.int32)
        bands.append(fine if grid is None else fine[:, grid_rows(shape[0], factor)][
            :, :, grid_rows(shape[1], factor)])  # fmt: skip
    return np.stack(bands, 1)


def grid_rows(size, factor):
    return np.arange(size) // factor * factor


def a_map(scale, turn, shape, bend=0.0, offset=(0.3, 0.7)):
    """A map of a tile of this shape whose source begins at 0."""
    rows = np.array([offset[0], -turn, scale[0], bend, -bend, bend])
    columns = np.array([offset[1], scale[1], turn, -bend, bend, bend])
    nearest = Nearest(rounded(rows), rounded(columns))
    row, column = nearest.places(shape)
    return Nearest(moved(nearest.rows, -int(row.min())), moved(nearest.columns, -int(column.min())))


axes = st.tuples(
    st.integers(-(1 << 20), 1 << 20),
    *[st.integers(-(1 << 23), 1 << 23)] * 2,
    *[st.integers(-(1 << 16), 1 << 16)] * 3,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=axes,
    columns=axes,
    row=st.integers(0, 40),
    column=st.integers(0, 40),
    number=st.none() | st.integers(0, 7),
)
def test_a_sample_comes_from_where_the_definition_says(rows, columns, row, column, number):
    exceptions = () if number is None else ((row * 41 + column, number),)
    places = Nearest(rows, columns, exceptions).places((41, 41))
    for (o, a, b, d, e, f), place, off in zip(
        (rows, columns), places, (0, 0) if number is None else AROUND[number], strict=True
    ):
        linear = (o << 18) + (a * column + b * row << 10)
        whole = linear + d * column * column + e * column * row + f * row * row
        assert place[row, column] == (whole >> 32) + off


@settings(max_examples=8, deadline=None)
@given(
    across=st.floats(0.3, 0.85),
    down=st.floats(0.3, 1.02),
    turn=st.floats(-0.06, 0.06),
    bend=st.floats(-2e-6, 2e-6),
    dates=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_maps_are_found_and_give_back_every_sample(across, down, turn, bend, dates, seed):
    rng = np.random.default_rng(seed)
    shape = (150, 170)
    nearest = a_map((down, across), turn, shape, bend)
    source = native(rng, nearest.source_shape(shape), dates)
    samples = nearest.gather(source, shape)
    found = find_nearest(samples)
    assert found is not None
    back = found.nearest.gather(found.source, shape)
    assert np.mean(back != samples) < 2e-3
    assert found.source[0, 0].size < 1.3 * source[0, 0].size


def test_samples_that_were_not_measured_do_not_matter():
    rng = np.random.default_rng(1)
    shape = (140, 150)
    nearest = a_map((0.6, 0.55), 0.02, shape)
    samples = nearest.gather(native(rng, nearest.source_shape(shape), 2), shape)
    valid = np.ones(samples.shape, bool)
    valid[0, :, :60, :50] = False
    valid[1, :, 100:, 90:] = False
    valid[:, 3, 20:30] = False
    found = find_nearest(np.where(valid, samples, 0), valid)
    back = found.nearest.gather(found.source, shape)
    assert np.mean((back != samples)[valid]) < 2e-3
    known = found.nearest.gather(found.known, shape)
    assert known[valid].mean() > 0.999


def test_samples_from_the_pixel_beside_are_exceptions():
    rng = np.random.default_rng(2)
    shape = (120, 130)
    nearest = a_map((0.6, 0.65), 0.01, shape)
    source = native(rng, nearest.source_shape(shape))
    row, column = (p.copy() for p in nearest.places(shape))
    chosen = rng.integers(0, row.size, 12)
    row.reshape(-1)[chosen] = np.minimum(row.reshape(-1)[chosen] + 1, source.shape[2] - 1)
    samples = source[..., row, column]
    found = find_nearest(samples)
    assert 6 <= len(found.nearest.exceptions) <= 40
    assert np.mean(found.nearest.gather(found.source, shape) != samples) < 1e-3


@pytest.mark.parametrize(
    "enlarge", [None, Grid(Kind.REPEATED, 2, 1, 0), Grid(Kind.BILINEAR, 2, 0, 1)]
)
def test_other_cubes_have_no_map(enlarge):
    rng = np.random.default_rng(3)
    shape = (150, 160)
    fine = native(rng, shape if enlarge is None else enlarge.native_shape(shape))[:, :2]
    samples = fine if enlarge is None else enlarge.enlarge(fine, shape)
    values = None if enlarge is None else samples[0].size / 4
    assert find_nearest(samples, values=values) is None
    assert find_nearest(np.full((1, 3, 64, 64), 500, np.int32)) is None
    assert find_nearest(rng.integers(0, 3, (1, 3, 64, 64))) is None


def test_a_tile_without_a_map_is_known_by_a_few_lines():
    samples = native(np.random.default_rng(4), (512, 512))[:, :2]
    start = time.process_time()
    assert find_nearest(samples) is None
    assert time.process_time() - start < 0.1


def test_a_map_that_leaves_its_source_has_no_source():
    inside = a_map((0.6, 0.6), 0.02, (60, 60))
    assert inside.source_shape((60, 60)) is not None
    assert Nearest(moved(inside.rows, -1), inside.columns).source_shape((60, 60)) is None
    assert Nearest(inside.rows, moved(inside.columns, 600)).source_shape((60, 60)) is None
    above = Nearest(inside.rows, inside.columns, ((int(inside.places((60, 60))[0].argmin()), 1),))
    assert above.source_shape((60, 60)) is None
    with pytest.raises(ValueError, match="no map"):
        Nearest((1 << 30, 0, 0, 0, 0, 0), inside.columns)


@pytest.mark.parametrize(
    "name",
    [
        "bark-bettle-damage-mapping-sentinel2__geojson-215827",
        "bark-bettle-damage-mapping-sentinel2__geojson-208748",
        "sen1floods11__Spain-7370579",
        "rstoolbox__sen2-rds",
        "satellitecloudgenerator__48-86N-17-29E",
        "farmero-nodejs-pca__Brandenburg-52-26N-13-28E",
    ],
)
def test_real_files_are_copies_of_a_source(name):
    path = TRAIN / f"{name}.npz"
    if not path.exists():
        pytest.skip("no data")
    samples = np.load(path)["dn"][:, :, :256, :256].astype(np.int32)
    found = find_nearest(samples)
    back = found.nearest.gather(found.source, samples.shape[2:])
    assert np.mean(back != samples) < 1e-3
    assert len(found.nearest.exceptions) < 20
