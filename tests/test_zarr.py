"""The two adapters inside real Zarr arrays."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap

import numcodecs
import numpy as np
import pytest
import toy
import zarr
from test_chunk import HALF_STEP, QUALITY, scene

import tec_zarr
from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import FormatError, SecondGenerationWarning, TecError, UnsupportedArrayError


def v3(store=None, *, shape, chunks, dtype="u2", shards=None, fill_value=None, **kwargs):
    codec = tec_zarr.TECCodec(model=toy.NAME, quality=QUALITY, **kwargs)
    return zarr.create_array(
        {} if store is None else store, shape=shape, chunks=chunks, shards=shards, dtype=dtype,
        fill_value=fill_value, serializer=codec, compressors=None,
    )  # fmt: skip


def v2(store=None, *, shape, chunks, dtype="u2", order="C", fill_value=0, slot="compressors", **kw):
    codec = tec_zarr.TEC(model=toy.NAME, quality=QUALITY, **kw)
    slots = {"compressors": codec} if slot == "compressors" else {
        "filters": [codec], "compressors": None
    }  # fmt: skip
    return zarr.create_array(
        {} if store is None else store, shape=shape, chunks=chunks, dtype=dtype, order=order,
        fill_value=fill_value, zarr_format=2, **slots,
    )  # fmt: skip


@pytest.mark.parametrize("make", [v3, v2])
@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "f8"])
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((3, 12, 70, 50), (2, 12, 64, 48)),
        ((12, 33, 47), (12, 20, 20)),
        ((5, 33, 47), (2, 20, 47)),
        ((37, 21), (16, 16)),
    ],
)
def test_arrays_come_back(make, dtype, shape, chunks):
    unit = 1e-4 if dtype[0] == "f" else 1
    data = (scene(shape) * unit).astype(dtype)
    array = make(shape=shape, chunks=chunks, dtype=dtype)
    array[:] = data
    back = array[:]
    assert back.dtype == data.dtype
    assert np.abs(back.astype("f8") - data).max() <= HALF_STEP * unit


@pytest.mark.parametrize("slot", ["compressors", "filters"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", ">f4"])
def test_format_2_keeps_pixels_in_place(slot, order, dtype):
    unit = 1e-4 if dtype[1] == "f" else 1
    data = (scene((2, 12, 40, 30)) * unit).astype(dtype)
    array = v2(shape=data.shape, chunks=(2, 12, 32, 16), dtype=dtype, order=order, slot=slot)
    array[:] = data
    assert np.abs(array[:].astype("f8") - data.astype("f8")).max() <= HALF_STEP * unit


def test_shards_and_partial_reads():
    data = scene((2, 12, 100, 130)).astype("u2")
    array = v3(shape=data.shape, chunks=(1, 12, 32, 32), shards=(2, 12, 64, 64))
    array[:] = data
    whole = array[:]
    assert np.abs(whole.astype(int) - data).max() <= HALF_STEP
    np.testing.assert_array_equal(array[1, 3:5, 40:50, 120:], whole[1, 3:5, 40:50, 120:])


@pytest.mark.parametrize("model", ["tec-s2", "tec-tt-s2", "tec-flex-s2", toy.NAME])
@pytest.mark.parametrize("shards", [None, (6, 12, 64, 64)])
def test_some_dates_of_a_chunk_are_those_of_the_whole(model, shards):
    data = synthetic.cube(dates=6, size=64, seed=9).values
    data[2] = 0  # a date that is not coded at all
    codec = tec_zarr.TECCodec(model=model)
    array = zarr.create_array(
        {}, shape=data.shape, chunks=(6, 12, 32, 32), shards=shards, dtype="u2", fill_value=0,
        serializer=codec, compressors=None,
    )  # fmt: skip
    array[:] = data
    whole = array[:]
    for selection in (
        3, slice(2, 4), slice(0, 6, 2), (4, slice(1, 3), slice(20, 50), 7), (slice(5, 6), ..., 40)
    ):  # fmt: skip
        np.testing.assert_array_equal(array[selection], whole[selection])
    dates = [1, 4]
    np.testing.assert_array_equal(array.oindex[dates, [0, 7]], whole[dates][:, [0, 7]])
    places = np.array([0, 5]), np.array([3, 3]), np.array([9, 63]), np.array([40, 2])
    np.testing.assert_array_equal(array.vindex[places], whole[places])


def test_dates_that_a_chunk_does_not_have_are_refused():
    frame = encode_chunk(scene((3, 12, 16, 16)).astype("u2"), ChunkSpec(toy.NAME, QUALITY))
    with pytest.raises(UnsupportedArrayError, match=r"dates \[3\] of a chunk of shape \(3, 12"):
        decode_chunk(frame, dates=[3])


@pytest.mark.parametrize("make", [v3, v2])
@pytest.mark.parametrize(("dtype", "fill"), [("u2", 0), ("u2", 7), ("i2", -9999), ("f4", np.nan)])
def test_padded_edges_and_holes_come_back_exactly(make, dtype, fill):
    unit = 1e-4 if dtype == "f4" else 1
    data = (scene((1, 12, 70, 70)) * unit).astype(dtype)
    data[:, :, 10:20, 60:] = fill
    kwargs = {"nodata": fill} if make is v2 else {}
    array = make(shape=data.shape, chunks=(1, 12, 64, 64), dtype=dtype, fill_value=fill, **kwargs)
    array[:] = data
    back = array[:]
    hole = np.isnan(data) if dtype == "f4" else data == fill
    back_hole = np.isnan(back) if dtype == "f4" else back == fill
    np.testing.assert_array_equal(back_hole, hole)
    assert np.abs(back.astype("f8") - data)[~hole].max() <= HALF_STEP * unit


def test_writing_chunk_by_chunk_or_at_once_makes_the_same_bytes(tmp_path):
    data = scene((2, 12, 64, 96)).astype("u2")
    stores = []
    for workers in (1, 8):
        with zarr.config.set({"async.concurrency": workers}):
            store = {}
            array = v3(store, shape=data.shape, chunks=(1, 12, 32, 32))
            if workers == 1:
                for t in range(2):
                    for x in range(0, 96, 32):
                        array[t : t + 1, :, :, x : x + 32] = data[t : t + 1, :, :, x : x + 32]
            else:
                array[:] = data
            stores.append({k: v.to_bytes() for k, v in store.items()})
    assert stores[0] == stores[1]


def test_metadata_is_the_same_for_every_scene_and_names_the_weights():
    stores = [{}, {}]
    for store, seed in zip(stores, (0, 1), strict=True):
        array = v3(store, shape=(1, 12, 16, 16), chunks=(1, 12, 16, 16))
        array[:] = scene((1, 12, 16, 16), seed)
    assert stores[0]["zarr.json"].to_bytes() == stores[1]["zarr.json"].to_bytes()
    codecs = json.loads(stores[0]["zarr.json"].to_bytes())["codecs"]
    assert [c["name"] for c in codecs] == ["tec"]
    assert codecs[0]["configuration"]["weights_sha256"] == toy.SHA256


def test_configurations_survive_json_pickle_and_repr():
    from tec_zarr import TEC, TECCodec

    arguments = {"model": toy.NAME, "quality": 3.3, "bands": ["B8A", "b4"], "nodata": [0, -1]}
    for codec in (TEC(**arguments), TECCodec(**arguments)):
        assert pickle.loads(pickle.dumps(codec)) == codec
        assert eval(repr(codec), {"TEC": TEC, "TECCodec": TECCodec}) == codec
    assert numcodecs.get_codec(json.loads(json.dumps(TEC(**arguments).get_config()))) == TEC(
        **arguments
    )
    codec = TECCodec(**arguments)
    assert TECCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec


def test_a_configuration_of_a_newer_version_says_upgrade():
    newer = {"name": "tec", "configuration": {"model": toy.NAME, "wavelets": True}}
    with pytest.raises(UnsupportedArrayError, match=r"wavelets.*pip install --upgrade"):
        tec_zarr.TECCodec.from_dict(newer)


@pytest.mark.parametrize("shards", [None, (1, 12, 64, 64)])
def test_arrays_that_cannot_be_encoded_are_refused_when_created(shards):
    with pytest.raises(UnsupportedArrayError, match="not uint8"):
        v3(shape=(1, 12, 64, 64), chunks=(1, 12, 32, 32), shards=shards, dtype="u1")


def test_a_chunk_of_another_array_is_refused():
    store = {}
    array = v3(store, shape=(1, 12, 16, 16), chunks=(1, 12, 16, 16))
    array[:] = scene((1, 12, 16, 16))
    other = {}
    array = v3(other, shape=(1, 12, 16, 32), chunks=(1, 12, 16, 32))
    other["c/0/0/0/0"] = store["c/0/0/0/0"]
    with pytest.raises(FormatError, match="another array"):
        array[:]


@pytest.mark.parametrize("make", [v3, v2])
def test_damaged_chunks_raise_through_zarr(make):
    store = {}
    array = make(store, shape=(1, 12, 16, 16), chunks=(1, 12, 16, 16))
    array[:] = scene((1, 12, 16, 16))
    key = next(k for k in store if k.endswith("0/0/0/0") or k == "0.0.0.0")
    raw = bytearray(store[key].to_bytes())
    raw[-3] ^= 4
    store[key] = zarr.buffer.cpu.Buffer.from_bytes(bytes(raw))
    with pytest.raises(TecError, match="CRC32"):
        array[:]


def test_a_partial_write_warns():
    array = v3(shape=(1, 12, 64, 64), chunks=(1, 12, 64, 64))
    array[:] = scene((1, 12, 64, 64))
    with pytest.warns(SecondGenerationWarning, match="aligned"):
        array[:, :, :, :10] = 500
    with pytest.warns(SecondGenerationWarning):
        array[:, :, :30] = 500


def test_decode_into_out():
    data = scene((1, 12, 16, 16)).astype("u2")
    codec = tec_zarr.TEC(model=toy.NAME, quality=QUALITY)
    out = np.empty_like(data)
    assert codec.decode(codec.encode(data), out) is out
    np.testing.assert_array_equal(out, tec_zarr.TEC(model=toy.NAME).decode(codec.encode(data)))


@pytest.fixture
def constant_store(tmp_path):
    """A store whose chunks decode without any model, so that any process can read it."""
    path = tmp_path / "constant.zarr"
    array = v3(path, shape=(1, 12, 16, 16), chunks=(1, 12, 16, 16))
    array[:] = 1234
    v2(tmp_path / "v2.zarr", shape=(1, 12, 16, 16), chunks=(1, 12, 16, 16))[:] = 1234
    return path


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cold_interpreter_finds_the_codec_without_torch(constant_store):
    _python(f"""
        import sys, zarr
        for path in ({str(constant_store)!r}, {str(constant_store.with_name("v2.zarr"))!r}):
            array = zarr.open_array(path, mode="r")
            assert "torch" not in sys.modules
            assert (array[:] == 1234).all()
        import tec_zarr
        tec_zarr.TEC, tec_zarr.TECCodec, tec_zarr.encoding, tec_zarr.drop_encoding
        assert "torch" not in sys.modules
    """)


def test_importing_the_package_imports_neither_torch_nor_xarray():
    _python("import sys, tec_zarr; assert not {'torch', 'xarray', 'zarr'} & set(sys.modules)")


def test_a_spawned_dask_worker_finds_the_codec(constant_store):
    pytest.importorskip("distributed")
    _python(f"""
        import dask.array as da
        from distributed import Client, LocalCluster

        if __name__ == "__main__":
            with LocalCluster(1, threads_per_worker=1, processes=True, dashboard_address=None) as c:
                with Client(c):
                    assert int(da.from_zarr({str(constant_store)!r}).max().compute()) == 1234
    """)


def test_numcodecs_buffers_of_any_kind():
    array = np.asfortranarray(np.random.default_rng(0).integers(1, 3000, (12, 24, 20), "uint16"))
    codec = tec_zarr.TEC(model=toy.NAME)
    frame = codec.encode(array)
    expected = codec.decode(frame)
    spread = np.repeat(np.frombuffer(frame, "u1"), 2)[::2]
    assert not spread.flags.c_contiguous
    for data in (bytearray(frame), memoryview(frame), np.frombuffer(frame, "u1"), spread):
        np.testing.assert_array_equal(codec.decode(data), expected)
    for out in (bytearray(expected.nbytes), np.empty(expected.nbytes, "u1")):
        assert codec.decode(frame, out=out) is out
        found = np.frombuffer(out, expected.dtype).reshape(expected.shape, order="F")
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(TypeError):
        codec.decode(frame, out=np.empty(array.shape, "int32"))
