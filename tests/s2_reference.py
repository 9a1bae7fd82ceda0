"""The entropy layers of tec-s2 and, for dates without references, of tec-flex-s2 in NumPy, written
from docs/format-tec-s2.md and docs/format-tec-flex-s2.md: slow and plain.

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
    spreads, size, *_ = whole_spectral_header(section, bands, quality)
    return spreads, size


def whole_spectral_header(
    section: bytes, bands: int, quality: float
) -> tuple[list[int], int, np.ndarray, np.ndarray]:
    """Spreads, bytes, means (C,) in DN and the basis (C, C)."""
    bits = Bits(section)
    step = 2400 * 50 ** (-(quality - 1) / 7)
    unit = max(math.floor(math.log2(step / 32)), 0)
    means = 2**unit * np.cumsum([bits.signed(8 - unit) for _ in range(bands)])
    active = bits.number(5)
    spreads: list[int] = []
    for _ in range(active):
        spreads.append((spreads[-1] if spreads else HIGH) - bits.signed(2))
    turns = []
    for column in range(min(active, bands - 1)):
        for row in range(bands - 1, column, -1):
            size = min(max(math.ceil(spreads[column] / 4) + 7, 4), 16)
            turns.append((row, bits.number(size + (row == bands - 1)) * math.pi / 2**size))
    basis = np.eye(bands)
    for row, angle in reversed(turns):
        upper, lower = basis[row - 1].copy(), basis[row].copy()
        basis[row - 1] = math.cos(angle) * upper - math.sin(angle) * lower
        basis[row] = math.cos(angle) * lower + math.sin(angle) * upper
    return spreads, -(-bits.at // 8), means, np.rint(basis * 2**24) / 2**24


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

    def extra(self, name):
        """Condition bias, with what a prediction of zero adds to it in temporal networks."""
        out = np.float32(self.bias(f"{name}.condition"))
        if f"{name}.past.bias" in self.t:
            power = 2.0 ** self.t[f"{name}.past.exponent"].astype(np.float64) / 32 * 16
            out = out + np.float32(self.t[f"{name}.past.bias"].astype(np.int64) * power)
        return out

    def coarse(self, number, units):
        """Mean and scale of pass 1 to 4 of group 0, from what is decoded (0 elsewhere)."""
        name, offsets = f"coarse.{number - 1}", COARSE[number][1]
        extra = self.extra(name)
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

    def code(group, at, channels, mean, index):
        symbols = source.get(index.ravel()).reshape(index.shape)
        units[:, :, channels][at] = 16 * symbols + mean

    walk(net, flags, units, code)
    return units.reshape(-1, sum(GROUPS))


def walk(net: Networks, flags: int, units: np.ndarray, code_pass) -> None:
    """All passes of the flagged groups over a grid of latents, which ``code_pass`` fills."""
    rows, columns = units.shape[:2]
    prior = net.prior()
    y, x = np.mgrid[:rows, :columns]

    def code(group, places, channels, mean, scale):
        at = np.nonzero(places)
        index = np.clip(np.floor(scale + prior[channels] + 0.5), 0, 51).astype(int)[at]
        whole = np.floor(np.broadcast_to(mean, scale.shape) * 16 + 0.5).astype(np.int64)[at]
        code_pass(group, at, channels, whole, index)

    if flags & 1:
        channels, zero = slice(0, 4), np.zeros((rows, columns, 4))
        for number, (cells, _) in enumerate(COARSE):
            places = np.isin(4 * (y % 4) + x % 4, [4 * r + c for r, c in cells])
            if places.any():
                mean, scale = net.coarse(number, units[:, :, channels]) if number else (zero, zero)
                code(0, places, channels, mean, scale)
    before = GROUPS[0]
    for group, size in enumerate(GROUPS[1:], start=1):
        channels, name = slice(before, before + size), f"fine.{group - 1}"
        if flags >> group & 1:
            extra = net.extra(name)
            a = net.hidden(f"{name}.first", compand(units[:, :, :before]), SQUARE, 32, extra)
            context = net.hidden(f"{name}.second", a, SQUARE, 16)
            even = (y + x) % 2 == 0
            code(group, even, channels, *net.head(f"{name}.anchors", context))
            if not even.all():
                mine = compand(units[:, :, channels])
                a = net.hidden(f"{name}.neighbours", mine, PLUS, 32, context)
                a = net.hidden(f"{name}.third", a, [(0, 0)], 16)
                code(group, ~even, channels, *net.head(f"{name}.others", a))
        before += size


# ---- whole-number pixels


def rounded(numerator: np.ndarray, bits: int) -> np.ndarray:
    """round(x / 2**bits), of whole numbers."""
    return (numerator + (1 << bits >> 1)) >> bits


def decode_pixels(
    section: bytes,
    bands: int,
    height: int,
    width: int,
    quality: float,
    weights: Path,
    networks: Path,
    steps: np.ndarray,
) -> np.ndarray:
    """DN (bands, height, width); ``steps`` (320,) are the quantiser steps in 1/256 DN."""
    latents = decode_latents(section, bands, height, width, quality, networks)
    spreads, start, means, basis = whole_spectral_header(section, bands, quality)
    absent = [LOW] * (12 - len(spreads))
    condition = [round(8 * (quality - 4.5)), *(max(s, LOW) for s in spreads), *absent]
    net = Networks(weights, condition)
    used, rows, columns = max(len(spreads), 1), -(-height // 8), -(-width // 8)
    channels = sum(GROUPS[: section[start].bit_length()] or GROUPS[:1])

    grid = latents.reshape(rows, columns, -1)
    extra = net.t["pixels.condition.weight"].astype(np.int64) @ net.condition / 16
    a = net.hidden("pixels.first", compand(grid), [(0, 0)], 32, np.float32(extra))
    b = net.hidden("pixels.one", a, SQUARE, 16)
    a = net.hidden("pixels.two", b, SQUARE, 16, a)
    sums, power, total = net.layer("pixels.last", a, [(0, 0)])
    bias = net.t["pixels.last.bias"].astype(np.int64) + 128 * total
    shift = (bias * (power / 16 * 64) + 0.5).astype(np.float32)
    value = (sums - 128 * total).astype(np.float32) * np.float32(power / 16 * 64) + shift
    more = np.floor(value).astype(np.int64)
    more[:, :, channels:] = 0

    reach = 2**20
    coefficients = rounded((4 * np.clip(grid, -reach, reach) + more) * steps.astype(np.int64), 13)
    coefficients = np.clip(coefficients, -(2**22), 2**22)
    image = np.zeros((used, 8 * rows, 8 * columns), np.int64)
    matrix = np.zeros((12, 320, 64), np.int64)
    component, channel = net.t["pixels.component"], net.t["pixels.channel"]
    matrix[component, channel] = net.t["pixels.synthesis"]
    matrix[:, channels:] = 0
    for k in range(used):
        samples = np.clip(rounded(coefficients @ matrix[k], 14), -(2**18), 2**18)
        folded = samples.reshape(rows, columns, 8, 8).swapaxes(1, 2)
        image[k] = folded.reshape(8 * rows, 8 * columns)
    overlap = net.t["pixels.overlap"].astype(np.int64)
    for y in range(4, 8 * rows - 4, 8):
        image[:, y : y + 8] = rounded(np.einsum("ij,kjx->kix", overlap, image[:, y : y + 8]), 11)
    for x in range(4, 8 * columns - 4, 8):
        part = image[:, :, x : x + 8]
        image[:, :, x : x + 8] = rounded(np.einsum("ij,kyj->kyi", overlap, part), 11)
    whole = np.rint(basis[:, :used] * 2**12).astype(np.int64)
    sums = np.einsum("ck,kyx->cyx", whole, image) + (means.astype(np.int64) << 13)[:, None, None]
    return rounded(sums, 13)[:, :height, :width]


# ---- tec-flex-s2


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


class Decisions(RangeDecoder):
    def __init__(self, data: bytes):
        words = np.frombuffer(data + bytes(-len(data) % 4), ">u4")
        self.words = [int(w) for w in words]
        self.low, self.size = 0, 2**64 - 1
        self.point = self.word() * 2**32 + self.word()

    def decision(self, chance: int) -> int:
        return self.one([0, (65536 - chance) * (2**24 - 2) // 65536 + 1, 2**24])


class Cells:
    """Tables of tec-flex-s2, one latent at a time."""

    def __init__(self, weights: Path):
        t = load_file(weights)
        self.zones, self.chances = t["zones"].astype(int), t["chances"].astype(int)
        self.frequencies = t["cumulative"].astype(np.int64)
        thresholds = np.linspace(-9, 9, 65)[1:-1]
        self.thresholds = [round(65536 / (1 + math.exp(-x))) for x in thresholds]

    def f(self, table: int, place: int) -> int:
        return int(self.frequencies[table, min(max(place, -384), 384) + 384])

    def mass(self, table: int, begin: int, end: int) -> int:
        return self.f(table, end) - self.f(table, begin)

    def chance(self, kind: int, part: int, whole: int, context: int) -> int:
        chance = min(max(2**16 * part // max(whole, 1), 0), 65535)
        return int(self.chances[kind, sum(t <= chance for t in self.thresholds), context])

    def centre(self, table: int, begin: int, end: int) -> int:
        mass = self.mass(table, begin, end)
        if not mass:
            return (begin + end) // 2
        inner = range(max(begin, -384), min(end, 384))
        moment = sum((2 * x + 1) * (self.f(table, x + 1) - self.f(table, x)) for x in inner)
        return min(max((moment + mass) // (2 * mass), begin), end)

    @staticmethod
    def begin(zone: int, cell: int) -> int:
        return zone + 16 * (cell - 1) if cell > 0 else -zone + 16 * cell

    def cell_of(self, zone: int, place: int) -> int:
        if -zone <= place < zone:
            return 0
        return (place - zone) // 16 + 1 if place > 0 else (place + zone) // 16

    def cut(self, source: Decisions, latents: list[dict]) -> None:
        """Decode which cell every latent of a pass lies in; sets ``begin`` and ``end``."""
        for d in latents:
            zone = int(self.zones[d["table"]])
            first = self.cell_of(zone, d["l"] + 5)
            last = max(self.cell_of(zone, d["h"] - 5), first)
            d |= {"zone": zone, "first": first, "last": last, "cell": first, "side": 0}

        def mass(d, a, b):
            begin = d["l"] if a <= d["first"] else self.begin(d["zone"], a)
            end = d["h"] if b >= d["last"] else self.begin(d["zone"], b + 1)
            return self.mass(d["table"], begin, end)

        def ask(d, kind, part, whole):
            return source.decision(self.chance(kind, part, whole, d["context"]))

        open_ones = [d for d in latents if d["first"] < d["last"]]
        for d in open_ones:
            first, last = d["first"], d["last"]
            d["side"] = 1 if first > 0 else -1 if last < 0 else 0
            if first <= 0 <= last:
                kind = 0 if first < -24 and last > 24 else 1 if first < 0 < last else 2
                d["inside"] = ask(d, kind, mass(d, 0, 0), mass(d, first, last))
        outside = [d for d in open_ones if not d.get("inside")]
        for d in outside:
            if not d["side"]:
                if d["first"] < 0 < d["last"]:
                    above, below = mass(d, 1, d["last"]), mass(d, d["first"], -1)
                    d["side"] = 1 if ask(d, 3, above, above + below) else -1
                else:
                    d["side"] = 1 if d["first"] == 0 else -1
        for d in open_ones:
            if d.get("inside"):
                d["cell"] = 0
        for d in outside:
            near = max(d["first"], 1) if d["side"] > 0 else min(d["last"], -1)
            d["cell"], d["far"] = near, d["last"] if d["side"] > 0 else d["first"]
        left = outside
        for _ in range(24):
            left = [d for d in left if d["cell"] != d["far"]]
            stays = []
            for d in left:
                here, far = sorted((d["cell"], d["far"]))
                whole = mass(d, here, far)
                stays.append(ask(d, 4, mass(d, d["cell"], d["cell"]), whole))
            left = [d for d, stay in zip(left, stays, strict=True) if not stay]
            for d in left:
                d["cell"] += d["side"]
        left = [d for d in left if d["cell"] != d["far"]]
        for d in left:
            d["length"] = 0
        growing = left
        while growing:
            growing = [d for d in growing if source.decision(2**15)]
            for d in growing:
                d["length"] += 1
        for d in left:
            d["number"] = 1
        for bit in range(max((d["length"] for d in left), default=0) - 1, -1, -1):
            for d in left:
                if d["length"] > bit:
                    d["number"] = 2 * d["number"] + source.decision(2**15)
        for d in left:
            cell = d["cell"] + d["side"] * (d["number"] - 1)
            d["cell"] = min(max(cell, d["first"]), d["last"])
        for d in latents:
            at_start, at_end = d["cell"] <= d["first"], d["cell"] >= d["last"]
            d["begin"] = d["l"] if at_start else self.begin(d["zone"], d["cell"])
            d["end"] = d["h"] if at_end else self.begin(d["zone"], d["cell"] + 1)


def flexible_level(net, flags, t, halves, state, context, cells) -> list[np.ndarray]:
    """Latents after one half or both of a level; ``state`` is low, high, value and seen."""
    silent = [int((row > 0).sum()) == 1 for row in net.t["tables"]]
    units, first = np.zeros_like(state[2]), []

    def code(group, at, channels, mean, index):
        half = group > (flags >> 5)
        if half and not first:
            first.append(state[2].reshape(-1, sum(GROUPS)).copy())
        if half == len(halves):
            return
        steps = np.broadcast_to(t[channels], mean.shape)
        parts = [x[:, :, channels] for x in (*state, units, context)]
        lows, highs, values, touched, unit, contexts = parts
        b = mean * steps
        begin, end = (np.clip((x[at] - b) // steps, -(2**20), 2**20) for x in (lows, highs))
        place = np.clip(0, begin, end)
        live = [i for i in np.ndindex(mean.shape) if not silent[index[i]]]
        latents = [
            {"l": int(begin[i]), "h": int(end[i]), "table": int(index[i]),
             "context": int(contexts[at][i])} for i in live
        ]  # fmt: skip
        cells.cut(halves[half], latents)
        new_low, new_high = lows[at], highs[at]
        for i, d in zip(live, latents, strict=True):
            if d["begin"] != d["l"]:
                new_low[i] = b[i] + d["begin"] * steps[i]
            if d["end"] != d["h"]:
                new_high[i] = b[i] + d["end"] * steps[i]
            place[i] = cells.centre(d["table"], d["begin"], d["end"])
        lows[at], highs[at], values[at] = new_low, new_high, b + place * steps
        unit[at], touched[at] = mean + place, True

    walk(net, flags & 31, units, code)
    now = state[2].reshape(-1, sum(GROUPS)).copy()
    return (first or [now]) + ([now] if len(halves) == 2 else [])


def flexible_steps(
    section: bytes, bands: int, height: int, width: int, weights: Path, temporal: Path, gains
) -> list[np.ndarray]:
    """Latents (positions, 320) in 1/4096 DN after every step of a date without references.

    ``gains`` gives the quantiser steps (320,) in 1/256 DN of a quality.
    """
    count, at = varint(section, 0)
    one, at = varint(section, at)
    assert one == 1
    size, at = varint(section, at)
    header, at = section[at : at + size], at + size
    payloads = []
    for _ in range(count):
        size, at = varint(section, at)
        payloads.append(section[at : at + size])
        at += size
    assert at == len(section)

    quality, lowest_finer, head = int.from_bytes(header[:2], "little") / 4096, header[2], header[3]
    assert head & 3 == 0
    levels, finer = int(quality), head >> 4
    more = [lowest_finer + (finer - lowest_finer) * k // max(levels - 1, 1) for k in range(levels)]
    qualities = [min(quality - (levels - 1 - k) + f / 8, 8) for k, f in enumerate(more)]
    c = min(2, levels - 1)
    spreads, start = spectral_header(header[4:], bands, qualities[-1] - c)
    shown = spreads or [LOW - 8]
    last = [min(s + 13 * c // 4, HIGH) for s in shown]
    if levels == 1:
        of_level = [last]
    else:
        bits = Bits(header[4 + start :])
        expected = [max(s - 13 * (levels - 1) // 4, -20) for s in last]
        lowest = [e + bits.signed(1) for e in expected]
        of_level = [
            [a + (b - a) * k // (levels - 1) for a, b in zip(lowest, last, strict=True)]
            for k in range(levels)
        ]

    rows, columns = -(-height // 8), -(-width // 8)
    shape = rows, columns, sum(GROUPS)
    low, high = np.full(shape, -(2**56)), np.full(shape, 2**56)
    value, seen = np.zeros(shape, np.int64), np.zeros(shape, bool)
    cells, found = Cells(weights), []
    for k in range(-(-count // 2)):
        flags = payloads[2 * k][1]
        condition = [round(8 * (qualities[k] - 4.5))]
        condition += [max(s, LOW) if s > -20 else LOW for s in of_level[k]]
        condition += [LOW] * (13 - len(condition))
        net = Networks(temporal, condition)
        t = gains(qualities[k]).astype(np.int64)
        residual = np.where(seen, np.clip((2 * value + t) // (2 * t), -(2**20), 2**20), 0)
        u = np.minimum(abs(residual), 255)
        around = sum(2 * shifted(u, *o) for o in PLUS)
        around = around + sum(shifted(u, r, q) for r in (-1, 1) for q in (-1, 1))
        context = sum((around >= s).astype(int) for s in (4, 12, 32, 80, 200))
        halves = [Decisions(payloads[2 * k][2:])]
        if 2 * k + 1 < count:
            halves.append(Decisions(payloads[2 * k + 1][1:]))
        found += flexible_level(net, flags, t, halves, (low, high, value, seen), context, cells)
    return found
