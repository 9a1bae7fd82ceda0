"""What a store says about its arrays: sizes, settings, kept bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tec_zarr.bounds.request import index_name, resolve
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.stores.chunks import chunk_bytes, codecs_of, frame_headers, tec_spec


@dataclass(frozen=True)
class Stored:
    """The store that a decoded cube came from.

    Attributes
    ----------
    n_bytes : int
        All bytes of its reflectance, metadata included.
    chunks : tuple of int
        Chunk shape, as many numbers as the array has dimensions.
    chunk_bytes : ndarray of int, optional
        Bytes of every chunk, one entry per chunk and dimension; None where the reflectance is
        more than one array.
    spec : ChunkSpec, optional
        TEC's settings; None where the store is not TEC.
    """

    n_bytes: int
    chunks: tuple[int, ...]
    chunk_bytes: np.ndarray | None
    spec: ChunkSpec | None

    @classmethod
    def of(cls, path: str | Path, names: Sequence[str]) -> Stored:
        """Read sizes and settings of the arrays ``names`` of a Zarr store; decodes nothing."""
        node = zarr.open(path, mode="r")
        nodes = [node] if isinstance(node, zarr.Array) else [node[name] for name in names]
        arrays = [array for array in nodes if isinstance(array, zarr.Array)]
        return cls(
            sum(array.nbytes_stored() for array in arrays),
            arrays[0].chunks,
            chunk_bytes(arrays[0]) if len(arrays) == 1 else None,
            tec_spec(arrays[0]),
        )


@dataclass(frozen=True)
class KeptBound:
    """A bound of an array, and how far its chunks are from it.

    Attributes
    ----------
    name : str
        Of a band or of an index.
    asked, error : float
        Largest absolute error that was asked for, and that was measured when the chunks were
        written: in the units of the stored array, or of the index. Infinity if only an index of
        the band has a bound.
    is_index : bool
        Whether it is an index.
    """

    name: str
    asked: float
    error: float
    is_index: bool


@dataclass(frozen=True)
class StoredArray:
    """One array of a store.

    Attributes
    ----------
    path : str
        Inside the store.
    shape, dtype, chunks
        As in its metadata.
    codec : str
        What its chunks are encoded with.
    raw_bytes, stored_bytes : int
        Size in memory, and all bytes under its path in the store, metadata included.
    bounds : tuple of KeptBound
        Of arrays that were written with ``max_error``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    codec: str
    raw_bytes: int
    stored_bytes: int
    bounds: tuple[KeptBound, ...] = ()

    @property
    def ratio(self) -> float:
        """Raw by stored size."""
        return self.raw_bytes / max(1, self.stored_bytes)

    @property
    def bits_per_sample(self) -> float:
        """Stored bits for each pixel of each band."""
        return 8 * self.stored_bytes / max(1, math.prod(self.shape))


def stored_arrays(store: str | Path) -> list[StoredArray]:
    """All arrays of a Zarr store of either format, without decoding a chunk."""
    node = zarr.open(store, mode="r")
    if isinstance(node, zarr.Array):
        return [_stored("/", node)]
    members = node.members(max_depth=None)
    return [_stored(name, a) for name, a in sorted(members) if isinstance(a, zarr.Array)]


def kept_bounds(array: zarr.Array) -> tuple[KeptBound, ...]:
    """Bounds of an array and the errors that the headers of its chunks list. Decodes nothing.

    Empty for arrays without ``max_error``, and where a chunk does not say: it was written before
    frames did, or another codec comes after TEC.
    """
    spec = tec_spec(array)
    if spec is None or spec.max_error is None:
        return ()
    worst: dict[tuple[int, ...], tuple[float, float]] = {}
    names: Sequence[str] | None = spec.bands
    for header in frame_headers(array):
        if header.bounds is None and header.latents_crc == 0:
            continue  # nothing in this chunk is coded
        if header.errors is None:
            return ()
        names = names or header.bands
        limits = resolve(spec.max_error, len(header.errors), names)
        kept: list[tuple[tuple[int, ...], float, float]] = [
            ((band,), limits.bands[band], header.errors[band]) for band in header.bounded
        ]
        kept += [((i.first, i.second), i.bound, i.error) for i in header.indices]
        for key, asked, error in kept:
            worst[key] = asked, max(error, worst.get(key, (0.0, 0.0))[1])
    keys = sorted(worst, key=lambda bands: (len(bands), bands))
    return tuple(KeptBound(_label(k, names), *worst[k], is_index=len(k) > 1) for k in keys)


def _label(bands: tuple[int, ...], names: Sequence[str] | None) -> str:
    known = [str(band) if names is None else names[band] for band in bands]
    return known[0] if len(known) == 1 else index_name(*known)


def _stored(path: str, array: zarr.Array) -> StoredArray:
    spec = tec_spec(array)
    if spec is None:
        codec = ", ".join(type(c).__name__.removesuffix("Codec").lower() for c in codecs_of(array))
    else:
        codec = f"TEC {spec.model} {_target(spec)} weights {str(spec.weights_sha256)[:8]}"
    return StoredArray(
        path, array.shape, str(array.dtype), array.chunks, codec, array.nbytes,
        array.nbytes_stored(), kept_bounds(array),
    )  # fmt: skip


def _target(spec: ChunkSpec) -> str:
    if isinstance(spec.max_error, Mapping):
        return "max_error " + ", ".join(f"{name} {v:g}" for name, v in spec.max_error.items())
    if spec.max_error is not None:
        return "max_error " + ", ".join(f"{v:g}" for v in np.unique(spec.max_error))
    if spec.psnr is not None:
        return f"psnr={spec.psnr:g}"
    return f"q={spec.quality:g}" if spec.max_bytes is None else f"max_bytes={spec.max_bytes}"


ATTRIBUTE = "lossy_compression"
"""Attribute of an array that names its container; prefix of those with its parameters."""
