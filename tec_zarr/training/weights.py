"""The tensors of a weights file of the embedded models, and the tables of its context network."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from tec_zarr.native.core import MOST_BANDS
from tec_zarr.native.tile import INPUTS
from tec_zarr.sentinel2 import L1C_BANDS, L2A_BANDS

HIDDEN, TABLES, REACH, PLAIN, INDEXES = 32, 40, 32, 28, 96
SYMBOLS = 2 * REACH + 1
SHIFTS = (6, 6, 10)
GAIN_FACTORS = 8

USUAL_BANDS: tuple[tuple[str, ...], ...] = (
    L1C_BANDS,
    L2A_BANDS,
    tuple(b for b in L2A_BANDS if b != "B01"),
    tuple(b for b in L2A_BANDS if b != "B09"),
    tuple(b for b in L2A_BANDS if b not in ("B01", "B09")),
    tuple(b for b in L2A_BANDS if b not in ("B01", "B09", "B8A")),
    tuple(b for b in L2A_BANDS if b not in ("B01", "B09", "B08")),
    ("B02", "B03", "B04", "B08", "B11", "B12"),
    ("B02", "B03", "B04", "B8A", "B11", "B12"),
)
"""Common sets of bands, for each of which the weights have a basis. The core knows their sizes."""

TENSORS: dict[str, tuple[tuple[int, ...], type]] = {
    "context.first": ((INPUTS, HIDDEN), np.int8),
    "context.first_bias": ((HIDDEN,), np.int32),
    "context.second": ((HIDDEN, HIDDEN), np.int8),
    "context.second_bias": ((HIDDEN,), np.int32),
    "context.last": ((HIDDEN,), np.int8),
    "context.last_bias": ((1,), np.int32),
    "context.mean": ((4, MOST_BANDS), np.int16),
    "frequencies": ((TABLES, SYMBOLS), np.int32),
    "towards_zero": ((INDEXES, 2), np.uint8),
    "usual_bases": ((len(USUAL_BANDS) * len(L1C_BANDS), len(L1C_BANDS)), np.int32),
    **{
        f"{name}.{size}": ((size, size), kind)
        for size in (8, 16)
        for name, kind in (
            ("overlap", np.float64), ("dct", np.float64), ("overlap_back", np.int32),
            ("dct_back", np.int32),
        )
    },
    "gain.16": ((GAIN_FACTORS, 16), np.int32),
    "gain.8.repeated": ((GAIN_FACTORS, 8), np.int32),
    "gain.8.bilinear": ((GAIN_FACTORS, 8), np.int32),
}  # fmt: skip
"""Shape and type of each tensor."""


def low_bits(indexes: np.ndarray) -> np.ndarray:
    """Return the number of low bits that symbols of these indexes send without a table."""
    return np.where(indexes < PLAIN + 4, 0, (indexes - PLAIN) // 4)


def table_of(indexes: np.ndarray) -> np.ndarray:
    """Return the number of the table of frequencies for each index."""
    return np.where(indexes < PLAIN + 4, indexes, PLAIN + (indexes - PLAIN) % 4)


def column_of(symbols: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """Return the column of each symbol in its table."""
    return np.clip(symbols >> low_bits(indexes), -REACH, REACH) + REACH


def weights_file(tensors: dict[str, np.ndarray]) -> bytes:
    """Return tensors as safetensors, in the order of their names. The core checks them."""
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
