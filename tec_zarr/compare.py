"""Two cubes on the same footing, before any difference between them is taken."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA
from tec_zarr.store import BAND, TIME, X, Y, find_dim

__all__ = ["band_labels", "comparable", "in_dn", "nodata_of"]


def comparable(
    original: xr.DataArray,
    decoded: xr.DataArray,
    names: tuple[object, object] = ("the original", "the decoded cube"),
) -> xr.DataArray:
    """``decoded``, if it can be compared with ``original``.

    Parameters
    ----------
    original, decoded : DataArray
        (time, band, y, x), time and band optional.
    names : tuple
        What messages call them.

    Raises
    ------
    UnsupportedArrayError
        They are no images, or differ in shape.
    """
    for name, cube in zip(names, (original, decoded), strict=True):
        if cube.dims != _image_dims(cube):
            raise UnsupportedArrayError(
                f"{name} has dimensions {cube.dims}; a comparison needs (time, band, y, x), in "
                "this order, time and band only where there are several"
            )
    if original.shape != decoded.shape or _kinds(original) != _kinds(decoded):
        raise UnsupportedArrayError(
            f"{names[0]} has shape {original.shape} {original.dims}, {names[1]} has "
            f"{decoded.shape} {decoded.dims}: nothing to compare"
        )
    return decoded


def _image_dims(cube: xr.DataArray) -> tuple[str, ...] | None:
    """Its dimensions in the order of TEC, None without y and x."""
    kinds = _kinds(cube)
    return tuple(d for d in kinds if d is not None) if None not in kinds[2:] else None


def _kinds(cube: xr.DataArray) -> list[str | None]:
    return [find_dim(cube, names) for names in (TIME, BAND, Y, X)]


def band_labels(da: xr.DataArray) -> list[str]:
    """Names along the band dimension; the array's own name where it has none."""
    dim = find_dim(da, BAND)
    if dim is None:
        return [str(da.name)]
    return [str(b) for b in da[dim].values]


def nodata_of(da: xr.DataArray) -> float:
    """The value that means "nothing measured": NaN in floats, else ``_FillValue`` or 0."""
    if da.dtype.kind == "f":
        return np.nan
    for source in (da.encoding, da.attrs):
        if source.get("_FillValue") is not None:
            return float(source["_FillValue"])
    return float(NODATA)


def in_dn(original: xr.DataArray, decoded: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (T, C, H, W) float32 DN, NaN where nothing was measured.

    Floats are reflectance or DN by `tec_zarr.metrics.dn_per_unit`; where both are floats the
    original decides for both, so that a difference in units shows as an error.
    """
    before, after = _measured(original), _measured(decoded)
    pairs = ((original, before), (decoded, after))
    floats = [values for cube, values in pairs if cube.dtype.kind == "f"]
    unit = np.float32(metrics.dn_per_unit(*floats))
    for values in floats:
        values *= unit
    return before, after


def _measured(da: xr.DataArray) -> np.ndarray:
    """(T, C, H, W) float32, NaN where nothing was measured."""
    raw = da.values
    values = raw.astype(np.float32)
    values[(raw == NODATA) | (raw == nodata_of(da))] = np.nan
    if find_dim(da, BAND) is None:
        values = np.expand_dims(values, -3)
    return values if values.ndim == 4 else values[None]
