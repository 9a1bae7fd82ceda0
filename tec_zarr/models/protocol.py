"""The interfaces of models, and the registry's entry of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tec_zarr.frame.frame import NAMED_MODEL
from tec_zarr.models.published import only_decodes
from tec_zarr.native.tile import TileModel


class Encoded(NamedTuple):
    """A cube that a model has encoded.

    Attributes
    ----------
    sections : list of bytes
        One per date.
    latents_crc : list of int
        CRC32 of the latents of each section. A decoder must decode latents with the same CRC32.
    decoded : ndarray of int32, optional
        DN (T, C, h, w) that the sections decode to, if the encoder knows them.
    """

    sections: list[bytes]
    latents_crc: list[int]
    decoded: np.ndarray | None = None


class Model(Protocol):
    """A learned codec for one tile of pixels.

    ``quality`` is 1 (smallest) to 8 (finest), the same scale for every model. ``bands`` are
    the Sentinel-2 names along axis 1, or None when the array's owner did not say.

    A model inherits from this class: what it does not define it cannot do.
    """

    name: str
    weights_sha256: str
    core: TileModel | None = None
    """The model in the compiled core. Frames of such a model are decoded there."""

    def encode(self, cube: np.ndarray, quality: float, bands: tuple[str, ...] | None) -> Encoded:
        """Encode float32 DN (T, C, h, w), finite and filled everywhere.

        ``takes`` of the :class:`Entry` names the options that it has: ``gop``, int or None, the
        length of the runs within which dates refer to one another; ``known``, bool (T, C, h, w)
        or None, the samples that were measured.
        """

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decode; return float32 DN of ``shape`` and the CRC32 of each section's latents.

        Models that are in the core need none: the core decodes their frames.
        """
        raise TypeError(f"the core decodes frames of {self.name}")

    @property
    def decode_whole(self) -> Callable[..., tuple[np.ndarray, list[int]]] | None:
        """Function of ``sections``, ``shape`` and ``quality`` that decodes to uint16.

        It does what ``decode`` does, the same on every machine; what lies beyond saturates. None:
        the model makes no whole DN.
        """
        return None

    @property
    def decode_dates(self) -> Callable[..., tuple[np.ndarray, dict[int, int]]] | None:
        """Function of ``sections``, ``shape`` (of all dates), ``quality`` and ``dates``.

        It decodes those dates to float32 DN (len(dates), C, h, w), and returns the CRC32s of the
        latents of all dates that it had to decode for that. None: the dates cannot be decoded
        without the others.
        """
        return None

    @property
    def device(self) -> str:
        """Where the model is; anywhere but on ``"cpu"`` it codes batches."""
        return "cpu"

    @property
    def flexible(self) -> bool:
        """Whether its sections can be cut to a lower quality."""
        return False

    def encode_batch(
        self,
        cubes: Sequence[np.ndarray],
        quality: float,
        bands: tuple[str, ...] | None,
        **options: Sequence[Any],
    ) -> list[Encoded]:
        """Encode cubes of one shape, each to the bytes that ``encode`` makes of it.

        Each option is a sequence of one value for each cube.
        """
        return [
            self.encode(cube, quality, bands, **{name: of[n] for name, of in options.items()})
            for n, cube in enumerate(cubes)
        ]

    def decode_batch(
        self,
        chunks: Sequence[list[bytes]],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> list[tuple[np.ndarray, list[int]]]:
        """Decode the sections of several chunks of one shape, each as ``decode`` does."""
        return [self.decode(sections, shape, quality, bands) for sections in chunks]


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
    takes : frozenset of str
        Options that ``encode`` of every weights takes: ``"gop"`` of models whose dates refer to
        one another, ``"known"`` of models that code bands on the grids of their measurement.
    """

    name: str
    number: int
    weights: tuple[str, ...]
    load: Callable[[str], Model]
    takes: frozenset[str] = frozenset()

    @property
    def embedded(self) -> bool:
        """Whether the model is in the index. The compiled core runs such a model, on the CPU."""
        return self.number != NAMED_MODEL

    @property
    def newest(self) -> str:
        """SHA-256 of the weights for new arrays.

        Raises WeightsMismatchError if all weights on this machine came with a store.
        """
        if not self.weights:
            raise only_decodes(self.name)
        return self.weights[0]
