"""One plane (a band of a date) coded within a bound, from everything decoded before it.

The plane is visited in interlaced passes: a coarse lattice first, then three passes for each
halving of its spacing. A pixel is predicted by least squares from decoded pixels on both sides of
it and from reference planes (earlier bands, the previous date, a model's reconstruction). The
decoder knows all the regressors, so the weights travel in the whitened coordinates of their Gram
matrix, where one rounding step fits every coefficient and most of them round to zero.

Everything that decides what a decoder reads is exact: regressors, Gram matrices and predictions
are integers that float64 holds without rounding (so the order of a matrix product cannot matter),
and the factorisation uses only elementwise additions, multiplications, divisions and square roots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tec_zarr.scale_tables import (
    SCALES,
    SHAPES,
    SHIFTS,
    SymbolCoder,
    code_lengths,
    quarter_octave,
    scale_thresholds,
)

TOP_SPACING = 64
_WEIGHT_BITS = 18
_WEIGHT_LIMIT = float(1 << 23)
_SPREAD_UNIT = 256  # spreads are stored in 1/256 DN
_SPREAD_WEIGHTS = np.array([0, 1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181]) / 64.0
_FEW = 128  # valid pixels in a pass, below which spreads are not modelled
_TRUST = 16.0  # largest weight of a pixel in a fit
_SKIP, _RAW = SHAPES, SHAPES + 1
_MODES = SHAPES + 2

_NEAREST = {
    1: ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    2: ((-1, 0), (0, -1), (0, 1), (1, 0)),
    3: ((-1, 0), (0, -1), (0, 1), (1, 0)),
}


def _own_offsets(kind: int, radius2: int) -> tuple[tuple[int, int], ...]:
    """Decoded neighbours of a pass beyond the nearest four, nearest first."""
    known = {1: ((1, 1),), 2: ((0, 1), (1, 0)), 3: ((0, 1), (1, 0), (1, 1))}[kind]
    found = [
        (dy, dx)
        for dy in range(-3, 4)
        for dx in range(-3, 4)
        if (dy & 1, dx & 1) in known and dy * dy + dx * dx <= radius2
    ]
    found = [offset for offset in found if offset not in _NEAREST[kind]]
    return tuple(sorted(found, key=lambda o: (o[0] ** 2 + o[1] ** 2, o)))


_FARTHER = {1: _own_offsets(1, 18), 2: _own_offsets(2, 10), 3: _own_offsets(3, 9)}
_AROUND = ((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1))


@dataclass(frozen=True)
class Reference:
    """A decoded plane that helps to predict another one.

    Attributes
    ----------
    values : ndarray
        float64 integers (H, W), DN.
    spread : ndarray or None
        float64 (H, W), how wrong its own prediction was, 1/256 DN.
    same : bool
        It shows the same quantity (a reconstruction or an earlier date of this band).
    wide : bool
        Its neighbours are regressors too, not the pixel alone.
    """

    values: np.ndarray
    spread: np.ndarray | None
    same: bool
    wide: bool


class _Lattices:
    """Shifted views of a plane on the lattice of a pass, replicated at the edges."""

    def __init__(self, plane: np.ndarray, spacing: int, row: int, column: int) -> None:
        self._plane, self._spacing, self._row, self._column = plane, spacing, row, column
        height, width = plane.shape
        self._rows = len(range(row, height, spacing))
        self._columns = len(range(column, width, spacing))
        self._padded: dict[tuple[int, int], np.ndarray] = {}

    def at(self, dy: int, dx: int) -> np.ndarray | None:
        """Values ``dy``, ``dx`` half spacings away, float64 (n,); None where none exist."""
        half = self._spacing // 2
        y, x = self._row + dy * half, self._column + dx * half
        up, first = divmod(y, self._spacing) if self._spacing > 1 else (y, 0)
        left, start = divmod(x, self._spacing) if self._spacing > 1 else (x, 0)
        padded = self._padded.get((first, start))
        if padded is None:
            lattice = self._plane[first :: self._spacing, start :: self._spacing]
            if not lattice.size:
                return None
            extra = max(0, self._rows - lattice.shape[0]), max(0, self._columns - lattice.shape[1])
            padded = _replicated(lattice, *extra)
            self._padded[first, start] = padded
        view = padded[2 + up : 2 + up + self._rows, 2 + left : 2 + left + self._columns]
        return view.ravel()


def _replicated(lattice: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``lattice`` with two edge pixels more on each side, and more below and on the right."""
    height, width = lattice.shape
    out = np.empty((height + 4 + rows, width + 4 + columns))
    inner = out[:, 2 : 2 + width]
    inner[2 : 2 + height] = lattice
    inner[:2] = lattice[0]
    inner[2 + height :] = lattice[-1]
    out[:, :2] = inner[:, :1]
    out[:, 2 + width :] = inner[:, -1:]
    return out


def passes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return (kind, spacing, first row, first column) of each pass over a plane, in order."""
    spacing = 1
    while spacing < TOP_SPACING and spacing * 2 < max(height, width):
        spacing *= 2
    order = [(0, spacing, 0, 0)]
    while spacing > 1:
        half = spacing // 2
        order += [(1, spacing, half, half), (2, spacing, 0, half), (3, spacing, half, 0)]
        spacing = half
    return [p for p in order if p[2] < height and p[3] < width]


def _quarter(four: np.ndarray) -> np.ndarray:
    return np.floor((four + 2.0) * 0.25)


def _sum(arrays: list[np.ndarray]) -> np.ndarray:
    """Sum in the order given (that of ``np.sum`` over an axis is not promised)."""
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def _mean4(lattices: _Lattices, kind: int) -> np.ndarray | None:
    """Four times the mean of the nearest decoded neighbours, rounded down."""
    found = [v for v in (lattices.at(*o) for o in _NEAREST[kind]) if v is not None]
    if not found:
        return None
    total = _sum(found)
    return total if len(found) == 4 else np.floor(total * 4.0 / len(found))


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
        if where is None or np.ndim(self.step) == 0:
            return self
        return _Quantiser(self.step[where].ravel(), self.unit)

    @property
    def half(self) -> float | np.ndarray:
        """The bound itself."""
        return 0.5 * (self.step - 1.0)

    @property
    def thresholds(self) -> np.ndarray:
        """Between scale indexes, for expected sizes over ``step / unit``, in 1/256 DN."""
        return scale_thresholds(self.unit * _SPREAD_UNIT)

    def groups(self, count: int) -> Iterator[tuple[float, slice | np.ndarray, int]]:
        """Yield (step, which pixels, how many), for each distinct step in rising order."""
        if np.ndim(self.step) == 0:
            yield self.step, slice(None), count
            return
        for step in np.unique(self.step).tolist():
            where = np.flatnonzero(self.step == step)
            yield step, where, len(where)


@dataclass(frozen=True)
class _Regressors:
    level: np.ndarray  # four times the value expected before regression, (n,)
    columns: list[np.ndarray]  # most useful first, each (n,)
    activity: list[np.ndarray]  # regressors of the spread, 1/256 DN, each (n,) and >= 0


def _regressors(
    decoded: np.ndarray,
    spread: np.ndarray,
    references: list[Reference],
    pass_: tuple[int, int, int, int],
    middle: float,
) -> _Regressors:
    kind, spacing, row, column = pass_
    first, second, third, activity = [], [], [], []
    own = _Lattices(decoded, spacing, row, column)
    level = _mean4(own, kind) if kind else None
    anchored = level is not None
    fine = spacing <= 32 and anchored
    if anchored:
        near = [v for v in (own.at(*o) for o in _NEAREST[kind]) if v is not None]
        own_columns = [4.0 * v - level for v in near[:-1]]
        for offset in _FARTHER[kind] if fine else ():
            value = own.at(*offset)
            if value is not None:
                own_columns.append(4.0 * value - level)
        errors = _Lattices(spread, spacing, row, column)
        activity.append(_mean4(errors, kind) * 0.25)
        far = [v for v in (errors.at(*o) for o in _FARTHER[kind][:8]) if v is not None]
        if far:
            activity.append(_sum(far) / len(far))
        if own_columns:
            texture = _sum([np.abs(v) for v in own_columns[:3]])
            activity.append(texture * (_SPREAD_UNIT / 16))
    else:
        own_columns = []
        level = np.full(
            len(range(row, decoded.shape[0], spacing))
            * len(range(column, decoded.shape[1], spacing)),
            4.0 * middle,
        )
    for index, reference in enumerate(references):
        lattices = _Lattices(reference.values, spacing, row, column)
        centre = 4.0 * lattices.at(0, 0)
        around = _mean4(lattices, kind) if kind else None
        if around is None or not anchored:
            first.append(centre - 4.0 * middle)
            continue
        first.append(centre - around)
        if reference.same:
            first.append(centre - level)
        if reference.wide and fine:
            for offset in _AROUND:
                value = lattices.at(*offset)
                if value is not None and offset != _NEAREST[kind][-1]:
                    third.append(4.0 * value - around)
        if reference.wide and index < 4:
            if reference.spread is not None:
                error = _Lattices(reference.spread, spacing, row, column)
                activity.append(error.at(0, 0))
                if fine:
                    activity.append(_mean4(error, 2) * 0.25)
            else:
                activity.append(np.abs(centre - around) * (_SPREAD_UNIT / 4))
        if not fine or reference.wide:
            second.append(around - 4.0 * middle)
    if anchored:
        second.append(level - 4.0 * middle)
    second.append(np.full(len(level), 256.0))
    return _Regressors(level, first + own_columns + third + second, activity)


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
    total = _sum(activity) + (0.25 * step + 0.25) * _SPREAD_UNIT
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


def _gram(columns: np.ndarray) -> np.ndarray:
    count = columns.shape[1]
    gram = columns @ columns.T  # exact: integers below 2 ** 53
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
        decoded, spread : ndarray
            float64 (H, W): DN, and the size of the residuals in 1/256 DN.
        """
        low, high = float(limits[0]), float(limits[1])
        middle = float((limits[0] + limits[1]) // 2)
        decoded = np.full(shape, middle)
        spread = np.zeros(shape)
        if low == high:
            return decoded, spread
        quantiser = _Quantiser.of(bound)
        for pass_ in passes(*shape):
            _, spacing, row, column = pass_
            place = (slice(row, None, spacing), slice(column, None, spacing))
            used = None if valid is None else np.flatnonzero(valid[place].ravel())
            wanted = None if target is None else target[place].ravel()
            values, sizes = self._pass(
                _regressors(decoded, spread, references, pass_, middle),
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
        given: _Regressors,
        used: np.ndarray | None,
        quantiser: _Quantiser,
        limits: tuple[float, float],
        pass_: tuple[int, int, int, int],
        wanted: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Code one pass; returns its decoded values and spreads, each float64 (n,)."""
        low, high = limits
        count = len(given.level) if used is None else len(used)
        predicted = given.level
        keep = min(len(given.columns), count // 8)
        if keep:
            predicted = predicted + self._regression(
                given, used, keep, count, quantiser.step, pass_, wanted
            )
        predicted = np.clip(_quarter(predicted), low, high)
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
        activity = [a[chosen] for a in given.activity] if count >= _FEW else []
        mode, expected, scales = self._spread_model(steps, activity, count, quantiser, limits)
        if mode == _RAW:
            index = np.empty(count)
            for size, where, amount in quantiser.groups(count):
                known = None
                if wanted is not None:
                    known = np.floor((wanted[where] - low) / size).astype(np.int64)
                index[where] = self._coder.uniform(known, amount, int((high - low) // size) + 1)
            restored = np.minimum(low + index * step + quantiser.half, high)
            sizes[chosen] = np.abs(restored - base) * _SPREAD_UNIT
        else:
            if mode == _SKIP:
                steps = np.zeros(count, np.int64)
            else:
                steps = self._coder.symbols(steps, scales, mode)
            restored = np.clip(base + steps * step, low, high)
            quiet = np.minimum(expected, step * (_SPREAD_UNIT / 4))
            sizes[chosen] = np.where(steps == 0, quiet, np.abs(steps) * (step * _SPREAD_UNIT))
        values = predicted.copy()
        values[chosen] = restored
        return values, sizes

    def _regression(
        self,
        given: _Regressors,
        used: np.ndarray | None,
        keep: int,
        count: int,
        step: float | np.ndarray,
        pass_: tuple[int, int, int, int],
        wanted: np.ndarray | None,
    ) -> np.ndarray:
        """Code the weights of a pass; returns the correction of four times the prediction."""
        limit = _exact_limit(count)
        columns = np.stack(given.columns[:keep])
        np.clip(columns, -limit, limit, out=columns)
        fit = columns if used is None else columns[:, used]
        trust = _trust(given.activity, used, count, step)
        if trust is not None:
            limit = float(limit // _TRUST)
            fit = np.clip(fit, -limit, limit) * trust
        factor = _cholesky(_gram(fit))
        whitened = grain = None
        if wanted is not None:
            error = 4.0 * wanted - given.level
            error = error if used is None else error[used]
            error = error if trust is None else error * trust
            whitened = np.zeros(keep)
            rest = fit @ error
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
        if wanted is not None:
            ratio = whitened / width
            quantised = np.where(np.abs(ratio) < 0.65, 0.0, np.rint(ratio)).astype(np.int64)
        quantised = self._weights(quantised, keep, pass_)
        weights = _solve_transposed(factor, quantised * width)
        weights = np.clip(np.rint(weights * (1 << _WEIGHT_BITS)), -_WEIGHT_LIMIT, _WEIGHT_LIMIT)
        return np.floor((weights @ columns) * 2.0**-_WEIGHT_BITS + 0.5)

    def _weights(
        self, quantised: np.ndarray | None, keep: int, pass_: tuple[int, int, int, int]
    ) -> np.ndarray:
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
    size = np.abs(steps) * (step * _SPREAD_UNIT)
    columns = np.stack([*activity, np.full(len(size), step * _SPREAD_UNIT)])
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
    constant = max(fitted[-1] * quantiser.unit * _SPREAD_UNIT, 0.0)
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
