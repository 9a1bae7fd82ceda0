"""Memory of chunks in flight and of 10,000 chunks one after the other; the page of all results.

    python benchmarks/robustness.py                 # measure, and write the page
    python benchmarks/robustness.py --again hostile # one measure once more, and the page
    python benchmarks/robustness.py --page          # the page alone

Results are in ``results/robustness.json``; those of ``make fuzz`` in ``results/fuzz.json``,
those of ``make fuzz-core`` in ``results/fuzz_core.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from environment import environment
from matrix import ROWS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "robustness.md"
MIB = 2**20


def rss() -> int:
    """Resident bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def cube(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth DN with noise."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(500, 3000, shape[-2])[:, None]
    return (ramp + rng.normal(0, 60, shape)).clip(1).astype("u2")


def in_flight(threads: int) -> dict[str, float]:
    """Peak of a process that encodes and decodes default chunks in so many threads."""
    from tec_zarr.codec.decode import decode_chunk
    from tec_zarr.codec.encode import encode_chunk

    chunk = cube((4, 12, 256, 256))
    small = encode_chunk(cube((1, 12, 64, 64)))
    decode_chunk(small)
    gc.collect()
    idle, most, done = rss(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], rss())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(threads) as pool:
        frames = list(pool.map(lambda _: encode_chunk(chunk), range(threads)))
        encoding = most[0]
        most[0] = 0
        list(pool.map(lambda f: decode_chunk(f).sum(), frames))
    done.set()
    watcher.join()
    return {
        "threads": threads, "idle_mib": idle / MIB, "encoding_mib": (encoding - idle) / MIB,
        "decoding_mib": (most[0] - idle) / MIB, "chunk_mib": chunk.nbytes / MIB,
    }  # fmt: skip


def leak(chunks: int) -> dict[str, float]:
    """Growth of a process over many small chunks of the default model, encoded and decoded."""
    from tec_zarr.codec.decode import decode_chunk
    from tec_zarr.codec.encode import encode_chunk

    arrays = [cube((1, 12, 16, 16), seed) for seed in range(8)]

    def some(count: int) -> None:
        for i in range(count):
            decode_chunk(encode_chunk(arrays[i % len(arrays)]))

    some(chunks // 10)
    gc.collect()
    before, start = rss(), time.process_time()
    some(chunks)
    gc.collect()
    return {
        "chunks": chunks, "grown_mib": (rss() - before) / MIB, "rss_mib": rss() / MIB,
        "cpu_seconds": time.process_time() - start,
    }  # fmt: skip


def hostile() -> list[dict[str, float | str]]:
    """What decoding the largest frames that a few bytes can claim takes."""
    import dataclasses
    import tracemalloc
    import warnings

    from tec_zarr import config
    from tec_zarr.codec.decode import decode_chunk
    from tec_zarr.codec.encode import encode_chunk
    from tec_zarr.codec.spec import ChunkSpec
    from tec_zarr.errors import TecError
    from tec_zarr.frame.frame import Section, SectionKind, read_frame, write_frame
    from tec_zarr.frame.mask import Mask, pack_mask

    warnings.simplefilter("ignore")
    side = 1024
    shape = (1, 4, side, side)
    one = np.full(shape, 7, "u2")
    plain = encode_chunk(one)
    labels = np.full(shape, 31, "u1")
    labels[0, 0, 0, 0] = 1
    packed, _ = pack_mask(Mask(labels, np.arange(1, 32, dtype="u2"), np.empty(0, "u2")))
    header = read_frame(plain).header
    terabyte = dataclasses.replace(header, shape=(1, 1, 2**20, 2**19), bands=None)
    noise = np.random.default_rng(0).integers(30_000, 60_000, shape).astype("u2")
    lossless = ChunkSpec(max_error=0)
    cases = {
        "claims a terabyte": write_frame(terabyte, read_frame(plain).sections),
        "one value": plain,
        "mask of 32 labels, inflated": write_frame(header, [Section(SectionKind.MASK, packed)]),
        "every sample listed exactly": encode_chunk(noise),
        "bound layer (max_error=0)": encode_chunk(cube(shape), lossless),
        "bound layer, one band": encode_chunk(cube((1, 1, side, side)), lossless),
        "bound layer, default chunk": encode_chunk(cube((4, 12, 256, 256)), lossless),
    }
    assert config.MAX_CHUNK_SAMPLES < 2**39
    rows = []
    for name, frame in cases.items():
        start = time.process_time()
        tracemalloc.start()
        try:
            size = decode_chunk(frame).nbytes
        except TecError:
            size = 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append({
            "frame": name, "frame_bytes": len(frame), "chunk_mib": size / MIB,
            "peak_mib": peak / MIB, "cpu_seconds": time.process_time() - start,
        })  # fmt: skip
    return rows


MEASURES = {
    "in_flight_1": lambda: in_flight(1),
    "in_flight_4": lambda: in_flight(4),
    "in_flight_32": lambda: in_flight(32),
    "leak": lambda: leak(10_000),
    "hostile": hostile,
}


def page() -> str:
    """``docs/robustness.md``: the fixed text of ``robustness.txt`` with the numbers filled in."""
    results = json.loads((RESULTS / "robustness.json").read_text())
    fuzz = json.loads((RESULTS / "fuzz.json").read_text())
    core = json.loads((RESULTS / "fuzz_core.json").read_text())
    leaked = results.get("leak")
    flights = [results[k] for k in ("in_flight_1", "in_flight_4", "in_flight_32")]
    machine = next(iter(fuzz.values()))
    fields = {
        "fuzz": _table(
            ("target", "executions", "seconds", "branches reached", "crashes, hangs, oversize"),
            [(t, f"{r['executions']:,.0f}", f"{r['seconds']:,.0f}", r["edges"], r["failures"])
             for t, r in sorted(fuzz.items(), key=lambda i: -i[1]["executions"])],
        ),
        "fuzz_machine": f"{machine['date']}, {machine['machine']}, " + ", ".join(
            f"{k} {v}" for k, v in machine["versions"].items()),
        "fuzz_core": _table(
            ("target", "executions", "seconds", "branches reached"),
            [(t, f"{r['executions']:,}", f"{r['seconds']:,}", r["edges"])
             for t, r in sorted(core.items(), key=lambda i: -i[1]["executions"])],
        ),
        "core_executions": f"{sum(r['executions'] for r in core.values()):,}",
        "core_machine": ", ".join(
            next(iter(core.values()))[name] for name in ("date", "machine", "compiler")),
        "in_flight": _table(
            ("threads", "idle process", "encoding, above idle", "decoding, above idle"),
            [(f["threads"], *(f"{f[k]:.0f} MiB" for k in
                              ("idle_mib", "encoding_mib", "decoding_mib"))) for f in flights],
        ),
        "leak": f"{leaked['chunks']:,} chunks: {leaked['grown_mib']:.1f} MiB more than before, of "
                f"{leaked['rss_mib']:.0f} MiB." if leaked else "Not measured yet.",
        "hostile": _table(
            ("frame", "bytes", "chunk", "peak", "peak / chunk", "CPU"),
            [(h["frame"], f"{h['frame_bytes']:,}", f"{h['chunk_mib']:.0f} MiB",
              f"{h['peak_mib']:.2f} MiB",
              f"{h['peak_mib'] / h['chunk_mib']:.1f}" if h["chunk_mib"] else "refused",
              f"{h['cpu_seconds']:.2f} s") for h in results["hostile"]],
        ),
        "matrix": matrix(),
        "environment": json.dumps(results["environment"]),
    }  # fmt: skip
    text = (HERE / "robustness.txt").read_text()
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text


def matrix() -> str:
    """The table of what ``matrix.py`` found."""
    results = json.loads((RESULTS / "matrix.json").read_text())
    rows: list[tuple] = []
    for planned in ROWS:
        row = results.get(planned.name)
        if row is None:
            words = planned.packages, "", "", ""
            rows.append((planned.python, *words, planned.pipeline, "not run", "", "", ""))
            continue
        found = [row["versions"][n] for n in ("python", "zarr", "numcodecs", "xarray", "numpy")]
        counts = f"{row['passed']:,}", row["skipped"], row["failed"]
        rows.append((*found, row["pipeline"], row["tests"], *counts))
    return _table(
        ("Python", "zarr", "numcodecs", "xarray", "NumPy", "pipeline", "tests", "passed", "skipped",
         "failed"), rows,
    )  # fmt: skip


def _table(columns: tuple, rows: list[tuple]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    """Measure each in a process of its own, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    parser.add_argument("--again", choices=MEASURES, help="measure this only, keep the others")
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(MEASURES[arguments.one]()))
        return
    if not arguments.page:
        results = {"environment": environment()}
        if arguments.again:
            results = json.loads((RESULTS / "robustness.json").read_text())
        for name in [arguments.again] if arguments.again else MEASURES:
            done = subprocess.run(
                [sys.executable, __file__, "--one", name], capture_output=True, text=True,
                check=True,
            )  # fmt: skip
            results[name] = json.loads(done.stdout)
            print(name, results[name])
        text = json.dumps(results, indent=1, sort_keys=True)
        (RESULTS / "robustness.json").write_text(text + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
