"""Stored FlexTEC data at a lower quality, without encoding it again (small random models)."""

import json

import numpy as np
import pytest
import toy
import zarr
from test_family_codec import make, scene

import tec_zarr
from tec_zarr import errors
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.numcodecs_codec import TEC
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.codec.zarr_codec import TECCodec
from tec_zarr.face import cli
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.models import registry
from tec_zarr.recompression.transcode import transcode
from tec_zarr.stores import chunks
from tec_zarr.stores.objects import read
from tec_zarr.stores.transcode import preview_chunk, transcode_chunk
from tec_zarr.terracodec import codec as family
from tec_zarr.terracodec import coders, statistics

NAMES = {None: "small/flex", 2: "small/flex/2"}


@pytest.fixture(scope="module", autouse=True)
def codecs():
    module = make("flex")
    with registry.as_new_process(keep_registered=True):
        for context, name in NAMES.items():
            model = family.FamilyModel(module, name, "ab" * 32, context)
            registry.register_model(name, lambda model=model: model, model.weights_sha256)
        yield


def cube(dates=2):
    """Integer DN with nodata: a strip of all dates, and the whole first tile of the first one."""
    dn = scene(dates, 12, 64, 80).astype(np.uint16)
    dn[:, :, :9] = 0
    return dn


@pytest.mark.parametrize("context", NAMES)
@pytest.mark.parametrize("quality", [1.0, 3.0])
def test_a_lowered_chunk_is_the_one_that_encoding_at_that_quality_makes(context, quality):
    # Without a context of its own, later dates are predicted from tokens that go: coded anew.
    settings = {"model": NAMES[context], "bands": None}
    fine = encode_chunk(cube(), ChunkSpec(quality=8.0, **settings))
    coarse = encode_chunk(cube(), ChunkSpec(quality=quality, **settings))
    assert transcode_chunk(fine, int(2 * quality)) == coarse
    assert len(coarse) < len(fine)
    assert transcode_chunk(coarse, 16) == coarse


def test_cutting_takes_no_network(monkeypatch):
    fine = encode_chunk(cube(), ChunkSpec(model=NAMES[2], quality=8.0))
    one = encode_chunk(cube(1), ChunkSpec(model=NAMES[None], quality=8.0))
    monkeypatch.setattr(family.FamilyModel, "recode", None)
    monkeypatch.setattr(coders.FlexCoder, "decode", None)
    for data in (transcode_chunk(fine, 5), transcode_chunk(one, 1)):
        assert all(s.latents_crc for s in read_frame(data).of(SectionKind.LATENTS))
    with pytest.raises(TypeError):
        transcode_chunk(fine, 1)  # less than the context: the network, taken away here


def test_published_models_are_known_without_their_weights():
    name = "flextec_v1_s2l2a/lambda-800"
    model = family.FamilyModel(make("flex"), name, "ab" * 32)
    with registry.as_new_process():
        registry.register_model(name, lambda: model, model.weights_sha256)
        fine = encode_chunk(cube(1), ChunkSpec(model=name, quality=8.0))
    assert len(transcode_chunk(fine, 3)) < len(fine)


def test_every_date_has_a_quality_of_its_own():
    spec = ChunkSpec(model=NAMES[2], quality=8.0, nodata=None)
    dn = scene(3, 12, 64, 64).astype(np.uint16)
    lowered = transcode_chunk(encode_chunk(dn, spec), [16, 2, 7])
    counts = [data[0] for data in read_frame(lowered).payloads(SectionKind.LATENTS)]
    assert counts == [16, 2, 7]
    fine, mixed = decode_chunk(encode_chunk(dn, spec)), decode_chunk(lowered)
    assert [bool((fine[t] == mixed[t]).all()) for t in range(3)] == [True, False, False]
    with pytest.raises(errors.UnsupportedArrayError, match="2 qualities for 3 dates"):
        transcode_chunk(lowered, [1, 1])


def test_a_preview_is_the_networks_picture_of_the_first_tokens():
    dn = scene(1, 12, 64, 128).astype(np.uint16)
    fine = encode_chunk(dn, ChunkSpec(model=NAMES[None], quality=8.0, nodata=None))
    module = make("flex")
    x = statistics.standardise(dn.astype(np.float32), 12, range(12))
    expected = statistics.destandardise(module(x, 3)[0][0].detach(), range(12))
    low = preview_chunk(fine, 3)
    np.testing.assert_allclose(low, np.rint(expected).clip(0, 65535), atol=1)
    assert (low != decode_chunk(fine)).any()
    series = encode_chunk(cube(), ChunkSpec(model=NAMES[None], quality=8.0))
    assert ((preview_chunk(series) == 0) == (cube() == 0)).all()


@pytest.mark.parametrize("tokens", [0, 16])
def test_a_preview_of_all_or_no_tokens_is_refused(tokens):
    fine = encode_chunk(cube(1), ChunkSpec(model=NAMES[None]))
    with pytest.raises(errors.UnsupportedArrayError, match="1 to 15"):
        preview_chunk(fine, tokens)


def test_chunks_of_other_models_are_refused():
    data = encode_chunk(cube(1), ChunkSpec(model="toy"))
    for lower in (transcode_chunk, preview_chunk):
        with pytest.raises(errors.UnsupportedArrayError, match="'toy' has one quality"):
            lower(data, 3)


def stored(path, zarr_format, model, quality, shards=None):
    codec = (TEC if zarr_format == 2 else TECCodec)(model=model, quality=quality)
    key = {"compressors": [codec]} if zarr_format == 2 else {"serializer": codec}
    group = zarr.create_group(path, zarr_format=zarr_format, attributes={"title": "two arrays"})
    array = group.create_array(
        "dn",
        shape=(2, 12, 64, 80),
        chunks=(1, 12, 64, 40),
        shards=shards,
        dtype="uint16",
        fill_value=0,
        attributes={"lossy_compression_quality": quality},
        **({"compressors": None} | key),
    )
    array[:] = cube()
    array[0, :, :, :40] = 0  # a chunk that is not there
    group.create_array("scl", data=np.arange(12))
    zarr.consolidate_metadata(group.store)
    return group


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(("zarr_format", "shards"), [(2, None), (3, None), (3, (1, 12, 64, 80))])
def test_a_lowered_store_is_the_one_that_was_encoded_so(zarr_format, shards, tmp_path, capsys):
    stored(tmp_path / "fine", zarr_format, NAMES[None], 8.0, shards)
    expected = stored(tmp_path / "coarse", zarr_format, NAMES[None], 2.0, shards)
    arguments = ["transcode", str(tmp_path / "fine"), str(tmp_path / "low"), "--tokens", "4"]
    assert cli.main(arguments) == 0
    assert "q=2" in capsys.readouterr().out
    low = zarr.open_group(tmp_path / "low")
    np.testing.assert_array_equal(low["dn"][:], expected["dn"][:])
    assert low["dn"].nbytes_stored() < zarr.open(tmp_path / "fine")["dn"].nbytes_stored()
    assert low["dn"].attrs["lossy_compression_quality"] == 2.0
    assert (low["scl"][:] == np.arange(12)).all()
    for there in (tmp_path / "coarse").rglob("*"):
        here = tmp_path / "low" / there.relative_to(tmp_path / "coarse")
        if there.is_file() and there.name[0] in "0123456789c":
            assert here.read_bytes() == there.read_bytes(), there
        elif there.is_file():
            assert json.loads(here.read_bytes()) == json.loads(there.read_bytes()), there
    assert cli.main(arguments) == 1  # there already


def test_one_array_alone_and_per_date_tokens(tmp_path):
    codec = TECCodec(model=NAMES[2], quality=8.0)
    array = zarr.create_array(
        tmp_path / "a", data=cube(), chunks=(2, 12, 64, 80), serializer=codec, compressors=None
    )
    assert tec_zarr.transcode(tmp_path / "a", tmp_path / "b", [16, 3]) == 1
    low = zarr.open_array(tmp_path / "b")
    np.testing.assert_array_equal(low[0], array[0])
    assert (low[1] != array[1]).any()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_that_is_not_finished_cannot_be_opened(zarr_format, tmp_path):
    stored(tmp_path / "fine", zarr_format, NAMES[None], 8.0)
    last = "dn/0.0.0.1" if zarr_format == 2 else "dn/c/0/0/0/1"
    chunk = tmp_path / "fine" / last
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(errors.TecError):
        transcode(tmp_path / "fine", tmp_path / "low", 4)
    for name in ("", "dn", "scl"):
        with pytest.raises(FileNotFoundError):
            zarr.open(tmp_path / "low" / name, mode="r")


def test_tokens_are_whole_numbers_of_any_kind(tmp_path):
    fine = encode_chunk(cube(), ChunkSpec(model=NAMES[2], quality=8.0))
    assert transcode_chunk(fine, np.int64(4)) == transcode_chunk(fine, 4)
    assert transcode_chunk(fine, np.array([5, 4])) == transcode_chunk(fine, [5, 4])
    assert (preview_chunk(fine, np.int32(3)) == preview_chunk(fine, 3)).all()
    stored(tmp_path / "fine", 2, NAMES[None], 8.0)
    assert transcode(tmp_path / "fine", tmp_path / "low", np.int64(4)) == 3
    for tokens in (3.5, [4, 3.5], "4", None):
        for call in (
            lambda k: transcode_chunk(fine, k),
            lambda k: preview_chunk(fine, k),
            lambda k: transcode(tmp_path / "fine", tmp_path / "out", k),
        ):
            with pytest.raises(errors.UnsupportedArrayError, match="whole number"):
                call(tokens)
    with pytest.raises(errors.UnsupportedArrayError, match="2 qualities for 1 dates"):
        transcode(tmp_path / "fine", tmp_path / "out", [4, 4])
    assert not (tmp_path / "out").exists()


def test_stores_without_flextec_are_refused(tmp_path):
    zarr.create_array(tmp_path / "plain", data=np.zeros(3))
    with pytest.raises(errors.UnsupportedArrayError, match="no TEC array"):
        transcode(tmp_path / "plain", tmp_path / "out", 3)
    codec = TECCodec(model="toy")
    zarr.create_array(
        tmp_path / "toy", data=cube(), chunks=cube().shape, serializer=codec, compressors=None
    )
    with pytest.raises(errors.UnsupportedArrayError, match="coded with toy"):
        transcode(tmp_path / "toy", tmp_path / "out", 3)
    codec = TECCodec(model=NAMES[None])
    zarr.create_array(
        tmp_path / "twice", data=cube(), chunks=cube().shape, serializer=codec,
        compressors=zarr.codecs.GzipCodec(),
    )  # fmt: skip
    with pytest.raises(errors.UnsupportedArrayError, match="other codecs"):
        transcode(tmp_path / "twice", tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


def moved(path, zarr_format, shards=None, dtype="uint16", fill=0, **how):
    """A TEC array of the toy model with a chunk that is not stored, and arrays beside it."""
    codec = (TEC if zarr_format == 2 else TECCodec)(model="toy", nodata=(fill,), scale=1)
    where = {"compressors": [codec]} if zarr_format == 2 else {
        "serializer": codec, "compressors": None, "shards": shards}  # fmt: skip
    dims = ("time", "band", "y", "x")
    names = {"attributes": {"_ARRAY_DIMENSIONS": dims}} if zarr_format == 2 else {
        "dimension_names": dims}  # fmt: skip
    group = zarr.create_group(path, zarr_format=zarr_format, attributes={"title": "kept"})
    array = group.create_array(
        "dn", shape=(3, 12, 70, 80), chunks=(1, 12, 32, 40), dtype=dtype, fill_value=fill,
        **where, **names, **how,
    )  # fmt: skip
    array[:] = scene(3, 12, 70, 80).astype(dtype)
    array[0, :, :32, :40] = fill
    array.attrs["units"] = "1"
    group.create_group("masks").create_array("clear", data=np.arange(12) % 3 == 0)
    weights = np.arange(99, dtype="u1")
    group.create_group("tec_weights").create_array("0f", data=weights, compressors=None)
    text = group.create_array("made", shape=(2,), dtype="str")
    text[:] = np.array(["a", "b"], object)
    return group


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(
    ("old", "new", "shards"),
    [
        ((2, None), 3, None),
        ((2, None), 3, (2, 12, 64, 80)),
        ((3, None), 2, None),
        ((3, (3, 12, 64, 40)), 2, None),
        ((3, (3, 12, 64, 40)), None, ()),
        ((3, (3, 12, 64, 40)), None, (1, 12, 96, 80)),
        ((3, (3, 12, 64, 40)), 3, None),
    ],
)
@pytest.mark.parametrize(("dtype", "fill"), [("uint16", 0), ("int16", -9999), ("float64", np.nan)])
def test_a_store_moves_to_the_other_format_or_other_shards(
    tmp_path, old, new, shards, dtype, fill
):
    """The frames are the same, no model runs, and whoever reads gets the same values."""
    group = moved(tmp_path / "a", *old, dtype=dtype, fill=fill)
    values = group["dn"][:]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode", "decode"):
            patch.setattr(toy.ToyModel, name, None)
        count = transcode(tmp_path / "a", tmp_path / "b", zarr_format=new, shards=shards)
        assert count >= 3 * 3 * 2 - 1
    back = zarr.open_group(tmp_path / "b", use_consolidated=False)
    assert back.metadata.zarr_format == (new or old[0])
    expected = old[1] if shards is None else shards
    assert back["dn"].shards == (expected or None if back.metadata.zarr_format == 3 else None)
    np.testing.assert_array_equal(back["dn"][:], values)
    assert back["dn"].dtype == group["dn"].dtype
    assert (back.attrs["title"], back["dn"].attrs["units"]) == ("kept", "1")
    np.testing.assert_array_equal(back["masks/clear"][:], group["masks/clear"][:])
    assert back["made"][:].tolist() == ["a", "b"]
    np.testing.assert_array_equal(back["tec_weights/0f"][:], np.arange(99))
    assert back["tec_weights/0f"].compressors == ()  # as use_embedded_weights wants them
    assert frames(back["dn"]) | frames(group["dn"]) == frames(back["dn"])


def frames(array):
    """Frames by their place."""
    per = chunks.chunks_in_object(array)
    found = {}
    for place in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))):
        at = tuple(i // n for i, n in zip(place, per, strict=True))
        key = f"{array.path}/{array.metadata.encode_chunk_key(at)}"
        data = read(array.store_path.store, key)
        if data is not None and array.shards:
            inside = [i % n for i, n in zip(place, per, strict=True)]
            data = chunks.frames_of(data, int(np.prod(per)))[np.ravel_multi_index(inside, per)]
        if data is not None:
            found[place] = data
    return found


@pytest.mark.parametrize("how", [{"order": "F"}, {"dtype": ">u2"}], ids=str)
def test_frames_of_every_byte_and_memory_order_move(tmp_path, how):
    group = moved(tmp_path / "a", 2, **how)
    transcode(tmp_path / "a", tmp_path / "b", zarr_format=3)
    back = zarr.open(tmp_path / "b")["dn"]
    np.testing.assert_array_equal(back[:], group["dn"][:])
    np.testing.assert_array_equal(back[1, 3, 5:9], group["dn"][1, 3, 5:9])
    assert back.attrs["_FillValue"] == 0


def test_the_command_moves_and_recompress_names_it(tmp_path, capsys):
    moved(tmp_path / "a", 2)
    assert cli.main(["recompress", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert "tec-zarr transcode" in capsys.readouterr().err
    move = ["transcode", str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main([*move, "--zarr-format", "3", "--shards", "3", "12", "96", "80"]) == 0
    assert zarr.open(tmp_path / "b")["dn"].shards == (3, 12, 96, 80)
    for wrong, message in (
        ([], "give either tokens"),
        (["--zarr-format", "3", "--tokens", "3"], "give either tokens"),
        (["--shards", "1", "12", "40", "40"], "do not hold whole chunks of array 'dn'"),
        (["--zarr-format", "2", "--shards", "1", "12", "32", "40"], "format 2 has no shards"),
    ):
        assert cli.main([*move[:2], str(tmp_path / "c"), *wrong]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "c").exists()
