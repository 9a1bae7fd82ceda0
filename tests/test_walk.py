"""The walk over coefficients: the same bytes from every kernel, and no trust in bytes."""

from __future__ import annotations

import numpy as np
import pytest
from tiles import tensors, weights_bytes

from tec_zarr.cubes import synthetic
from tec_zarr.native import core
from tec_zarr.native.tile import TileModel
from tec_zarr.training.weights import TENSORS, weights_file


def model_of(rng, kind):
    """The released model, or weights of which the sums of products are larger."""
    if kind == "trained":
        return TileModel(weights_bytes())
    most = 127 if kind == "extreme" else 40
    wild = tensors()
    for name in ("context.first", "context.second", "context.last"):
        shape, dtype = TENSORS[name]
        wild[name] = rng.integers(-most, most, shape, endpoint=True).astype(dtype)
    return TileModel(weights_file(wild))


@pytest.fixture(scope="module")
def scene():
    return synthetic.cube(dates=1, size=288, seed=3, clouds=False, nodata_edge=False).values[0]


@pytest.mark.parametrize("kernel", core.kernels())
@pytest.mark.parametrize("shape", [(256, 256), (16, 16), (20, 288), (272, 70)])
@pytest.mark.parametrize("kind", ["trained", "wild", "extreme"])
def test_every_kernel_codes_the_same(monkeypatch, scene, kernel, shape, kind):
    model = model_of(np.random.default_rng(shape[1]), kind)
    image = np.ascontiguousarray(scene[3:8, : shape[0], : shape[1]].astype(np.int32))
    grids = np.zeros((5, 4), np.int32)

    def coded():
        section, checksum = model.encode(image, None, grids, 5.0)
        back = np.empty_like(image)
        assert model.decode(section, 5.0, back) == checksum
        return section, back, model.collect(image, grids, 5.0, False)

    monkeypatch.setenv("TEC_NATIVE", "plain")
    section, back, seen = coded()
    monkeypatch.setenv("TEC_NATIVE", kernel)
    again, found, same = coded()
    assert again == section
    np.testing.assert_array_equal(found, back)
    for one, other in zip(same[:4], seen[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_values_are_the_nearest_or_the_next_towards_zero(scene):
    model = model_of(None, "trained")
    image = np.ascontiguousarray(scene[:4, :64, :64].astype(np.int32))
    wanted, values, _, _, means = model.collect(image, np.zeros((4, 4), np.int32), 5.0, False)
    off = (np.abs(wanted) - np.abs(values))[means:]
    assert off.min() >= -0.5
    assert off.max() < 1.5
    assert (values * wanted >= 0)[means:].all()
    assert np.abs(wanted - values)[:means].max() < 1.5  # means of blocks: towards what is expected


def test_planes_of_zeros_take_almost_no_bytes():
    model = model_of(None, "trained")
    image = np.full((3, 256, 256), 1000, np.int32)
    flat, _ = model.encode(image, None, np.zeros((3, 4), np.int32), 4.0)
    assert len(flat) < 300


def test_the_largest_values_come_back():
    model = model_of(None, "trained")
    rng = np.random.default_rng(3)
    image = rng.choice([-65535, 65535], (2, 48, 48)).astype(np.int32)
    grids, back = np.zeros((2, 4), np.int32), np.empty_like(image)
    section, checksum = model.encode(image, None, grids, 8.0)
    assert model.decode(section, 8.0, back) == checksum
    assert np.abs(back - image).max() < 300
