"""The walk over coefficients: the same bytes from every kernel, and no trust in bytes."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tec_zarr.errors import ChecksumError
from tec_zarr.models.registry import get_model
from tec_zarr.models.tile.weights import TENSORS, Weights
from tec_zarr.native import core

COMPONENTS = np.array([5, 4, 3, 1, 1], np.int32)
SPREADS = np.zeros((5, 31), np.int32)


@pytest.fixture(scope="module")
def weights():
    return get_model("tec-s2").weights


def walk(weights, rows, cols, hints=None):
    return core.Walk(weights.context, COMPONENTS, SPREADS, rows, cols, 64, 40, hints)


def coefficients(rng, planes, rows, cols):
    """Coefficients that grow rarer with the frequency; the blocks of one half are quieter."""
    size = 3.0 / (1 + planes[:, 1] + planes[:, 2]) + 40.0 * (planes[:, 1] + planes[:, 2] == 0)
    wanted = rng.laplace(0, size[:, None, None], (len(planes), rows, cols))
    wanted[:, rows // 2 :] *= 0.2
    return wanted


def wild(rng, extreme):
    """Weights of which the sums of products are larger than those of the trained ones."""
    most = 127 if extreme else 40
    tensors = dict(get_model("tec-s2").weights.tensors)
    for name in ("context.first", "context.second", "context.last"):
        shape, kind = TENSORS[name]
        tensors[name] = rng.integers(-most, most, shape, endpoint=True).astype(kind)
    return Weights.of(tensors, "test")


@pytest.mark.parametrize("kernel", core.kernels())
@pytest.mark.parametrize(("rows", "cols"), [(16, 16), (1, 1), (2, 37), (17, 5)])
@pytest.mark.parametrize("kind", ["trained", "wild", "extreme"])
def test_every_kernel_codes_the_same(monkeypatch, weights, kernel, rows, cols, kind):
    rng = np.random.default_rng(rows + cols)
    if kind != "trained":
        weights = wild(rng, kind == "extreme")
    planes = core.planes(COMPONENTS)
    wanted = coefficients(rng, planes, rows, cols)
    hints = rng.integers(0, 5, wanted.shape).astype(np.uint16) if rows == 17 else None
    monkeypatch.setenv("TEC_NATIVE", "plain")
    data, values, indexes = walk(weights, rows, cols, hints).encode(wanted, 8.0)
    inputs, symbols = walk(weights, rows, cols, hints).collect(values)
    monkeypatch.setenv("TEC_NATIVE", kernel)
    again, others, numbers = walk(weights, rows, cols, hints).encode(wanted, 8.0)
    assert again == data
    np.testing.assert_array_equal(others, values)
    np.testing.assert_array_equal(numbers, indexes)
    back, numbers = walk(weights, rows, cols, hints).decode(data)
    np.testing.assert_array_equal(back, values)
    np.testing.assert_array_equal(numbers, indexes)
    found, which = walk(weights, rows, cols, hints).collect(values)
    np.testing.assert_array_equal(found, inputs)
    np.testing.assert_array_equal(which, symbols)


def test_values_are_the_nearest_or_the_next_towards_zero(weights):
    rng = np.random.default_rng(1)
    wanted = coefficients(rng, core.planes(COMPONENTS), 16, 16)
    _, values, _ = walk(weights, 16, 16).encode(wanted, 8.0)
    off = np.abs(wanted) - np.abs(values)
    assert off.min() >= -0.5
    assert off.max() < 1.5
    assert (values * wanted >= 0).all()
    _, nearest, _ = walk(weights, 16, 16).encode(wanted, 0.0)
    np.testing.assert_array_equal(np.abs(nearest), np.floor(np.abs(wanted) + 0.5))


def test_planes_of_zeros_take_almost_no_bytes(weights):
    planes = core.planes(COMPONENTS)
    wanted = np.zeros((len(planes), 16, 16))
    data, _, _ = walk(weights, 16, 16).encode(wanted, 8.0)
    assert len(data) < wanted.size / 200
    wanted[-1, 8, 8] = 5
    data, values, _ = walk(weights, 16, 16).encode(wanted, 8.0)
    assert values[-1, 8, 8] >= 4
    back, _ = walk(weights, 16, 16).decode(data)
    np.testing.assert_array_equal(back, values)


def test_values_at_the_limits_come_back(weights):
    planes = core.planes(COMPONENTS)
    rng = np.random.default_rng(3)
    wanted = rng.choice([-3e9, -(2.0**24) + 1, -70000, 0, 1, 4096, 2.0**24 - 1, 1e300],
                        (len(planes), 3, 4))  # fmt: skip
    data, values, _ = walk(weights, 3, 4).encode(wanted, 8.0)
    assert np.abs(values).max() == 2**24 - 1
    back, _ = walk(weights, 3, 4).decode(data)
    np.testing.assert_array_equal(back, values)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=2000), st.sampled_from([(1, 1), (8, 9), (3, 20)]))
def test_any_bytes_are_values_in_range_or_damage(weights, data, shape):
    with contextlib.suppress(ChecksumError):
        values, indexes = walk(weights, *shape).decode(data)
        assert np.abs(values).max() < 2**24
        assert indexes.max() < 96
