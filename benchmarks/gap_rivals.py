"""Methods that people fill gaps with, to compare `inpaint_clouds` with.

    python benchmarks/gap_rivals.py [--data DIR]

compares the settings of each method on training series (`gap_cases.TUNED_ON`), with their dates
and with the order of the dates alone. The best are in `SETTINGS`.

Whittaker smoothing is that of the library `whittaker-eilers`; `eo-learn` interpolates with its own
tasks. VPint2 and harmonic regression are on no package index, or part of no library that takes
masked cubes: they are written here from their papers. A method takes a cube (T, C, H, W) of float32
DN, NaN where it may not look, days (T,), and a date, and returns that date (C, H, W), NaN where it
has nothing.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import gap_cases
import numpy as np
from environment import DATA

from tec_zarr import metrics

Weights = Callable[[np.ndarray, int, np.ndarray], np.ndarray]
"""Weights of dates for an estimate of one, from days, that date, and which dates are clear."""


def _linear_in_time(cube: np.ndarray, days: np.ndarray, date: int, weights: Weights) -> np.ndarray:
    """Estimate by a method that is linear in the values, from its weights for clear dates."""
    flat = cube.reshape(*cube.shape[:2], -1)
    clear = np.isfinite(flat[:, 0])
    clear[date] = False
    packed = np.packbits(clear.T, axis=1)
    sets, index = np.unique(packed, axis=0, return_inverse=True)
    patterns = np.unpackbits(sets, axis=1, count=len(cube)).astype(bool)
    found = np.stack([
        weights(days, date, one) if one.any() else np.full(len(cube), np.nan) for one in patterns
    ]).astype(np.float32)[index.ravel()]  # fmt: skip
    return np.einsum("nt,tcn->cn", found, np.nan_to_num(flat)).reshape(cube.shape[1:])


def whittaker(
    days: np.ndarray, date: int, clear: np.ndarray, order: int, strength: float
) -> np.ndarray:
    """Whittaker smoothing (Eilers 2003) by `whittaker-eilers`.

    The weights of all dates come from one call: smoothing is the inverse of a symmetric matrix, so
    that what an impulse at the date does to the others is what the others do to the date.
    """
    from whittaker_eilers import WhittakerSmoother

    impulse, least = np.zeros(len(days)), 1e-9
    impulse[date] = 1 / least
    smoother = WhittakerSmoother(
        lmbda=strength, order=min(order, len(days) - 1), data_length=len(days),
        x_input=days.tolist(), weights=np.where(clear, 1.0, impulse * least * least).tolist(),
    )  # fmt: skip
    return np.where(clear, smoother.smooth(impulse.tolist()), 0)


def harmonic(
    days: np.ndarray, date: int, clear: np.ndarray, orders: int, ridge: float
) -> np.ndarray:
    """A mean, a slope and ``orders`` harmonics of a year, least squares (Roerink et al. 2000).

    The ridge on slope and harmonics keeps the fit defined where dates are few.
    """
    turn = 2 * np.pi / 365.25 * np.outer(days, np.arange(1, orders + 1))
    slope = ((days - days.mean()) / 365.25)[:, None]
    terms = np.concatenate([np.ones((len(days), 1)), slope, np.cos(turn), np.sin(turn)], 1)
    penalty = ridge * np.diag([0.0] + [1.0] * (terms.shape[1] - 1))
    gram = terms[clear].T @ terms[clear] + penalty
    return np.where(clear, terms @ np.linalg.solve(gram, terms[date]), 0)


def eo_learn(cube: np.ndarray, days: np.ndarray, date: int, task: str) -> np.ndarray:
    """An interpolation task of eo-learn."""
    import datetime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import eolearn.features.extra.interpolation as tasks
        from eolearn.core import EOPatch, FeatureType

        seen = cube.copy()
        seen[date] = np.nan
        start = datetime.datetime(2020, 1, 1)
        stamps = [start + datetime.timedelta(days=float(d)) for d in days]
        patch = EOPatch(data={"dn": np.moveaxis(seen, 1, -1)}, timestamps=stamps)
        done = getattr(tasks, task)((FeatureType.DATA, "dn")).execute(patch)
    return np.moveaxis(done.data["dn"][date], -1, 0)


def vpint2(cube: np.ndarray, days: np.ndarray, date: int, priority: float) -> np.ndarray:
    """Value propagation (Arp et al. 2024) from the clear pixels of the date into its clouds.

    Each hidden pixel is a weighted mean of its four neighbours, each times how the reference
    changes between the two. The reference is the nearest clear date at each pixel. ``priority``
    is the power by which neighbours count that are like the pixel in the reference. The published
    code iterates; here the same equations are solved at once. It has nothing for a date without
    clear pixels.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import spsolve

    truth, lag = cube[date], np.abs(days - days[date])
    reference = np.full_like(truth, np.nan)
    for other in np.argsort(lag, kind="stable"):
        if other != date:
            reference = np.where(np.isfinite(reference), reference, cube[other])
    hidden = np.isnan(truth[0]) & np.isfinite(reference[0])
    found = np.full_like(truth, np.nan)
    known = np.isfinite(truth[0]) & np.isfinite(reference[0])
    if not known.any() or not hidden.any():
        return found
    reference = np.maximum(reference, 1)
    number = np.cumsum(hidden.ravel()).reshape(hidden.shape) - 1
    rows, columns = np.nonzero(hidden)
    size = len(rows)
    for band in range(len(truth)):
        image, values = reference[band], truth[band] / reference[band]
        total, right = np.zeros(size), np.zeros(size)
        entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            y, x = rows + down, columns + across
            inside = (y >= 0) & (y < image.shape[0]) & (x >= 0) & (x < image.shape[1])
            y, x = np.where(inside, y, 0), np.where(inside, x, 0)
            inside &= hidden[y, x] | known[y, x]
            a, b = image[rows, columns], np.where(inside, image[y, x], 1)
            share = np.where(inside, (np.minimum(a, b) / np.maximum(a, b)) ** priority, 0)
            total += share
            ends = inside & known[y, x]
            right[ends] += share[ends] * values[y, x][ends]
            more = inside & hidden[y, x]
            entries.append((np.flatnonzero(more), number[y, x][more], -share[more]))
        own = np.arange(size)
        i, j, v = (np.concatenate(part) for part in zip(*entries, (own, own, total + 1e-9),
                                                        strict=True))  # fmt: skip
        ratio = spsolve(csr_matrix((v, (i, j)), (size, size)).tocsc(), right)
        found[band][hidden] = ratio * image[hidden]
    return found


@dataclass(frozen=True)
class Rival:
    """A method, its settings to choose from, and the best ones on training series.

    ``dated`` and ``undated`` are the best settings with dates, and with their order alone (None:
    the method needs dates).
    """

    run: Callable[..., np.ndarray]
    choices: tuple[dict, ...]
    dated: dict
    undated: dict | None = field(default=None)

    def __call__(self, cube: np.ndarray, days: np.ndarray, date: int, dated: bool) -> np.ndarray:
        settings = self.dated if dated else self.undated
        if settings is None:
            return np.full(cube.shape[1:], np.nan, np.float32)
        return self.run(cube, days, date, **settings)


def _smoother(cube: np.ndarray, days: np.ndarray, date: int, **settings: float) -> np.ndarray:
    return _linear_in_time(cube, days, date, partial(whittaker, **settings))


def _harmonics(cube: np.ndarray, days: np.ndarray, date: int, **settings: float) -> np.ndarray:
    return _linear_in_time(cube, days, date, partial(harmonic, **settings))


_STRENGTHS = tuple(10.0**n for n in range(-1, 8))
RIVALS = {
    "whittaker-1": Rival(
        _smoother, tuple({"order": 1, "strength": s} for s in _STRENGTHS),
        {"order": 1, "strength": 100.0}, {"order": 1, "strength": 1.0},
    ),
    "whittaker-2": Rival(
        _smoother, tuple({"order": 2, "strength": s} for s in _STRENGTHS),
        {"order": 2, "strength": 1e6}, {"order": 2, "strength": 100.0},
    ),
    "harmonics": Rival(
        _harmonics,
        tuple({"orders": n, "ridge": r} for n in (1, 2, 3) for r in (0.03, 0.1, 0.3, 1.0, 3.0)),
        {"orders": 2, "ridge": 1.0},
    ),
    "vpint2": Rival(
        vpint2, tuple({"priority": p} for p in (0.0, 1.0, 3.0, 10.0, 30.0)), {"priority": 30.0},
        {"priority": 30.0},
    ),
    "eo-learn": Rival(
        eo_learn,
        tuple({"task": f"{k}InterpolationTask"} for k in ("Linear", "Akima")),
        {"task": "LinearInterpolationTask"}, {"task": "LinearInterpolationTask"},
    ),
}  # fmt: skip
"""Rivals by name. The settings are the best of the choices on training series: highest PSNR in the
mean over rows."""


def tune(folder: Path) -> Iterator[tuple[str, bool, dict, float]]:
    """Scores (dB, mean over cases) of all settings on training series, with dates and without."""
    cases = list(gap_cases.dense(folder, gap_cases.TUNED_ON))[::3]
    for name, rival in RIVALS.items():
        for dated in (True, False) if rival.undated else (True,):
            for settings in rival.choices:
                scores = [_score(one, partial(rival.run, **settings), dated) for one in cases]
                yield name, dated, settings, float(np.nanmean(scores))


def _score(case: gap_cases.Case, run: Callable[..., np.ndarray], dated: bool) -> float:
    """PSNR of a method without intervals; NaN where it has little to say."""
    cube, days = case.seen(dated)
    guess = run(cube, days, case.date)
    there = case.scored & np.isfinite(guess[0])
    if there.sum() <= 0.5 * case.scored.sum():
        return np.nan
    truth = case.cube.values[case.date].astype(float)
    return metrics.psnr(truth, np.nan_to_num(guess), np.broadcast_to(there, truth.shape))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA.parent / "train")
    for line in tune(parser.parse_args().data):
        print(*line, flush=True)
