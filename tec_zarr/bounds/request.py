"""Resolves ``max_error`` into largest errors of bands and of normalised differences (indices).

An index ``I = (a - b) / (a + b)`` of decoded bands differs from the original index by exactly
``2 (b da - a db) / ((a + b) (a + b + da + db))``. So the index stays within a bound if the errors
``da`` and ``db`` of the two bands stay within integers that depend on the pixel. These integers are
rounded down to one of a few levels for each block of 4 x 4 pixels. The chunk stores the levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from tec_zarr.errors import FormatError, UnsupportedArrayError
from tec_zarr.frame.frame import IndexBound, mapped_bands
from tec_zarr.sentinel2 import NORMALISED_DIFFERENCES, UnknownBandError, band_name

ALL = "all"
"""Key of ``max_error`` that means every band."""

PAIR = "nd:"
"""Prefix of a normalised difference without a name, as in ``nd:B08,B04``."""

BLOCK = 4
"""Side, in pixels, of the blocks that share a bound."""

LEVELS = np.unique([0, *(math.isqrt(math.isqrt(1 << i)) for i in range(64))])
"""Bounds that a block can have, DN: quarter octaves rounded down to whole DN, up to 55,108."""

_SMALLEST_SHARE = 0.5  # a decoded band of an index is at least this share of the original


class NamedBounds(dict):
    """Checked bounds by canonical name. It is hashable, so it must not be changed."""

    def __init__(self, bounds: Mapping[str, float]) -> None:
        if not bounds:
            raise UnsupportedArrayError("max_error names nothing: give it a bound, or None")
        super().__init__()
        for name, value in bounds.items():
            key = _canonical(name)
            if not isinstance(value, Real) or isinstance(value, bool):
                raise UnsupportedArrayError(
                    f"max_error of {key} is {value!r:.80}, it must be a number"
                )
            try:
                number = float(value)
            except OverflowError:  # JSON has integers of any length
                number = math.inf
            if not (math.isfinite(number) and number >= 0):
                raise UnsupportedArrayError(f"max_error of {key} is {number}, it must be 0 or more")
            if key in self:
                raise UnsupportedArrayError(f"max_error names {key} twice in {list(bounds)}")
            self[key] = number

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __reduce__(self) -> tuple[type, tuple[dict[str, float]]]:
        return NamedBounds, (dict(self),)

    def scaled(self, factor: float) -> NamedBounds:
        """Return the bounds for bands in units of ``factor``; an index has no unit."""
        return NamedBounds(
            {k: v if index_bands(k) else round(v / factor, 6) for k, v in self.items()}
        )


@dataclass(frozen=True)
class Limits:
    """The bounds of all bands and indices of a chunk.

    Attributes
    ----------
    bands : tuple of float
        Largest absolute error of each band, in the units of the array. Infinity: no bound.
    indices : tuple of IndexBound
        Bounds of indices.
    """

    bands: tuple[float, ...]
    indices: tuple[IndexBound, ...] = ()

    @property
    def mapped(self) -> list[int]:
        """Bands that occur in an index, rising. Their bounds differ from block to block."""
        return mapped_bands(self.indices)

    @property
    def free(self) -> list[int]:
        """Bands without a bound, which the model codes."""
        return [c for c, v in enumerate(self.bands) if math.isinf(v) and c not in self.mapped]


def index_bands(name: str) -> tuple[str, str] | None:
    """Return the bands (first, second) of an index, from its canonical name.

    None if the name is not that of an index.
    """
    if name.startswith(PAIR):
        first, second = name.removeprefix(PAIR).split(",")
        return first, second
    return NORMALISED_DIFFERENCES.get(name)


def index_name(first: str, second: str) -> str:
    """Return the usual name of the normalised difference of two bands, or else ``nd:...``."""
    names = (n for n, pair in NORMALISED_DIFFERENCES.items() if pair == (first, second))
    return next(names, f"{PAIR}{first},{second}")


def resolve(
    max_error: Mapping[str, float] | Sequence[float] | float,
    count: int,
    bands: Sequence[str] | None,
) -> Limits:
    """Resolve ``max_error`` into the bounds of each band and index of a chunk.

    Parameters
    ----------
    max_error : mapping, number or sequence of numbers
        As in :class:`tec_zarr.codec.spec.ChunkSpec`.
    count : int
        Number of bands of the chunk.
    bands : sequence of str or None
        Canonical names of the bands. None: unknown.

    Raises
    ------
    UnsupportedArrayError
        ``max_error`` has names but ``bands`` is None, it names bands that the chunk lacks, or it
        has a wrong number of bounds.
    """
    if not isinstance(max_error, Mapping):
        if np.size(max_error) not in (1, count):
            raise UnsupportedArrayError(
                f"max_error has {np.size(max_error)} values for the {count} bands: give one, or "
                "one for each band"
            )
        return Limits(tuple(np.broadcast_to(np.asarray(max_error, float), count).tolist()))
    if bands is None and set(max_error) != {ALL}:
        raise UnsupportedArrayError(
            f"max_error names {', '.join(max_error)}, but it is not known which of the {count} "
            "bands those are: pass bands=[...], in the order of the band axis"
        )
    names = list(bands or ())
    per_band = dict.fromkeys(range(count), max_error.get(ALL, math.inf))
    indices = []
    for name, value in max_error.items():
        pair = index_bands(name)
        needed = () if name == ALL else pair or (name,)
        missing = [band for band in needed if band not in names]
        if missing:
            raise UnsupportedArrayError(
                f"max_error names {name}, which needs {' and '.join(needed)}; the array has only "
                f"{', '.join(names)}: bands of an index have to be in one array, along a band axis"
            )
        if pair:
            indices.append(IndexBound(names.index(pair[0]), names.index(pair[1]), value))
        elif name != ALL:
            per_band[names.index(name)] = value
    return Limits(tuple(per_band.values()), tuple(indices))


def exceeded(
    limits: Limits,
    original: np.ndarray,
    decoded: np.ndarray,
    known: np.ndarray,
    shift: float,
) -> tuple[np.ndarray, tuple[IndexBound, ...]]:
    """Find the samples that exceed a bound, and the largest error of each index.

    Parameters
    ----------
    limits : Limits
        The bounds.
    original, decoded : ndarray
        (T, C, H, W), in the units of the array. Floats may exceed the bound of a band by their
        last place.
    known : ndarray
        bool (T, C, H, W), False for nodata.
    shift : float
        Offset of the values, in their units. It is subtracted before indices are computed.

    Returns
    -------
    wrong : ndarray
        bool (T, C, H, W), True for samples that exceed a bound. If an index exceeds its bound,
        the samples of both of its bands are True.
    indices : tuple of IndexBound
        The indices of ``limits``, with the largest error of each.
    """
    allowed = np.array(limits.bands)[:, None, None]
    before, after = (np.where(known, x, x.dtype.type(0)) for x in (original, decoded))
    slack: Any = 0
    changed = bits_of(before) != bits_of(after)
    if not limits.indices and not allowed.any():
        return changed, ()
    if before.dtype.kind == "f":
        with np.errstate(under="ignore"):
            slack = np.spacing(np.maximum(np.abs(before), np.abs(after)))
    before, after = before.astype(np.float64), after.astype(np.float64)
    wrong = np.where(allowed > 0, ~(np.abs(after - before) <= allowed + slack), changed)
    found = []
    for index in limits.indices:
        error = index_errors(index, before - shift, after - shift, known)
        wrong[:, [index.first, index.second]] |= (error > index.bound)[:, None]
        found.append(replace(index, error=float(error.max())))
    return wrong, tuple(found)


def bits_of(samples: np.ndarray) -> np.ndarray:
    """Return the bits of samples as unsigned integers.

    They tell apart zeros of either sign, and NaNs of different payloads.
    """
    return samples.view(f"u{samples.dtype.itemsize}")


def index_errors(
    bound: IndexBound, original: np.ndarray, decoded: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """Return the absolute error of an index of decoded bands.

    Parameters
    ----------
    bound : IndexBound
        The index.
    original, decoded : ndarray
        float64 (T, C, H, W), without any offset, in any unit.
    known : ndarray
        bool (T, C, H, W), False for nodata.

    Returns
    -------
    ndarray
        float64 (T, H, W). 0 if a band is nodata, or if the original bands add up to 0 and so have
        no index. Infinity if only the decoded bands have no index.
    """
    first, second = bound.first, bound.second
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        before, after = (
            (x[:, first] - x[:, second]) / (x[:, first] + x[:, second]) for x in (original, decoded)
        )
        error = np.abs(after - before)
    error[np.isnan(error)] = math.inf
    error[~(known[:, first] & known[:, second] & np.isfinite(before))] = 0
    return error


def block_levels(
    dn: np.ndarray,
    taken: np.ndarray,
    known: np.ndarray,
    measured: np.ndarray,
    limits: Limits,
    caps: Sequence[int],
    precision: float,
) -> np.ndarray:
    """Choose the level of each block and band that keeps every index in its bound. Encoder only.

    First, both bands of an index get the same relative error, because that costs least. Then each
    band gets the error that remains after the bounds of the others were rounded down.

    Parameters
    ----------
    dn : ndarray
        float64 (T, C, H, W), without any offset.
    taken : ndarray
        float64 (T, C, H, W), the error that rounding to whole DN has made.
    known, measured : ndarray
        bool (T, C, H, W). ``known`` is False for nodata. ``measured`` is True for samples that
        the bound layer codes; other samples are exact.
    limits : Limits
        It has at least one index.
    caps : sequence of int
        Largest error of each band, DN, even if the indices allow more.
    precision : float
        Relative precision of the array's dtype, 0 for integers.

    Returns
    -------
    ndarray
        int32 (T, bands of `Limits.mapped`, blocks down, blocks across), positions in `LEVELS`.
    """
    mapped = limits.mapped
    shape = (len(dn), *dn.shape[2:])
    errors = {band: np.zeros(shape) for band in mapped}
    levels = np.zeros((shape[0], len(mapped), *_block_shape(shape[1:])), np.int32)

    def assign(band: int, room: np.ndarray) -> None:
        room = np.minimum(room, _SMALLEST_SHARE * np.maximum(dn[:, band], 0)) - taken[:, band]
        room = np.where(measured[:, band], np.floor(room), np.inf)
        smallest = np.maximum(_block_minimum(room), 0)
        level = np.searchsorted(LEVELS, smallest, side="right") - 1
        top = min(int(np.searchsorted(LEVELS, caps[band])), len(LEVELS) - 1)
        levels[:, mapped.index(band)] = np.where(smallest >= caps[band], top, level)
        allowed = block_bounds(levels[:, mapped.index(band)], caps[band], shape[1:])
        errors[band] = np.where(measured[:, band], allowed + taken[:, band], 0)

    def room(band: int, left: bool) -> np.ndarray:
        """Return the error that the indices allow a band: its share, or what others have left."""
        smallest = np.full(shape, np.inf)
        for index in limits.indices:
            if band not in (index.first, index.second):
                continue
            other = index.second if band == index.first else index.first
            own, partner = dn[:, band], dn[:, other]
            total = own + partner
            bound = max(index.bound * (1 - 1e-9) - 4 * precision, 0.0)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                if left:
                    spent = errors[other] * (2 * own + bound * total)
                    allowed = (bound * total**2 - spent) / (2 * partner + bound * total)
                else:
                    share = bound * total**2 / (4 * own * partner)
                    allowed = own * np.where(np.isinf(share), 1.0, share / (1 + share))
            inside = (own >= 0) & (partner >= 0) & (total > 0) & ~np.isnan(allowed)
            allowed = np.where(inside, allowed, 0)
            smallest = np.where(known[:, other], np.minimum(smallest, allowed), smallest)
        return smallest

    for left in (False, True):
        for band in mapped:
            assign(band, room(band, left))
    return levels


def block_bounds(levels: np.ndarray, cap: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bounds of the pixels of one band, from the levels of its blocks.

    Parameters
    ----------
    levels : ndarray
        int (T, blocks down, blocks across).
    cap : int
        Largest error of the band, DN.
    shape : (int, int)
        Height and width.

    Returns
    -------
    ndarray
        int32 (T, H, W), DN.
    """
    if levels.min() < 0 or levels.max() >= len(LEVELS):
        raise FormatError(f"TEC frame damaged: bound levels from {levels.min()} to {levels.max()}")
    bounds = np.minimum(LEVELS[levels], cap).astype(np.int32)
    wide = np.repeat(np.repeat(bounds, BLOCK, axis=1), BLOCK, axis=2)
    return np.ascontiguousarray(wide[:, : shape[0], : shape[1]])


def blocks_with(measured: np.ndarray) -> np.ndarray:
    """Return True for blocks that hold a measured sample, bool (T, C, blocks down, across)."""
    return ~_block_minimum(~measured)


def _block_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return -(-shape[0] // BLOCK), -(-shape[1] // BLOCK)


def _block_minimum(plane: np.ndarray) -> np.ndarray:
    rows = np.minimum.reduceat(plane, np.arange(0, plane.shape[-2], BLOCK), axis=-2)
    return np.minimum.reduceat(rows, np.arange(0, plane.shape[-1], BLOCK), axis=-1)


def _canonical(name: object) -> str:
    text = str(name).strip()
    if text.lower() in (ALL, *NORMALISED_DIFFERENCES):
        return text.lower()
    try:
        if not text.lower().startswith(PAIR):
            return band_name(text)
        first, second = (band_name(b.strip()) for b in text[len(PAIR) :].split(","))
    except UnknownBandError:
        pass
    except ValueError as error:
        raise UnsupportedArrayError(f"max_error names {name!r}: write {PAIR}B08,B04") from error
    else:
        if first != second:
            return f"{PAIR}{first},{second}"
    raise UnsupportedArrayError(
        f"max_error names {name!r:.80}, which is none of {', '.join(NORMALISED_DIFFERENCES)}, no "
        f"pair of bands such as {PAIR}B08,B04, no Sentinel-2 band, and not {ALL!r}"
    )
