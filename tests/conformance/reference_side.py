"""Runs in the reference environment: saves checkpoints, inputs and the reference's answers.

Usage: reference_side.py OUT_DIR MODEL...    (MODEL: fp elic tt tt_l1c flex)

Weights are random; last layers are scaled up so that symbols, means and scales spread as they
do in trained models instead of being all zero.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from terracodec.imagecodecs import ELIC, FactorizedPrior
from terracodec.temporaltransformer import TemporalTransformer


def scaled(module, factor):
    with torch.no_grad():
        module.weight.mul_(factor)


def smooth_series(dates, bands, size, seed=7):
    """Standardised images with structure at all scales, (1, T, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(dates, bands, size, size)
    for step in (4, 16, 64):
        noise = torch.randn(
            dates, bands, max(size // step, 1), max(size // step, 1), generator=generator
        )
        total += torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")
    return (0.7 * total)[None]


def image_model(kind):
    torch.manual_seed(1)
    model = {"fp": FactorizedPrior, "elic": ELIC}[kind](
        in_channels=12, N=128, M=192, image_size=256
    )
    if kind == "fp":
        scaled(model.g_a[6], 30)
    else:
        scaled(model.g_a[13], 5)
        scaled(model.latent_codec.hyper.h_a[4], 10)
        for part in model.latent_codec.y.latent_codec.values():
            last = part.entropy_parameters[4]
            scaled(last, 20)
            with torch.no_grad():
                last.bias[len(last.bias) // 2 :] += 2  # scales that cover the symbols
    model.update(force=True)
    return model.eval()


def image_side(kind, out):
    model = image_model(kind)
    torch.save({f"model.{k}": v for k, v in model.state_dict().items()}, out / f"{kind}.pt")
    x = smooth_series(2, 12, 256)[0]
    with torch.inference_mode():
        y = model.g_a(x)
        if kind == "fp":
            _, likelihood = model.entropy_bottleneck(y)
            bits = float(-torch.log2(likelihood).sum())
        else:
            parts = model.latent_codec(y)["likelihoods"]
            bits = float(sum(-torch.log2(p).sum() for p in parts.values()))
        recon = []
        for image in x:
            coded = model.compress(image[None])
            recon.append(model.decompress(coded["strings"], coded["shape"])[0])
        np.savez(out / f"{kind}.npz", x=x, forward=model(x), bits=bits, recon=torch.stack(recon))


def temporal_side(kind, out, size=128, dates=3):
    torch.manual_seed(2)
    torch.nn.init.trunc_normal_ = lambda t, std=1.0, **_: t.data.normal_(std=std)
    bands = 13 if kind == "tt_l1c" else 12
    flexible = kind == "flex"
    model = TemporalTransformer(in_channels=bands, flextec=flexible, image_size=size).eval()
    with torch.no_grad():
        scaled(model.model.transform.analysis_transform.transforms[13], 60)
        scaled(model.model.entropy_model.mean_head[4], 30)
        scaled(model.model.entropy_model.scale_head[4], 30)
        model.model.entropy_model.scale_head[4].bias += 25  # scales that cover the symbols
    torch.save(model.state_dict(), out / f"{kind}.pt")
    x = smooth_series(dates, bands, size)
    saved = {"x": x[0]}
    with torch.inference_mode():
        qualities = (1, 5, 16) if flexible else (None,)
        for k in qualities:
            recon, bits = model.forward(x, quality=k)
            tag = "" if k is None else f"_{k}"
            saved[f"forward{tag}"], saved[f"bits{tag}"] = recon[0], bits
        started = time.time()
        model.setup_model_for_compression()
        print(kind, "tables", time.time() - started, flush=True)
        for k in (5, 16) if flexible else (None,):
            started = time.time()
            payload = model.compress(x, quality=k)
            print(kind, "compress", time.time() - started, flush=True)
            started = time.time()
            tag = "" if k is None else f"_{k}"
            saved[f"recon{tag}"] = model.decompress(payload)[0]
            saved[f"stream_bits{tag}"] = payload["bits"]
            print(kind, "decompress", time.time() - started, flush=True)
    np.savez(out / f"{kind}.npz", **{k: np.asarray(v) for k, v in saved.items()})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in sys.argv[2:]:
        (image_side if kind in ("fp", "elic") else temporal_side)(kind, folder)
        print(kind, "done", flush=True)
