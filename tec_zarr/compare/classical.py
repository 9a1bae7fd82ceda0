"""JPEG 2000 and JPEG XL on Sentinel-2 cubes: what TEC is compared with, in reports too.

One function a codec: a cube, uint16 DN ``(time, band, y, x)``, and one rate parameter give the
bytes a store would hold, all of them, and the cube that the streams decode to. More codecs, with
their settings tuned, are in ``benchmarks/classical.py``. Needs imagecodecs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Optional: a report without it has TEC's curve only.
imagecodecs: Any = import_module("imagecodecs") if find_spec("imagecodecs") else None

Cube = NDArray[np.uint16]
Coded = tuple[int, Cube]

MIDDLE = 32768.0
"""What stands for 0 where signed components are coded as uint16."""


@dataclass(frozen=True)
class Quick:
    """A codec as a report tries it: its name there, a few levels, the function."""

    title: str
    levels: tuple[float, ...]
    code: Callable[[Cube, float], Coded]


def available() -> tuple[Quick, ...]:
    """Codecs for a report; none where imagecodecs is not installed."""
    if imagecodecs is None:
        return ()
    return (
        Quick("JPEG 2000, per band", (50, 54, 58, 62, 66), jpeg2000),
        Quick("JPEG XL, per band", (0.5, 1.0, 2.0, 4.0, 8.0), jpegxl),
        Quick("KLT + JPEG 2000, all bands and dates", (50, 54, 58, 62, 66), klt_jpeg2000_joint),
    )


def jpeg2000(cube: Cube, level: float) -> Coded:
    """OpenJPEG, bare codestream per date and band, 9-7, ``level`` dB of a 65,535 peak."""
    streams = encode_jpeg2000(cube, level)
    return sum(map(len, streams)), decode_jpeg2000(streams, cube.shape)


def encode_jpeg2000(cube: Cube, level: float) -> list[bytes]:
    """The streams of `jpeg2000`, band by band."""
    return [
        imagecodecs.jpeg2k_encode(band, level=level, codecformat="J2K", reversible=False)
        for band in planes(cube)
    ]


def decode_jpeg2000(streams: Sequence[bytes], shape: tuple[int, ...]) -> Cube:
    """The cube of `encode_jpeg2000`'s streams."""
    return np.stack([imagecodecs.jpeg2k_decode(data) for data in streams]).reshape(shape)


def jpegxl(cube: Cube, level: float) -> Coded:
    """libjxl per date and band, effort 7, 16-bit greyscale, butteraugli distance ``level``."""
    streams = encode_jpegxl(cube, level)
    return sum(map(len, streams)), decode_jpegxl(streams, cube.shape)


def encode_jpegxl(cube: Cube, level: float) -> list[bytes]:
    """The streams of `jpegxl`, band by band."""
    return [imagecodecs.jpegxl_encode(band, distance=level, effort=7) for band in planes(cube)]


def decode_jpegxl(streams: Sequence[bytes], shape: tuple[int, ...]) -> Cube:
    """The cube of `encode_jpegxl`'s streams."""
    return np.stack([imagecodecs.jpegxl_decode(data) for data in streams]).reshape(shape)


def klt_jpeg2000_joint(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then one JPEG 2000 codestream of all components and dates.

    OpenJPEG shares one rate-distortion slope over all components (they are its image
    components), which is what the orthonormal KLT asks for; ``level`` is dB of a 65,535
    peak over all of them. Everything is counted, with the one header.
    """
    data, klt = encode_klt_jpeg2000(cube, level)
    return len(data) + klt.n_bytes, decode_klt_jpeg2000(data, klt, cube.shape)


def encode_klt_jpeg2000(cube: Cube, level: float) -> tuple[bytes, KLT]:
    """The codestream and the basis of `klt_jpeg2000_joint`."""
    klt = KLT.of(cube)
    components = centred_uint16(klt.forward(cube))
    data = imagecodecs.jpeg2k_encode(
        components.reshape(-1, *components.shape[-2:]),
        level=level,
        codecformat="J2K",
        reversible=False,
        mct=False,
        planar=True,
    )
    return data, klt


def decode_klt_jpeg2000(data: bytes, klt: KLT, shape: tuple[int, ...]) -> Cube:
    """The cube of `encode_klt_jpeg2000`'s codestream."""
    components = imagecodecs.jpeg2k_decode(data, planar=True).reshape(shape)
    return to_dn(klt.inverse(components.astype(np.float64) - MIDDLE))


@dataclass(frozen=True)
class KLT:
    """Principal components of the bands over all dates and pixels of a cube."""

    basis: NDArray[np.float32]
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, cube: Cube) -> KLT:
        """Fit to a cube."""
        flat = np.moveaxis(cube, 1, 0).reshape(cube.shape[1], -1).astype(np.float64)
        mean = flat.mean(axis=1)
        flat -= mean[:, None]
        _, vectors = np.linalg.eigh(flat @ flat.T)
        return cls(vectors[:, ::-1].T.astype(np.float32), mean.astype(np.float32))

    @property
    def n_bytes(self) -> int:
        """What a store would hold: everything in float32."""
        return self.basis.nbytes + self.mean.nbytes

    def forward(self, cube: Cube) -> NDArray[np.float64]:
        """Components (time, component, y, x), the strongest first."""
        centred = cube - self.mean[:, None, None].astype(np.float64)
        return np.einsum("kc,tcyx->tkyx", self.basis.astype(np.float64), centred)

    def inverse(self, components: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bands (time, band, y, x) in DN."""
        spectra = np.einsum("kc,tkyx->tcyx", self.basis.astype(np.float64), components)
        return spectra + self.mean[:, None, None]


def planes(cube: Cube) -> Cube:
    """Every band of every date, one after the other: (date and band, y, x)."""
    return np.ascontiguousarray(cube).reshape(-1, *cube.shape[-2:])


def centred_uint16(components: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Components, which have mean 0, as uint16 in steps of 1 DN.

    JPEG 2000 decodes a component that got no bits to exactly 32768: that must mean 0.
    """
    return np.clip(np.rint(components) + MIDDLE, 0, 65535).astype(np.uint16)


def to_dn(values: NDArray[np.float64]) -> Cube:
    """Rounded and clipped to uint16."""
    return np.clip(np.rint(values), 0, 65535).astype(np.uint16)
