"""Stores and their objects: open, list, read, write; metadata last."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from tec_zarr.errors import RecompressError

_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def open_source(source: Any, options: Mapping[str, Any] | None) -> zarr.Group | zarr.Array:
    """Open a path, URL or store for reading; Zarr objects are taken as they are."""
    if isinstance(source, zarr.Group | zarr.Array):
        return source
    try:
        if isinstance(source, Path) or (isinstance(source, str) and "://" not in source):
            source = str(Path(source).absolute())  # workers may run in another directory
        return zarr.open(source, mode="r", storage_options=dict(options) if options else None)
    except Exception as error:  # each filesystem has its own kinds
        raise RecompressError(
            f"the source {source} cannot be opened as Zarr ({type(error).__name__}: {error})"
        ) from error


def list_nodes(source: zarr.Group | zarr.Array) -> dict[str, zarr.Group | zarr.Array]:
    """The node at the root and all below it, by path, in alphabetical order.

    Each has its own metadata, because consolidated ones may be older: those are taken only where
    a store cannot be listed, such as behind most web servers.
    """
    if isinstance(source, zarr.Array):
        return {"": source}
    nodes: list[tuple[str, zarr.Group | zarr.Array]] = []
    own = source
    if source.metadata.consolidated_metadata is not None:
        with contextlib.suppress(Exception):  # each filesystem has its own kinds
            own = zarr.open_group(source.store_path, mode="r", use_consolidated=False)
            nodes = sorted(own.members(max_depth=None))
    if not nodes:
        own, nodes = source, sorted(source.members(max_depth=None))
    return {"": own, **dict(nodes)}


def open_target(target: Any, options: Mapping[str, Any] | None) -> Store:
    """Store of a path or URL; a store is taken as it is. Nothing is written."""
    if isinstance(target, Store):
        return target
    if "://" in str(target):
        return FsspecStore.from_url(str(target), storage_options=dict(options or {}))
    return LocalStore(Path(target).absolute())


def is_metadata(key: str) -> bool:
    """Whether a key of a store is that of a metadata document."""
    return key.rpartition("/")[2] in _METADATA


def publication_order(key: str) -> tuple[Any, ...]:
    """Sort key: metadata documents last, the root's at the end, which makes the rest visible."""
    return is_metadata(key), -key.count("/"), key == ".zmetadata", key


def read(store: Store, key: str) -> bytes | None:
    """One object, None where there is none."""
    data = sync(store.get(key, default_buffer_prototype()))
    return None if data is None else data.to_bytes()


def write(store: Store, key: str, data: bytes) -> None:
    """Write one object."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


def list_keys(store: Store, prefix: str) -> list[str]:
    """Keys under ``prefix``."""

    async def collect() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sync(collect())


def forget_listings(store: Store) -> None:
    """Make fsspec look again: workers write behind the back of its cached listings."""
    filesystem = getattr(store, "fs", None)
    if filesystem is not None:
        filesystem.invalidate_cache()
