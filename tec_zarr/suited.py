"""Notice data that the models were not made for, before it is lost without a word."""

from __future__ import annotations

import warnings

import numpy as np

from tec_zarr.errors import UnsuitedDataWarning

MAX_COMPONENTS = 12
"""Combinations of bands that the embedded models code; what lies outside them is lost."""

_LOOKED_AT = 2**15
"""Samples that are looked at, and the fewest of them that say anything."""
_FEWEST = 2**9

_MOST_CLASSES = 24
_SAME_AS_NEIGHBOUR = 0.5
"""Classes come in patches. Dark water also has few different values, but noise breaks it up."""


def warn_if_unsuited(samples: np.ndarray, coded: np.ndarray | None, bands: int) -> None:
    """Warn of a chunk that a lossy model would keep badly.

    Parameters
    ----------
    samples : ndarray, (T, C, H, W)
        The chunk.
    coded : ndarray of bool, (T, C, H, W), optional
        What the model codes. None: everything.
    bands : int
        How many bands an embedded model codes.

    Warns
    -----
    UnsuitedDataWarning
        More than ``MAX_COMPONENTS`` bands, or values that look like classes.
    """
    if bands > MAX_COMPONENTS:
        _warn(
            f"a chunk of shape {samples.shape} has {bands} bands for a model that codes "
            f"{MAX_COMPONENTS} combinations of them: what is in one band alone, such as cirrus in "
            "B10, is lost at every quality. Store such bands apart from the others, or give them "
            'a bound, as in max_error={"B10": 20}'
        )
    if _look_like_classes(samples, coded):
        _warn(
            f"a chunk of shape {samples.shape} has patches of few different values, as classes "
            "and masks have: TEC blurs them. Store them losslessly: tec_zarr.encoding does so for "
            "variables that it recognises, max_error=0 for any"
        )


def _look_like_classes(samples: np.ndarray, coded: np.ndarray | None) -> bool:
    rows = samples.reshape(-1, samples.shape[-1])
    step = -(-samples.size // _LOOKED_AT)
    rows = rows[::step]
    there = np.ones(rows.shape, bool)
    if coded is not None:
        there = coded.reshape(-1, samples.shape[-1])[::step]
    pairs = there[:, 1:] & there[:, :-1]
    if np.count_nonzero(pairs) < _FEWEST:
        return False
    same = (rows[:, 1:] == rows[:, :-1])[pairs].mean()
    return bool(same >= _SAME_AS_NEIGHBOUR and 1 < len(np.unique(rows[there])) <= _MOST_CLASSES)


def _warn(message: str) -> None:
    warnings.warn(message, UnsuitedDataWarning, stacklevel=4)
