"""What a store holds and how far it is from a reference: the numbers that the CLI prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tec_zarr import metrics
from tec_zarr.chunk import ChunkSpec

Row = Sequence[object]


@dataclass(frozen=True)
class StoredArray:
    """One array of a store.

    Attributes
    ----------
    path : str
        Inside the store.
    shape, dtype, chunks
        As in its metadata.
    codec : str
        What its chunks are encoded with.
    raw_bytes, stored_bytes : int
        Size in memory, and all bytes under its path in the store, metadata included.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    codec: str
    raw_bytes: int
    stored_bytes: int

    @property
    def ratio(self) -> float:
        """Raw by stored size."""
        return self.raw_bytes / max(1, self.stored_bytes)

    @property
    def bits_per_sample(self) -> float:
        """Stored bits for each pixel of each band."""
        return 8 * self.stored_bytes / max(1, math.prod(self.shape))


def stored_arrays(store: str | Path) -> list[StoredArray]:
    """All arrays of a Zarr store of either format, without decoding a chunk."""
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        return [_stored("/", node)]
    members = node.members(max_depth=None)
    return [_stored(name, a) for name, a in sorted(members) if isinstance(a, zarr.Array)]


def tec_spec(array: zarr.Array) -> ChunkSpec | None:
    """TEC's settings for ``array``, None where it is not encoded with TEC."""
    return next((c for c in _codecs(array) if isinstance(c, ChunkSpec)), None)


def _codecs(array: zarr.Array) -> list[object]:
    if array.metadata.zarr_format == 2:
        return [*array.filters, *array.compressors]
    return [*array.filters, array.serializer, *array.compressors]


def _stored(path: str, array: zarr.Array) -> StoredArray:
    spec = tec_spec(array)
    if spec is None:
        codec = ", ".join(type(c).__name__.removesuffix("Codec").lower() for c in _codecs(array))
    else:
        codec = f"TEC {spec.model} q={spec.quality:g} weights {str(spec.weights_sha256)[:8]}"
    return StoredArray(
        path, array.shape, str(array.dtype), array.chunks, codec, array.nbytes,
        array.nbytes_stored(),
    )  # fmt: skip


def error_rows(
    reference: np.ndarray, decoded: np.ndarray, bands: Sequence[str], nodata: float = 0
) -> list[Row]:
    """Per band: name, PSNR (dB), mean error, mean absolute error, largest error (DN).

    Parameters
    ----------
    reference, decoded : ndarray, (..., band, y, x)
        DN. Samples that are ``nodata`` or NaN in the reference are left out.
    bands : sequence of str
        Names along the band axis.

    Returns
    -------
    list of rows
        One per band and a last one, "all".
    """
    valid = np.isfinite(reference) & (reference != nodata)
    columns = [
        metrics.psnr_per_band(reference, decoded, valid),
        metrics.mean_error(reference, decoded, valid),
        metrics.mean_absolute_error(reference, decoded, valid),
        metrics.max_error(reference, decoded, valid),
    ]
    rows: list[Row] = [[name, *values] for name, *values in zip(bands, *columns, strict=True)]
    whole = [np.reshape(a, (1, -1, 1)) for a in (reference, decoded, valid)]
    rows.append([
        "all", metrics.psnr(reference, decoded, valid), metrics.mean_error(*whole)[0],
        metrics.mean_absolute_error(*whole)[0], metrics.max_error(*whole)[0],
    ])  # fmt: skip
    return rows


ERROR_COLUMNS = ("band", "PSNR dB", "mean error", "mean |error|", "max |error| DN")


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Text table: names to the left, numbers to the right."""
    cells = [[str(c) for c in columns], *([_cell(v) for v in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    numeric = [all(_is_number(row[i]) for row in rows) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def size(n_bytes: int) -> str:
    """Bytes as a person reads them."""
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if n_bytes >= 1000**power:
            return f"{n_bytes / 1000**power:.2f} {unit}"
    return f"{n_bytes} B"


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float | np.floating) else str(value)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
