"""An EOPF product (ESA's Zarr, groups at 10, 20 and 60 m) to one cube in TEC.

    python eopf_to_tec.py PRODUCT.zarr
"""

import sys

import xarray as xr

import tec_zarr

product = xr.open_datatree(sys.argv[1], engine="zarr", chunks={})

# Bands of all groups on the 10 m grid, the offset known from add_offset, SCL beside them.
cube = tec_zarr.prepare(product)
print(cube.attrs["history"])
cube.tec.to_zarr("product.zarr", quality=5)

back = xr.open_zarr("product.zarr", decode_coords="all")
print(back.tec.report(cube).round(2))

# And back to groups of 10, 20 and 60 m.
print(tec_zarr.to_groups(back))
