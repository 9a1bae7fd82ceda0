"""Training of small TEC-FP, TEC-ELIC, TEC-TT and FlexTEC: it learns, resumes and exports."""

import json

import numpy as np
import pytest
import torch
import zarr
from test_family_codec import SMALL, make, scene

import tec_zarr.terracodec
from tec_zarr import errors
from tec_zarr.face import cli
from tec_zarr.models import registry
from tec_zarr.terracodec import checkpoints, statistics
from tec_zarr.terracodec.flex import draw_quality
from tec_zarr.training.configs import FamilyConfig
from tec_zarr.training.train_terracodec import (
    DateSampler,
    build,
    load_places,
    series_loss,
    train_family,
)

NAMES = {
    "fp": "terracodec_v1_fp_s2l2a",
    "elic": "terracodec_v1_elic_s2l2a",
    "tt": "terracodec_v1_tt_s2l2a",
    "flex": "flextec_v1_s2l2a",
}
NETWORKS = {
    "fp": "N = 8\nM = 16",
    "elic": "N = 8\nM = 16\ngroups = [2, 2, 4, 4, 4]",
    "tt": "channels = [8, 8, 16, 64]\nwidth = 32\nheads = 4\ndepths = [1, 1, 2]",
}
NETWORKS["flex"] = NETWORKS["tt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for seed in range(3):
        dn = scene(3, 12, 72, 80, seed).astype(np.uint16)
        np.savez(folder / f"place-{seed}.npz", dn=dn, present=np.ones(12, bool))
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def own_registry():
    with registry.as_new_process():
        yield


@pytest.mark.parametrize("kind", NAMES)
def test_one_command_trains_a_model_that_loads_and_codes(kind, folder, tmp_path, own_registry):
    config = tmp_path / "run.toml"
    text = (
        f'model = "{NAMES[kind]}"\ndata = ["{folder}"]\nout = "run"\nbatch = 2\ncrop = 64\n'
        "dates = 2\nrate = 0.05\nema = 0.5\n"
    )
    config.write_text(f"{text}steps = 6\n[network]\n{NETWORKS[kind]}\n")
    assert cli.main(["train", str(config)]) == 0
    config.write_text(f"{text}steps = 8\n[network]\n{NETWORKS[kind]}\n")
    assert cli.main(["train", str(config)]) == 0  # goes on from step 6
    found = [line for line in lines(tmp_path / "run") if "validation" in line]
    assert [line["step"] for line in found] == [0, 6, 6, 8]
    assert found[1]["validation"] == found[2]["validation"]
    first, last = found[0]["validation"]["16"], found[-1]["validation"]["16"]
    assert last[0] < first[0]

    weights = tmp_path / "run" / f"{NAMES[kind]}.safetensors"
    codec = tec_zarr.terracodec.load_codec(NAMES[kind], path=weights)
    cube = scene(2, 12, 64, 80, seed=7)
    encoded = codec.encode(cube, 4.0, None)
    decoded, crc = codec.decode(encoded.sections, cube.shape, 4.0, None)
    assert crc == encoded.latents_crc
    assert decoded.shape == cube.shape
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["step"] == 8


def test_the_loss_is_the_rate_of_the_first_tokens_and_the_error_of_what_they_show():
    net = make("flex")
    series = torch.randn(2, 2, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images, bits = net(series, 3)
        loss, rate, error = series_loss(net, series, 7.0, tokens=3)
        assert float(rate) < float(series_loss(net, series, 7.0, tokens=16)[1])
    assert float(rate) == pytest.approx(sum(bits) / series.numel(), rel=1e-4)
    assert float(error) == pytest.approx(float((images - series).square().mean()), rel=1e-5)
    assert float(loss) == pytest.approx(float(rate + 7 * error), rel=1e-6)


def test_tokens_are_drawn_in_proportion_to_their_number():
    torch.manual_seed(0)
    drawn = np.bincount([draw_quality() for _ in range(5000)], minlength=17)
    assert drawn[0] == 0
    expected = 5000 * np.arange(1, 17) / 136
    assert (np.abs(drawn[1:] - expected) < 5 * np.sqrt(expected)).all()


def test_masked_tokens_do_not_reach_the_picture_but_the_next_dates_context():
    net = make("flex")
    series = torch.randn(1, 2, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    (first, _), (second, _) = net.dates(series, [1, 16])
    net.entropy_model.mask_token.data += 1.0
    (again, _), (next_date, _) = net.dates(series, [1, 16])
    assert not torch.equal(first, again)
    assert torch.equal(second, next_date)


def test_crops_are_standardised_as_the_codec_does(folder):
    config = FamilyConfig((str(folder),), "unused", NAMES["tt"], dates=2, crop=64)
    kept, held = load_places(config)
    assert (len(kept), len(held)) == (2, 1)
    sampler = DateSampler(kept, 64, seed=0)
    crop = sampler.draw(2)
    assert (crop.shape, crop.dtype) == ((2, 12, 64, 64), np.float32)
    dn = statistics.destandardise(torch.from_numpy(np.ascontiguousarray(crop)), range(12))
    np.testing.assert_allclose(dn, np.rint(dn), atol=0.02)
    assert 1 <= dn.min() < dn.max() <= 12_000


def test_ssl4eo_series_lose_their_offset_and_keep_their_bands(tmp_path):
    dn = scene(4, 13, 66, 66).astype(np.int16)
    for name in ("ssl4eos12_train_000001", "ssl4eos12_val_000001"):
        with zarr.storage.ZipStore(tmp_path / f"{name}.zarr.zip", mode="w") as store:
            group = zarr.create_group(store, zarr_format=2)
            group.create_array("bands", data=dn[None] + 1000)
    config = FamilyConfig((str(tmp_path),), "unused", "terracodec_v1_tt_s2l1c")
    (train,), (held,) = load_places(config)
    np.testing.assert_array_equal(train.dn[np.arange(4)], np.maximum(dn, 1))
    assert (len(train.dn), held.dn.path.name) == (4, "ssl4eos12_val_000001.zarr.zip")
    with pytest.raises(errors.UnsupportedArrayError, match="13, 66, 66"):
        load_places(FamilyConfig((str(tmp_path),), "unused", NAMES["tt"]))


def test_no_data_and_unknown_keys_are_clear(tmp_path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(f'model = "{NAMES["tt"]}"\ndata = ["."]\nout = "run"\n')
    assert cli.main(["train", str(config)]) == 1
    assert "two dates or more" in capsys.readouterr().err
    config.write_text(f'model = "{NAMES["tt"]}"\ndata = ["."]\nout = "run"\nlambda = 3\n')
    assert cli.main(["train", str(config)]) == 1
    assert "lambda" in capsys.readouterr().err


def test_training_starts_from_given_weights(tmp_path, folder):
    module = make("tt")
    checkpoints.save(module, tmp_path / "own.safetensors")
    start = f"{tmp_path}/own.safetensors"
    built = build(FamilyConfig((str(folder),), "unused", NAMES["tt"], start=start))
    assert built.config["width"] == SMALL["width"]
    assert all(
        torch.equal(a, b) for a, b in zip(built.parameters(), module.parameters(), strict=True)
    )


def places(folder, **dates):
    for seed, (name, count) in enumerate(dates.items()):
        dn = scene(count, 12, 72, 80, seed).astype(np.uint16)
        np.savez(folder / f"{name}.npz", dn=dn, present=np.ones(12, bool))


def test_image_models_train_on_places_of_one_date_beside_others(tmp_path):
    places(tmp_path, one=1, other=1, series=3, ssl4eos12_val_1=1, glf_out=1)
    config = FamilyConfig((str(tmp_path),), "unused", NAMES["fp"], left_out=("glf",))
    kept, held = load_places(config)
    assert sorted(len(place.dn) for place in kept) == [1, 1, 3]
    assert len(held) == 1
    config = FamilyConfig((str(tmp_path),), "unused", NAMES["tt"])
    kept, held = load_places(config)
    assert [len(place.dn) for place in kept] == [3]


def test_image_models_do_not_ask_for_series(tmp_path):
    with pytest.raises(errors.UnsupportedArrayError) as raised:
        load_places(FamilyConfig((str(tmp_path),), "unused", NAMES["fp"]))
    assert "two dates" not in str(raised.value)


def test_training_of_the_family_stops_at_a_loss_that_is_not_finite(folder, tmp_path):
    start = tmp_path / "start.safetensors"
    checkpoints.save(make("fp"), start)
    config = FamilyConfig(
        (str(folder),), str(tmp_path / "run"), NAMES["fp"], start=str(start), steps=2, crop=64,
        batch=1, rate=1e30, checkpoint_seconds=0.0,
    )  # fmt: skip
    with pytest.raises(errors.TecError, match=r"step 1 .*not finite|loss of step 2 is"):
        train_family(config)
    assert not (tmp_path / "run" / f"{NAMES['fp']}.safetensors").exists()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"width": 3}, r"width.*may hold those of bands, N, M"),
        ({"N": "a"}, "'N': 'a'"),
        ({"N": -1}, "'N': -1"),
    ],
)
def test_a_network_that_cannot_be_made_is_named(network, message):
    with pytest.raises(errors.TecError, match=message):
        build(FamilyConfig(("x",), "unused", NAMES["fp"], network=network))


def test_sizes_beside_weights_to_start_from_are_refused():
    config = FamilyConfig(("x",), "unused", NAMES["fp"], network={"N": 8}, start="own.safetensors")
    with pytest.raises(errors.TecError, match="network and start are both given"):
        build(config)
