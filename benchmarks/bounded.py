"""Size and speed of bounded and lossless coding, beside the classical bounded codecs.

    python benchmarks/bounded.py [--quick] [--data DIR] [--out DIR]

Every byte of every codec counts: per-band streams with their headers for the classical ones, the
whole frame for tec_zarr (one per date, no model). Each decoded array is checked against
its bound. Size is in bits per pixel per band (bpppb), time in processor seconds
per (1, C, 256, 256) chunk (wall time on an idle core); tec_zarr's encoding time includes decoding
again, with which it verifies what it wrote.

JPEG XL has no error bound. ``jpegxl-rounded`` is what one can do about that: values rounded to
multiples of 2 * bound + 1, then JPEG XL without loss. ``jpegxl-on-grids`` is that, given the
sensor's own grids: native planes instead of enlarged ones.

Bounds on NDVI are tried on B08 and B04 of the first date. A codec without such bounds gets the
largest bound in DN, found by bisection, whose decoded NDVI is within the one on the index.

Awkward arrays are compared with plain numbers: each value's bin, log2(bins) bits each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import imagecodecs
import numcodecs
import numpy as np
from environment import DATA, ROOT, commit, environment, scenes

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.grids import Grid, Kind, find, refine

BOUNDS = (0, 5, 10, 20, 50, 100)
INDEX_BOUNDS = (0.005, 0.01, 0.02, 0.05)
PAIR = ("B08", "B04")


def per_band(encode, decode, dtype):
    """Make a (encode, decode) pair over (1, C, H, W) from one over (H, W)."""

    def encode_all(array):
        return [encode(np.ascontiguousarray(band.astype(dtype))) for band in array[0]]

    def decode_all(streams, shape):
        bands = [np.asarray(decode(s, shape[2:])).reshape(shape[2:]) for s in streams]
        return np.stack(bands)[None]

    return encode_all, decode_all


def jpegxl_on_grids(value):
    """Make the pair for JPEG XL that is given the sensor's own grids.

    Bands that were enlarged are found as `tec_zarr.grids` finds them; of those JPEG XL codes the
    native values, rounded to multiples of 2 * value + 1. What is still beyond the bound is
    corrected by a plane of differences, nearly all of them 0, packed by Zstandard.
    """
    step = 2 * value + 1
    jpegxl = imagecodecs.jpegxl_encode

    def encode_all(array):
        streams = []
        whole = array.astype(np.int32)
        for band, found in enumerate(find(whole)):
            plane, grid = array[0, band], found and found.grid
            if found:
                native = refine(found.native, whole[:, band], None, grid)[0]
                plane = np.clip(native, 0, 65535).astype(np.uint16)
            rounded = ((plane.astype(np.uint32) + value) // step).astype(np.uint16)
            places = (int(grid.kind), grid.factor, grid.row, grid.column) if found else (0,) * 4
            streams += [bytes(places), jpegxl(rounded, lossless=True, effort=7)]
            if found:
                back = grid.enlarge(rounded.astype(np.int64) * step, whole.shape[2:])
                off = whole[0, band] - back
                off = np.where(np.abs(off) > value, off, 0).astype(np.int32)
                streams.append(imagecodecs.zstd_encode(off.tobytes(), 9))
        return streams

    def decode_all(streams, shape):
        planes, left = [], iter(streams)
        for places in left:
            plane = imagecodecs.jpegxl_decode(next(left)).astype(np.int64) * step
            if any(places):
                grid = Grid(Kind(places[0]), *places[1:])
                off = np.frombuffer(imagecodecs.zstd_decode(next(left)), np.int32)
                plane = grid.enlarge(plane, shape[2:]) + off.reshape(shape[2:])
            planes.append(plane)
        return np.stack(planes)[None]

    return encode_all, decode_all


def tec(spec):
    """Make the pair for tec_zarr."""
    return lambda array: [encode_chunk(array, spec)], lambda streams, _: decode_chunk(streams[0])


def codecs(value):
    """Name -> (encode to a list of bytes, decode), for one bound in DN."""

    ic = imagecodecs
    found = {"tec-bound": tec(ChunkSpec(max_error=value))}
    found["jpegxl-on-grids"] = jpegxl_on_grids(value)
    if value == 0:
        blosc = numcodecs.Blosc("zstd", clevel=9, shuffle=numcodecs.Blosc.BITSHUFFLE)
        found["jpegxl-lossless-e7"] = per_band(
            lambda p: ic.jpegxl_encode(p, lossless=True, effort=7),
            lambda d, s: ic.jpegxl_decode(d),
            np.uint16,
        )
        found["jpeg2000-lossless"] = per_band(
            lambda p: ic.jpeg2k_encode(p, reversible=True),
            lambda d, s: ic.jpeg2k_decode(d),
            np.uint16,
        )
        found["blosc-zstd9-bitshuffle"] = per_band(
            blosc.encode, lambda d, s: np.frombuffer(blosc.decode(d), np.uint16), np.uint16
        )
    else:
        step = 2 * value + 1
        found["jpegxl-rounded"] = per_band(
            lambda p: ic.jpegxl_encode((p + value) // step, lossless=True, effort=7),
            lambda d, s: ic.jpegxl_decode(d) * np.uint32(step),
            np.uint16,
        )
        found["lerc"] = per_band(
            lambda p: ic.lerc_encode(p, value), lambda d, s: ic.lerc_decode(d), np.uint16
        )
        found["sz3"] = per_band(
            lambda p: ic.sz3_encode(p, mode="abs", abs=value),
            lambda d, s: ic.sz3_decode(d, shape=s, dtype="f4"),
            np.float32,
        )
        found["sperr"] = per_band(
            lambda p: ic.sperr_encode(p, value, mode="pwe"),
            lambda d, s: ic.sperr_decode(d),
            np.float32,
        )
        found["zfp"] = per_band(
            lambda p: ic.zfp_encode(p, value, mode="a"), lambda d, s: ic.zfp_decode(d), np.float32
        )
    found["jpegls"] = per_band(
        lambda p: ic.jpegls_encode(p, value), lambda d, s: ic.jpegls_decode(d), np.uint16
    )
    return found


def measure(array, value, name, encode, decode):
    start = time.process_time()
    streams = encode(array)
    middle = time.process_time()
    decoded = decode(streams, array.shape)
    end = time.process_time()
    worst = float(np.abs(decoded.astype(np.float64) - array).max())
    # Float codecs may end a rounding above their bound; more than that is a failure to report.
    assert worst <= value + 1e-2, f"{name} at bound {value}: error {worst}"
    chunks = array[0, 0].size / 256**2
    return {
        "codec": name,
        "bound": value,
        "bpppb": 8 * sum(map(len, streams)) / array.size,
        "worst": worst,
        "encode_cpu_s": (middle - start) / chunks,
        "decode_cpu_s": (end - middle) / chunks,
    }


def ndvi(array):
    near, red = array[0].astype(np.float64)
    return (near - red) / (near + red)


def measure_index(pair, value):
    """Rows of all codecs that take a bound, for one bound on NDVI."""
    rows = []
    wanted = ndvi(pair)

    def tried(name, encode, decode, band_bound):
        start = time.process_time()
        streams = encode(pair)
        middle = time.process_time()
        decoded = decode(streams, pair.shape)
        end = time.process_time()
        with np.errstate(invalid="ignore", divide="ignore"):
            worst = np.abs(ndvi(decoded) - wanted)
        worst = float(np.where(np.isfinite(wanted), np.nan_to_num(worst, nan=np.inf), 0).max())
        return {
            "codec": name,
            "bound": value,
            "band_bound": band_bound,
            "bpppb": round(8 * sum(map(len, streams)) / pair.size, 4),
            "worst": worst,
            "encode_cpu_s": round(middle - start, 4),
            "decode_cpu_s": round(end - middle, 4),
        }

    rows.append(tried("tec-index", *tec(ChunkSpec(bands=PAIR, max_error={"ndvi": value})), None))
    assert rows[0]["worst"] <= value
    for name in ("tec-bound", "jpegxl-rounded", "lerc", "jpegls", "sz3"):
        low, high, best = 0, 100, None
        while low <= high:
            middle = (low + high) // 2
            pairs = codecs(middle)
            if middle == 0:
                pairs["jpegxl-rounded"] = pairs["jpegxl-lossless-e7"]
            row = tried(name, *pairs[name], middle) if name in pairs else None
            if row is None or row["worst"] <= value:  # at 0 DN not all have a codec here
                low, best = middle + 1, row or best
            else:
                high = middle - 1
        rows += [best] if best else []
    return rows


def awkward(shape):
    """Arrays that no prediction helps, uint16."""
    rng = np.random.default_rng(0)
    noise = rng.integers(1, 1 << 16, shape)
    hot = np.full(shape, 900)
    hot[rng.random(shape) < 1e-3] = 65535
    return {
        "noise": noise,
        "noise in every other 8 columns": np.where(np.indices(shape)[3] // 8 % 2, noise, 900),
        "two values at random": rng.integers(0, 2, shape) * 65534 + 1,
        "checkerboard": np.indices(shape).sum(0) % 2 * 65534 + 1,
        "hot pixels": hot,
        "noise, half of it nodata": np.where(rng.random(shape) < 0.5, noise, 0),
    }


def measure_awkward(name, array, value):
    """Size of a frame over that of plain numbers (and of a bitmap of what is nodata)."""
    measured = int(np.count_nonzero(array))
    span = int(array.max()) - int(array[array > 0].min())
    bits = measured * np.log2(span // (2 * value + 1) + 1)
    if measured < array.size:
        bits += array.size
    row = measure(array.astype(np.uint16), value, "tec-bound", *tec(ChunkSpec(max_error=value)))
    return {
        "array": name,
        "bound": value,
        "bytes": round(row["bpppb"] * array.size / 8),
        "over_plain_numbers": round(row["bpppb"] * array.size / bits, 4),
        "encode_cpu_s": round(row["encode_cpu_s"], 3),
        "decode_cpu_s": round(row["decode_cpu_s"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--quick", action="store_true", help="a corner of one cube, few bounds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    rows, index_rows = [], []
    measured = scenes(arguments.data)
    measured = [measured[0].corner()] if arguments.quick else measured
    for scene in measured:
        cube = scene.dn
        for value in BOUNDS[::3] if arguments.quick else BOUNDS:
            for name, pair in codecs(value).items():
                dates = [measure(cube[t : t + 1], value, name, *pair) for t in range(len(cube))]
                row = {"scene": scene.name, **dates[0]}
                for key in ("bpppb", "encode_cpu_s", "decode_cpu_s"):
                    row[key] = round(float(np.mean([d[key] for d in dates])), 4)
                row["worst"] = max(d["worst"] for d in dates)
                rows.append(row)
            print(f"{scene.name}: {value} DN", flush=True)
        pair = cube[:1, [scene.bands.index(band) for band in PAIR]]
        for value in INDEX_BOUNDS[::3] if arguments.quick else INDEX_BOUNDS:
            found = measure_index(np.ascontiguousarray(pair), value)
            index_rows += [{"scene": scene.name, **row} for row in found]
            print(f"{scene.name}: {value} NDVI", flush=True)
    side = 64 if arguments.quick else 256
    awkward_rows = [
        measure_awkward(name, array, value)
        for name, array in awkward((1, 12, side, side)).items()
        for value in (0, 10)
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = {**environment(), "commit": commit(), "rows": rows}
    report |= {"index_rows": index_rows, "awkward_rows": awkward_rows}
    name = "bounded_quick.json" if arguments.quick else "bounded.json"
    (arguments.out / name).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
