"""Records what encoding asks of the core, so that tests/wheel_check.c repeats it elsewhere.

A recording is a sequence of calls. A call is a name of 24 bytes, the number of arguments, and the
arguments: kind and value, two int64 each. The value is a number, or the length of bytes in memory;
those of the kinds `GIVEN` and `CHANGED` follow. Of `SAME` it is the number of an argument before
that has the same place. What a call gave is its status and, for each
argument that it filled or changed, the CRC-32 of the bytes.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tec_zarr.native import core, planes

NUMBER, GIVEN, FILLED, CHANGED, MODEL, NULL, SAME = range(7)
#: Functions that encoding calls, and what becomes of those arguments that are not only read.
REPEATED: dict[str, dict[int, int]] = {
    "tec_tile_grids": {7: FILLED},
    "tec_tile_encode": {8: FILLED, 10: FILLED, 11: FILLED},
    "tec_series_encode": {11: FILLED, 13: FILLED, 14: FILLED, 15: FILLED, 16: FILLED},
    "tec_bound_encode": {12: FILLED, 13: FILLED},
    "tec_grid_search": {9: CHANGED},
}
#: Others: those whose results the golden streams show when they are decoded, and sizes.
NOT_REPEATED = {
    "tec_decode", "tec_tile_decode", "tec_bound_layer", "tec_bound_decode", "tec_mask_labels",
    "tec_unpack", "tec_points_restore", "tec_values", "tec_tile_capacity", "tec_step",
    "tec_kernel", "tec_model_open", "tec_model_close",
}  # fmt: skip


class _Pointer(ctypes.c_void_p):
    """An address that knows its array."""

    array: np.ndarray


def _at(array: np.ndarray | None) -> _Pointer | None:
    if array is None:
        return None
    assert array.flags.c_contiguous
    pointer = _Pointer(array.ctypes.data)
    pointer.array = array
    return pointer


def _memory(argument: Any) -> np.ndarray | None:
    """Return the bytes that an argument points to, if it is an array or of ctypes.byref."""
    if isinstance(argument, _Pointer):
        return argument.array.reshape(-1).view(np.uint8)
    held = getattr(argument, "_obj", None)
    return None if held is None else np.frombuffer(held, np.uint8)


class Recording:
    """Calls, and what they gave."""

    def __init__(self) -> None:
        self.calls, self.results, self.count = bytearray(), bytearray(), 0

    def open(self, weights: bytes) -> None:
        """Let the calls that follow be of another model."""
        self.calls += struct.pack("<24s3q", b"tec_model_open", 1, GIVEN, len(weights)) + weights
        self.results += struct.pack("<q", 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the calls of the core."""
        library = core.library()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(core, "at", _at)
            patch.setattr(planes, "at", _at)
            for name in [n for n in vars(library) if n.startswith("tec_")]:
                if name not in NOT_REPEATED:
                    patch.setattr(library, name, _Function(self, name, getattr(library, name)))
            yield

    def call(self, name: str, function: Any, arguments: tuple[Any, ...]) -> int:
        """Call a function of the core, and keep what it was given and what it gave."""
        assert name in REPEATED, f"wheel_check.c does not repeat {name}"
        self.calls += struct.pack("<24sq", name.encode(), len(arguments))
        kept, places = [], dict[int, int]()
        for number, argument in enumerate(arguments):
            kind, memory = REPEATED[name].get(number, GIVEN), _memory(argument)
            if memory is not None and memory.size and memory.ctypes.data in places:
                assert kind == FILLED, "only what is filled may lie where another argument does"
                self.calls += struct.pack("<2q", SAME, places[memory.ctypes.data])
                kept += [memory]
            elif memory is not None:
                places[memory.ctypes.data] = number
                self.calls += struct.pack("<2q", kind, memory.size)
                if kind == FILLED:
                    memory[:] = 0
                else:
                    self.calls += memory.tobytes()
                kept += [] if kind == GIVEN else [memory]
            elif argument is None:
                self.calls += struct.pack("<2q", NULL, 0)
            elif isinstance(argument, ctypes.c_void_p):
                self.calls += struct.pack("<2q", MODEL, 0)
            else:
                self.calls += struct.pack("<2q", NUMBER, getattr(argument, "value", argument))
        status = int(function(*arguments))
        self.results += struct.pack("<q", status)
        for memory in kept:
            self.results += struct.pack("<I", zlib.crc32(memory))
        self.count += 1
        return status


class _Function:
    """A function of the core whose calls are recorded. Its types are those of the function."""

    def __init__(self, recording: Recording, name: str, function: Any) -> None:
        vars(self).update(recording=recording, name=name, function=function)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.function, name, value)

    def __call__(self, *arguments: Any) -> int:
        return self.recording.call(self.name, self.function, arguments)
