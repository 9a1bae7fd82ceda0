"""What every Dask worker does once, before its first region."""

from __future__ import annotations

from collections.abc import Sequence

import zarr
from distributed import Worker, WorkerPlugin

from tec_zarr.batch import set_torch_threads
from tec_zarr.models.registry import get_model


class WarmUp(WorkerPlugin):
    """Load the models and give each task one core: the cluster's own threads share the machine.

    Parameters
    ----------
    models : sequence of (str, str)
        Names and SHA-256 of the weights.
    """

    def __init__(self, models: Sequence[tuple[str, str]]) -> None:
        self.models = tuple(models)

    def setup(self, worker: Worker) -> None:
        """Load, and remember what was set."""
        for name, weights in self.models:
            get_model(name, weights)
        self._concurrency = zarr.config.get("async.concurrency")
        self._torch_threads = set_torch_threads(1)
        zarr.config.set({"async.concurrency": 1})

    def teardown(self, worker: Worker) -> None:
        """Put it back, for whoever uses the worker next."""
        set_torch_threads(self._torch_threads)
        zarr.config.set({"async.concurrency": self._concurrency})
