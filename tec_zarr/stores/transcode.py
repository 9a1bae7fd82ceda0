"""Lower the quality of one FlexTEC chunk without encoding it again, and preview it.

FlexTEC stores the 16 tokens of a date separately, coarse ones first. Cutting off the last
tokens lowers the quality of a chunk. That needs neither the network nor its weights, unless later
dates were predicted from tokens that are cut. Then the network decodes the remaining tokens and
codes them again, without further loss. Either way the result equals the chunk that encoding at the
lower quality makes.

The tokens of ``tec-flex-s2`` are layers. It predicts each layer of a date from the same layer of
other dates. So all dates of a chunk are cut to the same number of layers.

`tec_zarr.recompression.transcode` does the same for whole stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import index as whole_number
from typing import Any

import numpy as np

from tec_zarr.codec.decode import decode_chunk, model_of, name_of_model
from tec_zarr.codec.part import latents_of
from tec_zarr.codec.tiles import tiles_of
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.frame.frame import Frame, Header, Section, SectionKind, read_frame, write_frame
from tec_zarr.models import published as models_published
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.registry import register_model
from tec_zarr.models.tokens import (
    LAYERED,
    TOKENS,
    ContextError,
    check_tokens,
    cut,
    kept_quality,
)

Shape = tuple[int, int, int, int]


def transcode_chunk(data: bytes | memoryview, tokens: int | Sequence[int]) -> bytes:
    """Lower the quality of one chunk of FlexTEC or tec-flex-s2, whose tokens are layers.

    Parameters
    ----------
    data : bytes-like
        One frame.
    tokens : int or sequence of int
        Tokens to keep, 1 to 16: one number for all dates, or one for each. Dates that have fewer
        tokens stay as they are.

    Returns
    -------
    bytes
        For FlexTEC, the frame that :func:`tec_zarr.encode_chunk` makes at the lower quality. For
        tec-flex-s2, a frame with the first layers of ``data``.

    Raises
    ------
    UnsupportedArrayError
        The chunk is of another model, tokens are out of range, or tec-flex-s2 got several numbers.
    FormatError, ChecksumError, VersionError
        The bytes are damaged.
    UnknownModelError, WeightsMismatchError
        Later dates were predicted from tokens that are cut, and this machine lacks the weights
        that are needed to code these dates again.
    """
    frame = read_frame(data)
    _check_model(frame.header)
    tokens = whole(tokens)
    check_layers(name_of_model(frame.header), tokens)

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
    """Decode only the first tokens of a FlexTEC chunk: coarser, but faster.

    Parameters
    ----------
    data : bytes-like
        One frame.
    tokens : int
        Tokens to show of every date, 1 to 15. If other dates were predicted from a date, more of
        its tokens may have to be decoded.

    Returns
    -------
    ndarray
        As :func:`tec_zarr.decode_chunk` returns it.

    Raises
    ------
    UnsupportedArrayError
        The chunk is of another model, or tokens are out of range.
    TecError
        As for :func:`tec_zarr.decode_chunk`.
    """
    frame = read_frame(data)
    _check_model(frame.header)
    count = whole(tokens)
    if not isinstance(count, int) or not 1 <= count < TOKENS:
        raise UnsupportedArrayError(f"a preview shows 1 to {TOKENS - 1} tokens, not {count}")
    if name_of_model(frame.header) == LAYERED:
        return decode_chunk(transcode_chunk(data, count))
    model: Any = model_of(frame.header)
    shown = model.preview(count)
    register_model(shown.name, lambda: shown, shown.weights_sha256)
    frame = replace(frame, header=replace(frame.header, model_name=shown.name))
    coarse = _lowered(frame, count, lambda sections, _, kept: cut(sections, kept, True))
    return decode_chunk(coarse)


def whole(tokens: Any) -> int | list[int]:
    """Convert token numbers (Python or NumPy integers) to Python integers."""
    try:
        return whole_number(tokens) if np.ndim(tokens) == 0 else [whole_number(k) for k in tokens]
    except TypeError:
        raise UnsupportedArrayError(
            f"tokens are {tokens!r:.80}: give a whole number for all dates, or one for each"
        ) from None


def check_layers(model: str, tokens: int | Sequence[int]) -> None:
    if model == LAYERED and not isinstance(tokens, int):
        raise UnsupportedArrayError(
            f"{LAYERED} cuts all dates of a chunk to one number of layers, because they are "
            f"predicted from one another in every layer: give one number, not {list(tokens)}"
        )


def _check_model(header: Header) -> None:
    if not is_flexible(name_of_model(header), lambda: model_of(header)):
        raise UnsupportedArrayError(
            f"a chunk of model {name_of_model(header)!r} has one quality, that of its encoding: "
            "only FlexTEC chunks can be transcoded. Decode and encode it again, at a further loss"
        )


def is_flexible(name: str, model: Callable[[], Model]) -> bool:
    """Whether a model is FlexTEC; published ones are known without their weights."""
    published = models_published.PUBLISHED.get(name.partition("/")[0])
    if published is not None:
        return published.architecture == "flex"
    return model().flexible


def _lowered(
    frame: Frame,
    tokens: int | Sequence[int],
    shorter: Callable[[list[bytes], Shape, list[int]], Encoded],
) -> bytes:
    """Replace the sections of every tile by shorter ones."""
    header = frame.header
    kept = check_tokens(tokens, header.shape4[0])
    latents: list[Section] = []
    for tile in tiles_of(frame)[2]:
        coded = shorter(tile.sections, tile.shape, [kept[t] for t in tile.dates])
        latents += latents_of(coded)
    others = [s for s in frame.sections if s.kind is not SectionKind.LATENTS]
    quality = kept_quality(name_of_model(header), header.quality, kept)
    return write_frame(replace(header, quality=quality), others + latents)
