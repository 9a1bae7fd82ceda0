"""What counts as cloud."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import BAND, TIME, X, Y, find_dim, same_labels
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import CLOUD_LIKE

DILATE = 8
"""Pixels by which masks of SCL grow by default: SCL misses cloud edges, and what a lossy codec
spreads of a cloud reaches one 8 x 8 block further."""


Given = xr.DataArray | np.ndarray


Mask = Given | Callable[..., Given]


def cloud_mask(scl: xr.DataArray, dilate: int = DILATE) -> xr.DataArray:
    """Where the ground is not seen, after the scene classification.

    Parameters
    ----------
    scl : DataArray
        Classes of `tec_zarr.sentinel2.SCL_CLASSES`, with dimensions y and x.
    dilate : int
        Pixels by which saturated pixels, cloud, cirrus and shadow (1, 3, 8, 9, 10) grow, as
        squares. Nodata (0, or NaN in floats) is masked but does not grow: pixels beside it were
        measured.

    Returns
    -------
    DataArray of bool
        Lazy where ``scl`` is.

    Raises
    ------
    UnsupportedArrayError
        Classes without y and x, or ``dilate`` below 0.
    """
    if dilate < 0:
        raise UnsupportedArrayError(f"dilate is {dilate}, it must be 0 pixels or more")
    y, x = find_dim(scl, Y), find_dim(scl, X)
    if y is None or x is None:
        raise UnsupportedArrayError(f"no y and x among the dimensions {scl.dims} of the classes")
    axes = (scl.dims.index(y), scl.dims.index(x))
    grow = partial(_cloudy, axes=axes, radius=dilate)
    if scl.chunks is None:
        return scl.copy(data=grow(scl.values)).drop_attrs()
    import dask.array

    depth = dict.fromkeys(axes, dilate)
    data = dask.array.map_overlap(grow, scl.data, depth=depth, boundary="none", dtype=bool)
    return scl.copy(data=data).drop_attrs()


def _cloudy(classes: np.ndarray, *, axes: tuple[int, int], radius: int) -> np.ndarray:
    hidden = np.isin(classes, sorted(CLOUD_LIKE - {0}))
    for axis in axes:
        hidden = _grow(hidden, axis, radius)
    return hidden | (classes == 0) | np.isnan(classes)


def _grow(hidden: np.ndarray, axis: int, radius: int) -> np.ndarray:
    """True within ``radius`` of a True along one axis: windowed sums of a running count."""
    count = np.cumsum(np.moveaxis(hidden, axis, -1), axis=-1, dtype=np.int32)
    count = np.concatenate([np.zeros_like(count[..., :1]), count], axis=-1)
    index = np.arange(hidden.shape[axis])
    high = count[..., np.minimum(index + radius + 1, index.size)]
    return np.moveaxis(high > count[..., np.maximum(index - radius, 0)], -1, axis)


def resolve_mask(
    da: xr.DataArray, mask: Given | None, scl: xr.DataArray | None, dilate: int
) -> xr.DataArray:
    """Boolean mask with the dimensions of ``da``, size 1 along those that it does not have."""
    if find_dim(da, TIME) is None:
        raise UnsupportedArrayError(f"no time among the dimensions {da.dims}: nothing to fill from")
    if (mask is None) == (scl is None):
        raise UnsupportedArrayError(
            "pass either mask=, or scl= (the scene classification of the same dates and grid)"
        )
    found = _labelled(da, mask) if scl is None else cloud_mask(scl, dilate)
    if found.dtype != bool:
        raise UnsupportedArrayError(f"the mask is {found.dtype}, it must be bool (True = hidden)")
    for dim in found.dims:
        if dim not in da.dims or found.sizes[dim] != da.sizes[dim]:
            raise UnsupportedArrayError(
                f"the mask has {dict(found.sizes)}, the cube {dict(da.sizes)}: bring it to the "
                "cube's dates and grid (mask.reindex_like(cube, method='nearest'))"
            )
        if dim in da.indexes and dim in found.indexes:
            same = same_labels(da[dim].values, found[dim].values)
            if not same.all():
                first = int(np.argmin(same))
                raise UnsupportedArrayError(
                    f"the mask has other coordinates along {dim!r}, first at position {first}: "
                    f"{found[dim].values[first]}, the cube {da[dim].values[first]}. Bring it to "
                    "the cube's (mask.reindex_like(cube, method='nearest'))"
                )
    missing = {dim: 1 for dim in da.dims if dim not in found.dims}
    return found.variable.set_dims({**found.sizes, **missing}).transpose(*da.dims)


def _labelled(da: xr.DataArray, mask: Any) -> xr.DataArray:
    """Mask with the names of the dimensions of ``da``, of one without names by its shape."""
    if isinstance(mask, xr.DataArray):
        return mask
    if not isinstance(mask, np.ndarray):
        raise UnsupportedArrayError(
            f"the mask is a {type(mask).__name__}, it must be a DataArray or NumPy array of bool "
            "(True = hidden)"
        )
    without_bands = tuple(d for d in da.dims if d != find_dim(da, BAND))
    for dims in (da.dims, without_bands):
        if mask.shape == tuple(da.sizes[d] for d in dims):
            return xr.DataArray(mask, dims=dims)
    raise UnsupportedArrayError(
        f"the mask has shape {mask.shape}, the cube {dict(da.sizes)}: it must have the cube's "
        f"shape, with all dimensions or with {without_bands}"
    )
