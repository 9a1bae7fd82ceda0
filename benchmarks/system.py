"""Memory, import, opening, first pixel, bytes read, and two cores: what is not rate or one chunk.

    python benchmarks/system.py [--quick] [--out DIR]

Every figure is of fresh processes, the median of some repeats. Times are given as processor
seconds, which a busy machine changes little, and as wall clock, which only an idle one makes
meaningful (``load_average`` says). Before a process reads its first pixel, the files of the store
are taken out of the page cache; Python and its packages stay there. The cube is synthetic
(4, 12, 512, 512): the same everywhere. "Plain" is what xarray and Zarr do by default: Zstandard,
here in the same chunks. Writes ``system.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from environment import ROOT, commit, environment

STORES = ("tec", "tec, one date a chunk", "plain")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file; or, as a child, measure one thing and print it."""
    options = _parse(arguments)
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    repeats = 2 if options.quick else 5
    results: dict[str, object] = {
        "definition": f"medians of {repeats} fresh processes; cube (4, 12, 512, 512) uint16; the "
        "files of a store are taken out of the page cache before its first pixel is read",
        **environment(),
        "commit": commit(),
        "load_average_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as folder:
        _write_stores(Path(folder))
        results["import"] = {
            name: _median("import", repeats, modules)
            for name, modules in (
                ("numpy, zarr, xarray", "numpy,zarr,xarray"),
                ("numpy, zarr, xarray, tec_zarr", "numpy,zarr,xarray,tec_zarr"),
                ("torch", "torch"),
            )
        }
        results["open"] = {s: _median("open", repeats, _path(folder, s)) for s in STORES}
        print("stores written, imports and opening measured", flush=True)
        results["first_pixel"] = {s: _median("first", repeats, _path(folder, s)) for s in STORES}
        print("first pixels measured", flush=True)
        results["memory_mb"] = {
            what: _median("memory", 1 if options.quick else 3, what, _path(folder, "plain"))
            for what in ("nothing", "encode", "decode", "encode 512", "decode 512")
        }
        print("memory measured", flush=True)
        results["bytes_read"] = {s: bytes_read(_path(folder, s)) for s in STORES}
        results["stored_bytes"] = {
            s: sum(p.stat().st_size for p in Path(_path(folder, s)).rglob("*") if p.is_file())
            for s in STORES
        }
    results["bytes_of_nodata"] = _bytes_of_nodata()
    results["throughput"] = [throughput(n, 1 if options.quick else 5) for n in (1, 2)]
    results["load_average_after"] = os.getloadavg()
    options.out.mkdir(parents=True, exist_ok=True)
    name = "system_quick.json" if options.quick else "system.json"
    (options.out / name).write_text(json.dumps(results, indent=1) + "\n")


def _path(folder: str, store: str) -> str:
    return str(Path(folder) / f"{store.replace(', ', '-').replace(' ', '-')}.zarr")


def _cube():
    from tec_zarr.cubes import synthetic

    return synthetic.dataset(dates=4, size=512, seed=7, nodata_edge=False)[["reflectance"]]


def _write_stores(folder: Path) -> None:
    import zarr

    import tec_zarr

    ds = _cube()
    tec = tec_zarr.encoding(ds, quality=4)
    dated = tec_zarr.encoding(ds, quality=4, chunks={"time": 1})
    plain = {"reflectance": {"chunks": (4, 12, 256, 256), "compressors": zarr.codecs.ZstdCodec()}}
    for store, settings in zip(STORES, (tec, dated, plain), strict=True):
        ds.to_zarr(_path(str(folder), store), mode="w", encoding=settings, zarr_format=3)


def _median(child: str, repeats: int, *arguments: str) -> dict[str, float]:
    """Medians of what a child prints, with the processor time of the whole process."""
    rows = []
    for _ in range(repeats):
        if child == "first":
            _forget(Path(arguments[0]))
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-W", "ignore", __file__, "--child", child, *arguments]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        row = json.loads(printed.splitlines()[-1])
        rows.append({**row, "process_cpu_s": used, "process_wall_s": wall})
    return {
        key: float(f"{statistics.median(row[key] for row in rows):.4g}")
        for key in rows[0]
        if all(isinstance(row[key], int | float) for row in rows)
    }


def _forget(store: Path) -> None:
    """Take the files of a store out of the page cache, so that they come from the disk."""
    for path in filter(Path.is_file, store.rglob("*")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_of_nodata() -> int:
    """Length of a chunk (4, 12, 256, 256) that holds nothing but nodata."""
    from tec_zarr.codec.numcodecs_codec import TEC

    return len(TEC(quality=4).encode(np.zeros((4, 12, 256, 256), np.uint16)))


def _timed(work: Callable[[], object]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def _child_import(modules: str) -> dict[str, float]:
    row = _timed(lambda: [__import__(name) for name in modules.split(",")])
    return {**row, "imports_torch": int("torch" in sys.modules)}


def _child_open(path: str) -> dict[str, float]:
    import xarray as xr

    row = _timed(lambda: xr.open_zarr(path))
    return {**row, "imports_torch": int("torch" in sys.modules)}


def _child_first(path: str) -> dict[str, float]:
    import xarray as xr

    return _timed(lambda: xr.open_zarr(path).reflectance[0, 3, 100, 100].values)


def _child_memory(what: str, path: str) -> dict[str, float]:
    """Peak resident memory of a process that does one thing, MB."""
    import zarr

    side = 512 if what.endswith("512") else 256
    chunk = zarr.open_array(path, path="reflectance")[:, :, :side, :side]
    from tec_zarr.codec.numcodecs_codec import TEC

    if what != "nothing":
        data = TEC(quality=4).encode(chunk)
        if what.startswith("decode"):
            # Another process decodes, so that encoding's memory does not count.
            with tempfile.NamedTemporaryFile(suffix=".tec") as file:
                Path(file.name).write_bytes(data)
                command = [sys.executable, "-W", "ignore", __file__, "--child", "peak", file.name]
                printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                return json.loads(printed.stdout.splitlines()[-1])
    return {"peak": _peak()}


def _child_peak(path: str) -> dict[str, float]:
    from tec_zarr.codec.numcodecs_codec import TEC

    TEC().decode(Path(path).read_bytes())
    return {"peak": _peak()}


def _peak() -> float:
    """Peak resident memory of this program; `ru_maxrss` would count its parent's before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("this kernel does not tell the peak memory of a process")


def bytes_read(path: str) -> dict[str, int]:
    """Bytes that a store hands out for a 64 x 64 window, one date, one band; chunks only."""
    import zarr
    from zarr.storage import LocalStore, WrapperStore

    class Counting(WrapperStore):
        count = 0

        async def get(self, key, prototype, byte_range=None):
            value = await super().get(key, prototype, byte_range)
            if value is not None and not key.endswith("zarr.json"):
                Counting.count += len(value)
            return value

        async def get_partial_values(self, prototype, key_ranges):
            values = await super().get_partial_values(prototype, key_ranges)
            Counting.count += sum(len(value) for value in values if value is not None)
            return values

    array = zarr.open_group(Counting(LocalStore(path, read_only=True)), mode="r")["reflectance"]
    found = {}
    for name, where in (
        ("64 x 64 window, all dates and bands", np.s_[:, :, 96:160, 96:160]),
        ("one date", np.s_[1]),
        ("one band, one date", np.s_[1, 3]),
        ("everything", np.s_[:]),
    ):
        Counting.count = 0
        array[where]
        found[name] = Counting.count
    return found


def throughput(workers: int, repeats: int) -> dict[str, object]:
    """Raw MB/s of TEC and OpenJPEG on 16 chunks (1, 12, 256, 256), with that many threads."""
    import torch

    from tec_zarr.codec.numcodecs_codec import TEC
    from tec_zarr.compare import classical

    torch.set_num_threads(1)
    cube = _cube().reflectance.values
    chunks = [
        np.ascontiguousarray(cube[t : t + 1, :, y : y + 256, x : x + 256])
        for t in range(4)
        for y in (0, 256)
        for x in (0, 256)
    ]
    tec = TEC(quality=4)
    codecs = {
        "tec": (tec.encode, tec.decode),
        "jpeg2000": (
            lambda chunk: classical.encode_jpeg2000(chunk, 58),
            lambda streams: classical.decode_jpeg2000(streams, (1, 12, 256, 256)),
        ),
    }
    raw = sum(chunk.nbytes for chunk in chunks) / 1e6
    row: dict[str, object] = {"threads": workers}
    with ThreadPoolExecutor(workers) as pool:
        for name, (encode, decode) in codecs.items():
            data = list(pool.map(encode, chunks))
            for what, work, items in (("encode", encode, chunks), ("decode", decode, data)):
                seconds = []
                for _ in range(repeats):
                    start = time.perf_counter()
                    list(pool.map(work, items))
                    seconds.append(time.perf_counter() - start)
                row[f"{name}_{what}_mb_s"] = float(f"{raw / min(seconds):.4g}")
    return row


CHILDREN: dict[str, Callable[..., dict[str, float]]] = {
    "import": _child_import,
    "open": _child_open,
    "first": _child_first,
    "memory": _child_memory,
    "peak": _child_peak,
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two repeats")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
