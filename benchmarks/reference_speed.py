"""The TerraCodec family here and in the reference, with the same random weights, side by side.

    python benchmarks/reference_speed.py --reference-python REFENV/bin/python
        [--models fp elic tt] [--dates 4] [--size 256] [--out DIR]

REFENV is what ``../shared/tools/reference-env`` makes. Each side runs in processes of its own,
one after the other, on the cores this process may use; the image models three times in turns, of
which the least times count. Reported are the wall clock, the CPU time (which a busy machine does
not change much) and the peak memory of compressing and of decompressing, and for TEC-TT here the
multiply-adds, the int8 matrix multiplication rate of this machine and the time that follows from
them and from three int8 products for each: the floor. Converting a checkpoint, which happens
once, is a process of its own and not measured. Writes ``reference_speed.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = {
    "fp": "terracodec_v1_fp_s2l2a",
    "elic": "terracodec_v1_elic_s2l2a",
    "tt": "terracodec_v1_tt_s2l2a",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference-python", required=True)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--dates", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.models[0], options)))
        return

    from environment import commit, environment

    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def measure(model, side):
            python = options.reference_python if side == "reference" else sys.executable
            command = [python, "-W", "ignore", __file__, "--side", side, "--folder", folder]
            command += ["--reference-python", python, "--models", model]
            command += ["--dates", str(options.dates), "--size", str(options.size)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            return json.loads(out.stdout.split("\n")[-2])

        for model in options.models:
            found = {"reference": [measure(model, "reference")]}
            measure(model, "convert")
            found["here"] = [measure(model, "here")]
            for _ in range(0 if model == "tt" else 2):  # the machine's speed drifts
                for side, each in found.items():
                    each.append(measure(model, side))
            for side, each in found.items():
                rows.append({"model": model, "side": side, **least(each)})
                print(rows[-1], flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "environment": environment(),
        "commit": commit(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average_at_the_end": os.getloadavg(),
        "dates": options.dates,
        "size": options.size,
        "rows": rows,
    }
    (options.out / "reference_speed.json").write_text(json.dumps(report, indent=1) + "\n")


def least(found):
    """Least times of several processes, and the most memory of any."""
    best = dict(found[0])
    for key in best:
        values = [row[key] for row in found]
        best[key] = max(values) if key == "peak_mb" else min(values)
    return best


def timed(call):
    """Result of a call, its wall clock and its CPU time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def report_of(compress, decompress, repeats=1, **more):
    """Least times of some repeats: on a busy machine the CPU time varies too, upwards."""
    compressed = [timed(compress) for _ in range(repeats)]
    coded = compressed[0][0]
    decompressed = [timed(lambda: decompress(coded)) for _ in range(repeats)]
    return {
        "compress_s": round(min(wall for _, wall, _ in compressed), 3),
        "compress_cpu_s": round(min(cpu for *_, cpu in compressed), 3),
        "decompress_s": round(min(wall for _, wall, _ in decompressed), 3),
        "decompress_cpu_s": round(min(cpu for *_, cpu in decompressed), 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **more,
    }


def series(options):
    import torch

    generator = torch.Generator().manual_seed(3)
    cells = (options.dates, 12, options.size // 16, options.size // 16)
    coarse = torch.randn(*cells, generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic")


def run_reference(kind, options):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    x = series(options)
    if kind == "tt":
        from terracodec.temporaltransformer import TemporalTransformer

        torch.nn.init.trunc_normal_ = lambda t, std=1.0, **_: t.data.normal_(std=std)
        model = TemporalTransformer(image_size=options.size).eval()
        torch.save(model.state_dict(), options.folder / "tt.pt")
        model.setup_model_for_compression()
        return report_of(lambda: model.compress(x[None]), model.decompress)
    from terracodec.imagecodecs import ELIC, FactorizedPrior

    cls = {"fp": FactorizedPrior, "elic": ELIC}[kind]
    model = cls(in_channels=12, N=128, M=192, image_size=options.size).eval()
    model.update(force=True)
    torch.save(model.state_dict(), options.folder / f"{kind}.pt")

    @torch.inference_mode()
    def compress():
        return [model.compress(image[None]) for image in x]

    @torch.inference_mode()
    def decompress(coded):
        return [model.decompress(c["strings"], c["shape"]) for c in coded]

    return report_of(compress, decompress, repeats=5)


def convert(kind, options):
    from tec_zarr.terracodec import hub

    os.environ["TEC_ZARR_CACHE"] = str(options.folder)
    hub.load(NAMES[kind], path=options.folder / f"{kind}.pt")


def run_here(kind, options):
    import torch

    from tec_zarr.terracodec import hub, statistics

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    os.environ["TEC_ZARR_CACHE"] = str(options.folder)
    (weights,) = options.folder.glob(f"{NAMES[kind]}--*.safetensors")
    codec = hub.load_codec(NAMES[kind], path=weights)
    cube = statistics.destandardise(series(options), range(12))

    def decompress(coded):
        return codec.decode(coded.sections, cube.shape, 4.0, None)

    repeats = 1 if kind == "tt" else 5
    row = report_of(lambda: codec.encode(cube, 4.0, None), decompress, repeats)
    return row | floor(options) if kind == "tt" else row


def floor(options):
    """Seconds for the multiply-adds of the entropy network at the measured int8 rate."""
    import torch

    windows = (options.size // 64) ** 2
    square = 768**2  # a block does 24 d^2 a token: two attentions of 4, two MLPs of 8
    each = {
        "sep": 6 * 24 * 64 * square,
        "joint": 4 * 24 * 128 * square,
        "decoder": 5 * (22 * 16 + 2 * 128) * square,  # keys and values of 128 context tokens
    }
    once = each["sep"] + each["joint"]  # the first date's context: one window
    later = windows * (options.dates - 1) * (each["sep"] + each["joint"])
    total = once + later + windows * options.dates * each["decoder"]
    rows, columns = (torch.ones(size, dtype=torch.int8) for size in ((1024, 768), (768, 3072)))
    out = torch._int_mm(rows, columns)
    _, _, cpu = timed(lambda: [torch._int_mm(rows, columns, out=out) for _ in range(20)])
    rate = 20 * 1024 * 768 * 3072 / cpu
    return {
        "gmac": round(total / 1e9, 1),
        "int8_gmac_per_cpu_s": round(rate / 1e9, 1),
        "floor_cpu_s": round(3 * total / rate, 1),
    }


SIDES = {"reference": run_reference, "convert": convert, "here": run_here}

if __name__ == "__main__":
    main()
