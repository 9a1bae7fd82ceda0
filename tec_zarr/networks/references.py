"""The encoder's choices for a series: references of each date, order of coding, finer qualities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tec_zarr.models.constants import BLOCK, step_size
from tec_zarr.models.temporal_section import (
    CLASS_STARTS,
    FINER_STEPS,
    MOST_FINER,
    MOST_REFERENCES,
    PICTURE_GRID,
    WEIGHT_GRID,
    WEIGHT_LIMIT,
    Reference,
    write_references,
)
from tec_zarr.networks.image import lagrangian

#: Factor on the quantiser's price of a squared error, in bits, when two ways of coding a date are
#: compared. It is the slope of rate over distortion from one quality to the next.
ERROR_WORTH = 1.3


#: A date is coded ``FINER_SLOPE`` qualities finer for each doubling of the bits that depend on it,
#: after the first ``FINER_START`` doublings. Both were fitted on training series.
FINER_SLOPE, FINER_START = 0.7, 0.4


#: References are chosen among this many dates, those nearest in time.
CANDIDATES = 8


_ORDER = torch.arange(BLOCK)[:, None] + torch.arange(BLOCK)


#: Class of each of a block's 64 frequencies.
CLASS_OF = sum((_ORDER.flatten() >= start).long() for start in CLASS_STARTS[1:])


def _bits(difference: Tensor, distortion: float) -> float:
    """Estimate the bits of a picture (C, 64, P) that is coded at ``distortion`` (DN squared).

    The model has one independent Gaussian per frequency, with the covariance of the bands there.
    """
    by_sample = difference.transpose(0, 1)
    covariance = by_sample @ by_sample.transpose(1, 2) / (difference.shape[2] * distortion)
    eye = torch.eye(len(difference), dtype=difference.dtype)
    factor = torch.linalg.cholesky(covariance + eye)
    logs = factor.diagonal(dim1=1, dim2=2).log2().sum()
    return difference.shape[2] * float(logs)


class _Grams:
    """Least-squares weights of one picture from any subset of others."""

    def __init__(self, target: Tensor, known: Tensor):
        self.target, self.known = target, known
        self.parts = []
        for number in range(len(CLASS_STARTS)):
            chosen = number == CLASS_OF
            one, many = target[:, chosen].flatten(1), known[:, :, chosen].flatten(2)
            many = many.transpose(0, 1)  # (C, R, N)
            self.parts.append((many @ many.transpose(1, 2), (many @ one[:, :, None])[:, :, 0]))

    def fit(self, subset: list[int]) -> np.ndarray:
        """Weights (R, classes, C) in sixteenths."""
        return np.stack([_fit(m[:, subset][:, :, subset], v[:, subset]) for m, v in self.parts], 1)

    def difference(self, subset: list[int], weights: np.ndarray) -> Tensor:
        """Return the picture less its prediction from ``subset``, with weights in sixteenths."""
        by_frequency = torch.from_numpy(weights[:, CLASS_OF]).to(self.target.dtype) / WEIGHT_GRID
        guess = by_frequency.transpose(1, 2)[:, :, :, None] * self.known[subset]
        return self.target - guess.sum(0)


def thinned(picture: Tensor) -> Tensor:
    """Return about 256 blocks of a picture, float64.

    They are enough to choose by, and float64 makes the choice the same on every machine.
    """
    return picture[:, :, :: max(picture.shape[2] // 256, 1)].double()


def choose_references(
    picture: Tensor, known: dict[int, Tensor], date: int, step: float
) -> list[Reference]:
    """Choose the references that lower the estimated size of a date most.

    They are added one by one from the ``known`` decoded pictures, at most ``MOST_REFERENCES``.
    """
    if not known:
        return []
    dates = list(known)
    target, *others = map(thinned, [picture, *known.values()])
    grams = _Grams(target, torch.stack(others) / PICTURE_GRID)
    share = picture.shape[2] / target.shape[2]
    best, chosen = share * _bits(target, step**2 / 6), []
    while len(chosen) < min(MOST_REFERENCES, len(dates)):
        trials = []
        for candidate in set(range(len(dates))) - set(chosen):
            subset = [*chosen, candidate]
            weights = grams.fit(subset)
            references = [Reference(dates[c], w) for c, w in zip(subset, weights, strict=True)]
            bits = share * _bits(grams.difference(subset, weights), step**2 / 6)
            bits += 8 * len(write_references(references, date))
            trials.append((bits, subset, references))
        trial = min(trials, key=lambda t: t[0])
        if trial[0] >= best:
            break
        best, chosen, found = trial
    return found if chosen else []


@dataclass(frozen=True)
class Sizes:
    """Estimated bits of the dates of a tile.

    ``alone`` (T,) is for dates without references. ``given[t, r]`` of (T, T) is for date t
    predicted from date r. It is infinite where t may not refer to r, which is too far in time.
    """

    alone: np.ndarray
    given: np.ndarray


def estimated_sizes(pictures: list[Tensor], step: float) -> Sizes:
    """Estimate the bits of each date, alone and predicted from one other date.

    ``pictures`` may be thinned (:func:`thinned`).
    """
    count, distortion = len(pictures), step**2 / 6
    alone = np.array([_bits(p, distortion) for p in pictures])
    given = np.full((count, count), np.inf)
    for date in range(count):
        near = [
            d
            for d in range(max(date - CANDIDATES, 0), date + CANDIDATES + 1)
            if d != date and d < count
        ]
        if near:
            grams = _Grams(pictures[date], torch.stack([pictures[d] for d in near]))
            for place, other in enumerate(near):
                difference = grams.difference([place], grams.fit([place]))
                given[date, other] = _bits(difference, distortion)
    return Sizes(alone, given)


def coding_order(sizes: Sizes) -> list[int]:
    """Return the order in which to code the dates.

    The next date is the one that the dates before it explain best. If they explain none, the next
    date is the one that helps the remaining dates most, and it is coded without references.
    """
    alone, given = sizes.alone, sizes.given
    order: list[int] = []
    now = alone.copy()
    left = set(range(len(alone)))
    while left:
        rest = sorted(left)
        saved = [alone[d] - now[d] for d in rest]
        if max(saved) <= 0:
            saved = [sum(max(now[o] - given[o, d], 0.0) for o in rest if o != d) for d in rest]
        chosen = rest[int(np.argmax(saved))]
        order.append(chosen)
        left.remove(chosen)
        now = np.minimum(now, given[:, chosen])
    return order


def finer_qualities(sizes: Sizes, order: list[int]) -> list[int]:
    """Return by how many eighths of a quality to code each date finer, because others use it.

    A date passes its errors on to the dates that are predicted from it, and detail that is coded
    once need not be coded again. The method is that of the macroblock tree of video encoders. It
    walks back along the order of coding. Each date credits its best reference with the share of
    bits that the reference saves: of its own bits, and of the bits that depend on it.
    """
    depending = np.zeros(len(order))
    for place in range(len(order) - 1, 0, -1):
        date = order[place]
        reference = min(order[:place], key=lambda r: sizes.given[date, r])
        own = float(sizes.alone[date])
        saved = own - float(sizes.given[date, reference])
        if saved > 0:
            depending[reference] += saved / own * (own + depending[date])
    doublings = np.log2(1 + depending / np.maximum(sizes.alone, 1.0))
    finer = FINER_SLOPE * np.maximum(doublings - FINER_START, 0.0)
    return np.minimum(np.rint(FINER_STEPS * finer), MOST_FINER).astype(int).tolist()


def cost_of(
    section: bytes, decoded: Tensor, picture: Tensor, quality: float, trade: float
) -> float:
    """Return the cost of a coded date in bits: its size, plus the price of its squared error.

    The price is what a finer quality would pay to lower the error.
    """
    error = float((picture - decoded / PICTURE_GRID).square().sum())
    slope = ERROR_WORTH * lagrangian(trade) / float(step_size(quality)) ** 2
    return 8 * len(section) + slope * error


def _fit(matrix: Tensor, vector: Tensor) -> np.ndarray:
    """Least-squares weights (R, C) in sixteenths, from Gram matrices (C, R, R) and (C, R)."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    ridge = torch.diag_embed(0.01 * diagonal.mean(1, keepdim=True).expand_as(diagonal) + 1.0)
    solved = torch.linalg.solve(matrix + ridge, vector)
    whole = torch.round(solved * WEIGHT_GRID).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
    return whole.T.long().numpy()
