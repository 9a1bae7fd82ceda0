"""A STAC item for a finished store, so that catalogues can list it.

The asset has the fields of the Zarr extension, the item those of the projection extension.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from tec_zarr.cubes.dims import BAND, TIME, find_dim
from tec_zarr.cubes.overviews import level_attributes
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.objects import list_nodes
from tec_zarr.stores.sessions import reopened

_EXTENSIONS = [
    "https://stac-extensions.github.io/zarr/v1.0.0/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
]


def stac_item(store: Any, href: str, storage_options: dict[str, Any] | None = None) -> dict:
    """Return a STAC item of a store, as JSON holds it.

    Parameters
    ----------
    store : path, URL, zarr store or Icechunk repository
        A group with x, y, a CRS and dates, or with the overviews of such a cube.
    href : str
        Where readers of the item find the store.
    storage_options : dict, optional
        Options of the fsspec filesystem of a URL.

    Returns
    -------
    dict
        Its ``id`` is the store's name without suffix. ``bbox`` and ``geometry`` are in WGS 84; the
        ``proj:`` fields are those of the store's grid, as are the names of the bands.

    Raises
    ------
    UnsupportedArrayError
        The store says no CRS or no dates, or is no group with reflectance.
    """
    opened = reopened(store)
    where: dict[str, Any] = {"storage_options": storage_options}
    root = zarr.open(opened, mode="r", **where)
    nodes = list_nodes(root)
    coded = [
        path for path, node in nodes.items() if isinstance(node, zarr.Array) and tec_spec(node)
    ]
    if not coded or isinstance(root, zarr.Array):
        raise UnsupportedArrayError(f"{store} has no group with TEC arrays: there is no item of it")
    group, _, name = coded[0].rpartition("/")
    ds = xr.open_zarr(opened, group=group or None, chunks=None, decode_coords="all",
                      consolidated=False, **where)  # fmt: skip
    spatial, image = level_attributes(ds), ds[name]
    time, band = find_dim(image, TIME), find_dim(image, BAND)
    crs = spatial.get("proj:code") or spatial.get("proj:wkt2")
    if crs is None or time is None or time not in ds.coords or not ds.sizes[time]:
        lacks = "CRS" if crs is None else "dates"
        raise UnsupportedArrayError(f"{store} says no {lacks}, which a STAC item needs")
    dates = [f"{np.datetime_as_string(t, 's')}Z" for t in np.sort(ds[time].values)[[0, -1]]]
    asset: dict[str, Any] = {
        "href": href,
        "type": f"application/vnd.zarr; version={root.metadata.zarr_format}",
        "roles": ["data"],
        "zarr:node_type": "group",
        "zarr:zarr_format": root.metadata.zarr_format,
        "zarr:consolidated": root.metadata.consolidated_metadata is not None,
    }
    if band is not None and band in ds.coords:
        asset["bands"] = [{"name": str(b)} for b in ds[band].values]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": _EXTENSIONS,
        "id": Path(href.rstrip("/")).stem,
        **_footprint(spatial["spatial:bbox"], crs),
        "properties": {
            "datetime": dates[0] if dates[0] == dates[1] else None,
            "start_datetime": dates[0], "end_datetime": dates[1],
            **{key: spatial[key] for key in ("proj:code", "proj:wkt2") if key in spatial},
            **{f"proj:{key}": spatial[f"spatial:{key}"] for key in ("bbox", "shape", "transform")},
        },
        "links": [],
        "assets": {"zarr": asset},
    }  # fmt: skip


def write_item(store: Any, path: Path) -> None:
    """Write the STAC item of a store. The link to a store of files is relative to the item."""
    text = str(store)
    href = text if ":" in text else os.path.relpath(text, path.parent).replace(os.sep, "/")
    path.write_text(json.dumps(stac_item(store, href), indent=2) + "\n")


def _footprint(bbox: list[float], crs: str) -> dict[str, Any]:
    try:
        from pyproj import Transformer
    except ImportError as error:
        raise UnsupportedArrayError(
            "a STAC item needs pyproj: pip install 'tec_zarr[stac]'"
        ) from error
    to_degrees = Transformer.from_crs(crs, 4326, always_xy=True)
    west, south, east, north = bbox
    xs, ys = [west, east, east, west, west], [south, south, north, north, south]
    ring = [[float(x), float(y)] for x, y in zip(*to_degrees.transform(xs, ys), strict=True)]
    return {
        "bbox": [float(v) for v in to_degrees.transform_bounds(west, south, east, north)],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
