"""A chunk with all that its encoding needs, and how the model encodes it at one quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tec_zarr import config
from tec_zarr.codec import batching
from tec_zarr.codec.batching import model_slots
from tec_zarr.codec.fill import fill_unknown
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.codec.tiles import TILE, coded_tiles, mask_of_bands
from tec_zarr.codec.values import from_dn, to_dn
from tec_zarr.errors import LimitError
from tec_zarr.frame.frame import QUALITY_STEPS, IndexBound, Section, SectionKind
from tec_zarr.frame.mask import Mask
from tec_zarr.models.protocol import Encoded
from tec_zarr.models.registry import find_model, get_encoder


@dataclass(frozen=True)
class Part:
    """A chunk, or some of its bands, to be encoded: samples, labels, units and settings.

    ``samples`` is (T, C, H, W) in native byte order; ``dtype`` is that of the array.
    """

    samples: np.ndarray
    mask: Mask | None
    nodata: tuple[float, ...]
    scale: float
    dtype: np.dtype
    spec: ChunkSpec
    bands: tuple[str, ...] | None

    @property
    def measured(self) -> np.ndarray:
        """True for samples that the model or the bound layer codes, bool (T, C, H, W)."""
        return np.ones(self.samples.shape, bool) if self.mask is None else self.mask.labels == 0

    @property
    def known(self) -> np.ndarray:
        """True for samples that are finite and not nodata, bool (T, C, H, W)."""
        return np.isfinite(self.samples) & ~np.isin(self.samples, self.nodata)

    def of(self, bands: Sequence[int]) -> Part:
        """Return the part that holds ``bands`` only."""
        return replace(
            self,
            samples=self.samples[:, bands],
            mask=mask_of_bands(self.mask, bands),
            bands=None if self.bands is None else tuple(self.bands[c] for c in bands),
        )

    def values(self, dn: np.ndarray) -> np.ndarray:
        """Convert decoded DN to values of the array."""
        return from_dn(dn, self.scale, self.spec.offset, self.dtype, self.nodata)


@dataclass(frozen=True)
class Coded:
    """The coded sections of a chunk, and the fields of the header that describe them.

    ``decoded`` (T, C, H, W) is what decoders make of the sections, if the encoder knows. Samples
    that the mask labels mean nothing there.
    """

    sections: list[Section]
    mask: Mask | None
    quality: float
    bounds: tuple[int, ...] | None = None
    errors: tuple[float, ...] | None = None
    indices: tuple[IndexBound, ...] = ()
    decoded: np.ndarray | None = None


def at_quality(part: Part, quality: float) -> Coded:
    """Encode a chunk with its model at one quality, tile by tile."""
    spec, mask = part.spec, part.mask
    quality = round(quality * QUALITY_STEPS) / QUALITY_STEPS
    sections: list[Section] = []
    decoded: np.ndarray | None = None
    takes = find_model(spec.model).takes
    _check_work(part)
    for tile, dates in coded_tiles(part.samples.shape, mask):
        cube = to_dn(part.samples[:, :, *tile][dates], part.scale, spec.offset)
        known = None if mask is None else mask.labels[:, :, *tile][dates] == 0
        if known is not None:
            cube = fill_unknown(cube, known)
        assert spec.weights_sha256 is not None
        model = get_encoder(spec.model, spec.weights_sha256)
        cube = np.ascontiguousarray(cube)
        offered: dict[str, Any] = {"gop": spec.gop, "known": known}
        options = {name: offered[name] for name in sorted(takes)}
        encoded = batching.encode(model, cube, quality, part.bands, model_slots, **options)
        sections += latents_of(encoded)
        if encoded.decoded is not None:
            values = part.values(encoded.decoded)
            if decoded is None and values.shape != part.samples.shape:
                decoded = np.zeros(part.samples.shape, values.dtype)
            if decoded is None:
                decoded = values
            else:
                decoded[:, :, *tile][dates] = values
    return Coded(sections, mask, quality, decoded=decoded)


def latents_of(encoded: Encoded) -> list[Section]:
    """Return the sections of a frame for what a model encoded."""
    pairs = zip(encoded.sections, encoded.latents_crc, strict=True)
    return [Section(SectionKind.LATENTS, data, crc) for data, crc in pairs]


def _check_work(part: Part) -> None:
    """Raise LimitError before encoding if the frame would have more sections than decoders take."""
    count = sum(len(dates) for _, dates in coded_tiles(part.samples.shape, part.mask))
    if count > config.MAX_LATENT_SECTIONS:
        raise LimitError(
            f"a chunk of shape {part.samples.shape} (time, band, y, x) has {count} dates of tiles "
            f"of {TILE} x {TILE} pixels, more than tec_zarr.config.MAX_LATENT_SECTIONS = "
            f"{config.MAX_LATENT_SECTIONS}: use chunks of fewer dates"
        )
