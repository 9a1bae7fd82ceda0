"""The pages of the reference that are made from the code: ``api.md`` and ``cli.md``."""

from __future__ import annotations

import argparse
import inspect

import tec_zarr
from tec_zarr.face.cli import _parser

GROUPS = {
    "Writing and reading": (
        "encoding", "drop_encoding", "decode", "stack_bands", "unstack_bands", "simulate",
    ),
    "Codecs": ("TECCodec", "TEC", "ChunkSpec", "encode_chunk", "decode_chunk"),
    "From catalogues": ("from_stac", "prepare", "harmonize", "to_groups"),
    "Clouds": ("inpaint_clouds", "regularize"),
    "Archives": ("recompress", "transcode", "embed_weights", "use_embedded_weights"),
    "Errors and warnings": (
        "TecError", "SecondGenerationWarning", "SeparateBandsWarning", "UnsuitedDataWarning",
    ),
}  # fmt: skip
"""The public names, as ``api.md`` has them."""

ACCESSOR = "tec_zarr.face.accessor._TecAccessor"


def api() -> str:
    """The page of the public names."""
    listed = {name for names in GROUPS.values() for name in names}
    if listed != set(tec_zarr.__all__):
        raise ValueError(f"in one of GROUPS and __all__ only: {listed ^ set(tec_zarr.__all__)}")
    parts = [
        "# Python",
        "`import tec_zarr` imports neither torch nor xarray: each name is loaded at its first use. "
        "`xarray.open_zarr` needs no import of tec_zarr at all. DN are digital numbers, "
        "reflectance x 10,000; the [glossary](glossary.md) has the other words.",
    ]
    for title, names in GROUPS.items():
        parts.append(f"## {title}")
        if title == "Errors and warnings":
            parts.append("The others, and what to do: [Errors](errors.md).")
        parts += [_entry(f"tec_zarr.{tec_zarr._HOME[n]}.{n}", f"tec_zarr.{n}") for n in names]
    parts += [
        "## The accessor",
        "`DataArray.tec`, `Dataset.tec` and `DataTree.tec` (of an EOPF product) have these "
        "methods.",
        *(_entry(f"{ACCESSOR}.{name}", f".tec.{name}") for name in accessor_methods()),
    ]
    return "\n\n".join(parts) + "\n"


def accessor_methods() -> list[str]:
    """Names of the methods of ``.tec``."""
    from tec_zarr.face.accessor import _TecAccessor

    return [name for name in vars(_TecAccessor) if not name.startswith("_")]


def _entry(path: str, name: str) -> str:
    return f"::: {path}\n    options:\n      heading: {name}\n      toc_label: {name}"


def commands() -> str:
    """The page of the command line."""
    parser = _parser()
    subs = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in subs._choices_actions}
    parts = [
        "# Command line",
        "`tec-zarr COMMAND --help` says the same.",
        "| command | does |\n| --- | --- |",
    ]
    parts[-1] += "".join(f"\n| [`{name}`](#{name}) | {helps[name]} |" for name in subs.choices)
    parts.append(
        "A command returns 0, or 1 after an error, whose message says what to do; 2 where the "
        "options do not fit; 130 or 143 where it was interrupted or terminated."
    )
    for name, sub in subs.choices.items():
        given = [_called(sub, a) for a in sub._actions if not a.option_strings]
        parts.append(f"## {name}")
        parts.append(f"```text\n{' '.join([sub.prog, '[options]', *given])}\n```")
        parts.append(inspect.cleandoc(sub.description or ""))
        for group in sub._action_groups:
            rows = [a for a in group._group_actions if a.dest != "help"]
            if rows:
                title = group.title.replace("positional arguments", "arguments").capitalize()
                lines = [f"| `{_called(sub, a)}` | {_said(sub, a)} |" for a in rows]
                parts.append("\n".join([f"| {title} | |", "| --- | --- |", *lines]))
    return "\n\n".join(parts) + "\n"


def _called(sub: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument as it is typed."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    metavar = action.metavar or choices or action.dest.upper()
    words = sub._get_formatter()._format_args(action, metavar) if action.nargs != 0 else ""
    return " ".join([*action.option_strings[-1:], words]).strip()


def _said(sub: argparse.ArgumentParser, action: argparse.Action) -> str:
    return sub._get_formatter()._expand_help(action).replace("|", "\\|")
