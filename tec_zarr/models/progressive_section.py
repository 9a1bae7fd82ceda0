"""Writes and reads the header of a ``tec-flex-s2`` section: its levels, basis and spreads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.models import klt
from tec_zarr.models.constants import LEVELS, step_size
from tec_zarr.models.temporal_section import MOST_FINER, Parsed, date_quality, parse

if TYPE_CHECKING:
    from torch import Tensor


#: Qualities in a section's header are multiples of 1/4096.
QUALITY_GRID = 4096


#: The spectral header is written for a quality that is this much lower than the last one. Its
#: basis takes fewer bits and decorrelates as well; low qualities have to pay for it too.
HEADER_COARSER = 2


#: Change of spreads (quarter octaves over the step) over n qualities. The step falls by about
#: thirteen sixteenths of an octave with every quality.
_SPREAD_OF_QUALITIES = [13 * n // 4 for n in range(LEVELS + 1)]


@dataclass(frozen=True)
class Head:
    """The beginning of a section's header.

    Attributes
    ----------
    parsed : Parsed
        References and the bytes behind them.
    quality : float
        Quality of the last level, before :func:`date_quality` makes it finer.
    lowest_finer : int
        How much finer the lowest level is coded, in eighths of a quality.
    """

    parsed: Parsed
    quality: float
    lowest_finer: int


def first_half(sizes: list[float], tried: list[bool]) -> int:
    """Return the last channel group of the first half of a level.

    The first half takes about half of the bits, if there are two groups or more.
    """
    there = [g for g, on in enumerate(tried) if on]
    total = np.cumsum([sizes[g] for g in there])
    ends = total[:-1] if len(there) > 1 else total
    return there[int(np.argmin(np.abs(ends - total[-1] / 2)))]


def level_qualities(quality: float, finer: tuple[int, int]) -> list[float]:
    """Return the qualities of a date's levels, the lowest first.

    ``finer`` says how much finer the date is coded at the lowest and at the last level.
    """
    levels = int(quality)
    low, high = finer
    shares = [low + (high - low) * k // max(levels - 1, 1) for k in range(levels)]
    return [date_quality(quality - (levels - 1 - k), more) for k, more in enumerate(shares)]


def read_head(data: bytes, date: int, shape: tuple[int, ...]) -> Head:
    """Parse the beginning of a section's header."""
    if len(data) < 4:
        raise FormatError(f"the header of date {date} of a chunk has {len(data)} bytes")
    quality = int.from_bytes(data[:2], "little") / QUALITY_GRID
    if not 1 <= quality <= LEVELS:
        raise FormatError(f"date {date} of a chunk claims quality {quality:g}, of 1 to {LEVELS}")
    if data[2] > MOST_FINER:
        raise FormatError(f"date {date} of a chunk claims to be {data[2]} eighths finer")
    return Head(parse(data[3:], date, shape), quality, data[2])


def spread_of(missing: Tensor, spectral: klt.Klt, step: float) -> np.ndarray:
    """Return the spreads of a prediction's residual ``missing`` (C, 64, P) in a spectral basis."""
    flat = missing.flatten(1)
    covariance = (flat @ flat.T / flat.shape[1]).numpy()
    basis = spectral.basis
    return klt.quantised_spreads(np.einsum("ck,cd,dk->k", basis, covariance, basis), step)


def _coarser(levels: int) -> int:
    """Return how much lower the quality of the spectral header is than the last quality."""
    return min(HEADER_COARSER, levels - 1)


def header_step(qualities: list[float]) -> float:
    """Return the step, in DN, for which the spectral header is written."""
    return float(step_size(qualities[-1] - _coarser(len(qualities))))


def write_spreads(
    lowest: np.ndarray, spectral: klt.Klt, levels: int
) -> tuple[bytes, list[np.ndarray]]:
    """Write the spreads of the lowest level.

    Returns the bytes, and the spreads of all levels that a decoder reads from them.
    """
    if levels == 1:
        return b"", _spreads_of(spectral, levels, None)
    bits = klt.BitWriter()
    values = np.clip(lowest[: spectral.used], klt.ACTIVE_SPREAD, klt.SPREAD_HIGH)
    for change in (values - _expected(spectral, levels)).tolist():
        bits.put_signed(change, 1)
    return bits.to_bytes(), _spreads_of(spectral, levels, values)


def read_spreads(data: bytes, spectral: klt.Klt, levels: int) -> list[np.ndarray]:
    """Read the spreads of all levels that :func:`write_spreads` wrote."""
    values, bits = None, klt.BitReader(data)
    if levels > 1:
        changes = [bits.get_signed(1) for _ in range(spectral.used)]
        values = _expected(spectral, levels) + np.array(changes)
        if values.min() < klt.ACTIVE_SPREAD or values.max() > klt.SPREAD_HIGH:
            raise FormatError("a section's spectral spreads are out of range")
    if bits.left >= 8:
        raise FormatError(f"a section's header goes on for {bits.left // 8} bytes after its end")
    return _spreads_of(spectral, levels, values)


def _last(spectral: klt.Klt, levels: int) -> np.ndarray:
    """Return the spreads over the step of the last level. The header's are over a larger step."""
    finer = spectral.spread[: spectral.used] + _SPREAD_OF_QUALITIES[_coarser(levels)]
    return np.minimum(finer, klt.SPREAD_HIGH)


def _expected(spectral: klt.Klt, levels: int) -> np.ndarray:
    lowest = _last(spectral, levels) - _SPREAD_OF_QUALITIES[levels - 1]
    return np.maximum(lowest, klt.ACTIVE_SPREAD)


def _spreads_of(spectral: klt.Klt, levels: int, lowest: np.ndarray | None) -> list[np.ndarray]:
    """Return the spreads of all levels, evenly spaced between the lowest and the last level."""
    last = _last(spectral, levels)
    if lowest is None:
        return [_told(last, spectral)]
    between = (lowest + (last - lowest) * k // (levels - 1) for k in range(levels))
    return [_told(spread, spectral) for spread in between]


def _told(spread: np.ndarray, spectral: klt.Klt) -> np.ndarray:
    """Return spreads as inputs of the networks: uncoded components look like missing ones."""
    shown = np.where(spread > klt.ACTIVE_SPREAD, spread, klt.SPREAD_LOW)
    return klt.padded_spread(shown, len(spectral.mean))
