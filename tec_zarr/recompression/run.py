"""Recompress whole archives with Dask: resumable, verified, one task for each region.

A region is one or more whole shards, aligned with the source's chunks where possible, so that no
two tasks write the same object and no source chunk is decoded twice. See ``docs/recompress.md``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.models.registry import get_model
from tec_zarr.recompression.engines import failure_of, run_cluster, run_threads
from tec_zarr.recompression.lock import Lock
from tec_zarr.recompression.manifest import FOLDER, Done, Manifest
from tec_zarr.recompression.plan import SOURCES_READ, ArrayPlan, Plan, make_plan, provenance
from tec_zarr.recompression.progress import Failure, Observer, RecompressReport, Tally
from tec_zarr.recompression.region import Job, crc_of, read_block
from tec_zarr.recompression.settings import Settings
from tec_zarr.recompression.verify import Verify
from tec_zarr.recompression.watch import changed, state_of
from tec_zarr.stores.objects import list_keys, open_source, open_target, write

if TYPE_CHECKING:
    from distributed import Client

_CHECKED_AGAIN = 4
"""Finished regions whose source is read again when a run is repeated."""


def recompress(
    source: Any,
    target: Any,
    *,
    client: Client | None = None,
    gpu: bool = False,
    threads: int | None = None,
    retries: int = 2,
    verify: Verify = "sample",
    progress: bool = True,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RecompressReport:
    """Copy a Zarr store with its reflectance in TEC, on all cores or on a Dask cluster.

    The call can be repeated after any interruption: it goes on where it was. The target becomes
    a Zarr store only when its last region is finished.

    Parameters
    ----------
    source : path, URL, zarr Store, Group or Array
        Zarr format 2 or 3, any codec.
    target : path, URL or zarr Store
        Empty, or the beginning that an earlier call with the same arguments left.
    client : distributed.Client, optional
        Cluster to run on. Default: threads of this process.
    gpu : bool
        Make regions only on workers with the Dask resource ``GPU``, one at a time for each; if
        the cluster has other workers too, those read.
    threads : int, optional
        Threads without a client. Default: one for each core that this process may use.
    retries : int
        Further attempts for a region that failed.
    verify : {"sample", "full", "none"}
        Read back one chunk of every region, all of it, or nothing, before it counts as finished.
        Other arrays must be equal. In reflectance, nodata must be equal and nothing else may
        have become nodata, a ``max_error`` must hold, and the PSNR must be above 20 dB.
    progress : bool
        Show a bar on a terminal.
    source_options, target_options : mapping, optional
        For the fsspec filesystem of a URL.
    **settings
        Those of :class:`tec_zarr.recompression.settings.Settings`: quality, max_error, psnr,
        max_bytes, model, zarr_format, bands, nodata, scale, chunks, shards, variables.

    Returns
    -------
    RecompressReport
        Failures are in there, not raised; ``complete`` says whether the target can be used.

    Raises
    ------
    RecompressError
        Nothing could be begun: a source that cannot be read, a target that cannot be written or
        that was begun differently, no worker with a GPU.
    UnsupportedArrayError
        Data that TEC cannot take as they are, or an argument out of its range.

    Notes
    -----
    Once a minute a JSON line goes to the logger ``tec_zarr.recompress``.
    """
    began = time.monotonic()
    wanted = Settings(**settings)
    _check_arguments(verify, retries)
    workers = _check_cluster(client, gpu, target)
    store = open_target(target, target_options)
    plan = make_plan(open_source(source, source_options), store, wanted)
    manifest = Manifest(store)
    with _locked(manifest, plan) as lock:
        if lock is None:
            return Tally(plan).report(True, plan.regions, time.monotonic() - began)
        finished = manifest.finished()
        _check_source(plan, _some(finished))
        if client is not None:
            _check_shared(client, manifest)
        resumed = len(finished)

        def make() -> Tally:
            """All regions that are not finished."""
            tally = Tally(plan, finished.values())
            pending = (
                Job(array, number, verify)
                for array in plan.arrays
                for number in range(array.regions)
                if (array.index, number) not in finished
            )
            with Observer(tally, len(finished), workers, progress, lock.lost) as observer:
                if client is None:
                    for spec in filter(None, (array.spec for array in plan.arrays)):
                        get_model(spec.model, spec.weights_sha256)
                    run_threads(pending, plan.regions - len(finished), threads, retries, observer)
                else:
                    run_cluster(client, gpu, pending, plan, retries, observer)
            return tally

        state = state_of(plan.arrays)
        for _ in range(retries + 1):
            tally = make()
            before, state = state, state_of(plan.arrays)
            moved = changed(before, state)
            if not moved or lock.lost.is_set():
                break
            for array, number in moved:
                manifest.forget(array, number)
            finished = manifest.finished()
            failures = [*tally.failures, *(_moved(plan.arrays[i], number) for i, number in moved)]
            tally = Tally(plan, finished.values(), failures)
            if any(failure.fatal for failure in failures):
                break
        lock.check()
        if tally.finished == plan.regions:
            _publish(plan, manifest, _recorded(plan, manifest), resumed > 0)
    return tally.report(False, resumed, time.monotonic() - began)


def _check_arguments(verify: str, retries: int) -> None:
    if verify not in get_args(Verify):
        raise UnsupportedArrayError(
            f"verify is {verify!r}, it must be one of {', '.join(get_args(Verify))}"
        )
    if not (isinstance(retries, int | np.integer) and retries >= 0):
        raise UnsupportedArrayError(f"retries is {retries!r}, it must be a whole number from 0")


def _check_cluster(client: Client | None, gpu: bool, target: Any) -> int:
    """Number of workers that encode; refuse what would hang or vanish."""
    if client is None:
        if gpu:
            raise RecompressError("gpu=True needs a Dask cluster: pass client=Client(...)")
        return 1
    if isinstance(target, MemoryStore):
        raise RecompressError("workers cannot write into this process's memory: give a path or URL")
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    able = [w for w in workers if not gpu or w["resources"].get("GPU", 0) >= 1]
    if not able:
        raise RecompressError(
            f"none of the {len(workers)} workers has the resource GPU, and tasks would wait for "
            'it for ever: start workers with `dask worker --resources "GPU=1"`'
            if gpu
            else "the cluster has no worker yet: client.wait_for_workers(1)"
        )
    return len(able)


@contextlib.contextmanager
def _locked(manifest: Manifest, plan: Plan) -> Iterator[Lock | None]:
    """Begin or go on, with the target locked; None when the whole target is finished."""
    store = manifest.store
    with contextlib.ExitStack() as stack:
        try:
            complete, lock = _is_complete(manifest, plan), None
            if not complete:
                lock = stack.enter_context(Lock(store).held())
                complete = _is_complete(manifest, plan)  # made so by who held the lock before
            if complete:
                if list_keys(store, f"{FOLDER}/"):  # of workers that outlived their run
                    manifest.remove()
                lock = None
            elif manifest.read_config() is None:
                manifest.write_config(plan.config)
        except RecompressError:
            raise
        except Exception as error:  # each filesystem has its own kinds
            raise RecompressError(
                f"the target {store} cannot be written ({type(error).__name__}: {error}); it must "
                "be a store of files or objects, with room and with permission to write"
            ) from error
        yield lock


def _is_complete(manifest: Manifest, plan: Plan) -> bool:
    """Whether a target is finished; refuse one that was begun as something else."""
    store = manifest.store
    begun = manifest.read_config()
    before = begun if begun is not None else provenance(store)
    if before is None:
        return False
    changed = [k for k in plan.config if k != "source" and before.get(k) != plan.config[k]]
    if changed:
        what = "; ".join(f"{k} was {before.get(k)}, is {plan.config[k]}" for k in changed)
        raise RecompressError(
            f"the target {store} was begun with another configuration or source ({what}): repeat "
            "the call with the arguments of the first one, or choose another target"
        )
    if begun is None:
        # Targets that were finished before this was kept have nothing to compare with.
        _check_source(plan, before.get(SOURCES_READ, []))
    return begun is None


def _check_shared(client: Client, manifest: Manifest) -> None:
    """Refuse workers that do not see what this process wrote: what they write would be lost."""
    begun = manifest.read_config()
    seen = client.run(Manifest.read_config, manifest)
    apart = sorted(worker for worker, found in seen.items() if found != begun)
    if apart:
        raise RecompressError(
            f"{len(apart)} of {len(seen)} workers ({apart[0]}, ...) cannot see what was written to "
            f"{manifest.store}: the target has to be on storage that all of them share, such as "
            "an object store or a network file system at the same path"
        )


def _recorded(plan: Plan, manifest: Manifest) -> dict[tuple[int, int], Done]:
    """All regions as this process sees them: do not publish what workers wrote elsewhere."""
    seen = manifest.finished()
    if len(seen) < plan.regions:
        raise RecompressError(
            f"all {plan.regions} regions are finished, but only {len(seen)} of them can be seen in "
            f"{manifest.store}: workers wrote to storage that is not shared, or objects were "
            "deleted since. Nothing was published; with shared storage, repeat the call"
        )
    return seen


def _some(finished: Mapping[tuple[int, int], Done]) -> list[tuple[int, int, int]]:
    """Array, region and CRC32 of the source of a few regions, spread over all."""
    known = sorted(finished)
    picked = known[:: -(-len(known) // _CHECKED_AGAIN) or 1]
    return [(*key, finished[key].source_crc32) for key in picked]


def _check_source(plan: Plan, sources_read: Iterable[Sequence[int]]) -> None:
    """Refuse what was made of another state of the source: read some regions of it again."""
    for index, number, crc in sources_read:
        array = plan.arrays[index]
        region = array.region_slices(number)
        if crc_of(read_block(array, region)) != crc:
            raise RecompressError(
                f"the source has changed since this target was begun: {array.path or '/'} "
                f"{[(s.start, s.stop) for s in region]} holds other values than then. Delete the "
                "target, or choose another, and start again"
            )


def _publish(
    plan: Plan, manifest: Manifest, finished: Mapping[tuple[int, int], Done], resumed: bool
) -> None:
    """Make the finished target visible, and leave nothing but Zarr."""
    store = manifest.store
    if resumed and isinstance(store, LocalStore):
        for key in list_keys(store, ""):  # writes that a killed process did not finish
            if key.endswith(".partial"):
                sync(store.delete(key))
    try:
        for key, document in plan.metadata(_some(finished)).items():
            write(store, key, document)
        manifest.remove()
    except Exception as error:  # each filesystem has its own kinds
        raise RecompressError(
            f"all regions are finished, but the metadata could not be written to {store} "
            f"({type(error).__name__}: {error}): repeat the call"
        ) from error


# On the worker


def _moved(array: ArrayPlan, number: int) -> Failure:
    return failure_of(Job(array, number, "none"), RecompressError(
        "the source was written to while it was read: objects of this region have another size, "
        "ETag or time than before"
    ))  # fmt: skip


# Engines: each hands the outcome of every job to the observer, and stops when that says so


# What the user sees
