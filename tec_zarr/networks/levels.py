"""State of a date between the levels of a progressive stream: latents, pictures, predictions."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tec_zarr.models import klt
from tec_zarr.models.constants import CHANNELS, GROUPS
from tec_zarr.models.intervals import FAR
from tec_zarr.models.temporal_section import Reference
from tec_zarr.models.tokens import FlexSection
from tec_zarr.networks.image import Context
from tec_zarr.networks.references import CANDIDATES
from tec_zarr.networks.series import TecTtS2

#: Differences between latents and a prediction are clipped to this, in 1/16 step.
OPEN = 1 << 20


CHANNELS_OF = [slice(sum(GROUPS[:g]), sum(GROUPS[: g + 1])) for g in range(len(GROUPS))]


@dataclass(frozen=True)
class Level:
    """One quality of a date: its quantiser and side information."""

    quality: float
    steps: np.ndarray  # (320,) int64, 1/256 DN
    context: Context


class Latents:
    """Bounds and values of a date's latents, (P, 320) int64 in 1/4096 DN, predictions included."""

    def __init__(self, places: int):
        shape = places, CHANNELS
        self.low, self.high = np.full(shape, -FAR), np.full(shape, FAR)
        self.value = np.zeros(shape, np.int64)
        self.coded = np.zeros(CHANNELS, bool)

    def copy(self, group: int) -> tuple[np.ndarray, ...]:
        """Copy the bounds and values of a channel group, for :meth:`restore`."""
        return tuple(x[:, CHANNELS_OF[group]].copy() for x in (self.low, self.high, self.value))

    def restore(self, group: int, before: tuple[np.ndarray, ...]) -> None:
        """Set a channel group back to what :meth:`copy` returned."""
        for x, old in zip((self.low, self.high, self.value), before, strict=True):
            x[:, CHANNELS_OF[group]] = old

    def residual(self, past: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Difference from a prediction (P, 320), int32, both in 1/16 of ``steps``.

        The difference is zero in channels that no step has coded yet.
        """
        difference = self.value - past * steps
        units = (2 * difference + steps) // (2 * steps)
        return np.where(self.coded, np.clip(units, -OPEN, OPEN), 0).astype(np.int32)

    def check(self) -> bytes:
        """Return the check of all latents: the lowest byte of their CRC32."""
        return bytes([zlib.crc32(self.value.astype("<i8").tobytes()) & 0xFF])


@dataclass(frozen=True)
class Series:
    """The parts of a date that predict other dates: its picture after every step, and its basis."""

    pictures: list[Tensor]
    spectral: klt.Klt


class Predictions:
    """Predictions of a date, (C, 64, P): one for every step of the dates that it refers to."""

    def __init__(
        self,
        temporal: TecTtS2,
        references: list[Reference],
        done: dict[int, Series],
        count: int,
        places: int,
        steps: int,
    ):
        self.temporal, self.references, self.done = temporal, references, done
        self.count, self.places, self.steps = count, places, steps
        #: The prediction that was asked for last, by step.
        self.kept: dict[int, Tensor] = {}

    def __getitem__(self, step: int) -> Tensor:
        step = step % self.steps if self.references else 0
        if step not in self.kept:
            pictures = {r.date: self.done[r.date].pictures[step] for r in self.references}
            found = self.temporal.predictor.weighted(
                pictures, self.references, self.count, self.places
            )
            self.kept = {step: found}
        return self.kept[step]


def network_units(latents: np.ndarray) -> Tensor:
    """Convert latents (P, N) of one date, in 1/16 step, to the networks' form: (1, P, N) int32."""
    return torch.from_numpy(latents.astype(np.int32))[None]


def nearest_dates(date: int, others: list[int]) -> list[int]:
    """Return the dates of ``others`` nearest to ``date``, at most ``CANDIDATES``."""
    return sorted(others, key=lambda d: abs(d - date))[:CANDIDATES]


def last_users(uses: dict[int, list[int]]) -> dict[int, int]:
    """Return, for every date that others refer to, the last date that refers to it.

    ``uses`` gives the references of each date, in the order of coding.
    """
    return {used: date for date, all_used in uses.items() for used in all_used}


def keep_for_others(
    done: dict[int, Series], number: int, series: Series, last: dict[int, int]
) -> None:
    """Add date ``number`` to ``done``, and delete the dates that no later date refers to."""
    done[number] = series
    for date in [d for d in done if last.get(d, number) == number]:
        del done[date]


def checksums_of(sections: list[bytes]) -> list[int]:
    """Return for each section the checksum over the checks of its steps."""
    return [FlexSection.from_bytes(section).check() for section in sections]
