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
    virtual_command,
)
from tec_zarr.face.show import (
    demo_command,
    info_command,
    report_command,
    train_command,
    verify_command,
    view_command,
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
        notes = getattr(error, "__notes__", [])
        print(f"tec-zarr: {error}", *notes, sep="\n", file=sys.stderr)
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

    def cube(sub: argparse.ArgumentParser, name: str, help: str, **more: Any) -> None:
        sub.add_argument(name.lower(), type=Path, metavar=name, help=help, **more)

    def new(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("target", type=Path, metavar="OUT", help="path to write")
        sub.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    def tec(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--zarr-format", type=int, choices=(2, 3), default=3,
                         help="Zarr format of the target (default: 3)")  # fmt: skip
        sub.add_argument("--variables", nargs="+", metavar="NAME", help="names of the arrays to "
                         "encode with TEC (default: those that look like Sentinel-2 "
                         "reflectance)")  # fmt: skip
        _add_options(sub)

    def overviews(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--overviews", action="store_true", help="write half the resolution, a "
                         "quarter, ... too, in groups 0, 1, 2, ... with the attributes of "
                         "GeoZarr")  # fmt: skip

    def item(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--stac-item", type=Path, metavar="FILE", help="write a STAC item of the "
                         "finished store to FILE")  # fmt: skip

    readable = "path of a Zarr store, NetCDF, GeoTIFF or .npz file, or of a folder of GeoTIFFs"

    demo = command(demo_command, "demo", "encode a cube, decode it, and show what was lost")
    demo.add_argument("--input", type=Path, metavar="PATH", help=f"{readable} (default: a cube "
                      "that is made up)")  # fmt: skip
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("demo-out"),
                      help="folder for the store and the picture (default: demo-out)")  # fmt: skip
    _add_options(demo)

    encode = command(encode_command, "encode", "write a cube to a Zarr store with TEC")
    encode.add_argument("source", type=Path, metavar="IN", help=readable)
    new(encode)
    tec(encode)
    overviews(encode)
    item(encode)

    decode = command(decode_command, "decode", "write a TEC store as plain Zarr or GeoTIFFs")
    decode.add_argument("source", type=Path, metavar="IN", help="path of a TEC store")
    new(decode)
    decode.add_argument("--to", choices=("zarr", "geotiff"), default="zarr",
                        help="what to write (default: zarr)")  # fmt: skip

    info = command(info_command, "info", "list the arrays of a store or file")
    cube(info, "PATH", readable)

    verify = command(verify_command, "verify", "print the errors of each band of B against A")
    cube(verify, "A", f"the original: {readable}")
    cube(verify, "B", f"the decoded cube: {readable}")
    verify.add_argument("--bands", nargs="+", metavar="BAND",
                        help="names of the bands of A, in its order")  # fmt: skip

    page = command(report_command, "report", "write an HTML page that shows what was lost")
    cube(page, "A", f"the original: {readable}")
    cube(page, "B", "a store made of A (default: TEC encodes A now)", nargs="?")
    page.add_argument("--html", type=Path, metavar="FILE", default=Path("report.html"),
                      help="the page to write (default: report.html)")  # fmt: skip
    _add_options(page)

    view = command(view_command, "view", "show a store in the browser")
    view.add_argument("store", nargs="?", metavar="STORE",
                      help="path or URL of a Zarr store (default: the page asks)")  # fmt: skip
    view.add_argument("--export", type=Path, metavar="DIR",
                      help="write the page, with a copy of the store, to a new folder")  # fmt: skip
    view.add_argument("--port", type=int, default=0, metavar="N",
                      help="port of the server (default: one that is free)")  # fmt: skip
    view.add_argument("--no-browser", action="store_true", help="only print the address")

    stac = command(
        from_stac_command, "from-stac", "load an area from a STAC catalogue into a TEC store"
    )
    stac.add_argument("target", metavar="OUT", help="path of the Zarr store to write; icechunk: and"
                      " a path or URL for an Icechunk repository")  # fmt: skip
    edges = ("WEST", "SOUTH", "EAST", "NORTH")
    stac.add_argument("--bbox", type=float, nargs=4, required=True, metavar=edges,
                      help="area to load, in degrees")  # fmt: skip
    stac.add_argument("--datetime", metavar="PERIOD", required=True,
                      help="such as 2023-06, or 2023-06-01/2023-08-31")  # fmt: skip
    stac.add_argument("--catalog", metavar="URL", help="URL of a STAC API, or path of a "
                      "catalog.json or collection.json (default: Earth Search)")  # fmt: skip
    stac.add_argument("--collection", metavar="NAME", default="sentinel-2-l2a",
                      help="collection of the API (default: sentinel-2-l2a)")  # fmt: skip
    stac.add_argument("--bands", nargs="+", metavar="BAND",
                      help="bands to load (default: all that every item has)")  # fmt: skip
    stac.add_argument("--resolution", type=float, metavar="METRES", default=10,
                      help="side of a pixel (default: 10)")  # fmt: skip
    stac.add_argument("--crs", help="such as EPSG:32632 (default: that of most items)")
    stac.add_argument("--loader", choices=("odc-stac", "stackstac"), default="odc-stac",
                      help="library that reads the items (default: odc-stac)")  # fmt: skip
    stac.add_argument("--offset", type=int, choices=(0, 1000), help="DN that were added to all "
                      "pixels (default: what metadata and pixels say)")  # fmt: skip
    stac.add_argument("--append", action="store_true",
                      help="append later dates to OUT, with its options")  # fmt: skip
    item(stac)
    _add_options(stac, without=("bands", "offset"))

    recompress = command(recompress_command, "recompress", "copy a whole Zarr archive to TEC")
    recompress.add_argument("source", metavar="SRC", help="path or URL of a Zarr store")
    recompress.add_argument("target", metavar="DST", help="path or URL of the store to write; "
                            "icechunk: and a path or URL for an Icechunk repository")  # fmt: skip
    recompress.add_argument("--verify", choices=("sample", "full", "none"), default="sample",
                            help="read back one chunk of every region, all of it, or nothing "
                            "(default: sample)")  # fmt: skip
    recompress.add_argument("--retries", type=int, metavar="N", default=2, help="further attempts "
                            "for a region that failed (default: 2)")  # fmt: skip
    where = recompress.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="number of processes, of one "
                       "thread each (default: threads of one process)")  # fmt: skip
    where.add_argument("--scheduler", metavar="ADDRESS",
                       help="address of a running Dask cluster: tcp://HOST:8786")  # fmt: skip
    recompress.add_argument("--gpu", action="store_true",
                            help="encode only on workers with the Dask resource GPU; brings "
                            "nothing to the embedded models")  # fmt: skip
    recompress.add_argument("--append", action="store_true", help="append to a finished DST the "
                            "dates that SRC has more; without DST, copy all")  # fmt: skip
    recompress.add_argument("--dry-run", action="store_true",
                            help="estimate size and time; write nothing")  # fmt: skip
    recompress.add_argument("--price", type=float, help="price of a core hour, for --dry-run")
    recompress.add_argument("--report", type=Path, metavar="FILE", help="write a report as JSON")
    tec(recompress)
    overviews(recompress)
    item(recompress)

    lower = command(
        transcode_command, "transcode", "lower the quality of a store, or change its format"
    )
    lower.add_argument("source", metavar="IN", help="path or URL of a Zarr store")
    new(lower)
    how = lower.add_argument_group("one of a lower quality, and another format or other shards")
    how.add_argument("--tokens", type=int, nargs="+", metavar="K",
                     help="number of tokens to keep, 1 (smallest) to 16, for all dates or for "
                     "each: arrays of tec-flex-s2 or FlexTEC")  # fmt: skip
    how.add_argument("--zarr-format", type=int, choices=(2, 3), help="Zarr format of OUT")
    how.add_argument("--shards", type=int, nargs="*", metavar="N",
                     help="length of a shard along each axis, in chunks; without numbers OUT has "
                     "no shards (default: shards as in IN)")  # fmt: skip

    over = command(
        virtual_command, "virtual", "let readers of Zarr format 2 (GDAL) open a store of format 3"
    )
    over.add_argument("store", metavar="STORE", help="path or URL of a Zarr store of format 3")

    train = command(train_command, "train", "train a model on data of your own")
    train.add_argument("config", type=Path, metavar="CONFIG",
                       help="TOML file; docs/training.md describes it")  # fmt: skip
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
