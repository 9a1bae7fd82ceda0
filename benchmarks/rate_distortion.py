"""Rate and distortion of TEC and the classical codecs, measured in one run.

    python benchmarks/rate_distortion.py [--quick] [--data DIR] [--out DIR] [--only tec]

Writes ``rate_distortion.csv`` (every point), ``rate_distortion.json`` (points, summary,
machine, versions, commit, data hashes) and ``rate_distortion.png``; prints the tables.
With ``--quick`` the files are called ``rate_distortion_quick.*``.

What is compared: the same pixels for everybody, all bytes of a stream counted, PSNR over all
bands and dates of a cube with both sides clipped to 0-10,000 DN and peak 10,000. TEC codes one
date a chunk, (1, band, y, x). The classical codecs may use the whole cube: the HEVC rows predict
over time and the KLT rows share one basis over the dates. Settings: ``classical.py``.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from classical import CODECS, Coded, Cube
from environment import DATA, ROOT, Scene, commit, environment, scenes

from tec_zarr import metrics
from tec_zarr.errors import UnknownModelError

PSNRS = np.arange(36, 46.01, 0.5)
TABLE_PSNRS = (36, 38, 40, 42, 44, 46)
TEC_QUALITIES = tuple(np.arange(1, 8.01, 0.5).tolist())
SUBSETS = (
    ("B02", "B03", "B04", "B08"),
    ("B02", "B03", "B04"),
    ("B02", "B03", "B04", "B08", "B11", "B12"),
)
SUBSET_CODECS = ("jpeg2000", "jpegxl", "klt-jpeg2000-joint", "tec")
KLT_CODECS = ("klt-jpeg2000", "klt-jpeg2000-joint", "klt-x265", "klt-x265-tuned")
BASELINES = ROOT.parent / "shared" / "baselines.json"


@dataclass(frozen=True)
class Point:
    """One measured point of one codec on one scene."""

    scene: str
    kind: str
    codec: str
    level: float
    bytes: int
    bpppb: float
    psnr: float
    sam: float


@dataclass(frozen=True)
class Contender:
    """A codec as this benchmark sees it."""

    name: str
    setting: str
    levels: tuple[float, ...]
    code: Callable[[Scene, float], Coded]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the files, print the tables."""
    options = _parse(arguments)
    stem = "rate_distortion_quick" if options.quick else "rate_distortion"
    target = options.out / f"{stem}.json"
    rows = rows_to_measure(scenes(options.data), options.quick)
    results = {
        "definition": "PSNR over all bands and dates, clipped to 0-10000 DN, peak 10000; "
        "bpppb = bits per pixel, band and date; all bytes counted; TEC one date a chunk",
        **environment(),
        "data": {row.name: row.sha256 for row in rows},
        "measured": {},
        "points": [],
        "summary": {"scenes": {}, "seasonal": {}},
    }
    chosen = contenders(options.quick)
    if options.only:
        unknown = set(options.only) - {codec.name for codec in chosen}
        if unknown:
            raise SystemExit(f"No codec called {', '.join(sorted(unknown))}.")
        results = _kept(target, results, options.only)
        chosen = [codec for codec in chosen if codec.name in options.only]
    for codec in chosen:
        start = time.perf_counter()
        try:
            identity = _tec_identity() if codec.name.startswith("tec") else {}
            points = list(measure(codec, rows))
        except (ModuleNotFoundError, UnknownModelError) as missing:
            print(f"{codec.name}: left out, {missing}", file=sys.stderr)
            continue
        results["points"] += [asdict(point) for point in points]
        results["measured"][codec.name] = {
            "setting": codec.setting,
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "merged": bool(options.only),
            **identity,
        }
        print(
            f"{codec.name}: {len(points)} points, {time.perf_counter() - start:.0f} s", flush=True
        )
        # After every codec, so that a run that is cut short keeps what it measured.
        results["summary"] = summary([Point(**point) for point in results["points"]])
        write(results, target)
    plot(results["points"], target.with_suffix(".png"))
    print_tables(results)


def rows_to_measure(cubes: Sequence[Scene], quick: bool) -> list[Scene]:
    """Every cube; after them the band subsets of the seasonal ones. Quick: the first cube."""
    seasonal = [cube for cube in cubes if cube.kind == "seasonal"]
    if quick:
        return [(seasonal or cubes)[0]]
    subsets = [
        cube.select(bands)
        for cube in seasonal
        for bands in SUBSETS
        if set(bands) <= set(cube.bands)
    ]
    return [*cubes, *subsets]


def contenders(quick: bool) -> list[Contender]:
    """The classical codecs and TEC; quick takes every third of their levels."""
    step = 3 if quick else 1
    classical = [
        Contender(codec.name, codec.setting, codec.levels[::step], _ignoring_bands(codec.code))
        for codec in CODECS
    ]
    tec = Contender(
        "tec", 'TEC(model="tec-s2"), one date a chunk', TEC_QUALITIES[:: 2 * step - 1], code_tec
    )
    targeted = Contender(
        "tec-psnr",
        "TEC(psnr=...), one date a chunk, the quality found for each",
        (38.0, 42.0, 46.0)[:: 2 * step - 1],
        lambda scene, psnr: code_tec(scene, psnr, "psnr"),
    )
    return [*classical, tec, targeted]


def code_tec(scene: Scene, level: float, argument: str = "quality") -> Coded:
    """One chunk a date through the numcodecs codec; decoding knows nothing but the bytes."""
    from tec_zarr.numcodec import TEC

    encoder, decoder = TEC(**{argument: level}, bands=scene.bands), TEC()
    size, decoded = 0, np.empty_like(scene.dn)
    for date in range(len(scene.dn)):
        data = bytes(encoder.encode(scene.dn[date : date + 1]))
        size += len(data)
        chunk = np.asarray(decoder.decode(data)).view(scene.dn.dtype)
        decoded[date] = chunk.reshape(scene.dn.shape[1:])
    return size, decoded


def measure(codec: Contender, rows: Sequence[Scene]) -> Iterator[Point]:
    """All points of one codec on all rows that it has a place in."""
    for scene in rows:
        if "[" in scene.name and codec.name not in SUBSET_CODECS:
            continue
        for level in codec.levels:
            size, decoded = codec.code(scene, level)
            yield Point(
                scene.name,
                scene.kind,
                codec.name,
                float(level),
                size,
                metrics.bpppb(size, scene.dn.shape),
                metrics.psnr(scene.dn, decoded),
                metrics.sam(scene.dn, decoded),
            )


def summary(points: Sequence[Point]) -> dict[str, object]:
    """Bits at PSNRs, ratios of TEC to every other codec, per scene and over the seasonal cubes.

    ``ratio`` is the geometric mean of bits at equal PSNR over 36-46 dB in steps of 0.5 dB,
    where both curves reach; ``psnrs_compared`` says at how many of the 21 that was.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in points:
        scene = curves.setdefault(point.scene, {})
        scene.setdefault(point.codec, []).append((point.bpppb, point.psnr))
    out: dict[str, object] = {"scenes": {}, "seasonal": {}}
    for scene, by_codec in curves.items():
        out["scenes"][scene] = _scene_summary(by_codec)
    seasonal = {
        point.scene for point in points if point.kind == "seasonal" and "[" not in point.scene
    }
    entries = [out["scenes"][scene] for scene in sorted(seasonal)]
    if entries and all("tec_against" in entry for entry in entries):
        out["seasonal"] = _over_scenes(entries)
    return out


def _scene_summary(by_codec: dict[str, list[tuple[float, float]]]) -> dict[str, object]:
    bits = {codec: metrics.bits_at(curve, TABLE_PSNRS) for codec, curve in by_codec.items()}
    entry: dict[str, object] = {
        "bpppb_at_psnr": {
            codec: dict(zip(_PSNR_KEYS, values, strict=True)) for codec, values in bits.items()
        }
    }
    if "tec" in by_codec and len(by_codec) > 1:
        tec = by_codec["tec"]
        entry["tec_against"] = {
            codec: {
                "ratio": metrics.bits_ratio(tec, curve, PSNRS),
                "psnrs_compared": int(
                    np.isfinite(metrics.bits_at(tec, PSNRS) * metrics.bits_at(curve, PSNRS)).sum()
                ),
                "bd_rate_percent": metrics.bd_rate(tec, curve),
            }
            for codec, curve in by_codec.items()
            if codec != "tec"
        }
        klt = [bits[codec] for codec in KLT_CODECS if codec in bits]
        if klt:
            best = np.fmin.reduce(klt)
            entry["tec_to_better_klt"] = dict(zip(_PSNR_KEYS, bits["tec"] / best, strict=True))
    return entry


def _over_scenes(entries: Sequence[dict]) -> dict[str, object]:
    """Geometric means over scenes of ratios; plain means of BD-rates."""
    codecs = entries[0]["tec_against"]
    out: dict[str, object] = {
        "tec_against": {
            codec: {
                "ratio": _geometric_mean([e["tec_against"][codec]["ratio"] for e in entries]),
                "bd_rate_percent": float(
                    np.mean([e["tec_against"][codec]["bd_rate_percent"] for e in entries])
                ),
            }
            for codec in codecs
        }
    }
    if "tec_to_better_klt" in entries[0]:
        out["tec_to_better_klt"] = {
            key: _geometric_mean([e["tec_to_better_klt"][key] for e in entries])
            for key in _PSNR_KEYS
        }
    return out


def write(results: dict, target: Path) -> None:
    """Write JSON and CSV beside each other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(_rounded(results), indent=1) + "\n")
    with target.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Point.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(_rounded(results["points"]))


def plot(points: Sequence[dict], path: Path) -> None:
    """One panel a scene, bits on a logarithmic axis; TEC black, the others coloured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point["scene"] for point in points))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    styles = {codec.name: f"C{number // 2}" for number, codec in enumerate(CODECS)}
    styles |= {"jpegxl": "C5", "jpeg2000": "C0"}
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for codec in (*styles, "tec"):
            curve = sorted(
                (p["bpppb"], p["psnr"]) for p in points if (p["scene"], p["codec"]) == (name, codec)
            )
            if curve:
                axes.plot(
                    *zip(*curve, strict=True),
                    color=styles.get(codec, "black"),
                    linestyle="--" if codec.endswith(("-tuned", "-joint")) else "-",
                    linewidth=2.4 if codec == "tec" else 1.3,
                    marker="o" if codec == "tec" else None,
                    markersize=4,
                    label="TEC" if codec == "tec" else codec,
                )
        axes.set(xscale="log", ylim=(34, 50), xlim=(0.004, 1.5), title=name)
        axes.set(xlabel="bits per pixel per band", ylabel="PSNR (dB, peak 10,000 DN)")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def print_tables(results: dict) -> None:
    """Bits at equal PSNR, then TEC against each codec, then the check against the baselines."""
    for scene, entry in results["summary"]["scenes"].items():
        print(f"\n{scene}: bpppb at PSNR")
        print(f"{'':20}" + "".join(f"{psnr:>9}" for psnr in TABLE_PSNRS) + "   TEC needs  BD-rate")
        against = entry.get("tec_against", {})
        for codec, bits in entry["bpppb_at_psnr"].items():
            line = f"{codec:20}" + "".join(f"{_number(bits[key], '9.4f'):>9}" for key in _PSNR_KEYS)
            if codec in against:
                row = against[codec]
                line += (
                    f"{_number(row['ratio'], '10.3f')}x{_number(row['bd_rate_percent'], '8.1f')}%"
                )
                line += f"  ({row['psnrs_compared']} of {len(PSNRS)} PSNRs)"
            print(line)
        if "tec_to_better_klt" in entry:
            ratios = "".join(
                f"{_number(entry['tec_to_better_klt'][key], '9.3f'):>9}" for key in _PSNR_KEYS
            )
            print(f"{'TEC to better KLT':20}{ratios}")
    seasonal = results["summary"]["seasonal"]
    if seasonal:
        print("\nSeasonal cubes together: TEC's bits at equal PSNR, 36-46 dB")
        for codec, row in seasonal["tec_against"].items():
            print(f"{codec:20}{row['ratio']:9.3f}x   BD-rate {row['bd_rate_percent']:7.1f} %")
        if "tec_to_better_klt" in seasonal:
            ratios = [
                f"{k} dB {_number(v, '.3f')}" for k, v in seasonal["tec_to_better_klt"].items()
            ]
            print("to the better KLT codec: " + ", ".join(ratios))
    for line in baseline_gaps(results["points"], BASELINES):
        print(line)


def baseline_gaps(points: Sequence[dict], baselines: Path) -> list[str]:
    """How far the classical curves are from the shared ones, one line a scene and codec."""
    if not baselines.exists():
        return []
    lines = []
    for scene, codecs in json.loads(baselines.read_text()).items():
        for codec, published in codecs.items():
            here = [
                (p["bpppb"], p["psnr"])
                for p in points
                if (p["scene"], p["codec"]) == (scene, codec)
            ]
            if here:
                ratio = metrics.bits_ratio(here, [tuple(p[1:]) for p in published], PSNRS)
                lines.append(f"{scene:12}{codec:20}{100 * (ratio - 1):+7.1f} %")
    return ["", "Bits against ../shared/baselines.json at equal PSNR:", *lines] if lines else []


_PSNR_KEYS = tuple(str(psnr) for psnr in TABLE_PSNRS)


def _ignoring_bands(code: Callable[[Cube, float], Coded]) -> Callable[[Scene, float], Coded]:
    return lambda scene, level: code(scene.dn, level)


def _tec_identity() -> dict[str, str]:
    from tec_zarr.models.registry import find_model

    return {"weights_sha256": find_model("tec-s2").weights[0]}


def _kept(target: Path, now: dict, only: Sequence[str]) -> dict:
    """An earlier results file without the codecs that are measured again."""
    if not target.exists():
        raise SystemExit(f"--only needs an earlier full run: there is no {target}.")
    before = json.loads(target.read_text())
    for part in ("definition", "machine", "versions", "data"):
        if before[part] != now[part]:
            raise SystemExit(
                f"--only can't merge into {target}: its {part} differs from this run's. "
                "Measure everything again (leave --only out)."
            )
    before["points"] = [point for point in before["points"] if point["codec"] not in only]
    return before


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _number(value: float | None, spec: str) -> str:
    width = spec.split(".")[0] or "1"
    return f"{'-':>{width}}" if value is None or not math.isfinite(value) else f"{value:{spec}}"


def _rounded(value):
    """Numbers at six digits, and null for what is not a number: JSON has no nan."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="one cube, few levels: minutes")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of evaluation .npz cubes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CODEC",
        help="measure these again and merge with the last run of the same data, machine, versions",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
