"""Archives that carry their weights: decoding where they are not installed, and hostile stores."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file, save

import tec_zarr
from tec_zarr import config
from tec_zarr.codec.zarr_codec import TECCodec
from tec_zarr.cubes import synthetic
from tec_zarr.errors import (
    FormatError,
    LimitError,
    UnknownModelError,
    UnsupportedArrayError,
    WeightsMismatchError,
)
from tec_zarr.models import registry
from tec_zarr.models import weights as models_weights
from tec_zarr.stores import embed
from tec_zarr.stores.embed import GROUP


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "cache"))
    with registry.as_new_process(keep_registered=True):
        yield tmp_path / "cache"


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


@pytest.fixture
def elsewhere():
    """Lets a test go on as in another process, in which no model is loaded or registered."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(registry.as_new_process(**how))


@pytest.fixture
def forget_weights(elsewhere, monkeypatch):
    """Goes on as in a tec_zarr of another release: the same models, none of these weights."""

    def forget():
        for module in (models_weights, registry):
            monkeypatch.setattr(module, "released_weights", lambda _: {"ff" * 32: Path("other")})
        elsewhere()

    return forget


def read(path):
    return zarr.open_group(path, mode="r")["scene/dn"][:]


@pytest.mark.parametrize(
    ("zarr_format", "shards"), [(2, None), (3, None), (3, (1, 12, 32, 32))], ids=str
)
def test_a_store_decodes_where_its_weights_are_missing(
    zarr_format, shards, cube, tmp_path, forget_weights
):
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, zarr_format, shards, model="tec-tt-s2")
    weights = tec_zarr.embed_weights(path)
    assert weights == (registry.find_model("tec-tt-s2").newest,)
    forget_weights()
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


def test_published_models_travel_too(cube, tmp_path, monkeypatch, elsewhere):
    from test_family_codec import make

    from tec_zarr.terracodec import checkpoints, hub

    name = "terracodec_v1_fp_s2l2a/lambda-10"
    file = tmp_path / "small.safetensors"
    checkpoints.save(make("fp"), file)
    hub.load("terracodec_v1_fp_s2l2a", 10, path=file)
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, model=name)
    (sha256,) = tec_zarr.embed_weights(path)
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "another machine"))
    elsewhere()
    with pytest.raises(UnknownModelError, match="not on this machine"):
        read(path)
    assert tec_zarr.use_embedded_weights(path) == (sha256,)
    np.testing.assert_array_equal(read(path), pixels)


def test_embedded_weights_are_not_what_new_arrays_are_encoded_with(tmp_path, cube, forget_weights):
    path = tmp_path / "store.zarr"
    write(path, cube)
    weights = tec_zarr.embed_weights(path)
    forget_weights()
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
    assert len(tec_zarr.embed_weights(path / "scene")) == 1


def test_a_model_of_ones_own_cannot_be_embedded(cube, tmp_path):
    write(tmp_path / "store.zarr", cube, model="toy")
    with pytest.raises(UnknownModelError, match="whoever registers it keeps its weights"):
        tec_zarr.embed_weights(tmp_path / "store.zarr")
    assert tec_zarr.use_embedded_weights(tmp_path / "store.zarr") == ()


# ---- stores of strangers


@pytest.fixture
def hostile(cube, tmp_path, forget_weights):
    """A store whose TEC array asks for weights that are not here, and a way to plant them."""
    path = tmp_path / "store.zarr"
    write(path, cube)
    sha256 = TECCodec().weights_sha256
    assert sha256 in tec_zarr.embed_weights(path)
    forget_weights()

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
    with pytest.raises(FormatError, match="does not hold weights of tec-s2"):
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


# ---- weights of strangers


@pytest.mark.parametrize("name", ["tec-s2", "tec-tt-s2", "tec-flex-s2"])
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("frequencies"),
        lambda t: t.update(more=t["context.mean"]),
        lambda t: t.update(frequencies=t["frequencies"][:39]),
        lambda t: t.update(frequencies=t["frequencies"].astype("f4")),
        lambda t: t["frequencies"].__setitem__((20, slice(30, 32)), (-5, 4000)),
        lambda t: t["frequencies"].__setitem__((20, 31), 0),
        lambda t: t["gain.16"].__setitem__((3, 2), 1 << 30),
        lambda t: t["dct_back.16"].__setitem__((3, 2), 1 << 20),
        lambda t: t["overlap.16"].__setitem__((9, 9), np.nan),
        lambda t: t["usual_bases"].__setitem__((0, 0), -(2**31)),
        lambda t: t["usual_bases"].__setitem__((14, 1), 1 << 23),
        lambda t: t["usual_bases"].__setitem__((120 - 9, 12), 1 << 20),
    ],
)
def test_embedded_weights_are_checked_before_anything_computes_with_them(name, change):
    sha256 = registry.find_model(name).newest
    tensors = load_file(models_weights.released_weights(name)[sha256])
    change(tensors)
    data = save({key: np.ascontiguousarray(value) for key, value in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    with pytest.raises(FormatError, match="does not hold weights of tec-s2"):
        embed.keep_embedded(name, data, digest)
    assert not models_weights.embedded_file(name, digest).exists()


def test_embedded_weights_decode_and_never_encode(cube, tmp_path, forget_weights):
    """Neither as a default, nor where an array names them, nor after files were touched."""
    path = tmp_path / "store.zarr"
    pixels = write(path, cube)
    tec_zarr.embed_weights(path)
    forget_weights()
    tec_zarr.use_embedded_weights(path)
    for file in models_weights.embedded_folder().iterdir():
        file.touch()
    array = zarr.open_group(path, mode="r+")["scene/dn"]
    with pytest.raises(WeightsMismatchError, match="came with a store"):
        array[:] = cube + 1
    np.testing.assert_array_equal(read(path), pixels)


def test_embedded_weights_of_a_published_model_never_encode(cube, tmp_path, monkeypatch, elsewhere):
    from test_family_codec import make

    from tec_zarr.terracodec import checkpoints, hub

    name = "terracodec_v1_fp_s2l2a/lambda-10"
    file = tmp_path / "small.safetensors"
    checkpoints.save(make("fp"), file)
    hub.load("terracodec_v1_fp_s2l2a", 10, path=file)
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, model=name)
    tec_zarr.embed_weights(path)
    monkeypatch.setenv("TEC_ZARR_CACHE", str(tmp_path / "another machine"))
    elsewhere()
    tec_zarr.use_embedded_weights(path)
    with pytest.raises(WeightsMismatchError, match=r"never encode.*tec_zarr\.terracodec\.load"):
        TECCodec(model=name)
    with pytest.raises(WeightsMismatchError, match="never encode"):
        zarr.open_group(path, mode="r+")["scene/dn"][:] = cube + 1
    np.testing.assert_array_equal(read(path), pixels)


# ---- embed_weights that was interrupted


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("damage", ["a chunk is gone", "a chunk was cut", "another array"])
def test_embedding_again_repairs(damage, zarr_format, cube, tmp_path, forget_weights):
    path = tmp_path / "store.zarr"
    pixels = write(path, cube, zarr_format)
    weights = tec_zarr.embed_weights(path)
    (folder,) = {p for p in (path / GROUP).iterdir() if p.name == weights[0]}
    chunk = folder / ("c/0" if zarr_format == 3 else "0")
    if damage == "a chunk is gone":
        chunk.unlink()
    elif damage == "a chunk was cut":
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    else:
        zarr.open_group(path, mode="r+")[GROUP].create_array(
            weights[0], shape=(9,), dtype="f4", overwrite=True
        )
    assert tec_zarr.embed_weights(path) == weights
    forget_weights()
    assert tec_zarr.use_embedded_weights(path) == weights
    np.testing.assert_array_equal(read(path), pixels)


def test_weights_become_visible_when_all_of_them_are_there(cube, tmp_path, monkeypatch):
    path = tmp_path / "store.zarr"
    write(path, cube)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embed, "_CHUNK_BYTES", 100_000)
        patch.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(OSError, match="No space"):
            tec_zarr.embed_weights(path)
    assert not any(zarr.open_group(path, mode="r")[GROUP].members())
    weights = tec_zarr.embed_weights(path)
    assert len(list(zarr.open_group(path, mode="r")[GROUP].members())) == len(weights)


def test_what_the_store_holds_need_not_be_on_this_machine(cube, tmp_path, forget_weights):
    path = tmp_path / "store.zarr"
    write(path, cube)
    weights = tec_zarr.embed_weights(path)
    forget_weights()
    assert tec_zarr.embed_weights(path) == weights
