"""Codec chain, shard index, chunk sizes and TEC headers of an array. Decodes no chunk."""

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
from zarr.storage import StorePath

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import FormatError
from tec_zarr.frame.frame import Header, SectionKind, read_head
from tec_zarr.stores.objects import sync
from tec_zarr.stores.packing_codecs import packing_of

_NO_CHUNK = np.iinfo(np.uint64).max


def shard_index(index: bytes) -> np.ndarray:
    """Offsets and lengths (entries, 2) uint64 of a shard's chunks, from its index with CRC32C.

    Both are 2^64 - 1 for a chunk that was never written.
    """
    return np.frombuffer(index[:-4], "<u8").reshape(-1, 2)


def shard_of(frames: Sequence[bytes | None]) -> bytes:
    """Build a shard: the chunks one after the other, then their index and its CRC32C.

    Parameters
    ----------
    frames : sequence of bytes or None
        Chunks in the order of the index; None for a chunk that is not stored.
    """
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
    """Return the chunks of a shard in the order of its index; None for a chunk not stored."""
    return [
        None if start == _NO_CHUNK else shard[int(start) : int(start + length)]
        for start, length in shard_index(shard[-16 * entries - 4 :])
    ]


def chunks_in_object(array: zarr.Array) -> tuple[int, ...]:
    """Return how many chunks one stored object (shard or chunk) holds along each axis."""
    whole = array.shards or array.chunks
    return tuple(n // step for n, step in zip(whole, array.chunks, strict=True))


def chunk_bytes(array: zarr.Array) -> np.ndarray:
    """Return the stored bytes of every chunk, 0 for a chunk that is not stored. Decodes nothing.

    Parameters
    ----------
    array : zarr.Array
        Of either format, with or without shards.

    Returns
    -------
    ndarray of int64
        One entry per chunk along each dimension.
    """
    outer, inside = array.shards or array.chunks, chunks_in_object(array)
    shards = tuple(-(-n // o) for n, o in zip(array.shape, outer, strict=True))
    out = np.zeros([n * k for n, k in zip(shards, inside, strict=True)], np.int64)
    for place in np.ndindex(*shards):
        path = array.store_path / array.metadata.encode_chunk_key(place)
        if not sync(path.exists()):
            continue
        here = tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, inside, strict=True))
        index = None if array.shards is None else _stored_index(array, path)
        if index is None:
            out[here] = sync(path.store.getsize(path.path))
        else:
            lengths = np.where(index[:, 0] == _NO_CHUNK, 0, index[:, 1])
            out[here] = lengths.astype(np.int64).reshape(inside)
    return out[tuple(slice(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))]


def _index_at_start(sharding: Any) -> bool:
    """Return whether the index of a shard comes first. It is an enum up to Zarr 3.3, then text."""
    where = sharding.index_location
    return str(getattr(where, "value", where)) == "start"


def _stored_index(array: zarr.Array, path: StorePath) -> np.ndarray | None:
    """Index of the shard at ``path``, of which nothing else is read; None where there is none."""
    size, sharding = 16 * math.prod(chunks_in_object(array)) + 4, sharding_of(array)
    at_start = sharding is not None and _index_at_start(sharding)
    part = RangeByteRequest(0, size) if at_start else SuffixByteRequest(size)
    found: Any = sync(path.get(byte_range=part))
    return None if found is None else shard_index(found.to_bytes())


_HEADER_BYTES = 4096


def tec_spec(array: zarr.Array) -> ChunkSpec | None:
    """Return the TEC settings of ``array``; None if TEC does not encode it."""
    return next((c for c in codecs_of(array) if isinstance(c, ChunkSpec)), None)


def frame_heads(array: zarr.Array) -> Iterator[tuple[Header, list[SectionKind]]]:
    """Headers of all TEC chunks that are stored, also inside shards, by reading nothing else.

    Each comes with the kinds of the sections behind it.
    """
    if not _stores_frames(array):
        return
    whole = array.shards or array.chunks
    grid = [range(-(-n // step)) for n, step in zip(array.shape, whole, strict=True)]
    for place in itertools.product(*grid):
        path = array.store_path / array.metadata.encode_chunk_key(place)
        spans: list[tuple[int, int | None]] = [(0, None)]
        if array.shards is not None:
            index = _stored_index(array, path)
            there = [] if index is None else index[index[:, 0] != _NO_CHUNK].tolist()
            spans = [(start, length) for start, length in there]
        for start, length in spans:
            head = _get(path, start, min(length or _HEADER_BYTES, _HEADER_BYTES))
            if head is None:  # not stored: all its samples are the fill value
                continue
            try:
                yield read_head(head)
            except FormatError:  # The header is longer than _HEADER_BYTES, or it is damaged.
                yield read_head(_get(path, start, length) or b"")


def _get(path: StorePath, start: int, length: int | None) -> bytes | None:
    end = sys.maxsize if length is None else start + length
    data = sync(path.get(byte_range=RangeByteRequest(start, end)))
    return None if data is None else data.to_bytes()


def codecs_of(array: zarr.Array) -> list[object]:
    """Codecs of each chunk, of either format, in the order of encoding; not that of shards."""
    if array.metadata.zarr_format == 2:
        return [*array.filters, *array.compressors]
    return [*array.filters, array.serializer, *array.compressors]


def sharding_of(array: zarr.Array) -> ShardingCodec | None:
    """The codec that puts chunks into shards, None where each chunk is an object."""
    codecs = () if array.metadata.zarr_format == 2 else array.metadata.codecs
    return next((codec for codec in codecs if isinstance(codec, ShardingCodec)), None)


def holds_frames(array: zarr.Array) -> bool:
    """Whether each object is a TEC frame, or a shard of frames with its index at the end.

    False also for arrays behind other codecs: their frames hold other values than the array.
    """
    return _stores_frames(array) and len(codecs_of(array)) == 1


def _stores_frames(array: zarr.Array) -> bool:
    """As `holds_frames`, but also True for frames of integers that other codecs make floats of."""
    codecs, sharding = codecs_of(array), sharding_of(array)
    end = sharding is None or not _index_at_start(sharding)
    packed = len(codecs) == 1 or packing_of(codecs[:-1]) is not None
    return tec_spec(array) is codecs[-1] and packed and end
