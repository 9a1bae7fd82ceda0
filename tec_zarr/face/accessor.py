"""``.tec`` on DataArray, Dataset and DataTree: what tec_zarr does, where users look for it.

Every method is also a function of this module or of the one it names. Accessors keep no state:
xarray makes a new one for every object. Nothing here imports torch before a chunk is computed.
:mod:`tec_zarr.face.xarray_hook` registers them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.compare.align import comparable, in_dn, pair
from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    _transposed,
    canonical_order,
    find_dim,
    reflectance_names,
    word,
)
from tec_zarr.cubes.encoding import decode, encoding
from tec_zarr.cubes.nodata import nodata_values
from tec_zarr.cubes.simulate import MaxError, simulate, weigh
from tec_zarr.cubes.stacking import single_array
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.inpaint.clouds import DILATE, Mask, inpaint_clouds
from tec_zarr.sentinel2 import NODATA, NORMALISED_DIFFERENCES, band_name

if TYPE_CHECKING:
    import pandas as pd

    from tec_zarr.terracodec.codec import FamilyModel

INDICES = {name.upper(): NORMALISED_DIFFERENCES[name] for name in ("ndvi", "ndwi", "nbr")}
"""Normalised differences ``(a - b) / (a + b)`` that `report` compares."""


def report(
    decoded: xr.DataArray | xr.Dataset,
    original: xr.DataArray | xr.Dataset,
    *,
    html: str | Path | None = None,
) -> pd.DataFrame:
    """How far ``decoded`` is from ``original``, per band and per index.

    Parameters
    ----------
    decoded, original : DataArray or Dataset
        Same dates, bands and pixels; integers are DN, floats reflectance or DN.
    html : str or Path, optional
        Write a page to look at, too: pictures, error maps, other codecs
        (`tec_zarr.compare.page.page`).

    Returns
    -------
    pandas.DataFrame
        Rows: each band, then ``all``, then NDVI, NDWI and NBR where their bands are there.
        Columns: ``psnr`` (dB, 0-10,000 DN), ``ssim``, ``sam`` (degrees, in ``all``),
        ``mean_error``, ``mean_abs_error``, ``max_error`` (DN; in rows of indices, index units),
        ``nodata_differs`` (samples that are nodata on one side only). Samples that are nodata in
        the original are left out; those that only the decoded cube lacks count as 0 DN.

    Raises
    ------
    UnsupportedArrayError
        The two can't be compared; the message says what differs.
    """
    table = error_table(decoded, original)
    if html is not None:
        from tec_zarr.compare.page import page

        a, b = pair(canonical_order(original), canonical_order(decoded))  # type: ignore[type-var]
        Path(html).write_text(page(a, b, table=table), encoding="utf-8")
    return table


def error_table(
    decoded: xr.DataArray | xr.Dataset, original: xr.DataArray | xr.Dataset
) -> pd.DataFrame:
    """The table that `report` returns."""
    import pandas as pd

    a, b = pair(canonical_order(original), canonical_order(decoded))  # type: ignore[type-var]
    b = comparable(a, b)
    names = _labels(a)
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


def preview(obj: xr.DataArray | xr.Dataset, time: int = 0) -> xr.DataArray:
    """True-colour picture of one date, stretched to its 2nd and 98th percentile.

    Returns
    -------
    DataArray
        (y, x, rgb) uint8, nodata black: ``.plot.imshow()`` shows it.
    """
    cube = _single(obj)
    names = _labels(cube)
    missing = [b for b in ("B04", "B03", "B02") if b not in names]
    if missing:
        raise UnsupportedArrayError(f"a true-colour picture needs {missing}; there are {names}")
    band, when = find_dim(cube, BAND), find_dim(cube, TIME)
    image = cube.isel({band: [names.index(b) for b in ("B04", "B03", "B02")]})
    image = image.isel({when: time}) if when else image
    values = np.moveaxis(image.transpose(band, ...).values.astype(np.float32), 0, -1)
    measured = np.isfinite(values) & ~np.isin(values, (NODATA, *nodata_values(cube)))
    low, high = np.percentile(values[measured], [2, 98]) if measured.any() else (0, 1)
    shade = np.where(measured, (values - low) / max(high - low, 1e-9), 0).clip(0, 1)
    y, x = find_dim(image, Y), find_dim(image, X)
    coords = {d: image[d] for d in (y, x) if d in image.coords}
    return xr.DataArray(
        np.rint(shade * 255).astype(np.uint8), coords, dims=(y, x, "rgb"), name="preview"
    )


# ---------------------------------------------------------------------------- accessors


class _TecAccessor:
    """Methods that DataArray and Dataset share; ``obj`` is all that it holds."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    def encoding(self, **options: Any) -> dict[str, dict[str, Any]]:
        """Encoding for ``to_zarr``: `tec_zarr.encoding`."""
        return encoding(self._obj, **options)

    def to_zarr(self, store: Any, *arguments: Any, **options: Any) -> Any:
        """Write with TEC: `tec_zarr.face.write.to_zarr`, which takes what xarray's ``to_zarr``
        takes.
        """
        from tec_zarr.face.write import to_zarr

        return to_zarr(self._obj, store, *arguments, **options)

    def decode(self) -> Any:
        """Same data without the encoding of its store: `tec_zarr.decode`."""
        return decode(self._obj)

    def simulate(self, *, quality: float = 4.0, max_error: MaxError = None, **options: Any) -> Any:
        """What it will be after TEC, lazily: `tec_zarr.cubes.simulate.simulate`."""
        return simulate(self._obj, quality=quality, max_error=max_error, **options)

    def weigh(self, *, quality: float = 4.0, max_error: MaxError = None, **options: Any) -> int:
        """Bytes that it will take: `tec_zarr.cubes.simulate.weigh`."""
        return weigh(self._obj, quality=quality, max_error=max_error, **options)

    def report(
        self, original: xr.DataArray | xr.Dataset, *, html: str | Path | None = None
    ) -> pd.DataFrame:
        """How far it is from ``original``: `tec_zarr.face.accessor.report`."""
        return report(self._obj, original, html=html)

    def preview(self, time: int = 0) -> xr.DataArray:
        """True-colour picture of one date: `tec_zarr.face.accessor.preview`."""
        return preview(self._obj, time)

    def harmonize(
        self, *, items: Iterable[Any] | None = None, offset: int | Sequence[int] | None = None
    ) -> xr.Dataset:
        """Canonical cube with the +1000 DN offset removed: `tec_zarr.harmonize`."""
        from tec_zarr.stac.canonical import harmonize

        return harmonize(self._obj, items=items, offset=offset)

    def inpaint_clouds(
        self,
        mask: Mask | None = None,
        *,
        scl: xr.DataArray | None = None,
        method: str = "regression",
        dilate: int = DILATE,
        return_uncertainty: bool = False,
        model: str | FamilyModel | None = None,
        progress: bool = False,
    ) -> Any:
        """Fill masked pixels from clear ones: `tec_zarr.inpaint_clouds`."""
        return inpaint_clouds(
            self._obj, mask, scl=scl, method=method, dilate=dilate, model=model,
            return_uncertainty=return_uncertainty, progress=progress,
        )  # fmt: skip


class TecArray(_TecAccessor):
    """``DataArray.tec``."""


class TecDataset(_TecAccessor):
    """``Dataset.tec``."""


class TecTree(_TecAccessor):
    """``DataTree.tec`` of an EOPF product: everything is done with the one cube of its bands,
    on one grid and without the offset, that `tec_zarr.prepare` makes of it.
    """

    def __init__(self, obj: xr.DataTree) -> None:
        self._tree = obj

    @property
    def _obj(self) -> Any:
        from tec_zarr.stac.canonical import prepare

        return prepare(self._tree)

    def harmonize(
        self, *, items: Iterable[Any] | None = None, offset: int | Sequence[int] | None = None
    ) -> xr.Dataset:
        """The cube, lazily: `tec_zarr.prepare`."""
        from tec_zarr.stac.canonical import prepare

        return prepare(self._tree, items=items, offset=offset)


# ------------------------------------------------------------------------------ helpers


def _single(obj: xr.DataArray | xr.Dataset) -> xr.DataArray:
    if isinstance(obj, xr.DataArray):
        return _transposed(obj)
    ordered = canonical_order(obj)
    return single_array(ordered, reflectance_names(ordered))


def _labels(da: xr.DataArray) -> list[str]:
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
