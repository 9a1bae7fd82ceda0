"""From a trained network to released weights: freeze the integers, fit the probability tables.

Tables start from the density used in training and are then replaced by what the encoder really
produces (with its rate-distortion optimised rounding) on training crops.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from tec_zarr.entropy import TABLE_BITS, Tables, integer_table
from tec_zarr.models.s2 import TecS2, load, save
from tec_zarr.models.s2_net import SCALE_OFFSET, SCALES, S2Net, _upper
from tec_zarr.training.data import Window

#: Symbols run from -REACH to REACH at most; further ones are escapes.
REACH = 1024
#: How many observations the density of training counts for in a fitted table.
PRIOR_COUNT = 400.0


def density_tables() -> np.ndarray:
    """Integer tables (SCALES, 2 REACH + 1) of the half Gauss, half Laplace mixture."""
    out = np.zeros((SCALES, 2 * REACH + 1), np.int64)
    for index in range(SCALES):
        sigma = 2.0 ** (index / 4 - SCALE_OFFSET)
        if index == 0:
            out[index, REACH] = 1 << TABLE_BITS
            continue
        reach = int(min(max(3, np.ceil(6 * sigma)), REACH))
        size = torch.arange(0, reach + 1, dtype=torch.float64)
        half = (_upper((size - 0.5) / sigma) - _upper((size + 0.5) / sigma)).numpy()
        half[-1] += float(_upper((size[-1] + 0.5) / sigma))
        out[index, REACH - reach : REACH + reach + 1] = integer_table(
            np.concatenate([half[:0:-1], half])
        )
    return out


def fitted_tables(model: TecS2, windows: list[Window], rounds: int = 2) -> np.ndarray:
    """Tables re-estimated from what ``model`` codes on ``windows``, at qualities 1 to 8."""
    tables = density_tables()
    for _ in range(rounds):
        model.coder.tables = Tables(tables)
        counts = np.zeros_like(tables, dtype=np.float64)
        for number, window in enumerate(windows):
            for quality in (1.0 + 0.5 * ((2 * number + k) % 15) for k in (0, 5, 10)):
                _count(model, window, quality, counts)
        start = density_tables()
        for index in range(SCALES):
            used = np.flatnonzero(start[index])
            # Symmetric by construction of the transform's signs; averaging halves the noise.
            seen = counts[index] + counts[index][::-1]
            share = start[index, used] / (1 << TABLE_BITS)
            tables[index, used] = integer_table(seen[used] + PRIOR_COUNT * share)
    return tables


class _Recorder:
    """Stands in for the encoder's symbol sink and counts."""

    def __init__(self, counts: np.ndarray, tables: Tables):
        self.counts, self.tables = counts, tables

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None:
        reach = self.tables.reach[index]
        np.add.at(self.counts, (index, np.clip(symbols, -reach, reach) + REACH), 1)


def _count(model: TecS2, window: Window, quality: float, counts: np.ndarray) -> None:
    pixels = window.dn[window.present].astype(np.float32)
    model.encode_date(pixels, quality, _Recorder(counts, model.coder.tables))


def release(net: S2Net, windows: list[Window], path: Path) -> str:
    """Write the weights file and return its sha256 (hex)."""
    save(net, density_tables(), path)
    save(net, fitted_tables(load(path), windows), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
