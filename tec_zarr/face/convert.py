"""Commands that write: encode, transcode, virtual, decode, recompress, from-stac.

The docstrings of the commands are their descriptions in ``--help``.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.output import (
    BAR_AFTER_SECONDS,
    chunk_options,
    print_arrays,
    settings_of,
    to_zarr,
    with_bar,
)
from tec_zarr.interrupted import replaced

if TYPE_CHECKING:
    import xarray as xr


def encode_command(arguments: argparse.Namespace) -> None:
    """Write a cube to a Zarr store: reflectance with TEC, everything else without loss."""
    from tec_zarr.cubes.provenance import describe
    from tec_zarr.face.write import record, write_levels
    from tec_zarr.stores.info import stored_arrays

    with _out(arguments) as target:
        ds, settings = settings_of(arguments.source, arguments, arguments.zarr_format)
        if arguments.overviews:
            options = {**chunk_options(arguments), "zarr_format": arguments.zarr_format}
            options.pop("bands")  # the cube has their names
            variables = getattr(arguments, "variables", None)
            with_bar(target.name, lambda: write_levels(
                ds, target, "w", "", None, variables=variables, **options
            ))  # fmt: skip
        else:
            to_zarr(describe(ds, settings), target, encoding=settings,
                    zarr_format=arguments.zarr_format)  # fmt: skip
            if arguments.max_error is not None:
                record(target)
    _item(arguments)
    print_arrays(stored_arrays(arguments.target))


def transcode_command(arguments: argparse.Namespace) -> None:
    """Copy a store to a lower quality, or to the other Zarr format or other shards.

    Nothing is encoded from pixels again. --tokens keeps the first tokens of every chunk of
    tec-flex-s2 and FlexTEC; the result is the store that encoding at that quality writes. Most
    chunks are only cut. FlexTEC chunks of several dates that were written without context_tokens
    need their network. --zarr-format and --shards move the bytes of all TEC chunks unchanged.
    """
    from tec_zarr.recompression.transcode import transcode
    from tec_zarr.stores.info import stored_arrays

    tokens = arguments.tokens
    tokens = tokens[0] if tokens and len(tokens) == 1 else tokens
    bar = tqdm(desc="transcode", delay=BAR_AFTER_SECONDS, leave=False, disable=None)
    with _out(arguments) as target, bar:
        transcode(
            arguments.source, target, tokens, zarr_format=arguments.zarr_format,
            shards=arguments.shards, progress=bar.update,
        )  # fmt: skip
    print_arrays(stored_arrays(arguments.target))


def virtual_command(arguments: argparse.Namespace) -> None:
    """Write metadata of Zarr format 2 over the chunks of a store of format 3.

    GDAL decodes TEC in format 2 only. No chunk is copied or changed, and readers of format 3 see
    the store as before. Arrays must have no shards.
    """
    from tec_zarr.stores.virtual import CHUNKS, virtual

    for path in virtual(arguments.store):
        print(f'ZARR:"{"/".join(filter(None, (arguments.store, path)))}":/{CHUNKS}')


def decode_command(arguments: argparse.Namespace) -> None:
    """Decode a TEC store, and write a plain Zarr store or one GeoTIFF for each date.

    Bands that `encode` has stacked become variables again in a Zarr store.
    """
    from tec_zarr.cubes.encoding import drop_encoding
    from tec_zarr.cubes.files import open_cube, with_known_nodata
    from tec_zarr.cubes.geotiff import is_image, write_geotiffs
    from tec_zarr.cubes.stacking import unstack_bands

    files: list[Path] = []
    left: list[str] = []
    with _out(arguments) as target:
        ds = drop_encoding(with_known_nodata(open_cube(arguments.source)))
        if arguments.to == "zarr":
            to_zarr(unstack_bands(ds), target)
        else:
            with_bar("decode", lambda: files.extend(write_geotiffs(ds, target)))
            left = [str(n) for n, da in ds.data_vars.items() if da.ndim and not is_image(da)]
    print(f"wrote {f'{len(files)} GeoTIFFs to ' if files else ''}{arguments.target}")
    if left:
        print(f"not written, because GeoTIFFs hold images only: {', '.join(left)}")


def recompress_command(arguments: argparse.Namespace) -> int:
    """Copy a Zarr store: reflectance with TEC, everything else without loss.

    Repeat the command after an interruption: it continues where it stopped. Exit status: 0
    complete, 1 refused, 3 some regions failed, 130 interrupted (143 by SIGTERM).
    """
    import json
    import logging

    from tec_zarr.compare.tables import size
    from tec_zarr.recompression.estimate import estimate
    from tec_zarr.recompression.run import recompress

    settings = chunk_options(arguments) | {
        "zarr_format": arguments.zarr_format, "variables": arguments.variables,
        "overviews": arguments.overviews,
    }  # fmt: skip
    if arguments.dry_run and arguments.append:
        raise UnsupportedArrayError("--dry-run estimates a whole target: leave out --append")
    if arguments.dry_run:
        guess = estimate(arguments.source, **settings)
        hours = guess.core_seconds / 3600
        print(f"{guess.regions} regions, {size(guess.raw_bytes)} raw")
        print(f"about {size(guess.stored_bytes)} stored, {hours:.3g} core hours on this machine")
        if arguments.price is not None:
            print(f"about {hours * arguments.price:.2f} at {arguments.price:g} per core hour")
        print(f"each source chunk is read {guess.read_amplification:.2f} times")
        print(f"estimated from {guess.sampled_chunks} chunks, without writing and verification")
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
                try:  # parsed first, because a Client of an invalid address is left half made
                    parse_host_port(parse_address(arguments.scheduler)[1])
                except ValueError as error:
                    raise UnsupportedArrayError(
                        f"--scheduler {arguments.scheduler} is no address ({error}): give one "
                        "such as tcp://HOST:8786"
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
                retries=arguments.retries, verify=arguments.verify, append=arguments.append,
                **settings,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("tec-zarr: repeat the command to continue", file=sys.stderr)
            raise
    if arguments.report:
        arguments.report.write_text(json.dumps(report.to_json(), indent=1))
    if arguments.append and not report.regions:
        print(f"{arguments.target} has all dates of {arguments.source}")
    else:
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
        state = "lacks the new dates, or all" if arguments.append else "cannot be read yet"
        print(f"tec-zarr: DST is incomplete and {state}; repeat the command to continue",
              file=sys.stderr)  # fmt: skip
        return 3
    _item(arguments)
    return 0


def from_stac_command(arguments: argparse.Namespace) -> None:
    """Load Sentinel-2 images from a STAC catalogue, and write them to a Zarr store.

    The offset of 1000 DN is removed. Reflectance is written with TEC, and SCL without loss.
    """
    from tec_zarr.stac.load import EARTH_SEARCH, from_stac
    from tec_zarr.stores.info import stored_arrays

    options = chunk_options(arguments)
    bands, offset = options.pop("bands"), options.pop("offset")  # these two are from_stac's own
    stores: list[xr.Dataset] = []
    with_bar("download and encode", lambda: stores.append(from_stac(
        arguments.target, bbox=arguments.bbox, datetime=arguments.datetime,
        catalog=arguments.catalog or EARTH_SEARCH, collection=arguments.collection,
        bands=bands, resolution=arguments.resolution, crs=arguments.crs,
        loader=arguments.loader, offset=offset, append_dates=arguments.append, **options,
    )))  # fmt: skip
    print(f"{stores[0].attrs['history']}\n{stores[0].sizes['time']} dates in {arguments.target}\n")
    _item(arguments)
    print_arrays(stored_arrays(arguments.target))


def _item(arguments: argparse.Namespace) -> None:
    """Write the STAC item of the store, if one is asked for."""
    if arguments.stac_item:
        from tec_zarr.stac.item import write_item

        write_item(arguments.target, arguments.stac_item)


def _out(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[Path]:
    """The path to write OUT to; the result is moved to OUT when it is complete."""
    return replaced(arguments.target, Path(arguments.source), arguments.overwrite)
