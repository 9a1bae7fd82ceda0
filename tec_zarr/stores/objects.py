"""Open Zarr stores; list, read and write their objects."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync as sync  # Zarr has no public way to wait for its stores.
from zarr.storage import FsspecStore, LocalStore

from tec_zarr.errors import RecompressError
from tec_zarr.stores.sessions import SessionStore, readable, writable

_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def open_source(source: Any, options: Mapping[str, Any] | None) -> zarr.Group | zarr.Array:
    """Open a path, URL or store for reading. A Zarr group or array is returned unchanged."""
    if isinstance(source, zarr.Group | zarr.Array):
        return source
    try:
        source = readable(source)
        if isinstance(source, Path) or (isinstance(source, str) and "://" not in source):
            source = str(Path(source).absolute())  # Workers may run in another directory.
        return zarr.open(source, mode="r", storage_options=dict(options) if options else None)
    except Exception as error:  # Each filesystem raises its own exceptions.
        raise RecompressError(
            f"the source {source} cannot be opened as Zarr ({type(error).__name__}: {error})"
        ) from error


def list_nodes(source: zarr.Group | zarr.Array) -> dict[str, zarr.Group | zarr.Array]:
    """Return the root node and all nodes below it, by path, in alphabetical order.

    Each node is read from its own metadata, because consolidated metadata may be out of date.
    Consolidated metadata are used only if the store cannot be listed, as behind most web servers.
    """
    if isinstance(source, zarr.Array):
        return {"": source}
    nodes: list[tuple[str, zarr.Group | zarr.Array]] = []
    own = source
    if source.metadata.consolidated_metadata is not None:
        with contextlib.suppress(Exception):  # Each filesystem raises its own exceptions.
            own = zarr.open_group(source.store_path, mode="r", use_consolidated=False)
            nodes = _members(own)
    if not nodes:
        own, nodes = source, _members(source)
    return {"": own, **dict(nodes)}


def _members(group: zarr.Group) -> list[tuple[str, zarr.Group | zarr.Array]]:
    with warnings.catch_warnings():  # Of the record of a recompression.
        warnings.filterwarnings("ignore", "Object at .* is not recognized as a component")
        return sorted(group.members(max_depth=None))


def open_target(target: Any, options: Mapping[str, Any] | None) -> Store:
    """Open a path or URL as a store for writing. A store is returned unchanged. Writes nothing."""
    session = writable(target)
    if session is not None:
        return SessionStore(session)
    if isinstance(target, Store):
        return target
    if "://" in str(target):
        return FsspecStore.from_url(str(target), storage_options=dict(options or {}))
    return LocalStore(Path(target).absolute())


def is_metadata(key: str) -> bool:
    """Return whether a key of a store names a metadata document."""
    return key.rpartition("/")[2] in _METADATA


def publication_order(key: str) -> tuple[Any, ...]:
    """Return a sort key that puts metadata documents last, and those of the root at the end.

    Readers find a store only once its root metadata exist. Writing them last hides incomplete
    stores.
    """
    return is_metadata(key), -key.count("/"), key == ".zmetadata", key


def read(store: Store, key: str) -> bytes | None:
    """Return the bytes of one object; None if it does not exist."""
    data = sync(store.get(key, default_buffer_prototype()))
    return None if data is None else data.to_bytes()


def write(store: Store, key: str, data: bytes) -> None:
    """Write one object."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def list_keys(store: Store, prefix: str) -> list[str]:
    """Return all keys that start with ``prefix``."""

    async def collect() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sync(collect())


def forget_listings(store: Store) -> None:
    """Drop fsspec's cached listings, which do not show objects that other processes wrote."""
    filesystem = getattr(store, "fs", None)
    if filesystem is not None:
        filesystem.invalidate_cache()
