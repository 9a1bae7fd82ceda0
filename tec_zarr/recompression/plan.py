"""Plan a recompression before the first chunk is read.

The arrays of the target are made in memory first. Their metadata are the plan. A hash of them makes
sure that only the same plan continues a run. They are written to the target *last*, when every
region is finished. Until then Zarr finds no array there, so nobody can mistake an incomplete target
for a complete one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import zarr
from xarray.backends.zarr import FillValueCoder
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.dims import TIME, find_dim
from tec_zarr.cubes.nodata import number as _number
from tec_zarr.cubes.times import Finer, finer
from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.recompression.appending import (
    HAD,
    SOURCES_READ,
    Published,
    check_dates,
    kept_storage,
    published_in,
    with_kept_attributes,
)
from tec_zarr.recompression.arrays import (
    COPY_BYTES,
    DIMENSIONS,
    describe_array,
    dimensions,
    reflectance_array,
    region_of,
    tec_storage,
)
from tec_zarr.recompression.manifest import Done
from tec_zarr.recompression.overviews import Coarse, Nodes, with_overviews
from tec_zarr.recompression.settings import Settings
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.objects import (
    is_metadata,
    list_keys,
    list_nodes,
    publication_order,
    read,
    write,
)
from tec_zarr.stores.sessions import FOLDER, SessionStore

PROVENANCE = "tec_zarr"
"""Attribute of the target's root that describes its source and its plan."""

@dataclass(frozen=True)
class ArrayPlan:
    """Source, target and regions of one array.

    Attributes
    ----------
    index : int
        Position in the plan.
    path : str
        Path inside source and target.
    source, target, template : zarr.Array
        ``target`` has no metadata in its store yet. ``template`` is the same array in memory.
    region : tuple of int
        Shape of a region: whole shards (or chunks) of the target and, if possible, whole chunks of
        the source.
    spec : ChunkSpec or None
        TEC settings; None if the array is copied without loss.
    finer : Finer or None
        Converts the stored times of a coordinate to microseconds, if their unit is coarser.
    time : int or None
        Axis of the dates. Regions are numbered date by date, so that more dates leave the numbers
        of all others as they are.
    had : int or None
        Number of dates that the target has already: regions that hold only these are not made, nor
        is an array without dates. None if the target has nothing.
    """

    index: int
    path: str
    source: zarr.Array
    target: zarr.Array
    template: zarr.Array
    region: tuple[int, ...]
    spec: ChunkSpec | None
    finer: Finer | None = None
    time: int | None = None
    had: int | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of regions along each axis."""
        return _counts(self.source.shape, self.region)

    @property
    def numbers(self) -> range:
        """Numbers of the regions to make."""
        total = math.prod(self.counts)
        if self.had is None:
            return range(total)
        if self.time is None or self.had == self.source.shape[self.time]:
            return range(total, total)
        before = self.had // self.region[self.time]
        return range(before * (total // self.counts[self.time]), total)

    @property
    def regions(self) -> int:
        """Number of regions to make."""
        return len(self.numbers)

    def region_slices(self, number: int) -> tuple[slice, ...]:
        """Return the slices of region ``number`` in the array."""
        axes = sorted(range(len(self.counts)), key=lambda axis: axis != self.time)
        found = np.unravel_index(number, [self.counts[axis] for axis in axes])
        at = dict(zip(axes, map(int, found), strict=True))
        return box([at[axis] for axis in range(len(at))], self.region, self.source.shape)

    def chunk_slices(self, region: tuple[slice, ...]) -> list[tuple[slice, ...]]:
        """Return the slices of all target chunks (not shards) in a region."""
        return [box(at, self.target.chunks, self.source.shape)
                for at in _touched(region, self.target.chunks)]  # fmt: skip

    def keys(self, region: tuple[slice, ...]) -> list[str]:
        """Return the keys of the target's objects that a region is stored in."""
        prefix = f"{self.path}/" if self.path else ""
        return [prefix + key for key in _object_keys(self.target, region)]

    def source_keys(self, region: tuple[slice, ...]) -> list[str]:
        """Return the keys of the objects that a region is read from, inside the source array."""
        if isinstance(self.source, Coarse):
            return _object_keys(self.source.original, self.source.whole(region))
        return _object_keys(self.source, region)

    @property
    def read_amplification(self) -> float:
        """How often a source chunk is read on average; 1 if regions hold whole source chunks."""
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
    """The whole plan of a recompression.

    Attributes
    ----------
    arrays : tuple of ArrayPlan
        All arrays of the source.
    template : MemoryStore
        Groups and arrays of the target, without data.
    consolidated : bool
        Whether the target gets consolidated metadata.
    config : dict
        Identifies this plan: ``config_sha256``, ``source_sha256``, and the settings.
    published : Published or None
        The target that dates are appended to.
    """

    arrays: tuple[ArrayPlan, ...]
    template: MemoryStore
    consolidated: bool
    config: dict[str, Any]
    published: Published | None = None

    @property
    def regions(self) -> int:
        """Number of regions to make, of all arrays."""
        return sum(array.regions for array in self.arrays)

    def known(self, finished: Mapping[tuple[int, int], Done]) -> dict[tuple[int, int], Done]:
        """Return those finished regions that are regions of this plan, whole.

        The last dates of a source that has grown since are in longer regions.
        """
        return {
            (index, number): done
            for (index, number), done in finished.items()
            if index < len(self.arrays) and number in self.arrays[index].numbers
            and done.samples == _samples(self.arrays[index].region_slices(number))
        }  # fmt: skip

    def metadata(self, sources_read: Sequence[Sequence[Any]]) -> dict[str, bytes]:
        """Return keys and bytes of the target's metadata, in the order to write them.

        Parameters
        ----------
        sources_read : sequence of (path, slices, CRC32)
            Checksums of some regions of the source. A later run compares them with the source, to
            see whether it has changed.
        """
        zarr_format = self.arrays[0].template.metadata.zarr_format
        root = _root(self.template, zarr_format)
        root.attrs[PROVENANCE] = {**self.config, SOURCES_READ: sources_read}
        if self.consolidated:
            zarr.consolidate_metadata(self.template, zarr_format=zarr_format)
        return documents(self.template)


def make_plan(
    source: zarr.Group | zarr.Array, target: Store, settings: Settings, append: bool = False
) -> Plan:
    """Decide codec, chunks, shards and regions of every array.

    With ``append``, a target that can be read keeps all these, and gets more dates.

    Raises
    ------
    UnsupportedArrayError
        TEC cannot encode the reflectance as it is, or there is no reflectance.
    RecompressError
        The source is encoded with TEC already; or it is not that of the target with more dates.
    """
    template = MemoryStore()
    nodes: Nodes = list_nodes(source)
    before = provenance(target) if append else None
    if before is not None:
        settings = replace(settings, overviews=before.get("overviews", False))
    sources = {path: node for path, node in nodes.items() if isinstance(node, zarr.Array)}
    chosen: Collection[str] = ()
    if settings.overviews or before is None:
        chosen = reflectance_array(sources, settings)
    if settings.overviews:
        nodes = with_overviews(source, nodes, chosen, settings)
        chosen = {path for path in nodes if path.partition("/")[2] in chosen}
        sources = {p: node for p, node in nodes.items() if not isinstance(node, zarr.Group)}
    published = None
    if before is not None:
        published = published_in(target, before, nodes, settings)
        settings = replace(settings, zarr_format=published.zarr_format)
    for path, node in nodes.items():
        if isinstance(node, zarr.Group):
            attributes = {**(published.nodes[path].attrs if published else {}), **node.attrs}
            zarr.create_group(
                template, path=path, zarr_format=settings.zarr_format, attributes=attributes
            )
    chosen = published.coded if published else chosen
    arrays = []
    for index, (path, array) in enumerate(sources.items()):
        described = describe_array(path, array, sources, settings)
        kept = published.arrays[path] if published else None
        storage = (
            kept_storage(kept)
            if kept is not None
            else tec_storage(path, described, array, settings)
            if path in chosen
            else copy_storage(array, settings.zarr_format)
        )
        times = None if path in chosen else _finer_times(array)
        made = create_array(template, path, array, settings.zarr_format, storage, times)
        found = find_dim(described, TIME)
        time = None if found is None else described.dims.index(found)
        had, region = None, None
        if published and kept is not None:
            made = with_kept_attributes(made, kept)
            had = check_dates(published, path, (array, made), times, time, str(found))
            region = published.region(path)
        if region is None and path in chosen:
            region = region_of(array, described, made)
        arrays.append(
            ArrayPlan(
                index, path, array, elsewhere(made, target, path), made,
                region or region_of_copy(array, made), tec_spec(made), times, time, had,
            )
        )  # fmt: skip
    groups = [] if published else [p for p, n in nodes.items() if isinstance(n, zarr.Group)]
    config = _config(source, arrays, _documents_of(template, groups), settings)
    session = isinstance(target, SessionStore)
    if session and settings.zarr_format == 2:
        raise UnsupportedArrayError("Icechunk holds Zarr format 3: leave out zarr_format=2")
    consolidated = isinstance(source, zarr.Group) and not session and (
        settings.zarr_format == 2 or source.metadata.consolidated_metadata is not None
    )
    if published:
        # What was added to the target since, such as embedded weights, stays in its metadata.
        for key, document in published.others(documents(template)).items():
            write(template, key, document)
        config |= {HAD: {array.path: {"dates": array.had, "region": array.region}
                         for array in arrays if array.time is not None}}  # fmt: skip
        consolidated |= published.consolidated
    return Plan(tuple(arrays), template, consolidated, config, published)


def provenance(target: Store) -> dict[str, Any] | None:
    """Return the `PROVENANCE` attribute of a finished target; None if the target is not finished.

    Raises
    ------
    RecompressError
        The target holds something that no recompression wrote.
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
    """Return the slices of cell ``at`` of a regular grid, cut off at the end of the array."""
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
    """Return the storage of an array that is copied: chunks and shards of the source.

    Zarr adds its default compressor. In format 2, which has no shards, each shard becomes a chunk.
    """
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
    """Create an array like ``array`` with another format, chunks or codecs. Copies no data."""
    attrs: dict[str, Any] = dict(array.attrs)
    dims = dimensions(array)
    fill, old = array.metadata.fill_value, array.metadata.zarr_format
    attrs.pop(DIMENSIONS, None)
    extra: dict[str, Any] = {}
    plain = array.dtype.kind in "biufc"
    if old == 2 and array.dtype.kind == "b":
        # Zarr gives masks a fill value, but no value of a mask means nodata. With it, xarray would
        # read the mask as objects of True and NaN.
        fill = None
    if zarr_format == 3:
        extra["dimension_names"] = dims
        # In format 2 the fill value also means nodata, unless the attribute _FillValue exists. In
        # format 3 only the attribute means nodata.
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
    """Return the conversion to microseconds for stored times; None if the array needs none.

    It is for integer times along one dimension, to which dates can be appended.
    """
    if array.ndim != 1 or array.dtype.kind not in "iu" or "units" not in array.attrs:
        return None
    stated = [array.attrs.get("_FillValue"), array.attrs.get("missing_value")]
    stated += [array.fill_value] if array.metadata.zarr_format == 2 else []
    numbers = [_number(value, array.dtype) for value in stated]
    missing = (int(n) for n in numbers if n is not None and n == n)
    return finer(np.asarray(array[:]), array.attrs["units"], (*missing, np.iinfo(np.int64).min))


def elsewhere(template: zarr.Array, store: Store, path: str) -> zarr.Array:
    """Return the array of ``template`` in another store, without writing its metadata there."""
    return zarr.Array(
        zarr.AsyncArray(
            metadata=template.metadata, store_path=StorePath(store, path)
        )
    )  # fmt: skip


def region_of_copy(array: zarr.Array, made: zarr.Array) -> tuple[int, ...]:
    """Return the shape of the regions in which an array is copied.

    They are whole shards (or chunks) of the array ``made``, of up to `COPY_BYTES`.
    """
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


def _documents_of(store: MemoryStore, paths: Sequence[str]) -> dict[str, bytes]:
    return {k: d for k, d in documents(store).items() if k.rpartition("/")[0] in paths}


def documents(store: MemoryStore) -> dict[str, bytes]:
    """Return key and bytes of all metadata documents, in the order to write them."""
    keys = sorted(filter(is_metadata, list_keys(store, "")), key=publication_order)
    return {key: read(store, key) or b"" for key in keys}


def _config(
    source: zarr.Group | zarr.Array,
    arrays: Sequence[ArrayPlan],
    groups: Mapping[str, bytes],
    settings: Settings,
) -> dict[str, Any]:
    layout = {
        "tec_zarr": importlib.metadata.version("tec_zarr"),
        "groups": {key: json.loads(data) for key, data in groups.items()},
        "arrays": [_fingerprint(array.path, array.template, array.time) for array in arrays],
        "regions": {array.path: array.region for array in arrays},
    }
    return {
        "source": str(source.store_path),
        "source_sha256": _sha256([_fingerprint(a.path, a.source, a.time) for a in arrays]),
        "config_sha256": _sha256(layout),
        "tec_zarr": importlib.metadata.version("tec_zarr"),
        **settings.recorded(),
        "dates": {a.path: a.source.shape[a.time] for a in arrays if a.time is not None},
        "regions": sum(array.regions for array in arrays),
    }


def _fingerprint(path: str, array: zarr.Array, time: int | None) -> list[Any]:
    """Return path and metadata of an array, attributes included, but for its number of dates."""
    documents = array.metadata.to_buffer_dict(default_buffer_prototype())
    found = {key: json.loads(value.to_bytes()) for key, value in documents.items()}
    for document in found.values():
        if time is not None and "shape" in document:
            document["shape"][time] = None
    return [path, found]


def _samples(region: Sequence[slice]) -> int:
    return math.prod(s.stop - s.start for s in region)


def _sha256(item: object) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
