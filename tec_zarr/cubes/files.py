"""Open what people have: Zarr, NetCDF, GeoTIFF stacks, and the .npz cubes of the benchmarks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from tec_zarr.cubes.dims import (
    BAND,
    TIME,
    X,
    Y,
    counted,
    find_dim,
    name_bands,
    stored_spec,
)
from tec_zarr.cubes.geotiff import open_tiffs
from tec_zarr.cubes.layout import words_in_memory
from tec_zarr.cubes.nodata import nodata_values
from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.sentinel2 import L2A_BANDS, NODATA

_NETCDF = (".nc", ".nc4", ".h5", ".hdf5")
_TIFF = (".tif", ".tiff")


def open_cube(
    path: str | Path, *, bands: Sequence[str] | None = None, said: list[str] | None = None
) -> xr.Dataset:
    """Open a cube lazily, whatever its container.

    Parameters
    ----------
    path : str or Path
        A Zarr store, a NetCDF file, a GeoTIFF (one date), a folder of GeoTIFFs (one per date,
        or one per date and band with the band in its name), or an ``.npz`` with ``dn``
        (T, 12, H, W) and ``present`` (12,).
    bands : sequence of str, optional
        Names of the bands, in the order of the file. Default: what the file says.
    said : list of str, optional
        Gets a line about every band that was taken for something else than it is called.

    Returns
    -------
    Dataset
        Reflectance arrays with dimensions (time, band, y, x), time and band only where the
        source has them, and whatever else the source holds, such as bands that are none.

    Raises
    ------
    UnsupportedArrayError
        Not one of those, or damaged.
    """
    path = Path(path)
    with readable(path):
        ds = words_in_memory(_open(path))
        return name_bands(ds, bands, counted(ds), [] if said is None else said)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say which file it was when the library that reads it fails, whatever that raises."""
    if not path.exists():
        raise UnsupportedArrayError(f"{path} does not exist")
    try:
        yield
    except (TecError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedArrayError(
            f"{path} cannot be read, is it damaged? ({type(error).__name__}: {error})"
        ) from error


def _open(path: Path) -> xr.Dataset:
    if path.is_dir():
        return _open_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _open_npz(path)
    if suffix in _NETCDF:
        return _canonical(_open_netcdf(path))
    if suffix in _TIFF:
        return open_tiffs([path])
    raise UnsupportedArrayError(
        f"{path} is not a Zarr store, NetCDF, GeoTIFF, folder of GeoTIFFs or .npz cube"
    )


def _open_folder(path: Path) -> xr.Dataset:
    tiffs = _tiffs_in(path)
    if tiffs:
        return open_tiffs(tiffs)
    if is_zarr(path):
        return _canonical(xr.open_zarr(path, chunks={}, decode_coords="all"))
    below = sorted(p for p in path.rglob("*") if p.suffix.lower() in _TIFF)
    if below:
        raise UnsupportedArrayError(
            f"{path} holds no GeoTIFFs itself, but {len(below)} in folders, such as "
            f"{below[0]}: pass the folder that holds the cube's, or put those of one grid into "
            "one folder, with date and band in their names"
        )
    raise UnsupportedArrayError(f"{path} holds neither a Zarr store nor GeoTIFFs")


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store, or looks like what is left of one."""
    names = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
    return path.suffix.lower() == ".zarr" or any((path / name).exists() for name in names)


def _tiffs_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _TIFF)


def _open_netcdf(path: Path) -> xr.Dataset:
    try:
        return xr.open_dataset(path, chunks={}, decode_coords="all")
    except ValueError as error:
        if "IO backends" not in str(error):
            raise
        raise UnsupportedArrayError(  # xarray has no reader of this kind of NetCDF
            f"{path} is NetCDF: pip install 'tec_zarr[netcdf]'"
        ) from error


def _canonical(ds: xr.Dataset) -> xr.Dataset:
    """Dimensions of every image in the order (time, band, y, x)."""
    for name in ds.data_vars:
        dims = [find_dim(ds[name], names) for names in (TIME, BAND, Y, X)]
        order = [d for d in dims if d is not None]
        if set(order) == set(ds[name].dims) and dims[2] and dims[3]:
            ds[name] = ds[name].transpose(*order)
    return ds


def _open_npz(path: Path) -> xr.Dataset:
    with np.load(path, allow_pickle=False) as file:
        if "dn" not in file:
            raise UnsupportedArrayError(f"{path} has no array 'dn' (time, band, y, x)")
        dn = file["dn"]
        count = len(L2A_BANDS)
        present = file["present"].astype(bool) if "present" in file else np.ones(count, bool)
    if dn.ndim != 4 or dn.shape[1] != count or present.shape != (count,):
        raise UnsupportedArrayError(
            f"{path} has 'dn' of shape {dn.shape} and 'present' of {present.shape}: it must hold "
            f"'dn' (time, {count}, y, x) and, where bands are missing, 'present' ({count},), of "
            f"{', '.join(L2A_BANDS)}"
        )
    bands = [b for b, here in zip(L2A_BANDS, present, strict=True) if here]
    return xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), dn[:, present])}, {"band": bands}
    )


def with_known_nodata(ds: xr.Dataset) -> xr.Dataset:
    """``ds`` with an attribute ``nodata`` where only the TEC codec knows what nodata is, because
    it was told when the data were encoded."""
    found = {}
    for name, da in ds.data_vars.items():
        codec = stored_spec(da)
        told = [v for v in codec.fill_values if v != NODATA] if codec else []
        if told and not nodata_values(da):
            values = [int(v) if v.is_integer() else v for v in told]
            more = {"nodatavals": values} if len(values) > 1 else {}
            found[name] = da.assign_attrs(nodata=values[0], **more)
    return ds.assign(found)
