"""Run the notebooks of examples/ and keep what they print and draw: ``make notebooks``.

Needs no Jupyter. Plots have a transparent background and grey text, which can be read on white and
on black. ``tests/test_docs.py`` runs the notebooks with `run` as well.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
GREY = "#808080"
STYLE = {
    "figure.dpi": 80, "figure.facecolor": "none", "axes.facecolor": "none", "font.size": 11,
    "savefig.facecolor": "none", "axes.edgecolor": GREY, "axes.labelcolor": GREY,
    "axes.titlecolor": GREY, "text.color": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "legend.framealpha": 0, "figure.constrained_layout.use": True,
}  # fmt: skip


def main() -> None:
    """Run all, or those that are named, and write them."""
    for path in map(Path, sys.argv[1:] or sorted(EXAMPLES.glob("*.ipynb"))):
        text = json.dumps(run(path), indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text) / 1e3:.0f} kB")


def run(path: Path) -> dict[str, Any]:
    """Return a notebook as it runs in an empty folder beside which examples/ can be imported."""
    notebook = json.loads(path.read_text("utf-8"))
    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context(STYLE):
        sys.path.insert(0, str(EXAMPLES))
        os.chdir(folder)
        try:
            cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
            for number, cell in enumerate(cells, 1):
                cell["execution_count"] = number
                cell["outputs"] = _outputs("".join(cell["source"]), names, number)
        finally:
            os.chdir(here)
            sys.path.remove(str(EXAMPLES))
    return notebook


def _outputs(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Run a cell; its last expression, what it printed, and its figures."""
    from matplotlib import pyplot

    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata|.*Zarr V3 specification")
        exec(compile(tree, "notebook", "exec"), names)
        expression = compile(ast.Expression(last.value), "notebook", "eval") if last else "None"
        value = eval(expression, names)
    found: list[dict[str, Any]] = []
    if printed.getvalue():
        found.append(
            {"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())}
        )
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        small = io.BytesIO()
        Image.open(file).quantize(method=Image.Quantize.FASTOCTREE).save(small, format="png")
        data = {"image/png": base64.b64encode(small.getvalue()).decode() + "\n"}
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
        value = None
    pyplot.close("all")
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        found.append(
            {"output_type": "execute_result", "execution_count": number, "data": data,
             "metadata": {}}
        )  # fmt: skip
    return found


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    main()
