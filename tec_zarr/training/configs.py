"""The fields of each training's configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tec_zarr.models import published
from tec_zarr.models.constants import BLOCK


@dataclass(frozen=True)
class FamilyConfig:
    """Everything a run depends on; written beside its checkpoints."""

    data: tuple[str, ...]
    out: str
    #: A name of `tec_zarr.models.published.PUBLISHED`: which architecture, and which bands.
    model: str
    #: Lambda: weight of the squared error in standardised units.
    distortion: float = 20.0
    #: Arguments of the architecture's class, the published size without.
    network: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 300_000
    batch: int = 8
    crop: int = 256
    #: Dates of a sample; FP and ELIC train on one.
    dates: int = 4
    rate: float = 1e-4
    ema: float = 0.999
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    #: Weights of a model of the same size to start from (safetensors), such as a published one.
    start: str = ""
    checkpoint_seconds: float = 240.0
    validate_every: int = 1000
    held_out: tuple[str, ...] = ("ssl4eos12_val", "presto-worldcereal__belgium-12m")
    held_dates: int = 90
    left_out: tuple[str, ...] = ("glf-cr__ROIs2017",)
    discounted: tuple[str, ...] = ("bark-bettle",)

    @property
    def architecture(self) -> str:
        """One of fp, elic, tt and flex."""
        return published.PUBLISHED[self.model].architecture

    @property
    def sample_dates(self) -> int:
        """Dates that the architecture is trained on at once."""
        return 1 if self.architecture in ("fp", "elic") else self.dates

    @property
    def crop_multiple(self) -> int:
        """What the height and width of a crop are multiples of."""
        return 16 if self.architecture == "fp" else 64


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; written beside its checkpoints."""

    data: tuple[str, ...]
    out: str
    steps: int = 20_000
    batch: int = 8
    crop: int = 128
    rate: float = 1e-3
    transform_rate: float = 1e-4
    ema: float = 0.999
    seed: int = 0
    threads: int = 1
    #: Threads that cut crops.
    workers: int = 1
    device: str = "cpu"
    #: Crops that the closed-form initialisation looks at.
    initial_samples: int = 400
    #: State dict (``.pt``) to start from instead of the closed-form initialisation.
    start: str = ""
    checkpoint_seconds: float = 240.0
    validate_every: int = 500
    #: Sources kept out of training, by prefix of the file name, to validate on.
    held_out: tuple[str, ...] = (
        "s2s-ucnn__usa",
        "rstoolbox__sen2-rds-cc44bf0",
        "bigearthnet-common__S2A-MSIL2A-20180510T94033",
        "glf-cr__ROIs2017",
    )
    #: Sources that are not real 10 m imagery (resampled previews), left out.
    left_out: tuple[str, ...] = ("rio-tiler-pds__T19UDP",)
    #: Two hundred parcels of one kind (forest) count for less than their number.
    discounted: tuple[str, ...] = ("bark-bettle",)

    @property
    def crop_multiple(self) -> int:
        """What the height and width of a crop are multiples of."""
        return BLOCK


@dataclass(frozen=True)
class PixelConfig(Config):
    """As for the image model, whose weights (``image``, the newest without) are kept."""

    model: str = "tec-s2-pixels"
    image: str = ""
    steps: int = 30_000
    rate: float = 2e-3
    transform_rate: float = 5e-4
    ema: float = 0.999
    #: Crops that are encoded before the first step.
    samples: int = 4800
    #: Hidden units of the correction, and pairs of component and channel in the synthesis.
    width: int = 48
    pairs: int = 640


@dataclass(frozen=True)
class TemporalConfig:
    """Everything a run depends on; written beside its checkpoints."""

    data: tuple[str, ...]
    out: str
    model: str = "tec-tt-s2"
    #: SHA-256 of the image model's weights; the newest without.
    image: str = ""
    #: Temporal weights (safetensors), as wide or narrower, to start from; without, the image
    #: model's networks.
    start: str = ""
    steps: int = 9_000
    batch: int = 16
    crop: int = 64
    rate: float = 1e-3
    ema: float = 0.998
    seed: int = 0
    threads: int = 1
    #: Threads that cut crops.
    workers: int = 1
    device: str = "cpu"
    checkpoint_seconds: float = 200.0
    validate_every: int = 400
    #: Places kept out of training, by prefix of the file name, to validate and measure on.
    held_out: tuple[str, ...] = (
        "worldcereal-classification__0000280849BAC91C",
        "openeo-photovoltaic__S2-2022-2011",
        "presto-worldcereal__belgium-12m",
    )
    #: Dates from this one on are held out of the longest series too.
    held_dates: int = 90
    left_out: tuple[str, ...] = ("glf-cr__ROIs2017",)
    #: Two hundred parcels of one kind (forest) count for less than their number.
    discounted: tuple[str, ...] = ("bark-bettle",)

    @property
    def crop_multiple(self) -> int:
        """What the height and width of a crop are multiples of."""
        return BLOCK


@dataclass(frozen=True)
class FlexConfig(TemporalConfig):
    """Series as for a temporal training, and the SHA-256 of whose networks: the newest without."""

    model: str = "tec-flex-s2"
    temporal: str = ""
