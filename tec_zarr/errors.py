"""Everything that tec_zarr raises or warns about, so that callers can catch by meaning.

Every error is a ``ValueError``: Zarr and numcodecs pass those on to the user unchanged.
"""

from __future__ import annotations

import struct
import zlib


class TecError(ValueError):
    """Base of all tec_zarr errors. Messages say what is wrong, where, and what to do."""


class UnsupportedArrayError(TecError):
    """An array or an argument that the codec cannot encode (dtype, dimensions, bands)."""


class FormatError(TecError):
    """Bytes that are not a TEC frame, are cut short, or break the rules of the format."""


class VersionError(FormatError):
    """A frame of a format version that this tec_zarr does not read."""


class ChecksumError(FormatError):
    """Bytes, or decoded latents, whose checksum is not the one recorded at encoding."""


class LimitError(TecError):
    """A frame or an array larger than the limits of :mod:`tec_zarr.config`."""


class UnknownModelError(TecError):
    """A model that this installation does not have."""


class WeightsMismatchError(TecError):
    """A model whose weights are not the ones that the frame was written with."""


class SecondGenerationWarning(UserWarning):
    """Data that already went through TEC is about to go through it again and lose more."""


class SeparateBandsWarning(UserWarning):
    """Bands in variables of their own are about to cost twice the bytes of one array."""


class UnsuitedDataWarning(UserWarning):
    """Data that TEC would keep badly, whatever the quality: classes, or more than twelve bands.
    Or chunks that are padding for the most part."""


_OF_DATA = (
    ArithmeticError, AssertionError, BufferError, EOFError, LookupError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


def is_of_data(error: Exception) -> bool:
    """Whether an error raised inside a decoder can come from the bytes that it was given.

    What the machine or the caller causes cannot: memory that is short (torch has its own errors
    for it), files, timeouts, whatever a signal handler raises, warnings turned into errors.
    """
    short = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, _OF_DATA) and not short and not isinstance(error, RecursionError)


class RecompressError(TecError):
    """A recompression that cannot start or go on; the message says what to change."""


class VerificationError(RecompressError):
    """What was read back is not what was written."""


class TargetError(RecompressError):
    """The target takes nothing more: no space, or no permission."""
