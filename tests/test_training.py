"""Training on a cube made here: it learns, it resumes, and what it exports is a working codec."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.face import cli
from tec_zarr.models.constants import CHANNELS, COMPONENTS
from tec_zarr.models.registry import get_model
from tec_zarr.networks import files, image, progressive, series
from tec_zarr.networks.image_net import IntConv, S2Net
from tec_zarr.networks.series_net import TemporalNet
from tec_zarr.training import configs, count_progressive, data, runs, train_image, train_series
from tec_zarr.training import series as training_series
from tec_zarr.training.export import release
from tec_zarr.training.run import read_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubes")
    for seed in (1, 2):
        cube = synthetic.cube(dates=2, size=96, seed=seed, nodata_edge=False).values
        np.savez(folder / f"place-{seed}.npz", dn=cube, present=np.ones(12, bool))
    return folder


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    return configs.Config(
        data=(str(folder),),
        out=str(tmp_path_factory.mktemp("run")),
        steps=6,
        batch=2,
        crop=32,
        validate_every=6,
        checkpoint_seconds=0.0,
        initial_samples=24,
    )


@pytest.fixture(scope="module")
def trained(config):
    return train_image.train(config)


def test_training_lowers_the_loss_it_reports(trained, config):
    lines = [
        json.loads(line)
        for line in (train_image.Path(config.out) / "log.jsonl").read_text().splitlines()
    ]
    first, last = (line["validation"] for line in (lines[0], lines[-1]))
    assert set(first) == {"2", "3", "4", "5", "6", "7"}
    # Closed-form initialisation is already a codec: more than 30 dB, rising with quality.
    psnr = [curve[1] for curve in first.values()]
    assert psnr == sorted(psnr)
    assert psnr[0] > 30
    assert last != first


def test_a_stopped_run_goes_on_where_it_was(config, trained, tmp_path):
    short = configs.Config(**{**config.__dict__, "out": str(tmp_path), "steps": 3})
    threads = torch.get_num_threads()
    train_image.train(replace(short, threads=threads + 1))
    assert torch.get_num_threads() == threads  # pixels read afterwards may depend on it
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 3
    train_image.train(configs.Config(**{**config.__dict__, "out": str(tmp_path), "steps": 5}))
    again = torch.load(tmp_path / "last.pt", weights_only=True)
    assert again["step"] == 5
    assert not torch.equal(again["net"]["analysis"], state["net"]["analysis"])


def test_a_run_that_began_on_a_gpu_goes_on_here(config, trained, tmp_path):
    train_image.train(configs.Config(**{**config.__dict__, "out": str(tmp_path), "steps": 3}))
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    for group in state["optimiser"]["param_groups"]:
        group |= {"capturable": True, "lr": torch.tensor(1e-4)}
    torch.save(state, tmp_path / "last.pt")
    train_image.train(configs.Config(**{**config.__dict__, "out": str(tmp_path), "steps": 5}))
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 5


def test_exported_weights_code_and_decode(trained, folder, tmp_path):
    path = tmp_path / "weights.safetensors"
    sha256 = release(trained, data.npz_windows(folder)[:2], path)
    model = image.load(path)
    assert model.weights_sha256 == sha256
    cube = synthetic.cube(dates=1, size=64, seed=5, nodata_edge=False).values.astype(np.float32)
    encoded = model.encode(cube, 5.0, None)
    decoded, crc = model.decode(encoded.sections, cube.shape, 5.0, None)
    assert crc == encoded.latents_crc
    assert np.sqrt(np.mean((decoded - cube) ** 2)) < 150


def test_ssl4eo_files_lose_their_offset(tmp_path):
    cube = synthetic.cube(dates=4, size=64, seed=3, clouds=False, nodata_edge=False).values
    path = tmp_path / "ssl4eos12_train_000001.zarr.zip"
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.create_group(store, zarr_format=2)
        group.create_array("bands", data=(cube[None].astype(np.int32) + 1000).astype(np.int16))
    found = data.windows(path)
    assert len(found) == 4
    assert np.array_equal(found[0].dn, np.maximum(cube[0], 1))


def test_a_zarr_array_with_some_bands_trains_too(tmp_path):
    cube = synthetic.cube(
        dates=1, size=64, seed=3, bands=("B02", "B03", "B04", "B08"), nodata_edge=False
    )
    zarr.create_array(tmp_path / "cube.zarr", data=cube.values)
    found = data.zarr_windows(tmp_path / "cube.zarr", ("B02", "B03", "B04", "B08"))
    assert np.flatnonzero(found[0].present).tolist() == [1, 2, 3, 7]
    components, sigma, bands = data.Sampler(found, 32, seed=0).batch(3).rotated()
    assert components.shape == (3, 12, 32, 32)
    assert (bands <= 4).all()
    assert (sigma[:, 4:] == 0).all()


def test_nearest_bands_become_smooth_and_others_stay():
    cube = synthetic.cube(dates=1, size=96, seed=1, clouds=False, nodata_edge=False).values[0]
    smooth = data.smooth_resampled(cube)
    repeated = lambda band: (np.diff(band.astype(int), axis=1) == 0).mean()  # noqa: E731
    assert repeated(cube[10]) > 0.45 > 0.2 > repeated(smooth[10])
    assert np.array_equal(smooth[[1, 2, 3, 7]], cube[[1, 2, 3, 7]])
    assert np.corrcoef(smooth[10].ravel(), cube[10].ravel())[0, 1] > 0.95


def test_one_command_trains_and_exports(folder, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f'data = ["{folder}"]\nout = "run"\nsteps = 2\nbatch = 1\ncrop = 32\n'
        "validate_every = 2\ninitial_samples = 24\n"
    )
    assert cli.main(["train", str(config)]) == 0
    assert image.load(tmp_path / "run" / "tec-s2.safetensors").coder.tables.reach.max() > 100
    assert (tmp_path / "run" / "curves.png").stat().st_size > 5000
    config.write_text('data = ["x"]\nout = "run"\nlearning_rate = 1\n')
    assert cli.main(["train", str(config)]) == 1


def test_one_command_trains_pixels_for_the_latents_that_are_there(folder, tmp_path, capsys):
    config = tmp_path / "pixels.toml"
    config.write_text(
        f'model = "tec-s2-pixels"\ndata = ["{folder}"]\nout = "run"\nbatch = 4\ncrop = 64\n'
        "samples = 24\nsteps = 12\nvalidate_every = 6\nwidth = 16\npairs = 700\n"
        "checkpoint_seconds = 0\n"
    )
    cli.main(["train", str(config)])
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 6, 12]
    # It begins with the linear part of what it takes the place of.
    assert all(abs(lost) < 1 for line in lines[1:] for lost in line["lost_db"].values() if lost)
    trained = image.load(tmp_path / "run" / "tec-s2.safetensors")
    before = train_series.image_model("")
    assert trained.networks_sha256 == before.weights_sha256 != trained.weights_sha256
    cube = synthetic.cube(dates=1, size=40, seed=4, nodata_edge=False).values.astype(np.float32)
    encoded = trained.encode(cube, 5.0, None)
    assert encoded == before.encode(cube, 5.0, None)
    pixels, crc = trained.decode(encoded.sections, cube.shape, 5.0, None)
    assert crc == encoded.latents_crc
    own, _ = before.decode(encoded.sections, cube.shape, 5.0, None)
    assert np.abs(pixels - cube).mean() < 1.2 * np.abs(own - cube).mean()
    assert np.array_equal(pixels, np.rint(pixels))


def test_a_configuration_that_is_not_toml_says_where(tmp_path):
    config = tmp_path / "run.toml"
    config.write_bytes(b'data = ["x"]\nout: run\n')
    with pytest.raises(UnsupportedArrayError, match=r"run\.toml is not TOML.*line 2"):
        read_config(config)
    config.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(UnsupportedArrayError, match=r"run\.toml is not TOML"):
        read_config(config)


@pytest.fixture(scope="module")
def series_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    for name, seed in (("place", 1), ("other", 2), ("presto-worldcereal__belgium-12m", 3)):
        cube = synthetic.cube(dates=5, size=48, seed=seed, nodata_edge=False).values
        np.savez(folder / f"{name}.npz", dn=cube, present=np.ones(12, bool))
    return folder


def test_one_command_trains_the_temporal_model_and_goes_on_where_it_was(series_folder, tmp_path):
    config = tmp_path / "run.toml"
    text = (
        f'model = "tec-tt-s2"\ndata = ["{series_folder}"]\nout = "run"\nbatch = 2\ncrop = 32\n'
        "validate_every = 2\ncheckpoint_seconds = 0.0\n"
    )
    config.write_text(text + "steps = 2\n")
    assert cli.main(["train", str(config)]) == 0
    config.write_text(text + "steps = 3\n")
    assert cli.main(["train", str(config)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [1, 2, 3]
    model = series.load(tmp_path / "run" / "tec-tt-s2.safetensors")
    cube = synthetic.cube(dates=3, size=40, seed=5, clouds=False, nodata_edge=False).values
    encoded = model.encode(cube.astype(np.float32), 5.0, None)
    decoded, crc = model.decode(encoded.sections, cube.shape, 5.0, None)
    assert crc == encoded.latents_crc
    assert any(section[0] for section in encoded.sections)
    assert np.sqrt(np.mean((decoded - cube) ** 2)) < 150


def test_counted_decisions_take_fewer_bits_than_what_the_networks_say(series_folder, tmp_path):
    for seed in (1, 2):
        cube = synthetic.cube(dates=3, size=64, seed=seed, nodata_edge=False).values
        np.savez(tmp_path / f"place-{seed}.npz", dn=cube, present=np.ones(12, bool))
    config = tmp_path / "run.toml"
    config.write_text(f'model = "tec-flex-s2"\ndata = ["{tmp_path}"]\nout = "run"\n')
    assert cli.main(["train", str(config)]) == 0
    counted = progressive.load(tmp_path / "run" / "tec-flex-s2.safetensors")
    plain = count_progressive.plain_tables(counted.tables.cumulative, counted.tables.zones)
    believing = progressive.TecFlexS2(counted.temporal, plain, "00" * 32)
    other = synthetic.cube(dates=2, size=64, seed=7, nodata_edge=False).values.astype(np.float32)
    sizes = [
        sum(map(len, model.encode(other, 7.0, None).sections)) for model in (counted, believing)
    ]
    assert sizes[0] < 0.99 * sizes[1]
    config.write_text(f'model = "tec-flex-s2"\ndata = ["{series_folder}"]\nout = "run"\n')
    assert cli.main(["train", str(config)]) == 1  # 48 pixels are too few


def test_temporal_training_starts_with_the_image_models_networks():
    frozen = get_model("tec-s2", "029756bd").net
    net = train_series.thawed(frozen, S2Net())
    for name, module in frozen.named_modules():
        if isinstance(module, IntConv):
            again = net.get_submodule(name)
            weight, exponent, _ = (t.double() for t in module.integers())
            other, finer, _ = (t.double() for t in again.integers())
            shape = (-1, 1, 1, 1)
            assert torch.equal(
                weight * 2 ** exponent.view(shape), other * 2 ** finer.view(shape)
            ), name


def test_wider_temporal_networks_start_with_what_narrower_ones_compute():
    known = get_model("tec-tt-s2").net
    narrow = train_series.thawed(known, TemporalNet.like(files.net_tensors(known)))
    sizes = len(narrow.coarse[0].second.bias), [len(m.second.bias) for m in narrow.fine]
    wide = TemporalNet(sizes[0] + 16, tuple(n + 16 for n in sizes[1]))
    wide.start_from(narrow)
    condition = torch.zeros(1, COMPONENTS + 1)
    past = torch.randint(-40, 40, (1, CHANNELS, 8, 8)).float()
    seen = []
    for net in (narrow, wide):
        torch.manual_seed(0)
        for step in net.passes(condition, past):
            step.decoded = torch.randint(-3, 4, step.mean.shape).float() * step.mask
            seen.append(torch.cat([step.mean, step.scale]).detach())
    assert all(map(torch.equal, seen, seen[len(seen) // 2 :]))


def test_places_held_out_of_training_are_not_trained_on(series_folder):
    config = configs.TemporalConfig(data=(str(series_folder),), out="unused")
    assert len(training_series.load_series(config)) == 2
    assert len(training_series.read_series(config, held=True)) == 1


def test_ones_own_places_are_enough_for_the_temporal_model(tmp_path):
    for seed in range(3):
        cube = synthetic.cube(dates=3, size=48, seed=seed, nodata_edge=False).values
        np.savez(tmp_path / f"mine-{seed}.npz", dn=cube, present=np.ones(12, bool))
    config = configs.TemporalConfig(data=(str(tmp_path),), out=str(tmp_path / "run"), steps=1)
    kept, held = train_series.split_series(config)
    assert (len(kept), len(held)) == (2, 1)
    train_series.train_temporal(replace(config, batch=1, crop=32))
    assert (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize("kind", ["dn", "present", "bands", "damaged"])
def test_training_data_that_cannot_be_used_is_named(kind, tmp_path):
    arrays = {"dn": np.ones((2, 12, 64, 64), "u2"), "present": np.ones(12, bool)}
    if kind == "bands":
        arrays["dn"] = np.ones((2, 13, 64, 64), "u2")
    arrays.pop(kind, None)
    path = tmp_path / "place.npz"
    np.savez(path, **arrays)
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:500])
    config = configs.TemporalConfig(data=(str(tmp_path),), out="unused")
    for read in (data.npz_windows, lambda _: training_series.load_series(config)):
        with pytest.raises(UnsupportedArrayError, match=r"place\.npz"):
            read(tmp_path)


def test_a_run_is_not_resumed_with_other_settings(config, trained, tmp_path):
    begun = replace(config, out=str(tmp_path), steps=2)
    train_image.train(begun)
    kept = (tmp_path / "config.json").read_text()
    with pytest.raises(TecError, match=r"crop: 32 -> 64\n.*seed: 0 -> 1\n.*another out") as raised:
        train_image.train(replace(begun, crop=64, seed=1, steps=4))
    assert "steps" not in str(raised.value)
    assert (tmp_path / "config.json").read_text() == kept
    train_image.train(replace(begun, steps=3, validate_every=1, workers=2))
    (tmp_path / "last.pt").write_bytes(b"PK damaged")
    with pytest.raises(TecError, match=r"last\.pt is no checkpoint of this run.*delete it"):
        train_image.train(begun)


def test_training_stops_at_a_loss_that_is_not_finite(config, tmp_path, monkeypatch):
    begun = replace(config, out=str(tmp_path), steps=2)
    train_image.train(begun)
    kept = (tmp_path / "last.pt").read_bytes()
    usual = train_image.tile_loss

    def lost(*batch):
        loss, *rest = usual(*batch)
        return loss * float("nan"), *rest

    monkeypatch.setattr(train_image, "tile_loss", lost)
    with pytest.raises(TecError, match="loss of step 3 is nan"):
        train_image.train(replace(begun, steps=6))
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_checkpoint_of_lost_weights_is_not_written(tmp_path):
    net = torch.nn.Linear(2, 2)
    optimiser = runs.adam(net.parameters())
    net.bias.data[0] = float("inf")
    with pytest.raises(TecError, match="after step 7 bias is not finite"):
        runs.save_checkpoint(tmp_path / "last.pt", net, net, optimiser, 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device, config, tmp_path):
    with pytest.raises(TecError, match=f"device '{device}' cannot be used here"):
        train_image.train(replace(config, out=str(tmp_path), device=device))
    assert not list(tmp_path.iterdir())


FP_MODEL = 'model = "terracodec_v1_fp_s2l2a"\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('steps = "2"', "steps is '2', it has to be a whole number from 1"),
        ("batch = 0", "batch is 0, it has to be a whole number from 1"),
        ("steps = true", "steps is True, it has to be a whole number"),
        ("rate = nan", "rate is nan, it has to be a number from 0"),
        ("seed = -1", "seed is -1, it has to be a whole number from 0"),
        ("device = 1", "device is 1, it has to be text"),
        ("held_out = [1]", "held_out is .1., it has to be a list of text"),
        ("crop = 50", "crop is 50, this model takes multiples of 8"),
        ("crop = 8", "crop is 8.*16 or more"),
        ("crop = 24\n" + FP_MODEL, "crop is 24, this model takes multiples of 16"),
        ("network = 3\n" + FP_MODEL, "network is 3, it has to be a table"),
        ('crop = 96\nmodel = "flextec_v1_s2l2a"', "crop is 96, this model takes multiples of 64"),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_named(line, message, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'data = ["x"]\nout = "run"\n{line}\n')
    with pytest.raises(UnsupportedArrayError, match=rf"run\.toml: {message}"):
        read_config(config)


def test_data_is_a_list(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('data = "train"\nout = "run"\n')
    with pytest.raises(UnsupportedArrayError, match="data is 'train', it has to be a list of text"):
        read_config(config)


SHIPPED = sorted((Path(__file__).parents[1] / "docs" / "training").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_read(path):
    config = read_config(path)
    assert (config.iterations if path.stem == "tec-s2-context" else config.steps) > 0


@pytest.mark.parametrize("kind", ["image", "temporal"])
def test_weights_to_start_from_that_are_damaged_are_named(kind, config, series_folder, tmp_path):
    start = tmp_path / "start.safetensors"
    start.write_bytes(b"PK damaged")
    trains = {
        "image": (train_image.train, config),
        "temporal": (
            train_series.train_temporal,
            configs.TemporalConfig((str(series_folder),), "unused"),
        ),
    }
    train, begun = trains[kind]
    begun = replace(begun, start=str(start), out=str(tmp_path / "run"))
    with pytest.raises(TecError, match=r"start\.safetensors.*damaged"):
        train(begun)
