"""Targets of one pixel in one band survive; what TEC was not made for is not coded silently."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tec_zarr import ChunkSpec, UnsuitedDataWarning, decode_chunk, encode_chunk
from tec_zarr.codec import encode
from tec_zarr.codec.points import find_points, multiple, pack_points
from tec_zarr.cubes import synthetic
from tec_zarr.errors import FormatError
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.native.frame import restore_points
from tec_zarr.stores.transcode import transcode_chunk

MODELS = ("tec-s2", "tec-tt-s2", "tec-flex-s2")


def scene(dates=1, size=112):
    return synthetic.cube(dates=dates, size=size, seed=41, nodata_edge=False).values


def with_targets(dn, height):
    """One bright pixel in each band, far from one another; and where they are."""
    dn, size = dn.copy(), dn.shape[-1]
    across = [(y, x) for y in range(12, size - 12, 25) for x in range(12, size - 12, 25)]
    places = [(-1, band, *across[band]) for band in range(12)]
    for place in places:
        dn[place] += np.uint16(height)
    return dn, tuple(np.array(places).T)


@pytest.mark.parametrize("options", [{}, {"max_error": {"B02": 4}}])
@pytest.mark.parametrize("model", MODELS)
def test_points_are_sought_in_what_decoders_return(monkeypatch, model, options):
    dn = synthetic.cube(dates=3, size=64, seed=5).values
    dn[1, :4, :20] = 0
    seen = []
    monkeypatch.setattr(encode, "_points", lambda part, coded, free: seen.append(coded) or [])
    back = decode_chunk(encode_chunk(dn, ChunkSpec(model, quality=6, **options)))
    coded = dn != 0
    np.testing.assert_array_equal(seen[0].decoded[coded], back[coded])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("quality", "height"), [(1, 5000), (2, 2000), (4.5, 1500), (8, 1500)])
def test_a_bright_pixel_in_any_single_band_survives(model, quality, height):
    dn, places = with_targets(scene(), height)
    back = decode_chunk(encode_chunk(dn, ChunkSpec(model, quality=quality)))
    kept = 1 - (dn[places].astype(float) - back[places]) / height
    assert np.count_nonzero(kept > 0.9) >= 10  # others lie among edges, of which they are some


@pytest.mark.parametrize(
    "given",
    [{"psnr": 38}, {"max_bytes": 9000}, {"max_error": {"B02": 50}}, {"nodata": (0, 65535)}],
    ids=lambda given: next(iter(given)),
)
def test_in_every_way_to_ask_for_quality(given):
    dn, places = with_targets(scene(), 6000)
    dn[:, :, :5] = given.get("nodata", (0, 0))[1]  # beside nodata
    back = decode_chunk(encode_chunk(dn, ChunkSpec(**given)))
    errors = np.abs(dn[places].astype(float) - back[places])
    assert errors.max() < 600


def test_reflectance_comes_back_bit_for_bit_and_dates_on_their_own_too():
    dn, places = with_targets(scene(dates=2), 6000)
    reflectance = (dn / 1e4).astype(np.float32)
    frame = encode_chunk(reflectance)
    np.testing.assert_array_equal(decode_chunk(frame)[places], reflectance[places])
    last = decode_chunk(frame, dates=[1])
    np.testing.assert_array_equal(last[places], reflectance[places])


def test_a_flexible_stream_that_is_cut_keeps_them():
    dn, places = with_targets(scene(), 6000)
    frame = encode_chunk(dn, ChunkSpec("tec-flex-s2", quality=6))
    np.testing.assert_array_equal(decode_chunk(transcode_chunk(frame, 6))[places], dn[places])


@pytest.mark.parametrize("quality", [2, 4, 8])
def test_ordinary_ground_pays_less_than_a_percent(quality):
    frame = encode_chunk(scene(size=256), ChunkSpec(quality=quality))
    assert sum(map(len, read_frame(frame).payloads(SectionKind.POINTS))) < len(frame) / 100


def test_edges_do_not_stand_out_of_edges():
    errors = np.full((1, 1, 64, 64), 10, np.float32)
    errors[0, 0, 20, 5] = 300  # alone
    errors[0, 0, :, 40] = 300  # the wall of a hall
    y, x = divmod(int(find_points(errors, None, 4.0)[0]), 64)
    assert (y, x) == (20, 5)
    assert len(find_points(errors, None, 4.0)) == 1


def test_a_giant_does_not_hide_the_others():
    errors = np.full((1, 1, 64, 64), 10, np.float32)
    errors[0, 0, 20, 5], errors[0, 0, 50, 50] = 15_000, 800
    assert len(find_points(errors, None, 4.0)) == 2


def test_the_multiple_is_largest_where_chunks_are_smallest():
    assert [multiple(q) for q in (1, 2, 3, 4, 8)] == [10, 8.5, 7, 7, 7]


@given(st.data(), st.sampled_from(["u2", "i2", "f4", "f8"]))
def test_points_come_back(data, dtype):
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(4))
    size = int(np.prod(shape))
    samples = np.random.default_rng(size).integers(1, 9000, shape).astype(dtype)
    places = np.array(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    back = np.zeros(shape, dtype)
    restore_points(pack_points(places, samples), back)
    t, c, h, w = shape
    listed = np.zeros((t, h, w, c), bool)
    listed.reshape(-1)[places] = True
    np.testing.assert_array_equal(back, np.where(listed.transpose(0, 3, 1, 2), samples, 0))


@given(st.binary(max_size=40))
def test_arbitrary_bytes_raise_or_are_points_inside_the_chunk(data):
    with contextlib.suppress(FormatError):
        restore_points(data, np.zeros((2, 3, 4, 5), np.uint16))


@pytest.mark.parametrize("model", ["tec-s2", "tec-tt-s2"])
def test_a_thirteenth_band_needs_no_warning_and_a_bound_keeps_it(model):
    dn = np.insert(scene(size=32), 10, 50, axis=1)
    dn[0, 10] += np.random.default_rng(1).integers(0, 90, (32, 32)).astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chunk(dn, ChunkSpec(model))
        back = decode_chunk(encode_chunk(dn, ChunkSpec(model, max_error={"B10": 20})))
    assert np.abs(back[0, 10].astype(int) - dn[0, 10]).max() <= 20


def test_classes_warn_unless_they_are_kept():
    classes = np.kron(np.random.default_rng(0).integers(1, 12, (8, 8)), np.ones((8, 8)))
    classes = classes.astype(np.uint16)
    with pytest.warns(UnsuitedDataWarning, match="classes"):
        encode_chunk(classes, ChunkSpec(bands=["B04"]))
    water = np.random.default_rng(0).integers(1, 12, (64, 64)).astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_chunk(classes, ChunkSpec(bands=["B04"], max_error=0))
        encode_chunk(water, ChunkSpec(bands=["B04"]))
