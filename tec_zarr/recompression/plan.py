"""What a recompression will do, settled before the first chunk is read.

The target's arrays are made in memory first. Their metadata is the plan: it is hashed, so that a
run can only be continued by the same plan, and it is written to the target *last*, when every
region is finished. Until then Zarr finds no array there, so nobody can take a part for the whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from xarray.backends.zarr import FillValueCoder
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.nodata import number as _number
from tec_zarr.cubes.times import Finer, finer
from tec_zarr.errors import RecompressError
from tec_zarr.recompression.arrays import (
    COPY_BYTES,
    DIMENSIONS,
    describe_array,
    dimensions,
    reflectance_array,
    region_of,
    tec_storage,
)
from tec_zarr.recompression.manifest import FOLDER
from tec_zarr.recompression.settings import Settings
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.objects import is_metadata, list_keys, list_nodes, publication_order, read

PROVENANCE = "tec_zarr"
"""Attribute of the target's root that says what it was made of."""

SOURCES_READ = "sources_read"
"""Key in there: number of the array, of the region, CRC32 of the source's samples."""


@dataclass(frozen=True)
class ArrayPlan:
    """One array: where it comes from, where it goes to, in which pieces.

    Attributes
    ----------
    index : int
        Position in the plan.
    path : str
        Inside source and target.
    source, target, template : zarr.Array
        ``target`` has no metadata in its store yet; ``template`` is the same array in memory.
    region : tuple of int
        Shape of a region: whole shards (or chunks) of the target and, where possible, whole
        chunks of the source.
    spec : ChunkSpec or None
        None where the array is copied without loss.
    finer : Finer or None
        What the stored times of a coordinate go through, if they are of a coarse unit.
    """

    index: int
    path: str
    source: zarr.Array
    target: zarr.Array
    template: zarr.Array
    region: tuple[int, ...]
    spec: ChunkSpec | None
    finer: Finer | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Regions along each axis."""
        return _counts(self.source.shape, self.region)

    @property
    def regions(self) -> int:
        """Number of regions."""
        return math.prod(self.counts)

    def region_slices(self, number: int) -> tuple[slice, ...]:
        """Where region ``number`` lies in the array."""
        at = [int(i) for i in np.unravel_index(number, self.counts)]
        return box(at, self.region, self.source.shape)

    def chunk_slices(self, region: tuple[slice, ...]) -> list[tuple[slice, ...]]:
        """Chunks (those inside the shards) of a region."""
        return [box(at, self.target.chunks, self.source.shape)
                for at in _touched(region, self.target.chunks)]  # fmt: skip

    def keys(self, region: tuple[slice, ...]) -> list[str]:
        """Keys of the stored objects of a region."""
        prefix = f"{self.path}/" if self.path else ""
        return [prefix + key for key in _object_keys(self.target, region)]

    def source_keys(self, region: tuple[slice, ...]) -> list[str]:
        """Keys, inside the source array, of the objects that a region is read from."""
        return _object_keys(self.source, region)

    @property
    def read_amplification(self) -> float:
        """How often a source chunk is read on average; 1 when regions are aligned with them."""
        shape, chunks = self.source.shape, self.source.chunks
        touched = 1.0
        for size, region, chunk in zip(shape, self.region, chunks, strict=True):
            reads = sum(
                -(-min(at + region, size) // chunk) - at // chunk for at in range(0, size, region)
            )
            touched *= reads / max(1, -(-size // chunk))
        return touched


@dataclass(frozen=True)
class Plan:
    """Everything that is to be done.

    Attributes
    ----------
    arrays : tuple of ArrayPlan
    template : MemoryStore
        The target's groups and arrays without data.
    consolidated : bool
        Whether the target gets consolidated metadata.
    config : dict
        What identifies this plan: ``config_sha256``, ``source_sha256`` and what they stand for.
    """

    arrays: tuple[ArrayPlan, ...]
    template: MemoryStore
    consolidated: bool
    config: dict[str, Any]

    @property
    def regions(self) -> int:
        """Number of regions of all arrays."""
        return sum(array.regions for array in self.arrays)

    def metadata(self, sources_read: Sequence[Sequence[int]]) -> dict[str, bytes]:
        """Keys and bytes that make the target a Zarr store, in the order to write them.

        Parameters
        ----------
        sources_read : sequence of (array, region, CRC32)
            What some regions of the source held, so that a later run can look whether they do.
        """
        zarr_format = self.arrays[0].template.metadata.zarr_format
        root = _root(self.template, zarr_format)
        root.attrs[PROVENANCE] = {**self.config, SOURCES_READ: sources_read}
        if self.consolidated:
            zarr.consolidate_metadata(self.template, zarr_format=zarr_format)
        return documents(self.template)


def make_plan(source: zarr.Group | zarr.Array, target: Store, settings: Settings) -> Plan:
    """Decide codec, chunks, shards and regions of every array.

    Raises
    ------
    UnsupportedArrayError
        Reflectance that TEC cannot take as it is, or none at all.
    RecompressError
        A source that is TEC already.
    """
    template = MemoryStore()
    nodes = list_nodes(source)
    sources = {path: node for path, node in nodes.items() if isinstance(node, zarr.Array)}
    for path, node in nodes.items():
        if isinstance(node, zarr.Group):
            zarr.create_group(
                template, path=path, zarr_format=settings.zarr_format, attributes=dict(node.attrs)
            )
    chosen = reflectance_array(sources, settings)
    arrays = []
    for index, (path, array) in enumerate(sources.items()):
        described = describe_array(path, array, sources, settings)
        storage = (
            tec_storage(path, described, array, settings)
            if path in chosen
            else copy_storage(array, settings.zarr_format)
        )
        times = None if path in chosen else _finer_times(array)
        made = create_array(template, path, array, settings.zarr_format, storage, times)
        arrays.append(
            ArrayPlan(
                index, path, array, elsewhere(made, target, path), made,
                region_of(array, described, made)
                if path in chosen
                else region_of_copy(array, made),
                tec_spec(made), times,
            )
        )  # fmt: skip
    config = _config(source, arrays, documents(template), settings)
    consolidated = isinstance(source, zarr.Group) and (
        settings.zarr_format == 2 or source.metadata.consolidated_metadata is not None
    )
    return Plan(tuple(arrays), template, consolidated, config)


def provenance(target: Store) -> dict[str, Any] | None:
    """What a finished target says it was made of; None where there is no Zarr node.

    Raises
    ------
    RecompressError
        The target holds something else.
    """
    for key in ("zarr.json", ".zattrs"):
        document = read(target, key)
        if document is not None:
            found = json.loads(document)
            found = (found.get("attributes") or {}) if key == "zarr.json" else found
            if PROVENANCE in found:
                return found[PROVENANCE]
    others = [key for key in list_keys(target, "") if not key.startswith(f"{FOLDER}/")]
    if others and read(target, f"{FOLDER}/config.json") is None:
        raise RecompressError(
            f"the target {target} is not empty ({others[0]}) and not the beginning of a "
            "recompression: choose another target, or delete it first"
        )
    return None


def box(
    at: Sequence[int], lengths: Sequence[int], shape: Sequence[int]
) -> tuple[slice, ...]:
    """Cell ``at`` of a regular grid, cut off at the array's end."""
    return tuple(
        slice(i * n, min((i + 1) * n, size))
        for i, n, size in zip(at, lengths, shape, strict=True)
    )


def _counts(shape: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-size // max(1, n)) for size, n in zip(shape, lengths, strict=True))


def _touched(region: Sequence[slice], lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(
        *(range(s.start // n, -(-s.stop // n)) for s, n in zip(region, lengths, strict=True))
    )


def _object_keys(array: zarr.Array, region: Sequence[slice]) -> list[str]:
    grid = _touched(region, array.shards or array.chunks)
    return [array.metadata.encode_chunk_key(at) for at in grid]


def copy_storage(array: zarr.Array, zarr_format: Literal[2, 3]) -> dict[str, Any]:
    """The chunks of the source and Zarr's default compressor."""
    shards = array.shards if zarr_format == 3 else None
    chunks = array.chunks if shards or not array.shards else array.shards
    return {"chunks": chunks} | ({"shards": shards} if shards else {})


def create_array(
    store: Store,
    path: str,
    array: zarr.Array,
    zarr_format: Literal[2, 3],
    storage: Mapping[str, Any],
    times: Finer | None = None,
) -> zarr.Array:
    """An array like ``array`` in another format, chunks or codecs; without its data."""
    attrs: dict[str, Any] = dict(array.attrs)
    dims = dimensions(array)
    fill, old = array.metadata.fill_value, array.metadata.zarr_format
    attrs.pop(DIMENSIONS, None)
    extra: dict[str, Any] = {}
    plain = array.dtype.kind in "biufc"
    if old == 2 and array.dtype.kind == "b":
        # What Zarr fills masks with: no measurement can be missing in them, but xarray would read
        # objects of True and NaN.
        fill = None
    if zarr_format == 3:
        extra["dimension_names"] = dims
        # Only format 2 says "missing" with the fill value, and a CF attribute says it before that.
        missing = _number(attrs.get("_FillValue", fill), array.dtype) if plain else None
        if old == 2 and missing is not None:
            attrs["_FillValue"] = FillValueCoder.encode(missing, array.dtype)
    else:
        if dims is not None or not array.ndim:
            attrs[DIMENSIONS] = [str(d or f"dim_{i}") for i, d in enumerate(dims or ())]
        if old == 3:
            fill = _number(attrs.pop("_FillValue", None), array.dtype) if plain else None
    dtype = array.dtype.newbyteorder("=") if plain else array.metadata.dtype
    if times is not None:
        attrs["units"], dtype = times.units, np.dtype("int64")
    return zarr.create_array(
        store, name=path or None, shape=array.shape, dtype=dtype, fill_value=fill,
        attributes=attrs, zarr_format=zarr_format, **extra, **storage,
    )  # fmt: skip


def _finer_times(array: zarr.Array) -> Finer | None:
    """For whole-number times along one dimension, to which dates can be appended."""
    if array.ndim != 1 or array.dtype.kind not in "iu" or "units" not in array.attrs:
        return None
    stated = [array.attrs.get("_FillValue"), array.attrs.get("missing_value")]
    stated += [array.fill_value] if array.metadata.zarr_format == 2 else []
    numbers = [_number(value, array.dtype) for value in stated]
    missing = (int(n) for n in numbers if n is not None and n == n)
    return finer(np.asarray(array[:]), array.attrs["units"], (*missing, np.iinfo(np.int64).min))


def elsewhere(template: zarr.Array, store: Store, path: str) -> zarr.Array:
    """The template's array in another store, without writing its metadata there."""
    return zarr.Array(
        zarr.AsyncArray(
            metadata=template.metadata, store_path=StorePath(store, path)
        )
    )  # fmt: skip


def region_of_copy(array: zarr.Array, made: zarr.Array) -> tuple[int, ...]:
    """Shape of the parts to copy an array in: whole shards or chunks of the one to be made."""
    region = list(made.shards or made.chunks)
    for axis in reversed(range(array.ndim)):
        cells = -(-array.shape[axis] // region[axis])
        room = COPY_BYTES // (math.prod(region) * array.dtype.itemsize)
        region[axis] *= max(1, min(room, cells))
        if region[axis] < array.shape[axis]:
            break
    return tuple(region)


def _root(store: Store, zarr_format: Literal[2, 3]) -> zarr.Group | zarr.Array:
    return zarr.open(store, mode="r+", zarr_format=zarr_format)


def documents(store: MemoryStore) -> dict[str, bytes]:
    """Metadata documents in the order to write them."""
    keys = sorted(filter(is_metadata, list_keys(store, "")), key=publication_order)
    return {key: read(store, key) or b"" for key in keys}


def _config(
    source: zarr.Group | zarr.Array,
    arrays: Sequence[ArrayPlan],
    metadata: Mapping[str, bytes],
    settings: Settings,
) -> dict[str, Any]:
    layout = {
        "tec_zarr": importlib.metadata.version("tec_zarr"),
        "metadata": {key: json.loads(data) for key, data in metadata.items()},
        "regions": {array.path: array.region for array in arrays},
    }
    return {
        "source": str(source.store_path),
        "source_sha256": _sha256([_fingerprint(array) for array in arrays]),
        "config_sha256": _sha256(layout),
        "tec_zarr": importlib.metadata.version("tec_zarr"),
        "model": settings.model,
        **{key: getattr(settings, key) for key in ("quality", "max_error", "psnr", "max_bytes")},
        "regions": sum(array.regions for array in arrays),
    }


def _fingerprint(array: ArrayPlan) -> list[Any]:
    """Metadata of a source array, attributes included."""
    documents = array.source.metadata.to_buffer_dict(default_buffer_prototype())
    return [array.path, {key: value.to_bytes().decode() for key, value in documents.items()}]


def _sha256(item: object) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
