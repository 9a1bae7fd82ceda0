"""``tec-s2``: the embedded image model, which codes bands on the sensor's own grids.

Each date of a tile is coded by itself. Its bands become planes on their own grids (`layout`). A
lapped transform turns the planes into coefficients. A spectral basis for each class of spatial
frequency (`bases`) turns the coefficients of all bands into components. The core codes these with a
learned context. Decoding uses whole numbers only, so every decoder returns the same pixels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tec_zarr.errors import FormatError, UnsupportedArrayError
from tec_zarr.grids import Kind
from tec_zarr.models.klt import MOST_BANDS, BitReader, BitWriter
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.tile import bases
from tec_zarr.models.tile.bases import NO_BASIS, Basis
from tec_zarr.models.tile.layout import UNITS, Layout
from tec_zarr.models.tile.mapped import map_of, write_map
from tec_zarr.models.tile.weights import Weights, read_weights
from tec_zarr.native import core
from tec_zarr.native.core import CLASSES, SIZE, Walk, step_of
from tec_zarr.native.tile import TileModel

BITS_OF_ERROR = 8.0
"""Bits that a squared step of error is worth to the quantiser."""

_LONGEST_HEADER = 16384


@dataclass(frozen=True)
class Spectrum:
    """The header of a section.

    Attributes
    ----------
    layout : Layout
        Grids of the bands.
    means : ndarray of int, (bands,)
        Means in DN, subtracted from the planes.
    bases : tuple of Basis
        One for each class of frequencies.
    """

    layout: Layout
    means: np.ndarray
    bases: tuple[Basis, ...]

    @cached_property
    def components(self) -> np.ndarray:
        """Number of components of each class, int32 (5,)."""
        return np.array([b.components for b in self.bases], np.int32)

    @cached_property
    def spreads(self) -> np.ndarray:
        """Spreads of the components: int32 (5, 31)."""
        out = np.zeros((CLASSES, MOST_BANDS), np.int32)
        for row, basis in zip(out, self.bases, strict=True):
            row[: basis.components] = basis.spreads
        return out

    def walk(self, weights: Weights, quality: float, hints: np.ndarray | None = None) -> Walk:
        """Return the coder of the coefficients of a date."""
        rows, cols = blocks_of(self.layout)
        kind = 64 if self.layout.coarse else 0
        fineness = min(math.floor(16 * (quality - 1) + 0.5), 127)
        return Walk(
            weights.context, self.components, self.spreads, rows, cols, kind, fineness, hints
        )


def blocks_of(layout: Layout) -> tuple[int, int]:
    """Return the number of rows and columns of blocks of a tile."""
    height, width = layout.plane_shape(0)
    return -(-height // SIZE), -(-width // SIZE)


def bands_of(layout: Layout, class_: int) -> list[int]:
    """Return the bands whose planes have frequencies of a class."""
    return layout.fine + layout.coarse if class_ < CLASSES - 1 else layout.fine


def frequencies_of(class_: int) -> list[tuple[int, int]]:
    """Return (u, v) of the frequencies of a class, in the order in which they are coded."""
    one = np.zeros(CLASSES, np.int32)
    one[class_] = 1
    return [(int(u), int(v)) for _, u, v, _ in core.planes(one)]


class Transform:
    """Transforms planes to coefficients of bands and back, with the tensors of a weights file."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.frequencies = [frequencies_of(class_) for class_ in range(CLASSES)]

    def _gain(self, layout: Layout, band: int) -> np.ndarray:
        """Return the gains of the frequencies of a band's plane, in 1/2^16."""
        cells = layout.cells(band)
        factor = 0 if cells is None else cells.factor - 1
        if layout.levels[band] == 0:
            return self.weights["gain.16"][factor]
        grid = layout.grids[band]
        assert grid is not None
        kind = "repeated" if grid.kind == Kind.REPEATED else "bilinear"
        return self.weights[f"gain.8.{kind}"][factor]

    def forward(self, layout: Layout, planes: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return coefficients for each class: float64 (bands, frequencies, rows, cols)."""
        rows, cols = blocks_of(layout)
        of_bands = []
        for band, plane in enumerate(planes):
            size = SIZE >> layout.levels[band]
            full = np.pad(
                plane, [(0, rows * size - plane.shape[0]), (0, cols * size - plane.shape[1])],
                mode="edge",
            )  # fmt: skip
            overlap, dct = (self.weights[f"{name}.{size}"] for name in ("overlap", "dct"))
            gain = self._gain(layout, band) / 65536
            of_bands.append(
                core.forward(full, size, overlap, dct, gain).reshape(size, size, rows, cols)
            )
        return [
            np.stack([[of_bands[band][at] for at in places] for band in bands_of(layout, class_)])
            if bands_of(layout, class_) else np.empty((0, len(places), rows, cols))
            for class_, places in enumerate(self.frequencies)
        ]  # fmt: skip

    def inverse(
        self,
        layout: Layout,
        components: Sequence[np.ndarray],
        all_bases: Sequence[Basis],
        step: float,
    ) -> list[np.ndarray]:
        """Return planes, int32 in whole `UNITS`, from components in 1/64 step for each class.

        `components` are int32 (frequencies, components, rows, cols).
        """
        rows, cols = blocks_of(layout)
        sizes = [SIZE >> level for level in layout.levels]
        out = [np.zeros((size, size, rows, cols), np.int32) for size in sizes]
        whole = int(step * 256)
        for class_, (places, values, basis) in enumerate(
            zip(self.frequencies, components, all_bases, strict=True)
        ):
            if not basis.components:
                continue
            bands = bands_of(layout, class_)
            at = np.array(places)
            gain = np.stack(
                [self._gain(layout, b).astype(np.int64)[at].prod(axis=1) for b in bands], 1
            )
            factor = ((whole << 39) + gain) // (2 * gain)
            mixed = core.mix(np.ascontiguousarray(values), basis.vectors, factor)
            for i, band in enumerate(bands):
                out[band][at[:, 0], at[:, 1]] = mixed[:, i]
        planes = []
        for band, (size, coefficients) in enumerate(zip(sizes, out, strict=True)):
            tensors = (self.weights[f"{name}_back.{size}"] for name in ("overlap", "dct"))
            full = core.inverse(coefficients.reshape(size * size, rows, cols), size, *tensors)
            height, width = layout.plane_shape(layout.levels[band])
            planes.append(full[:height, :width])
        return planes


class TecS2(Model):
    """The embedded image model."""

    name = "tec-s2"
    core: TileModel

    def __init__(self, weights: Weights, sha256: str):
        self.weights, self.weights_sha256 = weights, sha256
        self.transform = Transform(weights)
        self.core = TileModel(weights.file())

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None = None,
        known: np.ndarray | None = None,
    ) -> Encoded:
        """Encode finite float32 DN (T, C, h, w); `known`, bool, marks measured samples."""
        check_bands(cube.shape)
        whole = np.clip(np.rint(cube), -(1 << 20), 1 << 20).astype(np.int32, order="C")
        known = None if known is None else np.ascontiguousarray(known)
        grids = self.core.grids(whole, known, quality)
        found = map_of(whole, known, grids[:, 1], step_of(quality))
        head = b""
        if found is not None:
            head = write_map(found.worth(step_of(quality) ** 2 / BITS_OF_ERROR))
            whole, known = found.source, found.known
            grids = self.core.grids(whole, known, quality)
        dates = [
            self.core.encode(image, None if known is None else known[date], grids, quality)
            for date, image in enumerate(whole)
        ]
        return Encoded([head + data for data, _ in dates], [checksum for _, checksum in dates])

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None = None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decode; return float32 DN of `shape` and the CRC32 of each date's latents."""
        out, crcs = self._decode(sections, shape, quality, range(shape[0]))
        return out.astype(np.float32), crcs

    def decode_whole(
        self, sections: list[bytes], shape: tuple[int, int, int, int], quality: float
    ) -> tuple[np.ndarray, list[int]]:
        """Decode as `decode` does, but to uint16; values beyond uint16 saturate."""
        out, crcs = self._decode(sections, shape, quality, range(shape[0]))
        return np.clip(out, 0, 65535).astype(np.uint16), crcs

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Decode some dates; return float32 DN (len(dates), C, h, w), and CRC32s by date."""
        out, crcs = self._decode(sections, shape, quality, dates)
        return out.astype(np.float32), dict(zip(dates, crcs, strict=True))

    def _decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, list[int]]:
        check_bands(shape)
        out = np.empty((len(dates), *shape[1:]), np.int32)
        return out, [
            self.core.decode(sections[date], quality, image)
            for image, date in zip(out, dates, strict=True)
        ]

    def decode_date(self, section: bytes, quality: float, image: np.ndarray) -> np.ndarray:
        """Write the DN of one date into `image`, int32 (C, h, w), and return its latents."""
        step = step_of(quality)
        spectrum, data = read_header(section, len(image), image.shape[1:], step)
        latents, indexes = spectrum.walk(self.weights, quality).decode(data)
        components = self.dequantised(spectrum, latents, indexes)
        layout = spectrum.layout
        planes = self.transform.inverse(layout, components, spectrum.bases, step)
        for band, (plane, mean) in enumerate(zip(planes, spectrum.means.tolist(), strict=True)):
            image[band] = layout.samples(band, plane + UNITS * mean)
        return latents

    def dequantised(
        self, spectrum: Spectrum, latents: np.ndarray, indexes: np.ndarray
    ) -> list[np.ndarray]:
        """Return components in 1/64 step by class: int32 (frequencies, components, rows, cols).

        Each value is moved a little towards zero, because of the values that were rounded to it
        more lie on that side.
        """
        magnitude = np.abs(latents)
        nearer = self.weights["towards_zero"][indexes, np.clip(magnitude, 1, 2) - 1].astype(
            np.int32
        )
        means = spectrum.components[0]  # predicted from neighbours, so not denser near zero
        nearer[:means] = 0
        values = np.clip(latents, -(1 << 20), 1 << 20) * 64 - np.sign(latents) * nearer
        out, start = [], 0
        for places, count in zip(self.transform.frequencies, spectrum.components, strict=True):
            end = start + len(places) * int(count)
            out.append(values[start:end].reshape(len(places), int(count), *latents.shape[1:]))
            start = end
        return out


def analysed(
    model: TecS2, layout: Layout, planes: Sequence[np.ndarray], quality: float
) -> tuple[Spectrum, np.ndarray]:
    """Return the spectrum of a date, and its coefficients in steps.

    Coefficients are float64 (planes, rows, cols).
    """
    return _analysed(model, layout, planes, quality)[:2]


def _analysed(
    model: TecS2, layout: Layout, planes: Sequence[np.ndarray], quality: float
) -> tuple[Spectrum, np.ndarray, bytes]:
    step = step_of(quality)
    bits = BitWriter()
    layout.write(bits)
    means = _write_means(bits, [float(p.mean()) for p in planes], step)
    classes = model.transform.forward(layout, [p - m for p, m in zip(planes, means, strict=True)])
    rows, cols = blocks_of(layout)
    found: list[Basis] = []
    wanted = [np.empty((0, rows, cols))]
    for class_, values in enumerate(classes):
        if not len(values):
            found.append(NO_BASIS)
            continue
        covariance = core.products(values.reshape(len(values), -1)) / values[0].size
        before = found[-1] if found else NO_BASIS
        basis = bases.write(bits, covariance, step, class_, before)
        found.append(basis)
        if basis.components:
            vectors = basis.vectors / (2.0**bases.BASIS_BITS * step)
            projected = core.project(np.ascontiguousarray(values), vectors)
            wanted.append(projected.swapaxes(0, 1).reshape(-1, rows, cols))
    spectrum = Spectrum(layout, means, tuple(found))
    return spectrum, np.concatenate(wanted), bits.to_bytes()


def read_header(
    section: bytes, bands: int, shape: tuple[int, int], step: float
) -> tuple[Spectrum, bytes]:
    """Read the header of a section; return it and the bytes behind it.

    Raises
    ------
    FormatError
        The bytes end too soon, or they are not a header.
    """
    head = section[:_LONGEST_HEADER]
    bits = BitReader(head)
    layout = Layout.read(bits, bands, shape)
    means = _read_means(bits, bands, step)
    if np.abs(means).max() > 1 << 21:
        raise FormatError("a section's means are out of range")
    found: list[Basis] = []
    for class_ in range(CLASSES):
        there, before = bands_of(layout, class_), found[-1] if found else NO_BASIS
        found.append(bases.read(bits, len(there), class_, before) if there else NO_BASIS)
    return Spectrum(layout, means, tuple(found)), section[len(head) - bits.left // 8 :]


def _mean_digits(step: float) -> int:
    """Return log2 of the unit of means, which is about 1/32 step.

    The unit is small, because the rounding of a mean is an error of every pixel.
    """
    return max(math.floor(math.log2(step / 32)), 0)


def _write_means(bits: BitWriter, means: Sequence[float], step: float) -> np.ndarray:
    digits = _mean_digits(step)
    whole = [round(mean / 2**digits) for mean in means]
    for value, before in zip(whole, [0, *whole[:-1]], strict=True):
        bits.put_signed(value - before, max(8 - digits, 0))
    return np.array(whole, np.int64) << digits


def _read_means(bits: BitReader, count: int, step: float) -> np.ndarray:
    digits = _mean_digits(step)
    differences = [bits.get_signed(max(8 - digits, 0)) for _ in range(count)]
    return np.cumsum(np.array(differences, np.int64)) << digits


def check_bands(shape: tuple[int, ...]) -> None:
    """Raise UnsupportedArrayError unless a section can hold the bands."""
    if not 1 <= shape[1] <= MOST_BANDS:
        raise UnsupportedArrayError(
            f"tec-s2 takes 1 to {MOST_BANDS} bands, not the {shape[1]} of a chunk of shape "
            f"{shape}: split them into several arrays"
        )


def load(path: Path) -> TecS2:
    """Load the model from a weights file."""
    return TecS2(read_weights(path), hashlib.sha256(path.read_bytes()).hexdigest())
