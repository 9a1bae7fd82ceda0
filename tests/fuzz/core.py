"""Fuzzing of the compiled core with libFuzzer, under address and undefined-behaviour sanitizers.

    python tests/fuzz/core.py --seconds 60 --out fuzz_core.json

Builds ``core.c`` with clang and runs its targets one after the other, each for ``--seconds``. The
corpora stay in ``--work``; the results add up. Stops at the first input that a target does not
survive; the input is then in a file ``crash-...`` of the target's corpus.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import struct
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from tec_zarr.errors import TecError
from tec_zarr.frame.frame import SectionKind, read_frame

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tec_zarr" / "native"
FIXTURES = ROOT / "tests" / "fixtures"
TARGETS = ("header", "inflate", "points", "mask", "grid", "weights", "section", "series", "bound",
           "frame", "encode")  # fmt: skip
FLAGS = ("-g -O2 -std=c11 -ffp-contract=off -fno-math-errno -fwrapv -Wno-psabi "
         "-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined")  # fmt: skip
LONGEST_INPUT = 2048
SECONDS = 10
"""What a target may take for one input."""


def main() -> int:
    """Build, run, and note what libFuzzer says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fuzz-core")
    parser.add_argument("--out", type=Path, help="JSON of results, one entry a target; adds up")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    program = work / "core"
    sources = [str(Path(__file__).with_suffix(".c")), *map(str, sorted(NATIVE.glob("*.c")))]
    command = ["clang", *FLAGS.split(), "-I", str(NATIVE), "-o", str(program), *sources, "-lm"]
    subprocess.run(command, check=True)
    seeds = made_seeds()
    for target in arguments.targets:
        corpus = work / target
        corpus.mkdir(exist_ok=True)
        for number, seed in enumerate(seeds.get(target, [])):
            (corpus / f"seed-{number:03d}").write_bytes(seed)
        result, failed = run(program, target, corpus, arguments.seconds)
        print(json.dumps(result), flush=True)
        if arguments.out:
            results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
            before = results.get(target, {})
            for name in ("executions", "seconds"):
                result[name] += before.get(name, 0)
            results[target] = result
            arguments.out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        if failed:
            print(failed, file=sys.stderr)
            return 1
    return 0


def run(program: Path, target: str, corpus: Path, seconds: int) -> tuple[dict, str]:
    """Fuzz one target; return the result, and what libFuzzer printed if the target failed."""
    environment = os.environ | {"TEC_FUZZ": target, "TEC_FUZZ_WEIGHTS": str(newest_weights())}
    command = [
        str(program), str(corpus), f"-max_total_time={seconds}", f"-timeout={SECONDS}",
        f"-max_len={LONGEST_INPUT}", f"-artifact_prefix={corpus}/", "-rss_limit_mb=2048",
        "-malloc_limit_mb=512", "-print_final_stats=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
    seen = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    version = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True)
    result = {
        "target": target,
        "executions": int(counted[1]) if counted else 0,
        "seconds": seconds,
        "edges": int(seen[-1][0]) if seen else 0,
        "features": int(seen[-1][1]) if seen else 0,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "compiler": version.stdout.splitlines()[0],
    }
    return result, done.stderr[-6000:] if done.returncode else ""


def newest_weights() -> Path:
    """The weights file that frames are written with."""
    folder = ROOT / "tec_zarr" / "models" / "weights"
    index = json.loads((folder / "index.json").read_text())
    return folder / index["tec-s2"]["weights"][0]["file"]


def made_seeds() -> dict[str, list[bytes]]:
    """Golden frames and their sections, as inputs of the targets."""
    seeds: dict[str, list[bytes]] = {target: [] for target in TARGETS}
    seeds["weights"] = [b"\x01" + newest_weights().read_bytes()[:LONGEST_INPUT], b"\x00" + bytes(8)]
    for path in sorted(FIXTURES.glob("tec-*/*/*.tec")):
        data = path.read_bytes()
        if len(data) > LONGEST_INPUT:
            continue
        seeds["frame"] += [b"\x11" + data]
        try:
            frame = read_frame(data)
        except TecError:
            continue
        seeds["header"].append(data[: frame.header_bytes])
        head = frame.header
        size = (
            bytes(n - 1 for n in head.shape[1:]) if max(head.shape[1:]) <= 32 else b"\x0b\x1f\x1f"
        )
        size += struct.pack("<H", round(4096 * head.quality) - 4096)
        first = bytes([min(n, 40) - 1 for n in head.shape])
        payloads = {kind: frame.payloads(kind) for kind in SectionKind}
        latents = payloads[SectionKind.LATENTS]
        if head.model_id == 1:
            seeds["section"] += [size + section for section in latents]
        elif latents:
            pieces = b"".join(struct.pack("<H", len(section)) + section for section in latents)
            choice = 0 if head.model_id == 2 else 2
            seeds["series"].append(bytes([choice, len(latents) - 1]) + size + b"\xff\xff" + pieces)
        for mask in payloads[SectionKind.MASK]:
            exact = b"".join(payloads[SectionKind.EXACT])
            seeds["mask"].append(first + b"\x00" + struct.pack("<H", len(mask)) + mask + exact)
            seeds["inflate"].append(struct.pack("<H", 1000) + mask)
        seeds["points"] += [first + b"\x00" + points for points in payloads[SectionKind.POINTS]]
        for layer in payloads[SectionKind.BOUND]:
            shape = bytes([head.shape[0] - 1, 2, *(n - 1 for n in head.shape[2:])])
            kinds = b"\x01\x05\x00\x00" * 3
            maps = b"".join(payloads[SectionKind.BOUND_MAP])
            seeds["bound"].append(
                shape + kinds + b"\x00" + struct.pack("<H", len(maps)) + maps + layer
            )
    for way in range(0, 64, 3):
        seeds["encode"].append(
            bytes([3, 29, 31, 0, 40 + way, way, 9 * way % 256, way % 2]) + bytes(range(50, 120))
        )
        seeds["grid"].append(bytes([way % 2, way % 7, 1, 1, 30, 25, way]) + bytes(range(200)))
    return seeds


if __name__ == "__main__":
    sys.exit(main())
