"""The ``tec-zarr`` command: each subcommand is one function, and none has maths of its own."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import tec_zarr
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.interrupted import Interrupted, replaced, signals_interrupt

if TYPE_CHECKING:
    import xarray as xr

_BAR_AFTER_SECONDS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    # Zarr's notes on parts of format 3 that have no specification yet: nothing a user can act on.
    warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
    warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
    try:
        with signals_interrupt():
            status = int(arguments.run(arguments) or 0)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # whoever reads has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print("tec-zarr: interrupted", file=sys.stderr)
        return 128 + (error.args[0] if isinstance(error, Interrupted) else signal.SIGINT)
    except (TecError, OSError) as error:  # OSError: what is read or written may go away meanwhile
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

    def coding(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--quality", type=float, default=4.0, help="1 (smallest) to 8 (finest)")
        sub.add_argument("--model", default="tec-s2", help="learned model (default: tec-s2)")
        sub.add_argument("--scale", type=float, help="units of float data: 1e-4 (default) or 1")
        named(sub)

    def named(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--bands", nargs="+", metavar="BAND",
                         help="names of the bands, in the order of the file")  # fmt: skip

    def nodata(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--nodata", type=float, nargs="+", default=[0], metavar="VALUE",
                         help="what means nothing measured (default: 0), besides NaN and what "
                         "the data declare")  # fmt: skip

    def targets(sub: argparse.ArgumentParser) -> None:
        target = sub.add_mutually_exclusive_group()
        target.add_argument("--max-error", action=_Bounds, metavar="[NAME=]BOUND",
                            help="bound in units of the data; 0: exact. Or by name, repeatedly: "
                            "ndvi=0.01, B04=5, nd:B8A,B04=0.02, all=50")  # fmt: skip
        target.add_argument("--psnr", type=float, help="dB that every chunk reaches")
        target.add_argument("--max-bytes", type=int, help="bytes that no chunk exceeds")

    demo = command(_demo, "demo", "a cube through TEC and back, in numbers and a picture")
    demo.add_argument("--input", type=Path, help="own Zarr, NetCDF, GeoTIFF(s) or .npz cube")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    coding(demo)

    encode = command(_encode, "encode", "write a cube into a Zarr store with TEC")
    encode.add_argument("source", type=Path, metavar="IN")
    encode.add_argument("target", type=Path, metavar="OUT")
    encode.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    encode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    encode.add_argument("--variables", nargs="+", metavar="NAME", help="arrays for TEC")
    nodata(encode)
    coding(encode)
    targets(encode)

    decode = command(_decode, "decode", "write a plain Zarr store or GeoTIFFs: the way out")
    decode.add_argument("source", type=Path, metavar="IN")
    decode.add_argument("target", type=Path, metavar="OUT")
    decode.add_argument("--to", choices=("zarr", "geotiff"), default="zarr")
    decode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    info = command(_info, "info", "what is inside a store or file")
    info.add_argument("path", type=Path, metavar="PATH")

    verify = command(_verify, "verify", "errors of B against A, per band")
    verify.add_argument("a", type=Path, metavar="A")
    verify.add_argument("b", type=Path, metavar="B")
    named(verify)

    page = command(_report, "report", "one HTML page about what was lost, to look at")
    page.add_argument("a", type=Path, metavar="A", help="the original")
    page.add_argument("b", type=Path, metavar="B", nargs="?",
                      help="a store made of it (default: made now, with TEC)")  # fmt: skip
    page.add_argument("--html", type=Path, default=Path("report.html"), help="the page to write")
    nodata(page)
    coding(page)
    targets(page)

    stac = command(_from_stac, "from-stac", "an area and a period of a STAC catalogue to TEC")
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
    stac.add_argument("--quality", type=float, default=4.0, help="1 (smallest) to 8 (finest)")
    stac.add_argument("--model", default="tec-s2", help="learned model (default: tec-s2)")

    recompress = command(_recompress, "recompress", "a whole Zarr archive to TEC, resumable")
    recompress.add_argument("source", metavar="SRC", help="path or URL of a Zarr store")
    recompress.add_argument("target", metavar="DST", help="path or URL; repeat to resume")
    recompress.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    recompress.add_argument("--variables", nargs="+", metavar="NAME", help="arrays for TEC")
    nodata(recompress)
    recompress.add_argument("--verify", choices=("sample", "full", "none"), default="sample")
    recompress.add_argument("--retries", type=int, default=2, help="further attempts per region")
    where = recompress.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes of one thread (default: threads)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a running Dask cluster")
    recompress.add_argument("--gpu", action="store_true", help="encode on workers with GPU=1")
    recompress.add_argument("--dry-run", action="store_true", help="estimate; write nothing")
    recompress.add_argument("--price", type=float, help="with --dry-run: price of a core hour")
    recompress.add_argument("--report", type=Path, metavar="FILE", help="write a JSON report")
    coding(recompress)
    targets(recompress)

    lower = command(_transcode, "transcode", "lower quality, or other format or shards")
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

    train = command(_train, "train", "train the default model on data of your own")
    train.add_argument("config", type=Path, metavar="CONFIG", help="TOML, see docs/training.md")
    return parser


class _Bounds(argparse.Action):
    """Collects ``--max-error``: one number, or numbers by name."""

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


def _demo(arguments: argparse.Namespace) -> None:
    """Encode a cube, synthetic or your own, reopen it with xarray and report what was lost."""
    from tec_zarr.face.demo import run_demo

    text, picture = run_demo(
        arguments.out, source=arguments.input, quality=arguments.quality, model=arguments.model,
        scale=arguments.scale, bands=arguments.bands, step=_with_bar,
    )  # fmt: skip
    print(text)
    print()
    print(f"picture: {picture or 'not drawn; pip install tec_zarr[plots]'}")


def _encode(arguments: argparse.Namespace) -> None:
    """Write a cube into a Zarr store: reflectance with TEC, everything else lossless."""
    from tec_zarr.cubes.provenance import describe, record
    from tec_zarr.stores.info import stored_arrays

    with _out(arguments) as target:
        ds, settings = _settings(arguments.source, arguments, arguments.zarr_format)
        _to_zarr(describe(ds, settings), target, encoding=settings,
                 zarr_format=arguments.zarr_format)  # fmt: skip
        if arguments.max_error is not None:
            record(target)
    _print_arrays(stored_arrays(arguments.target))


def _settings(source: Path, arguments: argparse.Namespace, zarr_format: int) -> tuple:
    """A cube ready to write, and its encoding by the arguments of ``coding`` and ``targets``."""
    from tec_zarr.cubes.encoding import decode, encoding
    from tec_zarr.cubes.files import open_cube
    from tec_zarr.cubes.layout import rechunk
    from tec_zarr.cubes.stacking import stack_bands

    said: list[str] = []
    ds = open_cube(source, bands=arguments.bands, said=said)
    variables = getattr(arguments, "variables", None)
    ds = rechunk(ds if variables else stack_bands(ds, said=said))
    for line in said:
        print(line)
    settings = encoding(
        ds, quality=arguments.quality, model=arguments.model, scale=arguments.scale,
        zarr_format=zarr_format, max_error=arguments.max_error, psnr=arguments.psnr,
        max_bytes=arguments.max_bytes, variables=variables,
        nodata=getattr(arguments, "nodata", 0),
    )  # fmt: skip
    return decode(ds), settings


def _transcode(arguments: argparse.Namespace) -> None:
    """Copy a store, cutting the chunks of its flexible arrays down to their first tokens, or moving
    those of all TEC arrays to the other Zarr format or to other shards, byte by byte.

    Tokens of tec-flex-s2 need no network for it. Of FlexTEC, neither does a chunk of one date, or
    one written with context_tokens; of another the tokens that stay are coded anew. Both end as
    encoding at the lower quality does.
    """
    from tec_zarr.recompression.transcode import transcode
    from tec_zarr.stores.info import stored_arrays

    tokens = arguments.tokens
    tokens = tokens[0] if tokens and len(tokens) == 1 else tokens
    bar = tqdm(desc="transcode", delay=_BAR_AFTER_SECONDS, leave=False, disable=None)
    with _out(arguments) as target, bar:
        transcode(
            arguments.source, target, tokens, zarr_format=arguments.zarr_format,
            shards=arguments.shards, progress=bar.update,
        )  # fmt: skip
    _print_arrays(stored_arrays(arguments.target))


def _train(arguments: argparse.Namespace) -> None:
    """Run or resume a training, then write its weights and the plot of its log beside it."""
    from tec_zarr.training.run import run

    print(f"weights: {run(arguments.config)}")


def _decode(arguments: argparse.Namespace) -> None:
    """Write what a TEC store decodes to as a plain Zarr store, or as one GeoTIFF per date.

    Bands that were stacked to encode them are variables again in a Zarr store.
    """
    from tec_zarr.cubes.encoding import decode
    from tec_zarr.cubes.files import open_cube, with_known_nodata
    from tec_zarr.cubes.geotiff import is_image, write_geotiffs
    from tec_zarr.cubes.stacking import unstack_bands

    files: list[Path] = []
    left: list[str] = []
    with _out(arguments) as target:
        ds = decode(with_known_nodata(open_cube(arguments.source)))
        if arguments.to == "zarr":
            _to_zarr(unstack_bands(ds), target)
        else:
            _with_bar("decode", lambda: files.extend(write_geotiffs(ds, target)))
            left = [str(n) for n, da in ds.data_vars.items() if da.ndim and not is_image(da)]
    print(f"wrote {f'{len(files)} GeoTIFFs to ' if files else ''}{arguments.target}")
    if left:
        print(f"not in GeoTIFFs, which hold images: {', '.join(left)}")


def _info(arguments: argparse.Namespace) -> None:
    """List the arrays of a store: codec, model, quality, size, ratio, and bounds that were asked
    for beside the largest errors that were measured. Decodes nothing. Of other files: the
    variables that `encode` would find."""
    from tec_zarr.compare.tables import size, table
    from tec_zarr.cubes.files import is_zarr, open_cube, readable
    from tec_zarr.stores.info import stored_arrays

    path = arguments.path
    if is_zarr(path):
        with readable(path):
            arrays = stored_arrays(path)
        _print_arrays(arrays)
        return
    said: list[str] = []
    ds = open_cube(path, said=said)
    rows = [[str(n), "x".join(map(str, da.shape)), str(da.dtype), size(da.nbytes)]
            for n, da in ds.data_vars.items()]  # fmt: skip
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    print(table(("variable", "shape", "dtype", "raw"), rows))
    print("\n".join([f"\n{size(sum(p.stat().st_size for p in files))} on disk, no Zarr", *said]))


def _verify(arguments: argparse.Namespace) -> int:
    """Compare the reflectance of two cubes, band by band, in DN.

    What B has lost counts as 0 DN. Exit status: 0, or 1 where nodata differs or the cubes cannot
    be compared.
    """
    from tec_zarr.compare.align import comparable, in_dn, pair
    from tec_zarr.compare.tables import ERROR_COLUMNS, error_rows, nodata_line, table
    from tec_zarr.cubes.dims import names_along_bands
    from tec_zarr.cubes.files import open_cube

    a, b = pair(open_cube(arguments.a, bands=arguments.bands), open_cube(arguments.b))
    b = comparable(a, b, (arguments.a, arguments.b))
    both: list = []
    rows: list = []
    _with_bar("read", lambda: both.extend(in_dn(a, b)))
    _with_bar("compare", lambda: rows.extend(error_rows(both[0], both[1], names_along_bands(a))))
    print(table(ERROR_COLUMNS, rows))
    difference = nodata_line(*both)
    if difference:
        print(f"\n{difference}")
    return int(bool(difference))


def _report(arguments: argparse.Namespace) -> None:
    """Write a page that needs no network: pictures, error maps, tables, other codecs, provenance.

    ``tec-zarr report A B --html page.html`` compares a store B with the original A;
    ``tec-zarr report A page.html`` shows what TEC would make of A.
    """
    from tec_zarr.compare.page import write_page

    b, target = arguments.b, arguments.html
    if b is not None and b.suffix == ".html":
        b, target = None, b
    facts = {"original": str(arguments.a), "decoded": str(b or "made for this report")}
    with tempfile.TemporaryDirectory() as folder:
        if b is None:
            b = Path(folder) / "report.zarr"
            ds, settings = _settings(arguments.a, arguments, zarr_format=3)
            _to_zarr(ds, b, encoding=settings, zarr_format=3)
        _with_bar("report", lambda: write_page(target, arguments.a, b, facts, arguments.bands))
    print(f"wrote {target}")


def _recompress(arguments: argparse.Namespace) -> int:
    """Recompress a Zarr store: reflectance with TEC, everything else lossless.

    Repeat the command after an interruption: it goes on where it was. Exit status: 0 complete,
    1 refused, 3 some regions failed, 130 interrupted (143 by SIGTERM).
    """
    import json
    import logging

    from tec_zarr.compare.tables import size
    from tec_zarr.recompression.estimate import estimate
    from tec_zarr.recompression.run import recompress

    names = ("quality", "max_error", "psnr", "max_bytes", "model", "scale", "zarr_format",
             "variables", "bands", "nodata")  # fmt: skip
    settings = {name: getattr(arguments, name) for name in names}
    if arguments.dry_run:
        guess = estimate(arguments.source, **settings)
        hours = guess.core_seconds / 3600
        print(f"{guess.regions} regions, {size(guess.raw_bytes)} raw")
        print(f"about {size(guess.stored_bytes)} stored, {hours:.3g} core hours on this machine")
        if arguments.price is not None:
            print(f"about {hours * arguments.price:.2f} at {arguments.price:g} per core hour")
        print(f"each source chunk is read {guess.read_amplification:.2f} times")
        print(f"from {guess.sampled_chunks} chunks; without writing and verification")
        return 0
    with contextlib.ExitStack() as stack:
        client = None
        if arguments.workers or arguments.scheduler:
            try:
                from distributed import Client, LocalCluster
                from distributed.comm.addressing import parse_address, parse_host_port
            except ImportError as error:
                raise UnsupportedArrayError(
                    "--workers and --scheduler need distributed: pip install 'tec_zarr[dask]'"
                ) from error
            if arguments.scheduler:
                try:  # a Client of what is no address is left half made
                    parse_host_port(parse_address(arguments.scheduler)[1])
                except ValueError as error:
                    raise UnsupportedArrayError(
                        f"--scheduler {arguments.scheduler} is no address ({error}): give one such "
                        "as tcp://HOST:8786"
                    ) from error
            if arguments.workers:
                from dask.config import set as dask_settings

                from tec_zarr.recompression.dask_worker import QUIET

                stack.enter_context(dask_settings(QUIET))
            address = arguments.scheduler or stack.enter_context(
                LocalCluster(n_workers=arguments.workers, threads_per_worker=1)
            )
            client = stack.enter_context(Client(address))
        if not sys.stderr.isatty():
            logging.basicConfig(stream=sys.stderr, format="%(message)s")
            logging.getLogger("tec_zarr.recompress").setLevel(logging.INFO)
        try:
            report = recompress(
                arguments.source, arguments.target, client=client, gpu=arguments.gpu,
                retries=arguments.retries, verify=arguments.verify, **settings,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("tec-zarr: the same command goes on from here", file=sys.stderr)
            raise
    if arguments.report:
        arguments.report.write_text(json.dumps(report.to_json(), indent=1))
    print(
        f"{report.finished} of {report.regions} regions ({report.resumed} from earlier runs), "
        f"{size(report.raw_bytes)} to {size(report.stored_bytes)}, ratio {report.ratio:.1f}, "
        f"{report.bits_per_sample:.4f} bits per sample"
    )
    print(f"verified {report.verified / max(1, report.samples):.0%} of the samples: "
          f"PSNR {report.psnr:.2f} dB, max error {report.max_error:.0f} DN")  # fmt: skip
    for failure in report.failures:
        print(f"failed: {failure}", file=sys.stderr)
    if not report.complete:
        print("tec-zarr: incomplete, and not readable yet; the same command goes on from here",
              file=sys.stderr)  # fmt: skip
    return 0 if report.complete else 3


def _from_stac(arguments: argparse.Namespace) -> None:
    """Search, load, take off the +1000 DN offset, and write reflectance with TEC, SCL beside it."""
    from tec_zarr.stac.load import EARTH_SEARCH, from_stac
    from tec_zarr.stores.info import stored_arrays

    stores: list[xr.Dataset] = []
    _with_bar("download and encode", lambda: stores.append(from_stac(
        arguments.target, bbox=arguments.bbox, datetime=arguments.datetime,
        catalog=arguments.catalog or EARTH_SEARCH, collection=arguments.collection,
        bands=arguments.bands, resolution=arguments.resolution, crs=arguments.crs,
        loader=arguments.loader, offset=arguments.offset, quality=arguments.quality,
        model=arguments.model, append_dates=arguments.append,
    )))  # fmt: skip
    print(f"{stores[0].attrs['history']}\n{stores[0].sizes['time']} dates in {arguments.target}\n")
    _print_arrays(stored_arrays(arguments.target))


def _print_arrays(arrays: list) -> None:
    from tec_zarr.compare.tables import size, table

    columns = ("array", "shape", "chunks", "dtype", "raw", "stored", "ratio", "bits", "codec")
    rows = [
        [a.path, "x".join(map(str, a.shape)), "x".join(map(str, a.chunks)), a.dtype,
         size(a.raw_bytes), size(a.stored_bytes), f"{a.ratio:.1f}", f"{a.bits_per_sample:.4f}",
         a.codec]
        for a in arrays
    ]  # fmt: skip
    print(table(columns, rows))
    print("\nbits: stored bits per sample (pixel and band), metadata included")
    kept = [
        [a.path, b.name, "" if math.isinf(b.asked) else f"{b.asked:g}", f"{b.error:g}"]
        for a in arrays for b in a.bounds
    ]  # fmt: skip
    if kept:
        print("\n" + table(("array", "bound on", "max error asked", "measured on writing"), kept))


def _out(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[Path]:
    """Where to write OUT until it is complete."""
    return replaced(arguments.target, Path(arguments.source), arguments.overwrite)


def _to_zarr(ds: xr.Dataset, target: Path, **arguments: Any) -> None:
    """Write chunk by chunk, with a bar over the Dask tasks."""
    from concurrent.futures import ThreadPoolExecutor

    from dask.callbacks import Callback
    from dask.config import set as dask_settings
    from dask.system import CPU_COUNT

    bar = tqdm(desc=target.name, delay=_BAR_AFTER_SECONDS, unit="task", leave=False, disable=None)

    def start(dsk: dict, state: dict) -> None:
        bar.total = sum(len(state[k]) for k in ("ready", "waiting"))

    # Threads of its own: none is still writing when an interruption has come through here.
    with ThreadPoolExecutor(CPU_COUNT) as pool, dask_settings(pool=pool), bar:  # noqa: SIM117
        with Callback(start_state=start, posttask=lambda *_: bar.update()):
            ds.to_zarr(target, mode="w", **arguments)


def _with_bar(label: str, work: Callable[[], object]) -> None:
    """Run ``work``; after two seconds a line shows that it is still going, and how long."""
    done = threading.Event()

    def show() -> None:
        if done.wait(_BAR_AFTER_SECONDS):
            return
        with tqdm(desc=label, bar_format="{desc}: {elapsed}", leave=False, disable=None) as bar:
            while not done.wait(0.2):
                bar.refresh()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
