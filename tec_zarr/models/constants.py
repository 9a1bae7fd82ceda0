"""Numbers that the formats of the embedded models fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


COMPONENTS = 12


BLOCK = 8


GROUPS = (4, 12, 48, 96, 160)


CHANNELS = sum(GROUPS)


LEVELS = 8


#: Scale index i stands for a standard deviation of 2**(i/4 - 3.25) quantiser steps.
SCALES = 52


SCALE_OFFSET = 3.25


#: Means live on a grid of 1/16 step: exact in float32, fine enough to cost nothing.
MEAN_GRID = 16.0


#: Hidden activations are 8-bit: 0 .. 255 in units of 1/16.
ACT_GRID = 16.0


#: Companded latents are 8-bit and signed: -127 .. 127 in units of 1/32.
COMPAND_GRID = 32.0


#: Spectral spread of a tile, log2 in quarter octaves, as the coder transmits it.
COND_LOW, COND_HIGH = -16, 47


def step_size(quality: Tensor | float) -> Tensor | float:
    """Base quantiser step in DN: 2400 at quality 1, 48 at quality 8, geometric in between."""
    return 2400.0 * 50.0 ** (-(quality - 1.0) / 7.0)


#: Order in which group 0 is decoded: positions (row mod 4, column mod 4), coarse to fine, each pass
#: with the decoded neighbours it may look at.
_DIAGONAL2 = [(-2, -2), (-2, 2), (2, -2), (2, 2)]


_PLUS2 = [(-2, 0), (2, 0), (0, -2), (0, 2)]


_DIAGONAL1 = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


PLUS1 = [(-1, 0), (1, 0), (0, -1), (0, 1)]


_KNIGHT = [(a, b) for a in (-2, -1, 1, 2) for b in (-2, -1, 1, 2) if abs(a) != abs(b)]


COARSE_PASSES: tuple[tuple[frozenset[tuple[int, int]], list[tuple[int, int]]], ...] = (
    (frozenset({(0, 0)}), []),
    (frozenset({(2, 2)}), _DIAGONAL2),
    (frozenset({(0, 2), (2, 0)}), _PLUS2),
    (frozenset({(1, 1), (1, 3), (3, 1), (3, 3)}), _DIAGONAL1),
    (frozenset((r, c) for r in range(4) for c in range(4) if (r + c) % 2), PLUS1 + _KNIGHT),
)
