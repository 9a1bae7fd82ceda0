"""Make the wheels of all platforms and the sdist on this machine: ``make wheels``.

    python .ci/wheels.py [--only TAG ...] [--out dist]

Needs the packages hatchling and ziglang. `hatch_build.TARGETS` lists the platforms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hatch_build import TARGETS  # noqa: E402


def main() -> None:
    """Build what was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TAG",
                        help=f"platforms: {', '.join(TARGETS)} (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder (default: dist)")
    arguments = parser.parse_args()
    build("sdist", arguments.out)
    for tag in arguments.only:
        build("wheel", arguments.out, tag)


def build(kind: str, out: Path, tag: str = "") -> None:
    """Let hatchling build one file. A wheel's platform reaches the build hook by environment."""
    print(f"{kind} {tag}", flush=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)],
        cwd=ROOT, check=True, env={**os.environ, "TEC_ZARR_TARGET": tag},
    )  # fmt: skip


if __name__ == "__main__":
    main()
