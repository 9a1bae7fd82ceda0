"""Recompress a synthetic archive: throughput per core, memory, scaling, overhead.

    python benchmarks/recompress.py [--gigabytes 5] [--model tec-s2] [--quality 4]
        [--workers 1 2] [--folder DIR] [--out DIR]

Writes an archive of several v2 blosc arrays (2048 x 2048 pixels, 4 dates, 12 bands: 0.4 GB each,
or smaller ones for less in all) and recompresses it to sharded v3 on a LocalCluster of each number
of workers, one thread each. Before, the same chunks are encoded in one process without Dask, Zarr
or files: the difference in processor time is the overhead. Verification is off, then measured
alone in a run with the fewest workers ("sample", the default). ``parts`` are the steps around the
encoding, each alone.

Throughput is raw MB (10**6 bytes) per second. ``cpu_*`` numbers divide by the processor seconds of
all workers: on a busy machine they are still the work done, which wall-clock numbers are not.
``wall`` scaling means something only on an idle machine with a core for each worker;
``load_before`` says how busy it was. Writes ``recompress.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import tempfile
import time
import zlib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numcodecs
import numpy as np
import zarr
from distributed import Client, LocalCluster
from environment import ROOT, commit, environment
from zarr.storage import LocalStore

from tec_zarr import synthetic
from tec_zarr.batch import RecompressReport, recompress
from tec_zarr.chunk import ChunkSpec, encode_chunk
from tec_zarr.manifest import Done, Manifest
from tec_zarr.sentinel2 import L2A_BANDS

SIDE, DATES, BANDS = 2048, 4, 12
SOURCE_CHUNK = (1, BANDS, 512, 512)
BARE_CHUNKS = 24
"""Chunks that are encoded without Dask; enough for a stable mean."""
MARKERS = TASKS = 500
"""How often the small things are done, to see how long they take."""


def write_archive(path: Path, gigabytes: float) -> int:
    """Several arrays, each another landscape, tiled to its size; returns the raw bytes."""
    raw_array = DATES * BANDS * SIDE * SIDE * 2
    count = max(2, round(gigabytes * 1e9 / raw_array))
    side = min(SIDE, int((gigabytes * 1e9 / count / (DATES * BANDS * 2)) ** 0.5) // 256 * 256)
    root = zarr.create_group(path, zarr_format=2)
    band = root.create_array("band", shape=(BANDS,), dtype="U3", chunks=(BANDS,))
    band[:] = np.array(L2A_BANDS)
    band.attrs["_ARRAY_DIMENSIONS"] = ["band"]
    for number in range(count):
        tile = synthetic.cube(dates=DATES, size=min(512, side), seed=number).values
        repeats = -(-side // tile.shape[-1])
        array = root.create_array(
            f"tile_{number:02d}", shape=(DATES, BANDS, side, side), dtype="uint16",
            chunks=SOURCE_CHUNK, compressors=numcodecs.Blosc("zstd", 3), fill_value=0,
        )  # fmt: skip
        array.attrs["_ARRAY_DIMENSIONS"] = ["time", "band", "y", "x"]
        array[:] = np.tile(tile, (1, 1, repeats, repeats))[..., :side, :side]
    return count * DATES * BANDS * side * side * 2


def bare_encoding(path: Path, model: str, quality: float) -> float:
    """Raw MB per processor second of encode_chunk alone, on chunks of (4, 12, 256, 256)."""
    import torch

    torch.set_num_threads(1)
    spec = ChunkSpec(model=model, quality=quality, bands=L2A_BANDS)
    root = zarr.open(path, mode="r")
    names = [name for name in sorted(root.array_keys()) if name != "band"]
    arrays = [root[name] for name in names]
    side = arrays[0].shape[-1] // 256
    cells = [(a, y, x) for a in arrays for y in range(side) for x in range(side)]
    cells = cells[:: max(1, len(cells) // BARE_CHUNKS)]
    blocks = [a[:, :, y * 256 : (y + 1) * 256, x * 256 : (x + 1) * 256] for a, y, x in cells]
    encode_chunk(blocks[0], spec)
    start = time.process_time()
    for block in blocks:
        encode_chunk(block, spec)
    return sum(b.nbytes for b in blocks) / 1e6 / (time.process_time() - start)


def parts(source: Path, folder: Path) -> dict[str, float]:
    """What stands around the encoding, each alone, in processor time of this process."""
    root = zarr.open(source, mode="r")
    array = root["tile_00"]
    start = time.process_time()
    block = array[...]
    read = time.process_time() - start
    start = time.process_time()
    zlib.crc32(block.tobytes())
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
        "read_blosc_cpu_MB_per_s": round(block.nbytes / 1e6 / read, 1),
        "checksum_cpu_MB_per_s": round(block.nbytes / 1e6 / checksum, 1),
        "mark_region_cpu_ms": round(1e3 * mark / MARKERS, 3),
        "read_record_of_region_cpu_ms": round(1e3 * resume / MARKERS, 3),
        "scheduler_and_client_cpu_ms_per_task": round(1e3 * schedule / TASKS, 3),
    }


def cpu_and_memory(client: Client) -> tuple[float, float]:
    """Processor seconds of all workers so far, and the largest peak of resident memory (MB)."""
    usage = client.run(worker_usage).values()
    return sum(cpu for cpu, _ in usage), max(peak for _, peak in usage)


def worker_usage() -> tuple[float, float]:
    """Of the process that calls it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return time.process_time(), int(status["VmHWM"].split()[0]) / 1024


def run(
    source: Path, target: Path, workers: int, verify: str, model: str, quality: float
) -> dict[str, object]:
    """One recompression on a fresh cluster, whose start is not part of the time."""
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        client.run(warm, model, quality)
        before, idle_peak = cpu_and_memory(client)
        load = os.getloadavg()[0]
        report: RecompressReport = recompress(
            source, target, client=client, model=model, quality=quality, verify=verify,
            progress=False,
        )  # fmt: skip
        after, peak = cpu_and_memory(client)
    if not report.complete:
        raise SystemExit("\n".join(map(str, report.failures)))
    shutil.rmtree(target)
    megabytes = report.raw_bytes / 1e6
    return {
        "workers": workers,
        "verify": verify,
        "load_before": round(load, 2),
        "regions": report.regions,
        "ratio": round(report.ratio, 2),
        "wall_s": round(report.seconds, 1),
        "wall_MB_per_s": round(megabytes / report.seconds, 3),
        "cpu_s": round(after - before, 1),
        "cpu_MB_per_s": round(megabytes / (after - before), 3),
        "worker_peak_MB": round(peak),
        "worker_start_MB": round(idle_peak),
    }


def warm(model: str, quality: float) -> None:
    """Encode a chunk, so that imports and the model's start are not counted, as in the bare run."""
    import_module("tec_zarr.dask_worker")
    noise = np.random.default_rng(0).integers(1, 3000, (1, BANDS, 64, 64)).astype("uint16")
    encode_chunk(noise, ChunkSpec(model=model, quality=quality, bands=L2A_BANDS))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--model", default="tec-s2")
    parser.add_argument("--quality", type=float, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where the archive is written")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "source.zarr", Path(name) / "tec.zarr"
        raw = write_archive(source, arguments.gigabytes)
        coding = (arguments.model, arguments.quality)
        around = parts(source, Path(name) / "manifest")
        bare = bare_encoding(source, *coding)
        runs = [run(source, target, n, "none", *coding) for n in sorted(arguments.workers)]
        verified = run(source, target, min(arguments.workers), "sample", *coding)
    first, last = runs[0], runs[-1]
    results = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        **environment(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "raw_bytes": raw,
        "model": arguments.model,
        "quality": arguments.quality,
        "bare_encoding_cpu_MB_per_s": round(bare, 3),
        "overhead": round(bare / first["cpu_MB_per_s"] - 1, 4),
        "overhead_with_verification": round(bare / verified["cpu_MB_per_s"] - 1, 4),
        "scaling": {
            "from": first["workers"],
            "to": last["workers"],
            "wall": round(last["wall_MB_per_s"] / first["wall_MB_per_s"], 3),
            "cpu": round(last["cpu_MB_per_s"] / first["cpu_MB_per_s"], 3),
        },
        "parts": around,
        "runs": [*runs, verified],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    (arguments.out / "recompress.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
