"""The fast decoders of tec-s2 and tec-flex-s2 against plain ones written from the documentation."""

from __future__ import annotations

import numpy as np
import pytest
import s2_reference

from tec_zarr.cubes import synthetic
from tec_zarr.models.registry import get_model
from tec_zarr.models.tokens import cut
from tec_zarr.models.weights import weights_file
from tec_zarr.networks import levels


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
    weights = weights_file("tec-s2", model.networks_sha256)
    found = s2_reference.decode_latents(section, bands, height, width, quality, weights)
    np.testing.assert_array_equal(found, expected)
    assert (expected != 0).any()


@pytest.mark.parametrize(
    ("shape", "quality"),
    [((12, 40, 24), 4.0), ((3, 17, 50), 7.3), ((14, 16, 24), 1.0), ((1, 5, 8), 6.0)],
)
def test_a_decoder_written_from_the_documentation_finds_the_same_pixels(shape, quality):
    model = get_model("tec-s2")
    bands, height, width = shape
    cube = synthetic.cube(dates=2, size=64, seed=9, nodata_edge=False).values
    part = cube.reshape(1, 24, 64, 64)[:, :bands, :height, :width].astype(np.float32)
    (section,) = model.encode(part, quality, None).sections
    expected, _ = model.decode([section], part.shape, quality, None)
    found = s2_reference.decode_pixels(
        section, bands, height, width, quality,
        weights_file("tec-s2", model.weights_sha256),
        weights_file("tec-s2", model.networks_sha256),
        model.synthesis.steps(quality),
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected[0])


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
    weights = weights_file("tec-s2", model.networks_sha256)
    found = s2_reference.decode_latents(section, 2, 16, 16, 8.0, weights)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("shape", "quality", "steps"),
    [((12, 24, 16), 4.25, 8), ((3, 9, 20), 6.0, 7), ((1, 8, 8), 1.5, 2)],
)
def test_every_step_of_a_flexible_stream_is_what_its_documentation_says(
    shape, quality, steps, monkeypatch
):
    model = get_model("tec-flex-s2")
    bands, height, width = shape
    cube = synthetic.cube(dates=1, size=32, seed=8, nodata_edge=False).values.astype(np.float32)
    part = cube[:, :bands, :height, :width].copy()
    part[0, 0, 3, 3] = 20_000  # far out
    sections = cut(model.encode(part, quality, None).sections, [steps]).sections
    expected, check = [], levels.Latents.check
    monkeypatch.setattr(
        levels.Latents,
        "check",
        lambda state: expected.append(state.value.copy()) or check(state),
    )
    model.decode(sections, (1, *shape), quality, None)
    temporal = get_model("tec-tt-s2")
    found = s2_reference.flexible_steps(
        sections[0], bands, height, width,
        weights_file("tec-flex-s2", model.weights_sha256),
        weights_file("tec-tt-s2", temporal.weights_sha256),
        lambda q: temporal.predictor.steps(q)[:, 0].numpy(),
    )  # fmt: skip
    assert len(found) == len(expected) == steps
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(mine, theirs, err_msg=f"step {step}")
