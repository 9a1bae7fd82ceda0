"""Write the pages of numbers from benchmarks/results: python benchmarks/report.py [--check].

``docs/benchmarks.md``, ``docs/when-not-to-use.md``, ``docs/scaling.md``, ``docs/gallery.md``, and
the parts of ``docs/browser.md``, ``docs/install.md`` and ``README.md`` between comments are made
here, and no number of a measurement in them is typed.
``--check`` fails when one of them is not what the results say. A part that was not measured says
so, and so does one that is not of the last full run (``run.json``).
"""

from __future__ import annotations

import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import scaling_page

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
WHEN_NOT = ROOT / "docs" / "when-not-to-use.md"
SCALING = ROOT / "docs" / "scaling.md"
BROWSER = ROOT / "docs" / "browser.md"
GALLERY = ROOT / "docs" / "gallery.md"
INSTALL = ROOT / "docs" / "install.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- made by benchmarks/report.py -->", "<!-- end of what it makes -->"
DEMO_BEGIN, DEMO_END = "<!-- printed, see benchmarks/demo.py -->", "<!-- end of what it prints -->"
PICTURE_BEGIN, PICTURE_END = "<!-- the picture, see benchmarks/gallery.py -->", "<!-- end of it -->"
DEMO_BANDS = ("B02", "B08", "all")
"""Whose lines of the demo ``docs/install.md`` shows."""
SEASONAL = ("0080717", "0181476", "synthetic")
README_CODECS = {
    "jpeg2000": "JPEG 2000",
    "jpegxl": "JPEG XL",
    "avif": "AVIF",
    "av1-time": "AV1 over time",
    "hevc-time-tuned": "HEVC over time",
    "vvc-time": "VVC over time",
    "klt-jpeg2000-joint": "KLT + JPEG 2000",
    "klt-x265-tuned": "KLT + x265 over time",
    "klt-vvc": "KLT + VVC over time",
}


def main() -> int:
    """Write them, or say with the exit status whether they are up to date."""
    found = made()
    if "--check" in sys.argv[1:]:
        stale = [str(path) for path, text in found.items() if path.read_text() != text]
        print("\n".join(f"{path} is not what the results say" for path in stale))
        return int(bool(stale))
    for path, text in found.items():
        path.write_text(text)
    return 0


def made() -> dict[Path, str]:
    """The files as the results say they should be."""
    parts = [rate_distortion, downstream, speed, system, bounded, family, elsewhere]
    head = ["# Benchmarks", "", last_run(), "", INTRODUCTION]
    readme = between(README.read_text(), BEGIN, END, readme_part())
    readme = between(readme, PICTURE_BEGIN, PICTURE_END, readme_picture())
    found = {
        PAGE: "\n".join([*head, *(part() for part in parts)]),
        WHEN_NOT: when_not(),
        BROWSER: between(BROWSER.read_text(), BEGIN, END, browser()),
        INSTALL: between(INSTALL.read_text(), DEMO_BEGIN, DEMO_END, demo()),
        GALLERY: gallery(),
        README: readme,
    }
    results = ("recompress", "reference_speed", "device", "core_share")
    scaling, published, device, share = map(load, results)
    if scaling and published and device and share:
        found[SCALING] = scaling_page.page(scaling, published, device, share, machine(scaling))
    return found


def between(page: str, begin: str, end: str, text: str) -> str:
    """A page with this text between two comments, or as it was where there is no text."""
    if not text:
        return page
    before, rest = page.split(begin)
    return before + begin + "\n" + text + end + rest.split(end)[1]


INTRODUCTION = """Made by `python benchmarks/report.py` from `benchmarks/results/`; nothing here is typed. `make bench` measures everything again (`make bench QUICK=1`: corners of cubes and few levels, in minutes, into `build/bench`).

How the comparison is meant to be fair:

- Everybody gets the same pixels, and everything that is decoded is really decoded from the bytes that are counted. PSNR is over all bands and dates together, both sides clipped to 0 to 10,000 DN, peak 10,000; bpppb is bits per pixel, band and date.
- TEC's bytes are whole chunks with their headers and checksums. Of the classical codecs bare codestreams are counted, without a container. What a codec spends on a cube that says nothing is in the table of settings: at low rates it decides.
- The classical codecs run at the best settings found: squared error instead of looks (psychovisual tools, adaptive quantisation and temporal filters off), 12 bit where the codec has them, one DN scale for all bands, JPEG XL at effort 7, one rate-distortion slope over all components of JPEG 2000. Where a setting of the published baselines differs, both are listed.
- Codecs "over time" predict across the four dates, and the KLT rows share one basis over them; `tec` does not: it codes every date for itself.
- TEC was not trained on the cubes of this page, except where a table says so.
"""  # noqa: E501


# ---------------------------------------------------------------------------------- helpers


def load(name: str) -> dict | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def last_run() -> str:
    """Of what run the page is."""
    run = load("run")
    if run is None:
        return "There was no full run yet: every part says of which commit it is."
    failed = [name for name, step in run["steps"].items() if not step["ok"]]
    weights = ", ".join(f"{name} `{sha[:16]}`" for name, sha in run["weights_sha256"].items())
    return (
        f"Last full run: {run['date']}, commit {run['commit'][:12]}, {run['seconds'] / 60:.0f} "
        f"minutes on {run['machine']['cores']} cores ("
        + ", ".join(f"{name} {step['seconds'] / 60:.1f}" for name, step in run["steps"].items())
        + f"). Weights: {weights}."
        + (f" **Failed in it: {', '.join(failed)}.**" if failed else "")
    )


def origin(results: dict) -> str:
    """A sentence where results are not of the last full run, nothing where they are."""
    parts = results.get("measured") or {"": results}
    commits = {part["commit"] for part in parts.values()}
    if commits == {(load("run") or {}).get("commit")}:
        return ""
    named = ", ".join(sorted({commit[:12] for commit in commits}))
    return f" Not of the last full run: commit {named}."


def machine(results: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"Machine: {results['machine']['cpu']}, {results['machine']['cores']} cores; "
        f"{versions}.{origin(results)}"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def section(title: str, name: str, body: Callable[[dict], list[str]]) -> str:
    """A section of the page, or the remark that it was not measured."""
    results = load(name)
    if results is None:
        return f"## {title}\n\nNot measured here: there is no `{name}.json`.\n"
    return "\n".join([f"## {title}", "", *body(results)])


def number(value: float | None, spec: str = ".3f") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:{spec}}"


def span(values: Iterable[float], spec: str) -> str:
    """``low to high``, or one number where they print the same."""
    known = list(values)
    texts = [f"{value:{spec}}" for value in (min(known), max(known))]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


# --------------------------------------------------------------------------------- sections


def rate_distortion() -> str:
    return section("Rate and distortion", "rate_distortion", _rate_distortion)


def _rate_distortion(results: dict) -> list[str]:
    summary = results["summary"]
    lines = [
        f"{results['definition']}. {machine(results)}",
        "",
        "`python benchmarks/rate_distortion.py`, all points in `benchmarks/results/`.",
        "",
        "![rate and distortion](../benchmarks/results/rate_distortion.svg)",
        "",
    ]
    for ours, title in (
        ("tec", "TEC, one date a chunk"),
        ("tec-tt", "TEC with the temporal model, all dates one chunk"),
    ):
        against = summary["seasonal"].get(f"{ours}_against")
        if against is None:
            continue
        rows = [
            [
                codec, number(row["ratio"]), f"{row['psnrs_compared']} of 21",
                *(
                    number(row.get(f"bd_rate_{key}percent"), "+.1f")
                    for key in ("", "ssim_", "sam_")
                ),
            ]
            for codec, row in against.items()
        ]  # fmt: skip
        lines += [
            f"### {title}",
            "",
            "Bits for the same PSNR, geometric mean over 36 to 46 dB and the two seasonal cubes",
            "(4 dates, 12 bands, 256 x 256), at how many of the PSNRs both have a point; and the",
            "Bjontegaard rates in percent at equal PSNR, equal SSIM and equal spectral angle",
            "(below 0: TEC needs fewer bits):",
            "",
            table(["against", "bits", "PSNRs", "PSNR %", "SSIM %", "SAM %"], rows),
        ]
        better = summary["seasonal"].get(f"{ours}_to_better_klt")
        if better:
            lines += [
                "Against the best of the five KLT codecs at each PSNR:",
                "",
                table([f"{k} dB" for k in better], [[number(v) for v in better.values()]]),
            ]
    lines += _parts(summary)
    scenes = summary["scenes"]
    lines += [
        "### Every scene and band subset",
        "",
        "Ratio of bits at equal PSNR, one date a chunk:",
        "",
        table(
            ["scene [bands]", "to JPEG 2000", "to JPEG XL", "to KLT + JPEG 2000"],
            [
                [
                    name,
                    *(
                        number(entry["tec_against"].get(codec, {}).get("ratio"))
                        for codec in ("jpeg2000", "jpegxl", "klt-jpeg2000-joint")
                    ),
                ]
                for name, entry in scenes.items()
                if "tec_against" in entry
            ],
        ),
        "![curves](../benchmarks/results/rate_distortion.png)",
        "",
        "### Settings",
        "",
        "Bytes of a constant cube of 4 dates and 12 bands: what a codec spends to say nothing. "
        "Processor seconds to encode and decode such a cube (6.3 MB), both together, median of the "
        "points within 2 dB of 42: the order of size, two codecs ran at a time; for TEC, OpenJPEG, "
        "JPEG XL and SZ3 see the section on speed.",
        "",
        table(
            ["codec", "setting", "bytes of nothing", "both ways, s"],
            [
                [
                    name,
                    item["setting"],
                    str(item.get("overhead_bytes", "-")),
                    number(both_ways(results["points"], name), ".2f"),
                ]
                for name, item in results["measured"].items()
            ],
        ),
        "Not there: the published TerraCodec weights and FlexTEC's (they cannot be had here, and "
        "no FlexTEC is embedded), effort levels of TEC (none was built), C3 and other networks "
        "fitted to one image.",
        "",
    ]
    return lines


def both_ways(points: Sequence[dict], codec: str) -> float | None:
    """Median processor seconds of a codec near 42 dB on the seasonal cubes; None if there is none.

    A point says so where it was measured; those of earlier runs do not.
    """
    known = [
        point["cpu_seconds"]
        for point in points
        if point["codec"] == codec
        and point["kind"] == "seasonal"
        and "[" not in point["scene"]
        and abs(point["psnr"] - 42) <= 2
        and point.get("cpu_seconds") is not None
    ]
    return statistics.median(known) if known else None


def _parts(summary: dict) -> list[str]:
    """Ratios by band and by land cover."""
    chosen = ("jpeg2000", "jpegxl", "klt-jpeg2000-joint", "klt-x265-tuned", "klt-vvc")
    lines: list[str] = []
    for part, title, said, note in (
        (
            "by_band",
            "By band",
            "one band",
            " Codecs share their bits out between bands in different ways (JPEG XL codes smooth "
            "bands much better than rough ones at one distance): a single row says how, and only "
            "all of them together who is better.",
        ),
        ("by_cover", "By land cover", "the pixels of one cover", ""),
    ):
        if summary.get(part):
            known = [codec for codec in chosen if any(codec in r for r in summary[part].values())]
            lines += [
                f"### {title}",
                "",
                f"All bits of the cube at equal PSNR in {said}, TEC to each, over the PSNRs that "
                f"both reach; seasonal cubes.{note}",
                "",
                table(
                    [part.removeprefix("by_"), *known],
                    [
                        [name, *(number(row.get(codec)) for codec in known)]
                        for name, row in summary[part].items()
                    ],
                ),
            ]
    return lines


def downstream() -> str:
    return section("What analyses say of it", "downstream", _downstream)


def _downstream(results: dict) -> list[str]:
    measures = {
        "ndvi_mean": ("NDVI", ".4f"),
        "ndvi_p95": ("NDVI 95 %", ".3f"),
        "ndwi_mean": ("NDWI", ".4f"),
        "nbr_mean": ("NBR", ".4f"),
        "land_cover_agreement": ("land cover", ".3f"),
        "cloud_f1": ("cloud F1", ".3f"),
        "change_iou": ("change IoU", ".3f"),
    }
    rows = [
        [
            row["scene"], f"{row['tec_quality']:g}", row["codec"], number(row["bpppb"], ".4f"),
            number(row["psnr"], ".1f"),
            *(number(row.get(key), spec) for key, (_, spec) in measures.items()),
        ]
        for row in results["rows"]
    ]  # fmt: skip
    seasons = [
        [
            f"{row['tec_quality']:g}", row["codec"], number(row["bpppb"], ".4f"),
            number(row["psnr"], ".1f"), number(row["season_amplitude_error"], ".4f"),
            number(row["peak_day_error_median"], ".0f"), number(row["peak_day_error_p95"], ".0f"),
        ]
        for row in results["phenology"]
    ]  # fmt: skip
    series = results["phenology"][0]
    known = series["scene"] == "dense series"
    trained = "; TEC was trained on this one, as no other is that dense" if known else ""
    return [
        f"{results['definition']} {machine(results)}",
        "",
        "`python benchmarks/downstream.py` says how the tools are made. Mean absolute errors of",
        "indices, agreement of a land cover classifier, F1 of a cloud classifier (- where the",
        "scene has no clouds), overlap of detected changes; the quality is TEC's, the others have",
        "as many bytes:",
        "",
        table(
            ["scene", "q", "codec", "bpppb", "dB", *(label for label, _ in measures.values())],
            rows,
        ),
        f"Phenology, two harmonics on the NDVI of {series['scene']} ({series['pixels']} pixels "
        f"with a season, amplitude {series['season_amplitude']:.2f} in the mean; chunks of "
        f"64 x 64, so that headers weigh more than usual{trained}):",
        "",
        table(
            [
                "q", "codec", "bpppb", "dB", "amplitude error", "peak day, median",
                "peak day, 95 %",
            ],
            seasons,
        ),
    ]  # fmt: skip


def speed() -> str:
    return section("Speed", "speed", _speed)


def _speed(results: dict) -> list[str]:
    rows = [
        [
            row["scene"],
            "-" if row["target_psnr"] is None else f"{row['target_psnr']:g}", row["codec"],
            number(row["psnr"], ".2f"), f"{row['bpppb']:.4f}", f"{row['encode_ms']:.0f}",
            f"{row['decode_ms']:.1f}", f"{row['encode_mb_s']:.1f}", f"{row['decode_mb_s']:.1f}",
        ]
        for row in results["rows"]
    ]  # fmt: skip
    ratios = speed_ratios(results)
    return [
        f"One core, processor time of a (1, 12, 256, 256) chunk: {results['definition']}. "
        f"{machine(results)} TEC's kernel: {results['kernel']}.",
        "",
        "`python benchmarks/speed.py`. The codecs take turns in one process, so that a busy",
        "machine slows all of them; TEC to OpenJPEG and JPEG XL at equal PSNR:",
        "",
        table(
            ["to", "encode", "decode"],
            [
                [codec, span([e for e, _ in pairs], ".2f"), span([d for _, d in pairs], ".2f")]
                for codec, pairs in ratios.items()
            ],
        ),
        table(
            [
                "scene", "asked dB", "codec", "dB", "bpppb", "encode ms", "decode ms",
                "encode MB/s", "decode MB/s",
            ],
            rows,
        ),
    ]  # fmt: skip


def speed_ratios(results: dict) -> dict[str, list[tuple[float, float]]]:
    """TEC's times to those of other codecs at each PSNR and scene, encoding and decoding."""
    tec = {(r["scene"], r["target_psnr"]): r for r in results["rows"] if r["codec"] == "tec"}
    ratios: dict[str, list[tuple[float, float]]] = {}
    for row in results["rows"]:
        ours = tec.get((row["scene"], row["target_psnr"]))
        if row["codec"] != "tec" and ours is not None:
            pair = (
                ours["encode_ms"] / row["encode_ms"],
                ours["decode_ms"] / row["decode_ms"],
            )
            ratios.setdefault(row["codec"], []).append(pair)
    return ratios


def system() -> str:
    return section("Memory, start and reading", "system", _system)


def _system(results: dict) -> list[str]:
    loads = ", ".join(f"{x:.1f}" for x in results["load_average_before"])
    memory = results["memory_mb"]
    reads = next(iter(results["bytes_read"].values()))
    return [
        f"{results['definition']}. Load average before: {loads} (processor seconds hardly change "
        f"with it, wall clock does). {machine(results)}",
        "",
        "`python benchmarks/system.py`.",
        "",
        table(
            ["a fresh process", "processor s", "wall s", "whole process, processor s"],
            [
                [
                    f"{what}: {name}", f"{row['cpu_s']:.2f}", f"{row['wall_s']:.2f}",
                    f"{row['process_cpu_s']:.2f}",
                ]
                for what, key in (
                    ("import", "import"),
                    ("open a store", "open"),
                    ("open and read a pixel", "first_pixel"),
                )
                for name, row in results[key].items()
            ],
        ),
        table(
            ["peak memory", "MB"],
            [[f"{what.removesuffix(' 512')} (4, 12, {'512, 512' if '512' in what else '256, 256'})"
              if what != "nothing" else "numpy, zarr, the chunk", f"{row['peak']:.0f}"]
             for what, row in memory.items()],
        ),
        "Bytes that a reader takes from the store, and bytes stored:",
        "",
        table(
            ["store", *reads, "stored"],
            [
                [store, *(str(n) for n in row.values()), str(results["stored_bytes"][store])]
                for store, row in results["bytes_read"].items()
            ],
        ),
        *(
            [f"A chunk (4, 12, 256, 256) of nodata: {results['bytes_of_nodata']} bytes.", ""]
            if "bytes_of_nodata" in results
            else []
        ),
        "Raw MB/s, wall clock, 16 chunks of (1, 12, 256, 256), threads of one process:",
        "",
        table(
            list(results["throughput"][0]),
            [[f"{v:g}" for v in row.values()] for row in results["throughput"]],
        ),
    ]  # fmt: skip


def bounded() -> str:
    return section("Guaranteed error bounds", "bounded", _bounded)


def _bounded(results: dict) -> list[str]:
    rows = []
    for bound, (ours, best, other) in best_bounded(results).items():
        rows.append([f"{bound:g}", f"{ours:.3f}", f"{best} {other:.3f}", f"{ours / other:.3f}"])
    return [
        "Bits per pixel per band on the seasonal cubes, `max_error` in DN, against the best of",
        f"the other bounded codecs. {machine(results)} `python benchmarks/bounded.py`.",
        "",
        table(["bound", "TEC", "best other", "ratio"], rows),
    ]


def best_bounded(results: dict) -> dict[float, tuple[float, str, float]]:
    """TEC's bits, the best other codec and its bits at each bound, mean of seasonal cubes."""
    seasonal = [row for row in results["rows"] if str(row["scene"]) in SEASONAL]
    found = {}
    for bound in sorted({row["bound"] for row in seasonal}):
        codecs = sorted({row["codec"] for row in seasonal if row["bound"] == bound})
        mean = {
            codec: sum(v) / len(v)
            for codec in codecs
            if (v := [r["bpppb"] for r in seasonal if (r["codec"], r["bound"]) == (codec, bound)])
        }
        ours = mean.pop("tec-bound")
        best = min(mean, key=mean.get)
        found[bound] = ours, best, mean[best]
    return found


def family() -> str:
    return section("The published TerraCodec models", "reference_speed", _family)


def _family(results: dict) -> list[str]:
    return [
        f"Processor seconds, wall clock on {results['cores']} core"
        f"{'s' if results['cores'] > 1 else ''} and peak memory, the reference implementation and "
        f"the one here, random weights of the published shapes, {results['dates']} dates of "
        f"{results['size']} x {results['size']}. {machine(results | results['environment'])}",
        "",
        "`python benchmarks/reference_speed.py`; rates are not compared, as the published weights",
        "cannot be had here.",
        "",
        table(
            [
                "model", "implementation", "compress, processor s", "decompress, processor s",
                "compress, wall s", "decompress, wall s", "peak MB",
            ],
            [
                [
                    row["model"], row["side"], f"{row['compress_cpu_s']:.2f}",
                    f"{row['decompress_cpu_s']:.2f}", f"{row['compress_s']:.2f}",
                    f"{row['decompress_s']:.2f}", str(row["peak_mb"]),
                ]
                for row in results["rows"]
            ],
        ),
    ]  # fmt: skip


ELSEWHERE = (
    ("temporal", "temporal", "temporal.md", "time series and the temporal model"),
    ("bounded", "bounded", "error-bounds.md", "every scene and codec with a bound"),
    ("recompress", "recompress", "scaling.md", "archives on Dask: throughput, scaling, overhead"),
    ("inpainting", "inpainting", "inpainting.md", "errors under clouds"),
    ("exactness", "exactness", "exactness.md", "the same latents and pixels on other machines"),
    ("robustness", "robustness", "robustness.md", "damage, limits, threads"),
    ("matrix", "matrix", "robustness.md", "tests with other versions"),
    ("fuzz", "tests/fuzz/run.py", "robustness.md", "hostile bytes"),
    ("bound_longrun", "bound_longrun", "error-bounds.md", "bounds on random and real arrays"),
    ("family_margin_full", "family_margin", "family.md", "predictions on other machines"),
)
"""Results, the program, the page, what it is about."""


def elsewhere() -> str:
    """Which pages stand on which measurements, and of which commit these are."""
    rows = []
    for name, program, page, about in ELSEWHERE:
        results = load(name)
        if results is None:
            continue
        commit = results.get("commit")
        of_run = commit is not None and commit == (load("run") or {}).get("commit")
        command = program if "/" in program else f"benchmarks/{program}.py"
        rows.append(
            [
                f"[{page}]({page})", about, f"`python {command}`",
                # Its own page and results say when: they change without this page.
                "last full run" if of_run else "by itself",
            ]
        )  # fmt: skip
    text = "## On other pages\n\n"
    if not rows:
        return text + "Not measured here: there is no file of results.\n"
    return text + table(["page", "what", "program", "measured"], rows)


# ------------------------------------------------------------------------------- the README


def demo() -> str:
    """What ``make demo`` prints, without the bands that the page leaves out."""
    results = load("demo")
    if results is None:
        return ""
    lines, below = [], False
    for line in results["printed"]:
        if line.startswith("picture"):
            continue
        if below and line.strip() and not line.startswith(("--", *DEMO_BANDS)):
            line = "..."
        if line != "..." or lines[-1] != "...":
            lines.append(line)
        below = below or line.startswith("band ")
    return "\n".join(["```", *lines, "```", ""]).replace("\n\n```", "\n```")


def readme_picture() -> str:
    """One place of the gallery: original, decoded, and what is between them."""
    results = load("gallery")
    if results is None:
        return ""
    place, side = results["places"]["fields"], 'width="260"'
    coded = place["qualities"]["4"]
    return table(
        ["original", "decoded, quality 4", "difference x 10"],
        [
            [
                f'<img src="docs/gallery/{name}.webp" {side} alt="{alt}">'
                for name, alt in (
                    ("fields", "fields"),
                    ("fields-4", "the same fields, decoded"),
                    ("fields-difference", "grey, with faint noise"),
                )
            ],
            [
                f"{place['raw_bytes'] / 1e6:.2f} MB",
                f"{coded['bytes'] / 1e3:.1f} kB",
                f"{coded['psnr']:.1f} dB",
            ],
        ],
    )


def gallery() -> str:
    """``docs/gallery.md``: made-up places at several qualities."""
    text = (
        "# Gallery\n\nFive made-up places. Each is one date, 12 bands and 256 x 256 pixels; the "
        "pictures show the middle, in natural colour. Under each picture is the size of all 12 "
        "bands, and the PSNR over them. The last picture shows the original.\n\n"
        "The places are synthetic (`tec_zarr.cubes.synthetic`), because real scenes are not ours "
        "to show. Real ones compress less: [benchmarks](benchmarks.md). `tec-zarr report CUBE` "
        "makes such a page of your own cube.\n"
    )
    results = load("gallery")
    if results is None:
        return text + "\nNot measured here: there is no `gallery.json`.\n"
    for name, place in results["places"].items():
        text += f'\n## {name.capitalize()}\n\n<div class="gallery">\n'
        for quality, row in place["qualities"].items():
            bits = 8 * row["bytes"] / (place["raw_bytes"] / 2)
            caption = (
                f"quality {quality}: {row['bytes'] / 1e3:.1f} kB, {row['psnr']:.1f} dB, "
                f"{bits:.2f} bpppb"
            )
            text += _figure(f"{name}-{quality}", f"{name}, quality {quality}", caption)
        caption = f"original: {place['raw_bytes'] / 1e3:.0f} kB"
        text += _figure(name, f"{name}, original", caption) + "</div>\n"
    weights = results["weights_sha256"][:16]
    made = f"Made by `python benchmarks/gallery.py`, weights `{weights}`. {machine(results)}"
    return f"{text}\n{made}\n"


def _figure(name: str, alt: str, caption: str) -> str:
    picture = f'<img src="gallery/{name}.webp" alt="{alt}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>\n"


def readme_part() -> str:
    """What the README says about size and speed."""
    lines: list[str] = []
    rates, times = load("rate_distortion"), load("speed")
    if rates:
        against = rates["summary"]["seasonal"]["tec_against"]
        known = [codec for codec in README_CODECS if codec in against]
        lines += [
            "Bits that TEC needs where another codec needs 1, at the same PSNR: geometric mean",
            "over 36 to 46 dB on two real places (SSL4EO-S12, 4 dates, 12 bands; every byte",
            "counted).",
            "",
            table(
                [README_CODECS[codec] for codec in known],
                [[f"{number(against[codec]['ratio'], '.2f')} x" for codec in known]],
            ),
            "Two places are few, and bits on yours differ. The gain is smallest against codecs",
            "that decorrelate bands first (KLT), and with few bands. Outside 36 to 46 dB nothing",
            "is claimed.",
            "",
        ]
        temporal = rates["summary"]["seasonal"].get("tec-tt_against")
        if temporal:
            lines += [
                "With the temporal model and four dates a chunk: "
                f"{number(temporal['tec']['ratio'], '.2f')} x the default model's bits, "
                f"{number(temporal.get('klt-vvc', {}).get('ratio'), '.2f')} x those of KLT + VVC.",
                "",
            ]
    if times:
        pairs = speed_ratios(times)["jpeg2000"]
        ours = [row for row in times["rows"] if row["codec"] == "tec"]
        lines += [
            f"Encoding takes {span([e for e, _ in pairs], '.1f')} times as long as OpenJPEG's "
            f"({span([r['encode_ms'] for r in ours], '.0f')} ms for 12 bands of 256 x 256 on one",
            f"core), decoding {span([d for _, d in pairs], '.1f')} times as long "
            f"({span([r['decode_ms'] for r in ours], '.0f')} ms).",
            "",
        ]
        if rates and times["weights_sha256"] not in _weights(rates):
            lines[-1:] = [
                f"These times are of the weights before, `{times['weights_sha256'][:8]}`: today's",
                "take several times as long, and their times have not been measured on a quiet",
                "machine yet.",
                "",
            ]
    return "\n".join(lines)


# ------------------------------------------------------------------------- when not to use it


def when_not() -> str:
    """``docs/when-not-to-use.md``: a reason a paragraph, each with its numbers."""
    reasons = [
        _exact, _fine, _indices, _shocks, _speed_reason, _reading, _few_bands, _readers, _always,
    ]  # fmt: skip
    text = "# When not to use TEC\n\nMade by `python benchmarks/report.py`: the numbers are those "
    text += "of [`benchmarks.md`](benchmarks.md).\n\n"
    return text + "\n".join(filter(None, (reason() for reason in reasons)))


def _exact() -> str:
    results = load("bounded")
    said = ""
    if results:
        ours, best, other = best_bounded(results)[0]
        rows = [r for r in results["rows"] if r["bound"] == 0 and r["codec"] == "tec-bound"]
        seconds = span([r["decode_cpu_s"] for r in rows], ".1f")
        said = (
            f" Lossless (`max_error=0`) it takes {ours:.2f} bits a sample where {best} takes "
            f"{other:.2f}: {100 * (1 - ours / other):.0f} % less, at {seconds} processor seconds "
            "to decode a (1, 12, 256, 256) chunk. That is for archives, not for work."
        )
    return (
        "## When every digit counts\n\nTEC is lossy. Calibration, radiometric cross-comparison, "
        f"legal evidence: keep the original.{said}\n"
    )


def _fine() -> str:
    results = load("rate_distortion")
    if not results:
        return ""
    better = results["summary"]["seasonal"]["tec_to_better_klt"]
    pairs = ", ".join(f"{number(value, '.2f')} at {key} dB" for key, value in better.items())
    codecs = results["summary"]["seasonal"]["tec_against"]
    beaten = [c for c, row in codecs.items() if (row["ratio"] or 0) > 1 and not c.startswith("tec")]
    said = (
        f" Over 36 to 46 dB these need fewer bits than TEC on these cubes: {', '.join(beaten)}."
        if beaten
        else " No codec of that page needs fewer bits than TEC over 36 to 46 dB."
    )
    with (RESULTS / "rate_distortion.csv").open() as file:
        finest = [
            float(row["psnr"])
            for row in csv.DictReader(file)
            if row["codec"] == "tec" and float(row["level"]) == 8 and "[" not in row["scene"]
        ]
    floor = (
        f" Quality 8, the finest, ends at {span(finest, '.1f')} dB, depending on the scene, where "
        "better codecs go on: whoever needs more asks for a bound."
        if finest
        else ""
    )
    return (
        "## When another tool is nearly as small\n\n"
        "Against the best codec that first decorrelates the bands and then codes JPEG 2000, HEVC "
        f"or VVC, TEC's bits are {pairs} (1 is equal).{said} If you have such a pipeline and can "
        "live without a chunked store, the gain is that ratio, not the one to per-band JPEG 2000. "
        f"Below 36 dB and above 46 dB nothing is claimed.{floor}\n"
    )


def _indices() -> str:
    results = load("downstream")
    if not results:
        return ""
    tec = [row for row in results["rows"] if row["codec"] == "tec"]
    lines = [
        f"quality {quality:g}: "
        + span([r["ndvi_mean"] for r in tec if r["tec_quality"] == quality], ".3f")
        + " in the mean, 5 % of pixels beyond "
        + span([r["ndvi_p95"] for r in tec if r["tec_quality"] == quality], ".3f")
        for quality in sorted({row["tec_quality"] for row in tec})
    ]
    return (
        "## When small differences are the signal\n\nErrors are spread like noise, and ratios of "
        f"bands feel them most where both are dark. NDVI, over the cubes: {'; '.join(lines)}. "
        "Trends of a hundredth of NDVI in single pixels, thin plumes, subtle water colour: raise "
        "the quality, ask for a bound (`max_error=`), or do not use it. Look first: `tec-zarr "
        "report CUBE page.html`.\n"
    )


def _shocks() -> str:
    return SHOCKS


def _weights(rates: dict) -> set[str]:
    """Return the weights that rates were measured with."""
    return {
        entry["weights_sha256"]
        for entry in rates["measured"].values()
        if entry.get("weights_sha256")
    }


SHOCKS = """\
## When something is in one band alone, or in one pixel

Bits go where the energy is. Measured once by hand, on training cubes (low sun, classes and \
speckle, with earlier weights):

- **Point targets.** A model flattens a single bright pixel in one band. The embedded models \
therefore list exactly what misses by more than 7 times the RMS error of the chunk, and of the \
9 x 9 pixels around (10 times at quality 1, falling to 7 at 3). Of 140 targets in all bands of \
six training cubes, tec-s2 kept 95 % of the height or more, at quality 1, 1.5, 2, 3, 4, 6 and 8: \
of those of +1,500 DN 42, 54, 66, 94, 97, 99 and 92 %; of those of +3,000 DN 85, 96, 99 and then \
100 %. The others lie among edges and bright roofs. The lists take 0.2 to 0.4 % of the bytes up to \
quality 4, and 0.04 % at 6. A target in a cluster of like ones (a solar park, a fire front) is \
texture, and is not listed: a bound (`max_error=`) holds everywhere. Published models list nothing.
- **More than 12 bands.** The embedded models keep every band; what is faint needs quality: \
made-up cirrus in B10 of an L1C cube correlates 0.2 with itself at quality 2, 0.7 at 4 and 0.997 \
at 8. `max_error={"B10": 20}` keeps it.
- **Low sun.** The error is in DN, not in per cent. Of a scene divided by 20 the error is 0.3 \
to 1.9 times the spread of a band at quality 4 (median 0.6), 0.1 to 0.7 at quality 8. Ask for a \
bound.
- **Classes and speckle.** Classes passed by hand come back wrong in 95 % of the pixels at \
quality 4, 87 % at 8; encoding warns. Speckle of radar is noise to the model and is smoothed: \
nothing warns, and nothing of it was tuned.
"""


def _speed_reason() -> str:
    results = load("speed")
    if not results:
        return ""
    ratios = speed_ratios(results)
    zstd = [row["decode_mb_s"] for row in results["rows"] if row["codec"].startswith("zstd")]
    ours = [row["decode_mb_s"] for row in results["rows"] if row["codec"] == "tec"]
    said = f", lossless Zstandard at {span(zstd, '.0f')} MB/s" if zstd else ""
    return (
        "## When decoding speed decides\n\nOn one core TEC decodes "
        f"{span(ours, '.0f')} MB/s of raw pixels, "
        f"{span([d for _, d in ratios['jpeg2000']], '.1f')} times as long as OpenJPEG at equal "
        f"PSNR{said}. A cube that is read again and again from a local disk is better plain; TEC "
        "pays where storage or the network is the limit.\n"
    )


def _reading() -> str:
    results = load("system")
    if not results:
        return ""
    window, date = list(next(iter(results["bytes_read"].values())))[:2]
    read = results["bytes_read"]
    return (
        "## When reads are tiny\n\nAll bytes of a chunk are read, and a date is decoded whole: for "
        "one pixel as for all. (Other dates of the chunk are not, in Zarr format 3.) The default "
        f"chunk is 4 dates x all bands x 256 x 256. {window}: {read['tec'][window]:,} bytes are "
        f"read, plain {read['plain'][window]:,}; {date}: {read['tec'][date]:,} bytes, or "
        f'{read["tec, one date a chunk"][date]:,} with `chunks={{"time": 1}}`. The first pixel '
        f"of a cold process takes {results['first_pixel']['tec']['cpu_s']:.1f} processor seconds, "
        f"plain {results['first_pixel']['plain']['cpu_s']:.1f}. A process "
        f"that decodes peaks at {results['memory_mb']['decode']['peak']:.0f} MB for such a chunk, "
        f"one that encodes at {results['memory_mb']['encode']['peak']:.0f} MB.\n"
    )


def _to_jpegxl(entry: dict) -> float | None:
    return entry.get("tec_against", {}).get("jpegxl", {}).get("ratio")


def _few_bands() -> str:
    results = load("rate_distortion")
    if not results:
        return ""
    scenes = results["summary"]["scenes"]
    lines = []
    for bands in ("B02 B03 B04 B08", "B02 B03 B04", "B08"):
        ratios = [
            ratio
            for name, entry in scenes.items()
            if name.endswith(f"[{bands}]") and (ratio := _to_jpegxl(entry)) is not None
        ]
        if ratios:
            lines.append(f"{bands}: {span(ratios, '.2f')}")
    whole = [
        ratio
        for name, entry in scenes.items()
        if name in SEASONAL and (ratio := _to_jpegxl(entry)) is not None
    ]
    if not lines or not whole:
        return ""
    return (
        "## When there are few bands\n\nMuch of the gain comes from what the bands share. Bits to "
        f"per-band JPEG XL's at equal PSNR: all 12 bands {span(whole, '.2f')}; "
        f"{'; '.join(lines)}.\n"
    )


def browser() -> str:
    """Decoding in WebAssembly, and the page of ``tec-zarr view``."""
    results = load("browser")
    if results is None:
        return "Not measured here: there is no `browser.json`.\n"
    decoding = [
        [name, f"{row['native']:.3f}", f"{row['wasm']:.3f}", f"{row['ratio']:.1f}"]
        for name, row in results["decoding"].items()
    ]
    pages = [
        [
            name, f"{statistics.median(row['seconds_each']):.1f}",
            f"{min(row['seconds_each']):.1f}", f"{row['processor_seconds']:.1f}",
            f"{row['megabytes_read']:.2f}",
            f"{row['requests']:.0f}", f"{row['renderer_megabytes']:.0f}",
        ]
        for name, row in results["page"].items()
    ]  # fmt: skip
    loads = sorted(results[f"load_average_{when}"][0] for when in ("before", "after"))
    before = "pages would take less on an idle machine"
    if results["first"]:
        before = "those of the measurement went before the others, as on an idle machine"
    return (
        "Decoding a chunk of 4 dates, 12 bands, 256 x 256 pixels on one core, in processor "
        "seconds:\n\n"
        + table(["chunk", "native", "WebAssembly", "times as long"], decoding)
        + "\nThe first picture, from opening the page in a new browser (1280 x 800) until all that "
        "it shows is drawn; `demo` is the store of `tec-zarr demo`, `large` has 12 dates of 4096 x "
        "4096 pixels. Memory and processor seconds are of the page's process, which has the "
        "workers.\n\n"
        + table(
            ["store", "seconds, median", "fastest", "processor seconds", "MB read", "requests",
             "memory, MB"],
            pages,
        )
        + f"\n{machine(results)} {results['chromium'].split(' built')[0]}, Node.js "
        f"{results['node']}. {loads[0]:.0f} to {loads[1]:.0f} processes wanted these cores when it "
        f"was measured: {before}.\n"
    )


def _readers() -> str:
    return (
        "## When others must read it without Python\n\nArrays of the embedded models are read by "
        "GDAL, and so by QGIS and R, in Zarr format 2 and with a plugin that is compiled for the "
        "GDAL at hand ([gdal.md](gdal.md)); by browsers and Node, in both formats "
        "([browser.md](browser.md), which also shows stores); by C programs ([readers/c]"
        "(../readers/c/tec_decode.c)). `make conformance-kit` is for writers of other readers. "
        "Everything else knows no codec `tec`: GDAL in format 3, other Zarr libraries, and xarray "
        "where tec_zarr is not installed, which then cannot open a group that holds a TEC array. "
        "The published models need Python and torch. Keep TEC arrays in a "
        "group of their own, or serve them decoded (`tec-zarr decode`, the examples).\n"
    )


def _always() -> str:
    return (
        "## Never\n\n"
        "- Classes, masks, angles, elevation, anything that is not reflectance: "
        "`tec_zarr.encoding` stores those losslessly.\n"
        "- Data that will be written again and again: every generation loses more "
        "(tec_zarr warns).\n"
        "- Other sensors: the models know Sentinel-2's bands and noise. Nothing else was "
        "measured.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
