"""Encodes and decodes chunks with ``max_error``: the part of a frame that the bound layer codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tec_zarr.bounds import layer
from tec_zarr.bounds.request import (
    Limits,
    bits_of,
    block_bounds,
    block_levels,
    blocks_with,
    exceeded,
    resolve,
)
from tec_zarr.codec.part import Coded, Part, at_quality
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.codec.tiles import name_axes
from tec_zarr.errors import TecError
from tec_zarr.frame.frame import NO_BOUND, Header, Section, SectionKind, default_scale, mapped_bands
from tec_zarr.frame.mask import Mask, list_exactly
from tec_zarr.native import planes

BOUND_RANGE = (-(2.0**24), 2.0**24)
"""Lowest and highest DN that the bound layer codes; samples outside are listed exactly."""


def code_bounded(part: Part, limits: Limits) -> Coded:
    """Encode a chunk with the bound layer.

    Samples that would exceed their bound are listed exactly. The model codes the bands that have
    no bound.
    """
    part = replace(part, mask=_bit_for_bit(part.mask, part.samples, limits))
    samples, mask, scale = part.samples, part.mask, part.scale
    if mask is not None and mask.labels.all():
        return Coded([], mask, part.spec.quality)  # nothing is coded, so nothing has a bound
    free = limits.free
    held = [c for c in range(samples.shape[1]) if c not in free]
    rest = at_quality(part.of(free), part.spec.quality) if free else None
    measured, known = part.measured, part.known
    with np.errstate(over="ignore", under="ignore"):  # samples that are listed exactly may do both
        values = np.where(known, samples, 0).astype(np.float64) / scale - part.spec.offset
    dn = np.where(measured, np.rint(values), 0)
    # Rounding floats to whole DN uses up this much of the bound.
    taken = np.where(measured, np.abs(values - dn), 0)
    allowed = np.array(limits.bands)[:, None, None]
    with np.errstate(over="ignore"):  # a bound that overflows becomes the largest one
        room = np.floor(allowed[:, 0, 0] / scale - taken.max(axis=(0, 2, 3)) + 1e-3)
    bounds = np.clip(room, 0, NO_BOUND - 1).astype(np.int64).tolist()
    bounds = [NO_BOUND if c in free else b for c, b in enumerate(bounds)]
    levels = None
    if limits.indices:
        precision = float(np.finfo(samples.dtype).eps) if samples.dtype.kind == "f" else 0.0
        levels = block_levels(values, taken, known, measured, limits, bounds, precision)
    dn = dn.astype(np.int32)
    # Each attempt is tighter than the one before; otherwise new samples could miss each time.
    # The last two attempts are lossless. They miss the same samples, and the first of them lists
    # these, so the last one misses none.
    for less in (0, 1, 2, NO_BOUND, NO_BOUND):
        bounds = [b if b == NO_BOUND and c in limits.mapped + free else max(b - less, 0)
                  for c, b in enumerate(bounds)]  # fmt: skip
        levels = None if levels is None else np.maximum(levels - less, 0).astype(np.int32)
        sections = []
        if levels is not None:
            packed, levels = _packed_levels(levels, measured[:, limits.mapped])
            sections.append(Section(SectionKind.BOUND_MAP, packed))
        steps = _steps(bounds, held, limits.mapped, levels, samples.shape)
        data, back = layer.code(dn[:, held], measured[:, held], steps)
        sections.append(Section(SectionKind.BOUND, data))
        back = part.values(back)
        decoded = samples.copy()
        decoded[:, held] = np.where(measured[:, held], back, samples[:, held])
        missed, indices = exceeded(limits, samples, decoded, known, part.spec.offset * scale)
        missed &= measured
        if not missed.any():
            break
        mask = list_exactly(mask, samples, missed)
        measured = mask.labels == 0
        dn[missed] = 0
    else:
        raise TecError(
            f"{missed.sum()} samples of a chunk of shape {samples.shape} would exceed their "
            "bounds; this is a bug of tec_zarr, nothing was written, please report it"
        )
    errors = _largest_errors(samples, decoded, measured)
    errors[free] = np.nan
    whole = rest is None or rest.decoded is not None
    if rest is not None and rest.decoded is not None:
        decoded[:, free] = rest.decoded
    return Coded(
        sections if rest is None else rest.sections + sections,
        mask,
        part.spec.quality if rest is None else rest.quality,
        tuple(bounds),
        tuple(errors.tolist()),
        indices,
        decoded if whole else None,
    )


def _bit_for_bit(mask: Mask | None, samples: np.ndarray, limits: Limits) -> Mask | None:
    """Return ``mask`` that keeps all bits of lossless bands.

    Negative zeros, and NaNs of which ``mask`` would restore other bits, are listed exactly.
    """
    lossless = np.array(limits.bands)[:, None, None] == 0
    if mask is None or samples.dtype.kind != "f" or not lossless.any():
        return mask
    restored = samples.copy()
    mask.restore(restored)
    return list_exactly(mask, samples, lossless & (bits_of(restored) != bits_of(samples)))


def _packed_levels(levels: np.ndarray, measured: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Return the bytes of the map of bounds, and the map that the decoder will read from them."""
    with_samples, lossless = blocks_with(measured), (0,) * levels.shape[1]
    return layer.code(levels, with_samples, lossless)


def _steps(
    bounds: Sequence[int],
    held: Sequence[int],
    mapped: Sequence[int],
    levels: np.ndarray | None,
    shape: tuple[int, ...],
) -> list[int | np.ndarray]:
    """Return the argument ``steps`` of the bound layer: one bound per held band.

    A bound is a whole number, or an array if it differs between blocks.
    """
    return [
        bounds[band]
        if levels is None or band not in mapped
        else block_bounds(levels[:, mapped.index(band)], bounds[band], shape[2:])
        for band in held
    ]


def _largest_errors(samples: np.ndarray, decoded: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the largest error of each band, float64 (C,).

    A frame stores the errors of float samples in their dtype, so they are rounded up to it.
    """
    before, after = (np.where(measured, x, 0).astype(np.float64) for x in (samples, decoded))
    errors = np.abs(after - before).max(axis=(0, 2, 3))
    if samples.dtype.kind != "f":
        return errors
    held = errors.astype(samples.dtype)
    held = np.where(held < errors, np.nextafter(held, held.dtype.type(np.inf)), held)
    return held.astype(np.float64)


def within_bounds(
    spec: ChunkSpec, original: np.ndarray, decoded: np.ndarray, known: np.ndarray
) -> bool:
    """Return whether decoded chunks keep the ``max_error`` of ``spec``.

    Parameters
    ----------
    spec : ChunkSpec
        It has a ``max_error``.
    original, decoded : ndarray
        Arrays of one shape and dtype, with all bands and with axes that
        :func:`~tec_zarr.codec.encode.encode_chunk` takes.
    known : ndarray
        bool, of the same shape. False for nodata, NaN and infinities.
    """
    assert spec.max_error is not None
    axes, bands = name_axes(original.shape, None if spec.bands is None else tuple(spec.bands))
    shape = axes.to_4d(original.shape)
    shift = spec.offset * (spec.scale or default_scale(original.dtype))
    limits = resolve(spec.max_error, shape[1], bands)
    before, after, there = (a.reshape(shape) for a in (original, decoded, known))
    wrong, _ = exceeded(limits, before, after, there, shift)
    return not wrong.any()


def bound_layer(header: Header, residuals: bytes, packed: bytes, mask: Mask | None) -> np.ndarray:
    """Decode the bands of the bound layer; return DN, int32 (T, bands, H, W).

    Parameters
    ----------
    header : Header
        It has ``bounds``.
    residuals : bytes
        Payload of the section ``BOUND``.
    packed : bytes
        Payload of the section ``BOUND_MAP``; empty if the header has no ``indices``.
    mask : Mask, optional
        Labels of the chunk. None: everything was measured.
    """
    assert header.bounds is not None
    bounded, mapped = header.bounded, mapped_bands(header.indices)
    kinds = [
        planes.BLOCK_BOUNDS if c in mapped else planes.ONE_BOUND if c in bounded else planes.FREE
        for c in range(len(header.bounds))
    ]
    labels = None if mask is None else mask.labels
    decoded = planes.decode_chunk(residuals, packed, header.shape4, labels, kinds, header.bounds)
    return decoded if len(bounded) == len(kinds) else decoded[:, bounded]
