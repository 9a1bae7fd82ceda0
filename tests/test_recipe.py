"""The draft of the conda recipe asks for what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONDA = {"dask[array]": "dask-core"}
"""Names that conda-forge spells in another way."""


@pytest.fixture(scope="module")
def recipe():
    path = ROOT / ".ci" / "conda" / "recipe.yaml"
    if not path.exists():
        pytest.skip("no .ci here: the sdist leaves it out")
    return pytest.importorskip("yaml").safe_load(path.read_text())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def conda(requirement: str) -> str:
    name, bound = re.fullmatch(r"([\w.-]+(?:\[\w+\])?)(>=.*)", requirement).groups()
    return f"{CONDA.get(name, name)} {bound}"


def test_it_needs_what_pip_installs(recipe, project):
    run = recipe["requirements"]["run"]
    assert run == ["python", *map(conda, project["project"]["dependencies"])]
    assert set(map(conda, project["build-system"]["requires"])) <= set(
        recipe["requirements"]["host"]
    )
    assert project["project"]["requires-python"] == f">={recipe['context']['python_min']}"


def test_version_licence_and_summary_are_those_of_the_package(recipe, project):
    package = project["project"]
    assert recipe["context"]["version"] == package["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: \"?{re.escape(package['version'])}\"?$", citation, re.M)
    assert package["version"] in (ROOT / "CHANGELOG.md").read_text()
    assert recipe["about"]["license"] == package["license"]
    assert recipe["about"]["summary"] == package["description"]
