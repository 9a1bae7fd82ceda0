"""Where the weights of built-in and published models lie: in the package, or in the user's
cache.
"""

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
    kept = released_weights(name).get(sha256) or cache_folder() / _file_name(name, sha256)
    embedded = embedded_folder() / kept.name
    return embedded if embedded.is_file() and not kept.is_file() else kept


def embedded_file(name: str, sha256: str) -> Path:
    """Where weights lie that came with a store: apart from those that may encode."""
    return embedded_folder() / _file_name(name, sha256)


def needed_weights(name: str, sha256: str) -> tuple[tuple[str, str], ...]:
    """(model, SHA-256) of everything that decoding with these weights takes, themselves first."""
    item: dict[str, Any] = next(
        (w for w in index_items().get(name, {}).get("weights", ()) if w["sha256"] == sha256), {}
    )
    others = (needed_weights(*pair) for pair in item.get("needs", {}).items())
    return ((name, sha256), *chain.from_iterable(others))


def _file_name(name: str, sha256: str) -> str:
    return f"{name.replace('/lambda-', '--')}--{sha256}.safetensors"


def _is_kept(name: str) -> bool:
    """Whether a model is one whose weights may lie in the user's cache."""
    family, _, rate = name.partition("/lambda-")
    return name in index_items() or rate in getattr(published.PUBLISHED.get(family), "rates", ())


def embedded_weights(name: str) -> Iterator[str]:
    """Hashes of a built-in or published model's weights that came with a store."""
    return _hashes(name, embedded_folder())


def kept_hashes(name: str) -> Iterator[str]:
    """Hashes of a published model's weights in the user's cache."""
    return _hashes(name, cache_folder())


def _hashes(name: str, folder: Path) -> Iterator[str]:
    if _is_kept(name):
        for file in sorted(folder.glob(_file_name(name, "*"))):
            yield file.stem.rpartition("--")[2]


@cache
def index_items() -> dict[str, dict]:
    return json.loads((resources.files("tec_zarr.models") / "weights" / "index.json").read_text())


def released_weights(name: str) -> dict[str, Path]:
    """Weights in the package, by hash."""
    folder = Path(str(resources.files("tec_zarr.models") / "weights"))
    return {w["sha256"]: folder / w["file"] for w in index_items().get(name, {}).get("weights", ())}


def cache_folder() -> Path:
    """Where converted weights are kept: ``$TEC_ZARR_CACHE`` or ``~/.cache/tec_zarr``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TEC_ZARR_CACHE") or f"{base}/tec_zarr").expanduser()


def embedded_folder() -> Path:
    """Where weights are kept that came with a store: they only decode."""
    return cache_folder() / "embedded"


def cached_files(name: str, rate: str) -> list[Path]:
    files = cache_folder().glob(f"{name}--{rate}--*.safetensors")
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def hash_in_name(file: Path) -> str:
    return file.stem.rpartition("--")[2]


def sha256_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
