"""Move TEC stores to the other Zarr format, or to other shards, without decoding a TEC chunk.

A TEC chunk is a frame. Its bytes are the same in both formats, and inside or outside a shard. All
other arrays are decoded and written again, without loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.numcodecs_codec import TEC
from tec_zarr.codec.zarr_codec import TECCodec
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.recompression.plan import (
    ArrayPlan,
    copy_storage,
    create_array,
    documents,
    elsewhere,
    region_of_copy,
)
from tec_zarr.stores.chunks import chunks_in_object, frames_of, holds_frames, shard_of, tec_spec
from tec_zarr.stores.objects import list_nodes, read, write


def move(
    root: zarr.Group | zarr.Array,
    store: Store,
    zarr_format: Literal[2, 3],
    shards: Sequence[int] | None,
    progress: Callable[[], object],
) -> int:
    """Write ``root`` to an empty store in another format or other shards, metadata last.

    Parameters
    ----------
    root : Group or Array
        Its TEC arrays must pass `check_frames`.
    store : Store
        Target; empty.
    zarr_format : {2, 3}
        Format of the target.
    shards : sequence of int or None
        Shape of the shards of TEC arrays, in whole chunks along each axis. Empty: no shards. None:
        the shards of the source.
    progress : callable
        Called after every object that holds frames, and after every part of any other array.

    Returns
    -------
    int
        Number of TEC chunks that were moved.

    Raises
    ------
    UnsupportedArrayError
        Shards in format 2, or shards that do not hold whole chunks.
    """
    template, nodes = MemoryStore(), list_nodes(root)
    for path, node in nodes.items():
        if isinstance(node, zarr.Group):
            zarr.create_group(
                template, path=path, zarr_format=zarr_format, attributes=dict(node.attrs)
            )
    made: dict[str, tuple[zarr.Array, zarr.Array]] = {}
    for path, array in nodes.items():
        if isinstance(array, zarr.Array):
            spec, storage = tec_spec(array), copy_storage(array, zarr_format)
            if not array.compressors and not array.filters:  # For instance, embedded weights.
                storage["compressors"] = None
            if spec is not None:
                storage = {"chunks": array.chunks} | _shards(path, array, zarr_format, shards)
                codec = (TEC if zarr_format == 2 else TECCodec)(**spec.to_config())
                storage |= {"compressors": codec} if zarr_format == 2 else {
                    "serializer": codec, "compressors": None}  # fmt: skip
            made[path] = array, create_array(template, path, array, zarr_format, storage)
    count = 0
    for path, (source, new) in made.items():
        target = elsewhere(new, store, path)
        if tec_spec(source) is not None:
            count += _move_frames(source, target, _absent(source, target), progress)
            continue
        plan = ArrayPlan(0, path, source, target, new, region_of_copy(source, new), None)
        for number in plan.numbers:
            region = plan.region_slices(number)
            target[region] = np.asarray(source[region])
            progress()
    if isinstance(root, zarr.Group) and (
        zarr_format == 2 or root.metadata.consolidated_metadata is not None
    ):
        zarr.consolidate_metadata(template, zarr_format=zarr_format)
    for key, document in documents(template).items():
        write(store, key, document)
    return count


def check_frames(path: str, array: zarr.Array) -> None:
    """Refuse arrays whose TEC chunks cannot be reached without decoding something else."""
    if not holds_frames(array):
        raise UnsupportedArrayError(
            f"array {path!r} has other codecs beside TEC, or shards with an index at their start: "
            "TEC chunks cannot be reached there without decoding"
        )


def _shards(
    path: str, array: zarr.Array, zarr_format: int, shards: Sequence[int] | None
) -> dict[str, Any]:
    if zarr_format == 2:
        if shards:
            raise UnsupportedArrayError("Zarr format 2 has no shards: leave them out")
        return {}
    wanted = array.shards if shards is None else tuple(shards)
    if not wanted:
        return {}
    fits = len(wanted) == array.ndim and all(
        n > 0 and n % step == 0 for n, step in zip(wanted, array.chunks, strict=True)
    )
    if not fits:
        raise UnsupportedArrayError(
            f"shards of {tuple(wanted)} do not hold whole chunks of array {path!r}, which are "
            f"{array.chunks}: give a multiple of each number"
        )
    return {"shards": tuple(wanted)}


def _absent(source: zarr.Array, target: zarr.Array) -> bytes | None:
    """Return the frame to write for chunks that the source does not store.

    Such chunks hold the fill value of the source. None if the target has the same fill value, so
    that it need not store them either. The two may differ: format 2 uses the fill value for nodata,
    format 3 uses an attribute.
    """
    spec, fill = tec_spec(source), cast("float | None", source.fill_value)
    fill = 0 if fill is None else fill
    if spec is None or _same(fill, target.fill_value):
        return None
    return encode_chunk(np.full(source.chunks, fill, source.dtype), spec, padding=(fill,))


def _same(fill: float, other: Any) -> bool:
    return other is not None and bool(fill == other or (fill != fill and other != other))


def _move_frames(
    source: zarr.Array, target: zarr.Array, absent: bytes | None, progress: Callable[[], object]
) -> int:
    """Write each object of the target from the frames of the source. Returns how many frames."""
    inside, before = chunks_in_object(target), chunks_in_object(source)

    @lru_cache(maxsize=math.prod(-(-n // m) + 1 for n, m in zip(inside, before, strict=True)))
    def frames(place: tuple[int, ...]) -> list[bytes | None]:
        key = "/".join(filter(None, (source.path, source.metadata.encode_chunk_key(place))))
        data = read(source.store_path.store, key)
        if source.shards is None:
            return [data]
        entries = math.prod(before)
        return [None] * entries if data is None else frames_of(data, entries)

    def frame(at: tuple[int, ...]) -> bytes | None:
        place = tuple(i // n for i, n in zip(at, before, strict=True))
        return frames(place)[
            int(np.ravel_multi_index([i % n for i, n in zip(at, before, strict=True)], before))
        ]

    grid = [-(-size // step) for size, step in zip(source.shape, source.chunks, strict=True)]
    count = 0
    for place in itertools.product(*(range(-(-n // m)) for n, m in zip(grid, inside, strict=True))):
        ats = itertools.product(
            *(range(i * m, (i + 1) * m) for i, m in zip(place, inside, strict=True))
        )
        found = [
            (frame(at) or absent) if all(i < n for i, n in zip(at, grid, strict=True)) else None
            for at in ats
        ]
        there = sum(one is not None for one in found)
        if there:
            data = found[0] if target.shards is None else shard_of(found)
            key = "/".join(filter(None, (target.path, target.metadata.encode_chunk_key(place))))
            write(target.store_path.store, key, data or b"")
        count += there
        progress()
    return count
