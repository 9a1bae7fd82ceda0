"""Finds the weights of built-in and published models, in the package or in the user's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from tec_zarr.errors import UnknownModelError
from tec_zarr.models import published


def weights_file(name: str, sha256: str) -> Path:
    """Return the path of weights of a built-in or published model. The file need not exist.

    Parameters
    ----------
    name : str
        Name of the model in frames.
    sha256 : str
        SHA-256 of the weights, 64 hex digits.

    Raises
    ------
    UnknownModelError
        The model is neither built in nor published, so the path of its weights is unknown.
    """
    if not _is_kept(name):
        raise UnknownModelError(
            f"where the weights of model {name!r} are is not known: it is neither built in nor "
            "published; whoever registers it keeps its weights"
        )
    kept = released_weights(name).get(sha256) or cache_folder() / _file_name(name, sha256)
    embedded = embedded_folder() / kept.name
    return embedded if embedded.is_file() and not kept.is_file() else kept


def embedded_file(name: str, sha256: str) -> Path:
    """Return the path of weights that came with a store.

    It is in a folder of its own, because such weights must not encode.
    """
    return embedded_folder() / _file_name(name, sha256)


def needed_weights(name: str, sha256: str) -> tuple[tuple[str, str], ...]:
    """Return (model, SHA-256) of all weights that decoding with these needs, themselves first."""
    item: dict[str, Any] = next(
        (w for w in index_items().get(name, {}).get("weights", ()) if w["sha256"] == sha256), {}
    )
    others = (needed_weights(*pair) for pair in item.get("needs", {}).items())
    return ((name, sha256), *chain.from_iterable(others))


def _file_name(name: str, sha256: str) -> str:
    return f"{name.replace('/lambda-', '--')}--{sha256}.safetensors"


def _is_kept(name: str) -> bool:
    """Return whether the weights of a model can be in the user's cache."""
    family, _, rate = name.partition("/lambda-")
    return name in index_items() or rate in getattr(published.PUBLISHED.get(family), "rates", ())


def embedded_weights(name: str) -> Iterator[str]:
    """Yield the hashes of weights of a built-in or published model that came with a store."""
    yield from _hashes(name, embedded_folder())


def kept_hashes(name: str) -> Iterator[str]:
    """Yield the hashes of a published model's weights in the user's cache."""
    yield from _hashes(name, cache_folder())


def _hashes(name: str, folder: Path) -> Iterator[str]:
    if _is_kept(name):
        for file in sorted(folder.glob(_file_name(name, "*"))):
            yield file.stem.rpartition("--")[2]


@cache
def index_items() -> dict[str, dict]:
    """Return the entries of ``weights/index.json``, by model name."""
    return json.loads((resources.files("tec_zarr.models") / "weights" / "index.json").read_text())


def released_weights(name: str) -> dict[str, Path]:
    """Return the paths of a model's weights in the package, by hash."""
    folder = Path(str(resources.files("tec_zarr.models") / "weights"))
    return {w["sha256"]: folder / w["file"] for w in index_items().get(name, {}).get("weights", ())}


def cache_folder() -> Path:
    """Return the folder of converted weights: ``$TEC_ZARR_CACHE`` or ``~/.cache/tec_zarr``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TEC_ZARR_CACHE") or f"{base}/tec_zarr").expanduser()


def embedded_folder() -> Path:
    """Return the folder of weights that came with a store. They only decode."""
    return cache_folder() / "embedded"


def cached_files(name: str, rate: str) -> list[Path]:
    """Return the weights of a published model in the cache, the newest file first."""
    files = cache_folder().glob(f"{name}--{rate}--*.safetensors")
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def hash_in_name(file: Path) -> str:
    """Return the SHA-256 that the name of a weights file ends with."""
    return file.stem.rpartition("--")[2]


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
