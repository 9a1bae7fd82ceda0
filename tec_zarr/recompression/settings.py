"""What a recompression was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import UnsupportedArrayError


@dataclass(frozen=True)
class Settings:
    """How the target is made; the arguments are those of :func:`tec_zarr.encoding`.

    Parameters
    ----------
    quality, model, zarr_format, bands, nodata, scale, max_error, psnr, max_bytes, chunks, shards
        See :func:`tec_zarr.encoding`. Integers with the CF attributes ``scale_factor`` and
        ``add_offset`` are understood without ``scale``. ``max_error`` is in the units of the data
        as readers that know CF see them, whatever they are packed in.
    variables : sequence of str, optional
        Names or paths of the arrays that are reflectance. Default: those with a band dimension
        whose coordinate names Sentinel-2 bands, and those named like a band; of arrays whose
        dimensions have no names only those called "reflectance" or like a band, with four. All
        others are copied without loss. One name may stand alone.

    Raises
    ------
    UnsupportedArrayError
        An argument out of its range.
    """

    quality: float = 4.0
    model: str = "tec-s2"
    zarr_format: Literal[2, 3] = 3
    bands: Sequence[str] | None = None
    nodata: float | Sequence[float] | None = 0
    scale: float | None = None
    max_error: float | Sequence[float] | Mapping[str, float] | None = None
    psnr: float | None = None
    max_bytes: int | None = None
    chunks: Mapping[str, int] | None = None
    shards: bool = True
    variables: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.zarr_format not in (2, 3):
            raise UnsupportedArrayError(f"zarr_format is {self.zarr_format}, it must be 2 or 3")
        names = {f.name for f in fields(ChunkSpec)} & {f.name for f in fields(self)}
        spec = ChunkSpec(**{name: getattr(self, name) for name in names})
        # As JSON has them, so that they equal what is on record when a run goes on.
        plain: dict[str, Any] = {name: spec.to_config()[name] for name in names}
        if isinstance(self.variables, str):
            plain["variables"] = (self.variables,)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
