"""The published TerraCodec models: TEC-FP, TEC-ELIC, TEC-TT and FlexTEC.

:func:`load` and :func:`load_codec` load their checkpoints. The embedded models need no call.
Importing this package does not import torch.
"""

from tec_zarr.terracodec.hub import load, load_codec

__all__ = ["load", "load_codec"]
