"""Training of the embedded default model: one command, CPU or GPU, resumable.

Loss per tile: ``(bits + 8 SSE / step^2) * weight(quality)`` with quality drawn from 1 to 8.  The
factor 8 is where a uniform quantiser of that step sits on its rate-distortion curve (dR/dD = 6 /
(ln 2 step^2) at high rate, a little less with dead zones), the weight evens out the levels' share
of the gradient.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tec_zarr.models.constants import COND_HIGH, COND_LOW, LEVELS, step_size
from tec_zarr.networks.image_net import S2Net
from tec_zarr.training.configs import Config
from tec_zarr.training.data import Sampler, Window, windows
from tec_zarr.training.initialise import initialise
from tec_zarr.training.runs import (
    LAMBDA,
    Prefetch,
    Stepper,
    adam,
    add_to_log,
    begin_run,
    check_loss,
    hold_back,
    reading_start,
    restore_checkpoint,
    save_checkpoint,
    share_of_rate,
    with_its_threads,
)


def condition_vector(sigma: Tensor, quality: Tensor) -> Tensor:
    """(B, 13) whole numbers: eighths of quality over 4.5, quarter octaves of sigma over step."""
    spread = torch.log2(sigma.clamp_min(1e-3) / step_size(quality)[:, None])
    spread = torch.round(4 * spread).clamp(COND_LOW, COND_HIGH)
    return torch.cat([torch.round(8 * (quality[:, None] - 4.5)), spread], 1)


def tile_loss(
    net: S2Net, components: Tensor, sigma: Tensor, bands: Tensor, quality: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Bits per pixel and mean squared error over the present bands, per tile, and the loss."""
    condition = condition_vector(sigma, quality)
    coded = net(components, quality, condition)
    present = torch.arange(components.shape[1], device=bands.device)[None] < bands[:, None]
    pixels = components.shape[2] * components.shape[3]
    error = (coded.components.float() - components).square().sum((2, 3)) * present
    sse = error.sum(1) / pixels
    bpp = coded.bits / pixels
    step = step_size(quality)
    loss = (bpp + LAMBDA * sse / step.square()) * (step / 2400.0) ** 0.9
    return loss.mean(), bpp / bands, sse / bands


def draw_quality(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Four of five between 1 and 6, where archives are written, the rest anywhere up to 8."""
    top = torch.where(torch.rand(count, generator=generator) < 0.8, 6.0, float(LEVELS))
    return 1 + (top - 1) * torch.rand(count, generator=generator)


def split_windows(config: Config) -> tuple[list[Window], list[Window]]:
    usable = [
        replace(w, weight=0.4 * w.weight) if w.source.startswith(config.discounted) else w
        for path in config.data
        for w in windows(Path(path))
        if not w.source.startswith(config.left_out)
    ]
    held = [w for w in usable if w.source.startswith(config.held_out)]
    kept = [w for w in usable if not w.source.startswith(config.held_out)]
    return hold_back(kept, held)


@torch.no_grad()
def validate(net: S2Net, held: list[Window], config: Config) -> dict[str, list[float]]:
    """Estimated (bpppb, PSNR) on fixed crops of held-out places at qualities 2 .. 7."""
    sampler = Sampler(held, config.crop, seed=1, drop_bands=False)
    components, sigma, bands = sampler.batch(24).rotated(config.device)
    curve = {}
    for level in range(2, 8):
        quality = torch.full((len(bands),), float(level), device=config.device)
        _, bpppb, mse = tile_loss(net, components, sigma, bands, quality)
        curve[str(level)] = [
            round(float(bpppb.mean()), 5),
            round(10 * math.log10(1e8 / float(mse.mean())), 3),
        ]
    return curve


@with_its_threads
def train(config: Config) -> S2Net:
    """Run or resume; returns the averaged (EMA) network, leaves ``last.pt`` and ``log.jsonl``."""
    torch.manual_seed(config.seed)
    out = begin_run(config)
    kept, held = split_windows(config)
    net = S2Net()
    checkpoint = out / "last.pt"
    if config.start:
        with reading_start(config.start):
            net.load_state_dict(torch.load(config.start, weights_only=True))
    elif not checkpoint.exists():
        sampler = Sampler(kept, config.crop, config.seed + 1)
        initialise(net, sampler, config.initial_samples)
    net = net.to(config.device)
    slow = {"analysis_overlap", "synthesis_overlap", "analysis", "synthesis"}
    named = list(net.named_parameters())
    groups = [[p for n, p in named if n not in slow], [p for n, p in named if n in slow]]
    optimiser = adam([{"params": group} for group in groups])
    average = S2Net().to(config.device)
    average.load_state_dict(net.state_dict())
    start = restore_checkpoint(checkpoint, net, average, optimiser, config.device)
    stepper = Stepper(
        lambda *batch: tile_loss(net, *batch)[0],
        net,
        average,
        optimiser,
        (config.rate, config.transform_rate),
        config.device,
    )
    makers = [
        partial(Sampler(kept, config.crop, (config.seed, 2 + start, n)).batch, config.batch)
        for n in range(config.workers)
    ]
    batches = Prefetch(makers)

    began = saved = time.monotonic()
    seen = 0.0
    for step in range(start, config.steps):
        components, sigma, bands = batches.get().rotated(config.device)
        quality = draw_quality(len(bands)).to(config.device)
        decay = min(config.ema, (step + 1) / (step + 100))
        share = share_of_rate(step, config.steps, 200)
        loss = stepper(share, decay, components, sigma, bands, quality)
        check_loss(loss, step + 1)
        if (step + 1) % 10 == 0:
            seen = float(loss) if seen == 0 else 0.9 * seen + 0.1 * float(loss)
        if (step + 1) % 50 == 0:
            elapsed = round(time.monotonic() - began, 1)
            add_to_log(out, {"step": step + 1, "loss": round(seen, 5), "seconds": elapsed})
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps or step == start:
            curve = validate(average, held, config)
            add_to_log(out, {"step": step + 1, "validation": curve})
        if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
            save_checkpoint(checkpoint, net, average, optimiser, step + 1)
            saved = time.monotonic()
    return average
