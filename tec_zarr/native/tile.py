"""Calls the embedded models of the compiled core: dates of a tile to sections, and to DN again."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.native import core

INPUTS = 28
"""Inputs of the context network."""

FIXED_INPUTS = 8
"""Of these, the last ones, which are the same for a whole plane."""


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
        *[pointer] * 4, *[number] * 4, pointer, large, pointer, pointer,
    ]  # fmt: skip
    found.tec_tile_encode.restype = large
    found.tec_series_encode.argtypes = [
        *[pointer] * 4, *[number] * 6, pointer, pointer, large, *[pointer] * 4,
    ]  # fmt: skip
    found.tec_series_encode.restype = large
    found.tec_tile_collect.argtypes = [*[pointer] * 3, *[number] * 5, large, *[pointer] * 5]
    found.tec_tile_collect.restype = large
    found.tec_series_collect.argtypes = [*[pointer] * 3, *[number] * 5, *[pointer] * 3, large]
    found.tec_series_collect.restype = large
    return found


def _check(status: int, what: str) -> int:
    if status == -1:
        raise MemoryError(f"no memory for {what}")
    if status < 0:
        raise FormatError(f"{what} cannot be coded: status {status} of the core")
    return status


class Collected(NamedTuple):
    """What the context network sees of one date.

    Attributes
    ----------
    components : ndarray of float64, (planes, rows, cols)
        Components in steps.
    values : ndarray of int32, (planes, rows, cols)
        Quantised components.
    inputs : ndarray of uint8, (n, 28)
        Inputs of the network for each value.
    symbols : ndarray of int32, (n,)
    means : int
        Number of planes of block means; they come first.
    """

    components: np.ndarray
    values: np.ndarray
    inputs: np.ndarray
    symbols: np.ndarray
    means: int


class TileModel:
    """The embedded models in the core. They share one weights file.

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
        status = _library().tec_model_open(file, len(file), ctypes.byref(self._model))
        if status == -1:
            raise MemoryError(f"no memory for {source}")
        if status:
            raise FormatError(
                f"{source} does not hold weights of tec-s2: a tensor is missing, has another dtype "
                "or shape, or has values that the core cannot compute with"
            )

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
        self,
        image: np.ndarray,
        known: np.ndarray | None,
        grids: np.ndarray,
        quality: float,
        decoded: np.ndarray | None = None,
    ) -> tuple[bytes, int]:
        """Encode one date, int32 (C, h, w); return its section and the checksum of its latents.

        ``decoded``, int32 of the same shape, becomes what the section decodes to.
        """
        capacity = _library().tec_tile_capacity(*image.shape)
        out, checksum = np.empty(capacity, np.uint8), ctypes.c_uint32()
        length = _library().tec_tile_encode(
            self._model, core.at(image), core.at(known), core.at(grids), *image.shape,
            round(4096 * quality), core.at(out), capacity, ctypes.byref(checksum),
            core.at(decoded),
        )  # fmt: skip
        _check(length, "a tile")
        return out[:length].tobytes(), checksum.value

    def encode_series(
        self,
        cube: np.ndarray,
        known: np.ndarray | None,
        grids: np.ndarray,
        qualities: Sequence[float],
        run: int,
        decoded: np.ndarray | None = None,
    ) -> list[list[tuple[bytes, int]]]:
        """Encode the dates of a tile in layers, each predicted from others.

        Parameters
        ----------
        cube : ndarray of int32, (T, C, h, w)
            DN.
        known : ndarray of bool or None
            False for samples that were not measured.
        grids : ndarray of int32, (C, 4)
            As `grids` returns them.
        qualities : sequence of float
            Of the layers, from the lowest.
        run : int
            Dates refer to one another within runs of so many dates.
        decoded : ndarray of int32, optional
            Of the shape of the cube. Becomes what the last layers decode to.

        Returns
        -------
        list of list of (bytes, int)
            For each layer and date: the section, and the checksum of its latents.
        """
        dates, layers = len(cube), len(qualities)
        capacity = dates * layers * (1 + _library().tec_tile_capacity(*cube.shape[1:]))
        out = np.empty(capacity, np.uint8)
        starts, lengths = np.empty(dates * layers, np.int64), np.empty(dates * layers, np.int64)
        checksums = np.empty(dates * layers, np.uint32)
        levels = np.array([round(4096 * quality) for quality in qualities], np.int32)
        status = _library().tec_series_encode(
            self._model, core.at(cube), core.at(known), core.at(grids), *cube.shape, run, layers,
            core.at(levels), core.at(out), capacity, core.at(starts), core.at(lengths),
            core.at(checksums), core.at(decoded),
        )  # fmt: skip
        _check(status, "a series")
        pieces = [
            (out[start : start + length].tobytes(), int(checksum))
            for start, length, checksum in zip(starts, lengths, checksums, strict=True)
        ]
        return [pieces[layer * dates : (layer + 1) * dates] for layer in range(layers)]

    def collect(
        self, image: np.ndarray, grids: np.ndarray, quality: float, rounded: bool
    ) -> Collected:
        """Return what the context network sees of one date, int32 (C, h, w). Training uses it.

        If `rounded`, components are rounded, without a look at what symbols cost.
        """
        side = 16  # a block's, of the finest grid; there may be a margin of one pixel
        most = image.shape[0] * np.prod([-(-(n + 1) // side) * side for n in image.shape[1:]])
        components, values = np.empty(most), np.empty(most, np.int32)
        inputs, symbols = np.empty((most, INPUTS), np.uint8), np.empty(most, np.int32)
        sizes = np.zeros(4, np.int32)
        count = _library().tec_tile_collect(
            self._model, core.at(image), core.at(grids), *image.shape, round(4096 * quality),
            rounded, most, *(core.at(a) for a in (components, values, inputs, symbols, sizes)),
        )  # fmt: skip
        _check(count, "a tile")
        shape = tuple(sizes[:3])
        return Collected(
            components[:count].reshape(shape), values[:count].reshape(shape), inputs[:count],
            symbols[:count], int(sizes[3]),
        )  # fmt: skip

    def collect_series(
        self, cube: np.ndarray, grids: np.ndarray, qualities: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the network sees of predicted dates and layers of int32 (T, C, h, w).

        Returns inputs, uint8 (n, 28), and symbols, int32 (n,). Training uses it.
        """
        side = 16  # as in `collect`
        height, width = (-(-(n + 1) // side) * side for n in cube.shape[2:])
        most = int(np.prod(cube.shape[:2])) * height * width * len(qualities)
        levels = np.array([round(4096 * quality) for quality in qualities], np.int32)
        inputs, symbols = np.empty((most, INPUTS), np.uint8), np.empty(most, np.int32)
        count = _library().tec_series_collect(
            self._model, core.at(cube), core.at(grids), *cube.shape, len(levels), core.at(levels),
            core.at(inputs), core.at(symbols), most,
        )  # fmt: skip
        _check(count, "a series")
        return inputs[:count], symbols[:count]
