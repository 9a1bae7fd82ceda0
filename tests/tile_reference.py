"""A decoder of tec-s2 sections in NumPy, written from docs/format-tec-s2.md and nothing else."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np


class Bits:
    def __init__(self, data):
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def u(self, n):
        self.at += n
        return int(self.bits[self.at - n : self.at] or "0", 2)

    def s(self, k):
        n = 0
        while n < 24 and self.u(1):
            n += 1
        m = self.u(32) if n == 24 else (n << k) + self.u(k)
        return m // 2 if m % 2 == 0 else -(m + 1) // 2


class Coder:
    def __init__(self, data):
        self.data, self.at = data, 0
        self.range, self.code = 2**32 - 1, 0
        for _ in range(4):
            self.code = self.code << 8 | self.byte()

    def byte(self):
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def place(self, n):
        self.unit = self.range >> n
        return min(self.code // self.unit, 2**n - 1)

    def take(self, start, size):
        self.code -= self.unit * start
        self.range = self.unit * size
        while self.range < 2**24:
            self.range <<= 8
            self.code = self.code << 8 | self.byte()

    def bits(self, n):
        value = 0
        while n:
            some = min(n, 12)
            place = self.place(some)
            self.take(place, 1)
            value, n = value << some | place, n - some
        return value

    def bit(self, z):
        one = self.place(16) < z
        self.take(0 if one else z, z if one else 2**16 - z)
        return one

    def symbol(self, starts):
        place = self.place(16)
        at = int(np.searchsorted(starts, place, side="right")) - 1
        self.take(int(starts[at]), int(starts[at + 1] - starts[at]))
        value = at - 32
        if abs(value) == 32:
            ones = 0
            while ones < 24 and self.bits(1):
                ones += 1
            over = (1 << ones | self.bits(ones)) - 1
            value += over if value > 0 else -over
        return value


ZEROS = (64250, 51800, 37700, 22980, 10450, 3470, 870, 164, 16, 4)


def rounded(x, n):
    return (x + (1 << (n - 1))) >> n


def step_of(quality):
    """The quantiser step in 1/256 DN of a quality in 1/4096."""
    power = (quality - 4096) * 3922113468
    x = (power % 2**44 >> 14) * 744261118 >> 30
    e = 2**30
    for i in range(12, 0, -1):
        e = 2**30 - (x * e >> 30) // i
    return rounded(1075200 * e, 30 + (power >> 44))


def sine(a):
    """Sine and cosine, in 1/2^30, of a times pi / 2^15."""
    quarter = (a + 2**13) >> 14
    x = (a - 2**14 * quarter) * 107944301636 >> 20
    z = x * x >> 30
    s = c = 2**30
    for i in (10, 8, 6, 4, 2):
        s = 2**30 - (z * s >> 30) // (i * (i + 1))
        c = 2**30 - (z * c >> 30) // (i * (i - 1))
    s = x * s >> 30
    return [(s, c), (c, -s), (-s, -c), (-c, s)][quarter % 4]


def checksum(values):
    """The checksum of the values of all planes in order."""
    lanes = list(range(32))
    for i, value in enumerate(values.reshape(-1).tolist()):
        x = (lanes[i % 32] ^ value % 2**32) * 0x9E3779B1 % 2**32
        lanes[i % 32] = x ^ x >> 15
    total = 0
    for lane in lanes:
        total = (total ^ lane) * 0x9E3779B1 % 2**32
        total ^= total >> 15
    return total


def class_of(u, v):
    return max(u, v).bit_length()


def frequencies():
    order = [(u, v) for u in range(16) for v in range(16)]
    return sorted(order, key=lambda f: (class_of(*f), sum(f), abs(f[0] - f[1]), -f[0]))


def axis(kind, k, start, size):
    """(cells, low, for each sample: first cell, second cell, weight of the second, unit, cell)."""
    place = np.arange(size) - start
    cell = place // k
    if kind == 0:
        first, weight, unit = cell, np.zeros(size, int), 1
    else:
        unit = 2 * k
        first, weight = np.divmod(2 * place + 1 - k, unit)
    second = first + (weight > 0)
    low = first[0]
    return second[-1] - low + 1, low, first - low, second - low, weight, unit, cell - low


def enlarged(native, grid, shape):
    kind, k, row, column = grid
    sides = [axis(kind, k, s, n) for s, n in zip((row, column), shape, strict=True)]
    around = [(int(a[6][0]), int(a[0] - a[6][-1] - 1)) for a in sides]
    out = np.pad(native, around, mode="edge")
    for number, (_, _, first, second, weight, unit, _) in enumerate(sides):
        w = weight[:, None] if number == 0 else weight
        out = np.take(out, first, number) * (unit - w) + np.take(out, second, number) * w
    area = sides[0][5] * sides[1][5]
    return (out + area // 2) // area


AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def read_map(section, shape):
    """Source rows and columns (h, w) of the samples, and the section of the source."""
    bits = Bits(section)
    bits.u(3)
    places = []
    for _ in range(2):
        numbers = []
        for _ in range(6):
            size = bits.u(5)
            number = bits.u(size) if size else 0
            numbers.append(-number if size and bits.u(1) else number)
        o, a, b, d, e, f = numbers
        r, c = np.indices(shape)
        places.append(
            (o * 2**18 + (a * c + b * r) * 2**10 + d * c * c + e * c * r + f * r * r) >> 32
        )
    size = bits.u(5)
    count = bits.u(size) if size else 0
    size, at = bits.u(5) if count else 0, -1
    corrected = [p.copy().ravel() for p in places]
    for _ in range(count):
        at += 1 + (bits.u(size) if size else 0)
        for place, off in zip(corrected, AROUND[bits.u(3)], strict=True):
            place[at] += off
    source = tuple(int(p.max()) + 1 for p in places)
    return [p.reshape(shape) for p in corrected], source, section[-(-bits.at // 8) :]


class Layout:
    """Where the bands of a tile lie."""

    def __init__(self, bits, bands, shape):
        count = bits.u(3)
        grids = [None] + [(bits.u(1), bits.u(3) + 1, bits.u(3), bits.u(3)) for _ in range(count)]
        size = count.bit_length()
        self.bands, self.shape = bands, shape
        self.grid = [grids[bits.u(size)] if count else None for _ in range(bands)]
        even = [g for g in self.grid if g and g[1] % 2 == 0]
        pairs = Counter((g[2] % 2, g[3] % 2) for g in even)
        self.margin = min(pairs, key=lambda p: (-pairs[p], p)) if pairs else (0, 0)
        self.level = [
            int(bool(g) and g[1] % 2 == 0 and (g[2] % 2, g[3] % 2) == self.margin)
            for g in self.grid
        ]
        self.height, self.width = (n + m for n, m in zip(shape, self.margin, strict=True))
        self.rows, self.cols = -(-self.height // 16), -(-self.width // 16)

    def there(self, c):
        """The bands of a class, in order."""
        order = [0, 1] if c < 4 else [0]
        return [b for level in order for b in range(self.bands) if self.level[b] == level]


def digits_of_means(step256):
    return max(step256.bit_length() - 14, 0)


def read_means(bits, bands, step256):
    d = digits_of_means(step256)
    return np.cumsum([bits.s(max(8 - d, 0)) for _ in range(bands)]) << d


def read_basis(bits, layout, c, before):
    """Vectors in 1/2^24 (all of them), and spreads; `before` are vectors that are turned."""
    count = len(layout.there(c))
    components, spread, spreads = bits.u(5), 72 if c == 0 else 20, []
    for _ in range(components):
        spread -= bits.s(2)
        spreads.append(spread)
    angles = []
    follows = before is not None and len(before) == count
    finer = ((layout.rows * layout.cols).bit_length() - 9) >> 1
    base = (5, 6, 7, 7, 8)[c] + finer
    for j in range(min(components, count - 1)):
        for i in range(j + 1, count):
            n = min(max(math.ceil(spreads[j] / 4) + base, 3), 15)
            if follows:
                spread = spreads[i] if i < components else spreads[-1] - 4
                less, most = (3, n - 5) if c else (2, n - 4)
                number = bits.s(max(min(math.ceil(spread / 4) + base - less, most), 0))
            else:
                number = bits.u(n) - 2 ** (n - 1)
            angles.append((j, i, min(max(number, -(2**n)), 2**n) << (15 - n)))
    turned = np.eye(count, dtype=np.int64) << 30
    for j, i, a in reversed(angles):
        upper, lower = turned[j].copy(), turned[i].copy()
        sin, cos = sine(a)
        turned[j] = rounded(cos * upper - sin * lower, 30)
        turned[i] = rounded(cos * lower + sin * upper, 30)
    turned = rounded(turned, 6)
    return rounded(before @ turned, 24) if follows else turned, spreads


USUAL = (13, 12, 11, 11, 10, 9, 9, 6, 6)


def read_bases(bits, layout, weights):
    """(vectors, spreads) of the five classes; (None, []) of a class without bands."""
    bases, before, there = [], None, [i for i, n in enumerate(USUAL) if n == layout.bands]
    number = bits.u(2) if there else 0
    if number:
        at, n = there[number - 1], layout.bands
        usual = weights["usual_bases"].reshape(-1, 13, 13)[at, :n, :n].astype(np.int64)
        before = usual[layout.there(0)]
    for c in range(5):
        basis = (None, [])
        if layout.there(c):
            basis = read_basis(bits, layout, c, before)
            before = basis[0]
        bases.append(basis)
    return bases


def hints_of(layout, guess, step256, weights):
    """What the network sees of a prediction: (u, v) to the sum over bands, in half steps."""
    out = {}
    for b, whole in guess.items():
        for u, v in np.ndindex(*whole.shape[:2]):
            r = 2**39 // factor_of(layout, b, u, v, step256, weights)
            part = np.minimum((np.abs(whole[u, v]) * r) >> 26, 65536)
            out[u, v] = out.get((u, v), 0) + part
    return {at: np.minimum(sums >> 4, 4095) for at, sums in out.items()}


def read_values(data, layout, bases, quality, weights, hints=None, kind=0):
    """(class, u, v, component), values and table numbers of each plane; quality in 1/4096."""
    rows, cols, coder = layout.rows, layout.cols, Coder(data)
    coarse = any(layout.level)
    starts = np.zeros((40, 66), np.int64)
    starts[:, 1:] = np.cumsum(weights["frequencies"], axis=1)
    first = weights["context.first"].astype(np.int64)
    second = weights["context.second"].astype(np.int64)
    last = weights["context.last"].astype(np.int64)

    def index_of(x):
        one = np.clip((x @ first + weights["context.first_bias"]) >> 7, 0, 127)
        two = np.clip((2 * (second @ one) + weights["context.second_bias"]) >> 6, 0, 255)
        return int(np.clip((last @ two + int(weights["context.last_bias"][0])) >> 10, 0, 95))

    none = np.zeros((rows, cols), np.int64)
    magnitude = {}

    def near(x):
        p = np.pad(x, 1)
        around = [(r, c) for r in range(3) for c in range(3) if (r, c) != (1, 1)]
        return sum(p[r : r + rows, c : c + cols] for r, c in around)

    values, indexes, places = [], [], []
    earlier, previous = none.copy(), -1
    for u, v in frequencies():
        c = class_of(u, v)
        if c != previous:
            earlier = earlier + (same if previous >= 0 else 0)  # noqa: F821
            same, previous = none.copy(), c
        total, hint = none.copy(), none if hints is None else hints[u, v]
        for k, spread in enumerate(bases[c][1]):

            def at(uu, vv, kk):
                return magnitude.get((uu, vv, kk), none)

            below = at(u - 1, v, k) + at(u, v - 1, k)
            still = [
                at(u - 1, v, k), at(u, v - 1, k), at(u - 1, v - 1, k),
                at(u - 2, v, k) + at(u, v - 2, k), near(below), at(u, v, k - 1), at(u, v, k - 2),
                total, near(at(u, v, k - 1)), near(total), earlier, near(earlier), same, near(same),
                hint, near(hint),
            ]  # fmt: skip
            n = sum(np.count_nonzero(at(*f, k)) for f in ((u - 1, v), (u, v - 1)))
            others = 2 * np.count_nonzero(at(u, v, k - 1))
            density = [
                math.floor(10 * math.log2(1 + count * 4095 // (2 * rows * cols)) + 0.5)
                for count in (n, others)
            ]
            fixed = [
                min(max(spread + 32, 0), 127), 8 * u, 8 * v, 16 * min(k, 7),
                (64 if coarse else 0) + kind,
                min((quality - 4096 + 128) >> 8, 127), *density,
            ]  # fmt: skip
            plane, numbers, symbols = none.copy(), none.copy(), none.copy()
            z = ZEROS[min(int(256 * n // (rows * cols)).bit_length(), 9)]
            skipped = rows * cols >= 64 and (u, v) != (0, 0) and coder.bit(z)
            for r in range(0 if skipped else rows):
                for q in range(cols):
                    a = np.pad(np.abs(symbols), 2)[r : r + 5, q : q + 5]
                    scan = [2 * (a[1, 2] + a[2, 1]) + a[1, 1] + a[1, 3], a[1, 2], a[2, 1],
                            a[0, 2] + a[2, 0]]  # fmt: skip
                    sums = [*scan, *(s[r, q] for s in still)]
                    logs = [math.floor(10 * math.log2(1 + min(int(s), 4095)) + 0.5) for s in sums]
                    index = index_of(np.array(logs + fixed))
                    low = 0 if index < 32 else (index - 28) // 4
                    value = coder.symbol(starts[index if index < 32 else 28 + (index - 28) % 4])
                    value = (value << low) + coder.bits(low)
                    symbols[r, q] = value
                    if (u, v) == (0, 0):
                        left = int(plane[r, q - 1]) if q else None
                        top = int(plane[r - 1, q]) if r else None
                        left, top = (top if left is None else left), (left if top is None else top)
                        left, top = left or 0, top or 0
                        corner = int(plane[r - 1, q - 1]) if r and q else top if r else left
                        right = int(plane[r - 1, q + 1]) if r and q + 1 < cols else top
                        m = [int(x) for x in weights["context.mean"][:, k]]
                        value += (
                            m[0] * left + m[1] * top + m[2] * corner + m[3] * right + 128
                        ) >> 8
                    plane[r, q], numbers[r, q] = value, index
            magnitude[u, v, k] = np.abs(symbols)
            total = total + np.abs(symbols)
            values.append(plane)
            indexes.append(numbers)
            places.append((c, u, v, k))
        same = same + total
    return places, values, indexes


def factor_of(layout, b, u, v, step256, weights):
    """2^14 times the 1/64 DN of a 1/64 step of a coefficient of a band."""
    kind = ("repeated", "bilinear")[layout.grid[b][0]] if layout.level[b] else ""
    name = f"gain.8.{kind}" if kind else "gain.16"
    gain = weights[name][cells_of(layout).get(b, (1,))[0] - 1].astype(object)
    g = gain[u] * gain[v]
    return int(((step256 << 39) + g) // (2 * g))


def band_coefficients(layout, bases, coded, step256, weights):
    """Coefficients (N, N, rows, cols) of each band, in 1/64 DN."""
    rows, cols = layout.rows, layout.cols
    whole = {
        b: np.zeros((16 >> layout.level[b], 16 >> layout.level[b], rows, cols), np.int64)
        for b in range(layout.bands)
    }
    mixed = {}
    for (c, u, v, k), plane, numbers in zip(*coded, strict=True):
        z = weights["towards_zero"].astype(np.int64)[numbers, np.clip(np.abs(plane), 1, 2) - 1]
        r = 64 * np.clip(plane, -(2**20), 2**20) - np.sign(plane) * (z if u or v else 0)
        for row, b in enumerate(layout.there(c)):
            mixed[b, u, v] = mixed.get((b, u, v), 0) + rounded(bases[c][0], 12)[row, k] * r
    for (b, u, v), s in mixed.items():
        f = factor_of(layout, b, u, v, step256, weights)
        s = np.clip(rounded(s, 12), -(2**26), 2**26)
        whole[b][u, v] = np.clip(rounded(s * f, 14), -(2**27), 2**27)
    return whole


def cells_of(layout):
    """Factor, first row and column of the cells of the bands that lie on a grid."""
    cells = {}
    for b in range(layout.bands):
        if layout.grid[b]:
            k = layout.grid[b][1] >> layout.level[b]
            at = zip(layout.grid[b][2:], layout.margin, strict=True)
            cells[b] = (k, *(((s + m) >> 1) % k if layout.level[b] else s for s, m in at))
    return cells


def pixels_of(layout, means, whole, weights):
    """DN (bands, h, w) from the coefficients of the bands."""
    cells, shape = cells_of(layout), layout.shape
    image = np.empty((layout.bands, *shape), np.int64)
    for b, w in whole.items():
        n = 16 >> layout.level[b]
        back = weights[f"dct_back.{n}"].astype(np.int64)
        over = weights[f"overlap_back.{n}"].astype(np.int64)[n // 2 :, n // 2 :]
        over = over - (np.eye(n // 2, dtype=np.int64) << 14)
        t = rounded(np.einsum("uvrc,vj->ujrc", w, back), 14)
        x = rounded(np.einsum("ujrc,ui->ricj", t, back), 14)
        x = x.reshape(layout.rows * n, layout.cols * n)
        for _ in range(2):
            for at in range(n, len(x), n):
                behind, before = x[at : at + n // 2], x[at - n // 2 : at][::-1]
                change = rounded(over @ (behind - before), 14)
                behind += change
                before -= change
            x = np.ascontiguousarray(x.T)
        x = np.clip(x, -(2**26), 2**26)
        ph, pw = (-(-size // (1 + layout.level[b])) for size in (layout.height, layout.width))
        x = x[:ph, :pw] + 64 * means[b]
        if layout.level[b] == 0:
            x = x[layout.margin[0] :, layout.margin[1] :]
        if not layout.grid[b]:
            image[b] = (x + 32) // 64
            continue
        k, row, column = cells[b]
        if k == 1:
            native = (2 * x + 64) // 128
        else:
            r, c = ((np.arange(m) - s) // k for m, s in zip(x.shape, (row, column), strict=True))
            r, c = r - r[0], c - c[0]
            sums, n_of = (
                np.zeros((r[-1] + 1, c[-1] + 1), np.int64),
                np.zeros((r[-1] + 1, c[-1] + 1), int),
            )
            np.add.at(sums, (r[:, None], c), x)
            np.add.at(n_of, (r[:, None], c), 1)
            native = (2 * sums + 64 * n_of) // (128 * n_of)
        image[b] = enlarged(native, layout.grid[b], shape)
    return image


def decode(section, bands, shape, quality, weights):
    """DN (bands, h, w) and the values of all planes in order."""
    if section[0] >> 5 == 7:
        (rows, columns), source, section = read_map(section, shape)
        pixels, values = decode(section, bands, source, quality, weights)
        return pixels[:, rows, columns], values
    quality = round(4096 * quality)
    step256, bits = step_of(quality), Bits(section)
    layout = Layout(bits, bands, shape)
    means = read_means(bits, bands, step256)
    bases = read_bases(bits, layout, weights)
    coded = read_values(section[-(-bits.at // 8) :], layout, bases, quality, weights)
    whole = band_coefficients(layout, bases, coded, step256, weights)
    values = np.array(coded[1]).reshape(-1, layout.rows, layout.cols)
    return pixels_of(layout, means, whole, weights), values
