"""Read a TEC store over HTTP: plain files on a web server, which is all that Zarr needs.

    python serve_http.py STORE.zarr

Any bucket or web server does that answers byte ranges (`Range:`), because stores of more than one
chunk are sharded. `python -m http.server` does not, and readers then see broken shards.
"""

import sys
from pathlib import Path

import xarray as xr
from local_server import serving, static_files
from matplotlib import image

import tec_zarr  # noqa: F401  makes .tec known

store = Path(sys.argv[1]).resolve()
with serving(static_files(store.parent)) as server:
    # The client: nothing but xarray. Only the chunks of this window and date travel.
    remote = xr.open_zarr(f"{server}/{store.name}", decode_coords="all")
    print(remote.reflectance)
    picture = remote.isel(time=[-1], y=slice(0, 256), x=slice(0, 256)).tec.preview()

image.imsave("window.png", picture.values)
print("window.png", dict(picture.sizes))
