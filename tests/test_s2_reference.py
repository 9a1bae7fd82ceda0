"""tec-s2's fast decoder against one in plain NumPy that was written from the documentation."""

from __future__ import annotations

import numpy as np
import pytest
import s2_reference

from tec_zarr import synthetic
from tec_zarr.models.registry import get_model, weights_file


@pytest.mark.parametrize(
    ("shape", "quality"),
    [((12, 40, 24), 4.0), ((3, 17, 50), 7.3), ((14, 16, 24), 5.0), ((2, 8, 8), 7.0)],
)
def test_a_decoder_written_from_the_documentation_finds_the_same_latents(shape, quality):
    model = get_model("tec-s2")
    bands, height, width = shape
    cube = synthetic.cube(dates=2, size=64, seed=8, nodata_edge=False).values
    cube = cube.reshape(1, 24, 64, 64)  # two dates as so many bands
    part = cube[:, :bands, :height, :width].astype(np.float32)
    (section,) = model.encode(part, quality, None).sections
    expected, _ = model.decode_latents(section, shape, quality)
    weights = weights_file("tec-s2", model.weights_sha256)
    found = s2_reference.decode_latents(section, bands, height, width, quality, weights)
    np.testing.assert_array_equal(found, expected)
    assert (expected != 0).any()


@pytest.mark.parametrize("kind", ["noise", "spike"])
def test_also_for_what_no_satellite_sees(kind):
    model = get_model("tec-s2")
    rng = np.random.default_rng(1)
    cube = np.full((1, 2, 16, 16), 3000, np.float32)
    if kind == "noise":
        cube[:] = rng.uniform(-1000, 20000, cube.shape)
    else:
        cube[0, 1, 9, 9] = 20000
    (section,) = model.encode(cube, 8.0, None).sections
    expected, _ = model.decode_latents(section, (2, 16, 16), 8.0)
    weights = weights_file("tec-s2", model.weights_sha256)
    found = s2_reference.decode_latents(section, 2, 16, 16, 8.0, weights)
    np.testing.assert_array_equal(found, expected)
