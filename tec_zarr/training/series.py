"""Time series for training: reading them, and drawing samples from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tec_zarr.training.configs import FamilyConfig
from tec_zarr.training.data import BANDS, BANDS_10M, fill_nodata, read_npz

#: Numbers of dates of a sample. Most places have at least two.
LENGTHS = (2, 4)


@dataclass(frozen=True)
class Series:
    """Dates of one place with nodata filled: ``dn`` (T, 12, h, w), ``present`` (12,) bool."""

    dn: np.ndarray
    present: np.ndarray
    weight: float


def read_series(
    config: FamilyConfig,
    held: bool,
    smallest: int = 24,
    fewest: int = LENGTHS[0],
) -> list[Series]:
    """Read the places of the ``.npz`` folders: those held out, or those that are not.

    A place needs ``fewest`` dates with at most 10 % nodata, and ``smallest`` pixels a side.
    """
    out = []
    for path in sorted(p for folder in config.data for p in Path(folder).glob("*.npz")):
        kept_out = path.stem.startswith(config.held_out)
        if path.stem.startswith(config.left_out) or kept_out != held:
            continue
        cube, present = read_npz(path)
        cube = cube[: None if held else config.held_dates]
        if min(cube.shape[2:]) < smallest:
            continue
        good = []
        for date in cube:
            filled, valid = fill_nodata(date, present)
            if valid.mean() >= 0.9:
                good.append(np.where(present[:, None, None], filled, 0).astype(np.uint16))
        if len(good) >= fewest:
            area = cube.shape[2] * cube.shape[3]
            share = 0.25 if path.stem.startswith(config.discounted) else 1.0
            weight = share * area**0.5 * min(len(good), 8) ** 0.75
            out.append(Series(np.stack(good), present, weight))
    return out


class SeriesSampler:
    """Draws augmented crops of several dates, deterministic for a seed."""

    def __init__(self, series: list[Series], crop: int, seed: int | Sequence[int]):
        self.series, self.crop, self.rng = series, crop, np.random.default_rng(seed)
        self.long = [s for s in series if len(s.dn) >= 3] or series

    def _place(self, dates: int) -> Series:
        fitting = self.series if dates < 3 else self.long
        weights = np.array([s.weight for s in fitting])
        return fitting[int(self.rng.choice(len(fitting), p=weights / weights.sum()))]

    def _dates(self, count: int, dates: int) -> np.ndarray:
        """Draw indexes of dates near one another in time, in order or shuffled."""
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
        """Draw a crop, (dates, 12, crop, crop) float32 DN; absent bands are zero and come last."""
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
        # Each date gets gains of its own, for haze and sun.
        gains = gain * np.exp(rng.normal(0, 0.05, (dates, len(bands))))
        out = np.zeros((dates, BANDS, crop, crop), np.float32)
        out[:, : len(bands)] = cube * gains[:, :, None, None]
        return out

    def batch(self, size: int, dates: int) -> Tensor:
        return torch.from_numpy(np.stack([self.draw(dates) for _ in range(size)]))
