"""Planes of the bound layer that are coded on the grid that they were enlarged from.

Native values within the bound of the samples are enough: a sample is a mean of native values with
weights that add up to one, rounded by `floor(x + 1/2)`; if every native value is off by a whole
number of at most `b`, the mean is off by at most `b`, and so is what it is rounded to. Where a mean
is of values that count alike (a factor of 2), it is nearly always off by less, so that the native
values get a little more than the bound. Samples that then miss it, and those that the encoder's
native values did not give back, are corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tec_zarr.bounds.lattices import Reference
from tec_zarr.bounds.planes import PlaneCoder
from tec_zarr.entropy.residual_tables import SCALES, SymbolCoder, scale_thresholds
from tec_zarr.grids import MAX_FACTOR, Grid, Kind, find, refine

_INT32 = 1 << 31
_LARGEST = 2.0**32  # whole numbers below it, summed over a cell, are exact in float64
_SLACKS = 16
_SLACK = 5  # of 32 parts of the bound, by which native values may be farther off
_CLOSE = (0.0, 0.0625)  # to a half, of the means of the first classes of corrections


@dataclass(frozen=True)
class Native:
    """A band's grid and, for an encoder, its native values.

    Attributes
    ----------
    grid : Grid
    values : ndarray or None
        int64 (T, h, w), DN.
    """

    grid: Grid
    values: np.ndarray | None


@dataclass(frozen=True)
class Decoded:
    """A decoded plane for those after it: as samples and, if it has one, on its grid."""

    fine: Reference
    grid: Grid | None = None
    coarse: Reference | None = None

    def seen(self, same: bool, wide: bool) -> Decoded:
        """The plane as another one sees it: by way of an earlier date, or its pixels alone."""
        some = (self.fine, self.coarse)
        fine, coarse = (
            r and Reference(r.values, r.spread if wide else None, same, wide) for r in some
        )
        assert fine is not None
        return Decoded(fine, self.grid, coarse)

    def without_spread(self) -> Decoded:
        """The plane for those that do not look at its neighbourhoods."""
        some = (self.fine, self.coarse)
        fine, coarse = (r and Reference(r.values, None, r.same, r.wide) for r in some)
        assert fine is not None
        return Decoded(fine, self.grid, coarse)

    def on(self, grid: Grid) -> Reference:
        """The plane on a grid: its own native values, or means over the cells."""
        if self.coarse is not None and self.grid == grid:
            return self.coarse
        fine = self.fine
        spread = None if fine.spread is None else _mean(grid, fine.spread)
        return Reference(_mean(grid, fine.values), spread, fine.same, fine.wide)


def _mean(grid: Grid, plane: np.ndarray) -> np.ndarray:
    return grid.mean(np.floor(np.minimum(plane, _LARGEST)))


def natives_of(
    original: np.ndarray, valid: np.ndarray | None, lossless: Sequence[bool]
) -> list[Native | None]:
    """Encoder only: the grids of bands (T, C, H, W) that are worth it.

    Bands of exactly repeated pixels are left out: merging rows and columns does as well.
    """
    out: list[Native | None] = []
    for band, found in enumerate(find(original, valid)):
        repeated = found and found.grid.kind == Kind.REPEATED and not found.wrong
        if not found or repeated or np.abs(found.native).max() >= _INT32:
            out.append(None)
        else:
            native = found.native
            if lossless[band]:
                mask = None if valid is None else valid[:, band]
                native = refine(native, original[:, band], mask, found.grid)
            out.append(Native(found.grid, native))
    return out


def code_grid(coder: SymbolCoder, known: Native | None, encoding: bool) -> Native | None:
    """Code the grid of one band."""
    if not coder.number(int(known is not None) if encoding else None, 2):
        return None
    kind, factor, row, column = (
        (None,) * 4
        if known is None
        else (int(known.grid.kind), known.grid.factor - 2, known.grid.row, known.grid.column)
    )
    kind = coder.number(kind, len(Kind))
    factor = 2 + coder.number(factor, MAX_FACTOR - 1)
    row, column = coder.number(row, factor), coder.number(column, factor)
    return Native(Grid(Kind(kind), factor, row, column), known.values if known else None)


def plane_on_grid(
    coder: SymbolCoder,
    planes: PlaneCoder,
    grid: Grid,
    shape: tuple[int, int],
    mask: np.ndarray | None,
    references: Sequence[Decoded],
    bound: int | np.ndarray,
    limits: tuple[int, int],
    native_limits: tuple[int, int],
    target: np.ndarray | None,
    native: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, Reference]:
    """Code native values and corrections: samples, their spread, and what is on the grid."""
    there = None if mask is None else grid.touched(mask)
    small = [r.on(grid) for r in references]
    tight = bound if isinstance(bound, int) else grid.smallest(bound)
    slack = coder.number(None if native is None else _slack(grid), _SLACKS)
    tight = tight + (tight * slack + _SLACKS) // (2 * _SLACKS)
    wanted = None if native is None else native.astype(np.float64)
    values, spread = planes.plane(
        grid.native_shape(shape), there, small, tight, native_limits, wanted
    )
    samples = np.clip(grid.enlarge(values, shape), *limits)
    samples = _corrected(coder, grid, values, samples, mask, bound, limits, target)
    return samples, grid.spread_out(spread, shape), Reference(values, spread, False, True)


def _slack(grid: Grid) -> int:
    """Encoder only. With a factor above 2 some samples hang on one native value alone."""
    return _SLACK if grid.kind == Kind.BILINEAR and grid.factor == 2 else 0


def _corrected(
    coder: SymbolCoder,
    grid: Grid,
    native: np.ndarray,
    samples: np.ndarray,
    mask: np.ndarray | None,
    bound: int | np.ndarray,
    limits: tuple[int, int],
    target: np.ndarray | None,
) -> np.ndarray:
    """Code what is still missing after enlargement: nearly always nothing."""
    chosen: slice | np.ndarray = slice(None)
    if mask is not None:
        chosen = np.flatnonzero(mask.ravel())
    before = samples.ravel()[chosen].astype(np.int64)
    step = 2 * np.asarray(bound, np.int64) + 1
    step = step if not step.ndim else step.ravel()[chosen]
    steps = None
    if target is not None:
        missing = target.ravel()[chosen].astype(np.int64) - before
        steps = (missing + step // 2) // step
    if not coder.number(None if steps is None else int(steps.any()), 2):
        return samples
    close = _closeness(grid, native, samples.shape).ravel()[chosen]
    group = np.digitize(close, _CLOSE, right=True)
    scales = np.zeros(len(before), np.int64)
    for number in range(len(_CLOSE) + 1):
        scale = None
        if steps is not None:
            some = np.abs(steps[group == number])
            size = some.mean() if len(some) else 0.0
            scale = int(np.searchsorted(scale_thresholds(1.0), size))
        scales[group == number] = coder.number(scale, SCALES)
    steps = coder.symbols(steps, scales, 0)
    out = samples.ravel().copy()
    out[chosen] = np.clip(before + steps * step, *limits)
    return out.reshape(samples.shape)


def _closeness(grid: Grid, native: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How far the mean of native values is from being rounded otherwise, 0 to 1/2: (H, W)."""
    rows, columns = grid.axes(shape)
    area = rows.unit * columns.unit
    rest = (grid.scaled(native, shape) + area // 2) % area
    return np.minimum(rest, area - rest) / area
