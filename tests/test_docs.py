"""What the pages show runs: every block of Python, and every command of tec-zarr."""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import pkgutil
import re
import shlex
import traceback
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.errors import ChecksumError, TecError
from tec_zarr.face.cli import _parser, main

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(\w+)\n(.*?)```", re.S)


def blocks(page, language):
    """The blocks of a page, but for those of which a comment says why they are not run."""
    found = BLOCK.findall(page.read_text("utf-8"))
    return [text for skipped, kind, text in found if kind == language and not skipped]


def name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def ds():
    return synthetic.dataset(dates=4, size=96)


@pytest.mark.filterwarnings("ignore:.*nothing clear:UserWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_blocks_of_python_run(page, ds, tmp_path, monkeypatch, capsys):
    """In the order of the page, with a cube ``ds`` in memory and in ``cube.zarr``."""
    monkeypatch.chdir(tmp_path)
    ds.tec.to_zarr("cube.zarr")
    names = {"ds": ds, "cube": ds.reflectance, "mask": ds.scl > 7, "np": np}
    names |= {"tec_zarr": tec_zarr, "synthetic": synthetic, "xr": xr}
    limit = tec_zarr.config.MAX_CHUNK_SAMPLES
    try:
        for text in blocks(page, "python"):
            exec(text, names)
    finally:
        tec_zarr.config.MAX_CHUNK_SAMPLES = limit


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "examples" / "README.md"], ids=name
)
def test_commands_are_as_the_command_line_takes_them(page):
    lines = [x for text in blocks(page, "bash") for x in text.replace("\\\n", "").splitlines()]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["tec-zarr"] and words[1:] != ["--version"]:
            _parser().parse_args(words[1:])


def _classes(kind):
    found = [x for x in kind.__subclasses__() if x.__module__.startswith("tec_zarr")]
    return found + [y for x in found for y in _classes(x)]


def test_every_error_and_warning_is_explained_on_their_page():
    for module in pkgutil.walk_packages(tec_zarr.__path__, "tec_zarr."):
        with contextlib.suppress(ImportError, TecError):  # torch, CompressAI, where there is none
            importlib.import_module(module.name)
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n\n(.+?)(?=\n## |\Z)", page, re.M | re.S))
    known = {kind.__name__ for kind in [TecError, *_classes(TecError), *_classes(UserWarning)]}
    assert set(sections) == known
    assert len(known) > 15
    assert [name for name, text in sections.items() if len(text) < 60] == []


def test_an_error_names_its_place_on_the_page(tmp_path, capsys):
    error = pickle.loads(pickle.dumps(ChecksumError("bytes differ")))
    assert str(error) == "bytes differ"
    shown = "".join(traceback.format_exception_only(error))
    assert shown.count("docs/errors.md#checksumerror") == 1
    assert main(["info", str(tmp_path / "nothing.zarr")]) == 1
    assert "docs/errors.md#" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_and_are_kept_as_they_ran(path, monkeypatch):
    """Kept outputs are of each cell that gives any; numbers in them may be of other weights."""
    pytest.importorskip("matplotlib")
    text = path.read_text("utf-8")
    for package in ("odc.stac", "pystac", "rasterio"):
        if "local_catalog" in text:
            pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    kept = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    ran = [c for c in importlib.import_module("notebooks").run(path)["cells"] if "outputs" in c]
    kinds = [[[o["output_type"] for o in c["outputs"]] for c in cells] for cells in (kept, ran)]
    assert kinds[0] == kinds[1], "make notebooks"
    assert any(kinds[0])
    assert len(text) < 200_000
