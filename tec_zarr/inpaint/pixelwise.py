"""Methods that fill each pixel from its own dates: linear, previous and median.

`How` holds the options of a filling for these methods and for those of
:mod:`tec_zarr.inpaint.tiles`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tec_zarr.inpaint.samples import COVERAGE, FEWEST


@dataclass(frozen=True)
class How:
    """Options of `tec_zarr.inpaint_clouds` that the methods need."""

    method: str
    model: Any
    uncertain: bool
    progress: bool
    smooth: bool
    dates: Any


def fill_pixels(
    cube: np.ndarray,
    clear: np.ndarray,
    hidden: np.ndarray,
    pages: np.ndarray,
    moments: np.ndarray,
    how: How,
) -> None:
    """Write estimates of (T, ...), and half widths if wanted, into ``pages`` (1 or 2, T, ...).

    The half width of a date is measured on its clear pixels that can be estimated from other
    dates. A date with too few of them gets the mean half width of the other dates.
    """
    before = nearest_clear(clear)
    last = len(cube) - 1
    after = last - nearest_clear(clear[::-1])[::-1]
    after[after > last] = -1
    none = np.full(cube.shape[1:], -1, np.int32)
    method = METHODS[how.method]
    errors: dict[int, float] = {}

    def estimate(date: int) -> np.ndarray:
        """Estimate a date from all others, and record its error if half widths are wanted."""
        earlier = before[date - 1] if date else none
        later = after[date + 1] if date < last else none
        value = method(Series(cube, clear, moments, date, earlier, later))
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
    """Index of the last clear date up to each date, -1 if there is none."""
    dates = np.arange(len(clear), dtype=np.int32).reshape(-1, *([1] * (clear.ndim - 1)))
    return np.maximum.accumulate(np.where(clear, dates, np.int32(-1)), axis=0)


@dataclass(frozen=True)
class Series:
    """A cube and a date of it to estimate.

    ``earlier`` and ``later`` hold, for each pixel, the nearest clear date on either side, or -1.
    """

    cube: np.ndarray
    clear: np.ndarray
    moments: np.ndarray
    date: int
    earlier: np.ndarray
    later: np.ndarray

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values at the dates ``index``, whether there is such a date, and its distance in time.

        ``index`` holds a date for each pixel, or -1; values without a date are 0.
        """
        known = index >= 0
        found = np.maximum(index, 0)
        value = np.take_along_axis(self.cube, found[None], axis=0)[0].astype(np.float64)
        gap = np.abs(self.moments[found] - self.moments[self.date])
        return np.where(known, value, 0.0), known, gap


def previous(series: Series) -> np.ndarray:
    """Value of the nearest clear date before, NaN if there is none."""
    value, known, _ = series.take(series.earlier)
    return np.where(known, value, np.nan)


def linear(series: Series) -> np.ndarray:
    """Value on the line between the nearest clear dates; that of one side if the other has none."""
    value, known, gap = series.take(series.earlier)
    value2, known2, gap2 = series.take(series.later)
    span = np.where(gap + gap2 > 0, gap + gap2, 1)
    with np.errstate(invalid="ignore", over="ignore"):  # infinities
        mixed = (value * gap2 + value2 * gap) / span
    value = np.where(known & known2, mixed, np.where(known, value, value2))
    return np.where(known | known2, value, np.nan)


def median(series: Series) -> np.ndarray:
    """Median of the clear dates of each pixel but the date itself, NaN if there is none."""
    cube, clear = series.cube, series.clear.copy()
    clear[series.date] = False
    ranked = np.sort(np.where(clear, cube.astype(np.float64), np.inf), axis=0)
    count = clear.sum(axis=0)
    picks = [np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(cube) - 1)]
    low, high = (np.take_along_axis(ranked, pick[None], axis=0)[0] for pick in picks)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, np.nan)


METHODS: dict[str, Callable[[Series], np.ndarray]] = {
    "linear": linear, "previous": previous, "median": median,
}  # fmt: skip
"""The methods by the names that users type."""
