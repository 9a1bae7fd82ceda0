"""Many at once: threads, processes, Dask, cancelled reads, thousands of chunks."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
import zarr
from concurrency_worker import SECONDS, both_ways
from test_chunk import scene

import tec_zarr
from tec_zarr import config
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec

THREADS = 32
SPEC = ChunkSpec(model=toy.NAME, quality=6)


def test_threads_make_the_same_bytes_of_the_same_and_of_different_chunks():
    seeds = [0, 1, 2, 0] * 8
    expected = {seed: both_ways(seed) for seed in set(seeds)}
    start = threading.Barrier(THREADS)

    def at_once(seed: int) -> tuple[int, int]:
        start.wait()
        return both_ways(seed)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(at_once, seeds, timeout=SECONDS)) == [expected[s] for s in seeds]


@pytest.mark.parametrize("way", ["spawn", "fork", "fork-under-load"])
def test_processes_make_the_same_bytes(way):
    if way != "spawn" and not hasattr(os, "fork"):
        pytest.skip("this platform does not fork")
    worker = Path(__file__).with_name("concurrency_worker.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", worker, way],  # 3.12: fork, threads
        capture_output=True, text=True, timeout=2 * SECONDS, check=False,
    )  # fmt: skip
    assert done.stdout == "same bytes\n", done.stderr


@pytest.fixture
def crowd(monkeypatch):
    """How many threads were inside the toy model at once, at most."""
    inside, most, lock = [0], [0], threading.Lock()
    decode = toy.ToyModel.decode

    def counted(self, *arguments):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            return decode(self, *arguments)
        finally:
            with lock:
                inside[0] -= 1

    monkeypatch.setattr(toy.ToyModel, "decode", counted)
    return most


def test_no_more_chunks_are_inside_a_model_than_the_limit(crowd):
    frame = encode_chunk(scene((2, 12, 128, 128)).astype("u2"), SPEC)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(decode_chunk, [frame] * THREADS, timeout=SECONDS))
    assert 1 <= crowd[0] <= config.MAX_CONCURRENT_CHUNKS


def store_of_chunks(chunks=(1, 12, 32, 32), shape=(2, 12, 128, 128), **kwargs):
    data = scene(shape).astype("u2")
    array = zarr.create_array(
        {}, shape=shape, chunks=chunks, dtype="u2", fill_value=0, compressors=None,
        serializer=tec_zarr.TECCodec(model=toy.NAME, quality=6), **kwargs,
    )  # fmt: skip
    array[:] = data
    return array, data


@pytest.mark.parametrize("settings", [
    {"codec_pipeline.batch_size": 16}, {"threading.max_workers": 8, "async.concurrency": 64},
    {"async.concurrency": 1},
])  # fmt: skip
@pytest.mark.parametrize("shards", [None, (2, 12, 64, 64)])
def test_every_way_of_zarr_to_work_at_once_gives_the_same(settings, shards):
    expected, _ = store_of_chunks(shards=shards)
    with zarr.config.set(settings):
        array, data = store_of_chunks(shards=shards)
        np.testing.assert_array_equal(array[:], expected[:])
    stored = [{k: v.to_bytes() for k, v in a.store._store_dict.items()} for a in (array, expected)]
    assert stored[0] == stored[1]
    assert np.abs(array[:].astype(int) - data).max() <= 2


def test_dask_threads_write_and_read_the_same_bytes():
    da = pytest.importorskip("dask.array")
    expected, data = store_of_chunks()
    array, _ = store_of_chunks()
    array[:] = 0
    lazy = da.from_array(data, chunks=expected.chunks)
    da.store(lazy, array, scheduler="threads", num_workers=THREADS, lock=False)
    back = da.from_zarr(array).compute(scheduler="threads", num_workers=THREADS)
    np.testing.assert_array_equal(back, expected[:])


def test_a_cancelled_read_leaves_no_slot_taken_and_nothing_broken(monkeypatch):
    array, _ = store_of_chunks()
    expected = array[:]
    started, go_on = threading.Event(), threading.Event()
    decode = toy.ToyModel.decode

    def slow(self, *arguments):
        started.set()
        assert go_on.wait(SECONDS)
        return decode(self, *arguments)

    async def cancel_half_way() -> None:
        task = asyncio.create_task(array.async_array.getitem(...))
        assert await asyncio.to_thread(started.wait, SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    with monkeypatch.context() as patch:
        patch.setattr(toy.ToyModel, "decode", slow)
        for _ in range(3):
            started.clear()
            go_on.clear()
            asyncio.run(cancel_half_way())
    with ThreadPoolExecutor(THREADS) as pool:  # more than there are slots
        for back in pool.map(lambda _: array[:], range(THREADS), timeout=SECONDS):
            np.testing.assert_array_equal(back, expected)


def test_an_error_in_one_chunk_leaves_the_slots_and_the_others_alone():
    array, _ = store_of_chunks()
    expected = array[:]
    frame = encode_chunk(scene((1, 12, 32, 32)).astype("u2"), SPEC)
    broken = frame[:-1] + bytes([frame[-1] ^ 1])

    def one(i: int) -> np.ndarray | None:
        if i % 2:
            with pytest.raises(tec_zarr.errors.ChecksumError):
                decode_chunk(broken)
            return None
        return array[:]

    with ThreadPoolExecutor(THREADS) as pool:
        for back in pool.map(one, range(2 * THREADS), timeout=SECONDS):
            assert back is None or np.array_equal(back, expected)


def test_thousands_of_chunks_leave_nothing_behind():
    """The long version, 10,000 chunks of the default model, is in benchmarks/robustness.py."""
    arrays = [scene((1, 12, 16, 16), seed).astype("u2") for seed in range(4)]
    damaged = encode_chunk(arrays[0], SPEC)[:-1]

    def many(count: int) -> None:
        for i in range(count):
            decode_chunk(encode_chunk(arrays[i % 4], SPEC))
            with pytest.raises(tec_zarr.errors.FormatError):
                decode_chunk(damaged)

    many(20)  # whatever is made once
    tracemalloc.start()
    try:
        many(20)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        many(200)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 20_000  # 100 bytes a chunk
