"""Run the regions of a recompression in threads of this process, or on a Dask cluster.

Both engines hand the outcome of every region to the observer, and stop when the observer says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import zarr
from dask.base import compute
from dask.delayed import delayed

from tec_zarr.errors import TargetError
from tec_zarr.models.registry import find_model
from tec_zarr.recompression.manifest import Done
from tec_zarr.recompression.plan import ArrayPlan, Plan
from tec_zarr.recompression.progress import Failure, Observer
from tec_zarr.recompression.region import (
    Job,
    make_region,
    read_block,
    set_torch_threads,
    write_region,
)

if TYPE_CHECKING:
    from distributed import Client


_WINDOW = 3
"""Tasks per thread that a cluster has at any time.

That is enough to keep the workers busy, and few enough to keep the scheduler small.
"""

_SHARE = {"GPU": 1 / 64}
"""Dask resource of a task that encodes on a GPU.

It chooses the worker. How many regions the worker makes at once, it leaves to the worker's threads:
the chunks of all these regions are in one batch (:mod:`tec_zarr.codec.batching`), and the GPU works
while other regions are read, stored and verified.
"""


def needs_gpu(array: ArrayPlan) -> bool:
    """Return whether a GPU can encode the array: not copies, and not the embedded models."""
    return array.spec is not None and not find_model(array.spec.model).embedded


def failure_of(job: Job, error: Exception) -> Failure:
    """Describe the error of a region as a `Failure`."""
    region = tuple((s.start, s.stop) for s in job.array.region_slices(job.number))
    message = f"{type(error).__name__}: {error}"
    return Failure(job.array.path, region, message, isinstance(error, TargetError))


def run_threads(
    pending: Iterable[Job], count: int, threads: int | None, retries: int, observer: Observer
) -> None:
    """Make the regions with Dask's threaded scheduler.

    Parameters
    ----------
    pending : iterable of Job
        Regions to make.
    count : int
        Number of them.
    threads : int, optional
        Default: one for each core that this process may use.
    retries : int
        Further attempts for a region that failed.
    observer : Observer
        Called with each outcome.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, min(threads or cores or 1, count))
    each = max(1, (threads if threads > (cores or 1) else cores or 1) // threads)

    def attempt(job: Job) -> None:
        for left in reversed(range(retries + 1)):
            if observer.stopped.is_set():
                return
            try:
                observer(make_region(job))
                return
            except Exception as error:
                if not left or isinstance(error, TargetError):
                    observer(failure_of(job, error))
                    return

    tasks = [delayed(partial(attempt, job), name=f"recompress-{i}")()
             for i, job in enumerate(pending)]  # fmt: skip
    before = set_torch_threads(each)
    try:
        with (
            zarr.config.set({"async.concurrency": each}),
            ThreadPoolExecutor(threads) as pool,
        ):
            try:
                compute(*tasks, scheduler="threads", pool=pool, optimize_graph=False)
            finally:
                observer.stopped.set()  # An interrupted run ends after the regions in progress.
    finally:
        set_torch_threads(before)


def run_cluster(
    client: Client,
    gpu: bool,
    pending: Iterable[Job],
    plan: Plan,
    retries: int,
    observer: Observer,
) -> None:
    """Make the regions on a Dask cluster, with a bounded number of tasks at any time.

    With ``gpu``, only workers with a GPU encode what `needs_gpu`. If there are other workers, those
    read, and make the other regions.
    """
    from distributed import as_completed

    from tec_zarr.recompression.dask_worker import WarmUp

    workers = client.scheduler_info(n_workers=-1)["workers"]
    able = {a for a, w in workers.items() if not gpu or w["resources"].get("GPU", 0) >= 1}
    readers = sorted(set(workers) - able)
    # A cluster that is starting may not have named its workers yet. Tasks wait for them.
    width = _WINDOW * max(sum(w["nthreads"] for a, w in workers.items() if a in able), 1)
    models = {(a.spec.model, str(a.spec.weights_sha256)) for a in plan.arrays if a.spec}
    plugin = f"tec-zarr-{plan.config['config_sha256'][:12]}"
    jobs: dict[Any, Job] = {}

    def submit(job: Job) -> Any:
        tag = f"{time.monotonic_ns()}-{job.array.index}-{job.number}"
        common = {"retries": retries, "pure": False}
        on_gpu = gpu and needs_gpu(job.array)
        if on_gpu and readers:
            block = client.submit(
                partial(read_block, job.array, job.array.region_slices(job.number)),
                workers=readers, key=f"read-{tag}", **common,
            )  # fmt: skip
            future = client.submit(
                partial(write_region, job), block,
                resources=_SHARE, key=f"recompress-{tag}", **common,
            )  # fmt: skip
        else:
            future = client.submit(
                partial(make_region, job), workers=readers or None,
                resources=_SHARE if on_gpu else None, key=f"recompress-{tag}", **common,
            )  # fmt: skip
        jobs[future] = job
        return future

    client.register_plugin(WarmUp(sorted(models)), name=plugin)
    try:
        queue = iter(pending)
        running = as_completed([submit(job) for job in islice(queue, width)])
        for future in running:
            job = jobs.pop(future)
            try:
                outcome: Done | Failure = future.result()
            except Exception as error:
                outcome = failure_of(job, error)
            observer(outcome)
            if observer.stopped.is_set():
                return
            for following in islice(queue, 1):
                running.add(submit(following))
    finally:
        client.cancel(list(jobs), force=True)
        with contextlib.suppress(Exception):  # The cluster itself may have failed.
            client.unregister_worker_plugin(plugin)
