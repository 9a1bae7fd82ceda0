"""Predict the values and the bytes of a cube after TEC, without writing anything."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.options import takes_options
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.dims import XrObject, chosen_variables, transposed
from tec_zarr.cubes.encoding import encoding, without_codecs
from tec_zarr.cubes.packing import PACKING


@takes_options(encoding)
def simulate(obj: XrObject, **options: Any) -> XrObject:
    """Return ``obj`` as it will be after writing it with TEC and reading it. Writes nothing.

    Parameters
    ----------
    obj : DataArray or Dataset
        Cube with time, band, y and x in any order, or without time or band: uint16 or int16 DN, or
        float32 or float64 reflectance. Variables that are not reflectance stay as they are.
    **options
        As in `tec_zarr.encoding`. `weigh` returns the number of bytes.

    Returns
    -------
    DataArray or Dataset
        The values that a reader of the store will get, with the dimensions, dtype, units,
        coordinates and attributes of ``obj``. Reflectance is always lazy.

    Raises
    ------
    UnsupportedArrayError
        TEC cannot encode the data, or an option is out of its range.
    """
    if isinstance(obj, xr.DataArray):
        return _simulated(obj, options)
    names = chosen_variables(obj, options.get("variables"))
    found = {n: _simulated(obj[n], options) for n in obj.data_vars if str(n) in names}
    return obj.assign(found)


@takes_options(encoding)
def weigh(obj: xr.DataArray | xr.Dataset, **options: Any) -> int:
    """Return the bytes that the TEC chunks of ``obj`` will take. Encodes all, writes nothing.

    Parameters
    ----------
    obj : DataArray or Dataset
        Dimensions time, band, y and x in any order, or without time or band: uint16 or int16 DN, or
        float32 or float64 reflectance.
    **options
        As in `tec_zarr.encoding`.

    Returns
    -------
    int
        Bytes. Metadata and lossless variables are not counted.

    Raises
    ------
    UnsupportedArrayError
        TEC cannot encode the data, or an option is out of its range.
    """
    if isinstance(obj, xr.DataArray):
        arrays = [obj]
    else:
        names = chosen_variables(obj, options.get("variables"))
        arrays = [da for n, da in obj.data_vars.items() if str(n) in names]
    total = 0
    for da in arrays:
        written, lazy = _plan(da, options)
        ones = tuple((1,) * n for n in lazy.numblocks)
        sizes = lazy.map_blocks(written.weight, dtype=np.int64, chunks=ones)
        total += int(sizes.sum().compute())
    return total


@dataclass(frozen=True)
class _Written:
    """Codec, chunk shape and CF packing of an array, and the value that pads its edge chunks."""

    codec: ChunkSpec
    chunk: tuple[int, ...]
    packing: Mapping[str, Any]
    dims: tuple[str, ...]
    fill: float

    def frames(self, block: np.ndarray) -> Iterator[tuple[tuple[slice, ...], bytes]]:
        """Yield place and bytes of each chunk in a block of whole chunks."""
        packed = self._packed(block)
        starts = (range(0, size, n) for size, n in zip(block.shape, self.chunk, strict=True))
        for corner in itertools.product(*starts):
            place = tuple(slice(i, i + n) for i, n in zip(corner, self.chunk, strict=True))
            piece = packed[place]
            missing = [(0, n - size) for size, n in zip(piece.shape, self.chunk, strict=True)]
            padded = np.pad(piece, missing, constant_values=self.fill)
            yield place, encode_chunk(padded, self.codec, padding=(self.fill,))

    def read_back(self, block: np.ndarray) -> np.ndarray:
        """Return the block as it is after writing and reading."""
        out = np.empty_like(self._packed(block[:0]), shape=block.shape)
        for place, frame in self.frames(block):
            size = (slice(n) for n in out[place].shape)
            out[place] = decode_chunk(frame)[tuple(size)]
        return self._unpacked(out).astype(block.dtype)

    def weight(self, block: np.ndarray) -> np.ndarray:
        """Return the bytes of the block's chunks as an array with one element."""
        total = sum(len(frame) for _, frame in self.frames(block))
        return np.full((1,) * block.ndim, total, np.int64)

    def _packed(self, block: np.ndarray) -> np.ndarray:
        if not self.packing:
            return block
        values = xr.Variable(self.dims, block, encoding=dict(self.packing))
        return xr.conventions.encode_cf_variable(values).values

    def _unpacked(self, stored: np.ndarray) -> np.ndarray:
        if not self.packing:
            return stored
        attrs = {k: v for k, v in self.packing.items() if k != "dtype"}
        return xr.conventions.decode_cf_variable("", xr.Variable(self.dims, stored, attrs)).values


def _plan(da: xr.DataArray, options: Mapping[str, Any]) -> tuple[_Written, Any]:
    """Return how ``da`` is written, and its data as a Dask array of whole chunks."""
    settings = {k: v for k, v in options.items() if k != "variables"}
    ordered = transposed(without_codecs(da))
    name = str(da.name) if da.name is not None else "cube"
    stored = encoding(ordered.to_dataset(name=name), variables=[name], **settings)[name]
    chunk = stored["chunks"]
    packing = {k: stored[k] for k in PACKING if k in stored}
    fills = {**da.attrs, **da.encoding, **packing}
    floats = np.dtype(packing.get("dtype", da.dtype)).kind == "f"
    fill = np.nan if floats else fills.get("_FillValue", 0)
    codec = stored.get("serializer") or stored["compressors"]
    lazy = ordered if ordered.chunks is not None else ordered.chunk(
        dict(zip(ordered.dims, chunk, strict=True))
    )
    dims = tuple(map(str, ordered.dims))
    return _Written(codec, chunk, packing, dims, fill), lazy.data


def _simulated(da: xr.DataArray, options: Mapping[str, Any]) -> xr.DataArray:
    written, lazy = _plan(da, options)
    back = lazy.map_blocks(written.read_back, dtype=da.dtype)
    return transposed(da).copy(data=back).transpose(*da.dims)
