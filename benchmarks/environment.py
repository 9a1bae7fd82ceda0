"""What a measurement was made on: machine, versions, commit, data. And what data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tec_zarr.cubes.synthetic
from tec_zarr.sentinel2 import L2A_BANDS

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TEC_ZARR_BENCH_DATA", ROOT.parent / "shared" / "data")) / "eval"
"""Where the evaluation cubes lie: beside the checkout, or in a folder that holds ``eval``."""

_CROP = 256
_QUICK_DATES, _QUICK_SIDE = 2, 128


@dataclass(frozen=True)
class Scene:
    """A cube to measure on.

    Attributes
    ----------
    name : str
        Short name of the scene, with its bands where it is a subset.
    kind : str
        ``"seasonal"`` (several dates) or ``"single date"``.
    bands : tuple of str
    dn : ndarray of uint16
        ``(time, band, y, x)``.
    """

    name: str
    kind: str
    bands: tuple[str, ...]
    dn: NDArray[np.uint16]

    @property
    def sha256(self) -> str:
        """Hash of shape, bands and pixels."""
        label = f"{self.dn.shape} {self.bands}".encode()
        return hashlib.sha256(label + self.dn.astype("<u2").tobytes()).hexdigest()

    def select(self, bands: tuple[str, ...]) -> Scene:
        """The same scene with some of its bands."""
        index = [self.bands.index(band) for band in bands]
        return Scene(
            f"{self.name} [{' '.join(bands)}]",
            self.kind,
            bands,
            np.ascontiguousarray(self.dn[:, index]),
        )

    def corner(self) -> Scene:
        """The first dates and pixels of the scene: what ``--quick`` measures on."""
        dn = np.ascontiguousarray(self.dn[:_QUICK_DATES, :, :_QUICK_SIDE, :_QUICK_SIDE])
        return Scene(f"{self.name} (a corner)", self.kind, self.bands, dn)


def scenes(folder: Path) -> list[Scene]:
    """The evaluation cubes of a folder, or a synthetic one where there is no such folder.

    Cubes larger than 256 x 256 are cropped at the top left, as in the baselines.
    """
    found = list(_load(folder))
    if found:
        return found
    cube = tec_zarr.cubes.synthetic.cube(dates=4, size=_CROP, seed=7, nodata_edge=False)
    return [Scene("synthetic", "seasonal", L2A_BANDS, np.ascontiguousarray(cube.values))]


def _load(folder: Path) -> Iterator[Scene]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            dn, present = file["dn"][..., :_CROP, :_CROP], file["present"]
        bands = tuple(band for band, has in zip(L2A_BANDS, present, strict=True) if has)
        yield Scene(
            path.stem.split("__", 1)[-1].removeprefix("ssl4eos12-val-"),
            "seasonal" if len(dn) > 1 else "single date",
            bands,
            np.ascontiguousarray(dn[:, present]),
        )


def environment() -> dict[str, object]:
    """Machine and versions, as written into every results file."""
    return {"machine": machine(), "versions": versions()}


def machine() -> dict[str, object]:
    """The processor, its cores and the operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of everything that can change a number, without importing it."""
    found = {"python": platform.python_version()}
    for package in (
        "numpy", "numcodecs", "imagecodecs", "av", "imageio-ffmpeg", "scikit-learn", "zarr",
        "torch", "constriction", "distributed",
    ):  # fmt: skip
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The checked-out commit, with ``+changes`` when tracked files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        ).stdout.strip()

    dirty = git(
        "status", "--porcelain", "--untracked-files=no", "--", "tec_zarr", "benchmarks/*.py"
    )
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if dirty else "")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
