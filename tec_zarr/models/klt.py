"""Writes and reads the spectral header of a ``tec-s2`` section: the KLT of a tile.

The header has a few dozen bytes. The basis is sent as Givens angles, so the decoded basis is
always orthonormal: coarse angles cost a little decorrelation, but no fidelity. The bits of column
j depend on its spread over the quantiser step. Columns with a negligible spread get no bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tec_zarr import native
from tec_zarr.errors import FormatError

#: Lowest and highest spread of a component over the quantiser step, in quarter octaves.
SPREAD_LOW, SPREAD_HIGH = -24, 47
#: A component at or below this spread (1/32 step) codes nothing, and its basis vector is not sent.
#: Block means spread up to eight times as far, but even they are quantised to 0.
ACTIVE_SPREAD = -20
#: Most components that the networks take, and most bands that the header can count.
MOST_COMPONENTS, MOST_BANDS = 12, 31
#: Largest size of a header in bytes (31 means and 12 spreads of 56 bits, 294 angles of 17). Only
#: this part of a section becomes one integer, because reading a bit takes time by its length.
_LONGEST_HEADER = 1024

#: Eigenvalues whose difference is below this share of the largest one count as equal. Parts of
#: unit vectors below the second number count as rounding errors of the solver.
_ALIKE, _NOISE = 1e-10, 1e-9


class BitWriter:
    """Writes bits, the highest of a byte first."""

    def __init__(self) -> None:
        self.value, self.length = 0, 0

    def put(self, value: int, bits: int) -> None:
        self.value = self.value << bits | value
        self.length += bits

    def put_signed(self, value: int, rice: int) -> None:
        """Write the Rice code of the zigzag of ``value``; at most 32 + 24 bits."""
        mapped = 2 * value if value >= 0 else -2 * value - 1
        high = mapped >> rice
        if high < 24:
            self.put((1 << high) - 1 << 1, high + 1)
            self.put(mapped & (1 << rice) - 1, rice)
        else:
            self.put((1 << 24) - 1, 24)
            self.put(mapped, 32)

    def to_bytes(self) -> bytes:
        pad = -self.length % 8
        return (self.value << pad).to_bytes((self.length + pad) // 8, "big")


class BitReader:
    """Reads the bits of a :class:`BitWriter`."""

    def __init__(self, data: bytes):
        self.value = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def get(self, bits: int) -> int:
        if bits > self.left:
            raise FormatError("a section ends inside its spectral header")
        self.left -= bits
        return self.value >> self.left & (1 << bits) - 1

    def get_signed(self, rice: int) -> int:
        high = 0
        while high < 24 and self.get(1):
            high += 1
        mapped = self.get(32) if high == 24 else high << rice | self.get(rice)
        return mapped >> 1 if mapped % 2 == 0 else -(mapped + 1 >> 1)


@dataclass(frozen=True)
class Klt:
    """The spectral transform of a tile.

    Attributes
    ----------
    mean : ndarray
        (C,), DN.
    basis : ndarray
        (C, C), orthonormal, components in columns.
    spread : ndarray
        int (C,), standard deviations of the components over the step, in quarter octaves.
    """

    mean: np.ndarray
    basis: np.ndarray
    spread: np.ndarray

    @property
    def used(self) -> int:
        """Number of leading components that are coded; at least one."""
        return max(int((self.spread[:MOST_COMPONENTS] > ACTIVE_SPREAD).sum()), 1)


def _angle_bits(spread: int) -> int:
    return min(max(math.ceil(spread / 4) + 7, 4), 16)


def mean_digits(step: float) -> int:
    """Return log2 of the unit of means, which is about 1/32 step.

    The unit is small, because the rounding of a mean is an error of every pixel.
    """
    return max(math.floor(math.log2(step / 32)), 0)


def quantised_spreads(values: np.ndarray, step: float) -> np.ndarray:
    """Return the spreads of variances over the step, in quarter octaves."""
    ratio = np.log2(np.sqrt(np.maximum(values, 1e-6)) / step)
    return np.clip(np.rint(4 * ratio), SPREAD_LOW, SPREAD_HIGH).astype(int)


def rotate(matrix: np.ndarray, row: int, angle: float) -> None:
    """Rotate rows ``row - 1`` and ``row`` in place; :func:`rotated` rotates the other way."""
    cosine, sine = math.cos(angle), math.sin(angle)
    upper, lower = matrix[row - 1].copy(), matrix[row].copy()
    matrix[row - 1] = cosine * upper + sine * lower
    matrix[row] = cosine * lower - sine * upper


@lru_cache(maxsize=64)
def rotations(count: int, active: int) -> list[tuple[int, int, bool]]:
    """Return (column, row, whether it takes a whole turn) of each angle, in order.

    The last column has no angles.
    """
    return [
        (column, row, row == count - 1)
        for column in range(min(active, count - 1))
        for row in range(count - 1, column, -1)
    ]


def rotated(count: int, angles: list[tuple[int, float]]) -> np.ndarray:
    """Return the orthonormal basis (C, C) of rotations.

    Entries are rounded to multiples of 2**-24, so that the last bits of a machine's sines do not
    matter.
    """
    if native.library() and angles:
        back = angles[::-1]
        return native.rotated_identity(
            count, np.array([row for row, _ in back]), np.array([angle for _, angle in back])
        )
    # With a dozen numbers in a row, lists are twice as fast as arrays.
    rows = np.eye(count).tolist()
    for row, angle in reversed(angles):
        cosine, sine = math.cos(angle), math.sin(angle)
        pairs = list(zip(rows[row - 1], rows[row], strict=True))
        rows[row - 1] = [cosine * upper - sine * lower for upper, lower in pairs]
        rows[row] = [cosine * lower + sine * upper for upper, lower in pairs]
    return np.rint(np.array(rows) * 2**24) / 2**24


def write(mean: np.ndarray, covariance: np.ndarray, step: float) -> tuple[bytes, Klt]:
    """Return the header's bytes and the KLT of a tile with this mean (C,) and covariance (C, C).

    ``step`` is the quantiser step in DN with which the tile will be coded. The KLT is the one that
    a decoder reads from the bytes.
    """
    count = len(mean)
    values, work = eigenvectors(covariance)
    spread = quantised_spreads(values, step)
    active = min(int((spread > ACTIVE_SPREAD).sum()), MOST_COMPONENTS)
    bits = BitWriter()
    digits = mean_digits(step)
    whole = np.rint(mean / 2**digits).astype(int)
    for value, before in zip(whole, [0, *whole[:-1]], strict=True):
        bits.put_signed(int(value - before), 8 - digits)
    bits.put(active, 5)
    for value, before in zip(spread[:active], [SPREAD_HIGH, *spread[:active]], strict=False):
        bits.put_signed(int(before - value), 2)
    angles = []
    for column, row, turn in rotations(count, active):
        size = _angle_bits(int(spread[column])) + turn
        unit_angle = math.pi / 2 ** (size - turn)
        lower, upper = (0.0 if abs(v) < _NOISE else v for v in work[[row, row - 1], column])
        code = round(math.atan2(lower, upper) / unit_angle)
        # Below a positive pivot an angle lies in [0, pi), so its code must not wrap around.
        code = code % (1 << size) if turn else min(max(code, 0), (1 << size) - 1)
        bits.put(code, size)
        angles.append((row, code * unit_angle))
        rotate(work, row, angles[-1][1])
    return bits.to_bytes(), Klt(
        whole * 2.0**digits, rotated(count, angles), padded_spread(spread[:active], count)
    )


def eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues, the largest first, and their vectors in columns.

    The result does not depend on the solver. Solvers are free to choose the vectors of a repeated
    eigenvalue and all signs, so this function chooses them anew.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1].copy()
    starts = np.flatnonzero(np.diff(values, prepend=np.inf) < -_ALIKE * max(abs(values[0]), 1e-300))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        if stop - start > 1:
            vectors[:, start:stop] = _chosen(vectors[:, start:stop])
    sizes = np.abs(vectors)
    largest = (sizes > sizes.max(axis=0) - _NOISE).argmax(axis=0)
    vectors *= np.where(vectors[largest, np.arange(len(values))] < 0, -1.0, 1.0)
    return values, vectors


def _chosen(vectors: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the span of ``vectors`` that depends on the span only.

    The axis that lies nearest to the span is projected into it. Then the same is done with the
    rest of the span.
    """
    projection = vectors @ vectors.T
    out = np.empty_like(vectors)
    for column in range(vectors.shape[1]):
        near = projection.diagonal()
        axis = int((near > near.max() - _NOISE).argmax())
        out[:, column] = projection[:, axis] / math.sqrt(near[axis])
        projection = projection - np.outer(out[:, column], out[:, column])
    return out


def padded_spread(spread: np.ndarray, count: int) -> np.ndarray:
    """Append the lowest spread for components that are not sent; they are not coded."""
    return np.concatenate([spread, np.full(count - len(spread), SPREAD_LOW)])


def read(data: bytes, count: int, step: float) -> tuple[Klt, bytes]:
    """Read the KLT at the beginning of a section of ``count`` bands.

    Returns the KLT and the bytes behind it.

    Raises
    ------
    FormatError
        The bytes end too soon, or they are not a KLT.
    """
    head = data[:_LONGEST_HEADER]
    bits = BitReader(head)
    digits = mean_digits(step)
    whole = np.cumsum([bits.get_signed(8 - digits) for _ in range(count)])
    active = bits.get(5)
    if active > min(count, MOST_COMPONENTS):
        raise FormatError(f"a section of {count} bands claims {active} spectral components")
    spread = SPREAD_HIGH - np.cumsum([bits.get_signed(2) for _ in range(active)], dtype=int)
    if active and not (spread.min() > ACTIVE_SPREAD and spread.max() <= SPREAD_HIGH):
        raise FormatError("a section's spectral spreads are out of range")
    angles = []
    sizes = [_angle_bits(value) for value in spread.tolist()]
    for column, row, turn in rotations(count, active):
        size = sizes[column] + turn
        angles.append((row, bits.get(size) * math.pi / 2 ** (size - turn)))
    klt = Klt(whole * 2.0**digits, rotated(count, angles), padded_spread(spread, count))
    return klt, data[len(head) - bits.left // 8 :]
