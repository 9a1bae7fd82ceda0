"""What the network sees where nothing was measured: a continuation of the neighbours.

A transform code spreads the error of a block over all of its pixels. A cliff beside nodata would
be coded at the expense of the measured pixels, and so would a flat patch: half a block of texture
has half the amplitude, and more of it is quantised away. So the first pixels beyond an edge mirror
the measured side, and fade into a smooth surface where no block reaches back across the edge.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MIRROR_REACH = 12
"""Pixels from the edge to where the mirror image has faded out; 8 x 8 blocks overlap."""

MIRROR_FULL = 4
"""Pixels from the edge to where it begins to fade."""

_FAR = 1 << 14


def fill_unknown(cube: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Continue known samples into unknown ones.

    Parameters
    ----------
    cube : ndarray of float32, (T, C, H, W)
        Values where ``known``; anything elsewhere. At least one known sample per date.
    known : ndarray of bool, (T, C, H, W)
        What may be used and stays as it is.

    Returns
    -------
    ndarray of float32, (T, C, H, W)
        Finite everywhere. A band that a date lacks altogether is the mean of its other bands.
    """
    cube = np.where(known, cube, np.float32(0))
    for image, mask in zip(cube, known, strict=True):
        for bands, plane in _distinct(mask):
            image[bands] = _fill_planes(image[bands], plane)
        has_some = mask.any(axis=(1, 2))
        if not has_some.all():
            image[~has_some] = image[has_some].mean(axis=0)
    return cube


def _distinct(mask: np.ndarray) -> Iterator[tuple[slice | int, np.ndarray]]:
    """Bands of (C, H, W) that share a mask with holes; usually one mask for all of them."""
    if (mask == mask[:1]).all():
        groups: list[tuple[slice, np.ndarray]] = [(slice(None), mask[0])]
    else:
        groups = [(slice(c, c + 1), plane) for c, plane in enumerate(mask)]
    for bands, plane in groups:
        if plane.any() and not plane.all():
            yield bands, plane


def _fill_planes(planes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill (n, H, W) planes that share the mask ``known`` (H, W)."""
    filled = _pull_push(planes, known)
    row, column, distance = _nearest(known)
    y, x = np.nonzero(~known & (distance < MIRROR_REACH))
    near_y, near_x, reach = row[y, x], column[y, x], distance[y, x]
    mirror_y, mirror_x = 2 * near_y - y, 2 * near_x - x
    height, width = known.shape
    usable = (mirror_y >= 0) & (mirror_y < height) & (mirror_x >= 0) & (mirror_x < width)
    usable[usable] = known[mirror_y[usable], mirror_x[usable]]
    source_y, source_x = np.where(usable, mirror_y, near_y), np.where(usable, mirror_x, near_x)
    fade = (MIRROR_REACH - reach) / (MIRROR_REACH - MIRROR_FULL)
    weight = np.clip(fade, 0, 1).astype(np.float32)
    filled[:, y, x] += weight * (planes[:, source_y, source_x] - filled[:, y, x])
    return filled


def _pull_push(planes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Averages over ever larger squares, interpolated back (Gortler et al. 1996, pull-push)."""
    if known.all():
        return planes
    n, h, w = planes.shape
    even = ((0, h % 2), (0, w % 2))
    weight = np.pad(known.astype(np.float32), even)
    value = np.pad(np.where(known, planes, np.float32(0)), ((0, 0), *even))
    half = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2)
    total = weight.reshape(half).sum(axis=(1, 3))
    coarse = value.reshape(n, *half).sum(axis=(2, 4)) / np.maximum(total, 1)
    coarse = _pull_push(coarse, total > 0)
    for axis in (1, 2):
        coarse = _double(coarse, axis)
    return np.where(known, planes, coarse[:, :h, :w])


def _double(x: np.ndarray, axis: int) -> np.ndarray:
    """Twice the samples along ``axis``, interpolated linearly between cell centres."""
    x = np.moveaxis(x, axis, 0)
    padded = np.concatenate([x[:1], x, x[-1:]])
    out = np.empty((2 * len(x), *x.shape[1:]), np.float32)
    out[0::2] = 0.75 * x + 0.25 * padded[:-2]
    out[1::2] = 0.75 * x + 0.25 * padded[2:]
    return np.moveaxis(out, 0, axis)


def _nearest(known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and distance of the nearest known pixel, within the reach of the mirror.

    Jump flooding (Rong and Tan 2006): pixels pass their nearest known pixel on to neighbours
    8, 4, 2 and 1 pixels away.
    """
    h, w = known.shape
    y, x = np.indices((h, w), dtype=np.int32)
    row, column = np.where(known, y, _FAR), np.where(known, x, _FAR)
    square = (row - y) ** 2 + (column - x) ** 2
    for jump in (8, 4, 2, 1):
        for dy, dx in ((i, j) for i in (-jump, 0, jump) for j in (-jump, 0, jump) if i or j):
            to = _shifted(h, dy), _shifted(w, dx)
            source = _shifted(h, -dy), _shifted(w, -dx)
            candidate = (row[source] - y[to]) ** 2 + (column[source] - x[to]) ** 2
            better = candidate < square[to]
            for own, new in (
                (row, row[source]), (column, column[source]), (square, candidate)
            ):  # fmt: skip
                own[to] = np.where(better, new, own[to])
    return row, column, np.sqrt(square)


def _shifted(size: int, by: int) -> slice:
    return slice(min(max(by, 0), size), max(size + min(by, 0), 0))
