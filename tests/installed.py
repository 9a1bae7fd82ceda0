"""Check the tec_zarr that is installed: golden streams, and a store written and read.

    python tests/installed.py

The Python that runs it needs the package and what it depends on, and no compiler and no torch.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import xarray as xr

import tec_zarr
from tec_zarr.cubes import synthetic

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "readers" / "c"))

from weights import core_weights  # noqa: E402


def main() -> None:
    """Check everything; the first thing that is wrong is an exception."""
    package = Path(tec_zarr.__file__).parent
    assert package.parent != ROOT, f"{package} is the source tree, not what is installed"
    streams = 0
    for model, _, sha256 in core_weights(package / "models" / "weights"):
        folder = ROOT / "tests" / "fixtures" / model / sha256[:16]
        with np.load(folder / "pixels.npz") as pixels:
            for name in pixels.files:
                found = tec_zarr.decode_chunk((folder / f"{name}.tec").read_bytes())
                np.testing.assert_array_equal(found, pixels[name], err_msg=name)
                streams += 1
    assert streams > 20
    ds = synthetic.dataset(dates=2, size=64)
    with tempfile.TemporaryDirectory() as folder:
        for bound in ({}, {"max_error": 3}):
            store = Path(folder) / f"{len(bound)}.zarr"
            ds.to_zarr(store, encoding=tec_zarr.encoding(ds, **bound), consolidated=False)
            with xr.open_zarr(store, consolidated=False, mask_and_scale=False) as back:
                found = back.reflectance.values.astype(int)
            dn = ds.reflectance.values
            np.testing.assert_array_equal(found == 0, dn == 0)
            assert np.abs(found - dn).max() <= bound.get("max_error", 2000)
    assert "torch" not in sys.modules
    torch = "not installed" if find_spec("torch") is None else "installed, not imported"
    print(f"{package}: {streams} streams, 2 stores; torch is {torch}")


if __name__ == "__main__":
    main()
