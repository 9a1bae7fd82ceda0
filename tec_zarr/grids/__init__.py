"""The grids that a sensor measured on: native planes of bands that were enlarged to finer pixels."""

from tec_zarr.grids.find import Found, find, prove
from tec_zarr.grids.fit import fit
from tec_zarr.grids.grid import MAX_FACTOR, Grid, Kind

__all__ = ["MAX_FACTOR", "Found", "Grid", "Kind", "find", "fit", "prove"]
