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
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from tec_zarr.errors import FormatError, TecError, UnknownModelError, WeightsMismatchError
from tec_zarr.frame.frame import NAMED_MODEL
from tec_zarr.terracodec import hub


class Encoded(NamedTuple):
    """What a model makes of one cube.

    Attributes
    ----------
    sections : list of bytes
        One per date.
    latents_crc : int
        CRC32 of the latents that a decoder has to arrive at.
    """

    sections: list[bytes]
    latents_crc: int


class Model(Protocol):
    """A learned codec for one tile of pixels.

    ``quality`` is 1 (smallest) to 8 (finest), the same scale for every model. ``bands`` are
    the Sentinel-2 names along axis 1, or None when the array's owner did not say.
    """

    name: str
    weights_sha256: str

    def encode(self, cube: np.ndarray, quality: float, bands: tuple[str, ...] | None) -> Encoded:
        """Encode float32 DN (T, C, h, w), finite and filled everywhere."""

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, int]:
        """Decode to float32 DN of ``shape`` and the CRC32 of the latents."""


class DateModel(Model, Protocol):
    """A model whose arithmetic is exact, and that can decode some dates without the others."""

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> np.ndarray:
        """Decode to float32 DN (len(dates), C, h, w); ``shape`` is that of all dates."""


class WholeModel(Model, Protocol):
    """A model that may decode to whole DN: the same on every machine."""

    @property
    def decode_whole(self) -> Callable[..., tuple[np.ndarray, int]] | None:
        """None with weights that do not make whole DN, or a function of ``sections``, ``shape``
        and ``quality`` that does what ``decode`` does, to uint16: what lies beyond saturates.
        """


class GridModel(Model, Protocol):
    """A model that codes bands on the grids that they were measured on."""

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None,
        known: np.ndarray | None = None,
    ) -> Encoded:
        """As :meth:`Model.encode`; ``known`` (T, C, h, w) bool: samples that were measured."""


class TemporalModel(Model, Protocol):
    """A model whose dates refer to one another."""

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None,
        gop: int | None = None,
    ) -> Encoded:
        """As :meth:`Model.encode`, dates referring to one another within runs of ``gop`` only."""


@dataclass(frozen=True)
class Entry:
    """One model of the index.

    Attributes
    ----------
    name : str
        What users type.
    number : int
        Its id in the stream; 0 for a model that is not in the index: its frames carry its name.
    weights : tuple of str
        SHA-256 (hex) of the weights that it may encode with, newest first. Those that came with a
        store are not among them.
    load : callable
        From one of those hashes to the loaded model.
    temporal : bool
        Whether its ``encode`` takes ``gop``: the dates of a chunk refer to one another.
    on_grids : bool
        Whether its ``encode`` takes ``known``: see :class:`GridModel`.
    """

    name: str
    number: int
    weights: tuple[str, ...]
    load: Callable[[str], Model]
    temporal: bool = False
    on_grids: bool = False

    @property
    def newest(self) -> str:
        """Weights of new arrays; WeightsMismatchError where all that are here came with a store."""
        if not self.weights:
            raise _only_decodes(self.name)
        return self.weights[0]


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
        kept = hub.cached_entry(self.name)
        assert kept is not None  # get_model found the hash there
        return kept.load(sha256)


def find_model(name: str) -> Entry:
    """Entry of the model called ``name``, without loading it.

    Raises
    ------
    UnknownModelError
        There is none here.
    """
    entry = _registered.get(name) or _index().get(name) or hub.cached_entry(name)
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
    here = chain(entry.weights, _kept(name), embedded_weights(name))
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
    own = chain(find_model(name).weights, _kept(name))
    if weights not in own and weights in embedded_weights(name):
        raise _only_decodes(name)
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
    if all(item["sha256"] != sha256 for item in _items()[name]["weights"]):
        raise WeightsMismatchError(
            f"weights are made for weights {sha256} of model {name!r}, which this tec_zarr does "
            "not know: pip install --upgrade tec_zarr"
        )
    return get_model(name, sha256)


def _only_decodes(name: str) -> WeightsMismatchError:
    family, _, rate = name.partition("/lambda-")
    how = (
        f"get the published ones, tec_zarr.terracodec.load({family!r}, {rate!r})"
        if family in hub.PUBLISHED
        else "pip install --upgrade tec_zarr, or write a new array with the newest weights"
    )
    return WeightsMismatchError(
        f"these weights of model {name!r} came with a store (tec_zarr.use_embedded_weights): they "
        f"decode what others wrote, and never encode; {how}"
    )


def weights_file(name: str, sha256: str) -> Path:
    """Where weights of a built-in or published model lie, or would lie once they are there.

    Parameters
    ----------
    name : str
        Name in streams.
    sha256 : str
        SHA-256 of the weights, 64 hex digits.

    Raises
    ------
    UnknownModelError
        The model is neither built in nor published, so that its files are not known here.
    """
    if not _is_kept(name):
        raise UnknownModelError(
            f"where the weights of model {name!r} are is not known: it is neither built in nor "
            "published; whoever registers it keeps its weights"
        )
    kept = _released(name).get(sha256) or hub.cache_folder() / _file_name(name, sha256)
    embedded = hub.embedded_folder() / kept.name
    return embedded if embedded.is_file() and not kept.is_file() else kept


def embedded_file(name: str, sha256: str) -> Path:
    """Where weights lie that came with a store: apart from those that may encode."""
    return hub.embedded_folder() / _file_name(name, sha256)


def needed_weights(name: str, sha256: str) -> tuple[tuple[str, str], ...]:
    """(model, SHA-256) of everything that decoding with these weights takes, themselves first."""
    item: dict[str, Any] = next(
        (w for w in _items().get(name, {}).get("weights", ()) if w["sha256"] == sha256), {}
    )
    others = (needed_weights(*pair) for pair in item.get("needs", {}).items())
    return ((name, sha256), *chain.from_iterable(others))


def _file_name(name: str, sha256: str) -> str:
    return f"{name.replace('/lambda-', '--')}--{sha256}.safetensors"


def _is_kept(name: str) -> bool:
    """Whether a model is one whose weights may lie in the user's cache."""
    family, _, rate = name.partition("/lambda-")
    return name in _items() or rate in getattr(hub.PUBLISHED.get(family), "rates", ())


def embedded_weights(name: str) -> Iterator[str]:
    """Hashes of a built-in or published model's weights that came with a store."""
    return _hashes(name, hub.embedded_folder())


def _kept(name: str) -> Iterator[str]:
    """Hashes of a published model's weights in the user's cache."""
    return _hashes(name, hub.cache_folder())


def _hashes(name: str, folder: Path) -> Iterator[str]:
    if _is_kept(name):
        for file in sorted(folder.glob(_file_name(name, "*"))):
            yield file.stem.rpartition("--")[2]


@cache
def _items() -> dict[str, dict]:
    return json.loads((resources.files("tec_zarr.models") / "weights" / "index.json").read_text())


def _released(name: str) -> dict[str, Path]:
    """Weights in the package, by hash."""
    folder = Path(str(resources.files("tec_zarr.models") / "weights"))
    return {w["sha256"]: folder / w["file"] for w in _items().get(name, {}).get("weights", ())}


@cache
def _index() -> dict[str, Entry]:
    return {name: _entry(name, item) for name, item in _items().items()}


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

    return Entry(name, item["id"], tuple(_released(name)), load, item.get("temporal", False),
                 item.get("on_grids", False))  # fmt: skip
