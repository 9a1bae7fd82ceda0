"""The ``tec-zarr`` command: each subcommand is one function, and none has maths of its own."""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import tec_zarr
from tec_zarr.errors import TecError, UnsupportedArrayError

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
        return int(arguments.run(arguments) or 0)
    except TecError as error:
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

    demo = command(_demo, "demo", "a cube through TEC and back, in numbers and a picture")
    demo.add_argument("--input", type=Path, help="own Zarr, NetCDF, GeoTIFF(s) or .npz cube")
    demo.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for the results")
    coding(demo)

    encode = command(_encode, "encode", "write a cube into a Zarr store with TEC")
    encode.add_argument("source", type=Path, metavar="IN")
    encode.add_argument("target", type=Path, metavar="OUT")
    encode.add_argument("--zarr-format", type=int, choices=(2, 3), default=3)
    encode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    coding(encode)

    decode = command(_decode, "decode", "write a plain Zarr store or GeoTIFFs: the way out")
    decode.add_argument("source", type=Path, metavar="IN")
    decode.add_argument("target", type=Path, metavar="OUT")
    decode.add_argument("--to", choices=("zarr", "geotiff"), default="zarr")
    decode.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    info = command(_info, "info", "what is inside a store")
    info.add_argument("path", type=Path, metavar="PATH")

    verify = command(_verify, "verify", "errors of B against A, per band")
    verify.add_argument("a", type=Path, metavar="A")
    verify.add_argument("b", type=Path, metavar="B")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    """Encode a cube, synthetic or your own, reopen it with xarray and report what was lost."""
    from tec_zarr.demo import run_demo

    text, picture = run_demo(
        arguments.out, source=arguments.input, quality=arguments.quality, model=arguments.model,
        scale=arguments.scale, step=_with_bar,
    )  # fmt: skip
    print(text)
    print()
    print(f"picture: {picture or 'not drawn; pip install tec_zarr[plots]'}")


def _encode(arguments: argparse.Namespace) -> None:
    """Write a cube into a Zarr store: reflectance with TEC, everything else lossless."""
    from tec_zarr.inputs import open_cube
    from tec_zarr.report import stored_arrays
    from tec_zarr.store import decode, encoding, rechunk

    _make_room(arguments.target, arguments.overwrite)
    ds = rechunk(open_cube(arguments.source))
    settings = encoding(
        ds, quality=arguments.quality, model=arguments.model, scale=arguments.scale,
        zarr_format=arguments.zarr_format,
    )  # fmt: skip
    _to_zarr(decode(ds), arguments.target, encoding=settings, zarr_format=arguments.zarr_format)
    _print_arrays(stored_arrays(arguments.target))


def _decode(arguments: argparse.Namespace) -> None:
    """Write what a TEC store decodes to as a plain Zarr store, or as one GeoTIFF per date."""
    from tec_zarr.inputs import open_cube, write_geotiffs
    from tec_zarr.store import decode

    _make_room(arguments.target, arguments.overwrite)
    ds = decode(open_cube(arguments.source))
    if arguments.to == "zarr":
        _to_zarr(ds, arguments.target)
        print(f"wrote {arguments.target}")
    else:
        files: list[Path] = []
        _with_bar("decode", lambda: files.extend(write_geotiffs(ds, arguments.target)))
        print(f"wrote {len(files)} GeoTIFFs to {arguments.target}")


def _info(arguments: argparse.Namespace) -> None:
    """List the arrays of a store: codec, model, quality, size and ratio. Decodes nothing."""
    from tec_zarr.report import stored_arrays

    _print_arrays(stored_arrays(arguments.path))


def _verify(arguments: argparse.Namespace) -> None:
    """Compare the reflectance of two cubes, band by band, in DN."""
    from tec_zarr.demo import as_dn, band_labels
    from tec_zarr.inputs import open_cube, single_array
    from tec_zarr.report import ERROR_COLUMNS, error_rows, table
    from tec_zarr.store import reflectance_names

    a, b = (
        single_array(ds, reflectance_names(ds))
        for ds in (open_cube(arguments.a), open_cube(arguments.b))
    )
    if a.shape != b.shape:
        raise UnsupportedArrayError(
            f"{arguments.a} has shape {a.shape}, {arguments.b} has {b.shape}: nothing to compare"
        )
    rows: list = []
    _with_bar("compare", lambda: rows.extend(error_rows(as_dn(a), as_dn(b), band_labels(a))))
    print(table(ERROR_COLUMNS, rows))


def _print_arrays(arrays: list) -> None:
    from tec_zarr.report import size, table

    columns = ("array", "shape", "chunks", "dtype", "raw", "stored", "ratio", "bits", "codec")
    rows = [
        [a.path, "x".join(map(str, a.shape)), "x".join(map(str, a.chunks)), a.dtype,
         size(a.raw_bytes), size(a.stored_bytes), f"{a.ratio:.1f}", f"{a.bits_per_sample:.4f}",
         a.codec]
        for a in arrays
    ]  # fmt: skip
    print(table(columns, rows))
    print("\nbits: stored bits per sample (pixel and band), metadata included")


def _make_room(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise UnsupportedArrayError(f"{target} exists: choose another name or pass --overwrite")
    shutil.rmtree(target) if target.is_dir() else target.unlink()


def _to_zarr(ds: xr.Dataset, target: Path, **arguments: Any) -> None:
    """Write chunk by chunk, with a bar over the Dask tasks."""
    from dask.callbacks import Callback

    bar = tqdm(desc=str(target), delay=_BAR_AFTER_SECONDS, unit="task", leave=False, disable=None)

    def start(dsk: dict, state: dict) -> None:
        bar.total = sum(len(state[k]) for k in ("ready", "waiting"))

    with bar, Callback(start_state=start, posttask=lambda *_: bar.update()):
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
