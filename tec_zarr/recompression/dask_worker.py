"""What every Dask worker does once, before its first region."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Mapping, Sequence

import zarr
from distributed import Worker, WorkerPlugin

from tec_zarr.codec.batching import LARGEST, on_device
from tec_zarr.models.registry import get_model
from tec_zarr.recompression.region import set_torch_threads

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_DASK = {_TRIM_THRESHOLD: 64 * 2**10, _TOP_PAD: 128 * 2**10, _MMAP_THRESHOLD: 128 * 2**10}
_KEPT = {_TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}
"""The thresholds are where glibc's own end up in a process that frees arrays of a model's size; a
pad as large as the heap of a thread keeps glibc from unmapping that whenever it is empty."""
_PROFILER = ("profile", "profile-cycle")
_TICK, _TICK_MS = "tick", 1000
"""Dask looks fifty times a second how late its event loop is; once will do (its limit is 3 s)."""
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": f"{_TICK_MS} ms",
    "distributed.worker.memory.monitor-interval": "1 s",
}
"""Dask's settings with which a scheduler and nannies on the machine of the workers take a quarter
of the processor time: `WarmUp` reaches the workers only (``docs/scaling.md``)."""


class WarmUp(WorkerPlugin):
    """Load the models and give each task one core: the cluster's own threads share the machine.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``, which makes glibc return every
    larger array to the system at once. A model allocates such arrays for each of its steps, and
    encoding then takes 2.9 times the processor time (``docs/scaling.md``); so memory that was
    freed is kept while a recompression runs. Dask's profiler, which looks at the stack a hundred
    times a second, rests meanwhile: a region is one long task that always looks the same. The
    event loop's measurement of itself slows down from fifty times a second to once.

    Parameters
    ----------
    models : sequence of (str, str)
        Names and SHA-256 of the weights.
    """

    def __init__(self, models: Sequence[tuple[str, str]]) -> None:
        self.models = tuple(models)

    def setup(self, worker: Worker) -> None:
        """Load, and remember what was set."""
        _set_malloc(_KEPT)
        callbacks = worker.periodic_callbacks
        self._paused = [callbacks[name] for name in _PROFILER if name in callbacks]
        for callback in self._paused:
            callback.stop()
        self._tick = callbacks.get(_TICK)
        if self._tick is not None:
            self._tick_ms, self._tick.callback_time = self._tick.callback_time, _TICK_MS
        models = [get_model(name, weights) for name, weights in self.models]
        self._torch_threads = set_torch_threads(1)
        self._concurrency = zarr.config.get("async.concurrency")
        # A task on a GPU worker hands its chunks over together, see tec_zarr.codec.batching.
        batched = any(map(on_device, models))
        zarr.config.set({"async.concurrency": LARGEST if batched else 1})

    def teardown(self, worker: Worker) -> None:
        """Put it back, for whoever uses the worker next."""
        _set_malloc(_DASK)
        for callback in self._paused:
            callback.start()
        if self._tick is not None:
            self._tick.callback_time = self._tick_ms
        set_torch_threads(self._torch_threads)
        zarr.config.set({"async.concurrency": self._concurrency})


def _set_malloc(parameters: Mapping[int, int]) -> None:
    """Set glibc's parameters; other C libraries have none of this and need none of it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in parameters.items():
            mallopt(parameter, value)
