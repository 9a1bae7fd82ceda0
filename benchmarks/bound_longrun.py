"""Try the bound on very many pixels: random arrays of every awkward kind and real scenes.

    python benchmarks/bound_longrun.py --pixels 1e9 [--seed 0] [--out benchmarks/results/...]

Stops at the first violation with what is needed to repeat it; otherwise writes how many valid
pixels were tried, per bound and per kind. The file is updated as it goes and a run continues from
it, so that it may be stopped and resumed.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np

from tec_zarr.bounds import layer

BOUNDS = (0, 1, 5, 10, 50, 200)
HERE = Path(__file__).resolve().parents[1]


def smooth(rng, shape):
    y, x = np.mgrid[: shape[2], : shape[3]]
    relief = np.sin(y / rng.uniform(3, 40)) * np.cos(x / rng.uniform(3, 40))
    gains = rng.uniform(-2000, 2000, shape[:2])[..., None, None]
    return 3000 + gains * relief + rng.normal(0, rng.uniform(0.3, 60), shape)


def synthetic(rng, kind, shape):
    """One array of this kind, int32."""
    array = {
        "noise-uint16": lambda: rng.integers(0, 1 << 16, shape),
        "noise-int16": lambda: rng.integers(-(1 << 15), 1 << 15, shape),
        "noise-int32": lambda: rng.integers(-(1 << 31), 1 << 31, shape),
        "constant": lambda: np.full(shape, rng.integers(0, 1 << 16)),
        "checkerboard": lambda: np.indices(shape).sum(0) % 2 * rng.integers(1, 1 << 16),
        "hot-pixels": lambda: rng.integers(0, 50, shape) + 65000 * (rng.random(shape) < 1e-4),
        "smooth": lambda: smooth(rng, shape),
        "repeated": lambda: np.kron(
            rng.integers(0, 9000, (*shape[:2], -(-shape[2] // 2), -(-shape[3] // 2))),
            np.ones((1, 1, 2, 2), np.int64),
        )[:, :, : shape[2], : shape[3]],
    }[kind]()
    return np.rint(array).astype(np.int32)


KINDS = (
    "real",
    "noise-uint16",
    "noise-int16",
    "noise-int32",
    "constant",
    "checkerboard",
    "hot-pixels",
    "smooth",
    "repeated",
)


def real(rng, paths):
    with np.load(paths[rng.integers(len(paths))]) as cube:
        array = cube["dn"]
    date = rng.integers(len(array))
    size = [min(s, 256) for s in array.shape[2:]]
    top, left = (rng.integers(0, s - n + 1) for s, n in zip(array.shape[2:], size, strict=True))
    return array[date : date + 1, :, top : top + size[0], left : left + size[1]].astype(np.int32)


def trial(seed, paths):
    """One round trip; returns (kind, bounds, violations, valid pixels of each band)."""
    rng = np.random.default_rng(seed)
    kinds = KINDS if paths else KINDS[1:]
    kind = kinds[0] if paths and rng.random() < 0.6 else kinds[rng.integers(1, len(kinds))]
    side = [1, 7, 100, 256, 512][rng.integers(5)]
    shape = (1, int(rng.integers(1, 5)), side, int(rng.integers(1, 513)))
    original = real(rng, paths) if kind == "real" else synthetic(rng, kind, shape)
    bounds = rng.choice(BOUNDS, original.shape[1]).tolist()
    valid = original != 0 if kind == "real" else None
    if valid is None and rng.random() < 0.3:
        valid = rng.random(original.shape) > rng.random()
    data = layer.encode(original, valid, bounds)
    decoded = layer.decode(data, valid, original.shape, bounds)
    error = np.abs(decoded.astype(np.int64) - original)
    wrong = error > np.asarray(bounds)[None, :, None, None]
    used = np.ones_like(wrong) if valid is None else valid
    return kind, bounds, int((wrong & used).sum()), used.sum(axis=(0, 2, 3)).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=HERE.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=HERE / "benchmarks/results/bound_longrun.json")
    arguments = parser.parse_args()
    paths = sorted(arguments.data.glob("*/*.npz"))
    report = {
        "pixels": 0,
        "trials": 0,
        "violations": 0,
        "per_bound": {},
        "per_kind": {},
        "first_seed": arguments.seed,
    }
    if arguments.out.exists():
        report = json.loads(arguments.out.read_text())
    report["machine"] = f"{platform.machine()} {platform.platform()} numpy {np.__version__}"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    while report["pixels"] < arguments.pixels:
        seed = report["first_seed"] + report["trials"]
        kind, bounds, wrong, pixels = trial(seed, paths)
        report["trials"] += 1
        report["pixels"] += sum(pixels)
        report["violations"] += wrong
        report["per_kind"][kind] = report["per_kind"].get(kind, 0) + sum(pixels)
        for value, count in zip(bounds, pixels, strict=True):
            report["per_bound"][str(value)] = report["per_bound"].get(str(value), 0) + count
        if report["trials"] % 20 == 0 or wrong:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        if wrong:
            raise SystemExit(f"seed {seed}: {wrong} pixels beyond their bound")
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
