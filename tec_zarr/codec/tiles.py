"""Divides a chunk into tiles, names its axes, and handles parts of a frame that tiles share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tec_zarr.errors import FormatError, UnsupportedArrayError
from tec_zarr.frame.frame import Axes, Frame, SectionKind
from tec_zarr.frame.mask import Mask, unpack_mask
from tec_zarr.sentinel2 import L1C_BANDS, L2A_BANDS

TILE = 512
"""Longest side of a tile, in pixels. A model codes one tile at a time."""


KEPT_CODEC = (
    "If xarray kept the codec in the encoding of a store that this was selected from or turned "
    "over, write tec_zarr.drop_encoding(ds), or ds.tec.to_zarr(...); an array that a failed write "
    "left in the store has to be deleted first"
)


def mask_of_bands(mask: Mask | None, bands: Sequence[int]) -> Mask | None:
    """Return the labels of some of the bands.

    The listed values are left out, because their order depends on all bands.
    """
    if mask is None or len(bands) == mask.labels.shape[1]:
        return mask
    return Mask(mask.labels[:, bands], mask.values, mask.listed[:0])


def name_axes(
    shape: tuple[int, ...], bands: tuple[str, ...] | None
) -> tuple[Axes, tuple[str, ...] | None]:
    """Return the axes of a chunk, and the names along its band axis if they are known."""
    if len(shape) == 2:
        axes = Axes.YX
    elif len(shape) == 4:
        axes = Axes.TCYX
    elif bands is not None:
        axes = Axes.TYX if len(bands) == 1 else Axes.CYX
    else:
        axes = Axes.CYX if shape[0] == len(L2A_BANDS) else Axes.TYX
    count = axes.to_4d(shape)[1]
    if bands is None:
        return axes, {len(L2A_BANDS): L2A_BANDS, len(L1C_BANDS): L1C_BANDS}.get(count)
    if len(bands) != count:
        raise UnsupportedArrayError(
            f"a chunk of shape {shape} has {count} band{'s' * (count != 1)}, the codec was given "
            f"{len(bands)} ({', '.join(bands)}): chunk the array with all of its bands in one "
            "chunk, as (time, band, y, x). " + KEPT_CODEC
        )
    return axes, bands


def coded_tiles(
    shape: tuple[int, int, int, int], mask: Mask | None
) -> Iterator[tuple[tuple[slice, slice], Sequence[int]]]:
    """Yield tiles row by row, each with the dates that the model codes in it.

    Tiles in which the model codes no date are left out.
    """
    t, _, h, w = shape
    if mask is not None and mask.labels.all():
        return
    for y in _cuts(h):
        for x in _cuts(w):
            coded: Sequence[int] = range(t)
            if mask is not None:
                labels = mask.labels[:, :, y, x]
                coded = np.flatnonzero((labels == 0).any(axis=(1, 2, 3))).tolist()
            if coded:
                yield (y, x), coded


def _cuts(size: int) -> Iterator[slice]:
    """Yield nearly equal parts of at most ``TILE`` pixels that start at multiples of 8."""
    parts = -(-size // TILE)
    step = 8 * -(-size // (8 * parts))
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def single_payload(frame: Frame, kind: SectionKind) -> bytes:
    """Return the payload of the section of a kind, or no bytes if there is none.

    Raises FormatError if there are several, or if the section is empty.
    """
    payloads = frame.payloads(kind)
    if len(payloads) > 1 or payloads == [b""]:
        raise FormatError(
            f"TEC frame damaged: {len(payloads)} sections of kind {kind.name}, or an empty one"
        )
    return payloads[0] if payloads else b""


@dataclass(frozen=True)
class CodedTile:
    """A tile of a frame: where it lies, which dates have a section, and those sections.

    ``shape`` is that of the tile's coded dates and bands, (T, C, h, w). ``latents_crc`` are the
    CRC32s of the sections' latents.
    """

    place: tuple[slice, slice]
    dates: Sequence[int]
    shape: tuple[int, int, int, int]
    sections: list[bytes]
    latents_crc: list[int]


def tiles_of(frame: Frame) -> tuple[Mask | None, list[int], list[CodedTile]]:
    """Mask of a frame, the bands that the model coded, and the coded tiles.

    Raises
    ------
    FormatError
        The frame has more or fewer sections than its mask asks for.
    """
    header = frame.header
    packed, exact = (single_payload(frame, kind) for kind in (SectionKind.MASK, SectionKind.EXACT))
    if exact and not packed:
        raise FormatError("TEC frame damaged: exact values without a mask")
    native = header.dtype.newbyteorder("=")
    mask = unpack_mask(packed, exact, header.shape4, native) if packed else None
    free = [c for c in range(header.shape4[1]) if c not in header.bounded]
    latents = frame.of(SectionKind.LATENTS)
    coded = coded_tiles(header.shape4, mask_of_bands(mask, free)) if free else iter(())
    places = list(islice(coded, len(latents) + 1))  # each has a section at least
    if len(latents) != sum(len(dates) for _, dates in places):
        raise FormatError(
            f"TEC frame damaged: {len(latents)} latent sections for a chunk of shape "
            f"{header.shape}, whose mask asks for another number"
        )
    rest, tiles = iter(latents), []
    for (y, x), dates in places:
        shape = (len(dates), len(free), y.stop - y.start, x.stop - x.start)
        some = list(islice(rest, len(dates)))
        sections, crcs = [s.data for s in some], [s.latents_crc for s in some]
        tiles.append(CodedTile((y, x), dates, shape, sections, crcs))
    return mask, free, tiles
