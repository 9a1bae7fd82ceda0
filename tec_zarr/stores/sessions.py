"""Icechunk repositories as targets: what is written is seen when it is committed, all at once.

Icechunk itself is imported only where a repository is named by its path.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from tec_zarr.errors import RecompressError, UnsupportedArrayError

PREFIX = "icechunk:"
"""Before the path or URL of a repository."""

FOLDER = "_tec"
"""Where a run keeps its record, which is no part of the data."""


def writable(target: Any) -> Store | None:
    """Return the store of a session that can be committed; None if ``target`` is no Icechunk.

    Parameters
    ----------
    target : any
        A Repository (its branch ``main``), a Session, its store, or ``icechunk:`` and a path or URL
        (s3://, gs://); the repository is made if there is none.

    Raises
    ------
    RecompressError
        The session is read-only, or holds changes that were not committed.
    """
    if isinstance(target, str) and target.startswith(PREFIX):
        target = _repository(target.removeprefix(PREFIX), new=True)
    if not _is_icechunk(target):
        return None
    if hasattr(target, "writable_session"):
        target = target.writable_session("main")
    store: Any = getattr(target, "store", target)
    if store.session.read_only or store.session.has_uncommitted_changes:
        what = "is read-only" if store.session.read_only else "has changes that are not committed"
        raise RecompressError(
            f"the Icechunk session {what}: begin a new one with repository.writable_session('main')"
        )
    return store


def readable(source: Any) -> Any:
    """Return the store of a repository that is named by ``icechunk:``; all else unchanged."""
    if isinstance(source, str) and source.startswith(PREFIX):
        repository = _repository(source.removeprefix(PREFIX), new=False)
        return repository.readonly_session("main").store
    return source


def reopened(target: Any) -> Any:
    """Return the store of what is committed now, for a target of `writable`; all else unchanged."""
    if hasattr(target, "readonly_session"):
        return target.readonly_session("main").store
    opened = readable(target)
    return getattr(opened, "store", opened) if _is_icechunk(target) else opened


def commit(store: Any, message: str) -> None:
    """Commit the session of a store.

    Raises
    ------
    RecompressError
        Another commit came to the branch since the session began, or the storage refused.
    """
    branch = store.session.branch
    try:
        store.session.commit(message)
    except Exception as error:  # Icechunk raises errors of its own.
        discard(store)
        if type(error).__name__ == "ConflictError":
            raise RecompressError(
                f"somebody else has committed to {branch!r} since this session began: nothing of "
                "this run is visible. Repeat the call with a new session"
            ) from error
        raise RecompressError(
            f"nothing was committed to {branch!r} ({type(error).__name__}: {error}): repeat the "
            "call with a new session"
        ) from error


def discard(store: Any) -> None:
    """Forget what was written to the session of a store, if it was not committed."""
    if not store.session.read_only:
        store.session.discard_changes()


@contextlib.contextmanager
def committed(target: Any, message: str) -> Iterator[Any]:
    """Yield a target to write to; at the end commit it, if it is Icechunk's.

    If the block raises, nothing is committed.
    """
    store = writable(target)
    if store is None:
        yield target
        return
    try:
        yield store
    except BaseException:
        discard(store)
        raise
    commit(store, message)


def _is_icechunk(target: Any) -> bool:
    return type(target).__module__.startswith("icechunk")


def _repository(place: str, new: bool) -> Any:
    try:
        import icechunk
    except ImportError as error:
        raise UnsupportedArrayError(
            f"{PREFIX}{place} needs icechunk: pip install icechunk"
        ) from error
    url = urlparse(place)
    bucket: dict[str, Any] = {"bucket": url.netloc, "prefix": url.path.strip("/"), "from_env": True}
    storage: Any = {
        "s3": lambda: icechunk.s3_storage(**bucket),
        "gs": lambda: icechunk.gcs_storage(**bucket),
    }.get(url.scheme, lambda: icechunk.local_filesystem_storage(place))()
    try:
        if Path(place).is_file():  # Icechunk panics.
            raise NotADirectoryError(place)
        opens = icechunk.Repository.open_or_create if new else icechunk.Repository.open
        return opens(storage)
    except Exception as error:  # Icechunk raises errors of its own.
        raise RecompressError(
            f"the Icechunk repository {place} cannot be opened ({type(error).__name__}: {error})"
        ) from error


class SessionStore(WrapperStore[Any]):
    """The store of a session, which takes Zarr's keys only, with the record of a run in memory."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._record = MemoryStore()

    @property
    def session_store(self) -> Any:
        """The store of the session itself."""
        return self._store

    def __str__(self) -> str:
        return f"icechunk:{self._store.session.branch}"

    def _at(self, key: str) -> Any:
        return self._record if key.split("/", 1)[0] == FOLDER else self._store

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        """As for any store."""
        return await self._at(key).get(key, *arguments, **more)

    async def getsize(self, key: str) -> int:
        """As for any store."""
        return int(await self._at(key).getsize(key))

    async def exists(self, key: str) -> bool:
        """As for any store."""
        return bool(await self._at(key).exists(key))

    async def set(self, key: str, *arguments: Any, **more: Any) -> None:
        """As for any store."""
        await self._at(key).set(key, *arguments, **more)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """As for any store."""
        await self._at(key).set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        """As for any store."""
        await self._at(key).delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """As for any store."""
        await self._at(prefix).delete_dir(prefix)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """As for any store."""
        found: AsyncIterator[str] = self._at(prefix).list_prefix(prefix)
        return found
