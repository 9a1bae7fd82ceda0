"""From a STAC search to a cube in TEC, whichever library loaded the pixels.

`prepare` takes what stackstac, odc-stac and EOPF products give to one canonical cube: DN with
the offset of baseline 04.00 removed, 0 = nodata, canonical band names, scene classes beside it.
It decides by the shape of the data and imports none of these libraries. `from_stac` searches,
loads, prepares and writes; `append` adds dates later.

What is known about the offset: ESA adds 1000 DN from baseline 04.00 on; Planetary Computer
leaves it in; Earth Search takes it out and says so in ``earthsearch:boa_offset_applied``, which
is sometimes wrong (Element84/earth-search issue 71), while its ``raster:bands`` say -0.1 either
way (issue 66).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

import numpy as np
import xarray as xr

from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.sentinel2 import (
    BANDS,
    BASELINE_0400_OFFSET,
    DN_PER_REFLECTANCE,
    NODATA,
    UnknownBandError,
    band_name,
    band_names,
    carries_offset,
)
from tec_zarr.store import BAND, CHUNK, TIME, X, Y, decode, encoding, find_dim, rechunk

if TYPE_CHECKING:
    import pystac

__all__ = [
    "EARTH_SEARCH",
    "OffsetError",
    "append",
    "from_stac",
    "harmonize",
    "load",
    "prepare",
    "search",
    "to_reflectance",
    "write",
]

EARTH_SEARCH = "https://earth-search.aws.element84.com/v1"
"""The catalogue searched by default: open, needs no key."""

_SAME_PASS = np.timedelta64(1, "h")
"""Items closer than this are granules of one overpass: an orbit takes 100 minutes."""

_TIME_UNITS = {"units": "microseconds since 1970-01-01", "dtype": "int64"}
_REMOVED = "boa_offset_removed"
_EVIDENCE = ("s2:processing_baseline", "earthsearch:boa_offset_applied", "raster:bands")
_PROJECTION = "https://stac-extensions.github.io/projection/v1.1.0/schema.json"
_DARK_BANDS = ("B04", "B12", "B02", "B11", "B03")

# Reflectance below -0.02 over 2 % of the pixels happens nowhere: such DN never had the offset.
_PROOF_DN = BASELINE_0400_OFFSET - 200
_PROOF_SHARE = 0.02
_SAMPLE_SIDE = 512


@contextmanager
def _without_zarr_notes() -> Iterator[None]:
    """Strings and consolidated metadata have no specification in v3 yet: nothing to act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
        yield


class OffsetError(TecError):
    """What is said about the +1000 DN offset contradicts itself, or nothing is said."""


# ------------------------------------------------------------------------ canonical cube


def prepare(
    obj: xr.DataArray | xr.Dataset | xr.DataTree,
    *,
    items: Iterable[Any] | None = None,
    offset: int | Sequence[int] | None = None,
) -> xr.Dataset:
    """Canonical cube, in Dask chunks that TEC writes without a surprise.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        A stackstac array (float64 reflectance with NaN, or DN; SCL may be one of its bands), an
        odc-stac Dataset of bands, or an EOPF product as ``xarray.open_datatree`` gives it.
    items : iterable of pystac.Item or dict, optional
        The items it was loaded from. odc-stac keeps none of their properties, so the offset is
        decided from them. Items within an hour of a date belong to it.
    offset : int or sequence of int, optional
        DN that the pixels of all dates, or of each date, carry on top: 0 or 1000. Overrules
        everything else that is known.

    Returns
    -------
    Dataset
        ``reflectance`` (time, band, y, x) uint16 DN, 0 = nodata, dark pixels that fall to 0 or
        below without the offset set to 1; ``scl`` (time, y, x) uint8 where there is one.
        Coordinates that Zarr can store, ``spatial_ref`` (CF), ``item_id`` per date, and
        ``boa_offset_removed``: the DN taken off each date. Lazy data stay lazy.
        ``attrs["history"]`` says in words what was done.

    Raises
    ------
    OffsetError
        Baseline, flag, ``raster:bands`` and pixels contradict each other, or say nothing.
    UnsupportedArrayError
        No Sentinel-2 bands, or bands on several grids.

    Notes
    -----
    The pixels are asked once: two dark bands of the middle 512 x 512 pixels of each date are
    read. Pixels can prove that the offset is not there; bright scenes prove nothing.
    """
    said: list[str] = []
    image, scl = _gather(obj, said)
    records = [_record(item) for item in items or ()]
    crs = _crs(image, obj)
    image = _centre(image, said)
    if scl is not None:
        scl = _centre(scl, [])
    image = _native_dn_without_offset(image, records, offset, said)
    variables: dict[str, xr.DataArray] = {"reflectance": image}
    if scl is not None:
        variables["scl"] = _classes(scl)
    ds = xr.Dataset({name: da.drop_attrs(deep=False) for name, da in variables.items()})
    ds = _clean(ds, records, said)
    if crs is not None:
        ds = _with_crs(ds, crs)
    before = _chunk_words(ds.reflectance)
    ds = _rechunk(ds)
    after = _chunk_words(ds.reflectance)
    if before != after:
        said.append(f"rechunked from {before} to {after}")
    ds.reflectance.attrs = {
        "long_name": "surface reflectance x 10000",
        "units": "1e-4",
        "source": "Copernicus Sentinel-2",
    }
    if "scl" in ds:
        ds.scl.attrs = {"long_name": "scene classification"}
    ds.attrs["history"] = "\n".join(f"tec_zarr.prepare: {line}" for line in said)
    return ds


def to_reflectance(cube: xr.DataArray) -> xr.DataArray:
    """DN to float32 reflectance with NaN for nodata: the way back from the canonical cube."""
    out = (cube.where(cube != NODATA) / np.float32(DN_PER_REFLECTANCE)).astype("float32")
    out.attrs = {k: v for k, v in cube.attrs.items() if k != "units"} | {"units": "1"}
    out.encoding = {k: v for k, v in cube.encoding.items() if k == "grid_mapping"}
    return out


def harmonize(obj: xr.DataArray | xr.Dataset, *, items: Iterable[Any] | None = None,
              offset: int | Sequence[int] | None = None) -> xr.Dataset:  # fmt: skip
    """Take off the +1000 DN of baseline 04.00 and later where the pixels carry it.

    Parameters, errors and the decision are those of `prepare`, and so is the result, but for
    the chunks, which stay as they are. Dates that went through it before stay as they are.
    """
    ds = prepare(obj, items=items, offset=offset)
    chunks = obj.chunksizes
    return ds.chunk({d: c for d, c in chunks.items() if d in ds.dims}) if chunks else ds.compute()


def _gather(obj: Any, said: list[str]) -> tuple[xr.DataArray, xr.DataArray | None]:
    """Bands as one array with dimensions (time, band, y, x), and the scene classes."""
    if isinstance(obj, xr.DataTree):
        obj = _flatten_eopf(obj, said)
    if isinstance(obj, xr.DataArray):
        dim = find_dim(obj, BAND)
        if dim is None or dim not in obj.coords:
            raise UnsupportedArrayError(
                f"an array with dimensions {obj.dims} has no band coordinate: name its bands, "
                "cube.assign_coords(band=['B02', ...])"
            )
        layers = {str(n): obj.sel({dim: n}, drop=True) for n in obj[dim].values}
    else:
        if "reflectance" in obj and find_dim(obj["reflectance"], BAND):
            scl = _ordered(obj["scl"]) if "scl" in obj else None
            return _ordered(_named(obj["reflectance"])), scl
        layers = {str(n): obj[n] for n in obj.data_vars if obj[n].ndim >= 2}
    known, scl_name = _sort_layers(layers)
    if not known:
        raise UnsupportedArrayError(f"none of {list(layers)} is a Sentinel-2 band")
    if isinstance(obj, xr.DataArray):
        chosen = obj.sel({dim: list(known.values())})
        image = _named(chosen)
    else:
        parts = [_ordered(layers[name]) for name in known.values()]
        if len({p.shape for p in parts}) > 1:
            raise UnsupportedArrayError(
                "the bands have shapes "
                f"{ {n: p.shape for n, p in zip(known, parts, strict=True)} }: load them on one "
                "grid (resolution=10)"
            )
        index = xr.IndexVariable("band", list(known))
        image = xr.concat(parts, index, coords="minimal", compat="override", join="exact")
        image.attrs, image.encoding = dict(parts[0].attrs), dict(parts[0].encoding)
    if list(known) != list(known.values()):
        said.append(f"bands named {', '.join(known)}")
    return _ordered(image), _ordered(layers[scl_name]) if scl_name else None


def _sort_layers(names: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Canonical band name to the name given, in wavelength order; and the name of SCL."""
    known: dict[str, str] = {}
    scl = None
    for name in sorted(names):  # B02_10m before B02_20m: the finest of several wins
        if name.lower().split("_")[0] == "scl":
            scl = scl or name
            continue
        try:
            known.setdefault(band_name(name), name)
        except UnknownBandError:
            continue
    return {b: known[b] for b in BANDS if b in known}, scl


def _named(image: xr.DataArray) -> xr.DataArray:
    """With its band dimension called ``band`` and holding canonical names."""
    dim = find_dim(image, BAND)
    image = image.rename({dim: "band"}) if dim != "band" else image
    return image.assign_coords(band=list(band_names(image.band.values.tolist())))


def _ordered(da: xr.DataArray) -> xr.DataArray:
    """Dimensions (time, band, y, x), a scalar time made a dimension."""
    time = find_dim(da, TIME)
    if time is None and "time" in da.coords:
        da = da.expand_dims("time")
    elif time is None:
        raise UnsupportedArrayError(
            f"an array with dimensions {da.dims} has no time: "
            "cube.expand_dims(time=[np.datetime64('2023-06-12')])"
        )
    elif time != "time":
        da = da.rename({time: "time"})
    y, x = find_dim(da, Y), find_dim(da, X)
    if y is None or x is None:
        raise UnsupportedArrayError(f"no y and x among the dimensions {da.dims}")
    return da.transpose("time", *(["band"] if "band" in da.dims else []), y, x)


def _flatten_eopf(tree: xr.DataTree, said: list[str]) -> xr.Dataset:
    """Bands of the groups r10m, r20m, r60m on the finest grid, each pixel repeated."""
    found: dict[str, xr.DataArray] = {}
    groups = sorted(tree.subtree, key=lambda node: node.name or "")
    for node in groups:
        for name, da in node.data_vars.items():
            is_scl = str(name).lower() == "scl"
            if not is_scl and "reflectance" not in node.path:
                continue
            key = "scl" if is_scl else _canonical_or_none(str(name))
            if key and da.ndim == 2:
                found.setdefault(key, da)
    bands = [found[b] for b in BANDS if b in found]
    if not bands:
        raise UnsupportedArrayError(
            f"no group of {sorted(n.path for n in groups)} holds bands such as "
            "/measurements/reflectance/r10m/b02"
        )
    finest = max(bands, key=lambda da: da.size)
    y, x = find_dim(finest, Y), find_dim(finest, X)
    placed = {}
    for name, da in found.items():
        if da.shape != finest.shape:
            said.append(f"{name} of {da.shape[0]} x {da.shape[1]} pixels repeated on the grid")
            da = da.reindex({y: finest[y], x: finest[x]}, method="nearest")
        placed[name] = da.copy(deep=False)
        placed[name].encoding = found[name].encoding
    ds = xr.Dataset(placed)
    when = tree.attrs.get("stac_discovery", {}).get("properties", {}).get("datetime")
    if when is not None:
        moment = np.datetime64(str(when).removesuffix("Z").split("+")[0], "ns")
        ds = ds.assign_coords(time=moment)
    return ds


def _canonical_or_none(name: str) -> str | None:
    try:
        return band_name(name)
    except UnknownBandError:
        return None


def _centre(image: xr.DataArray, said: list[str]) -> xr.DataArray:
    """stackstac labels pixels by their top left corner, rioxarray and CF by their centre."""
    grid = image.attrs.get("transform")
    y, x = find_dim(image, Y), find_dim(image, X)
    if grid is None or x not in image.coords or y not in image.coords:
        return image
    width, _, west, _, height, north = tuple(grid)[:6]
    if image[x][0] == west and image[y][0] == north:
        said.append("coordinates moved from the corners of the pixels to their centres")
        attrs = {k: v for k, v in image.attrs.items() if k != "transform"}
        moved = image.assign_coords({x: image[x] + width / 2, y: image[y] + height / 2})
        return moved.assign_attrs(attrs)
    return image


def _classes(scl: xr.DataArray) -> xr.DataArray:
    """uint8; loaders make floats with NaN of it, where the item does not say its dtype."""
    return scl.fillna(0).round().astype("uint8") if scl.dtype.kind == "f" else scl.astype("uint8")


# ------------------------------------------------------------------------------- offset


@dataclass(frozen=True)
class Evidence:
    """What is said about the offset of one date.

    Attributes
    ----------
    label : str
        Date and items, for messages.
    baseline : str, optional
        ``s2:processing_baseline``.
    removed : bool, optional
        ``earthsearch:boa_offset_applied``.
    raster : int, optional
        DN to take off, after ``raster:bands`` or CF ``add_offset``.
    absent : bool, optional
        The pixels prove that there is no offset; None where nothing was measured.
    """

    label: str
    baseline: str | None = None
    removed: bool | None = None
    raster: int | None = None
    absent: bool | None = None

    def decide(self) -> int:
        """DN that the pixels carry, 0 or 1000; raises OffsetError."""
        new = None if self.baseline is None else carries_offset(self.baseline)
        if self.removed is not None:
            carried = 0 if self.removed or new is False else BASELINE_0400_OFFSET
            if carried and self.raster == 0:
                raise self._contradiction("the flag and raster:bands disagree")
        elif self.raster is not None:
            carried = self.raster
            if carried not in (0, BASELINE_0400_OFFSET):
                raise self._contradiction("an offset that is neither 0 nor 1000 DN")
            expected = None if new is None else BASELINE_0400_OFFSET * new
            if expected not in (None, carried) and not (carried == 0 and self.absent):
                raise self._contradiction("the baseline and raster:bands disagree")
        elif new is not None:
            carried = BASELINE_0400_OFFSET * new
        elif self.absent:
            return 0
        else:
            raise self._contradiction("nothing says whether the offset is there")
        if carried and self.absent:
            raise self._contradiction("the pixels are too dark to carry it")
        return carried

    def _contradiction(self, why: str) -> OffsetError:
        facts = {
            "s2:processing_baseline": self.baseline,
            "earthsearch:boa_offset_applied": self.removed,
            "raster:bands offset in DN": self.raster,
            "pixels prove its absence": self.absent,
        }
        known = ", ".join(f"{k}: {v}" for k, v in facts.items() if v is not None)
        return OffsetError(
            f"the +1000 DN offset of {self.label} is not clear: {why} ({known or 'no metadata'}). "
            "Look at dark pixels (water, forest in B04): below 1000 DN there is none. Then pass "
            "offset=0 or offset=1000, or the items=... that the cube was loaded from"
        )


def _native_dn_without_offset(
    image: xr.DataArray, records: list[dict[str, Any]], offset: Any, said: list[str]
) -> xr.DataArray:
    dates = image.sizes["time"]
    if _REMOVED in image.coords:
        said.append("offset as decided before")
        removed = np.broadcast_to(image[_REMOVED].values, dates)
        return _to_uint16(image, 0).assign_coords({_REMOVED: ("time", removed)})
    native, raster = _undo_scaling(image, records, said)
    if offset is not None:
        carried = np.broadcast_to(np.asarray(offset, np.int64), dates)
        if not np.isin(carried, (0, BASELINE_0400_OFFSET)).all():
            raise OffsetError(f"offset is {offset}, it must be 0 or {BASELINE_0400_OFFSET} DN")
    else:
        dark = _sample(native)
        carried = np.array(
            [_evidence(image, i, records, raster, dark[i]).decide() for i in range(dates)]
        )
        _warn_if_bright(image, records, carried, dark)
    counts = {int(v): int((carried == v).sum()) for v in np.unique(carried)}
    words = ", ".join(f"{v} DN off {n} date{'s' * (n > 1)}" for v, n in counts.items() if v)
    said.append(words or "no offset to remove")
    if image.dtype != np.uint16:
        said.append(f"{image.dtype} to uint16 DN, 0 = nodata")
    taken = xr.DataArray(carried, dims="time")
    out = _to_uint16(native, taken)
    return out.assign_coords({_REMOVED: ("time", carried.astype(np.int16))})


def _undo_scaling(
    image: xr.DataArray, records: list[dict[str, Any]], said: list[str]
) -> tuple[xr.DataArray, list[int | None]]:
    """DN as they are in the files, and the offset that the metadata of each date declares."""
    declared = [_declared(image, i, records) for i in range(image.sizes["time"])]
    raster = [None if d is None else round(-d[1] / d[0]) for d in declared]
    packing = {**image.attrs, **image.encoding}
    factor, added = packing.get("scale_factor"), packing.get("add_offset")
    if factor is not None:
        raster = [round(-float(added or 0) / float(factor))] * len(raster)
    if image.dtype.kind in "iu":
        missing = packing.get("_FillValue", packing.get("nodata", image.attrs.get("nodata")))
        if missing not in (None, NODATA) and missing == missing:
            image = image.where(image != missing, NODATA)
        return image, raster
    sample = _sample(image)
    measured = sample[np.isfinite(sample)]
    if measured.size and np.percentile(np.abs(measured), 99) > 5:  # no reflectance is that high
        return image, raster
    if factor is not None:
        scale, shift = float(factor), np.full(len(raster), float(added or 0))
    elif all(d is not None for d in declared):
        scale, shift = declared[0][0], np.array([d[1] for d in declared])  # type: ignore[index]
    else:
        if measured.size and (measured < -0.02).mean() >= _PROOF_SHARE:
            raise OffsetError(
                f"{(measured < -0.02).mean():.0%} of the sampled reflectances are below -0.02: "
                "an offset of -0.1 was applied to pixels that did not carry it. Pass items=... "
                "so that it can be undone, or load without rescaling (rescale=False)"
            )
        scale, shift = 1 / DN_PER_REFLECTANCE, np.zeros(len(raster))
    said.append("reflectance back to DN")
    return (image - xr.DataArray(shift, dims="time")) / scale, raster


def _declared(
    image: xr.DataArray, date: int, records: list[dict[str, Any]]
) -> tuple[float, float] | None:
    """Scale and offset in ``raster:bands`` of one date, from its items or its coordinates."""
    found = set()
    for record in _of_date(records, image, date):
        for name, asset in record["assets"].items():
            entry = _first_mapping(asset.get("raster:bands"))
            if entry and _canonical_or_none(name) in image.band.values and "scale" in entry:
                found.add((float(entry["scale"]), float(entry.get("offset", 0))))
    if not found and "raster:bands" in image.coords:
        coord = image["raster:bands"]
        cells = (coord.isel(time=date) if "time" in coord.dims else coord).values
        for cell in np.ravel(np.asarray(cells, dtype=object)):
            entry = _first_mapping(cell)
            if entry and "scale" in entry:
                found.add((float(entry["scale"]), float(entry.get("offset", 0))))
    if len(found) > 1:
        raise OffsetError(
            f"raster:bands of {_label(image, date)} declare several scales and offsets: "
            f"{sorted(found)}. Load the bands without rescaling and pass offset=0 or offset=1000"
        )
    return found.pop() if found else None


def _first_mapping(value: Any) -> Mapping[str, Any] | None:
    while isinstance(value, list | tuple | np.ndarray) and len(value):
        value = value[0]
    return value if isinstance(value, Mapping) else None


def _evidence(
    image: xr.DataArray,
    date: int,
    records: list[dict[str, Any]],
    raster: list[int | None],
    dark: np.ndarray,
) -> Evidence:
    pixels = dark[np.isfinite(dark) & (dark != NODATA)]
    absent = bool((pixels < _PROOF_DN).mean() >= _PROOF_SHARE) if pixels.size >= 50 else None
    values: dict[str, Any] = {}
    for key in _EVIDENCE[:2]:
        stated = {
            str(r["properties"][key]) for r in _of_date(records, image, date)
            if r["properties"].get(key) is not None
        }  # fmt: skip
        if not stated and key in image.coords:
            coord = image[key]
            cell = (coord.isel(time=date) if "time" in coord.dims else coord).item()
            stated = {str(cell)} if cell is not None and cell == cell else set()
        # Several baselines of one overpass are fine as long as they agree about the offset.
        if len({carries_offset(s) for s in stated} if key == _EVIDENCE[0] else stated) > 1:
            raise OffsetError(
                f"the items of {_label(image, date)} disagree about {key}: {sorted(stated)}. "
                "Keep one processing of each scene (filter the items), or pass offset=..."
            )
        values[key] = min(stated, default=None)
    removed = values[_EVIDENCE[1]]
    return Evidence(
        label=_label(image, date, records),
        baseline=values[_EVIDENCE[0]],
        removed=None if removed is None else removed in ("True", "true", "1"),
        raster=raster[date],
        absent=absent,
    )


def _warn_if_bright(
    image: xr.DataArray, records: list[dict[str, Any]], carried: np.ndarray, dark: np.ndarray
) -> None:
    """A flag that says "removed" over pixels that all look as if it were still there."""
    for date in np.flatnonzero(carried == 0):
        evidence = _evidence(image, int(date), records, [None] * len(carried), dark[date])
        pixels = dark[date][np.isfinite(dark[date]) & (dark[date] != NODATA)]
        new = evidence.baseline is not None and carries_offset(evidence.baseline)
        if new and pixels.size and pixels.min() >= BASELINE_0400_OFFSET:
            warnings.warn(
                f"{evidence.label}: the offset is said to be removed, but no sampled pixel is "
                "below 1000 DN. Right for a scene under cloud or snow; otherwise pass offset=1000",
                UserWarning,
                stacklevel=4,
            )


def _sample(image: xr.DataArray) -> np.ndarray:
    """Float64 (time, n) of two dark bands in the middle of each date."""
    bands = [b for b in _DARK_BANDS if b in image.band.values][:2] or image.band.values[:1].tolist()
    window = {}
    for dim in map(str, image.dims[-2:]):
        start = max(0, (image.sizes[dim] - _SAMPLE_SIDE) // 2)
        window[dim] = slice(start, start + _SAMPLE_SIDE, 1 + (image.sizes[dim] > 64))
    values = image.sel(band=bands).isel(window).values.astype(np.float64)
    return values.reshape(len(values), -1)


def _to_uint16(native: xr.DataArray, taken: Any) -> xr.DataArray:
    """Without the offset; nodata 0, what was measured at least 1."""
    if native.dtype == np.uint16 and not np.any(taken):
        return native
    whole = native.round() if native.dtype.kind == "f" else native.astype("int32")
    measured = whole.notnull() & (whole != NODATA)
    dn = (whole - taken).clip(1, np.iinfo(np.uint16).max).where(measured, NODATA).astype("uint16")
    dn.encoding = {k: v for k, v in native.encoding.items() if k == "grid_mapping"}
    return dn.transpose(*native.dims)


# --------------------------------------------------------------------- items and metadata


def _record(item: Any) -> dict[str, Any]:
    """Id, time, properties and asset fields of a pystac item or of its JSON."""
    plain = item if isinstance(item, Mapping) else item.to_dict(transform_hrefs=False)
    when = str(plain["properties"]["datetime"]).removesuffix("Z").split("+")[0]
    return {
        "id": plain["id"],
        "time": np.datetime64(when, "ns"),
        "properties": plain["properties"],
        "assets": plain["assets"],
    }


def _of_date(records: list[dict[str, Any]], image: Any, date: int) -> list[dict[str, Any]]:
    moment = image.time.values[date]
    return [r for r in records if abs(r["time"] - moment) < _SAME_PASS]


def _label(image: xr.DataArray, date: int, records: Sequence[dict[str, Any]] = ()) -> str:
    ids = [r["id"] for r in _of_date(list(records), image, date)]
    day = np.datetime_as_string(image.time.values[date], "D")
    return f"{day} ({', '.join(ids)})" if ids else str(day)


def _clean(ds: xr.Dataset, records: list[dict[str, Any]], said: list[str]) -> xr.Dataset:
    """Only coordinates that Zarr can store; strings of any length, so that dates can follow."""
    dropped = []
    for name, coord in ds.coords.items():
        if name in ds.dims or name == "spatial_ref":
            continue
        values = coord.values
        if values.dtype.kind in "biufM" and name != "raster:bands":
            continue
        texts = values.dtype.kind in "UT" or (
            values.dtype == object and all(isinstance(v, str) for v in values.ravel())
        )
        if texts:
            ds = ds.assign_coords({name: (coord.dims, values.astype(object))})
        else:
            dropped.append(str(name))
            ds = ds.drop_vars(name)
    if dropped:
        said.append(f"coordinates that Zarr cannot store left out: {', '.join(sorted(dropped))}")
    if records:
        ids = [
            ",".join(sorted(r["id"] for r in _of_date(records, ds, i)))
            for i in range(ds.sizes["time"])
        ]
        ds = ds.assign_coords(item_id=("time", np.array(ids, dtype=object)))
    elif "id" in ds.coords and ds["id"].dims == ("time",):
        ds = ds.rename({"id": "item_id"})
    return ds.drop_vars("id", errors="ignore")


def _crs(image: xr.DataArray, obj: Any) -> Any:
    """What the data say about their coordinate reference system."""
    if "spatial_ref" in image.coords and image.spatial_ref.attrs:
        return dict(image.spatial_ref.attrs)
    if isinstance(obj, xr.Dataset) and "spatial_ref" in obj and obj.spatial_ref.attrs:
        return dict(obj.spatial_ref.attrs)
    if image.attrs.get("crs"):
        return str(image.attrs["crs"])
    for key in ("epsg", "proj:epsg"):
        if key in image.coords and image[key].ndim == 0:
            return int(image[key])
    sources = [image.attrs]
    if isinstance(obj, xr.DataTree):
        sources += [obj.attrs.get("stac_discovery", {}).get("properties", {}), obj.attrs]
        sources.append(obj.attrs.get("other_metadata", {}))
    for attrs in sources:
        for key in ("proj:epsg", "proj:code", "proj:wkt2", "horizontal_CRS_code"):
            if attrs.get(key):
                return attrs[key]
    return None


def _with_crs(ds: xr.Dataset, crs: Any) -> xr.Dataset:
    if not isinstance(crs, dict):
        try:
            from pyproj import CRS
        except ImportError as error:
            raise UnsupportedArrayError(
                f"reading the CRS {crs!r} needs pyproj: pip install 'tec_zarr[stac]'"
            ) from error
        crs = CRS.from_user_input(crs).to_cf()
    plain = {k: v for k, v in crs.items() if isinstance(v, str | int | float | list | tuple)}
    ds = ds.assign_coords(spatial_ref=xr.DataArray(np.int32(0), attrs=plain))
    for da in ds.data_vars.values():
        da.encoding["grid_mapping"] = "spatial_ref"
    return ds


def _rechunk(ds: xr.Dataset) -> xr.Dataset:
    """Images in chunks for TEC; coordinates stay in memory."""
    coords = {n: c for n, c in ds.coords.items() if n not in ds.dims}
    return rechunk(ds).assign_coords(coords)


def _chunk_words(da: xr.DataArray) -> str:
    if da.chunks is None:
        return "one array in memory"
    return " x ".join(f"{dim} {sizes[0]}" for dim, sizes in da.chunksizes.items())


# ------------------------------------------------------------------------ search and load


def search(
    catalog: str | Path,
    *,
    bbox: Sequence[float],
    datetime: str,
    collection: str = "sentinel-2-l2a",
) -> list[pystac.Item]:
    """Items of a STAC API, or of a static catalogue on disk, sorted by time.

    Parameters
    ----------
    catalog : str or Path
        URL of a STAC API (Earth Search, Planetary Computer), or path of a ``catalog.json``, in
        which ``collection`` is not asked for.
    bbox : sequence of float
        West, south, east, north in degrees.
    datetime : str
        ``"2023-06"``, ``"2023-06-01/2023-08-31"``.
    collection : str
        In a STAC API.

    Raises
    ------
    TecError
        Nothing found, or a package is missing.
    """
    if urlparse(str(catalog)).scheme in ("http", "https"):
        found = _search_api(str(catalog), bbox, datetime, collection)
    else:
        found = _search_files(Path(catalog), bbox, datetime)
    if not found:
        raise TecError(f"no items in {catalog} for bbox {tuple(bbox)} and {datetime}")
    return sorted(found, key=lambda item: (item.properties["datetime"], item.id))


def _search_api(
    url: str, bbox: Sequence[float], datetime: str, collection: str
) -> list[pystac.Item]:
    from pystac_client import Client

    modifier = None
    if "planetarycomputer.microsoft.com" in url:
        try:
            from planetary_computer import sign_inplace as modifier
        except ImportError as error:
            raise TecError("Planetary Computer: pip install planetary-computer") from error
    client = Client.open(url, modifier=modifier)
    return list(client.search(collections=[collection], bbox=bbox, datetime=datetime).items())


def _search_files(path: Path, bbox: Sequence[float], datetime: str) -> list[pystac.Item]:
    import pystac

    west, south, east, north = bbox
    start, _, end = datetime.partition("/")
    low = np.datetime64("0001-01-01" if start in ("", "..") else start.removesuffix("Z"))
    last = (end or start) if "/" in datetime else start
    high = np.datetime64("9999-12-31" if last in ("", "..") else last.removesuffix("Z")) + 1
    found = []
    for item in pystac.Catalog.from_file(str(path)).get_items(recursive=True):
        w, s, e, n = item.bbox or (-180, -90, 180, 90)
        moment = _record(item)["time"].astype("M8[s]")
        if w < east and e > west and s < north and n > south and low <= moment < high:
            item.make_asset_hrefs_absolute()
            found.append(item)
    return found


def load(
    items: Sequence[pystac.Item],
    *,
    bbox: Sequence[float] | None = None,
    bands: Sequence[str] | None = None,
    resolution: float = 10,
    crs: str | int | None = None,
    loader: str = "odc-stac",
) -> xr.DataArray | xr.Dataset:
    """Load items lazily, granules of one overpass merged.

    Parameters
    ----------
    items : sequence of pystac.Item
        For instance from `search`.
    bbox : sequence of float, optional
        West, south, east, north in degrees; what no item covers is left out. Default: all that
        the items cover.
    bands : sequence of str, optional
        Any spelling. Default: every band that all items have. SCL always comes with them.
    resolution : float
        Metres.
    crs : str or int, optional
        Such as ``"EPSG:32632"``. Default: that of most items.
    loader : {"odc-stac", "stackstac"}
        Which library reads.

    Returns
    -------
    Dataset (odc-stac) or DataArray (stackstac)
        Native DN, for `prepare`.
    """
    epsg = _epsg(crs) if crs is not None else _common_epsg(items)
    names = _asset_names(items, bands)
    bbox = _covered(items, bbox)
    if loader == "odc-stac":
        import odc.stac

        return odc.stac.load(
            [_with_projection(item) for item in items], bands=names, bbox=bbox,
            crs=f"EPSG:{epsg}", resolution=resolution, groupby="solar_day",
            chunks={"y": 1024, "x": 1024},
        )  # fmt: skip
    if loader == "stackstac":
        import stackstac

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*affine.*")
            cube = stackstac.stack(
                [_plain_with_epsg(item) for item in items], assets=names, bounds_latlon=bbox,
                epsg=epsg, resolution=resolution, dtype="uint16", rescale=False,
                fill_value=np.uint16(NODATA), xy_coords="center",  # type: ignore[arg-type]
            )  # fmt: skip
        return _merge_granules(cube)
    raise TecError(f"loader is {loader!r}, it must be 'odc-stac' or 'stackstac'")


def _asset_names(items: Sequence[pystac.Item], bands: Sequence[str] | None) -> list[str]:
    shared = set.intersection(*(set(item.assets) for item in items))
    known, scl = _sort_layers(shared)
    wanted = list(known) if bands is None else list(band_names(bands))
    missing = [b for b in wanted if b not in known]
    if missing or not wanted:
        raise UnsupportedArrayError(
            f"the items share the assets {sorted(shared)}; no bands {missing or ''} among them"
        )
    return [known[b] for b in wanted] + ([scl] if scl else [])


def _covered(items: Sequence[pystac.Item], bbox: Sequence[float] | None) -> list[float] | None:
    """Part of ``bbox`` that items cover: loaders would fill the rest with nodata."""
    if bbox is None or any(item.bbox is None for item in items):
        return None if bbox is None else list(bbox)
    boxes = np.array([item.bbox for item in items])
    low = np.maximum(bbox[:2], boxes[:, :2].min(axis=0))
    high = np.minimum(bbox[2:], boxes[:, 2:].max(axis=0))
    return [*low.tolist(), *high.tolist()]


def _epsg(crs: str | int) -> int:
    return int(str(crs).upper().removeprefix("EPSG:"))


def _item_epsg(item: pystac.Item) -> int:
    stated = item.properties.get("proj:epsg") or item.properties.get("proj:code")
    if stated is None:
        raise TecError(f"item {item.id} says no projection: pass crs='EPSG:...'")
    return _epsg(stated)


def _common_epsg(items: Sequence[pystac.Item]) -> int:
    codes = [_item_epsg(item) for item in items]
    return max(dict.fromkeys(codes), key=codes.count)


def _with_projection(item: pystac.Item) -> pystac.Item:
    """odc-stac reads ``proj:`` fields only of items that list the extension."""
    if any("/projection/" in url for url in item.stac_extensions):
        return item
    item = item.clone()
    item.stac_extensions = [*item.stac_extensions, _PROJECTION]
    return item


def _plain_with_epsg(item: pystac.Item) -> dict[str, Any]:
    """stackstac knows ``proj:epsg``, not the newer ``proj:code``."""
    plain = json.loads(json.dumps(item.to_dict(transform_hrefs=False)))
    plain["properties"]["proj:epsg"] = _item_epsg(item)
    for name, asset in plain["assets"].items():
        asset["href"] = item.assets[name].get_absolute_href()
    return plain


def _merge_granules(cube: xr.DataArray) -> xr.DataArray:
    """One date for each overpass: the first granule that measured a pixel gives it."""
    import dask.array

    starts = [0, *(np.flatnonzero(np.diff(cube.time.values) > _SAME_PASS) + 1).tolist()]
    dates = []
    for start, stop in zip(starts, [*starts[1:], cube.sizes["time"]], strict=True):
        granules = [cube.data[i] for i in range(start, stop)]
        merged = granules[0]
        for granule in granules[1:]:
            merged = dask.array.where(merged != NODATA, merged, granule)
        dates.append(merged)
    return cube.isel(time=starts).copy(data=dask.array.stack(dates))


# ------------------------------------------------------------------------ write and append


@_without_zarr_notes()
def write(
    cube: xr.Dataset, out: str | Path, *, quality: float = 4.0, model: str = "tec-s2"
) -> None:
    """Write a canonical cube so that dates can be appended.

    Parameters
    ----------
    cube : Dataset
        From `prepare`.
    out : str or Path
        A Zarr v3 store that does not exist yet.
    quality, model
        As in `tec_zarr.encoding`.

    Notes
    -----
    ``xr.open_zarr(out, decode_coords="all")`` shows all dates. Those of a last time chunk that
    is not full yet are also kept losslessly, in a group ``tail-N``, so that `append` codes them
    again from what was measured and not from what was decoded.
    """
    out = Path(out)
    if out.exists():
        raise UnsupportedArrayError(f"{out} exists: choose another name, or append to it")
    settings = encoding(cube, quality=quality, model=model, chunks={"time": CHUNK["time"]})
    for name, da in cube.data_vars.items():
        if "chunks" not in settings[str(name)]:
            chunks = {d: s[0] for d, s in da.chunksizes.items()} or dict(da.sizes)
            settings[str(name)]["chunks"] = tuple({**chunks, "time": CHUNK["time"]}.values())
    settings["time"] = dict(_TIME_UNITS)
    _to_zarr(decode(cube), out, mode="w", encoding=settings)
    _commit(out, cube)


@_without_zarr_notes()
def append(cube: xr.Dataset, out: str | Path) -> int:
    """Append the dates of a canonical cube that are later than those of a store of `write`.

    Full time chunks are not touched. The last one, if it is not full, is coded again together
    with the new dates, from its lossless copy. An interrupted append is repaired by the next.

    Parameters
    ----------
    cube : Dataset
        From `prepare`, with the same bands and CRS, and pixels on the same lattice: what is
        outside the store's area is cut off, what is missing is nodata. Dates that the store has
        are skipped.
    out : str or Path
        The store; one writer at a time.

    Returns
    -------
    int
        Number of dates added.

    Raises
    ------
    UnsupportedArrayError
        Another grid, other bands, dates before the last one, or a store of something else.
    """
    import zarr

    out = Path(out)
    root = zarr.open_group(out, mode="r+", use_consolidated=False)
    if "tec_dates" not in root.attrs:
        raise UnsupportedArrayError(f"{out} was not written by tec_zarr.stac.write: cannot append")
    dates = int(root.attrs["tec_dates"])  # type: ignore[arg-type]
    whole = dates - dates % CHUNK["time"]
    tail = _tail(out, root)
    if root.attrs.get("tec_appending"):
        _truncate(root, whole)
        if tail is not None:
            _to_zarr(_rechunk(tail).assign_attrs(root.attrs.asdict()), out, append_dim="time")
        root.attrs["tec_appending"] = False
    old = xr.open_zarr(out, consolidated=False, decode_coords="all")
    times = old.time.values[:whole] if tail is None else np.r_[old.time.values[:whole], tail.time]
    new = cube.isel(time=~np.isin(cube.time.values, times))
    if new.sizes["time"] == 0:
        return 0
    if times.size and new.time.values.min() <= times.max():
        raise UnsupportedArrayError(
            f"{out} ends on {np.datetime_as_string(times.max(), 's')}, the cube has new dates from "
            f"{np.datetime_as_string(new.time.values.min(), 's')} on: only later ones can follow"
        )
    new = _on_grid_of(old, new, out)
    names = [n for n in ("time", *new.variables) if n in old.variables]
    new = new[[n for n in old.data_vars if n in new]].drop_vars(
        [c for c in new.coords if c not in names]
    )
    lacking = [n for n, v in old.variables.items() if "time" in v.dims and n not in new.variables]
    if lacking:
        raise UnsupportedArrayError(f"{out} has {lacking} for every date, the new dates do not")
    both = new
    if tail is not None:
        both = xr.concat(
            [tail, new], "time", coords="minimal", data_vars="minimal", compat="override"
        ).assign_attrs(new.attrs)
    root.attrs["tec_appending"] = True
    _truncate(root, whole)
    rewritten = decode(_rechunk(both)).assign_attrs(root.attrs.asdict())
    _to_zarr(rewritten, out, append_dim="time")
    _commit(out, both, before=whole)
    return new.sizes["time"]


@_without_zarr_notes()
def from_stac(
    out: str | Path,
    *,
    bbox: Sequence[float],
    datetime: str,
    catalog: str | Path = EARTH_SEARCH,
    collection: str = "sentinel-2-l2a",
    bands: Sequence[str] | None = None,
    resolution: float = 10,
    crs: str | int | None = None,
    loader: str = "odc-stac",
    offset: int | None = None,
    quality: float = 4.0,
    model: str = "tec-s2",
    append_dates: bool = False,
) -> xr.Dataset:
    """Search, load, prepare and write: from an area and a period to a store in TEC.

    Parameters
    ----------
    out : str or Path
        Zarr store: a new one, or with ``append_dates`` one of an earlier call.
    bbox, datetime, catalog, collection
        As in `search`.
    bands, resolution, crs, loader
        As in `load`.
    offset
        As in `prepare`.
    quality, model
        As in `tec_zarr.encoding`; unused with ``append_dates``.
    append_dates : bool
        Add later dates to ``out``.

    Returns
    -------
    Dataset
        The store, opened.
    """
    items = search(catalog, bbox=bbox, datetime=datetime, collection=collection)
    loaded = load(items, bbox=bbox, bands=bands, resolution=resolution, crs=crs, loader=loader)
    cube = prepare(loaded, items=items, offset=offset)
    if append_dates:
        append(cube, out)
    else:
        write(cube, out, quality=quality, model=model)
    return xr.open_zarr(out, decode_coords="all")


def _to_zarr(ds: xr.Dataset, out: Path, **arguments: Any) -> None:
    ds.to_zarr(out, zarr_format=3, consolidated=False, **arguments)


def _commit(out: Path, written: xr.Dataset, before: int | None = None) -> None:
    """Keep the dates of the last, partly filled chunk; then say how many dates are complete."""
    import zarr

    dates = (before or 0) + written.sizes["time"]
    started = dates % CHUNK["time"]
    name = f"tail-{dates}"
    if started:
        last = decode(written.isel(time=slice(-started, None)))
        for da in last.variables.values():
            da.encoding = {k: v for k, v in da.encoding.items() if k == "grid_mapping"}
        last["time"].encoding = dict(_TIME_UNITS)
        _to_zarr(_rechunk(last), out, group=name, mode="w")
    root = zarr.open_group(out, mode="r+", use_consolidated=False)
    attrs: dict[str, Any] = {"tec_dates": dates, "tec_appending": False}
    if before is not None:
        attrs["history"] = f"{root.attrs.get('history', '')}\n{written.attrs.get('history', '')}"
    root.attrs.update(attrs)
    for group in list(root.group_keys()):
        if group.startswith("tail-") and not (started and group == name):
            del root[group]
    zarr.consolidate_metadata(out)


def _tail(out: Path, root: Any) -> xr.Dataset | None:
    dates = int(root.attrs["tec_dates"])
    if dates % CHUNK["time"] == 0:
        return None
    opened = xr.open_zarr(out, group=f"tail-{dates}", consolidated=False, decode_coords="all")
    return decode(opened).load()


def _on_grid_of(old: xr.Dataset, new: xr.Dataset, out: Path) -> xr.Dataset:
    """``new`` on the pixels of ``old``, which catalogues cover more or less of each time."""
    codes = [ds.spatial_ref.attrs.get("crs_wkt") if "spatial_ref" in ds else None
             for ds in (old, new)]  # fmt: skip
    if codes[0] != codes[1]:
        raise UnsupportedArrayError(f"{out} and the cube have different CRS: pass crs=...")
    if not np.array_equal(old.band, new.band):
        raise UnsupportedArrayError(
            f"{out} has the bands {old.band.values.tolist()}, the cube {new.band.values.tolist()}"
        )
    grid = {dim: old[dim].values for dim in map(str, new.reflectance.dims[-2:])}
    for dim, values in grid.items():
        if not np.isin(new[dim].values, values).any():
            raise UnsupportedArrayError(
                f"no {dim} of the cube ({new[dim].values[0]} ... {new[dim].values[-1]}) is one of "
                f"{out} ({values[0]} ... {values[-1]}): load it with the same bbox and resolution"
            )
    same = all(np.array_equal(new[dim], values) for dim, values in grid.items())
    return new if same else new.reindex(grid, fill_value=NODATA)


def _truncate(root: Any, dates: int) -> None:
    """Cut every array of the group to its first ``dates`` dates."""
    for _, array in root.arrays():
        names = array.metadata.dimension_names or ()
        if "time" in names and array.shape[names.index("time")] != dates:
            array.resize(tuple(
                dates if n == "time" else s for n, s in zip(names, array.shape, strict=True)
            ))  # fmt: skip
