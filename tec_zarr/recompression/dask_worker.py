"""Set up a Dask worker for recompression: models, threads, memory, Dask's own measurements."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from distributed import Worker, WorkerPlugin

from tec_zarr.codec.batching import LARGEST, on_device
from tec_zarr.models.registry import get_model
from tec_zarr.recompression.region import set_torch_threads

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_DASK = {_TRIM_THRESHOLD: 64 * 2**10, _TOP_PAD: 128 * 2**10, _MMAP_THRESHOLD: 128 * 2**10}
_KEPT = {_TRIM_THRESHOLD: 64 * 2**20, _TOP_PAD: 64 * 2**20, _MMAP_THRESHOLD: 32 * 2**20}
"""Values while a recompression runs.

glibc itself raises the two thresholds to these values in a process that frees arrays as large as a
model's. The pad equals the heap of a thread: so glibc does not unmap a heap when it becomes empty.
"""
_PROFILER = ("profile", "profile-cycle")
_TICK, _TICK_MS = "tick", 1000
"""Period for Dask's measurement of how late its event loop is.

Dask measures it fifty times a second. Once is enough, because its limit is 3 s.
"""
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": f"{_TICK_MS} ms",
    "distributed.worker.memory.monitor-interval": "1 s",
}
"""Dask settings for a scheduler and nannies on the same machine as the workers.

With them these take a quarter of the processor time (``docs/scaling.md``). `WarmUp` does the same
for workers, but cannot reach the scheduler and the nannies.
"""


class WarmUp(WorkerPlugin):
    """Load the models and give each task one core, because the cluster's threads share the machine.

    Dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``. With it glibc returns every larger
    array to the system when it is freed. A model allocates such arrays in each of its steps, so
    encoding takes 2.9 times the processor time (``docs/scaling.md``). Therefore this plugin lets
    glibc keep freed memory. It pauses Dask's profiler, which reads the stack a hundred times a
    second: a region is one long task whose profile says nothing. It slows Dask's measurement of
    its event loop from fifty times a second to once. `teardown` undoes all of this.

    Parameters
    ----------
    models : sequence of (str, str)
        Name of each model and SHA-256 of its weights.
    """

    def __init__(self, models: Sequence[tuple[str, str]]) -> None:
        self.models = tuple(models)
        self._paused: list[Any] | None = None

    def setup(self, worker: Worker) -> None:
        """Load the models, change the settings, and remember the old ones."""
        models = [get_model(name, weights) for name, weights in self.models]
        _process.enter()
        callbacks = worker.periodic_callbacks
        self._paused = [callbacks[name] for name in _PROFILER if name in callbacks]
        for callback in self._paused:
            callback.stop()
        self._tick = callbacks.get(_TICK)
        if self._tick is not None:
            self._tick_ms, self._tick.callback_time = self._tick.callback_time, _TICK_MS
        # On a GPU, tec_zarr.codec.batching encodes several chunks of a task together. Zarr must
        # hand over that many at once.
        batched = any(map(on_device, models))
        zarr.config.set({"async.concurrency": LARGEST if batched else 1})

    def teardown(self, worker: Worker) -> None:
        """Restore the old settings for the next user of the worker."""
        if self._paused is None:
            return  # a model could not be loaded: `setup` has changed nothing
        for callback in self._paused:
            callback.start()
        if self._tick is not None:
            self._tick.callback_time = self._tick_ms
        _process.leave()


class _Process:
    """Settings of the process. Several workers of one process share them.

    The first worker remembers the old settings, and the last one restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers = 0

    def enter(self) -> None:
        with self._lock:
            if not self._workers:
                _set_malloc(_KEPT)
                self._torch_threads = set_torch_threads(1)
                self._concurrency = zarr.config.get("async.concurrency")
            self._workers += 1

    def leave(self) -> None:
        with self._lock:
            self._workers -= 1
            if not self._workers:
                _set_malloc(_DASK)
                set_torch_threads(self._torch_threads)
                zarr.config.set({"async.concurrency": self._concurrency})


_process = _Process()


def _set_malloc(parameters: Mapping[int, int]) -> None:
    """Set malloc parameters of glibc. Does nothing with other C libraries, which do not need it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in parameters.items():
            mallopt(parameter, value)
