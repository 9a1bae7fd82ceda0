"""Training of TEC-FP, TEC-ELIC, TEC-TT and FlexTEC from nothing, at any size, on a CPU or a GPU.

Loss of a date: bits per pixel and band, plus ``distortion`` times the mean squared error in
standardised units (the published lambdas fit that form, see ``docs/training.md``). The reference
published no training code: schedule, optimiser and augmentation are ours. FlexTEC draws one
number of tokens k for a batch with P(k) = k / 136; the rate counts the first k tokens, the
synthesis sees learned mask tokens for the others, the next date's context all of them.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.models import published
from tec_zarr.terracodec import checkpoints, hub
from tec_zarr.terracodec.elic import ELIC
from tec_zarr.terracodec.flex import FlexTEC, draw_quality
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.layers import EntropyBottleneck
from tec_zarr.terracodec.statistics import STATISTICS
from tec_zarr.training.configs import FamilyConfig
from tec_zarr.training.data import BANDS
from tec_zarr.training.runs import (
    add_to_log,
    begin_run,
    check_loss,
    descend,
    hold_back,
    restore_checkpoint,
    save_checkpoint,
    share_of_rate,
    with_its_threads,
)
from tec_zarr.training.series import Series, SeriesSampler, read_series

__all__ = ["series_loss", "train_family"]

TAIL_WEIGHT = 1e-3
"""Of the loss that moves the bottlenecks' quantiles: they are parameters that nothing else moves,
and Adam does not see the scale, but the clipping of gradients does."""

OFFSET = 1000
"""DN that SSL4EO-S12 v1.1 carries on top."""


@dataclass(frozen=True)
class _StoredSeries:
    """One sample of an SSL4EO-S12 v1.1 file (time, band, y, x), read when it is drawn."""

    path: Path
    sample: int
    dates: int

    def __len__(self) -> int:
        return self.dates

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        import zarr

        with zarr.storage.ZipStore(self.path, mode="r") as store:
            dn = zarr.open_group(store, mode="r")["bands"][self.sample]
        return np.clip(dn.astype(np.int32) - OFFSET, 1, 65535).astype(np.uint16)[index]


class DateSampler(SeriesSampler):
    """Draws standardised crops of a few dates, oldest first; deterministic for a seed."""

    bands: int

    @cached_property
    def _cumulative(self) -> np.ndarray:
        weights = np.cumsum([s.weight for s in self.series])
        return weights / weights[-1]

    def draw(self, dates: int) -> np.ndarray:
        """(dates, bands, crop, crop) float32 in standardised units."""
        rng, crop = self.rng, self.crop
        place = self.series[int(np.searchsorted(self._cumulative, rng.random()))]
        cube = np.asarray(place.dn[np.sort(self._dates(len(place.dn), dates))])
        missing = [max(crop - n, 0) for n in cube.shape[2:]]
        cube = np.pad(cube, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])), "symmetric")
        top, left = (int(rng.integers(0, n - crop + 1)) for n in cube.shape[2:])
        cube = cube[:, :, top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            cube = cube[:, :, ::-1]
        cube = np.rot90(cube, rng.integers(0, 4), axes=(2, 3))
        statistics = STATISTICS[cube.shape[1]]
        mean, std = (np.float32(v)[:, None, None] for v in (statistics.mean, statistics.std))
        return (cube - mean) / std


def load_places(config: FamilyConfig) -> tuple[list[Series], list[Series]]:
    """Places to train on, and those held out; every twentieth where none is named.

    Raises
    ------
    UnsupportedArrayError
        No place with all bands of the model, and, for temporal models, two dates.
    """
    bands = published.PUBLISHED[config.model].bands
    kept, held = list(_stored(config, bands, held=False)), list(_stored(config, bands, held=True))
    fewest = min(config.sample_dates, 2)
    if bands == BANDS:
        kept += read_series(config, held=False, fewest=fewest)
        held += read_series(config, held=True, fewest=fewest)
    kept, held = ([s for s in places if s.present.all()] for places in (kept, held))
    if not kept:
        raise UnsupportedArrayError(
            f"nothing in {config.data} to train {config.model} on, what is held out aside: it "
            "takes " + "folders of .npz or " * (bands == BANDS)
            + f"SSL4EO-S12 zarr-zips of {bands} bands"
            + ", two dates or more" * (fewest > 1)
        )
    return hold_back(kept, held)


def _stored(config: FamilyConfig, bands: int, held: bool) -> Iterator[Series]:
    import zarr

    for item in map(Path, config.data):
        for path in [item] if item.suffix == ".zip" else sorted(item.glob("*.zarr.zip")):
            if (
                path.stem.startswith(config.left_out)
                or path.stem.startswith(config.held_out) != held
            ):
                continue
            with zarr.storage.ZipStore(path, mode="r") as store:
                shape = zarr.open_group(store, mode="r")["bands"].shape
            if len(shape) != 5 or shape[2] != bands:
                raise UnsupportedArrayError(
                    f"{path}: bands of shape {shape}, {config.model} needs {bands} on axis 2"
                )
            for sample in range(shape[0]):
                yield Series(_StoredSeries(path, sample, shape[1]), np.ones(bands, bool), 1.0)


def series_loss(
    net: nn.Module, series: Tensor, distortion: float, tokens: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of a batch, with its rate and its error.

    Parameters
    ----------
    net : FactorizedPrior, ELIC, TemporalTransformer or FlexTEC
    series : Tensor, shape (B, T, C, H, W)
        Standardised; FP and ELIC see every date for itself.
    distortion : float
        Lambda.
    tokens : int, optional
        FlexTEC: tokens that are sent of every date. None draws one number with P(k) = k / 136.

    Returns
    -------
    loss, rate, error : Tensor
        Scalars: rate + distortion * error; bits per pixel and band; mean squared error.
    """
    if isinstance(net, FactorizedPrior | ELIC):
        image, bits = net.rate_distortion(series.flatten(0, 1))
        rate, images = bits.sum(), image.view_as(series)
    else:
        chosen = () if not isinstance(net, FlexTEC) else (tokens or draw_quality(),)
        parts = list(net.dates(series, *chosen))
        rate = sum(bits.sum() for _, bits in parts)
        images = torch.stack([image for image, _ in parts], dim=1)
    rate = rate / series.numel()
    error = (images - series).square().mean()
    return rate + distortion * error, rate, error


def _tail_loss(net: nn.Module) -> Tensor | float:
    bottlenecks = [part for part in net.modules() if isinstance(part, EntropyBottleneck)]
    return TAIL_WEIGHT * sum(part.quantile_loss() for part in bottlenecks)


@torch.no_grad()
def validate(net: nn.Module, series: Tensor, config: FamilyConfig) -> dict[str, list[float]]:
    """(loss, bits per pixel and band, squared error) on fixed crops; by tokens for FlexTEC."""
    net.eval()
    out = {}
    for tokens in (1, 4, 16) if isinstance(net, FlexTEC) else (16,):
        parts = series_loss(net, series, config.distortion, tokens)
        out[str(tokens)] = [round(float(part), 5) for part in parts]
    return out


def build(config: FamilyConfig) -> nn.Module:
    """The network of a configuration, with random weights or those to start from.

    Raises
    ------
    TecError
        Both `network` and `start` are given, or `network` is not what the architecture takes.
    """
    if config.start and config.network:
        raise TecError(
            f"network and start are both given: the sizes are those of the weights in "
            f"{config.start}. Leave one out"
        )
    if config.start:
        return hub.load(config.model, path=config.start)
    module, name = checkpoints.CLASSES[config.architecture]
    cls = getattr(importlib.import_module(module), name)
    try:
        return cls(published.PUBLISHED[config.model].bands, **config.network)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        arguments = ", ".join(inspect.signature(cls).parameters)
        raise TecError(
            f"network = {dict(config.network)} makes no {name} ({error}); it may hold those of "
            f"{arguments} but bands"
        ) from error


@with_its_threads
def train_family(config: FamilyConfig) -> Path:
    """Run or resume a training.

    Leaves ``last.pt`` and ``log.jsonl`` in the run's folder, and the averaged (EMA) network as
    safetensors, which `tec_zarr.terracodec.load` takes as ``path``.

    Returns
    -------
    Path
        The weights.
    """
    torch.manual_seed(config.seed)
    out = begin_run(config)
    kept, held = load_places(config)
    net = build(config).to(config.device)
    average = copy.deepcopy(net)
    optimiser = torch.optim.Adam(net.parameters(), config.rate)
    checkpoint = out / "last.pt"
    start = restore_checkpoint(checkpoint, net, average, optimiser, config.device)
    torch.manual_seed(config.seed + start)
    sampler = DateSampler(kept, config.crop, config.seed + start)
    fixed = DateSampler(held, config.crop, seed=5).batch(min(8, config.batch), config.sample_dates)
    fixed = fixed.to(config.device)

    began = saved = time.monotonic()
    for step in range(start, config.steps):
        if step == start:
            add_to_log(out, {"step": step, "validation": validate(average, fixed, config)})
        for group in optimiser.param_groups:
            group["lr"] = config.rate * share_of_rate(step, config.steps, 100)
        series = sampler.batch(config.batch, config.sample_dates).to(config.device)
        loss, rate, error = series_loss(net.train(), series, config.distortion)
        total = loss + _tail_loss(net)
        check_loss(total.detach(), step + 1)
        descend(total, net, average, optimiser, min(config.ema, (step + 1) / (step + 10)))
        if (step + 1) % 50 == 0:
            parts = [round(float(part.detach()), 5) for part in (loss, rate, error)]
            seconds = round(time.monotonic() - began)
            add_to_log(out, {"step": step + 1, "loss": parts, "seconds": seconds})
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            add_to_log(out, {"step": step + 1, "validation": validate(average, fixed, config)})
        if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
            save_checkpoint(checkpoint, net, average, optimiser, step + 1)
            saved = time.monotonic()
    average = average.eval().cpu()
    for part in average.modules():
        if isinstance(part, EntropyBottleneck):
            part.update()
    weights = out / f"{config.model}.safetensors"
    checkpoints.save(average, weights)
    return weights
