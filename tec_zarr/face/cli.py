"""The ``tec-zarr`` command: its options and its exit status.

Each subcommand is one function of :mod:`tec_zarr.face.convert` or :mod:`tec_zarr.face.show`, whose
docstring is the description in ``--help``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tec_zarr
from tec_zarr.codec.options import options_of
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import TecError
from tec_zarr.face.convert import (
    decode_command,
    encode_command,
    from_stac_command,
    recompress_command,
    transcode_command,
)
from tec_zarr.face.show import (
    demo_command,
    info_command,
    report_command,
    train_command,
    verify_command,
)
from tec_zarr.interrupted import Interrupted, signals_interrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    arguments = _parser().parse_args(argv)
    # Zarr warns of parts of format 3 that have no specification yet. A user cannot act on that.
    warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
    warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
    try:
        with signals_interrupt():
            status = int(arguments.run(arguments) or 0)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # the reader of the output, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print("tec-zarr: interrupted", file=sys.stderr)
        return 128 + (error.args[0] if isinstance(error, Interrupted) else signal.SIGINT)
    except (TecError, OSError) as error:  # OSError: a file may disappear while the command runs
        print(f"tec-zarr: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tec-zarr", description="Learned compression of Sentinel-2 cubes in Zarr."
    )
    parser.add_argument("--version", action="version", version=f"tec_zarr {tec_zarr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable, name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    def bands(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--bands", nargs="+", metavar="BAND",
                         help="names of the bands, in the order of the file")  # fmt: skip

    demo = command(demo_command, "demo", "a cube through TEC and back, in numbers and a picture")
    demo.add_argument("--input", type=Path, help="own Zarr, NetCDF, GeoTIFF(s) or .npz cube")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    _add_options(demo)

    encode = command(encode_command, "encode", "write a cube into a Zarr store with TEC")
    encode.add_argument("source", type=Path, metavar="IN")
    encode.add_argument("target", type=Path, metavar="OUT")
    encode.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    encode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    encode.add_argument("--variables", nargs="+", metavar="NAME", help="arrays for TEC")
    _add_options(encode)

    decode = command(decode_command, "decode", "write a plain Zarr store or GeoTIFFs: the way out")
    decode.add_argument("source", type=Path, metavar="IN")
    decode.add_argument("target", type=Path, metavar="OUT")
    decode.add_argument("--to", choices=("zarr", "geotiff"), default="zarr")
    decode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    info = command(info_command, "info", "what is inside a store or file")
    info.add_argument("path", type=Path, metavar="PATH")

    verify = command(verify_command, "verify", "errors of B against A, per band")
    verify.add_argument("a", type=Path, metavar="A")
    verify.add_argument("b", type=Path, metavar="B")
    bands(verify)

    page = command(report_command, "report", "one HTML page about what was lost, to look at")
    page.add_argument("a", type=Path, metavar="A", help="the original")
    page.add_argument("b", type=Path, metavar="B", nargs="?",
                      help="a store made of it (default: made now, with TEC)")  # fmt: skip
    page.add_argument("--html", type=Path, default=Path("report.html"), help="the page to write")
    _add_options(page)

    stac = command(
        from_stac_command, "from-stac", "an area and a period of a STAC catalogue to TEC"
    )
    stac.add_argument("target", type=Path, metavar="OUT")
    stac.add_argument("--bbox", type=float, nargs=4, required=True,
                      metavar=("WEST", "SOUTH", "EAST", "NORTH"), help="degrees")  # fmt: skip
    stac.add_argument("--datetime", required=True, help="2023-06, or 2023-06-01/2023-08-31")
    stac.add_argument("--catalog", help="URL of a STAC API, or path of a catalog.json or "
                      "collection.json (default: Earth Search)")  # fmt: skip
    stac.add_argument("--collection", default="sentinel-2-l2a")
    stac.add_argument("--bands", nargs="+", metavar="BAND", help="default: all")
    stac.add_argument("--resolution", type=float, default=10, help="metres (default: 10)")
    stac.add_argument("--crs", help="such as EPSG:32632 (default: that of most items)")
    stac.add_argument("--loader", choices=("odc-stac", "stackstac"), default="odc-stac")
    stac.add_argument("--offset", type=int, choices=(0, 1000),
                      help="DN that all pixels carry, where the metadata are wrong")  # fmt: skip
    stac.add_argument("--append", action="store_true", help="add later dates to OUT")
    _add_options(stac, without=("bands", "offset"))

    recompress = command(recompress_command, "recompress", "a whole Zarr archive to TEC, resumable")
    recompress.add_argument("source", metavar="SRC", help="path or URL of a Zarr store")
    recompress.add_argument("target", metavar="DST", help="path or URL; repeat to resume")
    recompress.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    recompress.add_argument("--variables", nargs="+", metavar="NAME", help="arrays for TEC")
    recompress.add_argument("--verify", choices=("sample", "full", "none"), default="sample")
    recompress.add_argument("--retries", type=int, default=2, help="further attempts per region")
    where = recompress.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes of one thread (default: threads)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask cluster")
    recompress.add_argument("--gpu", action="store_true", help="encode on workers with GPU=1")
    recompress.add_argument("--dry-run", action="store_true", help="estimate; write nothing")
    recompress.add_argument("--price", type=float, help="with --dry-run: price of a core hour")
    recompress.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    _add_options(recompress)

    lower = command(transcode_command, "transcode", "lower quality, or other format or shards")
    lower.add_argument("source", metavar="IN", help="path or URL of a Zarr store")
    lower.add_argument("target", type=Path, metavar="OUT")
    how = lower.add_argument_group("either a lower quality, or another format or shards")
    how.add_argument("--tokens", type=int, nargs="+", metavar="K",
                     help="1 (smallest) to 16, for all dates or one for each: arrays of "
                     "tec-flex-s2 or FlexTEC")  # fmt: skip
    how.add_argument("--zarr-format", type=int, choices=(2, 3), help="of OUT")
    how.add_argument("--shards", type=int, nargs="*", metavar="N",
                     help="length along each axis, in whole chunks; without numbers: no shards "
                     "(default: as they are)")  # fmt: skip
    lower.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    train = command(train_command, "train", "train the default model on data of your own")
    train.add_argument("config", type=Path, metavar="CONFIG", help="TOML, see docs/training.md")
    return parser


def _add_options(sub: argparse.ArgumentParser, without: Sequence[str] = ()) -> None:
    """Add the options of a chunk, as `ChunkSpec` declares them."""
    group = sub.add_argument_group("options of a chunk")
    targets = group.add_mutually_exclusive_group()
    for name, (field, known) in options_of(ChunkSpec).items():
        if name in without:
            continue
        default = "" if field.default is None else f" (default: {field.default})"
        how: dict[str, Any] = {"action": _Bounds} if known.by_name else {"type": known.word}
        if known.many:
            how["nargs"] = "+"
        (targets if known.target else group).add_argument(
            f"--{name.replace('_', '-')}", default=field.default, metavar=known.metavar,
            help=(known.help + default).replace("%", "%%"), **how,
        )  # fmt: skip


class _Bounds(argparse.Action):
    """Collects ``--max-error`` as one number, or as a dict of numbers by name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, equals, number = values.rpartition("=")
        before = getattr(namespace, self.dest)
        if before is not None and not (equals and isinstance(before, dict)):
            parser.error(f"{option_string} takes one number, or numbers by name (ndvi=0.01)")
        try:
            bound = float(number)
        except ValueError:
            parser.error(f"{option_string} {values}: {number!r} is not a number")
        setattr(namespace, self.dest, {**(before or {}), name: bound} if equals else bound)


if __name__ == "__main__":
    sys.exit(main())
