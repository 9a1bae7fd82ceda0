"""Recompress whole archives with Dask: resumable, verified, one task for each region.

A region is one or more whole shards, aligned with the source's chunks where possible, so that no
two tasks write the same object and no source chunk is decoded twice. See ``docs/recompress.md``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import zarr
from dask.base import compute
from dask.delayed import delayed
from tqdm import tqdm
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tec_zarr.codec.bounded import within_bounds
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import RecompressError, TargetError, UnsupportedArrayError, VerificationError
from tec_zarr.frame.frame import default_scale
from tec_zarr.metrics import PEAK
from tec_zarr.models.registry import get_model
from tec_zarr.recompression.lock import Lock
from tec_zarr.recompression.manifest import FOLDER, Done, Manifest
from tec_zarr.recompression.plan import (
    SOURCES_READ,
    ArrayPlan,
    Plan,
    Settings,
    make_plan,
    provenance,
)
from tec_zarr.recompression.watch import changed, state_of
from tec_zarr.stores.objects import list_keys, open_source, open_target, write

if TYPE_CHECKING:
    from distributed import Client

Verify = Literal["sample", "full", "none"]

MIN_PSNR = 20.0
"""Verified samples below this many dB are not a coarse quality but a defect."""

LOG_SECONDS = 60.0
"""Time between two lines of the log."""

_LOG = logging.getLogger("tec_zarr.recompress")
_FATAL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM)
"""The target takes nothing more, whatever the region."""
_CHECKED_AGAIN = 4
"""Finished regions whose source is read again when a run is repeated."""
_WINDOW = 3
"""Tasks handed to a cluster for each of its threads: busy workers, and a small scheduler."""


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


@dataclass(frozen=True)
class Estimate:
    """What a recompression would take, from a sample of chunks.

    Attributes
    ----------
    regions, raw_bytes : int
        Of the whole source; known exactly.
    stored_bytes : int
        Estimated.
    core_seconds : float
        Estimated: reading and encoding on one core of this machine.
    read_amplification : float
        Largest of all arrays: how often a source chunk would be read.
    sampled_chunks : int
        What the estimate rests on.
    """

    regions: int
    raw_bytes: int
    stored_bytes: int
    core_seconds: float
    read_amplification: float
    sampled_chunks: int


@dataclass(frozen=True)
class _Job:
    """What a worker needs to make one region."""

    array: ArrayPlan
    number: int
    verify: Verify


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
        Those of :class:`tec_zarr.recompression.plan.Settings`: quality, max_error, psnr, max_bytes,
        model, zarr_format, bands, nodata, scale, chunks, shards, variables.

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
            return _Tally(plan).report(True, plan.regions, time.monotonic() - began)
        finished = manifest.finished()
        _check_source(plan, _some(finished))
        if client is not None:
            _check_shared(client, manifest)
        resumed = len(finished)

        def make() -> _Tally:
            """All regions that are not finished."""
            tally = _Tally(plan, finished.values())
            pending = (
                _Job(array, number, verify)
                for array in plan.arrays
                for number in range(array.regions)
                if (array.index, number) not in finished
            )
            with _Observer(tally, len(finished), workers, progress, lock.lost) as observer:
                if client is None:
                    for spec in filter(None, (array.spec for array in plan.arrays)):
                        get_model(spec.model, spec.weights_sha256)
                    _run_threads(pending, plan.regions - len(finished), threads, retries, observer)
                else:
                    _run_cluster(client, gpu, pending, plan, retries, observer)
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
            tally = _Tally(plan, finished.values(), failures)
            if any(failure.fatal for failure in failures):
                break
        lock.check()
        if tally.finished == plan.regions:
            _publish(plan, manifest, _recorded(plan, manifest), resumed > 0)
    return tally.report(False, resumed, time.monotonic() - began)


def estimate(
    source: Any,
    *,
    sample: int = 8,
    source_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Estimate:
    """Encode some chunks of every array, spread over it, and extrapolate. Writes nothing.

    Parameters
    ----------
    source, source_options, **settings
        As for :func:`recompress`.
    sample : int
        Chunks of each array.

    Returns
    -------
    Estimate
        Without verification and without the time to write.
    """
    if not (isinstance(sample, int | np.integer) and sample >= 1):
        raise UnsupportedArrayError(f"sample is {sample!r}, it must be a whole number from 1")
    plan = make_plan(open_source(source, source_options), MemoryStore(), Settings(**settings))
    stored = seconds = 0.0
    chunks = 0
    for array in plan.arrays:
        step = max(1, array.regions // sample)
        picked = range(step // 2, array.regions, step)
        samples, spent, size = 0, 0.0, 0
        for number in islice(picked, sample):
            region = array.region_slices(number)
            grid = array.chunk_slices(region)
            chunk = grid[len(grid) // 2]
            start = time.perf_counter()
            array.template[chunk] = block = _read(array, chunk)
            spent += time.perf_counter() - start
            keys = array.keys(chunk)
            size += sum(n for n, _ in _stored(array.template, keys).values())
            for key in keys:  # the next chunk starts with an empty shard again
                sync(array.template.store.delete(key))
            samples += block.size
            chunks += 1
        share = array.source.size / max(1, samples)
        stored += size * share
        seconds += spent * share
    raw = sum(array.source.size * array.source.dtype.itemsize for array in plan.arrays)
    amplification = max((array.read_amplification for array in plan.arrays), default=1.0)
    return Estimate(plan.regions, raw, round(stored), seconds, amplification, chunks)


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
        if _crc(_read(array, region)) != crc:
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


def _make(job: _Job) -> Done:
    start = time.perf_counter()
    return _write(job, _read(job.array, job.array.region_slices(job.number)), start)


def _read(array: ArrayPlan, region: tuple[slice, ...]) -> np.ndarray:
    block = _values(array.source, region)
    if array.finer is not None:
        block = array.finer(block)
    path = array.source.store_path
    key = "zarr.json" if array.source.metadata.zarr_format == 3 else ".zarray"
    if not sync((path / key).exists()):
        # Zarr takes missing chunks for the fill value, and all of them are missing from a
        # source that went away.
        raise RecompressError(f"the source {path} is gone: what was read cannot be trusted")
    return block


def _values(array: zarr.Array, region: tuple[slice, ...]) -> np.ndarray:
    """Part of an array in its own dtype, in the machine's byte order.

    Zarr returns the value of an array without dimensions as a scalar, and NumPy gives a text
    scalar the width of its text.
    """
    dtype = array.dtype if array.dtype.kind in "OT" else array.dtype.newbyteorder("=")
    return np.asarray(array[region]).astype(dtype, copy=False)


def _write(job: _Job, block: np.ndarray, start: float | None = None) -> Done:
    start = time.perf_counter() if start is None else start
    array, region = job.array, job.array.region_slices(job.number)
    try:
        _writer(array, region, block)[region] = block
        objects = _stored(array.target, array.keys(region))
        checked = _verify(array, region, block, job.verify, job.number)
        done = Done(
            array.index, job.number, _crc(block), objects, block.nbytes, block.size, *checked,
            time.perf_counter() - start,
        )  # fmt: skip
        Manifest(array.target.store).mark(done)
    except OSError as error:
        if error.errno in _FATAL:
            raise TargetError(f"the target takes nothing more ({error})") from error
        raise
    return done


def _writer(array: ArrayPlan, region: tuple[slice, ...], block: np.ndarray) -> zarr.Array:
    """The target, told not to look for empty chunks where there are none.

    Zarr's look at every sample takes 4 % of the time that encoding takes; in most chunks the first
    sample says it all.
    """
    fill = array.target.fill_value
    if array.spec is None or fill is None:
        return array.target
    for part in array.chunk_slices(region):
        chunk = block[_inside(part, region)]
        if _missing(chunk[:1, ..., :1], [fill]).all() and _missing(chunk, [fill]).all():
            return array.target
    metadata: Any = array.target.metadata
    return zarr.Array(
        zarr.AsyncArray(metadata, array.target.store_path, {"write_empty_chunks": True})
    )


def _inside(part: tuple[slice, ...], region: tuple[slice, ...]) -> tuple[Any, ...]:
    """Where a part of a region lies in it; the dots make it an array also without dimensions."""
    return *(slice(p.start - r.start, p.stop - r.start)
             for p, r in zip(part, region, strict=True)), ...  # fmt: skip


def _stored(array: zarr.Array, keys: list[str]) -> dict[str, tuple[int, int]]:
    """Length and CRC32 of the objects that are there."""

    async def collect() -> dict[str, tuple[int, int]]:
        found = {}
        for key in keys:
            data = await array.store.get(key, default_buffer_prototype())
            if data is not None:
                found[key] = (len(data), zlib.crc32(data.to_bytes()))
        return found

    return sync(collect())


def _verify(
    array: ArrayPlan, region: tuple[slice, ...], block: np.ndarray, verify: Verify, number: int
) -> tuple[int, float, int, float]:
    """Samples verified, squared error (DN), samples in it, largest error (DN)."""
    parts = [] if verify == "none" else array.chunk_slices(region)
    if verify == "sample":  # any chunk, but the same one in every run
        at = zlib.crc32(f"{array.path}:{number}".encode()) % len(parts)
        parts = parts[at : at + 1]
    verified, squared, compared, worst = 0, 0.0, 0, 0.0
    for part in parts:
        reference, decoded = block[_inside(part, region)], _values(array.target, part)
        verified += reference.size
        if array.spec is None:
            if not _equal(reference, decoded):
                raise VerificationError("what was read back differs from the source")
            continue
        errors = _dn_errors(array.spec, array.target.fill_value, reference, decoded)
        squared += errors.squared
        compared += errors.compared
        worst = max(worst, errors.largest)
    if _psnr(squared, compared) < MIN_PSNR:
        raise VerificationError(
            f"the PSNR of what was read back is {_psnr(squared, compared):.1f} dB"
        )
    return verified, squared, compared, worst


class _Errors(NamedTuple):
    squared: float
    """Sum over the measured samples, DN squared, both sides clipped as for PSNR."""
    compared: int
    """How many samples that sum has."""
    largest: float
    """Largest absolute difference in DN, not clipped."""


def _dn_errors(
    spec: ChunkSpec, fill: float | None, reference: np.ndarray, decoded: np.ndarray
) -> _Errors:
    """Compare one chunk of reflectance; nodata and bounds have to hold without exception."""
    nodata = [*spec.fill_values, *(() if fill is None else (fill,))]
    missing, lost = (_missing(a, nodata) for a in (reference, decoded))
    if not np.array_equal(missing, lost) or not _equal(reference[missing], decoded[missing]):
        raise VerificationError("nodata was not kept where it was")
    before, after = reference.astype(np.float64), decoded.astype(np.float64)
    before[missing] = after[missing] = 0
    with np.errstate(invalid="ignore"):
        error = after - before
    if reference.dtype.kind == "f":
        error[reference == decoded] = 0  # infinities too
    scale = spec.scale or default_scale(reference.dtype)
    largest = max(float(error.max(initial=0)), -float(error.min(initial=0)))
    if spec.max_error is not None:
        known = np.isfinite(reference) & ~missing
        if not within_bounds(spec, reference, decoded, known):
            raise VerificationError(f"errors reach {largest:g}, over the bound")
    for values in (before, after):
        values /= scale
        values -= spec.offset
        np.clip(values, 0, PEAK, out=values)
    clipped = (after - before).ravel()  # zero where nodata is
    return _Errors(float(clipped @ clipped), missing.size - int(missing.sum()), largest / scale)


def _missing(values: np.ndarray, nodata: Iterable[float]) -> np.ndarray:
    """Where there is nodata or NaN."""
    floats = values.dtype.kind == "f"
    missing = np.isnan(values) if floats else np.zeros(values.shape, bool)
    for value in nodata:
        # Integers are compared as such: ten times faster than by way of float64.
        missing |= values == (value if floats or value % 1 else int(value))
    return missing


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _crc(block: np.ndarray) -> int:
    if block.dtype.kind in "OT":
        return zlib.crc32(json.dumps(block.tolist()).encode())
    return zlib.crc32(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _failure(job: _Job, error: Exception) -> Failure:
    region = tuple((s.start, s.stop) for s in job.array.region_slices(job.number))
    message = f"{type(error).__name__}: {error}"
    return Failure(job.array.path, region, message, isinstance(error, TargetError))


def _moved(array: ArrayPlan, number: int) -> Failure:
    return _failure(_Job(array, number, "none"), RecompressError(
        "the source was written to while it was read: objects of this region have another size, "
        "ETag or time than before"
    ))  # fmt: skip


def set_torch_threads(threads: int) -> int:
    """Set how many threads torch uses inside a model, if any model has loaded torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return threads
    before = int(torch.get_num_threads())
    torch.set_num_threads(threads)
    return before


# Engines: each hands the outcome of every job to the observer, and stops when that says so


def _run_threads(
    pending: Iterable[_Job], count: int, threads: int | None, retries: int, observer: _Observer
) -> None:
    """Dask's threaded scheduler."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, min(threads or cores or 1, count))
    each = max(1, (threads if threads > (cores or 1) else cores or 1) // threads)

    def attempt(job: _Job) -> None:
        for left in reversed(range(retries + 1)):
            if observer.stopped.is_set():
                return
            try:
                observer(_make(job))
                return
            except Exception as error:
                if not left or isinstance(error, TargetError):
                    observer(_failure(job, error))
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
                observer.stopped.set()  # an interrupted run ends after the regions at work
    finally:
        set_torch_threads(before)


def _run_cluster(
    client: Client,
    gpu: bool,
    pending: Iterable[_Job],
    plan: Plan,
    retries: int,
    observer: _Observer,
) -> None:
    """A distributed scheduler, with a bounded number of tasks at any time."""
    from distributed import as_completed

    from tec_zarr.recompression.dask_worker import WarmUp

    workers = client.scheduler_info(n_workers=-1)["workers"]
    able = {a for a, w in workers.items() if not gpu or w["resources"].get("GPU", 0) >= 1}
    readers = sorted(set(workers) - able)
    width = _WINDOW * sum(w["nthreads"] for a, w in workers.items() if a in able)
    models = {(a.spec.model, str(a.spec.weights_sha256)) for a in plan.arrays if a.spec}
    plugin = f"tec-zarr-{plan.config['config_sha256'][:12]}"
    jobs: dict[Any, _Job] = {}

    def submit(job: _Job) -> Any:
        tag = f"{time.monotonic_ns()}-{job.array.index}-{job.number}"
        common = {"retries": retries, "pure": False}
        if readers:
            block = client.submit(
                partial(_read, job.array, job.array.region_slices(job.number)),
                workers=readers, key=f"read-{tag}", **common,
            )  # fmt: skip
            future = client.submit(
                partial(_write, job), block,
                resources={"GPU": 1}, key=f"recompress-{tag}", **common,
            )  # fmt: skip
        else:
            future = client.submit(
                partial(_make, job),
                resources={"GPU": 1} if gpu else None, key=f"recompress-{tag}", **common,
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
                outcome = _failure(job, error)
            observer(outcome)
            if observer.stopped.is_set():
                return
            for following in islice(queue, 1):
                running.add(submit(following))
    finally:
        client.cancel(list(jobs), force=True)
        with contextlib.suppress(Exception):  # the cluster may be what failed
            client.unregister_worker_plugin(plugin)


# What the user sees


class _Tally:
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
            _psnr(self.squared, self.compared), self.worst if self.compared else math.nan,
            seconds, self.seconds,
        )  # fmt: skip


class _Observer:
    """Counts outcomes, draws the bar, writes the log, and stops a run that cannot succeed."""

    def __init__(
        self, tally: _Tally, resumed: int, workers: int, progress: bool, lost: threading.Event
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

    def __enter__(self) -> _Observer:
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
            psnr = _psnr(tally.squared, tally.compared)
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


def _psnr(squared: float, count: int) -> float:
    if not count:
        return math.nan
    return math.inf if squared == 0 else 10 * math.log10(PEAK**2 * count / squared)
