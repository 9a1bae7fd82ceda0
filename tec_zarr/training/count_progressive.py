"""The tables of ``tec-flex-s2``: nothing is trained, decisions of training series are counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tec_zarr.entropy.range_coder import BitDecoder, BitEncoder
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.intervals import (
    CLASSES,
    CONTEXTS,
    KINDS,
    IntervalTables,
    class_starts,
    make_tables,
)
from tec_zarr.models.registry import get_model
from tec_zarr.networks import files, progressive
from tec_zarr.training.configs import FlexConfig
from tec_zarr.training.runs import begin_run
from tec_zarr.training.series import load_series

Cubes = Iterator[np.ndarray]


#: Decisions that what the tables say is worth, beside what was counted.
_PRIOR = 64.0
#: Qualities that the series are encoded at: their levels lie between one another's.
_QUALITIES = (7.999, 7.5)


class _Counting(IntervalTables):
    """Takes note of every decision of an encoder."""

    def __init__(self, tables: IntervalTables):
        super().__init__(tables.cumulative, tables.zones, tables.chances)
        shape = KINDS, CLASSES, CONTEXTS
        self.ones, self.all, self.sums = (np.zeros(shape) for _ in range(3))

    def decide(
        self,
        coder: BitEncoder | BitDecoder,
        kind: np.ndarray,
        chance: np.ndarray,
        context: np.ndarray,
        ones: np.ndarray | None,
    ) -> np.ndarray:
        at = kind, self.classes[chance], context
        np.add.at(self.all, at, 1)
        np.add.at(self.ones, at, np.asarray(ones, float))
        np.add.at(self.sums, at, chance / 65536)
        return super().decide(coder, kind, chance, context, ones)


def plain_tables(cumulative: np.ndarray, zones: np.ndarray) -> IntervalTables:
    """Tables that believe what the networks say, whatever the neighbours say."""
    edges = np.concatenate([[0], class_starts(), [65536]])
    middles = np.clip((edges[1:] + edges[:-1]) // 2, 1, 65535)
    chances = np.broadcast_to(middles[:, None], (KINDS, CLASSES, CONTEXTS))
    return IntervalTables(cumulative, zones, chances)


def count_tables(temporal_sha256: str, cubes: Cubes) -> IntervalTables:
    """Tables for a temporal model, from float32 DN series (T, C, h, w)."""
    temporal = get_model("tec-tt-s2", temporal_sha256)
    counting = _Counting(plain_tables(*make_tables(temporal.coder.tables)))
    model = progressive.TecFlexS2(temporal, counting, "00" * 32)
    for number, cube in enumerate(cubes):
        model.encode(cube, _QUALITIES[number % len(_QUALITIES)], None)
    # What was counted, and the tables' own word where little was: by class, then by context.
    whole = counting.all.sum(2, keepdims=True)
    said = (counting.sums.sum(2, keepdims=True) + counting.chances[:, :, :1] / 65536) / (whole + 1)
    by_class = (counting.ones.sum(2, keepdims=True) + _PRIOR * said) / (whole + _PRIOR)
    found = (counting.ones + _PRIOR * by_class) / (counting.all + _PRIOR)
    chances = np.clip(np.rint(found * 65536), 16, 65520).astype(np.int64)
    return IntervalTables(counting.cumulative, counting.zones, chances)


def flex_cubes(config: FlexConfig, count: int = 80, dates: int = 6, side: int = 128) -> Cubes:
    """Training series whose decisions are counted, evenly spread over the places."""
    series = [s for s in load_series(config) if min(s.dn.shape[2:]) >= side // 2]
    if not series:
        raise UnsupportedArrayError(f"no place of {side // 2} pixels or more in {config.data}")
    for number, place in enumerate(series[:: max(len(series) // count, 1)]):
        start = number * 7 % max(len(place.dn) - dates + 1, 1)
        cube = place.dn[start : start + dates][:, place.present, :side, :side]
        yield cube.astype(np.float32)


def make_flex(config: FlexConfig) -> Path:
    """Count decisions as ``config`` says; returns the weights file in the run's folder."""
    out = begin_run(config)
    temporal = config.temporal or get_model("tec-tt-s2").weights_sha256
    weights = out / f"{config.model}.safetensors"
    files.save_progressive(count_tables(temporal, flex_cubes(config)), temporal, weights)
    return weights
