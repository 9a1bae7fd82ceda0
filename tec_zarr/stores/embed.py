"""Embed model weights in a store, so that machines without these weights can decode it.

:func:`embed_weights` writes weights into the group ``tec_weights`` of a store. It writes the
safetensors files of all models that the TEC arrays of the store name.
:func:`use_embedded_weights` copies these files into the cache of the machine that reads. Users
have to call it, because a codec cannot see the store that it decodes for. Without that call,
decoding raises an error that names the missing weights.

Weights from a store come from a stranger, so they are checked. Only arrays of plain bytes are
read. Their size is checked before reading, their SHA-256 after it. They must parse as safetensors,
a format that cannot carry code. The core checks every tensor of an embedded model before anything
computes with it. Embedded weights decode only; they never encode.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BytesCodec
from zarr.storage import MemoryStore

from tec_zarr import config
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import (
    FormatError,
    LimitError,
    TecError,
    UnknownModelError,
    UnsupportedArrayError,
    WeightsMismatchError,
)
from tec_zarr.models.weights import embedded_file, index_items, needed_weights, weights_file
from tec_zarr.native.tile import TileModel
from tec_zarr.stores.chunks import codecs_of
from tec_zarr.stores.objects import write

GROUP = "tec_weights"
"""Name of the group in the store. The name of each array is the SHA-256 of its bytes."""

_CHUNK_BYTES = 8 * 2**20
_MAX_CHUNKS = 4096
"""Most chunks that one model's weights may have. `embed_weights` writes 2 GiB as 256 chunks."""


def embed_weights(store: Any) -> tuple[str, ...]:
    """Write the weights that the TEC arrays of a store need into that store.

    Parameters
    ----------
    store : path, zarr store or zarr Group
        A writable group of Zarr format 2 or 3. A single array has no room for weights.

    Returns
    -------
    tuple of str
        SHA-256 (hex) of all weights that the store holds now. Intact weights that it held already
        are not written again. Incomplete or damaged ones are replaced.

    Raises
    ------
    UnsupportedArrayError
        The store is an array, not a group.
    UnknownModelError
        An array uses a model of your own (``register_model``), whose files tec_zarr does not know.
    WeightsMismatchError
        The weights are not on this machine, or their file was changed.
    """
    root = _open(store, "r+")
    needed = sorted(_needed(root))
    group = root.require_group(GROUP)
    missing: dict[str, bytes] = {}
    for name, sha256 in needed:
        file = weights_file(name, sha256)
        if _holds(group, sha256):
            continue
        if not file.is_file():
            raise WeightsMismatchError(
                f"weights {sha256} of model {name!r}, which the store uses, are not on this "
                f"machine ({file}): run embed_weights where the arrays were written"
            )
        missing[sha256] = file.read_bytes()
        _check_bytes(missing[sha256], sha256, str(file))
    for sha256, data in missing.items():
        _write(group, sha256, data)
    return tuple(sha256 for _, sha256 in needed)


def _holds(group: zarr.Group, sha256: str) -> bool:
    """Return whether the group holds these weights, complete and intact.

    A killed `embed_weights` leaves incomplete weights.
    """
    if sha256 not in group:
        return False
    try:
        data = _read(group[sha256], sha256, config.MAX_WEIGHTS_BYTES)
    except TecError:
        return False
    return hashlib.sha256(data).hexdigest() == sha256


def _write(group: zarr.Group, sha256: str, data: bytes) -> None:
    """Write weights and replace existing ones.

    The metadata come last, so that readers see complete weights or none.
    """
    if sha256 in group:
        del group[sha256]
    template = zarr.create_array(
        MemoryStore(),
        shape=(len(data),),
        chunks=(min(len(data), _CHUNK_BYTES),),
        dtype="uint8",
        compressors=None,
        zarr_format=group.metadata.zarr_format,
    )
    metadata: Any = template.metadata
    path = group.store_path / sha256
    array = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=path))
    array[:] = np.frombuffer(data, np.uint8)
    for key, document in metadata.to_buffer_dict(default_buffer_prototype()).items():
        write(path.store, f"{path.path}/{key}", document.to_bytes())


def use_embedded_weights(store: Any) -> tuple[str, ...]:
    """Copy the weights embedded in a store into the cache of this machine.

    The call checks the weights and copies them into the user's cache (``$TEC_ZARR_CACHE``, folder
    ``embedded``). Other processes of this machine find them there. Workers on other machines need
    the call as well. These weights decode only; they never encode. Weights that this machine has
    already are left alone. A store without embedded weights is fine.

    Parameters
    ----------
    store : path, zarr store or zarr Group
        As for :func:`embed_weights`, but it may be read-only.

    Returns
    -------
    tuple of str
        SHA-256 (hex) of the weights that were added.

    Raises
    ------
    UnsupportedArrayError
        The store is an array, not a group.
    LimitError
        The weights are larger than ``tec_zarr.config.MAX_WEIGHTS_BYTES``.
    WeightsMismatchError
        The SHA-256 of the bytes differs from the name of their array.
    FormatError
        The weights are not an array of plain bytes, or not safetensors.
    """
    root = _open(store, "r")
    group = root.get(GROUP)
    if not isinstance(group, zarr.Group):
        return ()
    added: list[str] = []
    left = config.MAX_WEIGHTS_BYTES
    for name, sha256 in sorted(_needed(root)):
        try:
            file = weights_file(name, sha256)
        except UnknownModelError:
            continue  # The user registers this model, and its weights, with register_model.
        if sha256 in group and not file.is_file():
            data = _read(group[sha256], sha256, left)
            left -= len(data)
            keep_embedded(name, data, sha256)
            added.append(sha256)
    return tuple(added)


def _open(store: Any, mode: Any) -> zarr.Group:
    node = store
    if not isinstance(node, zarr.Group | zarr.Array):
        # Consolidated metadata may be older than the weights.
        node = zarr.open(store, mode=mode, use_consolidated=False)
    if isinstance(node, zarr.Array):
        raise UnsupportedArrayError(
            f"{store} is an array, which has no room for weights: pass the group that it is in, or "
            "write it into one"
        )
    return node


def _needed(root: zarr.Group) -> set[tuple[str, str]]:
    """Return (model name, weights SHA-256) of every TEC array below ``root``."""
    arrays = (node for _, node in root.members(max_depth=None) if isinstance(node, zarr.Array))
    specs = [spec for array in arrays for spec in _specs(array)]
    return {
        pair for spec in specs for pair in needed_weights(spec.model, spec.weights_sha256 or "")
    }


def _specs(array: zarr.Array) -> Iterator[ChunkSpec]:
    """TEC configurations of an array, also inside its shards."""
    codecs: list[Any] = codecs_of(array)
    while codecs:
        codec = codecs.pop()
        if isinstance(codec, ChunkSpec):
            yield codec
        codecs += getattr(codec, "codecs", ())


def _read(array: Any, sha256: str, left: int) -> bytes:
    where = f"the embedded weights {GROUP}/{sha256}"
    plain = (
        isinstance(array, zarr.Array)
        and array.ndim == 1
        and array.dtype == np.uint8
        and all(isinstance(codec, BytesCodec) for codec in codecs_of(array))
    )
    if not plain:
        raise FormatError(f"{where} are not an array of plain bytes; embed them again")
    largest = max(array.nbytes, *array.chunks)
    if largest > left:
        raise LimitError(
            f"{where} take {largest} bytes, and all weights of a store together may take "
            f"tec_zarr.config.MAX_WEIGHTS_BYTES = {config.MAX_WEIGHTS_BYTES}: raise that limit if "
            "you trust the store"
        )
    if array.nchunks > _MAX_CHUNKS:
        raise FormatError(f"{where} are scattered over {array.nchunks} chunks; embed them again")
    return np.asarray(array[:]).tobytes()


def _check_bytes(data: bytes, sha256: str, where: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise WeightsMismatchError(
            f"{where} has sha256 {found}, it should be {sha256}: it was changed or damaged"
        )


def keep_embedded(name: str, data: bytes, sha256: str) -> None:
    """Check weights of the model ``name`` that came with a store, and keep them in the cache.

    They are written in one step: readers see all of the file or nothing.
    """
    file, where = embedded_file(name, sha256), f"{GROUP}/{sha256}"
    _check_bytes(data, sha256, where)
    if name in index_items():
        TileModel(data, where)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        if name not in index_items():
            _check_safetensors(part, where)
        os.replace(part, file)
    finally:
        Path(part).unlink(missing_ok=True)


def _check_safetensors(path: str, where: str) -> None:
    """Raise FormatError unless a file of a published model's weights parses."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise FormatError(f"{where} is not a safetensors file: {error}") from None
