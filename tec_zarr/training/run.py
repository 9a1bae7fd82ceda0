"""Train as a configuration file says."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.published import PUBLISHED
from tec_zarr.training.configs import FamilyConfig
from tec_zarr.training.context import ContextConfig, train_context
from tec_zarr.training.train_terracodec import train_family


def read_config(path: Path) -> ContextConfig | FamilyConfig:
    """Read the configuration of a run from TOML; relative paths start at the file's folder.

    The key ``model`` selects what is trained:

    - ``"tec-s2-context"``: the context network of the embedded models (`tec_zarr.models.tile`).
    - The name of a published model: its architecture.

    Raises
    ------
    UnsupportedArrayError
        The file is not TOML, has unknown keys, lacks ``data`` or ``out``, or has values of another
        type or out of range.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except ValueError as error:  # the message names the line (TOML) or the byte (UTF-8)
        raise UnsupportedArrayError(f"{path} is not TOML: {error}") from error
    kinds: dict[str, type[ContextConfig | FamilyConfig]] = dict.fromkeys(PUBLISHED, FamilyConfig)
    kinds[ContextConfig.model] = ContextConfig
    model = values.get("model")
    if model not in kinds:
        raise UnsupportedArrayError(
            f"{path}: model is {model!r}, it has to be one of {sorted(kinds)}"
        )
    kind = kinds[model]
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
    """Check that values from TOML have the annotated types of a configuration."""
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
    """Train as the file ``path`` says; return the weights file in the run's folder."""
    config = read_config(path)
    return train_context(config) if isinstance(config, ContextConfig) else train_family(config)
