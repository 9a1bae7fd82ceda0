"""A small STAC catalogue and an EOPF-like product on disk, where no network is.

It looks as public catalogues of Sentinel-2 L2A do: items of several dates and of two UTM zones,
one Cloud-Optimised GeoTIFF per band, the scene classification (SCL) at 20 m, the processing
baseline among the properties. The pixels are `tec_zarr.cubes.synthetic`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
import xarray as xr
from rasterio.shutil import copy as copy_raster
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from tec_zarr.cubes import synthetic
from tec_zarr.sentinel2 import BANDS

PROJECTION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"
RASTER = "https://stac-extensions.github.io/raster/v1.1.0/schema.json"


@dataclass(frozen=True)
class Scene:
    """One item of the catalogue.

    Attributes
    ----------
    date : str
        Day of acquisition.
    baseline : str
        ``s2:processing_baseline``.
    pixels_carry : int
        DN that the pixels carry on top of the signal: 0 or 1000.
    epsg : int
        32632 or 32633.
    properties : dict
        Further properties, such as ``earthsearch:boa_offset_applied``.
    raster_offset : float, optional
        ``offset`` in ``raster:bands``; None leaves ``raster:bands`` out.
    """

    date: str
    baseline: str = "05.10"
    pixels_carry: int = 1000
    epsg: int = 32632
    properties: dict[str, Any] = field(default_factory=dict)
    raster_offset: float | None = None

    @property
    def item_id(self) -> str:
        """Name as ESA gives: satellite, tile, day."""
        tile = "32UPU" if self.epsg == 32632 else "33UUP"
        return f"S2A_{tile}_{self.date.replace('-', '')}_L2A"


ARCHIVE = (
    Scene("2021-06-10", "03.01", 0),
    Scene("2021-06-20", "03.01", 0),
    Scene("2021-07-05", "03.01", 0),
    Scene("2023-06-12", "05.10"),
    Scene("2023-06-22", "05.10"),
    Scene("2023-07-07", "05.10"),
)
"""Six dates of one place, before and after baseline 04.00, as Planetary Computer has them."""

EARTH_SEARCH_ARCHIVE = tuple(
    Scene(
        scene.date, scene.baseline, pixels_carry=0, raster_offset=-0.1,
        properties={"earthsearch:boa_offset_applied": scene.baseline >= "04.00"},
    )
    for scene in ARCHIVE
)  # fmt: skip
"""The same as Earth Search has them: the offset taken out, ``raster:bands`` unaware of it."""


def make_catalog(
    folder: Path | str,
    scenes: Sequence[Scene] = ARCHIVE,
    *,
    bands: Sequence[str] = ("B02", "B03", "B04", "B08", "B11"),
    size: int = 96,
    common_names: bool = False,
) -> Path:
    """Write GeoTIFFs and items; return the path of ``catalog.json``.

    Parameters
    ----------
    folder : Path or str
        Made if it does not exist.
    scenes : sequence of Scene
        What was acquired.
    bands : sequence of str
        Assets besides SCL.
    size : int
        Pixels of 10 m, a multiple of 2.
    common_names : bool
        Call the assets ``blue`` and ``scl`` (Earth Search) instead of ``B02`` and ``SCL``.
    """
    folder = Path(folder)
    place = synthetic.dataset(dates=len(scenes), size=size, bands=bands, seed=3)
    catalog = pystac.Catalog("local", "Sentinel-2 L2A, drawn by tec_zarr.cubes.synthetic")
    for number, scene in enumerate(scenes):
        images = folder / "images" / scene.item_id
        images.mkdir(parents=True, exist_ok=True)
        # Places that overlap, each in its own zone.
        west, north = (600_000, 5_300_040) if scene.epsg == 32632 else (151_400, 5_309_680)
        item = _item(scene, west, north, size)
        for band, dn in zip(bands, place.reflectance[number].values, strict=True):
            step = BANDS[band].gsd // 10 if size % (BANDS[band].gsd // 10) == 0 else 1
            carried = np.where(dn == 0, 0, dn + np.uint16(scene.pixels_carry))[::step, ::step]
            name = BANDS[band].common_name if common_names else band
            _add(item, name, images / f"{band}.tif", carried, west, north, 10 * step, scene)
        scl = "scl" if common_names else "SCL"
        classes = place.scl[number].values[::2, ::2]
        _add(item, scl, images / "SCL.tif", classes, west, north, 20, None)
        catalog.add_item(item)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def _item(scene: Scene, west: float, north: float, size: int) -> pystac.Item:
    metres = (west, north - 10 * size, west + 10 * size, north)
    bbox = list(transform_bounds(f"EPSG:{scene.epsg}", "EPSG:4326", *metres))
    ring = [[bbox[i], bbox[j]] for i, j in ((0, 1), (2, 1), (2, 3), (0, 3), (0, 1))]
    item = pystac.Item(
        id=scene.item_id,
        geometry={"type": "Polygon", "coordinates": [ring]},
        bbox=bbox,
        datetime=datetime.fromisoformat(f"{scene.date}T10:20:31").replace(tzinfo=UTC),
        properties={
            "platform": "sentinel-2a",
            "proj:epsg": scene.epsg,
            "s2:processing_baseline": scene.baseline,
            **scene.properties,
        },
    )
    item.stac_extensions = [PROJECTION, RASTER]
    return item


def _add(
    item: pystac.Item,
    name: str,
    file: Path,
    values: np.ndarray,
    west: float,
    north: float,
    metres: int,
    scene: Scene | None,
) -> None:
    grid = from_origin(west, north, metres, metres)
    profile = {
        "driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1,
        "dtype": values.dtype.name, "crs": f"EPSG:{item.properties['proj:epsg']}",
        "transform": grid, "nodata": 0,
    }  # fmt: skip
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as raw:
            raw.write(values, 1)
        with memory.open() as raw:
            copy_raster(raw, file, driver="COG", compress="deflate", blocksize=128)
    extra: dict[str, Any] = {"proj:shape": list(values.shape), "proj:transform": list(grid)}
    if scene is not None and scene.raster_offset is not None:
        extra["raster:bands"] = [
            {"nodata": 0, "data_type": "uint16", "scale": 1e-4, "offset": scene.raster_offset}
        ]
    asset = pystac.Asset(
        str(file.resolve()), media_type=pystac.MediaType.COG, roles=["data"], extra_fields=extra
    )
    item.add_asset(name, asset)


def make_eopf_product(path: Path | str, size: int = 64) -> Path:
    """Write a product as ESA's EOPF Zarr has it: format 2, groups of 10 m and 20 m.

    Bands are packed (scale 1e-4, offset -0.1, fill 0) and named b02; SCL is under conditions.
    """
    place = synthetic.dataset(dates=1, size=size, bands=("B02", "B04", "B11"), seed=3)
    dn = place.reflectance[0]
    packed = dn.where(dn == 0, dn + 1000).astype("uint16")

    def group(layers: dict[str, np.ndarray], metres: int) -> xr.Dataset:
        side = size * 10 // metres
        coords = {
            "y": 5_300_040 - metres * (np.arange(side) + 0.5),
            "x": 600_000 + metres * (np.arange(side) + 0.5),
        }
        return xr.Dataset({n: (("y", "x"), v) for n, v in layers.items()}, coords)

    ten = group({b.lower(): packed.sel(band=b).values for b in ("B02", "B04")}, 10)
    twenty = group({"b11": packed.sel(band="B11").values[::2, ::2]}, 20)
    for ds in (ten, twenty):
        for name in ds.data_vars:
            ds[name].attrs = {
                "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0, "proj:epsg": 32632,
            }  # fmt: skip
    properties = {"datetime": "2023-06-12T10:20:31Z", "proj:epsg": 32632}
    tree = xr.DataTree.from_dict({
        "/": xr.Dataset(attrs={"stac_discovery": {"properties": properties}}),
        "/measurements/reflectance/r10m": ten,
        "/measurements/reflectance/r20m": twenty,
        "/conditions/mask/l2a_classification/r20m": group(
            {"scl": place.scl[0].values[::2, ::2]}, 20
        ),
    })  # fmt: skip
    tree.to_zarr(path, zarr_format=2, mode="w")
    return Path(path)


if __name__ == "__main__":
    print(make_catalog("local-catalog"), make_eopf_product("local-product.zarr"))
