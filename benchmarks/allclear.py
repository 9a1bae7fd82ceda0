"""AllClear (arXiv 2410.23891): its samples, and its scores of an estimate.

Its JSON lists samples of three images and a clear target. Images are centre-cropped, clipped to
0-10,000 and divided by that; scores are taken where the target is clear. Its own "SAM" is the angle
between columns of pixels, not between spectra: both are given.

`allclear_samples` reads the listings of AllClear, and selections of them: the 415 samples of
``setup/vpint2_samples.json`` in github.com/jesslyw/allclear-benchmark, on which VPint2 can run,
have the same layout with names in place of numbers and paths below ``data/``.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.inpaint.clouds import inpaint_clouds


@dataclass(frozen=True)
class Sample:
    """One of AllClear: inputs (T, 13, H, W) and target (13, H, W) DN, clipped to 0-10,000; where
    they are cloud or shadow (T, H, W), (H, W); days (T,) from the target.
    """

    name: str
    inputs: np.ndarray
    hidden: np.ndarray
    target: np.ndarray
    target_hidden: np.ndarray
    days: np.ndarray


def allclear_samples(listing: Path, root: Path | None, size: int = 256) -> Iterator[Sample]:
    """Samples of a listing, one after the other.

    Parameters
    ----------
    listing : Path
        A JSON of AllClear: by number or name, ``s2_toa`` and ``target`` as lists of [time, path].
    root : Path, optional
        Folder that replaces what comes before ``roi...`` in the paths.
    """
    for name, entry in json.loads(listing.read_text()).items():
        when, images, covers = [], [], []
        for stamp, path in [*sorted(entry["s2_toa"]), *entry["target"][:1]]:
            file = _place(path, root)
            when.append(datetime.datetime.fromisoformat(stamp))
            image = np.nan_to_num(_crop(file, range(1, 14), size), nan=0)
            images.append(image.clip(0, 10_000))
            mask = _crop(Path(str(file).replace("s2_toa", "cld_shdw")), (2, 5), size)
            covers.append((np.nan_to_num(mask, nan=1) > 0).any(0))
        days = np.array([(t - when[-1]).total_seconds() / 86_400 for t in when])
        yield Sample(name, np.stack(images[:-1]), np.stack(covers[:-1]), images[-1], covers[-1],
                     days[:-1])  # fmt: skip


def _place(path: str, root: Path | None) -> Path:
    parts = Path(path).parts
    first = next((i for i, part in enumerate(parts) if part.startswith("roi")), 0)
    return Path(path) if root is None else root.joinpath(*parts[first:])


def _crop(file: Path, channels: Sequence[int], size: int) -> np.ndarray:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(file) as source:
        left, top = source.width // 2 - size // 2, source.height // 2 - size // 2
        window = Window(left, top, size, size)
        return source.read(list(channels), window=window).astype(np.float32)


def allclear_estimate(sample: Sample, method: str) -> np.ndarray:
    """The target (13, H, W) DN from the inputs; 0 where no input is clear.

    The target date goes in between the inputs by its time and is hidden as a whole.
    """
    order = np.argsort(np.append(sample.days, 0.0), kind="stable")
    place = int(np.flatnonzero(order == len(sample.days))[0])
    cube = np.concatenate([sample.inputs, np.zeros_like(sample.target)[None]])[order]
    hidden = np.concatenate([sample.hidden, np.ones_like(sample.target_hidden)[None]])[order]
    start = np.datetime64("2022-01-01T00:00:00", "ns")
    seconds = (np.append(sample.days, 0.0)[order] * 86_400).round().astype("timedelta64[s]")
    seconds += np.arange(len(seconds))  # two orbits of one day stay apart
    da = xr.DataArray(
        np.where(cube > 0, cube, 1).astype(np.uint16), {"time": start + seconds},
        ("time", "band", "y", "x"),
    )  # fmt: skip
    filled = inpaint_clouds(da, xr.DataArray(hidden, dims=("time", "y", "x")), method=method)
    return filled.values[place].astype(np.float64)


def allclear_scores(guess: np.ndarray, target: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """AllClear's scores of (13, H, W) DN where the target is clear, and the spectral angle."""
    clear = np.broadcast_to(~hidden, target.shape)
    x, y = guess / 10_000, target / 10_000
    squared = ((x - y) ** 2)[clear].mean()
    return {
        "psnr": float(-10 * np.log10(squared)),
        "ssim": _masked_ssim(guess, target, clear),
        "mae": float(np.abs(x - y)[clear].mean()),
        "rmse": float(np.sqrt(squared)),
        "sam_as_published": _angle(np.where(clear, x, np.nan), np.where(clear, y, np.nan), axis=1),
        "sam": metrics.sam(target, guess, clear),
    }


def _masked_ssim(guess: np.ndarray, target: np.ndarray, clear: np.ndarray) -> float:
    """With both images zero where the target is not clear, as AllClear has it."""
    return float(metrics.ssim(np.where(clear, target, 0), np.where(clear, guess, 0)).mean())


def _angle(x: np.ndarray, y: np.ndarray, axis: int) -> float:
    dot, a, b = (np.nansum(v, axis) for v in (x * y, x * x, y * y))
    norm = np.sqrt(a * b)
    cosine = np.clip(dot[norm > 0] / norm[norm > 0], -1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def allclear(listing: Path, root: Path | None, methods: Sequence[str]) -> dict[str, dict]:
    """Mean scores of the methods over a listing."""
    scores: dict[str, list[dict[str, float]]] = {m: [] for m in methods}
    for sample in allclear_samples(listing, root):
        for method in methods:
            guess = allclear_estimate(sample, method)
            scores[method].append(allclear_scores(guess, sample.target, sample.target_hidden))
    return {
        method: {k: float(np.nanmean([one[k] for one in rows])) for k in rows[0]}
        for method, rows in scores.items()
    }
