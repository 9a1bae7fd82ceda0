"""Pictures of five made-up places at four qualities: python benchmarks/gallery.py.

Writes ``docs/gallery/*.webp`` and ``results/gallery.json``, of which ``report.py`` makes
``docs/gallery.md`` and the picture of the README. Each place is one chunk of one date, 12 bands and
256 x 256 pixels; the pictures show its middle in natural colour. Needs matplotlib's Pillow.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from environment import ROOT, commit, environment
from PIL import Image

from tec_zarr import metrics
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes import synthetic
from tec_zarr.cubes.landscape import noise, ramp
from tec_zarr.sentinel2 import L2A_BANDS

QUALITIES = (2, 4, 6, 8)
SIDE, SHOWN = 256, 144
#: DN of clear sea and of fresh snow, B01 to B12: rounded from what such pixels look like.
SEA = (420, 330, 250, 150, 120, 110, 105, 95, 90, 80, 40, 30)
SNOW = (8900, 8800, 8600, 8700, 8600, 8500, 8300, 8100, 7900, 7600, 900, 700)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs" / "gallery")
    arguments = parser.parse_args()
    arguments.pictures.mkdir(parents=True, exist_ok=True)
    specs = {quality: ChunkSpec(quality=quality) for quality in QUALITIES}
    results = {
        **environment(), "commit": commit(), "weights_sha256": specs[4].weights_sha256,
        "places": {},
    }  # fmt: skip
    for name, chunk in places().items():
        stretch = np.percentile(rgb(chunk), 99 if name != "clouds" else 85)
        picture(rgb(chunk) / stretch, arguments.pictures / f"{name}.webp")
        rows = {}
        for quality, spec in specs.items():
            frame = encode_chunk(chunk, spec)
            decoded = decode_chunk(frame)
            rows[str(quality)] = {"bytes": len(frame), "psnr": metrics.psnr(chunk, decoded)}
            picture(rgb(decoded) / stretch, arguments.pictures / f"{name}-{quality}.webp")
            if (name, quality) == ("fields", 4):
                change = 0.5 + 10 * (rgb(decoded) - rgb(chunk)) / 10_000
                picture(change, arguments.pictures / "fields-difference.webp", gamma=1)
        results["places"][name] = {"raw_bytes": chunk.nbytes, "qualities": rows}
    (arguments.out / "gallery.json").write_text(json.dumps(results, indent=1) + "\n")


def places() -> dict[str, np.ndarray]:
    """The places by name, each (1, 12, 256, 256) uint16."""
    land = synthetic.cube(1, 512, seed=2, clouds=False, nodata_edge=False).values
    hills = synthetic.cube(1, SIDE, seed=0, clouds=False, nodata_edge=False).values
    rng = np.random.default_rng(0)
    shore = ramp(noise(rng, SIDE, 160, 4), -0.02, 0.02)
    swell = 1 + 0.1 * noise(rng, SIDE, 9, 1.5)
    cover = ramp(noise(rng, SIDE, 60, 3.5) + 0.4, -0.1, 0.1)
    light = hills[0, 7] / hills[0, 7].mean()
    return {
        "fields": land[..., 16 : 16 + SIDE, :SIDE],
        "coast": mixed(land[..., 40 : 40 + SIDE, 200 : 200 + SIDE], SEA, swell, shore, rng),
        "city": land[..., 75 : 75 + SIDE, 140 : 140 + SIDE],
        "snow": mixed(hills, SNOW, 0.55 + 0.35 * light.clip(0.2, 1.8), cover, rng),
        "clouds": synthetic.cube(4, SIDE, seed=0, nodata_edge=False).values[1:2],
    }


def mixed(land, spectrum, light, share, rng) -> np.ndarray:
    """Land under a share of another surface, with the noise of a sensor."""
    over = np.array(spectrum)[:, None, None] * light
    out = land[0] * (1 - share) + over * share
    out += rng.normal(0, 6 + 0.004 * out)
    return np.rint(out.clip(1, 15_000)).astype(np.uint16)[None]


def rgb(chunk: np.ndarray) -> np.ndarray:
    """Natural colour of the middle, (y, x, 3)."""
    first = (SIDE - SHOWN) // 2
    middle = chunk[0, :, first : first + SHOWN, first : first + SHOWN].astype(float)
    return middle[[L2A_BANDS.index(band) for band in ("B04", "B03", "B02")]].transpose(1, 2, 0)


def picture(values: np.ndarray, file: Path, gamma: float = 0.8) -> None:
    shades = np.rint(255 * values.clip(0, 1) ** gamma).astype(np.uint8)
    Image.fromarray(shades).save(file, lossless=True, method=6)


if __name__ == "__main__":
    main()
