"""Whether a source stays as it is while it is read: its listing before and after.

An object that was written anew has another size, ETag or time. Only objects that a region reads
count, so that dates appended meanwhile do no harm unless they change a chunk that was there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import zarr
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore
from zarr.storage import ObjectStore as Obstore

from tec_zarr.recompression.plan import ArrayPlan
from tec_zarr.stores.objects import forget_listings

_SAYS = (
    "size", "etag", "e_tag", "version", "generation", "mtime", "ino", "LastModified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip
"""What the filesystems call what changes with an object."""

State = Sequence[Sequence[int] | None]
"""A number for each region of each array; None for arrays of stores that cannot be listed."""


def state_of(arrays: Sequence[ArrayPlan]) -> State:
    """State of the objects that the regions of the arrays are read from.

    Of paths, URLs and obstore's stores; others cannot be listed without reading all they hold.
    """
    return [_regions(array) for array in arrays]


def changed(before: State, after: State) -> list[tuple[int, int]]:
    """Array and region of all that were read from objects that have changed since."""
    return [
        (index, number)
        for index, (then, now) in enumerate(zip(before, after, strict=True))
        if then is not None and now is not None
        for number, (old, new) in enumerate(zip(then, now, strict=True))
        if old != new
    ]


def _regions(array: ArrayPlan) -> list[int] | None:
    with contextlib.suppress(Exception):  # each filesystem has its own kinds
        listed = dict(_listing(array.source))
        if listed:  # not even metadata: unlisted, or gone, which every read looks for
            return [
                hash(tuple(map(listed.get, array.source_keys(array.region_slices(number)))))
                for number in range(array.regions)
            ]
    return None


def _listing(array: zarr.Array) -> Iterator[tuple[str, int]]:
    """Key inside the array and state of every object under it.

    Raises
    ------
    TypeError
        A store that cannot be listed with sizes.
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
        forget_listings(store)  # it would be kept in memory
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
