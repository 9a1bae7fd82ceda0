"""JPEG 2000, JPEG XL, x265 and VVC on the sensor's own grids: rivals that know what TEC knows.

Bands that were enlarged are found by `tec_zarr.grids`, as TEC finds them. The codecs code their
native values, and the decoder enlarges them again. Parts of a cube are bands of one grid (codecs
with a KLT) or single bands (the others). Every part is coded at many levels, and each gets the
level that makes squared error of samples plus bits times a slope least. So bits are spent where
they help most, whatever an error on a grid costs in samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from video import TUNED, klt_vvc, klt_x265_with

from tec_zarr.compare.classical import (
    KLT,
    Coded,
    Cube,
    decode_jpeg2000,
    decode_jpegxl,
    encode_jpeg2000,
    encode_jpegxl,
    klt_jpeg2000_joint,
    planes,
    to_dn,
)
from tec_zarr.grids import Grid, find
from tec_zarr.metrics import PEAK

JPEG2000_LEVELS = tuple(np.arange(38.0, 74.1, 0.75))
JPEGXL_LEVELS = tuple(np.geomspace(0.1, 15.0, 32))
HTJ2K_LEVELS = tuple(np.geomspace(0.0002, 0.03, 32))
X265_LEVELS = tuple(np.arange(6.0, 47.1, 2.0))
VVC_LEVELS = tuple(np.arange(5.0, 36.1, 3.0))
_MISSED = 0.5
"""Largest root mean square of what a grid misses, in DN, as in TEC: nobody corrects it."""
_GRID_BYTES = 2
"""What a part's grid and the number of its level take."""


class Trial(NamedTuple):
    """A part of a cube, coded at one level."""

    bytes: int
    error: float
    samples: Cube


@dataclass(frozen=True)
class Part:
    """Bands of one grid.

    Attributes
    ----------
    bands : list of int
    grid : Grid or None
    native : ndarray of uint16, (time, band, h, w)
    """

    bands: list[int]
    grid: Grid | None
    native: Cube


def jpeg2000_on_grids(cube: Cube, slope: float) -> Coded:
    """`jpeg2000` on the grids; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("jpeg2000", _Key(cube)))


def jpegxl_on_grids(cube: Cube, slope: float) -> Coded:
    """`jpegxl` on the grids; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("jpegxl", _Key(cube)))


def klt_jpeg2000_on_grids(cube: Cube, slope: float) -> Coded:
    """A KLT for the bands of each grid, then `klt_jpeg2000_joint`; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("klt-jpeg2000", _Key(cube)))


def htj2k_on_grids(cube: Cube, slope: float) -> Coded:
    """HTJ2K on the grids, a codestream a band and date; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("htj2k", _Key(cube)))


def klt_x265_on_grids(cube: Cube, slope: float) -> Coded:
    """A KLT for the bands of each grid, then x265 over the dates; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("klt-x265", _Key(cube)))


def klt_vvc_on_grids(cube: Cube, slope: float) -> Coded:
    """A KLT for the bands of each grid, then vvenc over the dates; `slope` is squared DN a bit."""
    return _coded(cube, slope, _trials("klt-vvc", _Key(cube)))


def encode_htj2k(cube: Cube, level: float) -> list[bytes]:
    """Streams of OpenJPH, one per date and band; ``level`` is its quantisation step."""
    return [imagecodecs.htj2k_encode(band, level=level, reversible=False) for band in planes(cube)]


def decode_htj2k(streams: Sequence[bytes], shape: tuple[int, ...]) -> Cube:
    """Decode the streams of `encode_htj2k` to a cube."""
    return np.stack([imagecodecs.htj2k_decode(data) for data in streams]).reshape(shape)


def parts_of(cube: Cube, together: bool) -> list[Part]:
    """Native values of the bands of a cube; bands of one grid are one part if `together`."""
    found = find(cube.astype(np.int32), search=False)
    for band, one in enumerate(found):
        if one is not None:
            off = one.grid.enlarge(one.native, cube.shape[2:]) - cube[:, band].astype(np.float64)
            found[band] = one if np.sqrt(np.mean(off**2)) <= _MISSED else None
    bands_of: dict[object, list[int]] = {}
    for band, one in enumerate(found):
        key: object = None if one is None else one.grid
        bands_of.setdefault(key if together else band, []).append(band)
    parts = []
    for bands in bands_of.values():
        first = found[bands[0]]
        if first is None:
            parts.append(Part(bands, None, np.ascontiguousarray(cube[:, bands])))
            continue
        inside = [
            slice(axis.cell[0], axis.cell[-1] + 1) for axis in first.grid.axes(cube.shape[2:])
        ]
        native = np.stack([found[b].native[:, *inside] for b in bands], 1)
        parts.append(Part(bands, first.grid, np.clip(native, 0, 65535).astype(np.uint16)))
    return parts


class _Key:
    """A cube as a key of a cache: by what it holds."""

    def __init__(self, cube: Cube):
        self.cube, self._hash = cube, hash(cube.tobytes())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and np.array_equal(self.cube, other.cube)


@lru_cache(maxsize=2)
def _trials(codec: str, key: _Key) -> list[tuple[Part, list[Trial]]]:
    levels, code, together = _CODECS[codec]
    out = []
    for part in parts_of(key.cube, together):
        original = np.clip(key.cube[:, part.bands], 0, PEAK).astype(np.float64)
        trials = []
        for level in levels:
            size, native = code(part.native, float(level))
            samples = _enlarged(part, native, key.cube.shape[2:])
            error = float(((np.clip(samples, 0, PEAK) - original) ** 2).sum())
            trials.append(Trial(size + _GRID_BYTES, error, samples))
        out.append((part, trials))
    return out


def _coded(cube: Cube, slope: float, trials: list[tuple[Part, list[Trial]]]) -> Coded:
    size, decoded = 0, np.empty_like(cube)
    for part, choices in trials:
        best = min(choices, key=lambda trial: trial.error + 8 * slope * trial.bytes)
        size += best.bytes
        decoded[:, part.bands] = best.samples
    return size, decoded


def _enlarged(part: Part, native: Cube, shape: tuple[int, int]) -> Cube:
    if part.grid is None:
        return native
    axes = part.grid.axes(shape)
    around = [(int(a.cell[0]), a.cells - int(a.cell[-1]) - 1) for a in axes]
    whole = np.pad(native, [(0, 0), (0, 0), *around], mode="edge")
    return to_dn(part.grid.enlarge(whole, shape))


def _jpeg2000(native: Cube, level: float) -> Coded:
    streams = encode_jpeg2000(native, level)
    return sum(map(len, streams)), decode_jpeg2000(streams, native.shape)


def _jpegxl(native: Cube, level: float) -> Coded:
    streams = encode_jpegxl(native, level)
    return sum(map(len, streams)), decode_jpegxl(streams, native.shape)


def _htj2k(native: Cube, level: float) -> Coded:
    streams = encode_htj2k(native, level)
    return sum(map(len, streams)), decode_htj2k(streams, native.shape)


def _half_basis(code: Callable[[Cube, float], Coded]) -> Callable[[Cube, float], Coded]:
    """A codec with a KLT, of which a basis in 16 bits would lose nothing: half its bytes."""

    def coded(native: Cube, level: float) -> Coded:
        size, decoded = code(native, level)
        return size - KLT.of(native).n_bytes // 2, decoded

    return coded


_CODECS: dict[str, tuple[tuple[float, ...], Callable[[NDArray, float], Coded], bool]] = {
    "jpeg2000": (JPEG2000_LEVELS, _jpeg2000, False),
    "jpegxl": (JPEGXL_LEVELS, _jpegxl, False),
    "klt-jpeg2000": (JPEG2000_LEVELS, _half_basis(klt_jpeg2000_joint), True),
    "htj2k": (HTJ2K_LEVELS, _htj2k, False),
    "klt-x265": (
        X265_LEVELS,
        _half_basis(lambda native, qp: klt_x265_with(native, f"qp={qp:g}:{TUNED}")),
        True,
    ),
    "klt-vvc": (VVC_LEVELS, _half_basis(klt_vvc), True),
}
