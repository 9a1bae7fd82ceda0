"""Run the tests with several versions of Python and Zarr, and with each of Zarr's codec pipelines.

    python benchmarks/matrix.py                # every row (hours on 2 cores), then the page
    python benchmarks/matrix.py --only 3.13    # the rows whose name begins so; keeps the others
    python benchmarks/matrix.py --tests "zarr store"    # these files only, and the page says so
    python benchmarks/matrix.py --quick 3.13   # what CI runs with that Python: minutes, no page

Each row has an environment of its own in ``build/matrix``, without torch: what needs torch is
skipped there and says so. Results are in ``results/matrix.json``; ``robustness.py --page`` shows
them in ``docs/robustness.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "matrix.json"

PIPELINES = {
    "batched": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}
#: zarrs-python does not know TEC: it says so and leaves the array to Zarr's own pipeline.
FALLS_BACK = (
    "ignore:Array is unsupported by ZarrsCodecPipeline:UserWarning",
    "ignore:Successfully reconstructed a store defined in another:RuntimeWarning",
)

LOWEST = ("stream", "mask", "chunk", "bound", "zarr", "store", "robustness")
ZARR = (
    "zarr", "store", "default_model", "eopf_codecs", "overviews", "recompress_append",
    "recompress_overviews", "icechunk", "robustness_interop", "robustness_load",
)  # fmt: skip
QUICK = (
    "house", "stream", "mask", "frame", "chunk", "golden", "options", "zarr", "default_model",
    "eopf_codecs",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table: ``tests`` are names of files, none for the whole suite."""

    python: str
    packages: str
    pipeline: str = "batched"
    tests: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What ``--only`` is compared with."""
        return f"{self.python} {self.packages} {self.pipeline}"

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return ROOT / "build" / "matrix" / f"{self.python}-{self.packages}"


ROWS = (
    Row("3.11", "lowest", tests=LOWEST),
    Row("3.11", "newest", tests=ZARR),
    Row("3.12", "newest"),
    Row("3.13", "newest"),
    Row("3.13", "newest", "fused", ZARR),
    Row("3.13", "newest", "zarrs", ZARR),
)


def interpreter(version: str) -> str | None:
    """Return a Python of a version, from the path or from pyenv; None if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path / "bin" / "python") for path in sorted(pyenv.glob(f"{version}.*"))]
    for candidate in filter(None, (shutil.which(f"python{version}"), *reversed(found))):
        # pyenv puts commands on the path that only say that the version is not chosen.
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def requirements(*extras: str) -> list[str]:
    """Return what pyproject.toml declares with these extras, but torch and fuzzing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, found = list(extras), list(project["dependencies"])
    for extra in wanted:
        for item in project["optional-dependencies"][extra]:
            if item.startswith("tec_zarr["):
                wanted += item.removeprefix("tec_zarr[").removesuffix("]").split(",")
            else:
                found.append(item)
    return [item for item in found if not item.startswith(("torch", "atheris", "mypy", "ruff"))]


def environment(row: Row, quick: bool = False) -> str | None:
    """Make the environment of a row if there is none; return its Python, None without one."""
    python = interpreter(row.python)
    if python is None:
        return None
    folder = row.folder.with_name(row.folder.name + ("-quick" if quick else ""))
    inside = str(folder / "bin" / "python")
    if not (folder / "ready").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        tools = ["pytest>=8", "hypothesis>=6.100", "pytest-xdist>=3.6"]
        if row.packages == "lowest":
            packages = ["-r", str(ROOT / "tests" / "minimum-versions.txt"), *tools]
        elif quick:
            packages = [*requirements("eopf"), *tools]
        else:
            packages = [*requirements("test"), *(["zarrs"] if row.python != "3.11" else [])]
        subprocess.run([*pip, *packages], check=True)
        subprocess.run([*pip, "--no-deps", "--editable", str(ROOT)], check=True)
        (folder / "ready").touch()
    return inside


def run(row: Row, python: str) -> dict[str, object]:
    """Run the tests of a row; return counts, versions and seconds."""
    report = row.folder / f"{row.pipeline}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    files = [f"tests/test_{name}.py" for name in row.tests]
    files = [file for file in files if (ROOT / file).exists()]
    command = [python, "-m", "pytest", "-n", "2", "--dist", "worksteal", f"--junitxml={report}"]
    if row.pipeline == "zarrs":
        command += [f"-W{warning}" for warning in FALLS_BACK]
    began = time.monotonic()
    subprocess.run(
        [*command, *files], cwd=ROOT,
        env={**os.environ, "ZARR_CODEC_PIPELINE__PATH": PIPELINES[row.pipeline]},
    )  # fmt: skip
    counts = ElementTree.parse(report).getroot()[0].attrib
    total, skipped = int(counts["tests"]), int(counts["skipped"])
    failed = int(counts["failures"]) + int(counts["errors"])
    return {
        "python": row.python, "packages": row.packages, "pipeline": row.pipeline,
        "tests": " ".join(row.tests) or "all", "passed": total - skipped - failed,
        "skipped": skipped, "failed": failed, "seconds": round(time.monotonic() - began),
        "versions": versions(python),
    }  # fmt: skip


def versions(python: str) -> dict[str, str]:
    """Return the versions of what Zarr data go through, in another environment."""
    code = (
        "import json, platform\n"
        "from importlib.metadata import version\n"
        "names = 'zarr', 'numcodecs', 'xarray', 'dask', 'numpy'\n"
        "print(json.dumps({'python': platform.python_version(), **{n: version(n) for n in names}}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    """Run the rows that are asked for. Returns 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name begins so")
    parser.add_argument("--tests", default="", help="files of tests/ to run, without test_ and .py")
    parser.add_argument("--quick", metavar="PYTHON", help="some files, with this Python")
    arguments = parser.parse_args()
    if arguments.quick:
        row = Row(arguments.quick, "newest", tests=QUICK)
        python = environment(row, quick=True)
        if python is None:
            print(f"There is no Python {row.python} here: its tests are not run.")
            return 0
        return int(run(row, python)["failed"] != 0)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for row in ROWS:
        if not row.name.startswith(arguments.only):
            continue
        row = replace(row, tests=tuple(arguments.tests.split()) or row.tests)
        python = environment(row)
        if python is None:
            print(f"There is no Python {row.python} here: {row.name} is not run.")
            continue
        results[row.name] = run(row, python)
        print(row.name, results[row.name])
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    subprocess.run([sys.executable, ROOT / "benchmarks" / "robustness.py", "--page"], check=True)
    return int(any(result["failed"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
