"""The decoder in WebAssembly against the native one, and the page of ``tec-zarr view``.

    python benchmarks/browser.py [--first] [--out DIR]

``--first`` lets its processes and the browser's go before all others, where cores are shared
(Linux, as root). Needs ``make readers``, the npm packages of readers/js (``make readers-test``) and
Chromium.

Decoding: one chunk (4, 12, 256, 256) of the synthetic cube on one core, processor seconds, the
fewest of some repeats, native and WebAssembly in turn. The page: time from opening it until all
that the window shows is drawn, from a server on this machine, in a new browser each time. The large
store has 12 dates of 4096 x 4096 pixels: one cube of 1024 x 1024 whose objects are copied 15 times.
Writes ``browser.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr
from environment import ROOT, commit, environment

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.layout import rechunk

CODECS = {"quality=4": {}, "max_error=3": {"max_error": 3}}
REPEATS, SIDE, TILES = 8, 1024, 4


def main() -> None:
    """Measure both and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--first", action="store_true", help="go before all other processes")
    arguments = parser.parse_args()
    results: dict[str, object] = {
        "definition": __doc__.split("\n\n")[3],
        **environment(),
        "node": said(["node", "--version"]),
        "chromium": said(["chromium", "--version"]),
        "commit": commit(),
        "load_average_before": os.getloadavg(),
        "first": arguments.first,
    }
    with tempfile.TemporaryDirectory() as folder:
        if arguments.first:
            go_first(Path(folder))
        results["decoding"] = {name: decoding(Path(folder), name) for name in CODECS}
        print(json.dumps(results["decoding"], indent=1), flush=True)
        stores = {"demo": demo_store(Path(folder)), "large": large_store(Path(folder))}
        results["page"] = {name: page(path) for name, path in stores.items()}
        print(json.dumps(results["page"], indent=1), flush=True)
    results["load_average_after"] = os.getloadavg()
    (arguments.out / "browser.json").write_text(json.dumps(results, indent=1) + "\n")


def go_first(folder: Path) -> None:
    """Let this session and that of the browser, which the script opens, go before others."""
    Path("/proc/self/autogroup").write_text("-15")
    browser = os.environ.get("CHROMIUM", shutil.which("chromium"))
    script = folder / "chromium"
    script.write_text(f'#!/bin/sh\necho -15 > /proc/self/autogroup\nexec {browser} "$@"\n')
    script.chmod(0o755)
    os.environ["CHROMIUM"] = str(script)


def said(command: list[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def decoding(folder: Path, name: str) -> dict[str, float]:
    """Measure what one chunk takes, in processor seconds, and WebAssembly over native."""
    cube = synthetic.cube(dates=4, size=256, seed=7).values
    frame = tec_zarr.encode_chunk(cube, tec_zarr.ChunkSpec(**CODECS[name]))
    (folder / "frame.tec").write_bytes(frame)
    core = max(os.sched_getaffinity(0))
    native, wasm = [], []
    code = (
        "import { readFileSync } from 'node:fs';"
        f"import {{ decode }} from '{ROOT}/readers/js/index.js';"
        "const frame = readFileSync(process.argv[1]), times = [];"
        f"for (let i = 0; i < {2 * REPEATS}; i++) {{"
        "  const before = process.cpuUsage(); await decode(frame);"
        "  const { user, system } = process.cpuUsage(before);"
        "  times.push((user + system) / 1e6); }"
        "console.log(Math.min(...times));"
    )
    os.sched_setaffinity(0, {core})
    try:
        for _ in range(3):
            for _ in range(REPEATS):
                start = time.process_time()
                tec_zarr.decode_chunk(frame)
                native.append(time.process_time() - start)
            node = ["node", "--input-type=module", "-e", code, str(folder / "frame.tec")]
            wasm.append(float(said(node)))
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return {"native": min(native), "wasm": min(wasm), "ratio": min(wasm) / min(native)}


def demo_store(folder: Path) -> Path:
    """Write the store of ``tec-zarr demo``."""
    path = folder / "demo.zarr"
    ds = synthetic.dataset()
    ds.to_zarr(path, encoding=tec_zarr.encoding(ds))
    return path


def large_store(folder: Path, dates: int = 12) -> Path:
    """Write one region of a store with to_zarr, and copy its shards to all others."""
    path = folder / "large.zarr"
    ds = synthetic.dataset(dates=dates, size=SIDE)
    ds = rechunk(ds[["reflectance"]])
    whole = xr.concat([ds] * TILES, "x").pipe(lambda d: xr.concat([d] * TILES, "y"))
    steps = np.arange(SIDE * TILES) * 10.0
    whole = whole.assign_coords(x=float(ds.x[0]) + steps, y=float(ds.y[0]) - steps)
    settings = tec_zarr.encoding(whole)
    whole.to_zarr(path, encoding=settings, compute=False)
    first = {"time": slice(None), "y": slice(0, SIDE), "x": slice(0, SIDE)}
    ds.drop_vars([*ds.coords]).to_zarr(path, region=first)
    for shard in path.glob("reflectance/c/*/0/0/0"):
        for y in range(TILES):
            for x in range(TILES):
                target = shard.parents[1] / str(y) / str(x)
                target.parent.mkdir(exist_ok=True)
                if target != shard:
                    shutil.copy(shard, target)
    return path


def page(store: Path) -> dict[str, object]:
    """Open a store in the page some times; return seconds, bytes, requests and memory."""
    script = ROOT / "readers/js/test/first-picture.js"
    found = [json.loads(said(["node", str(script), str(store), sys.executable])) for _ in range(5)]
    middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
    return {**middle, "seconds_each": [run["seconds"] for run in found]}


if __name__ == "__main__":
    sys.exit(main())
