"""Recompress whole archives with Dask: one task for each region, verified, resumable.

A region is one or more whole shards of the target, so no two tasks write the same object. If
possible it is also whole chunks of the source, so no source chunk is decoded twice. See
``docs/recompress.md``.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

from tec_zarr.codec.options import takes_options
from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.models.registry import get_model
from tec_zarr.recompression.appending import HAD, SOURCES_READ
from tec_zarr.recompression.engines import failure_of, needs_gpu, run_cluster, run_threads
from tec_zarr.recompression.lock import Lock
from tec_zarr.recompression.manifest import Done, Manifest
from tec_zarr.recompression.plan import ArrayPlan, Plan, documents, make_plan, provenance
from tec_zarr.recompression.progress import Failure, Observer, RecompressReport, Tally
from tec_zarr.recompression.region import Job, crc_of, read_block
from tec_zarr.recompression.settings import Settings
from tec_zarr.recompression.verify import Verify
from tec_zarr.recompression.watch import changed, state_of
from tec_zarr.stores.objects import list_keys, open_source, open_target, sync, write
from tec_zarr.stores.sessions import FOLDER, SessionStore, commit, discard

if TYPE_CHECKING:
    from distributed import Client

_NOT_COMPARED = ("source", "regions", HAD)
"""Keys of a plan's configuration that may differ between the runs of one recompression."""

_CHECKED_AGAIN = 4
"""How many finished regions a repeated run reads again, to see whether the source has changed."""


@takes_options(Settings)
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
    append: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> RecompressReport:
    """Copy a Zarr store and encode its reflectance with TEC, on all cores or on a Dask cluster.

    After any interruption, repeat the call: it continues where it stopped. The target becomes a
    readable Zarr store only when its last region is finished.

    Parameters
    ----------
    source : path, URL, zarr Store, Group or Array
        Zarr format 2 or 3, any codec.
    target : path, URL, zarr Store or Icechunk repository
        Empty, or an incomplete target of an earlier call with the same arguments. With ``append``
        also a finished one. Icechunk: a Repository, Session or session store, or ``"icechunk:"``
        and a path or URL; all is committed at the end, or nothing.
    client : distributed.Client, optional
        Cluster to run on. Default: threads of this process.
    gpu : bool
        Encode only on workers with the Dask resource ``GPU``, as many regions at a time as the
        worker has threads. If the cluster has other workers too, those read. The embedded models
        run on the CPU: for them all workers encode, and a warning says so.
    threads : int, optional
        Number of threads if there is no client. Default: one for each core that this process may
        use.
    retries : int
        Further attempts for a region that failed.
    verify : {"sample", "full", "none"}
        Read back one chunk of every region, all of it, or nothing, before it counts as finished.
        Arrays copied without loss must be equal. In reflectance, nodata must be equal and nothing
        else may have become nodata, a ``max_error`` must hold, and the PSNR must reach 20 dB.
    progress : bool
        Show a bar on a terminal.
    append : bool
        Append to a finished target the dates that it lacks. The source must be the one that the
        target was made of, with later dates at its end. The target keeps its settings; those that
        are given must be the same. Without a target, all dates are copied.
    source_options, target_options : mapping, optional
        Options of the fsspec filesystem of a URL.
    zarr_format, chunks, shards, overviews, variables
        See :class:`tec_zarr.recompression.settings.Settings`.
    {options}

    Returns
    -------
    RecompressReport
        It lists the regions that failed; these raise no error. ``complete`` says whether the
        target can be used.

    Raises
    ------
    RecompressError
        The run could not begin: the source cannot be read, the target cannot be written or was
        begun with other arguments, or no worker has a GPU. With ``append``: the source differs from
        that of the target in more than later dates.
    UnsupportedArrayError
        TEC cannot encode the data as they are, or an argument is out of its range.

    Notes
    -----
    Once a minute the logger ``tec_zarr.recompress`` gets a JSON line.
    """
    began = time.monotonic()
    wanted = Settings(**settings)
    _check_arguments(verify, retries)
    store = open_target(target, target_options)
    workers = _check_cluster(client, gpu, store)
    planned = partial(make_plan, open_source(source, source_options), store, wanted, append)
    manifest = Manifest(store)
    with _session(store), _locked(manifest, planned) as (plan, lock):
        if lock is None:
            return Tally(plan).report(True, plan.regions, time.monotonic() - began)
        if gpu and not any(map(needs_gpu, plan.arrays)):
            warnings.warn(
                "gpu=True (--gpu) brings nothing here: the embedded models run on the CPU. All "
                "workers encode; give those with a GPU one thread for each core, or use none",
                stacklevel=3,
            )
            gpu, workers = False, _check_cluster(client, False, target)
        finished = plan.known(manifest.finished())
        _check_source(plan, _some(plan, finished))
        if client is not None:
            _check_shared(client, manifest)
        resumed = len(finished)

        def make() -> Tally:
            """Make all regions that are not finished."""
            tally = Tally(plan, finished.values())
            pending = (
                Job(array, number, verify)
                for array in plan.arrays
                for number in array.numbers
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
            finished = plan.known(manifest.finished())
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


@contextlib.contextmanager
def _session(store: Store) -> Iterator[None]:
    """Forget at the end what was written to an Icechunk session and not committed."""
    try:
        yield
    finally:
        if isinstance(store, SessionStore):
            discard(store.session_store)


def _check_cluster(client: Client | None, gpu: bool, store: Store) -> int:
    """Return the number of workers that encode.

    Refuses clusters on which tasks would wait for ever, and targets that workers cannot write to.
    """
    if client is None:
        if gpu:
            raise RecompressError("gpu=True needs a Dask cluster: pass client=Client(...)")
        return 1
    if isinstance(store, MemoryStore | SessionStore):
        raise RecompressError(
            "workers cannot write into this process's memory, nor into its Icechunk session: give "
            "a path or URL, or leave the cluster out"
        )
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    able = [w for w in workers if not gpu or w["resources"].get("GPU", 0) >= 1]
    if not able:
        raise RecompressError(
            f"none of the {len(workers)} workers has the resource GPU, and tasks would wait for "
            'it for ever: start workers with `dask worker --resources "GPU=1"`, or leave out '
            "gpu=True (--gpu), which brings nothing to the embedded models"
            if gpu
            else "the cluster has no worker yet: client.wait_for_workers(1)"
        )
    return len(able)


@contextlib.contextmanager
def _locked(
    manifest: Manifest, planned: Callable[[], Plan]
) -> Iterator[tuple[Plan, Lock | None]]:
    """Lock the target and begin, or continue. Yields no lock if the whole target is finished."""
    store, plan = manifest.store, planned()
    with contextlib.ExitStack() as stack:
        try:
            complete, lock = _is_complete(manifest, plan), None
            if not complete:
                lock = stack.enter_context(Lock(store).held())
                # The last holder may have finished it.
                plan = planned() if plan.published else plan
                complete = _is_complete(manifest, plan)
            if complete:
                if list_keys(store, f"{FOLDER}/"):  # Workers that outlived their run wrote these.
                    manifest.remove()
                lock = None
            elif _differing(manifest.read_config() or {}, plan):
                manifest.write_config(plan.config)
            if lock is not None and isinstance(store, SessionStore):
                for key, document in documents(plan.template).items():
                    write(store, key, document)  # A session takes chunks of arrays that it has.
        except RecompressError:
            raise
        except Exception as error:  # Each filesystem raises its own exceptions.
            raise RecompressError(
                f"the target {store} cannot be written ({type(error).__name__}: {error}); it must "
                "be a store of files or objects, with room and with permission to write"
            ) from error
        yield plan, lock


def _differing(begun: Mapping[str, Any], plan: Plan) -> list[str]:
    ignored = (*_NOT_COMPARED, "dates") if plan.published else _NOT_COMPARED
    return [k for k in plan.config if k not in ignored and begun.get(k) != plan.config[k]]


def _is_complete(manifest: Manifest, plan: Plan) -> bool:
    """Return whether a target is finished. Refuses one that another plan began."""
    store = manifest.store
    begun = manifest.read_config()
    if plan.published:
        _check_source(plan, plan.published.sources_read)
        return not plan.regions
    before = begun if begun is not None else provenance(store)
    if before is None:
        return False
    changed = _differing(before, plan)
    if changed:
        what = "; ".join(f"{k} was {before.get(k)}, is {plan.config[k]}" for k in changed)
        raise RecompressError(
            f"the target {store} was begun with another configuration or source ({what}): repeat "
            "the call with the arguments of the first one, or choose another target. A finished "
            "target gets the dates that its source has more with append=True (--append)"
        )
    if begun is None:
        # If the target has no checksums of the source, there is nothing to compare.
        _check_source(plan, before.get(SOURCES_READ, []))
    return begun is None


def _check_shared(client: Client, manifest: Manifest) -> None:
    """Refuse workers that cannot read what this process wrote: their data would be lost."""
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
    """Return all regions that this process sees as finished; raise an error if some are missing.

    Workers without shared storage may have written them elsewhere.
    """
    seen = plan.known(manifest.finished())
    if len(seen) < plan.regions:
        raise RecompressError(
            f"all {plan.regions} regions are finished, but only {len(seen)} of them can be seen in "
            f"{manifest.store}: workers wrote to storage that is not shared, or objects were "
            "deleted since. Nothing was published; with shared storage, repeat the call"
        )
    return seen


def _some(plan: Plan, finished: Mapping[tuple[int, int], Done]) -> list[list[Any]]:
    """Return (path, slices, CRC32 of the source) of a few finished regions, spread over all."""
    found = []
    for index, number in _spread(sorted(finished)):
        array = plan.arrays[index]
        slices = [[s.start, s.stop] for s in array.region_slices(number)]
        found.append([array.path, slices, finished[index, number].source_crc32])
    return found


def _spread(items: Sequence[Any]) -> Sequence[Any]:
    return items[:: -(-len(items) // _CHECKED_AGAIN) or 1]


def _check_source(plan: Plan, sources_read: Iterable[Sequence[Any]]) -> None:
    """Read some regions of the source again, and raise an error if their checksums differ."""
    arrays = {array.path: array for array in plan.arrays}
    for path, slices, crc in sources_read:
        array = arrays[path]
        region = tuple(slice(*pair) for pair in slices)
        if crc_of(read_block(array, region)) != crc:
            raise RecompressError(
                f"the source has changed since this target was begun: {array.path or '/'} "
                f"{[(s.start, s.stop) for s in region]} holds other values than then. Delete the "
                "target, or choose another, and start again"
            )


def _publish(
    plan: Plan, manifest: Manifest, finished: Mapping[tuple[int, int], Done], resumed: bool
) -> None:
    """Write the metadata of the finished target, which makes it readable, and delete the record."""
    store = manifest.store
    if resumed and isinstance(store, LocalStore):
        for key in list_keys(store, ""):  # A killed process leaves incomplete files.
            if key.endswith(".partial"):
                sync(store.delete(key))
    try:
        before = plan.published.sources_read if plan.published else []
        read_from = _spread([*before, *_some(plan, finished)])
        for key, document in plan.metadata(read_from).items():
            write(store, key, document)
        manifest.remove()
    except Exception as error:  # Each filesystem raises its own exceptions.
        raise RecompressError(
            f"all regions are finished, but the metadata could not be written to {store} "
            f"({type(error).__name__}: {error}): repeat the call"
        ) from error
    if isinstance(store, SessionStore):
        what = "Append dates" if plan.published else "Recompress"
        commit(store.session_store, f"{what} with TEC, from {plan.config['source']}")


def _moved(array: ArrayPlan, number: int) -> Failure:
    """Return the failure of a region whose source changed while it was read."""
    return failure_of(Job(array, number, "none"), RecompressError(
        "the source was written to while it was read: objects of this region have another size, "
        "ETag or time than before"
    ))  # fmt: skip
