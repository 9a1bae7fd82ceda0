"""Calls the image model of the compiled core: one date of a tile from bytes to DN and back."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.native import core


@cache
def _library() -> Any:
    found = core.library()
    pointer, number, large = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    found.tec_model_open.argtypes = [ctypes.c_char_p, large, pointer]
    found.tec_model_close.argtypes = [pointer]
    found.tec_tile_decode.argtypes = [
        pointer, ctypes.c_char_p, large, *[number] * 4, pointer, pointer,
    ]  # fmt: skip
    found.tec_tile_grids.argtypes = [pointer, pointer, *[number] * 5, pointer]
    found.tec_tile_capacity.argtypes, found.tec_tile_capacity.restype = [number] * 3, large
    found.tec_tile_encode.argtypes = [
        pointer, pointer, pointer, pointer, *[number] * 4, pointer, large, pointer,
    ]  # fmt: skip
    found.tec_tile_encode.restype = large
    return found


def _check(status: int, what: str) -> int:
    if status == -1:
        raise MemoryError(f"no memory for {what}")
    if status < 0:
        raise FormatError(f"{what} cannot be read: status {status} of the core")
    return status


class TileModel:
    """The image model in the core.

    Parameters
    ----------
    file : bytes
        A weights file.
    source : str
        Its name, for error messages.

    Raises
    ------
    FormatError
        The file does not hold weights of ``tec-s2``.
    """

    def __init__(self, file: bytes, source: str = "weights"):
        self._model, self._close = ctypes.c_void_p(), _library().tec_model_close
        _check(_library().tec_model_open(file, len(file), ctypes.byref(self._model)), source)

    @property
    def handle(self) -> ctypes.c_void_p:
        """The model in the core, for other functions of the core."""
        return self._model

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._close(self._model)

    def decode(self, section: bytes, quality: float, image: np.ndarray) -> int:
        """Write the DN of one date into `image`, int32 (C, h, w).

        Returns the checksum of the latents.
        """
        total = ctypes.c_uint32()
        status = _library().tec_tile_decode(
            self._model, section, len(section), *image.shape, round(4096 * quality),
            core.at(image), ctypes.byref(total),
        )  # fmt: skip
        _check(status, "a section")
        return total.value

    def grids(self, cube: np.ndarray, known: np.ndarray | None, quality: float) -> np.ndarray:
        """Find the grids of the bands of int32 DN (T, C, h, w), within 2^20: int32 (C, 4).

        A row has kind, factor, row and column; the factor is 0 for a band without a grid.
        `known`, bool, is False for samples that were not measured.
        """
        found = np.zeros((cube.shape[1], 4), np.int32)
        status = _library().tec_tile_grids(
            core.at(cube), core.at(known), *cube.shape, round(4096 * quality), core.at(found)
        )
        _check(status, "the grids of a tile")
        return found

    def encode(
        self, image: np.ndarray, known: np.ndarray | None, grids: np.ndarray, quality: float
    ) -> tuple[bytes, int]:
        """Encode one date, int32 (C, h, w); return its section and the checksum of its latents."""
        capacity = _library().tec_tile_capacity(*image.shape)
        out, checksum = np.empty(capacity, np.uint8), ctypes.c_uint32()
        length = _library().tec_tile_encode(
            self._model, core.at(image), core.at(known), core.at(grids), *image.shape,
            round(4096 * quality), core.at(out), capacity, ctypes.byref(checksum),
        )  # fmt: skip
        _check(length, "a tile")
        return out[:length].tobytes(), checksum.value
