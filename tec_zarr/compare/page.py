"""One self-contained HTML page: what a cube lost, where, and what other codecs would have done.

The page is ``report_page.html`` with its data put in; it loads nothing from anywhere. Sizes are
bounded: the pictures show the part of the cube with the largest errors, at full resolution and as
large as fits, so that a page stays under 10 MB whatever the cube.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.compare.align import comparable, in_dn, pair
from tec_zarr.compare.curves import rate_card
from tec_zarr.compare.measures import error_table
from tec_zarr.compare.pictures import MAX_DATES, error_maps, histograms, make_pictures
from tec_zarr.compare.tables import card_of, html_table, size
from tec_zarr.cubes.dims import TIME, find_dim, names_along_bands, reflectance_names
from tec_zarr.cubes.files import is_zarr, open_cube
from tec_zarr.errors import LimitError, UnsupportedArrayError
from tec_zarr.sentinel2 import UnknownBandError, band_name
from tec_zarr.stores.info import Stored

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_SAMPLES", "page", "write_page"]

MAX_SAMPLES = 100_000_000
"""Largest cube that a page is made of: pictures and tables need some 50 bytes a sample."""


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
        Of `tec_zarr.compare.report.report`, where it was made already.
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
    composites, pictures, window = make_pictures(before, after, error, bands, dates, shown)
    maps, cell = error_maps(error, bands, dates, shown)
    data = {
        "composites": composites,
        "pictures": pictures,
        "maps": maps,
        "errors": histograms(error, bands),
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
        rates=rate_card(before, bands, table, original, stored),
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


# ------------------------------------------------------------------------ maps and errors


# --------------------------------------------------------------------------------- tables


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
    return html_table(head, rows)


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
    made = html_table(("index", "mean error", "mean |error|", "largest"), rows)
    return card_of(
        "Per index",
        made,
        "Normalised differences, in their own units (-1 to 1). The largest errors are where the "
        "sum of the two bands is small: dark water and shadow.",
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
