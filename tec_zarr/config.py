"""Limits that keep a damaged or hostile frame from taking the machine down.

They are read at every call, so a program that needs more can set them once, at its start:
``tec_zarr.config.MAX_CHUNK_SAMPLES = 2**32``. They bound what a decoder allocates:
``docs/robustness.md`` says how.
"""

from __future__ import annotations

import os

MAX_CHUNK_SAMPLES: int = 2**28
"""Largest product of a chunk's shape: 268,435,456 samples, 512 MiB of uint16."""

MAX_BANDS: int = 2**12
"""Longest band axis of a chunk."""

MAX_LATENT_SECTIONS: int = 2**10
"""Most latent sections of a frame. A frame has one per date and tile of 512 x 512 pixels.
Decoding one takes 1 to 50 ms (tec-s2, tec-flex-s2), even if its tile has few pixels."""

MAX_HEADER_BYTES: int = 2**20
"""Longest frame header. A header of 1 MiB lists some 170,000 sections."""

MAX_LATENTS_BYTES: int = 2**30
"""Most bytes of the latents and the bound layer of one frame, as stored."""

MAX_MASK_BYTES: int = 2**31
"""Most bytes of the mask of one chunk, and of its exact values, after decompression."""

MAX_WEIGHTS_BYTES: int = 2**31
"""Most bytes of weights read from one store, all its models together. TEC-TT's take 0.5 GB."""

MAX_CONCURRENT_CHUNKS: int = max(1, os.cpu_count() or 1)
"""Chunks that a model may process at once. Unlike the limits above, it is read only once, when
:mod:`tec_zarr.codec.batching` is imported.

Zarr passes up to ten chunks to ten threads, and each thread holds its own activations in memory.
"""

DEVICE: str = os.environ.get("TEC_ZARR_DEVICE", "auto")
"""Device that published models are loaded on: ``"auto"`` (a GPU if torch has one, else the CPU)
or the name of a torch device. The default model ignores this and runs on the CPU.
"""
