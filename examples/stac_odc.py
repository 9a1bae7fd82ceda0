"""From a search to a compressed cube: odc-stac loads, TEC stores.

    python stac_odc.py                     # Earth Search, online
    python stac_odc.py path/catalog.json   # a catalogue on disk
    python stac_odc.py https://...         # another STAC API
"""

import sys

from tec_zarr.stac.load import EARTH_SEARCH, from_stac

catalog = sys.argv[1] if len(sys.argv) > 1 else EARTH_SEARCH

# One call: search, load lazily, take off the +1000 DN offset of baseline 04.00, write.
cube = from_stac(
    "kaufbeuren.zarr",
    catalog=catalog,
    bbox=(10.338, 47.841, 10.344, 47.845),  # west, south, east, north in degrees
    datetime="2023-06-01/2023-06-30",
    bands=["B02", "B03", "B04", "B08"],
    quality=5,
)

# What was done is written in the store: the offset taken off each date, and where it came from.
print(cube.attrs["history"])
for date, item, offset in zip(
    cube.time.values, cube.item_id.values, cube.boa_offset_removed.values, strict=True
):
    print(str(date)[:10], item, f"-{offset} DN")

# It is a cube as any other: lazy, labelled, with its CRS. 0 is nodata.
dn = cube.reflectance.where(cube.reflectance > 0).astype("float32")
red, infrared = dn.sel(band="B04"), dn.sel(band="B08")
ndvi = (infrared - red) / (infrared + red)
print("median NDVI:", ndvi.median(("y", "x")).round(2).values)
