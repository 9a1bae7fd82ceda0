"""Chunks that several threads bring at once, coded as one batch where the model is on a device.

Zarr hands chunks over one by one, on as many threads as it may have, and a GPU is made for many at
a time. So the first chunk waits two milliseconds for others of its kind (same model, shape,
quality and bands), and for as long as the device is busy; then one thread codes all of them.
A model on the CPU is called directly: there a batch gains nothing.
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
"""Chunks in one batch, at most."""

WAIT_SECONDS = 0.002
"""How long the first chunk of a batch waits for others."""

_SLOTS = config.MAX_CONCURRENT_CHUNKS

model_slots = threading.BoundedSemaphore(_SLOTS)

_forking = threading.Lock()


def on_device(model: Model) -> bool:
    """Whether the model is anywhere but on the CPU, and takes batches."""
    return model.device != "cpu"


def encode(
    model: Model,
    cube: np.ndarray,
    quality: float,
    bands: tuple[str, ...] | None,
    slot: AbstractContextManager[Any],
    **options: Any,
) -> Encoded:
    """Do what ``model.encode`` does, in a batch where there is one.

    Parameters
    ----------
    model, cube, quality, bands, **options
        See :class:`~tec_zarr.models.protocol.Model`.
    slot : context manager
        Held while the model runs.
    """

    def alone(cube: np.ndarray) -> Encoded:
        with slot:
            return model.encode(cube, quality, bands, **options)

    def together(cubes: list[np.ndarray]) -> list[Encoded]:
        with slot:
            return model.encode_batch(cubes, quality, bands)

    if options or not on_device(model):
        return alone(cube)
    return _gather(("encode", id(model), cube.shape, quality, bands), cube, alone, together)


def decode(
    model: Model,
    sections: list[bytes],
    shape: tuple[int, int, int, int],
    quality: float,
    bands: tuple[str, ...] | None,
    slot: AbstractContextManager[Any],
) -> tuple[np.ndarray, int]:
    """Do what ``model.decode`` does, in a batch where there is one. Parameters: as there."""

    def alone(sections: list[bytes]) -> tuple[np.ndarray, int]:
        with slot:
            return model.decode(sections, shape, quality, bands)

    def together(chunks: list[list[bytes]]) -> list[tuple[np.ndarray, int]]:
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
    """Open batches of this process, and whose turn it is on the device."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.device = threading.Lock()
        self.open: dict[Hashable, _Batch] = {}


_state = _State()


def _forget() -> None:
    global _state
    _state = _State()  # in a forked child nobody is left to finish a batch


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
        # Something in the batch failed, or all of it was too much for the device's memory: each
        # chunk for itself has its own result, or its own error.
        with state.device:
            return alone(item)
    return batch.results[place]


def _run(
    state: _State, kind: Hashable, batch: _Batch, together: Callable[[list[Any]], list[Any]]
) -> None:
    with contextlib.suppress(Exception):  # what failed is tried again chunk by chunk
        batch.full.wait(WAIT_SECONDS)
        with state.device:
            with state.lock:
                if state.open.get(kind) is batch:
                    del state.open[kind]
            batch.results = together(batch.items)
    batch.done.set()


def _wait_for_models() -> None:
    """Before a fork: a thread inside BLAS or torch would leave their locks taken in the child."""
    _forking.acquire()
    for _ in range(_SLOTS):
        model_slots.acquire()


def _go_on() -> None:
    for _ in range(_SLOTS):
        model_slots.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_models, after_in_parent=_go_on, after_in_child=_go_on
    )
