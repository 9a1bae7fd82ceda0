"""One command from a configuration file to weights: train, fit the tables, plot the log."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.training.export import release
from tec_zarr.training.loop import Config, split_windows, train
from tec_zarr.training.plot import plot_log


def read_config(path: Path) -> Config:
    """A :class:`Config` from TOML; relative paths count from the file's folder."""
    values = tomllib.loads(Path(path).read_text())
    unknown = sorted(set(values) - {f.name for f in fields(Config)})
    if unknown or not {"data", "out"} <= set(values):
        raise UnsupportedArrayError(
            f"{path}: unknown keys {unknown}; data and out are needed, see docs/training.md"
        )
    here = Path(path).parent
    values["data"] = tuple(str(here / item) for item in values["data"])
    values["out"] = str(here / values["out"])
    if values.get("start"):
        values["start"] = str(here / values["start"])
    lists = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
    return Config(**{**values, **lists})


def run(path: Path) -> Path:
    """Train as ``path`` says; returns the weights file in the run's folder."""
    config = read_config(path)
    net = train(config).cpu()
    weights = Path(config.out) / "tec-s2.safetensors"
    release(net, tuning_windows(config), weights)
    try:
        plot_log(Path(config.out) / "log.jsonl", Path(config.out) / "curves.png")
    except ImportError:
        print("no plot of the log: pip install tec_zarr[plots]")
    return weights


def tuning_windows(config: Config, count: int = 48) -> list:
    """Training windows of full size, evenly spread, on which the probability tables are fitted."""
    kept, _ = split_windows(config)
    large = [w for w in kept if min(w.dn.shape[1:]) >= 96] or kept
    return large[:: max(len(large) // count, 1)][:count]
