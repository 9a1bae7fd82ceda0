"""Size and speed of bounded and lossless coding, beside the classical bounded codecs.

    python benchmarks/bounded.py [--data DIR] [--dates N] [--out benchmarks/results/bounded.json]

Every byte of every codec counts: per-band streams with their headers for the classical ones, the
whole bound section for tec_zarr (one per date, no model). Each decoded array is checked against
its bound. Size is in bits per pixel per band (bpppb), time in processor seconds
per (1, C, 256, 256) chunk (wall time on an idle core).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import imagecodecs
import numcodecs
import numpy as np
from environment import DATA, commit, environment, scenes

from tec_zarr import bound
from tec_zarr.scale_tables import SHAPES, code_lengths

BOUNDS = (0, 5, 10, 20, 50, 100)
RESULTS = Path(__file__).resolve().parent / "results" / "bounded.json"


def per_band(encode, decode, dtype):
    """Make a (encode, decode) pair over (1, C, H, W) from one over (H, W)."""

    def encode_all(array):
        return [encode(np.ascontiguousarray(band.astype(dtype))) for band in array[0]]

    def decode_all(streams, shape):
        bands = [np.asarray(decode(s, shape[2:])).reshape(shape[2:]) for s in streams]
        return np.stack(bands)[None]

    return encode_all, decode_all


def codecs(value):
    """Name -> (encode to a list of bytes, decode), for one bound in DN."""

    def tec_encode(array):
        return [bound.encode(array.astype(np.int32), None, None, [value] * array.shape[1])]

    def tec_decode(streams, shape):
        return bound.decode(streams[0], None, None, shape, [value] * shape[1])

    ic = imagecodecs
    found = {"tec-bound": (tec_encode, tec_decode)}
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    for shape in range(SHAPES):
        code_lengths(shape)  # tables are built once a process; not the cost of a chunk
    rows = []
    for scene in scenes(arguments.data):
        cube = scene.dn[: arguments.dates]
        for value in BOUNDS:
            for name, pair in codecs(value).items():
                dates = [measure(cube[t : t + 1], value, name, *pair) for t in range(len(cube))]
                row = {"scene": scene.name, **dates[0]}
                for key in ("bpppb", "encode_cpu_s", "decode_cpu_s"):
                    row[key] = round(float(np.mean([d[key] for d in dates])), 4)
                row["worst"] = max(d["worst"] for d in dates)
                rows.append(row)
                print(row, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report = {**environment(), "commit": commit(), "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
