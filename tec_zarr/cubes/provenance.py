"""Describe the lossy compression of an array in its attributes, in the form that CF uses.

CF 1.12 (section 8.4) describes quantised variables by a container variable, which several of them
may share. It has the attributes ``algorithm`` and ``implementation``. Each quantised variable names
the container in an attribute, and has further attributes for its own parameters. Here the container
is the scalar coordinate `CONTAINER`. The attribute ``lossy_compression`` names it, because TEC is
not one of CF's algorithms. All attributes are text or numbers, so that netCDF can hold them too.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.bounds.request import ALL, NamedBounds
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.dims import XrObject, spec_in
from tec_zarr.cubes.encoding import CONTAINER
from tec_zarr.stores.info import ATTRIBUTE


def describe(obj: XrObject, encoding: Mapping[str, Mapping[str, Any]]) -> XrObject:
    """Add attributes that say how ``obj`` is compressed. Call it before writing ``obj``.

    Parameters
    ----------
    obj : DataArray or Dataset
        Data to write.
    encoding : mapping
        Result of `tec_zarr.encoding` for the same object.

    Returns
    -------
    DataArray or Dataset
        A shallow copy. Each array that TEC encodes with a loss has ``lossy_compression`` and the
        parameters that were asked for: ``lossy_compression_quality``,
        ``lossy_compression_max_error`` (in the units of the data), ``..._psnr`` (dB) or
        ``..._max_bytes``. The object has the scalar coordinate ``tec_compression`` with the
        attributes ``algorithm``, ``implementation``, ``model``, ``weights_sha256`` and ``reader``,
        which says what to install. Attributes of an earlier compression are replaced.

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
        spec = spec_in(settings)
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
        # Some readers need the chunk of this value. Zarr would not write it for the fill value 0.
        out = out.assign_coords({CONTAINER: ((), np.int32(1), container)})
    return out


def _parameters(spec: ChunkSpec, factor: float) -> dict[str, Any]:
    found: dict[str, Any] = {"quality": spec.quality}
    bounds = spec.max_error
    if isinstance(bounds, NamedBounds):
        found = {} if ALL in bounds else found
        found["max_error"] = listing_of(bounds.scaled(1 / factor))
    elif bounds is not None:
        found = {"max_error": np.round(np.asarray(bounds) * factor, 9).tolist()}
    elif spec.psnr is not None:
        found = {"psnr": spec.psnr}
    elif spec.max_bytes is not None:
        found = {"max_bytes": spec.max_bytes}
    return {ATTRIBUTE: CONTAINER} | {f"{ATTRIBUTE}_{key}": value for key, value in found.items()}


def listing_of(values: Mapping[str, Any]) -> str:
    """Return bounds as text, such as ``ndvi: 0.01 all: 50``."""
    return " ".join(f"{name}: {float(value):.9g}" for name, value in values.items())
