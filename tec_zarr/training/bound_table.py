"""Makes ``native/planes_table.h``: where the bound layer begins to learn.

    python -m tec_zarr.training.bound_table DIR

``DIR`` holds training cubes, ``*.npz`` with ``dn`` (T, C, H, W). Corners of them are encoded with
bounds of 0 to 100 DN, from chances of one half and equal weights. The mean of what was learnt is
where the next round begins; the last round's is written. Compile the core anew, then run
``python tests/make_golden.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tec_zarr.bounds import layer

CLASSES, NODES, ROWS, COLUMNS = 64, 64, 5, 15
BOUNDS = (0, 5, 20, 100)
ROUNDS = 3
SIDE, DATES, CUBES_OF_ONE_SOURCE = 192, 2, 4
TABLE = Path(__file__).parents[1] / "native" / "planes_table.h"
_STATES = CLASSES * (NODES + 1)


def corners(folder: Path) -> list[np.ndarray]:
    """The top-left corners of the first cubes of each source, int32 (T, C, H, W)."""
    out, seen = [], dict[str, int]()
    for path in sorted(folder.glob("*.npz")):
        source = path.name.split("__")[0]
        seen[source] = seen.get(source, 0) + 1
        if seen[source] <= CUBES_OF_ONE_SOURCE:
            with np.load(path) as cube:
                out.append(cube["dn"][:DATES, :, :SIDE, :SIDE].astype(np.int32))
    return out


def start() -> np.ndarray:
    """Where the first round begins, laid out as in ``planes.h``."""
    weights = np.zeros((ROWS, COLUMNS))
    for wide in range(ROWS):
        weights[wide, : 6 + 2 * wide] = 4096 / (3 + wide)
    states = np.full(_STATES, 32768)
    return np.concatenate([states, 0 * states, weights.ravel()]).astype(np.int32)


def learn(cubes: list[np.ndarray], begin: np.ndarray) -> np.ndarray:
    """The mean of what encoding each cube with each bound learns, laid out likewise."""
    sums, times = np.zeros(_STATES), np.zeros(_STATES)
    weights, counted = np.zeros((ROWS, COLUMNS)), np.zeros((ROWS, 1))
    for cube in cubes:
        for bound in BOUNDS:
            learnt = begin.copy()
            layer.code(cube, cube > 0, [bound] * cube.shape[1], learnt)
            ones, often, row = np.split(learnt.astype(np.int64), [_STATES, 2 * _STATES])
            sums, times = sums + ones * often, times + often
            row, before = (a.reshape(ROWS, COLUMNS) for a in (row, begin[2 * _STATES :]))
            used = (row != before).any(1, keepdims=True)
            weights, counted = weights + row * used, counted + used
    # A state that was updated less than once each time counts as one half that often.
    few = max(len(cubes), 1)
    states = np.rint((sums + 32768 * few) / (times + few))
    mean = np.where(
        counted > 0, weights / np.maximum(counted, 1), begin[2 * _STATES :].reshape(ROWS, COLUMNS)
    )
    return np.concatenate([states, 0 * states, np.rint(mean).ravel()]).astype(np.int32)


def _rows(values: np.ndarray, indent: str) -> str:
    parts = [", ".join(map(str, values[i : i + 16])) for i in range(0, len(values), 16)]
    return (",\n" + indent).join(parts)


def write(learnt: np.ndarray, path: Path) -> None:
    """Write the table as C."""
    states = np.clip(learnt[: CLASSES * NODES], 48, 65488).reshape(CLASSES, NODES)
    corrections = np.clip(learnt[CLASSES * NODES : _STATES], 48, 65488)[:27]
    weights = learnt[2 * _STATES :].reshape(ROWS, COLUMNS)
    classes = ",\n".join("    {" + _rows(row, "     ") + "}" for row in states)
    rows = ",\n".join("    {" + ", ".join(map(str, row)) + "}" for row in weights)
    path.write_text(
        "/* Where planes.c begins to learn. Made by `python -m tec_zarr.training.bound_table`. */\n"
        "static const uint16_t FIRST_BITS[SCALES][64] = {\n"
        "    /* for each class: of a residual of zero; then of nodes 1 to 63 of its magnitude */\n"
        f"{classes},\n}};\n\n"
        "static const uint16_t FIRST_CORRECTIONS[27] = { /* of no correction */\n"
        f"    {_rows(corrections, '    ')},\n}};\n\n"
        "static const int32_t FIRST_WEIGHTS[WIDE + 1][FEATURES + 1] = {\n"
        f"{rows},\n}};\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, metavar="DIR", help="training cubes, *.npz")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    cubes, learnt = corners(arguments.folder), start()
    for number in range(ROUNDS):
        learnt = learn(cubes, learnt)
        print(f"round {number + 1} of {ROUNDS}: {len(cubes)} cubes", flush=True)
    write(learnt, arguments.out)


if __name__ == "__main__":
    main()
