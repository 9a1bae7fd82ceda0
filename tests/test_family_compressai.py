"""TerraCodec architectures in CompressAI's registry; skipped where CompressAI is missing."""

import sys

import pytest
import torch
from test_family_codec import SMALL, make

from tec_zarr import errors
from tec_zarr.terracodec import hub

pytest.importorskip("compressai.models", reason="needs CompressAI, see docs/family.md")

from compressai.losses import RateDistortionLoss
from compressai.registry import MODELS

from tec_zarr.terracodec import compressai_registry as registry

FP, TT = "terracodec_v1_fp_s2l2a", "terracodec_v1_tt_s2l2a"


@pytest.fixture
def images():
    return torch.randn(2, 12, 64, 128, generator=torch.Generator().manual_seed(0))


def test_all_four_are_in_the_registry():
    sizes = {"tec-fp": {"N": 8, "M": 16}, "tec-tt": SMALL, "flextec": SMALL}
    sizes["tec-elic"] = {"N": 8, "M": 16, "groups": [2, 2, 4, 4, 4]}
    for name, size in sizes.items():
        assert isinstance(MODELS[name](**size), registry.CompressionModel)


@pytest.mark.parametrize("kind", ["fp", "elic"])
def test_compressai_computes_what_we_do_and_codes_it(kind, images):
    module = make(kind)
    model = registry.to_compressai(module)
    with torch.inference_mode():
        recon, bits = module.rate_distortion(images)
        out = model(images)
        ideal = sum(-torch.log2(p).sum() for p in out["likelihoods"].values())
        torch.testing.assert_close(out["x_hat"], recon, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ideal, bits.sum(), rtol=1e-4, atol=1.0)
        coded = model.compress(images)
        again = model.decompress(coded["strings"], coded["shape"])["x_hat"]
    torch.testing.assert_close(again, recon.clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tt", "flex"])
def test_series_have_compressais_interface(kind, images):
    module = make(kind)
    model = registry.to_compressai(module)
    series = images[None]
    with torch.inference_mode():
        torch.manual_seed(3)
        recon, bits = module(series)
        torch.manual_seed(3)
        out = model(series)
        assert torch.equal(out["x_hat"], recon)
        ideal = [float(-torch.log2(p).sum()) for p in out["likelihoods"].values()]
        assert ideal == pytest.approx(bits, abs=1)
        coded = model.compress(series)
        again = model.decompress(**coded)["x_hat"]
        whole = module(series, 16)[0] if kind == "flex" else recon
    torch.testing.assert_close(again, whole, rtol=1e-3, atol=1e-3)
    with pytest.raises(errors.UnsupportedArrayError, match="multiples of 64"):
        model.compress(series[..., :40])


def test_a_series_trains_with_compressais_loss(images):
    model = registry.to_compressai(make("tt")).train()
    out = model(images[None])
    out["x_hat"], target = out["x_hat"][0], images
    loss = RateDistortionLoss(lmbda=1e-3)(out, target)["loss"] + model.aux_loss()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert float(model.model.entropy_model.mean_head[4].weight.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["fp", "elic", "tt", "flex"])
def test_weights_go_there_and_back(kind, images):
    module = make(kind)
    back = registry.from_compressai(registry.to_compressai(module))
    assert type(back) is type(module)
    for (name, a), (other, b) in zip(
        sorted(module.named_parameters()), sorted(back.named_parameters()), strict=True
    ):
        assert name == other
        assert torch.equal(a, b), name


@pytest.mark.parametrize(("kind", "name"), [("fp", FP), ("tt", TT)])
def test_a_checkpoint_that_compressai_saved_loads_here(kind, name, tmp_path, monkeypatch, images):
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "cache"))
    model = registry.to_compressai(make(kind))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    if kind == "fp":
        loaded = hub.load(name, path=tmp_path / "model.pt")
        with torch.inference_mode():
            torch.testing.assert_close(loaded(images), model(images)["x_hat"], rtol=1e-4, atol=1e-4)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    heads = {"heads": SMALL["heads"]} if kind == "tt" else {}
    again = type(model).from_state_dict(state, **heads).eval()
    given = images[None] if kind == "tt" else images
    with torch.inference_mode():
        assert torch.equal(again(given)["x_hat"], model(given)["x_hat"])


def test_other_models_and_a_missing_compressai_are_named(monkeypatch):
    other = MODELS["bmshj2018-factorized"](8, 16)
    with pytest.raises(errors.TecError, match="none of the TerraCodec architectures"):
        registry.from_compressai(other)
    monkeypatch.delitem(sys.modules, registry.__name__)
    monkeypatch.setitem(sys.modules, "compressai.models", None)
    with pytest.raises(errors.TecError, match="pip install --no-deps compressai"):
        __import__(registry.__name__)
