"""Warns about data that the models were not made for and would lose without an error."""

from __future__ import annotations

import math
import warnings

import numpy as np

from tec_zarr.errors import UnsuitedDataWarning

_LOOKED_AT = 2**15
"""About how many samples of a chunk are examined."""
_FEWEST = 2**9
"""Least number of pairs of neighbours that allow a verdict."""

_MOST_CLASSES = 24
"""Samples with more different values than this are no classes."""
_SAME_AS_NEIGHBOUR = 0.5
"""Least share of pairs of neighbours with the same value that makes samples classes. Dark water
also has few different values, but noise breaks up its patches."""

_THIN = 1 / 4
"""Largest share of a chunk that holds data in a chunk that counts as padded."""
_LEAST_PIXELS = 2**10
"""Smaller chunks never count as padded."""
_THIN_IN_A_ROW = 16
"""Number of padded chunks in a row that raises the warning. Chunks at the edge of a cube are padded
too, but full chunks lie between them."""

_thin = 0
"""Number of padded chunks that were encoded since the last full one."""


def warn_if_unsuited(samples: np.ndarray, coded: np.ndarray | None) -> None:
    """Warn about a chunk that a lossy model would keep badly.

    Parameters
    ----------
    samples : ndarray, (T, C, H, W)
        The chunk.
    coded : ndarray of bool, (T, C, H, W), optional
        True for samples that the model codes. None: all of them.

    Warns
    -----
    UnsuitedDataWarning
        The values look like classes.
    """
    if _look_like_classes(samples, coded):
        _warn(
            f"a chunk of shape {samples.shape} has patches of few different values, as classes "
            "and masks have: TEC blurs them. Store them losslessly: tec_zarr.encoding does so for "
            "variables that it recognises, max_error=0 for any"
        )


def warn_if_padded(labels: np.ndarray | None) -> None:
    """Warn when many chunks in a row hold data in one corner only.

    A cube whose dimensions were transposed, saved with the shards that it was read with, is cut
    into thousands of such chunks, and encoding them takes hours. Inside shards a codec is not told
    the shape of the array, so it cannot refuse them at the start.

    Parameters
    ----------
    labels : ndarray, (T, C, H, W), optional
        0 for samples that hold data. None: all samples do.

    Warns
    -----
    UnsuitedDataWarning
        Each of 16 chunks in a row holds data in at most a quarter of its pixels and bands.
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
    """Return whether samples have few different values, in patches."""
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
