"""Finds whole native values whose enlargement gives back most samples. Encoder only.

First, least squares: the normal equations of the enlargement are tridiagonal along each axis. Then
the solution is rounded. Native values next to samples that are still wrong are moved by one if that
makes fewer samples wrong: single values and, if every sample counts, blocks of four.
"""

from __future__ import annotations

import numpy as np

from tec_zarr.grids.grid import Axis, Grid, Kind
from tec_zarr.native.planes import move_natives

_DESCENTS = 40
_CLOSE = 0.02  # DN, of the steps of a descent
_BLOCKS = 3  # largest factor for which blocks of 2 x 2 native values are moved together
_LARGEST = 1 << 27  # DN; larger values stay as least squares left them
_RIDGE = 1e-6


def fit(
    samples: np.ndarray, valid: np.ndarray | None, grid: Grid, search: bool = True
) -> np.ndarray:
    """Return the native values of a band.

    Parameters
    ----------
    samples : ndarray
        Integers (T, H, W), DN.
    valid : ndarray or None
        bool (T, H, W), False where a sample does not matter.
    grid : Grid
        The grid of the band.
    search : bool
        Look for values that give back more samples exactly than rounded least squares do.

    Returns
    -------
    ndarray
        int64 (T, h, w), DN. `Grid.enlarge` makes the samples of them, or most of the samples.
    """
    shape = samples.shape[-2:]
    axes = grid.axes(shape)
    wanted = samples.astype(np.float64)
    if grid.kind == Kind.REPEATED:
        return _first_of_cells(samples, valid, axes)
    if valid is None or valid.all():
        valid = None
        real = _least_squares(wanted, axes)
    else:
        count = np.maximum(np.count_nonzero(valid, axis=(1, 2)), 1)
        mean = np.where(valid, wanted, 0.0).sum(axis=(1, 2)) / count
        real = _least_squares(np.where(valid, wanted, mean[:, None, None]), axes)
        some = np.flatnonzero(~valid.all(axis=(1, 2)))
        real[some] = _by_descent(real[some], wanted[some], valid[some], axes)
    native = np.rint(real).astype(np.int64)
    return _search(native, samples, valid, grid, 1) if search else native


def _first_of_cells(
    samples: np.ndarray, valid: np.ndarray | None, axes: tuple[Axis, Axis]
) -> np.ndarray:
    """Return the largest valid value of each cell; 0 for a cell without valid values."""
    rows, columns = axes
    lowest = np.iinfo(np.int64).min
    plane = samples.astype(np.int64)
    plane = plane if valid is None else np.where(valid, plane, lowest)
    plane = np.maximum.reduceat(plane, rows.starts, axis=-2)
    plane = np.maximum.reduceat(plane, columns.starts, axis=-1)
    return np.where(plane == lowest, 0, plane)


def _blended(native: np.ndarray, axes: tuple[Axis, Axis]) -> np.ndarray:
    rows, columns = axes
    part = native[..., rows.first, :] * (rows.unit - rows.weight)[:, None]
    part += native[..., rows.second, :] * rows.weight[:, None]
    out = part[..., columns.first] * (columns.unit - columns.weight)
    out += part[..., columns.second] * columns.weight
    return out


def _least_squares(planes: np.ndarray, axes: tuple[Axis, Axis]) -> np.ndarray:
    for axis in axes:  # rows, then columns: each turns the planes
        planes = _solve(np.moveaxis(planes, -2, 0), axis)
        planes = np.moveaxis(planes, 0, -1)
    return planes


def _by_descent(
    native: np.ndarray, wanted: np.ndarray, valid: np.ndarray, axes: tuple[Axis, Axis]
) -> np.ndarray:
    """Least squares over the valid samples alone, by conjugate gradients from a first guess.

    Native values without a valid sample stay what they are.
    """
    area = axes[0].unit * axes[1].unit
    diagonal = np.maximum(_gathered(valid.astype(np.float64), axes, 2), _RIDGE)
    rest = _gathered(np.where(valid, wanted - _blended(native, axes) / area, 0.0), axes, 1)
    scaled = rest / diagonal
    way = scaled
    power = (rest * scaled).sum(axis=(1, 2), keepdims=True)
    for _ in range(_DESCENTS):
        back = _gathered(np.where(valid, _blended(way, axes) / area, 0.0), axes, 1)
        step = power / np.maximum((way * back).sum(axis=(1, 2), keepdims=True), 1e-30)
        native = native + step * way
        if np.abs(step * way).max() < _CLOSE:
            break
        rest = rest - step * back
        scaled = rest / diagonal
        before, power = power, (rest * scaled).sum(axis=(1, 2), keepdims=True)
        way = scaled + power / np.maximum(before, 1e-30) * way
    return native


def _gathered(planes: np.ndarray, axes: tuple[Axis, Axis], order: int) -> np.ndarray:
    """Sums over the samples of each native value, by its weight to the power of `order`."""
    for axis in axes:
        planes = np.moveaxis(_sums(np.moveaxis(planes, -2, 0), axis, order), 0, -1)
    return planes


def _sums(lines: np.ndarray, axis: Axis, order: int) -> np.ndarray:
    share = (axis.weight / axis.unit).reshape(-1, *[1] * (lines.ndim - 1))
    starts = axis.starts
    left = axis.first[starts]
    both = left + 1 < axis.cells  # or the last run is of samples at the last centre
    out = np.zeros((axis.cells, *lines.shape[1:]))
    out[left] += np.add.reduceat(lines * (1 - share) ** order, starts, axis=0)
    out[left[both] + 1] += np.add.reduceat(lines * share**order, starts, axis=0)[both]
    return out


def _solve(lines: np.ndarray, axis: Axis) -> np.ndarray:
    """Least squares along the first axis: (size, ...) to (cells, ...)."""
    share = axis.weight / axis.unit
    target = _sums(lines, axis, 1)
    diagonal = _sums(np.ones(len(share)), axis, 2) + _RIDGE
    beside = np.zeros(axis.cells)
    beside[axis.first[axis.starts]] = np.add.reduceat((1 - share) * share, axis.starts)
    for j in range(1, axis.cells):
        part = beside[j - 1] / diagonal[j - 1]
        diagonal[j] -= part * beside[j - 1]
        target[j] -= part * target[j - 1]
    target[-1] /= diagonal[-1]
    for j in range(axis.cells - 2, -1, -1):
        target[j] -= beside[j] * target[j + 1]
        target[j] /= diagonal[j]
    return target


def refine(
    native: np.ndarray, samples: np.ndarray, valid: np.ndarray | None, grid: Grid
) -> np.ndarray:
    """Move blocks of native values of :func:`fit` so that fewer samples are wrong.

    This takes three times as long as the fit. It pays if every wrong sample has to be corrected.
    """
    if grid.kind == Kind.REPEATED or grid.factor > _BLOCKS:
        return native
    return _search(native.copy(), samples, valid, grid, 2)


def _search(
    native: np.ndarray, samples: np.ndarray, valid: np.ndarray | None, grid: Grid, span: int
) -> np.ndarray:
    """Move blocks of native values by one if that makes fewer samples wrong."""
    if np.abs(native).max() >= _LARGEST or min(native.shape[1:]) < span:
        return native
    places = (grid.kind, grid.factor, grid.row, grid.column)
    planes = [
        move_natives(places, part, None if valid is None else valid[date], native[date], span)
        for date, part in enumerate(samples)
    ]
    return np.stack(planes).astype(np.int64)
