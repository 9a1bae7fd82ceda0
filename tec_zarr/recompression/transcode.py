"""Whole stores transcoded: fewer steps, the other Zarr format, other shards; nothing is decoded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import zarr

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.tokens import TOKENS, check_tokens
from tec_zarr.recompression.moving import check_frames, move
from tec_zarr.stores.chunks import chunks_in_object, frames_of, shard_of, tec_spec
from tec_zarr.stores.info import ATTRIBUTE
from tec_zarr.stores.objects import (
    is_metadata,
    list_keys,
    list_nodes,
    open_source,
    open_target,
    publication_order,
    read,
    write,
)
from tec_zarr.stores.transcode import check_steps, is_flexible, quality_of, transcode_chunk, whole

_TARGETS = ("psnr", "max_bytes")


def transcode(
    source: Any,
    target: Any,
    tokens: int | Sequence[int] | None = None,
    *,
    zarr_format: Literal[2, 3] | None = None,
    shards: Sequence[int] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Copy a Zarr store without encoding it again: FlexTEC arrays at a lower quality, or arrays of
    any model in the other Zarr format or in other shards.

    A lower quality copies everything else byte by byte. Another format or other shards move the
    chunks of TEC arrays byte by byte, and copy everything else through its values.

    Parameters
    ----------
    source : path, URL, zarr store, Group or Array
        With an array at least whose codec is TEC; for ``tokens`` with a FlexTEC model.
    target : path, URL or zarr store
        Empty or missing.
    tokens : int or sequence of int, optional
        As for `transcode_chunk`; one for each date of a chunk.
    zarr_format : {2, 3}, optional
        Format of the target. Default: that of the source, or 3 where ``shards`` has some.
    shards : sequence of int, optional
        Shape of the shards of TEC arrays, in pixels and dates: whole chunks. Empty: no shards.
        Default: as they are; none from format 2.
    progress : callable
        Called after every object that was copied.

    Returns
    -------
    int
        Chunks that were lowered or moved.

    Raises
    ------
    UnsupportedArrayError
        No TEC array, nothing to do, ``tokens`` together with another format or shards, for
        ``tokens`` no FlexTEC array or TEC arrays of other models, a codec behind TEC, a target
        with something in it, or arguments out of range.
    TecError
        As `transcode_chunk`; the target is incomplete then, and cannot be opened.
    """
    root = open_source(source, None)
    arrays = {p: node for p, node in list_nodes(root).items() if isinstance(node, zarr.Array)}
    lowered = {path: array for path, array in arrays.items() if tec_spec(array) is not None}
    if not lowered:
        raise UnsupportedArrayError(f"{source} has no TEC array: there is nothing to transcode")
    moved = zarr_format is not None or shards is not None
    if moved == (tokens is not None):
        raise UnsupportedArrayError(
            "give either tokens (a whole number for all dates, or one for each), or zarr_format or "
            "shards: a lower quality and another place are made one after the other"
        )
    if zarr_format not in (None, 2, 3):
        raise UnsupportedArrayError(f"zarr_format is {zarr_format!r}, it must be 2 or 3")
    kept = TOKENS if tokens is None else whole(tokens)
    for path, array in lowered.items():
        if not moved:
            _check_array(path, array, kept)
        check_frames(path, array)
    store = open_target(target, None)
    if list_keys(store, ""):
        raise UnsupportedArrayError(f"{target} is not empty: choose another name or delete it")
    if moved:
        default = 3 if shards else root.metadata.zarr_format
        return move(root, store, zarr_format or default, shards, progress)
    base = f"{root.path}/" if root.path else ""
    count = 0
    names = [key.removeprefix(base) for key in list_keys(root.store, base)]
    for name in sorted(names, key=publication_order):
        data = read(root.store, base + name)
        if data is None:
            continue
        owner = next((a for p, a in lowered.items() if not p or name.startswith(f"{p}/")), None)
        if is_metadata(name):
            data = _relabelled(data, kept)
        elif owner is not None:
            data, chunks = _object(data, owner, kept)
            count += chunks
        write(store, name, data)
        progress()
    return count


def _check_array(path: str, array: zarr.Array, tokens: int | Sequence[int]) -> None:
    from tec_zarr.models.registry import get_model

    spec = tec_spec(array)
    assert spec is not None
    if not is_flexible(spec.model, lambda: get_model(spec.model, spec.weights_sha256)):
        raise UnsupportedArrayError(
            f"array {path!r} is coded with {spec.model}, which has one quality for each encoding: "
            "only FlexTEC can be transcoded. Use tec-zarr recompress on the original data"
        )
    check_steps(spec.model, tokens)
    check_tokens(tokens, array.chunks[0] if array.ndim == 4 else np.size(tokens))


def _object(data: bytes, array: zarr.Array, tokens: int | Sequence[int]) -> tuple[bytes, int]:
    """A chunk or a shard of chunks at the lower quality, and how many chunks it holds."""
    if array.shards is None:
        return transcode_chunk(data, tokens), 1
    frames = frames_of(data, math.prod(chunks_in_object(array)))
    lowered = [None if frame is None else transcode_chunk(frame, tokens) for frame in frames]
    return shard_of(lowered), sum(frame is not None for frame in frames)


def _relabelled(data: bytes, tokens: int | Sequence[int]) -> bytes:
    """Metadata of one object that say the lower quality wherever they named a higher one."""

    def walk(item: Any) -> bool:
        changed = False
        if isinstance(item, dict):
            settings = item.get("configuration", {}) if item.get("name") == "tec" else item
            if item.get("name") == "tec" or item.get("id") == "tec":
                settings["quality"] = min(settings.get("quality", 4.0), quality_of(tokens))
                settings.update({target: None for target in _TARGETS if target in settings})
                changed = True
            label = f"{ATTRIBUTE}_quality"
            if label in item:
                item[label] = min(item[label], quality_of(tokens))
                # What was measured or asked for then no longer holds.
                for name in ("psnr", "max_bytes", "psnr_measured"):
                    item.pop(f"{ATTRIBUTE}_{name}", None)
                changed = True
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        for value in inside:
            changed |= walk(value)
        return changed

    document = json.loads(data)
    return json.dumps(document, indent=2).encode() if walk(document) else data
