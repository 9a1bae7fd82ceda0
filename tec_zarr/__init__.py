"""TerraCodec (TEC) for Sentinel-2 cubes, as a numcodecs and a Zarr v3 codec.

The names below are loaded when they are first used: ``import tec_zarr`` costs neither torch
nor xarray, so that opening a store stays cheap. It makes the accessor ``.tec`` known to xarray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tec_zarr import xarray_hook

if TYPE_CHECKING:
    from tec_zarr.accessor import simulate
    from tec_zarr.batch import recompress
    from tec_zarr.canonical import harmonize, prepare
    from tec_zarr.chunk import ChunkSpec, decode_chunk, encode_chunk
    from tec_zarr.embed import embed_weights, use_embedded_weights
    from tec_zarr.errors import (
        SecondGenerationWarning,
        SeparateBandsWarning,
        TecError,
        UnsuitedDataWarning,
    )
    from tec_zarr.inpaint import inpaint_clouds
    from tec_zarr.numcodec import TEC
    from tec_zarr.stac import from_stac
    from tec_zarr.stacking import stack_bands, unstack_bands
    from tec_zarr.store import decode, encoding
    from tec_zarr.transcoding import transcode
    from tec_zarr.zarr3 import TECCodec

_HOME = {
    "TEC": "numcodec",
    "TECCodec": "zarr3",
    "encoding": "store",
    "decode": "store",
    "ChunkSpec": "chunk",
    "encode_chunk": "chunk",
    "decode_chunk": "chunk",
    "embed_weights": "embed",
    "use_embedded_weights": "embed",
    "recompress": "batch",
    "prepare": "canonical",
    "harmonize": "canonical",
    "from_stac": "stac",
    "simulate": "accessor",
    "inpaint_clouds": "inpaint",
    "transcode": "transcoding",
    "TecError": "errors",
    "SecondGenerationWarning": "errors",
    "UnsuitedDataWarning": "errors",
    "SeparateBandsWarning": "errors",
    "stack_bands": "stacking",
    "unstack_bands": "stacking",
}

__all__ = [
    "TEC",
    "ChunkSpec",
    "SecondGenerationWarning",
    "SeparateBandsWarning",
    "TECCodec",
    "TecError",
    "UnsuitedDataWarning",
    "decode",
    "decode_chunk",
    "embed_weights",
    "encode_chunk",
    "encoding",
    "from_stac",
    "harmonize",
    "inpaint_clouds",
    "prepare",
    "recompress",
    "simulate",
    "stack_bands",
    "transcode",
    "unstack_bands",
    "use_embedded_weights",
]


def __getattr__(name: str) -> object:
    if name == "__version__":  # reads the metadata of the installation: not at every import
        value = importlib.import_module("importlib.metadata").version("tec_zarr")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"tec_zarr.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'tec_zarr' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


xarray_hook.install()
