"""Estimate the size of a recompressed store from a sample of chunks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from zarr.storage import MemoryStore

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.recompression.plan import make_plan
from tec_zarr.recompression.region import read_block, stored_objects
from tec_zarr.recompression.settings import Settings
from tec_zarr.stores.objects import open_source, sync


@dataclass(frozen=True)
class Estimate:
    """Bytes and time that a recompression would take, estimated from a sample of chunks.

    Attributes
    ----------
    regions, raw_bytes : int
        Number of regions and size in memory of the whole source. Exact.
    stored_bytes : int
        Size of the target. Estimated.
    core_seconds : float
        Seconds to read and encode on one core of this machine. Estimated.
    read_amplification : float
        How often a source chunk would be read on average, in the array where that is most.
    sampled_chunks : int
        Number of chunks in the sample.
    """

    regions: int
    raw_bytes: int
    stored_bytes: int
    core_seconds: float
    read_amplification: float
    sampled_chunks: int


def estimate(
    source: Any,
    *,
    sample: int = 8,
    source_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Estimate:
    """Encode some chunks, spread over every array, and extrapolate. Writes nothing.

    Parameters
    ----------
    source, source_options, **settings
        As for :func:`recompress`.
    sample : int
        Chunks to encode of each array.

    Returns
    -------
    Estimate
        It does not include the time to verify and to write.
    """
    if not (isinstance(sample, int | np.integer) and sample >= 1):
        raise UnsupportedArrayError(f"sample is {sample!r}, it must be a whole number from 1")
    plan = make_plan(open_source(source, source_options), MemoryStore(), Settings(**settings))
    stored = seconds = 0.0
    chunks = 0
    for array in plan.arrays:
        step = max(1, array.regions // sample)
        picked = range(step // 2, array.regions, step)
        samples, spent, size = 0, 0.0, 0
        for number in islice(picked, sample):
            region = array.region_slices(number)
            grid = array.chunk_slices(region)
            chunk = grid[len(grid) // 2]
            start = time.perf_counter()
            array.template[chunk] = block = read_block(array, chunk)
            spent += time.perf_counter() - start
            keys = array.keys(chunk)
            size += sum(n for n, _ in stored_objects(array.template, keys).values())
            for key in keys:  # Otherwise the next chunk would be added to this shard.
                sync(array.template.store.delete(key))
            samples += block.size
            chunks += 1
        share = array.source.size / max(1, samples)
        stored += size * share
        seconds += spent * share
    raw = sum(array.source.size * array.source.dtype.itemsize for array in plan.arrays)
    amplification = max((array.read_amplification for array in plan.arrays), default=1.0)
    return Estimate(plan.regions, raw, round(stored), seconds, amplification, chunks)
