"""The header of a section of ``tec-flex-s2``: its levels, basis and spreads."""

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


#: Qualities in a section's header are whole numbers of this part.
QUALITY_GRID = 4096


#: The spectral header is written for a quality that is lower than the last one by this: a basis
#: of fewer bits decorrelates as well, and low steps have to carry it too.
HEADER_COARSER = 2


#: Spreads are quarter octaves over the step, which falls by thirteen sixteenths of an octave, or
#: near it, with every quality.
_SPREAD_OF_QUALITIES = [13 * n // 4 for n in range(LEVELS + 1)]


@dataclass(frozen=True)
class Head:
    """A section's header: what it is predicted from, its spectral basis and its levels."""

    parsed: Parsed
    quality: float
    lowest_finer: int


def first_half(sizes: list[float], tried: list[bool]) -> int:
    """The last channel group of a level's first half: about half of the bits, if there are two."""
    there = [g for g, on in enumerate(tried) if on]
    total = np.cumsum([sizes[g] for g in there])
    ends = total[:-1] if len(there) > 1 else total
    return there[int(np.argmin(np.abs(ends - total[-1] / 2)))]


def level_qualities(quality: float, finer: tuple[int, int]) -> list[float]:
    """Qualities of a date's levels, the lowest first; ``finer`` at the lowest and at the last."""
    levels = int(quality)
    low, high = finer
    shares = [low + (high - low) * k // max(levels - 1, 1) for k in range(levels)]
    return [date_quality(quality - (levels - 1 - k), more) for k, more in enumerate(shares)]


def read_head(data: bytes, date: int, shape: tuple[int, ...]) -> Head:
    if len(data) < 4:
        raise FormatError(f"the header of date {date} of a chunk has {len(data)} bytes")
    quality = int.from_bytes(data[:2], "little") / QUALITY_GRID
    if not 1 <= quality <= LEVELS:
        raise FormatError(f"date {date} of a chunk claims quality {quality:g}, of 1 to {LEVELS}")
    if data[2] > MOST_FINER:
        raise FormatError(f"date {date} of a chunk claims to be {data[2]} eighths finer")
    return Head(parse(data[3:], date, shape), quality, data[2])


def spread_of(missing: Tensor, spectral: klt.Klt, step: float) -> np.ndarray:
    """Spreads of what a prediction leaves, (C, 64, P), in the components of a basis."""
    flat = missing.flatten(1)
    covariance = (flat @ flat.T / flat.shape[1]).numpy()
    basis = spectral.basis
    return klt.quantised_spreads(np.einsum("ck,cd,dk->k", basis, covariance, basis), step)


def _coarser(levels: int) -> int:
    """For how many qualities less than the last one's the spectral header is written."""
    return min(HEADER_COARSER, levels - 1)


def header_step(qualities: list[float]) -> float:
    """The step, in DN, that the spectral header is written for."""
    return float(step_size(qualities[-1] - _coarser(len(qualities))))


def write_spreads(
    lowest: np.ndarray, spectral: klt.Klt, levels: int
) -> tuple[bytes, list[np.ndarray]]:
    """Spreads of the lowest level, and those of all levels as they are read."""
    if levels == 1:
        return b"", _spreads_of(spectral, levels, None)
    bits = klt.BitWriter()
    values = np.clip(lowest[: spectral.used], klt.ACTIVE_SPREAD, klt.SPREAD_HIGH)
    for change in (values - _expected(spectral, levels)).tolist():
        bits.put_signed(change, 1)
    return bits.to_bytes(), _spreads_of(spectral, levels, values)


def read_spreads(data: bytes, spectral: klt.Klt, levels: int) -> list[np.ndarray]:
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
    """Spreads over the last level's step; the header's are over a larger one."""
    finer = spectral.spread[: spectral.used] + _SPREAD_OF_QUALITIES[_coarser(levels)]
    return np.minimum(finer, klt.SPREAD_HIGH)


def _expected(spectral: klt.Klt, levels: int) -> np.ndarray:
    lowest = _last(spectral, levels) - _SPREAD_OF_QUALITIES[levels - 1]
    return np.maximum(lowest, klt.ACTIVE_SPREAD)


def _spreads_of(spectral: klt.Klt, levels: int, lowest: np.ndarray | None) -> list[np.ndarray]:
    """Spreads of all levels, evenly spaced from the lowest one's to the last one's."""
    last = _last(spectral, levels)
    if lowest is None:
        return [_told(last, spectral)]
    between = (lowest + (last - lowest) * k // (levels - 1) for k in range(levels))
    return [_told(spread, spectral) for spread in between]


def _told(spread: np.ndarray, spectral: klt.Klt) -> np.ndarray:
    """As networks are told: components that carry nothing look like those that are not there."""
    shown = np.where(spread > klt.ACTIVE_SPREAD, spread, klt.SPREAD_LOW)
    return klt.padded_spread(shown, len(spectral.mean))
