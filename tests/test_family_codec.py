"""The TerraCodec family as codecs: streams, truncation, inpainting (small random models)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tec_zarr import errors
from tec_zarr.models import published as models_published
from tec_zarr.terracodec import checkpoints, coders, statistics
from tec_zarr.terracodec import codec as family
from tec_zarr.terracodec.elic import ELIC
from tec_zarr.terracodec.flex import FlexTEC
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.layers import EntropyBottleneck
from tec_zarr.terracodec.tt import TemporalTransformer

SMALL = {"channels": (8, 8, 16, 64), "width": 32, "heads": 4, "depths": (1, 1, 2)}


def spread(module):
    """Scale random weights up, so that symbols, means and scales vary as in trained models."""
    with torch.no_grad():
        if isinstance(module, FactorizedPrior):
            module.g_a[6].weight *= 40
        elif isinstance(module, ELIC):
            module.g_a[13].weight *= 20
            module.latent_codec.hyper.h_a[4].weight *= 30
            for part in module.latent_codec.y.latent_codec.values():
                part.entropy_parameters[4].weight *= 40
                part.entropy_parameters[4].bias += 0.5
        else:
            module.model.transform.analysis_transform.transforms[13].weight *= 60
            module.entropy_model.mean_head[4].weight *= 20
            module.entropy_model.scale_head[4].weight *= 20
            for part in (module.entropy_model.decoder, module.entropy_model.encoder_joint):
                for name, value in part.named_parameters():
                    if name.endswith("weight") and value.ndim == 2:
                        value *= 5
    return module.eval()


def make(kind, bands=12, seed=0):
    torch.manual_seed(seed)
    if kind == "fp":
        return spread(FactorizedPrior(bands, 8, 16))
    if kind == "elic":
        return spread(ELIC(bands, 8, 16, groups=(2, 2, 4, 4, 4)))
    return spread((FlexTEC if kind == "flex" else TemporalTransformer)(bands, **SMALL))


def codec(kind, **options):
    return family.FamilyModel(make(kind), f"small/{kind}", "ab" * 32, **options)


def scene(dates, bands, height, width, seed=0):
    """DN with structure, float32 (T, C, H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40)) for _ in range(4)]
    mixed = np.einsum("tcw,wyx->tcyx", rng.normal(size=(dates, bands, 4)), np.stack(waves))
    return (1500 + 600 * mixed + rng.normal(0, 30, mixed.shape)).clip(1, 12000).astype(np.float32)


@pytest.fixture(params=["fp", "elic", "tt", "flex"])
def kind(request):
    return request.param


def test_a_cube_decodes_to_what_the_network_reconstructs(kind):
    model, cube = codec(kind), scene(3, 12, 64, 128)
    encoded = model.encode(cube, 8.0, None)
    decoded, crc = model.decode(encoded.sections, cube.shape, 8.0, None)
    x = statistics.standardise(cube, 12, range(12))
    with torch.inference_mode():
        if kind in ("fp", "elic"):
            seen = make(kind)(x)
        else:
            seen = (make(kind)(x, 16) if kind == "flex" else make(kind)(x))[0][0]
    assert len(encoded.sections) == 3
    assert crc == encoded.latents_crc
    np.testing.assert_allclose(decoded, statistics.destandardise(seen, range(12)), atol=0.5)


def test_the_rate_is_the_networks_estimate(kind):
    model, cube = codec(kind), scene(2, 12, 128, 128)
    bits = 8 * sum(map(len, model.encode(cube, 8.0, None).sections))
    x = statistics.standardise(cube, 12, range(12))
    with torch.inference_mode():
        if kind in ("fp", "elic"):
            ideal = float(make(kind).rate_distortion(x)[1].sum())
        else:
            ideal = sum((make(kind)(x, 16) if kind == "flex" else make(kind)(x))[1])
    # Above: 64 bits of flushing a stream, FlexTEC with 16 streams a date and their lengths.
    assert bits <= 1.01 * ideal + 2 * (1400 if kind == "flex" else 100)
    assert ideal > 5_000


@pytest.mark.parametrize("shape", [(1, 12, 1, 1), (2, 12, 37, 70), (1, 12, 64, 5)])
def test_any_height_and_width_come_back(kind, shape):
    model, cube = codec(kind), scene(*shape)
    encoded = model.encode(cube, 4.0, None)
    decoded, crc = model.decode(encoded.sections, shape, 4.0, None)
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert crc == encoded.latents_crc


def test_a_subset_of_bands_in_any_order():
    model, bands = codec("fp"), ("B08", "B04", "B02")
    cube = scene(1, 3, 32, 32)
    encoded = model.encode(cube, 4.0, bands)
    full = np.broadcast_to(
        np.array(statistics.STATISTICS[12].mean, np.float32)[:, None, None], (1, 12, 32, 32)
    ).copy()
    places = [statistics.STATISTICS[12].bands.index(b) for b in bands]
    full[:, places] = cube
    assert encoded.sections == model.encode(full, 4.0, None).sections
    assert model.decode(encoded.sections, cube.shape, 4.0, bands)[0].shape == cube.shape


@pytest.mark.parametrize(
    ("bands", "channels"), [(None, 3), (("B02", "B10"), 2), (("B02",), 2), (None, 13)]
)
def test_bands_that_the_model_lacks_are_refused(bands, channels):
    with pytest.raises(errors.UnsupportedArrayError, match="B8A"):
        codec("fp").encode(scene(1, channels, 16, 16), 4.0, bands)


def test_thirteen_bands_of_l1c():
    model = family.FamilyModel(make("tt", bands=13), "small/l1c", "00" * 32)
    cube = scene(2, 13, 64, 64)
    encoded = model.encode(cube, 4.0, None)
    decoded, crc = model.decode(encoded.sections, cube.shape, 4.0, None)
    assert decoded.shape == cube.shape
    assert crc == encoded.latents_crc


def outcome(model, sections, shape):
    try:
        return model.decode(sections, shape, 8.0, None)[1]
    except errors.TecError:
        return None


def test_other_weights_never_give_the_same_latents(kind):
    # TEC-FP's tables are data: with others, as with a damaged stream, symbols change.
    model, cube = codec(kind), scene(1, 12, 64, 64)
    encoded = model.encode(cube, 8.0, None)
    other = make(kind, seed=1)
    if kind == "fp":
        with torch.no_grad():
            other.entropy_bottleneck.biases[0] += 2.0
    strange = family.FamilyModel(other, "other", "cd" * 32)
    assert outcome(strange, encoded.sections, cube.shape) != encoded.latents_crc


def test_a_damaged_section_is_noticed(kind):
    model, cube = codec(kind), scene(1, 12, 64, 64)
    encoded = model.encode(cube, 8.0, None)
    (section,) = encoded.sections
    for place in range(0, len(section) - 8, max(1, len(section) // 8)):
        damaged = bytearray(section)
        damaged[place] ^= 4
        assert outcome(model, [bytes(damaged)], cube.shape) != encoded.latents_crc
    assert outcome(model, [section[: len(section) // 2]], cube.shape) != encoded.latents_crc


@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_flextec_truncated_is_flextec_encoded_at_that_quality(tokens):
    model, cube = codec("flex"), scene(1, 12, 64, 128)
    whole = model.encode(cube, 8.0, None)
    cut = model.truncate(whole.sections, tokens)
    direct = model.encode(cube, 8.0, None, tokens=[tokens])
    assert cut.sections == direct.sections
    assert cut.latents_crc == direct.latents_crc
    a, crc = model.decode(cut.sections, cube.shape, 8.0, None)
    assert crc == cut.latents_crc
    assert len(cut.sections[0]) < len(whole.sections[0]) or tokens == 16
    whole_pixels, _ = model.decode(whole.sections, cube.shape, 8.0, None)
    assert (a == whole_pixels).all() == (tokens == 16)


def test_flextec_series_can_be_truncated_down_to_the_tokens_of_its_context():
    cube = scene(3, 12, 64, 64)
    model = codec("flex", context_tokens=2)
    encoded = model.encode(cube, 8.0, None, tokens=[16, 6, 9])
    cut = model.truncate(encoded.sections, 2)
    decoded, crc = model.decode(cut.sections, cube.shape, 8.0, None)
    assert crc == cut.latents_crc
    assert np.isfinite(decoded).all()
    with pytest.raises(errors.TecError, match="context_tokens=1"):
        model.truncate(encoded.sections, 1)


def test_flextec_series_as_the_reference_codes_it_truncates_its_last_date_only():
    model, cube = codec("flex"), scene(2, 12, 64, 64)
    encoded = model.encode(cube, 8.0, None, tokens=[3, 16])
    cut = model.truncate(encoded.sections, 3)
    _decoded, crc = model.decode(cut.sections, cube.shape, 8.0, None)
    assert crc == cut.latents_crc
    with pytest.raises(errors.TecError, match="Date 0 of 2"):
        model.truncate(encoded.sections, 2)


def test_flextec_quality_is_half_the_tokens_and_checked():
    model, cube = codec("flex"), scene(1, 12, 64, 64)
    for quality, tokens in ((1.0, 2), (8.0, 16), (2.5, 5)):
        direct = model.encode(cube, 8.0, None, tokens=[tokens])
        assert model.encode(cube, quality, None).sections == direct.sections
    with pytest.raises(errors.UnsupportedArrayError, match="1 to 16"):
        model.encode(cube, 8.0, None, tokens=[0])
    with pytest.raises(errors.UnsupportedArrayError, match="2 qualities for 1 dates"):
        model.encode(cube, 8.0, None, tokens=[4, 4])


def test_only_flextec_truncates():
    model = codec("tt")
    with pytest.raises(errors.TecError, match="one rate"):
        model.truncate([b""], 3)


def test_every_parameter_learns_from_rate_and_distortion(kind):
    module = make(kind).train()
    x = torch.randn(2, 3, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    if kind in ("fp", "elic"):
        recon, bits = module.rate_distortion(x[:, 0])
        loss = bits.sum() + (recon - x[:, 0]).square().mean()
        bottlenecks = [m for m in module.modules() if isinstance(m, EntropyBottleneck)]
        loss = loss + sum(b.quantile_loss() for b in bottlenecks)
    else:
        dates = module.dates(x, 9) if kind == "flex" else module.dates(x)
        loss = sum(
            bits.sum() + (recon - x[:, t]).square().mean() for t, (recon, bits) in enumerate(dates)
        )
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # Units behind a ReLU may be dead in transforms as narrow as these.
        assert parameter.grad.abs().max() > 0 or ".conv" in name, name


SETTINGS = [
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "TEC_TEST_THREADS": "2"},
]
DECODER = """
import os, sys, numpy as np, torch
from tec_zarr.terracodec import codec as family, hub
torch.set_num_threads(int(os.environ.get("TEC_TEST_THREADS", "1")))
torch.backends.mkldnn.enabled = "ONEDNN_MAX_CPU_ISA" not in os.environ
out = {}
with np.load(sys.argv[1]) as saved:
    for kind in ("elic", "tt", "flex"):
        sections = [saved[f"{kind}_{t}"].tobytes() for t in range(2)]
        name = dict(elic="terracodec_v1_elic_s2l2a", tt="terracodec_v1_tt_s2l2a",
                    flex="flextec_v1_s2l2a")[kind]
        module = hub.load(name, path=sys.argv[1] + f".{kind}.safetensors")
        model = family.FamilyModel(module, kind, "00" * 32)
        pixels, crc = model.decode(sections, (2, 12, 64, 128), 4.0, None)
        out[f"{kind}_crc"], out[f"{kind}_pixels"] = crc, pixels
np.savez(sys.argv[1] + ".out.npz", **out)
"""


@pytest.mark.parametrize("settings", SETTINGS, ids=["no-simd", "avx2"])
def test_streams_decode_alike_under_other_arithmetic(settings, tmp_path):
    cube, saved, kept = scene(2, 12, 64, 128), {}, {}
    for name in ("elic", "tt", "flex"):
        model = codec(name)
        encoded = model.encode(cube, 4.0, None)
        pixels, _ = model.decode(encoded.sections, cube.shape, 4.0, None)
        kept[name] = encoded.latents_crc, pixels
        checkpoints.save(make(name), tmp_path / f"streams.npz.{name}.safetensors")
        for t, section in enumerate(encoded.sections):
            saved[f"{name}_{t}"] = np.frombuffer(section, np.uint8)
    file = tmp_path / "streams.npz"
    np.savez(file, **saved)
    subprocess.run(
        [sys.executable, "-c", DECODER, str(file)],
        env={**os.environ, **settings},
        check=True,
    )
    there = np.load(f"{file}.out.npz")
    for name, (crc, pixels) in kept.items():
        assert there[f"{name}_crc"].tolist() == crc, name
        assert np.abs(there[f"{name}_pixels"] - pixels).max() <= 1, name


def test_nothing_under_a_cloud_reaches_the_prediction():
    model, cube = codec("tt"), scene(3, 12, 64, 128)
    cloudy = np.zeros((3, 64, 128), bool)
    cloudy[1, 10:40, 20:90] = True
    cloudy[2, :, 70:] = True
    other = np.where(cloudy[:, None], np.float32(9000), cube)
    first, second = (model.inpaint(c, cloudy) for c in (cube, other))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(
        first[~cloudy[:, None].repeat(12, 1)], cube[~cloudy[:, None].repeat(12, 1)]
    )
    assert np.isfinite(first).all()


def test_a_date_without_clouds_reconstructs_as_in_a_stream():
    model, cube = codec("tt"), scene(2, 12, 64, 64)
    x = statistics.standardise(cube, 12, range(12))
    with torch.inference_mode():
        clear = family.predict_hidden(model.module, x, torch.zeros(2, 64, 64, dtype=torch.bool))
        recon, _ = make("tt")(x)
    torch.testing.assert_close(clear, recon[0], atol=1e-3, rtol=1e-3)


def test_other_models_do_not_inpaint():
    with pytest.raises(errors.TecError, match="TEC-TT"):
        codec("fp").inpaint(scene(1, 12, 16, 16), np.zeros((1, 16, 16), bool))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("terracodec_v1_fp_s2l2a", 3_055_756),
        ("terracodec_v1_elic_s2l2a", 16_508_524),
        ("terracodec_v1_tt_s2l2a", 225_158_156),
        ("terracodec_v1_tt_s2l1c", 225_164_557),
        ("flextec_v1_s2l2a", 225_159_116),
    ],
)
def test_published_sizes(name, parameters):
    published = models_published.PUBLISHED[name]
    module, cls = checkpoints.CLASSES[published.architecture]
    with torch.device("meta"):
        model = getattr(sys.modules[module], cls)(published.bands)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("edge", [0, 70000])
def test_tables_that_a_coder_cannot_use_are_refused(edge):
    """Weights that came with a store hold any tables."""
    bottleneck = EntropyBottleneck(2)
    bottleneck.update()
    bottleneck._quantized_cdf[1, 2] = edge  # below the edge before, or above the one after
    assert coders.bottleneck_tables(bottleneck)(0).size > 0
    with pytest.raises(errors.FormatError, match="channel 1 has frequencies below 1"):
        coders.bottleneck_tables(bottleneck)(1)
