"""What the temporal model saves over time series, and what reading one date then costs.

    python benchmarks/temporal.py [--quick] [--data FOLDER] [--out DIR] [--docs FILE]

Bits at equal PSNR (all bands, clipped to 0-10,000 DN, peak 10,000; all bytes counted) of
``tec-tt-s2`` against ``tec-s2`` and against x265 and KLT + x265 over time, in one run, on the
seasonal evaluation cubes (4 dates, 256 x 256) and on the dense series that were held out of
training; these once with all their dates and once without the cloudy ones. And of layers of
``tec-flex-s2``, encoded once and cut, against the first two. Writes
``temporal.json`` and, from it, ``docs/temporal.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from classical import hevc_time, hevc_time_tuned, klt_x265, klt_x265_tuned
from environment import DATA, ROOT, Scene, commit, environment, scenes
from rate_distortion import code_tec

from tec_zarr import metrics
from tec_zarr.sentinel2 import L2A_BANDS

PSNRS = np.arange(36, 46.01, 0.5)
TABLE_PSNRS = (36, 38, 40, 42, 44, 46)
QUALITIES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
STEPS_OF_X265 = (8, 14, 20, 26, 32, 38)
HELD_OUT = {
    "worldcereal-classification__0000280849BAC91C": ("cropland A", 0),
    "worldcereal-classification__00002806639B424A": ("cropland B, last dates", 90),
    "openeo-photovoltaic__S2-2022-2011": ("solar park", 0),
    "presto-worldcereal__belgium-12m": ("monthly composites", 0),
}
"""Kept out of trainings of temporal models, with the first date that was."""
CHUNK = 12
"""Dates of a chunk of the dense series."""
OURS = ("tec-tt-s2", "tec-flex-s2", "tec-s2")
FLEX_LAYERS = {2.5: (5.0, 1), 3.5: (6.0, 2), 4.5: (7.0, 2), 5.0: (5.0, 2), 6.0: (6.0, 3)}
"""Layers by their quality: the quality of the stream that is cut, and how many layers are kept."""
CLOUDY_BLUE = 1600.0
"""A date whose mean in B02 (DN) is above this is cloudy."""
GOPS = (1, 2, 4, 6, 12)


def dense_series(folder: Path) -> Iterator[Scene]:
    """Held-out series, whole and without cloudy dates, cut to whole chunks."""
    for stem, (name, first) in HELD_OUT.items():
        path = folder / f"{stem}.npz"
        if not path.exists():
            continue
        with np.load(path, allow_pickle=False) as file:
            present = file["present"].astype(bool)
            dn = file["dn"][first:][:, present]
        bands = tuple(band for band, has in zip(L2A_BANDS, present, strict=True) if has)
        dn = dn[(dn > 0).all(axis=(1, 2, 3))]
        clear = dn[:, bands.index("B02")].mean((1, 2)) < CLOUDY_BLUE
        for label, dates in ((name, dn), (f"{name}, clear dates", dn[clear])):
            whole = len(dates) // CHUNK * CHUNK or len(dates)
            if label == name or 6 <= len(dates) < len(dn):
                yield Scene(label, "dense", bands, np.ascontiguousarray(dates[:whole]))


def padded(code: Callable, cube: np.ndarray, level: float) -> tuple[int, np.ndarray]:
    """x265 on sizes that it takes: edges repeated up to whole multiples of 16."""
    height, width = cube.shape[2:]
    edges = ((0, 0), (0, 0), (0, -height % 16), (0, -width % 16))
    size, decoded = code(np.pad(cube, edges, "edge"), level)
    return size, decoded[:, :, :height, :width]


def in_chunks(code: Callable, scene: Scene, level: float) -> tuple[int, np.ndarray]:
    """A codec over time, on the same chunks of dates as TEC."""
    parts = [padded(code, scene.dn[i : i + CHUNK], level) for i in range(0, len(scene.dn), CHUNK)]
    return sum(size for size, _ in parts), np.concatenate([decoded for _, decoded in parts])


def flexible(scene: Scene) -> Callable[[float], tuple[int, np.ndarray]]:
    """A code of layers: the scene encoded once for each stream, each layer cut from that."""
    from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
    from tec_zarr.stores.transcode import transcode_chunk

    frames: dict[float, list[bytes]] = {}

    def code(quality: float) -> tuple[int, np.ndarray]:
        top, layers = FLEX_LAYERS[quality]
        if top not in frames:
            spec = ChunkSpec("tec-flex-s2", top, bands=scene.bands)
            firsts = range(0, len(scene.dn), CHUNK)
            frames[top] = [encode_chunk(scene.dn[i : i + CHUNK], spec) for i in firsts]
        parts = [transcode_chunk(frame, layers) for frame in frames[top]]
        return sum(map(len, parts)), np.concatenate([decode_chunk(part) for part in parts])

    return code


def curve(code: Callable[[float], tuple[int, np.ndarray]], levels, scene: Scene) -> list:
    points = []
    for level in levels:
        began = time.process_time()
        size, decoded = code(level)
        points.append(
            {
                "level": float(level),
                "bytes": size,
                "bpppb": metrics.bpppb(size, scene.dn.shape),
                "psnr": metrics.psnr(scene.dn, decoded),
                "cpu_seconds": round(time.process_time() - began, 3),
            }
        )
    return points


def measure(scene: Scene, quick: bool, known: dict[str, list]) -> dict:
    """Curves of every codec on one scene; of ``known`` ones but ours as they are.

    What a codec makes of the same pixels does not change; its times do, and are not compared.
    """
    step = 3 if quick else 1
    temporal = {"model": "tec-tt-s2", "dates": CHUNK}
    codecs = {
        "tec-tt-s2": (lambda q: code_tec(scene, q, **temporal), QUALITIES[::step]),
        "tec-flex-s2": (flexible(scene), list(FLEX_LAYERS)[::step]),
        "tec-s2": (lambda q: code_tec(scene, q, dates=CHUNK), QUALITIES[::step]),
    }
    for name, code in (
        ("hevc-time", hevc_time),
        ("hevc-time-tuned", hevc_time_tuned),
        ("klt-x265", klt_x265),
        ("klt-x265-tuned", klt_x265_tuned),
    ):
        codecs[name] = (lambda qp, code=code: in_chunks(code, scene, qp), STEPS_OF_X265[::step])
    curves = {
        name: known[name]
        if name in known and name not in OURS
        else curve(code, levels, scene)
        for name, (code, levels) in codecs.items()
    }
    return {"shape": list(scene.dn.shape), "kind": scene.kind, "curves": curves} | compared(curves)


def compared(curves: dict[str, list]) -> dict:
    pairs = {
        name: [(point["bpppb"], point["psnr"]) for point in points]
        for name, points in curves.items()
    }
    mine = pairs["tec-tt-s2"]
    others = [name for name in pairs if name not in OURS[:2]]
    steps = [
        {"layer": int(FLEX_LAYERS[point["level"]][1]), "psnr": point["psnr"]}
        | {
            name: float(point["bpppb"] / metrics.bits_at(pairs[name], point["psnr"])[0])
            for name in ("tec-tt-s2", "tec-s2")
        }
        for point in curves["tec-flex-s2"]
        if PSNRS[0] <= point["psnr"] <= PSNRS[-1]
    ]
    return {
        "ratio": {name: metrics.bits_ratio(mine, pairs[name], PSNRS) for name in others},
        "bd_rate_percent": {name: metrics.bd_rate(mine, pairs[name]) for name in others},
        "flexible": steps,
        "to_image_model_at": dict(
            zip(
                map(str, TABLE_PSNRS),
                (
                    metrics.bits_at(mine, TABLE_PSNRS)
                    / metrics.bits_at(pairs["tec-s2"], TABLE_PSNRS)
                ).tolist(),
                strict=True,
            )
        ),
    }


def references(section: bytes, date: int) -> list[int]:
    """The dates that a section of ``tec-tt-s2`` refers to (docs/format-tec-tt-s2.md)."""
    bits, found = "".join(f"{byte:08b}" for byte in section[1:12]), []
    for _ in range(section[0] & 3):
        ones, bits = bits.index("0"), bits[bits.index("0") + 1 :]
        number, bits = (ones << 2) + int(bits[:2], 2), bits[2:]
        found.append(date - (-((number + 1) // 2) if number % 2 else number // 2))
    return found


def key_dates(scene: Scene, quality: float = 4.0) -> list[dict]:
    """Bytes, and dates decoded on average for one date, by ``gop``."""
    from tec_zarr import ChunkSpec, encode_chunk
    from tec_zarr.frame.frame import SectionKind, read_frame

    rows = []
    for gop in GOPS:
        size, needed = 0, []
        for first in range(0, len(scene.dn), CHUNK):
            chunk = scene.dn[first : first + CHUNK]
            spec = ChunkSpec("tec-tt-s2", quality, bands=scene.bands, gop=gop)
            frame = encode_chunk(chunk, spec)
            size += len(frame)
            sections = read_frame(frame).payloads(SectionKind.LATENTS)
            uses = [set(references(section, date)) for date, section in enumerate(sections)]
            for date in range(len(uses)):
                reached, waiting = {date}, [date]
                while waiting:
                    new = uses[waiting.pop()] - reached
                    reached |= new
                    waiting += new
                needed.append(len(reached))
        rows.append(
            {
                "gop": gop,
                "bytes": size,
                "dates_decoded_for_one": float(np.mean(needed)),
                "most": max(needed),
            }
        )
    return rows


def cell(ratio: float | None, bd_rate: float | None) -> str:
    if ratio is None or bd_rate is None:
        return "no common PSNR"
    return f"{ratio:.2f} ({bd_rate:+.0f} %)"


def page(results: dict) -> str:
    """docs/temporal.md."""
    others = ("tec-s2", "hevc-time", "hevc-time-tuned", "klt-x265", "klt-x265-tuned")
    lines = [
        "# The temporal model on time series",
        "",
        "Made by `python benchmarks/temporal.py` from "
        "[temporal.json](../benchmarks/results/temporal.json); do not edit.",
        "",
        f"Bits of `tec-tt-s2` at equal PSNR over those of each codec: geometric mean over 36 to 46 "
        f"dB where both curves reach, all bytes counted, BD-rate in brackets. Seasonal cubes are "
        f"one chunk of four dates; dense series were held out of training and are cut into the "
        f"same chunks of {CHUNK} dates for every codec. Below 1 the temporal model needs fewer "
        "bits.",
        "",
        "| series | shape | " + " | ".join(others) + " |",
        "| --- | --- | " + " | ".join("---:" for _ in others) + " |",
    ]
    for name, entry in results["series"].items():
        cells = [cell(entry["ratio"][other], entry["bd_rate_percent"][other]) for other in others]
        shape = " x ".join(map(str, entry["shape"]))
        lines.append(f"| {name} | {shape} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Against the image model, by PSNR:",
        "",
        "| series | " + " | ".join(f"{p} dB" for p in TABLE_PSNRS) + " |",
        "| --- | " + " | ".join("---:" for _ in TABLE_PSNRS) + " |",
    ]
    for name, entry in results["series"].items():
        values = [entry["to_image_model_at"][str(p)] for p in TABLE_PSNRS]
        cells = ["" if value is None else f"{value:.2f}" for value in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "**Flexible.** Layers of `tec-flex-s2`, encoded once at quality 5, 6 or 7 and cut: bits at "
        "equal PSNR over those of `tec-tt-s2` and of the image model, which are encoded anew for "
        "every quality. Least and most of the layers between 36 and 46 dB, by how many layers "
        "there are below.",
        "",
        "| series | first layers over tec-tt-s2 | second | third | all over tec-s2 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, entry in results["series"].items():

        def extremes(key: str, of: Sequence[dict]) -> str:
            found = [point[key] for point in of if point[key] is not None]
            return f"{min(found):.2f} to {max(found):.2f}" if found else ""

        points = entry["flexible"]
        by_layer = [[p for p in points if p["layer"] == layer] for layer in (1, 2, 3)]
        cells = [extremes("tec-tt-s2", of) for of in by_layer]
        lines.append(f"| {name} | " + " | ".join([*cells, extremes("tec-s2", points)]) + " |")
    lines += [
        "",
        "**Clouds.** A cloudy date is explained by no other date: it is coded as the image model "
        "would, and it takes most of the bytes of a series. The rows *clear dates* show the same "
        f"places without dates whose mean in B02 is above {CLOUDY_BLUE:g} DN.",
        "",
        "**Finer dates.** A date that many others are predicted from is coded up to two qualities "
        "finer than the chunk: an error of it would be handed on. So the PSNR of a chunk's dates "
        "differs; none is coded coarser than its `quality`.",
        "",
        "**Key dates.** Dates refer to one another only within a chunk, and with `gop=n` only "
        "within runs of n dates: fewer have to be decoded for one, for more bytes. At quality 4 on "
        f"*{results['key_dates_of']}*:",
        "",
        "| gop | bytes over gop=12 | dates decoded for one, mean | most |",
        "| ---: | ---: | ---: | ---: |",
    ]
    least = results["key_dates"][-1]["bytes"]
    for row in results["key_dates"]:
        lines.append(
            f"| {row['gop']} | {row['bytes'] / least:.2f} | {row['dates_decoded_for_one']:.1f} | "
            f"{row['most']} |"
        )
    lines += ["", f"Machine: {results['environment']['machine']['cpu']}."]
    if "others_from_commit" in results:
        lines[-1] += (
            f" The TEC models were measured at commit {results['commit'][:12]}, the other "
            f"codecs, on the same pixels, at {results['others_from_commit'][:12]}."
        )
    lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a corner of one series, few levels")
    parser.add_argument("--data", type=Path, default=DATA.parent)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "temporal.md")
    parser.add_argument(
        "--again", type=Path, metavar="JSON", help="take the other codecs' curves from that run"
    )
    arguments = parser.parse_args()
    seasonal = [scene for scene in scenes(arguments.data / "eval") if scene.kind == "seasonal"]
    dense = list(dense_series(arguments.data / "train"))
    rows = [replace(s, name=f"seasonal {s.name}") for s in seasonal] + dense
    if arguments.quick:
        rows, dense = [rows[0].corner()], []
    results = {"environment": environment(), "commit": commit(), "chunk_dates": CHUNK, "series": {}}
    before = json.loads(arguments.again.read_text()) if arguments.again else None
    if before:
        results["others_from_commit"] = before["commit"]
    for scene in rows:
        known = before["series"][scene.name]["curves"] if before else {}
        results["series"][scene.name] = measure(scene, arguments.quick, known)
        print(scene.name, flush=True)
    example = next((s for s in dense if s.name == "solar park"), rows[0])
    results["key_dates_of"], results["key_dates"] = example.name, key_dates(example)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1).replace("NaN", "null")
    name = "temporal_quick.json" if arguments.quick else "temporal.json"
    (arguments.out / name).write_text(text + "\n")
    arguments.docs.write_text(page(json.loads(text)))


if __name__ == "__main__":
    main()
