"""From a trained network to released weights: freeze the integers, fit the probability tables.

Tables start from the density used in training and are then replaced by what the encoder really
produces (with its rate-distortion optimised rounding) on training crops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tec_zarr.entropy.range_coder import SymbolEncoder
from tec_zarr.entropy.tables import TABLE_BITS, Tables, integer_table
from tec_zarr.models.constants import SCALE_OFFSET, SCALES
from tec_zarr.networks import files, series
from tec_zarr.networks.files import save_image
from tec_zarr.networks.image import load
from tec_zarr.networks.image_net import S2Net, upper
from tec_zarr.networks.series_net import TemporalNet
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
        half = (upper((size - 0.5) / sigma) - upper((size + 0.5) / sigma)).numpy()
        half[-1] += float(upper((size[-1] + 0.5) / sigma))
        out[index, REACH - reach : REACH + reach + 1] = integer_table(
            np.concatenate([half[:0:-1], half])
        )
    return out


def fitted_tables(count: Callable[[Tables, np.ndarray], None], rounds: int = 2) -> np.ndarray:
    """Tables re-estimated from what an encoder really produces.

    ``count(tables, counts)`` codes training data with ``tables`` and adds how often each table
    (row) met each symbol (column, from -REACH to REACH).
    """
    start = density_tables()
    tables = start.copy()
    for _ in range(rounds):
        counts = np.zeros(tables.shape)
        count(Tables(tables), counts)
        for index in range(SCALES):
            used = np.flatnonzero(start[index])
            # Symmetric by construction of the transform's signs; averaging halves the noise.
            seen = counts[index] + counts[index][::-1]
            share = start[index, used] / (1 << TABLE_BITS)
            tables[index, used] = integer_table(seen[used] + PRIOR_COUNT * share)
    return tables


def _add(counts: np.ndarray, tables: Tables, symbols: np.ndarray, index: np.ndarray) -> None:
    reach = tables.reach[index]
    np.add.at(counts, (index, np.clip(symbols, -reach, reach) + REACH), 1)


class _Recorder:
    """Stands in for the encoder's symbol sink and counts."""

    def __init__(self, counts: np.ndarray, tables: Tables):
        self.counts, self.tables = counts, tables

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None:
        _add(self.counts, self.tables, symbols, index)


def release(net: S2Net, windows: list[Window], path: Path) -> str:
    """Write the weights file of an image model and return its sha256 (hex).

    Tables are fitted to ``windows`` at qualities 1 to 8.
    """
    save_image(net, density_tables(), path)
    model = load(path)

    def count(tables: Tables, counts: np.ndarray) -> None:
        model.coder.tables = tables
        for number, window in enumerate(windows):
            pixels = window.dn[window.present].astype(np.float32)
            for quality in (1.0 + 0.5 * ((2 * number + k) % 15) for k in (0, 5, 10)):
                model.encode_date(pixels, quality, _Recorder(counts, tables))

    save_image(net, fitted_tables(count), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Counting(series.TecTtS2):
    """Counts the symbols of every predicted date that it codes."""

    counts: np.ndarray

    def symbol_sink(self) -> SymbolEncoder:
        return _CountingEncoder(self.coder.tables, self.counts)


class _CountingEncoder(SymbolEncoder):
    def __init__(self, tables: Tables, counts: np.ndarray):
        super().__init__(tables)
        self.counts = counts

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None:
        _add(self.counts, self.tables, symbols, index)
        super().put(symbols, index)


def release_temporal(
    net: TemporalNet, cubes: list[np.ndarray], image_sha256: str, path: Path
) -> str:
    """Write the weights file of a temporal model and return its sha256 (hex).

    Tables are fitted to ``cubes``, float32 DN (T, C, h, w), at qualities 1 to 7.5.
    """
    files.save_series(net, density_tables(), image_sha256, path)
    loaded = series.load(path)
    model = _Counting(loaded.image, loaded.net, loaded.coder.tables, loaded.weights_sha256)

    def count(tables: Tables, counts: np.ndarray) -> None:
        model.coder.tables, model.counts = tables, counts
        for number, cube in enumerate(cubes):
            for quality in (1.0 + 0.5 * ((3 * number + k) % 14) for k in (0, 7)):
                model.encode(cube, quality, None)

    files.save_series(net, fitted_tables(count), image_sha256, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
