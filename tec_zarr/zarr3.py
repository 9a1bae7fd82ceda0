"""TEC as a Zarr v3 codec: the serializer of an array, also inside shards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.codec import ArrayBytesCodec

from tec_zarr.chunk import ChunkSpec, check_array, decode_chunk, encode_chunk
from tec_zarr.errors import UnsupportedArrayError

if TYPE_CHECKING:
    from typing import Self

    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "tec"


@dataclass(frozen=True)
class TECCodec(ChunkSpec, ArrayBytesCodec):
    """TerraCodec for arrays of Sentinel-2 digital numbers or reflectance.

    Takes the arguments of :class:`tec_zarr.chunk.ChunkSpec`. Use it as the ``serializer`` of a
    Zarr v3 array, with ``compressors=None``: frames are already compressed and checked.

    Notes
    -----
    There are no ``_encode_sync`` and ``_decode_sync``: with them Zarr's fused pipeline would
    bypass a batched ``encode``.
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
        """Metadata of an array: ``{"name": "tec", "configuration": {...}}``."""
        return {"name": NAME, "configuration": self.to_config()}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays that cannot be encoded, when they are created."""
        check_array(dtype.to_native_dtype(), len(shape))

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Refuse arrays that cannot be encoded; shards call this and not ``validate``."""
        check_array(array_spec.dtype.to_native_dtype(), array_spec.ndim)
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known before encoding."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        padding = () if chunk_spec.fill_value is None else (chunk_spec.fill_value,)
        encoded = await asyncio.to_thread(
            encode_chunk, chunk_data.as_numpy_array(), self, padding=padding
        )
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        array = await asyncio.to_thread(
            decode_chunk, chunk_data.to_bytes(), expected_shape=chunk_spec.shape
        )
        dtype = chunk_spec.dtype.to_native_dtype()
        if array.dtype.newbyteorder("=") != dtype.newbyteorder("="):
            raise UnsupportedArrayError(
                f"TEC frame of {array.dtype} in an array of {dtype}: the chunk belongs to "
                "another array"
            )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(array)
