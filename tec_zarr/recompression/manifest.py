"""What a recompression has finished, kept beside the data so that any later run can go on.

``_tec/config.json`` says what is being made of what. Each finished region has one small object
of its own, ``_tec/done/ARRAY-REGION.json``, which the worker writes after the region's data are
stored and verified: there is no moment at which a finished region is not on record, however
the client ends, and nobody rewrites what others wrote. Objects are written atomically where the
store can (files by rename, object stores by nature); each carries a checksum, so that a torn one
counts as absent and its region is made again, to the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tec_zarr.errors import RecompressError
from tec_zarr.stores.objects import forget_listings, list_keys, read, write

FOLDER = "_tec"
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
        Stored objects of the region, key to (length, CRC32). Chunks that hold nothing but the
        fill value are not stored: a region without objects is finished too.
    raw_bytes : int
        Size of the region in memory.
    samples, verified : int
        How many it has, and how many of them were read back and compared.
    squared_error : float
        Sum over the verified, measured samples, DN squared, clipped as PSNR is.
    compared : int
        How many samples that sum has.
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
        """What the store is being filled with; None when nothing was begun.

        Raises
        ------
        RecompressError
            The record is damaged although regions are finished.
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
        """Begin: from here on the target can only be filled with exactly this."""
        write(self.store, _CONFIG, sealed(config))

    def mark(self, done: Done) -> None:
        """Record a finished region. The last step of a worker.

        Raises
        ------
        RecompressError
            There is no record to write to: its run has ended, or did not begin in this storage.
        """
        if read(self.store, _CONFIG) is None:
            raise RecompressError(
                f"{self.store} has no {_CONFIG}: another run has finished the target, somebody "
                "deleted it, or this worker does not share the storage with the client"
            )
        write(self.store, f"{_DONE}{done.array}-{done.region}.json", sealed(asdict(done)))

    def forget(self, array: int, region: int) -> None:
        """Take a region off the record, to be made again."""
        sync(self.store.delete(f"{_DONE}{array}-{region}.json"))

    def finished(self) -> dict[tuple[int, int], Done]:
        """Regions on record whose objects are all there, with the recorded lengths."""
        forget_listings(self.store)
        found = sync(self._finished(self._done_keys()))
        return {(done.array, done.region): done for done in found if done is not None}

    def remove(self) -> None:
        """Delete the record: the store is complete, and readers see Zarr and nothing else.

        The configuration goes first, so that an interruption leaves no half of a record.
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
    """A JSON object with its checksum."""
    body = json.dumps(item, sort_keys=True)
    return json.dumps({"crc32": zlib.crc32(body.encode()), "item": item}, sort_keys=True).encode()


def unsealed(data: bytes) -> dict[str, Any] | None:
    """Content of what :func:`sealed` made, None when it is torn or damaged."""
    try:
        document = json.loads(data)
        item = document["item"]
        body = json.dumps(item, sort_keys=True)
        sound = isinstance(item, dict) and zlib.crc32(body.encode()) == document["crc32"]
        return item if sound else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _as_done(item: dict[str, Any] | None) -> Done | None:
    """What :meth:`Manifest.mark` recorded; None when it is something else."""
    try:
        objects = {key: (int(n), int(crc)) for key, (n, crc) in (item or {})["objects"].items()}
        done = Done(**{**(item or {}), "objects": objects})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    numbers = (value for name, value in vars(done).items() if name != "objects")
    inside = (".." not in key.split("/") and "\0" not in key for key in objects)
    return done if all(isinstance(n, int | float) for n in numbers) and all(inside) else None
