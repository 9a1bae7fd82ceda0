"""The table of a report: errors of each band and index."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.compare.align import comparable, in_dn, pair
from tec_zarr.cubes.dims import BAND, canonical_order, find_dim, reflectance_names, transposed, word
from tec_zarr.cubes.stacking import single_array
from tec_zarr.sentinel2 import NORMALISED_DIFFERENCES, band_name

if TYPE_CHECKING:
    import pandas as pd


INDICES = {name.upper(): NORMALISED_DIFFERENCES[name] for name in ("ndvi", "ndwi", "nbr")}
"""Normalised differences ``(a - b) / (a + b)`` that `report` compares."""


def error_table(
    decoded: xr.DataArray | xr.Dataset, original: xr.DataArray | xr.Dataset
) -> pd.DataFrame:
    """The table that `report` returns."""
    import pandas as pd

    a, b = pair(canonical_order(original), canonical_order(decoded))  # type: ignore[type-var]
    b = comparable(a, b)
    names = labels_of(a)
    reference, other = (dn.astype(np.float64) for dn in in_dn(a, b))
    differs = metrics.nodata_differs(reference, other)
    valid, other = np.isfinite(reference), metrics.without_gaps(reference, other)
    columns = ("psnr", "ssim", "sam", "mean_error", "mean_abs_error", "max_error",
               "nodata_differs")  # fmt: skip
    big_enough = min(reference.shape[-2:]) >= 11  # the window of SSIM
    per_band = zip(
        metrics.psnr_per_band(reference, other, valid),
        metrics.ssim(reference, other, valid) if big_enough else itertools.repeat(math.nan),
        itertools.repeat(math.nan),
        metrics.mean_error(reference, other, valid),
        metrics.mean_absolute_error(reference, other, valid),
        metrics.max_error(reference, other, valid),
        differs.sum(axis=(0, 2, 3)),
        strict=False,
    )
    rows = dict(zip(names, per_band, strict=False))
    error = (other - reference)[valid]
    rows["all"] = (
        metrics.psnr(reference, other, valid),
        float(np.mean([rows[n][1] for n in names])),
        metrics.sam(reference, other, valid),
        *((error.mean(), np.abs(error).mean(), np.abs(error).max()) if error.size
          else (math.nan,) * 3),
        differs.sum(),
    )  # fmt: skip
    for index, (first, second) in INDICES.items():
        if first in names and second in names:
            both = [names.index(first), names.index(second)]
            use = valid[:, both].all(axis=1)
            error = (_index(other[:, both]) - _index(reference[:, both]))[use]
            error = error[np.isfinite(error)]
            if error.size:
                errors = error.mean(), np.abs(error).mean(), np.abs(error).max()
                rows[index] = (math.nan, math.nan, math.nan, *errors, math.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).astype(float)


def single_cube(obj: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(obj, xr.DataArray):
        return transposed(obj)
    ordered = canonical_order(obj)
    return single_array(ordered, reflectance_names(ordered))


def labels_of(da: xr.DataArray) -> list[str]:
    dim = find_dim(da, BAND)
    names = [str(da.name)] if dim is None else [word(b) for b in da[dim].values]
    try:
        return [band_name(n) for n in names]
    except ValueError:
        return names


def _index(pair: np.ndarray) -> np.ndarray:
    first, second = pair[:, 0], pair[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first - second) / (first + second)
