"""Helpers that several commands use: settings from options, progress bars, tables of arrays."""

from __future__ import annotations

import argparse
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tec_zarr.codec.options import options_of
from tec_zarr.codec.spec import ChunkSpec

if TYPE_CHECKING:
    import xarray as xr


BAR_AFTER_SECONDS = 2
"""Work that takes longer than this shows a progress bar."""


def settings_of(source: Path, arguments: argparse.Namespace, zarr_format: int) -> tuple:
    """Return a cube that is ready to write, and its encoding with the options in ``arguments``."""
    from tec_zarr.cubes.encoding import drop_encoding, encoding
    from tec_zarr.cubes.files import open_cube
    from tec_zarr.cubes.layout import rechunk
    from tec_zarr.cubes.stacking import stack_bands

    said: list[str] = []
    ds = open_cube(source, bands=arguments.bands, said=said)
    variables = getattr(arguments, "variables", None)
    ds = rechunk(ds if variables else stack_bands(ds, said=said))
    for line in said:
        print(line)
    options = chunk_options(arguments)
    options.pop("bands")  # open_cube has named the bands with them
    settings = encoding(ds, zarr_format=zarr_format, variables=variables, **options)
    return drop_encoding(ds), settings


def chunk_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a chunk among the arguments of a command."""
    names = options_of(ChunkSpec)
    return {name: value for name, value in vars(arguments).items() if name in names}


def print_arrays(arrays: list) -> None:
    """Print a table of a store's arrays, then one of their error bounds if they have any."""
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


def to_zarr(ds: xr.Dataset, target: Path, **arguments: Any) -> None:
    """Write a Zarr store chunk by chunk, with a progress bar that counts the Dask tasks."""
    from concurrent.futures import ThreadPoolExecutor

    from dask.callbacks import Callback
    from dask.config import set as dask_settings
    from dask.system import CPU_COUNT

    bar = tqdm(desc=target.name, delay=BAR_AFTER_SECONDS, unit="task", leave=False, disable=None)

    def start(dsk: dict, state: dict) -> None:
        bar.total = sum(len(state[k]) for k in ("ready", "waiting"))

    # With its own thread pool, leaving this block waits for the threads: after an interruption,
    # none of them still writes.
    with ThreadPoolExecutor(CPU_COUNT) as pool, dask_settings(pool=pool), bar:  # noqa: SIM117
        with Callback(start_state=start, posttask=lambda *_: bar.update()):
            ds.to_zarr(target, mode="w", **arguments)


def with_bar(label: str, work: Callable[[], object]) -> None:
    """Run ``work``. After `BAR_AFTER_SECONDS` a line shows the elapsed time until it ends."""
    done = threading.Event()

    def show() -> None:
        if done.wait(BAR_AFTER_SECONDS):
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
