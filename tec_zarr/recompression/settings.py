"""Settings of a recompression, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import UnsupportedArrayError


@dataclass(frozen=True)
class Settings(ChunkSpec):
    """Settings of the target: the options of a chunk, and those of `tec_zarr.encoding`.

    Parameters
    ----------
    options of :class:`tec_zarr.codec.spec.ChunkSpec`
        Integers with the CF attributes ``scale_factor`` and ``add_offset`` need no ``scale``.
        ``max_error`` is in the units that readers that know CF see, not in those of the stored
        integers.
    zarr_format, chunks, shards
        See :func:`tec_zarr.encoding`.
    overviews : bool
        Whether to write the source into the group ``0``, and overviews of half the resolution, a
        quarter, ... into ``1``, ``2``, ..., each made of the source's pixels
        (`tec_zarr.cubes.overviews`).
    variables : sequence of str, optional
        Names or paths of the arrays that are reflectance; a single name may be a str. Default:
        arrays with a band dimension whose coordinate names Sentinel-2 bands, and arrays named like
        a band. If the dimensions of an array have no names, it must have four dimensions and be
        called "reflectance" or like a band. All other arrays are copied without loss.

    Raises
    ------
    UnsupportedArrayError
        An argument is out of its range.
    """

    zarr_format: Literal[2, 3] = 3
    chunks: Mapping[str, int] | None = None
    shards: bool = True
    overviews: bool = False
    variables: Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zarr_format not in (2, 3):
            raise UnsupportedArrayError(f"zarr_format is {self.zarr_format}, it must be 2 or 3")
        if isinstance(self.variables, str):
            object.__setattr__(self, "variables", (self.variables,))

    def recorded(self) -> dict[str, Any]:
        """Return all settings as JSON holds them."""
        layout = {
            "zarr_format": self.zarr_format,
            "chunks": None if self.chunks is None else dict(self.chunks),
            "shards": self.shards,
            "overviews": self.overviews,
            "variables": None if self.variables is None else list(self.variables),
        }
        return {**self.to_config(), **json.loads(json.dumps(layout, default=int))}
