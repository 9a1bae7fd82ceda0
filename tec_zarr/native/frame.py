"""Calls the decoder of frames of the compiled core."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tec_zarr import config
from tec_zarr.errors import ChecksumError, FormatError, LimitError, TecError, VersionError
from tec_zarr.native import core
from tec_zarr.native.tile import TileModel

DTYPES = ("u2", "i2", "f4", "f8")
"""Dtypes of arrays, by their number in frames."""

_NO_MEMORY, _OVER_LIMIT = -1, -7
_ERRORS: dict[int, type[TecError]] = {-5: ChecksumError, -6: VersionError}


class _Limits(ctypes.Structure):
    """What a frame may ask for, in the memory layout of the core."""

    _fields_ = [(name, ctypes.c_int64) for name in (
        "samples", "bands", "latent_sections", "header_bytes", "coded_bytes", "mask_bytes"
    )]  # fmt: skip

    @classmethod
    def now(cls) -> _Limits:
        """Return the limits of :mod:`tec_zarr.config`."""
        return cls(
            config.MAX_CHUNK_SAMPLES, config.MAX_BANDS, config.MAX_LATENT_SECTIONS,
            config.MAX_HEADER_BYTES, config.MAX_LATENTS_BYTES, config.MAX_MASK_BYTES,
        )  # fmt: skip


@cache
def _library() -> Any:
    found = core.library()
    pointer, large, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
    text = ctypes.c_char_p
    found.tec_decode.argtypes = [text, large, *[pointer] * 3, large, pointer, large, pointer]
    found.tec_mask_labels.argtypes = [text, large, pointer, number, large, *[pointer] * 3]
    found.tec_unpack.argtypes = [text, large, pointer, large]
    found.tec_points_restore.argtypes = [text, large, pointer, number, pointer, pointer]
    found.tec_values.argtypes = [pointer, large, number, real, real, pointer, number, pointer]
    return found


def _check(status: int, wrong: str, shape: Sequence[int]) -> None:
    if status == _NO_MEMORY:
        raise MemoryError(f"a chunk of shape {tuple(shape)}: {wrong}")
    if status == _OVER_LIMIT:
        raise LimitError(
            f"a chunk of shape {tuple(shape)}: {wrong}, tec_zarr.config.MAX_MASK_BYTES = "
            f"{config.MAX_MASK_BYTES}: raise that limit if you trust the source of this frame"
        )
    if status:
        error = _ERRORS.get(status, FormatError)
        raise error(f"TEC frame damaged: {wrong}, for a chunk of shape {tuple(shape)}")


def decode(
    data: bytes, model: TileModel | None, dates: Sequence[int] | None, samples: np.ndarray
) -> None:
    """Decode a frame, whose header was read and found sound, to ``samples``.

    Parameters
    ----------
    data : bytes
        One frame.
    model : TileModel, optional
        The image model with the frame's weights. None: the frame has no latents.
    dates : sequence of int, optional
        Dates to decode. None: all.
    samples : ndarray, (T, C, H, W)
        C-contiguous, of the frame's dtype in the byte order of the machine.

    Raises
    ------
    FormatError, ChecksumError, VersionError, LimitError
        As :func:`tec_zarr.frame.frame.read_frame`. ``samples`` mean nothing then.
    """
    assert samples.flags.c_contiguous
    wrong = ctypes.c_char_p()
    wanted = None if dates is None else np.array(dates, np.int64)
    status = _library().tec_decode(
        data, len(data), ctypes.byref(_Limits.now()), None if model is None else model.handle,
        None if wanted is None else wanted.ctypes.data, 0 if wanted is None else len(wanted),
        samples.ctypes.data, samples.nbytes, ctypes.byref(wrong),
    )  # fmt: skip
    _check(status, (wrong.value or b"").decode(), samples.shape)


def labels(packed: bytes, shape: Sequence[int], size: int) -> tuple[np.ndarray, int]:
    """Return the labels of a mask section, uint8 of ``shape``, and how many values are listed.

    ``size`` is that of a sample in bytes.

    Raises
    ------
    FormatError, LimitError
        The section is damaged, or it inflates to more than ``tec_zarr.config.MAX_MASK_BYTES``.
    """
    out = np.empty(shape, np.uint8)
    listed, wrong = ctypes.c_int64(), ctypes.c_char_p()
    status = _library().tec_mask_labels(
        packed, len(packed), (ctypes.c_int64 * 4)(*shape), size, config.MAX_MASK_BYTES,
        out.ctypes.data, ctypes.byref(listed), ctypes.byref(wrong),
    )  # fmt: skip
    _check(status, (wrong.value or b"").decode(), shape)
    return out, listed.value


def unpack(packed: bytes, size: int) -> np.ndarray:
    """Return the ``size`` bytes, uint8, of packed bytes. Raises FormatError if there are others."""
    out = np.empty(size, np.uint8)
    status = _library().tec_unpack(packed, len(packed), out.ctypes.data, size)
    _check(status, f"{len(packed)} packed bytes are not {size} unpacked ones", (size,))
    return out


def restore_points(packed: bytes, samples: np.ndarray) -> None:
    """Write the values of a section of points into ``samples`` (T, C, H, W), in place.

    Raises FormatError if the section is damaged, or does not fit the shape.
    """
    assert samples.flags.c_contiguous
    status = _library().tec_points_restore(
        packed, len(packed), (ctypes.c_int64 * 4)(*samples.shape), samples.itemsize, None,
        samples.ctypes.data,
    )  # fmt: skip
    _check(status, "the points section cannot be read", samples.shape)


def values(
    dn: np.ndarray, dtype: np.dtype, scale: float, offset: float, nodata: Sequence[float]
) -> np.ndarray:
    """Convert whole DN, int32, to values of an array of ``dtype``, none of which is nodata."""
    dn = np.ascontiguousarray(dn, np.int32)
    out = np.empty(dn.shape, dtype.newbyteorder("="))
    apart = np.array(nodata, np.float64)
    status = _library().tec_values(
        dn.ctypes.data, dn.size, DTYPES.index(out.dtype.str[1:]), scale, offset,
        apart.ctypes.data, len(apart), out.ctypes.data,
    )  # fmt: skip
    _check(status, f"nothing is left beside the nodata values {nodata}", dn.shape)
    return out
