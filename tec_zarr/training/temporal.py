"""Training of the temporal networks of ``tec-tt-s2``, on the frozen transform of an image model.

A sample is a few dates of one place, in some order.  The first is coded by the image model; each
later one is predicted from those before it (:mod:`tec_zarr.models.s2_temporal`) and the temporal
networks learn to code what is left.  Predictions are made from what a decoder has, symbols are
really rounded: scales learn from the symbols themselves, means from noisy ones, so that they have
a gradient, and from the squared error wherever the symbol is zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.klt import ACTIVE_SPREAD, SPREAD_HIGH, SPREAD_LOW
from tec_zarr.models.registry import get_model
from tec_zarr.models.s2_net import (
    BLOCK,
    COMPONENTS,
    COND_LOW,
    GROUPS,
    MEAN_GRID,
    IntConv,
    Pass,
    S2Net,
    dead_zone,
    overlap,
    step_size,
    symbol_bits,
)
from tec_zarr.models.s2_temporal import (
    CLASS_OF,
    CLASS_STARTS,
    DCT,
    MOST_REFERENCES,
    WEIGHT_GRID,
    WEIGHT_LIMIT,
)
from tec_zarr.models.s2_temporal_net import TemporalNet
from tec_zarr.training.data import BANDS, BANDS_10M, _fill_nodata
from tec_zarr.training.loop import (
    LAMBDA,
    add_to_log,
    begin_run,
    descend,
    restore_checkpoint,
    save_checkpoint,
)

#: Dates of a sample: pairs, which most places have, and series.
LENGTHS = (2, 4)


@dataclass(frozen=True)
class TemporalConfig:
    """Everything a run depends on; written beside its checkpoints."""

    data: tuple[str, ...]
    out: str
    model: str = "tec-tt-s2"
    #: SHA-256 of the image model's weights; the newest without.
    image: str = ""
    steps: int = 9_000
    batch: int = 16
    crop: int = 64
    rate: float = 6e-4
    ema: float = 0.998
    seed: int = 0
    threads: int = 1
    checkpoint_seconds: float = 200.0
    validate_every: int = 400
    #: Places kept out of training, by prefix of the file name, to validate and measure on.
    held_out: tuple[str, ...] = (
        "worldcereal-classification__0000280849BAC91C",
        "openeo-photovoltaic__S2-2022-2011",
        "presto-worldcereal__belgium-12m",
    )
    #: Dates from this one on are held out of the longest series too.
    held_dates: int = 90
    left_out: tuple[str, ...] = ("glf-cr__ROIs2017",)
    #: Two hundred parcels of one kind (forest) count for less than their number.
    discounted: tuple[str, ...] = ("bark-bettle",)


@dataclass(frozen=True)
class Series:
    """Dates of one place, nodata filled: ``dn`` (T, 12, h, w), ``present`` (12,) bool."""

    dn: np.ndarray
    present: np.ndarray
    weight: float


def load_series(config: TemporalConfig, held: bool, smallest: int = 24) -> list[Series]:
    """Every place of the ``.npz`` folders with two good dates or more."""
    out = []
    for path in sorted(p for folder in config.data for p in Path(folder).glob("*.npz")):
        kept_out = path.stem.startswith(config.held_out)
        if path.stem.startswith(config.left_out) or kept_out != held:
            continue
        with np.load(path) as file:
            cube, present = file["dn"][: None if held else config.held_dates], file["present"]
        present = present.astype(bool)
        if min(cube.shape[2:]) < smallest:
            continue
        good = []
        for date in cube:
            filled, valid = _fill_nodata(date, present)
            if valid.mean() >= 0.9:
                good.append(np.where(present[:, None, None], filled, 0).astype(np.uint16))
        if len(good) >= LENGTHS[0]:
            area = cube.shape[2] * cube.shape[3]
            share = 0.25 if path.stem.startswith(config.discounted) else 1.0
            weight = share * area**0.5 * min(len(good), 8) ** 0.75
            out.append(Series(np.stack(good), present, weight))
    if not out:
        raise UnsupportedArrayError(
            f"no place of two dates or more in {config.data}: training needs time series"
        )
    return out


class SeriesSampler:
    """Draws augmented crops of several dates without end; deterministic for a seed."""

    def __init__(self, series: list[Series], crop: int, seed: int):
        self.series, self.crop, self.rng = series, crop, np.random.default_rng(seed)

    def _place(self, dates: int) -> Series:
        fitting = [s for s in self.series if len(s.dn) >= min(dates, 3)] or self.series
        weights = np.array([s.weight for s in fitting])
        return fitting[int(self.rng.choice(len(fitting), p=weights / weights.sum()))]

    def _dates(self, count: int, dates: int) -> np.ndarray:
        """Mostly near one another in time, in order or not."""
        rng = self.rng
        if count <= dates:
            return np.concatenate([rng.permutation(count), rng.integers(0, count, dates - count)])
        span = int(rng.integers(dates, min(count, 24) + 1))
        start = int(rng.integers(0, count - span + 1))
        chosen = np.sort(start + rng.choice(span, dates, replace=False))
        return rng.permutation(chosen) if rng.random() < 0.5 else chosen

    def _bands(self, present: np.ndarray) -> np.ndarray:
        rng, bands = self.rng, np.flatnonzero(present)
        chance = rng.random()
        if chance < 0.1 and np.isin(BANDS_10M, bands).all():
            return np.array(BANDS_10M)
        if chance < 0.25 and len(bands) >= 3:
            return np.sort(rng.choice(bands, rng.integers(3, len(bands) + 1), replace=False))
        return bands

    def draw(self, dates: int) -> np.ndarray:
        """(dates, 12, crop, crop) float32 DN; absent bands are zero."""
        rng, crop = self.rng, self.crop
        place = self._place(dates)
        bands = self._bands(place.present)
        cube = place.dn[self._dates(len(place.dn), dates)][:, bands]
        missing = [max(crop - n, 0) for n in cube.shape[2:]]
        cube = np.pad(cube, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), "symmetric")
        top, left = (int(rng.integers(0, n - crop + 1)) for n in cube.shape[2:])
        cube = cube[:, :, top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            cube = cube[:, :, ::-1]
        cube = np.rot90(cube, rng.integers(0, 4), axes=(2, 3))
        gain = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.08, len(bands)))
        # Haze and sun: each date has its own.
        gains = gain * np.exp(rng.normal(0, 0.05, (dates, len(bands))))
        out = np.zeros((dates, BANDS, crop, crop), np.float32)
        out[:, : len(bands)] = cube * gains[:, :, None, None]
        return out

    def batch(self, size: int, dates: int) -> Tensor:
        return torch.from_numpy(np.stack([self.draw(dates) for _ in range(size)]))


def thawed(frozen: S2Net) -> S2Net:
    """A trainable network with the values of frozen weights."""
    net = S2Net()
    net.load_state_dict(frozen.state_dict())
    for name, module in frozen.named_modules():
        if isinstance(module, IntConv):
            weight, exponent, bias = (part.double() for part in module.integers())
            step = torch.exp2(exponent)
            target = net.get_submodule(name)
            target.weight.data = (weight * step[:, None, None, None]).float()
            target.bias.data = (bias * step / module.grid).float()
    return net.eval().requires_grad_(False)


class Transform:
    """The image model's transform on batches: pictures, predictions, latents, all in float32."""

    def __init__(self, net: S2Net):
        self.net = net
        dct = DCT.float()
        self.dct = dct
        self.analysis = net.analysis.unflatten(1, (COMPONENTS, -1)) @ dct.T  # (320, 12, 64)
        self.synthesis = dct @ net.synthesis.unflatten(0, (COMPONENTS, -1))  # (12, 64, 320)

    def picture(self, dn: Tensor) -> Tensor:
        """(B, 12, 8 h, 8 w) DN to (B, 12, 64, h, w), without the mean."""
        lapped = overlap(dn - dn.mean((2, 3), keepdim=True), self.net.analysis_overlap)
        batch, bands, height, width = lapped.shape
        blocks = lapped.view(batch, bands, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
        blocks = blocks.permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
        return torch.einsum("gf,bcfhw->bcghw", self.dct, blocks)

    def prediction(self, picture: Tensor, references: list[Tensor]) -> Tensor:
        """Least-squares weighted sum of ``references`` for each band and class of frequency."""
        out = torch.zeros_like(picture)
        if not references:
            return out
        for number in range(len(CLASS_STARTS)):
            chosen = number == CLASS_OF
            known = torch.stack([r[:, :, chosen] for r in references], 2).flatten(3)
            target = picture[:, :, chosen].flatten(2)
            gram = known @ known.transpose(-1, -2)
            size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None]
            ridge = torch.diag_embed((0.01 * size + 1.0).expand(*size.shape[:-1], len(references)))
            weights = torch.linalg.solve(gram + ridge, (known @ target[..., None])[..., 0])
            weights = torch.round(weights * WEIGHT_GRID).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
            weighted = (weights[..., None] / WEIGHT_GRID * known).sum(2)
            out[:, :, chosen] = weighted.view_as(out[:, :, chosen])
        return out

    def basis(self, difference: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """KLT (B, 12, 12), its spreads (B, 12) as the networks take them, which are active."""
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
    """What coding one date took, (B,) each: objective with gradients, bits, weighted error."""

    objective: Tensor
    bits: Tensor
    error: Tensor
    decoded: Tensor


def code(latents: Tensor, passes: Iterator[Pass], weight: Tensor) -> Outcome:
    """Walk ``passes`` with hard symbols; ``weight`` (B, 320, 1, 1) is of squared steps."""
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


def sequence(
    transform: Transform, net: TemporalNet, dn: Tensor, quality: Tensor, references: list[int]
) -> list[Outcome]:
    """Code (B, T, 12, H, W) date by date, date t from the ``references[t]`` dates before it."""
    image, step = transform.net, step_size(quality)
    steps = image.steps(quality)
    weight = (steps / step[:, None, None, None]).square()
    out: list[Outcome] = []
    known: list[Tensor] = []
    exact = torch.autocast(dn.device.type, enabled=False)
    for date, count in enumerate(references):
        with torch.no_grad(), exact:
            picture = transform.picture(dn[:, date])
            prediction = transform.prediction(picture, known[len(known) - count :])
            difference = picture - prediction
            basis, spread, active = transform.basis(difference, step)
            condition = torch.cat([torch.round(8 * (quality[:, None] - 4.5)), spread], 1)
            latents = transform.latents(difference, basis, active, steps)
            latents = latents + image.encoder(latents, condition)
            past = transform.latents(prediction, basis, active, steps)
            past = torch.floor(past * MEAN_GRID + 0.5) / MEAN_GRID
        if count:
            outcome = code(latents, net.passes(condition, past), weight)
        else:
            with torch.no_grad():
                outcome = code(latents, image.passes(condition, *latents.shape[-2:]), weight)
        with torch.no_grad(), exact:
            whole = outcome.decoded.float()
            known.append(prediction + transform.decoded(whole, basis, active, steps))
        out.append(outcome)
    return out


@torch.no_grad()
def validate(
    transform: Transform, net: TemporalNet, batches: dict[float, Tensor]
) -> dict[str, list[list[float]]]:
    """Bits, error and their sum of the later dates, over those of the image model."""
    out = {}
    for level, dn in batches.items():
        quality = torch.full((len(dn),), level)
        torch.manual_seed(1)
        predicted = sequence(transform, net, dn, quality, list(range(dn.shape[1])))
        alone = sequence(transform, net, dn, quality, [0] * dn.shape[1])
        out[f"{level:g}"] = [
            [
                round(float(a.sum() / b.sum()), 4)
                for a, b in (
                    (p.bits, s.bits),
                    (p.error, s.error),
                    (p.bits + p.error, s.bits + s.error),
                )
            ]
            for p, s in zip(predicted[1:], alone[1:], strict=True)
        ]
    return out


def train_temporal(config: TemporalConfig) -> TemporalNet:
    """Run or resume; returns the averaged (EMA) network, leaves ``last.pt`` and ``log.jsonl``."""
    torch.set_num_threads(config.threads)
    out = begin_run(config)
    image = get_model("tec-s2", config.image or None)
    transform = Transform(thawed(image.net))
    net, average = TemporalNet(), TemporalNet()
    net.start_from(transform.net)
    optimiser = torch.optim.AdamW(net.parameters(), config.rate, (0.9, 0.98), weight_decay=0.0)
    average.load_state_dict(net.state_dict())
    checkpoint = out / "last.pt"
    start = restore_checkpoint(checkpoint, net, average, optimiser, "cpu")
    torch.manual_seed(config.seed + start)
    rng = np.random.default_rng(config.seed + start)
    sampler = SeriesSampler(load_series(config, held=False), config.crop, config.seed + start)
    held = SeriesSampler(load_series(config, held=True), config.crop, seed=5)
    batches = {level: held.batch(12, LENGTHS[-1]) for level in (2.0, 3.5, 5.0)}

    began = saved = time.monotonic()
    shares: list[float] = []
    for step in range(start, config.steps):
        cosine = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rate = config.rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * cosine)
        for group in optimiser.param_groups:
            group["lr"] = rate
        dates = LENGTHS[0] if rng.random() < 0.3 else LENGTHS[1]
        dn = sampler.batch(config.batch * LENGTHS[1] // dates, dates)
        top = torch.where(torch.rand(len(dn)) < 0.85, 5.0, 7.0)
        quality = 1 + top * torch.rand(len(dn))
        used = [int(rng.integers(1, min(t, MOST_REFERENCES) + 1)) for t in range(1, dates)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outcomes = sequence(transform, net, dn, quality, [0, *used])
        share = (step_size(quality) / 2400.0) ** 0.9 / config.crop**2
        loss = sum((o.objective * share).mean() for o in outcomes[1:]) / (dates - 1)
        descend(loss, net, average, optimiser, min(config.ema, (step + 1) / (step + 100)))
        cost = [float((o.bits + o.error).sum()) for o in outcomes]
        shares.append(sum(cost[1:]) / (len(cost) - 1) / cost[0])
        if (step + 1) % 50 == 0:
            seconds = round(time.monotonic() - began)
            mean = round(float(np.mean(shares[-50:])), 4)
            add_to_log(out, {"step": step + 1, "later over first date": mean, "seconds": seconds})
        if (step + 1) % config.validate_every == 0 or step in (start, config.steps - 1):
            add_to_log(out, {"step": step + 1, "validation": validate(transform, average, batches)})
            torch.manual_seed(config.seed + step + 1)
        if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
            save_checkpoint(checkpoint, net, average, optimiser, step + 1)
            saved = time.monotonic()
    return average


def tuning_cubes(config: TemporalConfig, dates: int = 6, side: int = 128) -> list[np.ndarray]:
    """Training series on which the probability tables are fitted, float32 DN (T, C, h, w)."""
    series = sorted(load_series(config, held=False), key=lambda s: -s.weight)[:40]
    out = []
    for number, place in enumerate(series):
        start = number * 7 % max(len(place.dn) - dates + 1, 1)
        cube = place.dn[start : start + dates][:, place.present, :side, :side]
        out.append(cube.astype(np.float32))
    return out
