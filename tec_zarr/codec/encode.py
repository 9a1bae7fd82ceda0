"""Encodes one chunk of an array to one frame. Every caller encodes through :func:`encode_chunk`.

The steps:

1. Label the samples that must stay exact (:mod:`tec_zarr.frame.mask`).
2. Convert the others to DN (:mod:`tec_zarr.codec.values`).
3. Fill the gaps from the measured pixels around them (:mod:`tec_zarr.codec.fill`).
4. Let the model code tiles of at most 512 x 512 pixels (:mod:`tec_zarr.codec.part`).
5. List the samples that the model missed by far (:mod:`tec_zarr.codec.points`).
6. Write all sections into a frame with checksums (:mod:`tec_zarr.frame.frame`).

:mod:`tec_zarr.codec.decode` does the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tec_zarr import config, metrics
from tec_zarr.bounds.request import (
    resolve,
)
from tec_zarr.codec import second_generation, suited
from tec_zarr.codec.bounded import BOUND_RANGE, code_bounded
from tec_zarr.codec.decode import decode_samples
from tec_zarr.codec.part import Coded, Part, at_quality
from tec_zarr.codec.points import find_points, pack_points
from tec_zarr.codec.spec import ChunkSpec, check_array, check_gop
from tec_zarr.codec.targets import for_psnr, for_size
from tec_zarr.codec.tiles import KEPT_CODEC, name_axes
from tec_zarr.codec.values import DN_RANGE, possible_values, to_dn
from tec_zarr.errors import (
    LimitError,
    UnsupportedArrayError,
)
from tec_zarr.frame.frame import (
    NAMED_MODEL,
    WEIGHTS_PREFIX_BYTES,
    Axes,
    Header,
    Section,
    SectionKind,
    default_scale,
    read_frame,
    write_frame,
)
from tec_zarr.frame.mask import find_mask, pack_mask

_LEAST_DN = 2.0
"""If most values are below this many DN and not whole, they are not in DN."""


def encode_chunk(
    array: np.ndarray, spec: ChunkSpec | None = None, *, padding: Sequence[float] = ()
) -> bytes:
    """Encode one chunk.

    Parameters
    ----------
    array : ndarray
        (time, band, y, x), (band, y, x), (time, y, x) of one band, or (y, x). Dtype uint16,
        int16, float32 or float64, any byte and memory order.
    spec : ChunkSpec, optional
        Default: the default model at quality 4.
    padding : sequence of float
        Further values to treat as nodata. Zarr pads edge chunks with the fill value of the array.

    Returns
    -------
    bytes
        One self-describing frame, see ``docs/format.md``.

    Raises
    ------
    UnsupportedArrayError
        The codec does not take this dtype, rank or number of bands.
    LimitError
        The chunk is larger than :mod:`tec_zarr.config` allows.

    Warns
    -----
    SecondGenerationWarning
        The chunk holds pixels that this process decoded from TEC before.
    UnsuitedDataWarning
        The model would keep the chunk badly at any quality, because it holds classes. Or many
        chunks in a row are mostly padding.
    """
    spec = ChunkSpec() if spec is None else spec
    check_array(array.dtype, array.ndim)
    axes, bands = name_axes(array.shape, None if spec.bands is None else tuple(spec.bands))
    if axes.to_4d(array.shape)[1] > config.MAX_BANDS:
        raise LimitError(
            f"a chunk of shape {array.shape} has more bands than tec_zarr.config.MAX_BANDS = "
            f"{config.MAX_BANDS}: use smaller chunks"
        )
    if not 0 < array.size <= config.MAX_CHUNK_SAMPLES:
        raise LimitError(
            f"a chunk of shape {array.shape} has {array.size} samples; 1 to "
            f"tec_zarr.config.MAX_CHUNK_SAMPLES = {config.MAX_CHUNK_SAMPLES} are possible: "
            f"{'use smaller chunks' if array.size else 'there is nothing to encode'}"
        )
    native = array.dtype.newbyteorder("=")
    samples = array.astype(native, copy=False).reshape(axes.to_4d(array.shape))
    if not spec.is_lossless:
        second_generation.warn_if_decoded_before(samples)
    nodata = possible_values(dict.fromkeys((*spec.fill_values, *padding)), native)
    scale = spec.scale or default_scale(native)
    limits = None
    if spec.max_error is not None:
        limits = resolve(spec.max_error, samples.shape[1], bands)
    dn_range = DN_RANGE if limits is None or limits.free else BOUND_RANGE
    low, high = ((dn + spec.offset) * scale for dn in dn_range)
    mask = find_mask(samples, nodata, low, high)
    suited.warn_if_padded(None if mask is None else mask.labels)
    in_dn = spec.scale is None and (mask is None or not mask.listed.size)
    if native.kind == "f" and not in_dn and (limits is None or limits.free):
        check_unit(samples, spec)

    part = Part(samples, mask, nodata, scale, array.dtype, spec, bands)
    entry = check_gop(spec)
    free = list(range(samples.shape[1]) if limits is None else limits.free)
    if free:
        coded = None if mask is None else mask.labels == 0
        suited.warn_if_unsuited(samples, coded)

    def frame(coded: Coded) -> bytes:
        sections = []
        if coded.mask is not None:
            packed, exact = pack_mask(coded.mask)
            sections.append(Section(SectionKind.MASK, packed))
            if exact:
                sections.append(Section(SectionKind.EXACT, exact))
        header = Header(
            model_id=entry.number,
            model_name=spec.model if entry.number == NAMED_MODEL else "",
            weights=bytes.fromhex(spec.weights_sha256 or "")[:WEIGHTS_PREFIX_BYTES],
            quality=coded.quality,
            axes=axes,
            shape=array.shape,
            dtype=array.dtype,
            fortran=array.flags.f_contiguous and not array.flags.c_contiguous,
            bands=bands,
            nodata=nodata,
            scale=scale,
            offset=spec.offset,
            bounds=coded.bounds,
            errors=coded.errors,
            indices=coded.indices,
        )
        return write_frame(header, sections + coded.sections)

    def with_points(coded: Coded) -> bytes:
        # The bytes of a published model stay those of its reference implementation.
        if entry.number == NAMED_MODEL:
            return frame(coded)
        if coded.decoded is None and any(s.kind is SectionKind.LATENTS for s in coded.sections):
            data = frame(coded)
            coded = replace(coded, decoded=decode_samples(data, read_frame(data)))
        points = _points(part, coded, free)
        return frame(replace(coded, sections=coded.sections + points))

    if limits is not None:
        return with_points(code_bounded(part, limits))
    if spec.psnr is not None:
        return with_points(for_psnr(part, spec.psnr, frame))
    if spec.max_bytes is not None:
        return for_size(part, spec.max_bytes, with_points)
    return with_points(at_quality(part, spec.quality))


def _points(part: Part, coded: Coded, free: list[int]) -> list[Section]:
    """Return a section with the exact values of samples that the model missed by far.

    ``free`` are the bands that the model codes. The list is empty if there are no such samples.
    """
    if coded.decoded is None or not free:  # the model codes nothing
        return []
    both = part.samples, coded.decoded
    before, after = (to_dn(samples, part.scale, part.spec.offset) for samples in both)
    counted = None
    if part.mask is not None or len(free) < part.samples.shape[1]:
        counted = np.zeros(part.samples.shape, bool)
        counted[:, free] = part.measured[:, free]
    with np.errstate(invalid="ignore", over="ignore"):  # samples not coded by the model
        errors = np.abs(np.subtract(after, before, out=after), out=after)
    if counted is not None:
        errors[~counted] = 0
    places = find_points(errors, counted, coded.quality)
    return [Section(SectionKind.POINTS, pack_points(places, part.samples))] if len(places) else []


def check_layout(shape: Sequence[int], chunk: Sequence[int], spec: ChunkSpec) -> None:
    """Raise UnsupportedArrayError unless an array of these chunks can be encoded with ``spec``.

    xarray keeps the codec of an array of which bands are selected or whose dimensions are
    transposed, and the codec may not fit the result. This check refuses it when the new array is
    created, before its first chunk is written.
    """
    axes, bands = name_axes(tuple(chunk), None if spec.bands is None else tuple(spec.bands))
    if spec.max_error is not None:
        resolve(spec.max_error, axes.to_4d(tuple(chunk))[1], bands)
    given = len(chunk) == 4 or (axes is Axes.CYX and spec.bands is not None)
    axis = 1 if len(chunk) == 4 else 0
    if given and shape[axis] not in (0, chunk[axis]):
        raise UnsupportedArrayError(
            f"an array of shape {tuple(shape)} with chunks {tuple(chunk)} has {chunk[axis]} of "
            f"{shape[axis]} bands in a chunk: TEC codes all bands together, as (time, band, y, x). "
            + KEPT_CODEC
        )


def check_unit(samples: np.ndarray, spec: ChunkSpec) -> None:
    """Raise UnsupportedArrayError if floats are plainly not in the unit that ``spec`` says.

    ``samples`` may hold nodata and fill values such as 1e20. They are left out, because they say
    nothing about the unit.
    """
    values = metrics.measurable(samples)
    values = values[~np.isin(values, spec.fill_values)]
    values = values[:: max(1, values.size // 2**16)]
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size > 1 and counts.max() > values.size / 4:  # unnamed nodata
        values = values[values != distinct[counts.argmax()]]
    if not values.size:
        return
    if spec.scale is None:
        if metrics.dn_per_unit(values) == 1:
            raise UnsupportedArrayError(
                f"{samples.dtype} values around {np.median(values):g} are not reflectance (scale "
                "1e-4, the default for floats): pass scale=1 if they are DN"
            )
        return
    dn = values / spec.scale - spec.offset
    lost = (np.abs(dn) < _LEAST_DN) & (np.abs(dn - np.rint(dn)) > 1e-3)
    if np.count_nonzero(lost) > values.size / 2:
        raise UnsupportedArrayError(
            f"with scale={spec.scale:g}, {samples.dtype} values around {np.median(values):g} are "
            f"less than {_LEAST_DN:g} DN, of which rounding would leave nothing: leave scale out "
            "if they are reflectance (1e-4), and name with nodata what means that nothing was "
            "measured"
        )
