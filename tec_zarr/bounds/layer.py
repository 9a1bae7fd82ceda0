"""Codes an array so that every valid pixel stays within its bound; the layer behind ``max_error``.

:func:`encode` codes an array; :func:`decode` undoes it. The compiled core does the work; here is
what only an encoder has to decide: the grids and the order of the bands. The byte layout and the
guarantee are in ``docs/error-bounds.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.grids import Grid, find, refine
from tec_zarr.native import planes

_NEAR = 3  # number of earlier bands whose neighbourhoods help to predict a band
_INT32 = 1 << 31
_WIDEST = 1 << 27  # native values lie within so many DN

Bounds = Sequence[int | np.ndarray] | np.ndarray
"""Largest absolute error of each band, DN: an integer, or integers (T, H, W)."""


def encode(original: np.ndarray, valid: np.ndarray | None, bounds: Bounds) -> bytes:
    """Code an array so that :func:`decode` returns it within ``bounds`` at every valid pixel.

    See :func:`code`.
    """
    return code(original, valid, bounds)[0]


def code(
    original: np.ndarray,
    valid: np.ndarray | None,
    bounds: Bounds,
    learnt: np.ndarray | None = None,
) -> tuple[bytes, np.ndarray]:
    """Code an array; return the bytes, and what :func:`decode` makes of them.

    Parameters
    ----------
    original : ndarray
        int32 (T, C, H, W), DN.
    valid : ndarray or None
        bool (T, C, H, W). False for samples whose value does not matter (nodata, padding).
    bounds : sequence of int or ndarray
        Largest allowed absolute error of each band, DN, (C,); 0 is lossless. A band may have an
        integer array (T, H, W) instead, with a bound for each pixel. The decoder needs the same
        bounds.
    learnt : ndarray or None
        For ``training/bound_table.py``, as in :func:`tec_zarr.native.planes.encode`. Bytes made
        with it cannot be decoded.

    Raises
    ------
    UnsupportedArrayError
        Shapes do not agree, or bounds are negative or not whole DN.
    TecError
        The decoder would exceed the bounds. Every section is checked for this.
    """
    original = np.asarray(original)
    limits = _checked(original.shape, valid, bounds)
    if original.dtype.kind not in "iu" or original.dtype.itemsize > 4 or original.dtype == "u4":
        raise UnsupportedArrayError(
            f"bound layer: original is {original.dtype}, expected int32 or a narrower integer"
        )
    original = original.astype(np.int32, copy=False)
    lossless = [isinstance(b, int) and b == 0 for b in limits]
    known = _natives(original, valid, lossless)
    grids = [k and k[0] for k in known]
    order, near = _plan(original, valid, grids)
    natives = [k[1] for k in known if k]
    places = [(g.kind, g.factor, g.row, g.column) if g else (0, 0, 0, 0) for g in grids]
    data, decoded = planes.encode(
        original, valid, limits, np.array(places, np.int32), natives, order, near, learnt
    )
    differs = decoded != original
    if valid is not None:
        differs &= np.asarray(valid, bool)
    over = []
    for band, limit in enumerate(limits):
        wrong = differs[:, band]
        if isinstance(limit, np.ndarray) or limit:
            error = np.abs(np.subtract(decoded[:, band], original[:, band], dtype=np.int64))
            wrong = wrong & (error > limit)
        over.append(np.count_nonzero(wrong))
    if any(over):
        raise TecError(
            f"bound layer: {over} pixels of the bands of shape {original.shape} would exceed "
            f"their bounds; this is a bug of tec_zarr, nothing was written, please report it"
        )
    return data, decoded


def decode(
    data: bytes,
    valid: np.ndarray | None,
    shape: tuple[int, int, int, int],
    bounds: Bounds,
) -> np.ndarray:
    """Decode what :func:`encode` wrote, given the same validity, shape and bounds.

    Parameters
    ----------
    data : bytes
        The section.
    valid, bounds
        As given to :func:`encode`.
    shape : (int, int, int, int)
        (T, C, H, W).

    Returns
    -------
    ndarray
        int32 (T, C, H, W), DN. Pixels that are not valid hold a prediction.

    Raises
    ------
    ChecksumError
        For damaged bytes, and for a validity, shape or bounds other than those of the encoder.
    """
    limits = _checked(shape, valid, bounds)
    return planes.decode(bytes(data), valid, shape, limits)


def _checked(
    shape: Sequence[int],
    valid: np.ndarray | None,
    bounds: Bounds,
) -> list[int | np.ndarray]:
    shape = tuple(shape)
    if len(shape) != 4 or min(shape, default=0) < 1:
        raise UnsupportedArrayError(f"bound layer: shape {shape}, expected (T, C, H, W), no zeros")
    if valid is not None and np.shape(valid) != shape:
        raise UnsupportedArrayError(
            f"bound layer: valid has shape {np.shape(valid)}, the array {shape}"
        )
    if len(bounds) != shape[1]:
        raise UnsupportedArrayError(
            f"bound layer: {len(bounds)} bounds for {shape[1]} bands, expected one per band"
        )
    return [_checked_bound(b, (shape[0], *shape[2:])) for b in bounds]


def _checked_bound(value: int | np.ndarray, shape: tuple[int, ...]) -> int | np.ndarray:
    values = np.asarray(value)
    if values.ndim and values.shape != shape:
        raise UnsupportedArrayError(
            f"bound layer: bounds of shape {values.shape} for a band of shape {shape}"
        )
    if not np.all((values >= 0) & (values < _INT32) & (values == np.floor(values))):
        raise UnsupportedArrayError(
            f"bound layer: bounds from {values.min()} to {values.max()}, expected whole DN from 0 "
            f"to {_INT32 - 1}"
        )
    return values.astype("<i4") if values.ndim else int(values)


def _natives(
    original: np.ndarray, valid: np.ndarray | None, lossless: Sequence[bool]
) -> list[tuple[Grid, np.ndarray] | None]:
    """Find the grid and the native values int64 (T, h, w) of each band; None for other bands."""
    out: list[tuple[Grid, np.ndarray] | None] = []
    for band, found in enumerate(find(original, valid)):
        if not found or np.abs(found.native).max() >= _WIDEST:
            out.append(None)
            continue
        native = found.native
        if lossless[band]:
            mask = None if valid is None else valid[:, band]
            native = refine(native, original[:, band], mask, found.grid)
        out.append((found.grid, native))
    return out


def _plan(
    original: np.ndarray, valid: np.ndarray | None, grids: Sequence[Grid | None]
) -> tuple[list[int], np.ndarray]:
    """Return the order of the bands, and for each the positions of those most like it."""
    count = original.shape[1]
    order, alike = list(range(count)), np.zeros((count, count))
    if count > 1 and min(original.shape[2:]) > 2:
        order, alike = _detail_order(original, valid, grids)
    near = np.full((count, _NEAR), -1, np.int32)
    for position, band in enumerate(order):
        best = sorted(range(position), key=lambda i: (-alike[band, order[i]], -i))[:_NEAR]
        near[position, : len(best)] = best
    return order, near


def _detail_order(
    original: np.ndarray, valid: np.ndarray | None, grids: Sequence[Grid | None]
) -> tuple[list[int], np.ndarray]:
    """Return the order of the bands, and how alike the details of two bands are. Encoder only.

    Bands with most detail come first. Enlarged bands come after the others: means of the others
    over blocks predict them, but they do not predict the detail within a block.
    """
    x = original.astype(np.float32)
    detail = (
        4.0 * x[..., 1:-1, 1:-1]
        - x[..., 2:, 1:-1]
        - x[..., :-2, 1:-1]
        - x[..., 1:-1, 2:]
        - x[..., 1:-1, :-2]
    )
    if valid is not None:
        detail = np.where(np.asarray(valid, bool)[..., 1:-1, 1:-1], detail, 0.0)
    flat = np.moveaxis(detail, 1, 0).reshape(original.shape[1], -1)
    gram = (flat @ flat.T).astype(np.float64)
    energy = np.diagonal(gram)
    scale = np.sqrt(np.maximum(np.multiply.outer(energy, energy), 1e-6))
    repeated = np.rint(6.0 * (x[..., 1:] == x[..., :-1]).mean(axis=(0, 2, 3)))
    for band, grid in enumerate(grids):
        if grid is not None:
            repeated[band] = np.rint(6.0 * (1.0 - 1.0 / grid.factor))
    return np.lexsort((-energy, repeated)).tolist(), np.abs(gram) / scale
