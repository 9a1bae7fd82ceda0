"""Calls the compiled core, which codes the coefficients of a tile and computes its transforms."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tec_zarr.errors import ChecksumError, UnsupportedArrayError

MOST_BANDS, CLASSES = 31, 5
INPUTS, SCAN_INPUTS, STILL_INPUTS, HIDDEN = 28, 4, 16, 32
TABLES, REACH, PLAIN, INDEXES = 40, 32, 28, 96
SYMBOLS = 2 * REACH + 1
SIZE = 16
"""Samples along a side of a block of level 0; half of it at level 1."""

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_LIBRARY = Path(__file__).with_name(f"_core{_SUFFIX}")
_ENCODE, _DECODE, _COLLECT = range(3)


class Context(ctypes.Structure):
    """The context network and its tables, in the memory layout of the core."""

    _fields_ = [
        ("first", ctypes.c_int16 * (INPUTS * HIDDEN)),
        ("first_bias", ctypes.c_int32 * HIDDEN),
        ("second", ctypes.c_int16 * (HIDDEN * HIDDEN)),
        ("second_bias", ctypes.c_int32 * HIDDEN),
        ("last", ctypes.c_int16 * HIDDEN),
        ("last_bias", ctypes.c_int32),
        ("shifts", ctypes.c_int32 * 3),
        ("mean", ctypes.c_int16 * (4 * MOST_BANDS)),
        ("starts", ctypes.c_uint32 * (TABLES * (SYMBOLS + 1))),
        ("costs", ctypes.c_int32 * (TABLES * SYMBOLS)),
    ]

    def put(self, name: str, values: np.ndarray) -> None:
        """Set a field from an array of its size and type."""
        field = getattr(self, name)
        np.ctypeslib.as_array(field)[...] = values.reshape(-1)


@cache
def library() -> Any:
    """Load the compiled core.

    Raises
    ------
    UnsupportedArrayError
        It was not built when the package was installed.
    """
    try:
        found = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        raise UnsupportedArrayError(
            f"tec_zarr was installed without its compiled core ({error}): install a C compiler "
            "and run pip install --force-reinstall --no-binary tec_zarr tec_zarr"
        ) from error
    pointer, number, large, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    found.tec_planes.argtypes = [number, pointer, pointer]
    found.tec_walk.argtypes = [
        number, pointer, number, number, number, pointer, pointer, number, number, pointer,
        pointer, real, pointer, pointer, pointer, large, pointer, pointer, large,
    ]  # fmt: skip
    found.tec_walk.restype = large
    found.tec_kernel.argtypes = [number, pointer]
    found.tec_kernel.restype = ctypes.c_char_p
    found.tec_forward.argtypes = [pointer, number, number, number, *[pointer] * 4]
    found.tec_inverse.argtypes = [pointer, number, number, number, *[pointer] * 3]
    found.tec_products.argtypes = [pointer, number, large, pointer]
    found.tec_project.argtypes = [pointer, number, large, pointer, number, number, pointer]
    found.tec_mix.argtypes = [pointer, *[number] * 4, *[pointer] * 3]
    found.tec_rotated.argtypes = [number, number, *[pointer] * 4]
    found.tec_checksum.argtypes = [pointer, large]
    found.tec_checksum.restype = ctypes.c_uint32
    found.tec_step.argtypes, found.tec_step.restype = [number], large
    return found


def kernels() -> list[str]:
    """Return the names of the kernels of the context network that this processor has.

    The first is used, unless the environment variable ``TEC_NATIVE`` names another one. All give
    the same results.
    """
    found: list[tuple[str, int]] = []
    here = ctypes.c_int()
    while (name := library().tec_kernel(len(found), ctypes.byref(here))) is not None:
        found.append((name.decode(), here.value))
    return [name for name, there in found if there]


def at(array: np.ndarray | None) -> ctypes.c_void_p | None:
    """Return where an array lies in memory, for a function of the core. It must be C-contiguous."""
    if array is None:
        return None
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def planes(components: np.ndarray) -> np.ndarray:
    """Return class, u, v and component of each plane of coefficients, in order: int32 (planes, 4).

    Parameters
    ----------
    components : ndarray of int32, (5,)
        Number of components of each class of frequencies.
    """
    count = library().tec_planes(SIZE, at(components), None)
    out = np.empty((count, 4), np.int32)
    library().tec_planes(SIZE, at(components), at(out))
    return out


class Walk:
    """Encodes and decodes the coefficients of one date of a tile.

    Parameters
    ----------
    context : Context
        The network and its tables.
    components : ndarray of int32, (5,)
        Number of components of each class of frequencies.
    spreads : ndarray of int32, (5, 31)
        Quarter octaves of each component's standard deviation over the step.
    rows, cols : int
        Blocks of the tile.
    kind, fineness : int
        Further inputs of the network, 0 to 127.
    hints : ndarray of uint16, (planes, rows, cols), optional
        Twice the expected magnitudes, in steps.
    """

    def __init__(
        self,
        context: Context,
        components: np.ndarray,
        spreads: np.ndarray,
        rows: int,
        cols: int,
        kind: int,
        fineness: int,
        hints: np.ndarray | None = None,
    ):
        self.planes = planes(components)
        self.shape = (len(self.planes), rows, cols)
        self._hints = hints
        self._before = (
            ctypes.byref(context), SIZE, rows, cols, at(components), at(spreads), kind, fineness,
            at(hints),
        )  # fmt: skip
        self._keep = (context, components, spreads)

    def _run(self, mode: int, *rest: Any) -> int:
        status = library().tec_walk(mode, *self._before, *rest)
        if status == -1:
            raise MemoryError(f"no memory for the coefficients of a tile of {self.shape} blocks")
        if status < 0:
            raise ChecksumError("a section holds coefficients that no encoder writes")
        return int(status)

    def encode(self, wanted: np.ndarray, weight: float) -> tuple[bytes, np.ndarray, np.ndarray]:
        """Quantise and code coefficients.

        Parameters
        ----------
        wanted : ndarray of float64, (planes, rows, cols)
            Coefficients in steps.
        weight : float
            Bits that a squared step of error is worth.

        Returns
        -------
        data : bytes
            The coded bytes.
        values : ndarray of int32, (planes, rows, cols)
            Quantised coefficients.
        indexes : ndarray of uint8, (planes, rows, cols)
            Number of the table that each value was coded with.
        """
        values, indexes = np.zeros(self.shape, np.int32), np.zeros(self.shape, np.uint8)
        data = np.empty(8 * values.size + 64, np.uint8)
        length = self._run(_ENCODE, at(wanted), 256 * weight, at(values), at(indexes), at(data),
                           len(data), None, None, 0)  # fmt: skip
        return data[:length].tobytes(), values, indexes

    def decode(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Decode bytes; return values and indexes as `encode` does."""
        values, indexes = np.zeros(self.shape, np.int32), np.zeros(self.shape, np.uint8)
        array = np.frombuffer(data, np.uint8)
        self._run(
            _DECODE, None, 0.0, at(values), at(indexes), at(array), len(array), None, None, 0
        )
        return values, indexes

    def collect(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the network's inputs for each value, uint8 (n, 28), and the symbols, int32 (n,).

        Training uses them.
        """
        inputs, symbols = np.empty((values.size, INPUTS), np.uint8), np.empty(values.size, np.int32)
        self._run(_COLLECT, None, 0.0, at(values), None, None, 0, at(inputs), at(symbols),
                  values.size)  # fmt: skip
        return inputs, symbols


def forward(
    plane: np.ndarray, size: int, overlap: np.ndarray, dct: np.ndarray, gain: np.ndarray
) -> np.ndarray:
    """Transform a plane (rows size, cols size) to coefficients, float64 (size^2, rows, cols).

    The transform is lapped: neighbouring blocks overlap.
    """
    rows, cols = plane.shape[0] // size, plane.shape[1] // size
    out = np.empty((size * size, rows, cols))
    plane = np.ascontiguousarray(plane, np.float64)
    library().tec_forward(at(plane), rows, cols, size, at(overlap), at(dct), at(gain), at(out))
    return out


def inverse(
    coefficients: np.ndarray, size: int, overlap: np.ndarray, dct: np.ndarray
) -> np.ndarray:
    """Transform coefficients int32 (size^2, rows, cols) to a plane, int32, in the same units."""
    rows, cols = coefficients.shape[1:]
    out = np.empty((rows * size, cols * size), np.int32)
    library().tec_inverse(at(coefficients), rows, cols, size, at(overlap), at(dct), at(out))
    return out


def products(values: np.ndarray) -> np.ndarray:
    """Return the sums of products of each pair of rows, float64 (rows, rows)."""
    out = np.empty((len(values), len(values)))
    library().tec_products(at(values), len(values), values[0].size, at(out))
    return out


def project(values: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Project values (rows, ...) on the columns of a basis (rows, columns): (columns, ...)."""
    out = np.empty((basis.shape[1], *values.shape[1:]))
    basis = np.ascontiguousarray(basis, np.float64)
    library().tec_project(at(values), len(values), values[0].size, at(basis), basis.shape[1],
                          basis.shape[1], at(out))  # fmt: skip
    return out


def mix(values: np.ndarray, basis: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return the coefficients of bands in 1/64 DN, from those of components in 1/64 step.

    Parameters
    ----------
    values : ndarray of int32, (frequencies, components, rows, cols)
        Coefficients of components, in 1/64 step.
    basis : ndarray of int32, (bands, components)
        Spectral basis, in 1/2^12.
    factor : ndarray of int64, (frequencies, bands)
        Length of a step in DN, in 1/2^14.

    Returns
    -------
    ndarray of int32, (frequencies, bands, rows, cols)
    """
    frequencies, components, rows, cols = values.shape
    out = np.empty((frequencies, len(basis), rows, cols), np.int32)
    basis = np.ascontiguousarray(basis)
    library().tec_mix(at(values), frequencies, components, len(basis), rows * cols, at(basis),
                      at(factor), at(out))  # fmt: skip
    return out


def checksum(latents: np.ndarray) -> int:
    """Return the checksum of the values of a date, int32."""
    return int(library().tec_checksum(at(latents), latents.size))


def step_of(quality: float) -> float:
    """Return the quantiser step in DN, geometric between quality 1 and 8, in whole 1/256 DN."""
    return float(library().tec_step(round(4096 * quality)) / 256)


def rotated(count: int, rotations: list[tuple[int, int, int]]) -> np.ndarray:
    """Return the identity after rotations of two rows by an angle, the last first.

    Angles are in pi / 2^15, the result int64 (count, count) in 1/2^24.
    """
    out = np.empty((count, count), np.int64)
    first, second, angles = (np.array([r[i] for r in rotations], np.int32) for i in range(3))
    library().tec_rotated(count, len(rotations), at(first), at(second), at(angles), at(out))
    return out
