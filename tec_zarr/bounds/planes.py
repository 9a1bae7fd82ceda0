"""One plane (a band of a date) coded within a bound, from everything decoded before it.

The plane is visited in interlaced passes: a coarse lattice first, then three passes for each
halving of its spacing. A pixel is predicted by least squares from decoded pixels on both sides of
it and from reference planes (earlier bands, the previous date, a model's reconstruction). The
decoder knows all the regressors, so the weights travel in the whitened coordinates of their Gram
matrix, where one rounding step fits every coefficient and most of them round to zero.

Everything that decides what a decoder reads is exact: regressors, Gram matrices and predictions
are integers that float64 holds without rounding (so the order of a matrix product cannot matter),
and the factorisation uses only elementwise additions, multiplications, divisions and square roots.

Regressors are many, so they are made for some rows of a pass at a time, once for the Gram matrix
and once more for the predictions: in the processor's cache that costs no more than keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tec_zarr.bounds.lattices import (
    SPREAD_UNIT,
    Pass,
    Reference,
    Surroundings,
    passes,
    quarter,
    summed,
)
from tec_zarr.entropy.residual_tables import (
    SCALES,
    SHAPES,
    SHIFTS,
    SymbolCoder,
    code_lengths,
    quarter_octave,
    scale_thresholds,
)

_WEIGHT_BITS = 18
_WEIGHT_LIMIT = float(1 << 23)
_SPREAD_WEIGHTS = np.array([0, 1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181]) / 64.0
_FEW = 128  # valid pixels in a pass, below which spreads are not modelled
_TRUST = 16.0  # largest weight of a pixel in a fit
_SKIP, _RAW = SHAPES, SHAPES + 1
_MODES = SHAPES + 2


@dataclass(frozen=True)
class _Quantiser:
    """Steps of the residuals: one for the plane, or one for each pixel."""

    step: float | np.ndarray  # DN; an array goes pixel by pixel with what is quantised
    unit: float  # the smallest step of the plane, to which the scale indexes refer

    @classmethod
    def of(cls, bound: int | np.ndarray) -> _Quantiser:
        step = 2.0 * bound + 1.0
        return cls(step, float(np.min(step)))

    def at(self, where: tuple[slice, slice] | np.ndarray | None) -> _Quantiser:
        """The steps at some of the pixels, in one dimension."""
        if where is None or not isinstance(self.step, np.ndarray):
            return self
        return _Quantiser(self.step[where].ravel(), self.unit)

    @property
    def half(self) -> float | np.ndarray:
        """The bound itself."""
        return 0.5 * (self.step - 1.0)

    @property
    def thresholds(self) -> np.ndarray:
        """Between scale indexes, for expected sizes over ``step / unit``, in 1/256 DN."""
        return scale_thresholds(self.unit * SPREAD_UNIT)

    def groups(self, count: int) -> Iterator[tuple[float, slice | np.ndarray, int]]:
        """Yield (step, which pixels, how many), for each distinct step in rising order."""
        if not isinstance(self.step, np.ndarray):
            yield self.step, slice(None), count
            return
        for step in np.unique(self.step).tolist():
            where = np.flatnonzero(self.step == step)
            yield step, where, len(where)


def _exact_limit(count: int) -> float:
    """Largest magnitude of which ``count`` squares add up exactly in float64."""
    return float(1 << min((53 - max(count, 1).bit_length()) // 2, 20)) - 1.0


def _trust(
    activity: list[np.ndarray],
    used: np.ndarray | None,
    count: int,
    step: float | np.ndarray,
) -> np.ndarray | None:
    """Weights 1 .. 16 of the pixels of a pass in the fit: what looks quiet counts more.

    Least squares would otherwise serve the few pixels with the largest residuals, and bits are
    spent on the logarithm of residuals.
    """
    if count < _FEW or not activity:
        return None
    total = summed(activity) + (0.25 * step + 0.25) * SPREAD_UNIT
    total = total if used is None else total[used]
    quiet = np.partition(total, count // 4)[count // 4]
    return np.clip(np.rint(_TRUST * quiet / total), 1.0, _TRUST)


def _cholesky(gram: np.ndarray) -> np.ndarray:
    """Lower triangular factor, elementwise and in a fixed order (LAPACK's order is not)."""
    work = gram.copy()
    factor = np.zeros_like(work)
    for j in range(len(work)):
        pivot = np.sqrt(max(work[j, j], 1.0))
        factor[j:, j] = work[j:, j] / pivot
        factor[j, j] = pivot
        column = factor[j + 1 :, j]
        work[j + 1 :, j + 1 :] -= np.multiply.outer(column, column)
    return factor


def _solve_transposed(factor: np.ndarray, whitened: np.ndarray) -> np.ndarray:
    """Solve factor.T @ weights = whitened, elementwise and in a fixed order."""
    rest = whitened.copy()
    for j in range(len(rest) - 1, -1, -1):
        rest[j] = rest[j] / factor[j, j]
        rest[:j] -= factor[j, :j] * rest[j]
    return rest


def _with_ridge(gram: np.ndarray, count: int) -> np.ndarray:
    diagonal = np.diagonal(gram).copy()
    ridge = np.floor(diagonal * 2.0**-24) + max(count / 8, 1.0)
    gram[np.diag_indices(len(gram))] = diagonal + ridge
    return gram


class PlaneCoder:
    """Codes planes one after another; keeps what earlier planes teach about later ones."""

    def __init__(self, coder: SymbolCoder) -> None:
        self._coder = coder
        self._weight_size: dict[tuple[int, int], np.ndarray] = {}

    def plane(
        self,
        shape: tuple[int, int],
        valid: np.ndarray | None,
        references: list[Reference],
        bound: int | np.ndarray,
        limits: tuple[int, int],
        target: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode ``target`` or, when it is None, decode.

        Parameters
        ----------
        shape : (int, int)
            Height and width.
        valid : ndarray or None
            bool (H, W); pixels that are False cost nothing and decode to a prediction.
        references : list of Reference
            Decoded planes of this shape, most useful first.
        bound : int or ndarray
            Largest allowed error, DN; of every pixel or of each, float64 integers (H, W).
        limits : (int, int)
            Smallest and largest valid value of the plane, DN.
        target : ndarray or None
            float64 integers (H, W), DN.

        Returns
        -------
        decoded : ndarray
            int32 (H, W), DN.
        spread : ndarray
            float64 (H, W): the size of the residuals in 1/256 DN.
        """
        low, high = float(limits[0]), float(limits[1])
        middle = float((limits[0] + limits[1]) // 2)
        decoded = np.full(shape, middle, np.int32)
        spread = np.zeros(shape)
        if low == high:
            return decoded, spread
        quantiser = _Quantiser.of(bound)
        for pass_ in passes(*shape):
            _, spacing, row, column = pass_
            place = (slice(row, None, spacing), slice(column, None, spacing))
            used = None
            if valid is not None and not valid[place].all():
                used = np.flatnonzero(valid[place].ravel())
            wanted = None if target is None else target[place].ravel()
            values, sizes = self._pass(
                Surroundings(decoded, spread, references, pass_, middle),
                used,
                quantiser.at(place),
                (low, high),
                pass_,
                wanted,
            )
            decoded[place] = values.reshape(decoded[place].shape)
            spread[place] = sizes.reshape(decoded[place].shape)
        return decoded, spread

    def _pass(
        self,
        given: Surroundings,
        used: np.ndarray | None,
        quantiser: _Quantiser,
        limits: tuple[float, float],
        pass_: Pass,
        wanted: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Code one pass; returns its decoded values and spreads, each float64 (n,)."""
        low, high = limits
        predicted = given.whole(given.start)[0]
        count = len(predicted) if used is None else len(used)
        activity = given.whole(given.activity) if count >= _FEW else []
        if count >= 8:
            self._regression(given, used, count, quantiser.step, pass_, activity, predicted, wanted)
        del given
        predicted = np.clip(quarter(predicted), low, high)
        sizes = np.zeros(len(predicted))
        if not count:
            return predicted, sizes
        chosen = slice(None) if used is None else used
        base = predicted[chosen]
        quantiser = quantiser.at(used)
        step = quantiser.step
        steps = None
        if wanted is not None:
            wanted = wanted[chosen]
            steps = np.floor((wanted - base + quantiser.half) / step).astype(np.int64)
        if used is not None:
            activity = [a[used] for a in activity]
        mode, expected, scales = self._spread_model(steps, activity, count, quantiser, limits)
        del activity
        if expected is None:  # the mode is _RAW
            index = np.empty(count)
            for size, where, amount in quantiser.groups(count):
                known = None
                if wanted is not None:
                    known = np.floor((wanted[where] - low) / size).astype(np.int64)
                index[where] = self._coder.uniform(known, amount, int((high - low) // size) + 1)
            restored = np.minimum(low + index * step + quantiser.half, high)
            sizes[chosen] = np.abs(restored - base) * SPREAD_UNIT
        else:
            if scales is None:  # the mode is _SKIP
                steps = np.zeros(count, np.int64)
            else:
                steps = self._coder.symbols(steps, scales, mode)
            restored = np.clip(base + steps * step, low, high)
            quiet = np.minimum(expected, step * (SPREAD_UNIT / 4))
            sizes[chosen] = np.where(steps == 0, quiet, np.abs(steps) * (step * SPREAD_UNIT))
        predicted[chosen] = restored
        return predicted, sizes

    def _regression(
        self,
        given: Surroundings,
        used: np.ndarray | None,
        count: int,
        step: float | np.ndarray,
        pass_: Pass,
        activity: list[np.ndarray],
        predicted: np.ndarray,
        wanted: np.ndarray | None,
    ) -> None:
        """Code the weights of a pass; corrects four times the prediction in place."""
        limit = _exact_limit(count)
        trust = _trust(activity, used, count, step)
        narrow = limit if trust is None else float(limit // _TRUST)
        error = None
        if wanted is not None:
            error = 4.0 * wanted - predicted
            error = error if used is None else error[used]
            error = error if trust is None else error * trust
        gram, rest = np.zeros((0, 0)), np.zeros(0)
        keep = 0
        for rows, pixels in given.bands():
            columns = given.columns(rows)
            keep = min(len(columns), count // 8)
            known = pixels
            if used is not None:
                known = slice(*np.searchsorted(used, (pixels.start, pixels.stop)).tolist())
                inside = used[known] - pixels.start
                columns = [c[inside] for c in columns[:keep]]
            fit = np.stack(columns[:keep])
            np.clip(fit, -narrow, narrow, out=fit)
            if trust is not None:
                fit *= trust[known]
            if not len(gram):
                gram, rest = np.zeros((keep, keep)), np.zeros(keep)
            gram += fit @ fit.T  # exact: integers below 2 ** 53
            if error is not None:
                rest += fit @ error[known]
        factor = _cholesky(_with_ridge(gram, count))
        whitened = grain = None
        if error is not None:
            whitened = np.zeros(keep)
            for j in range(keep):
                whitened[j] = rest[j] / factor[j, j]
                rest[j + 1 :] -= factor[j + 1 :, j] * whitened[j]
            left = max(float(error @ error) - float(whitened @ whitened), 0.0) / count
            power = 1.0 if trust is None else float(np.mean(trust * trust))
            noise = np.sqrt(left + np.mean(power * 16.0 * step * step / 12.0))
            grain = int(np.clip(np.rint(4.0 * np.log2(3.0 * noise)), 0, 255))
        grain = self._coder.number(grain, 256)
        width = quarter_octave(grain)
        quantised = None
        if whitened is not None:
            ratio = whitened / width
            quantised = np.where(np.abs(ratio) < 0.65, 0.0, np.rint(ratio)).astype(np.int64)
        quantised = self._weights(quantised, keep, pass_)
        weights = _solve_transposed(factor, quantised * width)
        weights = np.clip(np.rint(weights * (1 << _WEIGHT_BITS)), -_WEIGHT_LIMIT, _WEIGHT_LIMIT)
        if not weights.any():
            return
        for rows, pixels in given.bands():
            every = np.stack(given.columns(rows)[:keep])
            np.clip(every, -limit, limit, out=every)
            predicted[pixels] += np.floor((weights @ every) * 2.0**-_WEIGHT_BITS + 0.5)

    def _weights(self, quantised: np.ndarray | None, keep: int, pass_: Pass) -> np.ndarray:
        """Code whitened weights; their sizes are learnt from the same pass of earlier planes."""
        key = (pass_[0], pass_[1])
        learnt = self._weight_size.get(key, np.zeros(0))
        sizes = np.full(keep, 1.0)
        sizes[: len(learnt)] = learnt[:keep]
        thresholds = scale_thresholds(1.0)
        scales = np.searchsorted(thresholds, sizes).astype(np.int64)
        quantised = self._coder.symbols(quantised, scales, 1)
        grown = np.full(max(keep, len(learnt)), 1.0)
        grown[: len(learnt)] = learnt
        grown[:keep] = np.maximum(grown[:keep] * 0.6 + np.abs(quantised) * 0.4, 0.05)
        self._weight_size[key] = grown
        return quantised

    def _spread_model(
        self,
        steps: np.ndarray | None,
        activity: list[np.ndarray],
        count: int,
        quantiser: _Quantiser,
        limits: tuple[float, float],
    ) -> tuple[int, np.ndarray | None, np.ndarray | None]:
        """Code how large residuals are; returns (mode, expected size, scale indexes)."""
        mode = floor = parts = None
        if steps is not None:
            mode, floor, parts = _choose_spread(steps, activity, quantiser, limits)
        mode = self._coder.number(mode, _MODES)
        if mode == _RAW:
            return mode, None, None
        if mode == _SKIP:
            return mode, np.zeros(count), None
        floor = self._coder.number(floor, SCALES)
        if len(activity):
            parts = self._coder.uniform(parts, len(activity), len(_SPREAD_WEIGHTS))
        else:
            parts = np.zeros(0, np.int64)
        expected, scales = _expected(floor, parts, activity, count, quantiser)
        return mode, expected, scales


def _expected(
    floor: int,
    parts: np.ndarray,
    activity: list[np.ndarray],
    count: int,
    quantiser: _Quantiser,
) -> tuple[np.ndarray, np.ndarray]:
    thresholds = quantiser.thresholds
    coarser = quantiser.step / quantiser.unit
    total = np.full(count, thresholds[min(floor, SCALES - 2)] * coarser)
    for part, column in zip(parts.tolist(), activity, strict=True):
        if part:
            total = total + column * _SPREAD_WEIGHTS[part]
    relative = total / coarser if np.ndim(coarser) else total
    return total, np.searchsorted(thresholds, relative).astype(np.int64)


def _choose_spread(
    steps: np.ndarray,
    activity: list[np.ndarray],
    quantiser: _Quantiser,
    limits: tuple[float, float],
) -> tuple[int, int, np.ndarray]:
    """Encoder only: fit the expected size of residuals, and pick the cheapest mode."""
    none = np.zeros(len(activity), np.int64)
    step = quantiser.step
    if not steps.any():
        return _SKIP, 0, none
    size = np.abs(steps) * (step * SPREAD_UNIT)
    columns = np.stack([*activity, np.full(len(size), step * SPREAD_UNIT)])
    active = np.ones(len(columns), bool)
    expected = np.full(len(size), np.maximum(size.mean(), 0.01 * step))
    for _ in range(4):
        weight = 1.0 / np.maximum(expected, step) ** 2
        while True:
            chosen = columns[active]
            scaled = chosen * weight
            gram = scaled @ chosen.T
            gram[np.diag_indices(len(gram))] *= 1.0 + 1e-6
            gram[np.diag_indices(len(gram))] += 1e-12
            solution = np.linalg.solve(gram, scaled @ size)
            if (solution >= 0).all() or active.sum() == 1:
                break
            active[np.flatnonzero(active)[solution < 0]] = False
            if not active.any():
                active[-1] = True
        fitted = np.zeros(len(columns))
        fitted[active] = np.maximum(solution, 0.0)
        expected = np.maximum(fitted @ columns, 0.01 * step + 0.01 * size.mean())
    between = 0.5 * (_SPREAD_WEIGHTS[1:] + _SPREAD_WEIGHTS[:-1])
    parts = np.searchsorted(between, fitted[:-1]).astype(np.int64)
    constant = max(fitted[-1] * quantiser.unit * SPREAD_UNIT, 0.0)
    floor = int(np.searchsorted(quantiser.thresholds, constant))
    _, scales = _expected(floor, parts, activity, len(steps), quantiser)
    shift = SHIFTS[scales]
    half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
    magnitude = np.minimum(np.abs((steps + half) >> shift), 128)
    joint = np.bincount(scales * 129 + magnitude, minlength=SCALES * 129)
    costs = [float(joint @ code_lengths(s).ravel()) for s in range(SHAPES)]
    best = int(np.argmin(costs))
    raw = len(steps) * np.mean(np.log2((limits[1] - limits[0]) // step + 1.0))
    if raw < costs[best] + 8.0 + 4.0 * len(activity):
        return _RAW, 0, none
    return best, floor, parts
