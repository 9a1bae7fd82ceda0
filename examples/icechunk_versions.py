"""TEC in an icechunk repository: every write is a commit, and old versions stay readable.

    python icechunk_versions.py [path/catalog.json or URL]
"""

import sys

import icechunk
import xarray as xr

import tec_zarr
from tec_zarr.stac.load import EARTH_SEARCH, load, search

catalog = sys.argv[1] if len(sys.argv) > 1 else EARTH_SEARCH
area = (10.338, 47.841, 10.344, 47.845)


def cube(datetime):
    items = search(catalog, bbox=area, datetime=datetime)
    return tec_zarr.prepare(load(items, bbox=area, bands=["B04", "B08"]), items=items).compute()


repository = icechunk.Repository.create(icechunk.local_filesystem_storage("repository"))

# One date a chunk: appends then never cut into a chunk that is there, which would code it twice.
first = cube("2021-06-01/2021-06-30")
encoding = first.tec.encoding(quality=5, chunks={"time": 1})
session = repository.writable_session("main")
first.to_zarr(session.store, encoding=encoding, consolidated=False)
june = session.commit("June 2021")

later = cube("2023-06-01/2023-06-30")
session = repository.writable_session("main")
later.to_zarr(session.store, append_dim="time", consolidated=False)
session.commit("June 2023")

now = xr.open_zarr(repository.readonly_session("main").store, consolidated=False)
then = xr.open_zarr(repository.readonly_session(snapshot_id=june).store, consolidated=False)
print("now:", now.sizes["time"], "dates; as of the first commit:", then.sizes["time"])
print(now.tec.report(xr.concat([first, later], "time")).round(2))
