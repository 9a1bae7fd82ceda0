"""Write what a reader in another language has to read: golden streams, stores, and their pixels.

    python tests/reader_cases.py FOLDER

Pixels are files of little-endian samples in C order. ``cases.json`` says what belongs together.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import make_golden
import numpy as np
import zarr

import tec_zarr
from tec_zarr.cubes import synthetic

#: Stores: the settings of the array for zarr, and the window that is read.
STORES = {
    "v3-shards": {"zarr_format": 3, "dtype": "u2", "chunks": (2, 4, 32, 32),
                  "shards": (2, 4, 64, 64)},
    "v3": {"zarr_format": 3, "dtype": "f4", "chunks": (5, 4, 48, 40)},
    "v2": {"zarr_format": 2, "dtype": "u2", "chunks": (2, 4, 32, 32)},
    "v2-turned": {"zarr_format": 2, "dtype": ">i2", "chunks": (2, 4, 32, 32), "order": "F"},
}  # fmt: skip
WINDOW = [[1, 4], [0, 4], [10, 70], [5, 60]]
SHAPE = (5, 4, 96, 80)


def write(folder: Path) -> None:
    """Write all cases."""
    (folder / "pixels").mkdir(parents=True)
    cases = {"golden": list(golden(folder)), "stores": [store(folder, name) for name in STORES]}
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))


def golden(folder: Path):
    """Copy the streams of all embedded models, and yield what they decode to."""
    for path in sorted(make_golden.FIXTURES.glob("tec-*/*/golden.json")):
        model, weights = path.parts[-3:-1]
        with np.load(path.with_name("pixels.npz")) as pixels:
            for name in json.loads(path.read_text()):
                frame = f"{model}-{weights}-{name}.tec"
                (folder / frame).write_bytes(path.with_name(f"{name}.tec").read_bytes())
                yield {"frame": frame, "weights": weights, **written(folder, frame, pixels[name])}


def store(folder: Path, name: str) -> dict:
    """Write a store, and return what a window of it holds. One chunk is missing from it."""
    settings = dict(STORES[name])
    codec = {"max_error": 3} if name == "v3-shards" else {"quality": 5}
    if settings["zarr_format"] == 3:
        settings.update(serializer=tec_zarr.TECCodec(**codec), compressors=None)
    else:
        settings.update(compressors=tec_zarr.TEC(**codec), filters=None)
    bands = ["B02", "B03", "B04", "B08"]
    cube = synthetic.cube(SHAPE[0], SHAPE[2], bands).values[..., : SHAPE[3]]
    array = zarr.create_array(
        folder / f"{name}.zarr", name="dn", shape=SHAPE, fill_value=0, **settings
    )
    dtype = np.dtype(settings["dtype"])
    array[:, :, :64] = cube[:, :, :64].astype(dtype) * (1e-4 if dtype.kind == "f" else 1)
    window = array[tuple(slice(*ends) for ends in WINDOW)]
    return {"store": f"{name}.zarr", "window": WINDOW, **written(folder, name, window)}


def written(folder: Path, name: str, pixels: np.ndarray) -> dict:
    """Write pixels; return where, their dtype and shape."""
    dtype = pixels.dtype.newbyteorder("<")
    (folder / "pixels" / name).write_bytes(np.ascontiguousarray(pixels, dtype).tobytes())
    return {"pixels": f"pixels/{name}", "dtype": dtype.name, "shape": pixels.shape}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
