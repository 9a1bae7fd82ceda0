"""Methods that fill each pixel from its own dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tec_zarr.inpaint.samples import COVERAGE, FEWEST


@dataclass(frozen=True)
class How:
    method: str
    model: Any
    uncertain: bool
    progress: bool


def fill_pixels(
    cube: np.ndarray,
    clear: np.ndarray,
    hidden: np.ndarray,
    pages: np.ndarray,
    moments: np.ndarray,
    how: How,
) -> None:
    """Write estimates of (T, ...) into ``pages`` (1 or 2, T, ...).

    How far an estimate is off is measured where the date is clear, on the pixels that can be
    estimated from other dates; for dates without any, on the others.
    """
    before = nearest_clear(clear)
    last = len(cube) - 1
    after = last - nearest_clear(clear[::-1])[::-1]
    after[after > last] = -1
    none = np.full(cube.shape[1:], -1, np.int32)
    errors: dict[int, float] = {}

    def estimate(date: int) -> np.ndarray:
        """From all dates but this one; of uncertain methods, also how far it is off."""
        if how.method == "median":
            others = clear.copy()
            others[date] = False
            value = _median(cube, others)
        else:
            value, known, gap = _take(cube, before[date - 1] if date else none, moments, date)
            if how.method == "linear":
                later = after[date + 1] if date < last else none
                value2, known2, gap2 = _take(cube, later, moments, date)
                span = np.where(gap + gap2 > 0, gap + gap2, 1)
                with np.errstate(invalid="ignore", over="ignore"):  # infinities
                    mixed = (value * gap2 + value2 * gap) / span
                value = np.where(known & known2, mixed, np.where(known, value, value2))
                known = known | known2
            value = np.where(known, value, np.nan)
        both = clear[date] & np.isfinite(value)
        if how.uncertain and np.count_nonzero(both) >= FEWEST:
            errors[date] = float(np.quantile(np.abs(value - cube[date])[both], COVERAGE))
        return value

    masked = [date for date in range(len(cube)) if hidden[date].any()]
    for date in masked:
        pages[0, date] = estimate(date)
    if not how.uncertain:
        return
    if not errors.keys() >= set(masked):
        for date in set(range(len(cube))) - set(masked):
            estimate(date)
    usual = float(np.mean(list(errors.values()))) if errors else np.nan
    for date in masked:
        known = np.isfinite(pages[0, date])
        pages[1, date] = np.where(known, errors.get(date, usual), np.nan)


def nearest_clear(clear: np.ndarray) -> np.ndarray:
    """Index of the last clear date up to each date, -1 where there is none yet."""
    dates = np.arange(len(clear), dtype=np.int32).reshape(-1, *([1] * (clear.ndim - 1)))
    return np.maximum.accumulate(np.where(clear, dates, np.int32(-1)), axis=0)


def _take(
    cube: np.ndarray, index: np.ndarray, moments: np.ndarray, date: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the dates ``index``, where there are such, and their distance in time."""
    known = index >= 0
    found = np.maximum(index, 0)
    value = np.take_along_axis(cube, found[None], axis=0)[0].astype(np.float64)
    return np.where(known, value, 0.0), known, np.abs(moments[found] - moments[date])


def _median(cube: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Median of the clear dates, NaN where there is none."""
    ranked = np.sort(np.where(clear, cube.astype(np.float64), np.inf), axis=0)
    count = clear.sum(axis=0)
    picks = [np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(cube) - 1)]
    low, high = (np.take_along_axis(ranked, pick[None], axis=0)[0] for pick in picks)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, np.nan)
