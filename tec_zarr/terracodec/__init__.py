"""The learned models; torch is imported here and in ``tec_zarr.training``, nowhere else.

:func:`load` and :func:`load_codec` bring in the published TerraCodec checkpoints; the embedded
models need no call. Importing this package does not import torch.
"""

from tec_zarr.terracodec.hub import load, load_codec

__all__ = ["load", "load_codec"]
