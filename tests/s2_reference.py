"""The entropy layer of tec-s2 in NumPy, written from docs/format-tec-s2.md: slow and plain.

Nothing of :mod:`tec_zarr.models` is used, so that the two can disagree.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GROUPS = (4, 12, 48, 96, 160)
LOW, HIGH = -16, 47
SQUARE = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
PLUS = [(-1, 0), (0, -1), (0, 1), (1, 0)]
COARSE = [
    (((0, 0),), ()),
    (((2, 2),), ((-2, -2), (-2, 2), (2, -2), (2, 2))),
    (((0, 2), (2, 0)), ((-2, 0), (2, 0), (0, -2), (0, 2))),
    (((1, 1), (1, 3), (3, 1), (3, 3)), ((-1, -1), (-1, 1), (1, -1), (1, 1))),
    (
        tuple((r, c) for r in range(4) for c in range(4) if (r + c) % 2),
        (*PLUS, *((r, c) for r in (-2, -1, 1, 2) for c in (-2, -1, 1, 2) if abs(r) != abs(c))),
    ),
]


class Bits:
    def __init__(self, data: bytes):
        self.text = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def number(self, size: int) -> int:
        self.at += size
        return int(self.text[self.at - size : self.at] or "0", 2)

    def signed(self, k: int) -> int:
        ones = 0
        while ones < 24 and self.number(1):
            ones += 1
        m = self.number(32) if ones == 24 else ones * 2**k + self.number(k)
        return m // 2 if m % 2 == 0 else -(m + 1) // 2


def spectral_header(section: bytes, bands: int, quality: float) -> tuple[list[int], int]:
    """Spreads of the components, and how many bytes the header takes."""
    bits = Bits(section)
    step = 2400 * 50 ** (-(quality - 1) / 7)
    unit = max(math.floor(math.log2(step / 32)), 0)
    for _ in range(bands):
        bits.signed(8 - unit)  # means: for the synthesis only
    active = bits.number(5)
    spreads: list[int] = []
    for _ in range(active):
        spreads.append((spreads[-1] if spreads else HIGH) - bits.signed(2))
    for column in range(min(active, bands - 1)):
        for row in range(bands - 1, column, -1):
            size = min(max(math.ceil(spreads[column] / 4) + 7, 4), 16)
            bits.number(size + (row == bands - 1))  # angles: likewise
    return spreads, -(-bits.at // 8)


class RangeDecoder:
    def __init__(self, data: bytes, tables: np.ndarray):
        self.words = [int(w) for w in np.frombuffer(data, "<u4")]
        self.low, self.size = 0, 2**64 - 1
        self.point = self.word() * 2**32 + self.word()
        centre = tables.shape[1] // 2
        self.reach = [int(np.flatnonzero(row)[-1]) - centre for row in tables]
        self.rows = [
            [int(f) for f in row[centre - r : centre + r + 1]]
            for row, r in zip(tables, self.reach, strict=True)
        ]

    def word(self) -> int:
        return self.words.pop(0) if self.words else 0

    def one(self, edges: list[int]) -> int:
        unit = self.size // 2**24
        place = (self.point - self.low) % 2**64 // unit
        symbol = max(i for i, edge in enumerate(edges) if edge <= place)
        self.low = (self.low + unit * edges[symbol]) % 2**64
        self.size = unit * (edges[symbol + 1] - edges[symbol])
        if self.size < 2**32:
            self.low = self.low * 2**32 % 2**64
            self.size *= 2**32
            self.point = (self.point * 2**32 + self.word()) % 2**64
        return symbol

    def edges(self, table: int) -> list[int]:
        row = self.rows[table]
        before = [sum(row[:i]) * (2**24 - len(row)) // 2**16 + i for i in range(len(row))]
        return [*before, 2**24]

    def get(self, index: np.ndarray) -> np.ndarray:
        out = np.zeros(len(index), np.int64)
        order = [i for t in range(len(self.rows)) for i in np.flatnonzero(index == t)]
        for i in order:
            if self.reach[index[i]]:
                out[i] = self.one(self.edges(index[i])) - self.reach[index[i]]
        for i in order:
            if self.reach[index[i]] and abs(out[i]) == self.reach[index[i]]:
                beyond = self.one(list(range(0, 2**24 + 1, 2**8)))
                out[i] += beyond if out[i] > 0 else -beyond
        return out


def compand(units: np.ndarray) -> np.ndarray:
    u = np.clip(units, -(2**15), 2**15)
    return (254 * u + 128 + abs(u)) // (256 + 2 * abs(u))


def shifted(grid: np.ndarray, row: int, column: int) -> np.ndarray:
    """What lies (row, column) away; 0 outside."""
    h, w = grid.shape[:2]
    padded = np.pad(grid, ((2, 2), (2, 2), (0, 0)))
    return padded[2 + row : 2 + row + h, 2 + column : 2 + column + w]


class Networks:
    def __init__(self, weights: Path, condition: list[int]):
        self.t = load_file(weights)
        self.condition = np.array(condition)

    def layer(self, name, grid, offsets):
        weight = self.t[f"{name}.weight"].astype(np.int64)
        middle = weight.shape[-1] // 2
        taps = [weight[:, :, middle + r, middle + c] for r, c in offsets]
        sums = sum(shifted(grid, *o) @ tap.T for o, tap in zip(offsets, taps, strict=True))
        exponent = self.t[f"{name}.exponent"].astype(np.float64)
        return sums, 2.0**exponent, sum(tap.sum(1) for tap in taps)

    def hidden(self, name, grid, offsets, unit, extra=0.0):
        sums, power, total = self.layer(name, grid, offsets)
        bias = self.t[f"{name}.bias"].astype(np.int64)
        if unit == 16:  # activations enter less 128, which decides how float32 rounds
            sums, bias = sums - 128 * total, bias + 128 * total
        scale = np.float32(power / unit * 16)
        shift = (bias * (power / unit * 16) + 0.5).astype(np.float32)
        value = sums.astype(np.float32) * scale + shift + np.float32(extra)
        return np.clip(np.floor(value), 0, 255).astype(np.int64)

    def head(self, name, grid):
        sums, power, _ = self.layer(name, grid, [(0, 0)])
        value = (sums + self.t[f"{name}.bias"].astype(np.int64)) * (power / 16)
        return np.split(value, 2, axis=-1)

    def bias(self, name):
        """Condition bias in sixteenths."""
        return np.floor(self.t[f"{name}.weight"] * np.float64(256) + 0.5) @ self.condition / 16

    def prior(self):
        names = "prior", "prior_bias"
        weight, bias = (np.floor(self.t[name] * np.float64(256) + 0.5) for name in names)
        return (weight @ self.condition + bias) / 256

    def coarse(self, number, units):
        """Mean and scale of pass 1 to 4 of group 0, from what is decoded (0 elsewhere)."""
        name, offsets = f"coarse.{number - 1}", COARSE[number][1]
        extra = self.bias(f"{name}.condition")
        a = self.hidden(f"{name}.first", compand(units), offsets, 32, extra)
        a = self.hidden(f"{name}.second", a, [(0, 0)], 16)
        mean, scale = self.head(f"{name}.head", a)
        whole = np.clip((units + 8) // 16, -2047, 2047)
        linear = self.t[f"{name}.linear"].astype(np.float64)
        linear = np.floor(np.clip(linear, -2, 2) * 512 + 0.5)
        near = sum(shifted(whole, r, c) @ linear[:, :, r + 2, c + 2].T for r, c in offsets)
        return mean + near / 512, scale


def decode_latents(
    section: bytes, bands: int, height: int, width: int, quality: float, weights: Path
) -> np.ndarray:
    """Latents (positions, 320) in 1/16 step."""
    spreads, start = spectral_header(section, bands, quality)
    absent = [LOW] * (12 - len(spreads))
    condition = [round(8 * (quality - 4.5)), *(max(s, LOW) for s in spreads), *absent]
    net = Networks(weights, condition)
    flags = section[start]
    source = RangeDecoder(section[start + 1 :], net.t["tables"])
    rows, columns = -(-height // 8), -(-width // 8)
    units = np.zeros((rows, columns, sum(GROUPS)), np.int64)
    prior = net.prior()
    y, x = np.mgrid[:rows, :columns]

    def code(places, channels, mean, scale):
        at = np.nonzero(places)
        index = np.clip(np.floor(scale + prior[channels] + 0.5), 0, 51).astype(int)[at]
        symbols = source.get(index.ravel()).reshape(index.shape)
        part = units[:, :, channels]
        part[at] = 16 * symbols + np.floor(mean * 16 + 0.5).astype(np.int64)[at]

    if flags & 1:
        channels, zero = slice(0, 4), np.zeros((rows, columns, 4))
        for number, (cells, _) in enumerate(COARSE):
            places = np.isin(4 * (y % 4) + x % 4, [4 * r + c for r, c in cells])
            if places.any():
                mean, scale = net.coarse(number, units[:, :, channels]) if number else (zero, zero)
                code(places, channels, mean, scale)
    before = GROUPS[0]
    for group, size in enumerate(GROUPS[1:], start=1):
        channels, name = slice(before, before + size), f"fine.{group - 1}"
        if flags >> group & 1:
            extra = net.bias(f"{name}.condition")
            a = net.hidden(f"{name}.first", compand(units[:, :, :before]), SQUARE, 32, extra)
            context = net.hidden(f"{name}.second", a, SQUARE, 16)
            even = (y + x) % 2 == 0
            code(even, channels, *net.head(f"{name}.anchors", context))
            if not even.all():
                mine = compand(units[:, :, channels])
                a = net.hidden(f"{name}.neighbours", mine, PLUS, 32, context)
                a = net.hidden(f"{name}.third", a, [(0, 0)], 16)
                code(~even, channels, *net.head(f"{name}.others", a))
        before += size
    return units.reshape(-1, sum(GROUPS))
