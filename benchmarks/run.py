"""Everything that docs/benchmarks.md says, measured again in one run: ``make bench``.

    python benchmarks/run.py [--quick] [--only STEP ...] [--reference-python REFENV/bin/python]

A full run takes most of an hour on two idle cores and ends with the pages (``report.py``). What
only counts bytes runs two programs at a time, each on one thread; whatever takes a time or a peak
of memory runs alone. A step that fails costs the others nothing: its results stay those of an
earlier run, the pages say so, and the exit code is not 0. ``--quick`` takes corners and few levels
and writes into ``build/bench`` only. Everything that a step prints is in ``build/bench/logs``.
Writes ``run.json``: when, where, with which weights, how long each step took.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from environment import DATA, ROOT, commit, environment

HERE = Path(__file__).resolve().parent
RESULTS, QUICK = HERE / "results", ROOT / "build" / "bench"
LOGS = QUICK / "logs"
LIMIT = 30 * 60
"""Seconds after which a step is ended: whatever it waits for will not come."""
SLOTS = 2
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Step:
    """One program.

    Attributes
    ----------
    name : str
        Of the program, and of its results.
    slots : int
        2: alone on the machine, or with two threads of its own.
    arguments, quick : tuple of str
        Of a full run, and of a quick one.
    threads : bool
        Whether libraries may use all cores.
    """

    name: str
    slots: int
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    threads: bool = False


STEPS = (
    Step("rate_distortion", 2, ("--jobs", "2"), ("--quick", "--jobs", "2")),
    Step("temporal", 1, quick=("--quick", "--docs", str(QUICK / "temporal.md"))),
    Step("bounded", 1),
    Step("downstream", 1),
    Step("demo", 2, quick=(), threads=True),
    Step("speed", 2, quick=("--repeats", "2", "--psnr", "42")),
    Step("system", 2, threads=True),
    Step("reference_speed", 2, ("--dates", "2"), ("--models", "fp", "--dates", "1"), threads=True),
    Step("recompress", 2, quick=("--gigabytes", "0.05"), threads=True),
)
"""In this order; the long ones that can share the machine first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, write ``run.json`` and, after a full run, the pages."""
    options = _parse(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = QUICK if options.quick else RESULTS
    steps = [s for s in STEPS if not options.only or s.name in options.only]
    if not options.reference_python:
        steps = [s for s in steps if s.name != "reference_speed"]
        print("reference_speed is left out: it needs --reference-python", flush=True)
    cubes = len(list(DATA.glob("*.npz")))
    print(f"{cubes} evaluation cubes in {DATA}" if cubes else
          f"NO evaluation cubes in {DATA}: a synthetic one instead", flush=True)  # fmt: skip
    LOGS.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, options)
    run.all(steps)
    failed = [name for name, entry in run.entries.items() if not entry["ok"]]
    if not options.quick:
        failed += ["report"] * bool(subprocess.call([sys.executable, str(HERE / "report.py")]))
    for name, entry in run.entries.items():
        print(f"{name:16} {entry['seconds']:6.0f} s  {'' if entry['ok'] else 'FAILED'}")
    print(f"{'all':16} {run.seconds():6.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}; see {LOGS}")
    return int(bool(failed))


class Run:
    """Steps that share two slots, and the record of them."""

    def __init__(self, out: Path, options: argparse.Namespace) -> None:
        from tec_zarr.models.registry import find_model

        self.out, self.quick, self.reference = out, options.quick, options.reference_python
        self.single = bool(options.only)
        self.began = time.monotonic()
        self.entries: dict[str, dict] = {}
        self._free = SLOTS
        self._running: set[subprocess.Popen] = set()
        self._changed = threading.Condition()
        self.record = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            **environment(),
            "load_average_before": os.getloadavg(),
            "weights_sha256": {name: find_model(name).weights[0] for name in
                               ("tec-s2", "tec-tt-s2")},
        }  # fmt: skip

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.began

    def all(self, steps: Sequence[Step]) -> None:
        """Run every step, in order, as slots become free."""
        threads = []
        try:
            for step in steps:
                with self._changed:
                    self._changed.wait_for(lambda step=step: self._free >= step.slots)
                    self._free -= step.slots
                threads.append(threading.Thread(target=self._one, args=(step,)))
                threads[-1].start()
            for thread in threads:
                thread.join()
        finally:  # nothing goes on when somebody ends this
            for process in tuple(self._running):
                _end(process)

    def _one(self, step: Step) -> None:
        began = time.monotonic()
        self._say(step.name, "begins")
        try:
            code = self._call(step)
        finally:
            with self._changed:
                self._free += step.slots
                self._changed.notify_all()
        seconds = time.monotonic() - began
        with self._changed:
            self.entries[step.name] = {"ok": code == 0, "seconds": round(seconds, 1)}
            self._write()
        self._say(step.name, f"done in {seconds:.0f} s" if code == 0 else f"FAILED ({code})")

    def _write(self) -> None:
        """Keep what was done; of single steps (``--only``) in the record of their commit only."""
        path = self.out / ("run_quick.json" if self.quick else "run.json")
        record = {**self.record, "seconds": round(self.seconds(), 1), "steps": self.entries}
        if self.single:
            before = json.loads(path.read_text()) if path.exists() else {}
            if before.get("commit") != record["commit"]:
                return
            record = {**before, "steps": {**before["steps"], **self.entries}}
        partial = path.with_suffix(".partial")  # whoever ends this must not find half a record
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)

    def _call(self, step: Step) -> int:
        command = [sys.executable, "-u", "-W", "ignore", str(HERE / f"{step.name}.py")]
        command += [*(step.quick if self.quick else step.arguments), "--out", str(self.out)]
        if step.name == "reference_speed":
            command += ["--reference-python", str(self.reference)]
        environment = os.environ | ({} if step.threads else ONE_THREAD)
        with (LOGS / f"{step.name}.log").open("w") as log:
            log.write(" ".join(command) + "\n")
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
            timer = threading.Timer(LIMIT, _end, (process,))
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                if line.strip():
                    self._say(step.name, line.rstrip()[:110])
            code = process.wait()
            timer.cancel()
            self._running.discard(process)
            return code

    def _say(self, name: str, text: str) -> None:
        minutes, seconds = divmod(int(self.seconds()), 60)
        sys.stdout.write(f"{minutes:3}:{seconds:02} {name:16} {text}\n")  # one write: two threads
        sys.stdout.flush()


def _end(process: subprocess.Popen) -> None:
    """End a program and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="corners, few levels: minutes")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS])
    parser.add_argument("--reference-python", help="python of the reference's environment")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
