"""``.tec`` on DataArray, Dataset and DataTree: what tec_zarr does, where users look for it.

Every method is also a function of this module or of the one it names. Accessors keep no state:
xarray makes a new one for every object. Nothing here imports torch before a chunk is computed.
:mod:`tec_zarr.face.xarray_hook` registers them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from tec_zarr import metrics
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare.align import comparable, in_dn, pair
from tec_zarr.cubes.dims import BAND, TIME, X, Y, find_dim, word
from tec_zarr.cubes.encoding import (
    PACKING,
    chosen_variables,
    decode,
    encoding,
    reflectance_names,
    without_codecs,
)
from tec_zarr.cubes.nodata import nodata_values
from tec_zarr.cubes.stacking import single_array
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.inpaint.clouds import DILATE, Mask, inpaint_clouds
from tec_zarr.sentinel2 import NODATA, NORMALISED_DIFFERENCES, band_name

if TYPE_CHECKING:
    import pandas as pd

    from tec_zarr.terracodec.codec import FamilyModel

XrObject = TypeVar("XrObject", xr.DataArray, xr.Dataset)
MaxError = float | Sequence[float] | Mapping[str, float] | None

INDICES = {name.upper(): NORMALISED_DIFFERENCES[name] for name in ("ndvi", "ndwi", "nbr")}
"""Normalised differences ``(a - b) / (a + b)`` that `report` compares."""


def canonical_order(obj: XrObject) -> XrObject:
    """Images with dimensions (..., time, band, y, x), as TEC stores them."""
    if isinstance(obj, xr.DataArray):
        return _transposed(obj)
    return obj.map(_transposed, keep_attrs=True)


def simulate(
    obj: XrObject, *, quality: float = 4.0, max_error: MaxError = None, **options: Any
) -> XrObject:
    """What ``obj`` will be after TEC, before anything is written.

    Parameters
    ----------
    obj : DataArray or Dataset
        Cube, dimensions in any order. Variables that are not reflectance stay as they are.
    quality, max_error, **options
        Of `tec_zarr.encoding`. `weigh` says how many bytes it takes.

    Returns
    -------
    DataArray or Dataset
        Same dimensions, dtype, coordinates and attributes; lazy, for arrays in memory too.
        The same values as writing with the same settings and reading gives.
    """
    if max_error is not None:
        options["max_error"] = max_error
    if isinstance(obj, xr.DataArray):
        return _simulated(obj, quality, options)
    names = chosen_variables(obj, options.get("variables"))
    found = {n: _simulated(obj[n], quality, options) for n in obj.data_vars if str(n) in names}
    return obj.assign(found)


def weigh(
    obj: xr.DataArray | xr.Dataset,
    *,
    quality: float = 4.0,
    max_error: MaxError = None,
    **options: Any,
) -> int:
    """Bytes that TEC chunks of ``obj`` will take; encodes everything, writes nothing.

    Parameters are those of `simulate`. Metadata and lossless variables are not counted.
    """
    if max_error is not None:
        options["max_error"] = max_error
    if isinstance(obj, xr.DataArray):
        arrays = [obj]
    else:
        names = chosen_variables(obj, options.get("variables"))
        arrays = [da for n, da in obj.data_vars.items() if str(n) in names]
    total = 0
    for da in arrays:
        written, lazy = _plan(da, quality, options)
        ones = tuple((1,) * n for n in lazy.numblocks)
        sizes = lazy.map_blocks(written.weight, dtype=np.int64, chunks=ones)
        total += int(sizes.sum().compute())
    return total


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
        """What it will be after TEC, lazily: `tec_zarr.face.accessor.simulate`."""
        return simulate(self._obj, quality=quality, max_error=max_error, **options)

    def weigh(self, *, quality: float = 4.0, max_error: MaxError = None, **options: Any) -> int:
        """Bytes that it will take: `tec_zarr.face.accessor.weigh`."""
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


def _transposed(da: xr.DataArray) -> xr.DataArray:
    dims = [find_dim(da, names) for names in (TIME, BAND, Y, X)]
    known = [d for d in dims if d is not None]
    if dims[2] is None or dims[3] is None or len(known) != da.ndim:
        return da
    return da.transpose(*known)


@dataclass(frozen=True)
class _Written:
    """How Zarr and xarray write an array: codec, chunk shape, CF packing, what pads edge chunks."""

    codec: ChunkSpec
    chunk: tuple[int, ...]
    packing: Mapping[str, Any]
    dims: tuple[str, ...]
    fill: float

    def frames(self, block: np.ndarray) -> Iterator[tuple[tuple[slice, ...], bytes]]:
        """Where the chunks of a block of whole chunks lie, and their bytes."""
        packed = self._packed(block)
        starts = (range(0, size, n) for size, n in zip(block.shape, self.chunk, strict=True))
        for corner in itertools.product(*starts):
            place = tuple(slice(i, i + n) for i, n in zip(corner, self.chunk, strict=True))
            piece = packed[place]
            missing = [(0, n - size) for size, n in zip(piece.shape, self.chunk, strict=True)]
            padded = np.pad(piece, missing, constant_values=self.fill)
            yield place, encode_chunk(padded, self.codec, padding=(self.fill,))

    def read_back(self, block: np.ndarray) -> np.ndarray:
        """The block after writing and reading."""
        out = np.empty_like(self._packed(block[:0]), shape=block.shape)
        for place, frame in self.frames(block):
            size = (slice(n) for n in out[place].shape)
            out[place] = decode_chunk(frame)[tuple(size)]
        return self._unpacked(out).astype(block.dtype)

    def weight(self, block: np.ndarray) -> np.ndarray:
        """Bytes of the block's chunks, an array of one number."""
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


def _plan(
    da: xr.DataArray, quality: float, options: Mapping[str, Any]
) -> tuple[_Written, Any]:
    """How ``da`` is written, and its data as a Dask array of whole chunks."""
    settings = {k: v for k, v in options.items() if k != "variables"}
    ordered = _transposed(without_codecs(da))
    name = str(da.name) if da.name is not None else "cube"
    stored = encoding(ordered.to_dataset(name=name), variables=[name], quality=quality,
                      **settings)[name]  # fmt: skip
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


def _simulated(da: xr.DataArray, quality: float, options: Mapping[str, Any]) -> xr.DataArray:
    written, lazy = _plan(da, quality, options)
    back = lazy.map_blocks(written.read_back, dtype=da.dtype)
    return _transposed(da).copy(data=back).transpose(*da.dims)


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
