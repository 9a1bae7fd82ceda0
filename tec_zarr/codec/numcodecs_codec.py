"""TEC as a numcodecs codec: Zarr format 2, kerchunk, and anything that speaks numcodecs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_ndarray, ndarray_copy

from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec


@dataclass(frozen=True)
class TEC(ChunkSpec, Codec):
    """TerraCodec for arrays of Sentinel-2 digital numbers or reflectance.

    Takes the arguments of :class:`tec_zarr.codec.spec.ChunkSpec`. Use it as the ``compressors``
    of a Zarr format 2 array, or as its first filter with ``compressors=None``. Set ``nodata`` to
    the array's fill value if that is not 0, because format 2 does not tell a codec the value that
    it pads edge chunks with.

    Chunks are (time, band, y, x), (band, y, x), (time, y, x) of one band, or (y, x), of dtype
    uint16, int16 (DN), float32 or float64 (reflectance).

    Raises
    ------
    UnsupportedArrayError
        An argument is out of its range, or a chunk has another dtype or shape.
    FormatError, ChecksumError, VersionError
        Bytes to decode are damaged, or a newer version wrote them. No pixels are returned.
    UnknownModelError, WeightsMismatchError
        The model or its weights are not installed.
    LimitError
        A chunk is larger than :mod:`tec_zarr.config` allows.

    Examples
    --------
    >>> import numpy as np, tec_zarr
    >>> tec = tec_zarr.TEC(quality=4)
    >>> dn = np.zeros((2, 12, 64, 64), "uint16")
    >>> bool((tec.decode(tec.encode(dn)) == dn).all())
    True
    """

    codec_id: ClassVar[str] = "tec"

    def encode(self, buf: np.ndarray) -> bytes:
        """Encode an array of one chunk to one frame."""
        return encode_chunk(np.asarray(buf), self)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a frame in any buffer; the settings of this codec are not used.

        Returns
        -------
        ndarray
            It has the shape, dtype, byte order and memory order of the array that was encoded.
            If ``out`` is given (an array of this dtype, or a buffer for the bytes of such an
            array), it is filled and returned.
        """
        array = decode_chunk(ensure_ndarray(buf).tobytes())
        if out is None:
            return array
        if np.dtype("u1") == ensure_ndarray(out).dtype:
            ndarray_copy(array.ravel(order="K"), out)
        else:
            np.copyto(out, array.reshape(out.shape), casting="no")
        return out

    def get_config(self) -> dict[str, Any]:
        """Return the JSON configuration that ``.zarray`` stores."""
        return {"id": self.codec_id, **self.to_config()}
