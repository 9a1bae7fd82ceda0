"""The reader in JavaScript: its own tests, run by Node on cases that are written here."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import reader_cases

ROOT = Path(__file__).parents[1]
READER = ROOT / "readers" / "js"
BUILT = READER / "files" / "tec.wasm"
CHROMIUM = Path(os.environ.get("CHROMIUM", "/usr/bin/chromium"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    if not shutil.which("node"):
        pytest.skip("Node.js is missing")
    if not (READER / "node_modules").is_dir():
        pytest.skip("the npm packages are missing: make readers-test-js")
    core = [*(ROOT / "tec_zarr" / "native").glob("*.[ch]"), READER / "shim.c"]
    if not BUILT.is_file() or BUILT.stat().st_mtime < max(p.stat().st_mtime for p in core):
        pytest.skip("the WebAssembly is missing or older than the core: make readers")
    folder = tmp_path_factory.mktemp("reader") / "cases"
    reader_cases.write(folder)
    return folder


@pytest.mark.parametrize("name", ["golden", "zarrita", "types", "browser"])
def test_the_reader_passes_its_tests(cases, name):
    if name == "browser" and not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    done = subprocess.run(
        ["node", "--test", f"test/{name}.test.js"], cwd=READER, capture_output=True, text=True,
        timeout=300, env={**os.environ, "TEC_READER_CASES": str(cases)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^# pass [1-9]", done.stdout, re.MULTILINE), done.stdout
