"""Record the finished regions of a recompression in the target, so that a later run can continue.

``_tec/config.json`` records the source and the plan. Each finished region has a small object of its
own, ``_tec/done/ARRAY-REGION.json``. The worker writes it after the region's data are stored and
verified. So every region that a worker finished is on record, even if the client is killed, and no
worker rewrites the record of another. Objects are written atomically if the store can do so (files
by rename; object stores always do). Each object has a checksum. An incomplete one counts as absent:
its region is made again, to the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype

from tec_zarr.errors import RecompressError
from tec_zarr.stores.objects import forget_listings, list_keys, read, sync, write
from tec_zarr.stores.sessions import FOLDER

_CONFIG = f"{FOLDER}/config.json"
_DONE = f"{FOLDER}/done/"
_CONCURRENT_REQUESTS = 32


@dataclass(frozen=True)
class Done:
    """One finished region.

    Attributes
    ----------
    array, region : int
        Position of the array in the plan, and of the region in the array.
    source_crc32 : int
        CRC32 of the samples that were read.
    objects : dict
        Stored objects of the region: key to (length, CRC32). Chunks that hold only the fill value
        are not stored, so a finished region may have no objects.
    raw_bytes : int
        Size of the region in memory.
    samples, verified : int
        Number of samples, and number of those that were read back and compared.
    squared_error : float
        Sum of squared errors (DN squared) of the samples that were verified and are not nodata.
        Both sides are clipped as for the PSNR.
    compared : int
        Number of samples in that sum.
    max_error : float
        Largest absolute error among them, DN.
    seconds : float
        Time that the worker took.
    """

    array: int
    region: int
    source_crc32: int
    objects: dict[str, tuple[int, int]]
    raw_bytes: int
    samples: int
    verified: int
    squared_error: float
    compared: int
    max_error: float
    seconds: float

    @property
    def stored_bytes(self) -> int:
        """Length of all objects of the region."""
        return sum(length for length, _ in self.objects.values())


class Manifest:
    """The record of one recompression in the store it writes to."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read_config(self) -> dict[str, Any] | None:
        """Return the configuration of the plan that fills the store; None if no run has begun.

        Raises
        ------
        RecompressError
            The configuration is damaged, but regions are finished.
        """
        data = read(self.store, _CONFIG)
        config = None if data is None else unsealed(data)
        if data is not None and config is None and self._done_keys():
            raise RecompressError(
                f"{self.store}: {_CONFIG} is damaged, so the finished regions cannot be trusted: "
                "delete the target and start again"
            )
        return config

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Begin a recompression. From then on only the same plan can fill the target.

        Records of another recompression are deleted.
        """
        for key in list_keys(self.store, _DONE):
            sync(self.store.delete(key))
        write(self.store, _CONFIG, sealed(config))

    def mark(self, done: Done) -> None:
        """Record a finished region. This is the last step of a worker.

        Raises
        ------
        RecompressError
            The store has no configuration: the run has ended, or it began in another storage.
        """
        if read(self.store, _CONFIG) is None:
            raise RecompressError(
                f"{self.store} has no {_CONFIG}: another run has finished the target, somebody "
                "deleted it, or this worker does not share the storage with the client"
            )
        write(self.store, f"{_DONE}{done.array}-{done.region}.json", sealed(asdict(done)))

    def forget(self, array: int, region: int) -> None:
        """Delete the record of a region, so that it is made again."""
        sync(self.store.delete(f"{_DONE}{array}-{region}.json"))

    def finished(self) -> dict[tuple[int, int], Done]:
        """Return the recorded regions whose objects all exist with the recorded lengths."""
        forget_listings(self.store)
        found = sync(self._finished(self._done_keys()))
        return {(done.array, done.region): done for done in found if done is not None}

    def remove(self) -> None:
        """Delete the whole record of a complete store, so that only Zarr's objects remain.

        The configuration is deleted first: without it the rest of a record counts for nothing,
        should the deletion be interrupted.
        """
        sync(self.store.delete(_CONFIG))
        forget_listings(self.store)
        sync(self.store.delete_dir(FOLDER))

    def _done_keys(self) -> list[str]:
        return [key for key in list_keys(self.store, _DONE) if key.endswith(".json")]

    async def _finished(self, keys: Sequence[str]) -> list[Done | None]:
        slots = asyncio.Semaphore(_CONCURRENT_REQUESTS)

        async def one(key: str) -> Done | None:
            async with slots:
                data = await self.store.get(key, default_buffer_prototype())
                done = None if data is None else _as_done(unsealed(data.to_bytes()))
                if done is None:
                    return None
                for key, (length, _) in done.objects.items():
                    try:
                        if await self.store.getsize(key) != length:
                            return None
                    except FileNotFoundError:
                        return None
                return done

        return await asyncio.gather(*map(one, keys))


def sealed(item: Mapping[str, Any]) -> bytes:
    """Return ``item`` and its CRC32 as one JSON document."""
    body = json.dumps(item, sort_keys=True)
    return json.dumps({"crc32": zlib.crc32(body.encode()), "item": item}, sort_keys=True).encode()


def unsealed(data: bytes) -> dict[str, Any] | None:
    """Return the item in a document of :func:`sealed`; None if it is incomplete or damaged."""
    try:
        document = json.loads(data)
        item = document["item"]
        body = json.dumps(item, sort_keys=True)
        sound = isinstance(item, dict) and zlib.crc32(body.encode()) == document["crc32"]
        return item if sound else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _as_done(item: dict[str, Any] | None) -> Done | None:
    """Return the `Done` that :meth:`Manifest.mark` recorded; None if ``item`` is no such record."""
    try:
        objects = {key: (int(n), int(crc)) for key, (n, crc) in (item or {})["objects"].items()}
        done = Done(**{**(item or {}), "objects": objects})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    numbers = (value for name, value in vars(done).items() if name != "objects")
    inside = (".." not in key.split("/") and "\0" not in key for key in objects)
    return done if all(isinstance(n, int | float) for n in numbers) and all(inside) else None
