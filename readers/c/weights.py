"""Write the weights of the core's models as a C file, which readers are linked with.

    python weights.py WEIGHTS_FOLDER OUT.c

The folder has an ``index.json``, as ``tec_zarr/models/weights`` has. Weights whose loader is of the
room ``models/`` are those that the core decodes; others stay out.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

HEAD = """/* Made by readers/c/weights.py: weights of the core's models, and the names in frames. */
#include "models.h"
"""


class Weights(NamedTuple):
    """A weights file: name of its model, path, SHA-256 in hex."""

    model: str
    file: Path
    sha256: str


def core_weights(folder: Path) -> list[Weights]:
    """Return all weights that the core decodes.

    Raises
    ------
    ValueError
        A file is not the one whose SHA-256 the index has.
    """
    found = []
    for model, entry in json.loads((folder / "index.json").read_text()).items():
        for weights in entry["weights"]:
            if not weights.get("loader", entry["loader"]).startswith("tec_zarr.models."):
                continue
            file = folder / weights["file"]
            if hashlib.sha256(file.read_bytes()).hexdigest() != weights["sha256"]:
                raise ValueError(f"{file} does not have the SHA-256 of index.json")
            found.append(Weights(model, file, weights["sha256"]))
    return found


def source(files: list[Weights]) -> str:
    """Return the C file."""
    parts, entries = [HEAD], []
    for number, (model, file, sha256) in enumerate(files):
        data = file.read_bytes()
        lines = (",".join(map(str, data[i : i + 32])) for i in range(0, len(data), 32))
        parts.append(f"static const uint8_t file_{number}[] = {{\n" + ",\n".join(lines) + "};\n")
        start = ", ".join(map(str, bytes.fromhex(sha256)[:8]))
        entries.append(f'    {{"{model}", {{{start}}}, file_{number}, sizeof file_{number}}},')
    return "\n".join([*parts, "const TecWeights tec_weights[] = {", *entries, "    {0},", "};\n"])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(source(core_weights(Path(sys.argv[1]))))
