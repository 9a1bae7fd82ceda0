"""What was done to an array, written into its attributes: CF's shape for lossy compression.

CF 1.12 (section 8.4) describes quantised variables by a container variable that several of them
share, with the attributes ``algorithm`` and ``implementation``, named by an attribute of each of
them, and by further attributes of each for its own parameters. Here the container is the scalar
coordinate `CONTAINER`, named by ``lossy_compression``, because TEC is none of CF's algorithms.
All attributes are text or numbers, so that they survive in netCDF too.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr
import zarr

from tec_zarr.bounds.request import ALL, NamedBounds
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.compare.align import in_dn
from tec_zarr.compare.tables import error_rows
from tec_zarr.cubes.dims import names_along_bands
from tec_zarr.cubes.encoding import CONTAINER
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.info import ATTRIBUTE, kept_bounds

XrObject = TypeVar("XrObject", xr.DataArray, xr.Dataset)


def describe(obj: XrObject, encoding: Mapping[str, Mapping[str, Any]]) -> XrObject:
    """Attributes that say how ``obj`` is compressed, to write it together with them.

    Parameters
    ----------
    obj : DataArray or Dataset
        What is going to be written.
    encoding : mapping
        Of `tec_zarr.encoding`, for the same object.

    Returns
    -------
    DataArray or Dataset
        A shallow copy. Each array that TEC encodes with a loss has ``lossy_compression``,
        ``lossy_compression_quality`` and, if asked for, ``lossy_compression_max_error`` (in the
        units of the data), ``..._psnr`` (dB) and ``..._max_bytes``; the object has the scalar
        coordinate ``tec_compression`` with ``algorithm``, ``implementation``, ``model``,
        ``weights_sha256`` and ``reader``, which says what to install. What an earlier compression
        left there is replaced.

    Examples
    --------
    >>> from tec_zarr import encoding
    >>> from tec_zarr.cubes import synthetic
    >>> ds = synthetic.dataset(dates=1, size=16)
    >>> settings = encoding(ds, max_error={"ndvi": 0.01, "all": 50})
    >>> describe(ds, settings).reflectance.attrs["lossy_compression_max_error"]
    'ndvi: 0.01 all: 50'
    """
    out: Any = obj.copy(deep=False)
    container = None
    for name, settings in encoding.items():
        spec = next((v for v in _codecs(settings) if isinstance(v, ChunkSpec)), None)
        if spec is None:
            continue
        member = out if isinstance(out, xr.DataArray) else out[name]
        attributes = {k: v for k, v in member.attrs.items() if not k.startswith(ATTRIBUTE)}
        if not spec.is_lossless:
            attributes |= _parameters(spec, float(settings.get("scale_factor") or 1))
            container = {
                "algorithm": "terracodec",
                "implementation": f"tec_zarr version {importlib.metadata.version('tec_zarr')}",
                "reader": "pip install tec_zarr",
                "model": spec.model,
                "weights_sha256": str(spec.weights_sha256),
            }
        member.attrs = attributes
    out = out.drop_vars(CONTAINER, errors="ignore")
    if container is not None:
        # Not 0: a chunk of nothing but the fill value is not written, and some readers look for it.
        out = out.assign_coords({CONTAINER: ((), np.int32(1), container)})
    return out


def record(
    store: Any,
    original: xr.DataArray | xr.Dataset | None = None,
    group: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> None:
    """Add what is known only after writing to the attributes of a store's TEC arrays.

    ``lossy_compression_max_error_measured`` comes from the headers of the chunks, of arrays that
    were written with ``max_error``; ``lossy_compression_psnr_measured`` (dB, per band) is
    measured if ``original`` is given, for which the store is read.

    Parameters
    ----------
    store : path or zarr store
        A store that `describe` and ``to_zarr`` made, writable.
    original : DataArray or Dataset, optional
        What was written.
    group, storage_options
        As for ``xarray.open_zarr``.
    """
    where: dict[str, Any] = {"storage_options": storage_options or None}
    root = zarr.open_group(store, mode="r+", path=group, **where)
    consolidated = root.metadata.consolidated_metadata is not None
    decoded = None
    if original is not None:
        decoded = xr.open_zarr(store, group=group, consolidated=consolidated, **where)
    for name, array in zarr.open_group(
        store, mode="r+", path=group, use_consolidated=False, **where
    ).arrays():
        if tec_spec(array) is None or ATTRIBUTE not in array.attrs:
            continue
        found = {}
        factor = float(array.attrs.get("scale_factor", 1))  # type: ignore[arg-type]
        bounds = kept_bounds(array)
        if bounds:
            found["max_error_measured"] = _listing(
                {b.name: b.error * (1 if b.is_index else factor) for b in bounds}
            )
        if original is not None and decoded is not None:
            before = original if isinstance(original, xr.DataArray) else original[name]
            reference, after = in_dn(before, decoded[name])
            rows = error_rows(reference, after, names_along_bands(before))
            found["psnr_measured"] = _listing({str(row[0]): row[1] for row in rows[:-1]})
        array.attrs.update({f"{ATTRIBUTE}_{key}": value for key, value in found.items()})
    if consolidated:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
            zarr.consolidate_metadata(root.store, path=root.path)


def _codecs(settings: Mapping[str, Any]) -> list[Any]:
    stored = [settings.get("serializer"), settings.get("compressors")]
    return [c for codec in stored for c in (codec if isinstance(codec, tuple) else (codec,))]


def _parameters(spec: ChunkSpec, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"quality": spec.quality}
    bounds = spec.max_error
    if isinstance(bounds, NamedBounds):
        found = {} if ALL in bounds else found
        found["max_error"] = _listing(bounds.scaled(1 / factor))
    elif bounds is not None:
        found = {"max_error": np.round(np.asarray(bounds) * factor, 9).tolist()}
    elif spec.psnr is not None:
        found = {"psnr": spec.psnr}
    elif spec.max_bytes is not None:
        found = {"max_bytes": spec.max_bytes}
    return {ATTRIBUTE: CONTAINER} | {f"{ATTRIBUTE}_{key}": value for key, value in found.items()}


def _listing(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}: {float(value):.9g}" for name, value in values.items())
