"""tec-flex-s2: one stream for several qualities, whose last layers can be cut off."""

from __future__ import annotations

import numpy as np
import pytest
import series_reference
import zarr
from test_series import forged, latents, psnr
from tiles import tensors

import tec_zarr
from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.frame.frame import read_frame
from tec_zarr.models.tokens import FlexSection, cut, layer_qualities
from tec_zarr.recompression.transcode import transcode
from tec_zarr.stores.transcode import preview_chunk, transcode_chunk

MODEL = "tec-flex-s2"
QUALITY = 6.0


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=3, size=64, seed=41, clouds=False, nodata_edge=False).values


@pytest.fixture(scope="module")
def frame(cube):
    return encode_chunk(cube, ChunkSpec(MODEL, QUALITY))


def test_layers_are_two_and_a_half_qualities_apart_down_to_one():
    assert layer_qualities(8.0) == [3.0, 5.5, 8.0]
    assert layer_qualities(6.0) == [1.0, 3.5, 6.0]
    assert layer_qualities(3.4) == [3.4]


def test_every_layer_is_a_stream_and_more_bytes_are_better(cube, frame):
    layers = [transcode_chunk(frame, k) for k in (1, 2, 3)]
    assert layers[-1] == frame == transcode_chunk(frame, 16)
    sizes = [len(layer) for layer in layers]
    assert sizes == sorted(set(sizes))
    assert [read_frame(layer).header.quality for layer in layers] == [1.0, 3.5, 6.0]
    found = [psnr(decode_chunk(layer), cube) for layer in layers]
    assert all(np.diff(found) > 5)
    assert transcode_chunk(transcode_chunk(frame, 2), 1) == layers[0]


def test_a_layer_is_as_good_as_a_stream_of_its_own(cube, frame):
    for layers, quality in ((1, 1.0), (2, 3.5), (3, 6.0)):
        own = encode_chunk(cube, ChunkSpec("tec-tt-s2", quality))
        layer = transcode_chunk(frame, layers)
        lost = psnr(decode_chunk(own), cube) - psnr(decode_chunk(layer), cube)
        assert lost < 1
        # 5 dB double the bytes. Headers of layers weigh more here than in tiles of 256 x 256.
        assert len(layer) * 2 ** (lost / 5) < 1.4 * len(own) + 150


def test_dates_help_one_another_in_every_layer():
    still = synthetic.cube(dates=1, size=128, seed=5, clouds=False, nodata_edge=False).values
    noise = np.random.default_rng(1).normal(0, 20, (3, *still.shape[1:]))
    series = np.rint(np.repeat(still, 3, 0) + noise).clip(1).astype("u2")
    together = encode_chunk(series, ChunkSpec(MODEL, QUALITY))
    alone = encode_chunk(series, ChunkSpec(MODEL, QUALITY, gop=1))
    for layers in (1, 2, 3):
        assert len(transcode_chunk(together, layers)) < 0.85 * len(transcode_chunk(alone, layers))


def test_a_few_dates_are_those_of_the_whole_at_any_layer(frame):
    for layers in (1, 2, 3):
        coarse = transcode_chunk(frame, layers)
        some = decode_chunk(coarse, dates=[2, 0])
        np.testing.assert_array_equal(some, decode_chunk(coarse)[[2, 0]])


@pytest.mark.parametrize("shape", [(1, 12, 1, 1), (2, 1, 9, 30), (2, 31, 8, 8), (3, 4, 17, 16)])
def test_any_shape(shape):
    data = np.random.default_rng(3).integers(1, 3000, shape).astype("u2")
    got, fixed = (
        decode_chunk(encode_chunk(data, ChunkSpec(model, 8.0))) for model in (MODEL, "tec-tt-s2")
    )
    assert got.shape == shape
    assert psnr(got, data) > min(psnr(fixed, data), 60) - 1


@pytest.mark.parametrize("quality", [3.0, 8.0])
def test_a_decoder_written_from_the_page_gives_the_same(cube, quality):
    part = np.ascontiguousarray(cube[:, :4, :30, :35])
    frame = encode_chunk(part, ChunkSpec(MODEL, quality))
    image, checksums = series_reference.decode_layers(
        [s.data for s in latents(frame)], 4, part.shape[2:], tensors()
    )
    assert checksums == [s.latents_crc for s in latents(frame)]
    assert (decode_chunk(frame) != image).mean() < 0.005  # points are exact


def test_targets_are_met(cube):
    assert psnr(decode_chunk(encode_chunk(cube[:2], ChunkSpec(MODEL, psnr=42))), cube[:2]) >= 42
    assert len(encode_chunk(cube[:2], ChunkSpec(MODEL, max_bytes=2500))) <= 2500


def test_an_array_is_lowered_and_shown_without_encoding_it_again(cube, tmp_path):
    stored = cube.copy()
    stored[:, :, :9] = 0  # nodata
    array = zarr.create_array(
        tmp_path / "fine.zarr", shape=stored.shape, chunks=(3, 12, 32, 32), dtype="u2",
        serializer=tec_zarr.TECCodec(model=MODEL, quality=QUALITY, nodata=[0]), compressors=None,
    )  # fmt: skip
    array[:] = stored
    assert transcode(tmp_path / "fine.zarr", tmp_path / "coarse.zarr", 2) == 4
    coarse = zarr.open_array(tmp_path / "coarse.zarr", mode="r")
    assert coarse.metadata.to_dict()["codecs"][0]["configuration"]["quality"] == 3.5
    found = coarse[:]
    np.testing.assert_array_equal(found == 0, stored == 0)
    assert 35 < psnr(found, stored) < psnr(array[:], stored)
    chunk = encode_chunk(stored, ChunkSpec(MODEL, QUALITY, nodata=(0,)))
    np.testing.assert_array_equal(preview_chunk(chunk, 2), decode_chunk(transcode_chunk(chunk, 2)))


def test_dates_are_cut_together(frame, tmp_path):
    with pytest.raises(UnsupportedArrayError, match="give one number, not \\[3, 2, 3\\]"):
        transcode_chunk(frame, [3, 2, 3])
    zarr.create_array(
        tmp_path / "fine.zarr", shape=(3, 12, 64, 64), chunks=(3, 12, 64, 64), dtype="uint16",
        serializer=tec_zarr.TECCodec(model=MODEL, quality=QUALITY), compressors=None,
    )  # fmt: skip
    with pytest.raises(UnsupportedArrayError, match="give one number, not \\[3, 2, 3\\]"):
        transcode(tmp_path / "fine.zarr", tmp_path / "coarse.zarr", [3, 2, 3])
    assert not (tmp_path / "coarse.zarr").exists()
    sections = [s.data for s in latents(frame)]
    uneven = [cut(sections[:1], [2]).sections[0], *sections[1:]]
    with pytest.raises(TecError):
        decode_chunk(forged(frame, uneven))


def test_damaged_layers_never_become_pixels(cube):
    frame = encode_chunk(cube[:2, :, :32, :32], ChunkSpec(MODEL, 6.0))
    good = [s.data for s in latents(frame)]
    rng = np.random.default_rng(0)
    for _ in range(100):
        number = int(rng.integers(2))
        broken = bytearray(good[number])
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        damaged = [bytes(broken) if n == number else s for n, s in enumerate(good)]
        try:
            found = decode_chunk(forged(frame, damaged))
        except TecError:
            continue
        assert found.shape == (2, 12, 32, 32)


def test_more_layers_than_qualities_are_refused(frame):
    [section, *rest] = [s.data for s in latents(frame)]
    part = FlexSection.from_bytes(section)
    longer = FlexSection(1, part.head, (*part.groups, part.groups[-1])).to_bytes()
    with pytest.raises(TecError):
        decode_chunk(forged(frame, [longer, *rest]))
