"""Make the conformance kit: what a writer of another reader needs, in one folder.

    python readers/kit/make.py dist/tec-conformance

The folder stands alone. It has the golden streams of all weights that the core decodes, what they
decode to, streams that a reader has to refuse, the weights, the pages of the format, and the core
with a program that decodes one frame.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tec_zarr.frame.frame import read_frame

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "c"))

from weights import Weights, core_weights, source  # noqa: E402

NATIVE, WEIGHTS = ROOT / "tec_zarr/native", ROOT / "tec_zarr/models/weights"
GOLDEN = ROOT / "tests/fixtures"
PAGES = [*sorted((ROOT / "docs").glob("format*.md")), ROOT / "docs/error-bounds.md"]


def make(kit: Path) -> None:
    """Write the kit; an older one is replaced."""
    shutil.rmtree(kit, ignore_errors=True)
    for name in ("c", "format", "weights", "streams", "refused"):
        (kit / name).mkdir(parents=True)
    for file in [HERE / "README.md", HERE / "check.py", ROOT / "LICENSE"]:
        shutil.copy(file, kit)
    for page in PAGES:
        shutil.copy(page, kit / "format")
    files = core_weights(WEIGHTS)
    for weights in files:
        shutil.copy(weights.file, kit / "weights")
    for file in [*NATIVE.glob("*.[ch]"), *(HERE.parent / "c").glob("*.[ch]")]:
        shutil.copy(file, kit / "c")
    (kit / "c/embedded.c").write_text(source(files))
    streams = [entry for weights in files for entry in golden(kit, weights)]
    manifest = {"streams": streams, "refused": list(refused(kit, streams))}
    (kit / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def golden(kit: Path, weights: Weights) -> Iterator[dict[str, Any]]:
    """Copy the golden streams of a weights file and their pixels, and yield their entries."""
    model, _, sha256 = weights
    folder = GOLDEN / model / sha256[:16]
    with np.load(folder / "pixels.npz") as stored:
        for name in sorted(stored.files):
            frame, pixels = (folder / f"{name}.tec").read_bytes(), stored[name]
            header = read_frame(frame).header
            samples = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
            path = f"streams/{model}-{sha256[:8]}-{name}"
            (kit / f"{path}.tec").write_bytes(frame)
            (kit / f"{path}.raw").write_bytes(samples)
            yield {
                "frame": f"{path}.tec", "frame_sha256": digest(frame),
                "samples": f"{path}.raw", "samples_sha256": digest(samples),
                "shape": header.shape4, "dtype": header.dtype.name,
                "model": model, "weights": sha256,
                "array": {"shape": header.shape, "dtype": header.dtype.str,
                          "order": "F" if header.fortran else "C"},
            }  # fmt: skip


def refused(kit: Path, streams: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Write damaged streams, made of the first one, and yield their entries."""
    frame = (kit / streams[0]["frame"]).read_bytes()
    damaged = {
        "empty": b"",
        "other-bytes": b"PNG" + frame[3:],
        "other-version": frame[:3] + b"\xff" + frame[4:],
        "header-changed": flipped(frame, 8),
        "section-changed": flipped(frame, len(frame) - 1),
        "cut-in-the-header": frame[:9],
        "cut-in-a-section": frame[:-1],
        "followed-by-bytes": frame + b"\0",
    }
    for name, data in damaged.items():
        (kit / f"refused/{name}.tec").write_bytes(data)
        yield {"frame": f"refused/{name}.tec", "frame_sha256": digest(data)}


def flipped(data: bytes, place: int) -> bytes:
    """Return the bytes with one bit changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
