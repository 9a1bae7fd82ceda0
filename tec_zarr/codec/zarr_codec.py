"""TEC as a Zarr v3 codec: the serializer of an array, also inside shards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin

from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import check_layout, encode_chunk
from tec_zarr.codec.spec import ChunkSpec, check_array
from tec_zarr.errors import UnsupportedArrayError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np
    from zarr.abc.buffer import Buffer, NDBuffer
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.indexing import SelectorTuple

NAME = "tec"


@dataclass(frozen=True)
class TECCodec(ChunkSpec, ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin):
    """TerraCodec for arrays of Sentinel-2 digital numbers or reflectance.

    Takes the arguments of :class:`tec_zarr.codec.spec.ChunkSpec`. Use it as the ``serializer`` of
    a Zarr v3 array, with ``compressors=None``, because frames are compressed and have checksums.

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

    Notes
    -----
    ``_encode_sync`` and ``_decode_sync`` are left out on purpose: with them Zarr's fused pipeline
    would bypass a batched ``encode``.
    """

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build from the metadata of an array."""
        if data.get("name") != NAME:
            raise UnsupportedArrayError(f"codec {data.get('name')!r} is not {NAME!r}")
        configuration = data.get("configuration") or {}
        if not isinstance(configuration, dict):
            raise UnsupportedArrayError(
                f"codec {NAME!r} has the configuration {configuration!r:.80}, it must be an object"
            )
        return cls.from_config(configuration)

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata of an array: ``{"name": "tec", "configuration": {...}}``."""
        return {"name": NAME, "configuration": self.to_config()}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Raise UnsupportedArrayError for an array that cannot be encoded, when it is created."""
        check_array(dtype.to_native_dtype(), len(shape))
        check_layout(shape, chunk_grid.chunk_shape, self)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Raise UnsupportedArrayError for an array that cannot be encoded.

        Shards call this instead of ``validate``.
        """
        check_array(array_spec.dtype.to_native_dtype(), array_spec.ndim)
        check_layout(array_spec.shape, array_spec.shape, self)
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError: the size is unknown before encoding."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        padding = () if chunk_spec.fill_value is None else (chunk_spec.fill_value,)
        encoded = await asyncio.to_thread(
            encode_chunk, chunk_data.as_numpy_array(), self, padding=padding
        )
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        array = await self._decoded(chunk_data, chunk_spec, None)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        """Return a part of a chunk. All of its bytes are read; only selected dates are decoded."""
        data = await byte_getter.get(prototype=chunk_spec.prototype)
        if data is None:
            return None
        parts = selection if isinstance(selection, tuple) else (selection,)
        dates: Sequence[int] | None = None
        if len(parts) == chunk_spec.ndim == 4:
            if isinstance(parts[0], slice):
                dates, parts = range(chunk_spec.shape[0])[parts[0]], (slice(None), *parts[1:])
            elif isinstance(parts[0], int):
                dates, parts = [parts[0]], (0, *parts[1:])
        array = await self._decoded(data, chunk_spec, dates)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array[parts])

    async def _decoded(
        self, data: Buffer, chunk_spec: ArraySpec, dates: Sequence[int] | None
    ) -> np.ndarray:
        array = await asyncio.to_thread(
            decode_chunk, data.to_bytes(), expected_shape=chunk_spec.shape, dates=dates
        )
        dtype = chunk_spec.dtype.to_native_dtype()
        if array.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            raise UnsupportedArrayError(
                f"TEC frame of {array.dtype} in an array of {dtype}: the chunk belongs to "
                "another array"
            )
        return array
