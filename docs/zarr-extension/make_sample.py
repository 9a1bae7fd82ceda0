"""Write ``sample_data/sample.zarr``: arrays in the codec ``tec``, and what they decode to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import zarr

from tec_zarr import TECCodec
from tec_zarr.cubes import synthetic

HERE = Path(__file__).parent


def main(path: Path) -> None:
    """Write the group."""
    cube = synthetic.cube(dates=2, size=48, seed=28).values[..., :40]
    cube[:, :, :9, :6] = 0
    group = zarr.create_group(path, overwrite=True)
    one_band = cube[0, 3].astype(np.int16)
    arrays = {
        "quality": (cube, cube.shape, None, TECCodec(quality=4)),
        "bounded": (cube, (1, *cube.shape[1:]), None, TECCodec(max_error=5)),
        "lossless": (one_band, (24, 20), (24, 40), TECCodec(max_error=0, bands=["B04"])),
    }
    for name, (values, chunks, shards, codec) in arrays.items():
        array = group.create_array(
            name, shape=values.shape, chunks=chunks, shards=shards, dtype=values.dtype,
            fill_value=0, serializer=codec, compressors=None,
        )  # fmt: skip
        array[:] = values
        group.create_array(f"decoded_{name}", data=array[:], chunks=values.shape)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "sample_data" / "sample.zarr")
