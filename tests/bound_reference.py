"""A decoder of bound sections in Python, written from docs/error-bounds.md and nothing else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

TABLE = Path(__file__).parents[1] / "tec_zarr" / "native" / "planes_table.h"


def numbers(name):
    text = TABLE.read_text().split(name, 1)[1].split("= {", 1)[1].split("};", 1)[0]
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return np.array([int(n) for n in re.findall(r"-?\d+", text)], np.int64)


FIRST = numbers("FIRST_BITS").reshape(64, 64)
FIRST_CORRECTIONS = numbers("FIRST_CORRECTIONS")
FIRST_WEIGHTS = numbers("FIRST_WEIGHTS").reshape(5, 15)
OWN = [(-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0), (-2, 1), (-1, -2), (-2, -1), (-1, 2), (-2, 2),
       (-2, -2), (0, -3), (-3, 0)]  # fmt: skip
AROUND = [(0, 0), (-1, 0), (0, 1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1), (0, 2), (2, 0),
          (0, -2), (-2, 0), (1, 2), (2, 1), (-1, 2), (1, -2), (2, -1), (-2, 1)]  # fmt: skip
SEEN = (18, 12, 12, 8)


def clip(x, low, high):
    return max(low, min(high, x))


def lg(n):
    whole = n.bit_length() - 1
    return 16 * whole + math.floor(16 * math.log2(1 + ((n << 6 >> whole) & 63) / 64) + 0.5)


def root(i):
    return math.floor(2.0 ** (16 + i / 32) + 0.5)


def pw(n):
    n = min(n, 32 * 47)
    return 1 if n < 0 else root(n % 32) << n // 32 >> 16


class Coder:
    def __init__(self, data):
        self.data, self.at, self.range, self.code = data, 0, 2**32 - 1, 0
        for _ in range(4):
            self.code = self.code << 8 | self.byte()

    def byte(self):
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def settle(self):
        while self.range < 2**24:
            self.range, self.code = self.range << 8, self.code << 8 | self.byte()

    def flat(self, unit, most):
        value = min(self.code // unit, most)
        self.code, self.range = self.code - value * unit, unit
        self.settle()
        return value

    def plain(self, bits):
        value = 0
        while bits:
            some = min(bits, 12)
            value = value << some | self.flat(self.range >> some, 2**some - 1)
            bits -= some
        return value

    def number(self, n):
        if n <= 1:
            return 0
        low = max((n - 1).bit_length() - 12, 0)
        most = (n - 1) >> low
        value = self.flat(self.range // (most + 1), most)
        while low:
            some = min(low, 16)
            value, low = value << some | self.plain(some), low - some
        return value

    def bit(self, state, chance=None):
        z, c = state
        part = (self.range >> 16) * (z if chance is None else chance)
        one = self.code < part
        if one:
            self.range = part
        else:
            self.code, self.range = self.code - part, self.range - part
        self.settle()
        rate = 131072 // (2 * c + 3) >> 1
        state[:] = clip(z + ((65536 * one - z) * rate >> 15), 48, 65488), min(c + 1, 255)
        return int(one)

    def symbol(self, states, scale, side):
        if self.bit(states.zero[scale]):
            return 0
        sign = -1 if self.bit(states.sign[scale][side]) else 1
        node = 1
        for _ in range(6):
            node = 2 * node + self.bit(states.magnitude[scale][node])
        bucket = node - 64
        if bucket < 12:
            m = bucket
        elif bucket == 63:
            bits = min(self.plain(6), 33)
            m = self.plain(max(bits - 16, 0)) << 16 | self.plain(min(bits, 16))
        else:
            m = ((4 + bucket % 4) << bucket // 4 - 2) + self.plain(bucket // 4 - 2) + 4
        return sign * (m + 1)


def start(bucket):
    return bucket if bucket < 12 else ((4 + bucket % 4) << bucket // 4 - 2) + 4


class Comb:
    """How often each value of a plane was seen, and residuals that are coded by it."""

    def __init__(self, largest):
        self.counts, self.largest = np.zeros(largest + 1, np.int64), largest
        self.settle()

    def settle(self):
        halves = 0
        while self.counts.max() >> halves > 16383:
            halves += 1
        self.counts >>= halves
        numbers = self.counts.copy()
        for first in range(0, self.largest + 1, 64):
            block = self.counts[first : first + 64]
            for odd in (0, 1):
                share = 32 * (2 * block[odd::2].sum() + 16) // (block.sum() + 16)
                numbers[first + odd : first + 64 : 2] += share + 1
        self.sums, self.since = np.append(0, np.cumsum(numbers)), 0

    def seen(self, value):
        self.counts[value] += 16
        self.since += 1

    def counted(self, low, high):
        low, high = max(low, 0), min(high, self.largest)
        return int(self.sums[high + 1] - self.sums[low]) if high >= low else 0

    def span(self, first, sign, low, high):
        a, b = first + sign * low, first + sign * high
        return self.counted(min(a, b), max(a, b))

    def symbol(self, coder, states, scale, side, predicted):
        def bit(state, ones, zeros, one_values, zero_values):
            one, zero = state[0] * ones * zero_values, (65536 - state[0]) * zeros * one_values
            chance = clip((one << 16) // (one + zero), 48, 65488) if one + zero else state[0]
            return coder.bit(state, chance)

        own = self.counted(predicted, predicted)
        around = self.counted(predicted - 16, predicted + 16) - own
        if bit(states.zero[scale], own, around, 1, 32):
            return 0
        reach = 2 ** clip((scale - 20) // 4, 0, 4)
        below = self.counted(predicted - reach, predicted - 1)
        above = self.counted(predicted + 1, predicted + reach)
        sign = -1 if bit(states.sign[scale][side], below, above, 1, 1) else 1
        first, node = predicted + sign, 1
        for half in (32, 16, 8, 4, 2, 1):
            low = 2 * half * node - 64
            a, b, c = start(low), start(low + half), start(low + 2 * half)
            state = states.magnitude[scale][node]
            if low + 2 * half < 64 and c - a <= 64:
                upper, lower = self.span(first, sign, b, c - 1), self.span(first, sign, a, b - 1)
                node = 2 * node + bit(state, upper, lower, c - b, b - a)
            else:
                node = 2 * node + coder.bit(state)
        bucket = node - 64
        if bucket < 12:
            return sign * (bucket + 1)
        if bucket == 63:
            return sign * (coder.plain(min(coder.plain(6), 16)) + 1)
        bits = bucket // 4 - 2
        fine = min(bits, 6)
        near = first + sign * (start(bucket) + (coder.plain(bits - fine) << fine))
        far = near + sign * (2**fine - 1)
        low, high = max(min(near, far), 0), min(max(near, far), self.largest)
        if high <= low:
            return low - predicted
        before, total = self.sums[low], int(self.sums[high + 1] - self.sums[low])
        unit = coder.range // total
        place = min(coder.code // unit, total - 1)
        value = int(np.searchsorted(self.sums[low : high + 2] - before, place, "right")) + low - 1
        coder.code -= unit * int(self.sums[value] - before)
        coder.range = unit * int(self.sums[value + 1] - self.sums[value])
        coder.settle()
        return value - predicted


def paired(base, bound, start, high, number):
    """The value of a residual where every other value occurs from `start` on."""
    step, wide = 2 * bound + 1, 2 * bound + 2
    middle = base - (base - bound - high) % 2
    if middle - bound >= start:
        below = -((middle - bound - start) // wide)
        return middle + max(number, below) * wide + min(number - below, 0) * step
    above = max(-((base + bound + 1 - start) // step), 0)
    if number <= above:
        return base + number * step
    edge = base + bound + above * step + 1
    return edge + (edge - high) % 2 + bound + (number - above - 1) * wide


class Stripe:
    """Weights of a range of columns."""

    def __init__(self, count):
        self.gram, self.right = np.zeros((count, count), np.int64), np.zeros(count, np.int64)
        self.weights, self.since, self.begun = np.zeros(count, np.int64), 0, False

    def fit(self, stripes, at, ridge):
        gram, right = self.gram.copy(), self.right.copy()
        for other in range(max(at - 2, 0), min(at + 3, len(stripes))):
            if other != at:
                share = 3 if abs(other - at) == 1 else 1
                gram += share * stripes[other].gram >> 3
                right += share * stripes[other].right >> 3
        k = 0
        while int(gram.diagonal().max()) >> k >= 2**30:
            k += 1
        gram, right, w = gram >> k, right >> k, self.weights
        diagonal = np.einsum("ii->i", gram)
        diagonal += (diagonal >> ridge) + 1
        for _ in range(4):
            for i in range(len(w)):
                rest = int(right[i]) * 2**13 - int(gram[i] @ w)
                move = abs(rest) // (int(gram[i, i]) + 64) * (1 if rest > 0 else -1)
                w[i] = clip(int(w[i]) + move, -32767, 32767)
        self.gram -= self.gram >> 3
        self.right -= self.right >> 3
        self.since = 0


class States:
    def __init__(self, zero, nodes):
        self.zero = [[int(z), 32] for z in zero]
        self.sign = [[[32768, 32] for _ in range(8)] for _ in range(64)]
        self.magnitude = [[[int(z), 32] for z in row] for row in nodes]


class Plane:
    """Values and sizes with three more on each side."""

    def __init__(self, height, width):
        self.shape, self.low, self.coarse, self.shift = (height, width), 0, 0, 0
        self.v, self.s = (np.zeros((height + 6, width + 6), np.int64) for _ in range(2))

    def edges(self):
        for a in (self.v, self.s):
            a[:] = np.pad(a[3:-3, 3:-3], 3, "edge")


class Axis:
    def __init__(self, kind, factor, phase, size):
        place = np.arange(size) - phase
        self.cell = place // factor
        if kind:
            self.unit = 2 * factor
            first, self.weight = np.divmod(2 * place + 1 - factor, self.unit)
        else:
            self.unit, first, self.weight = 1, self.cell, np.zeros(size, int)
        second = first + (self.weight > 0)
        low = first[0]
        self.values = int(second[-1] - low + 1)
        self.first, self.second, self.cell = first - low, second - low, self.cell - low

    def samples(self, cell):
        return np.flatnonzero(self.cell == clip(cell, self.cell[0], self.cell[-1]))


class Section:
    def __init__(self, data, valid, shape, bounds):
        self.coder, self.shape = Coder(data[4:]), shape
        self.valid = np.ones(shape, bool) if valid is None else valid
        self.bounds = [np.broadcast_to(b, (shape[0], *shape[2:])) for b in bounds]
        self.varying = [np.ndim(b) > 0 for b in bounds]
        self.residuals = States(FIRST[:, 0], FIRST)
        zero = [FIRST_CORRECTIONS[min(i, 26)] for i in range(64)]
        self.corrections = States(zero, np.tile(FIRST[10], (64, 1)))
        self.sizes = FIRST_WEIGHTS.tolist()
        self.out = np.zeros(shape, np.int32)

    def limits(self):
        bits = 16 if self.coder.plain(1) else 32
        less = 0 if bits == 16 else 2**31
        return self.coder.plain(bits) - less, self.coder.plain(bits) - less

    def decode(self):
        dates, count = self.shape[:2]
        p, bits = self.coder.plain, (count - 1).bit_length()
        order = [p(bits) for _ in range(count)]
        near = [[p(bits) for _ in range(min(i, 3))] for i in range(count)]
        self.grids = []
        for _ in range(count):
            grid = (0, 1, 0, 0)
            if p(1):
                grid = (p(1), p(3) + 1, p(3), p(3))
            self.grids.append(grid)
        self.axes = [
            (Axis(g[0], g[1], g[2], self.shape[2]), Axis(g[0], g[1], g[3], self.shape[3]))
            for g in self.grids
        ]
        before = {}
        for date in range(dates):
            planes = {}
            for i, band in enumerate(order):
                wide = [self.seen(date, planes[order[k]], order[k], band) for k in near[i]]
                far = [order[k] for k in range(i - 1, -1, -1) if k not in near[i]][:4]
                far = [self.seen(date, planes[b], b, band) for b in far]
                wide += [before[band]] if date else []
                planes[band] = self.plane_of(date, band, wide, far)
            before = planes
        return self.out

    def seen(self, date, own, of, band):
        if self.grids[of] == self.grids[band]:
            return own
        (rows, columns), (r, c) = self.axes[band], self.axes[of]
        mean = Plane(rows.values, columns.values)
        mean.shift = own.shift
        fine = (self.out[date, of].astype(np.int64) - own.low_of_samples) >> own.coarse_of_samples
        sizes = own.s[3:-3, 3:-3][r.cell[:, None], c.cell]
        for y in range(rows.values):
            for x in range(columns.values):
                where = np.ix_(rows.samples(y), columns.samples(x))
                mean.v[y + 3, x + 3] = fine[where].sum() // fine[where].size
                mean.s[y + 3, x + 3] = sizes[where].sum() // fine[where].size
        mean.edges()
        return mean

    def plane_of(self, date, band, wide, far):
        rows, columns = self.axes[band]
        plane = Plane(rows.values, columns.values)
        low, high = self.limits()
        plane.low_of_samples = low
        plane.coarse_of_samples = max((high - low).bit_length() - 26, 0)
        valid, bounds = self.valid[date, band], self.bounds[band][date]
        if low == high:
            self.out[date, band] = low
        elif self.grids[band][1] == 1:
            self.out[date, band] = self.samples(
                plane, valid, bounds, low, high, wide, far, self.varying[band]
            )
        else:
            self.out[date, band] = self.on_grid(plane, band, valid, bounds, (low, high), wide, far)
        return plane

    def on_grid(self, plane, band, valid, bounds, limits, wide, far):
        rows, columns = self.axes[band]
        low, high = self.limits()
        slack = self.coder.plain(4)
        used = np.zeros(plane.shape, bool)
        tight = np.full(plane.shape, 2**31 - 1)
        for y, x in zip(*np.nonzero(valid), strict=True):
            for j in {rows.first[y], rows.second[y]}:
                for i in {columns.first[x], columns.second[x]}:
                    used[j, i], tight[j, i] = True, min(tight[j, i], bounds[y, x])
        tight = tight + (tight * slack + 16) // 32
        native = np.full(plane.shape, low)
        if low < high:
            native = self.samples(plane, used, tight, low, high, wide, far, self.varying[band])
        down = native[rows.first] * (rows.unit - rows.weight)[:, None]
        down = down + native[rows.second] * rows.weight[:, None]
        total = down[:, columns.first] * (columns.unit - columns.weight)
        total = total + down[:, columns.second] * columns.weight
        area = rows.unit * columns.unit
        out = np.clip((total + area // 2) // area, *limits)
        rest = (total + area // 2) % area
        rest = np.minimum(rest, area - rest)
        kind = np.where(rest == 0, 0, np.where(16 * rest <= area, 1, 2))
        if self.coder.plain(1):
            sizes = np.zeros((out.shape[0] + 1, out.shape[1] + 1), int)
            for y, x in zip(*np.nonzero(valid), strict=True):
                scale = 9 * kind[y, x] + 3 * sizes[y, x + 1] + sizes[y + 1, x]
                steps = self.coder.symbol(self.corrections, scale, 4)
                sizes[y + 1, x + 1] = min(abs(steps), 2)
                out[y, x] = clip(int(out[y, x]) + steps * int(2 * bounds[y, x] + 1), *limits)
        return out

    def samples(self, plane, used, bounds, low, high, wide, far, varying):
        (height, width), coder = plane.shape, self.coder
        plane.coarse = coarse = max((high - low).bit_length() - 26, 0)
        raw, plane.shift = coder.plain(1), coder.plain(5)
        shift, v, s = plane.shift, plane.v, plane.s
        largest = (high - low) >> coarse
        middle = largest // 2
        sizes = self.sizes[len(wide)]
        count = 15 + sum(SEEN[: len(wide)]) + len(far)
        least = int(bounds[used].min())
        unit = 4 * (2 * least + 1) + 2
        comb = None
        if (
            not raw
            and not varying
            and not least
            and largest <= 16383
            and not coarse
            and coder.plain(1)
        ):
            comb = Comb(largest)
        start = None
        if not raw and not varying and least and high - low < 65536 and coder.plain(1):
            start = low + coder.plain(16)
        segments = max((width + 64) // 128, 1)
        size, each = -(-width // segments), -(-segments // 16)
        stripes = [Stripe(count) for _ in range(-(-segments // each))]
        out = np.zeros(plane.shape, np.int64)

        def feature(n):
            return min(lg(int(n) + unit) - lg(unit), 255)

        for y in range(height):
            r = y + 3
            for a, first in ((v, middle), (s, 0)):
                a[r, :3] = a[r - 1, 3] if y else first
            kept = []
            for x in range(width):
                c = x + 3
                if x % size == 0 and not raw:
                    at = x // size // each
                    stripe = stripes[at]
                    follows = at and not stripe.begun
                    if follows:
                        stripe.weights = stripes[at - 1].weights.copy()
                    stripe.begun = True
                    if follows or stripe.since >= 40:
                        stripe.fit(stripes, at, 8 if not least else 7 if least < 10 else 6)
                    w = stripe.weights
                if not y:
                    for a in (v, s):
                        a[:r, c - 2 : c + 3] = a[r, c - 1]
                west, north = int(v[r, c - 1]), int(v[r - 1, c])
                if not used[y, x]:
                    v[r, c] = west + north + 1 >> 1
                    s[r, c] = s[r, c - 1] + s[r - 1, c] + 1 >> 1
                    out[y, x] = clip(low + (int(v[r, c]) << coarse), low, high)
                elif raw:
                    step = 2 * int(bounds[y, x]) + 1
                    number = coder.number((high - low) // step + 1)
                    out[y, x] = min(low + number * step + step // 2, high)
                    v[r, c], s[r, c] = (int(out[y, x]) - low) >> coarse, 0
                else:
                    step = 2 * int(bounds[y, x]) + 1
                    inputs = [2 * middle - west - north]
                    inputs += [2 * v[r + i, c + j] - west - north for i, j in OWN]
                    inputs = [clip(int(t) >> shift, -8191, 8191) for t in inputs]
                    for k, ref in enumerate(wide + far):
                        beside = ref.v[r, c - 1] + ref.v[r - 1, c]
                        for i, j in AROUND[: SEEN[k] if k < len(wide) else 1]:
                            t = int(2 * ref.v[r + i, c + j] - beside) >> ref.shift
                            inputs.append(clip(t, -8191, 8191))
                    inputs = np.array([64, *inputs], np.int64)
                    total = (int(w @ inputs) + 2**31) % 2**32 - 2**31
                    u = 4 * (west + north) + ((total << shift) >> 11) + 4
                    base = clip(low + (clip(u >> 3, 0, largest) << coarse), low, high)
                    f = [s[r, c - 1], s[r - 1, c], s[r - 1, c - 1] + s[r - 1, c + 1] + 1 >> 1,
                         s[r, c - 2] + s[r - 2, c] + 1 >> 1]  # fmt: skip
                    corner, east = v[r - 1, c - 1], v[r - 1, c + 1]
                    rough = abs(west - corner) + abs(north - corner) + abs(north - east)
                    far_off = abs(west - v[r, c - 2]) + abs(north - v[r - 2, c])
                    f += [feature(3 * rough << coarse), feature(4 * far_off << coarse)]
                    for ref in wide:
                        around = sum(
                            ref.s[r + i, c + j] for i, j in ((0, -1), (0, 1), (-1, 0), (1, 0))
                        )
                        f += [ref.s[r, c], around + 2 >> 2]
                    f = [int(n) for n in f]
                    log = 16 * sizes[14] + sum(g * n for g, n in zip(sizes, f, strict=False))
                    log = clip(log >> 12, -2048, 7680)
                    expected = pw((log + 16 * lg(unit)) >> 3)
                    scale = ((log + 16 * lg(unit) - 16 * lg(8 * step)) >> 6) + 20
                    side = u % 8 if step == 1 and not coarse else 4
                    scale = clip(scale, 0, 63)
                    if comb:
                        e = comb.symbol(coder, self.residuals, scale, side, base - low)
                    else:
                        e = coder.symbol(self.residuals, scale, side)
                    value = base + e * step
                    if start is not None:
                        value = paired(base, step // 2, start, high, e)
                    out[y, x] = clip(value, low, high)
                    if comb:
                        comb.seen(int(out[y, x]) - low)
                    missed = min(8 * abs(e) * step, 2**40) if e else min(2 * step, expected)
                    v[r, c], s[r, c] = (int(out[y, x]) - low) >> coarse, feature(missed)
                    error = 256 * min(missed, 4 * expected) // expected - 256
                    for j, n in enumerate(f):
                        sizes[j] = clip(sizes[j] + ((error * n + 128) >> 8), -(2**17), 2**17)
                    sizes[14] = clip(sizes[14] + (5 * error >> 3), -(2**22), 2**22)
                    q = 3 * max(log, 0) >> 6
                    o = -(-q // 32)
                    target = clip(2 * int(v[r, c]) - west - north >> shift, -8191, 8191)
                    scaled = np.append(inputs, target) * (root(32 * o - q) >> (o + 2)) + 8192 >> 14
                    kept.append(np.clip(scaled, -2047, 2047))
                if not raw and ((x + 1) % size == 0 or x + 1 == width):
                    for row in kept:
                        stripe.gram += np.multiply.outer(row[:-1], row[:-1])
                        stripe.right += row[:-1] * row[-1]
                    stripe.since, kept = stripe.since + len(kept), []
            if comb and comb.since >= 256:
                comb.settle()
            for a in (v, s):
                a[r, :3], a[r, width + 3 :] = a[r, 3], a[r, width + 2]
                if not y:
                    a[:3] = a[3]
        plane.edges()
        return out


def decode(data, valid, shape, bounds):
    return Section(data, valid, shape, bounds).decode()
