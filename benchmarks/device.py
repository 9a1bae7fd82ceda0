"""Encoding and decoding on a GPU in batches of 1 to 64 chunks, against one core of the CPU.

    python benchmarks/device.py [--models fp elic tt] [--batches 1 4 16 64] [--side 256]
        [--dates 1] [--out DIR]

Full-size FP, ELIC and TT with random weights (lambda-10 sizes), on synthetic chunks of 12 bands.
The embedded default model runs on the CPU wherever it is, and has its row there. For every batch:
raw MB (10**6 bytes of uint16) per second of the wall clock, and how many chunks have the same bytes
as in a batch of one, and as from the CPU. ``limits`` are what bounds any model here: copying
chunks to the device and back, and the range coder alone on one core.

Without a GPU it says so and writes nothing. Else it writes ``device.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environment import ROOT, commit, environment
from torch import nn

from tec_zarr.cubes import synthetic
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.registry import get_model
from tec_zarr.terracodec.codec import FamilyModel
from tec_zarr.terracodec.elic import ELIC
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.tt import TemporalTransformer

MODELS: dict[str, type[nn.Module]] = {
    "fp": FactorizedPrior, "elic": ELIC, "tt": TemporalTransformer,
}  # fmt: skip
QUALITY = 4.0
"""Symbols that the range coder is timed on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, if there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--dates", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"no GPU here (torch {torch.__version__}): nothing was measured or written")
        return
    torch.set_num_threads(1)
    cubes = chunks(max(options.batches), options.dates, options.side)
    rows = [row(get_model("tec-s2"), "cpu", 1, cubes[:1], None)]
    for name in options.models:
        torch.manual_seed(0)
        here = FamilyModel(MODELS[name](), name, "00" * 32)
        torch.manual_seed(0)
        there = FamilyModel(MODELS[name]().to("cuda"), name, "00" * 32)
        rows += compare(here, there, options.batches, cubes)
        print(json.dumps(rows[-1]), flush=True)
    results = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        **environment(),
        "device": torch.cuda.get_device_name(),
        "chunk": list(cubes[0].shape),
        "limits": copying(cubes[0]),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "device.json").write_text(json.dumps(results, indent=1) + "\n")


def chunks(count: int, dates: int, side: int) -> list[np.ndarray]:
    """Chunks of one shape, float32 DN, every pixel filled."""
    return [
        synthetic.cube(dates=dates, size=side, seed=i, nodata_edge=False).values.astype("float32")
        for i in range(count)
    ]


def compare(
    here: FamilyModel, there: FamilyModel, batches: Sequence[int], cubes: list[np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of the CPU, one chunk after the other, and of the device for every batch."""
    few = cubes[:2]
    own = [here.encode(cube, QUALITY, None) for cube in few]
    alone = [there.encode(cube, QUALITY, None) for cube in cubes]  # and warms the device up
    rows = [row(here, "cpu", 1, few, None)]
    for size in batches:
        found = row(there, there.device, size, cubes, alone)
        found["chunks_as_from_the_cpu"] = sum(
            a.sections == b.sections for a, b in zip(own, alone, strict=False)
        ) / len(own)
        rows.append(found)
    return rows


def row(
    model: Model, device: str, size: int, cubes: list[np.ndarray], alone: list[Encoded] | None
) -> dict[str, Any]:
    """Encode and decode all cubes in batches of ``size``."""
    shape = cubes[0].shape
    groups = [cubes[i : i + size] for i in range(0, len(cubes), size)]

    def encode(group: list[np.ndarray]) -> list[Encoded]:
        if alone is None:
            return [model.encode(cube, QUALITY, None) for cube in group]
        return model.encode_batch(group, QUALITY, None)

    def decode(group: list[list[bytes]]) -> list[Any]:
        if alone is None:
            return [model.decode(sections, shape, QUALITY, None) for sections in group]
        return model.decode_batch(group, shape, QUALITY, None)

    seconds, encoded = timed(lambda: [e for group in groups for e in encode(group)])
    streams = [e.sections for e in encoded]
    parts = [streams[i : i + size] for i in range(0, len(streams), size)]
    back, decoded = timed(lambda: [d for part in parts for d in decode(part)])
    wrong = sum(crc != e.latents_crc for (_, crc), e in zip(decoded, encoded, strict=True))
    if wrong:
        raise SystemExit(f"{model.name} on {device}: {wrong} chunks decode to other latents")
    megabytes = sum(cube.size for cube in cubes) * 2 / 1e6
    same = [e.sections == a.sections for e, a in zip(encoded, alone or encoded, strict=True)]
    return {
        "model": model.name,
        "device": device,
        "batch": size,
        "chunks": len(cubes),
        "encode_MB_per_s": round(megabytes / seconds, 3),
        "decode_MB_per_s": round(megabytes / back, 3),
        "chunks_as_in_a_batch_of_one": sum(same) / len(same),
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the wall clock and the result. Results are in host memory: nothing is pending."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def copying(cube: np.ndarray) -> dict[str, float]:
    """GB/s between host and device, of 64 such chunks as uint16."""
    host = torch.zeros(64 * cube.size, dtype=torch.int16).pin_memory()
    there = host.to("cuda")
    out = {}
    for name, source, target in (("to_device", host, there), ("from_device", there, host)):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / 10
        out[f"{name}_GB_per_s"] = round(host.nbytes / 1e9 / seconds, 2)
    return out


if __name__ == "__main__":
    main()
