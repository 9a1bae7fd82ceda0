"""Finds the grid of each band of a chunk, and proves it by fitting it. Encoder only.

Along an axis an enlarged band has marks that depend on the place of a sample within its cell.
Repeated samples are equal within a cell. Bilinear samples have no second difference between two
cell centres, apart from rounding (for a factor of 2: no third difference from the last sample of a
cell to the first of the second next). A few lines of each band are enough to rule out nearly every
factor and phase. The others are fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tec_zarr.grids.grid import MAX_FACTOR, Grid, Kind
from tec_zarr.grids.natives import fit

_LINES = 24  # number of lines of each band and date in which marks are counted
_DATES = 3
_SEEN = 0.9  # least share of marks for a grid to be fitted
_MOVING = 0.05  # least share of neighbours that differ; with fewer, marks prove nothing
_SMALLEST = 16  # least number of samples along an axis
_LEVELS = 3  # equal neighbours, and second and third differences of no more than rounding


@dataclass(frozen=True)
class Found:
    """The grid of a band, and its native values.

    Attributes
    ----------
    grid : Grid
    native : ndarray
        int64 (T, h, w), DN.
    wrong : float
        Share of the valid samples that differ from the enlarged native values.
    """

    grid: Grid
    native: np.ndarray
    wrong: float


def find(
    samples: np.ndarray,
    valid: np.ndarray | None = None,
    tolerance: float = 0.08,
    search: bool = True,
) -> list[Found | None]:
    """Find the grid of each band of a chunk; None for bands without a grid.

    Parameters
    ----------
    samples : ndarray
        Integers (T, C, H, W), DN. All dates share the grid of a band.
    valid : ndarray or None
        bool (T, C, H, W), False where a sample does not matter.
    tolerance : float
        Largest share of valid samples that need not be equal.
    search : bool
        See `fit`.
    """
    bands = samples.shape[1]
    if min(samples.shape[2:]) < _SMALLEST:
        return [None] * bands
    columns = _marks(samples, valid)
    likely = [_possible(c) for c in columns]
    chosen = [b for b in range(bands) if likely[b]]
    found: list[Found | None] = [None] * bands
    if not chosen:
        return found
    turned = samples[:, chosen].swapaxes(2, 3)
    rows = _marks(turned, None if valid is None else valid[:, chosen].swapaxes(2, 3))
    for band, marks in zip(chosen, rows, strict=True):
        across = likely[band]
        grids = [
            (
                min(share, across[kind, factor][0]),
                Grid(kind, factor, phase, across[kind, factor][1]),
            )
            for (kind, factor), (share, phase) in _possible(marks).items()
            if (kind, factor) in across
        ]
        mask = None if valid is None else valid[:, band]
        for _, grid in sorted(grids, key=lambda g: (g[1].kind, -g[1].factor)):
            proved = prove(samples[:, band], mask, grid, tolerance, search)
            if proved is not None:
                found[band] = proved
                break
    return found


def prove(
    samples: np.ndarray,
    valid: np.ndarray | None,
    grid: Grid,
    tolerance: float,
    search: bool = True,
) -> Found | None:
    """Fit a grid to (T, H, W); return None if more than the tolerated share of samples is wrong."""
    native = fit(samples, valid, grid, search)
    wrong = grid.enlarge(native, samples.shape[1:]) != samples
    count = wrong.size
    if valid is not None:
        wrong, count = wrong & valid, int(np.count_nonzero(valid))
    share = np.count_nonzero(wrong) / max(count, 1)
    return Found(grid, native, share) if share <= tolerance else None


def _marks(samples: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """Count marks at each place along the last axis: (C, levels, 2, W).

    The third axis has the number of marks, then the number of samples examined. Place `i` of level
    `n` is the difference of order `n + 1` that begins at sample `i`.
    """
    dates, bands, height, width = samples.shape
    date = np.unique(np.linspace(0, dates - 1, min(dates, _DATES)).astype(int))
    line = np.unique(np.linspace(0, height - 1, min(height, _LINES)).astype(int))
    where = np.ix_(date, np.arange(bands), line)
    some = samples[where].astype(np.int32)
    known = None if valid is None else valid[where]
    out = np.zeros((bands, _LEVELS, 2, width))
    for level, most in enumerate((0, 2, 4)):
        some = some[..., 1:] - some[..., :-1]
        seen = np.abs(some) <= most
        if known is not None:
            known = known[..., 1:] & known[..., :-1]
            seen &= known
        out[:, level, 0, : some.shape[-1]] = seen.sum(axis=(0, 2))
        looked = len(date) * len(line) if known is None else known.sum(axis=(0, 2))
        out[:, level, 1, : some.shape[-1]] = looked
    return out


@cache
def _places(kind: Kind, factor: int, size: int) -> tuple[int, np.ndarray]:
    """Return the level and, for each phase, the places (phase, size) where a grid leaves marks."""
    start = np.arange(size) - np.arange(factor)[:, None]
    if kind == Kind.REPEATED:
        return 0, (start // factor == (start + 1) // factor).astype(float)
    if factor == 2:  # the last sample of a cell, two of the next, one of that after it
        return 2, (start % 2 == 1).astype(float)
    # Twice the distances of three samples from the centre of cell 0: no other centre between them.
    first, last = 2 * start + 1 - factor, 2 * start + 5 - factor
    return 1, (first // (2 * factor) == (last - 1) // (2 * factor)).astype(float)


def _possible(marks: np.ndarray) -> dict[tuple[Kind, int], tuple[float, int]]:
    """Return the kinds and factors that marks (levels, 2, W) allow, with their share and phase."""
    size = marks.shape[-1]
    equal, looked = marks[0].sum(axis=1)
    if not looked or equal > (1 - _MOVING) * looked:
        return {}
    out = {}
    for kind in Kind:
        for factor in range(2, MAX_FACTOR + 1):
            level, places = _places(kind, factor, size)
            seen, looked = marks[level] @ places.T
            share = seen / np.maximum(looked, 1)
            phase = int(np.argmax(share))
            if share[phase] >= _SEEN and looked[phase] > 0:
                out[kind, factor] = (float(share[phase]), phase)
    return out
