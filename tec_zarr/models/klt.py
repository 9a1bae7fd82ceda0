"""The spectral side of a ``tec-s2`` section: a tile's own KLT, in a few dozen bytes.

The basis is sent as Givens angles, so whatever is read back is orthonormal: coarse angles cost a
little decorrelation, never fidelity.  Column j gets as many bits as its spread over the quantiser
step needs, and columns whose spread the step swallows get none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tec_zarr import native
from tec_zarr.errors import FormatError

#: Quarter octaves of component spread over quantiser step that can be told apart.
SPREAD_LOW, SPREAD_HIGH = -24, 47
#: A component at or below this spread (1/32 step) carries nothing, not even in its block means,
#: which spread up to eight times as far: its basis vector is not sent.
ACTIVE_SPREAD = -20
#: What the networks take, and what the header can count.
MOST_COMPONENTS, MOST_BANDS = 12, 31
#: Bytes that a header cannot exceed (31 means and 12 spreads of 56 bits, 294 angles of 17): one
#: long integer of a whole section would make each of its bits as dear as the section is long.
_LONGEST_HEADER = 1024

#: Eigenvalues nearer to each other than this share of the largest one are the same, and parts of
#: unit vectors below this size are what a solver rounds.
_ALIKE, _NOISE = 1e-10, 1e-9


class BitWriter:
    def __init__(self) -> None:
        self.value, self.length = 0, 0

    def put(self, value: int, bits: int) -> None:
        self.value = self.value << bits | value
        self.length += bits

    def put_signed(self, value: int, rice: int) -> None:
        """Rice code of the zigzag of ``value``; at most 32 + 24 bits."""
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
    """Mean (C,) DN, basis (C, C) with components in columns, spread (C,) int quarter octaves over
    the step.
    """

    mean: np.ndarray
    basis: np.ndarray
    spread: np.ndarray

    @property
    def used(self) -> int:
        """How many leading components carry anything; at least one."""
        return max(int((self.spread[:MOST_COMPONENTS] > ACTIVE_SPREAD).sum()), 1)


def _angle_bits(spread: int) -> int:
    return min(max(math.ceil(spread / 4) + 7, 4), 16)


def mean_digits(step: float) -> int:
    """log2 of the unit of means: what they are off by is an error of every pixel, so 1/32 step."""
    return max(math.floor(math.log2(step / 32)), 0)


def quantised_spreads(values: np.ndarray, step: float) -> np.ndarray:
    ratio = np.log2(np.sqrt(np.maximum(values, 1e-6)) / step)
    return np.clip(np.rint(4 * ratio), SPREAD_LOW, SPREAD_HIGH).astype(int)


def rotate(matrix: np.ndarray, row: int, angle: float) -> None:
    """In place: mix rows ``row - 1`` and ``row``; :func:`_basis` turns the other way."""
    cosine, sine = math.cos(angle), math.sin(angle)
    upper, lower = matrix[row - 1].copy(), matrix[row].copy()
    matrix[row - 1] = cosine * upper + sine * lower
    matrix[row] = cosine * lower - sine * upper


@lru_cache(maxsize=64)
def rotations(count: int, active: int) -> list[tuple[int, int, bool]]:
    """(column, row, whole turn?) of each angle, in order.  The last column never has one."""
    return [
        (column, row, row == count - 1)
        for column in range(min(active, count - 1))
        for row in range(count - 1, column, -1)
    ]


def rotated(count: int, angles: list[tuple[int, float]]) -> np.ndarray:
    """Orthonormal (C, C) basis of rotations, on a 2**-24 grid so that libm's last digit is gone."""
    if native.library() and angles:
        back = angles[::-1]
        return native.rotated_identity(
            count, np.array([row for row, _ in back]), np.array([angle for _, angle in back])
        )
    # A dozen numbers a row: lists are twice as fast as arrays.
    rows = np.eye(count).tolist()
    for row, angle in reversed(angles):
        cosine, sine = math.cos(angle), math.sin(angle)
        pairs = list(zip(rows[row - 1], rows[row], strict=True))
        rows[row - 1] = [cosine * upper - sine * lower for upper, lower in pairs]
        rows[row] = [cosine * lower + sine * upper for upper, lower in pairs]
    return np.rint(np.array(rows) * 2**24) / 2**24


def write(mean: np.ndarray, covariance: np.ndarray, step: float) -> tuple[bytes, Klt]:
    """KLT of a tile with this mean (C,) and covariance (C, C), and the bytes it is read from.

    ``step`` is the quantiser step in DN that the tile will be coded with.
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
        # Below a pivot that is already positive an angle lies in [0, pi): no wrapping round.
        code = code % (1 << size) if turn else min(max(code, 0), (1 << size) - 1)
        bits.put(code, size)
        angles.append((row, code * unit_angle))
        rotate(work, row, angles[-1][1])
    return bits.to_bytes(), Klt(
        whole * 2.0**digits, rotated(count, angles), padded_spread(spread[:active], count)
    )


def eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, the largest first, and their vectors in columns, whoever's solver it is.

    Solvers choose the vectors of an eigenvalue that is there more than once, and every sign.
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
    """An orthonormal basis of what columns span that does not depend on these columns.

    The axis that lies nearest to the space is projected into it, then the next one beside that.
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
    """Components that are not sent count as lowest: nothing of them is coded."""
    return np.concatenate([spread, np.full(count - len(spread), SPREAD_LOW)])


def read(data: bytes, count: int, step: float) -> tuple[Klt, bytes]:
    """The KLT at the beginning of a section of ``count`` bands, and the bytes after it.

    Raises
    ------
    FormatError
        The bytes end too soon or are not a KLT.
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
