"""What a learned codec of one tile has to offer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from tec_zarr.models.published import only_decodes


class Encoded(NamedTuple):
    """What a model makes of one cube.

    Attributes
    ----------
    sections : list of bytes
        One per date.
    latents_crc : int
        CRC32 of the latents that a decoder has to arrive at.
    """

    sections: list[bytes]
    latents_crc: int


class Model(Protocol):
    """A learned codec for one tile of pixels.

    ``quality`` is 1 (smallest) to 8 (finest), the same scale for every model. ``bands`` are
    the Sentinel-2 names along axis 1, or None when the array's owner did not say.
    """

    name: str
    weights_sha256: str

    def encode(self, cube: np.ndarray, quality: float, bands: tuple[str, ...] | None) -> Encoded:
        """Encode float32 DN (T, C, h, w), finite and filled everywhere."""

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, int]:
        """Decode to float32 DN of ``shape`` and the CRC32 of the latents."""


class DateModel(Model, Protocol):
    """A model whose arithmetic is exact, and that can decode some dates without the others."""

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> np.ndarray:
        """Decode to float32 DN (len(dates), C, h, w); ``shape`` is that of all dates."""


class WholeModel(Model, Protocol):
    """A model that may decode to whole DN: the same on every machine."""

    @property
    def decode_whole(self) -> Callable[..., tuple[np.ndarray, int]] | None:
        """None with weights that do not make whole DN, or a function of ``sections``, ``shape``
        and ``quality`` that does what ``decode`` does, to uint16: what lies beyond saturates.
        """


class TemporalModel(Model, Protocol):
    """A model whose dates refer to one another."""

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None,
        gop: int | None = None,
    ) -> Encoded:
        """As :meth:`Model.encode`, dates referring to one another within runs of ``gop`` only."""


@dataclass(frozen=True)
class Entry:
    """One model of the index.

    Attributes
    ----------
    name : str
        What users type.
    number : int
        Its id in the stream; 0 for a model that is not in the index: its frames carry its name.
    weights : tuple of str
        SHA-256 (hex) of the weights that it may encode with, newest first. Those that came with a
        store are not among them.
    load : callable
        From one of those hashes to the loaded model.
    temporal : bool
        Whether its ``encode`` takes ``gop``: the dates of a chunk refer to one another.
    on_grids : bool
        Whether its ``encode`` takes ``known``: see :class:`GridModel`.
    """

    name: str
    number: int
    weights: tuple[str, ...]
    load: Callable[[str], Model]
    temporal: bool = False
    on_grids: bool = False

    @property
    def newest(self) -> str:
        """Weights of new arrays; WeightsMismatchError where all that are here came with a store."""
        if not self.weights:
            raise only_decodes(self.name)
        return self.weights[0]
