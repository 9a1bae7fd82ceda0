"""What tests of the embedded models share: weights as tensors, sections decoded by the core."""

from __future__ import annotations

import numpy as np

from tec_zarr.models.registry import find_model
from tec_zarr.models.weights import released_weights


def weights_bytes():
    """The newest weights file."""
    return released_weights("tec-s2")[find_model("tec-s2").newest].read_bytes()


def tensors():
    """The tensors of the newest weights file."""
    from safetensors.numpy import load  # comes with torch

    return load(weights_bytes())


def decoded(model, sections, shape, quality):
    """DN, int32 of `shape`, and the checksums of latents of sections of tec-s2."""
    out = np.empty(shape, np.int32)
    checksums = [
        model.core.decode(section, quality, image)
        for section, image in zip(sections, out, strict=True)
    ]
    return out, checksums
