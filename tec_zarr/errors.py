"""The errors and warnings that several rooms of tec_zarr share, one class per meaning.

Callers can catch each by its meaning. Every error is a ``ValueError``, because Zarr and numcodecs
pass those on to the user unchanged.
"""

from __future__ import annotations

import struct
import zlib

PAGE = "docs/errors.md"
"""The page that explains every class below, with its cure, under an anchor of its name."""


class TecError(ValueError):
    """Base of all tec_zarr errors. Messages say what is wrong, where, and what to do.

    A note, which tracebacks and the command line show, names the class's place on `PAGE`.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.add_note(f"See {PAGE}#{type(self).__name__.lower()}")


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
    """Data that TEC already compressed is about to be compressed with TEC again and lose more."""


class SeparateBandsWarning(UserWarning):
    """Bands are in separate variables, which take about twice the bytes of one array."""


class UnsuitedDataWarning(UserWarning):
    """TEC does not suit the data.

    They are classes, have more than twelve bands, or their chunks are mostly padding. A higher
    quality does not help.
    """


_OF_DATA = (
    ArithmeticError, AssertionError, BufferError, EOFError, LookupError, RuntimeError, TypeError,
    ValueError, struct.error, zlib.error,
)  # fmt: skip


def is_of_data(error: Exception) -> bool:
    """Return whether bad input bytes can have caused an error that a decoder raised.

    False for errors that the machine or the caller causes: a lack of memory (torch has its own
    errors for it), files, timeouts, exceptions of signal handlers, warnings turned into errors.
    """
    short = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, _OF_DATA) and not short and not isinstance(error, RecursionError)


class RecompressError(TecError):
    """A recompression that cannot start or go on; the message says what to change."""


class VerificationError(RecompressError):
    """Data read back from the target differ from the data written."""


class TargetError(RecompressError):
    """The target accepts no more data: it has no space, or it denies permission."""
