"""Parses and cuts sections of flexible models, without networks and torch.

Every token of a date (the first is the coarsest) is a group of its own. Leaving out the last
groups of a date lowers its quality. Later dates are predicted from the first ``context`` tokens of
a date, so these must stay. Only the last date of a series can be cut to fewer.

The layers of ``tec-flex-s2`` are tokens too. A layer is predicted from the layer below and from the
same layer of other dates, so all dates are cut to the same number.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tec_zarr.errors import FormatError, TecError, UnsupportedArrayError
from tec_zarr.frame.varint import read_varint, write_varint
from tec_zarr.models.protocol import Encoded

__all__ = [
    "TOKENS", "ContextError", "FlexSection", "check_tokens", "cut", "kept_quality",
    "layer_qualities",
]  # fmt: skip

TOKENS = 16
"""Number of tokens of a window, which is the number of FlexTEC's qualities."""


LAYERED = "tec-flex-s2"
"""The model whose tokens are layers: all dates of a chunk have the same number of them."""

_LAYER = 2.5
"""Qualities between two layers of `LAYERED`."""


class ContextError(TecError):
    """A cut would remove tokens from which later dates were predicted."""


@dataclass(frozen=True)
class FlexSection:
    """The section of one FlexTEC date. Its last token groups can be cut off.

    Parameters
    ----------
    context : int
        Number of tokens from which later dates are predicted.
    head : bytes
        Bytes that all groups need: the lowest quality of tec-flex-s2. Empty for FlexTEC.
    groups : tuple of bytes
        One per token: a checksum of its symbols (2 bytes), then the shortest range-coder stream.
    """

    context: int
    head: bytes
    groups: tuple[bytes, ...]

    @classmethod
    def from_bytes(cls, data: bytes) -> FlexSection:
        """Parse a section.

        Raises
        ------
        FormatError
            The bytes are not a section.
        """
        count, at = read_varint(data, 0)
        context, at = read_varint(data, at)
        size, at = read_varint(data, at)
        head, at = data[at : at + size], at + size
        groups = []
        for _ in range(min(count, TOKENS + 1)):
            size, at = read_varint(data, at)
            groups.append(data[at : at + size])
            at += size
        if not 1 <= len(groups) <= TOKENS or not 1 <= context <= TOKENS or at != len(data):
            raise FormatError(
                f"FlexTEC section with {count} token groups and a context of {context}, "
                f"{len(data)} bytes: damaged."
            )
        return cls(context, head, tuple(groups))

    def to_bytes(self) -> bytes:
        """Serialise the counts, then the head and the groups, each after its length."""
        parts = [write_varint(len(self.groups)), write_varint(self.context)]
        for part in (self.head, *self.groups):
            parts += [write_varint(len(part)), part]
        return b"".join(parts)

    def check(self) -> int:
        """Return the checksum of the date's latents: a CRC32 of those of the groups."""
        return zlib.crc32(b"".join(group[:2] for group in self.groups))


def layer_qualities(quality: float) -> list[float]:
    """Return the qualities of the layers of ``tec-flex-s2``, from the lowest."""
    count = 1 + int((quality - 1) / _LAYER)
    return [quality - _LAYER * (count - 1 - layer) for layer in range(count)]


def kept_quality(model: str, quality: float, tokens: int | Sequence[int]) -> float:
    """Return the quality that is left if an array of a quality is cut to so many tokens.

    Two tokens of FlexTEC are quality 1.
    """
    most = tokens if isinstance(tokens, int) else max(tokens)
    if model == LAYERED:
        return layer_qualities(quality)[:most][-1]
    return min(quality, max(1.0, most / 2))


def check_tokens(tokens: int | Sequence[int], dates: int) -> list[int]:
    """Return the number of tokens of each date, from one number for all dates or one for each.

    Raises
    ------
    UnsupportedArrayError
        A number is not 1 to 16, or there are not as many numbers as dates.
    """
    each = [tokens] * dates if isinstance(tokens, int) else list(tokens)
    if any(not 1 <= k <= TOKENS for k in each):
        raise UnsupportedArrayError(f"FlexTEC has 1 to {TOKENS} tokens of a date, not {each}")
    if len(each) != dates:
        raise UnsupportedArrayError(
            f"FlexTEC was given {len(each)} qualities for {dates} dates: give one for all dates or "
            "one for each"
        )
    return each


def cut(sections: Sequence[bytes], tokens: Sequence[int], keep_context: bool = False) -> Encoded:
    """Keep the first tokens of every date of a series.

    Parameters
    ----------
    sections : sequence of bytes
        One per date.
    tokens : sequence of int
        Tokens to keep of each date; dates that have fewer stay as they are.
    keep_context : bool
        Keep more tokens of a date if later dates were predicted from them.

    Returns
    -------
    Encoded
        The shorter sections, and the checksums of the latents that they decode to.

    Raises
    ------
    ContextError
        The cut would remove tokens from which later dates were predicted, and `keep_context` is
        False.
    FormatError
        A section is damaged.
    """
    out, crcs = [], []
    for t, (data, wanted) in enumerate(zip(sections, tokens, strict=True)):
        section = FlexSection.from_bytes(data)
        needed = 1 if t + 1 == len(sections) else section.context
        if wanted < needed and not keep_context:
            raise ContextError(
                f"Date {t} of {len(sections)} cannot be truncated to {wanted} tokens: later dates "
                f"were predicted from {needed} of them. Encode with context_tokens={wanted} or "
                "fewer, or with one date per chunk."
            )
        groups = section.groups[: max(wanted, needed)]
        shorter = FlexSection(min(section.context, len(groups)), section.head, groups)
        crcs.append(shorter.check())
        out.append(shorter.to_bytes())
    return Encoded(out, crcs)
