"""Find out whether a source changed while it was read, from its listings before and after.

An object that was written again has another size, ETag or time. Only objects that a region reads
count. So appended dates do no harm, unless they change a chunk that existed before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zarr
from zarr.storage import FsspecStore, LocalStore
from zarr.storage import ObjectStore as Obstore

from tec_zarr.recompression.plan import ArrayPlan
from tec_zarr.stores.objects import forget_listings, sync

_SAYS = (
    "size", "etag", "e_tag", "version", "generation", "mtime", "ino", "LastModified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip
"""Names that filesystems give to the fields that change when an object is written again."""

State = Sequence[Mapping[int, int] | None]
"""A hash for each region of each array; None for an array whose store cannot be listed."""


def state_of(arrays: Sequence[ArrayPlan]) -> State:
    """Return hashes of the size, ETag and time of the objects that each region is read from.

    This works for paths, URLs and obstore's stores. Other stores cannot list these without reading
    every object.
    """
    return [_regions(array) for array in arrays]


def changed(before: State, after: State) -> list[tuple[int, int]]:
    """Return (array, region) of all regions that were read from objects that changed."""
    return [
        (index, number)
        for index, (then, now) in enumerate(zip(before, after, strict=True))
        if then is not None and now is not None
        for number in then
        if then[number] != now[number]
    ]


def _regions(array: ArrayPlan) -> dict[int, int] | None:
    """Return a hash for each region of an array; None if its store cannot be listed."""
    with contextlib.suppress(Exception):  # Each filesystem raises its own exceptions.
        listed = dict(_listing(array.source))
        # A listing without even metadata means that the store cannot be listed, or that the source
        # was deleted. `read_block` looks for a deleted source.
        if listed:
            return {
                number: hash(tuple(map(listed.get, array.source_keys(array.region_slices(number)))))
                for number in array.numbers
            }
    return None


def _listing(array: zarr.Array) -> Iterator[tuple[str, int]]:
    """Yield the key, inside the array, and a hash of the state of every object of the array.

    Raises
    ------
    TypeError
        The store cannot be listed with sizes.
    """
    store, path = array.store_path.store, array.path
    if isinstance(store, LocalStore):
        root = str(store.root / path)
        for folder, _, names in os.walk(root):
            for name in names:
                found = os.stat(os.path.join(folder, name))
                key = os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
                yield key, hash((found.st_size, found.st_mtime_ns, found.st_ino))
    elif isinstance(store, FsspecStore):
        base = "/".join(filter(None, (store.path.rstrip("/"), path)))
        forget_listings(store)
        listed: Mapping[str, Any] = sync(store.fs._find(base, detail=True))
        forget_listings(store)  # Else fsspec would keep the listing in memory.
        for key, info in listed.items():
            yield _inside(key, base), _said({**info, "etag": info.get("ETag")})
    elif isinstance(store, Obstore):
        import obstore

        for batch in obstore.list(store.store, prefix=path or None):
            for entry in batch:
                yield _inside(entry["path"], path), _said(entry)
    else:
        raise TypeError(f"{store} cannot be listed with sizes")


def _inside(key: str, base: str) -> str:
    return key.lstrip("/").removeprefix(base.lstrip("/")).lstrip("/")


def _said(info: Mapping[str, Any]) -> int:
    return hash(tuple(str(info.get(name)) for name in _SAYS))
