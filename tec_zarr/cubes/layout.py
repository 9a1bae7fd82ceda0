"""Chunks and shards of a cube."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import xarray as xr

from tec_zarr.cubes.dims import BAND, TIME, X, Y, find_dim
from tec_zarr.errors import UnsupportedArrayError

CHUNK = {"time": 4, "space": 256}
"""Default chunk: as many dates and pixels as are read together, and all bands."""


SHARD_SIDE = 1024
"""Longest side of a shard in pixels: an object of about 1 MB instead of sixteen of 60 kB."""


def rechunk(ds: xr.Dataset) -> xr.Dataset:
    """Images in Dask chunks that are whole shards, so that no two tasks write the same one."""
    lengths: dict[str, int] = {}
    for da in ds.data_vars.values():
        time, band, y, x = (find_dim(da, names) for names in (TIME, BAND, Y, X))
        if y and x:
            lengths |= {y: SHARD_SIDE, x: SHARD_SIDE}
            lengths |= {time: CHUNK["time"]} if time else {}
            lengths |= {band: -1} if band else {}
    return words_in_memory(ds.chunk(lengths))


def words_in_memory(ds: xr.Dataset) -> xr.Dataset:
    """``ds`` whose words are not lazy: Zarr has to see what kind of words they are."""
    return ds.assign({n: ds[n].compute() for n, v in ds.variables.items()
                      if v.chunks is not None and v.dtype == object})  # fmt: skip


def layout(
    name: str,
    da: xr.DataArray,
    order: list[str | None],
    chunks: Mapping[str, int] | None,
    shards: bool,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Chunk and shard of an array, fitted to its Dask chunks."""
    wanted = _wanted(name, da, chunks)
    chunk, shard = [], []
    for dim in map(str, da.dims):
        size = da.sizes[dim]
        blocks = da.variable.chunksizes[dim] if da.chunks is not None else (size,)
        if dim == order[1]:
            if len(blocks) > 1:
                raise UnsupportedArrayError(
                    f"the Dask chunks of {name!r} hold {blocks[0]} of {size} bands; TEC codes all "
                    f"bands together: {name} = {name}.chunk({{{dim!r}: -1}})"
                )
            length, side = wanted.get(dim, size), size
            if length != size:
                raise UnsupportedArrayError(
                    f"chunks={{{dim!r}: {length}}}: TEC codes all {size} bands together"
                )
        else:
            target = CHUNK["time"] if dim == order[0] else CHUNK["space"]
            length = wanted.get(dim) or _length(blocks, target)  # never 0, see _wanted
            if dim not in wanted and length * 4 < min(target, size) and dim != order[0]:
                raise UnsupportedArrayError(
                    f"the Dask chunks of {name!r} along {dim!r} ({blocks[0]}, ...) have no "
                    f"divisor near {target}: {name} = {name}.chunk({{{dim!r}: {SHARD_SIDE}}})"
                )
            side = _fit(blocks, max(length, SHARD_SIDE), length) if dim != order[0] else length
        chunk.append(length)
        shard.append(side)
    return tuple(chunk), tuple(shard) if shards and shard != chunk else None


def _wanted(
    name: str, da: xr.DataArray, chunks: Mapping[str, int] | None
) -> dict[str, int]:
    """Chunk lengths that were asked for, by dimension."""
    if chunks is not None and not isinstance(chunks, Mapping):
        raise UnsupportedArrayError(
            f"chunks is {chunks!r}, it must name dimensions, such as {{'time': 12}}"
        )
    unknown = sorted(set(chunks or {}) - {str(d) for d in da.dims})
    if unknown:
        raise UnsupportedArrayError(f"chunks name {unknown}, {name!r} has dimensions {da.dims}")
    out = {}
    for dim, given in (chunks or {}).items():
        try:
            length = operator.index(given)
        except TypeError:
            length = 0
        if length < 1 and length != -1:
            raise UnsupportedArrayError(
                f"chunks={{{dim!r}: {given!r}}}: give a chunk's length in {dim}, or -1 for all"
            )
        out[dim] = max(da.sizes[dim], 1) if length == -1 else length
    return out


def _length(blocks: tuple[int, ...], target: int) -> int:
    """Chunk length near ``target`` that leaves no sliver at the end, or fits the Dask blocks."""
    if len(blocks) > 1:
        return _fit(blocks, target)
    if blocks[0] == 0:  # to be appended to
        return target
    return -(-blocks[0] // max(1, round(blocks[0] / target)))


def _fit(blocks: tuple[int, ...], limit: int, step: int = 1) -> int:
    """Largest multiple of ``step`` up to ``limit`` that divides all Dask blocks but the last."""
    common = math.gcd(*blocks[:-1])
    if common == 0:  # a single block: anything fits; no longer than the array needs
        return max(min(limit // step, -(-blocks[0] // step)), 1) * step
    fits = [n for n in range(step, min(limit, common) + 1, step) if common % n == 0]
    return max(fits, default=step)
