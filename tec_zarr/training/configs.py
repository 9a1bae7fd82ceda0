"""The fields of the configuration file of a training of a TerraCodec architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tec_zarr.models import published


@dataclass(frozen=True)
class FamilyConfig:
    """Settings of a training of a TerraCodec architecture; written beside its checkpoints."""

    data: tuple[str, ...]
    out: str
    #: A name of `tec_zarr.models.published.PUBLISHED`. It sets the architecture and the bands.
    model: str
    #: Lambda: weight of the squared error in standardised units.
    distortion: float = 20.0
    #: Arguments of the architecture's class. Empty for the published size.
    network: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 300_000
    batch: int = 8
    crop: int = 256
    #: Dates of a sample. FP and ELIC always use one.
    dates: int = 4
    rate: float = 1e-4
    ema: float = 0.999
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    #: Weights (safetensors) of a model to start from, such as a published one. They set the size.
    start: str = ""
    checkpoint_seconds: float = 240.0
    validate_every: int = 1000
    held_out: tuple[str, ...] = ("ssl4eos12_val", "presto-worldcereal__belgium-12m")
    held_dates: int = 90
    left_out: tuple[str, ...] = ("glf-cr__ROIs2017",)
    discounted: tuple[str, ...] = ("bark-bettle",)

    @property
    def architecture(self) -> str:
        """Name of the architecture: fp, elic, tt or flex."""
        return published.PUBLISHED[self.model].architecture

    @property
    def sample_dates(self) -> int:
        """Number of dates of a training sample."""
        return 1 if self.architecture in ("fp", "elic") else self.dates

    @property
    def crop_multiple(self) -> int:
        """Number that must divide the height and width of a crop, pixels."""
        return 16 if self.architecture == "fp" else 64
