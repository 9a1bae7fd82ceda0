"""Encoder only: the whole native values that give back as many samples as possible.

Least squares first: the normal equations of the enlargement are tridiagonal along each axis. Then
the solution is rounded, and native values next to samples that are still wrong are moved by one,
where fewer samples are wrong then.
"""

from __future__ import annotations

import numpy as np

from tec_zarr.grids.grid import Axis, Grid, Kind

_FILLINGS = 6
_ROUNDS = 12
_RIDGE = 1e-6


def fit(samples: np.ndarray, valid: np.ndarray | None, grid: Grid) -> np.ndarray:
    """Native values of a band.

    Parameters
    ----------
    samples : ndarray
        Integers (T, H, W), DN.
    valid : ndarray or None
        bool (T, H, W), False where a sample does not matter.
    grid : Grid
        What to enlarge by.

    Returns
    -------
    ndarray
        int64 (T, h, w), DN: `Grid.enlarge` of it gives back the samples, or most of them.
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
        # Samples that do not matter take what the native values so far make of them.
        some = np.where(valid, wanted, 0.0)
        count = np.maximum(valid.sum(axis=(1, 2)), 1)[:, None, None]
        filled = np.where(valid, wanted, some.sum(axis=(1, 2))[:, None, None] / count)
        real = _least_squares(filled, axes)
        area = axes[0].unit * axes[1].unit
        for _ in range(_FILLINGS):
            filled = np.where(valid, wanted, _blended(real, axes) / area)
            real = _least_squares(filled, axes)
    native = np.rint(real).astype(np.int64)
    return _search(native, samples, valid, grid)


def _first_of_cells(
    samples: np.ndarray, valid: np.ndarray | None, axes: tuple[Axis, Axis]
) -> np.ndarray:
    """The largest valid value of each cell (of a cell without any: 0)."""
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


def _solve(lines: np.ndarray, axis: Axis) -> np.ndarray:
    """Least squares along the first axis: (size, ...) to (cells, ...)."""
    share = axis.weight / axis.unit
    shape = (-1, *[1] * (lines.ndim - 1))
    starts = axis.starts
    left = axis.first[starts]
    right = np.minimum(left + 1, axis.cells - 1)

    def gathered(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values * weights.reshape(shape), starts, axis=0)

    target = np.zeros((axis.cells, *lines.shape[1:]))
    target[left] += gathered(lines, 1 - share)
    target[right] += gathered(lines, share)
    diagonal, beside = np.full(axis.cells, _RIDGE), np.zeros(axis.cells)
    one = np.ones(len(share))
    diagonal[left] += np.add.reduceat((1 - share) ** 2 * one, starts)
    diagonal[right] += np.add.reduceat(share**2 * one, starts)
    beside[left] += np.add.reduceat((1 - share) * share * one, starts)
    for j in range(1, axis.cells):
        part = beside[j - 1] / diagonal[j - 1]
        diagonal[j] -= part * beside[j - 1]
        target[j] -= part * target[j - 1]
    target[-1] /= diagonal[-1]
    for j in range(axis.cells - 2, -1, -1):
        target[j] -= beside[j] * target[j + 1]
        target[j] /= diagonal[j]
    return target


class _Windows:
    """For each native value along an axis, the samples that it has a part in, and its weights."""

    def __init__(self, axis: Axis) -> None:
        size, length = len(axis.first), axis.unit
        self.start = np.zeros(axis.cells, np.int64)
        self.weights = np.zeros((axis.cells, length), np.int64)
        for cell in range(axis.cells):
            part = np.where(axis.first == cell, axis.unit - axis.weight, 0)
            part = part + np.where((axis.second == cell) & (axis.weight > 0), axis.weight, 0)
            where = np.flatnonzero(part)
            start = min(int(where[0]), max(size - length, 0))
            stop = min(start + length, size)
            self.start[cell] = start
            self.weights[cell, : stop - start] = part[start:stop]
        self.length = min(length, size)
        self.weights = self.weights[:, : self.length]


def _search(
    native: np.ndarray, samples: np.ndarray, valid: np.ndarray | None, grid: Grid
) -> np.ndarray:
    shape = samples.shape[-2:]
    rows, columns = grid.axes(shape)
    area = rows.unit * columns.unit
    error = grid.scaled(native, shape) - area * samples.astype(np.int64)  # in 1 / area DN
    tall, wide = _Windows(rows), _Windows(columns)
    settled = None
    for _ in range(_ROUNDS):
        wrong = (error < -(area // 2)) | (error >= area // 2)
        if valid is not None:
            wrong &= valid
        found = np.argwhere(grid.touched(wrong))
        if not len(found) or (settled is not None and len(found) >= settled):
            break
        settled = None
        moved = 0
        for colour in range(4):
            some = found[(found[:, 1] % 2 == colour // 2) & (found[:, 2] % 2 == colour % 2)]
            if not len(some):
                continue
            t, y, x = some.T
            at = (
                t[:, None, None],
                (tall.start[y][:, None] + np.arange(tall.length))[:, :, None],
                (wide.start[x][:, None] + np.arange(wide.length))[:, None, :],
            )
            before = error[at]
            weight = tall.weights[y][:, :, None] * wide.weights[x][:, None, :]
            matters = weight > 0 if valid is None else (weight > 0) & valid[at]
            costs = [_cost(before + step * weight, matters, area) for step in (0, -1, 1)]
            best = np.argmin(costs, axis=0)
            step = np.array([0, -1, 1])[best]
            moved += np.count_nonzero(step)
            native[t, y, x] += step
            np.add.at(error, at, step[:, None, None] * weight)
        if not moved:
            break
    return native


def _cost(error: np.ndarray, matters: np.ndarray, area: int) -> np.ndarray:
    """How many samples of a window are wrong, and, if as many, how far off all of them are."""
    wrong = ((error < -(area // 2)) | (error >= area // 2)) & matters
    far = np.where(matters, error / area, 0.0) ** 2
    return wrong.sum(axis=(1, 2)) + far.sum(axis=(1, 2)) / 64.0
