"""docs/zarr-extension says what we write, as the registry of Zarr extensions asks for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import zarr

from tec_zarr import TECCodec
from tec_zarr.codec.options import options_of
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import TecError
from tec_zarr.sentinel2 import BANDS, NORMALISED_DIFFERENCES

FOLDER = Path(__file__).parents[1] / "docs" / "zarr-extension"
SCHEMA = json.loads((FOLDER / "schema.json").read_text("utf-8"))
SAMPLE = FOLDER / "sample_data" / "sample.zarr"
WRITTEN = (
    {}, {"quality": 7.25, "bands": ["B04", "B8A"], "nodata": None, "scale": 1e-4, "offset": 1000},
    {"max_error": 0}, {"max_error": [1, 2.5]}, {"psnr": 42}, {"max_bytes": 5000},
    {"max_error": {"NDVI": 0.01, "nd:B8A,B04": 0.02, "B02": 5, "all": 50}},
    {"model": "tec-tt-s2", "gop": 4}, {"nodata": [0, -9999, 65535]},
)  # fmt: skip


@pytest.fixture(scope="module")
def accepts():
    jsonschema = pytest.importorskip("jsonschema", reason="pip install 'tec_zarr[test]'")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA).is_valid


@pytest.mark.parametrize("options", WRITTEN, ids=str)
def test_the_schema_accepts_what_is_written(options, accepts):
    assert accepts(TECCodec(**options).to_dict())


@pytest.mark.parametrize(
    "wrong",
    [
        {"qualty": 4}, {"quality": 9}, {"quality": "4"}, {"bands": ["B13"]}, {"nodata": 0},
        {"weights_sha256": "abc"}, {"max_error": -1}, {"max_error": {"ndvy": 0.1}},
        {"max_bytes": 1.5}, {"gop": 0}, {"scale": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_misspelt_key_or_a_wrong_value_is_refused(wrong, accepts):
    written = TECCodec().to_dict()
    assert not accepts({**written, "configuration": {**written["configuration"], **wrong}})
    assert not accepts({**written, "name": "tek"})
    if "qualty" in wrong:
        with pytest.raises(TecError, match="qualty"):
            TECCodec.from_dict({**written, "configuration": wrong})


def test_the_schema_and_the_page_have_every_option():
    options = set(options_of(ChunkSpec))
    configuration = SCHEMA["properties"]["configuration"]["properties"]
    assert set(configuration) == options
    page = (FOLDER / "README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == options
    assert set(configuration["bands"]["oneOf"][1]["items"]["enum"]) == set(BANDS)
    bounds = re.compile(configuration["max_error"]["oneOf"][3]["propertyNames"]["pattern"])
    assert all(bounds.fullmatch(name) for name in (*NORMALISED_DIFFERENCES, *BANDS, "all"))


@pytest.mark.parametrize("name", ["quality", "bounded", "lossless"])
def test_the_sample_decodes_to_what_lies_beside_it(name, accepts):
    group = zarr.open_group(SAMPLE, mode="r")
    np.testing.assert_array_equal(group[name][:], group[f"decoded_{name}"][:])
    metadata = json.loads((SAMPLE / name / "zarr.json").read_text("utf-8"))
    (codec,) = metadata["codecs"]
    if codec["name"] == "sharding_indexed":
        (codec,) = codec["configuration"]["codecs"]
    assert accepts(codec)
