"""Transcode whole stores: to a lower quality, to the other Zarr format, or to other shards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import zarr

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.tokens import TOKENS, check_tokens, kept_quality
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
from tec_zarr.stores.transcode import check_layers, is_flexible, transcode_chunk, whole

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
    """Copy a Zarr store at a lower quality, in the other Zarr format or in other shards.

    Nothing is encoded again. Only FlexTEC arrays can get a lower quality; all else is then copied
    byte by byte. Arrays of any model can move to another format or other shards: TEC chunks are
    then copied byte by byte, and all other arrays are decoded and written again without loss.

    Parameters
    ----------
    source : path, URL, zarr store, Group or Array
        At least one array must have the codec TEC. For ``tokens``, all TEC arrays must be FlexTEC.
    target : path, URL or zarr store
        Empty or missing.
    tokens : int or sequence of int, optional
        Tokens to keep, as for `transcode_chunk`: one number for all dates of a chunk, or one for
        each.
    zarr_format : {2, 3}, optional
        Format of the target. Default: that of the source, or 3 if ``shards`` is not empty.
    shards : sequence of int, optional
        Shape of the shards of TEC arrays, in dates, bands and pixels: whole chunks. Empty: no
        shards. Default: the shards of the source.
    progress : callable
        Called after every object that was copied.

    Returns
    -------
    int
        Number of chunks that were lowered or moved.

    Raises
    ------
    UnsupportedArrayError
        There is no TEC array, or nothing to do. ``tokens`` came together with another format or
        shards, or there is a TEC array that is not FlexTEC. Another codec follows TEC. The target
        is not empty. An argument is out of range.
    TecError
        As for `transcode_chunk`. Then the target is incomplete and cannot be opened.
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
            spec = tec_spec(owner or next(iter(lowered.values())))
            data = _relabelled(data, spec.model if spec else "", kept)
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
    check_layers(spec.model, tokens)
    check_tokens(tokens, array.chunks[0] if array.ndim == 4 else np.size(tokens))


def _object(data: bytes, array: zarr.Array, tokens: int | Sequence[int]) -> tuple[bytes, int]:
    """Return a chunk or shard at the lower quality, and the number of chunks in it."""
    if array.shards is None:
        return transcode_chunk(data, tokens), 1
    frames = frames_of(data, math.prod(chunks_in_object(array)))
    lowered = [None if frame is None else transcode_chunk(frame, tokens) for frame in frames]
    return shard_of(lowered), sum(frame is not None for frame in frames)


def _relabelled(data: bytes, model: str, tokens: int | Sequence[int]) -> bytes:
    """Return a metadata document with every quality in it lowered to that of ``tokens``.

    ``model`` is that of the array that attributes belong to.
    """

    def lower(item: dict[str, Any], label: str, model: str) -> None:
        item[label] = kept_quality(model, item.get(label, ChunkSpec.quality), tokens)

    def walk(item: Any) -> bool:
        changed = False
        if isinstance(item, dict):
            settings = item.get("configuration", {}) if item.get("name") == "tec" else item
            if item.get("name") == "tec" or item.get("id") == "tec":
                lower(settings, "quality", settings.get("model", model))
                settings.update({target: None for target in _TARGETS if target in settings})
                changed = True
            if f"{ATTRIBUTE}_quality" in item:
                lower(item, f"{ATTRIBUTE}_quality", model)
                # The PSNR and the number of bytes of the old quality no longer hold.
                for name in ("psnr", "max_bytes", "psnr_measured"):
                    item.pop(f"{ATTRIBUTE}_{name}", None)
                changed = True
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        for value in inside:
            changed |= walk(value)
        return changed

    document = json.loads(data)
    return json.dumps(document, indent=2).encode() if walk(document) else data
