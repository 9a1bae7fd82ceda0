"""Training of the embedded models, and what all trainings share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_family_codec import scene
from test_family_training import NAMES

from tec_zarr.cubes import synthetic
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.face import cli
from tec_zarr.models.tile.embedded import load_image
from tec_zarr.training import data, runs
from tec_zarr.training.configs import FamilyConfig
from tec_zarr.training.run import read_config
from tec_zarr.training.series import read_series
from tec_zarr.training.train_terracodec import train_family


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubes")
    for seed in (1, 2, 3):
        cube = synthetic.cube(dates=2, size=96, seed=seed, nodata_edge=False).values
        np.savez(folder / f"place-{seed}.npz", dn=cube, present=np.ones(12, bool))
    return folder


def test_one_command_trains_the_embedded_models(folder, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(
        f'model = "tec-s2-context"\ndata = ["{folder}"]\nout = "run"\nheld_out = ["place-3"]\n'
        "dates = 1\nside = 64\nrounds = 1\niterations = 300\nbatch = 1024\n"
    )
    assert cli.main(["train", str(config)]) == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("bits_of_symbol" in line for line in lines)
    model = load_image(tmp_path / "run" / "tec-s2.safetensors")
    cube = synthetic.cube(dates=1, size=64, seed=5, nodata_edge=False).values.astype(np.float32)
    encoded = model.encode(cube, 5.0)
    back = np.empty(cube.shape[1:], np.int32)
    assert model.core.decode(encoded.sections[0], 5.0, back) == encoded.latents_crc[0]
    assert np.sqrt(np.mean((back - cube[0]) ** 2)) < 150
    config.write_text('data = ["x"]\nout = "run"\nmodel = "tec-s2-context"\nlearning_rate = 1\n')
    assert cli.main(["train", str(config)]) == 1


def test_a_configuration_that_is_not_toml_says_where(tmp_path):
    config = tmp_path / "run.toml"
    config.write_bytes(b'data = ["x"]\nout: run\n')
    with pytest.raises(UnsupportedArrayError, match=r"run\.toml is not TOML.*line 2"):
        read_config(config)
    config.write_bytes(b"\x89HDF\r\n")
    with pytest.raises(UnsupportedArrayError, match=r"run\.toml is not TOML"):
        read_config(config)


def test_a_model_that_cannot_be_trained_is_named(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('data = ["x"]\nout = "run"\nmodel = "tec-tt-s2"\n')
    with pytest.raises(UnsupportedArrayError, match=r"model is 'tec-tt-s2'.*tec-s2-context"):
        read_config(config)


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
    config = FamilyConfig((str(tmp_path),), "unused", NAMES["tt"])
    for read in (data.read_npz, lambda _: read_series(config, held=False)):
        with pytest.raises(UnsupportedArrayError, match=r"place\.npz"):
            read(path)


def test_a_checkpoint_of_lost_weights_is_not_written(tmp_path):
    net = torch.nn.Linear(2, 2)
    optimiser = runs.adam(net.parameters())
    net.bias.data[0] = float("inf")
    with pytest.raises(TecError, match="after step 7 bias is not finite"):
        runs.save_checkpoint(tmp_path / "last.pt", net, net, optimiser, 7)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(device, tmp_path):
    dn = scene(3, 12, 72, 80, 1).astype(np.uint16)
    np.savez(tmp_path / "place.npz", dn=dn, present=np.ones(12, bool))
    config = FamilyConfig(
        (str(tmp_path),), str(tmp_path / "run"), NAMES["fp"], steps=1, crop=64, device=device,
        network={"N": 8, "M": 16},
    )  # fmt: skip
    with pytest.raises(TecError, match=f"device '{device}' cannot be used here"):
        train_family(config)
    assert not (tmp_path / "run").exists()


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
        ("crop = 8", "crop is 8.*16 or more"),
        ("crop = 24", "crop is 24, this model takes multiples of 16"),
        ("network = 3", "network is 3, it has to be a table"),
    ],
)
def test_settings_of_another_type_or_out_of_range_are_named(line, message, tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'{FP_MODEL}data = ["x"]\nout = "run"\n{line}\n')
    with pytest.raises(UnsupportedArrayError, match=rf"run\.toml: {message}"):
        read_config(config)


def test_a_crop_of_flextec_has_whole_windows(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text('data = ["x"]\nout = "run"\ncrop = 96\nmodel = "flextec_v1_s2l2a"\n')
    with pytest.raises(UnsupportedArrayError, match="crop is 96, this model takes multiples of 64"):
        read_config(config)


def test_data_is_a_list(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(f'{FP_MODEL}data = "train"\nout = "run"\n')
    with pytest.raises(UnsupportedArrayError, match="data is 'train', it has to be a list of text"):
        read_config(config)


SHIPPED = sorted((Path(__file__).parents[1] / "docs" / "training").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_configurations_are_read(path):
    config = read_config(path)
    assert (config.iterations if path.stem == "tec-s2-context" else config.steps) > 0
