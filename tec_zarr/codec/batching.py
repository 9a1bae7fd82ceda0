"""Calls models: as one batch for chunks of several threads if the model is on a GPU.

Zarr passes chunks one by one, on several threads. A GPU is fast only with many chunks at a time.
So the first chunk waits two milliseconds, and then until the device is free. Meanwhile others of
its kind (same model, shape, quality and bands) join it. Then one thread codes all of them.
A model on the CPU is called directly, because a batch gains nothing there.

``model_slots`` limits how many models run at once in this process. Before a fork all slots are
taken, so that no thread is inside a model while the process forks.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tec_zarr import config
from tec_zarr.models.protocol import Encoded, Model

LARGEST = 64
"""Most chunks in one batch."""

WAIT_SECONDS = 0.002
"""Time that the first chunk of a batch waits for others, in seconds."""

_SLOTS = config.MAX_CONCURRENT_CHUNKS

model_slots = threading.BoundedSemaphore(_SLOTS)

_forking = threading.Lock()


def on_device(model: Model) -> bool:
    """Return whether the model runs on another device than the CPU, and so takes batches."""
    return model.device != "cpu"


def encode(
    model: Model,
    cube: np.ndarray,
    quality: float,
    bands: tuple[str, ...] | None,
    slot: AbstractContextManager[Any],
    **options: Any,
) -> Encoded:
    """Call ``model.encode``, or ``model.encode_batch`` for several chunks if it is on a device.

    Parameters
    ----------
    model, cube, quality, bands, **options
        See :class:`~tec_zarr.models.protocol.Model`.
    slot : context manager
        Held while the model runs.
    """

    Chunk = tuple[np.ndarray, dict[str, Any]]

    def alone(chunk: Chunk) -> Encoded:
        with slot:
            return model.encode(chunk[0], quality, bands, **chunk[1])

    def together(chunks: list[Chunk]) -> list[Encoded]:
        of_all = {name: [chunk[1][name] for chunk in chunks] for name in options}
        with slot:
            return model.encode_batch([chunk[0] for chunk in chunks], quality, bands, **of_all)

    chunk = cube, options
    if not on_device(model):
        return alone(chunk)
    kind = ("encode", id(model), cube.shape, quality, bands)  # a model takes the same options
    return _gather(kind, chunk, alone, together)


def decode(
    model: Model,
    sections: list[bytes],
    shape: tuple[int, int, int, int],
    quality: float,
    bands: tuple[str, ...] | None,
    slot: AbstractContextManager[Any],
) -> tuple[np.ndarray, list[int]]:
    """Call ``model.decode``, or ``model.decode_batch`` for several chunks if it is on a device.

    Parameters
    ----------
    model, sections, shape, quality, bands
        See :class:`~tec_zarr.models.protocol.Model`.
    slot : context manager
        Held while the model runs.
    """

    def alone(sections: list[bytes]) -> tuple[np.ndarray, list[int]]:
        with slot:
            return model.decode(sections, shape, quality, bands)

    def together(chunks: list[list[bytes]]) -> list[tuple[np.ndarray, list[int]]]:
        with slot:
            return model.decode_batch(chunks, shape, quality, bands)

    if not on_device(model):
        return alone(sections)
    return _gather(("decode", id(model), shape, quality, bands), sections, alone, together)


@dataclass(eq=False)
class _Batch:
    items: list[Any] = field(default_factory=list)
    full: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    results: list[Any] | None = None


class _State:
    """Open batches of this process, and the lock of the thread that uses the device."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.device = threading.Lock()
        self.open: dict[Hashable, _Batch] = {}


_state = _State()


def _forget() -> None:
    global _state
    _state = _State()  # the threads that would finish a batch do not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _gather(
    kind: Hashable,
    item: Any,
    alone: Callable[[Any], Any],
    together: Callable[[list[Any]], list[Any]],
) -> Any:
    state = _state
    with state.lock:
        batch = state.open.get(kind)
        first = batch is None
        if batch is None:
            batch = state.open[kind] = _Batch()
        place = len(batch.items)
        batch.items.append(item)
        if len(batch.items) == LARGEST:
            del state.open[kind]
            batch.full.set()
    if first:
        _run(state, kind, batch, together)
    else:
        batch.done.wait()
    if batch.results is None:
        # A chunk of the batch failed, or the batch did not fit into the device's memory. Each
        # chunk is coded alone, and gets its own result or its own error.
        with state.device:
            return alone(item)
    return batch.results[place]


def _run(
    state: _State, kind: Hashable, batch: _Batch, together: Callable[[list[Any]], list[Any]]
) -> None:
    with contextlib.suppress(Exception):  # each thread then codes its chunk alone
        batch.full.wait(WAIT_SECONDS)
        with state.device:
            with state.lock:
                if state.open.get(kind) is batch:
                    del state.open[kind]
            batch.results = together(batch.items)
    batch.done.set()


def _wait_for_models() -> None:
    """Wait before a fork until no model runs, and let none start.

    If a thread were inside BLAS or torch, their locks would stay taken in the child.
    """
    _forking.acquire()
    for _ in range(_SLOTS):
        model_slots.acquire()


def _go_on() -> None:
    """Let models run again after a fork."""
    for _ in range(_SLOTS):
        model_slots.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_models, after_in_parent=_go_on, after_in_child=_go_on
    )
