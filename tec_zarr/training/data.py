"""Training samples: random crops of Sentinel-2 frames, rotated to their own spectral KLT.

A frame is one date of one cube, ``(12, H, W)`` uint16 DN in L2A band order.  The KLT is taken over
a window of at most 256 x 256 pixels around each crop (what the codec does per tile), from
covariances computed once, so that gain augmentation and band dropout are algebra on a 12 x 12
matrix instead of another pass over the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import L2A_BANDS

WINDOW = 256
BANDS = 12
#: Bands whose native grid is 20 m and 60 m, as indices in L2A order (B01 .. B12).
BANDS_20M, BANDS_60M = (4, 5, 6, 8, 10, 11), (0, 9)
BANDS_10M = (1, 2, 3, 7)


@dataclass(frozen=True)
class Window:
    """One KLT window of a frame: pixels, valid share, mean and covariance over the valid pixels."""

    dn: np.ndarray  # (12, h, w) uint16
    present: np.ndarray  # (12,) bool
    mean: np.ndarray  # (12,) float64, DN
    covariance: np.ndarray  # (12, 12) float64, DN^2
    weight: float
    source: str


def fill_nodata(dn: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace nodata pixels by the mean of each band, as neutral texture for training."""
    valid = (dn[present] > 0).all(axis=0)
    if valid.all() or not valid.any():
        return dn, valid
    out = dn.copy()
    for band in np.flatnonzero(present):
        out[band][~valid] = out[band][valid].mean()
    return out, valid


def smooth_resampled(dn: np.ndarray) -> np.ndarray:
    """The same frame with its 20 m and 60 m bands resampled bilinearly instead of by nearest
    neighbour.

    Half of the world's cubes come one way, half the other; most of the small training set is
    nearest.  Bands that are not blocky are returned unchanged.
    """
    out = dn.copy()
    for band, factor in [(b, 2) for b in BANDS_20M] + [(b, 6) for b in BANDS_60M]:
        plane = dn[band]
        row_same = (np.diff(plane[:, :200].astype(np.int32), axis=0) == 0).mean(axis=1)
        col_same = (np.diff(plane[:200].astype(np.int32), axis=1) == 0).mean(axis=0)
        row_phase = np.array([row_same[p::factor].mean() for p in range(factor)])
        col_phase = np.array([col_same[p::factor].mean() for p in range(factor)])
        # Exactly one phase of the grid has differences; everything else repeats.
        if (
            np.sort(row_phase)[1:].min(initial=1) < 0.6
            or np.sort(col_phase)[1:].min(initial=1) < 0.6
        ):
            continue
        if row_phase.min() > 0.6 or col_phase.min() > 0.6:
            continue
        start = [(int(p.argmin()) + 1) % factor for p in (row_phase, col_phase)]
        coarse = plane[start[0] :: factor, start[1] :: factor].astype(np.float64)
        axes = []
        for size, first, count in zip(plane.shape, start, coarse.shape, strict=True):
            centre = (np.arange(size) - first - (factor - 1) / 2) / factor
            low = np.clip(np.floor(centre), 0, count - 2).astype(int)
            axes.append((low, np.clip(centre - low, 0, 1)))
        (r0, fr), (c0, fc) = axes
        rows = coarse[r0] * (1 - fr)[:, None] + coarse[r0 + 1] * fr[:, None]
        out[band] = np.rint(rows[:, c0] * (1 - fc) + rows[:, c0 + 1] * fc)
    return out


def _windows(dn: np.ndarray, present: np.ndarray, weight: float, source: str) -> Iterator[Window]:
    height, width = dn.shape[1:]
    steps = [
        sorted({min(p, max(n - WINDOW, 0)) for p in range(0, max(n - WINDOW, 0) + 128, 128)})
        for n in (height, width)
    ]
    for top in steps[0]:
        for left in steps[1]:
            tile = dn[:, top : top + WINDOW, left : left + WINDOW]
            filled, valid = fill_nodata(tile, present)
            if valid.mean() < 0.9:
                continue
            pixels = filled.reshape(BANDS, -1).astype(np.float64)
            yield Window(filled, present, pixels.mean(axis=1), np.cov(pixels), weight, source)


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``dn`` (T, 12, H, W) and ``present`` (12,) bool of one file of training data.

    Raises
    ------
    UnsupportedArrayError
        The file is damaged, lacks one of them, or they have other shapes.
    """
    try:
        with np.load(path) as file:
            dn, present = file["dn"], file["present"].astype(bool)
    except Exception as error:  # numpy, zipfile and zlib raise their own, pickle is not read
        raise UnsupportedArrayError(
            f"{path} cannot be read as training data ({type(error).__name__}: {error}): it needs "
            "dn (time, 12, y, x) and present (12,)"
        ) from error
    if dn.ndim != 4 or dn.shape[1] != BANDS or present.shape != (BANDS,):
        raise UnsupportedArrayError(
            f"{path} has dn of shape {dn.shape} and present of shape {present.shape}: training "
            f"needs (time, {BANDS}, y, x) and ({BANDS},)"
        )
    return dn, present


def npz_windows(folder: Path, smallest: int = 60) -> list[Window]:
    """Windows of every cube in a folder of ``.npz`` files (``dn`` (T, 12, H, W), ``present``
    (12,)).

    Frames narrower than ``smallest`` pixels are left out.  A window weighs as the square root of
    its cube's area, so that one large tile does not outvote two hundred places.
    """
    out: list[Window] = []
    for path in sorted(Path(folder).glob("*.npz")):
        cube, present = read_npz(path)
        if min(cube.shape[2:]) < smallest:
            continue
        mine: list[Window] = []
        for frame in cube:
            mine.extend(_windows(frame, present, 1.0, path.stem))
            smooth = smooth_resampled(frame)
            if not np.array_equal(smooth, frame):
                mine.extend(_windows(smooth, present, 1.0, path.stem))
        # Everything is on one grid; a place seen a hundred times is still one place.
        area = cube.shape[2] * cube.shape[3] * min(len(cube), 4)
        share = area**0.5 / max(len(mine), 1)
        out.extend(Window(w.dn, w.present, w.mean, w.covariance, share, w.source) for w in mine)
    return out


def zarr_windows(path: Path, bands: Sequence[str] = L2A_BANDS) -> list[Window]:
    """Windows of a Zarr array (time, band, y, x) of DN, or of every such array of a group.

    ``bands`` are the array's bands in order, by Sentinel-2 name; those missing from L2A order are
    left absent.  The offset of baseline 04.00 must have been removed.
    """
    import zarr

    node = zarr.open(path, mode="r")
    arrays = (
        [node] if isinstance(node, zarr.Array) else [a for _, a in node.arrays() if a.ndim == 4]
    )
    order = [L2A_BANDS.index(band) for band in bands]
    present = np.isin(np.arange(BANDS), order)
    out: list[Window] = []
    for array in arrays:
        if array.shape[1] != len(order):
            raise UnsupportedArrayError(
                f"{path}: array of shape {array.shape}, expected {len(order)} bands on axis 1"
            )
        for date in range(array.shape[0]):
            frame = np.zeros((BANDS, *array.shape[2:]), np.uint16)
            frame[order] = np.clip(array[date], 0, 65535)
            out.extend(_windows(frame, present, 1.0, Path(path).stem))
    return _shared(out)


def ssl4eo_windows(path: Path, samples: int | None = None) -> list[Window]:
    """Windows of one SSL4EO-S12 v1.1 file (zarr-zip; arXiv 2503.00168), S2L2A.

    ``bands`` is (sample, time, band, y, x) int16 with 1000 DN added to every pixel (its statistics
    show it; the paper does not say): taken off here, and clipped at 1 so that dark pixels do not
    turn into nodata.
    """
    import zarr

    with zarr.storage.ZipStore(path, mode="r") as store:
        array = zarr.open_group(store, mode="r")["bands"]
        if array.ndim != 5 or array.shape[2] != BANDS:
            raise UnsupportedArrayError(
                f"{path}: bands of shape {array.shape}, expected 12 on axis 2"
            )
        out: list[Window] = []
        for sample in range(min(array.shape[0], samples or array.shape[0])):
            for frame in array[sample]:
                dn = np.clip(frame.astype(np.int32) - 1000, 1, 65535).astype(np.uint16)
                out.extend(_windows(dn, np.ones(BANDS, bool), 1.0, f"{Path(path).stem}_{sample}"))
    return _shared(out)


def windows(path: Path) -> list[Window]:
    """Windows of whatever lies at ``path``: a folder of ``.npz``, an SSL4EO zarr-zip, or a Zarr."""
    path = Path(path)
    if path.suffix == ".zip":
        return ssl4eo_windows(path)
    if path.is_dir() and any(path.glob("*.npz")):
        return npz_windows(path)
    if path.is_dir() and any(path.glob("*.zarr.zip")):
        return [w for file in sorted(path.glob("*.zarr.zip")) for w in ssl4eo_windows(file)]
    return zarr_windows(path)


def _shared(mine: list[Window]) -> list[Window]:
    """One place's weight, shared by its windows: the square root of its area."""
    area = sum(w.dn.shape[1] * w.dn.shape[2] for w in mine)
    return [replace(w, weight=area**0.5 / len(mine)) for w in mine]


@dataclass(frozen=True)
class Crops:
    """Crops of frames, and how each is turned into the KLT coordinates of its window.

    Pixels travel as they are stored: rotating them is work for the device that trains.
    """

    dn: np.ndarray  # (B, 12, crop, crop) uint16, absent bands zero
    mean: np.ndarray  # (B, 12) float32, DN
    rotation: np.ndarray  # (B, 12, 12) float32, rows are components; gains are in it
    sigma: np.ndarray  # (B, 12) float32, standard deviation of each component over its window, DN
    bands: np.ndarray  # (B,) how many bands are there

    def rotated(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Components (B, 12, crop, crop) float32 DN, sigma (B, 12), band counts (B,)."""
        # Torch computes little with uint16, and copies int16 as well.
        dn = torch.from_numpy(self.dn.view(np.int16)).to(device).int() & 0xFFFF
        mean, rotation, sigma = (
            torch.from_numpy(a).to(device) for a in (self.mean, self.rotation, self.sigma)
        )
        centred = dn.flatten(2).float() - mean[:, :, None]
        components = (rotation @ centred).view(dn.shape)
        return components, sigma, torch.from_numpy(self.bands).to(device)


class Sampler:
    """Draws augmented crops without end; deterministic for a seed."""

    def __init__(
        self,
        windows: list[Window],
        crop: int,
        seed: int | Sequence[int],
        drop_bands: bool = True,
    ):
        if not windows:
            raise UnsupportedArrayError(
                "no training windows: every frame is too small or mostly nodata"
            )
        self.windows, self.crop, self.drop_bands = windows, crop, drop_bands
        weights = np.array([w.weight for w in windows])
        self.cumulative = np.cumsum(weights / weights.sum())
        self.rng = np.random.default_rng(seed)

    def draw(self) -> tuple[Any, ...]:
        """One crop's part of each array of :class:`Crops`."""
        rng, crop = self.rng, self.crop
        window = self.windows[int(np.searchsorted(self.cumulative, rng.random()))]
        bands = self._bands(window.present)
        gain = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.08, BANDS))[bands]
        covariance = window.covariance[np.ix_(bands, bands)] * np.outer(gain, gain)
        values, vectors = np.linalg.eigh(covariance)
        order = np.argsort(-values)
        values, vectors = values[order], vectors[:, order]
        # Sign fixed by the largest coefficient, as in the codec.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(bands))])
        patch = window.dn[bands]
        height, width = patch.shape[1:]
        if height < crop or width < crop:
            patch = np.pad(
                patch, ((0, 0), (0, max(crop - height, 0)), (0, max(crop - width, 0))), "symmetric"
            )
            height, width = patch.shape[1:]
        top, left = rng.integers(0, height - crop + 1), rng.integers(0, width - crop + 1)
        patch = patch[:, top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        dn = np.zeros((BANDS, crop, crop), np.uint16)
        dn[bands] = np.rot90(patch, rng.integers(0, 4), axes=(1, 2))
        mean, sigma = np.zeros((2, BANDS), np.float32)
        mean[bands] = window.mean[bands]
        rotation = np.zeros((BANDS, BANDS), np.float32)
        rotation[: len(bands), bands] = (vectors * gain[:, None]).T
        sigma[: len(bands)] = np.sqrt(np.maximum(values, 0))
        return dn, mean, rotation, sigma, np.int64(len(bands))

    def _bands(self, present: np.ndarray) -> np.ndarray:
        rng, bands = self.rng, np.flatnonzero(present)
        if not self.drop_bands:
            return bands
        chance = rng.random()
        if chance < 0.1 and np.isin(BANDS_10M, bands).any():
            bands = np.intersect1d(bands, BANDS_10M)
        elif chance < 0.25:
            keep = rng.integers(min(3, len(bands)), len(bands) + 1)
            bands = np.sort(rng.choice(bands, keep, replace=False))
        return bands

    def batch(self, size: int) -> Crops:
        return Crops(*map(np.stack, zip(*(self.draw() for _ in range(size)), strict=True)))
