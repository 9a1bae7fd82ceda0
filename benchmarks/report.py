"""Write docs/benchmarks.md from benchmarks/results: python benchmarks/report.py [--check].

Nothing in that page is typed; ``--check`` fails when it is not what the results say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
SEASONAL = ("0080717", "0181476")


def main() -> int:
    parts = [rate_distortion(), speed(), bounded()]
    text = "\n".join(["# Benchmarks", "", "Made by `python benchmarks/report.py`.", "", *parts])
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


def machine(results: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"Machine: {results['machine']['cpu']}, {results['machine']['cores']} cores; {versions}."


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rate_distortion() -> str:
    results = json.loads((RESULTS / "rate_distortion.json").read_text())
    against = results["summary"]["seasonal"]["tec_against"]
    rows = [
        [codec, f"{row['ratio']:.3f}", f"{row['bd_rate_percent']:+.1f} %"]
        for codec, row in against.items()
    ]
    better = results["summary"]["seasonal"]["tec_to_better_klt"]
    scenes = results["summary"]["scenes"]
    per_scene = [
        [name, *(f"{scenes[name]['tec_against'][c]['ratio']:.3f}" for c in ("jpeg2000", "jpegxl"))]
        for name in scenes
        if {"jpeg2000", "jpegxl"} <= set(scenes[name].get("tec_against", {}))
    ]
    settings = [[name, item["setting"]] for name, item in results["measured"].items()]
    return "\n".join(
        [
            "## Rate and distortion",
            "",
            f"{results['definition']}. {machine(results)}",
            "`python benchmarks/rate_distortion.py`, all points in `benchmarks/results/`.",
            "",
            "Bits that TEC needs for the same PSNR, geometric mean over 36-46 dB and the two",
            "seasonal cubes (4 dates, 12 bands, 256 x 256), and the Bjontegaard rate:",
            "",
            table(["against", "bits", "BD-rate"], rows),
            "Against the best of the four KLT codecs at each PSNR:",
            "",
            table([f"{k} dB" for k in better], [[f"{v:.3f}" for v in better.values()]]),
            "Every scene and band subset, ratio of bits:",
            "",
            table(["scene [bands]", "to JPEG 2000", "to JPEG XL"], per_scene),
            "![curves](../benchmarks/results/rate_distortion.png)",
            "",
            "Settings:",
            "",
            table(["codec", "setting"], settings),
        ]
    )


def speed() -> str:
    results = json.loads((RESULTS / "speed.json").read_text())
    rows = [
        [
            f"{row['target_psnr']:g}", row["codec"], f"{row['psnr']:.2f}", f"{row['bpppb']:.4f}",
            f"{row['encode_ms']:.0f}", f"{row['decode_ms']:.1f}",
        ]
        for row in results["rows"]
    ]  # fmt: skip
    return "\n".join(
        [
            "## Speed",
            "",
            f"One core, processor time of a (1, 12, 256, 256) chunk. {machine(results)}",
            "`python benchmarks/speed.py`.",
            "",
            table(["asked dB", "codec", "dB", "bpppb", "encode ms", "decode ms"], rows),
        ]
    )


def bounded() -> str:
    results = json.loads((RESULTS / "bounded.json").read_text())
    seasonal = [row for row in results["rows"] if str(row["scene"]) in SEASONAL]
    rows = []
    for bound in sorted({row["bound"] for row in seasonal}):
        codecs = sorted({row["codec"] for row in seasonal if row["bound"] == bound})
        mean = {
            codec: sum(v) / len(v)
            for codec in codecs
            if (v := [r["bpppb"] for r in seasonal if (r["codec"], r["bound"]) == (codec, bound)])
        }
        ours = mean.pop("tec-bound")
        best = min(mean, key=mean.get)
        other = mean[best]
        rows.append([f"{bound:g}", f"{ours:.3f}", f"{best} {other:.3f}", f"{ours / other:.3f}"])
    return "\n".join(
        [
            "## Guaranteed error bounds",
            "",
            "Bits per pixel per band on the seasonal cubes, `max_error` in DN, against the best of",
            f"the other bounded codecs. {machine(results)} `python benchmarks/bounded.py`.",
            "",
            table(["bound", "TEC", "best other", "ratio"], rows),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
