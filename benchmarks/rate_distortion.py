"""Rate and distortion of TEC and the classical codecs, measured in one run.

    python benchmarks/rate_distortion.py [--quick] [--data DIR] [--out DIR] [--only tec] [--jobs 2]

Writes ``rate_distortion.csv`` (every point), ``rate_distortion.json`` (points, summary,
machine, versions, commit, data hashes) and two plots, ``rate_distortion.png`` (every scene) and
``rate_distortion.svg`` (for the page); prints the tables. With ``--quick`` the files are called
``rate_distortion_quick.*``.

What is compared: the same pixels for everybody, all bytes of a stream counted, PSNR over all
bands and dates of a cube with both sides clipped to 0-10,000 DN and peak 10,000. ``tec`` codes
one date a chunk, (1, band, y, x), ``tec-4dates`` the whole cube as one chunk with the same model,
``tec-tt`` the same with the temporal model, where that is installed. The classical codecs may
use the whole cube: the rows "over time" predict over the dates and the KLT rows share one basis
over them. Settings: ``classical.py``. What a stream costs before it says anything is measured
too, on a constant cube (``overhead_bytes``). Times are processor seconds of both ways together,
and say no more than the order of size: codecs may run beside one another (``--jobs``, each in a
process of its own). A codec that fails is named, the others are written all the same, and the exit
code says so.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import math
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from classical import CODECS, Coded, Cube
from environment import DATA, ROOT, Scene, commit, environment, scenes
from landcover import COVERS, land_cover

from tec_zarr import metrics
from tec_zarr.errors import UnknownModelError

PSNRS = np.arange(36, 46.01, 0.5)
TABLE_PSNRS = (36, 38, 40, 42, 44, 46)
TEC_QUALITIES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
"""Closer where the curve bends; between them `metrics.bits_at` is a chord, above the curve."""
SUBSETS = (
    ("B08",),
    ("B02", "B03", "B04", "B08"),
    ("B02", "B03", "B04"),
    ("B02", "B03", "B04", "B08", "B11", "B12"),
)
SUBSET_CODECS = ("jpeg2000", "jpegxl", "klt-jpeg2000-joint", "tec")
KLT_CODECS = ("klt-jpeg2000", "klt-jpeg2000-joint", "klt-x265", "klt-x265-tuned", "klt-vvc")
OURS = ("tec", "tec-tt")
"""Whose bits are compared with everybody's; the second only where it is installed."""
TEMPORAL_MODEL = "tec-tt-s2"
BULKY = ("zfp", "lerc", "bitround-zstd", "quantize-zstd")
"""Far from the others: measured on the seasonal cubes only."""
SLOW = ("vvc-time", "klt-vvc", "avif", "tec-psnr")
"""Begun first, so that no core waits for one of them in the end."""
LEAST_COVER = 0.01
"""Share of a scene's pixels from which a land cover gets a PSNR of its own."""
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
    cpu_seconds: float = math.nan
    """Processor time of encoding and decoding together, child processes included."""
    ssim: float = math.nan
    """Mean over the bands; seasonal cubes with all their bands only, as the next two."""
    psnr_of_band: dict[str, float] = field(default_factory=dict)
    psnr_of_cover: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """A codec as this benchmark sees it."""

    name: str
    setting: str
    levels: tuple[float, ...]
    code: Callable[[Scene, float], Coded]
    over_time: bool = False


MEASURES: dict[str, Callable[[dict], float]] = {
    "psnr": lambda point: point["psnr"],
    # On scales on which curves are nearly straight, as dB are for the error.
    "ssim": lambda point: -10 * math.log10(max(1 - point["ssim"], 1e-12)),
    "sam": lambda point: -20 * math.log10(max(point["sam"], 1e-12)),
}
"""What equal quality may mean; more is better."""


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
        "summary": {},
    }
    chosen = contenders(options.quick)
    if options.only:
        unknown = set(options.only) - {codec.name for codec in chosen}
        if unknown:
            raise SystemExit(f"No codec called {', '.join(sorted(unknown))}.")
        results = _kept(target, results, options.only)
        chosen = [codec for codec in chosen if codec.name in options.only]
    failed = []
    order = {codec.name: number for number, codec in enumerate(contenders(options.quick))}
    for codec, outcome in _outcomes(chosen, rows, options):
        try:
            points, entry = outcome()
        except (ModuleNotFoundError, UnknownModelError) as missing:
            print(f"{codec.name}: left out, {missing}", file=sys.stderr)
            continue
        except Exception:
            failed.append(codec.name)
            traceback.print_exc()
            continue
        results["points"] += [asdict(point) for point in points]
        results["points"].sort(key=lambda point: order.get(point["codec"], len(order)))
        results["measured"][codec.name] = {**entry, "merged": bool(options.only)}
        results["measured"] = dict(
            sorted(results["measured"].items(), key=lambda pair: order.get(pair[0], len(order)))
        )
        print(f"{codec.name}: {len(points)} points, {entry['seconds']:.0f} s", flush=True)
        # After every codec, so that a run that is cut short keeps what it measured.
        results["summary"] = summary([Point(**point) for point in results["points"]])
        write(results, target)
    plot(results["points"], target.with_suffix(".png"))
    plot_seasonal(results["points"], target.with_suffix(".svg"))
    print_tables(results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _outcomes(
    chosen: Sequence[Contender], rows: Sequence[Scene], options: argparse.Namespace
) -> Iterator[tuple[Contender, Callable[[], tuple[list[Point], dict[str, object]]]]]:
    """Every codec with a call that has its points, or raises; with jobs in the order of the end."""
    if options.jobs == 1:
        for codec in chosen:
            yield codec, partial(measure_all, codec, rows)
        return
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        running = {
            pool.submit(_measure_named, codec.name, options.quick, options.data): codec
            for codec in sorted(chosen, key=lambda codec: codec.name not in SLOW)
        }
        for future in as_completed(running):
            yield running[future], future.result


def _measure_named(name: str, quick: bool, data: Path) -> tuple[list[Point], dict[str, object]]:
    """`measure_all` in a process that knows nothing but this."""
    (codec,) = (codec for codec in contenders(quick) if codec.name == name)
    return measure_all(codec, rows_to_measure(scenes(data), quick))


def measure_all(codec: Contender, rows: Sequence[Scene]) -> tuple[list[Point], dict[str, object]]:
    """All points of a codec, and what is said of it beside them."""
    start = time.perf_counter()
    identity = _tec_identity(codec.name) if codec.name.startswith("tec") else {}
    points = list(measure(codec, rows))
    overhead, _ = codec.code(_constant(rows[0]), codec.levels[len(codec.levels) // 2])
    return points, {
        "setting": codec.setting,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "overhead_bytes": overhead,
        **identity,
    }


def rows_to_measure(cubes: Sequence[Scene], quick: bool) -> list[Scene]:
    """Every cube; after them the band subsets of the seasonal ones. Quick: a corner of one."""
    seasonal = [cube for cube in cubes if cube.kind == "seasonal"]
    if quick:
        return [(seasonal or cubes)[0].corner()]
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
        Contender(
            codec.name, codec.setting, codec.levels[::step], _ignoring_bands(codec.code),
            codec.over_time,
        )
        for codec in CODECS
    ]  # fmt: skip
    tec = Contender("tec", 'TEC(model="tec-s2"), one date a chunk', TEC_QUALITIES[::step], code_tec)
    targeted = Contender(
        "tec-psnr",
        "TEC(psnr=...), one date a chunk, the quality found for each",
        (38.0, 42.0, 46.0)[::step],
        lambda scene, psnr: code_tec(scene, psnr, "psnr"),
    )
    whole = Contender(
        "tec-4dates",
        'TEC(model="tec-s2"), all dates one chunk',
        tec.levels[::2],
        lambda scene, quality: code_tec(scene, quality, dates=len(scene.dn)),
        over_time=True,
    )
    temporal = Contender(
        "tec-tt",
        f'TEC(model="{TEMPORAL_MODEL}"), all dates one chunk',
        tec.levels,
        lambda scene, quality: code_tec(scene, quality, model=TEMPORAL_MODEL, dates=len(scene.dn)),
        over_time=True,
    )
    return [*classical, tec, targeted, whole, temporal]


def code_tec(
    scene: Scene, level: float, argument: str = "quality", model: str = "tec-s2", dates: int = 1
) -> Coded:
    """Chunks of ``dates`` through the numcodecs codec; decoding knows nothing but the bytes."""
    from tec_zarr.codec.numcodecs_codec import TEC

    encoder, decoder = TEC(**{argument: level}, model=model, bands=scene.bands), TEC()
    size, decoded = 0, np.empty_like(scene.dn)
    for first in range(0, len(scene.dn), dates):
        chunk = scene.dn[first : first + dates]
        data = bytes(encoder.encode(chunk))
        size += len(data)
        decoded[first : first + dates] = decoder.decode(data)
    return size, decoded


def measure(codec: Contender, rows: Sequence[Scene]) -> Iterator[Point]:
    """All points of one codec on all rows that it has a place in."""
    for scene in rows:
        if "[" in scene.name and codec.name not in SUBSET_CODECS:
            continue
        if scene.kind != "seasonal" and (codec.over_time or codec.name in BULKY):
            continue
        for level in codec.levels:
            began = _cpu_seconds()
            size, decoded = codec.code(scene, level)
            spent = _cpu_seconds() - began
            yield Point(
                scene.name,
                scene.kind,
                codec.name,
                float(level),
                size,
                metrics.bpppb(size, scene.dn.shape),
                metrics.psnr(scene.dn, decoded),
                metrics.sam(scene.dn, decoded),
                round(spent, 3),
                **_details(scene, decoded),
            )


def _cpu_seconds() -> float:
    """Of this process and of the children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _details(scene: Scene, decoded: Cube) -> dict[str, object]:
    """SSIM, and PSNR by band and by land cover, of the seasonal cubes with all their bands."""
    if scene.kind != "seasonal" or "[" in scene.name:
        return {}
    by_band = metrics.psnr_per_band(scene.dn, decoded).tolist()
    by_cover = {}
    if {"B02", "B03", "B04", "B08"} <= set(scene.bands):
        cover = land_cover(scene.dn, scene.bands)
        for number, name in enumerate(COVERS):
            here = cover == number
            if here.mean() >= LEAST_COVER:
                by_cover[name] = metrics.psnr(scene.dn, decoded, here[:, None])
    return {
        "ssim": float(np.mean(metrics.ssim(scene.dn, decoded))),
        "psnr_of_band": dict(zip(scene.bands, by_band, strict=True)),
        "psnr_of_cover": by_cover,
    }


def _constant(scene: Scene) -> Scene:
    """A cube of the shape of ``scene`` that says nothing: what is coded of it is overhead."""
    return Scene("constant", scene.kind, scene.bands, np.full_like(scene.dn, 1000))


def summary(points: Sequence[Point]) -> dict[str, object]:
    """Bits at PSNRs, ratios of TEC to every other codec, per scene and over the seasonal cubes.

    ``ratio`` is the geometric mean of bits at equal PSNR over 36-46 dB in steps of 0.5 dB,
    where both curves reach; ``psnrs_compared`` says at how many of the 21 that was.
    ``bd_rate_ssim_percent`` and ``bd_rate_sam_percent`` are BD-rates at equal SSIM and SAM;
    ``by_band`` and ``by_cover`` ratios of all bits at equal PSNR in a band or land cover.
    """
    curves: dict[str, dict[str, list[dict]]] = {}
    for point in points:
        scene = curves.setdefault(point.scene, {})
        scene.setdefault(point.codec, []).append(asdict(point))
    seasonal = sorted(
        {point.scene for point in points if point.kind == "seasonal" and "[" not in point.scene}
    )
    scenes = {scene: _scene_summary(by_codec) for scene, by_codec in curves.items()}
    entries = [scenes[scene] for scene in seasonal]
    out: dict[str, object] = {"scenes": scenes, "seasonal": {}, "by_band": {}, "by_cover": {}}
    if entries and all("tec_against" in entry for entry in entries):
        out["seasonal"] = _over_scenes(entries)
        for part in ("band", "cover"):
            out[f"by_{part}"] = _by_part([curves[scene] for scene in seasonal], f"psnr_of_{part}")
    return out


def _curve(points: Sequence[dict], measure: Callable[[dict], float]) -> list[tuple[float, float]]:
    pairs = [(point["bpppb"], measure(point)) for point in points]
    return [pair for pair in pairs if math.isfinite(pair[1])]


def _scene_summary(by_codec: dict[str, list[dict]]) -> dict[str, object]:
    curves = {codec: _curve(points, MEASURES["psnr"]) for codec, points in by_codec.items()}
    bits = {codec: metrics.bits_at(curve, TABLE_PSNRS) for codec, curve in curves.items()}
    entry: dict[str, object] = {
        "bpppb_at_psnr": {
            codec: dict(zip(_PSNR_KEYS, values, strict=True)) for codec, values in bits.items()
        }
    }
    for ours in OURS:
        if ours not in by_codec or len(by_codec) == 1:
            continue
        others = [codec for codec in by_codec if codec != ours]
        entry[f"{ours}_against"] = {codec: _against(by_codec, ours, codec) for codec in others}
        klt = [bits[codec] for codec in KLT_CODECS if codec in bits]
        if klt:
            best = np.fmin.reduce(klt)
            entry[f"{ours}_to_better_klt"] = dict(zip(_PSNR_KEYS, bits[ours] / best, strict=True))
    return entry


def _against(by_codec: dict[str, list[dict]], ours: str, other: str) -> dict[str, float]:
    pairs = {
        name: (_curve(by_codec[ours], measure), _curve(by_codec[other], measure))
        for name, measure in MEASURES.items()
    }
    mine, theirs = pairs["psnr"]
    reached = np.isfinite(metrics.bits_at(mine, PSNRS) * metrics.bits_at(theirs, PSNRS))
    row = {"ratio": metrics.bits_ratio(mine, theirs, PSNRS), "psnrs_compared": int(reached.sum())}
    for name, (mine, theirs) in pairs.items():
        key = "bd_rate_percent" if name == "psnr" else f"bd_rate_{name}_percent"
        row[key] = metrics.bd_rate(mine, theirs) if mine and theirs else math.nan
    return row


def _over_scenes(entries: Sequence[dict]) -> dict[str, object]:
    """Geometric means over scenes of ratios; plain means of BD-rates."""
    out: dict[str, object] = {}
    for ours in OURS:
        if not all(f"{ours}_against" in entry for entry in entries):
            continue
        rows = [entry[f"{ours}_against"] for entry in entries]
        out[f"{ours}_against"] = {
            codec: {
                "ratio": _geometric_mean([row[codec]["ratio"] for row in rows]),
                "psnrs_compared": min(row[codec]["psnrs_compared"] for row in rows),
                **{
                    key: float(np.mean([row[codec][key] for row in rows]))
                    for key in rows[0][codec]
                    if key.startswith("bd_rate")
                },
            }
            for codec in rows[0]
            if all(codec in row for row in rows)
        }
        if all(f"{ours}_to_better_klt" in entry for entry in entries):
            out[f"{ours}_to_better_klt"] = {
                key: _geometric_mean([e[f"{ours}_to_better_klt"][key] for e in entries])
                for key in _PSNR_KEYS
            }
    return out


def _by_part(scenes: Sequence[dict[str, list[dict]]], part: str) -> dict[str, object]:
    """Bits of TEC to those of each codec at equal PSNR in one band or land cover."""
    names = dict.fromkeys(n for by_codec in scenes for p in by_codec["tec"] for n in p[part])
    out: dict[str, object] = {}
    for name in names:
        ratios: dict[str, list[float]] = {}
        for by_codec in scenes:
            if name not in by_codec["tec"][0][part]:
                continue
            curves = {
                codec: _curve(points, lambda point, name=name: point[part].get(name, math.nan))
                for codec, points in by_codec.items()
            }
            for codec, curve in curves.items():
                if codec != "tec" and curve:
                    # Bands differ in level: the range both curves reach, not 36 to 46 dB.
                    low, high = (
                        pick(edge(quality for _, quality in c) for c in (curves["tec"], curve))
                        for pick, edge in ((max, min), (min, max))
                    )
                    psnrs = np.linspace(low, high, 21) if low < high else []
                    ratio = metrics.bits_ratio(curves["tec"], curve, psnrs)
                    ratios.setdefault(codec, []).append(ratio)
        out[name] = {codec: _geometric_mean(values) for codec, values in ratios.items()}
    return out


def write(results: dict, target: Path) -> None:
    """Write JSON and CSV beside each other."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rounded = _rounded(results)
    lines = ",\n  ".join(json.dumps(point) for point in rounded["points"])
    text = json.dumps({**rounded, "points": []}, indent=1)
    target.write_text(text.replace('"points": []', f'"points": [\n  {lines}\n ]', 1) + "\n")
    with target.with_suffix(".csv").open("w", newline="") as file:
        plain = [name for name in Point.__dataclass_fields__ if not name.startswith("psnr_of")]
        writer = csv.DictWriter(file, fieldnames=plain, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rounded["points"])


README_CODECS = {
    "tec": ("TEC, one date a chunk", "black", "-"),
    "tec-tt": ("TEC, four dates a chunk", "black", "--"),
    "klt-vvc": ("KLT + VVC over time", "#7b3294", "-"),
    "klt-x265-tuned": ("KLT + x265 over time", "#c2a5cf", "-"),
    "klt-jpeg2000-joint": ("KLT + JPEG 2000", "#1b7837", "-"),
    "vvc-time": ("VVC over time, per band", "#2166ac", "-"),
    "av1-time": ("AV1 over time, per band", "#67a9cf", "-"),
    "jpegxl": ("JPEG XL, per band", "#e08214", "-"),
    "jpeg2000": ("JPEG 2000, per band", "#b35806", "-"),
    "sperr": ("SPERR", "#999999", "-"),
}
"""What the plot shows: label, colour, line."""


def plot_seasonal(points: Sequence[dict], path: Path) -> None:
    """The plot: the seasonal cubes beside each other, the codecs worth comparing."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    whole = [p for p in points if p["kind"] == "seasonal" and "[" not in p["scene"]]
    names = list(dict.fromkeys(p["scene"] for p in whole))
    if not names:
        return
    # Fixed ids and no date: the same points make the same file.
    with rc_context({"svg.hashsalt": "tec", "svg.fonttype": "path"}):
        figure = Figure(
            figsize=(4.4 * len(names) + 2, 4.2), layout="constrained", facecolor="white"
        )
        FigureCanvasSVG(figure)
        for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
            for codec, (label, colour, line) in README_CODECS.items():
                curve = sorted(
                    (p["bpppb"], p["psnr"])
                    for p in points
                    if (p["scene"], p["codec"]) == (name, codec)
                )
                if curve:
                    width = 2.6 if codec in OURS else 1.4
                    axes.plot(*zip(*curve, strict=True), line, color=colour, linewidth=width,
                              label=label)  # fmt: skip
            axes.set(xscale="log", ylim=(34, 48), xlim=(0.008, 1.2), title=f"place {name}")
            axes.set(xlabel="bits per pixel per band")
            axes.grid(True, which="both", alpha=0.25)
        first = figure.axes[0]
        first.set_ylabel("PSNR (dB, peak 10,000 DN)")
        figure.legend(*first.get_legend_handles_labels(), loc="outside right center", fontsize=9)
        figure.savefig(path, metadata={"Date": None})


def plot(points: Sequence[dict], path: Path) -> None:
    """One panel a scene, bits on a logarithmic axis; TEC black, the others coloured."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point["scene"] for point in points))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    colours = colormaps["tab20"].colors
    styles = {codec.name: colours[number % 20] for number, codec in enumerate(CODECS)}
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for codec in (*styles, *OURS):
            curve = sorted(
                (p["bpppb"], p["psnr"]) for p in points if (p["scene"], p["codec"]) == (name, codec)
            )
            if curve:
                axes.plot(
                    *zip(*curve, strict=True),
                    color=styles.get(codec, "black"),
                    linestyle="--" if codec.endswith(("-tuned", "-joint", "-tt")) else "-",
                    linewidth=2.4 if codec in OURS else 1.3,
                    marker="o" if codec == "tec" else None,
                    markersize=4,
                    label=codec,
                )
        axes.set(xscale="log", ylim=(34, 50), xlim=(0.004, 1.5), title=name)
        axes.set(xlabel="bits per pixel per band", ylabel="PSNR (dB, peak 10,000 DN)")
        axes.grid(True, which="both", alpha=0.25)
        axes.legend(fontsize=7, ncols=2)
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
        print("\nSeasonal cubes together: TEC's bits at equal PSNR, 36-46 dB, and BD-rates")
        for codec, row in seasonal["tec_against"].items():
            rates = [
                f"{label} {_number(row[f'bd_rate_{key}percent'], '7.1f')} %"
                for label, key in (("PSNR", ""), ("SSIM", "ssim_"), ("SAM", "sam_"))
            ]
            print(f"{codec:20}{_number(row['ratio'], '9.3f')}x   {'   '.join(rates)}")
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


def _tec_identity(codec: str) -> dict[str, str]:
    from tec_zarr.models.registry import find_model

    model = TEMPORAL_MODEL if codec == "tec-tt" else "tec-s2"
    return {"weights_sha256": find_model(model).weights[0]}


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
    kept = [point for point in before["points"] if point["codec"] not in only]
    before["points"] = [_with_nan(point) for point in kept]
    return before


def _with_nan(value):
    """What `_rounded` made null is not a number again."""
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    return math.nan if value is None else value


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
    parser.add_argument("--jobs", type=int, default=1, help="codecs measured beside one another")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CODEC",
        help="measure these again and merge with the last run of the same data, machine, versions",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
