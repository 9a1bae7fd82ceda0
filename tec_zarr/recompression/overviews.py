"""Overviews of a store: arrays at half the resolution, a quarter, ..., read from the original.

Each level is a group of arrays that look like the source's, and that average the source's pixels
when they are read. So a level is planned, encoded, verified and continued as any other array is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from tec_zarr.cubes.dims import X, Y, find_dim
from tec_zarr.cubes.nodata import declared
from tec_zarr.cubes.overviews import (
    centres,
    factors_of,
    grid_of,
    group_attributes,
    level_attributes,
    middles,
    placed,
)
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.recompression.arrays import describe_array
from tec_zarr.recompression.settings import Settings

PIECE_BYTES = 64 * 2**20
"""Size in memory of the source's pixels that are averaged at a time."""

Nodes = Mapping[str, zarr.Group | zarr.Array]


@dataclass(frozen=True)
class Coarse:
    """An array of the source at a lower resolution.

    Attributes
    ----------
    original : zarr.Array
        Array of the source.
    factors : tuple of int
        Pixels that make one, along each axis; 1 for dates and bands.
    nodata : tuple of float or None
        Values that were not measured, beside NaN: the others are averaged. None for arrays whose
        values cannot be averaged, such as classes: the pixel near the middle is taken.
    """

    original: zarr.Array
    factors: tuple[int, ...]
    nodata: tuple[float, ...] | None

    def __getattr__(self, name: str) -> Any:
        """All else is as in the source."""
        if name.startswith("__") or name == "original":
            raise AttributeError(name)
        return getattr(self.original, name)

    @property
    def is_axis(self) -> bool:
        """Whether the values are places of pixels, which get the places of the larger ones."""
        return self.original.ndim == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at this resolution."""
        return tuple(-(-n // f) for n, f in zip(self.original.shape, self.factors, strict=True))

    @property
    def size(self) -> int:
        """Number of samples at this resolution."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """That of the source, but float64 for places."""
        return np.dtype("float64") if self.is_axis else self.original.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the chunks of the source, at this resolution."""
        both = zip(self.original.chunks, self.factors, strict=True)
        return tuple(max(1, n // f) for n, f in both)

    shards = None

    def whole(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """Return the region of the source that a region is made of."""
        return tuple(
            slice(s.start * f, min(s.stop * f, n))
            for s, f, n in zip(region, self.factors, self.original.shape, strict=True)
        )

    def __getitem__(self, region: Any) -> np.ndarray:
        """Read a region at this resolution, a few rows of the source at a time."""
        given = region if isinstance(region, tuple) else (region,)
        given = (*given, *(slice(None) for _ in self.shape[len(given) :]))
        region = tuple(slice(*s.indices(n)[:2]) for s, n in zip(given, self.shape, strict=True))
        if self.is_axis:
            return centres(np.asarray(self.original[:]), self.factors[0])[region]
        if self.nodata is None:
            whole = zip(region, self.factors, self.original.shape, strict=True)
            at = [np.arange(s.start, s.stop) if f == 1 else middles(n, f)[s] for s, f, n in whole]
            return np.asarray(self.original.oindex[tuple(at)])
        axis = next(i for i, f in enumerate(self.factors) if f > 1)
        rows, factor = region[axis], self.factors[axis]
        row = math.prod(s.stop - s.start for i, s in enumerate(self.whole(region)) if i != axis)
        room = PIECE_BYTES // max(1, row * self.dtype.itemsize * factor)
        chunk = -(-self.original.chunks[axis] // factor)
        step = max(1, chunk, room // chunk * chunk)
        parts = []
        for start in range(rows.start, rows.stop, step):
            part = (*region[:axis], slice(start, min(start + step, rows.stop)), *region[axis + 1 :])
            block = np.asarray(self.original[self.whole(part)])
            parts.append(mean_of_cells(block, self.factors, self.nodata))
        return np.concatenate(parts, axis)


def mean_of_cells(block: np.ndarray, factors: Sequence[int], nodata: Sequence[float]) -> np.ndarray:
    """Return the mean of the measured samples of each cell, in the dtype of ``block``.

    Parameters
    ----------
    block : ndarray
        Whole cells, but for those at the end of the image.
    factors : sequence of int
        Samples of a cell along each axis.
    nodata : sequence of float
        Values that were not measured, beside NaN. A cell without a measured sample is the first.
    """
    floats = block.dtype.kind == "f"
    missing = np.isnan(block) if floats else np.zeros(block.shape, bool)
    for value in nodata:
        missing |= block == value
    sums, counts = np.where(missing, 0, block).astype(np.float64), (~missing).astype(np.float64)
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, block.shape[axis], factor)
            sums, counts = (np.add.reduceat(a, starts, axis) for a in (sums, counts))
    mean = sums / np.maximum(counts, 1)
    if not floats:
        mean = mean.round()
        for value in nodata:  # A mean that rounds to one of them was measured all the same.
            mean[mean == value] = value + 1
    mean[counts == 0] = nodata[0] if nodata else np.nan
    return mean.astype(block.dtype)


def with_overviews(source: Any, nodes: Nodes, chosen: Iterable[str], settings: Settings) -> Nodes:
    """Return groups and arrays of all levels, by path: ``0``, ``1``, ... and what is in them.

    Parameters
    ----------
    source : Group or Array
        The source.
    nodes : mapping
        Its groups and arrays.
    chosen : iterable of str
        Paths of the arrays that TEC encodes.
    settings : Settings
        They say which values are nodata.

    Raises
    ------
    UnsupportedArrayError
        The source has several groups, or arrays on several grids.
    """
    inner = sorted(p for p, node in nodes.items() if p and isinstance(node, zarr.Group))
    if inner or not isinstance(source, zarr.Group):
        raise UnsupportedArrayError(
            f"overviews need one group of arrays on one grid, the source has {inner or 'one array'}"
            ": recompress each group by itself, or leave overviews out"
        )
    arrays = {path: node for path, node in nodes.items() if isinstance(node, zarr.Array)}
    described = {path: describe_array(path, array, arrays, settings)
                 for path, array in arrays.items()}  # fmt: skip
    shown = xr.open_zarr(source.store, group=source.path, consolidated=False, chunks=None,
                         zarr_format=source.metadata.zarr_format)  # fmt: skip
    grid = grid_of(xr.Dataset({p: described[p].drop_vars(described[p].coords) for p in chosen}),
                   chosen)  # fmt: skip
    factors = factors_of(*(shown.sizes[d] for d in grid))
    pyramid = [placed(shown, grid, factor) for factor in factors]
    names = [str(n) for n in range(len(factors))]
    attributes = {**source.attrs, **group_attributes(pyramid, names)}
    made: dict[str, zarr.Group | zarr.Array] = {"": _group(attributes)}
    for name, factor, level in zip(names, factors, pyramid, strict=True):
        made[name] = _group({**source.attrs, **level_attributes(level)})
        for path, array in arrays.items():
            da = described[path]
            cells = tuple(factor if dim in grid else 1 for dim in da.dims)
            both = find_dim(da, Y) and find_dim(da, X)
            if max(cells, default=1) == 1 or not (both or path in grid):
                made[f"{name}/{path}"] = array
                continue
            nodata = _nodata(path, array, settings) if path in chosen else None
            made[f"{name}/{path}"] = cast(zarr.Array, Coarse(array, cells, nodata))
    return made


def _nodata(path: str, array: zarr.Array, settings: Settings) -> tuple[float, ...]:
    floats = array.dtype.kind == "f"
    said = [*declared(array.attrs, array.dtype, path),
            *declared({"_FillValue": array.fill_value}, array.dtype, path)]  # fmt: skip
    if floats:  # The 0 that integers mean by default was measured where floats have NaN.
        said = [v for v in said if v or "_FillValue" in array.attrs]
    given = [v for v in settings.fill_values if v or not floats]
    return tuple(v for v in dict.fromkeys((*said, *given)) if v == v)


def _group(attributes: dict[str, Any]) -> zarr.Group:
    return zarr.create_group(MemoryStore(), attributes=attributes)
