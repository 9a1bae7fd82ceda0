"""Getting the published weights: local files, the cache, and a hub that may not answer."""

import hashlib
import json
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_family_codec import SMALL, make, scene

from tec_zarr import errors
from tec_zarr.models import published, registry
from tec_zarr.terracodec import checkpoints, hub
from tec_zarr.terracodec.layers import EntropyBottleneck
from tec_zarr.terracodec.tt import TemporalTransformer

FP, TT = "terracodec_v1_fp_s2l2a", "terracodec_v1_tt_s2l2a"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("TEC_ZARR_CACHE", str(folder))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with registry.as_new_process():
        yield folder


def checkpoint(path, kind="fp", bands=12):
    """As the reference publishes them: a pickled state dict, image models with a prefix."""
    module = make(kind, bands)
    prefix = "model." if kind in ("fp", "elic") else ""
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, path)
    return module


@pytest.mark.parametrize(("name", "kind"), [(FP, "fp"), ("terracodec_v1_elic_s2l2a", "elic")])
def test_a_published_checkpoint_loads_from_a_path(name, kind, tmp_path):
    module = checkpoint(tmp_path / "model.pt", kind)
    loaded = hub.load(name, path=tmp_path / "model.pt")
    x = torch.randn(1, 12, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    assert not loaded.training


@pytest.mark.parametrize("kind", ["tt", "flex"])
def test_a_model_of_ones_own_size_loads_from_what_save_wrote(kind, tmp_path):
    name = TT if kind == "tt" else "flextec_v1_s2l2a"
    module, file = make(kind), tmp_path / "own.safetensors"
    sha256 = checkpoints.save(module, file)
    assert sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    loaded = hub.load(name, path=file, sha256=sha256)
    x = torch.randn(1, 2, 12, 64, 64)
    arguments = (x, 7) if kind == "flex" else (x,)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(*arguments)[0], module(*arguments)[0])
        assert loaded(*arguments)[1] == module(*arguments)[1]


def test_weights_are_converted_once_and_then_found_without_a_path(cache, tmp_path):
    checkpoint(tmp_path / "model.pt")
    first = hub.load(FP, 10, path=tmp_path / "model.pt")
    (file,) = cache.glob("*.safetensors")
    (tmp_path / "model.pt").unlink()
    again = hub.load(FP, "lambda-10")
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert hashlib.sha256(file.read_bytes()).hexdigest() in file.name


def test_a_pinned_hash_may_be_the_files_or_its_conversions(cache, tmp_path):
    checkpoint(tmp_path / "model.pt")
    own = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    hub.load(FP, 10, path=tmp_path / "model.pt", sha256=own)
    converted = next(cache.glob("*.safetensors")).stem.rpartition("--")[2]
    hub.load(FP, 10, path=tmp_path / "model.pt", sha256=converted.upper())
    hub.load(FP, 10, sha256=converted.upper())
    with pytest.raises(errors.UnknownModelError, match=f"(?s)cache holds {converted}.*hf download"):
        hub.load(FP, 10, sha256=own)


def test_a_wrong_hash_is_refused_and_leaves_nothing(cache, tmp_path):
    checkpoint(tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match="expected ffff"):
        hub.load(FP, 10, path=tmp_path / "model.pt", sha256="f" * 64)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("key", ["g_a.0.weight", "g_s.3.beta", "entropy_bottleneck.quantiles"])
def test_a_missing_key_is_named(key, tmp_path):
    state = make("fp").state_dict()
    del state[key]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match=key):
        hub.load(FP, path=tmp_path / "model.pt")


def test_an_unexpected_key_and_a_wrong_shape_are_named(tmp_path):
    state = make("fp").state_dict()
    torch.save({**state, "h_a.0.weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match=r"unexpected.*h_a\.0"):
        hub.load(FP, path=tmp_path / "model.pt")
    torch.save({**state, "g_a.1.beta": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match=r"g_a\.1\.beta"):
        hub.load(FP, path=tmp_path / "model.pt")


def test_a_wrong_number_of_bands_is_named(tmp_path):
    checkpoint(tmp_path / "model.pt", bands=13)
    with pytest.raises(errors.WeightsMismatchError, match=r"13 bands.*has 12"):
        hub.load(FP, path=tmp_path / "model.pt")
    checkpoints.save(TemporalTransformer(12, **SMALL), tmp_path / "tt.safetensors")
    with pytest.raises(errors.WeightsMismatchError, match=r"12 bands.*has 13"):
        hub.load("terracodec_v1_tt_s2l1c", path=tmp_path / "tt.safetensors")
    with pytest.raises(errors.WeightsMismatchError, match="architecture 'tt'"):
        hub.load("flextec_v1_s2l2a", path=tmp_path / "tt.safetensors")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"g_a.0.weight": Evil()}, tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match="read safely"):
        hub.load(FP, path=tmp_path / "model.pt")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(errors.WeightsMismatchError) as raised:
        hub.load(FP, path=tmp_path / "model.pt")
    assert "weights_only" not in str(raised.value)  # torch's advice to read it all the same


def test_an_unreachable_hub_gives_the_command_to_run():
    with pytest.raises(errors.UnknownModelError) as raised:
        hub.load(TT, compression=20)
    message = str(raised.value)
    assert "hf download embed2scale/TerraCodec-1.0-TT-S2L2A" in message
    assert "TerraCodec_v1_TT_S2L2A_lambda-20.pt" in message
    assert "m.load('terracodec_v1_tt_s2l2a', 'lambda-20', path=" in message


def test_a_missing_file_gives_the_command_to_run(tmp_path):
    with pytest.raises(errors.UnknownModelError, match="hf download"):
        hub.load(FP, 2, path=tmp_path / "absent.pt")


def test_unknown_names_and_rates_list_what_there_is():
    with pytest.raises(errors.UnknownModelError, match="flextec_v1_s2l2a"):
        hub.load("terracodec_v2", 1)
    with pytest.raises(errors.UnknownModelError, match=r"0\.4, 1, 5, 20, 100, 200, 700"):
        hub.load(TT, compression=30)


@pytest.mark.parametrize(
    ("name", "compression", "file"),
    [
        (FP, 0.5, "TerraCodec_v1_FP_S2L2A_lambda-0.5.pt"),
        (FP, 40.0, "TerraCodec_v1_FP_S2L2A_lambda-40.pt"),
        ("flextec_v1_s2l2a", "lambda-800-lronly", "FlexTEC_LRonly_v1_S2L2A_lambda-800.pt"),
    ],
)
def test_the_hub_is_asked_for_the_published_file(name, compression, file, tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(repository, filename):
        asked.append((repository, filename))
        if name == FP:
            checkpoint(tmp_path / "model.pt")
            return str(tmp_path / "model.pt")
        checkpoints.save(make("flex"), tmp_path / "model.safetensors")
        return str(tmp_path / "model.safetensors")

    fake = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    hub.load(name, compression)
    hub.load(name, compression)
    assert asked == [(published.PUBLISHED[name].repository, file)]


def test_a_codec_is_found_again_in_the_cache_by_its_stream_name(tmp_path):
    checkpoint(tmp_path / "model.pt")
    codec = hub.load_codec(FP, 10, path=tmp_path / "model.pt")
    assert registry.get_model(codec.name, codec.weights_sha256) is codec
    cube = scene(1, 12, 32, 32)
    encoded = codec.encode(cube, 4.0, None)
    entry = registry.cached_entry(codec.name)
    again = entry.load(codec.weights_sha256)
    assert entry.weights == (codec.weights_sha256,)
    expected = codec.decode(encoded.sections, cube.shape, 4.0, None)[0]
    np.testing.assert_array_equal(
        again.decode(encoded.sections, cube.shape, 4.0, None)[0], expected
    )


def test_a_read_never_downloads_and_says_what_is_missing():
    assert registry.cached_entry("tec-s2") is None
    with pytest.raises(errors.UnknownModelError, match="hf download"):
        registry.cached_entry(f"{TT}/lambda-20")


def test_changed_weights_in_the_cache_are_refused(cache, tmp_path):
    checkpoint(tmp_path / "model.pt")
    codec = hub.load_codec(FP, 10, path=tmp_path / "model.pt")
    (file,) = cache.glob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(errors.WeightsMismatchError, match="was changed"):
        registry.cached_entry(codec.name).load(codec.weights_sha256)


def test_naming_and_finding_models_needs_no_torch():
    code = "import sys, tec_zarr.terracodec.hub; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("state", [[1], torch.zeros(3), {"state_dict": [1]}, {1: torch.zeros(2)}])
def test_a_checkpoint_of_something_else_is_refused(state, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(errors.WeightsMismatchError, match=r"a\.pt"):
        hub.load(FP, path=tmp_path / "a.pt")


@pytest.mark.parametrize(
    "note",
    ["{}", "[]", '"a"', '{"architecture": "fp", "config": {"bands": 12, "colour": 3}}'],
)
def test_safetensors_with_another_note_are_refused(note, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, file, {"tec_zarr": note})
    with pytest.raises(errors.WeightsMismatchError, match=r"a\.safetensors"):
        hub.load(FP, path=file)


def test_files_converted_at_the_same_time_do_not_get_one_anothers_weights(tmp_path):
    modules = [make("fp", seed=seed) for seed in range(6)]
    for number, module in enumerate(modules):
        torch.save(module.state_dict(), tmp_path / f"{number}.pt")
    with ThreadPoolExecutor(len(modules)) as pool:
        paths = [tmp_path / f"{number}.pt" for number in range(len(modules))]
        loaded = list(pool.map(lambda path: hub.load(FP, 10, path=path), paths))
    for module, found in zip(modules, loaded, strict=True):
        assert torch.equal(module.g_a[0].weight, found.g_a[0].weight)


@pytest.mark.parametrize("read", [hub.load, hub.load_codec])
@pytest.mark.parametrize("pinned", [False, True])
def test_changed_weights_in_the_cache_are_not_loaded(cache, tmp_path, read, pinned):
    checkpoint(tmp_path / "model.pt")
    hub.load(FP, 10, path=tmp_path / "model.pt")
    (file,) = cache.glob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    sha256 = file.stem.rpartition("--")[2] if pinned else None
    with pytest.raises(errors.WeightsMismatchError, match=r"was changed.*delete it"):
        read(FP, 10, sha256=sha256)


def test_of_several_weights_in_the_cache_none_is_taken_by_chance(cache, tmp_path):
    modules, hashes = [], []
    for seed in range(2):
        module = make("fp", seed=seed)
        torch.save(module.state_dict(), tmp_path / f"{seed}.pt")
        modules.append(module)
        hashes.append(hub.load_codec(FP, 10, path=tmp_path / f"{seed}.pt").weights_sha256)
    with pytest.raises(errors.UnknownModelError) as raised:
        hub.load(FP, 10)
    assert all(text in str(raised.value) for text in (*hashes, "sha256=", "path="))
    for module, sha256 in zip(modules, hashes, strict=True):
        found = hub.load(FP, 10, sha256=sha256.upper())
        assert torch.equal(module.g_a[0].weight, found.g_a[0].weight)


def test_a_codec_loaded_again_takes_the_place_of_the_one_before(tmp_path):
    checkpoints.save(make("flex"), tmp_path / "own.safetensors")
    for context in (None, 1, 3):
        codec = hub.load_codec(
            "flextec_v1_s2l2a", path=tmp_path / "own.safetensors", context_tokens=context
        )
        assert registry.get_model(codec.name) is codec


def test_weights_under_one_name_stay_readable(tmp_path, monkeypatch):
    codecs = []
    for seed in range(2):
        torch.save(make("fp", seed=seed).state_dict(), tmp_path / f"{seed}.pt")
        codecs.append(hub.load_codec(FP, 10, path=tmp_path / f"{seed}.pt"))
    first, second = codecs
    assert registry.get_model(first.name) is second
    assert registry.get_model(first.name, first.weights_sha256) is first
    # As in a process that loaded the second only: the first is in the cache.
    with registry.as_new_process():
        hub.load_codec(FP, 10, path=tmp_path / "1.pt")
        found = registry.get_model(first.name, first.weights_sha256[:16])
    assert found.weights_sha256 == first.weights_sha256
    assert torch.equal(found.module.g_a[0].weight, first.module.g_a[0].weight)


def test_arrays_of_a_codec_without_a_rate_say_how_to_load_it():
    with pytest.raises(errors.UnknownModelError, match=rf"load_codec\('{FP}', path=.*lambda-"):
        registry.find_model(FP)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(value, tmp_path):
    module = make("fp")
    module.g_s[0].bias.data[3] = value
    with pytest.raises(errors.TecError, match=r"own\.safetensors: g_s\.0\.bias.*not finite"):
        checkpoints.save(module, tmp_path / "own.safetensors")
    assert not list(tmp_path.iterdir())
    torch.save(module.state_dict(), tmp_path / "model.pt")
    with pytest.raises(errors.WeightsMismatchError, match=r"g_s\.0\.bias.*not finite"):
        hub.load(FP, path=tmp_path / "model.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["fp", "elic", "tt", "flex"])
def test_checkpoints_of_other_floats_code(kind, dtype, tmp_path):
    module, path = make(kind), tmp_path / "model.safetensors"
    note = json.dumps({"architecture": kind, "config": module.config})
    save_file(module.to(dtype).state_dict(), path, {"tec_zarr": note})
    name = next(n for n, p in published.PUBLISHED.items() if p.architecture == kind)
    codec = hub.load_codec(name, path=path)
    assert {p.dtype for p in hub.load(name, path=path).parameters()} == {torch.float32}
    cube = scene(1, 12, 64, 64)
    encoded = codec.encode(cube, 8.0, None)
    assert codec.decode(encoded.sections, cube.shape, 8.0, None)[1] == encoded.latents_crc


@pytest.mark.parametrize("kind", ["fp", "elic"])
def test_a_saved_file_holds_the_integer_tables(kind, tmp_path):
    checkpoints.save(make(kind), tmp_path / "own.safetensors")
    name = FP if kind == "fp" else "terracodec_v1_elic_s2l2a"
    module = hub.load(name, path=tmp_path / "own.safetensors")
    (tables,) = (part for part in module.modules() if isinstance(part, EntropyBottleneck))
    assert (tables._quantized_cdf.max(), len(tables._offset)) == (1 << 16, len(tables.medians))


def test_only_what_loads_again_is_saved(tmp_path):
    with pytest.raises(errors.TecError, match=r"Linear is none of.*FactorizedPrior.*FlexTEC"):
        checkpoints.save(torch.nn.Linear(2, 2), tmp_path / "own.safetensors")
    checkpoints.save(make("tt"), tmp_path / "own.safetensors")
    codec = hub.load_codec(TT, path=tmp_path / "own.safetensors")
    with pytest.raises(errors.TecError, match="copy that a codec computes with"):
        checkpoints.save(codec.module, tmp_path / "other.safetensors")


@pytest.mark.parametrize("context", [-1, 0, 17, 2.5, 2.0, "4"])
def test_a_context_that_flextec_does_not_have_is_refused(context, tmp_path):
    checkpoints.save(make("flex"), tmp_path / "own.safetensors")
    with pytest.raises(errors.UnsupportedArrayError, match="context_tokens is 1 to 16"):
        hub.load_codec(
            "flextec_v1_s2l2a", path=tmp_path / "own.safetensors", context_tokens=context
        )
