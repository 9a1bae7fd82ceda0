"""Estimate a date under its clouds by regression on other dates of the same place.

Other dates alone give a first estimate: a weighted mean over time
(:mod:`tec_zarr.inpaint.kriging`). A regression maps the spectra of other dates, and this estimate,
to what is left of the truth. It is fitted on pixels that are clear on all of them, and applied
under the clouds. It is fitted anew for each date and tile. It is a ridge regression on the spectra
and on random Fourier features of them (Rahimi and Recht 2007). The features let meadows, forests
and water change differently without a map of classes. Its ridge is chosen on pixels that it was not
fitted on: where few pixels are clear, little more than the estimate from time is left.

An error of the regression beside a cloud usually continues under its edge. So residuals of clear
pixels are continued into the cloud (regression kriging, Hengl et al. 2007). Their weights are
fitted on pixels that the regression was not fitted on. The same pixels calibrate the intervals.

A date with too few clear pixels gets the estimate from time.

All functions work on NumPy arrays of float32 DN, NaN where there is no clear measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tec_zarr.inpaint.kriging import Rules, from_other_dates
from tec_zarr.inpaint.samples import (
    FEWEST,
    Field,
    Filled,
    Times,
    Where,
    covering_factor,
    held_squares,
    some_of,
)

__all__ = ["fill_date"]

REFERENCES = 4
"""Most other dates, the references, in one regression."""
FEATURES = 128
"""Number of random Fourier features."""
BANDWIDTH = 0.2
"""Standard deviation of the features' frequencies, in inverse standard deviations of the leading
components."""
COMPONENTS = 12
"""Number of leading components of the spectra that the features are made of."""
RIDGES = (3e-4, 3e-3, 3e-2, 3e-1, 3.0, 30.0)
"""Strengths of the ridge to choose from, for standardised inputs."""
FIT_ON, TRY_ON = 6_000, 2_000
"""Most pixels to fit a regression on, and most pixels to choose its ridge on."""
LINEAR_BELOW = 1_500
"""With fewer pixels than this, a regression uses the spectra without Fourier features."""
OWN_FIT = 0.06
"""Least share of the pixels for which a set of clear references gets its own regression."""
REACHES = (1.2, 3.0, 10.0)
"""Standard deviations (pixels) of the Gaussian windows that continue residuals."""
FEW = 1.0
"""Intervals are wider by this over the root of the number of pixels they are calibrated on.

Errors of neighbours are alike, so that few pixels say little of errors elsewhere. Measured on
partly hidden dates of dense training series."""
WHOLE_BELOW = 1 << 14
"""Pixels of an image of which all clear ones are looked at."""
_LITTLE = 0.03
"""Shrinkage of continued residuals: as if this share of a window had a residual of 0."""
_AT_ONCE = 1 << 15
"""Pixels that a regression is applied to at once, which limits memory."""


def fill_date(cube: Field, date: int, times: Times) -> Filled:
    """Estimate one date of a cube from its clear pixels and from the other dates.

    Parameters
    ----------
    cube : ndarray of float32, (T, C, H, W)
        DN, NaN in all bands of a pixel that is not clear.
    date : int
        Index of the date to estimate.
    times : Times

    Returns
    -------
    Filled
        NaN at clear pixels that were not looked at.
    """
    clear = np.isfinite(cube[:, 0])
    count, shape = cube.shape[1], cube.shape[2:]
    flat, open_ = cube.reshape(len(cube), count, -1), clear.reshape(len(cube), -1)
    looked = _lattice(~clear[date])
    seen = clear[date] & looked
    held = seen & held_squares(shape)
    if np.count_nonzero(held) < FEWEST // 4:
        return from_other_dates(cube, clear, date, times)
    used = np.flatnonzero(seen | ~clear[date])
    smooth = _from_time(flat, open_, date, times, used)
    train = seen & ~held
    values, spread = _regressed(flat, open_, date, smooth, train.ravel(), held.ravel(), used)
    values, spread = values.reshape(count, *shape), spread.reshape(count, *shape)
    near = seen & np.isfinite(values[0])
    if np.count_nonzero(near & held) < FEWEST // 4:
        return from_other_dates(cube, clear, date, times)
    beyond = ~clear[date] & np.isnan(values[0])
    if beyond.any():
        instead = _from_time(flat, open_, date, times, np.flatnonzero(beyond))
        values[:, beyond] = instead[:, beyond.ravel()]
        spread[:, beyond] = 2 * np.nanmean(spread, (1, 2))[:, None]
    # Pixels that were held back tell how to weight the residuals around a pixel, and how wide the
    # intervals are.
    truth, part = cube[date], float(looked.mean())
    trial = near & held
    hints, support = _hints(truth, values, near & ~held, part)
    error = (truth - values)[:, trial]
    weights = [_nonnegative(h[:, trial].T, e) for h, e in zip(hints, error, strict=True)]
    left = error - _weighted(hints, weights)[:, trial]
    far_factor = covering_factor(np.abs(error) / spread[:, trial])
    near_factor = covering_factor(np.abs(left) / spread[:, trial])
    usual = max(float(np.median(support[trial])), 1e-3)
    hints, support = _hints(truth, values, near, part)
    closeness = np.minimum(support / usual, 1)
    factor = far_factor + (near_factor - far_factor) * closeness
    factor *= np.float32(1 + FEW / np.sqrt(np.count_nonzero(trial)))
    low, high = (pick(cube, (0, 2, 3))[:, None, None] for pick in (np.nanmin, np.nanmax))
    # Clipped to the range of all clear values of this place.
    values = np.clip(values + _weighted(hints, weights), low, high)
    return Filled(values, (spread * factor).astype(np.float32))


def _lattice(hidden: Where) -> Where:
    """Pixels to look at: all of a small image, else each third, and those beside hidden ones."""
    if hidden.size <= WHOLE_BELOW:
        return np.ones(hidden.shape, bool)
    rows, columns = np.ogrid[: hidden.shape[0], : hidden.shape[1]]
    beside = blurred(hidden.astype(np.float32), REACHES[0]) > 0.01
    return np.asarray(beside | ((rows + columns) % 3 == 0))


def _from_time(flat: Field, open_: Where, date: int, times: Times, used: NDArray[np.intp]) -> Field:
    """Estimates (C, n) of the pixels ``used`` by weighted means of other dates; NaN elsewhere."""
    others = open_.copy()
    others[date] = False
    rules = Rules.of(flat, others, float(times.stamps[date]), times)
    found = np.full(flat.shape[1:], np.nan, np.float32)
    found[:, used] = rules.estimate(flat, others, used=used)[0]
    return found


# ---- regression on other dates


def _regressed(
    flat: Field,
    open_: Where,
    date: int,
    smooth: Field,
    train: Where,
    held: Where,
    used: NDArray[np.intp],
) -> tuple[Field, Field]:
    """Estimates (C, n) of the pixels ``used``, and the expected size of their errors.

    NaN at other pixels, at those without a clear reference, and where references share too few
    pixels with the date to fit a regression. The first reference is ``smooth``, the estimate from
    time alone. The regression is fitted on ``train`` and its ridge is chosen on ``held``.
    """
    values = np.full(flat.shape[1:], np.nan, np.float32)
    spread = values.copy()
    left = np.zeros(flat.shape[2], bool)
    left[used] = True
    images = [*flat, smooth]
    clear = [*open_, np.isfinite(smooth[0])]
    ranked = [len(flat), *_ranked(flat, open_, date, train)]
    while ranked and left.any():
        chosen, ranked = ranked[:REFERENCES], ranked[REFERENCES:]
        code = sum(clear[r].astype(np.uint8) << k for k, r in enumerate(chosen))
        code = np.where(left, code, 0)
        for subset, pixels in _patterns(code, len(chosen)):
            taken = [r for k, r in enumerate(chosen) if subset >> k & 1]
            there = np.logical_and.reduce([clear[r] for r in taken])
            known, apart = np.flatnonzero(train & there), np.flatnonzero(held & there)
            if len(known) < FEWEST:
                continue
            fit = _Regression([images[r] for r in taken], smooth, flat[date], known, apart)
            for part in np.array_split(pixels, -(-len(pixels) // _AT_ONCE)):
                values[:, part], spread[:, part] = fit(part)
            left[pixels] = False
    return values, spread


def _ranked(flat: Field, open_: Where, date: int, rows: Where) -> list[int]:
    """Other dates, the most useful first.

    A date is useful if it is clear where ``date`` is hidden, and predicts it well where both are
    clear (``rows``: the pixels of ``date`` to fit on).
    """
    hidden = ~open_[date] if not open_[date].all() else np.ones_like(open_[date])
    worth = {}
    for other in range(len(flat)):
        both = np.flatnonzero(rows & open_[other])
        cover = np.count_nonzero(open_[other] & hidden) / np.count_nonzero(hidden)
        if other == date or cover == 0 or len(both) < FEWEST:
            continue
        both = some_of(both, 1_500)
        x, y = flat[other][:, both], flat[date][:, both]
        x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
        gram = x @ x.T
        gram[np.diag_indices(len(gram))] += 1e-3 * np.trace(gram) / len(gram) + 1
        left = y - (np.linalg.solve(gram, x @ y.T)).T @ x
        share = (left**2).mean(1) / ((y**2).mean(1) + 1)
        worth[other] = cover * (1.02 - float(share.mean()))
    return sorted(worth, key=lambda d: -worth[d])


def _patterns(code: NDArray, bits: int) -> list[tuple[int, NDArray[np.intp]]]:
    """Sets of references (as bits) to fit a regression for, and the pixels that use each.

    ``code`` holds the set of clear references of each pixel. A set that few pixels have is
    replaced by its largest subset that gets a regression.
    """
    present, counts = np.unique(code, return_counts=True)
    total = counts[present > 0].sum()
    fitted = {int(c) for c, n in zip(present, counts, strict=True) if c and n >= OWN_FIT * total}
    singles = [1 << k for k in range(bits)]
    taken: dict[int, list[int]] = {}
    for one in map(int, present[present > 0]):
        within = [f for f in fitted if f & one == f] or [s for s in singles if s & one][:1]
        taken.setdefault(max(within, key=int.bit_count), []).append(one)
    return [(subset, np.flatnonzero(np.isin(code, codes))) for subset, codes in taken.items()]


class _Regression:
    """Predicts the spectra of one date from those of references, fitted on the pixels ``known``.

    It predicts the difference to ``base``, the estimate from time alone. A strong ridge leaves of
    it one shift for each band, which is what few pixels can tell.

    The strength of the ridge and the use of Fourier features are chosen on the pixels ``apart``.
    These lie away from ``known``, because neighbours of fitted pixels would favour a fit that holds
    only near them.
    """

    def __init__(
        self,
        references: Sequence[Field],
        base: Field,
        truth: Field,
        known: NDArray[np.intp],
        apart: NDArray[np.intp],
    ) -> None:
        self.references, self.base = references, base
        fit, test = some_of(known, FIT_ON), some_of(apart, TRY_ON)
        if len(test) < FEWEST // 4:
            test, fit = np.split(some_of(known, FIT_ON), [len(known) // 5])
        x, y = self._spectra(fit), (truth[:, fit] - base[:, fit]).T
        self.centre, self.width = x.mean(0), x.std(0) + 10
        z = (x - self.centre) / self.width
        self.mean, self.width_out = y.mean(0), y.std(0) + 10
        seen, reach = truth[:, fit], truth[:, fit].std(1)
        self.low, self.high = seen.min(1) - reach, seen.max(1) + reach
        rng = np.random.default_rng(0)
        self.turn = None
        if len(fit) >= LINEAR_BELOW:
            sizes, axes = np.linalg.eigh(np.cov(z.T).reshape(z.shape[1], -1).astype(np.float64))
            axes, sizes = axes[:, ::-1][:, :COMPONENTS], sizes[::-1][:COMPONENTS]
            frequency = rng.standard_normal((axes.shape[1], FEATURES)) * BANDWIDTH
            self.turn = (axes @ frequency / np.sqrt(sizes.mean())).astype(np.float32)
            self.phase = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)
        design = self._design(x)
        gram = (design.T @ design).astype(np.float64)
        right = (design.T @ (y - self.mean)).astype(np.float64)
        wanted = (truth[:, test] - base[:, test]).T - self.mean
        tried = self._design(self._spectra(test))
        best = np.inf
        for size in {z.shape[1] + 1, len(gram)}:
            for ridge in RIDGES if size <= z.shape[1] + 1 else RIDGES[:3]:
                weights = self._solve(gram[:size, :size], right[:size], ridge * len(fit))
                error = float((((tried[:, :size] @ weights - wanted) / self.width_out) ** 2).mean())
                if error < best:
                    best, self.weights = error, np.zeros(right.shape, np.float32)
                    self.weights[:size] = weights
        misses = np.abs(wanted - tried @ self.weights)
        self.usual = misses.mean(0)
        left = np.abs(y - self.mean - design @ self.weights)
        self.left = left.mean(0)
        about = (design.T @ (left - self.left)).astype(np.float64)
        self.spread = self._solve(gram, about, 0.03 * len(fit))

    def __call__(self, pixels: NDArray[np.intp]) -> tuple[Field, Field]:
        """Estimates and expected errors (C, n)."""
        design = self._design(self._spectra(pixels))
        values = design @ self.weights + self.mean + self.base[:, pixels].T
        values = np.clip(values, self.low, self.high)
        sizes = (design @ self.spread + self.left) / (self.left + 1e-3)
        return values.T, (np.clip(sizes, 0.3, 4) * (self.usual + 1)).T

    def _spectra(self, pixels: NDArray[np.intp]) -> Field:
        return np.concatenate([image[:, pixels] for image in self.references]).T

    def _design(self, x: Field) -> Field:
        z = (x - self.centre) / self.width
        parts = [np.ones((len(z), 1), np.float32), z]
        if self.turn is not None:
            parts.append(np.cos(z @ self.turn + self.phase) * np.float32(2**0.5 / 3))
        return np.concatenate(parts, 1)

    @staticmethod
    def _solve(gram: NDArray, right: NDArray, ridge: float) -> Field:
        penalty = np.full(len(gram), ridge)
        penalty[0] = 1e-6 * ridge  # the intercept stays free
        return np.linalg.solve(gram + np.diag(penalty), right).astype(np.float32)


# ---- continuing the residuals of clear pixels


def _hints(truth: Field, values: Field, near: Where, part: float) -> tuple[Field, Field]:
    """Hints on the error of each pixel from the clear pixels ``near`` it.

    Returns the hints (C, hints, H, W), and the share of the widest window that is clear (H, W).
    The hints are local means of residuals, one for each window of `REACHES`. ``part`` is the share
    of the clear pixels that are looked at.
    """
    residual = np.where(near, truth - values, np.float32(0))
    window = near.astype(np.float32) / np.float32(part)
    hints = []
    for reach in REACHES:
        support = blurred(window, reach)
        hints.append(blurred(residual, reach) / np.float32(part) / (support + _LITTLE))
    return np.stack(hints, 1), support


def _nonnegative(x: Field, y: Field) -> Field:
    """Weights of the columns of ``x`` by least squares with a small ridge, none below zero."""
    weights = np.zeros(x.shape[1])
    kept = np.arange(x.shape[1])
    while len(kept):
        a = x[:, kept].astype(np.float64)
        gram = a.T @ a
        gram[np.diag_indices(len(kept))] += 0.01 * np.trace(gram) / len(kept) + 1e-9
        found = np.linalg.solve(gram, a.T @ y)
        if found.min() >= 0:
            weights[kept] = np.minimum(found, 1.25)
            break
        kept = kept[found > 0]
    return weights.astype(np.float32)


def _weighted(hints: Field, weights: Sequence[Field]) -> Field:
    """Weighted sum of the hints of each band, (C, H, W)."""
    return np.stack([np.tensordot(w, h, 1) for w, h in zip(weights, hints, strict=True)])


def blurred(image: Field, reach: float) -> Field:
    """Blur the last two axes with a Gaussian window; pixels outside the image count as zero."""
    (down, rows), (across, columns) = (_window(n, reach) for n in image.shape[-2:])
    small = down @ image @ across.T
    return np.asarray(rows @ small @ columns.T)


@lru_cache(maxsize=16)
def _window(size: int, reach: float) -> tuple[Field, Field]:
    """Matrices (n, size) and (size, n) that blur along one axis, one after the other.

    The first spreads pixels over places that are ``step`` apart, the second blurs these. At the
    sizes of tiles that is faster than a Fourier transform.
    """
    step = max(int(reach / 1.25), 1)
    rest = np.sqrt(reach**2 - step**2 / 6)  # the variance of a hat is step**2 / 6
    count = -(-size // step)
    place = (np.arange(size) + 0.5) / step - 0.5
    hat = np.clip(1 - np.abs(np.arange(count)[:, None] - place), 0, None)
    lag = (np.arange(size) - (step * (np.arange(count)[:, None] + 0.5) - 0.5)) / rest
    bell = np.exp(-0.5 * lag.T**2) * (np.abs(lag.T) <= 3) / (np.sqrt(2 * np.pi) * rest)
    return hat.astype(np.float32), bell.astype(np.float32)
