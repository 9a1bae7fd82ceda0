"""Which models there are, where their weights lie, and one loaded copy of each per process.

``weights/index.json`` maps a model's name to its number in the stream, its loader
(``"module:function"``) and its released weights, newest first. Weights stay there for ever:
a frame names the ones it was written with. Published models that are not part of the package,
and weights that arrived inside a store (:mod:`tec_zarr.stores.embed`), are found in the user's
cache (:mod:`tec_zarr.terracodec.hub`). Reading the index needs no torch.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from tec_zarr.errors import FormatError, TecError, UnknownModelError, WeightsMismatchError
from tec_zarr.frame.frame import NAMED_MODEL
from tec_zarr.models.protocol import Entry, Model
from tec_zarr.models.published import PUBLISHED, how_to_get, only_decodes
from tec_zarr.models.weights import (
    cache_folder,
    cached_files,
    embedded_weights,
    hash_in_name,
    index_items,
    kept_hashes,
    released_weights,
    weights_file,
)

if TYPE_CHECKING:
    from tec_zarr.models.protocol import Entry, Model


_registered: dict[str, Entry] = {}
_loaded: dict[tuple[str, str], Model] = {}
_lock = threading.RLock()  # a model may be built on another one


def _start_anew_after_fork() -> None:
    """Neither the thread that held the lock nor OpenMP's threads are there in a forked child.

    OpenMP waits for its own for ever; with one thread it needs none.
    """
    global _lock
    _lock = threading.RLock()  # a model may be built on another one
    torch = sys.modules.get("torch")
    if _loaded and torch is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)


def register_model(name: str, load: Callable[[], Model], weights_sha256: str) -> None:
    """Add a model of your own for this process.

    Frames written with it carry its name, and decode wherever it is registered again. Other
    weights under one name stay readable, the last are written with; the same weights again take
    the place of those before.

    Parameters
    ----------
    name : str
        At most 64 ASCII characters, not the name of a built-in model.
    load : callable
        Called once, when the first chunk needs the model.
    weights_sha256 : str
        SHA-256 (hex) of the weights.
    """
    if name in _index() or not name.isascii() or not 0 < len(name) <= 64:
        raise UnknownModelError(
            f"a model cannot be registered as {name!r}: take up to 64 ASCII characters other "
            f"than {sorted(_index())}"
        )
    with _lock:
        before = _registered[name].load if name in _registered else None
        others = before.loaders if isinstance(before, _Registered) else {}
        others = {sha256: other for sha256, other in others.items() if sha256 != weights_sha256}
        newest_first = _Registered(name, {weights_sha256: load, **others})
        _registered[name] = Entry(name, NAMED_MODEL, tuple(newest_first.loaders), newest_first)
        _loaded.pop((name, weights_sha256), None)


@dataclass(frozen=True)
class _Registered:
    """Loads what was registered under a name; of a published model also what is in the cache."""

    name: str
    loaders: Mapping[str, Callable[[], Model]]

    def __call__(self, sha256: str) -> Model:
        if sha256 in self.loaders:
            return self.loaders[sha256]()
        kept = cached_entry(self.name)
        assert kept is not None  # get_model found the hash there
        return kept.load(sha256)


def find_model(name: str) -> Entry:
    """Entry of the model called ``name``, without loading it.

    Raises
    ------
    UnknownModelError
        There is none here.
    """
    entry = _registered.get(name) or _index().get(name) or cached_entry(name)
    if entry is None:
        raise UnknownModelError(
            f"model {name!r} is not part of this tec_zarr, which has "
            f"{sorted({*_index(), *_registered})}: pip install --upgrade tec_zarr, or register "
            "your own model with tec_zarr.models.registry.register_model"
        )
    return entry


def name_of(number: int) -> str:
    """Name of the model with this number in the stream."""
    for entry in _index().values():
        if entry.number == number:
            return entry.name
    raise UnknownModelError(
        f"TEC frame of model number {number}, which is not part of this tec_zarr "
        f"({ {e.number: e.name for e in _index().values()} }): pip install --upgrade tec_zarr"
    )


def get_model(name: str, weights: str | None = None) -> Model:
    """Loaded model, from the process's cache after the first call. Thread-safe.

    Parameters
    ----------
    name : str
        Name in the index, or registered with :func:`register_model`.
    weights : str, optional
        SHA-256 of the weights (hex) or its beginning; None takes the newest.

    Raises
    ------
    UnknownModelError
        No such model here.
    WeightsMismatchError
        The model is here, those weights are not, or the file was changed.
    """
    entry = find_model(name)
    here = chain(entry.weights, kept_hashes(name), embedded_weights(name))
    sha = next((w for w in here if w.startswith(weights or "")), None)
    if sha is None:
        raise WeightsMismatchError(
            f"the chunk needs model {name!r} with weights sha256 {weights}..., this tec_zarr has "
            f"{', '.join(w[:16] + '...' for w in entry.weights)}: pip install --upgrade tec_zarr, "
            "or, if the store carries its weights, tec_zarr.use_embedded_weights(store)"
        )
    with _lock:
        model = _loaded.get((name, sha))
        if model is None:
            model = _loaded[name, sha] = entry.load(sha)
    return model


def get_encoder(name: str, weights: str) -> Model:
    """As :func:`get_model`, of whole hashes and for encoding.

    Raises
    ------
    WeightsMismatchError
        Also for weights that came with a store: they decode, and never encode.
    """
    own = chain(find_model(name).weights, kept_hashes(name))
    if weights not in own and weights in embedded_weights(name):
        raise only_decodes(name)
    return get_model(name, weights)


def get_released(name: str, sha256: str) -> Model:
    """A model that the weights of another one name, which may come from a stranger.

    Only weights that this package's index lists: they lead to no file of the stranger's, and
    never back.

    Raises
    ------
    WeightsMismatchError
        The index does not list them.
    """
    if all(item["sha256"] != sha256 for item in index_items()[name]["weights"]):
        raise WeightsMismatchError(
            f"weights are made for weights {sha256} of model {name!r}, which this tec_zarr does "
            "not know: pip install --upgrade tec_zarr"
        )
    return get_model(name, sha256)


@cache
def _index() -> dict[str, Entry]:
    return {name: _entry(name, item) for name, item in index_items().items()}


def _entry(name: str, item: dict) -> Entry:
    def load(sha256: str) -> Model:
        path = weights_file(name, sha256)
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise WeightsMismatchError(
                f"the weights {path} cannot be read ({error.strerror}): "
                "pip install --force-reinstall tec_zarr"
            ) from error
        if found != sha256:
            raise WeightsMismatchError(
                f"{path} has sha256 {found}, it should be {sha256}: the file was changed; "
                "pip install --force-reinstall tec_zarr, or delete it if it is in the cache"
            )
        of_file: dict[str, Any] = next((w for w in item["weights"] if w["sha256"] == sha256), {})
        module, _, function = of_file.get("loader", item["loader"]).partition(":")
        read = getattr(importlib.import_module(module), function)
        try:
            return read(path)
        except (TecError, MemoryError):
            raise
        except Exception as error:  # embedded by somebody: any tensors under any names
            if isinstance(error, OSError | MemoryError):  # of the machine, not of the file
                raise
            raise FormatError(
                f"{path} does not hold weights of model {name!r} ({type(error).__name__}: {error})"
                ": delete it and get the store's weights again"
            ) from error

    return Entry(name, item["id"], tuple(released_weights(name)), load, item.get("temporal", False),
                 item.get("on_grids", False))  # fmt: skip


def cached_entry(name: str) -> Entry | None:
    """Registry entry of a model whose weights lie in the cache; never downloads.

    Parameters
    ----------
    name : str
        Name in streams: ``"terracodec_v1_tt_s2l2a/lambda-20"``.

    Returns
    -------
    Entry or None
        None if `name` is not of the published family.

    Raises
    ------
    UnknownModelError
        The model is published, but its weights are not in the cache, or `name` has no rate, as
        of arrays written with a file given by its path; the message says how to get them.
    """
    from tec_zarr.frame.frame import NAMED_MODEL
    from tec_zarr.models.protocol import Entry
    from tec_zarr.models.weights import embedded_weights, weights_file

    family, _, tail = name.partition("/lambda-")
    if family not in PUBLISHED:
        return None
    if tail not in PUBLISHED[family].rates:
        raise UnknownModelError(
            f"Model {name!r} is not known by its name alone: its weights were given by their path. "
            f"Load the same file first, tec_zarr.terracodec.load_codec({family!r}, path=...), or "
            f"name a published rate: '{family}/lambda-' and one of "
            f"{', '.join(PUBLISHED[family].rates)}."
        )
    weights = tuple(map(hash_in_name, cached_files(family, tail)))
    if not weights and not any(embedded_weights(name)):
        raise UnknownModelError(
            f"The weights of {name} are not on this machine (looked in {cache_folder()}).\n"
            + how_to_get(family, tail)
        )

    def open_codec(sha256: str) -> Model:
        # By name, as the loaders of weights/index.json: torch comes with the first chunk.
        hub = importlib.import_module("tec_zarr.terracodec.hub")
        return hub.open_cached(weights_file(name, sha256), name, sha256)

    return Entry(name, NAMED_MODEL, weights, open_codec)
