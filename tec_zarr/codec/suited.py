"""Notice data that the models were not made for, before it is lost without a word."""

from __future__ import annotations

import math
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

_THIN = 1 / 4
_LEAST_PIXELS = 2**10
_THIN_IN_A_ROW = 16
"""So many chunks of which so little is used. A cube ends in such chunks, but others lie between."""

_thin = 0
"""How many were encoded in a row."""


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


def warn_if_padded(labels: np.ndarray | None) -> None:
    """Warn where chunk after chunk holds data in one corner only: it takes hours.

    A cube whose dimensions were turned, saved with the shards that it was read with, is cut into
    thousands of such chunks. Zarr does not show a codec inside shards the array that it is for.

    Parameters
    ----------
    labels : ndarray, (T, C, H, W), optional
        0 where there are data. None: everywhere.

    Warns
    -----
    UnsuitedDataWarning
        At most a quarter of the pixels and bands of each of 16 chunks, one after another, is used.
    """
    global _thin
    used = 1.0
    if labels is not None and labels[0, 0].size >= _LEAST_PIXELS:
        there = labels == 0
        ends = [there.any(tuple({0, 1, 2, 3} - {axis})).nonzero()[0] for axis in (1, 2, 3)]
        if not ends[0].size:
            return
        used = math.prod((end[-1] + 1) / n for end, n in zip(ends, labels.shape[1:], strict=True))
    _thin = thin = _thin + 1 if used <= _THIN else 0
    if labels is not None and thin and thin % _THIN_IN_A_ROW == 0:
        _warn(
            f"{_THIN_IN_A_ROW} chunks of shape {labels.shape} in a row hold data in a corner and "
            "nodata elsewhere: choose smaller chunks. If xarray kept them in the encoding of a "
            "cube whose dimensions were turned, stop: write ds.tec.to_zarr(...), or "
            "tec_zarr.drop_encoding(ds)"
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
