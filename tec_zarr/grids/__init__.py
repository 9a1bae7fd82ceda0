"""The grids that a sensor measured on: native planes of bands enlarged to finer pixels."""

from tec_zarr.grids.detect import Found, find, prove
from tec_zarr.grids.grid import MAX_FACTOR, Grid, Kind
from tec_zarr.grids.natives import fit, refine

__all__ = ["MAX_FACTOR", "Found", "Grid", "Kind", "find", "fit", "prove", "refine"]
