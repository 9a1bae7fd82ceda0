"""A decoder of tec-tt-s2 and tec-flex-s2 in NumPy, written from their pages of docs."""

from __future__ import annotations

import zlib

import numpy as np
import tile_reference as tile


class Date:
    """A decoded piece: its layout, map, means, bases and coefficients."""


def read_piece(pieces, number, known, bands, shape, weights):
    """Decode piece `number` of (section, quality in 1/4096); `known` gets it and what it needs."""
    section, quality = pieces[number]
    count, finer = section[0] & 3, section[0] >> 2
    quality = min(quality + 512 * finer, 32768)
    step, bits, date = tile.step_of(quality), tile.Bits(section[1:]), Date()
    if not count:
        rest, date.map, source = section[1:], None, shape
        if rest[0] >> 5 == 7:
            date.map, source, rest = tile.read_map(rest, shape)
        bits = tile.Bits(rest)
        date.layout = tile.Layout(bits, bands, source)
        date.means = tile.read_means(bits, bands, step)
        date.bases = tile.read_bases(bits, date.layout, weights)
        rest = rest[-(-bits.at // 8) :]
    else:
        numbers = [number - bits.s(2) for _ in range(count)]
        for n in numbers:
            if n not in known:
                read_piece(pieces, n, known, bands, shape, weights)
        first = known[numbers[0]]
        date.layout, date.map = first.layout, first.map
        there = [date.layout.there(c) for c in range(5)]
        weight, start = {}, [8] * count
        for c in range(5):
            shared = there[c] and bits.u(1)
            for n in range(count if there[c] else 0):
                now = start[n]
                for i, b in enumerate(there[c]):
                    now += 0 if shared and i else bits.s(1)
                    weight[n, c, b] = now
                start[n] = weight[n, c, there[c][0]]
        d = tile.digits_of_means(step)
        change = np.cumsum([bits.s(max(6 - d, 0)) for _ in range(bands)])
        date.means = ((first.means >> d) + change) << d
        date.bases = []
        for c in range(5):
            vectors, spreads = first.bases[c]
            if not there[c]:
                date.bases.append((None, []))
            elif bits.u(1):
                new = []
                for k in range(bits.u(5)):
                    start = 72 if c == 0 else 20
                    guess = spreads[k] if k < len(spreads) else new[-1] if new else start
                    new.append(guess - bits.s(2))
                date.bases.append((vectors, new))
            else:
                date.bases.append(tile.read_basis(bits, date.layout, c, vectors))
        rest = section[1:][-(-bits.at // 8) :]
    hints, guess, kind = None, {}, 0
    if count:
        for b, level in enumerate(date.layout.level):
            side, blocks = 16 >> level, (date.layout.rows, date.layout.cols)
            guess[b] = np.zeros((side, side, *blocks), np.int64)
            for u, v in np.ndindex(*guess[b].shape[:2]):
                c = tile.class_of(u, v)
                sums = sum(weight[n, c, b] * known[m].whole[b][u, v] for n, m in enumerate(numbers))
                guess[b][u, v] = np.clip((sums + 8) >> 4, -(2**27), 2**27)
        hints = tile.hints_of(date.layout, guess, step, weights)
        kind = 48 if any(pieces[m][1] < pieces[number][1] for m in numbers) else 32
    coded = tile.read_values(rest, date.layout, date.bases, quality, weights, hints, kind)
    date.checksum = tile.checksum(np.array(coded[1]))
    date.whole = tile.band_coefficients(date.layout, date.bases, coded, step, weights)
    for b, prediction in guess.items():
        date.whole[b] = np.clip(date.whole[b] + prediction, -(2**27), 2**27)
    known[number] = date


def pixels(date, weights):
    image = tile.pixels_of(date.layout, date.means, date.whole, weights)
    return image if date.map is None else image[:, date.map[0], date.map[1]]


def decode_series(sections, bands, shape, quality, weights):
    """DN (dates, bands, h, w) and checksums of the sections of a tile of tec-tt-s2."""
    pieces, known = [(s, round(4096 * quality)) for s in sections], {}
    for number in range(len(pieces)):
        if number not in known:
            read_piece(pieces, number, known, bands, shape, weights)
    dates = [known[n] for n in range(len(pieces))]
    return np.stack([pixels(d, weights) for d in dates]), [d.checksum for d in dates]


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def read_layers(section):
    """Lowest quality, and (check, section) of each layer."""
    count, at = varint(section, 0)
    one, at = varint(section, at)
    size, at = varint(section, at)
    assert (one, size) == (1, 2)
    quality, at = int.from_bytes(section[at : at + 2], "little"), at + 2
    layers = []
    for _ in range(count):
        size, at = varint(section, at)
        layers.append((section[at : at + 2], section[at + 2 : at + size]))
        at += size
    return quality, layers


def decode_layers(sections, bands, shape, weights):
    """DN of the last layers, and checksums, of the sections of a tile of tec-flex-s2."""
    read = [read_layers(s) for s in sections]
    dates, layers = len(read), len(read[0][1])
    pieces = [
        (read[date][1][layer][1], read[date][0] + 10240 * layer)
        for layer in range(layers)
        for date in range(dates)
    ]
    known = {}
    for number in range(len(pieces)):
        if number not in known:
            read_piece(pieces, number, known, bands, shape, weights)
    for number, date in known.items():
        check = read[number % dates][1][number // dates][0]
        assert int.from_bytes(check, "little") == date.checksum % 65536
    last = [known[(layers - 1) * dates + date] for date in range(dates)]
    checksums = [zlib.crc32(b"".join(check for check, _ in r[1])) for r in read]
    return np.stack([pixels(d, weights) for d in last]), checksums
