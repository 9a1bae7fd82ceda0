"""What stored data become without encoding them again: FlexTEC at a lower quality, quick previews
of it, and arrays of any model in the other Zarr format or in other shards
(`tec_zarr.recompression.moving`).

FlexTEC keeps the 16 tokens of a date apart, coarse ones first. A chunk is lowered by cutting its
last tokens off, which takes neither the network nor its weights; where later dates were predicted
from tokens that go, those that stay are decoded and coded anew, by the network but without any
further loss. Either way the chunk is the one that encoding at the lower quality makes.

The steps of ``tec-flex-s2`` are its tokens. Its dates are predicted from the same step of one
another, so that a chunk is cut to one number of steps, without any network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from operator import index as whole_number
from typing import Any, Literal

import numpy as np
import zarr

from tec_zarr.codec.decode import decode_chunk, model_of, name_of_model
from tec_zarr.codec.tiles import chained_checksum, coded_tiles, mask_of_bands, single_payload
from tec_zarr.errors import FormatError, UnsupportedArrayError
from tec_zarr.frame.frame import Frame, Header, Section, SectionKind, read_frame, write_frame
from tec_zarr.frame.mask import unpack_mask
from tec_zarr.models import published as models_published
from tec_zarr.models.protocol import Encoded
from tec_zarr.models.registry import register_model
from tec_zarr.models.tokens import TOKENS, ContextError, check_tokens, cut
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

_TARGETS = ("psnr", "max_bytes")
#: The model whose dates have to be cut together.
_STEPPED = "tec-flex-s2"

Shape = tuple[int, int, int, int]


def transcode_chunk(data: bytes | memoryview, tokens: int | Sequence[int]) -> bytes:
    """Lower the quality of one chunk of FlexTEC or tec-flex-s2.

    Parameters
    ----------
    data : bytes-like
        One frame.
    tokens : int or sequence of int
        Tokens to keep of every date, or of each: 1 to 16. Dates that have fewer stay as they are.

    Returns
    -------
    bytes
        Of FlexTEC a frame as :func:`tec_zarr.encode_chunk` makes it at the lower quality; of
        tec-flex-s2 the first steps of this one.

    Raises
    ------
    UnsupportedArrayError
        A chunk of another model, tokens out of range, or several numbers for tec-flex-s2.
    FormatError, ChecksumError, VersionError
        Damaged bytes.
    UnknownModelError, WeightsMismatchError
        Later dates were predicted from tokens that go, and the weights that coding them anew
        takes are not here.
    """
    frame = read_frame(data)
    _check_model(frame.header)
    tokens = _whole(tokens)
    _check_steps(name_of_model(frame.header), tokens)

    def shorter(
        sections: list[bytes], shape: tuple[int, int, int, int], kept: list[int]
    ) -> Encoded:
        try:
            return cut(sections, kept)
        except ContextError:
            model: Any = model_of(frame.header)
            return model.recode(sections, shape, kept)

    return _lowered(frame, tokens, shorter)


def preview_chunk(data: bytes | memoryview, tokens: int = 2) -> np.ndarray:
    """Decode the first tokens of a FlexTEC chunk only: coarse, and sooner.

    Parameters
    ----------
    data : bytes-like
        One frame.
    tokens : int
        Tokens shown of every date, 1 to 15. Of dates that others were predicted from, more may
        have to be decoded.

    Returns
    -------
    ndarray
        As from :func:`tec_zarr.decode_chunk`.

    Raises
    ------
    UnsupportedArrayError
        A chunk of another model, or tokens out of range.
    TecError
        As :func:`tec_zarr.decode_chunk`.
    """
    frame = read_frame(data)
    _check_model(frame.header)
    count = _whole(tokens)
    if not isinstance(count, int) or not 1 <= count < TOKENS:
        raise UnsupportedArrayError(f"a preview shows 1 to {TOKENS - 1} tokens, not {count}")
    if name_of_model(frame.header) == _STEPPED:
        return decode_chunk(transcode_chunk(data, count))
    model: Any = model_of(frame.header)
    shown = model.preview(count)
    register_model(shown.name, lambda: shown, shown.weights_sha256)
    frame = replace(frame, header=replace(frame.header, model_name=shown.name))
    coarse = _lowered(frame, count, lambda sections, _, kept: cut(sections, kept, True))
    return decode_chunk(coarse)


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
    kept = TOKENS if tokens is None else _whole(tokens)
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


def _whole(tokens: Any) -> int | list[int]:
    """Tokens as Python's integers, whoever made them."""
    try:
        return whole_number(tokens) if np.ndim(tokens) == 0 else [whole_number(k) for k in tokens]
    except TypeError:
        raise UnsupportedArrayError(
            f"tokens are {tokens!r:.80}: give a whole number for all dates, or one for each"
        ) from None


def _check_steps(model: str, tokens: int | Sequence[int]) -> None:
    if model == _STEPPED and not isinstance(tokens, int):
        raise UnsupportedArrayError(
            f"{_STEPPED} cuts all dates of a chunk to one number of steps, because they are "
            f"predicted from one another at every step: give one number, not {list(tokens)}"
        )


def _check_model(header: Header) -> None:
    if not _is_flexible(name_of_model(header), lambda: model_of(header)):
        raise UnsupportedArrayError(
            f"a chunk of model {name_of_model(header)!r} has one quality, that of its encoding: "
            "only FlexTEC chunks can be transcoded. Decode and encode it again, at a further loss"
        )


def _is_flexible(name: str, model: Callable[[], object]) -> bool:
    """Whether a model is FlexTEC; published ones are known without their weights."""
    published = models_published.PUBLISHED.get(name.partition("/")[0])
    if published is not None:
        return published.architecture == "flex"
    return bool(getattr(model(), "flexible", False))


def _lowered(
    frame: Frame,
    tokens: int | Sequence[int],
    shorter: Callable[[list[bytes], Shape, list[int]], Encoded],
) -> bytes:
    """The frame with every tile's sections replaced by shorter ones, and its checksum with them."""
    header = frame.header
    kept = check_tokens(tokens, header.shape4[0])
    kinds = SectionKind.MASK, SectionKind.EXACT
    packed, exact = (single_payload(frame.payloads(kind), kind) for kind in kinds)
    native = header.dtype.newbyteorder("=")
    mask = unpack_mask(packed, exact, header.shape4, native) if packed else None
    free = [c for c in range(header.shape4[1]) if c not in header.bounded]
    sections = iter(frame.payloads(SectionKind.LATENTS))
    latents: list[Section] = []
    crc = 0
    for tile, dates in coded_tiles(header.shape4, mask_of_bands(mask, free)) if free else ():
        mine = list(islice(sections, len(dates)))
        if len(mine) < len(dates):
            raise FormatError(f"TEC frame damaged: too few sections for shape {header.shape}")
        height, width = (
            len(range(*part.indices(n))) for part, n in zip(tile, header.shape4[2:], strict=True)
        )
        shape = (len(dates), len(free), height, width)
        coded = shorter(mine, shape, [kept[t] for t in dates])
        latents += [Section(SectionKind.LATENTS, section) for section in coded.sections]
        crc = chained_checksum(crc, coded.latents_crc)
    before = [s for s in frame.sections if s.kind in (SectionKind.MASK, SectionKind.EXACT)]
    after = [s for s in frame.sections[len(before) :] if s.kind is not SectionKind.LATENTS]
    quality = min(header.quality, _quality(kept))
    return write_frame(
        replace(header, latents_crc=crc, quality=quality), [*before, *latents, *after]
    )


def _quality(tokens: int | Sequence[int]) -> float:
    """Quality of the codec's scale, which starts at two tokens."""
    return max(1.0, (tokens if isinstance(tokens, int) else max(tokens)) / 2)


def _check_array(path: str, array: zarr.Array, tokens: int | Sequence[int]) -> None:
    from tec_zarr.models.registry import get_model

    spec = tec_spec(array)
    assert spec is not None
    if not _is_flexible(spec.model, lambda: get_model(spec.model, spec.weights_sha256)):
        raise UnsupportedArrayError(
            f"array {path!r} is coded with {spec.model}, which has one quality for each encoding: "
            "only FlexTEC can be transcoded. Use tec-zarr recompress on the original data"
        )
    _check_steps(spec.model, tokens)
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
                settings["quality"] = min(settings.get("quality", 4.0), _quality(tokens))
                settings.update({target: None for target in _TARGETS if target in settings})
                changed = True
            label = f"{ATTRIBUTE}_quality"
            if label in item:
                item[label] = min(item[label], _quality(tokens))
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
