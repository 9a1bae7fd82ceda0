"""Chunks and shards of an array from outside: codec chain, sizes, headers; nothing is decoded."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.codecs import ShardingCodec
from zarr.core.sync import sync
from zarr.storage import StorePath

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import FormatError
from tec_zarr.frame.frame import Header, read_header

_NO_CHUNK = np.iinfo(np.uint64).max


def shard_index(shard: bytes, entries: int) -> np.ndarray:
    """Offsets and lengths (entries, 2), as they stand at the end of a shard; uint64."""
    return np.frombuffer(shard[-16 * entries - 4 : -4], "<u8").reshape(entries, 2).copy()


def shard_of(frames: Sequence[bytes | None]) -> bytes:
    """Chunks one after the other, None where there is none, and their index with its CRC32C."""
    from google_crc32c import value  # Zarr's own dependency

    index = np.full((len(frames), 2), _NO_CHUNK, "<u8")
    at = 0
    for entry, frame in enumerate(frames):
        if frame is not None:
            index[entry] = at, len(frame)
            at += len(frame)
    data = index.tobytes()
    checked = data + int(value(data)).to_bytes(4, "little")
    return b"".join(frame for frame in frames if frame is not None) + checked


def frames_of(shard: bytes, entries: int) -> list[bytes | None]:
    """Chunks of a shard by their place in it, None where there is none."""
    return [
        None if start == _NO_CHUNK else shard[int(start) : int(start + length)]
        for start, length in shard_index(shard, entries)
    ]


def chunks_in_object(array: zarr.Array) -> tuple[int, ...]:
    """Chunks along each axis in one stored object."""
    whole = array.shards or array.chunks
    return tuple(n // step for n, step in zip(whole, array.chunks, strict=True))


def chunk_bytes(array: zarr.Array) -> np.ndarray:
    """Stored bytes of every chunk, 0 where nothing was written; decodes nothing.

    Parameters
    ----------
    array : zarr.Array
        Of either format, with or without shards (with Zarr's default index).

    Returns
    -------
    ndarray of int64
        One entry per chunk along each dimension.
    """
    outer = array.shards or array.chunks
    inside = tuple(o // c for o, c in zip(outer, array.chunks, strict=True))
    shards = tuple(-(-n // o) for n, o in zip(array.shape, outer, strict=True))
    out = np.zeros([n * k for n, k in zip(shards, inside, strict=True)], np.int64)
    for place in np.ndindex(*shards):
        path = array.store_path / array.metadata.encode_chunk_key(place)
        if not sync(path.exists()):
            continue
        here = tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, inside, strict=True))
        out[here] = (
            sync(path.store.getsize(path.path))
            if array.shards is None
            else _shard_lengths(path, inside)
        )
    return out[tuple(slice(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))]


def _shard_lengths(path: StorePath, inside: tuple[int, ...]) -> np.ndarray:
    """Lengths of a shard's chunks, from the index at its end: offset and length of each, CRC32C."""
    index: Any = sync(path.get(byte_range=SuffixByteRequest(16 * math.prod(inside) + 4)))
    lengths = np.frombuffer(index.to_bytes()[:-4], "<u8").reshape(-1, 2)[:, 1]
    absent = lengths == np.iinfo(np.uint64).max  # never written
    return np.where(absent, 0, lengths).astype(np.int64).reshape(inside)


_HEADER_BYTES = 4096


def tec_spec(array: zarr.Array) -> ChunkSpec | None:
    """TEC's settings for ``array``, None where it is not encoded with TEC."""
    return next((c for c in codecs_of(array) if isinstance(c, ChunkSpec)), None)


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


def codecs_of(array: zarr.Array) -> list[object]:
    """All codecs of an array, of either format, in the order of encoding."""
    if array.metadata.zarr_format == 2:
        return [*array.filters, *array.compressors]
    return [*array.filters, array.serializer, *array.compressors]
