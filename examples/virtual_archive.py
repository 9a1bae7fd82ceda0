"""Many TEC stores as one, without copying: VirtualiZarr points into them, icechunk keeps that.

    python virtual_archive.py [path/catalog.json or URL]

Stores can be joined where their metadata are the same: one grid, one quality, one chunk shape.
"""

import sys
from pathlib import Path

import icechunk
import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset
from virtualizarr.parsers import ZarrParser

import tec_zarr
from tec_zarr.stac.load import EARTH_SEARCH, load, search

catalog = sys.argv[1] if len(sys.argv) > 1 else EARTH_SEARCH
area = (10.338, 47.841, 10.344, 47.845)
years = ("2021", "2023")

# One store a year. One date a chunk, so that years of any number of dates fit together.
for year in years:
    items = search(catalog, bbox=area, datetime=f"{year}-06-01/{year}-06-30")
    cube = tec_zarr.prepare(load(items, bbox=area, bands=["B04", "B08"]), items=items)
    cube = cube.chunk({"time": 1}).assign_coords(item_id=cube.item_id)  # names stay in memory
    cube.to_zarr(f"{year}.zarr", encoding=cube.tec.encoding(quality=5))

# Where their chunks are: coordinates are read, images only pointed at.
here = Path.cwd()
registry = ObjectStoreRegistry({here.as_uri(): LocalStore(here)})
parts = [
    open_virtual_dataset(
        (here / f"{year}.zarr").as_uri(), registry=registry, parser=ZarrParser(),
        loadable_variables=list(cube.coords),
    )
    for year in years
]  # fmt: skip
joined = xr.concat(
    parts, "time", data_vars="minimal", coords="minimal", compat="override", join="override"
)
print(joined)

# Kept in an icechunk repository that may read the files of this folder.
files = f"{here.as_uri()}/"
config = icechunk.RepositoryConfig.default()
config.set_virtual_chunk_container(
    icechunk.VirtualChunkContainer(files, icechunk.local_filesystem_store(str(here)))
)
local = getattr(icechunk.credentials, "LocalFileSystemAccess", None)  # None: older Icechunk
repository = icechunk.Repository.create(
    icechunk.local_filesystem_storage("archive"), config=config,
    authorize_virtual_chunk_access=icechunk.containers_credentials({files: local}),
)  # fmt: skip
session = repository.writable_session("main")
joined.vz.to_icechunk(session.store)
session.commit("two years, by reference")

archive = xr.open_zarr(
    repository.readonly_session("main").store, consolidated=False, decode_coords="all"
)
size = sum(f.stat().st_size for f in Path("archive").rglob("*") if f.is_file())
print(archive.reflectance)
print(f"{archive.sizes['time']} dates of {len(years)} stores in {size / 1e3:.0f} kB of references")
