"""Declares an option of a chunk once, and derives documentation and signatures from it.

A field of `tec_zarr.codec.spec.ChunkSpec` made by `option` is the only place that an option needs.
The configuration of the codec, `tec_zarr.encoding`, ``.tec.to_zarr``, `tec_zarr.recompress`,
`tec_zarr.from_stac` and the command line take it from there.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from numbers import Real
from typing import Any, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, type and default.

    Attributes
    ----------
    help : str
        One sentence for ``--help`` and for docstrings.
    expected : str
        What a value must be, for the error message.
    fits : callable
        Whether a value is that. It is not asked about None if that is the default.
    plain : callable
        Converts a value to the type that the codec's configuration holds.
    word : callable
        Reads one word of the command line.
    many : bool
        Whether the command line takes several words.
    by_name : bool
        Whether the command line takes ``NAME=NUMBER`` too, and the option again.
    target : bool
        Whether it chooses the quality. Only one of these can be given.
    metavar : str
        Name of a word in ``--help``.
    """

    help: str
    expected: str
    fits: Callable[[Any], bool]
    plain: Callable[[Any], Any] = lambda value: value
    word: Callable[[str], Any] = float
    many: bool = False
    by_name: bool = False
    target: bool = False
    metavar: str | None = None


def option(default: Any, help: str, expected: str, fits: Callable[[Any], bool], **more: Any) -> Any:
    """Return a dataclass field that is an option. ``more`` are other attributes of `Option`."""
    return field(default=default, metadata={"option": Option(help, expected, fits, **more)})


def options_of(kind: Any) -> dict[str, tuple[Field, Option]]:
    """Return the options of a dataclass (or of an object of one) by name, in their order."""
    return {f.name: (f, f.metadata["option"]) for f in fields(kind) if "option" in f.metadata}


def takes_options(source: Callable[..., Any], *, without: Iterable[str] = ()) -> Callable[[F], F]:
    """Decorate a function that passes its ``**options`` on to ``source``.

    ``source`` is a dataclass, such as ChunkSpec, or a function that this has decorated. The
    signature of the function, which editors and ``help`` show, gets the keywords of ``source`` in
    place of ``**options``. ``{options}`` in its docstring becomes a list of the options. Calls stay
    as they are. ``without`` are keywords that the function does not take.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        left_out = {*without, *(p.name for p in own)}
        more = {
            p.name: p.replace(kind=p.KEYWORD_ONLY)
            for p in inspect.signature(source).parameters.values()
            if p.default is not p.empty and p.name not in left_out
        }
        function.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *more.values()]
        )
        if is_dataclass(source) and function.__doc__:  # python -OO leaves docstrings out
            entries = [_entry(*both) for name, both in options_of(source).items() if name in more]
            # Python 3.13 takes the indentation off docstrings, older ones leave it.
            text = inspect.cleandoc(function.__doc__)
            function.__doc__ = text.replace("{options}", "\n".join(entries))
        return function

    return decorate


def _entry(field: Field, known: Option) -> str:
    """Return the lines about an option in a list of parameters."""
    said = f"{known.help[0].upper()}{known.help[1:]}."
    lines = textwrap.fill(said, 92, initial_indent="    ", subsequent_indent="    ")
    return f"{field.name} : {field.type}, default {field.default!r}\n{lines}"


def is_count(value: object) -> bool:
    """Return whether ``value`` is a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object) -> bool:
    """Return whether ``value`` is one real number that a float can hold; infinity and NaN are."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # JSON has integers of any length
        return False
    return True


def within(low: float, high: float) -> Callable[[object], bool]:
    """Return the check that a value is a number from ``low`` to ``high``, both included."""
    return lambda value: is_number(value) and low <= float(value) <= high  # type: ignore[arg-type]


def are_numbers(value: object) -> bool:
    """Return whether ``value`` is a number or a list of numbers."""
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(plain, list | tuple):
        return all(map(is_number, plain))
    return is_number(plain)


def are_bounds(value: object) -> bool:
    """Return whether ``value`` is finite and not negative: a number, or a list of some.

    A mapping of names to numbers passes: `tec_zarr.bounds.request.NamedBounds` checks it.
    """
    if isinstance(value, Mapping):
        return True
    if not are_numbers(value):
        return False
    numbers = np.asarray(value, np.float64)
    return bool(numbers.size and numbers.ndim < 2 and (np.isfinite(numbers) & (numbers >= 0)).all())


def is_listing(value: object) -> bool:
    """Return whether ``value`` can be iterated over and is not a str."""
    return isinstance(value, Iterable) and not isinstance(value, str)


def is_sha256(value: object) -> bool:
    """Return whether ``value`` is a SHA-256 in hexadecimal digits."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
