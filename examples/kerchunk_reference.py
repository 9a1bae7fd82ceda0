"""kerchunk over a TEC store: one JSON file that points into it, nothing is copied.

kerchunk speaks Zarr format 2; `zarr_format=2` is all that changes for TEC.
"""

import json
from pathlib import Path

import xarray as xr
from kerchunk.zarr import single_zarr

from tec_zarr.cubes import synthetic

cube = synthetic.dataset(dates=2, size=64)
cube.tec.to_zarr("format2.zarr", zarr_format=2)

references = single_zarr(str(Path("format2.zarr").resolve()))
Path("cube.json").write_text(json.dumps(references))

back = xr.open_dataset(
    "reference://", engine="zarr", chunks={},
    backend_kwargs={"storage_options": {"fo": "cube.json"}, "consolidated": False},
)  # fmt: skip
print(len(references), "references,", back.reflectance.shape)
print(back.tec.report(cube).round(2))
