"""Arrays of format 2 in zarr 2.18: run in an environment of its own by ``make zarr2``.

Reads what zarr 3 wrote, when its path is given, and writes and reads arrays itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numcodecs
import numpy as np
import toy
import zarr

from tec_zarr import TEC


def main() -> None:
    """Write, read, and say with what."""
    assert zarr.__version__.startswith("2."), zarr.__version__
    numcodecs.register_codec(TEC)  # needed where tec_zarr is on the path without being installed
    toy.register()
    noise = np.random.default_rng(0).normal(0, 30, (2, 12, 70, 50))
    dn = (noise + np.linspace(500, 3000, 50)).astype("u2")
    dn[0, :, :9] = 0
    for model in (toy.NAME, "tec-s2"):
        for order in "CF":
            for slots in ({"compressor": True}, {"filters": True, "compressor": None}):
                codec = TEC(model=model, quality=5)
                given = {k: v and ([codec] if k == "filters" else codec) for k, v in slots.items()}
                array = zarr.create(
                    shape=dn.shape, chunks=(1, 12, 64, 64), dtype="u2", order=order, store={},
                    **given,
                )  # fmt: skip
                array[:] = dn
                back = array[:]
                np.testing.assert_array_equal(back == 0, dn == 0)
                assert np.abs(back.astype(int) - dn).mean() < 40, (model, order, slots)
    for path in sys.argv[1:]:
        stored = zarr.open(path, mode="r")
        print(path, stored.shape, int(stored[:].astype("i8").sum()))
    print(f"1 passed: zarr {zarr.__version__}, numcodecs {numcodecs.__version__}")


if __name__ == "__main__":
    main()
