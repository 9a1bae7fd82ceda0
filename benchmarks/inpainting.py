"""Cloud inpainting: what is hidden, against what it was, on real dates and on AllClear.

    python benchmarks/inpainting.py [--data DIR] [--out DIR]
    python benchmarks/inpainting.py --cost
    python benchmarks/inpainting.py --page
    python benchmarks/inpainting.py --allclear test_tx3_s2-s1_100pct_1proi.json [--root DIR]

The first lays clouds over each date of the evaluation series in turn and compares what the
methods put under them with what was there: PSNR, SSIM, mean absolute error and spectral angle of
the masked pixels (:mod:`tec_zarr.metrics`), and the share of truths in the 90 % intervals. A
method that has nothing for a date (`previous` for the first) has no row of it; pixels that one
of the others has nothing for are left out for all. The cubes come without scene classes, so that
cloud shapes are drawn: a Gaussian field whose spectrum falls as k^(-5/3), as that of cloud fields
does (Cahalan and Joseph 1989; sizes then follow the power law of Wood and Field 2011), above the
level that gives the share. Other dates are clear, and once more with clouds of their own.

``--cost`` measures time and memory on a cube of 20 dates, 12 bands and 512 x 512 pixels.
``--page`` writes ``docs/inpainting.md`` from ``inpainting.txt`` and the results; the others do
it too.

AllClear (arXiv 2410.23891): its JSON lists samples of three images and a clear target; images are
centre-cropped, clipped to 0-10,000 and divided by that; scores are taken where the target is
clear. Its own "SAM" is the angle between columns of pixels, not between spectra: both are given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from environment import DATA, ROOT, commit, environment, scenes

from tec_zarr import metrics
from tec_zarr.cubes import synthetic
from tec_zarr.inpaint.clouds import METHODS, NothingClearWarning, inpaint_clouds

SHARES = (0.1, 0.3, 0.5, 0.7, 1.0)
SHAPES = 1
"""Cloud fields laid over every date."""
CLOUDY, CLOUDY_SHARES = 0.3, (0.3, 1.0)
"""Share of the other dates that is hidden in the second part, and shares that it is done for."""
BASELINES = ("linear", "previous", "median")
RESULTS = Path(__file__).parent / "results"
TEMPLATE, PAGE = Path(__file__).with_suffix(".txt"), ROOT / "docs" / "inpainting.md"


def clouds(height: int, width: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Cloud mask (height, width) that covers ``share`` of the image."""
    noise = np.fft.rfft2(rng.standard_normal((height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    k = np.hypot(y, x)
    k[0, 0] = np.inf
    field = np.fft.irfft2(noise * k ** (-(5 / 3 + 1) / 2), s=(height, width))
    return (
        field >= np.quantile(field, 1 - share)
        if 0 < share < 1
        else np.full_like(field, share, bool)
    )


@dataclass(frozen=True)
class Row:
    """Scores of one method on one date under one cloud field. Errors in DN, SAM in degrees.

    ``cloudy`` is the share of other dates that is hidden, ``shape`` the number of the cloud field,
    ``scored`` the share of masked samples that is scored, ``inside`` that of truths in intervals.
    """

    scene: str
    cloudy: float
    share: float
    date: int
    shape: int
    method: str
    scored: float
    psnr: float
    ssim: float
    mae: float
    sam: float
    inside: float
    half_width: float
    seconds: float


def measure(dn: np.ndarray, scene: str, methods: Sequence[str], shares: Sequence[float],
            shapes: int = SHAPES, cloudy: float = 0.0, dates: Sequence[int] | None = None,
            ) -> Iterator[Row]:  # fmt: skip
    """Rows of all methods on dates (all by default) of (time, band, y, x) uint16."""
    cube = xr.DataArray(dn, dims=("time", "band", "y", "x"))
    rng = np.random.default_rng(0)
    for share in shares:
        for date in range(len(dn)) if dates is None else dates:
            for shape in range(1 if share == 1 and not cloudy else shapes):
                cover = np.stack([clouds(*dn.shape[2:], cloudy, rng) for _ in dn])
                cover[date] = clouds(*dn.shape[2:], share, rng)
                mask = xr.DataArray(cover, dims=("time", "y", "x"))
                case = {"scene": scene, "cloudy": cloudy, "share": share, "date": date,
                        "shape": shape}  # fmt: skip
                yield from _scores(cube, mask, methods, case)


def _scores(cube: xr.DataArray, mask: xr.DataArray, methods: Sequence[str],
            case: dict[str, Any]) -> Iterator[Row]:  # fmt: skip
    date = case["date"]
    truth = cube.values[date].astype(float)
    where = masked = np.broadcast_to(mask.values[date] & (truth != 0).all(0), truth.shape)
    found: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
    for method in methods:
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingClearWarning)
            out = inpaint_clouds(cube, mask, method=method, return_uncertainty=True)
        seconds = time.process_time() - start
        guess, width = (da.values[date].astype(float) for da in out)
        if (there := (guess != 0)[masked]).any():
            found[method] = guess, width, seconds
            where = where & (guess != 0) if there.mean() > 0.5 else where
    for method, (guess, width, seconds) in found.items():
        error = np.abs(truth - guess)
        known = where & np.isfinite(width)
        yield Row(
            **case, method=method, scored=float(where.sum() / masked.sum()),
            psnr=metrics.psnr(truth, guess, where),
            ssim=float(np.nanmean(metrics.ssim(truth, guess, where))),
            mae=float(error[where].mean()), sam=metrics.sam(truth, guess, where),
            inside=float((error <= width)[known].mean()) if known.any() else np.nan,
            half_width=float(width[known].mean()) if known.any() else np.nan, seconds=seconds,
        )  # fmt: skip


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over scenes, dates and cloud fields; of methods that look around, also by how much
    they are ahead of each baseline (dB, degrees) on the dates that both have.
    """
    table = []
    for key in dict.fromkeys((r.cloudy, r.share, r.method) for r in rows):
        mine = [r for r in rows if (r.cloudy, r.share, r.method) == key]
        line: dict[str, Any] = {**dict(zip(("cloudy", "share", "method"), key, strict=True)),
                                "rows": len(mine)}  # fmt: skip
        for name in ("psnr", "ssim", "mae", "sam", "inside", "half_width", "seconds"):
            line[name] = _mean(getattr(r, name) for r in mine)
        line["inside_least"], line["inside_most"] = (
            round(float(pick([r.inside for r in mine])), 4) for pick in (np.nanmin, np.nanmax)
        )
        if key[2] not in BASELINES:
            line["ahead"] = {m: _ahead(rows, mine, m) for m in BASELINES}
        table.append(line)
    return table


def _ahead(rows: Sequence[Row], mine: Sequence[Row], baseline: str) -> dict[str, float]:
    theirs = {_case(r): r for r in rows if r.method == baseline}
    pairs = [(r, theirs[_case(r)]) for r in mine if _case(r) in theirs]
    return {
        "psnr": _mean(a.psnr - b.psnr for a, b in pairs),
        "sam": _mean(b.sam - a.sam for a, b in pairs),
        "rows": len(pairs),
    }


def _case(row: Row) -> tuple:
    return row.scene, row.cloudy, row.share, row.date, row.shape


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


# ---- AllClear


@dataclass(frozen=True)
class Sample:
    """One of AllClear: inputs (T, 13, H, W) and target (13, H, W) DN, clipped to 0-10,000; where
    they are cloud or shadow (T, H, W), (H, W); days (T,) from the target.
    """

    name: str
    inputs: np.ndarray
    hidden: np.ndarray
    target: np.ndarray
    target_hidden: np.ndarray
    days: np.ndarray


def allclear_samples(listing: Path, root: Path | None, size: int = 256) -> Iterator[Sample]:
    """Samples of a listing, one after the other.

    Parameters
    ----------
    listing : Path
        AllClear's JSON: by number, ``s2_toa`` and ``target`` as lists of [time, path].
    root : Path, optional
        Folder that replaces what comes before ``roi...`` in the paths.
    """
    for name, entry in json.loads(listing.read_text()).items():
        when, images, covers = [], [], []
        for stamp, path in [*sorted(entry["s2_toa"]), *entry["target"][:1]]:
            file = _place(path, root)
            when.append(datetime.datetime.fromisoformat(stamp))
            image = np.nan_to_num(_crop(file, range(1, 14), size), nan=0)
            images.append(image.clip(0, 10_000))
            mask = _crop(Path(str(file).replace("s2_toa", "cld_shdw")), (2, 5), size)
            covers.append((np.nan_to_num(mask, nan=1) > 0).any(0))
        days = np.array([(t - when[-1]).total_seconds() / 86_400 for t in when])
        yield Sample(name, np.stack(images[:-1]), np.stack(covers[:-1]), images[-1], covers[-1],
                     days[:-1])  # fmt: skip


def _place(path: str, root: Path | None) -> Path:
    parts = Path(path).parts
    first = next((i for i, part in enumerate(parts) if part.startswith("roi")), 0)
    return Path(path) if root is None else root.joinpath(*parts[first:])


def _crop(file: Path, channels: Sequence[int], size: int) -> np.ndarray:
    import rasterio
    from rasterio.windows import Window

    with rasterio.open(file) as source:
        left, top = source.width // 2 - size // 2, source.height // 2 - size // 2
        window = Window(left, top, size, size)
        return source.read(list(channels), window=window).astype(np.float32)


def allclear_estimate(sample: Sample, method: str) -> np.ndarray:
    """The target (13, H, W) DN from the inputs; 0 where no input is clear.

    The target date goes in between the inputs by its time and is hidden as a whole.
    """
    order = np.argsort(np.append(sample.days, 0.0), kind="stable")
    place = int(np.flatnonzero(order == len(sample.days))[0])
    cube = np.concatenate([sample.inputs, np.zeros_like(sample.target)[None]])[order]
    hidden = np.concatenate([sample.hidden, np.ones_like(sample.target_hidden)[None]])[order]
    start = np.datetime64("2022-01-01T00:00:00", "ns")
    seconds = (np.append(sample.days, 0.0)[order] * 86_400).round().astype("timedelta64[s]")
    seconds += np.arange(len(seconds))  # two orbits of one day stay apart
    da = xr.DataArray(
        np.where(cube > 0, cube, 1).astype(np.uint16), {"time": start + seconds},
        ("time", "band", "y", "x"),
    )  # fmt: skip
    filled = inpaint_clouds(da, xr.DataArray(hidden, dims=("time", "y", "x")), method=method)
    return filled.values[place].astype(np.float64)


def allclear_scores(guess: np.ndarray, target: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """AllClear's scores of (13, H, W) DN where the target is clear, and the spectral angle."""
    clear = np.broadcast_to(~hidden, target.shape)
    x, y = guess / 10_000, target / 10_000
    squared = ((x - y) ** 2)[clear].mean()
    return {
        "psnr": float(-10 * np.log10(squared)),
        "ssim": _masked_ssim(guess, target, clear),
        "mae": float(np.abs(x - y)[clear].mean()),
        "rmse": float(np.sqrt(squared)),
        "sam_as_published": _angle(np.where(clear, x, np.nan), np.where(clear, y, np.nan), axis=1),
        "sam": metrics.sam(target, guess, clear),
    }


def _masked_ssim(guess: np.ndarray, target: np.ndarray, clear: np.ndarray) -> float:
    """With both images zero where the target is not clear, as AllClear has it."""
    return float(metrics.ssim(np.where(clear, target, 0), np.where(clear, guess, 0)).mean())


def _angle(x: np.ndarray, y: np.ndarray, axis: int) -> float:
    dot, a, b = (np.nansum(v, axis) for v in (x * y, x * x, y * y))
    norm = np.sqrt(a * b)
    cosine = np.clip(dot[norm > 0] / norm[norm > 0], -1, 1)
    return float(np.degrees(np.arccos(cosine)).mean())


def allclear(listing: Path, root: Path | None, methods: Sequence[str]) -> dict[str, dict]:
    """Mean scores of the methods over a listing."""
    scores: dict[str, list[dict[str, float]]] = {m: [] for m in methods}
    for sample in allclear_samples(listing, root):
        for method in methods:
            guess = allclear_estimate(sample, method)
            scores[method].append(allclear_scores(guess, sample.target, sample.target_hidden))
    return {
        method: {k: float(np.nanmean([one[k] for one in rows])) for k in rows[0]}
        for method, rows in scores.items()
    }


# ---- page


def page() -> str:
    """``docs/inpainting.md``: the fixed text of ``inpainting.txt`` with the numbers filled in."""
    results = json.loads((RESULTS / "inpainting.json").read_text())
    spent = json.loads((RESULTS / "inpainting_cost.json").read_text())
    lines = results["summary"]
    of = {(line["cloudy"], line["share"], line["method"]): line for line in lines}
    cases = list(dict.fromkeys((line["cloudy"], line["share"]) for line in lines))
    fields = {
        "scores": _table(
            ("share hidden", *METHODS),
            [(_named(*case), *(_both(of.get((*case, m))) for m in METHODS)) for case in cases],
        ),
        "ahead": _table(
            ("share hidden", "dB", "degrees"),
            [(_named(*case), *(_least(of[(*case, METHODS[0])], k) for k in ("psnr", "sam")))
             for case in cases],
        ),
        "behind": _behind({case: of[(*case, METHODS[0])] for case in cases}),
        "inside": _table(
            ("share hidden", *METHODS, "single dates, regression"),
            [(_named(*case), *(f"{of[(*case, m)]['inside']:.0%}" for m in METHODS),
              "{inside_least:.0%} to {inside_most:.0%}".format(**of[(*case, "regression")]))
             for case in cases],
        ),
        "shapes": 1 + max(row["shape"] for row in results["rows"]),
        "cloudy": f"{max(case[0] for case in cases):.0%}",
        "seconds": f"{spent['seconds']:.0f}", "cpu": f"{spent['cpu_seconds']:.0f}",
        "masked": f"{spent['masked']:.0%}", "load": f"{spent['load_average'][0]:.1f}",
        "peak": f"{spent['peak_rss_mib'] / 1024:.2f}",
        "before": f"{spent['rss_before_mib'] / 1024:.2f}",
        "cube": f"{spent['cube_mib'] / 1024:.2f}",
        "machine": f"{results['machine']['cpu']}, {results['machine']['cores']} cores; "
        + ", ".join(f"{k} {results['versions'][k]}" for k in ("python", "numpy", "torch"))
        + f"; {results['date'][:10]}",
    }  # fmt: skip
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in fields.items():
        said = f"{value:.2g}" if isinstance(value, float) else str(value)
        text = text.replace(f"@{name}@", said)
    return text


def _named(cloudy: float, share: float) -> str:
    return f"{share:.0%}" + (", other dates cloudy" if cloudy else "")


def _both(line: dict[str, Any] | None) -> str:
    return "-" if line is None else f"{line['psnr']:.1f} / {line['sam']:.1f}"


def _least(line: dict[str, Any], score: str) -> str:
    """What a method is ahead of the best baseline, and which that is."""
    ahead = {m: one[score] for m, one in line["ahead"].items() if one["rows"]}
    best = min(ahead, key=lambda m: ahead[m])
    return f"{ahead[best]:+.2f} ({best})"


def _behind(lines: dict[tuple[float, float], dict[str, Any]]) -> str:
    """Where a baseline is ahead of the default."""
    found = [
        f"`{m}` by {-ahead[score]:.2f} {unit} at {_named(*case)}"
        for case, line in lines.items()
        for m, ahead in line["ahead"].items()
        for score, unit in (("psnr", "dB"), ("sam", "degrees"))
        if ahead["rows"] and round(ahead[score], 2) < 0
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
        results["scores"] = allclear(options.allclear, options.root, options.methods)
        print(json.dumps(results["scores"], indent=1))
    elif options.cost:
        name = "inpainting_cost.json"
        results |= cost()
        print({k: results[k] for k in ("seconds", "cpu_seconds", "peak_rss_mib")})
    else:
        name = "inpainting.json"
        series = [s for s in scenes(options.data) if s.kind == "seasonal"]
        parts = ((0.0, options.shares, options.shapes), (CLOUDY, CLOUDY_SHARES, 1))
        rows = []
        for cloudy, shares, shapes in parts:
            for s in series:
                for row in measure(
                    s.dn, s.name, options.methods, shares, shapes, cloudy, options.dates
                ):
                    print(json.dumps(asdict(row)), flush=True)
                    rows.append(row)
        table = summary(rows)
        results |= {
            "definition": "masked pixels only; means over scenes, dates and cloud fields; seconds "
            "are CPU time",
            "data": {s.name: s.sha256 for s in series},
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
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--shapes", type=int, default=SHAPES, help="cloud fields for every date")
    parser.add_argument("--dates", nargs="+", type=int, help="numbers of the dates to hide")
    parser.add_argument("--cost", action="store_true", help="time and memory instead")
    parser.add_argument("--page", action="store_true", help="write the page from what is there")
    parser.add_argument("--allclear", type=Path, help="AllClear's listing (JSON)")
    parser.add_argument("--root", type=Path, help="where AllClear's roi folders lie")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
