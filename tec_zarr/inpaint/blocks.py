"""What the fillings of blocks share: times, nodata, axes, and estimates merged into values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.nodata import fits, nodata_values
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.inpaint.samples import COVERAGE, Times
from tec_zarr.sentinel2 import NODATA

Axes = tuple[int, int | None, int | None, int | None]
"""Axes of time, band, y and x; None for what an array does not have."""


class NothingClearWarning(UserWarning):
    """Masked pixels stay nodata, because no clear date or pixel is in reach."""


def times_of(da: xr.DataArray, time: str) -> Times:
    """Days since the first date, or the positions of the dates if time is not datetime64."""
    if time in da.coords and da[time].dtype.kind == "M":
        values = da[time].values
        if np.isnat(values).any():
            raise UnsupportedArrayError(
                f"date {int(np.isnat(values).argmax())} is NaT, which has no place between others: "
                f"leave it out, cube = cube.isel({time}=cube[{time!r}].notnull()), in cube and mask"
            )
        days = (values - values.min()) / np.timedelta64(1, "D")
        if np.all(np.diff(days) > 0):
            return Times(days, dated=True)
        dates, counts = np.unique(values, return_counts=True)
        if counts.max() > 1:
            raise UnsupportedArrayError(
                f"{counts.max()} dates are {dates[counts.argmax()]}: merge them, or keep the first "
                f"of equal dates, cube = cube.drop_duplicates({time!r}), in cube and mask"
            )
        raise UnsupportedArrayError(f"the dates do not rise: cube = cube.sortby({time!r})")
    return Times(np.arange(da.sizes[time], dtype=np.float64), dated=False)


def nodata_of(da: xr.DataArray) -> tuple[float, ...]:
    """Nodata values besides NaN; integers that declare none have 0."""
    found = tuple(v for v in nodata_values(da) if fits(v, da.dtype))
    return found or ((float(NODATA),) if da.dtype.kind in "iu" else ())


def canonical(values: np.ndarray, axes: Axes) -> np.ndarray:
    """View of an array as (T, C, H, W)."""
    there = [a for a in axes if a is not None]
    turned = np.moveaxis(values, there, range(len(there)))
    return turned if axes[1] is not None else turned[:, None]


def merged(
    values: np.ndarray, hidden: np.ndarray, estimate: np.ndarray, *, nodata: tuple[float, ...]
) -> np.ndarray:
    """Copy of ``values`` with the hidden ones replaced by their estimates.

    In integers, the first value of ``nodata`` replaces samples without an estimate.
    """
    out = np.array(values)
    chosen = estimate[hidden]
    if out.dtype.kind in "iu":
        limits = np.iinfo(out.dtype)
        whole = np.rint(chosen).clip(limits.min, limits.max)
        for value in nodata:  # an estimate that equals a nodata value moves by 1
            whole[whole == value] = value + (1 if value < limits.max else -1)
        chosen = np.where(np.isnan(chosen), nodata[0], whole)
    out[hidden] = chosen.astype(out.dtype)
    return out


def half_widths_like(da: xr.DataArray, half_width: Any) -> xr.DataArray:
    out = da.copy(data=half_width).drop_attrs()
    out.encoding = {k: v for k, v in da.encoding.items() if k == "grid_mapping"}
    out.attrs = {"long_name": f"half width of the {COVERAGE:.0%} interval"}
    return out


def warn_of_nothing(hidden: np.ndarray, found: np.ndarray, labels: Sequence[str]) -> None:
    names = [
        label
        for label, cover, estimate in zip(labels, hidden, found, strict=True)
        if cover.any() and np.isnan(estimate[cover]).all()
    ]
    if names:
        dates = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        warnings.warn(
            f"nothing clear is in reach of what is masked on {dates}: it stays nodata",
            NothingClearWarning,
            stacklevel=2,
        )
