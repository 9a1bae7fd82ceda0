"""What analyses say of decoded cubes: indices, classifiers, change, phenology.

    python benchmarks/downstream.py [--quick] [--data DIR] [--out DIR]

Every tool is made on originals and then left alone: it is applied to the original and to what a
codec decodes, and the two answers are compared. Nothing is trained on decoded data. TEC at three
qualities, one date a chunk, and at each the classical codecs at the same number of bytes
(their level is searched; ``bpppb`` of a row says how near they came).

- Indices: NDVI, NDWI and NBR, mean and 95th percentile of the absolute error.
- Land cover: eight clusters of spectra (k-means, 3 x 3 means), a random forest that tells them
  from a pixel and its 5 x 5 surroundings; learnt on the left halves, compared on the right ones.
- Clouds: a random forest on means and spreads of 8 x 8 patches, learnt on the left halves from
  what the brightness rule of ``landcover.py`` calls cloud or snow; F1 on the right ones.
- Change: change vector magnitude of successive dates, Otsu's threshold of the original on both.
- Phenology: two harmonics fitted to the NDVI of a dense series (72 dates; a cube of the training
  set, as no other is that dense), errors of amplitude and of the day of the peak.

Writes ``downstream.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import classical as bench
import numpy as np
from environment import DATA, ROOT, Scene, commit, environment, scenes
from landcover import land_cover, normalised
from numpy.typing import NDArray
from rate_distortion import code_tec

from tec_zarr import metrics
from tec_zarr.cubes import synthetic
from tec_zarr.sentinel2 import L2A_BANDS

QUALITIES = (2.0, 4.0, 6.0)
INDICES = {"ndvi": ("B08", "B04"), "ndwi": ("B03", "B08"), "nbr": ("B08", "B12")}
PEERS = {
    "jpeg2000": (bench.jpeg2000, 44.0, 66.0),
    "jpegxl": (bench.jpegxl, 15.0, 0.3),
    "klt-jpeg2000-joint": (bench.klt_jpeg2000_joint, 44.0, 66.0),
}
"""Codecs, and their levels at the worst and the best quality."""
SERIES = "worldcereal-classification__0000280849BAC91C"
CLASSES = 8
PATCH = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the file."""
    options = _parse(arguments)
    seasonal = [s for s in scenes(options.data) if s.kind == "seasonal"]
    seasonal = [seasonal[0].corner()] if options.quick else seasonal
    qualities = QUALITIES[1:2] if options.quick else QUALITIES
    tools = Tools(seasonal)
    rows, days = [], None
    for scene in seasonal:
        for quality in qualities:
            for codec, size, decoded in coded(scene, quality):
                row = {"scene": scene.name, "tec_quality": quality, "codec": codec}
                row |= fidelity(scene, size, decoded) | tools.compare(scene, decoded)
                print(f"{scene.name}, quality {quality:g}: {codec}", flush=True)
                rows.append(row)
    series, days = dense_series(options.data.parent)
    phenology = []
    for quality in qualities:
        for codec, size, decoded in coded(series, quality):
            row = {"scene": series.name, "tec_quality": quality, "codec": codec}
            row |= fidelity(series, size, decoded) | compare_phenology(series, days, decoded)
            print(f"{series.name}, quality {quality:g}: {codec}", flush=True)
            phenology.append(row)
    results = {
        "definition": "Tools made on originals, applied to original and decoded; errors and "
        "agreement between the two answers. Classical codecs at TEC's bytes.",
        **environment(),
        "commit": commit(),
        "data": {s.name: s.sha256 for s in (*seasonal, series)},
        "rows": rows,
        "phenology": phenology,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "downstream_quick.json" if options.quick else "downstream.json"
    (options.out / name).write_text(json.dumps(_plain(results), indent=1) + "\n")


def coded(scene: Scene, quality: float):
    """TEC at a quality, then every other codec at the same number of bytes."""
    size, decoded = code_tec(scene, quality)
    yield "tec", size, decoded
    for name, (code, worst, best) in PEERS.items():
        yield name, *at_size(code, scene.dn, size, worst, best)


def at_size(code: Callable, cube: NDArray, size: int, worst: float, best: float):
    """Bytes and cube of the level whose size is within 2 % of ``size``, or comes nearest.

    The next level is where a line through the two around it meets the size, on a logarithmic
    scale, on which sizes are nearly straight.
    """
    ends = [(level, math.log(code(cube, level)[0] / size)) for level in (worst, best)]
    nearest = None
    for _ in range(6):
        (low, below), (high, above) = ends
        share = -below / (above - below) if below < 0 < above else 0.5
        level = low + min(max(share, 0.05), 0.95) * (high - low)
        found, decoded = code(cube, level)
        if nearest is None or abs(found - size) < abs(nearest[0] - size):
            nearest = found, decoded
        if abs(found / size - 1) < 0.02:
            break
        point = level, math.log(found / size)
        ends = [point, ends[1]] if found < size else [ends[0], point]
    return nearest


def fidelity(scene: Scene, size: int, decoded: NDArray) -> dict[str, float]:
    """Rate, PSNR and the errors of the indices."""
    row = {
        "bpppb": metrics.bpppb(size, scene.dn.shape),
        "psnr": metrics.psnr(scene.dn, decoded, scene.dn != 0),
    }
    for name, pair in INDICES.items():
        if set(pair) <= set(scene.bands):
            both = [normalised(cube, scene.bands, pair) for cube in (scene.dn, decoded)]
            error = np.abs(both[1] - both[0])
            error = error[np.isfinite(error)]
            row[f"{name}_mean"] = float(error.mean())
            row[f"{name}_p95"] = float(np.percentile(error, 95))
    return row


class Tools:
    """Classifiers made on the left halves of originals."""

    def __init__(self, cubes: Sequence[Scene]) -> None:
        from sklearn.cluster import KMeans
        from sklearn.ensemble import RandomForestClassifier

        spectra, around, patches, cloudy = [], [], [], []
        for scene in cubes:
            left = _half(scene.dn, "left")
            spectra.append(_pixels(_box(left, 3)))
            around.append(_pixels(_surroundings(left)))
            patches.append(_patches(left))
            cloudy.append(_patch_cloud(left, scene.bands))
        rng = np.random.default_rng(0)
        chosen = [rng.permutation(len(s))[:20_000] for s in spectra]
        x, y = (
            np.concatenate([part[c] for part, c in zip(parts, chosen, strict=True)])
            for parts in (spectra, around)
        )
        labels = KMeans(CLASSES, n_init=2, random_state=0).fit(x).labels_
        forest = {"n_estimators": 40, "max_depth": 12, "random_state": 0, "n_jobs": 1}
        self._cover = RandomForestClassifier(**forest).fit(y, labels)
        patches, cloudy = np.concatenate(patches), np.concatenate(cloudy)
        self._truth: dict[str, tuple[NDArray, NDArray | None]] = {}
        # Without both kinds there is nothing to learn, and nothing is reported.
        self._cloud = (
            RandomForestClassifier(**forest).fit(patches, cloudy)
            if 0.01 < cloudy.mean() < 0.99
            else None
        )

    def _answers(self, cube: NDArray) -> tuple[NDArray, NDArray | None]:
        """Land cover of every other pixel and row of the right half, and its cloudy patches."""
        right = _half(cube, "right")
        cover = self._cover.predict(_pixels(_surroundings(right)[..., ::2, ::2]))
        return cover, None if self._cloud is None else self._cloud.predict(_patches(right))

    def compare(self, scene: Scene, decoded: NDArray) -> dict[str, float | None]:
        """Agreement of the answers on the right half, and of changes on the whole cube."""
        if scene.name not in self._truth:
            self._truth[scene.name] = self._answers(scene.dn)
        (cover, before), (other_cover, after) = self._truth[scene.name], self._answers(decoded)
        row: dict[str, float | None] = {
            "land_cover_agreement": float((cover == other_cover).mean()),
            "cloud_f1": None,
        }
        if before is not None and after is not None and before.any():
            row["cloud_f1"] = float(2 * (before & after).sum() / (before.sum() + after.sum()))
        changes = [_magnitude(cube) for cube in (scene.dn, decoded)]
        threshold = otsu(changes[0])
        before, after = (change > threshold for change in changes)
        row["change_iou"] = float((before & after).sum() / max(1, (before | after).sum()))
        return row


def _half(cube: NDArray, side: str) -> NDArray:
    middle = cube.shape[-1] // 2 // PATCH * PATCH
    return cube[..., :middle] if side == "left" else cube[..., middle:]


def _box(cube: NDArray, width: int) -> NDArray[np.float32]:
    """Means over ``width`` x ``width`` pixels, edges repeated."""
    out = cube.astype(np.float32)
    for axis in (-2, -1):
        pad = [(0, 0)] * out.ndim
        pad[axis] = (width // 2, width // 2)
        moved = np.moveaxis(np.pad(out, pad, mode="edge"), axis, -1)
        length = moved.shape[-1] - width + 1
        out = np.moveaxis(sum(moved[..., k : k + length] for k in range(width)) / width, -1, axis)
    return out


def _surroundings(cube: NDArray) -> NDArray[np.float32]:
    """Spectrum, 5 x 5 mean and spread of every pixel, along the band axis."""
    values = cube.astype(np.float32)
    mean = _box(values, 5)
    spread = np.sqrt(np.maximum(_box(values * values, 5) - mean * mean, 0))
    return np.concatenate([values, mean, spread], axis=1)


def _pixels(cube: NDArray) -> NDArray:
    return np.moveaxis(cube, 1, -1).reshape(-1, cube.shape[1])


def _blocks(cube: NDArray) -> NDArray:
    """(patch, band, pixel) of a cube (time, band, y, x)."""
    t, c, height, width = cube.shape
    height, width = height // PATCH * PATCH, width // PATCH * PATCH
    parts = cube[..., :height, :width].reshape(t, c, height // PATCH, PATCH, width // PATCH, PATCH)
    return parts.transpose(0, 2, 4, 1, 3, 5).reshape(-1, c, PATCH * PATCH)


def _patches(cube: NDArray) -> NDArray[np.float64]:
    blocks = _blocks(cube)
    return np.concatenate([blocks.mean(axis=2), blocks.std(axis=2)], axis=1)


def _patch_cloud(cube: NDArray, bands: Sequence[str]) -> NDArray[np.bool_]:
    bright = land_cover(cube, bands) == 0
    return _blocks(bright[:, None]).mean(axis=(1, 2)) > 0.5


def _magnitude(cube: NDArray) -> NDArray[np.float64]:
    return np.sqrt(np.square(np.diff(cube.astype(np.float64), axis=0)).mean(axis=1))


def otsu(values: NDArray) -> float:
    """Threshold that separates two classes best (Otsu 1979), on 256 bins."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * middles)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(middles[np.nanargmax(between)])


def dense_series(shared: Path) -> tuple[Scene, NDArray[np.float64]]:
    """A series of NDVI bands with many dates, and its days; synthetic where there is none."""
    path = shared / "train" / f"{SERIES}.npz"
    if not path.exists():
        cube = synthetic.cube(dates=36, size=64, seed=5, nodata_edge=False)
        days = (cube.time.values - cube.time.values[0]) / np.timedelta64(1, "D")
        return Scene("synthetic series", "series", L2A_BANDS, cube.values), days
    with np.load(path, allow_pickle=False) as file:
        dn, present = file["dn"], file["present"]
    entries = json.loads((shared / "index.json").read_text())
    times = next(entry["times"] for entry in entries if entry["id"] == SERIES)
    stamps = np.array(times, "datetime64[D]")
    bands = tuple(band for band, has in zip(L2A_BANDS, present, strict=True) if has)
    scene = Scene("dense series", "series", bands, np.ascontiguousarray(dn[:, present]))
    return scene, (stamps - stamps[0]).astype(np.float64)


def compare_phenology(
    scene: Scene, days: NDArray[np.float64], decoded: NDArray
) -> dict[str, float]:
    """Errors of amplitude (NDVI) and day of the peak of two harmonics, fitted to clear dates."""
    blue = scene.bands.index("B02")
    clear = (scene.dn[:, blue] > 0) & (scene.dn[:, blue] < 1200)
    peak, amplitude, inside = _season(scene.dn, scene.bands, days, clear)
    other_peak, other_amplitude, _ = _season(decoded, scene.bands, days, clear)
    moved = np.abs((other_peak - peak + 182.625) % 365.25 - 182.625)
    return {
        "season_amplitude_error": float(np.abs(other_amplitude - amplitude)[inside].mean()),
        "season_amplitude": float(amplitude[inside].mean()),
        "peak_day_error_median": float(np.median(moved[inside])),
        "peak_day_error_p95": float(np.percentile(moved[inside], 95)),
        "pixels": int(inside.sum()),
    }


def _season(
    cube: NDArray, bands: Sequence[str], days: NDArray, clear: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Day of the peak, amplitude, and where a season can be told, by least squares a pixel."""

    def harmonics(day: NDArray) -> NDArray[np.float64]:
        phase = 2 * np.pi * day / 365.25
        waves = (np.cos(phase), np.sin(phase), np.cos(2 * phase), np.sin(2 * phase))
        return np.stack([np.ones_like(phase), *waves], axis=1)

    ndvi = normalised(cube, bands, ("B08", "B04"))
    weight = (clear & np.isfinite(ndvi)).reshape(len(days), -1).astype(np.float64)
    values = np.nan_to_num(ndvi).reshape(len(days), -1)
    design = harmonics(days)
    left = np.einsum("tp,ti,tj->pij", weight, design, design) + 1e-6 * np.eye(design.shape[1])
    right = np.einsum("tp,ti,tp->pi", weight, design, values)
    fitted = np.linalg.solve(left, right[..., None])[..., 0] @ harmonics(np.arange(365.0)).T
    amplitude = np.ptp(fitted, axis=1) / 2
    enough = (weight.sum(axis=0) >= 12) & (amplitude > 0.1) & (amplitude < 1)
    return fitted.argmax(axis=1).astype(np.float64), amplitude, enough


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a corner of one cube, one quality")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of evaluation .npz cubes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
