"""Writes and reads a frame: the bytes of one encoded chunk, a header and sections with checksums.

``docs/format.md`` is the specification; this module is its only implementation. It does not
interpret pixels or models. Before it allocates memory, the reader checks every length against the
bytes that are there, and every size against :mod:`tec_zarr.config`.
"""

from __future__ import annotations

import enum
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tec_zarr import config
from tec_zarr.errors import ChecksumError, FormatError, LimitError, VersionError
from tec_zarr.frame.table import CODED, Cursor, read_table, write_table
from tec_zarr.frame.table import Section as Section
from tec_zarr.frame.table import SectionKind as SectionKind
from tec_zarr.frame.varint import write_varint
from tec_zarr.native.frame import DTYPES
from tec_zarr.sentinel2 import BANDS, DN_PER_REFLECTANCE, L1C_BANDS, L2A_BANDS

MAGIC = b"TEC"
VERSION = 1
QUALITY_STEPS = 4096
"""Quality is stored in steps of 1/4096."""

LOWEST_QUALITY, HIGHEST_QUALITY = 1.0, 8.0

WEIGHTS_PREFIX_BYTES = 8
NAMED_MODEL = 0
"""Model id of a model that has no registered number. The header then holds the model's name."""

NO_BOUND = 0xFFFF
"""Stored in place of the bound of a band that has no bound of its own."""

_BAND_LISTS: dict[int, tuple[str, ...] | None] = {0: None, 1: L2A_BANDS, 2: L1C_BANDS}
_EXPLICIT_BANDS = 255
_BAND_IDS = tuple(BANDS)

_HAS_NODATA, _HAS_SCALING, _HAS_BOUNDS = 1, 2, 4
_BIG_ENDIAN, _FORTRAN, _RESERVED = 0x20, 0x40, 0x80


class Axes(enum.IntEnum):
    """Meaning of the axes of a chunk; a missing axis has length 1."""

    TCYX = 0
    CYX = 1
    TYX = 2
    YX = 3

    @property
    def ndim(self) -> int:
        """Number of axes that the shape in the header lists."""
        return (4, 3, 3, 2)[self]

    def to_4d(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Return the shape as (time, band, y, x)."""
        t = shape[0] if self in (Axes.TCYX, Axes.TYX) else 1
        c = shape[-3] if self in (Axes.TCYX, Axes.CYX) else 1
        return t, c, shape[-2], shape[-1]


@dataclass(frozen=True)
class IndexBound:
    """A bound on a normalised difference of two bands, ``(first - second) / (first + second)``.

    Attributes
    ----------
    first, second : int
        Positions of the bands along the band axis.
    bound : float
        Largest absolute error that the user allowed.
    error : float
        Largest absolute error that the encoder measured.
    """

    first: int
    second: int
    bound: float
    error: float = math.nan


def mapped_bands(indices: Iterable[IndexBound]) -> list[int]:
    """Return the bands that occur in an index, rising. Their bounds differ from block to block."""
    return sorted({band for index in indices for band in (index.first, index.second)})


@dataclass(frozen=True)
class Header:
    """The header of a frame.

    Attributes
    ----------
    model_id : int
        Registered number of the model, or ``NAMED_MODEL``.
    model_name : str
        Name of a model without a number, else ``""``.
    weights : bytes
        First eight bytes of the SHA-256 of the weights.
    quality : float
        1 (smallest) to 8 (finest), a multiple of 1/4096.
    axes : Axes
        Meaning of the axes of ``shape``.
    shape : tuple of int
        Shape of the chunk in the user's array.
    dtype : numpy.dtype
        uint16, int16, float32 or float64, with its byte order.
    fortran : bool
        Whether the chunk is laid out column-major in memory.
    bands : tuple of str or None
        Sentinel-2 names along the band axis. None: unknown.
    nodata : tuple of float
        Values that mean "nothing measured". A measured sample is never decoded to one of them.
    scale, offset : float
        ``value = (DN + offset) * scale``.
    bounds : tuple of int or None
        Largest absolute error of each band in DN, if the frame has a bound layer.
        ``NO_BOUND`` for a band that has no bound of its own. The bound layer codes it if it
        occurs in `indices`; otherwise the model codes it.
    errors : tuple of float or None
        Largest absolute error that the encoder measured in each band of the bound layer, in the
        units of the array. NaN in other bands. None if there are no ``bounds``.
    indices : tuple of IndexBound
        Bounds and errors of indices.
    """

    model_id: int
    weights: bytes
    quality: float
    axes: Axes
    shape: tuple[int, ...]
    dtype: np.dtype
    model_name: str = ""
    fortran: bool = False
    bands: tuple[str, ...] | None = None
    nodata: tuple[float, ...] = (0,)
    scale: float = 1.0
    offset: float = 0.0
    bounds: tuple[int, ...] | None = None
    errors: tuple[float, ...] | None = None
    indices: tuple[IndexBound, ...] = ()

    @property
    def shape4(self) -> tuple[int, int, int, int]:
        """Shape as (time, band, y, x)."""
        return self.axes.to_4d(self.shape)

    @property
    def bounded(self) -> list[int]:
        """Positions of the bands that the bound layer codes."""
        if self.bounds is None:
            return []
        mapped = set(mapped_bands(self.indices))
        return [c for c, b in enumerate(self.bounds) if b != NO_BOUND or c in mapped]


@dataclass(frozen=True)
class Frame:
    """A parsed frame; all checksums were verified."""

    header: Header
    sections: tuple[Section, ...]
    header_bytes: int

    def payloads(self, kind: SectionKind) -> list[bytes]:
        """Return the bytes of all sections of one kind, in order."""
        return [s.data for s in self.of(kind)]

    def of(self, kind: SectionKind) -> list[Section]:
        """Return all sections of one kind, in order."""
        return [s for s in self.sections if s.kind is kind]


def default_scale(dtype: np.dtype) -> float:
    """Return the scale of a dtype if none is given: integers are DN, floats are reflectance."""
    return 1 / DN_PER_REFLECTANCE if dtype.kind == "f" else 1.0


def write_frame(header: Header, sections: Sequence[Section]) -> bytes:
    """Serialise a frame.

    Parameters
    ----------
    header : Header
        The header.
    sections : sequence of Section
        In any order; sections of one kind keep theirs.

    Returns
    -------
    bytes
        The frame.
    """
    sections = sorted(sections, key=lambda s: s.kind)
    body = _header_fields(header) + b"".join(write_table(sections))
    if len(body) > config.MAX_HEADER_BYTES:
        raise LimitError(
            f"the header of a chunk of shape {header.shape} takes {len(body)} bytes, more than "
            f"tec_zarr.config.MAX_HEADER_BYTES = {config.MAX_HEADER_BYTES}: use smaller chunks"
        )
    head = MAGIC + bytes([VERSION]) + write_varint(len(body)) + body
    head += struct.pack("<I", zlib.crc32(head))
    return head + b"".join(s.data for s in sections)


def read_frame(data: bytes | memoryview) -> Frame:
    """Parse a frame and verify the checksums of all of its bytes.

    Parameters
    ----------
    data : bytes-like
        Exactly one frame.

    Returns
    -------
    Frame
        Header and sections.

    Raises
    ------
    FormatError
        The bytes are not a frame, are cut short, or break a rule of the format.
    VersionError
        The frame has a format version or a feature newer than this package.
    ChecksumError
        The bytes changed since they were written.
    LimitError
        The frame is larger than :mod:`tec_zarr.config` allows.
    """
    cursor, header_bytes = _checked_header(memoryview(data).cast("B"))
    header = _parse_fields(cursor)
    table = read_table(cursor)
    expected = header_bytes + sum(row.length for row in table)
    if len(data) != expected:
        state = "cut short" if len(data) < expected else "followed by foreign bytes"
        raise FormatError(
            f"TEC frame {state}: its header announces {expected} bytes, {len(data)} are here; "
            "fetch the chunk again or restore it from the source"
        )
    coded = sum(row.length for row in table if row.kind in CODED)
    if coded > config.MAX_LATENTS_BYTES:
        raise LimitError(
            f"a chunk of shape {header.shape} with {coded} bytes of latents, more than "
            f"tec_zarr.config.MAX_LATENTS_BYTES = {config.MAX_LATENTS_BYTES}: raise that limit if "
            "you trust the source of this frame"
        )
    count = sum(row.kind == SectionKind.LATENTS for row in table)
    if count > config.MAX_LATENT_SECTIONS:
        raise LimitError(
            f"a chunk of shape {header.shape} with {count} latent sections, more than "
            f"tec_zarr.config.MAX_LATENT_SECTIONS = {config.MAX_LATENT_SECTIONS}: raise that limit "
            "if you trust the source of this frame"
        )
    sections, start = [], header_bytes
    for row in table:
        end = start + row.length
        payload = bytes(data[start:end])
        kind = row.kind
        if zlib.crc32(payload) != row.crc:
            name = kind.name.lower() if isinstance(kind, SectionKind) else f"kind {kind}"
            raise ChecksumError(
                f"the {name} section (bytes {start} to {end}) of a TEC "
                f"frame of shape {header.shape} does not match its CRC32: the bytes changed "
                "since they were written; fetch the chunk again or restore it from the source"
            )
        if isinstance(kind, SectionKind):
            sections.append(Section(kind, payload, row.latents_crc))
        start = end
    return Frame(header, tuple(sections), header_bytes)


def read_header(data: bytes | memoryview) -> Header:
    """Parse the header of a frame from its first bytes; the sections need not be there.

    Raises
    ------
    FormatError, VersionError, ChecksumError, LimitError
        As :func:`read_frame`. FormatError also if the bytes end within the header.
    """
    return read_head(data)[0]


def read_head(data: bytes | memoryview) -> tuple[Header, list[SectionKind]]:
    """Parse the first bytes of a frame, as :func:`read_header`; return the kinds of sections too.

    There is one kind for each section that this package knows.
    """
    cursor, _ = _checked_header(memoryview(data).cast("B"))
    header = _parse_fields(cursor)
    return header, [row.kind for row in read_table(cursor) if isinstance(row.kind, SectionKind)]


def _header_fields(h: Header) -> bytes:
    assert len(h.weights) == WEIGHTS_PREFIX_BYTES
    flags = (
        _HAS_NODATA * (h.nodata != (0,))
        | _HAS_SCALING * ((h.scale, h.offset) != (default_scale(h.dtype), 0.0))
        | _HAS_BOUNDS * (h.bounds is not None)
    )
    array = h.axes | DTYPES.index(h.dtype.str[1:]) << 2
    array |= _BIG_ENDIAN * (h.dtype.newbyteorder("=").str != h.dtype.str) | _FORTRAN * h.fortran
    out = [struct.pack("<BBB", flags, array, h.model_id)]
    if h.model_id == NAMED_MODEL:
        name = h.model_name.encode("ascii")
        out.append(bytes([len(name)]) + name)
    out.append(h.weights)
    out.append(struct.pack("<H", round(h.quality * QUALITY_STEPS)))
    code = next((k for k, v in _BAND_LISTS.items() if v == h.bands), _EXPLICIT_BANDS)
    out.append(bytes([code]))
    if code == _EXPLICIT_BANDS:
        assert h.bands is not None
        out.append(bytes([len(h.bands), *map(_BAND_IDS.index, h.bands)]))
    out.extend(map(write_varint, h.shape))
    if flags & _HAS_NODATA:
        values = np.array(h.nodata, dtype=h.dtype.newbyteorder("<"))
        out.append(bytes([len(values)]) + values.tobytes())
    if flags & _HAS_SCALING:
        out.append(struct.pack("<dd", h.scale, h.offset))
    if h.bounds is not None:
        assert h.errors is not None
        out.append(struct.pack(f"<{len(h.bounds)}H", *h.bounds))
        out.append(bytes([len(h.indices)]))
        for index in h.indices:
            out.append(struct.pack("<BBdd", index.first, index.second, index.bound, index.error))
        found = [h.errors[band] for band in h.bounded]
        out.append(np.array(found, _error_dtype(h.dtype)).tobytes())
    return b"".join(out)


def _checked_header(data: memoryview) -> tuple[Cursor, int]:
    """Verify the checksum of a header; return a cursor over its body, and its full length."""
    cursor = Cursor(data)
    start = cursor.take(len(MAGIC) + 1)
    if start[:-1] != MAGIC:
        raise FormatError(
            f"not a TEC frame: it starts with {start.hex(' ')} instead of {MAGIC.hex(' ')} (TEC); "
            "is another codec in the array's codec chain?"
        )
    if start[-1] != VERSION:
        raise VersionError(
            f"TEC frame of format version {start[-1]}; this tec_zarr reads version {VERSION}: "
            "pip install --upgrade tec_zarr"
        )
    size = cursor.varint()
    if size > config.MAX_HEADER_BYTES:
        raise LimitError(
            f"a TEC header of {size} bytes is larger than tec_zarr.config.MAX_HEADER_BYTES = "
            f"{config.MAX_HEADER_BYTES}: the frame is damaged, or raise that limit"
        )
    begin = cursor.at
    body = cursor.take(size)
    (crc,) = cursor.unpack("I")
    if zlib.crc32(data[: begin + size]) != crc:
        raise ChecksumError(
            "the header of a TEC frame does not match its CRC32: the bytes changed since they "
            "were written; fetch the chunk again or restore it from the source"
        )
    return Cursor(memoryview(body)), cursor.at


def _parse_fields(c: Cursor) -> Header:
    flags, array, model_id = c.unpack("BBB")
    newer = flags & ~(_HAS_NODATA | _HAS_SCALING | _HAS_BOUNDS)
    if newer or array & _RESERVED or (array >> 2 & 7) >= len(DTYPES):
        raise VersionError(
            f"TEC frame with features that this tec_zarr does not know (flags {flags:#04x}, array "
            f"byte {array:#04x}): pip install --upgrade tec_zarr"
        )
    model_name = _ascii(c.take(c.byte())) if model_id == NAMED_MODEL else ""
    weights = c.take(WEIGHTS_PREFIX_BYTES)
    quality = c.unpack("H")[0] / QUALITY_STEPS
    if not LOWEST_QUALITY <= quality <= HIGHEST_QUALITY:
        raise FormatError(f"TEC frame damaged: quality {quality:g}")
    axes = Axes(array & 3)
    dtype = np.dtype((">" if array & _BIG_ENDIAN else "<") + DTYPES[array >> 2 & 7])
    bands = _parse_bands(c)
    shape = tuple(c.varint() for _ in range(axes.ndim))
    samples = math.prod(shape)
    if samples > config.MAX_CHUNK_SAMPLES:
        raise LimitError(
            f"a chunk of shape {shape} has {samples} samples, more than "
            f"tec_zarr.config.MAX_CHUNK_SAMPLES = {config.MAX_CHUNK_SAMPLES}: raise that limit "
            "if you trust the source of this frame"
        )
    n_bands = axes.to_4d(shape)[1]
    if n_bands > config.MAX_BANDS:
        raise LimitError(
            f"a chunk of shape {shape} has {n_bands} bands, more than tec_zarr.config.MAX_BANDS = "
            f"{config.MAX_BANDS}: raise that limit if you trust the source of this frame"
        )
    if samples == 0 or (bands is not None and len(bands) != n_bands):
        raise FormatError(f"TEC frame damaged: shape {shape} with bands {bands}")
    nodata: tuple[float, ...] = (0,)
    if flags & _HAS_NODATA:
        raw = c.take(c.byte() * dtype.itemsize)
        nodata = tuple(np.frombuffer(raw, dtype=dtype.newbyteorder("<")).tolist())
        if not all(map(math.isfinite, nodata)) or len(set(nodata)) < len(nodata):
            raise FormatError(f"TEC frame damaged: nodata values {nodata}")
    scale, offset = c.unpack("dd") if flags & _HAS_SCALING else (default_scale(dtype), 0.0)
    if not (math.isfinite(scale) and scale > 0 and math.isfinite(offset)):
        raise FormatError(f"TEC frame damaged: scale {scale}, offset {offset}")
    header = Header(
        model_id=model_id,
        model_name=model_name,
        weights=weights,
        quality=quality,
        axes=axes,
        shape=shape,
        dtype=dtype,
        fortran=bool(array & _FORTRAN),
        bands=bands,
        nodata=nodata,
        scale=scale,
        offset=offset,
    )
    return _with_bounds(c, header) if flags & _HAS_BOUNDS else header


def _with_bounds(c: Cursor, header: Header) -> Header:
    """Parse bounds and measured errors."""
    n_bands, dtype = header.shape4[1], _error_dtype(header.dtype)
    bounds = c.unpack(f"{n_bands}H")
    # The indices come before the errors, because they determine which bands have an error.
    indices = tuple(IndexBound(*c.unpack("BBdd")) for _ in range(c.byte()))
    header = replace(header, bounds=bounds, indices=indices)
    if any(max(i.first, i.second) >= n_bands or i.first == i.second for i in indices):
        raise FormatError(f"TEC frame damaged: indices {indices} of {n_bands} bands")
    bounded = header.bounded
    found = np.frombuffer(c.take(len(bounded) * dtype.itemsize), dtype).tolist()
    if not all(v >= 0 for v in (*found, *(v for i in indices for v in (i.bound, i.error)))):
        raise FormatError("TEC frame damaged: negative errors")
    errors = dict(zip(bounded, found, strict=True))
    return replace(header, errors=tuple(errors.get(c, math.nan) for c in range(n_bands)))


def _error_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which a frame stores the errors of an array; exact for integers."""
    return np.dtype("<u2") if dtype.kind in "iu" else dtype.newbyteorder("<")


def _parse_bands(c: Cursor) -> tuple[str, ...] | None:
    code = c.byte()
    if code in _BAND_LISTS:
        return _BAND_LISTS[code]
    if code != _EXPLICIT_BANDS:
        raise VersionError(
            f"TEC frame with band list {code}, which this tec_zarr does not know: "
            "pip install --upgrade tec_zarr"
        )
    ids = c.take(c.byte())
    if any(i >= len(_BAND_IDS) for i in ids):
        raise FormatError(f"TEC frame damaged: band numbers {list(ids)}")
    return tuple(_BAND_IDS[i] for i in ids)


def _ascii(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise FormatError(f"TEC frame damaged: model name {raw!r} is not ASCII") from None
