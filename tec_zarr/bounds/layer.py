"""Codes an array so that every valid pixel stays within its bound; the layer behind ``max_error``.

:func:`encode` codes an array; :func:`decode` undoes it. How a plane is predicted and coded is in
:mod:`tec_zarr.bounds.planes`; the byte layout and the guarantee are in ``docs/error-bounds.md``.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from tec_zarr.bounds.coarse import Decoded, Native, code_grid, natives_of, plane_on_grid
from tec_zarr.bounds.lattices import Reference
from tec_zarr.bounds.planes import PlaneCoder
from tec_zarr.entropy.residual_tables import (
    SCALES,
    SymbolCoder,
    SymbolDecoder,
    SymbolEncoder,
    scale_thresholds,
)
from tec_zarr.errors import ChecksumError, FormatError, TecError, UnsupportedArrayError

_HEADER = struct.Struct("<BII")
_VERSION = 2
_WIDE = 3  # number of earlier bands whose neighbourhoods are regressors, not the pixel alone
_WORTH_MERGING = 0.9  # rows and columns are merged if at most this share of pixels is left
_INT32 = 1 << 31
_MAPPED = (1 << 32) - 1  # stands in the checksum for a band with a bound for each pixel

Bounds = Sequence[int | np.ndarray] | np.ndarray
"""Largest absolute error of each band, DN: an integer, or integers (T, H, W)."""


def encode(
    original: np.ndarray,
    valid: np.ndarray | None,
    bounds: Bounds,
) -> bytes:
    """Code an array so that :func:`decode` returns it within ``bounds`` at every valid pixel.

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

    Returns
    -------
    bytes

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
    coder = SymbolEncoder()
    decoded = _walk(coder, original.shape, valid, limits, original)
    error = np.abs(decoded.astype(np.int64) - original)
    if valid is not None:
        error[~np.asarray(valid, bool)] = 0
    over = [np.count_nonzero(error[:, band] > limit) for band, limit in enumerate(limits)]
    if any(over):
        raise TecError(
            f"bound layer: {over} pixels of the bands of shape {original.shape} would exceed "
            f"their bounds; this is a bug of tec_zarr, nothing was written, please report it"
        )
    payload = coder.getvalue()
    checksum = _checksum(original.shape, valid, limits, payload)
    return _HEADER.pack(_VERSION, checksum, zlib.crc32(decoded.data)) + payload


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
    FormatError
        The bytes are not a bound section.
    ChecksumError
        For damaged bytes, for a validity, shape or bounds other than those of the encoder,
        and for a decoded array other than the encoder's.
    """
    limits = _checked(shape, valid, bounds)
    data = bytes(data)
    if len(data) < _HEADER.size:
        raise FormatError(f"bound section: {len(data)} bytes, expected at least {_HEADER.size}")
    version, payload_crc, decoded_crc = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise FormatError(f"bound section: version {version}, this tec_zarr reads {_VERSION}")
    payload = data[_HEADER.size :]
    if _checksum(shape, valid, limits, payload) != payload_crc:
        raise ChecksumError(
            f"bound section of shape {tuple(shape)}: checksum mismatch; the bytes are damaged, or "
            "the validity, shape or bounds are not those of the encoder"
        )
    try:
        with np.errstate(all="ignore"):  # forged weights may overflow; the checksum tells
            decoded = _walk(SymbolDecoder(payload), shape, valid, limits, None)
    except TecError:
        raise
    except (AssertionError, IndexError, OverflowError, ValueError) as error:
        raise FormatError(f"bound section of shape {tuple(shape)}: invalid symbols") from error
    if zlib.crc32(decoded.data) != decoded_crc:
        raise ChecksumError(
            f"bound section of shape {tuple(shape)}: decoded values are not the encoder's; "
            "please report this with your platform and numpy version"
        )
    return decoded


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


def _checksum(
    shape: Sequence[int],
    valid: np.ndarray | None,
    bounds: list[int | np.ndarray],
    payload: bytes,
) -> int:
    """Return the CRC-32 of the payload and of all that encoder and decoder must share."""
    numbers = [b if isinstance(b, int) else _MAPPED for b in bounds]
    crc = zlib.crc32(
        struct.pack(
            f"<4Q{len(bounds)}I??",
            *shape,
            *numbers,
            False,  # always zero
            valid is not None,
        )
    )
    for bound in bounds:
        if not isinstance(bound, int):
            crc = zlib.crc32(np.ascontiguousarray(bound).data, crc)
    if valid is not None:
        crc = zlib.crc32(np.packbits(np.asarray(valid, bool)).data, crc)
    return zlib.crc32(payload, crc)


def _walk(
    coder: SymbolCoder,
    shape: tuple[int, int, int, int],
    valid: np.ndarray | None,
    bounds: list[int | np.ndarray],
    original: np.ndarray | None,
) -> np.ndarray:
    """Encode every plane of ``original``, or decode if it is None; return the decoded array."""
    dates, bands = shape[:2]
    decoded = np.empty(shape, "<i4")
    planes = PlaneCoder(coder)
    order, wide, natives = _plan(coder, bands, original, valid, bounds)
    previous: dict[int, Decoded] = {}
    for date in range(dates):
        done: dict[int, Decoded] = {}
        for position, band in enumerate(order):
            references = []
            if band in previous:
                references.append(previous.pop(band).seen(same=True, wide=True))
            near = [order[i] for i in wide[position]]
            far = [b for b in reversed(order[:position]) if b not in near]
            references += [done[b] for b in near]
            references += [done[b].seen(same=False, wide=False) for b in far]
            mask = None if valid is None else np.asarray(valid[date, band], bool)
            target = None if original is None else original[date, band].astype(np.float64)
            bound = bounds[band]
            if not isinstance(bound, int):
                bound = bound[date].astype(np.float64)
            found = _plane(
                coder,
                planes,
                shape[2:],
                mask,
                references,
                bound,
                target,
                natives[band],
                date,
            )
            decoded[date, band] = found.fine.values
            # Spreads take most memory, so they are kept only if a later plane uses them.
            seen = date + 1 < dates or any(position in later for later in wide[position + 1 :])
            done[band] = found if seen else found.without_spread()
        previous = done
    return decoded


def _plan(
    coder: SymbolCoder,
    count: int,
    original: np.ndarray | None,
    valid: np.ndarray | None,
    bounds: list[int | np.ndarray],
) -> tuple[list[int], list[list[int]], list[Native | None]]:
    """Code the plan of all bands.

    Returns the order of the bands; for each of them the positions of earlier bands whose
    neighbourhoods it uses; and the grids.
    """
    order, alike = list(range(count)), np.zeros((count, count))
    known: list[Native | None] = [None] * count
    if original is not None:
        known = natives_of(original, valid, [isinstance(b, int) and b == 0 for b in bounds])
    if original is not None and count > 1 and min(original.shape[2:]) > 2:
        order, alike = _detail_order(original, valid, known)
    order = [coder.number(b if original is not None else None, count) for b in order]
    if sorted(order) != list(range(count)):
        raise FormatError(f"bound section: band order {order} is not a permutation")
    wide = []
    for position, band in enumerate(order):
        best = sorted(range(position), key=lambda i: (-alike[band, order[i]], -i))[:_WIDE]
        if position > _WIDE:
            best = [coder.number(i if original is not None else None, position) for i in best]
            best = list(dict.fromkeys(best))
        else:
            best = list(range(position))
        wide.append(best)
    natives = [code_grid(coder, native, original is not None) for native in known]
    return order, wide, natives


def _detail_order(
    original: np.ndarray, valid: np.ndarray | None, natives: list[Native | None]
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
    for band, native in enumerate(natives):
        if native is not None:
            repeated[band] = np.rint(6.0 * (1.0 - 1.0 / native.grid.factor))
    return np.lexsort((-energy, repeated)).tolist(), np.abs(gram) / scale


def _plane(
    coder: SymbolCoder,
    planes: PlaneCoder,
    shape: tuple[int, int],
    mask: np.ndarray | None,
    references: list[Decoded],
    bound: int | np.ndarray,
    target: np.ndarray | None,
    native: Native | None,
    date: int,
) -> Decoded:
    """Code one plane, on the coarser grid that it was enlarged from if it has one."""
    known = None
    if target is not None:
        chosen = target if mask is None else target[mask]
        known = (int(chosen.min()), int(chosen.max())) if chosen.size else (0, 0)
    low, high = _limits(coder, known)
    if native is not None and low < high:
        here = None if native.values is None else native.values[date]
        there = None
        if here is not None:
            known = here if mask is None else here[native.grid.touched(mask)]
            there = (int(known.min()), int(known.max()))
        values, spread, coarse = plane_on_grid(
            coder,
            planes,
            native.grid,
            shape,
            mask,
            references,
            bound,
            (low, high),
            _limits(coder, there),
            target,
            here,
        )
        return Decoded(Reference(values, spread, False, True), native.grid, coarse)
    fine = [r.fine for r in references]
    starts = None
    repeated = 0
    if low < high:
        if target is not None:
            starts = _repeats(target, mask)
        repeated = coder.number(int(starts is not None) if target is not None else None, 2)
    if not repeated:
        return _alone(*planes.plane(shape, mask, fine, bound, (low, high), target))
    rows = _starts(coder, starts and starts[0], shape[0])
    columns = _starts(coder, starts and starts[1], shape[1])
    heights, widths = np.diff(rows, append=shape[0]), np.diff(columns, append=shape[1])
    area = np.multiply.outer(heights, widths).astype(np.float64)

    def shrink(plane: np.ndarray, reduce: np.ufunc) -> np.ndarray:
        return reduce.reduceat(reduce.reduceat(plane, rows, axis=0), columns, axis=1)

    def mean(plane: np.ndarray) -> np.ndarray:
        # float64 holds the sums of these whole numbers exactly, so their order does not matter.
        return np.floor(shrink(np.floor(np.minimum(plane, 2.0**32)), np.add) / area)

    small = [
        Reference(mean(r.values), None if r.spread is None else mean(r.spread), r.same, r.wide)
        for r in fine
    ]
    if target is not None:
        target = shrink(target if mask is None else np.where(mask, target, -np.inf), np.maximum)
        target = np.where(np.isfinite(target), target, low)
    if mask is not None:
        mask = shrink(mask, np.logical_or)
    if not isinstance(bound, int):
        bound = shrink(bound, np.minimum)
    values, spread = planes.plane(area.shape, mask, small, bound, (low, high), target)
    return _alone(_spread_out(values, heights, widths), _spread_out(spread, heights, widths))


def _alone(values: np.ndarray, spread: np.ndarray) -> Decoded:
    return Decoded(Reference(values, spread, same=False, wide=True))


def _spread_out(plane: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(plane, heights, axis=0), widths, axis=1)


def _limits(coder: SymbolCoder, known: tuple[int, int] | None) -> tuple[int, int]:
    """Code the smallest and largest valid value of a plane."""
    narrow = known and int(known[0] >= 0 and known[1] < 1 << 16)
    if coder.number(narrow, 2):
        low, high = (coder.number(known and known[i], 1 << 16) for i in range(2))
    else:
        low, high = (
            coder.number(known and known[i] + _INT32, 2 * _INT32) - _INT32 for i in range(2)
        )
    if low > high:
        raise FormatError(f"bound section: a plane of values from {low} to {high}")
    return low, high


def _starts(coder: SymbolCoder, starts: np.ndarray | None, length: int) -> np.ndarray:
    """Code the first rows (or columns) of runs of equal ones, as changes of run length."""
    count = 1 + coder.number(None if starts is None else len(starts) - 1, length)
    changes = scale = None
    if starts is not None:
        changes = np.diff(np.diff(starts, append=length), prepend=0)
        scale = int(np.searchsorted(scale_thresholds(1.0), np.abs(changes).mean()))
    scale = coder.number(scale, SCALES)
    changes = coder.symbols(changes, np.full(count, scale), 0)
    runs = np.cumsum(changes)
    if runs.min() < 1 or runs.sum() != length:
        raise FormatError(f"bound section: runs of equal rows do not add up to {length}")
    return np.cumsum(runs) - runs


def _repeats(target: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first rows and columns of runs of equal ones. Encoder only.

    None if merging them would save few pixels.
    """
    rows = _run_starts(target, mask)
    # Columns are compared after rows were merged. With invalid pixels, two pixels of different
    # rows and columns may fall into one block, and they have to be equal too.
    merged, known = target[rows], None
    if mask is not None:
        merged = np.maximum.reduceat(np.where(mask, target, -np.inf), rows, axis=0)
        known = np.logical_or.reduceat(mask, rows, axis=0).T
    columns = _run_starts(merged.T, known)
    if len(rows) * len(columns) > _WORTH_MERGING * target.size:
        return None
    return rows, columns


def _run_starts(plane: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None:
        same = (plane[1:] == plane[:-1]).all(axis=1)
        return np.concatenate([[0], np.flatnonzero(~same) + 1])
    starts, value, known = [0], plane[0].copy(), mask[0].copy()
    for i in range(1, len(plane)):
        both = known & mask[i]
        if np.array_equal(value[both], plane[i][both]):
            value[mask[i]] = plane[i][mask[i]]
            known |= mask[i]
        else:
            starts.append(i)
            value, known = plane[i].copy(), mask[i].copy()
    return np.array(starts)
