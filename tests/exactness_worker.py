"""Runs in a process of its own, under some CPU setting: encode the cubes, decode the frames.

Usage: exactness_worker.py FOLDER NAME THREADS.  Reads ``FOLDER/cubes.npz`` and, for every
``FOLDER/<writer>/<i>.tec``, writes what it decoded to ``FOLDER/NAME.json`` and ``FOLDER/NAME.npz``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.models.registry import get_model

QUALITIES = (2.0, 5.0, 7.5)


def main(folder: Path, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    if name == "no-onednn":
        torch.backends.mkldnn.enabled = False
    model = get_model("tec-s2")
    written = folder / name
    written.mkdir(exist_ok=True)
    latents, frames, pixels = {}, {}, {}
    with np.load(folder / "cubes.npz") as cubes:
        for key in cubes.files:
            for quality in QUALITIES:
                frame = encode_chunk(cubes[key], ChunkSpec(model="tec-s2", quality=quality))
                (written / f"{key}-{quality}.tec").write_bytes(frame)
                frames[f"{key}-{quality}"] = hashlib.sha256(frame).hexdigest()
                cube = np.atleast_3d(cubes[key]).astype(np.float32)
                sections = model.encode(cube, quality, None).sections
                for date, section in enumerate(sections):
                    found, _ = model.decode_latents(section, cube.shape[1:], quality)
                    latents[f"{key}-{quality}-{date}"] = hashlib.sha256(found.tobytes()).hexdigest()
    for path in sorted(folder.glob("*/*.tec")):
        # A frame whose latents come out differently here raises: that is the test.
        pixels[f"{path.parent.name}/{path.stem}"] = decode_chunk(path.read_bytes())
    np.savez(folder / f"{name}.npz", **{k.replace("/", "__"): v for k, v in pixels.items()})
    (folder / f"{name}.json").write_text(json.dumps({"latents": latents, "frames": frames}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
