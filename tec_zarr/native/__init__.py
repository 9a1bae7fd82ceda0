"""Calls the compiled decoder of ``tec-s2``.

The library is compiled when the package is installed (``hatch_build.py``), if there is a C
compiler. :func:`library` loads and checks it. Without it, torch and NumPy decode the same pixels.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tec_zarr.errors import FormatError

__all__ = ["Networks", "Pixels", "crc32", "library", "odd_width", "rotated_identity"]

_LIBRARY = Path(__file__).with_name("_s2.so")
#: Environment variable. ``0``: torch decodes. ``avx2``: no instructions beyond AVX2 are used.
_VARIABLE = "TEC_NATIVE"
_MOST_TAPS, _MOST_UNITS = 12, 128
_GROUPS = (4, 12, 48, 96, 160)
_SCALES = 52


class _Layer(ctypes.Structure):
    _fields_ = [
        ("taps", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in
          ("weight", "start", "scale", "shift")),
    ]  # fmt: skip


class _Tables(ctypes.Structure):
    _fields_ = [
        ("silent", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("count", "offset", "edges")),
    ]


class _Coarse(ctypes.Structure):
    _fields_ = [
        *((name, _Layer) for name in ("first", "second", "head")),
        ("row", ctypes.c_int32 * _MOST_TAPS),
        ("column", ctypes.c_int32 * _MOST_TAPS),
        ("linear", ctypes.c_void_p),
    ]


class _Fine(ctypes.Structure):
    _fields_ = [
        (name, _Layer)
        for name in ("first", "second", "anchors", "neighbours", "third", "others")
    ]


class _Networks(ctypes.Structure):
    _fields_ = [("coarse", _Coarse * 4), ("fine", _Fine * 4), ("tables", _Tables)]


class _Pixels(ctypes.Structure):
    _fields_ = [
        *((name, _Layer) for name in ("first", "one", "two", "last")),
        ("starts", ctypes.c_void_p),
        ("begin", ctypes.c_int32 * 13),
        ("at", ctypes.c_int32 * 12),
        ("channel", ctypes.c_void_p),
        ("matrix", ctypes.c_void_p),
        ("overlap", ctypes.c_int32 * 64),
        ("across", ctypes.c_int32 * 64),
        ("most", ctypes.c_int32),
    ]


@cache
def library() -> Any:
    """Return the compiled library; None if it is missing, unfit or switched off.

    ``TEC_NATIVE=0`` in the environment switches it off.
    """
    if os.environ.get(_VARIABLE) == "0" or not _LIBRARY.exists():
        return None
    try:
        found = ctypes.CDLL(str(_LIBRARY))
        sizes = (ctypes.c_int32 * 3)()
        found.tec_s2_sizes(sizes)
    except (OSError, AttributeError):  # built for another machine or version
        return None
    if list(sizes) != [ctypes.sizeof(kind) for kind in (_Layer, _Networks, _Pixels)]:
        return None
    if not found.tec_s2_runs_here():
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    found.tec_s2_latents.argtypes = [
        pointer, ctypes.c_char_p, ctypes.c_size_t, pointer, pointer, number, number, number,
        number, pointer,
    ]  # fmt: skip
    found.tec_s2_pixels.argtypes = [
        pointer, pointer, number, pointer, pointer, pointer, pointer, number, number, number,
        number, number, pointer, pointer,
    ]  # fmt: skip
    found.tec_crc32.argtypes = [ctypes.c_uint32, pointer, ctypes.c_size_t]
    found.tec_crc32.restype = ctypes.c_uint32
    found.tec_klt_basis.argtypes = [number, number, pointer, pointer, pointer]
    return found


def crc32(array: np.ndarray, start: int = 0) -> int:
    """Return the CRC32 of a contiguous array's bytes, the same as :func:`zlib.crc32`."""
    if library() and array.nbytes >= 64 and array.nbytes % 16 == 0:
        return int(library().tec_crc32(start, array.ctypes.data, array.nbytes))
    return zlib.crc32(array.data, start)


def _narrow() -> bool:
    return os.environ.get(_VARIABLE) == "avx2"


def rotated_identity(count: int, rows: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return the identity (count, count) after rotations of rows ``rows - 1`` and ``rows``.

    The rotations are applied one after another. The result is rounded to 2**-24, half to even.
    """
    rows, out = np.asarray(rows, np.int32), np.empty((count, count))
    library().tec_klt_basis(
        count, len(rows), rows.ctypes.data, angles.ctypes.data, out.ctypes.data
    )
    return out


class _Kept:
    """Keeps the arrays that a structure of the library points to."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def _keep(self, array: np.ndarray, dtype: Any) -> int:
        """Copy an array, keep the copy as long as this object lives, and return its address."""
        self._kept.append(np.ascontiguousarray(array, dtype))
        return self._kept[-1].ctypes.data

    def _layer(self, layer: dict[str, np.ndarray], shape: tuple[int, int, int]) -> _Layer:
        """Pack a layer of ``shape`` (outputs, inputs, taps).

        Raises FormatError for other shapes, because weights may come from a stranger.
        """
        weight = layer["weight"]
        if weight.shape != shape or not layer["scale"].shape == layer["shift"].shape == shape[:1]:
            raise FormatError(f"weights of a layer have shape {weight.shape}, not {shape}")
        outputs, inputs, taps = shape
        pad = -outputs % 16
        packed = np.pad(weight, ((0, pad), (0, 0), (0, 0))).transpose(2, 1, 0)
        packed = packed.reshape(taps, inputs // 4, 4, outputs + pad).swapaxes(2, 3)
        start = np.pad(-128 * weight.astype(np.int64).sum((1, 2)), (0, pad))
        scale, shift = (np.pad(layer[name], (0, pad)) for name in ("scale", "shift"))
        return _Layer(
            taps, inputs, outputs + pad, self._keep(packed, np.int8), self._keep(start, np.int32),
            self._keep(scale, np.float32), self._keep(shift, np.float32),
        )  # fmt: skip


def odd_width(units: int) -> bool:
    """Return whether the library does not support hidden layers of this many units."""
    return units % 16 != 0 or not 0 < units <= _MOST_UNITS


def _searchable(edges: np.ndarray) -> bool:
    """Return whether a table has a middle symbol, and every symbol a share of 2**24."""
    rises = len(edges) % 2 == 0 and bool((edges[1:].astype(np.int64) > edges[:-1]).all())
    return rises and edges[0] == 0 and edges[-1] == 1 << 24


def _check_terms(terms: np.ndarray, shape: tuple[int, ...]) -> None:
    if terms.shape != shape or terms.dtype != np.float32:
        raise FormatError(
            f"terms of a condition are {terms.dtype} {terms.shape}, the networks take {shape}"
        )


class Networks(_Kept):
    """The entropy networks and tables of a model, in the memory layout of the library.

    Parameters
    ----------
    coarse, fine : sequences of dict
        Layers by name: weight (outputs, inputs, taps) int8, scale and shift (outputs,) float32.
        Coarse networks also have ``offsets``, the (row, column) of their taps, and ``linear``
        (taps, 4, 4) int32 in 1/512.
    cumulative : sequence of (symbols + 1,) uint32
        Cumulative frequencies of each table. A table that codes nothing has two edges.
    silent : int
        Number of tables that code nothing.

    Raises
    ------
    FormatError
        Arrays have other shapes, or the library cannot search a table. The library does not check
        this itself; it takes all sizes from these arguments.
    """

    def __init__(
        self,
        coarse: Sequence[dict[str, Any]],
        fine: Sequence[dict[str, Any]],
        cumulative: Sequence[np.ndarray],
        silent: int,
    ) -> None:
        super().__init__()
        self._networks = _Networks()
        for one, layers in zip(self._networks.coarse, coarse, strict=True):
            units, taps = len(layers["first"]["weight"]), len(layers["offsets"])
            one.first = self._layer(layers["first"], (units, _GROUPS[0], taps))
            one.second = self._layer(layers["second"], (units, units, 1))
            one.head = self._layer(layers["head"], (2 * _GROUPS[0], units, 1))
            for number, (row, column) in enumerate(layers["offsets"]):
                one.row[number], one.column[number] = row, column
            if layers["linear"].shape != (taps, _GROUPS[0], _GROUPS[0]):
                raise FormatError(f"a linear predictor has shape {layers['linear'].shape}")
            one.linear = self._keep(layers["linear"], np.int32)
        before = _GROUPS[0]
        for one, layers, size in zip(self._networks.fine, fine, _GROUPS[1:], strict=True):
            units = len(layers["first"]["weight"])
            one.first = self._layer(layers["first"], (units, before, 9))
            one.second = self._layer(layers["second"], (units, units, 9))
            one.anchors = self._layer(layers["anchors"], (2 * size, units, 1))
            one.neighbours = self._layer(layers["neighbours"], (units, size, 4))
            one.third = self._layer(layers["third"], (units, units, 1))
            one.others = self._layer(layers["others"], (2 * size, units, 1))
            before += size
        nets = (*self._networks.coarse, *self._networks.fine)
        self._terms = sum(one.first.outputs for one in nets)
        if len(cumulative) != _SCALES or not all(map(_searchable, cumulative[silent:])):
            raise FormatError("probability tables are not those of a range coder")
        sizes = np.array([len(edges) for edges in cumulative])
        self._networks.tables = _Tables(
            silent,
            self._keep(sizes - 1, np.int32),
            self._keep(np.cumsum(sizes) - sizes, np.int32),
            self._keep(np.concatenate(cumulative), np.uint32),
        )

    def latents(
        self,
        data: bytes,
        biases: np.ndarray,
        prior: np.ndarray,
        rows: int,
        columns: int,
        coded: int,
    ) -> np.ndarray:
        """Decode latents, int32 (rows * columns, 320), in 1/16 step.

        Parameters
        ----------
        data : bytes
            Range-coded words.
        biases : float32 ndarray
            Terms of the condition for all first layers, coarse and then fine.
        prior : (320,) float32 ndarray
            Scales of the condition plus one half.
        coded : int
            Bit mask of the channel groups that are coded.

        Raises
        ------
        FormatError
            The bytes are not a stream of these tables, or the terms are of other networks.
        """
        _check_terms(biases, (self._terms,))
        _check_terms(prior, (sum(_GROUPS),))
        latents = np.zeros((rows * columns, len(prior)), np.int32)
        result = library().tec_s2_latents(
            ctypes.byref(self._networks), data, len(data) // 4, biases.ctypes.data,
            prior.ctypes.data, rows, columns, coded, _narrow(), latents.ctypes.data,
        )  # fmt: skip
        if result == 2:
            raise MemoryError(f"no memory to decode {rows} x {columns} blocks")
        if result:
            raise FormatError("the entropy-coded bytes are not a valid stream")
        return latents


class Pixels(_Kept):
    """The integer transforms from latents to pixels, in the memory layout of the library.

    Parameters
    ----------
    layers : dict
        ``first``, ``one``, ``two`` and ``last``, each as in :class:`Networks`.
    synthesis : (12, 64, 320) int ndarray
        Synthesis matrices of the components, in 1/2**14.
    pairs : (12, 320) bool ndarray
        True for the channels that each component is made of.
    overlap : (8, 8) int ndarray
        Overlap matrix, in 1/2**11.
    """

    def __init__(
        self,
        layers: dict[str, dict[str, np.ndarray]],
        synthesis: np.ndarray,
        pairs: np.ndarray,
        overlap: np.ndarray,
    ) -> None:
        super().__init__()
        self._pixels = out = _Pixels()
        units, channels_in = len(layers["first"]["weight"]), sum(_GROUPS)
        out.first = self._layer(layers["first"], (units, channels_in, 1))
        out.one = self._layer(layers["one"], (units, units, 9))
        out.two = self._layer(layers["two"], (units, units, 9))
        out.last = self._layer(layers["last"], (channels_in, units, 1))
        sums = np.cumsum(-128 * layers["first"]["weight"].astype(np.int64).sum(2), 1)
        out.starts = self._keep(sums[:, np.cumsum(_GROUPS) - 1].T, np.int32)
        channels: list[np.ndarray] = []
        blocks: list[np.ndarray] = []
        for number, (matrix, there) in enumerate(zip(synthesis, pairs, strict=True)):
            mine = np.flatnonzero(there)
            out.begin[number + 1] = out.begin[number] + len(mine)
            out.at[number] = sum(map(len, blocks))
            channels.append(mine)
            both = np.pad(matrix[:, mine], ((0, 0), (0, len(mine) % 2)))
            blocks.append(both.reshape(len(both), -1, 2).swapaxes(0, 1))
        out.channel = self._keep(np.concatenate(channels), np.int32)
        out.matrix = self._keep(np.concatenate(blocks), np.int16)
        out.overlap[:], out.across[:] = overlap.ravel().tolist(), overlap.T.ravel().tolist()
        out.most = (2**31 - 2**13 - 1) // max(int(np.abs(synthesis).max()), 1)

    def draw(
        self,
        latents: np.ndarray,
        last: int,
        bias: np.ndarray,
        steps: np.ndarray,
        basis: np.ndarray,
        mean: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Write whole DN into ``out`` (C, h, w), float32 or uint16. uint16 saturates.

        Parameters
        ----------
        latents : (P, 320) int32 ndarray
            In 1/16 step, block by block. Zero in the channels of groups after ``last``.
        last : int
            The last channel group that is used.
        bias : float32 ndarray
            Term of the condition for the first layer.
        steps : (320,) float64 ndarray
            Quantiser steps, whole multiples of 1/256 DN.
        basis, mean : (C, used), (C,) int32 ndarrays
            Spectral basis in 1/2**12. Mean in 1/2**13 DN, with one half added.
        """
        _check_terms(bias, (self._pixels.first.outputs,))
        there = [out.ctypes.data, None]
        result = library().tec_s2_pixels(
            ctypes.byref(self._pixels), latents.ctypes.data, last, bias.ctypes.data,
            steps.ctypes.data, basis.ctypes.data, mean.ctypes.data, basis.shape[1], *out.shape,
            _narrow(), *(there if out.dtype == np.float32 else there[::-1]),
        )  # fmt: skip
        if result:
            raise MemoryError(f"no memory to decode {out.shape[1]} x {out.shape[2]} pixels")
