"""The mask: what is not measured comes back exactly, and the network never sees its edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tec_zarr.codec.fill import fill_unknown
from tec_zarr.errors import FormatError
from tec_zarr.frame.mask import Mask, find_mask, pack_mask, unpack_mask


def _masks(shape):
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, 4), fill=st.just(0))


@given(hnp.array_shapes(min_dims=4, max_dims=4, max_side=9).flatmap(_masks), st.booleans())
def test_labels_and_values_survive(labels, same_in_all_bands):
    if same_in_all_bands:
        labels[:] = labels[:, :1]
    values = np.array([0, 7, 65535], "uint16")
    listed = np.arange(np.count_nonzero(labels == 4), dtype="uint16") + 30000
    back = unpack_mask(*pack_mask(Mask(labels, values, listed)), labels.shape, values.dtype)
    np.testing.assert_array_equal(back.labels, labels)
    np.testing.assert_array_equal(back.values, values)
    np.testing.assert_array_equal(back.listed, listed)


def test_measured_everywhere_costs_nothing():
    samples = np.arange(1, 2 * 3 * 8 * 8 + 1, dtype="uint16").reshape(2, 3, 8, 8)
    assert find_mask(samples, (0,), -1000, 20000) is None


def test_a_swath_edge_costs_little():
    y, x = np.mgrid[:256, :256]
    labels = np.broadcast_to((x + y // 4 < 100).astype(np.uint8), (4, 12, 256, 256))
    packed, exact = pack_mask(Mask(labels, np.zeros(1, "uint16"), np.zeros(0, "uint16")))
    assert len(packed) < 200
    assert exact == b""


@pytest.mark.parametrize("dates", [1, 8, 9, 10, 365, 20_000])
def test_dates_with_the_same_labels_cost_as_much_as_a_few(dates):
    labels = np.zeros((dates + 2, 1, 4, 4), np.uint8)
    labels[1:-1, :, :2] = 1
    labels[-1] = 1
    mask = Mask(labels, np.zeros(1, "uint16"), np.zeros(0, "uint16"))
    packed, exact = pack_mask(mask)
    assert len(packed) < 30
    back = unpack_mask(packed, exact, labels.shape, mask.values.dtype)
    np.testing.assert_array_equal(back.labels, labels)


@pytest.mark.parametrize("dates", ["05 02 00", "00 05 03", "00 05 00 00", "00 05", "01", "06 00"])
def test_runs_of_dates_that_cannot_be_raise(dates):
    with pytest.raises(FormatError):
        unpack_mask(b"\x00" + bytes.fromhex(dates), b"", (3, 1, 2, 2), np.dtype("uint16"))


@pytest.mark.parametrize("cut", [1, 3, 8, -1])
def test_a_damaged_mask_raises(cut):
    labels = np.random.default_rng(0).integers(0, 3, (2, 3, 16, 16)).astype(np.uint8)
    listed = np.zeros(np.count_nonzero(labels == 2), "uint16")
    packed, exact = pack_mask(Mask(labels, np.zeros(1, "uint16"), listed))
    with pytest.raises(FormatError):
        unpack_mask(packed[:cut], exact, labels.shape, listed.dtype)
    with pytest.raises(FormatError):
        unpack_mask(packed, exact[:cut], labels.shape, listed.dtype)


@given(st.binary(max_size=60), st.binary(max_size=20))
def test_arbitrary_bytes_raise_or_make_a_mask_of_the_shape(packed, exact):
    try:
        mask = unpack_mask(packed, exact, (2, 3, 8, 8), np.dtype("float32"))
    except FormatError:
        return
    assert mask.labels.shape == (2, 3, 8, 8)


def test_the_fill_continues_a_slope_without_a_cliff():
    y, x = np.mgrid[:64, :64].astype(np.float32)
    cube = np.broadcast_to(1000 + 10 * x + 5 * y, (1, 2, 64, 64)).astype(np.float32)
    known = np.broadcast_to((x > 20) & ((x - 45) ** 2 + (y - 30) ** 2 > 60), cube.shape)
    filled = fill_unknown(np.where(known, cube, 0), known)
    np.testing.assert_array_equal(filled[known], cube[known])
    steps = np.abs(np.diff(filled, axis=-1))
    assert steps.max() < 250  # across the middle of the hole; nodata would be a step of 1200
    assert filled.min() > 1000  # and no hole is left


def test_a_band_that_a_date_lacks_follows_the_others():
    cube = np.random.default_rng(0).uniform(1000, 2000, (1, 3, 16, 16)).astype(np.float32)
    known = np.ones(cube.shape, bool)
    known[:, 1] = False
    filled = fill_unknown(cube, known)
    np.testing.assert_allclose(filled[0, 1], cube[0, [0, 2]].mean(axis=0), rtol=1e-6)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=4, max_dims=4, max_side=20)))
def test_whatever_is_missing_the_fill_is_finite_and_within_what_was_measured(known):
    known[:, 0, 0, 0] = True
    cube = np.random.default_rng(0).uniform(500, 900, known.shape).astype(np.float32)
    filled = fill_unknown(np.where(known, cube, np.float32(np.nan)), known)
    np.testing.assert_array_equal(filled[known], cube[known])
    assert filled.min() >= cube[known].min() - 0.01
    assert filled.max() <= cube[known].max() + 0.01
