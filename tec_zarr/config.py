"""Limits that keep a damaged or hostile frame from taking the machine down.

They are read at every call, so a program that needs more can set them once, at its start:
``tec_zarr.config.MAX_CHUNK_SAMPLES = 2**32``. What a decoder allocates follows from them, see
``docs/robustness.md``.
"""

from __future__ import annotations

import os

MAX_CHUNK_SAMPLES: int = 2**28
"""Largest product of a chunk's shape: 268,435,456 samples, 512 MiB of uint16."""

MAX_BANDS: int = 2**12
"""Longest band axis of a chunk."""

MAX_LATENT_SECTIONS: int = 2**10
"""Most latent sections of a frame: one a date and tile of 512 x 512 pixels. Each takes 1 to
50 ms to decode (tec-s2, tec-flex-s2), however few its pixels are."""

MAX_HEADER_BYTES: int = 2**20
"""Longest frame header; one of 1 MiB lists some 170,000 sections."""

MAX_LATENTS_BYTES: int = 2**30
"""Most bytes that the latents and the bound layer of one frame may have, as they are stored."""

MAX_MASK_BYTES: int = 2**31
"""Most bytes that the mask and the exact values of one chunk may inflate to, each."""

MAX_WEIGHTS_BYTES: int = 2**31
"""Largest weights that are read from a store, all of its models together; TEC-TT's take 0.5 GB."""

MAX_CONCURRENT_CHUNKS: int = max(1, os.cpu_count() or 1)
"""Chunks that may be inside a model at once; read when :mod:`tec_zarr.codec.encode` is imported.

Zarr hands up to ten chunks to as many threads, and each would hold its own activations.
"""

DEVICE: str = os.environ.get("TEC_ZARR_DEVICE", "auto")
"""Where published models go when they are loaded: ``"auto"`` (a GPU if torch has one, else the
CPU) or a device of torch's. The default model runs on the CPU whatever this says.
"""
