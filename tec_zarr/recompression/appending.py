"""Append to a published target: which dates it lacks, and whether all else is as it was.

The source must be the one that the target was made of, with more dates at its end. The target keeps
its chunks, its shards and its codec. Chunks that the last dates do not fill are made again, from
the source's pixels.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype

from tec_zarr.cubes.dims import TIME
from tec_zarr.cubes.times import Finer
from tec_zarr.errors import RecompressError
from tec_zarr.recompression.arrays import DIMENSIONS, dimensions
from tec_zarr.recompression.manifest import Manifest
from tec_zarr.recompression.settings import Settings
from tec_zarr.stores.chunks import tec_spec
from tec_zarr.stores.objects import is_metadata, list_keys, list_nodes, publication_order, read

SOURCES_READ = "sources_read"
"""Key of what a target's root says of its source.

A list of (path, start and stop along each axis, CRC32 of the samples), which a later run compares
with the source.
"""

HAD = "had"
"""Key of the record of an append.

It holds, for each array, the number of dates that it had before, and the shape of its regions.
"""

_INSTEAD = "Restore the source, or make another target of it"
_EXAMPLES = 3
"""How many dates or names a message shows."""


@dataclass(frozen=True)
class Published:
    """A target that can be read.

    Attributes
    ----------
    store : Store
        Its store.
    root : Group or Array
        Its root.
    nodes : dict
        Its groups and arrays, by path.
    begun : mapping
        What `HAD` says of each array, if an append began that was not finished. It may have written
        longer shapes for some arrays.
    sources_read : list
        Checksums of some regions of the source, as its root has them.
    """

    store: Store
    root: zarr.Group | zarr.Array
    nodes: Mapping[str, zarr.Group | zarr.Array]
    begun: Mapping[str, Mapping[str, Any]]
    sources_read: list[Any]

    @property
    def arrays(self) -> dict[str, zarr.Array]:
        """Arrays by path."""
        return {p: node for p, node in self.nodes.items() if isinstance(node, zarr.Array)}

    def had(self, path: str, time: int) -> int:
        """Return how many dates an array has along the axis ``time``."""
        return self.begun[path]["dates"] if path in self.begun else self.arrays[path].shape[time]

    def region(self, path: str) -> tuple[int, ...] | None:
        """Return the shape of the regions of an array in an append that was not finished."""
        return tuple(self.begun[path]["region"]) if path in self.begun else None

    @property
    def coded(self) -> set[str]:
        """Paths of the arrays that TEC encodes."""
        return {path for path, array in self.arrays.items() if tec_spec(array) is not None}

    @property
    def zarr_format(self) -> Literal[2, 3]:
        """Zarr format."""
        return self.root.metadata.zarr_format

    @property
    def consolidated(self) -> bool:
        """Whether the root has consolidated metadata."""
        found = isinstance(self.root, zarr.Group) and self.root.metadata.consolidated_metadata
        return bool(found)

    def others(self, documents: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the metadata documents of this target that are not among ``documents``."""
        names = ("zarr.json",) if self.zarr_format == 3 else (".zarray", ".zgroup", ".zattrs")
        keys = [key for key in list_keys(self.store, "") if key.rpartition("/")[2] in names]
        missing = [key for key in keys if key not in documents and is_metadata(key)]
        return {key: read(self.store, key) or b"" for key in sorted(missing, key=publication_order)}


def published_in(
    target: Store,
    made_of: Mapping[str, Any],
    nodes: Mapping[str, zarr.Group | zarr.Array],
    settings: Settings,
) -> Published:
    """Return the target to append to.

    Parameters
    ----------
    target : Store
        A target that can be read.
    made_of : mapping
        What its root says of its source and its settings.
    nodes : mapping
        Groups and arrays of the source, by path.
    settings : Settings
        Those of this call.

    Raises
    ------
    RecompressError
        Settings were given that are not those of the target; or the source has other arrays.
    """
    given, usual = settings.recorded(), Settings().recorded()
    differ = [
        f"{name} was {made_of[name]}, is {value}"
        for name, value in given.items()
        if value != usual[name] and name in made_of and made_of[name] != value
    ]
    if differ:
        raise RecompressError(
            f"dates are appended to {target} with the settings that it has ({'; '.join(differ)}): "
            "leave these out, or make another target"
        )
    root = zarr.open(target, mode="r+")
    begun = Manifest(target).read_config() or {}
    read_from = made_of.get(SOURCES_READ, [])
    published = Published(target, root, list_nodes(root), begun.get(HAD, {}), read_from)
    new = sorted(path for path in nodes if path not in published.nodes)
    gone = sorted(
        path for path, array in published.arrays.items()
        if path not in nodes and _has_dates(array)
    )  # fmt: skip
    for paths, what in ((new, "has {}, which the target lacks"), (gone, "lacks {}")):
        if paths:
            names = ", ".join(p or "/" for p in paths[:_EXAMPLES])
            raise RecompressError(
                f"nothing was appended to {target}: the source {what.format(names)}. {_INSTEAD}"
            )
    return published


def _has_dates(array: zarr.Array) -> bool:
    return any(str(dim).lower() in TIME for dim in dimensions(array) or ())


def kept_storage(array: zarr.Array) -> dict[str, Any]:
    """Return chunks, shards and codecs of an array, for `zarr.create_array`."""
    storage: dict[str, Any] = {"chunks": array.chunks}
    if array.metadata.zarr_format == 2:
        return storage | {
            "filters": array.filters or None,
            "compressors": array.compressors or None,
        }
    return storage | {
        "shards": array.shards, "filters": array.filters, "serializer": array.serializer,
        "compressors": array.compressors,
    }  # fmt: skip


def with_kept_attributes(made: zarr.Array, kept: zarr.Array) -> zarr.Array:
    """Return the array ``made`` with the further attributes that the target's array has."""
    return made.update_attributes({**kept.attrs, **made.attrs})


def check_dates(
    published: Published,
    path: str,
    arrays: tuple[zarr.Array, zarr.Array],
    finer: Finer | None,
    time: int | None,
    dim: str,
) -> int:
    """Return how many dates the target has of an array; 0 if the array has no dates.

    Parameters
    ----------
    published : Published
        The target.
    path : str
        Path of the array.
    arrays : tuple of two zarr.Array
        The array of the source, and that of the target as it will be.
    finer : Finer or None
        Conversion of stored times.
    time : int or None
        Axis of the dates.
    dim : str
        Name of that axis.

    Raises
    ------
    RecompressError
        The array differs from that of the target in more than its number of dates, or its dates are
        not those of the target and then later ones.
    """
    (source, made), kept = arrays, published.arrays[path]
    where = f"nothing was appended to {published.store}: {path or '/'} of the source"
    differ = _differences(made, kept)
    if differ:
        raise RecompressError(f"{where} has another {'; '.join(differ)}. {_INSTEAD}")
    had = 0 if time is None else published.had(path, time)
    others = [i for i in range(source.ndim) if i != time]
    if [source.shape[i] for i in others] != [kept.shape[i] for i in others]:
        raise RecompressError(
            f"{where} has the shape {source.shape}, that of the target {kept.shape}: only dates "
            f"can be appended. {_INSTEAD}"
        )
    if time is not None and source.shape[time] < had:
        raise RecompressError(
            f"{where} has {source.shape[time]} dates, the target has {had} already. {_INSTEAD}"
        )
    if source.ndim == 1:
        _check_values(where, source, kept, finer, had if time == 0 else source.shape[0],
                      path.rpartition("/")[2] == dim)  # fmt: skip
    elif time is not None and source.shape[time] > had:
        folder = path[: len(path) - len(path.rpartition("/")[2])]
        if f"{folder}{dim}" not in published.arrays:
            raise RecompressError(
                f"{where} has no coordinate {dim!r}: nobody can see which dates the target lacks. "
                "Make another target"
            )
    return had


def _differences(made: zarr.Array, kept: zarr.Array) -> list[str]:
    """Return in what the target as it will be differs from what it is, besides its shape."""
    new, old = _metadata(made), _metadata(kept)
    attributes = (new.pop("attributes"), old.pop("attributes"))
    for item in (new, old):
        item.pop("shape")
    differ = [key for key in new if new[key] != old.get(key)]
    changed = [key for key, value in attributes[0].items() if attributes[1].get(key) != value]
    return [
        f"{key} (was {json.dumps(was.get(key))}, is {json.dumps(now.get(key))})"
        for keys, now, was in ((differ, new, old), (changed, *attributes))
        for key in keys[:_EXAMPLES]
    ]


def _metadata(array: zarr.Array) -> dict[str, Any]:
    documents = array.metadata.to_buffer_dict(default_buffer_prototype())
    found = {key: json.loads(data.to_bytes()) for key, data in documents.items()}
    if array.metadata.zarr_format == 3:
        return {"attributes": {}, **found["zarr.json"]}
    attributes = found.get(".zattrs", {})
    return {**found[".zarray"], "attributes": attributes, DIMENSIONS: attributes.get(DIMENSIONS)}


def _check_values(
    where: str,
    source: zarr.Array,
    kept: zarr.Array,
    finer: Finer | None,
    had: int,
    are_dates: bool,
) -> None:
    """Refuse a coordinate whose first values are not those of the target, or whose dates fall."""
    now, was = np.asarray(source[:]), np.asarray(kept[:had])
    now = now if finer is None else finer(now)
    equal = (now[:had] == was) | ((now[:had] != now[:had]) & (was != was))
    if not np.all(equal):
        at = int(np.argmin(equal))
        raise RecompressError(
            f"{where} differs from the target's at position {at} ({now[at]}, not {was[at]}): the "
            "source must be the one that the target was made of, with later dates at its end. "
            f"{_INSTEAD}"
        )
    values = now[max(0, had - 1) :].tolist() if are_dates else []
    for before, after in itertools.pairwise(values):
        if not before <= after:
            raise RecompressError(
                f"{where} is out of order: {after} follows {before} "
                f"({source.attrs.get('units', 'no units')}). Only later dates can follow: sort the "
                "source's dates, or make another target"
            )
