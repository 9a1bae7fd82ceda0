"""Methods that fill one tile at a time, with a margin: regression and the published TEC-TT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tec_zarr.inpaint.pixelwise import How, nearest_clear
from tec_zarr.inpaint.regression import fill_date
from tec_zarr.inpaint.samples import FEWEST, Filled, Times, covering_factor, held_squares
from tec_zarr.metrics import dn_per_unit

TILE, HALO = 256, 32
"""Side of a tile, and width of the margin around it that its estimate also uses (pixels).

Neighbouring tiles are blended where they overlap, margins included."""


def fill_tiles(
    cube: np.ndarray,
    clear: np.ndarray,
    hidden: np.ndarray,
    pages: np.ndarray,
    times: Times,
    how: How,
    bands: tuple[str, ...] | None,
) -> None:
    """Write estimates of (T, C, H, W), and half widths if wanted, into ``pages``.

    ``pages`` has the shape (1 or 2, T, C, H, W).
    """
    from tqdm import tqdm

    if cube.dtype.kind == "f":
        clear = clear & np.isfinite(cube)
    used = np.flatnonzero(clear.any((0, 2, 3)))  # bands without any clear value stay NaN
    if not len(used):
        return
    seen = np.logical_and.reduce(clear[:, used], axis=1)
    unit = np.float32(dn_per_unit(cube[clear]) if cube.dtype.kind == "f" else 1)
    wanted = np.logical_or.reduce(hidden, axis=1)
    windows = [w for w in _windows(*seen.shape[1:]) if wanted[:, w.rows, w.columns].any()]
    todo = [np.flatnonzero(wanted[:, w.rows, w.columns].any((1, 2))).tolist() for w in windows]
    weight = np.zeros(seen.shape, np.float32)
    filler = METHODS[how.method](how, None if bands is None else tuple(bands[b] for b in used))
    dates = np.flatnonzero(wanted.any((1, 2))).tolist()
    for date in dates:
        pages[:, date, used] = 0
    with tqdm(total=sum(map(len, todo)), disable=not how.progress, unit="tile") as bar:
        for window, here in zip(windows, todo, strict=True):
            part = cube[:, used, window.rows, window.columns].astype(np.float32) * unit
            open_ = seen[:, window.rows, window.columns]
            part[np.broadcast_to(~open_[:, None], part.shape)] = np.nan
            for date, filled in filler(part, here, times):
                known = np.isfinite(filled.values[0])
                share = np.where(known, window.weight, 0)
                for page, found in zip(pages, (filled.values, filled.half_width), strict=False):
                    for band, image in zip(used, found, strict=True):
                        target = page[date, band, window.rows, window.columns]
                        target += share * np.where(known, image, 0) / unit
                weight[date, window.rows, window.columns] += share
                bar.update()
    for date in dates:
        with np.errstate(invalid="ignore", divide="ignore"):
            for page in pages:
                page[date, used] /= weight[date]


@dataclass(frozen=True)
class _Window:
    """A tile with its halo, and the weights (h, w) that blend it with its neighbours."""

    rows: slice
    columns: slice
    weight: np.ndarray


def _windows(height: int, width: int) -> Iterator[_Window]:
    columns = list(_spans(width))
    for rows, down in _spans(height):
        for cols, across in columns:
            yield _Window(rows, cols, (down[:, None] * across).astype(np.float32))


def _spans(size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Pieces of about `TILE` with `HALO` on both sides, and weights that sum to one."""
    count = max(round(size / TILE), 1)
    edges = [round(i * size / count) for i in range(count + 1)]
    for first, last in pairwise(edges):
        start, stop = max(first - HALO, 0), min(last + HALO, size)
        place = np.arange(start, stop) + 0.5
        up = np.ones(len(place)) if first == 0 else (place - first + HALO) / (2 * HALO)
        down = np.ones(len(place)) if last == size else (last + HALO - place) / (2 * HALO)
        yield slice(start, stop), np.clip(np.minimum(up, down), 0, 1)


Filler = Callable[[np.ndarray, Sequence[int], Times], Iterator[tuple[int, Filled]]]


def _regression(how: How, bands: tuple[str, ...] | None) -> Filler:
    return _date_by_date


def _temporal(how: How, bands: tuple[str, ...] | None) -> Filler:
    """Return the filler of ``tec-tt``, with the published model in ``how``."""
    return partial(_published, model=_load(how.model), bands=bands, uncertain=how.uncertain)


PUBLISHED = "tec-tt"
"""The method that takes a published model."""


METHODS: dict[str, Callable[[How, tuple[str, ...] | None], Filler]] = {
    "regression": _regression, PUBLISHED: _temporal,
}  # fmt: skip
"""By the names that users type: functions that return what fills a tile."""


def _date_by_date(
    part: np.ndarray, dates: Sequence[int], times: Times
) -> Iterator[tuple[int, Filled]]:
    for date in dates:
        yield date, fill_date(part, int(date), times)


def _load(model: Any) -> Any:
    if not isinstance(model, str):
        return model
    from tec_zarr.terracodec.hub import load_codec

    name, _, rate = model.partition("/lambda-")
    return load_codec(name, rate or None)


def _published(
    part: np.ndarray,
    dates: Sequence[int],
    times: Times,
    *,
    model: Any,
    bands: tuple[str, ...] | None,
    uncertain: bool,
) -> Iterator[tuple[int, Filled]]:
    """Estimate dates with a published TEC-TT, which predicts a date from earlier dates only.

    It runs once on the series and once on the reversed series. The two estimates of a pixel are
    weighted by the distance in time to its nearest clear date on either side.
    """
    clear = np.isfinite(part[:, 0])
    seen = clear & ~held_squares(clear.shape[1:]) if uncertain else clear
    visible = np.where(seen[:, None], part, np.float32(0))
    forwards = model.inpaint(visible, ~seen, bands)
    backwards = model.inpaint(visible[::-1], ~seen[::-1], bands)[::-1]
    before, after = nearest_clear(seen), nearest_clear(seen[::-1])[::-1]
    moments = times.stamps
    for date in dates:
        none = np.inf
        past = np.where(before[date] < 0, none, moments[date] - moments[before[date]])
        # The nearest clear date from here on. Without one, the last date: not used below.
        later = np.minimum(len(part) - 1 - after[date], len(part) - 1)
        future = np.where(after[date] < 0, none, moments[later] - moments[date])
        with np.errstate(invalid="ignore"):
            share = np.where(np.isinf(past), 0, np.where(np.isinf(future), 1,
                             future / np.maximum(past + future, 1e-9)))  # fmt: skip
        value = (share * forwards[date] + (1 - share) * backwards[date]).astype(np.float32)
        value[:, np.isinf(past) & np.isinf(future)] = np.nan
        trial = clear[date] & ~seen[date] & np.isfinite(value[0])
        half_width = np.full_like(value, np.nan)
        if np.count_nonzero(trial) >= FEWEST:
            half_width[:] = covering_factor(np.abs(part[date] - value)[:, trial])
        yield date, Filled(value, half_width)
