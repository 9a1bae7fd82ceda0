"""Limits that keep a damaged or hostile frame from taking the machine down.

They are read at every call, so a program that needs more can set them once, at its start:
``tec_zarr.config.MAX_CHUNK_SAMPLES = 2**32``.
"""

from __future__ import annotations

import os

MAX_CHUNK_SAMPLES: int = 2**30
"""Largest product of a chunk's shape: 1,073,741,824 samples, 2 GiB of uint16."""

MAX_HEADER_BYTES: int = 2**20
"""Longest frame header; one of 1 MiB lists some 170,000 sections."""

MAX_WEIGHTS_BYTES: int = 2**31
"""Largest weights that are read from a store; TEC-TT's take 0.5 GB."""

MAX_CONCURRENT_CHUNKS: int = max(1, os.cpu_count() or 1)
"""Chunks that may be inside a model at once; read when :mod:`tec_zarr.chunk` is imported.

Zarr hands up to ten chunks to as many threads, and each would hold its own activations.
"""
