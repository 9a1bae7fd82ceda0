"""What is compiled and what torch does are the same numbers, and bytes that lie stay harmless."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tec_zarr import native
from tec_zarr.cubes import synthetic
from tec_zarr.errors import FormatError, TecError
from tec_zarr.models import klt
from tec_zarr.models.constants import CHANNELS, COMPONENTS, GROUPS
from tec_zarr.models.registry import get_model
from tec_zarr.networks import image
from tec_zarr.networks.pixel_net import PixelNet, PixelSynthesis

compiled = pytest.mark.skipif(native.library() is None, reason="the library was not built here")
INSTRUCTIONS = ["", "avx2"]


@pytest.fixture(scope="module")
def model():
    return get_model("tec-s2", "029756bd")


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=1, size=136, seed=9, nodata_edge=False).values.astype(np.float32)


def not_compiled(model: image.TecS2, section: bytes, shape: tuple[int, ...], quality: float):
    coder = image.LatentCoder(model.coder.entropy, model.coder.tables)
    coder.compiled = None
    other = image.TecS2.__new__(image.TecS2)
    other.net, other.coder = model.net, coder
    return other.decode_latents(section, shape, quality)


@compiled
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("size", [(136, 136), (8, 8), (1, 33), (40, 9), (67, 120)])
@pytest.mark.parametrize("quality", [1.0, 2.5, 5.0, 8.0])
def test_latents_are_those_of_torch(model, cube, size, quality, instructions, monkeypatch):
    monkeypatch.setenv("TEC_NATIVE", instructions)
    pixels = cube[:, :, : size[0], : size[1]]
    (section,) = model.encode(pixels, quality, None).sections
    expected, _ = not_compiled(model, section, pixels.shape[1:], quality)
    found, _ = model.decode_latents(section, pixels.shape[1:], quality)
    assert np.array_equal(found, expected)


@compiled
def test_outliers_need_escapes_and_come_back(model, cube):
    pixels = cube.copy()
    pixels[0, :, ::17, ::13] = 65535
    (section,) = model.encode(pixels, 8.0, None).sections
    expected, _ = not_compiled(model, section, pixels.shape[1:], 8.0)
    found, _ = model.decode_latents(section, pixels.shape[1:], 8.0)
    assert np.abs(found).max() > 16 * 1024  # beyond the widest table
    assert np.array_equal(found, expected)


@compiled
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_any_bytes_are_a_stream_for_both_or_for_none(model, instructions, monkeypatch):
    monkeypatch.setenv("TEC_NATIVE", instructions)
    random = np.random.default_rng(1)
    context = image.context_of(klt.Klt(np.zeros(3), np.eye(3), np.array([30, 12, -3])), 5.0)
    refused = 0
    for _ in range(60):
        words = random.integers(0, 256, 4 * int(random.integers(0, 60)), np.uint8)
        words[: int(random.integers(0, len(words) + 1))] = random.choice([0, 255])
        flags = int(random.integers(0, 32))
        outcomes = []
        for coder in (model.coder, image.LatentCoder(model.coder.entropy, model.coder.tables)):
            if coder is not model.coder:
                coder.compiled = None
            try:
                latents, _ = coder.decode(bytes([flags]) + words.tobytes(), context, 5, 3)
                outcomes.append(latents)
            except FormatError:
                outcomes.append(None)
        if outcomes[0] is None or outcomes[1] is None:
            refused += 1
            assert outcomes == [None, None]
        else:
            assert np.array_equal(*outcomes)
    assert 0 < refused < 60


@compiled
def test_one_wrong_weight_is_noticed(model, cube):
    coder = image.LatentCoder(model.coder.entropy, model.coder.tables)
    other = image.TecS2.__new__(image.TecS2)
    other.net, other.coder = model.net, coder
    encoded = model.encode(cube, 5.0, None)
    weights = [array for array in coder.compiled._kept if array.dtype == np.int8]
    weights[0][...] ^= 8  # of the first coarse pass
    try:
        latents, _ = other.decode_latents(encoded.sections[0], cube.shape[1:], 5.0)
    except TecError:
        return
    assert image.latents_crc(latents) != encoded.latents_crc[0]


# ---- pixels


@pytest.fixture(scope="module")
def synthesis(model):
    """A way to pixels with random corrections, which released weights have smaller."""
    torch.manual_seed(3)
    net = PixelNet(32)
    with torch.no_grad():
        net.synthesis.copy_(model.net.synthesis.unflatten(0, (COMPONENTS, -1)))
        net.overlap.copy_(model.net.synthesis_overlap)
        net.pairs.copy_(torch.rand(net.pairs.shape) < 0.3)
        net.last.weight.normal_(0, 0.05)
        net.condition.normal_(0, 0.3)
    out = PixelSynthesis(model.net, net.tensors())
    out.trained = net
    return out


def drawn(synthesis, compiled, latents, context, quality, shape):
    out = np.full(shape, np.nan, np.float32)
    library = synthesis.library
    try:
        if not compiled:
            synthesis.library = None
        ends = np.cumsum(GROUPS)
        last = np.flatnonzero(latents.any(0)).max(initial=0)
        channels = int(ends[ends.searchsorted(last, "right")])
        synthesis(latents, channels, quality, context.condition, context.spectral, out)
    finally:
        synthesis.library = library
    return out


@compiled
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("size", [(136, 136), (8, 8), (1, 33), (40, 9), (67, 120)])
@pytest.mark.parametrize("quality", [1.0, 2.5, 8.0])
@pytest.mark.parametrize("bands", [1, 3, 12])
def test_pixels_are_those_of_numpy(
    model, synthesis, cube, size, quality, bands, instructions, monkeypatch
):
    monkeypatch.setenv("TEC_NATIVE", instructions)
    pixels = cube[:, :bands, : size[0], : size[1]]
    (section,) = model.encode(pixels, quality, None).sections
    latents, context = model.decode_latents(section, pixels.shape[1:], quality)
    arguments = latents, context, quality, pixels.shape[1:]
    assert np.array_equal(drawn(synthesis, True, *arguments), drawn(synthesis, False, *arguments))


@compiled
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@given(st.integers(0, 2**31), st.sampled_from([10, 2000, 10**5, 2**31 - 1]), st.integers(0, 5))
def test_latents_of_any_size_make_the_same_pixels(
    model, synthesis, instructions, seed, most, group
):
    random = np.random.default_rng(seed)
    channels = sum(GROUPS[:group])
    latents = np.zeros((6, CHANNELS), np.int32)
    latents[:, :channels] = random.integers(-most, most, (6, channels), endpoint=True)
    latents[random.random(latents.shape) < 0.7] = 0
    basis, _ = np.linalg.qr(random.normal(size=(5, 5)))
    mean = random.integers(0, 65535, 5).astype(float)
    spectral = klt.Klt(mean, basis, np.array([40, 30, 9, 0, -9]))
    context = image.context_of(spectral, 6.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEC_NATIVE", instructions)
        arguments = latents, context, 6.0, (5, 15, 22)
        found = drawn(synthesis, True, *arguments)
    assert np.array_equal(found, drawn(synthesis, False, *arguments))


@pytest.mark.parametrize("quality", [1.0, 3.0, 7.0])
def test_training_sees_the_pixels_that_are_decoded(model, synthesis, cube, quality):
    (section,) = model.encode(cube, quality, None).sections
    latents, context = model.decode_latents(section, cube.shape[1:], quality)
    pixels = drawn(synthesis, False, latents, context, quality, cube.shape[1:])
    grid = torch.from_numpy(latents).float().T.reshape(1, CHANNELS, 17, 17) / 16
    steps = model.net.steps(torch.tensor([quality]))
    with torch.no_grad():
        components = synthesis.trained(grid, steps, context.condition)[0].flatten(1).numpy()
    used = context.spectral.used
    seen = context.spectral.basis[:, :used] @ components[:used] + context.spectral.mean[:, None]
    # Roundings to half DN, and hidden units that fall to another side; a step is 48 to 2400 DN.
    assert np.abs(seen.reshape(pixels.shape) - pixels).mean() < 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("first.weight", lambda t: t[:, :300]),
        ("one.weight", lambda t: t[:, :16]),
        ("last.bias", lambda t: t[:5]),
        ("two.exponent", lambda t: t[:1]),
        ("condition.weight", lambda t: t[:, :4]),
        ("synthesis", lambda t: t[:-1]),
        ("channel", lambda t: torch.cat([t[1:2], t[1:]])),
        ("channel", lambda t: t + 300),
        ("overlap", lambda t: t + 600),
        ("overlap", lambda t: t[:4]),
        ("synthesis", lambda t: t.int() * 100),
    ],
)
def test_weights_of_other_shapes_are_refused(model, synthesis, name, change):
    """A stranger's weights must not lead compiled code out of its arrays."""
    tensors = synthesis.trained.tensors()
    tensors[f"pixels.{name}"] = change(tensors[f"pixels.{name}"])
    with pytest.raises((TecError, IndexError, RuntimeError)):
        PixelSynthesis(model.net, tensors)


@compiled
@pytest.mark.parametrize("layer", ["first", "second", "anchors", "neighbours", "third"])
def test_networks_of_other_shapes_are_refused(model, layer):
    entropy = model.coder.entropy
    other = copy.copy(entropy)
    other.fine = [copy.copy(net) for net in entropy.fine]
    strange = copy.copy(getattr(other.fine[1], layer))
    strange.matrix = strange.matrix[: strange.taps * 8].contiguous()
    setattr(other.fine[1], layer, strange)
    with pytest.raises(FormatError, match="weights of a layer"):
        other.compiled(model.coder.tables)


@compiled
def test_bases_are_those_of_python(monkeypatch):
    random = np.random.default_rng(0)
    for count in (1, 2, 12, 31):
        turns = 4 * count if count > 1 else 0
        angles = [(int(random.integers(1, count)), random.random() * 6) for _ in range(turns)]
        found = klt.rotated(count, angles)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            assert np.array_equal(found, klt.rotated(count, angles))


def test_without_the_library_everything_decodes(tmp_path):
    """In a process of its own, with what was not built, damaged, or of another version."""
    program = f"""
import sys
from pathlib import Path
import numpy as np
from tec_zarr import TEC, native
from tec_zarr.cubes import synthetic
native._LIBRARY = Path(sys.argv[1])
assert native.library() is None
dn = synthetic.cube(dates=1, size=40, seed=1).values
np.save({str(tmp_path / "there.npy")!r}, TEC().decode(TEC(quality=4).encode(dn)))
"""
    dn = synthetic.cube(dates=1, size=40, seed=1).values
    from tec_zarr import TEC

    here = TEC().decode(TEC(quality=4).encode(dn))
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    for path in (tmp_path / "missing.so", damaged):
        subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=300)
        there = np.load(tmp_path / "there.npy").astype(int)
        assert np.abs(there - here).max() <= 1


@compiled
def test_terms_of_other_networks_are_refused(model):
    biases, prior = model.coder.entropy.terms(np.zeros(COMPONENTS + 1, np.float32))
    for terms in ((biases[:-16], prior), (biases, prior[:-1]), (biases.astype(float), prior)):
        with pytest.raises(FormatError, match="terms of a condition"):
            model.coder.compiled.latents(bytes(64), *terms, 2, 2, 31)


@compiled
@pytest.mark.parametrize("edges", [[0, 9, 9, 2**24], [0, 1, 2**24], [5, 6, 7, 2**24], [0, 1, 2, 9]])
def test_tables_that_cannot_be_searched_are_refused(model, edges):
    tables = copy.copy(model.coder.tables)
    plain = tables.cumulative
    tables.cumulative = lambda index: np.array(edges) if index == 51 else plain(index)
    with pytest.raises(FormatError, match="probability tables"):
        model.coder.entropy.compiled(tables)
