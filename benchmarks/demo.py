"""What ``make demo`` prints, kept for docs/install.md: python benchmarks/demo.py [--out DIR].

Runs ``tec-zarr demo`` as a user would, in a process of its own, and writes ``demo.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import ROOT, commit, environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tec_zarr.face.cli", "demo", "--out", "demo-out"]
        printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    results = {**environment(), "commit": commit(), "printed": printed.stdout.splitlines()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
