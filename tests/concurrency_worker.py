"""Chunks encoded and decoded in processes and threads that ``test_robustness_load.py`` starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec

SECONDS = 120
"""After which a test counts as deadlocked."""


def cube(seed: int) -> np.ndarray:
    """A small chunk of its own."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(500, 3000, 40)[:, None] + rng.normal(0, 100, (1, 12, 40, 33))
    out = ramp.clip(1).astype("u2")
    out[:, :, :5, seed % 20 :] = 0
    return out


def both_ways(seed: int) -> tuple[int, int]:
    """Checksums of the encoded and of the decoded chunk."""
    frame = encode_chunk(cube(seed), ChunkSpec(quality=4))
    return zlib.crc32(frame), zlib.crc32(decode_chunk(frame).tobytes())


def in_pool(method: str) -> None:
    """Four processes, the same chunks and different ones; the parent has used the model before."""
    seeds = [0, 1, 0, 2, 0, 3, 0, 4]
    expected = [both_ways(s) for s in seeds]
    with multiprocessing.get_context(method).Pool(4) as pool:
        assert pool.map(both_ways, seeds, chunksize=1) == expected
        assert pool.map(both_ways, seeds, chunksize=1) == expected


def fork_under_load() -> None:
    """Fork while other threads are inside the model and inside the bound layer."""
    expected = both_ways(0)
    stop = threading.Event()

    def work(seed: int) -> None:
        while not stop.is_set():
            both_ways(seed)

    with ThreadPoolExecutor(3) as pool:
        for seed in range(3):
            pool.submit(work, seed)
        try:
            for _ in range(4):
                time.sleep(0.05)
                child = os.fork()
                if not child:
                    signal.alarm(SECONDS // 2)  # ends the child, and with it the test
                    os._exit(0 if both_ways(0) == expected else 3)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            stop.set()


if __name__ == "__main__":
    {"spawn": lambda: in_pool("spawn"), "fork": lambda: in_pool("fork"),
     "fork-under-load": fork_under_load}[sys.argv[1]]()  # fmt: skip
    print("same bytes")
