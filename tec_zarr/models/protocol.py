"""The interfaces of models, and the registry's entry of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from tec_zarr.models.published import only_decodes


class Encoded(NamedTuple):
    """A cube that a model has encoded.

    Attributes
    ----------
    sections : list of bytes
        One per date.
    latents_crc : int
        CRC32 of the latents. A decoder must decode latents with the same CRC32.
    """

    sections: list[bytes]
    latents_crc: int


class Model(Protocol):
    """A learned codec for one tile of pixels.

    ``quality`` is 1 (smallest) to 8 (finest), the same scale for every model. ``bands`` are
    the Sentinel-2 names along axis 1, or None if they are unknown.
    """

    name: str
    weights_sha256: str

    def encode(self, cube: np.ndarray, quality: float, bands: tuple[str, ...] | None) -> Encoded:
        """Encode float32 DN (T, C, h, w). They are finite everywhere; gaps have been filled."""

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, int]:
        """Decode; return float32 DN of ``shape`` and the CRC32 of the latents."""


class DateModel(Model, Protocol):
    """A model that can decode some dates without the others. Its arithmetic is exact."""

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> np.ndarray:
        """Decode ``dates``; return float32 DN (len(dates), C, h, w).

        ``shape`` is that of all dates.
        """


class WholeModel(Model, Protocol):
    """A model that can decode to whole DN, which are the same on every machine."""

    @property
    def decode_whole(self) -> Callable[..., tuple[np.ndarray, int]] | None:
        """A function of ``sections``, ``shape`` and ``quality`` that decodes to uint16.

        It returns what ``decode`` returns, but for the dtype; values beyond uint16 saturate.
        None if the weights do not produce whole DN.
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
        """Encode as :meth:`Model.encode`; dates refer to one another within runs of ``gop``."""


@dataclass(frozen=True)
class Entry:
    """The registry's entry of one model.

    Attributes
    ----------
    name : str
        Name that users type.
    number : int
        Number of the model in frames. 0 for a model that is not in the index; its frames hold its
        name instead.
    weights : tuple of str
        SHA-256 (hex) of the weights that may encode, newest first. Weights that came with a store
        are not among them.
    load : callable
        Loads the model with the weights of a given SHA-256.
    temporal : bool
        True if ``encode`` takes ``gop``: the dates of a chunk refer to one another.
    on_grids : bool
        True if ``encode`` takes ``known``, see :class:`tec_zarr.models.registry.GridModel`.
    """

    name: str
    number: int
    weights: tuple[str, ...]
    load: Callable[[str], Model]
    temporal: bool = False
    on_grids: bool = False

    @property
    def newest(self) -> str:
        """SHA-256 of the weights for new arrays.

        Raises WeightsMismatchError if all weights on this machine came with a store.
        """
        if not self.weights:
            raise only_decodes(self.name)
        return self.weights[0]
