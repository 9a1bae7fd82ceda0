from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/toy.py

import toy

from tec_zarr.codec import second_generation

settings.register_profile(
    "tec", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tec")
toy.register()


@pytest.fixture(autouse=True)
def _forget_decoded_chunks():
    """Each test starts as a new process would: no chunk has been decoded yet."""
    second_generation.forget_decoded()
