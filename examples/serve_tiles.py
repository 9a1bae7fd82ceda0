"""Map tiles of a TEC store: titiler serves them, a web map or QGIS shows them.

    python serve_tiles.py STORE.zarr

titiler knows nothing of TEC: tec_zarr has to be installed beside it, no more. For a real server:

    uvicorn titiler.xarray.main:app
"""

import sys
from pathlib import Path

import httpx
import morecantile
import xarray as xr
from local_server import serving
from titiler.xarray.main import app

store = Path(sys.argv[1]).resolve()
cube = xr.open_zarr(store)
red, green, blue = (cube.band.values.tolist().index(b) + 1 for b in ("B04", "B03", "B02"))
ask = {
    "url": str(store),  # or s3://..., gs://..., https://...
    "variable": "reflectance",
    "sel": f"time=nearest::{cube.time.values[-1]}",
    "bidx": [red, green, blue],
    "nodata": 0,  # transparent
    "rescale": "1,2500",  # DN from black to white
}

with serving(app) as titiler:
    # The address that a web map takes, with {z}/{x}/{y} in it, and the area that it covers.
    about = httpx.get(f"{titiler}/WebMercatorQuad/tilejson.json", params=ask, timeout=60).json()
    print(about["tiles"][0])

    west, south, east, north = about["bounds"]
    grid = morecantile.tms.get("WebMercatorQuad")
    tile = grid.tile((west + east) / 2, (south + north) / 2, about["maxzoom"])
    path = f"/tiles/WebMercatorQuad/{tile.z}/{tile.x}/{tile.y}.png"
    answer = httpx.get(titiler + path, params=ask, timeout=60)
    Path("tile.png").write_bytes(answer.raise_for_status().content)
    print("tile.png", path, len(answer.content), "bytes")
