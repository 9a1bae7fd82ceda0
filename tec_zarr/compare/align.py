"""Two cubes on the same footing, before any difference between them is taken."""

from __future__ import annotations

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    counted,
    dims_by_kind,
    find_dim,
    holds_tec,
    image_dims,
    known_bands,
    names_along_bands,
    reflectance_names,
    same_labels,
    stored_spec,
)
from tec_zarr.cubes.encoding import unpacking
from tec_zarr.cubes.nodata import is_nodata, nodata_values
from tec_zarr.cubes.packing import cf_line
from tec_zarr.cubes.stacking import made_of, single_array
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA

__all__ = ["comparable", "in_dn", "pair"]


def pair(
    original: xr.DataArray | xr.Dataset, decoded: xr.DataArray | xr.Dataset
) -> tuple[xr.DataArray, xr.DataArray]:
    """The reflectance of two cubes, each as one array (..., band, y, x).

    What was encoded of a cube says which of its variables that was, and what its bands are
    called: nobody has to say it again.

    Raises
    ------
    UnsupportedArrayError
        One of them has no reflectance.
    """
    a, b = _image(original, _as_dataset(decoded)), _image(decoded, _as_dataset(original))
    return _with_names_of(a, b), _with_names_of(b, a)


def _image(obj: xr.DataArray | xr.Dataset, other: xr.Dataset) -> xr.DataArray:
    ds = _as_dataset(obj)
    whole = isinstance(obj, xr.DataArray)
    return single_array(ds, {str(n) for n in ds.data_vars} if whole else _chosen(ds, other))


def _as_dataset(obj: xr.DataArray | xr.Dataset) -> xr.Dataset:
    if isinstance(obj, xr.Dataset):
        return obj
    return obj.to_dataset(name="cube" if obj.name is None else str(obj.name))


def _chosen(ds: xr.Dataset, other: xr.Dataset) -> set[str]:
    """Variables of ``ds`` to compare with those of ``other``."""
    own = {str(n) for n, da in ds.data_vars.items() if holds_tec(da)}
    coded = [da for da in other.data_vars.values() if holds_tec(da)]
    if not own and coded:  # what the other was made of
        made = {n for da in coded for n in (made_of(da) or [str(da.name)])}
        own = made if made <= {str(n) for n in ds.data_vars} else set()
    own = own or reflectance_names(ds)
    if own:
        return own
    counts = {da.sizes.get(str(find_dim(da, BAND))) for n, da in other.data_vars.items()
              if str(n) in reflectance_names(other)}  # fmt: skip
    return {n for n in counted(ds) if ds[n].sizes[str(find_dim(ds[n], BAND))] in counts}


def _with_names_of(cube: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """``cube`` with the bands' names of ``other``, if it has none itself."""
    dim, names = find_dim(cube, BAND), known_bands(_labels(other))
    if dim is None or names is None or known_bands(_labels(cube)) is not None:
        return cube
    if len(names) != cube.sizes[dim]:
        return cube
    named = cube.assign_coords({dim: list(names)})
    named.encoding = cube.encoding
    return named


def _labels(da: xr.DataArray) -> list[str]:
    dim = find_dim(da, BAND)
    return [] if dim is not None and dim not in da.coords else names_along_bands(da)


def comparable(
    original: xr.DataArray,
    decoded: xr.DataArray,
    names: tuple[object, object] = ("the original", "the decoded cube"),
) -> xr.DataArray:
    """``decoded`` with its bands in the order of ``original``.

    Parameters
    ----------
    original, decoded : DataArray
        (time, band, y, x), time and band optional. Along a dimension that one of them has no
        labels for, or no names of Sentinel-2 bands, they are taken as they lie.
    names : tuple
        What messages call them.

    Raises
    ------
    UnsupportedArrayError
        They are no images, or differ in shape, bands, dates or coordinates.
    """
    for name, cube in zip(names, (original, decoded), strict=True):
        if cube.dims != image_dims(cube):
            raise UnsupportedArrayError(
                f"{name} has dimensions {cube.dims}; a comparison needs (time, band, y, x), in "
                "this order, time and band only where there are several"
            )
    ours, theirs = ([dim is not None for dim in dims_by_kind(cube)] for cube in (original, decoded))
    if original.shape != decoded.shape or ours != theirs:
        raise UnsupportedArrayError(
            f"{names[0]} has shape {original.shape} {original.dims}, {names[1]} has "
            f"{decoded.shape} {decoded.dims}: nothing to compare"
        )
    for kind in (TIME, Y, X):
        _check_labels(kind, original, decoded, names)
    return _in_order(known_bands(_labels(original)), decoded, names)


def _check_labels(
    kind: tuple[str, ...],
    original: xr.DataArray,
    decoded: xr.DataArray,
    names: tuple[object, object],
) -> None:
    """Refuse cubes of other dates or pixels."""
    ours, theirs = find_dim(original, kind), find_dim(decoded, kind)
    if ours not in original.coords or theirs not in decoded.coords:
        return
    before, after = original[ours].values, decoded[theirs].values
    same = same_labels(before, after)
    if not same.all():
        first = int(np.argmin(same))
        raise UnsupportedArrayError(
            f"{names[0]} and {names[1]} differ along {ours!r}, first at position {first}: "
            f"{before[first]} and {after[first]}. Select what both have, or leave these labels "
            f"out to compare by position (drop_vars({ours!r}))"
        )


def _in_order(
    wanted: tuple[str, ...] | None, decoded: xr.DataArray, names: tuple[object, object]
) -> xr.DataArray:
    found = known_bands(_labels(decoded))
    if wanted is None or found is None or wanted == found:
        return decoded
    if set(wanted) != set(found):
        raise UnsupportedArrayError(
            f"{names[0]} has the bands {', '.join(wanted)}, {names[1]} has {', '.join(found)}: "
            "select those that both have"
        )
    return decoded.isel({find_dim(decoded, BAND): [found.index(name) for name in wanted]})


def in_dn(original: xr.DataArray, decoded: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (T, C, H, W) float32 DN, NaN where nothing was measured.

    Floats, and integers with a ``scale_factor`` or ``add_offset`` in their attributes, are
    reflectance or DN by `tec_zarr.metrics.dn_per_unit`; where both are, the original decides for
    both, so that a difference in units shows as an error. What one of the two or its codec calls
    nodata is nodata in both.
    """
    cubes = (original, decoded)
    codecs = [codec for codec in map(stored_spec, cubes) if codec is not None]
    nodata = {value for source in (*map(nodata_values, cubes), *(c.fill_values for c in codecs))
              for value in source}  # fmt: skip
    if not codecs:
        nodata.add(NODATA)
    # Reflectance of 0 is measured where integers carry an offset.
    zero = NODATA in nodata and not any(unpacking(cube)[1] or cf_line(cube.attrs)[1]
                                        for cube in cubes)  # fmt: skip
    before, after = (_measured(cube, nodata, zero) for cube in cubes)
    reflectance = [
        values
        for cube, values in zip(cubes, (before, after), strict=True)
        if cube.dtype.kind == "f" or cf_line(cube.attrs) != (1, 0)
    ]
    unit = np.float32(metrics.dn_per_unit(*reflectance))
    for values in reflectance:
        values *= unit
    return before, after


def _measured(da: xr.DataArray, nodata: set[float], zero: bool) -> np.ndarray:
    """(T, C, H, W) float32 in the units of CF, NaN where nothing was measured.

    ``nodata`` are stored numbers; ``zero``: floats of 0 are nodata, too.
    """
    line = unpacking(da)
    if da.dtype.kind == "f" and line == (1, 0) and not zero:
        nodata = nodata - {NODATA}
    missing = is_nodata(da.values, nodata, line)
    values = da.values.astype(np.float32)
    factor, added = cf_line(da.attrs)
    if (factor, added) != (1, 0):
        values = values * np.float32(factor) + np.float32(added)
    if missing is not None:
        values[missing] = np.nan
    if find_dim(da, BAND) is None:
        values = np.expand_dims(values, -3)
    return values if values.ndim == 4 else values[None]
