"""What share of coding a GPU could take from the embedded models: where their CPU time goes.

    python benchmarks/core_share.py [--data DIR] [--out DIR] [--repeats N]

Linux with ``perf``. Encodes and decodes the seasonal cubes (the first date of each for the image
model, all dates for the others) on one core and one thread, and samples where the processor is.
Each sample belongs to one of three parts:

- **walk**: coefficients, one after the other. Context network and range coder (``walk.c``,
  ``context.c``);
- **arithmetic**: the rest of the core that looks at pixels or coefficients: transforms, spectral
  bases, prediction, search for grids, quantisation, and functions whose file is not found;
- **host**: Python, NumPy, the C library, the kernel, and the core's work on frames.

MB/s are of CPU time in turns without ``perf``. Writes ``core_share.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from environment import DATA, ROOT, commit, environment, scenes

from tec_zarr.codec.numcodecs_codec import TEC
from tec_zarr.models.registry import find_model
from tec_zarr.native import core

MODELS = ("tec-s2", "tec-tt-s2", "tec-flex-s2")
QUALITY = 4.0
SOURCES = ROOT / "tec_zarr" / "native"
WALK = ("walk.c", "context.c")
FRAMES = ("frame.c", "frame_series.c", "frame_values.c", "mask.c", "inflate.c")
SECONDS = 3.0
"""CPU time that ``perf`` samples, for each model and direction."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the file, print it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    cubes = [scene for scene in scenes(options.data) if scene.kind == "seasonal"]
    parts = part_of_function()
    rows = []
    for model in MODELS:
        chunks = [cube.dn[:1] if model == MODELS[0] else cube.dn for cube in cubes]
        codecs = [TEC(model=model, quality=QUALITY, bands=cube.bands) for cube in cubes]
        frames = [codec.encode(chunk) for codec, chunk in zip(codecs, chunks, strict=True)]

        def encode(codecs: list[TEC] = codecs, chunks: list = chunks) -> None:
            for codec, chunk in zip(codecs, chunks, strict=True):
                codec.encode(chunk)

        def decode(codecs: list[TEC] = codecs, frames: list[bytes] = frames) -> None:
            for codec, frame in zip(codecs, frames, strict=True):
                codec.decode(frame)

        megabytes = sum(chunk.nbytes for chunk in chunks) / 1e6
        for name, work in (("encode", encode), ("decode", decode)):
            work()
            seconds = statistics.median(timed(work) for _ in range(options.repeats))
            rows.append(
                {
                    "model": model,
                    "direction": name,
                    "weights_sha256": find_model(model).newest,
                    "mb_s": round(megabytes / seconds, 1),
                    "ratio": round(megabytes * 1e6 / sum(map(len, frames)), 1),
                    "share": shares(work, max(1, round(SECONDS / seconds)), parts),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    results = {
        **environment(),
        "commit": commit(),
        "kernel": core.kernels()[0],
        "quality": QUALITY,
        "load_average": os.getloadavg(),
        "rows": rows,
    }
    (options.out / "core_share.json").write_text(json.dumps(results, indent=1) + "\n")


def timed(work: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def part_of_function() -> dict[str, str]:
    """The part of each function of the core, by the file that defines it."""
    found = {}
    for path in SOURCES.glob("*.c"):
        part = "walk" if path.name in WALK else "host" if path.name in FRAMES else "arithmetic"
        for name in re.findall(r"^[A-Za-z][^(;=]*?\b(\w+)\(", path.read_text(), re.MULTILINE):
            found[name] = part
    return found


def shares(work: Callable[[], None], times: int, parts: dict[str, str]) -> dict[str, float]:
    """Sample this process while it works, and share the samples among the parts."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        perf = subprocess.Popen(
            ["perf", "record", "-q", "-F", "997", "-o", data, "-p", str(os.getpid())]
        )
        time.sleep(2)  # perf has attached
        for _ in range(times):
            work()
        perf.send_signal(signal.SIGINT)
        perf.wait()
        lines = subprocess.run(
            ["perf", "script", "-i", data, "-F", "ip,sym,dso"], capture_output=True, text=True,
            check=True,
        ).stdout.splitlines()  # fmt: skip
    counted: Counter[str] = Counter()
    for line in filter(str.strip, lines):
        symbol, _, library = line.strip().partition(" ")[2].rpartition(" ")
        name = symbol.split(".")[0].split("+")[0].strip()
        counted[parts.get(name, "arithmetic") if library.endswith("/_core.so)") else "host"] += 1
    total = sum(counted.values())
    return {part: round(counted[part] / total, 3) for part in ("walk", "arithmetic", "host")}


if __name__ == "__main__":
    main()
