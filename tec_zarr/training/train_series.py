"""Training of the temporal networks of ``tec-tt-s2``, on the frozen transform of an image model.

A sample is a few dates of one place, in any order.  Each date but the first is predicted from dates
before it (:mod:`tec_zarr.networks.series`).  The temporal networks learn to code the difference.
Predictions use quantised dates, as in a decoder, but quantised without the networks' means.  So all
dates form one batch for the networks.  Symbols are rounded without noise.  Scales learn from these
symbols.  Means learn from noisy symbols, which give a gradient, and from the squared error where
the symbol is zero.  The refinement learns from the error of the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tec_zarr.models.constants import BLOCK, COMPONENTS, COND_LOW, GROUPS, MEAN_GRID, step_size
from tec_zarr.models.klt import ACTIVE_SPREAD, SPREAD_HIGH, SPREAD_LOW
from tec_zarr.models.registry import get_model
from tec_zarr.models.temporal_section import (
    CLASS_STARTS,
    MOST_REFERENCES,
    WEIGHT_GRID,
    WEIGHT_LIMIT,
)
from tec_zarr.networks.checks import Net
from tec_zarr.networks.files import net_tensors
from tec_zarr.networks.image import TecS2
from tec_zarr.networks.image_net import (
    IntConv,
    Pass,
    S2Net,
    dead_zone,
    full_precision,
    overlap,
    symbol_bits,
)
from tec_zarr.networks.references import CLASS_OF
from tec_zarr.networks.series import DCT
from tec_zarr.networks.series import load as load_weights
from tec_zarr.networks.series_net import TemporalNet
from tec_zarr.training.configs import TemporalConfig
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
from tec_zarr.training.series import LENGTHS, Series, SeriesSampler, load_series, read_series

OLDER_IMAGE = "029756bd"
"""The newest weights of the image model that temporal networks can be built on."""


def image_model(sha256: str) -> TecS2:
    """Return the image model with the networks of the weights ``sha256``.

    If ``sha256`` is empty, these are the newest weights whose latents the temporal model can use.
    If those weights only add pixels, the result is the model that they build on.
    """
    found = get_model("tec-s2", sha256 or OLDER_IMAGE)
    assert isinstance(found, TecS2)
    if found.networks_sha256 == found.weights_sha256:
        return found
    return image_model(found.networks_sha256)


def split_series(config: TemporalConfig) -> tuple[list[Series], list[Series]]:
    """Return the places to train on and the places that are held out."""
    return hold_back(load_series(config), read_series(config, held=True))


def thawed(frozen: Net, net: Net) -> Net:
    """Copy frozen weights into ``net``, a network of the same sizes that can be trained."""
    net.load_state_dict(frozen.state_dict())
    for name, module in frozen.named_modules():
        if isinstance(module, IntConv):
            weight, exponent, bias = (part.double() for part in module.integers())
            step = torch.exp2(exponent)
            target = net.get_submodule(name)
            target.weight.data = (weight * step[:, None, None, None]).float()
            target.bias.data = (bias * step / module.grid).float()
    return net


class Transform:
    """The image model's transform on batches in float32: pictures, predictions and latents."""

    def __init__(self, net: S2Net):
        self.net = net
        dct = DCT.float().to(net.analysis.device)
        self.dct = dct
        self.classes = [
            torch.nonzero(number == CLASS_OF)[:, 0].to(dct.device)
            for number in range(len(CLASS_STARTS))
        ]
        self.analysis = net.analysis.unflatten(1, (COMPONENTS, -1)) @ dct.T  # (320, 12, 64)
        self.synthesis = dct @ net.synthesis.unflatten(0, (COMPONENTS, -1))  # (12, 64, 320)

    def picture(self, dn: Tensor) -> Tensor:
        """Transform (B, 12, 8 h, 8 w) DN to pictures (B, 12, 64, h, w) without the mean."""
        lapped = overlap(dn - dn.mean((2, 3), keepdim=True), self.net.analysis_overlap)
        batch, bands, height, width = lapped.shape
        blocks = lapped.view(batch, bands, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        blocks = blocks.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
        return torch.einsum("gf,bcfhw->bcghw", self.dct, blocks)

    def prediction(self, picture: Tensor, references: list[Tensor]) -> Tensor:
        """Return the weighted sum of ``references`` that is nearest to ``picture``.

        Weights are fitted by least squares for each band and class of frequency.
        """
        out = torch.zeros_like(picture)
        if not references:
            return out
        for chosen in self.classes:
            known = torch.stack([r[:, :, chosen] for r in references], 2).flatten(3)
            target_blocks = picture[:, :, chosen]
            target = target_blocks.flatten(2)
            gram = known @ known.transpose(-1, -2)
            size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
            ridge = torch.diag_embed((0.01 * size + 1.0).expand(*size.shape[:-1], len(references)))
            weights = torch.linalg.solve(gram + ridge, (known @ target[..., None])[..., 0])
            weights = torch.round(weights * WEIGHT_GRID).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
            weighted = (weights[..., None] / WEIGHT_GRID * known).sum(2)
            out[:, :, chosen] = weighted.view_as(target_blocks)
        return out

    def basis(self, difference: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the KLT of a difference, its spreads, and its active components.

        They are (B, 12, 12), (B, 12) and (B, 12). Spreads are in the networks' units. Active
        components, which are coded, have the value 1, others 0.
        """
        flat = difference.flatten(2).double()
        values, basis = torch.linalg.eigh(flat @ flat.transpose(1, 2) / flat.shape[2])
        values, basis = values.flip(-1), basis.flip(-1)
        largest = basis.abs().argmax(1, keepdim=True)
        basis = basis * torch.where(basis.gather(1, largest) < 0, -1.0, 1.0)
        spread = torch.round(4 * torch.log2(values.clamp_min(1e-6).sqrt() / step[:, None]))
        spread = spread.clamp(SPREAD_LOW, SPREAD_HIGH)
        active = spread > ACTIVE_SPREAD
        spread = torch.where(active, spread.clamp_min(COND_LOW), COND_LOW)
        return basis.float(), spread.float(), active.float()

    def latents(self, picture: Tensor, basis: Tensor, active: Tensor, steps: Tensor) -> Tensor:
        components = torch.einsum("bck,bcfhw->bkfhw", basis, picture)
        components = components * active[:, :, None, None, None]
        return torch.einsum("mkf,bkfhw->bmhw", self.analysis, components) / steps

    def decoded(self, latents: Tensor, basis: Tensor, active: Tensor, steps: Tensor) -> Tensor:
        components = torch.einsum("kfm,bmhw->bkfhw", self.synthesis, latents * steps)
        components = components * active[:, :, None, None, None]
        return torch.einsum("bck,bkfhw->bcfhw", basis, components)


@dataclass(frozen=True)
class Outcome:
    """Result of coding dates.

    Objective (with gradients), bits and weighted error are (B,); decoded latents are (B, 320, h,
    w).
    """

    objective: Tensor
    bits: Tensor
    error: Tensor
    decoded: Tensor


def code(latents: Tensor, passes: Iterator[Pass], weight: Tensor) -> Outcome:
    """Code latents pass by pass with rounded symbols; ``weight`` (B, 320, 1, 1) is for squared
    errors in steps.
    """
    groups = latents.split(GROUPS, 1)
    decoded, means, scales = ([torch.zeros_like(g) for g in groups] for _ in range(3))
    for step in passes:
        g = step.group
        residual = dead_zone(groups[g] - step.mean, step.scale)
        step.decoded = ((torch.floor(residual + 0.5) + step.mean) * step.mask).detach()
        decoded[g] = decoded[g] + step.decoded
        means[g] = means[g] + step.mean * step.mask
        scales[g] = scales[g] + step.scale * step.mask
    scale, mean, whole = torch.cat(scales, 1), torch.cat(means, 1), torch.cat(decoded, 1)
    residual = dead_zone(latents - mean, scale)
    symbols = torch.floor(residual.detach() + 0.5)
    bits = symbol_bits(symbols, scale)
    noisy = symbol_bits(residual + torch.rand_like(residual) - 0.5, scale.detach())
    silent = LAMBDA * weight * (latents - mean).square() * (symbols == 0)
    error = LAMBDA * weight * (latents - whole).square()
    parts = (bits + noisy + silent, bits.detach(), error.detach())
    return Outcome(*(part.sum((1, 2, 3)) for part in parts), whole)


class Dates(NamedTuple):
    """Dates (B, ...) as inputs of the networks, each in the basis of its own difference."""

    latents: Tensor  # (B, 320, h, w), before rounding, in steps
    past: Tensor  # (B, 320, h, w), latents of the prediction, in steps
    condition: Tensor  # (B, 13)
    steps: Tensor  # (B, 320, 1, 1), DN
    step: Tensor  # (B,), DN
    difference: Tensor  # (B, 12, 64, h, w), picture minus prediction, DN
    basis: Tensor  # (B, 12, 12)
    active: Tensor  # (B, 12)

    @property
    def weight(self) -> Tensor:
        """Weight of squared errors in steps, (B, 320, 1, 1)."""
        return (self.steps / self.step[:, None, None, None]).square()


def rounded(date: Dates) -> Tensor:
    """Quantise latents with a dead zone around zero, without the networks' predictions."""
    size = date.latents.abs()
    return date.latents.sign() * torch.floor(size + 0.4)


@torch.no_grad()
def dates_of(
    transform: Transform,
    dn: Tensor,
    quality: Tensor,
    references: list[int],
    quantise: Callable[[Dates], Tensor],
) -> list[Dates]:
    """Prepare DN (B, T, 12, H, W) date by date.

    Date t is predicted from the ``references[t]`` dates before it.  ``quantise`` returns the
    decoded latents of a date, from which later dates are predicted.
    """
    image, step = transform.net, step_size(quality)
    steps = image.steps(quality)
    out: list[Dates] = []
    known: list[Tensor] = []
    for number, count in enumerate(references):
        picture = transform.picture(dn[:, number])
        prediction = transform.prediction(picture, known[len(known) - count :])
        difference = picture - prediction
        basis, spread, active = transform.basis(difference, step)
        condition = torch.cat([torch.round(8 * (quality[:, None] - 4.5)), spread], 1)
        latents = transform.latents(difference, basis, active, steps)
        latents = latents + image.encoder(latents, condition)
        past = transform.latents(prediction, basis, active, steps)
        past = torch.floor(past * MEAN_GRID + 0.5) / MEAN_GRID
        date = Dates(latents, past, condition, steps, step, difference, basis, active)
        out.append(date)
        known.append(prediction + transform.decoded(quantise(date), basis, active, steps))
    return out


def picture_error(transform: Transform, date: Dates, whole: Tensor) -> Tensor:
    """Return the squared error of the pictures of decoded latents, (B,), in bits."""
    corrected = (whole + transform.net.decoder(whole, date.condition)).float()
    with full_precision(corrected):
        decoded = transform.decoded(corrected, date.basis, date.active, date.steps)
        error = (decoded - date.difference).square().sum((1, 2, 3, 4))
    return LAMBDA * error / date.step.square()


def coded_date(transform: Transform, net: TemporalNet, date: Dates) -> tuple[Outcome, Tensor]:
    """Code dates with the temporal networks; also return the error of refined pictures, (B,)."""
    coded = code(date.latents, net.passes(date.condition, date.past), date.weight)
    refined = net.refine.refined(coded.decoded, date.past, date.condition)
    return coded, picture_error(transform, date, refined)


@torch.no_grad()
def validate(
    transform: Transform, net: TemporalNet, batches: dict[float, Tensor]
) -> dict[str, list[list[float]]]:
    """Return bits, error and their sum for each date, divided by those of the image model.

    The keys are the qualities of ``batches``.
    """
    image, out = transform.net, {}
    for level, dn in batches.items():
        quality = torch.full((len(dn),), level, device=dn.device)
        torch.manual_seed(1)
        sums: list[list[list[float]]] = [[], []]

        def temporal(date: Dates, kept: list = sums[0]) -> Tensor:
            coded, error = coded_date(transform, net, date)
            kept.append([float(coded.bits.sum()), float(error.sum())])
            return coded.decoded

        def alone(date: Dates, kept: list = sums[1]) -> Tensor:
            passes = image.passes(date.condition, *date.latents.shape[-2:])
            coded = code(date.latents, passes, date.weight)
            error = picture_error(transform, date, coded.decoded)
            kept.append([float(coded.bits.sum()), float(error.sum())])
            return coded.decoded

        dates_of(transform, dn, quality, list(range(dn.shape[1])), temporal)
        dates_of(transform, dn, quality, [0] * dn.shape[1], alone)
        out[f"{level:g}"] = [
            [round(a / b, 4) for a, b in ((p[0], s[0]), (p[1], s[1]), (sum(p), sum(s)))]
            for p, s in zip(*sums, strict=True)
        ]
    return out


@with_its_threads
def train_temporal(config: TemporalConfig) -> TemporalNet:
    """Run or resume a training, and return the averaged (EMA) network.

    The run's folder holds ``last.pt`` and ``log.jsonl``.
    """
    out = begin_run(config)
    image = image_model(config.image)
    frozen = thawed(image.net, S2Net()).eval().requires_grad_(False)
    torch.manual_seed(config.seed)
    net, average = (TemporalNet() for _ in range(2))
    start_net: S2Net | TemporalNet = frozen
    if config.start:
        with reading_start(config.start):
            known = load_weights(Path(config.start)).net
            start_net = thawed(known, TemporalNet.like(net_tensors(known)))
    net.start_from(start_net)
    transform = Transform(frozen.to(config.device))
    net, average = net.to(config.device), average.to(config.device)
    average.load_state_dict(net.state_dict())
    optimiser = adam(net.parameters())
    checkpoint = out / "last.pt"
    start = restore_checkpoint(checkpoint, net, average, optimiser, config.device)
    torch.manual_seed(config.seed + start)
    rng = np.random.default_rng(config.seed + start)
    series, held_out = split_series(config)
    # Batches have samples of two or of four dates. Both kinds have the same number of dates.
    count, most = config.batch, LENGTHS[-1]
    shapes = [(count * most // dates, dates) for dates in LENGTHS]

    def batches_of(size: int, dates: int) -> Prefetch:
        samplers = [
            SeriesSampler(series, config.crop, (config.seed, start, dates, n))
            for n in range(config.workers)
        ]
        return Prefetch([partial(s.batch, size, dates) for s in samplers])

    batches = {dates: batches_of(size, dates) for size, dates in shapes}
    held = SeriesSampler(held_out, config.crop, seed=5)
    validation = {level: held.batch(12, most).to(config.device) for level in (2.0, 3.5, 5.0)}

    def loss(*parts: Tensor) -> Tensor:
        date = Dates(*parts)
        coded, error = coded_date(transform, net, date)
        return ((coded.objective + error) * (date.step / 2400.0) ** 0.9).mean() / config.crop**2

    stepper = Stepper(loss, net, average, optimiser, (config.rate,), config.device)
    began = saved = time.monotonic()
    seen = 0.0
    for step in range(start, config.steps):
        dates = LENGTHS[0] if rng.random() < 0.3 else most
        dn = batches[dates].get().to(config.device)
        top = torch.where(torch.rand(len(dn)) < 0.85, 5.0, 7.0)
        quality = (1 + top * torch.rand(len(dn))).to(config.device)
        used = [int(rng.integers(1, min(t, MOST_REFERENCES) + 1)) for t in range(1, dates)]
        prepared = dates_of(transform, dn, quality, [0, *used], rounded)
        together = [torch.cat(parts) for parts in zip(*prepared, strict=True)]
        decay = min(config.ema, (step + 1) / (step + 100))
        value = stepper(share_of_rate(step, config.steps, 100), decay, *together)
        check_loss(value, step + 1)
        if (step + 1) % 10 == 0:
            seen = float(value) if seen == 0 else 0.9 * seen + 0.1 * float(value)
        if (step + 1) % 50 == 0:
            seconds = round(time.monotonic() - began)
            add_to_log(out, {"step": step + 1, "loss": round(seen, 5), "seconds": seconds})
        if (step + 1) % config.validate_every == 0 or step in (start, config.steps - 1):
            found = validate(transform, average, validation)
            add_to_log(out, {"step": step + 1, "validation": found})
            torch.manual_seed(config.seed + step + 1)
        if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
            save_checkpoint(checkpoint, net, average, optimiser, step + 1)
            saved = time.monotonic()
    return average


def tuning_cubes(config: TemporalConfig, dates: int = 6, side: int = 128) -> list[np.ndarray]:
    """Return training series for the fit of the probability tables, float32 DN (T, C, h, w)."""
    series = sorted(split_series(config)[0], key=lambda s: -s.weight)[:40]
    out = []
    for number, place in enumerate(series):
        start = number * 7 % max(len(place.dn) - dates + 1, 1)
        cube = place.dn[start : start + dates][:, place.present, :side, :side]
        out.append(cube.astype(np.float32))
    return out
