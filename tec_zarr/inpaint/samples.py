"""Types and helpers that the methods share: array types, held-back pixels, interval factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""Values in DN."""


Where = NDArray[np.bool_]
"""A mask of pixels."""


COVERAGE = 0.9
"""Share of true values that the intervals should hold."""


FEWEST = 150
"""Fewest pixels to fit or calibrate on."""


HELD_BLOCK, HELD_SHARE = 32, 0.2
"""Largest side (pixels) and share of the squares that are held back from the fit for calibration.

In a small image the squares are a quarter of its shorter side."""


@dataclass(frozen=True)
class Times:
    """When the dates of a cube are.

    Attributes
    ----------
    stamps : ndarray of float64, (T,)
        Days since the first date, rising; or the positions of the dates.
    dated : bool
        Whether ``stamps`` are days.
    """

    stamps: NDArray[np.float64]
    dated: bool


@dataclass(frozen=True)
class Filled:
    """Estimate of a date.

    Attributes
    ----------
    values : ndarray of float32, (C, H, W)
        DN, at clear pixels too; NaN where no other date was clear.
    half_width : ndarray of float32, (C, H, W)
        Half width of the interval that holds the true value with probability `COVERAGE`; NaN
        without pixels to calibrate it on.
    """

    values: Field
    half_width: Field


def held_squares(shape: tuple[int, ...]) -> Where:
    """Mask of the squares that are held back, the same for every image of this shape."""
    side = min(HELD_BLOCK, max(min(shape) // 4, 1))
    rows, columns = (-(-n // side) for n in shape)
    chosen = np.random.default_rng(0).random((rows, columns)) < HELD_SHARE
    return chosen.repeat(side, 0).repeat(side, 1)[: shape[0], : shape[1]]


def covering_factor(ratios: Field) -> Field:
    """Factor (C, 1, 1) that `COVERAGE` of the ratios (C, n) do not exceed."""
    return np.quantile(ratios, COVERAGE, axis=1).astype(np.float32)[:, None, None]


def some_of(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most ``most`` entries of ``index``, drawn at random but the same in every call."""
    if len(index) <= most:
        return index
    return np.random.default_rng(len(index)).choice(index, most, replace=False)
