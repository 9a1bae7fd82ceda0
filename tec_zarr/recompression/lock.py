"""One run on a store at a time: an object that says who is at work there, and that it lives.

Stores have no locks, so the holder renews the object while it lives. One that a killed process
left counts for nothing: at once if the process was on this machine, otherwise after `DEAD_AFTER`.
Where a store cannot create an object exclusively two runs may both begin; one of them finds the
other's object at its next renewal, and stops.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tec_zarr.errors import RecompressError
from tec_zarr.recompression.manifest import FOLDER, sealed, unsealed
from tec_zarr.stores.objects import forget_listings, read, write

RENEWED = 20.0
"""Seconds between two renewals."""

DEAD_AFTER = 300.0
"""Seconds without a renewal after which a holder is dead."""

_KEY = f"{FOLDER}/lock.json"
_HELD: set[str] = set()
"""Tokens that this process holds."""


class Lock:
    """Keeps other runs off a store, from `acquire` to `release`.

    Attributes
    ----------
    lost : threading.Event
        Set when another run has taken the store over.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.lost = store, threading.Event()
        self._token, self._ended = uuid.uuid4().hex, threading.Event()
        self._holder = {
            "token": self._token, "host": socket.gethostname(), "process": os.getpid(),
            "began": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }  # fmt: skip
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[Lock]:
        """Hold the store.

        Raises
        ------
        RecompressError
            Another run is at work there.
        Exception
            The store cannot be written; each filesystem has its own kinds.
        """
        forget_listings(self.store)
        self._refuse_while(self._found())
        data = default_buffer_prototype().buffer.from_bytes(self._content())
        _HELD.add(self._token)
        try:
            sync(self.store.delete(_KEY))
            sync(self.store.set_if_not_exists(_KEY, data))
            self._refuse_while(self._found())
            self._renewing.start()
            yield self
        finally:
            self._ended.set()
            if self._renewing.ident is not None:
                self._renewing.join()
            _HELD.discard(self._token)
            with contextlib.suppress(Exception):  # its age says that it is abandoned
                if self._is_mine(self._found()):
                    sync(self.store.delete(_KEY))

    def check(self) -> None:
        """Raise RecompressError where another run has taken the store over."""
        if not self._is_mine(self._found()):
            raise RecompressError(
                f"another run has taken over {self.store}: this one was not seen for "
                f"{DEAD_AFTER:.0f} seconds or more, or both began at once. Leave it to that one; "
                "what is finished is kept"
            )

    def _content(self) -> bytes:
        return sealed({**self._holder, "seen": time.time()})

    def _found(self) -> dict[str, Any] | None:
        data = read(self.store, _KEY)
        return None if data is None else unsealed(data)

    def _is_mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._token

    def _refuse_while(self, holder: dict[str, Any] | None) -> None:
        if holder is None or self._is_mine(holder) or not _lives(holder):
            return
        seen = max(0, time.time() - holder["seen"])
        raise RecompressError(
            f"another run is at work on {self.store}: process {holder['process']} on "
            f"{holder['host']}, begun {holder['began']}, last seen {seen:.0f} seconds ago. Wait "
            f"for it, or stop it and repeat the call; a run that died on another machine is "
            f"forgotten after {DEAD_AFTER:.0f} seconds"
        )

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            with contextlib.suppress(Exception):  # full or unreachable: the next time, or too old
                if not self._is_mine(self._found()):
                    self.lost.set()
                    return
                write(self.store, _KEY, self._content())


def _lives(holder: dict[str, Any]) -> bool:
    try:
        recent = time.time() - holder["seen"] < DEAD_AFTER
        if not recent or holder["host"] != socket.gethostname() or os.name != "posix":
            return recent
        if holder["process"] == os.getpid():
            return holder["token"] in _HELD
        os.kill(holder["process"], 0)
    except (KeyError, TypeError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
