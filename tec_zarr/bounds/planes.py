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

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tec_zarr.entropy.residual_tables import (
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
_BAND_PIXELS = 2048  # whose regressors are there at once
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
_AROUND = (
    *((0, -1), (0, 1), (-1, 0), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)),
    *((-2, 0), (0, -2), (0, 2), (2, 0), (-2, -1), (-2, 1), (-1, -2), (-1, 2)),
    *((1, -2), (1, 2), (2, -1), (2, 1), (-2, -2), (-2, 2), (2, -2), (2, 2)),
)  # of a reference, nearest first


Pass = tuple[int, int, int, int]
"""Kind, spacing, first row and first column."""


@dataclass(frozen=True)
class Reference:
    """A decoded plane that helps to predict another one.

    Attributes
    ----------
    values : ndarray
        int32 (H, W), DN.
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

    def __init__(self, plane: np.ndarray, pass_: Pass) -> None:
        _, self._spacing, self._row, self._column = pass_
        self._plane = plane
        self._rows, self._columns = _lattice_shape(plane.shape, pass_)
        self._padded: dict[tuple[int, int], np.ndarray] = {}

    def at(self, dy: int, dx: int, rows: slice) -> np.ndarray | None:
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
            extra = (
                max(0, self._rows - lattice.shape[0]),
                max(0, self._columns - lattice.shape[1]),
            )
            padded = _replicated(lattice, *extra)
            self._padded[first, start] = padded
        view = padded[
            2 + up + rows.start : 2 + up + rows.stop,
            2 + left : 2 + left + self._columns,
        ]
        return view.astype(np.float64).ravel()

    def near(self, offsets: Iterable[tuple[int, int]], rows: slice) -> list[np.ndarray]:
        """Those of :meth:`at` that exist."""
        return [v for v in (self.at(*o, rows) for o in offsets) if v is not None]

    def mean4(self, kind: int, rows: slice) -> np.ndarray | None:
        """Four times the mean of the nearest decoded neighbours, rounded down."""
        found = self.near(_NEAREST[kind], rows)
        if not found:
            return None
        total = _sum(found)
        return total if len(found) == 4 else np.floor(total * 4.0 / len(found))


def _lattice_shape(shape: tuple[int, ...], pass_: Pass) -> tuple[int, int]:
    _, spacing, row, column = pass_
    return len(range(row, shape[0], spacing)), len(range(column, shape[1], spacing))


def _replicated(lattice: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``lattice`` with two edge pixels more on each side, and more below and on the right."""
    height, width = lattice.shape
    out = np.empty((height + 4 + rows, width + 4 + columns), lattice.dtype)
    inner = out[:, 2 : 2 + width]
    inner[2 : 2 + height] = lattice
    inner[:2] = lattice[0]
    inner[2 + height :] = lattice[-1]
    out[:, :2] = inner[:, :1]
    out[:, 2 + width :] = inner[:, -1:]
    return out


def passes(height: int, width: int) -> list[Pass]:
    """Return (kind, spacing, first row, first column) of each pass over a plane, in order."""
    spacing = 1
    while spacing < TOP_SPACING and spacing * 2 < max(height, width):
        spacing *= 2
    order = [(0, spacing, 0, 0)]
    while spacing > 1:
        half = spacing // 2
        order += [
            (1, spacing, half, half),
            (2, spacing, 0, half),
            (3, spacing, half, 0),
        ]
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
        return scale_thresholds(self.unit * _SPREAD_UNIT)

    def groups(self, count: int) -> Iterator[tuple[float, slice | np.ndarray, int]]:
        """Yield (step, which pixels, how many), for each distinct step in rising order."""
        if not isinstance(self.step, np.ndarray):
            yield self.step, slice(None), count
            return
        for step in np.unique(self.step).tolist():
            where = np.flatnonzero(self.step == step)
            yield step, where, len(where)


class _Surroundings:
    """What is decoded around the pixels of a pass, some of its rows at a time."""

    def __init__(
        self,
        decoded: np.ndarray,
        spread: np.ndarray,
        references: list[Reference],
        pass_: Pass,
        middle: float,
    ) -> None:
        self._kind, self._spacing = pass_[:2]
        self._middle = middle
        self.shape = _lattice_shape(decoded.shape, pass_)
        self._own = _Lattices(decoded, pass_)
        self._errors = _Lattices(spread, pass_)
        self._references = [
            (
                r,
                _Lattices(r.values, pass_),
                r.spread is not None and _Lattices(r.spread, pass_),
            )
            for r in references
        ]

    def bands(self) -> Iterator[tuple[slice, slice]]:
        """Yield (rows, pixels) of the pass from top to bottom."""
        height, width = self.shape
        step = max(1, _BAND_PIXELS // max(width, 1))
        for row in range(0, height, step):
            rows = slice(row, min(row + step, height))
            yield rows, slice(rows.start * width, rows.stop * width)

    def whole(self, some: Callable[[slice], list[np.ndarray]]) -> list[np.ndarray]:
        """What ``some`` says of rows, for all pixels of the pass."""
        out: list[np.ndarray] = []
        for rows, pixels in self.bands():
            found = some(rows)
            out = out or [np.empty(self.shape[0] * self.shape[1]) for _ in found]
            for line, values in zip(out, found, strict=True):
                line[pixels] = values
        return out

    def level(self, rows: slice) -> tuple[np.ndarray, bool]:
        """Four times the value expected before regression, (n,); whether neighbours say so."""
        level = self._own.mean4(self._kind, rows) if self._kind else None
        if level is not None:
            return level, True
        return np.full((rows.stop - rows.start) * self.shape[1], 4.0 * self._middle), False

    def start(self, rows: slice) -> list[np.ndarray]:
        """What :meth:`level` says, for :meth:`whole`."""
        return [self.level(rows)[0]]

    def activity(self, rows: slice) -> list[np.ndarray]:
        """Regressors of the spread, 1/256 DN, each (n,) and >= 0."""
        level, anchored = self.level(rows)
        if not anchored:
            return []
        fine = self._spacing <= 32
        mean = self._errors.mean4(self._kind, rows)
        assert mean is not None  # where values are, spreads are
        activity = [mean * 0.25]
        far = self._errors.near(_FARTHER[self._kind][:8], rows)
        if far:
            activity.append(_sum(far) / len(far))
        own = self._own_columns(rows, level, 3)
        if own:
            activity.append(_sum([np.abs(v) for v in own]) * (_SPREAD_UNIT / 16))
        for reference, lattices, errors in self._references[:4]:
            around = lattices.mean4(self._kind, rows)
            if around is None or not reference.wide:
                continue
            if not errors:
                activity.append(np.abs(self._centre(lattices, rows) - around) * (_SPREAD_UNIT / 4))
                continue
            activity += errors.near([(0, 0)], rows)
            mean = errors.mean4(2, rows) if fine else None
            if mean is not None:
                activity.append(mean * 0.25)
        return activity

    def columns(self, rows: slice) -> list[np.ndarray]:
        """Regressors, most useful first, each (n,)."""
        level, anchored = self.level(rows)
        fine = self._spacing <= 32 and anchored
        offset = 4.0 * self._middle
        first, second, third = [], [], []
        for reference, lattices, _ in self._references:
            centre = self._centre(lattices, rows)
            around = lattices.mean4(self._kind, rows) if anchored else None
            if around is None:
                first.append(centre - offset)
                continue
            first.append(centre - around)
            if reference.same:
                first.append(centre - level)
            if reference.wide and fine:
                beside = (o for o in _AROUND if o != _NEAREST[self._kind][-1])
                third += [_apart(v, around) for v in lattices.near(beside, rows)]
            if not fine or reference.wide:
                second.append(around - offset)
        if anchored:
            second.append(level - offset)
        second.append(np.full(len(level), 256.0))
        own = self._own_columns(rows, level, None) if anchored else []
        return first + own + third + second

    def _own_columns(self, rows: slice, level: np.ndarray, count: int | None) -> list[np.ndarray]:
        """How far decoded neighbours are from the level, nearest first; all but one of the four."""
        near = self._own.near(_NEAREST[self._kind], rows)[:-1]
        if self._spacing <= 32 and (count is None or len(near) < count):
            near += self._own.near(_FARTHER[self._kind], rows)
        return [_apart(v, level) for v in near[:count]]

    @staticmethod
    def _centre(lattices: _Lattices, rows: slice) -> np.ndarray:
        """Four times what stands at the pixels themselves."""
        centre = lattices.at(0, 0, rows)
        assert centre is not None
        centre *= 4.0
        return centre


def _apart(values: np.ndarray, level: np.ndarray) -> np.ndarray:
    """``4 * values - level``, in place."""
    values *= 4.0
    values -= level
    return values


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
                _Surroundings(decoded, spread, references, pass_, middle),
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
        given: _Surroundings,
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
            sizes[chosen] = np.abs(restored - base) * _SPREAD_UNIT
        else:
            if scales is None:  # the mode is _SKIP
                steps = np.zeros(count, np.int64)
            else:
                steps = self._coder.symbols(steps, scales, mode)
            restored = np.clip(base + steps * step, low, high)
            quiet = np.minimum(expected, step * (_SPREAD_UNIT / 4))
            sizes[chosen] = np.where(steps == 0, quiet, np.abs(steps) * (step * _SPREAD_UNIT))
        predicted[chosen] = restored
        return predicted, sizes

    def _regression(
        self,
        given: _Surroundings,
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
