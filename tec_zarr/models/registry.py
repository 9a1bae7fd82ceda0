"""Finds models by name or number, and keeps one loaded copy of each per process.

``weights/index.json`` maps the name of a model to its number in frames, its loader
(``"module:function"``) and its released weights, newest first. Released weights are never removed,
because a frame names the weights that it needs. Two kinds of weights are in the user's cache
(:mod:`tec_zarr.models.weights`): those of published models (:mod:`tec_zarr.terracodec.hub` loads
them) and those that came inside a store (:mod:`tec_zarr.stores.embed`). Reading the index does not
import torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

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

_registered: dict[str, Entry] = {}
_loaded: dict[tuple[str, str], Model] = {}
_lock = threading.RLock()  # reentrant, because loading a model may load another one


def _start_anew_after_fork() -> None:
    """Replace the lock and limit torch to one thread in a forked child.

    The thread that held the lock does not exist in the child, and neither do OpenMP's threads.
    OpenMP would wait for them for ever; with one thread it needs none.
    """
    global _lock
    _lock = threading.RLock()  # reentrant, because loading a model may load another one
    torch = sys.modules.get("torch")
    if _loaded and torch is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)


@contextlib.contextmanager
def as_new_process(*, keep_registered: bool = False) -> Iterator[None]:
    """Within a block no model is loaded or registered, as in a new process; then all is as before.

    For tests. No other thread may use models meanwhile.

    Parameters
    ----------
    keep_registered : bool
        Whether models that are registered before the block stay known in it. They are loaded anew.
    """
    global _registered, _loaded
    before = _registered, _loaded
    _registered, _loaded = dict(_registered) if keep_registered else {}, {}
    _index.cache_clear()
    try:
        yield
    finally:
        _registered, _loaded = before
        _index.cache_clear()


def register_model(
    name: str, load: Callable[[], Model], weights_sha256: str, *, takes: Iterable[str] = ()
) -> None:
    """Add a model of your own for this process.

    Its frames hold its name. They decode in every process that registers the model. A name can be
    registered with several weights: all of them decode, and the last ones encode. Registering the
    same weights again replaces their loader.

    Parameters
    ----------
    name : str
        At most 64 ASCII characters, not the name of a built-in model.
    load : callable
        Returns the model, an object of a class that inherits from
        `tec_zarr.models.protocol.Model`. It is called once, when the first chunk needs the model.
    weights_sha256 : str
        SHA-256 (hex) of the weights.
    takes : iterable of str
        Options that ``encode`` of the model takes, as `tec_zarr.models.protocol.Entry` lists them.
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
        weights = tuple(newest_first.loaders)
        _registered[name] = Entry(name, NAMED_MODEL, weights, newest_first, frozenset(takes))
        _loaded.pop((name, weights_sha256), None)


@dataclass(frozen=True)
class _Registered:
    """Loads the models registered under a name, and those of a published model in the cache."""

    name: str
    loaders: Mapping[str, Callable[[], Model]]

    def __call__(self, sha256: str) -> Model:
        if sha256 in self.loaders:
            return self.loaders[sha256]()
        kept = cached_entry(self.name)
        assert kept is not None  # because get_model found the hash in the cache
        return kept.load(sha256)


def find_model(name: str) -> Entry:
    """Return the entry of a model without loading it.

    Raises
    ------
    UnknownModelError
        There is no such model on this machine.
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
    """Return the name of the model with this number in frames."""
    for entry in _index().values():
        if entry.number == number:
            return entry.name
    raise UnknownModelError(
        f"TEC frame of model number {number}, which is not part of this tec_zarr "
        f"({ {e.number: e.name for e in _index().values()} }): pip install --upgrade tec_zarr"
    )


def get_model(name: str, weights: str | None = None) -> Model:
    """Return a loaded model. It is loaded once per process. Thread-safe.

    Parameters
    ----------
    name : str
        Name in the index, or registered with :func:`register_model`.
    weights : str, optional
        SHA-256 of the weights (hex), or its beginning. None: the newest.

    Raises
    ------
    UnknownModelError
        There is no such model on this machine.
    WeightsMismatchError
        The model has no such weights on this machine, or their file was changed.
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


def unload(name: str, weights: str) -> None:
    """Forget a loaded model, ``weights`` is a whole SHA-256. The next chunk loads it anew."""
    with _lock:
        _loaded.pop((name, weights), None)


def get_encoder(name: str, weights: str) -> Model:
    """Return a loaded model that may encode; ``weights`` is a whole SHA-256.

    Raises
    ------
    UnknownModelError, WeightsMismatchError
        As :func:`get_model`. WeightsMismatchError also for weights that came with a store, because
        these only decode.
    """
    own = chain(find_model(name).weights, kept_hashes(name))
    if weights not in own and weights in embedded_weights(name):
        raise only_decodes(name)
    return get_model(name, weights)


def get_released(name: str, sha256: str) -> Model:
    """Return a loaded model on which another model is built.

    The weights of the other model name it, and these may come from a stranger. So only weights in
    the index of this package are accepted. They cannot lead to a file of the stranger's, and not
    back to the other model.

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
        except Exception as error:  # embedded weights can hold any tensors
            if isinstance(error, OSError | MemoryError):  # the file is not to blame
                raise
            raise FormatError(
                f"{path} does not hold weights of model {name!r} ({type(error).__name__}: {error})"
                ": delete it and get the store's weights again"
            ) from error

    takes = frozenset(item.get("takes", ()))
    return Entry(name, item["id"], tuple(released_weights(name)), load, takes)


def cached_entry(name: str) -> Entry | None:
    """Return the entry of a published model whose weights are in the cache; never download.

    Parameters
    ----------
    name : str
        Name in frames, such as ``"terracodec_v1_tt_s2l2a/lambda-20"``.

    Returns
    -------
    Entry or None
        None if `name` is not a published model.

    Raises
    ------
    UnknownModelError
        The weights are not in the cache. Or `name` has no published rate, because its weights were
        given by a path. The message says how to get them.
    """
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
        # Imported by name when a chunk needs it, because it imports torch.
        hub = importlib.import_module("tec_zarr.terracodec.hub")
        return hub.open_cached(weights_file(name, sha256), name, sha256)

    return Entry(name, NAMED_MODEL, weights, open_codec)
