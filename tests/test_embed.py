"""Archives that carry their weights: decoding where they are not installed, and hostile stores."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import zarr
from test_family_codec import make

import tec_zarr
from tec_zarr import config, synthetic
from tec_zarr.embed import GROUP
from tec_zarr.errors import (
    FormatError,
    LimitError,
    UnknownModelError,
    UnsupportedArrayError,
    WeightsMismatchError,
)
from tec_zarr.models import hub, registry
from tec_zarr.zarr3 import TECCodec


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_loaded", {})
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def cube():
    return synthetic.cube(dates=1, size=32, seed=4).values


def write(path, cube, zarr_format=3, shards=None, **options):
    codec = tec_zarr.TEC(**options) if zarr_format == 2 else TECCodec(**options)
    own = {"compressors": [codec]} if zarr_format == 2 else {"serializer": codec, "shards": shards}
    group = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    array = group.create_array(
        "scene/dn",
        shape=cube.shape,
        dtype=cube.dtype,
        chunks=(1, 12, 16, 32) if shards else cube.shape,
        fill_value=0,
        **{"compressors": None, **own},
    )
    array[:] = cube
    return array[:]


def forget_weights(monkeypatch):
    """As in a tec_zarr of another release: the same models, none of these weights."""
    other = {
        name: registry.Entry(name, entry.number, ("ff" * 32,), entry.load)
        for name, entry in registry._index().items()
    }
    monkeypatch.setattr(registry, "_index", lambda: other)
    monkeypatch.setattr(registry, "_released", lambda name: {})
    monkeypatch.setattr(registry, "_loaded", {})


def read(path):
    return zarr.open_group(path, mode="r")["scene/dn"][:]


@pytest.mark.parametrize(
    ("zarr_format", "shards"), [(2, None), (3, None), (3, (1, 12, 32, 32))], ids=str
)
def test_a_store_decodes_where_its_weights_are_missing(
    zarr_format, shards, cube, tmp_path, monkeypatch
):
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, zarr_format, shards)
    weights = tec_zarr.embed_weights(path)
    assert len(weights) == 2  # those of the pixels, and of the networks
    forget_weights(monkeypatch)
    with pytest.raises(WeightsMismatchError, match=r"tec_zarr\.use_embedded_weights\(store\)"):
        read(path)
    assert tec_zarr.use_embedded_weights(path) == weights
    np.testing.assert_array_equal(read(path), pixels)


def test_embedding_and_using_again_changes_nothing(cube, tmp_path):
    path = tmp_path / "store.zarr"
    write(path, cube)
    first = tec_zarr.embed_weights(path)
    written = {f: f.stat().st_mtime_ns for f in path.rglob("*")}
    assert tec_zarr.embed_weights(path) == first
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*")} == written
    assert tec_zarr.use_embedded_weights(path) == ()  # they are installed here


def test_a_store_without_weights_has_nothing_to_use(cube, tmp_path):
    write(tmp_path / "store.zarr", cube)
    assert tec_zarr.use_embedded_weights(tmp_path / "store.zarr") == ()


def test_weights_travel_as_they_are(cube, tmp_path):
    path = tmp_path / "store.zarr"
    write(path, cube)
    for sha256 in tec_zarr.embed_weights(path):
        stored = zarr.open_group(path, mode="r")[f"{GROUP}/{sha256}"][:]
        assert hashlib.sha256(stored.tobytes()).hexdigest() == sha256


def test_published_models_travel_too(cube, tmp_path, monkeypatch):
    name = "terracodec_v1_fp_s2l2a/lambda-10"
    file = tmp_path / "small.safetensors"
    hub.save(make("fp"), file)
    hub.load("terracodec_v1_fp_s2l2a", 10, path=file)
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, model=name)
    (sha256,) = tec_zarr.embed_weights(path)
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr(registry, "_loaded", {})
    with pytest.raises(UnknownModelError, match="not on this machine"):
        read(path)
    assert tec_zarr.use_embedded_weights(path) == (sha256,)
    np.testing.assert_array_equal(read(path), pixels)


def test_embedded_weights_are_not_what_new_arrays_are_encoded_with(tmp_path, cube, monkeypatch):
    path = tmp_path / "store.zarr"
    write(path, cube)
    weights = tec_zarr.embed_weights(path)
    forget_weights(monkeypatch)
    tec_zarr.use_embedded_weights(path)
    assert TECCodec().weights_sha256 not in weights


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_alone_has_no_room_for_weights(zarr_format, cube, tmp_path):
    path = tmp_path / "store.zarr"
    write(path, cube, zarr_format)
    array = zarr.open_array(path / "scene" / "dn")
    for alone in (path / "scene" / "dn", array):
        for call in (tec_zarr.embed_weights, tec_zarr.use_embedded_weights):
            with pytest.raises(UnsupportedArrayError, match="pass the group that it is in"):
                call(alone)
    assert len(tec_zarr.embed_weights(path / "scene")) == 2


def test_a_model_of_ones_own_cannot_be_embedded(cube, tmp_path):
    write(tmp_path / "store.zarr", cube, model="toy")
    with pytest.raises(UnknownModelError, match="whoever registers it keeps its weights"):
        tec_zarr.embed_weights(tmp_path / "store.zarr")
    assert tec_zarr.use_embedded_weights(tmp_path / "store.zarr") == ()


# ---- stores of strangers


@pytest.fixture
def hostile(cube, tmp_path, monkeypatch):
    """A store whose TEC array asks for weights that are not here, and a way to plant them."""
    path = tmp_path / "store.zarr"
    write(path, cube)
    sha256 = TECCodec().weights_sha256
    assert sha256 in tec_zarr.embed_weights(path)
    forget_weights(monkeypatch)

    def plant(shape=None, **options):
        array = zarr.open_group(path, mode="r+")[GROUP].create_array(
            sha256,
            **{"shape": shape or (9,), "dtype": "u1", "compressors": None, "overwrite": True}
            | options,
        )
        if shape is None:
            array[:] = np.arange(9)
        return path

    return plant


@pytest.mark.parametrize(
    ("planted", "error"),
    [
        ({}, WeightsMismatchError),
        ({"compressors": "auto"}, FormatError),
        ({"dtype": "f4"}, FormatError),
        ({"shape": (2**40,), "chunks": (2**20,)}, LimitError),
        ({"shape": (4,), "chunks": (2**40,)}, LimitError),
    ],
)
def test_planted_weights_are_refused_and_leave_nothing(planted, error, hostile, cache):
    path = hostile(**planted)
    with pytest.raises(error):
        tec_zarr.use_embedded_weights(path)
    assert not any(file.is_file() for file in cache.rglob("*"))


def test_weights_that_are_not_safetensors_are_refused(cube, tmp_path, cache):
    data = b"\x80\x04a pickle or whatever it may be"
    sha256 = hashlib.sha256(data).hexdigest()
    path = tmp_path / "store.zarr"
    group = zarr.open_group(path, mode="w")
    group.create_array(
        "dn",
        shape=cube.shape,
        dtype=cube.dtype,
        serializer=TECCodec(weights_sha256=sha256),
        compressors=None,
    )
    array = group.create_array(
        f"{GROUP}/{sha256}", shape=(len(data),), dtype="u1", compressors=None
    )
    array[:] = np.frombuffer(data, np.uint8)
    with pytest.raises(FormatError, match="not a safetensors file"):
        tec_zarr.use_embedded_weights(path)
    assert not any(file.is_file() for file in cache.rglob("*"))


def test_a_name_that_would_be_a_path_is_not_followed(cube, tmp_path):
    path = tmp_path / "store.zarr"
    array = zarr.open_group(path, mode="w").create_array(
        "dn", shape=cube.shape, dtype=cube.dtype, serializer=TECCodec(), compressors=None
    )
    metadata = path / "dn" / "zarr.json"
    sha256 = array.serializer.weights_sha256
    metadata.write_text(metadata.read_text().replace(sha256, "../../etc/passwd"))
    with pytest.raises(UnsupportedArrayError, match="64 hex digits"):
        zarr.open_array(path / "dn")


def test_the_size_limit_is_read_at_every_call(hostile, monkeypatch):
    path = hostile()
    monkeypatch.setattr(config, "MAX_WEIGHTS_BYTES", 8)
    with pytest.raises(LimitError, match="MAX_WEIGHTS_BYTES"):
        tec_zarr.use_embedded_weights(path)
