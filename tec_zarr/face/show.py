"""Commands that show, compare or train: demo, train, info, verify, report, view.

The docstrings of the commands are their descriptions in ``--help``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tec_zarr.face.output import chunk_options, print_arrays, settings_of, to_zarr, with_bar


def demo_command(arguments: argparse.Namespace) -> None:
    """Encode a cube, read it back with xarray, and report sizes, errors and speed."""
    from tec_zarr.face.demo import run_demo

    text, picture = run_demo(
        arguments.out, source=arguments.input, step=with_bar, **chunk_options(arguments)
    )
    print(text)
    print()
    print(f"picture: {picture or 'not drawn; pip install tec_zarr[plots]'}")


def train_command(arguments: argparse.Namespace) -> None:
    """Train a model, or continue a training. Writes the weights and a plot of the training."""
    from tec_zarr.training.run import run

    print(f"weights: {run(arguments.config)}")


def info_command(arguments: argparse.Namespace) -> None:
    """List the arrays of a store with codec, quality, sizes, and errors that were measured.

    No chunk is decoded. Of other files, the variables that `encode` would find are listed.
    """
    from tec_zarr.compare.tables import size, table
    from tec_zarr.cubes.files import is_zarr, open_cube, readable
    from tec_zarr.stores.info import stored_arrays

    path = arguments.path
    if is_zarr(path):
        with readable(path):
            arrays = stored_arrays(path)
        print_arrays(arrays)
        return
    said: list[str] = []
    ds = open_cube(path, said=said)
    rows = [[str(n), "x".join(map(str, da.shape)), str(da.dtype), size(da.nbytes)]
            for n, da in ds.data_vars.items()]  # fmt: skip
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    print(table(("variable", "shape", "dtype", "raw"), rows))
    on_disk = size(sum(p.stat().st_size for p in files))
    print("\n".join([f"\n{on_disk} on disk, not a Zarr store", *said]))


def verify_command(arguments: argparse.Namespace) -> int:
    """Compare the reflectance of two cubes, band by band, in DN.

    Pixels that B has lost count as 0 DN. Exit status: 0, or 1 if nodata differs or the cubes
    cannot be compared.
    """
    from tec_zarr.compare.align import comparable, in_dn, pair
    from tec_zarr.compare.tables import ERROR_COLUMNS, error_rows, nodata_line, table
    from tec_zarr.cubes.dims import names_along_bands
    from tec_zarr.cubes.files import open_cube

    a, b = pair(open_cube(arguments.a, bands=arguments.bands), open_cube(arguments.b))
    b = comparable(a, b, (arguments.a, arguments.b))
    both: list = []
    rows: list = []
    with_bar("read", lambda: both.extend(in_dn(a, b)))
    with_bar("compare", lambda: rows.extend(error_rows(both[0], both[1], names_along_bands(a))))
    print(table(ERROR_COLUMNS, rows))
    difference = nodata_line(*both)
    if difference:
        print(f"\n{difference}")
    return int(bool(difference))


def report_command(arguments: argparse.Namespace) -> None:
    """Write an HTML page with pictures, error maps, tables, other codecs and provenance.

    The page needs no network. `tec-zarr report A B --html page.html` compares a store B with the
    original A. `tec-zarr report A page.html` shows what TEC would make of A.
    """
    from tec_zarr.compare.page import write_page

    b, target = arguments.b, arguments.html
    if b is not None and b.suffix == ".html":
        b, target = None, b
    facts = {"original": str(arguments.a), "decoded": str(b or "made for this report")}
    with tempfile.TemporaryDirectory() as folder:
        if b is None:
            b = Path(folder) / "report.zarr"
            ds, settings = settings_of(arguments.a, arguments, zarr_format=3)
            to_zarr(ds, b, encoding=settings, zarr_format=3)
        with_bar("report", lambda: write_page(target, arguments.a, b, facts, arguments.bands))
    print(f"wrote {target}")


def view_command(arguments: argparse.Namespace) -> None:
    """Show a store in the browser, which decodes it. The server is for this machine alone.

    STORE is a folder, or the URL of a store whose server allows other pages to read it. The page
    also opens any such store by its own address: ?url=https://example.org/cube.zarr. With --export,
    page and store become a folder for a static host.
    """
    import webbrowser

    from tec_zarr.face import view

    if arguments.export is not None:
        view.export(arguments.export, arguments.store)
        print(f"wrote {arguments.export}")
        return
    with view.server(arguments.store, arguments.port) as server:
        address = view.address(server, arguments.store)
        print(f"{address}\nCtrl+C ends it", flush=True)
        if not arguments.no_browser:
            webbrowser.open(address)
        server.serve_forever()
