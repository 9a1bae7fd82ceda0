"""Plain Zarr out of a TEC store, for clients that have no tec_zarr: xpublish decodes for them.

    python serve_plain.py STORE.zarr
"""

import sys
from pathlib import Path

import httpx
import xarray as xr
import xpublish
import zarr
from local_server import serving

import tec_zarr

cube = xr.open_zarr(Path(sys.argv[1]), decode_coords="all")

# xpublish encodes what it sends as the store was encoded. tec_zarr.drop_encoding makes that plain;
# without it, it would send TEC again: encoded twice, and of no use to these clients.
app = xpublish.Rest({"cube": tec_zarr.drop_encoding(cube)}).app

# xpublish-zarr 0.1 fails on chunks that hold nothing but nodata, unless they are made all the same.
with zarr.config.set({"array.write_empty_chunks": True}), serving(app) as server:
    url = f"{server}/datasets/cube/zarr"
    codecs = httpx.get(f"{url}/reflectance/zarr.json").json()["codecs"]
    print("sent with", *(codec["name"] for codec in codecs))
    remote = xr.open_zarr(url, decode_coords="all")
    window = remote.reflectance.isel(time=-1, y=slice(0, 64), x=slice(0, 64)).load()

same = window.equals(cube.reflectance.isel(time=-1, y=slice(0, 64), x=slice(0, 64)))
print("the same pixels as in the store:", same)
