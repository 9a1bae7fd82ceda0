"""Keep a cube up to date: add what was acquired since, then look through the clouds.

    python append_dates.py [path/catalog.json or URL]
"""

import sys

from tec_zarr.stac.load import EARTH_SEARCH, from_stac

catalog = sys.argv[1] if len(sys.argv) > 1 else EARTH_SEARCH
area = {"catalog": catalog, "bbox": (10.338, 47.841, 10.344, 47.845), "bands": ["B04", "B08"]}

first = from_stac("growing.zarr", datetime="2021-06-01/2021-06-30", **area)
print("first:", first.sizes["time"], "dates")

# The same search over a longer period: dates that the store has are skipped. Full chunks of four
# dates are never touched; the last one is coded again from its lossless copy, not from TEC.
later = from_stac("growing.zarr", datetime="2021-06-01/2021-07-31", append_dates=True, **area)
print("now:", later.sizes["time"], "dates, the last on", str(later.time.values[-1])[:10])

# Clouds and their shadows, after the scene classification (SCL) of each date, filled from the
# clear dates of the same pixel. Pixels outside the mask stay as they are.
clear = later.chunk({"time": -1}).tec.inpaint_clouds(method="linear")


def ndvi(cube):
    dn = cube.reflectance.where(cube.reflectance > 0).astype("float32")
    red, infrared = dn.sel(band="B04"), dn.sel(band="B08")
    return ((infrared - red) / (infrared + red)).median(("y", "x")).round(2).values


print("median NDVI as measured:    ", ndvi(later))
print("median NDVI, clouds filled: ", ndvi(clear))
