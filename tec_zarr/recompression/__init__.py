"""Recompress whole Zarr stores with TEC, region by region. An interrupted run can continue."""
