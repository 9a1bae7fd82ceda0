"""Estimates of a date as a weighted mean of other dates, for dates with too few clear pixels.

The weights come from several rules. Each is ordinary kriging in time (Cressie 1993, chapter 3): a
covariance says how alike two dates are, by the days between them, and the weights are those of the
unbiased linear estimate with the least variance. They depend on which dates are clear at a pixel,
so that a smoother over time and a filling of gaps are one thing here: kriging with a covariance
that falls linearly and a nugget is Whittaker smoothing of order 1, and one with a yearly cosine is
harmonic regression with a ridge.

All functions work on NumPy arrays of float32 DN, NaN where there is no clear measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tec_zarr.inpaint.samples import (
    FEWEST,
    Field,
    Filled,
    Times,
    Where,
    covering_factor,
    some_of,
)

NEAREST = 12
"""Dates in one weighted mean: the nearest in time."""


COMPARED = 8
"""Nearest dates on which rules are compared and intervals are calibrated."""


CERTAINTY = 2.0
"""Power of one date's mean squared error in the likelihood: that of four independent errors."""


UNSEEN = (0.95, 1.2)
"""Intervals of unseen dates are wider by the first, and the second over the number of dates that
they are calibrated on.

The errors of a few other dates underestimate that of a date whose own mean is unknown. Measured on
gaps of one to eight dates and ends of six dense training series, and on series of four dates."""


NOISE_FROM = 5
"""Fewest dates that tell which of them are noisy."""


_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """Ordinary kriging in time.

    Attributes
    ----------
    covariance : function
        Covariance of two dates from the days (or positions) between them, up to a constant.
    nugget : float
        Variance of what a date does not share with others, in the units of ``covariance``.
    share : float
        Share of the rule before it is compared with others.
    """

    covariance: Callable[[_Array], _Array]
    nugget: float
    share: float

    def usual(self, stamps: _Array) -> float:
        """Half the mean squared difference of two dates at these times."""
        apart = self.covariance(np.abs(stamps[:, None] - stamps))
        return float(np.diag(apart).mean() - apart.mean()) + self.nugget

    def weights(
        self, stamps: _Array, moment: float, clear: Where, noise: _Array
    ) -> tuple[_Array, _Array]:
        """Weights of dates to estimate the one at ``moment``, and the variance of its error.

        Parameters
        ----------
        stamps : ndarray, (dates,)
            Times of the dates.
        clear : ndarray of bool, (patterns, dates)
            Which dates may be used. The weights of a pattern without any are 0.
        noise : ndarray, (dates,)
            What dates do not share with any other, beyond the nugget: in units of half the usual
            squared difference of two dates.

        Returns
        -------
        weights : ndarray, (patterns, dates)
            Their sum is 1.
        variance : ndarray, (patterns,)
            In the units of the covariance.
        """
        apart = self.covariance(np.abs(stamps[:, None] - stamps))
        towards = self.covariance(np.abs(stamps - moment))
        least = min(apart.min(), towards.min()) - 0.1  # a constant changes no weight
        apart, towards = apart - least, towards - least
        pairs = np.where(clear[:, :, None] & clear[:, None, :], apart, 0.0)
        own = np.diag(apart) + self.nugget + noise * self.usual(stamps)
        place = np.arange(len(stamps))
        pairs[:, place, place] = np.where(clear, own, 1.0)
        right = np.stack([np.where(clear, towards, 0.0), clear.astype(float)], -1)
        simple, ones = np.moveaxis(np.linalg.solve(pairs, right), -1, 0)
        lagrange = (1 - simple.sum(1)) / np.maximum(ones.sum(1), 1e-12)
        weights = simple + lagrange[:, None] * ones
        at_zero = float(self.covariance(np.zeros(1))[0]) - least + self.nugget
        variance = at_zero - (weights * right[..., 0]).sum(1) + lagrange
        return weights, np.maximum(variance, 1e-3 * at_zero)


def _yearly(first: float, second: float) -> Callable[[_Array], _Array]:
    """Covariance of a sum of the first two harmonics of a year."""
    turn = 2 * np.pi / 365.25
    return lambda lag: first * np.cos(turn * lag) + second * np.cos(2 * turn * lag)


def _power(exponent: float) -> Callable[[_Array], _Array]:
    return lambda lag: -(lag**exponent)


DATED = (
    Rule(lambda lag: _yearly(0.5, 0.15)(lag) + 0.5 * np.exp(-lag / 30), 0.1, 0.35),
    Rule(lambda lag: (1 + lag / 30) * np.exp(-lag / 30), 0.1, 0.2),
    Rule(lambda lag: np.exp(-lag / 40), 0.1, 0.1),
    Rule(lambda lag: -lag / 100, 0.05, 0.15),
    Rule(lambda lag: -((lag / 10) ** 0.5) / 3, 0.1, 0.1),
    Rule(lambda lag: np.exp(-lag / 8), 0.2, 0.05),
    Rule(_yearly(1, 0.3), 0.5, 0.05),
)
"""Rules for dates with times. Their shares are what was best on training series."""


class LastBefore(Rule):
    """The last clear date before the moment; the first one after it, if there is none before."""

    def weights(
        self, stamps: _Array, moment: float, clear: Where, noise: _Array
    ) -> tuple[_Array, _Array]:
        """As `Rule.weights`; all variances are 1."""
        lag = moment - stamps
        rank = np.where(clear, np.where(lag > 0, lag, 2 * np.ptp(stamps) + 1 - lag), np.inf)
        chosen = np.zeros(clear.shape)
        np.put_along_axis(chosen, rank.argmin(1)[:, None], 1.0, axis=1)
        return chosen * clear, np.ones(len(clear))


UNDATED = (
    *(Rule(_power(exponent), 0.3, 1 / 6) for exponent in (0.5, 0.15, 0.3, 0.75, 1.0)),
    LastBefore(np.zeros_like, 0.0, 1 / 6),
)
"""Rules for dates of which only the order is known, by steps between dates."""


def from_other_dates(cube: Field, clear: Where, date: int, times: Times) -> Filled:
    """Estimate a date that has no clear pixels, or too few to fit a regression."""
    others = clear.copy()
    others[date] = False
    flat, open_ = cube.reshape(*cube.shape[:2], -1), others.reshape(len(clear), -1)
    rules = Rules.of(flat, open_, float(times.stamps[date]), times)
    values, deviation = rules.estimate(flat, open_)
    half_width = deviation * rules.factor(flat, open_)
    return Filled(values.reshape(cube.shape[1:]), half_width.reshape(cube.shape[1:]))


@dataclass(frozen=True)
class Rules:
    """Rules that give weights to dates, and the share of each rule for one moment.

    The share of a rule is its share beforehand times the likelihood of its errors on the `COMPARED`
    nearest dates (Bayesian model averaging, Hoeting et al. 1999, with errors of dates left out in
    place of the likelihood). Each of these dates is estimated from dates that are as far away as
    those around the moment are from it.

    Attributes
    ----------
    moment : float
        The time to estimate.
    near : list of int
        Dates with clear pixels, the nearest first.
    stamps : ndarray, (T,)
        Times of all dates.
    rules : tuple of Rule
    worth : ndarray, (rules,)
        Share of each rule; their sum is 1.
    noise : ndarray, (T,)
        What dates do not share with others: see `Rule.weights`.
    """

    moment: float
    near: list[int]
    stamps: _Array
    rules: tuple[Rule, ...]
    worth: _Array
    noise: _Array

    @classmethod
    def of(cls, flat: Field, clear: Where, moment: float, times: Times) -> Rules:
        """Compare the rules on the dates nearest to ``moment``: the rules with their shares.

        ``flat`` is (T, C, n). ``clear`` (T, n) leaves out what is not to be used, a date to
        estimate above all.
        """
        stamps, rules = times.stamps, DATED if times.dated else UNDATED
        order = np.argsort(np.abs(stamps - moment), kind="stable").tolist()
        near = [d for d in order if clear[d].any()]
        shares = np.array([rule.share for rule in rules])
        around = near[: 2 * NEAREST]
        apart = _squared_differences(flat, clear, around)
        noise = np.zeros(len(stamps))
        noise[around] = _noise(apart)
        even = cls(moment, near, stamps, rules, shares, noise)
        likelihood = np.log(shares)
        for place, other in enumerate(around[:COMPARED]):
            rest = [around.index(d) for d in even.away(other, around)]
            rest = [k for k in rest if np.isfinite(apart[place, k])][:NEAREST]
            if not rest:
                continue
            within = apart[np.ix_(rest, rest)]
            within = np.where(np.isfinite(within), within, np.nanmean(within))
            open_ = np.ones((1, len(rest)), bool)
            used = [around[k] for k in rest]
            for row, rule in enumerate(rules):
                weights = rule.weights(stamps[used], float(stamps[other]), open_, noise[used])[0][0]
                error = weights @ apart[place, rest] - 0.5 * weights @ within @ weights
                likelihood[row] -= CERTAINTY * np.log(max(error, 1.0))
        worth = np.exp(likelihood - likelihood.max())
        return cls(moment, near, stamps, rules, worth / worth.sum(), noise)

    def away(self, other: int, among: Sequence[int]) -> list[int]:
        """Dates ``among`` from which to estimate ``other`` as a trial, the nearest first.

        They are as far from ``other`` as the nearest dates are from the moment. If fewer than two
        are, they are all dates but ``other``.
        """
        lags = self.stamps[self.near] - self.moment
        before = np.max(lags[lags <= 0], initial=-np.inf)
        after = np.min(lags[lags >= 0], initial=np.inf)
        lag = {d: self.stamps[d] - self.stamps[other] for d in among if d != other}
        far = [d for d in lag if lag[d] <= before or lag[d] >= after]
        return sorted(far if len(far) > 1 else lag, key=lambda d: (abs(lag[d]), d))

    def estimate(
        self,
        flat: Field,
        clear: Where,
        other: int | None = None,
        used: NDArray[np.intp] | None = None,
    ) -> tuple[Field, Field]:
        """Weighted mean (C, n) of the dates that are clear at each pixel; NaN if none is.

        Parameters
        ----------
        flat : ndarray of float32, (T, C, n)
        clear : ndarray of bool, (T, n)
        other : int, optional
            A date to estimate as a trial, in place of the moment.
        used : ndarray of int, optional
            The pixels to estimate, by default all.

        Returns
        -------
        values : ndarray of float32, (C, n)
        deviation : ndarray of float32, (n,)
            Standard deviation of the error by the first rule, up to a factor.
        """
        order = list(self.near if other is None else self.away(other, self.near))
        pixels = np.arange(flat.shape[2]) if used is None else used
        values = np.full((flat.shape[1], len(pixels)), np.nan, np.float32)
        deviation = np.full(len(pixels), np.nan, np.float32)
        left = np.ones(len(pixels), bool)
        moment = self.moment if other is None else float(self.stamps[other])
        while order and left.any():
            near, order = order[:NEAREST], order[NEAREST:]
            open_ = [clear[one][pixels] for one in near]
            code = sum(seen.astype(np.int64) << bit for bit, seen in enumerate(open_))
            code[~left] = 0
            present, index = np.unique(code, return_inverse=True)
            patterns = (present[:, None] >> np.arange(len(near)) & 1).astype(bool)
            mixed, variance = np.zeros(patterns.shape), np.zeros(len(patterns))
            for row, (rule, worth) in enumerate(zip(self.rules, self.worth, strict=True)):
                if worth > 0.01 or row == 0:
                    weights, spread = rule.weights(
                        self.stamps[near], moment, patterns, self.noise[near]
                    )
                    mixed += worth * weights
                    variance = spread if row == 0 else variance
            if other is not None:  # its own noise is not that of the moment
                variance = variance + self.noise[other] * self.rules[0].usual(self.stamps[near])
            mixed /= np.maximum(mixed.sum(1, keepdims=True), 1e-12)
            here = code > 0
            values[:, here] = 0
            for column, one in enumerate(near):
                seen = np.flatnonzero(open_[column] & here)
                share = mixed[:, column].astype(np.float32)[index[seen]]
                values[:, seen] += share * flat[one][:, pixels[seen]]
            deviation[here] = np.sqrt(variance)[index[here]]
            left &= ~here
        return values, deviation

    def factor(self, flat: Field, clear: Where) -> Field:
        """Factor of the deviations (C, 1) that makes them half widths; NaN without other dates.

        It comes from the errors of the nearest dates, each estimated from dates that are as far
        away as those around the moment.
        """
        found = []
        for other in self.near[:COMPARED]:
            pick = some_of(np.flatnonzero(clear[other]), 1_000)
            some = flat[:, :, pick]
            guess, deviation = self.estimate(some, clear[:, pick], other)
            ratios = (np.abs(some[other] - guess) / deviation)[:, np.isfinite(guess[0])]
            if ratios.size:
                found.append(covering_factor(ratios)[:, 0])
        if not found:
            return np.full((flat.shape[1], 1), np.nan, np.float32)
        return np.stack(found).mean(0) * np.float32(UNSEEN[0] + UNSEEN[1] / len(found))


def _noise(apart: _Array) -> _Array:
    """Noise of dates from their squared differences, as `Rule.weights` takes it.

    A date that is twice as far from its most similar date as dates usually are has haze, or clouds
    that the mask missed. Few dates do not tell what is usual.
    """
    others = np.where(np.eye(len(apart), dtype=bool), np.nan, apart)
    known = np.isfinite(others).any(1)
    noise = np.zeros(len(apart))
    if np.count_nonzero(known) >= NOISE_FROM:
        least = np.nanmin(others[known], axis=1)
        beyond = np.clip(least - 2 * np.median(least), 0, None)
        noise[known] = beyond / max(float(np.nanmedian(others)) / 2, 1.0)
    return noise


def _squared_differences(flat: Field, open_: Where, dates: Sequence[int]) -> _Array:
    """Mean squared differences (dates, dates) over pixels that are clear on both dates.

    NaN for two dates that share too few clear pixels, of at most 2000 that are looked at.
    """
    if not dates:
        return np.zeros((0, 0))
    pick = some_of(np.flatnonzero(open_[list(dates)].any(0)), 2_000)
    seen = open_[list(dates)][:, pick].astype(np.float64)
    values = np.stack([np.nan_to_num(flat[d][:, pick]) for d in dates]).astype(np.float64)
    values *= seen[:, None]
    squares = (values**2).sum(1) @ seen.T
    rows = values.reshape(len(values), -1)
    shared = seen @ seen.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (squares + squares.T - 2 * rows @ rows.T) / (shared * values.shape[1])
    return np.where(shared >= min(FEWEST // 4, len(pick) / 2), np.maximum(mean, 0), np.nan)
