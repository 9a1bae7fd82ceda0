"""Recompress a synthetic archive: throughput per core, memory, scaling, overhead.

    python benchmarks/recompress.py [--gigabytes 5] [--model tec-s2] [--quality 4]
        [--archive PATH] [--out DIR]

Writes an archive of several v2 blosc arrays (2048 x 2048 pixels, 4 dates, 12 bands: 0.4 GB each,
or smaller ones for less in all) and recompresses it to sharded v3 on a LocalCluster, one thread
for each worker: one worker, then two. The cluster and the model on it are ready before the clock
starts; planning and publishing are inside. Dask is set as
``tec_zarr.recompression.dask_worker.QUIET`` says. Verification is on ("sample"); what it takes is
measured on the worker and can be subtracted.

Bare encoding is ``encode_chunk`` in a loop, in a process that is set up like a worker (one thread,
the same memory settings) and has no Dask, no Zarr and no files. Its chunks are those of the first
512 x 512 pixels of every array, which the rest of the array repeats: each pixel that the workers
encode is encoded here too. It runs before and after the run on one worker, so that a
machine that becomes slower or faster does so for both. ``bare_with_reading`` adds reading these
pixels from the archive. The overhead is what the processor seconds of all worker processes, with
everything that runs in them, are more than those of bare encoding for as many bytes.

``worker_cpu_s`` says where these seconds went: ``encode`` is measured inside ``encode_chunk`` on
the worker, ``event_loop`` is Dask's main thread, ``rest`` is Zarr's pipeline and what else is left.
``workers_busy`` is the share of the wall clock that workers spent in regions.
``parts`` are the steps around the encoding, each alone.

MB are 10**6 raw bytes. Numbers with ``cpu`` divide by processor seconds: on a busy machine they
are still the work done. The others are of the wall clock, and mean something only when
``others_cores``, the cores that other processes used meanwhile, is small. Writes
``recompress.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import numcodecs
import numpy as np
import zarr
from distributed import Client, LocalCluster
from environment import ROOT, commit, environment
from zarr.storage import LocalStore

from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes import synthetic
from tec_zarr.recompression.dask_worker import QUIET
from tec_zarr.recompression.manifest import Done, Manifest
from tec_zarr.recompression.run import recompress
from tec_zarr.sentinel2 import L2A_BANDS

SIDE, TILE, CHUNK, DATES, BANDS = 2048, 512, 256, 4, 12
SOURCE_CHUNK = (1, BANDS, 512, 512)
MARKERS = TASKS = 500
"""How often the small things are done, to see how long they take."""


def write_archive(path: Path, gigabytes: float) -> None:
    """Several arrays, each another landscape, tiled to its size."""
    raw_array = DATES * BANDS * SIDE * SIDE * 2
    count = max(2, math.ceil(gigabytes * 1e9 / raw_array))
    side = SIDE
    if count * raw_array > 2e9 * gigabytes:
        side = max(1, int(SIDE * math.sqrt(gigabytes * 1e9 / count / raw_array)) // TILE) * TILE
    root = zarr.create_group(path, zarr_format=2)
    band = root.create_array("band", shape=(BANDS,), dtype="U3", chunks=(BANDS,))
    band[:] = np.array(L2A_BANDS)
    band.attrs["_ARRAY_DIMENSIONS"] = ["band"]
    for number in range(count):
        tile = synthetic.cube(dates=DATES, size=TILE, seed=number).values
        array = root.create_array(
            f"tile_{number:02d}", shape=(DATES, BANDS, side, side), dtype="uint16",
            chunks=SOURCE_CHUNK, compressors=numcodecs.Blosc("zstd", 3), fill_value=0,
        )  # fmt: skip
        array.attrs["_ARRAY_DIMENSIONS"] = ["time", "band", "y", "x"]
        array[:] = np.tile(tile, (1, 1, side // TILE, side // TILE))


@dataclass(frozen=True)
class Bare:
    """Sums over chunks that were encoded without Dask, Zarr or files."""

    megabytes: float
    read_cpu_s: float
    encode_cpu_s: float
    encode_wall_s: float

    def __add__(self, other: Bare) -> Bare:
        return Bare(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(),
                                            strict=True)))  # fmt: skip


def bare(path: Path, model: str, quality: float) -> Bare:
    """Encode what all of the archive consists of."""
    from tec_zarr.recompression.dask_worker import WarmUp

    spec = ChunkSpec(model=model, quality=quality, bands=L2A_BANDS)
    WarmUp([(model, str(spec.weights_sha256))]).setup(SimpleNamespace(periodic_callbacks={}))
    warm(model, quality)
    root = zarr.open(path, mode="r")
    total = Bare(0, 0, 0, 0)
    for name in sorted(set(root.array_keys()) - {"band"}):
        start = time.process_time()
        block = root[name][:, :, :TILE, :TILE]
        read = time.process_time() - start
        chunks = [block[:, :, y : y + CHUNK, x : x + CHUNK]
                  for y in range(0, TILE, CHUNK) for x in range(0, TILE, CHUNK)]  # fmt: skip
        start, began = time.process_time(), time.perf_counter()
        for chunk in chunks:
            encode_chunk(chunk, spec, padding=(0,))
        spent = time.process_time() - start, time.perf_counter() - began
        total += Bare(block.nbytes / 1e6, read, *spent)
    return total


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it where nothing else has run."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def parts(source: Path, folder: Path) -> dict[str, float]:
    """What stands around the encoding, each alone, in processor time of this process."""
    block = zarr.open(source, mode="r")["tile_00"][...]
    start = time.process_time()
    zlib.crc32(block.reshape(-1).view(np.uint8))
    checksum = time.process_time() - start
    manifest = Manifest(LocalStore(folder))
    done = Done(0, 0, 0, {"tile_00/c/0/0/0/0": (10**6, 0)}, 10**8, 10**7, 10**6, 0.0, 0, 0.0, 1.0)
    start = time.process_time()
    for number in range(MARKERS):
        manifest.mark(replace(done, region=number))
    mark = time.process_time() - start
    start = time.process_time()
    manifest.finished()  # none is: the objects they name are not there
    resume = time.process_time() - start
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(abs, range(10)))
        start = time.process_time()
        client.gather(client.map(abs, range(10, 10 + TASKS)))
        schedule = time.process_time() - start
    return {
        "checksum_cpu_MB_per_s": round(block.nbytes / 1e6 / checksum, 1),
        "mark_region_cpu_ms": round(1e3 * mark / MARKERS, 3),
        "read_record_of_region_cpu_ms": round(1e3 * resume / MARKERS, 3),
        "scheduler_and_client_cpu_ms_per_task": round(1e3 * schedule / TASKS, 3),
    }


# On the worker


def warm(model: str, quality: float) -> None:
    """Encode a chunk, so that imports and the model's start are not counted."""
    noise = np.random.default_rng(0).integers(1, 3000, (1, BANDS, 64, 64)).astype("uint16")
    encode_chunk(noise, ChunkSpec(model=model, quality=quality, bands=L2A_BANDS))


def install_stopwatch(model: str, quality: float, dask_worker: Any) -> None:
    """Measure the steps of this worker from now on, in processor seconds."""
    from tec_zarr.recompression import region

    warm(model, quality)
    seconds = dask_worker.stopwatch = dict.fromkeys(("encode", "read", "verify", "checksum"), 0.0)

    @contextlib.contextmanager
    def clock(step: str) -> Iterator[None]:
        # Of the process: a step may use several threads, and nothing else runs meanwhile.
        start = time.process_time()
        try:
            yield
        finally:
            seconds[step] += time.process_time() - start

    region.around = clock


def read_stopwatch(dask_worker: Any) -> tuple[float, float, dict[str, float]]:
    """Processor seconds of this worker so far, its peak of memory (MB), and the steps."""
    main = threading.main_thread().native_id
    fields = Path(f"/proc/self/task/{main}/stat").read_text().rpartition(")")[2].split()
    loop = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.process_time(), peak, {**dask_worker.stopwatch, "event_loop": loop}


def busy_cores_s() -> float:
    """Core seconds that this machine has worked since it started, for whomever."""
    user, nice, system, _, _, interrupts, soft, *_ = (
        int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def run(
    source: Path, target: Path, workers: int, verify: str, model: str, quality: float
) -> dict[str, Any]:
    """One recompression on a fresh cluster, whose start is not part of the time."""
    with (
        dask.config.set(QUIET),
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        client.run(install_stopwatch, model, quality)
        before = client.run(read_stopwatch)
        busy, own = busy_cores_s(), time.process_time()
        report = recompress(
            source, target, client=client, model=model, quality=quality, verify=verify,
            progress=False,
        )  # fmt: skip
        own, busy = time.process_time() - own, busy_cores_s() - busy
        after = client.run(read_stopwatch)
    if not report.complete:
        raise SystemExit("\n".join(map(str, report.failures)))
    shutil.rmtree(target)
    cpu = sum(after[w][0] - before[w][0] for w in after)
    steps = {
        name: sum(after[w][2][name] - before[w][2][name] for w in after)
        for name in next(iter(after.values()))[2]
    }
    megabytes = report.raw_bytes / 1e6
    return {
        "workers": workers,
        "verify": verify,
        "regions": report.regions,
        "ratio": round(report.ratio, 2),
        "psnr": round(report.psnr, 2) if report.verified else None,
        "verified_share": round(report.verified / report.samples, 4),
        "wall_s": round(report.seconds, 1),
        "wall_MB_per_s": round(megabytes / report.seconds, 3),
        "workers_busy": round(report.worker_seconds / (workers * report.seconds), 4),
        "cpu_s": round(cpu, 1),
        "cpu_MB_per_s": round(megabytes / cpu, 3),
        "client_and_scheduler_cpu_s": round(own, 1),
        "others_cores": round((busy - cpu - own) / report.seconds, 2),
        "worker_cpu_s": {
            **{name: round(seconds, 2) for name, seconds in steps.items()},
            "rest": round(cpu - sum(steps.values()), 2),
        },
        "worker_peak_MB": [round(peak) for _, peak, _ in after.values()],
        "worker_start_MB": [round(peak) for _, peak, _ in before.values()],
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--model", default="tec-s2")
    parser.add_argument("--quality", type=float, default=4)
    parser.add_argument("--archive", type=Path, help="made if it is not there, and kept")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    # A line a minute of how far it is.
    log = logging.getLogger("tec_zarr.recompress")
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    # As Dask's nanny sets them for workers: bare encoding has one thread too.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(dir=arguments.archive and arguments.archive.parent) as name:
        source, target = arguments.archive or Path(name) / "source.zarr", Path(name) / "tec.zarr"
        if not source.exists():
            write_archive(Path(name) / "new.zarr", arguments.gigabytes)
            (Path(name) / "new.zarr").rename(source)
            os.sync()  # what the disk has still to do would disturb the first measurement
            print("archive written", flush=True)
        members = [array for _, array in zarr.open(source, mode="r").arrays() if array.ndim == 4]
        arrays, raw = len(members), sum(array.nbytes for array in members)
        coding = (arguments.model, arguments.quality)
        around = parts(source, Path(name) / "manifest")
        alone, runs = [], []
        for workers in (1, 2):
            alone.append(in_fresh_process(bare, source, *coding))
            print(f"bare encoding: {alone[-1].encode_cpu_s:.1f} processor seconds", flush=True)
            runs.append(run(source, target, workers, "sample", *coding))
            print(f"{workers} workers: {runs[-1]['wall_MB_per_s']} MB/s", flush=True)
    total = sum(alone[1:], alone[0])
    encoding = total.megabytes / total.encode_cpu_s
    with_reading = total.megabytes / (total.encode_cpu_s + total.read_cpu_s)
    one, two = runs
    unverified = raw / 1e6 / (one["cpu_s"] - one["worker_cpu_s"]["verify"])
    results = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        **environment(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "raw_bytes": raw,
        "arrays": arrays,
        "array_shape": list(members[0].shape),
        "model": arguments.model,
        "quality": arguments.quality,
        "dask_settings": QUIET,
        "bare_cpu_MB_per_s": round(encoding, 3),
        "bare_cpu_MB_per_s_each_time": [round(b.megabytes / b.encode_cpu_s, 3) for b in alone],
        "bare_wall_MB_per_s": round(total.megabytes / total.encode_wall_s, 3),
        "bare_with_reading_cpu_MB_per_s": round(with_reading, 3),
        "read_blosc_cpu_MB_per_s": round(total.megabytes / total.read_cpu_s, 1),
        "worker_without_verification_cpu_MB_per_s": round(unverified, 3),
        "overhead": {
            "over_encoding": round(encoding / unverified - 1, 4),
            "over_reading_and_encoding": round(with_reading / unverified - 1, 4),
            "over_encoding_with_verification": round(encoding / one["cpu_MB_per_s"] - 1, 4),
        },
        "scaling_from_1_to_2": {
            "wall": round(two["wall_MB_per_s"] / one["wall_MB_per_s"], 3),
            "cpu": round(two["cpu_MB_per_s"] / one["cpu_MB_per_s"], 3),
        },
        "parts": around,
        "runs": runs,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    (arguments.out / "recompress.json").write_text(text + "\n")
    print({key: results[key] for key in ("overhead", "scaling_from_1_to_2")})


if __name__ == "__main__":
    main()
