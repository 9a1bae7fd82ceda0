"""Coverage-guided fuzzing of one target with atheris.

    python tests/fuzz/run.py stream --runs 10000000 --out fuzz.json

Stops at the first input that takes more than five seconds, allocates more than allowed, or raises
something undocumented; the input is then in a file ``crash-...`` of the corpus folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

INSTRUMENTED = ("tec_zarr",)
LATER = {
    "weights": ["tec_zarr.stores.embed"],
    "manifest": ["tec_zarr.recompression.manifest"],
    "command_line": [
        "tec_zarr.face.cli",
        "tec_zarr.cubes.files",
        "tec_zarr.cubes.encoding",
        "tec_zarr.compare.tables",
    ],
}
LONGEST_INPUT = 1024
SECONDS = 5
INTERRUPTED = 72
"""What libFuzzer exits with when somebody stops it; the executions until then count."""

AT_ONCE = 2_000_000
"""Executions of one process: atheris itself keeps about half a kilobyte of each."""

MEMORY = 2**31
"""Bytes that the process may grow by: far below the terabytes that a frame can claim."""


def main() -> int:
    """Run atheris in a process of its own and note what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop earlier than --runs")
    parser.add_argument("--corpus", type=Path, help="folder that is kept (default: a new one)")
    parser.add_argument("--out", type=Path, help="JSON of results, one entry a target; adds up")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        _fuzz(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        corpus = arguments.corpus or Path(folder)
        corpus.mkdir(parents=True, exist_ok=True)
        start, executions, features = time.monotonic(), 0, ("", "0", "0")
        while True:
            left = 0
            if arguments.seconds:
                left = max(1, round(arguments.seconds - (time.monotonic() - start)))
            command = [sys.executable, __file__, "--inside", arguments.target, "--corpus",
                       str(corpus), "--runs", str(min(AT_ONCE, arguments.runs - executions)),
                       "--seconds", str(left)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = re.findall(r"#(\d+)\s+(?:DONE|\w+)\s+cov: (\d+) ft: (\d+)", done.stderr)
            counted = re.search(r"Done (\d+) (?:runs )?in", done.stderr)
            features = found[-1] if found else features
            executions += int(counted[1] if counted else features[0] or 0)
            late = arguments.seconds and time.monotonic() - start >= arguments.seconds
            if done.returncode or late or executions >= arguments.runs:
                break
        seconds = time.monotonic() - start
    tail = done.stdout[-3000:] + done.stderr[-1500:]
    result = {
        "target": arguments.target,
        "executions": executions,
        "seconds": round(seconds, 1),
        "edges": int(features[1]),
        "features": int(features[2]),
        "failures": int(done.returncode not in (0, INTERRUPTED)),
        "longest_input_bytes": LONGEST_INPUT,
        "timeout_seconds": SECONDS,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("atheris", "numpy", "constriction", "zarr")},
        },
    }
    print(json.dumps(result, indent=1))
    if result["failures"]:
        print(tail, file=sys.stderr)
    if arguments.out:
        results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        before = results.get(arguments.target, {})
        for name in ("executions", "seconds", "failures"):
            result[name] = round(result[name] + before.get(name, 0), 1)
        results[arguments.target] = result
        arguments.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    return int(bool(result["failures"]))


def _fuzz(arguments: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        sys.path.insert(0, str(Path(__file__).parent))
        import targets

        for name in LATER.get(arguments.target, ()):  # what a target imports when it is called
            importlib.import_module(name)
    targets.prepare()
    target, seeds = targets.TARGETS[arguments.target]
    for i, seed in enumerate(seeds()):
        (arguments.corpus / f"seed-{i:03d}").write_bytes(seed)
    target((arguments.corpus / "seed-000").read_bytes())  # whatever is loaded only once
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, resource.RLIM_INFINITY))
    atheris.Setup(
        [
            sys.argv[0], str(arguments.corpus), f"-runs={arguments.runs}", f"-timeout={SECONDS}",
            f"-max_total_time={arguments.seconds}", f"-max_len={LONGEST_INPUT}",
            f"-artifact_prefix={arguments.corpus}/", "-rss_limit_mb=4096",
        ],
        target,
    )  # fmt: skip
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
