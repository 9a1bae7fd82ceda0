"""Sections of FlexTEC dates, and cutting them: bytes only, no network and no torch.

Every token of a date (the first is the coarsest) is a group of its own, so that a date is lowered
in quality by leaving out its last groups. Later dates are predicted from the first ``context``
tokens of a date: those have to stay, but for the last date of a series.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from tec_zarr.errors import FormatError, TecError, UnsupportedArrayError
from tec_zarr.frame.varint import read_varint, write_varint
from tec_zarr.models.protocol import Encoded

__all__ = ["TOKENS", "ContextError", "FlexSection", "check_tokens", "cut"]

TOKENS = 16
"""Tokens of a window, and so the number of FlexTEC's qualities."""


class ContextError(TecError):
    """Tokens that later dates were predicted from would be cut off."""


@dataclass(frozen=True)
class FlexSection:
    """Section of one FlexTEC date; its token groups can be cut off at the end.

    Parameters
    ----------
    context : int
        Tokens that the prediction of later dates sees.
    head : bytes
        What all groups need: the header of a date of tec-flex-s2, nothing in FlexTEC.
    groups : tuple of bytes
        One per token: check of its symbols (2 bytes), range-coder stream cut to its shortest.
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
            If it is none.
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
        """Counts, head and groups, each with its length before it."""
        parts = [write_varint(len(self.groups)), write_varint(self.context)]
        for part in (self.head, *self.groups):
            parts += [write_varint(len(part)), part]
        return b"".join(parts)

    def check(self, crc: int) -> int:
        """Checksum of the date's latents, chained to that of the dates before."""
        return zlib.crc32(b"".join(group[:2] for group in self.groups), crc)


def check_tokens(tokens: int | Sequence[int], dates: int) -> list[int]:
    """Tokens of each of `dates` dates, of one number for all or of one for each.

    Raises
    ------
    UnsupportedArrayError
        Numbers other than 1 to 16, or not as many as there are dates.
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
        Keep more than asked for where later dates were predicted from it.

    Returns
    -------
    Encoded
        The shorter sections and the checksum of what they decode to.

    Raises
    ------
    ContextError
        Later dates were predicted from what would be cut, and `keep_context` is False.
    FormatError
        Damaged sections.
    """
    out, crc = [], 0
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
        crc = shorter.check(crc)
        out.append(shorter.to_bytes())
    return Encoded(out, crc)
