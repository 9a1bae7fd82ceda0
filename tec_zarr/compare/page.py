"""One self-contained HTML page: what a cube lost, where, and what other codecs would have done.

The page is ``report_page.html`` with its data put in; it loads nothing from anywhere. Sizes are
bounded: the pictures show the part of the cube with the largest errors, at full resolution and as
large as fits, so that a page stays under 10 MB whatever the cube.
"""

from __future__ import annotations

import base64
import json
import math
import platform
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare import classical
from tec_zarr.compare.align import comparable, in_dn, pair
from tec_zarr.compare.tables import size
from tec_zarr.cubes.dims import TIME, find_dim, names_along_bands, reflectance_names
from tec_zarr.cubes.files import is_zarr, open_cube
from tec_zarr.errors import LimitError, UnsupportedArrayError
from tec_zarr.face.accessor import error_table
from tec_zarr.sentinel2 import BANDS, UnknownBandError, band_name
from tec_zarr.stores.info import Stored

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_SAMPLES", "page", "write_page"]

MAX_SAMPLES = 100_000_000
"""Largest cube that a page is made of: pictures and tables need some 50 bytes a sample."""

PICTURE_BYTES = 7_500_000
"""Bytes of all pictures together, at most: decides how many pixels they show."""

MAX_DATES = 12
"""Dates that the pictures and maps show; of longer series as many, evenly spread."""

COMPOSITES = (
    ("true colour", ("B04", "B03", "B02")),
    ("near infrared", ("B08", "B04", "B03")),
    ("short-wave infrared", ("B12", "B08", "B04")),
)
"""What the pictures show; composites with a missing band are left out."""

RATE_WINDOW = 256
"""Side in pixels, and 4 dates, of the part on which other codecs are tried."""

QUALITIES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
"""Of TEC's curve."""


def write_page(
    target: str | Path,
    a: str | Path,
    b: str | Path,
    facts: Mapping[str, str] | None = None,
    bands: Sequence[str] | None = None,
) -> None:
    """Compare the reflectance of two cubes on disk and write the page.

    Parameters
    ----------
    target : str or Path
        The HTML file.
    a, b : str or Path
        Original and decoded, as `tec_zarr.cubes.files.open_cube` takes them. Where ``b`` is a Zarr
        store, the page tells its size, settings and bits per chunk.
    facts : mapping of str to str, optional
        As in `page`; default: the two paths.
    bands : sequence of str, optional
        Names of the bands of ``a``; default: what it says, or ``b``.

    Raises
    ------
    UnsupportedArrayError, LimitError
        As `page`.
    """
    before, after = open_cube(a, bands=bands), open_cube(b)
    inside = [str(name) for name in after.data_vars if name in reflectance_names(after)]
    text = page(
        *pair(before, after),
        title=f"{Path(a).name}: what TEC keeps",
        stored=Stored.of(b, inside) if is_zarr(Path(b)) and inside else None,
        facts=facts or {"original": str(a), "decoded": str(b)},
    )
    Path(target).write_text(text, encoding="utf-8")


def page(
    original: xr.DataArray,
    decoded: xr.DataArray,
    *,
    table: pd.DataFrame | None = None,
    title: str = "TEC report",
    stored: Stored | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Make the page.

    Parameters
    ----------
    original, decoded : DataArray
        (time, band, y, x), time and band optional; integers are DN, floats reflectance or DN. Same
        dates, bands and pixels.
    table : DataFrame, optional
        Of `tec_zarr.face.accessor.report`, where it was made already.
    title : str
        Heading.
    stored : Stored, optional
        Where ``decoded`` is stored: adds size, settings, and the map of bits per chunk.
    facts : mapping of str to str, optional
        More rows for the table of provenance, such as file names.

    Returns
    -------
    str
        HTML, UTF-8, less than 10 MB.

    Raises
    ------
    UnsupportedArrayError
        The cubes can't be compared, or are smaller than 11 x 11 pixels.
    LimitError
        More than `MAX_SAMPLES` samples: take a part of the cube with ``isel``.
    """
    decoded = comparable(original, decoded)
    if original.size > MAX_SAMPLES:
        raise LimitError(
            f"a cube of {original.size} samples is too large for one page, at most {MAX_SAMPLES}: "
            "take a part of both cubes, such as .isel(x=slice(0, 1024), y=slice(0, 1024))"
        )
    table = error_table(decoded, original) if table is None else table
    before, after = in_dn(original, decoded)
    if min(before.shape[-2:]) < 11:
        raise UnsupportedArrayError(f"{before.shape[-2:]} pixels are too few for a report")
    bands, dates = _canonical(names_along_bands(original)), _dates(original, len(before))
    shown = sorted({round(i) for i in np.linspace(0, len(dates) - 1, min(len(dates), MAX_DATES))})
    error = after - before
    composites, pictures, window = _pictures(before, after, error, bands, dates, shown)
    maps, cell = _maps(error, bands, dates, shown)
    data = {
        "composites": composites,
        "pictures": pictures,
        "maps": maps,
        "errors": _histograms(error, bands),
        "chunks": None if stored is None else _chunks(stored, original.shape, dates),
    }
    return _filled(
        title=escape(title),
        subtitle=escape(_subtitle(before, dates, original)),
        tiles=_tiles(table, before, after, original, stored),
        window=window,
        cell=cell,
        bands=_band_table(table),
        indices=_index_card(table),
        rates=_rate_card(before, bands, table, original, stored),
        chunks=_chunk_card(data["chunks"]),
        facts=_facts(original, stored, facts or {}),
        data=json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
    )


def _filled(**parts: str) -> str:
    text = resources.files("tec_zarr.compare").joinpath("report_page.html").read_text("utf-8")
    pieces = text.split("@@")  # at odd places the names of what goes there
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def _canonical(names: Sequence[str]) -> list[str]:
    try:
        return [band_name(name) for name in names]
    except UnknownBandError:
        return list(names)


def _dates(cube: xr.DataArray, count: int) -> list[str]:
    dim = find_dim(cube, TIME)
    if dim is not None and dim in cube.coords and cube[dim].dtype.kind == "M":
        return [str(value)[:10] for value in cube[dim].values]
    return [f"date {number + 1}" for number in range(count)]


def _subtitle(cube: np.ndarray, dates: Sequence[str], original: xr.DataArray) -> str:
    n_dates, n_bands, height, width = cube.shape
    when = f" ({dates[0]} to {dates[-1]})" if len(dates) > 1 and dates[0][0].isdigit() else ""
    plural = "s" if n_dates > 1 else ""
    return f"{n_dates} date{plural}{when}, {n_bands} bands, {height} x {width} px, {original.dtype}"


def _tiles(
    table: pd.DataFrame,
    before: np.ndarray,
    after: np.ndarray,
    original: xr.DataArray,
    stored: Stored | None,
) -> str:
    whole = table.loc["all"]
    lost = np.count_nonzero(metrics.nodata_differs(before, after))
    tiles = []
    if stored is not None:
        bits = 8 * stored.n_bytes / original.size
        tiles += [
            ("smaller than raw", f"{original.nbytes / stored.n_bytes:.1f} : 1", ""),
            (f"of {size(original.nbytes)} raw", size(stored.n_bytes), ""),
            ("bits per pixel and band", f"{bits:.4f}", ""),
        ]
    tiles += [
        ("PSNR", _decibel(whole["psnr"]), ""),
        ("SSIM", f"{whole['ssim']:.4f}", ""),
        ("mean spectral angle", f"{whole['sam']:.2f}&deg;", ""),
        ("mean absolute error", f"{whole['mean_abs_error']:.1f} DN", ""),
        ("largest error", f"{whole['max_error']:.0f} DN", ""),
        ("nodata", f"{lost:,} wrong" if lost else "exact", "bad" if lost else "good"),
    ]
    return "".join(
        f'<div class="tile"><b class="{kind}">{value}</b><span>{label}</span></div>'
        for label, value, kind in tiles
    )


def _decibel(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "exact"


# ------------------------------------------------------------------------------ pictures


def _pictures(
    before: np.ndarray,
    after: np.ndarray,
    error: np.ndarray,
    bands: Sequence[str],
    dates: Sequence[str],
    shown: Sequence[int],
) -> tuple[list[str], list[dict[str, object]], str]:
    """Composites, pictures of every shown date, and the sentence that says which part it is."""
    named = [(n, [bands.index(b) for b in bs]) for n, bs in COMPOSITES if set(bs) <= set(bands)]
    named = named or [(f"{bands[0]} only", [0, 0, 0])]
    count = 2 * len(named) * len(shown)
    # A PNG of noise takes 3 bytes a pixel, base64 four: what no picture can exceed.
    side = int(math.sqrt(PICTURE_BYTES / count / 4.02))
    rows, columns = (
        _worst(np.nan_to_num(np.square(error).mean(axis=(0, 1), dtype=np.float64)), axis, side)
        for axis in (0, 1)
    )
    pictures: list[dict[str, object]] = []
    for date in shown:
        images, steps = [], []
        for _, index in named:
            pair = [cube[date][index][:, rows, columns] for cube in (before, after)]
            finite = pair[0][np.isfinite(pair[0])]
            low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
            high = max(high, low + 1)
            images.append([_png(_stretch(part, low, high)) for part in pair])
            steps.append(round(float(high - low) / 255, 1))
        pictures.append({"date": dates[date], "images": images, "steps": steps})
    height, width = before.shape[-2:]
    whole = rows == slice(0, height) and columns == slice(0, width)
    where = (
        "The whole cube"
        if whole
        else f"Rows {rows.start} to {rows.stop - 1} and columns {columns.start} to "
        f"{columns.stop - 1}, around the largest errors"
    )
    some = "" if len(shown) == len(dates) else f" {len(shown)} of {len(dates)} dates."
    return (
        [name for name, _ in named],
        pictures,
        f"{where}, at full resolution.{some} Drag over the picture, or move the slider.",
    )


def _worst(squares: np.ndarray, axis: int, side: int) -> slice:
    """The ``side`` rows or columns that hold most of the squared error."""
    profile = squares.sum(axis=1 - axis)
    if profile.size <= side:
        return slice(0, profile.size)
    sums = np.convolve(profile, np.ones(side), "valid")
    start = int(sums.argmax())
    return slice(start, start + side)


def _stretch(bands: np.ndarray, low: float, high: float) -> np.ndarray:
    """(3, y, x) DN to (y, x, 3) uint8; nodata black."""
    grey = np.nan_to_num((bands - low) * (255 / (high - low)), nan=0.0)
    return np.moveaxis(np.rint(grey).clip(0, 255).astype(np.uint8), 0, -1)


def _png(image: np.ndarray) -> str:
    """(y, x, 3) uint8 as PNG in base64; every row with PNG's filter "Sub"."""
    height, width, _ = image.shape
    differences = image.copy()
    differences[:, 1:] -= image[:, :-1]
    rows = np.concatenate([np.ones((height, 1), np.uint8), differences.reshape(height, -1)], axis=1)

    def block(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    data = (
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + block(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + block(b"IEND", b"")
    )
    return base64.b64encode(data).decode("ascii")


# ------------------------------------------------------------------------ maps and errors


def _maps(
    error: np.ndarray, bands: Sequence[str], dates: Sequence[str], shown: Sequence[int]
) -> tuple[dict[str, object], str]:
    """Root mean square errors in cells, one byte each, of all bands together and of each."""
    step = max(1, math.ceil(max(error.shape[-2:]) / 64))
    values, largest = [], []
    for date in shown:
        squares = _cells(np.square(error[date].astype(np.float64)), step)
        for part in (_mean(squares, axis=0), *squares):
            rms = np.nan_to_num(np.sqrt(part))
            top = max(float(rms.max()), 1e-9)
            largest.append(_three_digits(float(rms.max())))
            values.append(np.rint(255 * rms / top).astype(np.uint8))
    rows, columns = values[0].shape
    packed = base64.b64encode(np.stack(values).tobytes()).decode("ascii")
    maps = {
        "dates": [dates[date] for date in shown],
        "bands": ["all bands", *bands],
        "rows": rows,
        "columns": columns,
        "values": packed,
        "largest": largest,
    }
    return maps, f"{step} x {step} px" if step > 1 else "one pixel"


def _cells(values: np.ndarray, step: int) -> np.ndarray:
    """Means over cells of ``step`` x ``step`` pixels, of what is not nan; (band, y, x)."""
    height, width = values.shape[-2:]
    missing = [(0, 0), (0, -height % step), (0, -width % step)]
    padded = np.pad(values, missing, constant_values=np.nan)
    parts = padded.reshape(len(values), padded.shape[1] // step, step, -1, step)
    return _mean(_mean(parts, axis=4), axis=2)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is not nan; nan, silently, where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=axis)
    count = known.sum(axis=axis)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _histograms(error: np.ndarray, bands: Sequence[str]) -> dict[str, object]:
    shares, reaches, texts = [], [], []
    for part in (error, *np.moveaxis(error, 1, 0)):
        values = part[np.isfinite(part)]
        size = np.abs(values)
        reach = max(1, math.ceil(float(np.percentile(size, 99.9)))) if size.size else 1
        counts, _ = np.histogram(values.clip(-reach, reach), bins=61, range=(-reach, reach))
        shares.append([float(f"{c / max(values.size, 1):.3g}") for c in counts])
        reaches.append(reach)
        half, most, top = np.percentile(size, [50, 95, 99]) if size.size else (0, 0, 0)
        texts.append(
            f"Half of the samples are within {half:.0f} DN, 95 % within {most:.0f}, 99 % within "
            f"{top:.0f}. Errors beyond {reach} DN (0.1 %) are in the outermost bars."
        )
    return {"bands": ["all bands", *bands], "shares": shares, "reach": reaches, "text": texts}


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")


# --------------------------------------------------------------------------------- tables


def _html_table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """First column of names, then numbers; the row "all" stands out."""
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for name, cells in rows:
        kind = ' class="total"' if name == "all" else ""
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr{kind}><td>{escape(name)}</td>{numbers}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _is_index(row: Any) -> bool:
    return math.isnan(row["psnr"]) and math.isfinite(row["mean_error"])


def _band_table(table: pd.DataFrame) -> str:
    rows = [
        (
            str(name),
            [
                _decibel(row["psnr"]).removesuffix(" dB"), f"{row['ssim']:.4f}",
                f"{row['mean_error']:+.2f}",
                f"{row['mean_abs_error']:.1f}", f"{row['max_error']:.0f}",
            ],
        )
        for name, row in table.iterrows()
        if not _is_index(row)
    ]  # fmt: skip
    head = ("band", "PSNR, dB", "SSIM", "mean error", "mean |error|", "largest")
    return _html_table(head, rows)


def _index_card(table: pd.DataFrame) -> str:
    rows = [
        (
            str(name),
            [
                f"{row['mean_error']:+.5f}", f"{row['mean_abs_error']:.5f}",
                f"{row['max_error']:.3f}",
            ],
        )
        for name, row in table.iterrows()
        if _is_index(row)
    ]  # fmt: skip
    if not rows:
        return ""
    made = _html_table(("index", "mean error", "mean |error|", "largest"), rows)
    return _card(
        "Per index",
        made,
        "Normalised differences, in their own units (-1 to 1). The largest errors are where the "
        "sum of the two bands is small: dark water and shadow.",
    )


def _card(heading: str, content: str, note: str) -> str:
    return (
        f'<section class="card"><h2>{heading}</h2><div class="scroll">{content}</div>'
        f'<p class="soft" style="margin-top:8px">{note}</p></section>'
    )


def _facts(original: xr.DataArray, stored: Stored | None, more: Mapping[str, str]) -> str:
    facts = dict(more)
    if stored is not None:
        facts["chunks"] = " x ".join(map(str, stored.chunks))
        if stored.spec is not None:
            facts["codec"] = json.dumps(stored.spec.to_config())
    for key in ("title", "source", "history", "processing_baseline"):
        if key in original.attrs:
            facts[key] = str(original.attrs[key])
    versions = [f"{name} {metadata.version(name)}" for name in ("tec_zarr", "numpy", "zarr")]
    facts["made by"] = f"{', '.join(versions)}, Python {platform.python_version()}"
    return "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in facts.items()
    )


# ------------------------------------------------------------------- rates, and bits per chunk


def _rate_card(
    before: np.ndarray,
    bands: Sequence[str],
    table: pd.DataFrame,
    original: xr.DataArray,
    stored: Stored | None,
) -> str:
    """Bits and PSNR of TEC and of per-band codecs on a part of this cube."""
    height, width = before.shape[-2:]
    top, left = (max(0, (length - RATE_WINDOW) // 2) for length in (height, width))
    part = before[:4, :, top : top + RATE_WINDOW, left : left + RATE_WINDOW]
    dn = np.nan_to_num(part, nan=0).clip(0, 65535).round().astype(np.uint16)
    valid = dn != 0
    if not valid.any():
        return ""
    model = "tec-s2" if stored is None or stored.spec is None else stored.spec.model
    curves = {f"TEC ({model})": _tec_curve(dn, valid, bands, model)}
    for codec in classical.available():
        points = []
        for level in codec.levels:
            n_bytes, decoded = codec.code(dn, level)
            points.append((metrics.bpppb(n_bytes, dn.shape), metrics.psnr(dn, decoded, valid)))
        curves[codec.title] = points
    here = None
    if stored is not None and math.isfinite(table.loc["all", "psnr"]):
        here = 8 * stored.n_bytes / original.size, float(table.loc["all", "psnr"])
    shape = " x ".join(map(str, dn.shape))
    missing = (
        "" if len(curves) > 1 else " <code>pip install imagecodecs</code> adds classical codecs."
    )
    dot = " The dot is the store: the whole cube, with its metadata." if here else ""
    return _card(
        "Against other codecs, on this cube",
        _rate_svg(curves, here),
        f"Measured now on the middle of the cube, {shape}: every byte counted, PSNR over all "
        f"bands.{dot}{missing}",
    )


def _tec_curve(
    dn: np.ndarray, valid: np.ndarray, bands: Sequence[str], model: str
) -> list[tuple[float, float]]:
    known = tuple(bands) if set(bands) <= set(BANDS) else None
    points = []
    for quality in QUALITIES:
        coded = encode_chunk(dn, ChunkSpec(model=model, quality=quality, bands=known))
        decoded = decode_chunk(coded)
        points.append((metrics.bpppb(len(coded), dn.shape), metrics.psnr(dn, decoded, valid)))
    return points


_COLOURS = ("var(--accent)", "var(--second)", "#8a7fd6", "#5d9e4a")
_DASHES = (("solid", "none"), ("dashed", "7 4"), ("dotted", "2 3"), ("double", "9 3 2 3"))
"""Of lines, in CSS and in SVG: every four curves, which take the colours, take the next one."""


def _rate_svg(
    curves: Mapping[str, Sequence[tuple[float, float]]], here: tuple[float, float] | None
) -> str:
    """Bits on a logarithmic axis, PSNR upwards."""
    wide, high, left, bottom = 480, 360, 40, 316
    points = [p for curve in curves.values() for p in curve if math.isfinite(p[1])]
    points += [here] if here else []
    bits, psnrs = [p[0] for p in points], [p[1] for p in points]
    low, top = math.floor(min(psnrs)) - 1, math.ceil(max(psnrs)) + 1
    first, last = (math.log10(f * b) for f, b in ((0.85, min(bits)), (1.15, max(bits))))

    def at(bit: float, psnr: float) -> tuple[float, float]:
        x = left + (wide - left - 10) * (math.log10(bit) - first) / (last - first)
        return round(x, 1), round(bottom - (bottom - 10) * (psnr - low) / (top - low), 1)

    parts = [
        f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="rate and distortion" '
        'style="max-width:640px">'
    ]
    for psnr in range(low - low % 4 + 4, top, 4):
        y = at(bits[0], psnr)[1]
        parts.append(f'<line class="axis" x1="{left}" x2="{wide}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{psnr}</text>')
    for exponent in range(-4, 3):
        for digit in (1, 2, 5):
            bit = digit * 10.0**exponent
            if first <= math.log10(bit) <= last:
                x = at(bit, low)[0]
                parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="10" y2="{bottom}"/>')
                parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{bit:g}</text>')
    parts.append(
        f'<text x="{wide - 2}" y="{high - 6}" text-anchor="end">bits per pixel and band</text>'
        f'<text x="{left + 6}" y="22">PSNR, dB</text>'
    )
    legend = []
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        border, dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        line = sorted(p for p in curve if math.isfinite(p[1]))
        path = " ".join("{},{}".format(*at(*p)) for p in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke-width="2.5" '
            f'style="stroke:{colour};stroke-dasharray:{dashes}"/>'
        )
        legend.append(
            f'<span><i style="color:{colour};border-top-style:{border}"></i>{escape(name)}</span>'
        )
    if here:
        x, y = at(*here)
        parts.append(f'<circle class="here" cx="{x}" cy="{y}" r="7"/>')
    return f'{"".join(parts)}</svg><div class="legend">{"".join(legend)}</div>'


def _chunks(
    stored: Stored, shape: tuple[int, ...], dates: Sequence[str]
) -> dict[str, object] | None:
    """Bits per sample of every chunk, an image for each chunk of dates; None of one chunk."""
    if stored.chunk_bytes is None or math.prod(stored.chunk_bytes.shape[-2:]) == 1:
        return None
    lengths = [
        [min(chunk, total - start) for start in range(0, total, chunk)]
        for total, chunk in zip(shape, stored.chunks, strict=True)
    ]
    samples = np.ones((1,))
    for axis in lengths:
        samples = np.multiply.outer(samples, np.array(axis, np.float64))
    bits = 8 * stored.chunk_bytes / samples[0]
    images = bits.reshape(-1, *bits.shape[-2:])
    names = [f"chunk {number + 1} of dates and bands" for number in range(len(images))]
    if len(shape) == 4 and bits.shape[1] == 1:
        step = stored.chunks[0]
        spans = [dates[start : start + step] for start in range(0, len(dates), step)]
        names = [span[0] if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
    return {
        "dates": names,
        "bits": [[[round(float(v), 5) for v in row] for row in image] for image in images],
        "largest": round(max(float(bits.max()), 1e-9), 5),
    }


def _chunk_card(chunks: Any) -> str:
    if chunks is None:
        return ""
    return (
        '<section class="card"><h2>Bits per chunk</h2><p class="soft">Stored bits per pixel and '
        "band of every chunk of the store: where the detail is.</p>"
        '<div class="controls"><label>Chunks <select id="chunkdate"></select></label></div>'
        '<canvas class="pixels" id="chunkmap" role="img" aria-label="bits per chunk" '
        'style="max-width:520px"></canvas><div class="scale" style="max-width:520px"><span>0</span>'
        f"<i></i><span>{chunks['largest']:.3g} bits</span></div></section>"
    )
