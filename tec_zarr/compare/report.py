"""The functions behind ``.tec.report`` and ``.tec.preview``: a table of errors, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from tec_zarr.compare.align import pair
from tec_zarr.compare.measures import error_table, labels_of, single_cube
from tec_zarr.cubes.dims import BAND, TIME, X, Y, canonical_order, find_dim
from tec_zarr.cubes.nodata import nodata_values
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import NODATA

if TYPE_CHECKING:
    import pandas as pd


def report(
    decoded: xr.DataArray | xr.Dataset,
    original: xr.DataArray | xr.Dataset,
    *,
    html: str | Path | None = None,
) -> pd.DataFrame:
    """Return the errors of ``decoded`` against ``original``, per band and per index.

    Parameters
    ----------
    decoded, original : DataArray or Dataset
        Cubes (time, band, y, x) of the same dates, bands and pixels, dimensions in any order;
        integers are DN, floats reflectance or DN.
    html : str or Path, optional
        Also write an HTML page to this file, with pictures, error maps and other codecs
        (`tec_zarr.compare.page.page`).

    Returns
    -------
    pandas.DataFrame
        Rows: each band, then ``all``, then those of NDVI, NDWI and NBR whose bands are present.
        Columns: ``psnr`` (dB, 0-10,000 DN), ``ssim``, ``sam`` (degrees, in ``all``),
        ``mean_error``, ``mean_abs_error``, ``max_error`` (DN; in rows of indices, index units),
        ``nodata_differs`` (samples that are nodata on one side only). Samples that are nodata in
        the original are left out. Samples that only the decoded cube lacks count as 0 DN.

    Raises
    ------
    UnsupportedArrayError
        The cubes can't be compared; the message says what differs.
    """
    table = error_table(decoded, original)
    if html is not None:
        from tec_zarr.compare.page import page

        a, b = pair(canonical_order(original), canonical_order(decoded))  # type: ignore[type-var]
        Path(html).write_text(page(a, b, table=table), encoding="utf-8")
    return table


def preview(obj: xr.DataArray | xr.Dataset, time: int = 0) -> xr.DataArray:
    """Return a true-colour picture of one date, stretched to its 2nd and 98th percentile.

    Parameters
    ----------
    obj : DataArray or Dataset
        A cube with the bands B02, B03 and B04, in DN or reflectance.
    time : int
        Number of the date, from 0.

    Returns
    -------
    DataArray
        (y, x, rgb) uint8, nodata black. ``.plot.imshow()`` shows it.

    Raises
    ------
    UnsupportedArrayError
        A band is missing, or a Dataset has several cubes.
    """
    cube = single_cube(obj)
    names = labels_of(cube)
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
