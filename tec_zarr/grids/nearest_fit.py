"""Finds the map of a tile that was resampled by nearest neighbour, and its source. Encoder only.

A first map comes from the frequency of borders (`nearest_borders`), a better one from every border
and every equal pair (`nearest_refine`). All bands share the map: coarse bands lie on grids of the
source, so that their source is repeated pixels. Then the source is proved: each sample has the
value of its source pixel, except a few, which the map lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from tec_zarr.grids.detect import find
from tec_zarr.grids.grid import Grid
from tec_zarr.grids.nearest import AROUND, LARGEST, Nearest, moved, rounded
from tec_zarr.grids.nearest_borders import Borders, borders_of, first_line, resolutions
from tec_zarr.grids.nearest_refine import FACTORS, refined

_RATES = (0.04, 0.92)  # of borders; a map cannot be seen in fewer or more
_LINES = 16  # in which the rates are looked at first
_STRENGTH = 0.4  # least strength of the frequency of borders
_FASTEST = 1.6  # most pixels of the source that a sample advances
_ROUGH = 0.3  # largest share of wrong samples before a map is refined
_WRONG = 0.01  # the same after it
_PAYS = 0.9  # largest number of native values, of those without a map
_SMALLEST = 24
_EXCEPTION_BITS = 20.0


@dataclass(frozen=True)
class FoundMap:
    """The map of a tile, and its source.

    Attributes
    ----------
    nearest : Nearest
    source : ndarray
        (T, C, h, w): pixels of the source. Those without a sample continue their neighbours.
    known : ndarray
        bool (T, C, h, w), False for pixels without a measured sample.
    wrong : ndarray
        For each band the share of measured samples that differ from their source pixel.
    missed : float
        Largest root mean square of these differences in a band, in DN.
    gains : ndarray
        For each exception the squared error that it saves: of all bands of a date, in the mean.
    """

    nearest: Nearest
    source: np.ndarray
    known: np.ndarray
    wrong: np.ndarray
    missed: float
    gains: np.ndarray

    def worth(self, price: float) -> Nearest:
        """Return the map with the exceptions that save more than their bits at this price."""
        least = _EXCEPTION_BITS * price
        pairs = zip(self.nearest.exceptions, self.gains.tolist(), strict=True)
        return replace(self.nearest, exceptions=tuple(one for one, gain in pairs if gain > least))


def may_have_map(samples: np.ndarray, valid: np.ndarray | None = None) -> bool:
    """Look at a few lines of (T, C, H, W): False if no band has equal neighbours often enough."""
    height, width = samples.shape[2:]
    if min(height, width) < _SMALLEST or max(height, width) > LARGEST:
        return False
    row = np.unique(np.linspace(0, height - 1, _LINES).astype(int))
    column = np.unique(np.linspace(0, width - 1, _LINES).astype(int))
    for band in range(samples.shape[1]):
        lines = [samples[:1, band][:, row], samples[:1, band][:, :, column]]
        masks = [None, None] if valid is None else [valid[:1, band][:, row],
                                                    valid[:1, band][:, :, column]]  # fmt: skip
        across = borders_of(lines[0], masks[0]).rates[0]
        down = borders_of(lines[1], masks[1]).rates[1]
        if _visible((across, down)):
            return True
    return False


def _visible(rates: tuple[float, float]) -> bool:
    return all(_RATES[0] < rate < _RATES[1] for rate in rates)


def find_nearest(
    samples: np.ndarray, valid: np.ndarray | None = None, values: float | None = None
) -> FoundMap | None:
    """Find the map of a tile and its source; None if there is none that pays.

    Parameters
    ----------
    samples : ndarray
        Integers (T, C, H, W). All dates and bands share the map.
    valid : ndarray or None
        bool (T, C, H, W), False where a sample does not matter.
    values : float or None
        Native values of a date without a map. None: as many as samples.
    """
    if not may_have_map(samples, valid):
        return None
    shape = samples.shape[2:]
    most = _PAYS * (samples[0].size if values is None else values)
    levels = resolutions(samples, valid)
    begun = []
    for level in levels:
        if _visible(level.rates):
            (strength, columns), (also, rows) = first_line(level.across), first_line(level.down.T)
            begun.append((min(strength, also), columns, rows))
    finer = None  # a map from more pixels than samples: some factor of the source's own
    for strength, columns, rows in sorted(begun, key=lambda b: -b[0]):
        if strength < _STRENGTH:
            break
        for factor in FACTORS:
            rough = _map(factor * columns, factor * rows, shape)
            if rough is None or _wrong_pairs(rough, samples, valid) > _ROUGH:
                continue
            for nearest in _better(levels, factor * columns, factor * rows, rough, shape):
                found = None if nearest is None else _proved(samples, valid, nearest, most)
                if found is None:
                    continue
                if found.source[0, 0].size <= samples[0, 0].size:
                    return found
                finer = finer or found
    return finer


def _better(
    levels: list[Borders], columns: np.ndarray, rows: np.ndarray, rough: Nearest, shape: tuple
) -> Iterator[Nearest | None]:
    """Yield refined maps, then the rough one: coarse levels, which see little, can spoil a map."""
    for count in range(len(levels), 0, -1):
        yield _map(*refined(levels[:count], columns, rows, shape), shape)
    yield rough


def _map(columns: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> Nearest | None:
    """Return a map whose places begin at 0."""
    if max(columns[1], rows[1]) > _FASTEST:
        return None
    try:
        nearest = Nearest(rounded(rows[[0, 2, 1, 5, 4, 3]]), rounded(columns))
        row, column = nearest.places(shape)
        nearest = Nearest(
            moved(nearest.rows, -int(row.min())), moved(nearest.columns, -int(column.min()))
        )
    except ValueError:
        return None
    return None if nearest.source_shape(shape) is None else nearest


def _wrong_pairs(nearest: Nearest, samples: np.ndarray, valid: np.ndarray | None) -> float:
    """Return the largest share, over the bands, of samples unlike their source, in one date."""
    first = None if valid is None else valid[:1]
    source = _Source(samples[:1], first, nearest)
    return float(source.wrong(source.values([None] * samples.shape[1])[0]).max())


def _proved(
    samples: np.ndarray, valid: np.ndarray | None, nearest: Nearest, most: float
) -> FoundMap | None:
    """Return the source of a map.

    None if more than a few samples are unlike it, or if it has more than `most` native values.
    """
    source = _Source(samples, valid, nearest)
    values, known = source.values([None] * samples.shape[1])
    if source.wrong(values).max() > _WRONG:
        return None
    grids = [None if f is None else f.grid for f in find(values, known, 2 * _WRONG, search=False)]
    on_grids = source.wrong(source.values(grids)[0]) <= _WRONG
    grids = [grid if fits else None for grid, fits in zip(grids, on_grids, strict=True)]
    seen = np.count_nonzero(known[0].any(axis=0))
    if sum(seen / (1 if g is None else g.factor**2) for g in grids) > most:
        return None
    before = source.values(grids)[0]
    nearest = source.with_exceptions(before)
    error = source.squares(before)
    source = _Source(samples, valid, nearest)
    values, known = source.values(grids)
    chosen = [sample for sample, _ in nearest.exceptions]
    gains = (error - source.squares(values))[chosen]
    wrong, missed = source.wrong(values), source.missed(values)
    return FoundMap(nearest, _continued(values, known), known, wrong, missed, gains)


class _Source:
    """Makes the source of a tile from its samples and their places."""

    def __init__(self, samples: np.ndarray, valid: np.ndarray | None, nearest: Nearest):
        self.samples, self.valid, self.nearest = samples, valid, nearest
        self.tile = samples.shape[2:]
        shape = nearest.source_shape(self.tile)
        assert shape is not None
        self.shape = shape
        self.rows, self.columns = (p.ravel() for p in nearest.places(self.tile))

    def values(self, grids: list[Grid | None]) -> tuple[np.ndarray, np.ndarray]:
        """Return the pixels of the source, and which of them are known.

        A pixel, or a cell of a band's grid, has the value of its sample in the middle, which
        belongs to it most surely.
        """
        out = np.zeros((*self.samples.shape[:2], *self.shape), self.samples.dtype)
        known = np.zeros(out.shape, bool)
        for date, bands, grid, mask in self._alike(grids):
            cells = self.shape if grid is None else grid.native_shape(self.shape)
            row, column = self.rows, self.columns
            if grid is not None:
                axes = grid.axes(self.shape)
                row, column = axes[0].cell[row], axes[1].cell[column]
            cell = row * cells[1] + column
            size = cells[0] * cells[1]
            measured = cell if mask is None else np.where(mask, cell, size)
            order = np.argsort(measured, kind="stable")
            count = np.bincount(measured, minlength=size)[:size]
            middle = order[np.minimum(np.cumsum(count) - (count + 1) // 2, len(order) - 1)]
            flat = self.samples[date, bands].reshape(len(bands), -1)
            native = flat[:, middle].reshape(-1, *cells)
            seen = (count > 0).reshape(cells)
            if grid is not None:
                native, seen = (grid.spread_out(p, self.shape) for p in (native, seen))
            out[date, bands], known[date, bands] = native, seen
        return out, known

    def _alike(
        self, grids: list[Grid | None]
    ) -> Iterator[tuple[slice | int, list[int], Grid | None, np.ndarray | None]]:
        """Yield dates and bands that share a grid and a mask."""
        bands_of: dict[Grid | None, list[int]] = {}
        for band, grid in enumerate(grids):
            bands_of.setdefault(grid, []).append(band)
        for grid, bands in bands_of.items():
            for date in range(len(self.samples)):
                masks = None if self.valid is None else self.valid[date, bands]
                if masks is None or masks.all():
                    yield date, bands, grid, None
                elif (masks == masks[:1]).all():
                    yield date, bands, grid, masks[0].ravel()
                else:
                    for band, mask in zip(bands, masks, strict=True):
                        yield date, [band], grid, mask.ravel()

    def off(self, values: np.ndarray) -> np.ndarray:
        """Return the measured samples that differ from their pixel: bool (T, C, H W)."""
        back = values[..., self.rows, self.columns]
        off = back != self.samples.reshape(back.shape)
        return off if self.valid is None else off & self.valid.reshape(back.shape)

    def squares(self, values: np.ndarray) -> np.ndarray:
        """Return the squared error of each sample: the sum over the bands, in the mean of dates."""
        return self._errors(values).sum(axis=1).mean(axis=0)

    def missed(self, values: np.ndarray) -> float:
        """Return the largest root mean square error of a band."""
        return float(np.sqrt(self._errors(values).mean(axis=(0, 2)).max()))

    def _errors(self, values: np.ndarray) -> np.ndarray:
        back = values[..., self.rows, self.columns].astype(np.float64)
        off = back - self.samples.reshape(back.shape)
        if self.valid is not None:
            off = np.where(self.valid.reshape(back.shape), off, 0.0)
        return np.square(off)

    def wrong(self, values: np.ndarray) -> np.ndarray:
        """Return the share of wrong samples of each band."""
        return self.off(values).mean(axis=(0, 2))

    def with_exceptions(self, values: np.ndarray) -> Nearest:
        """Return the map with the samples that another pixel around explains better."""
        off = self.off(values)
        samples = np.flatnonzero(off.any(axis=(0, 1)))
        fewest = off[..., samples].sum(axis=(0, 1))
        best = np.full(len(samples), -1)
        wanted = self.samples.reshape(*off.shape)[..., samples]
        for number, (down, right) in enumerate(AROUND):
            row, column = self.rows[samples] + down, self.columns[samples] + right
            inside = (row >= 0) & (row < self.shape[0]) & (column >= 0) & (column < self.shape[1])
            there = values[..., np.where(inside, row, 0), np.where(inside, column, 0)]
            count = (there != wanted).sum(axis=(0, 1))
            better = inside & (count < fewest)
            best[better], fewest[better] = number, count[better]
        chosen = best >= 0
        pairs = zip(samples[chosen].tolist(), best[chosen].tolist(), strict=True)
        return replace(self.nearest, exceptions=tuple(pairs))


def _continued(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give pixels that are not known the value of the nearest known one in their row or column."""
    out = values.copy()
    last: tuple[np.ndarray, np.ndarray] | None = None
    for image, mask in zip(out.reshape(-1, *out.shape[2:]), known.reshape(-1, *out.shape[2:]),
                           strict=True):  # fmt: skip
        if mask.all() or not mask.any():
            continue
        if last is None or not np.array_equal(last[0], mask):
            last = (mask, _nearest_known(mask))
        image[...] = image.reshape(-1)[last[1]]
    return out


def _nearest_known(mask: np.ndarray) -> np.ndarray:
    """Return the flat index of a known pixel near each pixel."""
    height, width = mask.shape
    far = height + width
    index = np.arange(mask.size).reshape(mask.shape)
    best, least = index.copy(), np.where(mask, 0, far)
    for axis, size in ((0, height), (1, width)):
        place = np.indices(mask.shape)[axis]
        for turn in (1, -1):
            part = slice(None, None, turn)
            flip = (part, slice(None)) if axis == 0 else (slice(None), part)
            seen = np.where(mask, place, -far if turn == 1 else size + far)[flip]
            pick = np.maximum if turn == 1 else np.minimum
            near = pick.accumulate(seen, axis=axis)[flip]
            away = np.abs(place - near)
            better = away < least
            step = (near - place) * (width if axis == 0 else 1)
            best, least = np.where(better, index + step, best), np.where(better, away, least)
    lost = least >= far
    if lost.any():
        best[lost] = np.flatnonzero(mask.ravel())[mask.sum() // 2]
    return best
