"""Sizes, TEC settings and measured errors of the arrays in a store. Decodes no chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tec_zarr.bounds.request import index_name, resolve
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.frame.frame import SectionKind
from tec_zarr.stores.chunks import chunk_bytes, codecs_of, frame_heads, tec_spec
from tec_zarr.stores.sessions import readable


@dataclass(frozen=True)
class Stored:
    """Sizes and settings of the store that a decoded cube came from.

    Attributes
    ----------
    n_bytes : int
        Stored bytes of the reflectance arrays, metadata included.
    chunks : tuple of int
        Chunk shape, one length per dimension.
    chunk_bytes : ndarray of int, optional
        Stored bytes of every chunk, one entry per chunk along each dimension. None if the
        reflectance is more than one array.
    spec : ChunkSpec, optional
        TEC settings; None if the store is not TEC.
    """

    n_bytes: int
    chunks: tuple[int, ...]
    chunk_bytes: np.ndarray | None
    spec: ChunkSpec | None

    @classmethod
    def of(cls, path: str | Path, names: Sequence[str]) -> Stored:
        """Read sizes and settings of the arrays ``names`` of a Zarr store. Decodes nothing."""
        node = zarr.open(readable(path), mode="r")
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
    """An error bound of an array, and the largest error that its chunks have.

    Attributes
    ----------
    name : str
        Name of a band or of an index.
    asked : float
        Largest absolute error allowed, in the units of the stored array or of the index. Infinity
        if only an index of the band has a bound.
    error : float
        Largest absolute error measured when the chunks were written, in the same units.
    is_index : bool
        Whether the bound is on an index, not on a band.
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
        Path inside the store.
    shape, dtype, chunks
        As in the metadata of the array.
    codec : str
        Codec of its chunks, in words.
    raw_bytes : int
        Size in memory.
    stored_bytes : int
        All bytes under its path in the store, metadata included.
    bounds : tuple of KeptBound
        Bounds and measured errors of an array written with ``max_error``; else empty.
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
        """Raw bytes divided by stored bytes."""
        return self.raw_bytes / max(1, self.stored_bytes)

    @property
    def bits_per_sample(self) -> float:
        """Stored bits per sample (one pixel of one band on one date)."""
        return 8 * self.stored_bytes / max(1, math.prod(self.shape))


def stored_arrays(store: str | Path) -> list[StoredArray]:
    """Describe all arrays of a Zarr store of format 2 or 3. Decodes nothing."""
    node = zarr.open(readable(store), mode="r")
    if isinstance(node, zarr.Array):
        return [_stored("/", node)]
    members = node.members(max_depth=None)
    return [_stored(name, a) for name, a in sorted(members) if isinstance(a, zarr.Array)]


def kept_bounds(array: zarr.Array) -> tuple[KeptBound, ...]:
    """Return the bounds of an array and the errors listed in its chunk headers. Decodes nothing.

    The result is empty if the array has no ``max_error``, if a chunk header lists no errors, or
    if another codec follows TEC.
    """
    spec = tec_spec(array)
    if spec is None or spec.max_error is None:
        return ()
    worst: dict[tuple[int, ...], tuple[float, float]] = {}
    names: Sequence[str] | None = spec.bands
    for header, kinds in frame_heads(array):
        if header.bounds is None and SectionKind.LATENTS not in kinds:
            continue  # No sample of this chunk is coded.
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
"""Attribute that names the CF container of an array's lossy compression.

The names of the attributes that hold its parameters begin with it.
"""
