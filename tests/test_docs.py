"""What the pages show runs: every block of Python, and every command of tec-zarr."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import xarray as xr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.face.cli import _parser

ROOT = Path(__file__).parents[1]
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
    names = {"ds": ds, "cube": ds.reflectance, "mask": ds.scl > 7, "np": None}
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
