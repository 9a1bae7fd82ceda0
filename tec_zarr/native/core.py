"""Loads the compiled core, and names its kernels and its constants."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tec_zarr.errors import UnsupportedArrayError

MOST_BANDS = 31
"""Most bands of a tile."""

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_LIBRARY = Path(__file__).with_name(f"_core{_SUFFIX}")


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
    found.tec_kernel.argtypes = [ctypes.c_int, ctypes.c_void_p]
    found.tec_kernel.restype = ctypes.c_char_p
    found.tec_step.argtypes, found.tec_step.restype = [ctypes.c_int], ctypes.c_int64
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


def step_of(quality: float) -> float:
    """Return the quantiser step in DN, geometric between quality 1 and 8, in whole 1/256 DN."""
    return float(library().tec_step(round(4096 * quality)) / 256)
