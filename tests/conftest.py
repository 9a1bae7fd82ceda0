from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/toy.py

import toy
import zarr

from tec_zarr.codec import second_generation

settings.register_profile(
    "tec", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tec")
toy.register()

WITHOUT_TORCH = importlib.util.find_spec("torch") is None
#: What a skipped test says. That the default model runs without torch is tested in subprocesses
#: (``test_neither_reading_nor_writing_loads_torch``), which this does not skip.
NEEDS_TORCH = "needs torch, which is not installed"


@pytest.fixture(autouse=True)
def _forget_decoded_chunks():
    """Each test starts as a new process would: no chunk has been decoded yet."""
    second_generation.forget_decoded()


@pytest.fixture(autouse=True)
def _settings_of_zarr():
    """No test, and nothing that it calls, leaves Zarr's settings changed for the next one."""
    before = copy.deepcopy(zarr.config.config)
    yield
    assert zarr.config.config == before


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a file of tests that imports torch where there is none."""
    report = yield
    if WITHOUT_TORCH and report.failed and "No module named 'torch'" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {NEEDS_TORCH}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that loads a model of torch where there is none."""
    report = yield
    if WITHOUT_TORCH and report.failed and _for_want_of_torch(call.excinfo.value):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {NEEDS_TORCH}")
    return report


def _for_want_of_torch(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, is that torch cannot be imported."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            return True
        error = error.__cause__ or error.__context__
    return False
