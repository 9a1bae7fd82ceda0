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

_NO_MEMORY = -1
_ERRORS: dict[int, type[TecError]] = {
    -2: FormatError, -5: ChecksumError, -6: VersionError, -7: LimitError
}  # fmt: skip


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
    pointer, large = ctypes.c_void_p, ctypes.c_int64
    found.tec_decode.argtypes = [
        ctypes.c_char_p, large, pointer, pointer, pointer, large, pointer, large, pointer,
    ]  # fmt: skip
    return found


def decode(
    data: bytes, model: TileModel | None, dates: Sequence[int] | None, samples: np.ndarray
) -> None:
    """Decode a frame to ``samples``.

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
    if status == 0:
        return
    text = (wrong.value or b"").decode()
    if status == _NO_MEMORY:
        raise MemoryError(text)
    error = _ERRORS.get(status, FormatError)
    what = "TEC frame damaged" if error is FormatError else "TEC frame"
    raise error(f"{what}: {text} (a chunk of shape {samples.shape}, status {status} of the core)")
