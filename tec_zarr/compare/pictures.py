"""Pictures of two cubes, maps and histograms of their differences."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

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


def make_pictures(
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


def error_maps(
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


def histograms(error: np.ndarray, bands: Sequence[str]) -> dict[str, object]:
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
