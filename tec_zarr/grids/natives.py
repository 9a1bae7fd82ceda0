"""Finds whole native values whose enlargement gives back most samples. Encoder only.

First, least squares: the normal equations of the enlargement are tridiagonal along each axis. Then
the solution is rounded. Native values next to samples that are still wrong are moved by one if that
makes fewer samples wrong: single values and, if every sample counts, blocks of four.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tec_zarr.grids.grid import Axis, Grid, Kind

_DESCENTS = 40
_CLOSE = 0.02  # DN, of the steps of a descent
_ROUNDS = 6
_BATCH = 256  # blocks moved at once
_BLOCKS = 3  # largest factor for which blocks of 2 x 2 native values are moved together
_CLOSER = 64.0  # squared DN that one wrong sample more is worth
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


class _Windows:
    """The samples that each run of `span` native values along an axis has a part in.

    Attributes
    ----------
    samples : ndarray
        int64 (runs, length), positions of the samples.
    weights : ndarray
        int64 (runs, span, length), weights of the native values in the samples.
    """

    def __init__(self, axis: Axis, span: int) -> None:
        size = len(axis.first)
        length = min((span + 1) * axis.unit // 2, size)
        cells = np.arange(axis.cells - span + 1)
        start = np.searchsorted(axis.second, cells)
        start = np.minimum(start, size - length)
        self.samples = start[:, None] + np.arange(length)
        cell = (cells[:, None] + np.arange(span))[:, :, None]
        first, second = (a[self.samples][:, None] for a in (axis.first, axis.second))
        weight = axis.weight[self.samples][:, None]
        self.weights = np.where(first == cell, axis.unit - weight, 0)
        self.weights += np.where((second == cell) & (weight > 0), weight, 0)


def _moves(span: int) -> np.ndarray:
    """Return all moves of a block of native values by -1, 0 and 1, int64 (moves, span^2).

    The first one moves nothing.
    """
    moves = np.indices((3,) * span**2).reshape(span**2, -1).T - 1
    order = np.argsort(np.abs(moves).sum(axis=1), kind="stable")
    return moves[order].astype(np.int64)


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
    """Move blocks of native values by one, in place, if that makes fewer samples wrong."""
    shape = samples.shape[-2:]
    axes = grid.axes(shape)
    if min(a.cells for a in axes) < span:
        return native
    area = axes[0].unit * axes[1].unit
    error = grid.scaled(native, shape) - area * samples.astype(np.int64)  # in 1 / area DN
    windows = [_Windows(axis, span) for axis in axes]
    moves = _moves(span)
    for _ in range(_ROUNDS):
        wrong = (error < -(area // 2)) | (error >= area // 2)
        if valid is not None:
            wrong &= valid
        if not _improve(native, error, valid, wrong, axes, windows, moves):
            break
    return native


def _batches(colour: np.ndarray, colours: int) -> Iterator[np.ndarray]:
    """Yield positions of one colour at a time, at most ``_BATCH`` of them."""
    for number in range(colours):
        chosen = np.flatnonzero(colour == number)
        for start in range(0, len(chosen), _BATCH):
            yield chosen[start : start + _BATCH]


def _improve(
    native: np.ndarray,
    error: np.ndarray,
    valid: np.ndarray | None,
    wrong: np.ndarray,
    axes: tuple[Axis, Axis],
    windows: list[_Windows],
    moves: np.ndarray,
) -> bool:
    """Try all moves of all blocks around wrong samples; return whether any made an improvement."""
    area = axes[0].unit * axes[1].unit
    tall, wide = windows
    span = tall.weights.shape[1]
    t, y, x = np.nonzero(wrong)
    found = np.zeros((len(native), len(tall.samples), len(wide.samples)), bool)
    for down in range(3 - span):
        for across in range(3 - span):
            row = (axes[0].second if down else axes[0].first)[y]
            column = (axes[1].second if across else axes[1].first)[x]
            row = np.minimum(row, found.shape[1] - 1)
            found[t, row, np.minimum(column, found.shape[2] - 1)] = True
    better = False
    t, y, x = np.nonzero(found)
    apart = span + 1  # blocks at this distance share no sample
    colour = y % apart * apart + x % apart
    for chosen in _batches(colour, apart**2):
        date, row, column = t[chosen], y[chosen], x[chosen]
        at = (
            date[:, None, None],
            tall.samples[row][:, :, None],
            wide.samples[column][:, None, :],
        )
        before = error[at].reshape(len(chosen), 1, -1)
        weight = np.einsum("nay,nbx->nabyx", tall.weights[row], wide.weights[column])
        weight = weight.reshape(len(chosen), span**2, -1)
        change = moves @ weight
        after = before + change
        bad = (after < -(area // 2)) | (after >= area // 2)
        far = np.square(after / area)
        matters = np.any(weight > 0, axis=1, keepdims=True)
        if valid is not None:
            matters &= valid[at].reshape(len(chosen), 1, -1)
        # The cost counts wrong samples, and prefers closer ones among equal counts.
        cost = (bad * matters).sum(axis=2) + (far * matters).sum(axis=2) / _CLOSER
        best = np.argmin(cost, axis=1)
        if not best.any():
            continue
        better = True
        block = np.arange(span)
        into = (
            date[:, None, None],
            row[:, None, None] + block[:, None],
            column[:, None, None] + block,
        )
        native[into] += moves[best].reshape(-1, span, span)
        moved = change[np.arange(len(chosen)), best]
        error[at] += moved.reshape(len(chosen), at[1].shape[1], at[2].shape[2])
    return better
