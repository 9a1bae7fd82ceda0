"""The grids that a sensor measured on: native planes of bands enlarged to finer pixels."""

from tec_zarr.grids.detect import Found, find, prove
from tec_zarr.grids.grid import MAX_FACTOR, Grid, Kind
from tec_zarr.grids.natives import fit, refine
from tec_zarr.grids.nearest import Nearest
from tec_zarr.grids.nearest_fit import FoundMap, find_nearest, may_have_map

__all__ = [
    "MAX_FACTOR",
    "Found",
    "FoundMap",
    "Grid",
    "Kind",
    "Nearest",
    "find",
    "find_nearest",
    "fit",
    "may_have_map",
    "prove",
    "refine",
]
