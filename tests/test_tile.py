"""tec-s2 on the sensor's own grids: planes, bases by scale, coefficients, exact pixels."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tile_reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiles import decoded, tensors

from tec_zarr import decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import FormatError, TecError
from tec_zarr.grids import Grid, Kind, fit
from tec_zarr.models.registry import find_model, get_model
from tec_zarr.native.tile import TileModel
from tec_zarr.training.weights import TENSORS, weights_file


@pytest.fixture(scope="module")
def model():
    return get_model("tec-s2")


def texture(rng, shape):
    """Whole DN with an autumn of detail and a slow ground."""
    ground = np.cumsum(np.cumsum(rng.normal(0, 4, shape), -1), -2)
    return (np.abs(ground + rng.normal(0, 60, shape)) + 100).astype(np.int32) % 12000


def enlarged(rng, grid, bands, shape, dates=1):
    native = texture(rng, (dates, bands, *grid.native_shape(shape)))
    return grid.enlarge(native, shape)


def grids_of(model, cube, known, quality):
    """The grid of each band, or None."""
    found = model.core.grids(np.ascontiguousarray(cube), known, quality).tolist()
    return [Grid(Kind(kind), *rest) if rest[0] else None for kind, *rest in found]


grids = st.builds(
    lambda kind, k, r, c: Grid(kind, k, r % k, c % k),
    st.sampled_from(Kind), st.integers(2, 6), st.integers(0, 7), st.integers(0, 7),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(grids, st.integers(40, 70), st.integers(40, 70), st.sampled_from([1.0, 3.7, 8.0]))
def test_a_band_on_a_grid_is_on_it_again(model, grid, height, width, quality):
    """Whatever coefficients lost: decoded samples are an enlargement of whole native values."""
    rng = np.random.default_rng(height * width)
    shape = (height, width)
    cube = np.concatenate([texture(rng, (1, 2, *shape)), enlarged(rng, grid, 2, shape)], axis=1)
    grids = grids_of(model, cube, None, quality)
    assert grids[:2] == [None, None]
    encoded = model.encode(cube.astype(np.float32), quality)
    back, crc = decoded(model, encoded.sections, cube.shape, quality)
    assert crc == encoded.latents_crc
    for band, found in enumerate(grids):
        if found is not None:
            samples = back[:, band].astype(np.int32)
            again = found.enlarge(fit(samples, None, found), shape)
            assert np.abs(again - samples).max() <= (found.kind == Kind.BILINEAR)
            assert (again == samples).mean() > 0.9


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 12, 17, 33), (1, 31, 20, 20)])
@pytest.mark.parametrize("quality", [1.0, 4.3, 8.0])
def test_any_shape_and_number_of_bands(model, shape, quality):
    cube = texture(np.random.default_rng(1), shape)
    encoded = model.encode(cube.astype(np.float32), quality)
    back, crc = decoded(model, encoded.sections, shape, quality)
    assert crc == encoded.latents_crc
    assert back.shape == shape
    if quality == 8.0:
        assert np.sqrt(((back - cube) ** 2).mean()) < 40


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("factor", [1, 2, 3, 6])
@pytest.mark.parametrize("quality", [1.0, 5.25])
def test_a_decoder_written_from_the_page_gives_the_same(model, kind, factor, quality):
    rng, shape = np.random.default_rng(factor), (37, 21)
    cube = texture(rng, (1, 4, *shape))
    if factor > 1:
        cube[:, 2:] = enlarged(rng, Grid(kind, factor, 1, 0), 2, shape)
    encoded = model.encode(cube.astype(np.float32), quality)
    back, _ = decoded(model, encoded.sections, cube.shape, quality)
    image, values = tile_reference.decode(
        encoded.sections[0], 4, shape, quality, tensors()
    )
    np.testing.assert_array_equal(image, back[0])
    assert tile_reference.checksum(values) == encoded.latents_crc[0]


@pytest.mark.parametrize("bands", [11, 12, 13])
def test_common_sets_of_bands_begin_with_a_usual_basis(model, bands):
    """Its rows are in the order of the layout, here with bands of two levels."""
    scene = synthetic.cube(dates=1, size=48).values.astype(np.int32)
    scene[:, 4:7] = scene[:, 4:7, ::2, ::2].repeat(2, 2).repeat(2, 3)
    scene = np.concatenate([scene, scene[:, :1] // 7], axis=1)[:, 13 - bands :]
    encoded = model.encode(scene.astype(np.float32), 3.0)
    back, _ = decoded(model, encoded.sections, scene.shape, 3.0)
    image, _ = tile_reference.decode(encoded.sections[0], bands, (48, 48), 3.0, tensors())
    np.testing.assert_array_equal(image, back[0])
    bits = tile_reference.Bits(encoded.sections[0])
    tile_reference.Layout(bits, bands, (48, 48))
    tile_reference.read_means(bits, bands, tile_reference.step_of(3 * 4096))
    assert bits.u(2)  # the number of a usual basis


def test_a_decoder_written_from_the_page_skips_planes_of_zeros(model):
    rng, shape = np.random.default_rng(7), (130, 135)
    cube = texture(rng, (1, 3, *shape))
    encoded = model.encode(cube.astype(np.float32), 2.5)
    back, _ = decoded(model, encoded.sections, cube.shape, 2.5)
    image, latents = tile_reference.decode(
        encoded.sections[0], 3, shape, 2.5, tensors()
    )
    np.testing.assert_array_equal(image, back[0])
    assert (latents == 0).all(axis=(1, 2)).any()


def test_every_quality_has_more_psnr_and_more_bytes(model):
    cube = synthetic.cube(dates=1, size=96).values.astype(np.float32)
    points = []
    for quality in np.arange(1, 8.01, 0.5):
        encoded = model.encode(cube, float(quality))
        back, _ = decoded(model, encoded.sections, cube.shape, float(quality))
        points.append((len(encoded.sections[0]), -float(((back - cube) ** 2).mean())))
    assert points == sorted(points)
    assert np.log10(1e8 / -points[-1][1]) * 10 > 55


def test_nodata_does_not_hide_a_grid(model):
    """Cells that are cut or emptied by nodata are still cells."""
    rng, shape = np.random.default_rng(5), (64, 64)
    cube = np.concatenate(
        [texture(rng, (1, 2, *shape)), enlarged(rng, Grid(Kind.REPEATED, 2, 0, 0), 2, shape)], 1
    )
    known = np.ones(cube.shape, bool)
    known[..., :21, 30:] = False
    found = grids_of(model, np.where(known, cube, 777).astype(np.int32), known, 4.0)
    assert found == [None, None, *[Grid(Kind.REPEATED, 2, 0, 0)] * 2]


def test_a_few_pixels_off_the_grid_are_not_lost(model):
    """A band with single bright pixels among its cells is no band of cells."""
    rng, shape = np.random.default_rng(6), (64, 64)
    cube = enlarged(rng, Grid(Kind.REPEATED, 2, 0, 0), 3, shape)
    cube[0, 1, [3, 20, 50], [7, 31, 12]] += 4000
    found = grids_of(model, cube, None, 8.0)
    assert found[1] is None
    assert found[0] is not None
    encoded = model.encode(cube.astype(np.float32), 8.0)
    back, _ = decoded(model, encoded.sections, cube.shape, 8.0)
    assert np.abs(back - cube).max() < 200


def test_a_thirteenth_band_is_kept(model):
    """Every component can be coded: cirrus in B10 alone is still there."""
    rng = np.random.default_rng(2)
    cube = texture(rng, (1, 13, 96, 96)).astype(np.float32)
    cirrus = 300 * np.exp(-((np.arange(96) - 40) ** 2) / 200)
    cube[0, 10] = 15 + np.outer(cirrus, cirrus) / 300
    encoded = model.encode(cube, 6.0)
    back, _ = decoded(model, encoded.sections, cube.shape, 6.0)
    assert np.corrcoef(back[0, 10].ravel(), cube[0, 10].ravel())[0, 1] > 0.9


def test_some_dates_are_those_of_all():
    cube = synthetic.cube(dates=3, size=48).values
    frame = encode_chunk(cube)
    np.testing.assert_array_equal(decode_chunk(frame, dates=[2, 0]), decode_chunk(frame)[[2, 0]])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_or_some_pixels(model, data):
    with contextlib.suppress(TecError):
        decoded(model, [data], (1, 5, 20, 30), 4.0)


def test_weights_that_cannot_be_computed_with_are_refused():
    good = tensors()
    for name, (shape, kind) in TENSORS.items():
        for wrong in (
            np.zeros(shape, kind)[..., :-1],
            np.zeros(shape, np.float32),
            np.full(shape, np.nan) if kind == np.float64 else None,
            np.full(shape, 1e200) if kind == np.float64 else None,  # squares of it are infinite
        ):
            if wrong is not None:
                with pytest.raises(FormatError, match="file does not hold weights of tec-s2"):
                    TileModel(weights_file(good | {name: wrong}), "file")
    with pytest.raises(FormatError):
        TileModel(weights_file({}))
    for value in (0, -5):
        frequencies = good["frequencies"].copy()
        frequencies[3, 30], frequencies[3, 32] = value, 0
        with pytest.raises(FormatError):
            TileModel(weights_file(good | {"frequencies": frequencies}))


def test_the_model_knows_grids_and_needs_no_torch():
    assert "known" in find_model("tec-s2").takes
