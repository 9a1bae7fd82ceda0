"""The borders between copies of source pixels, and a first map from their frequency. Encoder only.

Neighbours that are copies of one source pixel are equal in all bands of one resolution. Between
others there is a *border*. Along a row the borders repeat with the frequency with which the
source's column advances, a little turned from row to row. The strongest frequency of the borders
near their mean rate is a first map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DATES = 3
_CROP = 256  # samples along a side in which frequencies are sought
_FREQUENCIES = 512
_TURNED = 0.12  # most source pixels along an axis in one sample across it
_SAME = 0.03  # bands whose rates of borders differ by less are of one resolution


@dataclass(frozen=True)
class Borders:
    """Pairs of neighbours of the bands of one resolution.

    `across` (H, W - 1) and `down` (H - 1, W), int8, are 1 for a border, 0 for an equal pair and -1
    where a sample does not matter.
    """

    across: np.ndarray
    down: np.ndarray

    @property
    def rates(self) -> tuple[float, float]:
        """Share of borders among the pairs of rows and of columns."""
        return _rate(self.across), _rate(self.down)


def _rate(pairs: np.ndarray) -> float:
    known = np.count_nonzero(pairs >= 0)
    return np.count_nonzero(pairs > 0) / known if known else 0.0


def borders_of(planes: np.ndarray, valid: np.ndarray | None) -> Borders:
    """Return the borders of one band (T, H, W): a pair is equal if it is equal in every date."""
    pairs = []
    for axis in (2, 1):
        border = (np.diff(planes, axis=axis) != 0).astype(np.int8)
        if valid is not None:
            size = valid.shape[axis]
            both = np.take(valid, range(size - 1), axis) & np.take(valid, range(1, size), axis)
            border[~both] = -1
        pairs.append(border.max(axis=0))
    return Borders(pairs[0], pairs[1])


def resolutions(samples: np.ndarray, valid: np.ndarray | None) -> list[Borders]:
    """Return the borders of each resolution among the bands of (T, C, H, W), the finest first."""
    dates = len(samples)
    chosen = np.unique(np.linspace(0, dates - 1, min(dates, _DATES)).astype(int))
    bands = [
        borders_of(samples[chosen, band], None if valid is None else valid[chosen, band])
        for band in range(samples.shape[1])
    ]
    bands.sort(key=lambda borders: -sum(borders.rates))
    groups: list[list[Borders]] = []
    for borders in bands:
        if groups and sum(groups[-1][-1].rates) - sum(borders.rates) < _SAME:
            groups[-1].append(borders)
        else:
            groups.append([borders])
    return [
        Borders(
            np.maximum.reduce([b.across for b in group]), np.maximum.reduce([b.down for b in group])
        )
        for group in groups
    ]


def first_line(pairs: np.ndarray) -> tuple[float, np.ndarray]:
    """Return a first map along the last axis of pairs.

    Returns
    -------
    strength : float
        That of the borders' frequency; 1 if the borders had no other cause.
    line : ndarray, (6,)
        Coefficients of :func:`terms`.
    """
    border = (pairs[:_CROP, :_CROP] > 0).astype(np.float64)
    rate = border.mean()
    window = np.multiply.outer(*(np.hanning(n + 2)[1:-1] for n in border.shape))
    spectrum = np.abs(np.fft.fft2((border - rate) * window, (_FREQUENCIES,) * 2))
    turn = np.fft.fftfreq(_FREQUENCIES)
    along = np.arange(_FREQUENCIES) / _FREQUENCIES
    near = (along > 0.7 * rate - 0.02) & (along < 1.02 * rate + 0.01) & (along < 0.94)
    spectrum *= (np.abs(turn) <= _TURNED)[:, None] & near
    at, of = np.unravel_index(np.argmax(spectrum), spectrum.shape)
    a, b = along[of], turn[at]
    strength = float(spectrum[at, of] / max((border * window).sum(), 1.0))
    line = np.array([0.0, a, b, 0.0, 0.0, 0.0])
    row, column = np.nonzero(pairs > 0)
    inside = (row < _CROP // 2) & (column < _CROP // 2)
    turns = np.exp(2j * np.pi * (a * (column[inside] + 0.5) + b * row[inside]))
    line[0] = -np.angle(turns.sum()) / (2 * np.pi)
    # From the corner outwards: a map of a part numbers the borders of a larger one.
    for size, used in ((128, 3), (128, 3), (256, 3), (256, 3), (512, 3), (1 << 20, 6)):
        inside = (row < size) & (column < size)
        term = terms(row[inside], column[inside] + 0.5)
        off = np.rint(term @ line) - term @ line
        near_one = np.abs(off) < max(0.6 * a, 0.2)
        if np.count_nonzero(near_one) < 4 * used:
            return 0.0, line
        line[:used] += np.linalg.lstsq(term[near_one, :used], off[near_one], rcond=None)[0]
    return strength, line


def terms(along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Terms of the polynomial of places (n, 6): 1, x, y, x x, x y, y y."""
    x, y = across.astype(np.float64), along.astype(np.float64)
    return np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], 1)
