"""The TerraCodec family inside Zarr arrays, on real scenes (small random models)."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from test_family_codec import make

from tec_zarr.codec.numcodecs_codec import TEC
from tec_zarr.codec.zarr_codec import TECCodec
from tec_zarr.models import registry
from tec_zarr.terracodec import codec as family

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval"


@pytest.fixture(scope="module")
def scene():
    files = sorted(EVAL.glob("terracodec__*.npz"))
    if not files:
        pytest.skip(f"needs the evaluation cubes in {EVAL}")
    return np.load(files[0])["dn"][:2, :, :100, :72].copy()


@pytest.fixture(params=["fp", "elic", "tt", "flex"])
def model(request):
    codec = family.FamilyModel(make(request.param), f"small/{request.param}", "ab" * 32)
    with registry.as_new_process():
        registry.register_model(codec.name, lambda: codec, codec.weights_sha256)
        yield codec


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_is_read_back_as_the_model_reconstructs_it(zarr_format, model, scene):
    scene = scene.copy()
    scene[0, :, 70:80, 30:] = 0
    own = (
        {"compressors": [TEC(model=model.name)]}
        if zarr_format == 2
        else {"serializer": TECCodec(model=model.name), "compressors": None}
    )
    array = zarr.create_array(
        {},
        shape=scene.shape,
        dtype=scene.dtype,
        chunks=(2, 12, 64, 72),
        fill_value=0,
        zarr_format=zarr_format,
        **own,
    )
    array[:] = scene
    back = array[:]
    assert ((back == 0) == (scene == 0)).all()
    upper = scene[:, :, :64].astype(np.float32)
    encoded = model.encode(upper, 4.0, None)
    direct, _ = model.decode(encoded.sections, upper.shape, 4.0, None)
    np.testing.assert_allclose(back[:, :, :64], np.rint(direct).clip(1), atol=1)
