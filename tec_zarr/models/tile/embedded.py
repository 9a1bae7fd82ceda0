"""The embedded models, which code bands on the sensor's own grids.

``tec-s2`` codes each date by itself, ``tec-tt-s2`` predicts dates from others, and ``tec-flex-s2``
adds layers that can be cut off. A lapped transform turns bands into coefficients, a spectral basis
for each class of spatial frequency turns these into components, and a learned context codes them.
The core computes all of it in whole numbers from bytes to pixels, so every decoder returns the same
pixels. The three models share one weights file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.grids import Nearest
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.tile.mapped import map_of, write_map
from tec_zarr.models.tokens import FlexSection, layer_qualities
from tec_zarr.native.core import MOST_BANDS, step_of
from tec_zarr.native.tile import TileModel

_BITS_OF_ERROR = 8.0
"""Bits that a squared step of error is worth to the quantiser."""

_QUALITY_STEPS = 4096

_MOST_DN = 1 << 20
"""DN that the models code lie within this."""


class _Prepared(NamedTuple):
    """Whole DN (T, C, h, w), the measured samples, and the grids of the bands.

    If the tile has a map, the DN are those of its source, and a section begins with ``head``.
    """

    cube: np.ndarray
    known: np.ndarray | None
    grids: np.ndarray
    nearest: Nearest | None
    shape: tuple[int, int]

    @property
    def head(self) -> bytes:
        return b"" if self.nearest is None else write_map(self.nearest)

    def decoded(self, dn: np.ndarray) -> np.ndarray:
        """Return the DN of the tile that the decoded ``dn`` (T, C, h, w) stand for."""
        return dn if self.nearest is None else self.nearest.gather(dn, self.shape)


class _Embedded(Model):
    """What the embedded models share."""

    core: TileModel

    def __init__(self, core: TileModel, sha256: str):
        self.core, self.weights_sha256 = core, sha256

    def _prepared(self, cube: np.ndarray, known: np.ndarray | None, quality: float) -> _Prepared:
        if not 1 <= cube.shape[1] <= MOST_BANDS:
            raise UnsupportedArrayError(
                f"{self.name} takes 1 to {MOST_BANDS} bands, not the {cube.shape[1]} of a chunk of "
                f"shape {cube.shape}: split them into several arrays"
            )
        whole = np.empty(cube.shape, np.int32)
        for date, image in enumerate(cube):  # one by one, because floats take much memory
            whole[date] = np.clip(np.rint(image), -_MOST_DN, _MOST_DN)
        known = None if known is None else np.ascontiguousarray(known)
        shape = cube.shape[2], cube.shape[3]
        grids, step = self.core.grids(whole, known, quality), step_of(quality)
        found = map_of(whole, known, grids[:, 1], step)
        if found is None:
            return _Prepared(whole, known, grids, None, shape)
        nearest = found.worth(step**2 / _BITS_OF_ERROR)
        grids = self.core.grids(found.source, found.known, quality)
        return _Prepared(found.source, found.known, grids, nearest, shape)


class TecS2(_Embedded):
    """The image model: each date by itself."""

    name = "tec-s2"

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None = None,
        known: np.ndarray | None = None,
    ) -> Encoded:
        """Encode finite float32 DN (T, C, h, w); `known`, bool, marks measured samples."""
        tile = self._prepared(cube, known, quality)
        head, dn = tile.head, tile.cube  # is overwritten with what decoders return
        dates = [
            self.core.encode(
                image,
                None if tile.known is None else tile.known[date],
                tile.grids,
                quality,
                dn[date],
            )
            for date, image in enumerate(tile.cube)
        ]
        sections, checksums = [head + data for data, _ in dates], [check for _, check in dates]
        return Encoded(sections, checksums, tile.decoded(dn))


class TecTtS2(_Embedded):
    """The temporal model: dates predicted from up to three others, earlier or later."""

    name = "tec-tt-s2"

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None = None,
        known: np.ndarray | None = None,
        gop: int | None = None,
    ) -> Encoded:
        """Encode finite float32 DN (T, C, h, w); `known`, bool, marks measured samples.

        Dates that others depend on are coded finer than ``quality``. With ``gop``, dates refer to
        one another only within runs of that many dates.
        """
        tile = self._prepared(cube, known, quality)
        head, dn = tile.head, tile.cube  # is overwritten
        (dates,) = self.core.encode_series(
            tile.cube, tile.known, tile.grids, [quality], gop or len(cube), dn
        )
        sections, checksums = [with_map(data, head) for data, _ in dates], [c for _, c in dates]
        return Encoded(sections, checksums, tile.decoded(dn))


class TecFlexS2(_Embedded):
    """The flexible model: layers of a temporal model, of which the last ones can be cut off."""

    name = "tec-flex-s2"
    flexible = True

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None = None,
        known: np.ndarray | None = None,
        gop: int | None = None,
    ) -> Encoded:
        """Encode as `TecTtS2.encode` does, in layers 2.5 qualities apart."""
        qualities = layer_qualities(quality)
        tile = self._prepared(cube, known, quality)
        before, dn = tile.head, tile.cube  # is overwritten
        layers = self.core.encode_series(
            tile.cube, tile.known, tile.grids, qualities, gop or len(cube), dn
        )
        head = round(_QUALITY_STEPS * qualities[0]).to_bytes(2, "little")
        dates = []
        for pieces in zip(*layers, strict=True):
            groups = (
                (checksum & 0xFFFF).to_bytes(2, "little") + with_map(data, before)
                for data, checksum in pieces
            )
            dates.append(FlexSection(1, head, tuple(groups)))
        sections, checksums = [d.to_bytes() for d in dates], [d.check() for d in dates]
        return Encoded(sections, checksums, tile.decoded(dn))


def with_map(section: bytes, head: bytes) -> bytes:
    """Put a map into a section of ``tec-tt-s2`` that refers to no other date."""
    return section if section[0] & 3 else section[:1] + head + section[1:]


def _opened(path: Path) -> tuple[TileModel, str]:
    data = path.read_bytes()
    return TileModel(data, str(path)), hashlib.sha256(data).hexdigest()


def load_image(path: Path) -> TecS2:
    """Load ``tec-s2`` from a weights file. Raises FormatError if it does not hold its weights."""
    return TecS2(*_opened(path))


def load_series(path: Path) -> TecTtS2:
    """Load ``tec-tt-s2``, as `load_image` does."""
    return TecTtS2(*_opened(path))


def load_layers(path: Path) -> TecFlexS2:
    """Load ``tec-flex-s2``, as `load_image` does."""
    return TecFlexS2(*_opened(path))
