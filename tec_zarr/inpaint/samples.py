"""Samples that filling works on, and those it holds back to learn how far it is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


Where = NDArray[np.bool_]


COVERAGE = 0.9
"""Share of truths that intervals are to hold."""


FEWEST = 150
"""Pixels below which nothing is fitted."""


HELD_BLOCK, HELD_SHARE = 32, 0.2
"""Side (pixels) and share of the squares that are held back from the fit."""


@dataclass(frozen=True)
class Filled:
    """Estimate of a date.

    Attributes
    ----------
    values : ndarray of float32, (C, H, W)
        DN, at clear pixels too; NaN where no other date was clear.
    half_width : ndarray of float32, (C, H, W)
        Half of the interval that holds the truth with probability `COVERAGE`; NaN where nothing
        was there to calibrate it with.
    """

    values: Field
    half_width: Field


Refine = Callable[[Field, Field, Where], tuple[Field, Field]]
"""Of a date (C, H, W), an estimate of it, and where the date is seen: how the truth probably
differs from the estimate, and the scale of what remains. It must not look at the date elsewhere.
"""


def held_squares(shape: tuple[int, ...]) -> Where:
    """Squares that are held back, the same in every image of this shape."""
    rows, columns = (-(-n // HELD_BLOCK) for n in shape)
    chosen = np.random.default_rng(0).random((rows, columns)) < HELD_SHARE
    return chosen.repeat(HELD_BLOCK, 0).repeat(HELD_BLOCK, 1)[: shape[0], : shape[1]]


def covering_factor(ratios: Field) -> Field:
    """Factor (C, 1, 1) within which `COVERAGE` of the ratios (C, n) lie."""
    return np.quantile(ratios, COVERAGE, axis=1).astype(np.float32)[:, None, None]


def some_of(index: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of ``index``, drawn evenly and always alike."""
    if len(index) <= most:
        return index
    return np.random.default_rng(len(index)).choice(index, most, replace=False)
