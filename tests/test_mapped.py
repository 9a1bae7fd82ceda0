"""Sections of resampled tiles: the map is read as it was written, by the core too."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import tile_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nearest import a_map, axes, native
from tiles import decoded, tensors

from tec_zarr.errors import FormatError
from tec_zarr.grids import Nearest
from tec_zarr.models.registry import get_model
from tec_zarr.models.tile.mapped import write_map
from tec_zarr.native import core


def places_of_core(section, shape):
    """Status, flat places, shape of the source and length of the map, as the core reads them."""
    places = np.zeros(shape, np.int32)
    tall, wide, after = ctypes.c_int(), ctypes.c_int(), ctypes.c_int64()
    status = core.library().tec_map_places(
        section, ctypes.c_int64(len(section)), *shape, places.ctypes.data_as(ctypes.c_void_p),
        ctypes.byref(tall), ctypes.byref(wide), ctypes.byref(after),
    )  # fmt: skip
    return status, places, (tall.value, wide.value), after.value


maps = st.builds(
    lambda across, down, turn, bend, exceptions: (across, down, turn, bend, exceptions),
    st.floats(0.2, 1.2),
    st.floats(0.2, 1.2),
    st.floats(-0.1, 0.1),
    st.floats(-1e-4, 1e-4),
    st.dictionaries(st.integers(0, 30 * 40 - 1), st.integers(0, 7), max_size=6),
)


@settings(max_examples=80, deadline=None)
@given(drawn=maps)
def test_a_map_is_read_as_it_was_written(drawn):
    across, down, turn, bend, exceptions = drawn
    plain = a_map((down, across), turn, (30, 40), bend)
    nearest = Nearest(plain.rows, plain.columns, tuple(sorted(exceptions.items())))
    source = nearest.source_shape((30, 40))
    section = write_map(nearest) + b"rest"
    status, places, shape, after = places_of_core(section, (30, 40))
    if source is None:
        assert status == -2
        return
    assert (status, shape, section[after:]) == (0, source, b"rest")
    rows, columns = nearest.places((30, 40))
    np.testing.assert_array_equal(places, rows * source[1] + columns)
    read = tile_reference.read_map(section, (30, 40))
    np.testing.assert_array_equal(read[0], [rows, columns])
    assert read[1:] == (source, b"rest")


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(max_size=60),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    rows=axes,
    cut=st.integers(0, 60),
)
def test_damaged_maps_never_lead_beyond_their_source(data, height, width, rows, cut):
    good = write_map(Nearest(rows, rows, ((3, 1), (9, 4))))
    for section in (b"\xe0" + data, bytes([0xE0 | good[0]]) + good[1:cut] + data):
        status, places, shape, after = places_of_core(section, (height, width))
        if status:
            assert status == -2
            continue
        assert places.min() >= 0
        assert places.max() < shape[0] * shape[1]
        assert 0 < after <= len(section)


def test_a_resampled_tile_is_coded_as_its_source():
    rng = np.random.default_rng(5)
    shape = (120, 130)
    plain = a_map((0.6, 0.55), 0.02, shape)
    samples = plain.gather(native(rng, plain.source_shape(shape), 2), shape)
    model = get_model("tec-s2")
    encoded = model.encode(samples.astype(np.float32), 5.0)
    assert all(section[0] >> 5 == 7 for section in encoded.sections)
    found, checksums = decoded(model, encoded.sections, samples.shape, 5.0)
    assert checksums == encoded.latents_crc
    np.testing.assert_array_equal(encoded.decoded, found)
    assert np.sqrt(np.mean((found - samples) ** 2)) < 100
    (rows, columns), _, _ = tile_reference.read_map(encoded.sections[0], shape)
    same = (np.diff(rows, axis=1) == 0) & (np.diff(columns, axis=1) == 0)
    assert same.mean() > 0.3
    assert not np.diff(found, axis=3)[..., same].any()
    image, _ = tile_reference.decode(encoded.sections[1], 6, shape, 5.0, tensors())
    np.testing.assert_array_equal(image, found[1])


def test_a_map_of_a_map_is_damage():
    plain = write_map(a_map((0.6, 0.55), 0.02, (30, 40)))
    model = get_model("tec-s2")
    for section in (plain, plain + plain + b"0" * 50, plain + b"\x00"):
        with pytest.raises(FormatError):
            decoded(model, [section], (1, 3, 30, 40), 5.0)
