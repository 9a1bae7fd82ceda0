"""One chunk of an array to bytes and back: the one way, whoever calls.

Encoding: label what must stay exact (:mod:`tec_zarr.frame.mask`), convert to DN, continue the
measured pixels into the rest (:mod:`tec_zarr.codec.fill`), let the model code tiles of at most 512
x 512 pixels, list what it missed by far (:mod:`tec_zarr.codec.points`), put everything into a
checked frame (:mod:`tec_zarr.frame.frame`). Decoding is the same walk backwards.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tec_zarr import config, metrics
from tec_zarr.bounds import layer
from tec_zarr.bounds.request import (
    ALL,
    Limits,
    NamedBounds,
    bits_of,
    block_bounds,
    block_levels,
    blocks_with,
    exceeded,
    resolve,
)
from tec_zarr.codec import batching, second_generation, suited
from tec_zarr.codec.fill import fill_unknown
from tec_zarr.codec.points import find_points, pack_points, restore_points
from tec_zarr.errors import (
    ChecksumError,
    FormatError,
    LimitError,
    TecError,
    UnsupportedArrayError,
    WeightsMismatchError,
    is_of_data,
)
from tec_zarr.frame.frame import (
    NAMED_MODEL,
    NO_BOUND,
    QUALITY_STEPS,
    WEIGHTS_PREFIX_BYTES,
    Axes,
    Frame,
    Header,
    IndexBound,
    Section,
    SectionKind,
    default_scale,
    mapped_bands,
    read_frame,
    write_frame,
)
from tec_zarr.frame.mask import Mask, find_mask, list_exactly, pack_mask, unpack_mask
from tec_zarr.models.protocol import DateModel, Entry, Model, TemporalModel, WholeModel
from tec_zarr.models.registry import GridModel, find_model, get_encoder, get_model, name_of
from tec_zarr.sentinel2 import L1C_BANDS, L2A_BANDS, band_names

TILE = 512
"""Longest side, in pixels, of what a model sees at once."""

DN_RANGE = (-1000.0, 20000.0)
"""DN that the model codes; samples outside are listed exactly."""

BOUND_RANGE = (-(2.0**24), 2.0**24)
"""DN that the bound layer codes."""

PEAK_DN = 10_000.0
"""Peak of the PSNR that ``psnr=`` asks for: reflectance 1."""

_KEPT_CODEC = (
    "If xarray kept the codec in the encoding of a store that this was selected from or turned "
    "over, write tec_zarr.decode(ds), or ds.tec.to_zarr(...); an array that a failed write left "
    "in the store has to be deleted first"
)

_LEAST_DN = 2.0
"""Where most values are less and no whole numbers, somebody called reflectance DN."""

DTYPES = ("uint16", "int16", "float32", "float64")
QUALITY_RANGE = (1.0, 8.0)
MAX_NODATA = 16

if TYPE_CHECKING:
    from typing import Self

_SLOTS = config.MAX_CONCURRENT_CHUNKS
_model_slots = threading.BoundedSemaphore(_SLOTS)
_forking = threading.Lock()


def _wait_for_models() -> None:
    """Before a fork: a thread inside BLAS or torch would leave their locks taken in the child."""
    _forking.acquire()
    for _ in range(_SLOTS):
        _model_slots.acquire()


def _go_on() -> None:
    for _ in range(_SLOTS):
        _model_slots.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_models, after_in_parent=_go_on, after_in_child=_go_on
    )


@dataclass(frozen=True)
class ChunkSpec:
    """How chunks are encoded; decoding needs none of it.

    Parameters
    ----------
    model : str
        Name of the learned model.
    quality : float
        1 (smallest) to 8 (finest), continuous, the same scale for every model.
    bands : sequence of str, optional
        Sentinel-2 names along the band axis, in its order. A chunk of 12 bands needs none
        (L2A, B01 ... B12), nor does one of dates and 13 bands (L1C). Twelve dates of one band,
        (12, y, x), do need the band's name: they would be taken for twelve bands.
    nodata : number or sequence of numbers, optional
        Values that mean "nothing measured": kept exactly, never shown to the network, never
        the result of decoding a measured sample. NaN always is. None: no such value.
    scale : float, optional
        ``value = (DN + offset) * scale``. None: 1 for integers, 1e-4 (reflectance) for floats.
    offset : float
        DN that the values carry on top, 1000 for products of baseline 04.00 and later whose
        offset was not removed.
    weights_sha256 : str, optional
        Weights to use. None: the newest of the model; filled in at once, so that the
        configuration names them.
    max_error : number, sequence of numbers or mapping, optional
        Largest absolute error of every measured sample, in the units of the array, for all bands
        or one for each; 0 is lossless. For floating-point arrays the bound holds up to the last
        place of the dtype; 0 is bit for bit. A mapping has bounds by name: of bands, of all of
        them (``"all"``), of normalised differences by their usual names (``"ndvi"``, ``"ndwi"``,
        see `tec_zarr.sentinel2.NORMALISED_DIFFERENCES`) or as ``"nd:B08,B04"``; a band that
        nothing names is coded at ``quality``. The others are coded by the bound layer
        (``docs/error-bounds.md``), whatever ``quality`` says.
    psnr : float, optional
        Reach this PSNR (dB, peak 10,000 DN, over the measured samples of the chunk, clipped to
        0 .. 10,000 DN) with the lowest quality that does, instead of ``quality``.
    max_bytes : int, optional
        Take the highest quality whose frame has no more bytes, instead of ``quality``.
    gop : int, optional
        For temporal models: dates refer to one another only within runs of this many ("group of
        pictures"), so that fewer have to be decoded for one. None: within the whole chunk.

    Raises
    ------
    UnsupportedArrayError
        An argument out of its range.
    UnknownModelError
        No such model, and no weights given.
    """

    model: str = "tec-s2"
    quality: float = 4.0
    bands: Sequence[str] | None = None
    nodata: Sequence[float] | float | None = 0
    scale: float | None = None
    offset: float = 0.0
    weights_sha256: str | None = None
    max_error: Mapping[str, float] | Sequence[float] | float | None = None
    psnr: float | None = None
    max_bytes: int | None = None
    gop: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        low, high = QUALITY_RANGE
        if not low <= self.quality <= high:
            raise UnsupportedArrayError(
                f"quality is {self.quality}, it must be {low:g} (smallest) to {high:g} (finest)"
            )
        if self.scale is not None and not 1e-30 < self.scale < 1e30:
            raise UnsupportedArrayError(
                f"scale is {self.scale}, it must be a positive number (1e-30 to 1e30)"
            )
        if not math.isfinite(self.offset):
            raise UnsupportedArrayError(f"offset is {self.offset}, it must be a finite number")
        if len(self.fill_values) > MAX_NODATA:
            raise UnsupportedArrayError(
                f"{len(self.fill_values)} nodata values, at most {MAX_NODATA} can be kept apart"
            )
        targets = {"max_error": self.max_error, "psnr": self.psnr, "max_bytes": self.max_bytes}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise UnsupportedArrayError(f"{' and '.join(given)} were given, take one of them")
        bands = None if self.bands is None else band_names(self.bands)
        max_error: Any = self.max_error
        if isinstance(max_error, Mapping):
            max_error = NamedBounds(max_error)
            given.remove("max_error")
            if bands is not None:  # say at once which of them are not there
                resolve(max_error, len(bands), bands)
        for name in given:
            values = np.atleast_1d(np.asarray(targets[name], np.float64))
            finite = values.size and values.ndim == 1 and np.isfinite(values).all()
            if not finite or (values < 0).any():
                raise UnsupportedArrayError(f"{name} is {targets[name]}, it must be 0 or more")
        if max_error is not None and not isinstance(max_error, Mapping):
            max_error = np.asarray(max_error, np.float64).tolist()
            max_error = tuple(max_error) if isinstance(max_error, list) else max_error
        weights = self.weights_sha256 or find_model(self.model).newest
        for name, value in (
            ("quality", float(self.quality)),
            ("bands", bands),
            ("max_error", max_error),
            ("nodata", self.fill_values),
            ("offset", float(self.offset)),
            ("scale", None if self.scale is None else float(self.scale)),
            ("psnr", None if self.psnr is None else float(self.psnr)),
            ("max_bytes", None if self.max_bytes is None else int(self.max_bytes)),
            ("weights_sha256", weights),
        ):
            object.__setattr__(self, name, value)

    @property
    def fill_values(self) -> tuple[float, ...]:
        """``nodata`` as a tuple, without NaN and infinities, which are kept exactly anyway."""
        nodata = () if self.nodata is None else tuple(np.atleast_1d(self.nodata).tolist())
        return tuple(dict.fromkeys(v for v in nodata if math.isfinite(v)))

    @property
    def is_lossless(self) -> bool:
        """Whether every value comes back bit for bit."""
        if isinstance(self.max_error, Mapping):
            return self.max_error.get(ALL) == 0 and not any(self.max_error.values())
        return self.max_error is not None and not np.any(self.max_error)

    @classmethod
    def from_config(cls, configuration: dict[str, Any]) -> Self:
        """Rebuild from :meth:`to_config`; says what to do about keys of a newer tec_zarr."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(configuration) - known)
        if unknown:
            raise UnsupportedArrayError(
                f"codec 'tec' is configured with {unknown}, which this tec_zarr does not know: "
                "pip install --upgrade tec_zarr"
            )
        return cls(**configuration)

    def to_config(self) -> dict[str, Any]:
        """JSON configuration: the same for every scene, so that stores can be concatenated."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(ChunkSpec)}))


def check_gop(spec: ChunkSpec) -> Entry:
    """Model of ``spec``; refuses a ``gop`` that it would ignore."""
    entry = find_model(spec.model)
    if spec.gop is not None and not entry.temporal:
        raise UnsupportedArrayError(
            f"gop={spec.gop} is for temporal models that have runs of dates, such as tec-tt-s2; "
            f"{spec.model} has none: leave it out"
        )
    return entry


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
        Further values to treat as nodata, such as the fill value of a Zarr array, with which
        it pads its edge chunks.

    Returns
    -------
    bytes
        One self-describing frame, see ``docs/format.md``.

    Raises
    ------
    UnsupportedArrayError
        Dtype, dimensions or band count that the codec does not take.

    Warns
    -----
    SecondGenerationWarning
        When the chunk holds pixels that this process decoded from TEC before.
    UnsuitedDataWarning
        When the model would keep the chunk badly at any quality: classes, more than 12 bands. Or
        when chunk after chunk is padding for the most part.
    """
    spec = ChunkSpec() if spec is None else spec
    check_array(array.dtype, array.ndim)
    axes, bands = _name_axes(array.shape, None if spec.bands is None else tuple(spec.bands))
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
    nodata = _possible(dict.fromkeys((*spec.fill_values, *padding)), native)
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

    part = _Part(samples, mask, nodata, scale, array.dtype, spec, bands)
    entry = check_gop(spec)
    free = samples.shape[1] if limits is None else len(limits.free)
    if free:
        coded = None if mask is None else mask.labels == 0
        suited.warn_if_unsuited(samples, coded, 0 if entry.number == NAMED_MODEL else free)

    def frame(coded: _Coded) -> bytes:
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
            latents_crc=coded.latents_crc,
        )
        return write_frame(header, sections + coded.sections)

    def with_points(coded: _Coded) -> bytes:
        # Published models are the business of others: their bytes stay those of the reference.
        if entry.number == NAMED_MODEL:
            return frame(coded)
        return frame(replace(coded, sections=coded.sections + _points(part, frame(coded))))

    if limits is not None:
        return with_points(_bounded(part, limits))
    if spec.psnr is not None:
        return with_points(_for_psnr(part, spec.psnr, frame))
    if spec.max_bytes is not None:
        return _for_size(part, spec.max_bytes, with_points)
    return with_points(_at_quality(part, spec.quality))


@dataclass(frozen=True)
class _Part:
    """What every way of coding a chunk starts from; ``samples`` (T, C, H, W) in native order."""

    samples: np.ndarray
    mask: Mask | None
    nodata: tuple[float, ...]
    scale: float
    dtype: np.dtype
    spec: ChunkSpec
    bands: tuple[str, ...] | None

    @property
    def measured(self) -> np.ndarray:
        """Samples that the model or the bound layer codes, bool (T, C, H, W)."""
        return np.ones(self.samples.shape, bool) if self.mask is None else self.mask.labels == 0

    @property
    def known(self) -> np.ndarray:
        """Samples that are no nodata, no NaN and not infinite, bool (T, C, H, W)."""
        return np.isfinite(self.samples) & ~np.isin(self.samples, self.nodata)

    def of(self, bands: Sequence[int]) -> _Part:
        """Some of the bands."""
        return replace(
            self,
            samples=self.samples[:, bands],
            mask=mask_of_bands(self.mask, bands),
            bands=None if self.bands is None else tuple(self.bands[c] for c in bands),
        )

    def values(self, dn: np.ndarray) -> np.ndarray:
        """The array's own values of decoded DN."""
        return _from_dn(dn, self.scale, self.spec.offset, self.dtype, self.nodata)


@dataclass(frozen=True)
class _Coded:
    """A chunk's coded sections and what the header has to say of them."""

    sections: list[Section]
    mask: Mask | None
    quality: float
    latents_crc: int = 0
    bounds: tuple[int, ...] | None = None
    errors: tuple[float, ...] | None = None
    indices: tuple[IndexBound, ...] = ()


def _at_quality(part: _Part, quality: float) -> _Coded:
    spec, mask = part.spec, part.mask
    quality = round(quality * QUALITY_STEPS) / QUALITY_STEPS
    sections: list[Section] = []
    latents_crc = 0
    _check_work(part)
    for tile, dates in coded_tiles(part.samples.shape, mask):
        cube = _to_dn(part.samples[:, :, *tile][dates], part.scale, spec.offset)
        known = None if mask is None else mask.labels[:, :, *tile][dates] == 0
        if known is not None:
            cube = fill_unknown(cube, known)
        assert spec.weights_sha256 is not None
        model = get_encoder(spec.model, spec.weights_sha256)
        cube = np.ascontiguousarray(cube)
        if find_model(spec.model).on_grids:
            with _model_slots:
                encoded = cast("GridModel", model).encode(cube, quality, part.bands, known)
        elif spec.gop is None:
            encoded = batching.encode(model, cube, quality, part.bands, _model_slots)
        else:
            with _model_slots:
                temporal = cast("TemporalModel", model)
                encoded = temporal.encode(cube, quality, part.bands, gop=spec.gop)
        sections += [Section(SectionKind.LATENTS, data) for data in encoded.sections]
        latents_crc = chained_checksum(latents_crc, encoded.latents_crc)
    return _Coded(sections, mask, quality, latents_crc)


def _check_work(part: _Part) -> None:
    """Refuse before anything is coded what decoders would refuse."""
    count = sum(len(dates) for _, dates in coded_tiles(part.samples.shape, part.mask))
    if count > config.MAX_LATENT_SECTIONS:
        raise LimitError(
            f"a chunk of shape {part.samples.shape} (time, band, y, x) has {count} dates of tiles "
            f"of {TILE} x {TILE} pixels, more than tec_zarr.config.MAX_LATENT_SECTIONS = "
            f"{config.MAX_LATENT_SECTIONS}: use chunks of fewer dates"
        )


def _points(part: _Part, frame: bytes) -> list[Section]:
    """Samples that the model missed by far, exactly: a section, or none where there are none."""
    parsed = read_frame(frame)
    if not parsed.payloads(SectionKind.LATENTS):
        return []
    bounded = parsed.header.bounded
    both = part.samples, _samples(parsed)
    before, after = (_to_dn(samples, part.scale, part.spec.offset) for samples in both)
    coded = None
    if part.mask is not None or bounded:
        coded = part.measured
        coded[:, bounded] = False
    with np.errstate(invalid="ignore", over="ignore"):  # of what the model does not code
        errors = np.abs(np.subtract(after, before, out=after), out=after)
    if coded is not None:
        errors[~coded] = 0
    places = find_points(errors, coded, parsed.header.quality)
    return [Section(SectionKind.POINTS, pack_points(places, part.samples))] if len(places) else []


_SEARCH_STEPS = 64
"""Qualities between two whole ones that a target may choose."""


def _lowest(good: Callable[[float], _Coded | None]) -> _Coded | None:
    """Coded chunk at the lowest quality that is ``good``; None where even the finest is not.

    Quality and error are monotone but for a wobble smaller than a step, so that halving finds
    a quality that is good, and next to one that is not.
    """
    low, high = (round(q * _SEARCH_STEPS) for q in QUALITY_RANGE)
    found = good(high / _SEARCH_STEPS)
    if found is None:
        return None
    while low < high:
        middle = (low + high) // 2
        coded = good(middle / _SEARCH_STEPS)
        if coded is None:
            low = middle + 1
        else:
            high, found = middle, coded
    return found


def _for_psnr(part: _Part, psnr: float, frame: Callable[[_Coded], bytes]) -> _Coded:
    limit = PEAK_DN**2 * 10 ** (-psnr / 10)
    measured = part.measured
    wanted = _clipped_dn(part.samples, part)[measured]

    def good(quality: float) -> _Coded | None:
        coded = _at_quality(part, quality)
        decoded = _samples(read_frame(frame(coded)))
        error = np.square(_clipped_dn(decoded, part)[measured] - wanted)
        return coded if not error.size or error.mean() <= limit else None

    found = _lowest(good)
    # Noise and the like are beyond the model: hold the error itself instead.
    held = math.floor(math.sqrt(limit)) * part.scale
    return found or _bounded(part, Limits((held,) * part.samples.shape[1]))


def _for_size(part: _Part, max_bytes: int, frame: Callable[[_Coded], bytes]) -> bytes:
    best: list[bytes] = []

    def too_large(quality: float) -> _Coded | None:
        coded = _at_quality(part, quality)
        data = frame(coded)
        if len(data) > max_bytes:
            return coded
        best.append(data)
        return None

    _lowest(too_large)
    if not best:
        raise UnsupportedArrayError(
            f"a chunk of shape {part.samples.shape} needs more than max_bytes={max_bytes} even at "
            f"quality {QUALITY_RANGE[0]:g}: allow more bytes"
        )
    return best[-1]  # the search goes up from whatever fits


def _clipped_dn(samples: np.ndarray, part: _Part) -> np.ndarray:
    dn = _to_dn(samples, part.scale, part.spec.offset)
    return np.clip(dn.astype(np.float64), 0, PEAK_DN)


def _bounded(part: _Part, limits: Limits) -> _Coded:
    """Code by the bound layer; samples that it cannot hold to a bound are listed exactly.

    Bands that no bound names are coded by the model.
    """
    part = replace(part, mask=_bit_for_bit(part.mask, part.samples, limits))
    samples, mask, scale = part.samples, part.mask, part.scale
    if mask is not None and mask.labels.all():
        return _Coded([], mask, part.spec.quality)  # nothing is coded, so nothing has a bound
    free = limits.free
    held = [c for c in range(samples.shape[1]) if c not in free]
    rest = _at_quality(part.of(free), part.spec.quality) if free else None
    measured, known = part.measured, part.known
    with np.errstate(over="ignore", under="ignore"):  # of samples that are listed
        values = np.where(known, samples, 0).astype(np.float64) / scale - part.spec.offset
    dn = np.where(measured, np.rint(values), 0)
    # What rounding floats to whole DN already takes of the bound.
    taken = np.where(measured, np.abs(values - dn), 0)
    allowed = np.array(limits.bands)[:, None, None]
    with np.errstate(over="ignore"):  # a bound beyond all numbers is the largest there is
        room = np.floor(allowed[:, 0, 0] / scale - taken.max(axis=(0, 2, 3)) + 1e-3)
    bounds = np.clip(room, 0, NO_BOUND - 1).astype(np.int64).tolist()
    bounds = [NO_BOUND if c in free else b for c, b in enumerate(bounds)]
    levels = None
    if limits.indices:
        precision = float(np.finfo(samples.dtype).eps) if samples.dtype.kind == "f" else 0.0
        levels = block_levels(values, taken, known, measured, limits, bounds, precision)
    dn = dn.astype(np.int32)
    # Tighter, or new samples would miss in each attempt. Without loss what misses is always the
    # same, so that the last attempt has nothing to list.
    for less in (0, 1, 2, NO_BOUND, NO_BOUND):
        bounds = [b if b == NO_BOUND and c in limits.mapped + free else max(b - less, 0)
                  for c, b in enumerate(bounds)]  # fmt: skip
        levels = None if levels is None else np.maximum(levels - less, 0).astype(np.int32)
        sections = []
        if levels is not None:
            packed, levels = _packed_levels(levels, measured[:, limits.mapped])
            sections.append(Section(SectionKind.BOUND_MAP, packed))
        steps = _steps(bounds, held, limits.mapped, levels, samples.shape)
        data = layer.encode(dn[:, held], None, measured[:, held], steps)
        sections.append(Section(SectionKind.BOUND, data))
        shape = (len(dn), len(held), *dn.shape[2:])
        back = part.values(layer.decode(data, None, measured[:, held], shape, steps))
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
    return _Coded(
        sections if rest is None else rest.sections + sections,
        mask,
        part.spec.quality if rest is None else rest.quality,
        0 if rest is None else rest.latents_crc,
        tuple(bounds),
        tuple(errors.tolist()),
        indices,
    )


def _bit_for_bit(mask: Mask | None, samples: np.ndarray, limits: Limits) -> Mask | None:
    """``mask`` with negative zeros and NaNs of other bits on their own where nothing may change."""
    lossless = np.array(limits.bands)[:, None, None] == 0
    if mask is None or samples.dtype.kind != "f" or not lossless.any():
        return mask
    restored = samples.copy()
    mask.restore(restored)
    return list_exactly(mask, samples, lossless & (bits_of(restored) != bits_of(samples)))


def _packed_levels(levels: np.ndarray, measured: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Bytes of the map of bounds, and the map as the decoder will have it."""
    with_samples, lossless = blocks_with(measured), (0,) * levels.shape[1]
    data = layer.encode(levels, None, with_samples, lossless)
    return data, layer.decode(data, None, with_samples, levels.shape, lossless)


def _steps(
    bounds: Sequence[int],
    held: Sequence[int],
    mapped: Sequence[int],
    levels: np.ndarray | None,
    shape: tuple[int, ...],
) -> list[int | np.ndarray]:
    """Bounds of the bands in the bound layer, as it takes them."""
    return [
        bounds[band]
        if levels is None or band not in mapped
        else block_bounds(levels[:, mapped.index(band)], bounds[band], shape[2:])
        for band in held
    ]


def _largest_errors(
    samples: np.ndarray, decoded: np.ndarray, measured: np.ndarray
) -> np.ndarray:
    """Largest error of each band as a frame can hold it, float64 (C,): float32 is rounded up."""
    before, after = (np.where(measured, x, 0).astype(np.float64) for x in (samples, decoded))
    errors = np.abs(after - before).max(axis=(0, 2, 3))
    if samples.dtype != np.float32:
        return errors
    held = errors.astype(np.float32)
    held = np.where(held < errors, np.nextafter(held, np.float32(np.inf)), held)
    return held.astype(np.float64)


def within_bounds(
    spec: ChunkSpec, original: np.ndarray, decoded: np.ndarray, known: np.ndarray
) -> bool:
    """Whether decoded chunks keep the ``max_error`` of ``spec``.

    Parameters
    ----------
    spec : ChunkSpec
        With a ``max_error``.
    original, decoded : ndarray
        Of one shape and dtype, with axes as :func:`encode_chunk` takes them and all bands.
    known : ndarray
        bool, of the same shape: False for nodata, NaN and infinities.
    """
    assert spec.max_error is not None
    axes, bands = _name_axes(original.shape, None if spec.bands is None else tuple(spec.bands))
    shape = axes.to_4d(original.shape)
    shift = spec.offset * (spec.scale or default_scale(original.dtype))
    limits = resolve(spec.max_error, shape[1], bands)
    before, after, there = (a.reshape(shape) for a in (original, decoded, known))
    wrong, _ = exceeded(limits, before, after, there, shift)
    return not wrong.any()


def decode_chunk(
    data: bytes | memoryview,
    *,
    expected_shape: tuple[int, ...] | None = None,
    dates: Sequence[int] | None = None,
) -> np.ndarray:
    """Decode what :func:`encode_chunk` wrote.

    Parameters
    ----------
    data : bytes-like
        One frame.
    expected_shape : tuple of int, optional
        Shape that the caller knows; another one in the frame is an error before any work.
    dates : sequence of int, optional
        Of a chunk (time, band, y, x): the dates wanted, from 0. The embedded models then make no
        other date's pixels, once this process has verified the latents' checksum of a whole
        chunk with the same weights; it stands for all dates of a chunk. (That of the bytes is
        verified always.)

    Returns
    -------
    ndarray
        Shape, dtype, byte order and memory order of the array that was encoded; with ``dates``
        only those, in that order.

    Raises
    ------
    FormatError, ChecksumError, VersionError
        Damaged or newer bytes. Never returns pixels then.
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
        samples = _samples(frame)
    else:
        if len(shape) != 4 or not all(0 <= date < shape[0] for date in dates):
            raise UnsupportedArrayError(
                f"dates {list(dates)} of a chunk of shape {shape}: it must be (time, band, y, x), "
                "and have them"
            )
        shape = (len(dates), *shape[1:])
        samples = _samples(frame, list(dates))
    if header.bounds is None or any(header.bounds):
        second_generation.remember_decoded(samples)
    array = samples.reshape(shape).astype(header.dtype, copy=False)
    return np.asfortranarray(array) if header.fortran else array


_verified: set[bytes] = set()
"""Weights of whose latents this process has found a checksum right."""


def _samples(frame: Frame, dates: list[int] | None = None) -> np.ndarray:
    """Samples of a frame, of all or some dates: (T, C, H, W) in native byte order."""
    header = frame.header
    if dates is not None and len(dates) == header.shape4[0] and dates == sorted(set(dates)):
        dates = None  # all of them
    if dates is not None and (header.bounded or header.weights not in _verified):
        return _samples(frame)[dates]
    native = header.dtype.newbyteorder("=")
    kinds = SectionKind.MASK, SectionKind.EXACT
    packed, exact = (single_payload(frame.payloads(kind), kind) for kind in kinds)
    mask = unpack_mask(packed, exact, header.shape4, native) if packed else None
    latents = frame.payloads(SectionKind.LATENTS)
    residuals = single_payload(frame.payloads(SectionKind.BOUND), SectionKind.BOUND)
    levels = single_payload(frame.payloads(SectionKind.BOUND_MAP), SectionKind.BOUND_MAP)
    points = single_payload(frame.payloads(SectionKind.POINTS), SectionKind.POINTS)
    bounded = header.bounded
    if bool(residuals) != bool(bounded) or bool(levels) != bool(header.indices):
        raise FormatError("TEC frame damaged: bounds without a bound layer, or the reverse")
    free = [c for c in range(header.shape4[1]) if c not in bounded]
    coded = coded_tiles(header.shape4, mask_of_bands(mask, free)) if free else iter(())
    tiles = list(islice(coded, len(latents) + 1))  # each has a section at least
    if len(latents) != sum(len(dates) for _, dates in tiles):
        raise FormatError(
            f"TEC frame damaged: {len(latents)} latent sections for a chunk of shape "
            f"{header.shape}, whose mask asks for another number"
        )
    samples = np.empty(header.shape4, native)
    latents_crc = 0
    for tile, there in tiles:
        shape = (len(there), len(free), *samples[0, 0, *tile].shape)
        wanted = there if dates is None else [date for date in there if date in dates]
        places = None if dates is None else [there.index(date) for date in wanted]
        cube, crc = _decode_tile(header, latents[: len(there)], shape, free, places)
        del latents[: len(there)]
        latents_crc = chained_checksum(latents_crc, crc)
        values = _values(cube, header)
        if values.shape == samples.shape:  # all of it at once
            samples = values
        else:
            samples[:, :, *tile][np.ix_(wanted, free)] = values
    if bounded:
        samples[:, bounded] = _values(_bound_layer(header, residuals, levels, mask), header)
    if dates is None and latents_crc != header.latents_crc:
        raise ChecksumError(
            f"model {name_of_model(header)!r} decoded other latents than were encoded, for a chunk "
            f"of shape {header.shape}: this machine's arithmetic disagrees with the encoder's; "
            "please report it with the versions of torch and constriction"
        )
    if mask is not None:
        mask.restore(samples)
    if points:
        restore_points(points, samples)
    if dates is not None:
        return samples[dates]
    if tiles and header.weights not in _verified and hasattr(model_of(header), "decode_dates"):
        _verified.add(header.weights)
    return samples


def _bound_layer(
    header: Header, residuals: bytes, packed: bytes, mask: Mask | None
) -> np.ndarray:
    """Decode the bands of the bound layer: int32 (T, bands, H, W), DN."""
    assert header.bounds is not None
    t, _, h, w = header.shape4
    bounded, mapped = header.bounded, mapped_bands(header.indices)
    measured = np.ones(header.shape4, bool) if mask is None else mask.labels == 0
    levels = None
    if mapped:
        with_samples = blocks_with(measured[:, mapped])
        lossless = (0,) * len(mapped)
        levels = layer.decode(packed, None, with_samples, with_samples.shape, lossless)
    steps = _steps(header.bounds, bounded, mapped, levels, header.shape4)
    some = measured if len(bounded) == len(header.bounds) else measured[:, bounded]
    return layer.decode(residuals, None, some, (t, len(bounded), h, w), steps)


def mask_of_bands(mask: Mask | None, bands: Sequence[int]) -> Mask | None:
    """Labels of some of the bands; without the values, which go by all of them."""
    if mask is None or len(bands) == mask.labels.shape[1]:
        return mask
    return Mask(mask.labels[:, bands], mask.values, mask.listed[:0])


def _check_types(spec: ChunkSpec) -> None:
    """Refuse what JSON can hold and no argument can be: metadata may come from a stranger."""
    for name, expected, fits in (
        ("model", "a name", lambda v: isinstance(v, str)),
        ("quality", "a number", _is_number),
        ("offset", "a number", _is_number),
        ("scale", "a number or None", lambda v: v is None or _is_number(v)),
        ("psnr", "a number or None", lambda v: v is None or _is_number(v)),
        ("max_bytes", "a number or None", lambda v: v is None or _is_number(v)),
        ("gop", "a whole number from 1 or None", lambda v: v is None or _is_count(v)),
        ("nodata", "a number or a list of numbers", lambda v: v is None or _are_numbers(v)),
        ("max_error", "a number, a list of numbers or a mapping of names to numbers",
         lambda v: v is None or isinstance(v, Mapping) or _are_numbers(v)),
        ("bands", "a list of band names", lambda v: v is None or _is_listing(v)),
        ("weights_sha256", "64 hex digits", lambda v: v is None or _is_sha256(v)),
    ):
        value = getattr(spec, name)
        if not fits(value):
            raise UnsupportedArrayError(f"{name} is {value!r:.80}, it must be {expected}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # JSON has integers of any length
        return False
    return True


def _are_numbers(value: object) -> bool:
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(plain, list | tuple):
        return all(map(_is_number, plain))
    return _is_number(plain)


def _is_listing(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def check_array(dtype: np.dtype, ndim: int) -> None:
    """Raise UnsupportedArrayError unless arrays of this dtype and rank can be encoded."""
    if dtype.newbyteorder("=").name not in DTYPES:
        raise UnsupportedArrayError(
            f"TEC encodes {', '.join(DTYPES)}, not {dtype}: cast the array first, and store "
            "classes and masks with a lossless codec (tec_zarr.encoding does that)"
        )
    if not 2 <= ndim <= 4:
        raise UnsupportedArrayError(
            f"TEC encodes (time, band, y, x), (band, y, x), (time, y, x) and (y, x), not an array "
            f"of {ndim} dimension{'s' * (ndim != 1)}: in Zarr v2 let TEC be the first codec"
        )


def check_layout(shape: Sequence[int], chunk: Sequence[int], spec: ChunkSpec) -> None:
    """Raise UnsupportedArrayError unless an array of these chunks can be encoded with ``spec``.

    So that a codec that xarray kept from another array, of which bands were selected or whose
    dimensions were turned, is refused when the array is created, and not with its first chunk.
    """
    axes, bands = _name_axes(tuple(chunk), None if spec.bands is None else tuple(spec.bands))
    if spec.max_error is not None:
        resolve(spec.max_error, axes.to_4d(tuple(chunk))[1], bands)
    given = len(chunk) == 4 or (axes is Axes.CYX and spec.bands is not None)
    axis = 1 if len(chunk) == 4 else 0
    if given and shape[axis] not in (0, chunk[axis]):
        raise UnsupportedArrayError(
            f"an array of shape {tuple(shape)} with chunks {tuple(chunk)} has {chunk[axis]} of "
            f"{shape[axis]} bands in a chunk: TEC codes all bands together, as (time, band, y, x). "
            + _KEPT_CODEC
        )


def _whole_numbers(dates: Sequence[int]) -> list[int]:
    try:
        return [operator.index(date) for date in dates]
    except TypeError:
        raise UnsupportedArrayError(f"dates {dates!r} of a chunk must be whole numbers") from None


def _name_axes(
    shape: tuple[int, ...], bands: tuple[str, ...] | None
) -> tuple[Axes, tuple[str, ...] | None]:
    """What the axes are, and the bands along the band axis where they are known."""
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
            "chunk, as (time, band, y, x). " + _KEPT_CODEC
        )
    return axes, bands


def coded_tiles(
    shape: tuple[int, int, int, int], mask: Mask | None
) -> Iterator[tuple[tuple[slice, slice], Sequence[int]]]:
    """Tiles row by row, with the dates that the model codes in each; tiles without any, not."""
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
    """Nearly equal parts of at most ``TILE`` pixels, starting at multiples of 8."""
    parts = -(-size // TILE)
    step = 8 * -(-size // (8 * parts))
    return (slice(i, min(i + step, size)) for i in range(0, size, step))


def _to_dn(values: np.ndarray, scale: float, offset: float) -> np.ndarray:
    if (scale, offset) == (1.0, 0.0):
        return values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # labelled samples, replaced by the fill
        return (values.astype(np.float64) / scale - offset).astype(np.float32)


def _values(dn: np.ndarray, header: Header) -> np.ndarray:
    return _from_dn(dn, header.scale, header.offset, header.dtype, header.nodata)


def _from_dn(
    dn: np.ndarray, scale: float, offset: float, dtype: np.dtype, nodata: tuple[float, ...]
) -> np.ndarray:
    """Whole DN to the array's own values; what was measured never becomes nodata.

    ``dn`` is written over; if it is of uint16, it holds these values already but for nodata.
    """
    native = dtype.newbyteorder("=")
    if dn.dtype == np.uint16:
        return _kept_apart(dn, native, scale, nodata)
    values = np.rint(dn, out=dn if dn.dtype.kind == "f" else None)
    with np.errstate(over="ignore", invalid="ignore"):  # a forged scale, a stranger's weights
        if (scale, offset) != (1.0, 0.0):
            values = (values.astype(np.float64) + offset) * scale
        if native.kind in "iu":
            limits = np.iinfo(native)
            values = np.rint(values, out=values) if values is not dn else values
            values = np.clip(values, limits.min, limits.max, out=values)
        values = values.astype(native)
    return _kept_apart(values, native, scale, nodata)


def _kept_apart(
    values: np.ndarray, native: np.dtype, scale: float, nodata: tuple[float, ...]
) -> np.ndarray:
    """Move values (written over) that are nodata to the nearest that are not."""
    for wrong, right in _substitutes(native, scale, nodata).items():
        values[values == wrong] = right
    return values


def _substitutes(
    native: np.dtype, scale: float, nodata: tuple[float, ...]
) -> dict[float, float]:
    """Nearest value that is not nodata, for each nodata value, the upper one first."""
    whole = native.kind in "iu"
    limits = np.iinfo(native) if whole else np.finfo(native)
    out = {}
    for value in nodata:
        step: float = 1
        if not whole:  # the last value has no neighbour above it, so no spacing of its own
            largest = np.nextafter(limits.max, native.type(0))
            unit = scale if scale < float(limits.max) / 1024 else 0.0  # forged, beyond the dtype
            step = max(unit, float(np.spacing(min(native.type(abs(value)), largest))))
        # Two steps may round to one float, so twice as many as there are values to avoid.
        near = (value + sign * k * step for k in range(1, 2 * len(nodata) + 2) for sign in (1, -1))
        inside = (v for v in near if float(limits.min) <= v <= float(limits.max))
        out[value] = next(v for v in inside if native.type(v) not in nodata)
    return out


def _possible(values: Sequence[float] | dict, dtype: np.dtype) -> tuple[float, ...]:
    """Those of ``values`` that an array of ``dtype`` can hold, as it holds them; no NaN."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large for the dtype
            held = [dtype.type(float(v)).item() for v in values]
        return tuple(dict.fromkeys(v for v in held if math.isfinite(v)))
    limits = np.iinfo(dtype)
    return tuple(int(v) for v in values if v == v and limits.min <= v <= limits.max and v == int(v))


def check_unit(samples: np.ndarray, spec: ChunkSpec) -> None:
    """Refuse floats that are plainly not in the unit that ``spec`` says, before they are rounded.

    Nodata and fills such as 1e20 may be among ``samples``; they say nothing about the unit.
    """
    values = metrics.measurable(samples)
    values = values[~np.isin(values, spec.fill_values)]
    values = values[:: max(1, values.size // 2**16)]
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size > 1 and counts.max() > values.size / 4:  # a fill that nobody named
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


def _decode_tile(
    header: Header,
    sections: list[bytes],
    shape: tuple[int, int, int, int],
    bands: Sequence[int],
    dates: list[int] | None,
) -> tuple[np.ndarray, int]:
    """DN and checksum of a tile of ``shape``; with ``dates``, those alone and no checksum."""
    model = model_of(header)
    names = None if header.bands is None else tuple(header.bands[c] for c in bands)
    try:
        if dates is not None:
            with _model_slots:
                some = cast("DateModel", model)
                return some.decode_dates(sections, shape, header.quality, dates), 0
        # DN as they stand: a model that has whole ones need not make floats of them.
        whole = cast("WholeModel", model).decode_whole if hasattr(model, "decode_whole") else None
        plain = header.dtype.newbyteorder("=") == np.uint16
        if whole and plain and (header.scale, header.offset) == (1.0, 0.0):
            with _model_slots:
                return whole(sections, shape, header.quality)
        return batching.decode(model, sections, shape, header.quality, names, _model_slots)
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


def model_of(header: Header) -> Model:
    """The loaded model of a frame; WeightsMismatchError where its weights are not here."""
    name = name_of_model(header)
    try:
        return get_model(name, header.weights.hex())
    except WeightsMismatchError as error:
        raise WeightsMismatchError(f"chunk of shape {header.shape}: {error}") from None


def name_of_model(header: Header) -> str:
    """Name of the model that a frame was written with."""
    return header.model_name or name_of(header.model_id)


def chained_checksum(crc: int, tile_crc: int) -> int:
    """Checksum over the tiles' checksums, so that one number stands for all of them."""
    return zlib.crc32(tile_crc.to_bytes(4, "little"), crc)


def single_payload(payloads: list[bytes], kind: SectionKind) -> bytes:
    """The payload of a kind that a frame has once or not at all; empty without."""
    if len(payloads) > 1:
        raise FormatError(f"TEC frame damaged: {len(payloads)} sections of kind {kind.name}")
    return payloads[0] if payloads else b""
