"""Cloud inpainting: what is hidden, against what it was, on real dates and on AllClear.

    pip install 'tec_zarr[benchmarks]'
    python benchmarks/inpainting.py [--data DIR] [--out DIR]
    python benchmarks/inpainting.py --cost
    python benchmarks/inpainting.py --page
    python benchmarks/inpainting.py --allclear LISTING.json [--root DIR]

The first hides dates of the evaluation cubes and of dense series (`gap_cases`) and compares what
the methods of the package and those that people use (`gap_rivals`) put there with what was there:
PSNR, SSIM, mean absolute error and spectral angle of the hidden pixels (:mod:`tec_zarr.metrics`),
the mean absolute error of NDVI, and the share of truths in the 90 % intervals. A method that has
nothing for a date (`previous` for the first) has no row of it; pixels that one of the others has
nothing for are left out for all.

``--cost`` measures time and memory on a cube of 20 dates, 12 bands and 512 x 512 pixels.
``--allclear`` takes a listing of AllClear or a selection of it (`allclear`).
``--page`` writes ``docs/inpainting.md`` from ``inpainting.txt`` and the results; the others do
it too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from allclear import allclear
from environment import DATA, ROOT, commit, environment
from gap_cases import CLOUDY, HELD_OUT, Case, clouds, dense, seasonal
from gap_rivals import RIVALS

from tec_zarr import metrics
from tec_zarr.cubes import synthetic
from tec_zarr.inpaint.clouds import METHODS, NothingClearWarning, inpaint_clouds

DEFAULT = METHODS[0]
RESULTS = Path(__file__).parent / "results"
TEMPLATE, PAGE = Path(__file__).with_suffix(".txt"), ROOT / "docs" / "inpainting.md"
NEAR_DB, NEAR_DEGREES = 0.2, 0.2
"""How far the default may be behind the best other method of a row."""


@dataclass(frozen=True)
class Row:
    """Scores of one method on one date. Errors in DN, SAM in degrees.

    ``scored`` is the share of hidden samples that is scored, ``inside`` that of truths in
    intervals, ``seconds`` CPU time.
    """

    part: str
    row: str
    series: str
    case: int
    date: int
    method: str
    scored: float
    psnr: float
    ssim: float
    mae: float
    sam: float
    ndvi: float
    inside: float
    half_width: float
    seconds: float


def measure(case: Case, number: int, methods: Sequence[str]) -> Iterator[Row]:
    """Rows of all methods that have something for the date of a case."""
    truth = case.cube.values[case.date].astype(float)
    where = hidden = np.broadcast_to(case.scored, truth.shape)
    if not hidden.any():
        return
    found: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
    for method in methods:
        start = time.process_time()
        guess, width = estimate(case, method)
        seconds = time.process_time() - start
        there = np.isfinite(guess)
        if there[hidden].mean() > 0.5:
            found[method] = np.where(there, guess, 0), width, seconds
            where = where & there
    red, infrared = (case.bands.index(b) if b in case.bands else None for b in ("B04", "B08"))
    for method, (guess, width, seconds) in found.items():
        error = np.abs(truth - guess)
        known = where & np.isfinite(width)
        ndvi = np.nan
        if red is not None and infrared is not None:
            ndvi = float(np.abs(_ndvi(truth, red, infrared) - _ndvi(guess, red, infrared))[
                where.all(0)].mean())  # fmt: skip
        yield Row(
            case.part, case.row, case.series, number, case.date, method,
            scored=float(where.sum() / hidden.sum()),
            psnr=metrics.psnr(truth, guess, where), ssim=_ssim(truth, guess, where),
            mae=float(error[where].mean()), sam=metrics.sam(truth, guess, where), ndvi=ndvi,
            inside=float((error <= width)[known].mean()) if known.any() else np.nan,
            half_width=float(width[known].mean()) if known.any() else np.nan, seconds=seconds,
        )  # fmt: skip


def estimate(case: Case, method: str) -> tuple[np.ndarray, np.ndarray]:
    """The date (C, H, W) in DN and half widths of its intervals; NaN where there is nothing."""
    if method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingClearWarning)
            out = inpaint_clouds(case.cube, case.mask, method=method, return_uncertainty=True)
        guess, width = (da.values[case.date].astype(float) for da in out)
        return np.where(guess == 0, np.nan, guess), width
    dated = "time" in case.cube.coords
    guess = RIVALS[method](*case.seen(), case.date, dated).astype(float)
    return guess, np.full(guess.shape, np.nan)


def _ndvi(spectra: np.ndarray, red: int, infrared: int) -> np.ndarray:
    positive = np.maximum(spectra, 1)  # smoothers go below zero
    return (positive[infrared] - positive[red]) / (positive[infrared] + positive[red])


def _ssim(truth: np.ndarray, guess: np.ndarray, where: np.ndarray) -> float:
    bands = metrics.ssim(truth, guess, where)
    return float(np.nanmean(bands)) if np.isfinite(bands).any() else np.nan


def peaks(case: Case, methods: Sequence[str]) -> dict[str, float]:
    """Most memory (MiB) that NumPy and Python held at once in a case, by method."""
    found = {}
    for method in methods:
        tracemalloc.start()
        estimate(case, method)
        found[method] = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    return found


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over series and dates; of the default, also by how much it is ahead of each other
    method (dB, degrees) on the dates that both have.
    """
    table = []
    for key in dict.fromkeys((r.part, r.row, r.method) for r in rows):
        mine = [r for r in rows if (r.part, r.row, r.method) == key]
        line: dict[str, Any] = {**dict(zip(("part", "row", "method"), key, strict=True)),
                                "dates": len(mine)}  # fmt: skip
        for name in ("psnr", "ssim", "mae", "sam", "ndvi", "inside", "half_width", "seconds"):
            line[name] = _mean(getattr(r, name) for r in mine)
        inside = np.array([r.inside for r in mine if np.isfinite(r.inside)])
        if len(inside):
            line["inside_least"] = round(float(inside.min()), 4)
            line["over_70"] = round(float((inside >= 0.7).mean()), 4)
        if key[2] == DEFAULT:
            others = dict.fromkeys(r.method for r in rows if r.method != DEFAULT)
            ahead = {m: _ahead(rows, mine, m) for m in others}
            line["ahead"] = {m: one for m, one in ahead.items() if one["dates"]}
        table.append(line)
    return table


def _ahead(rows: Sequence[Row], mine: Sequence[Row], other: str) -> dict[str, float]:
    theirs = {r.case: r for r in rows if r.method == other}
    pairs = [(r, theirs[r.case]) for r in mine if r.case in theirs]
    return {
        "psnr": _mean(a.psnr - b.psnr for a, b in pairs),
        "sam": _mean(b.sam - a.sam for a, b in pairs),
        "dates": len(pairs),
    }


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if np.isfinite(v)]
    return round(float(np.mean(known)), 4) if known else float("nan")


def cost() -> dict[str, object]:
    """Wall time and memory of a cube of 20 x 12 x 512 x 512 under a third of clouds."""
    dates = [synthetic.cube(4, 512, seed=s, clouds=False, nodata_edge=False) for s in (1,)]
    dn = np.concatenate([dates[0].values] * 5)
    noise = np.random.default_rng(1).normal(1, 0.03, (20, 12, 1, 1))
    dn = np.clip(dn * noise, 1, 20_000).astype(np.uint16)
    rng = np.random.default_rng(2)
    cover = np.stack([clouds(512, 512, share, rng) for share in np.linspace(0, 0.7, 20)])
    cube = xr.DataArray(dn, dims=("time", "band", "y", "x"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    out: dict[str, object] = {"shape": dn.shape, "cube_mib": dn.nbytes / 2**20,
                              "rss_before_mib": _resident("VmRSS")}  # fmt: skip
    start, busy = time.perf_counter(), time.process_time()
    inpaint_clouds(cube, xr.DataArray(cover, dims=("time", "y", "x")), progress=True)
    out |= {
        "masked": float(cover.mean()),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "peak_rss_mib": _resident("VmHWM"),
    }
    return out


def _resident(name: str) -> float:
    """Of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


# ---- page


def page() -> str:
    """``docs/inpainting.md``: the fixed text of ``inpainting.txt`` with the numbers filled in."""
    results = json.loads((RESULTS / "inpainting.json").read_text())
    spent = json.loads((RESULTS / "inpainting_cost.json").read_text())
    lines = results["summary"]
    of = {(line["part"], line["row"], line["method"]): line for line in lines}
    cases = list(dict.fromkeys((line["part"], line["row"]) for line in lines))
    methods = [m for m in (*METHODS, *RIVALS) if any(line["method"] == m for line in lines)]
    ours = {case: of[(*case, DEFAULT)] for case in cases}

    def table(cell: Callable[[dict[str, Any]], str], names: Sequence[str] = methods) -> str:
        return _table(
            ("series", "hidden", *names),
            [(*case, *(cell(of[(*case, m)]) if (*case, m) in of else "-" for m in names))
             for case in cases],
        )  # fmt: skip

    one_date = "gap of 1 date"
    fields = {
        "scores": table(lambda line: f"{line['psnr']:.1f} / {line['sam']:.1f}"),
        "looks": table(lambda line: f"{line['ssim']:.2f} / {line['ndvi']:.3f}"),
        "ahead": _table(
            ("series", "hidden", "dB", "degrees"),
            [(*case, *(_least(line, k) for k in ("psnr", "sam"))) for case, line in ours.items()],
        ),
        "behind": _behind(ours),
        "inside": _table(
            ("series", "hidden", *METHODS, "least of single dates", "dates with 70% or more"),
            [(*case, *(f"{of[(*case, m)]['inside']:.0%}" if (*case, m) in of else "-"
                       for m in METHODS),
              "{inside_least:.0%} | {over_70:.0%}".format(**line)) for case, line in ours.items()],
        ),
        "over_70": f"{_over_70(results['rows']):.0%}",
        "costs": _table(
            ("method", "s, seasonal date", "s, date of a dense series", "MiB, seasonal date"),
            [(m, *(_seconds(of.get((*case, m))) for case in
                   (("seasonal", "30% hidden"), ("all dates", one_date))),
              f"{results['peak_mib'][m]:.0f}") for m in methods],
        ),
        "held_out": str(len({r["series"] for r in results["rows"] if r["part"] != "seasonal"})),
        "dates": str(len({r["case"] for r in results["rows"]})),
        "cloudy": f"{CLOUDY:.0%}",
        "seconds": f"{spent['seconds']:.0f}", "cpu": f"{spent['cpu_seconds']:.0f}",
        "masked": f"{spent['masked']:.0%}", "load": f"{spent['load_average'][0]:.1f}",
        "peak": f"{spent['peak_rss_mib'] / 1024:.2f}",
        "before": f"{spent['rss_before_mib'] / 1024:.2f}",
        "cube": f"{spent['cube_mib'] / 1024:.2f}",
        "machine": f"{results['machine']['cpu']}, {results['machine']['cores']} cores; "
        + ", ".join(f"{k} {results['versions'][k]}" for k in ("python", "numpy"))
        + f"; {results['date'][:10]}",
    }  # fmt: skip
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    return text


def _seconds(line: dict[str, Any] | None) -> str:
    return "-" if line is None else f"{line['seconds']:.2f}"


def _over_70(rows: Sequence[dict[str, Any]]) -> float:
    inside = np.array([r["inside"] for r in rows if r["method"] == DEFAULT])
    return float((inside[np.isfinite(inside)] >= 0.7).mean())


def _least(line: dict[str, Any], score: str) -> str:
    """What the default is ahead of the best other method, and which that is."""
    ahead = {m: one[score] for m, one in line["ahead"].items()}
    best = min(ahead, key=lambda m: ahead[m])
    return f"{ahead[best]:+.2f} ({best})"


def _behind(lines: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Where another method is ahead of the default by more than what counts as equal."""
    found = [
        f"`{m}` by {-ahead[score]:.2f} {unit} ({', '.join(case)})"
        for case, line in lines.items()
        for m, ahead in line["ahead"].items()
        for score, unit, near in (("psnr", "dB", NEAR_DB), ("sam", "degrees", NEAR_DEGREES))
        if ahead[score] < -near
    ]
    return "; ".join(found) if found else "nowhere"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# ---- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the file, print the table."""
    options = _parse(arguments)
    if options.page:
        PAGE.write_text(page(), encoding="utf-8")
        return
    results: dict[str, object] = {
        **environment(), "load_average": os.getloadavg(), "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    if options.allclear:
        name = "inpainting_allclear.json"
        methods = [m for m in options.methods if m in METHODS]
        results["scores"] = allclear(options.allclear, options.root, methods)
        print(json.dumps(results["scores"], indent=1))
    elif options.cost:
        name = "inpainting_cost.json"
        results |= cost()
        print({k: results[k] for k in ("seconds", "cpu_seconds", "peak_rss_mib")})
    else:
        name = "inpainting.json"
        cases = [*seasonal(options.data), *dense(options.data.parent / "train", HELD_OUT)]
        first = next(case for case in cases if case.row == "30% hidden")
        peak = peaks(first, options.methods)  # first of all: what is compiled is compiled here
        rows = []
        for number, case in enumerate(cases[:: options.every]):
            for row in measure(case, number, options.methods):
                print(json.dumps(asdict(row)), flush=True)
                rows.append(row)
        table = summary(rows)
        results |= {
            "definition": "hidden pixels only; means over series and dates; seconds are CPU time",
            "series": sorted({case.series for case in cases}),
            "peak_mib": peak,
            "summary": table, "rows": [asdict(r) for r in rows],
        }  # fmt: skip
        for line in table:
            print("  ".join(f"{v!s:>12}" for v in line.values() if not isinstance(v, dict)))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / name).write_text(json.dumps(results, indent=1) + "\n")
    if options.out == RESULTS:
        PAGE.write_text(page(), encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = (*METHODS, *RIVALS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", choices=every, default=list(every))
    parser.add_argument("--every", type=int, default=1, help="measure each n-th case only")
    parser.add_argument("--cost", action="store_true", help="time and memory instead")
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    parser.add_argument("--allclear", type=Path, help="AllClear's listing, or a selection (JSON)")
    parser.add_argument("--root", type=Path, help="where AllClear's roi folders lie")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
