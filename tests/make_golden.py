"""Write the golden streams of newly released weights, and of new cases: then kept for ever.

    python tests/make_golden.py

Goes to ``tests/fixtures/<model>/<first 16 digits of the weights' SHA-256>/``: a frame per case,
``golden.json`` with the hashes of frames and latents, ``pixels.npz`` with what was decoded. Cases
that are there already are left alone: released streams do not change, whatever encoders do since.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.grids import Grid, Kind
from tec_zarr.models.registry import find_model
from tec_zarr.stores.transcode import transcode_chunk

FIXTURES = Path(__file__).parent / "fixtures"
MODELS = ("tec-s2", "tec-tt-s2", "tec-flex-s2")


def cases(model: str) -> dict[str, tuple[np.ndarray, ChunkSpec]]:
    """Arrays and settings for one of ``MODELS``."""
    if model == "tec-flex-s2":
        return _flexible_cases()
    return _image_cases() if model == "tec-s2" else _temporal_cases()


def _flexible_cases() -> dict[str, tuple[np.ndarray, ChunkSpec]]:
    """Dates in layers of quality; ``cut`` has fewer of them than it was made with."""
    dn = synthetic.cube(dates=4, size=24, seed=35, nodata_edge=False).values
    cloudy = synthetic.cube(dates=3, size=24, seed=32).values
    cloudy[1, :, :, 12:] = 0
    large = synthetic.cube(dates=2, size=104, seed=33, nodata_edge=False).values[:, [1, 2, 3, 7]]
    bright = dn[:2, :, :16, :16] + np.uint16(40000)
    bright[0, 3, 4, 5] = 1
    model, bands = "tec-flex-s2", ["B02", "B03", "B04", "B08"]
    return {
        "series": (dn, ChunkSpec(model)),
        "one-date": (dn[:1], ChunkSpec(model)),
        "cut": (dn, ChunkSpec(model, quality=6)),
        "nodata": (cloudy, ChunkSpec(model, quality=5)),
        "finer": (np.repeat(dn[:1], 6, axis=0), ChunkSpec(model, quality=3)),
        "gop": (dn, ChunkSpec(model, gop=2)),
        "large": (large, ChunkSpec(model, quality=6.3, bands=bands)),
        "quality-1": (dn[:3], ChunkSpec(model, quality=1)),
        "quality-8": (dn[:3, :, :19, :13], ChunkSpec(model, quality=8)),
        "far-out": (bright, ChunkSpec(model, quality=7)),
    }


def _temporal_cases() -> dict[str, tuple[np.ndarray, ChunkSpec]]:
    """Dates that refer to others before and after them, with every kind of header."""
    dn = synthetic.cube(dates=5, size=24, seed=31, nodata_edge=False).values
    cloudy = synthetic.cube(dates=3, size=24, seed=32).values
    cloudy[1, :, :, 12:] = 0
    noise = np.random.default_rng(34).normal(0, 60, (5, 12, 24, 24))
    still = np.rint(dn[:1] + noise).clip(1).astype(np.uint16)  # the mean of several explains best
    large = synthetic.cube(dates=2, size=104, seed=33, nodata_edge=False).values[:, [1, 2, 3, 7]]
    model = "tec-tt-s2"
    bands = ["B02", "B03", "B04", "B08"]
    return {
        "series": (dn, ChunkSpec(model)),
        "one-date": (dn[:1], ChunkSpec(model)),
        "nodata": (cloudy, ChunkSpec(model, quality=5)),
        "finer": (np.repeat(dn[:1], 6, axis=0), ChunkSpec(model, quality=3)),
        "still": (still, ChunkSpec(model, quality=6)),
        "gop": (dn, ChunkSpec(model, gop=2)),
        "own-bases": (large, ChunkSpec(model, quality=6, bands=bands)),
        "quality-1": (dn[:3], ChunkSpec(model, quality=1)),
        "quality-8": (dn[:3, :, :19, :13], ChunkSpec(model, quality=8)),
        "float32": ((dn[:2, :, :16, :16] / 1e4).astype(np.float32), ChunkSpec(model)),
    }


def _image_cases() -> dict[str, tuple[np.ndarray, ChunkSpec]]:
    """Arrays and settings that between them use every part of a frame."""
    dn = synthetic.cube(dates=4, size=24, seed=21, nodata_edge=False).values
    edge = synthetic.cube(dates=2, size=32, seed=22).values
    edge[0, :, 20:, :9] = 0
    reflectance = (dn[:1] / 1e4).astype(np.float32)
    reflectance[0, :, 3:9, 5:20] = np.nan
    saturated = dn[:1].copy()
    saturated[0, :3, 10:14, 10:14] = 65535
    signed = dn[:1].astype(np.int16) - 900
    y, x = np.mgrid[:520, :16]
    long = (2000 + 1500 * np.sin(y / 40) + 20 * x).astype(np.uint16)
    colours = ["B08", "B04", "B03", "B02"]
    target = dn[:1, :4, :16, :16].copy()
    target[0, [2, 3], 8, [3, 12]] += np.uint16(6000)  # a ship in one band, a fire in another
    grid = Grid(Kind.BILINEAR, 2, 1, 0)
    height, width = grid.native_shape((32, 32))
    coarse = grid.enlarge(dn[:1, 4:7, :height, :width].astype(np.int64), (32, 32))
    enlarged = np.concatenate([edge[1:, 1:4], coarse.astype(np.uint16)], axis=1)
    names = ["B02", "B03", "B04", "B05", "B06", "B07"]
    rows, columns = np.mgrid[:88, :88]
    source = synthetic.cube(dates=1, size=72, seed=23, clouds=False, nodata_edge=False).values
    at = (0.7 * rows + 0.06 * columns).astype(int), (0.71 * columns + 4 - 0.04 * rows).astype(int)
    turned = source[:, :, *at]
    return {
        "one-date": (dn[:1], ChunkSpec()),
        "many-dates": (dn, ChunkSpec(quality=3)),
        "nodata": (edge, ChunkSpec()),
        "float32-nan": (reflectance, ChunkSpec()),
        "float64-dn": (dn[:1, :, :16, :16].astype(np.float64), ChunkSpec(scale=1.0)),
        "int16-two-nodata": (signed, ChunkSpec(nodata=(-9999, 0))),
        "odd-size": (dn[:1, :, :19, :13], ChunkSpec()),
        "one-pixel": (dn[:1, :, :1, :1], ChunkSpec()),
        "one-band": (dn[:3, 7], ChunkSpec(bands=["B08"])),
        "plane": (dn[0, 3], ChunkSpec()),
        "four-bands": (dn[:1, [7, 3, 2, 1]], ChunkSpec(bands=colours)),
        "thirteen-bands": (np.insert(dn[:1], 10, dn[:1, 9] // 9, axis=1), ChunkSpec()),
        "order-f": (np.asfortranarray(dn[:1]), ChunkSpec()),
        "big-endian": (dn[0].astype(">u2"), ChunkSpec()),
        "offset": (dn[:1] + np.uint16(1000), ChunkSpec(offset=1000)),
        "quality-1": (dn[:1], ChunkSpec(quality=1)),
        "quality-8": (dn[:1, :, :16, :16], ChunkSpec(quality=8)),
        "saturated": (saturated, ChunkSpec(quality=6)),
        "max-error": (edge[:1], ChunkSpec(max_error=[5] * 11 + [40])),
        "indices": (edge[:1], ChunkSpec(max_error={"ndvi": 0.01, "nd:B8A,B04": 0.02, "B02": 5})),
        "lossless": (dn[0], ChunkSpec(max_error=0)),
        "lossless-float": (reflectance[:, :2], ChunkSpec(max_error=0)),
        "psnr": (dn[:1], ChunkSpec(psnr=40)),
        "constant": (np.full((1, 12, 16, 16), 1234, np.uint16), ChunkSpec()),
        "all-nodata": (np.zeros((2, 12, 16, 16), np.uint16), ChunkSpec()),
        "two-tiles": (long, ChunkSpec()),
        "bilinear": (enlarged, ChunkSpec(bands=names)),
        "bilinear-lossless": (enlarged, ChunkSpec(bands=names, max_error=0)),
        "turned": (turned, ChunkSpec()),
        "points": (target, ChunkSpec(bands=["B01", "B02", "B03", "B04"])),
    }


def decode(frame: bytes) -> tuple[np.ndarray, str]:
    """Pixels, and the SHA-256 of the checksums of the latents, which the decoder verified."""
    digest = hashlib.sha256()
    for section in read_frame(frame).of(SectionKind.LATENTS):
        digest.update(section.latents_crc.to_bytes(4, "little"))
    return decode_chunk(frame), digest.hexdigest()


def write(model: str, fixtures: Path = FIXTURES) -> Path:
    """Golden streams of the newest weights of ``model``, as far as they are not there yet."""
    folder = fixtures / model / find_model(model).weights[0][:16]
    folder.mkdir(parents=True, exist_ok=True)
    golden, pixels = {}, {}
    if (folder / "golden.json").exists():
        golden = json.loads((folder / "golden.json").read_text())
        with np.load(folder / "pixels.npz") as stored:
            pixels = dict(stored)
    new = {name: case for name, case in cases(model).items() if name not in golden}
    for name, (array, spec) in new.items():
        frame = encode_chunk(array, spec)
        if name == "cut":
            frame = transcode_chunk(frame, 2)
        pixels[name], latents = decode(frame)
        (folder / f"{name}.tec").write_bytes(frame)
        golden[name] = {"frame": hashlib.sha256(frame).hexdigest(), "latents": latents}
    if new:
        np.savez_compressed(folder / "pixels.npz", **pixels)
        (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    return folder


if __name__ == "__main__":
    for released in MODELS:
        print(write(released))
