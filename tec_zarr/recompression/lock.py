"""Lock a store, so that only one run at a time writes to it.

Stores have no locks. So a run writes an object that names it, the holder, and renews this object
while it lives. The object of a killed process no longer counts: at once if that process was on
this machine, otherwise `DEAD_AFTER` seconds after its last renewal. If a store cannot create an
object exclusively, two runs may both begin. Then one of them finds the other's object at its next
renewal, and stops.
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
from zarr.buffer import default_buffer_prototype

from tec_zarr.errors import RecompressError
from tec_zarr.recompression.manifest import sealed, unsealed
from tec_zarr.stores.objects import forget_listings, read, sync, write
from tec_zarr.stores.sessions import FOLDER

RENEWED = 20.0
"""Seconds between two renewals."""

DEAD_AFTER = 300.0
"""Seconds without a renewal after which a holder is dead."""

_KEY = f"{FOLDER}/lock.json"
_HELD: set[str] = set()
"""Tokens of the locks that this process holds."""


class Lock:
    """Keeps other runs off a store, within the context of `held`.

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
        """Hold the lock of the store while the context lasts.

        Raises
        ------
        RecompressError
            Another run holds the lock.
        Exception
            The store cannot be written. Each filesystem raises its own exceptions.
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
            with contextlib.suppress(Exception):  # A lock that stays expires after DEAD_AFTER.
                if self._is_mine(self._found()):
                    sync(self.store.delete(_KEY))

    def check(self) -> None:
        """Raise RecompressError if another run has taken the store over."""
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
            # The store may be full or unreachable. The next renewal may work, or the lock expires.
            with contextlib.suppress(Exception):
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
    except PermissionError:  # The process lives and belongs to another user.
        return True
    return True
