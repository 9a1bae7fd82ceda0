"""Decodes a frame to its chunk: the steps of :mod:`tec_zarr.codec.encode` in reverse."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from tec_zarr.codec import batching, second_generation
from tec_zarr.codec.batching import model_slots
from tec_zarr.codec.bounded import bound_layer
from tec_zarr.codec.tiles import CodedTile, single_payload, tiles_of
from tec_zarr.codec.values import values_of
from tec_zarr.errors import (
    ChecksumError,
    FormatError,
    TecError,
    UnsupportedArrayError,
    WeightsMismatchError,
    is_of_data,
)
from tec_zarr.frame.frame import Frame, Header, SectionKind, read_frame
from tec_zarr.models.protocol import Model
from tec_zarr.models.registry import get_model, name_of
from tec_zarr.native import frame as native_frame


def decode_chunk(
    data: bytes | memoryview,
    *,
    expected_shape: tuple[int, ...] | None = None,
    dates: Sequence[int] | None = None,
) -> np.ndarray:
    """Decode a frame that :func:`~tec_zarr.codec.encode.encode_chunk` wrote.

    Parameters
    ----------
    data : bytes-like
        One frame.
    expected_shape : tuple of int, optional
        Shape that the caller expects. A frame of another shape is refused before it is decoded.
    dates : sequence of int, optional
        Dates to decode from a chunk (time, band, y, x), counted from 0. The embedded models
        decode only these dates and those that they refer to. With ``max_error``, and of the
        published models, all dates are decoded.

    Returns
    -------
    ndarray
        It has the shape, dtype, byte order and memory order of the array that was encoded. With
        ``dates`` it has these dates only, in the order given.

    Raises
    ------
    FormatError, ChecksumError, VersionError
        The bytes are damaged, or a newer version wrote them. No pixels are returned.
    UnknownModelError, WeightsMismatchError
        The model or its weights are not installed.
    LimitError
        The frame asks for more than :mod:`tec_zarr.config` allows.
    """
    frame = read_frame(data)
    header = frame.header
    if expected_shape is not None and header.shape != tuple(expected_shape):
        raise FormatError(
            f"TEC frame of shape {header.shape} where the array has chunks of shape "
            f"{tuple(expected_shape)}: the chunk belongs to another array"
        )
    shape = header.shape
    if dates is not None:
        dates = _whole_numbers(dates)
    if dates is None:
        samples = decode_samples(data, frame)
    else:
        if len(shape) != 4 or not all(0 <= date < shape[0] for date in dates):
            raise UnsupportedArrayError(
                f"dates {list(dates)} of a chunk of shape {shape}: it must be (time, band, y, x), "
                "and have them"
            )
        shape = (len(dates), *shape[1:])
        samples = decode_samples(data, frame, list(dates))
    if header.bounds is None or any(header.bounds):
        second_generation.remember_decoded(samples)
    array = samples.reshape(shape).astype(header.dtype, copy=False)
    return np.asfortranarray(array) if header.fortran else array


def decode_samples(
    data: bytes | memoryview, frame: Frame, dates: list[int] | None = None
) -> np.ndarray:
    """Return samples (T, C, H, W) of all dates or some, in the byte order of the machine.

    The core decodes frames of the image model and frames without latents.
    """
    header = frame.header
    latents = bool(frame.of(SectionKind.LATENTS))
    model = model_of(header) if latents else None
    if model is not None and model.core is None:
        return _decoded_here(frame, model, dates)
    shape = header.shape4 if dates is None else (len(dates), *header.shape4[1:])
    samples = np.empty(shape, header.dtype.newbyteorder("="))
    with model_slots:
        try:
            native_frame.decode(bytes(data), None if model is None else model.core, dates, samples)
        except ChecksumError as error:  # of latents: `frame` was read, so the bytes are intact
            raise _other_latents(header) from error
    return samples


def _other_latents(header: Header, which: str = "a date") -> ChecksumError:
    return ChecksumError(
        f"model {name_of_model(header)!r} decoded other latents than were encoded, for {which} of "
        f"a chunk of shape {header.shape}: this machine's arithmetic disagrees with the encoder's; "
        "please report it with the versions of torch and constriction"
    )


def _decoded_here(frame: Frame, model: Model, dates: list[int] | None) -> np.ndarray:
    """Decode a frame of a model that is not in the core."""
    header = frame.header
    if dates is not None and len(dates) == header.shape4[0] and dates == sorted(set(dates)):
        dates = None  # these are all dates
    if dates is not None and header.bounded:
        return _decoded_here(frame, model, None)[dates]
    mask, free, tiles = tiles_of(frame)
    residuals = single_payload(frame, SectionKind.BOUND)
    levels = single_payload(frame, SectionKind.BOUND_MAP)
    points = single_payload(frame, SectionKind.POINTS)
    bounded = header.bounded
    if bool(residuals) != bool(bounded) or bool(levels) != bool(header.indices):
        raise FormatError("TEC frame damaged: bounds without a bound layer, or the reverse")
    samples = np.empty(header.shape4, header.dtype.newbyteorder("="))
    for tile in tiles:
        wanted = tile.dates if dates is None else [date for date in tile.dates if date in dates]
        places = None if dates is None else [tile.dates.index(date) for date in wanted]
        if places == []:
            continue
        values = values_of(_decode_tile(model, header, tile, free, places), header)
        if values.shape == samples.shape:  # one tile that is the whole chunk
            samples = values
        else:
            samples[:, :, *tile.place][np.ix_(wanted, free)] = values
    if bounded:
        samples[:, bounded] = values_of(bound_layer(header, residuals, levels, mask), header)
    if mask is not None:
        mask.restore(samples)
    if points:
        native_frame.restore_points(points, samples)
    return samples if dates is None else samples[dates]


def _whole_numbers(dates: Sequence[int]) -> list[int]:
    try:
        return [operator.index(date) for date in dates]
    except TypeError:
        raise UnsupportedArrayError(f"dates {dates!r} of a chunk must be whole numbers") from None


def _decode_tile(
    model: Model, header: Header, tile: CodedTile, bands: Sequence[int], places: list[int] | None
) -> np.ndarray:
    """Return the DN of a tile, of all its dates or of those at ``places``.

    The latents that they were made of are checked.
    """
    try:
        dn, found = _decoded(model, header, tile, bands, places)
    except TecError:
        raise
    except Exception as error:
        if not is_of_data(error):
            raise
        raise ChecksumError(
            f"model {model.name!r} could not decode the latents of a chunk of shape "
            f"{header.shape} although their bytes are intact ({type(error).__name__}: {error}): "
            "the frame was not written by this model's encoder, or this machine's arithmetic "
            "disagrees with it"
        ) from error
    wrong = [tile.dates[place] for place, crc in found.items() if crc != tile.latents_crc[place]]
    if wrong:
        raise _other_latents(header, f"dates {wrong}")
    return dn


def _decoded(
    model: Model, header: Header, tile: CodedTile, bands: Sequence[int], places: list[int] | None
) -> tuple[np.ndarray, dict[int, int]]:
    """Return the DN of a tile, and the checksums of its latents by place."""
    names = None if header.bands is None else tuple(header.bands[c] for c in bands)
    if places is not None and model.decode_dates:
        with model_slots:
            return model.decode_dates(tile.sections, tile.shape, header.quality, places)
    # The array holds DN as uint16. A model that produces whole DN returns them without a
    # detour over floats.
    whole = model.decode_whole
    plain = header.dtype.newbyteorder("=") == np.uint16
    if whole and plain and (header.scale, header.offset) == (1.0, 0.0):
        with model_slots:
            dn, crcs = whole(tile.sections, tile.shape, header.quality)
    else:
        dn, crcs = batching.decode(
            model, tile.sections, tile.shape, header.quality, names, model_slots
        )
    found = dict(zip(range(len(tile.sections)), crcs, strict=True))
    return dn if places is None else dn[places], found


def model_of(header: Header) -> Model:
    """Return the model of a frame, loaded.

    Raises WeightsMismatchError if its weights are not installed.
    """
    name = name_of_model(header)
    try:
        return get_model(name, header.weights.hex())
    except WeightsMismatchError as error:
        raise WeightsMismatchError(f"chunk of shape {header.shape}: {error}") from None


def name_of_model(header: Header) -> str:
    """Return the name of the model that coded a frame."""
    return header.model_name or name_of(header.model_id)
