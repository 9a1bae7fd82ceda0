"""Let readers of Zarr format 2 open TEC arrays of format 3, over the same chunks.

The chunks of an array `A` of format 3 are the objects ``A/c/0/0/...``. Format 2 calls the same
objects chunks of an array ``A/c`` whose dimension separator is "/". So :func:`virtual` makes of
``A`` a group of format 2, which holds ``c`` and copies of the coordinates of `A`. No chunk is
copied or changed, and readers of format 3 see none of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from tec_zarr.codec.numcodecs_codec import TEC
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.stores.chunks import frame_heads, holds_frames, tec_spec
from tec_zarr.stores.objects import (
    list_keys,
    list_nodes,
    open_source,
    open_target,
    publication_order,
    read,
    write,
)

CHUNKS = "c"
"""Where format 3 keeps chunks below an array, and the name of the array of format 2."""

_DIMENSIONS = "_ARRAY_DIMENSIONS"  # the attribute by which xarray and GDAL know them in format 2
_PLAIN = "iufSU"  # kinds of dtypes that readers of format 2 know without another codec


def virtual(store: Any) -> tuple[str, ...]:
    """Write metadata of format 2 over the TEC arrays of a store of format 3.

    Parameters
    ----------
    store : path, URL or zarr store
        A group or an array of Zarr format 3. Its consolidated metadata stay as they are.

    Returns
    -------
    tuple of str
        Paths of the arrays. Readers of format 2 open each as a group, with its array ``c``.

    Raises
    ------
    UnsupportedArrayError
        There is no TEC array of format 3, or one has shards, other codecs beside TEC, chunks in
        other places than format 3 usually keeps them, or chunks of several memory or byte orders.
        Nothing was written then.
    RecompressError
        The store cannot be opened.
    """
    root = open_source(store, None)
    nodes = list_nodes(root)
    arrays = {
        path: node for path, node in nodes.items()
        if isinstance(node, zarr.Array) and node.metadata.zarr_format == 3
        and tec_spec(node) is not None
    }  # fmt: skip
    if not arrays:
        raise UnsupportedArrayError(f"{store} has no TEC array of Zarr format 3")
    made = {path: _documents(path, array, nodes) for path, array in arrays.items()}
    target = open_target(store, None)
    for path, documents in made.items():
        for key in sorted(documents, key=publication_order):
            write(target, f"{path}/{key}".lstrip("/"), documents[key])
    return tuple(arrays)


def _documents(path: str, array: zarr.Array, nodes: dict[str, Any]) -> dict[str, bytes]:
    """Return the objects of the group of format 2, by key below the array."""
    _check(path, array)
    spec = tec_spec(array)
    assert spec is not None
    parent = path.rpartition("/")[0]
    others = {
        name.removeprefix(f"{parent}/"): node for name, node in nodes.items()
        if isinstance(node, zarr.Array) and name.rpartition("/")[0] == parent
    }  # fmt: skip
    dtype, order = _layout(path, array)
    names = _names(array)
    dimensions = {_DIMENSIONS: names} if names else {}
    memory = MemoryStore()
    group = zarr.create_group(memory, zarr_format=2)
    group.create_array(
        CHUNKS, shape=array.shape, chunks=array.chunks, dtype=dtype, fill_value=array.fill_value,
        order=order, compressors=TEC(**spec.to_config()), filters=None,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        attributes={**array.attrs, **dimensions, **_crs(array, others)},
    )  # fmt: skip
    for name in set(names) & others.keys() - {CHUNKS}:
        other = others[name]
        if _names(other) == [name] and other.dtype.kind in _PLAIN:
            group.create_array(
                name, data=np.asarray(other[:]), chunks=other.shape, compressors=None,
                attributes={**other.attrs, _DIMENSIONS: [name]},
            )  # fmt: skip
    found = {key: read(memory, key) for key in list_keys(memory, "")}
    return {key: data for key, data in found.items() if data is not None}


def _check(path: str, array: zarr.Array) -> None:
    if array.shards is not None:
        raise UnsupportedArrayError(
            f"array {path!r} has shards, which Zarr format 2 does not have: copy the store without "
            "them (tec-zarr transcode IN OUT --shards), or to format 2 (--zarr-format 2); neither "
            "decodes a chunk"
        )
    if not holds_frames(array):
        raise UnsupportedArrayError(
            f"array {path!r} has other codecs beside TEC, which format 2 would not undo"
        )
    if array.metadata.encode_chunk_key((0,) * array.ndim) != "/".join([CHUNKS, *"0" * array.ndim]):
        raise UnsupportedArrayError(
            f"the chunks of array {path!r} do not lie in folders below {CHUNKS!r}: copy the store "
            "to format 2 (tec-zarr transcode IN OUT --zarr-format 2), which decodes no chunk"
        )


def _layout(path: str, array: zarr.Array) -> tuple[np.dtype, Any]:
    """Return dtype with byte order, and memory order, of the chunks: format 2 names one of each."""
    found = {(head.dtype, "F" if head.fortran else "C") for head, _ in frame_heads(array)}
    if len(found) > 1:
        raise UnsupportedArrayError(
            f"chunks of array {path!r} were written from arrays of several memory or byte orders, "
            "and format 2 has one for all: write the array again"
        )
    return next(iter(found), (np.dtype(array.dtype), "C"))


def _names(array: zarr.Array) -> list[str]:
    """Return the names of the dimensions; none if one of them has no name."""
    metadata: Any = array.metadata
    names = metadata.dimension_names or ()
    return list(names) if all(names) else []


def _crs(array: zarr.Array, others: dict[str, zarr.Array]) -> dict[str, Any]:
    """Return GDAL's attribute of the CRS, from the array that the attribute grid_mapping names."""
    mapping = others.get(str(array.attrs.get("grid_mapping")))
    attributes = {} if mapping is None else mapping.attrs
    known = (attributes.get(name) for name in ("crs_wkt", "spatial_ref"))
    return next(({"_CRS": {"wkt": wkt}} for wkt in known if wkt), {})
