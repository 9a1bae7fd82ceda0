"""TerraCodec (TEC) for Sentinel-2 cubes, as a numcodecs and a Zarr v3 codec.

``import tec_zarr`` imports neither torch nor xarray, so that opening a store stays cheap. Each
public name is loaded from its module at its first use. The import also registers the accessor
``.tec`` with xarray, now or as soon as xarray is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tec_zarr.face import xarray_hook

if TYPE_CHECKING:
    from tec_zarr.codec.decode import decode_chunk
    from tec_zarr.codec.encode import encode_chunk
    from tec_zarr.codec.numcodecs_codec import TEC
    from tec_zarr.codec.spec import ChunkSpec
    from tec_zarr.codec.zarr_codec import TECCodec
    from tec_zarr.cubes.encoding import decode, drop_encoding, encoding
    from tec_zarr.cubes.simulate import simulate
    from tec_zarr.cubes.stacking import stack_bands, unstack_bands
    from tec_zarr.errors import (
        SecondGenerationWarning,
        SeparateBandsWarning,
        TecError,
        UnsuitedDataWarning,
    )
    from tec_zarr.inpaint.clouds import inpaint_clouds
    from tec_zarr.inpaint.regular import regularize
    from tec_zarr.recompression.run import recompress
    from tec_zarr.recompression.transcode import transcode
    from tec_zarr.stac.canonical import harmonize, prepare
    from tec_zarr.stac.eopf import to_groups
    from tec_zarr.stac.load import from_stac
    from tec_zarr.stores.embed import embed_weights, use_embedded_weights

_HOME = {
    "TEC": "codec.numcodecs_codec",
    "TECCodec": "codec.zarr_codec",
    "encoding": "cubes.encoding",
    "drop_encoding": "cubes.encoding",
    "decode": "cubes.encoding",
    "ChunkSpec": "codec.spec",
    "encode_chunk": "codec.encode",
    "decode_chunk": "codec.decode",
    "embed_weights": "stores.embed",
    "use_embedded_weights": "stores.embed",
    "recompress": "recompression.run",
    "prepare": "stac.canonical",
    "harmonize": "stac.canonical",
    "to_groups": "stac.eopf",
    "from_stac": "stac.load",
    "simulate": "cubes.simulate",
    "inpaint_clouds": "inpaint.clouds",
    "regularize": "inpaint.regular",
    "transcode": "recompression.transcode",
    "TecError": "errors",
    "SecondGenerationWarning": "errors",
    "UnsuitedDataWarning": "errors",
    "SeparateBandsWarning": "errors",
    "stack_bands": "cubes.stacking",
    "unstack_bands": "cubes.stacking",
}
"""The module below ``tec_zarr`` that defines each public name."""

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
    "drop_encoding",
    "embed_weights",
    "encode_chunk",
    "encoding",
    "from_stac",
    "harmonize",
    "inpaint_clouds",
    "prepare",
    "recompress",
    "regularize",
    "simulate",
    "stack_bands",
    "to_groups",
    "transcode",
    "unstack_bands",
    "use_embedded_weights",
]


def __getattr__(name: str) -> object:
    if name == "__version__":  # reading the installation's metadata is too slow for every import
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
