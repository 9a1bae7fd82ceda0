"""Read a TEC store over HTTP: static files, which is all that Zarr needs, and a picture of it.

    python serve_http.py STORE.zarr

Any web server or bucket does; here it is Python's own, on this machine only.
"""

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import xarray as xr
from matplotlib import image

import tec_zarr  # noqa: F401  makes .tec known

store = Path(sys.argv[1]).resolve()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=store.parent))
Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/{store.name}"

# The client: nothing but xarray. Only the chunks of this window and date travel.
remote = xr.open_zarr(url, decode_coords="all")
tile = remote.isel(time=[0], y=slice(0, 32), x=slice(0, 32))
picture = tile.tec.preview()
image.imsave("tile.png", picture.values)
print(url, "->", "tile.png", dict(picture.sizes))

server.shutdown()
