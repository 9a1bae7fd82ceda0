"""How far a recompression is, and what it reports in the end."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from tec_zarr.recompression.manifest import Done
from tec_zarr.recompression.plan import Plan
from tec_zarr.recompression.verify import psnr_of

LOG_SECONDS = 60.0
"""Time between two lines of the log."""


_LOG = logging.getLogger("tec_zarr.recompress")


@dataclass(frozen=True)
class Failure:
    """A region that could not be made.

    Attributes
    ----------
    path : str
        The array.
    region : tuple of (int, int)
        Start and stop along each axis.
    error : str
        Kind and message of the last attempt's error.
    fatal : bool
        Whether all others would fail too (no space, no permission): the run stops then.
    """

    path: str
    region: tuple[tuple[int, int], ...]
    error: str
    fatal: bool = False

    def __str__(self) -> str:
        where = ", ".join(f"{start}:{stop}" for start, stop in self.region)
        return f"{self.path or '/'}[{where}]: {self.error}"


@dataclass(frozen=True)
class RecompressReport:
    """What a recompression did.

    Attributes
    ----------
    complete : bool
        Whether every region is finished and the target can be read.
    regions, finished, resumed : int
        All regions, those finished now, and those of them that an earlier run had finished.
    failures : tuple of Failure
        Regions that could not be made in this run.
    raw_bytes, stored_bytes : int
        Of the finished regions.
    samples, verified : int
        Samples in the finished regions, and those that were read back and compared.
    psnr, max_error : float
        Of the verified reflectance, dB and DN; ``nan`` when there was none.
    seconds : float
        Wall time of this run.
    worker_seconds : float
        Time that the workers took for the finished regions, of all runs.
    """

    complete: bool
    regions: int
    finished: int
    resumed: int
    failures: tuple[Failure, ...]
    raw_bytes: int
    stored_bytes: int
    samples: int
    verified: int
    psnr: float
    max_error: float
    seconds: float
    worker_seconds: float

    @property
    def ratio(self) -> float:
        """Raw by stored size."""
        return self.raw_bytes / max(1, self.stored_bytes)

    @property
    def bits_per_sample(self) -> float:
        """Stored bits for each pixel of each band, of all arrays together."""
        return 8 * self.stored_bytes / max(1, self.samples)

    def to_json(self) -> dict[str, Any]:
        """For logs and files."""
        return {**asdict(self), "ratio": self.ratio, "bits_per_sample": self.bits_per_sample}


class Tally:
    """Sums over finished regions."""

    def __init__(
        self, plan: Plan, finished: Iterable[Done] = (), failures: Iterable[Failure] = ()
    ) -> None:
        self.plan = plan
        self.failures = list(failures)
        self.finished = self.raw = self.stored = self.samples = self.verified = self.compared = 0
        self.squared = self.seconds = self.worst = 0.0
        for done in finished:
            self.add(done)

    def add(self, outcome: Done | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
            return
        self.finished += 1
        self.raw += outcome.raw_bytes
        self.stored += outcome.stored_bytes
        self.samples += outcome.samples
        self.verified += outcome.verified
        self.compared += outcome.compared
        self.squared += outcome.squared_error
        self.worst = max(self.worst, outcome.max_error)
        self.seconds += outcome.seconds

    def report(self, was_complete: bool, resumed: int, seconds: float) -> RecompressReport:
        finished = self.plan.regions if was_complete else self.finished
        return RecompressReport(
            finished == self.plan.regions, self.plan.regions, finished, resumed,
            tuple(self.failures), self.raw, self.stored, self.samples, self.verified,
            psnr_of(self.squared, self.compared), self.worst if self.compared else math.nan,
            seconds, self.seconds,
        )  # fmt: skip


class Observer:
    """Counts outcomes, draws the bar, writes the log, and stops a run that cannot succeed."""

    def __init__(
        self, tally: Tally, resumed: int, workers: int, progress: bool, lost: threading.Event
    ) -> None:
        self.stopped, self._lost = threading.Event(), lost
        self._tally, self._workers = tally, workers
        self._began, self._raw_before, self._resumed = time.monotonic(), tally.raw, resumed
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._bar = tqdm(
            total=tally.plan.regions, initial=resumed, unit="region", desc="recompress",
            disable=None if progress else True, file=sys.stderr,
        )  # fmt: skip
        self._logger = threading.Thread(target=self._log_by_the_minute, daemon=True)

    def __enter__(self) -> Observer:
        self._logger.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._logger.join()
        self._bar.close()
        _LOG.info(json.dumps(self._line()))

    def __call__(self, outcome: Done | Failure) -> None:
        with self._lock:
            self._tally.add(outcome)
            self._bar.update(isinstance(outcome, Done))
            if isinstance(outcome, Failure):
                _LOG.warning("%s", outcome)
            if self._lost.is_set() or (isinstance(outcome, Failure) and outcome.fatal):
                self.stopped.set()

    def _log_by_the_minute(self) -> None:
        while not self._ended.wait(LOG_SECONDS):
            _LOG.info(json.dumps(self._line()))

    def _line(self) -> dict[str, Any]:
        with self._lock:
            tally, elapsed = self._tally, time.monotonic() - self._began
            here = tally.finished - self._resumed
            left = tally.plan.regions - tally.finished
            psnr = psnr_of(tally.squared, tally.compared)
            return {
                "regions": tally.finished,
                "of": tally.plan.regions,
                "failed": len(tally.failures),
                "ratio": round(tally.raw / max(1, tally.stored), 2),
                "bits_per_sample": round(8 * tally.stored / max(1, tally.samples), 4),
                "psnr": round(psnr, 2) if math.isfinite(psnr) else None,
                "MB_per_s_and_worker": round(
                    (tally.raw - self._raw_before) / 1e6 / max(elapsed, 1e-9) / self._workers, 3
                ),
                "elapsed_s": round(elapsed),
                "eta_s": round(elapsed / here * left) if here else None,
            }
