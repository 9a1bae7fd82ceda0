"""Docstrings of public names say parameters, results, errors, shapes, dtypes and units."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re

import pytest

import tec_zarr
from tec_zarr.face.accessor import TecTree, _TecAccessor
from tec_zarr.face.cli import _parser

SHAPE = r"\([a-z, ]*\by, x\b|[Dd]imensions|[Ss]hape"
DTYPE = r"u?int(8|16|32)|float(32|64)?s?\b|[Dd]type"
UNIT = r"\bDN\b|reflectance|bytes|\bdB\b"
ARRAYS = r"DataArray|Dataset|DataTree|ndarray|XrObject|XrTree"


RAISE_NOTHING = {tec_zarr.drop_encoding, tec_zarr.decode}


def sections(text):
    """The sections of a NumPy docstring by name, the text before them under ''."""
    parts = re.split(r"^([A-Z]\w+)\n-{3,}\n", inspect.cleandoc(text), flags=re.M)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def lacks(function):
    """What the docstring of a function should say and does not."""
    text = function.__doc__ or ""
    found = sections(text)
    signature = inspect.signature(function)
    names = {
        name.strip(" *")
        for line in re.findall(r"^(?! )(.+)$", found.get("Parameters", ""), re.M)
        for name in line.split(" : ")[0].split(",")
    }
    wanted = {p.name for p in signature.parameters.values()} - {"self"}
    if "options" in names:  # those of another function, which the docstring names
        wanted -= set(inspect.signature(tec_zarr.encoding).parameters) - {"obj"}
    missing = [f"the parameter {name}" for name in sorted(wanted - names)]
    if str(signature.return_annotation) not in ("None", "Self") and "Returns" not in found:
        missing.append("Returns")
    if "Raises" not in found and function not in RAISE_NOTHING:
        missing.append("Raises")
    if re.search(ARRAYS, str(signature)):
        said = {"shapes": SHAPE, "dtypes": DTYPE, "units": UNIT}
        missing += [what for what, pattern in said.items() if not re.search(pattern, text)]
    return missing


PUBLIC = {name: getattr(tec_zarr, name) for name in tec_zarr.__all__}
FUNCTIONS = {name: x for name, x in PUBLIC.items() if inspect.isfunction(x)}
CODECS = {name: x for name, x in PUBLIC.items() if name in ("TEC", "TECCodec", "ChunkSpec")}
METHODS = {
    f"{kind.__name__}.{name}": x
    for kind in (_TecAccessor, TecTree)
    for name, x in vars(kind).items()
    if inspect.isfunction(x) and not name.startswith("_")
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take_and_give(name):
    assert lacks(FUNCTIONS[name]) == []


@pytest.mark.parametrize("name", METHODS)
def test_methods_name_a_function_that_says_it(name):
    home, _, function = re.findall(r"`(tec_zarr[\w.]+)`", METHODS[name].__doc__)[0].rpartition(".")
    assert lacks(getattr(importlib.import_module(home), function)) == []


@pytest.mark.parametrize("name", CODECS)
def test_codecs_say_shapes_dtypes_units_and_errors(name):
    text = CODECS[name].__doc__
    assert [pattern for pattern in (SHAPE, DTYPE, UNIT) if not re.search(pattern, text)] == []
    assert "Raises" in sections(text)


def test_every_public_name_is_one_of_these():
    classes = {n for n, x in PUBLIC.items() if inspect.isclass(x) and issubclass(x, Exception)}
    assert set(PUBLIC) == {*FUNCTIONS, *CODECS, *classes}


def test_a_docstring_without_them_is_found():
    def bare(cube: DataArray, quality: float) -> DataArray:  # noqa: F821
        """Return it.

        Parameters
        ----------
        cube : DataArray
            Pixels.
        """

    assert lacks(bare) == [
        "the parameter quality",
        "Returns",
        "Raises",
        "shapes",
        "dtypes",
        "units",
    ]


def test_every_command_and_argument_has_a_description():
    subs = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in subs.choices.items():
        assert sub.description, name
        assert [a.dest for a in sub._actions if not a.help] == [], name
