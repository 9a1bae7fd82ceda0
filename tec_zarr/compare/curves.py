"""Rate against distortion of TEC and of other codecs, on a part of a cube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare import classical
from tec_zarr.compare.tables import card_of
from tec_zarr.sentinel2 import BANDS
from tec_zarr.stores.info import Stored

if TYPE_CHECKING:
    import pandas as pd


RATE_WINDOW = 256
"""Side in pixels, and 4 dates, of the part on which other codecs are tried."""


QUALITIES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
"""Of TEC's curve."""


def rate_card(
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
    return card_of(
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
