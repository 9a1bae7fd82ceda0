"""Models and stores that misbehave on purpose, for the fault tests, and a client to kill.

    python recompress_worker.py client SIGNAL FLAG ARGUMENTS...

runs ``tec-zarr ARGUMENTS...``; if ``FLAG`` exists, the second chunk sends this process SIGNAL.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from pathlib import Path

import toy
from distributed import WorkerPlugin
from zarr.storage import WrapperStore

from tec_zarr.models.registry import register_model

DEADLY = "deadly-toy"
"""The toy model under a name of its own; it runs ``on_encode`` before every chunk."""


class Deadly(toy.ToyModel):
    name = DEADLY
    calls = 0
    on_encode = staticmethod(lambda calls: None)

    def encode(self, cube, quality, bands):
        Deadly.calls += 1
        Deadly.on_encode(Deadly.calls)
        return super().encode(cube, quality, bands)


def register(on_encode=lambda calls: None) -> None:
    """Make the model known, with another effect."""
    Deadly.calls, Deadly.on_encode = 0, staticmethod(on_encode)
    register_model(DEADLY, Deadly, toy.SHA256)


def _main_thread_waits_for_the_others() -> bool:
    """As it does once a signal has ended its work: on a busy machine that takes seconds."""
    frame = sys._current_frames().get(threading.main_thread().ident)
    while frame is not None and frame.f_code.co_name != "shutdown":
        frame = frame.f_back
    return frame is not None


def signal_once(flag: str, number: int, after: int):
    """Effect that sends this process a signal, if it can take the flag away."""

    def effect(calls: int) -> None:
        if calls >= after:
            try:
                Path(flag).unlink()
            except FileNotFoundError:
                return
            os.kill(os.getpid(), number)
            for _ in range(600):  # the main thread takes it before this region is finished
                time.sleep(0.05)
                if _main_thread_waits_for_the_others():
                    break

    return effect


class Models(WorkerPlugin):
    """Register the models in every worker; one worker is killed while the flag exists."""

    def __init__(self, flag: str) -> None:
        self.flag = flag

    def setup(self, worker) -> None:
        toy.register()
        register(signal_once(self.flag, signal.SIGKILL, after=1))


class FullStore(WrapperStore):
    """Takes ``room`` bytes, then says that the disk is full; a torn object is left at the end."""

    def __init__(self, store, room: int) -> None:
        super().__init__(store)
        self.room = room

    async def set(self, key, value, byte_range=None):
        if len(value) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), key)
        self.room -= len(value)
        await self._store.set(key, value)


class FailingStore(WrapperStore):
    """Breaks off while it writes the ``fail_at``-th key that has ``word`` in it: half is stored."""

    def __init__(self, store, word: str, fail_at: int = 1) -> None:
        super().__init__(store)
        self.word, self.left = word, fail_at

    async def set(self, key, value, byte_range=None):
        if self.word in key:
            self.left -= 1
            if self.left == 0:
                await self._store.set(key, value[: len(value) // 2])
                raise ConnectionResetError(f"broken off in {key}")
        await self._store.set(key, value)


if __name__ == "__main__":
    from tec_zarr.face.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    toy.register()
    # One thread, so that the first region is recorded when the second chunk comes.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    register(signal_once(sys.argv[3], getattr(signal, sys.argv[2]), after=2))
    sys.exit(main(sys.argv[4:]))
