"""Encoding and decoding time of one chunk on one core: TEC and classical codecs at equal PSNR.

    python benchmarks/speed.py [--data DIR] [--out DIR] [--repeats N]

For every PSNR the quality of each codec is searched until it meets the PSNR within 0.1 dB (or
comes as near as its steps allow, 0.3 dB at most; the ``psnr`` of a row says), on the first date
of every seasonal cube: chunks of (1, 12, 256, 256). Then the codecs take turns.
Times are the process's CPU time, pinned to one core and one thread: on an idle machine that is
the wall clock, and on a busy one it is still the codec's own work. By itself run it with
``OPENBLAS_NUM_THREADS=1``, as ``run.py`` does: a second thread of NumPy's that waits counts too.
Writes ``speed.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import imagecodecs
import numcodecs
import numpy as np
from environment import DATA, ROOT, Scene, commit, environment, scenes

from tec_zarr import metrics
from tec_zarr.compare import classical
from tec_zarr.models.registry import find_model
from tec_zarr.native import core

PSNRS = (36, 40, 42, 44, 46)
TOLERANCE = 0.1
"""The search for a level ends this close to the PSNR (dB)."""
ACCEPTED = 0.3
"""OpenJPEG's steps can be coarser than that; a codec further away gets no row."""


@dataclass(frozen=True)
class Timed:
    """A codec in two halves, and its range of levels from the worst to the best quality."""

    name: str
    encode: Callable[[Scene, float], object]
    decode: Callable[[object, Scene], np.ndarray]
    size: Callable[[object], int]
    worst: float
    best: float


@dataclass(frozen=True)
class Row:
    """One codec at one PSNR on one chunk. MB are 10**6 bytes of raw uint16."""

    scene: str
    target_psnr: float | None
    codec: str
    level: float
    psnr: float | None
    bpppb: float
    encode_ms: float
    decode_ms: float
    encode_mb_s: float
    decode_mb_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the file, print the table."""
    options = _parse(arguments)
    _one_core()
    chunks = [
        Scene(scene.name, scene.kind, scene.bands, scene.dn[:1])
        for scene in scenes(options.data)
        if scene.kind == "seasonal"
    ]
    rows = [
        row
        for chunk in chunks
        for target in options.psnr
        for row in measure(chunk, target, codecs(), options.repeats)
    ]
    rows += [zstd(chunk, options.repeats) for chunk in chunks]
    results = {
        "definition": f"median CPU time of {options.repeats} runs, one core, one thread, "
        f"chunks of {chunks[0].dn.shape}, PSNR as stated in each row",
        **environment(),
        "kernel": os.environ.get("TEC_NATIVE") or core.kernels()[0],
        "load_average": os.getloadavg(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "weights_sha256": find_model("tec-s2").weights[0],
        "data": {chunk.name: chunk.sha256 for chunk in chunks},
        "rows": [asdict(row) for row in rows],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{'scene':12}{'PSNR':>7}  {'codec':20}{'bpppb':>8}{'encode':>18}{'decode':>20}")
    for row in rows:
        print(
            f"{row.scene:12}{row.psnr or float('inf'):7.2f}  {row.codec:20}{row.bpppb:8.4f}"
            f"{row.encode_ms:8.0f} ms{row.encode_mb_s:7.2f} MB/s"
            f"{row.decode_ms:8.0f} ms{row.decode_mb_s:7.2f} MB/s"
        )


def codecs() -> list[Timed]:
    """TEC, two codecs by band, the best still-image codec over bands, and SZ3."""
    from tec_zarr.codec.numcodecs_codec import TEC

    decoder = TEC()  # as an array has one for all its chunks
    return [
        Timed(
            "tec",
            lambda scene, level: TEC(quality=level, bands=scene.bands).encode(scene.dn),
            lambda data, scene: decoder.decode(data),
            len,
            1,
            8,
        ),
        Timed(
            "jpeg2000",
            lambda scene, level: classical.encode_jpeg2000(scene.dn, level),
            lambda streams, scene: classical.decode_jpeg2000(streams, scene.dn.shape),
            _total,
            44,
            72,
        ),
        Timed(
            "jpegxl",
            lambda scene, level: classical.encode_jpegxl(scene.dn, level),
            lambda streams, scene: classical.decode_jpegxl(streams, scene.dn.shape),
            _total,
            24,
            0.1,
        ),
        Timed(
            "klt-jpeg2000-joint",
            lambda scene, level: classical.encode_klt_jpeg2000(scene.dn, level),
            lambda coded, scene: classical.decode_klt_jpeg2000(*coded, scene.dn.shape),
            lambda coded: len(coded[0]) + coded[1].n_bytes,
            36,
            72,
        ),
        Timed(
            "sz3",
            lambda scene, level: [
                imagecodecs.sz3_encode(plane.astype(np.float32), mode="abs", abs=level)
                for plane in classical.planes(scene.dn)
            ],
            lambda streams, scene: classical.to_dn(
                np.stack(
                    [
                        imagecodecs.sz3_decode(data, shape=scene.dn.shape[-2:], dtype="f4")
                        for data in streams
                    ]
                )
            ).reshape(scene.dn.shape),
            _total,
            1000,
            10,
        ),
    ]


def zstd(chunk: Scene, repeats: int) -> Row:
    """Blosc Zstandard 5 with bitshuffle, lossless: what a store costs without any of this."""
    blosc = numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        data = blosc.encode(chunk.dn)
        middle = time.process_time()
        blosc.decode(data)
        times.append((middle - start, time.process_time() - middle))
    encode, decode = (statistics.median(column) for column in zip(*times, strict=True))
    rate = metrics.bpppb(len(data), chunk.dn.shape)
    raw = chunk.dn.nbytes / 1e6
    return Row(
        chunk.name, None, "zstd, lossless", 5, None, round(rate, 5), round(1e3 * encode, 1),
        round(1e3 * decode, 1), round(raw / encode, 3), round(raw / decode, 3),
    )  # fmt: skip


def measure(chunk: Scene, target: float, timed: Sequence[Timed], repeats: int) -> list[Row]:
    """Rows of every codec that reaches the PSNR on this chunk; they take turns."""
    ready = []
    for codec in timed:
        level, psnr = find_level(codec, chunk, target)
        if abs(psnr - target) > ACCEPTED:
            print(f"{chunk.name}: {codec.name} does not meet {target} dB (nearest {psnr:.2f})")
            continue
        ready.append((codec, level, psnr, [], []))
    for _ in range(repeats):
        for codec, level, _psnr, encoding, decoding in ready:
            start = time.process_time()
            data = codec.encode(chunk, level)
            middle = time.process_time()
            codec.decode(data, chunk)
            encoding.append(middle - start)
            decoding.append(time.process_time() - middle)
    rows = []
    for codec, level, psnr, encoding, decoding in ready:
        encode, decode = statistics.median(encoding), statistics.median(decoding)
        rows.append(
            Row(
                chunk.name,
                float(target),
                codec.name,
                round(level, 4),
                round(psnr, 3),
                round(metrics.bpppb(codec.size(codec.encode(chunk, level)), chunk.dn.shape), 5),
                round(1e3 * encode, 1),
                round(1e3 * decode, 1),
                round(chunk.dn.nbytes / 1e6 / encode, 3),
                round(chunk.dn.nbytes / 1e6 / decode, 3),
            )
        )
    return rows


def find_level(codec: Timed, chunk: Scene, target: float) -> tuple[float, float]:
    """The level nearest to a PSNR, by bisection, and the PSNR there."""
    worst, best = codec.worst, codec.best
    nearest = (worst, -np.inf)
    for _ in range(12):
        level = (worst + best) / 2
        psnr = metrics.psnr(chunk.dn, codec.decode(codec.encode(chunk, level), chunk))
        if abs(psnr - target) < abs(nearest[1] - target):
            nearest = (level, psnr)
        if abs(psnr - target) <= TOLERANCE / 2:
            break
        worst, best = (level, best) if psnr < target else (worst, level)
    return nearest


def _total(streams: Sequence[bytes]) -> int:
    return sum(map(len, streams))


def _one_core() -> None:
    """Pin the process to one core."""
    if hasattr(os, "sched_setaffinity"):  # Linux only
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of evaluation .npz cubes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--psnr", type=float, nargs="+", default=PSNRS, help="PSNRs in dB")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
