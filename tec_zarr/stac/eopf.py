"""EOPF products: bands in groups of 10, 20 and 60 m, to one grid and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import X, Y, find_dim
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import BANDS
from tec_zarr.stac.offset import known_band

_REFLECTANCE = "/measurements/reflectance"
_CLASSES = "/conditions/mask/l2a_classification"
_METRES = (10, 20, 60)


def flatten(tree: xr.DataTree, said: list[str]) -> xr.Dataset:
    """Return the bands of the groups r10m, r20m and r60m on the finest grid.

    The pixels of coarser bands are repeated.
    """
    found: dict[str, xr.DataArray] = {}
    groups = sorted(tree.subtree, key=lambda node: node.name or "")
    for node in groups:
        for name, da in node.data_vars.items():
            is_scl = str(name).lower() == "scl"
            if not is_scl and "reflectance" not in node.path:
                continue
            key = "scl" if is_scl else known_band(str(name))
            if key and da.ndim == 2:
                found.setdefault(key, da)
    bands = [found[b] for b in BANDS if b in found]
    if not bands:
        raise UnsupportedArrayError(
            f"no group of {sorted(n.path for n in groups)} holds bands such as "
            "/measurements/reflectance/r10m/b02"
        )
    finest = max(bands, key=lambda da: da.size)
    y, x = find_dim(finest, Y), find_dim(finest, X)
    placed = {}
    for name, da in found.items():
        if da.shape != finest.shape:
            said.append(f"{name} of {da.shape[0]} x {da.shape[1]} pixels repeated on the grid")
            da = da.reindex({y: finest[y], x: finest[x]}, method="nearest")
        placed[name] = da.copy(deep=False)
        placed[name].encoding = found[name].encoding
    ds = xr.Dataset(placed)
    when = tree.attrs.get("stac_discovery", {}).get("properties", {}).get("datetime")
    if when is not None:
        moment = np.datetime64(str(when).removesuffix("Z").split("+")[0], "ns")
        ds = ds.assign_coords(time=moment)
    return ds


def to_groups(cube: xr.Dataset) -> xr.DataTree:
    """Return a canonical cube as groups of 10, 20 and 60 m, as EOPF products have them.

    The way back from `tec_zarr.prepare`: each band on the grid of its sensor, a group for each
    resolution.

    Parameters
    ----------
    cube : Dataset
        ``reflectance`` (time, band, y, x) on a grid of 10 m, with canonical band names; ``scl``
        (time, y, x) if there is one. Lazy data stay lazy.

    Returns
    -------
    DataTree
        ``/measurements/reflectance/r10m/b02`` (time, y, x) and so on, and ``scl`` in
        ``/conditions/mask/l2a_classification/r20m``. Values are those of the first 10 m pixel of
        each cell, in the dtype of the cube. `prepare` repeats a cell's value, and the codec keeps
        it the same in the whole cell.

    Raises
    ------
    UnsupportedArrayError
        The pixels are not 10 m wide, or 20 m or 60 m do not divide the image.
    """
    widths = {float(abs(cube[d].values[1] - cube[d].values[0])) for d in ("y", "x")}
    if widths != {10.0}:
        raise UnsupportedArrayError(
            f"the pixels are {sorted(widths)} wide: groups are made from cubes of 10 m"
        )
    image = cube["reflectance"]
    shared = {n: c for n, c in cube.coords.items() if not {"y", "x", "band"} & {n, *c.dims}}
    groups: dict[str, xr.Dataset] = {}
    for metres in _METRES:
        names = [str(n) for n in image.band.values if BANDS[str(n)].gsd == metres]
        layers = {n.lower(): image.sel(band=n, drop=True) for n in names}
        if layers:
            groups[f"{_REFLECTANCE}/r{metres}m"] = _cells(layers, metres, shared)
    if "scl" in cube:
        groups[f"{_CLASSES}/r20m"] = _cells({"scl": cube["scl"]}, 20, shared)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=cube.attrs), **groups})


def _cells(
    layers: Mapping[str, xr.DataArray], metres: int, shared: Mapping[Any, xr.DataArray]
) -> xr.Dataset:
    """Return layers of 10 m with one value for each cell of a coarser grid."""
    n = metres // 10
    out = xr.Dataset({name: da.drop_vars(set(da.coords) - {"y", "x"}) for name, da in
                      layers.items()})  # fmt: skip
    if out.sizes["y"] % n or out.sizes["x"] % n:
        raise UnsupportedArrayError(
            f"{out.sizes['y']} x {out.sizes['x']} pixels of 10 m are no whole cells of {metres} m"
        )
    centres = {d: out[d].values.reshape(-1, n).mean(axis=1) for d in ("y", "x")}
    out = out.isel(y=slice(0, None, n), x=slice(0, None, n)).assign_coords(centres)
    return out.assign_coords(shared).drop_encoding()
