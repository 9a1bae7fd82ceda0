"""Whether TEC-TT's predictions are the same bits under every arithmetic setting.

    python benchmarks/family_margin.py [--windows 1700] [--width 96] [--checkpoint TT.safetensors]

Computes the means and scales that a TEC-TT entropy network (random weights with a wide spread, or
a checkpoint) predicts, in one process per setting, and compares them with the first; and, once,
with those of the same weights in plain float32. With the
defaults 10 million predictions of a narrow network; a full-size network needs a checkpoint and
fewer windows. Writes ``family_margin.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SETTINGS = {
    "default, 1 thread": {"OMP_NUM_THREADS": "1"},
    "default, 2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "no SIMD, MKL compatible": {
        "OMP_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
    "windows in batches of 7": {"OMP_NUM_THREADS": "1", "TEC_MARGIN_BATCH": "7"},
    "for comparison: float32 networks": {"OMP_NUM_THREADS": "2", "TEC_MARGIN_FLOAT32": "1"},
}


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Save weights and inputs once: random numbers themselves depend on the setting."""
    import torch

    from tec_zarr.terracodec import hub
    from tec_zarr.terracodec.tt import EntropyTransformer

    torch.manual_seed(0)
    if options.checkpoint:
        model = hub.load("terracodec_v1_tt_s2l2a", path=options.checkpoint).entropy_model
        shape = None
    else:
        shape = 192, options.width, 16, (6, 4, 5)
        model = EntropyTransformer(*shape)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "layers" in name and value.ndim == 2:
                    value *= 4
            model.mean_head[4].weight *= 30
            model.scale_head[4].weight *= 30
    context = (torch.randn(options.windows, 2, 64, 192) * 8).round()
    tokens = (torch.randn(options.windows, 16, 192) * 8).round()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save((shape, state, context, tokens), folder / "inputs.pt")


def predictions(folder: Path, whole: bool) -> np.ndarray:
    """Continuous table indexes of all symbols of the windows: means in 1/100, scale levels."""
    import torch

    from tec_zarr.terracodec.blocks import scale_grid_position, scale_of
    from tec_zarr.terracodec.exact import exact
    from tec_zarr.terracodec.tt import EntropyTransformer

    shape, state, context, tokens = torch.load(folder / "inputs.pt", weights_only=True)
    model = EntropyTransformer(*(shape or ())).eval()
    model.load_state_dict(state)
    if whole:
        model = exact(model)
    out = []
    batch = int(os.environ.get("TEC_MARGIN_BATCH", "64"))
    with torch.inference_mode():
        for part, own in zip(context.split(batch), tokens.split(batch), strict=True):
            joint = model.join_dates([model.encode_date(part[:, i]) for i in range(2)])
            means, raw, _ = (answer.double() for answer in model.predict(own, joint))
            levels = scale_grid_position(scale_of(raw))
            out.append(torch.stack([100 * means, levels], dim=-1))
    return torch.cat(out).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1700)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        whole = "TEC_MARGIN_FLOAT32" not in os.environ
        np.save(options.worker / "predictions.npy", predictions(options.worker, whole))
        return

    from environment import commit, environment

    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        for name, settings in SETTINGS.items():
            command = [sys.executable, __file__, "--worker", folder]
            subprocess.run(command, check=True, env={**os.environ, **settings})
            found = np.load(Path(folder, "predictions.npy"))
            first = found if first is None else first
            rows.append(
                {
                    "setting": name,
                    "predictions_that_differ": int((found != first).sum()),
                    "largest_deviation": float(np.abs(found - first).max()),
                    "root_mean_square_deviation": float(np.sqrt(np.square(found - first).mean())),
                }
            )
            print(rows[-1], flush=True)
    assert first is not None
    report = {
        "environment": environment(),
        "commit": commit(),
        "predictions": int(first.size),
        "network": str(options.checkpoint or f"random, width {options.width}"),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "family_margin.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
