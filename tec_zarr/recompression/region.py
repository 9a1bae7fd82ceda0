"""Make one region: read, encode, write and verify it. This runs on the workers."""

from __future__ import annotations

import errno
import json
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype

from tec_zarr.errors import RecompressError, TargetError
from tec_zarr.recompression.manifest import Done, Manifest
from tec_zarr.recompression.plan import ArrayPlan
from tec_zarr.recompression.verify import (
    Verify,
    inside_source,
    values_in,
    verify_region,
    where_missing,
)
from tec_zarr.stores.objects import sync

_FATAL = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM)
"""Errors after which the target accepts no region at all."""


def unmeasured(step: str) -> AbstractContextManager[Any]:
    """Do nothing around a step."""
    return nullcontext()


around: Callable[[str], AbstractContextManager[Any]] = unmeasured
"""Entered around each step of a region: read, encode (and store), verify, checksum.

A benchmark puts a clock here (``benchmarks/recompress.py``).
"""


@dataclass(frozen=True)
class Job:
    """One region to make: array, number of the region, and how to verify it."""

    array: ArrayPlan
    number: int
    verify: Verify


def make_region(job: Job) -> Done:
    """Read, encode, write and verify a region, and record that it is finished."""
    start = time.perf_counter()
    return write_region(job, read_block(job.array, job.array.region_slices(job.number)), start)


def read_block(array: ArrayPlan, region: tuple[slice, ...]) -> np.ndarray:
    """Return the samples of a region of the source, as the target will hold them."""
    with around("read"):
        block = values_in(array.source, region)
    if array.finer is not None:
        block = array.finer(block)
    path = array.source.store_path
    key = "zarr.json" if array.source.metadata.zarr_format == 3 else ".zarray"
    if not sync((path / key).exists()):
        # Zarr reads a missing chunk as the fill value. If the source was deleted meanwhile, all
        # its chunks are missing.
        raise RecompressError(f"the source {path} is gone: what was read cannot be trusted")
    return block


def write_region(job: Job, block: np.ndarray, start: float | None = None) -> Done:
    """Encode, write and verify a region that was read, and record that it is finished."""
    start = time.perf_counter() if start is None else start
    array, region = job.array, job.array.region_slices(job.number)
    try:
        with around("encode"):
            _writer(array, region, block)[region] = block
        objects = stored_objects(array.target, array.keys(region))
        with around("verify"):
            checked = verify_region(array, region, block, job.verify, job.number)
        with around("checksum"):
            crc = crc_of(block)
        done = Done(
            array.index, job.number, crc, objects, block.nbytes, block.size, *checked,
            time.perf_counter() - start,
        )  # fmt: skip
        Manifest(array.target.store).mark(done)
    except OSError as error:
        if error.errno in _FATAL:
            raise TargetError(f"the target takes nothing more ({error})") from error
        raise
    return done


def _writer(array: ArrayPlan, region: tuple[slice, ...], block: np.ndarray) -> zarr.Array:
    """Return the target array; skip Zarr's search for empty chunks if the block has none.

    Zarr compares every sample with the fill value, which takes 4 % of the encoding time. Here the
    first sample of a chunk nearly always shows that the chunk is not empty.
    """
    fill = array.target.fill_value
    if array.spec is None or fill is None:
        return array.target
    for part in array.chunk_slices(region):
        chunk = block[inside_source(part, region)]
        if where_missing(chunk[:1, ..., :1], [fill]).all() and where_missing(chunk, [fill]).all():
            return array.target
    metadata: Any = array.target.metadata
    return zarr.Array(
        zarr.AsyncArray(metadata, array.target.store_path, {"write_empty_chunks": True})
    )


def stored_objects(array: zarr.Array, keys: list[str]) -> dict[str, tuple[int, int]]:
    """Return length and CRC32 of each of the objects ``keys`` that exists."""

    async def collect() -> dict[str, tuple[int, int]]:
        found = {}
        for key in keys:
            data = await array.store.get(key, default_buffer_prototype())
            if data is not None:
                found[key] = (len(data), zlib.crc32(data.to_bytes()))
        return found

    return sync(collect())


def crc_of(block: np.ndarray) -> int:
    """Return the CRC32 of samples; of objects and text, that of their JSON."""
    if block.dtype.kind in "OT":
        return zlib.crc32(json.dumps(block.tolist()).encode())
    return zlib.crc32(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def set_torch_threads(threads: int) -> int:
    """Set how many threads torch uses, if any model has loaded torch. Returns the old number."""
    torch = sys.modules.get("torch")
    if torch is None:
        return threads
    before = int(torch.get_num_threads())
    torch.set_num_threads(threads)
    return before
