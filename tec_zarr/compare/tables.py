"""What a store holds and how far it is from a reference: the numbers that the CLI prints."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.core.sync import sync
from zarr.storage import StorePath

from tec_zarr import metrics
from tec_zarr.bounds.request import index_name, resolve
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import FormatError
from tec_zarr.frame.frame import Header, read_header

Row = Sequence[object]
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class KeptBound:
    """A bound of an array, and how far its chunks are from it.

    Attributes
    ----------
    name : str
        Of a band or of an index.
    asked, error : float
        Largest absolute error that was asked for, and that was measured when the chunks were
        written: in the units of the stored array, or of the index. Infinity if only an index of
        the band has a bound.
    is_index : bool
        Whether it is an index.
    """

    name: str
    asked: float
    error: float
    is_index: bool


@dataclass(frozen=True)
class StoredArray:
    """One array of a store.

    Attributes
    ----------
    path : str
        Inside the store.
    shape, dtype, chunks
        As in its metadata.
    codec : str
        What its chunks are encoded with.
    raw_bytes, stored_bytes : int
        Size in memory, and all bytes under its path in the store, metadata included.
    bounds : tuple of KeptBound
        Of arrays that were written with ``max_error``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    codec: str
    raw_bytes: int
    stored_bytes: int
    bounds: tuple[KeptBound, ...] = ()

    @property
    def ratio(self) -> float:
        """Raw by stored size."""
        return self.raw_bytes / max(1, self.stored_bytes)

    @property
    def bits_per_sample(self) -> float:
        """Stored bits for each pixel of each band."""
        return 8 * self.stored_bytes / max(1, math.prod(self.shape))


def stored_arrays(store: str | Path) -> list[StoredArray]:
    """All arrays of a Zarr store of either format, without decoding a chunk."""
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        return [_stored("/", node)]
    members = node.members(max_depth=None)
    return [_stored(name, a) for name, a in sorted(members) if isinstance(a, zarr.Array)]


def tec_spec(array: zarr.Array) -> ChunkSpec | None:
    """TEC's settings for ``array``, None where it is not encoded with TEC."""
    return next((c for c in codecs_of(array) if isinstance(c, ChunkSpec)), None)


def kept_bounds(array: zarr.Array) -> tuple[KeptBound, ...]:
    """Bounds of an array and the errors that the headers of its chunks list. Decodes nothing.

    Empty for arrays without ``max_error``, and where a chunk does not say: it was written before
    frames did, or another codec comes after TEC.
    """
    spec = tec_spec(array)
    if spec is None or spec.max_error is None:
        return ()
    worst: dict[tuple[int, ...], tuple[float, float]] = {}
    names: Sequence[str] | None = spec.bands
    for header in frame_headers(array):
        if header.bounds is None and header.latents_crc == 0:
            continue  # nothing in this chunk is coded
        if header.errors is None:
            return ()
        names = names or header.bands
        limits = resolve(spec.max_error, len(header.errors), names)
        kept: list[tuple[tuple[int, ...], float, float]] = [
            ((band,), limits.bands[band], header.errors[band]) for band in header.bounded
        ]
        kept += [((i.first, i.second), i.bound, i.error) for i in header.indices]
        for key, asked, error in kept:
            worst[key] = asked, max(error, worst.get(key, (0.0, 0.0))[1])
    keys = sorted(worst, key=lambda bands: (len(bands), bands))
    return tuple(KeptBound(_label(k, names), *worst[k], is_index=len(k) > 1) for k in keys)


def frame_headers(array: zarr.Array) -> Iterator[Header]:
    """Headers of all TEC chunks that are stored, also inside shards, by reading nothing else."""
    codecs = codecs_of(array)
    store = array.store_path
    sharding = codecs[0] if isinstance(codecs[0], ShardingCodec) else None
    alone = len(codecs) == 1 and (sharding is None or len(sharding.codecs) == 1)
    if not alone or (sharding is not None and sharding.index_location.value != "end"):
        return
    whole = array.chunks if array.shards is None else array.shards
    grid = [range(-(-n // step)) for n, step in zip(array.shape, whole, strict=True)]
    entries = math.prod(s // c for s, c in zip(whole, array.chunks, strict=True))
    for place in itertools.product(*grid):
        path = store / array.metadata.encode_chunk_key(place)
        spans = [(0, None)] if sharding is None else _shard_spans(path, entries)
        for start, length in spans:
            head = _get(path, start, min(length or _HEADER_BYTES, _HEADER_BYTES))
            if head is None:  # a chunk of nothing but the fill value
                continue
            try:
                yield read_header(head)
            except FormatError:  # longer than usual, or damaged, which the whole of it says
                yield read_header(_get(path, start, length) or b"")


def _shard_spans(path: StorePath, entries: int) -> list[tuple[int, int | None]]:
    """Start and length of the chunks in a shard, from the index at its end."""
    index = sync(path.get(byte_range=SuffixByteRequest(16 * entries + 4)))
    if index is None:
        return []
    table = np.frombuffer(index.to_bytes()[:-4], "<u8").reshape(-1, 2)
    return [(int(at), int(n)) for at, n in table if at != np.iinfo(np.uint64).max]


def _get(path: StorePath, start: int, length: int | None) -> bytes | None:
    end = sys.maxsize if length is None else start + length
    data = sync(path.get(byte_range=RangeByteRequest(start, end)))
    return None if data is None else data.to_bytes()


def _label(bands: tuple[int, ...], names: Sequence[str] | None) -> str:
    known = [str(band) if names is None else names[band] for band in bands]
    return known[0] if len(known) == 1 else index_name(*known)


def codecs_of(array: zarr.Array) -> list[object]:
    """All codecs of an array, of either format, in the order of encoding."""
    if array.metadata.zarr_format == 2:
        return [*array.filters, *array.compressors]
    return [*array.filters, array.serializer, *array.compressors]


def _stored(path: str, array: zarr.Array) -> StoredArray:
    spec = tec_spec(array)
    if spec is None:
        codec = ", ".join(type(c).__name__.removesuffix("Codec").lower() for c in codecs_of(array))
    else:
        codec = f"TEC {spec.model} {_target(spec)} weights {str(spec.weights_sha256)[:8]}"
    return StoredArray(
        path, array.shape, str(array.dtype), array.chunks, codec, array.nbytes,
        array.nbytes_stored(), kept_bounds(array),
    )  # fmt: skip


def _target(spec: ChunkSpec) -> str:
    if isinstance(spec.max_error, Mapping):
        return "max_error " + ", ".join(f"{name} {v:g}" for name, v in spec.max_error.items())
    if spec.max_error is not None:
        return "max_error " + ", ".join(f"{v:g}" for v in np.unique(spec.max_error))
    if spec.psnr is not None:
        return f"psnr={spec.psnr:g}"
    return f"q={spec.quality:g}" if spec.max_bytes is None else f"max_bytes={spec.max_bytes}"


def error_rows(reference: np.ndarray, decoded: np.ndarray, bands: Sequence[str]) -> list[Row]:
    """Per band: name, PSNR (dB), mean error, mean absolute error, largest error (DN).

    Parameters
    ----------
    reference, decoded : ndarray, (..., band, y, x)
        DN, NaN where nothing was measured. Samples that the reference does not have are left
        out, those that only the decoded side lacks count as 0 DN.
    bands : sequence of str
        Names along the band axis.

    Returns
    -------
    list of rows
        One per band and a last one, "all".
    """
    valid, decoded = np.isfinite(reference), metrics.without_gaps(reference, decoded)
    columns = [
        metrics.psnr_per_band(reference, decoded, valid),
        metrics.mean_error(reference, decoded, valid),
        metrics.mean_absolute_error(reference, decoded, valid),
        metrics.max_error(reference, decoded, valid),
    ]
    rows: list[Row] = [[name, *values] for name, *values in zip(bands, *columns, strict=True)]
    whole = [np.reshape(a, (1, -1, 1)) for a in (reference, decoded, valid)]
    rows.append([
        "all", metrics.psnr(reference, decoded, valid), metrics.mean_error(*whole)[0],
        metrics.mean_absolute_error(*whole)[0], metrics.max_error(*whole)[0],
    ])  # fmt: skip
    return rows


def nodata_line(reference: np.ndarray, decoded: np.ndarray) -> str:
    """How many samples are nodata on one side only, in words; empty where there are none."""
    differs = metrics.nodata_differs(reference, decoded)
    count = np.count_nonzero(differs)
    lost = np.count_nonzero(differs & np.isfinite(reference))
    if not count:
        return ""
    return f"nodata differs in {count} samples: {lost} are missing in B, {count - lost} in A"


ERROR_COLUMNS = ("band", "PSNR dB", "mean error", "mean |error|", "max |error| DN")


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Text table: names to the left, numbers to the right."""
    cells = [[str(c) for c in columns], *([_cell(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def size(n_bytes: int) -> str:
    """Bytes as a person reads them."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if n_bytes >= 1000**power:
            return f"{n_bytes / 1000**power:.2f} {unit}"
    return f"{n_bytes} B"


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float | np.floating) else str(value)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
