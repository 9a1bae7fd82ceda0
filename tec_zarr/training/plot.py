"""Plot a run's log: the loss over steps, and the rate-distortion curves of its validations."""

from __future__ import annotations

import json
from pathlib import Path


def plot_log(log: Path, picture: Path) -> None:
    """Draw ``log.jsonl`` of a run to ``picture`` (PNG or SVG).  Needs matplotlib."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    curves = [(line["step"], line["validation"]) for line in lines if "validation" in line]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:blue")
    left.set(xlabel="step", ylabel="training loss (running mean)", title="Loss")
    left.grid(alpha=0.3)
    shades = colormaps["viridis"]
    for number, (step, curve) in enumerate(curves):
        bits, psnr = zip(*curve.values(), strict=True)
        newest = number == len(curves) - 1
        right.plot(
            bits,
            psnr,
            color=shades(number / max(len(curves) - 1, 1)),
            lw=2 if newest else 0.8,
            label=f"step {step}" if newest or number == 0 else None,
        )
    right.set(
        xlabel="bits per pixel per band (estimated)",
        ylabel="PSNR [dB], peak 10,000 DN",
        xscale="log",
        title="Places held out of training",
    )
    right.grid(alpha=0.3, which="both")
    right.legend()
    figure.savefig(picture, dpi=120)
