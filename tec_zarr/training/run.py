"""One command from a configuration file to weights: train, fit the tables, plot the log."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.published import PUBLISHED
from tec_zarr.networks.files import save_pixels
from tec_zarr.training.configs import Config, FamilyConfig, FlexConfig, PixelConfig, TemporalConfig
from tec_zarr.training.context import ContextConfig, train_context
from tec_zarr.training.count_progressive import make_flex
from tec_zarr.training.export import release, release_temporal
from tec_zarr.training.plot import plot_log
from tec_zarr.training.train_image import split_windows, train
from tec_zarr.training.train_pixels import train_pixels
from tec_zarr.training.train_series import image_model, train_temporal, tuning_cubes
from tec_zarr.training.train_terracodec import train_family


def read_config(path: Path) -> Config | ContextConfig | TemporalConfig | FamilyConfig:
    """The configuration of a run from TOML; relative paths count from the file's folder.

    ``model = "tec-s2-context"`` asks for the context network of the image model, ``"tec-tt-s2"``
    for the temporal model, ``"tec-flex-s2"`` for the tables that make its streams flexible,
    ``"tec-s2-pixels"`` for another way from the old image model's latents to pixels, the name of a
    published one for that architecture, nothing for the old image model.

    Raises
    ------
    UnsupportedArrayError
        Not TOML, unknown keys, ``data`` and ``out`` missing, or values of another type or out of
        range.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except ValueError as error:  # tomllib's own names the line, UnicodeDecodeError the byte
        raise UnsupportedArrayError(f"{path} is not TOML: {error}") from error
    kind: type[Config | ContextConfig | TemporalConfig | FamilyConfig] = Config
    if values.get("model") in PUBLISHED:
        kind = FamilyConfig
    else:
        named = (ContextConfig, TemporalConfig, FlexConfig, PixelConfig)
        kinds = {kind.model: kind for kind in named}
        kind = kinds.get(values.get("model", ""), Config)
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown or not {"data", "out"} <= set(values):
        raise UnsupportedArrayError(
            f"{path}: unknown keys {unknown}; data and out are needed, see docs/training.md"
        )
    _check_types(path, kind, values)
    here = Path(path).parent
    values["data"] = tuple(str(here / item) for item in values["data"])
    values["out"] = str(here / values["out"])
    if values.get("start"):
        values["start"] = str(here / values["start"])
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    config = kind(**{**values, **lists})
    if isinstance(config, ContextConfig):
        return config
    if config.crop % config.crop_multiple or config.crop < 16:
        raise UnsupportedArrayError(
            f"{path}: crop is {config.crop}, this model takes multiples of "
            f"{config.crop_multiple}, 16 or more"
        )
    return config


def _check_types(path: Path, kind: type, values: dict[str, Any]) -> None:
    """Compare values from TOML with the annotations of a configuration."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        least = 0 if hints[key] is float or key == "seed" else 1
        expected, fits = {
            str: ("text", isinstance(value, str)),
            int: (f"a whole number from {least}", type(value) is int and value >= least),
            float: (
                f"a number from {least}",
                type(value) in (int, float) and least <= value < math.inf,
            ),
            tuple[str, ...]: (
                "a list of text",
                isinstance(value, list) and all(isinstance(item, str) for item in value),
            ),
        }.get(hints[key], ("a table", isinstance(value, dict)))
        if not fits:
            raise UnsupportedArrayError(f"{path}: {key} is {value!r}, it has to be {expected}")


def run(path: Path) -> Path:
    """Train as ``path`` says; returns the weights file in the run's folder."""
    config = read_config(path)
    out = Path(config.out)
    if isinstance(config, ContextConfig):
        return train_context(config)
    if isinstance(config, FamilyConfig):
        return train_family(config)
    if isinstance(config, FlexConfig):
        return make_flex(config)
    if isinstance(config, TemporalConfig):
        weights = out / "tec-tt-s2.safetensors"
        image = image_model(config.image).networks_sha256
        release_temporal(train_temporal(config), tuning_cubes(config), image, weights)
        return weights
    if isinstance(config, PixelConfig):
        weights = out / "tec-s2.safetensors"
        model, pixels = train_pixels(config)
        save_pixels(pixels, model.networks_sha256, weights)
        return weights
    net = train(config).cpu()
    weights = out / "tec-s2.safetensors"
    release(net, tuning_windows(config), weights)
    try:
        plot_log(out / "log.jsonl", out / "curves.png")
    except ImportError:
        print("no plot of the log: pip install tec_zarr[plots]")
    return weights


def tuning_windows(config: Config, count: int = 48) -> list:
    """Training windows of full size, evenly spread, on which the probability tables are fitted."""
    kept, _ = split_windows(config)
    large = [w for w in kept if min(w.dn.shape[1:]) >= 96] or kept
    return large[:: max(len(large) // count, 1)][:count]
