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
from zarr.core.sync import sync
from zarr.storage import StorePath

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import FormatError
from tec_zarr.frame.frame import Header, read_header

_NO_CHUNK = np.iinfo(np.uint64).max


def shard_index(shard: bytes, entries: int) -> np.ndarray:
    """Return offset and length of each chunk (entries, 2), uint64, from the end of a shard."""
    return np.frombuffer(shard[-16 * entries - 4 : -4], "<u8").reshape(entries, 2).copy()


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
        for start, length in shard_index(shard, entries)
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
        Of Zarr format 2 or 3. Shards must have their index at the end, Zarr's default.

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
    """Return the lengths of a shard's chunks.

    The index at the end of the shard holds offset and length of each chunk, and a CRC32C.
    """
    index: Any = sync(path.get(byte_range=SuffixByteRequest(16 * math.prod(inside) + 4)))
    lengths = np.frombuffer(index.to_bytes()[:-4], "<u8").reshape(-1, 2)[:, 1]
    absent = lengths == np.iinfo(np.uint64).max  # chunks that are not stored
    return np.where(absent, 0, lengths).astype(np.int64).reshape(inside)


_HEADER_BYTES = 4096


def tec_spec(array: zarr.Array) -> ChunkSpec | None:
    """Return the TEC settings of ``array``; None if TEC does not encode it."""
    return next((c for c in codecs_of(array) if isinstance(c, ChunkSpec)), None)


def frame_headers(array: zarr.Array) -> Iterator[Header]:
    """Yield the header of every stored TEC chunk, inside shards too. Reads only the headers.

    Yields nothing if another codec follows TEC, or if the shard index is not at the end.
    """
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
            if head is None:  # not stored: all its samples are the fill value
                continue
            try:
                yield read_header(head)
            except FormatError:  # The header is longer than _HEADER_BYTES, or it is damaged.
                yield read_header(_get(path, start, length) or b"")


def _shard_spans(path: StorePath, entries: int) -> list[tuple[int, int | None]]:
    """Return start and length of each stored chunk of a shard, from the index at its end."""
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
    """Return all codecs of an array of Zarr format 2 or 3, in the order of encoding."""
    if array.metadata.zarr_format == 2:
        return [*array.filters, *array.compressors]
    return [*array.filters, array.serializer, *array.compressors]
