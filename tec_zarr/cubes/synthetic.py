"""A synthetic Sentinel-2 L2A cube that looks and compresses like a real one.

For the demo, the tests and the benchmarks of a machine without data. It draws one landscape
(relief, a river with its flood plain, ponds, parcels with crops, forests, roads, a town) and
images it on several dates: phenology, sun, haze, clouds with their shadows, sensor noise. Bands
are imaged at their native 10, 20 or 60 m and then brought to the 10 m grid, as users do.

Everything follows from ``seed``. Needs numpy and xarray only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tec_zarr.cubes.landscape import SKY_LIGHT, Field, Landscape, noise, ramp
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.sentinel2 import BANDS, L2A_BANDS, NODATA, band_names

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["cube", "dataset"]


def cube(
    dates: int = 4,
    size: int = 256,
    bands: Sequence[str] = L2A_BANDS,
    seed: int = 0,
    clouds: bool = True,
    nodata_edge: bool = True,
    resampling: Literal["nearest", "bilinear"] = "nearest",
) -> xr.DataArray:
    """Draw a Sentinel-2 L2A cube.

    Parameters
    ----------
    dates : int
        Number of acquisitions, spread over one year.
    size : int
        Height and width in pixels of 10 m.
    bands : sequence of str
        Bands in the order wanted; any spelling of `tec_zarr.sentinel2.band_name`.
    seed : int
        Another seed is another place.
    clouds : bool
        Clouds and their shadows, and haze, on some of the dates; the first date is clear.
    nodata_edge : bool
        The slanted edge of a swath, nodata (0) in all bands, on the last date.
    resampling : {"nearest", "bilinear"}
        How the 20 m and 60 m bands come to the 10 m grid.

    Returns
    -------
    xarray.DataArray
        ``reflectance`` (time, band, y, x), uint16 DN with 0 = nodata, offset removed.
        Coordinates: ``time`` (datetime64), ``band``, ``y`` and ``x`` (UTM metres, pixel
        centres) and ``spatial_ref`` (CF grid mapping, read by rioxarray).

    Raises
    ------
    UnsupportedArrayError
        If dates or size is below 1, the resampling is unknown, or a band is not in L2A.

    Examples
    --------
    >>> cube(dates=2, size=64, bands=["B04", "B08"]).shape
    (2, 2, 64, 64)
    """
    return dataset(dates, size, bands, seed, clouds, nodata_edge, resampling)["reflectance"]


def dataset(
    dates: int = 4,
    size: int = 256,
    bands: Sequence[str] = L2A_BANDS,
    seed: int = 0,
    clouds: bool = True,
    nodata_edge: bool = True,
    resampling: Literal["nearest", "bilinear"] = "nearest",
) -> xr.Dataset:
    """Draw the cube of `cube` together with its scene classification.

    Returns
    -------
    xarray.Dataset
        ``reflectance`` (time, band, y, x) uint16 and ``scl`` (time, y, x) uint8, the classes
        of `tec_zarr.sentinel2.SCL_CLASSES` at 20 m brought to 10 m by nearest neighbour.
        Parameters, coordinates and errors as for `cube`.
    """
    names = band_names(bands)
    if dates < 1 or size < 1 or not names:
        raise UnsupportedArrayError(
            f"A cube needs at least one date, one pixel and one band; got dates={dates}, "
            f"size={size}, bands={tuple(bands)}."
        )
    if resampling not in ("nearest", "bilinear"):
        raise UnsupportedArrayError(
            f"resampling must be 'nearest' or 'bilinear', got {resampling!r}."
        )
    if not set(names) <= set(L2A_BANDS):
        raise UnsupportedArrayError(f"B10 is not part of L2A; got bands {names}.")

    grid = -(-size // 6) * 6  # whole 60 m pixels
    land = Landscape(grid, seed)
    days = _days(dates, seed)
    reflectance = np.empty((dates, len(names), size, size), np.uint16)
    classes = np.empty((dates, size, size), np.uint8)
    for number, day in enumerate(days):
        rng = np.random.default_rng([seed, 1000 + number])
        sky = _Sky(grid, rng, _COVER[number % len(_COVER)] if clouds else None, int(day))
        surface = land.on(int(day), rng)
        outside = _outside_swath(grid, seed) if nodata_edge and number == dates - 1 else None
        for index, name in enumerate(names):
            band = sky.image(surface[L2A_BANDS.index(name)], name)
            dn = _sensor(band, name, rng, resampling)
            if outside is not None:
                dn[outside] = NODATA
            reflectance[number, index] = dn[:size, :size]
        scl = sky.classify(land, surface)
        if outside is not None:
            scl[outside] = 0
        classes[number] = scl[:size, :size]
    return _labelled(reflectance, classes, days, names, seed)


_CLOUD = np.array(
    (6300, 6100, 5900, 6000, 6150, 6300, 6400, 6450, 6550, 6900, 4400, 3400), np.float32
)
_COVER = (0.0, 0.10, 0.02, 0.25)
"""Cloud cover of the dates, in turn."""


class _Sky:
    """Clouds, their shadows and haze on one date."""

    def __init__(self, grid: int, rng: np.random.Generator, cover: float | None, day: int) -> None:
        shape = noise(rng, grid, 60, 4.0)
        towers = noise(rng, grid, 14, 3.0)
        self.opacity = np.zeros((grid, grid), np.float32)
        self.shadow = np.zeros_like(self.opacity)
        if cover:
            edge = np.quantile(shape, 1 - cover)
            self.opacity = ramp(shape + 0.09 * towers - edge, -0.15, 0.65)
            reach = 18 + 8 * np.cos(2 * np.pi * (day - 355) / 365)
            # The sun stands in the south-south-east: shadows fall to the north-north-west.
            self.shadow = np.roll(self.opacity, (-int(reach), -int(reach * 0.4)), axis=(0, 1))
            self.shadow = ramp(self.shadow, 0.1, 0.7) * (1 - self.opacity)
        self.brightness = np.clip(0.95 + 0.14 * shape + 0.06 * towers, 0.4, 1.6)
        hazy = 0.0 if cover is None else max(0.0, rng.normal(0.010, 0.008))
        self.haze = hazy * np.clip(1 + 0.5 * noise(rng, grid, 200, 4.0), 0, 3)

    def image(self, surface: Field, name: str) -> Field:
        """What the sensor sees of a band's surface, in DN."""
        k = L2A_BANDS.index(name)
        light = 1 - self.shadow * (1 - SKY_LIGHT[k]) * 0.85
        seen = surface * light + 10_000 * self.haze * SKY_LIGHT[k]
        return seen + self.opacity * (_CLOUD[k] * self.brightness - seen)

    def classify(self, land: Landscape, surface: Field) -> NDArray[np.uint8]:
        """Scene classes at 20 m on the 10 m grid."""
        red, nir = surface[L2A_BANDS.index("B04")], surface[L2A_BANDS.index("B08")]
        opacity, shadow, water, ndvi = (
            _coarse(field, 2)
            for field in (self.opacity, self.shadow, land.water(), _ndvi(red, nir))
        )
        scl = np.select(
            [opacity > 0.6, opacity > 0.25, opacity > 0.06, shadow > 0.35, water > 0.5, ndvi > 0.4],
            [9, 8, 10, 3, 6, 4],
            5,
        )
        return _nearest(scl, 2).astype(np.uint8)


def _days(dates: int, seed: int) -> NDArray[np.int64]:
    """Days of the year of the acquisitions, multiples of the five-day revisit apart."""
    rng = np.random.default_rng([seed, 2])
    step = 365 / dates
    days = 25 + step * np.arange(dates) + rng.uniform(0, 0.3 * step, dates)
    return (days // 5 * 5).astype(np.int64) if step >= 10 else days.astype(np.int64)


def _sensor(
    band: Field, name: str, rng: np.random.Generator, resampling: str
) -> NDArray[np.uint16]:
    """Integrate over native pixels, blur as the optics do, add noise, bring to 10 m, digitise."""
    factor = BANDS[name].gsd // 10
    native: NDArray = _soften(_coarse(band, factor))
    native = native + rng.normal(0, 1, native.shape) * (3 + 0.06 * np.sqrt(np.abs(native)))
    fine = _nearest(native, factor) if resampling == "nearest" else _bilinear(native, factor)
    return np.clip(np.rint(fine), 1, 65_535).astype(np.uint16)


def _outside_swath(grid: int, seed: int) -> NDArray[np.bool_]:
    """The far side of a swath edge, slanted as Sentinel-2's descending orbits are."""
    rng = np.random.default_rng([seed, 3])
    y, x = np.mgrid[:grid, :grid]
    return x - 0.24 * (y - grid / 2) > grid * rng.uniform(0.72, 0.88)


def _labelled(
    reflectance: NDArray[np.uint16],
    classes: NDArray[np.uint8],
    days: NDArray[np.int64],
    names: tuple[str, ...],
    seed: int,
) -> xr.Dataset:
    import xarray as xr

    size = reflectance.shape[-1]
    west, north = 600_000 + 10_240 * (seed % 7), 5_300_040
    centres = 10 * np.arange(size) + 5.0
    time = np.datetime64("2023-01-01T10:20:31", "ns") + days * np.timedelta64(1, "D")
    mapping = {
        "crs_wkt": _UTM_32N,
        "grid_mapping_name": "transverse_mercator",
        "GeoTransform": f"{west} 10 0 {north} 0 -10",
    }
    ds = xr.Dataset(
        {
            "reflectance": (
                ("time", "band", "y", "x"),
                reflectance,
                {"long_name": "surface reflectance x 10000", "source": "tec_zarr.cubes.synthetic"},
            ),
            "scl": (
                ("time", "y", "x"),
                classes,
                {"long_name": "scene classification", "source": "tec_zarr.cubes.synthetic"},
            ),
        },
        coords={
            "time": time,
            "band": list(names),
            "y": ("y", north - centres, {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", west + centres, {"standard_name": "projection_x_coordinate", "units": "m"}),
            "spatial_ref": ((), 0, mapping),
        },
    )
    for variable in ("reflectance", "scl"):
        ds[variable].encoding["grid_mapping"] = "spatial_ref"
    return ds


_UTM_32N = (
    'PROJCS["WGS 84 / UTM zone 32N",GEOGCS["WGS 84",DATUM["WGS_1984",'
    'SPHEROID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
    'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",9],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],'
    'PARAMETER["false_northing",0],UNIT["metre",1],AXIS["Easting",EAST],'
    'AXIS["Northing",NORTH],AUTHORITY["EPSG","32632"]]'
)


def _ndvi(red: Field, nir: Field) -> Field:
    return (nir - red) / np.maximum(nir + red, 1)


def _soften(field: Field) -> Field:
    """The optics' point spread: a response of about 0.28 at the Nyquist frequency."""
    for axis in (0, 1):
        padded = np.pad(field, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        n = field.shape[axis]
        before, after = (padded.take(range(k, k + n), axis) for k in (0, 2))
        field = 0.64 * field + 0.18 * (before + after)
    return field


def _coarse(field: Field, factor: int) -> Field:
    """Mean over blocks of factor x factor pixels."""
    n = len(field) // factor
    return field.reshape(n, factor, n, factor).mean(axis=(1, 3))


def _nearest(field: NDArray, factor: int) -> NDArray:
    return field.repeat(factor, 0).repeat(factor, 1)


def _bilinear(field: Field, factor: int) -> Field:
    """Pixel centres aligned, the border extended."""
    for axis in (0, 1):
        n = field.shape[axis]
        at = np.clip((np.arange(n * factor) + 0.5) / factor - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        share = np.expand_dims(at - low, 1 - axis)
        field = field.take(low, axis) * (1 - share) + field.take(high, axis) * share
    return field
