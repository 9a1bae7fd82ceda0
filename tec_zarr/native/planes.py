"""Calls the compiled bound layer, which codes arrays so that every sample keeps its bound."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from tec_zarr.errors import ChecksumError, TecError
from tec_zarr.native.core import at, library

_DAMAGED, _NO_MEMORY = -2, -1
_VARYING = -1
FREE, ONE_BOUND, BLOCK_BOUNDS = range(3)
"""Kinds of bands of a chunk."""

Bounds = Sequence[int | np.ndarray]
"""Largest absolute error of each band: an integer, or integers (T, H, W)."""


class _Arguments:
    """The arguments that encoder and decoder share, in memory that C reads."""

    def __init__(self, shape: Sequence[int], valid: np.ndarray | None, bounds: Bounds) -> None:
        self._labels = None
        if valid is not None and not valid.all():
            self._labels = np.ascontiguousarray(~np.asarray(valid, bool)).view(np.uint8)
        whole = [_VARYING if isinstance(b, np.ndarray) else b for b in bounds]
        self._bounds = np.array(whole, np.int32)
        self._samples = None
        if _VARYING in whole:
            self._samples = np.zeros(shape, np.int32)
            for band, bound in enumerate(bounds):
                if isinstance(bound, np.ndarray):
                    self._samples[:, band] = bound
        self.shape = [ctypes.c_int64(n) for n in shape]

    @property
    def last(self) -> list[ctypes.c_void_p | None]:
        return [at(self._labels), at(self._bounds), at(self._samples)]


def _checked(status: int, shape: Sequence[int]) -> int:
    if status >= 0:
        return status
    if status == _DAMAGED:
        raise ChecksumError(
            f"bound section of shape {tuple(shape)}: the bytes are damaged, or the validity, "
            "shape or bounds are not those of the encoder"
        )
    if status == _NO_MEMORY:
        raise MemoryError(f"no memory for a bound layer of shape {tuple(shape)}")
    raise TecError(f"bound layer: an array of shape {tuple(shape)} is too large ({status})")


def encode(
    original: np.ndarray,
    valid: np.ndarray | None,
    bounds: Bounds,
    grids: np.ndarray,
    natives: Sequence[np.ndarray],
    order: Sequence[int],
    near: np.ndarray,
    learnt: np.ndarray | None = None,
) -> tuple[bytes, np.ndarray]:
    """Encode an array; return the section and what a decoder will make of it.

    Parameters
    ----------
    original : ndarray
        int32 (T, C, H, W), DN.
    valid : ndarray or None
        bool (T, C, H, W).
    bounds : sequence of int or ndarray
        One for each band.
    grids : ndarray
        int32 (C, 4): kind, factor, row and column of each band's grid; zeros if it has none.
    natives : sequence of ndarray
        int32 (T, h, w), for each band that has a grid.
    order : sequence of int
        The bands in the order in which they are coded.
    near : ndarray
        int32 (C, 3): for each band in that order the positions of up to three earlier ones that
        are most like it.
    learnt : ndarray or None
        int32 (8395,), laid out as in ``planes.h``: where learning begins, and then where it ended.
        None: it begins at ``planes_table.h``, as every decoder does.
    """
    shape = original.shape
    given = _Arguments(shape, valid, bounds)
    original = np.ascontiguousarray(original, np.int32)
    held = [np.zeros(0, np.int32), *(n.ravel() for n in natives)]
    arrays = (
        np.ascontiguousarray(grids, np.int32),
        np.concatenate(held).astype(np.int32),
        np.array(order, np.int32),
        np.ascontiguousarray(near, np.int32),
    )
    decoded = np.empty(shape, np.int32)
    room = np.empty(16 * original.size + 65536, np.uint8)
    run = library().tec_bound_encode
    run.restype = ctypes.c_int64
    status = run(at(original), *given.shape, *given.last, *map(at, arrays), at(decoded),
                 at(room), ctypes.c_int64(len(room)), at(learnt))  # fmt: skip
    return room[: _checked(status, shape)].tobytes(), decoded


def decode(
    data: bytes, valid: np.ndarray | None, shape: Sequence[int], bounds: Bounds
) -> np.ndarray:
    """Decode what :func:`encode` wrote, given the same validity, shape and bounds."""
    given = _Arguments(shape, valid, bounds)
    section = np.frombuffer(data, np.uint8)
    decoded = np.empty(shape, np.int32)
    run = library().tec_bound_layer
    run.restype = ctypes.c_int
    _checked(run(at(section), ctypes.c_int64(len(section)), *given.shape, *given.last,
                 at(decoded)), shape)  # fmt: skip
    return decoded


def move_natives(
    grid: Sequence[int],
    samples: np.ndarray,
    valid: np.ndarray | None,
    native: np.ndarray,
    span: int,
) -> np.ndarray:
    """Move native values of one plane by one where fewer samples are wrong then.

    Parameters
    ----------
    grid : sequence of int
        Kind, factor, row and column.
    samples : ndarray
        int32 (H, W).
    valid : ndarray or None
        bool (H, W).
    native : ndarray
        Integers (h, w).
    span : int
        Side of the blocks of native values that move together, 1 or 2.
    """
    samples = np.ascontiguousarray(samples, np.int32)
    known = None if valid is None else np.ascontiguousarray(valid).view(np.uint8)
    out = np.array(native, np.int32, order="C")
    numbers = map(ctypes.c_int, (*grid, *samples.shape))
    status = library().tec_grid_search(*numbers, at(samples), at(known), ctypes.c_int(span),
                                       at(out))  # fmt: skip
    _checked(status, samples.shape)
    return out


def decode_chunk(
    section: bytes,
    packed: bytes,
    shape: Sequence[int],
    labels: np.ndarray | None,
    kinds: Sequence[int],
    bounds: Sequence[int],
) -> np.ndarray:
    """Decode the bound layer of a chunk, int32 (T, C, H, W).

    Parameters
    ----------
    section, packed : bytes
        The section, and the map of the bounds of blocks; empty if no band needs it.
    shape : (int, int, int, int)
        (T, C, H, W).
    labels : ndarray or None
        uint8 (T, C, H, W), 0 where a sample was measured. None: everywhere.
    kinds : sequence of int
        For each band ``FREE`` (its samples mean nothing), ``ONE_BOUND`` or ``BLOCK_BOUNDS``.
    bounds : sequence of int
        For each band its bound, or the largest bound of a block.
    """
    data, levels = np.frombuffer(section, np.uint8), np.frombuffer(packed, np.uint8)
    held = None if labels is None else np.ascontiguousarray(labels, np.uint8)
    kind, bound = np.array(kinds, np.uint8), np.array(bounds, np.int32)
    decoded = np.zeros(shape, np.int32)
    _checked(
        library().tec_bound_decode(
            at(data), ctypes.c_int64(len(data)), at(levels), ctypes.c_int64(len(levels)),
            *(ctypes.c_int64(n) for n in shape), at(held), at(kind), at(bound), at(decoded),
        ), shape,
    )  # fmt: skip
    return decoded
