"""Which dates a date is predicted from, in which order, and how finely: the encoder's choices."""

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

#: Bits that a squared error is worth between two ways of coding a date, over what it is worth in
#: the quantiser: the slope of rate over distortion from one quality to the next.
ERROR_WORTH = 1.3


#: How much finer: so many qualities for each doubling of what depends on the date, but for the
#: first fraction of one. Found on training series.
FINER_SLOPE, FINER_START = 0.7, 0.4


#: References are sought among this many dates, the nearest in time first.
CANDIDATES = 8


_ORDER = torch.arange(BLOCK)[:, None] + torch.arange(BLOCK)


#: Class of each of a block's 64 frequencies.
CLASS_OF = sum((_ORDER.flatten() >= start).long() for start in CLASS_STARTS[1:])


def _bits(difference: Tensor, distortion: float) -> float:
    """Estimated bits of a picture (C, 64, P): independent Gaussians of each frequency's spectral
    covariance, coded at ``distortion`` (DN squared).
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
        by_frequency = torch.from_numpy(weights[:, CLASS_OF]).to(self.target.dtype) / WEIGHT_GRID
        guess = by_frequency.transpose(1, 2)[:, :, :, None] * self.known[subset]
        return self.target - guess.sum(0)


def thinned(picture: Tensor) -> Tensor:
    """About 256 blocks of a picture, float64: enough to choose by, alike on every machine."""
    return picture[:, :, :: max(picture.shape[2] // 256, 1)].double()


def choose_references(
    picture: Tensor, known: dict[int, Tensor], date: int, step: float
) -> list[Reference]:
    """References among ``known`` decoded pictures that lower the estimated size most, one after
    the other, at most ``MOST_REFERENCES``.
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
    """Estimated bits of the dates of a tile: ``alone`` (T,), and ``given`` (T, T) each other one.

    ``given[t, r]`` is infinite where r is not among the neighbours in time that t may refer to.
    """

    alone: np.ndarray
    given: np.ndarray


def estimated_sizes(pictures: list[Tensor], step: float) -> Sizes:
    """What the dates take, alone and each predicted from one other; ``pictures`` may be thinned."""
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
    """Order in which dates are coded: whatever the dates before it explain best comes next.

    A date that is to stand alone is the one that would help the others most.
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
    """By how many eighths of a quality each date is to be coded finer, because others use it.

    An error of a date is handed on to those predicted from it, and what is coded finely once need
    not be coded again.  As in the macroblock tree of video encoders, information flows back along
    the order of coding: each date gives its best reference the share of its own bits, and of those
    that depend on it, that the reference saves.
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
    """Bits, and squared error at what it costs to lower it by a finer quality."""
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
