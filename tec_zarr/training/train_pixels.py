"""Training of :class:`~tec_zarr.networks.pixel_net.PixelNet` on latents that an image model coded.

Latents stay as they are, so that streams keep their size: a new way from latents to pixels is
fitted to crops that were encoded with the model, at qualities from 1 to 8.  A crop's loss is its
squared error over that of the model's own float32 synthesis.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tec_zarr.models import klt
from tec_zarr.models.constants import BLOCK, CHANNELS, COMPONENTS, step_size
from tec_zarr.networks.image import TecS2, context_of
from tec_zarr.networks.pixel_net import PixelNet
from tec_zarr.training.configs import PixelConfig
from tec_zarr.training.data import Sampler, Window
from tec_zarr.training.runs import (
    Stepper,
    adam,
    add_to_log,
    begin_run,
    check_loss,
    restore_checkpoint,
    save_checkpoint,
    share_of_rate,
    with_its_threads,
)
from tec_zarr.training.train_image import draw_quality, split_windows
from tec_zarr.training.train_series import image_model


@dataclass(frozen=True)
class Coded:
    """Crops as a decoder has them, and what they were: arrays over N crops of P blocks."""

    latents: np.ndarray  # (N, P, 320) int16, 1/16 step
    condition: np.ndarray  # (N, 13) float32
    quality: np.ndarray  # (N,) float32
    dn: np.ndarray  # (N, 12, crop, crop) uint16, the bands there are first
    mean: np.ndarray  # (N, 12) float32, DN
    basis: np.ndarray  # (N, 12, 12) float32, components that are coded in rows
    #: Squared error of the model's own synthesis, a pixel and over the coded components.
    error: np.ndarray  # (N,) float32

    def batch(self, chosen: np.ndarray | slice) -> tuple[Tensor, ...]:
        """Latents (B, 320, h, w) in steps, condition, quality, components (B, 12, ...), error."""
        latents = torch.from_numpy(self.latents[chosen]).float() / 16
        side = self.dn.shape[2] // BLOCK
        centred = self.dn[chosen].astype(np.float32) - self.mean[chosen][:, :, None, None]
        components = self.basis[chosen] @ centred.reshape(len(centred), COMPONENTS, -1)
        return (
            latents.transpose(1, 2).unflatten(2, (side, side)),
            torch.from_numpy(self.condition[chosen]),
            torch.from_numpy(self.quality[chosen]),
            torch.from_numpy(components.reshape(centred.shape)),
            torch.from_numpy(self.error[chosen]),
        )


class _Nowhere:
    """Where symbols go whose size is of no interest."""

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None:
        pass


def coded_crops(
    model: TecS2, windows: list[Window], config: PixelConfig, count: int, seed: int
) -> Coded:
    """``count`` crops of ``windows``, encoded with ``model``."""
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(windows, config.crop, seed)
    rows = []
    while len(rows) < count:
        dn, *_, bands = sampler.draw()
        there = np.flatnonzero(dn.any((1, 2)))[: int(bands)]
        if not len(there):
            continue
        # Gains as for the image model, on the pixels themselves: a codec finds the KLT again.
        gain = float(torch.empty(1).normal_(0, 0.25, generator=generator).exp())
        pixels = np.clip(np.rint(dn[there] * gain), 1, 65535).astype(np.float32)
        quality = float(draw_quality(1, generator))
        header, latents = model.encode_date(pixels, quality, _Nowhere())
        units = np.frombuffer(latents, "<i4").reshape(-1, CHANNELS)
        if np.abs(units).max() >= 2**15:
            continue
        spectral, _ = klt.read(header, len(pixels), step_size(quality))
        used = spectral.used
        context = context_of(spectral, quality)
        own = np.empty_like(pixels)
        model.synthesis(units, CHANNELS, quality, context.condition, spectral, own)
        projected = spectral.basis[:, :used].T @ (own - pixels).reshape(len(pixels), -1)
        kept = np.zeros((COMPONENTS, *pixels.shape[1:]), np.uint16)
        mean, basis = np.zeros(COMPONENTS, np.float32), np.zeros((COMPONENTS,) * 2, np.float32)
        kept[: len(pixels)] = pixels
        mean[: len(pixels)] = spectral.mean
        basis[:used, : len(pixels)] = spectral.basis[:, :used].T
        error = np.float32(np.square(projected).sum(0).mean())
        condition = context.condition[0].numpy()
        rows.append(
            (units.astype(np.int16), condition, np.float32(quality), kept, mean, basis, error)
        )
    return Coded(*map(np.stack, zip(*rows, strict=True)))


def started(model: TecS2, coded: Coded, config: PixelConfig) -> PixelNet:
    """A net that begins with the model's linear synthesis, of the pairs that carry most."""
    net = PixelNet(config.width)
    own = model.net.synthesis.detach().unflatten(0, (COMPONENTS, -1))
    steps = model.net.steps(torch.from_numpy(coded.quality))[:, :, 0, 0].numpy()
    sizes = np.square(coded.latents / np.float32(16)).mean(1, dtype=np.float32) * steps**2
    worth = coded.basis.any(2).T @ (sizes / coded.error[:, None])
    worth = worth * own.square().sum(1).numpy()
    first = own.square().sum(1).argmax(0).numpy()
    worth[first, np.arange(CHANNELS)] = np.inf  # every channel is of some component
    with torch.no_grad():
        net.synthesis.copy_(own)
        net.overlap.copy_(model.net.synthesis_overlap)
        net.pairs.zero_()
        net.pairs.view(-1)[np.argsort(-worth, axis=None)[: config.pairs].copy()] = True
    return net


def pixel_loss(
    net: PixelNet,
    steps: Tensor,
    latents: Tensor,
    condition: Tensor,
    components: Tensor,
    error: Tensor,
) -> Tensor:
    """Squared error over the coded components and that of the model's synthesis, (B,)."""
    found = net(latents, steps, condition)
    there = components.flatten(2).any(2)
    squared = (found - components).square().mean((2, 3)) * there
    return squared.sum(1) / error


@torch.no_grad()
def validate(net: PixelNet, model: TecS2, held: Coded) -> dict[str, float]:
    """PSNR lost to the model's own synthesis, dB, by quality."""
    losses = []
    for start in range(0, len(held.quality), 16):
        latents, condition, quality, *rest = held.batch(slice(start, start + 16))
        losses.append(pixel_loss(net, model.net.steps(quality), latents, condition, *rest))
    lost = 10 * torch.log10(torch.cat(losses)).numpy()
    level = np.clip(held.quality.astype(int), 1, 6)
    return {str(q): round(float(lost[level == q].mean()), 4) for q in range(1, 7)}


@with_its_threads
def train_pixels(config: PixelConfig) -> tuple[TecS2, PixelNet]:
    """Run or resume; returns the image model and the averaged net."""
    torch.manual_seed(config.seed)
    out = begin_run(config)
    loaded = image_model(config.image)
    kept, held = split_windows(config)
    began = time.monotonic()
    coded = coded_crops(loaded, kept, config, config.samples, config.seed)
    watched = coded_crops(loaded, held, config, max(config.samples // 20, 16), config.seed + 1)
    add_to_log(out, {"samples": len(coded.quality), "seconds": round(time.monotonic() - began, 1)})
    net = started(loaded, coded, config)
    average = copy.deepcopy(net)
    slow = {"synthesis", "overlap"}
    named = list(net.named_parameters())
    groups = [[p for n, p in named if n not in slow], [p for n, p in named if n in slow]]
    optimiser = adam([{"params": group} for group in groups])
    checkpoint = out / "last.pt"
    start = restore_checkpoint(checkpoint, net, average, optimiser, config.device)
    stepper = Stepper(
        lambda *batch: pixel_loss(net, *batch).mean(),
        net,
        average,
        optimiser,
        (config.rate, config.transform_rate),
        config.device,
    )
    generator = np.random.default_rng((config.seed, start))
    began = saved = time.monotonic()
    seen = 0.0
    for step in range(start, config.steps):
        chosen = generator.choice(len(coded.quality), config.batch, replace=False)
        latents, condition, quality, *rest = coded.batch(chosen)
        batch = loaded.net.steps(quality), latents, condition, *rest
        decay = min(config.ema, (step + 1) / (step + 100))
        share = share_of_rate(step, config.steps, 200)
        loss = stepper(share, decay, *(part.to(config.device) for part in batch))
        check_loss(loss, step + 1)
        if (step + 1) % 10 == 0:
            seen = float(loss) if seen == 0 else 0.9 * seen + 0.1 * float(loss)
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            elapsed = round(time.monotonic() - began, 1)
            line = {"step": step + 1, "loss": round(seen, 5), "seconds": elapsed}
            add_to_log(out, {**line, "lost_db": validate(average, loaded, watched)})
        if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
            save_checkpoint(checkpoint, net, average, optimiser, step + 1)
            saved = time.monotonic()
    return loaded, average.cpu()
