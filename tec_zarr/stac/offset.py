"""Decide whether pixels carry the +1000 DN offset of processing baseline 04.00, and remove it.

ESA adds 1000 DN from baseline 04.00 on. Planetary Computer leaves this offset in the pixels. Earth
Search removes it and says so in ``earthsearch:boa_offset_applied``, but that flag is sometimes
wrong (Element84/earth-search issue 71). The ``raster:bands`` of Earth Search say -0.1 in either
case (issue 66). So all metadata and the pixels are compared, and a contradiction raises an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from tec_zarr.cubes.encoding import unpacking
from tec_zarr.cubes.nodata import declared, is_nodata, nodata_values, unencoded
from tec_zarr.cubes.packing import read_packing
from tec_zarr.errors import TecError
from tec_zarr.sentinel2 import (
    BASELINE_0400_OFFSET,
    DN_PER_REFLECTANCE,
    NODATA,
    UnknownBandError,
    band_name,
    carries_offset,
)

__all__ = ["Evidence", "OffsetError", "remove_offset"]

_EVIDENCE = ("s2:processing_baseline", "earthsearch:boa_offset_applied", "raster:bands")

REMOVED = "boa_offset_removed"
"""Name of the coordinate with the DN that were subtracted from each date."""

SAME_PASS = np.timedelta64(1, "h")
"""Items closer in time than this are granules of one overpass. An orbit takes 100 minutes."""

_DARK_BANDS = ("B04", "B12", "B02", "B11", "B03")

# This assumes that no scene has a reflectance below -0.02 in 2 % of its pixels. With the offset
# such a reflectance is a DN below 800. So if 2 % of the DN are below 800, they do not carry the
# offset. Atmospheric correction gives values below 0 in deep shade, but not that low.
_PROOF_DN = BASELINE_0400_OFFSET - 200

_PROOF_SHARE = 0.02

_SAMPLE_SIDE = 512

_ZERO_DN = 1e-3
"""A float DN below this is 0 with rounding errors of arithmetic."""

_REFLECTANCE_LIMIT = 5  # No reflectance is that high. DN are higher.


class OffsetError(TecError):
    """The evidence for the +1000 DN offset contradicts itself, or there is none."""


@dataclass(frozen=True)
class Evidence:
    """Evidence for or against the offset in one date. None means that a source says nothing.

    Attributes
    ----------
    label : str
        Date and items, for messages.
    baseline : str, optional
        ``s2:processing_baseline``.
    removed : bool, optional
        ``earthsearch:boa_offset_applied``.
    raster : int, optional
        DN to subtract according to ``raster:bands`` or CF ``add_offset``.
    absent : bool, optional
        Whether the pixels prove that there is no offset; None if too few were measured.
    """

    label: str
    baseline: str | None = None
    removed: bool | None = None
    raster: int | None = None
    absent: bool | None = None

    def decide(self) -> int:
        """Return the offset that the pixels carry, 0 or 1000 DN.

        Raises
        ------
        OffsetError
            The evidence contradicts itself, or there is none.
        """
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


def remove_offset(
    image: xr.DataArray, records: list[dict[str, Any]], offset: Any, said: list[str]
) -> xr.DataArray:
    """Convert loaded DN or reflectance to uint16 DN without the offset.

    Parameters
    ----------
    image : DataArray (time, band, y, x)
        With canonical band names, and with the metadata that the loader kept of the items.
    records : list of dict
        From `item_record`.
    offset : int or sequence of int, optional
        The offset of all dates or of each, if the user gave it: 0 or 1000 DN.
    said : list of str
        Gets a line about each change.

    Raises
    ------
    OffsetError
        See `Evidence`.
    """
    dates = image.sizes["time"]
    image = _without_declared(image)
    sample = _sample(image) if image.dtype.kind == "f" else np.empty(0)
    if REMOVED in image.coords:
        said.append("offset as decided before")
        removed = np.broadcast_to(image[REMOVED].values, dates)
        told = _zeros_told(image, image, sample)
        return _to_uint16(told, 0).assign_coords({REMOVED: ("time", removed)})
    native, raster, rescaled = _undo_scaling(image, sample, records, said)
    native = _zeros_told(image, native, sample)
    if offset is not None:
        carried = np.broadcast_to(np.asarray(offset, np.int64), dates)
        if not np.isin(carried, (0, BASELINE_0400_OFFSET)).all():
            raise OffsetError(f"offset is {offset}, it must be 0 or {BASELINE_0400_OFFSET} DN")
    else:
        dark = _sample(native)
        carried = np.array(
            [_evidence(image, i, records, raster, dark[i], rescaled).decide() for i in range(dates)]
        )
        _warn_if_bright(image, records, carried, dark)
    counts = {int(v): int((carried == v).sum()) for v in np.unique(carried)}
    words = ", ".join(f"{v} DN off {n} date{'s' * (n > 1)}" for v, n in counts.items() if v)
    said.append(words or "no offset to remove")
    if image.dtype != np.uint16:
        said.append(f"{image.dtype} to uint16 DN, 0 = nodata")
    taken = xr.DataArray(carried, dims="time")
    out = _to_uint16(native, taken)
    return out.assign_coords({REMOVED: ("time", carried.astype(np.int16))})


def item_record(item: Any) -> dict[str, Any]:
    """Return id, time, properties and assets of a pystac item or of its JSON."""
    plain = item if isinstance(item, Mapping) else item.to_dict(transform_hrefs=False)
    when = str(plain["properties"]["datetime"]).removesuffix("Z").split("+")[0]
    return {
        "id": plain["id"],
        "time": np.datetime64(when, "ns"),
        "properties": plain["properties"],
        "assets": plain["assets"],
    }


def items_of_date(records: list[dict[str, Any]], image: Any, date: int) -> list[dict[str, Any]]:
    """Return the records of the items that one date of a cube was made from."""
    moment = image.time.values[date]
    return [r for r in records if abs(r["time"] - moment) < SAME_PASS]


def _without_declared(image: xr.DataArray) -> xr.DataArray:
    """Replace the nodata values that ``image`` declares by 0 in integers and by NaN in floats.

    If signed integers declare another value than 0 for nodata, a 0 was measured. It becomes 1.
    """
    if image.dtype.kind == "f":
        missing = is_nodata(image, [v for v in unencoded(image) if v], unpacking(image))
        return image if missing is None else image.where(~missing)
    nodata = nodata_values(image)
    missing = is_nodata(image, [v for v in nodata if v])
    if missing is None:
        return image
    if image.dtype.kind == "i" and NODATA not in nodata:
        image = image.where(image != NODATA, 1)
    return image.where(~missing, NODATA)


def _zeros_told(image: xr.DataArray, native: xr.DataArray, sample: np.ndarray) -> xr.DataArray:
    """Replace zeros that mean nodata by NaN in float DN. Integers stay as they are.

    If the image has NaN, or declares another number as nodata, a loaded 0 was measured. If neither
    attributes nor pixels show how nodata is marked, a pixel is nodata if it is 0 in all bands. If a
    DN is 0 but the loaded value is not, an offset was added to the file's nodata value 0: the pixel
    is nodata.

    Parameters
    ----------
    image, native : DataArray (time, band, y, x)
        The image as loaded, and in DN.
    sample : ndarray
        Result of `_sample` for ``image``.
    """
    if native.dtype.kind != "f":
        return native
    zero: xr.DataArray = abs(native) < _ZERO_DN
    said = declared(image.attrs, image.dtype)
    if NODATA in said:
        return native.where(~zero)
    as_loaded = image == 0
    seen = sample if image.chunks is not None else image.values
    if not (said or np.isnan(seen).any()):
        as_loaded &= ~(zero | native.isnull()).all("band")
    return native.where(~zero | as_loaded)


def _undo_scaling(
    image: xr.DataArray, sample: np.ndarray, records: list[dict[str, Any]], said: list[str]
) -> tuple[xr.DataArray, list[int | None], bool]:
    """Convert an image to the DN of the files.

    Returns
    -------
    native : DataArray
        DN as they are in the files.
    raster : list of int or None
        Offset in DN that the metadata of each date declare; None if they declare none.
    rescaled : bool
        Whether the image was reflectance, but no metadata say how it was made from DN.
    """
    declared = [_declared(image, i, records) for i in range(image.sizes["time"])]
    raster = [None if d is None else round(-d[1] / d[0]) for d in declared]
    packing = {**image.attrs, **read_packing(image)}
    factor, added = packing.get("scale_factor"), packing.get("add_offset")
    if factor is not None:
        raster = [round(-float(added or 0) / float(factor))] * len(raster)
    if image.dtype.kind in "iu":
        return image, raster, False
    measured = sample[np.isfinite(sample)]
    if not measured.any():  # The middle of the image is empty: look at all pixels.
        measured = np.atleast_1d(np.nan_to_num(np.abs(image).max().values))
    if np.percentile(np.abs(measured), 99) > _REFLECTANCE_LIMIT:
        _refuse_mixed_units(image, sample, records)
        return image, raster, False
    rescaled = False
    if factor is not None:
        scale, shift = float(factor), np.full(len(raster), float(added or 0))
    elif all(d is not None for d in declared):
        scale, shift = declared[0][0], np.array([d[1] for d in declared])  # type: ignore[index]
    else:
        rescaled = True
        if (measured < -0.02).mean() >= _PROOF_SHARE:
            raise OffsetError(
                f"{(measured < -0.02).mean():.0%} of the sampled reflectances are below -0.02: "
                "an offset of -0.1 was applied to pixels that did not carry it. Pass items=... "
                "so that it can be undone, or load without rescaling (rescale=False)"
            )
        scale, shift = 1 / DN_PER_REFLECTANCE, np.zeros(len(raster))
    said.append("reflectance back to DN")
    return (image - xr.DataArray(shift, dims="time")) / scale, raster, rescaled


def _declared(
    image: xr.DataArray, date: int, records: list[dict[str, Any]]
) -> tuple[float, float] | None:
    """Return scale and offset that the ``raster:bands`` of one date declare; None if they do not.

    The coordinate ``raster:bands`` is used only if the date has no items: stackstac makes one
    coordinate for all dates, even if only some items have these fields.
    """
    found = set()
    known = items_of_date(records, image, date)
    for record in known:
        for name, asset in record["assets"].items():
            entry = _first_mapping(asset.get("raster:bands"))
            if entry is None and "raster:scale" in asset:  # Version 2 of the raster extension.
                entry = {k: asset.get(f"raster:{k}", 0) for k in ("scale", "offset")}
            if entry and known_band(name) in image.band.values and "scale" in entry:
                found.add((float(entry["scale"]), float(entry.get("offset", 0))))
    if not known and "raster:bands" in image.coords:
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


def _refuse_mixed_units(
    image: xr.DataArray, sample: np.ndarray, records: list[dict[str, Any]]
) -> None:
    """Raise an error if some dates look like reflectance and others like DN.

    stackstac rescales only the items that have ``raster:bands``. The others stay DN.
    """
    for date, values in enumerate(np.abs(sample)):
        measured = values[np.isfinite(values) & (values > 0)]
        if measured.size >= 50 and np.percentile(measured, 99) <= _REFLECTANCE_LIMIT:
            raise OffsetError(
                f"{_label(image, date, records)} looks like reflectance, other dates like DN: load "
                "all of them without rescaling (rescale=False)"
            )


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
    rescaled: bool = False,
) -> Evidence:
    pixels = dark[np.isfinite(dark) & (dark != NODATA)]
    absent = bool((pixels < _PROOF_DN).mean() >= _PROOF_SHARE) if pixels.size >= 50 else None
    if rescaled:  # Metadata of the files do not apply to reflectance made from them.
        return Evidence(_label(image, date, records), absent=absent)
    values: dict[str, Any] = {}
    for key in _EVIDENCE[:2]:
        found = [_property(r, key) for r in items_of_date(records, image, date)]
        stated = {str(value) for value in found if value is not None}
        if not stated and key in image.coords:
            coord = image[key]
            cell = (coord.isel(time=date) if "time" in coord.dims else coord).item()
            stated = {str(cell)} if cell is not None and cell == cell else set()
        # Items of one overpass may differ in baseline, if these agree about the offset.
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


def _property(record: dict[str, Any], key: str) -> Any:
    """Return a property of an item; None if it has none.

    Copernicus uses the name of the processing extension for the baseline.
    """
    properties = record["properties"]
    value = properties.get(key)
    if value is None and key == _EVIDENCE[0] and "sentinel-2" in str(properties.get("platform")):
        value = properties.get("processing:version")
    return value


def _warn_if_bright(
    image: xr.DataArray, records: list[dict[str, Any]], carried: np.ndarray, dark: np.ndarray
) -> None:
    """Warn if the offset is said to be removed, but no sampled pixel is below 1000 DN."""
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
    """Return samples of two dark bands from the middle of each date, float64 (time, n)."""
    bands = [b for b in _DARK_BANDS if b in image.band.values][:2] or image.band.values[:1].tolist()
    window = {}
    for dim in map(str, image.dims[-2:]):
        start = max(0, (image.sizes[dim] - _SAMPLE_SIDE) // 2)
        window[dim] = slice(start, start + _SAMPLE_SIDE, 1 + (image.sizes[dim] > 64))
    values = image.sel(band=bands).isel(window).values.astype(np.float64)
    return values.reshape(len(values), -1)


def _to_uint16(native: xr.DataArray, taken: Any) -> xr.DataArray:
    """Subtract the offset and convert to uint16.

    Nodata (0 in integers, NaN in floats) become 0. All measured pixels become at least 1.
    """
    if native.dtype == np.uint16 and not np.any(taken):
        return native
    floats = native.dtype.kind == "f"
    whole = native.round() if floats else native.astype("int32")
    measured = native.notnull() if floats else native != NODATA
    dn = (whole - taken).clip(1, np.iinfo(np.uint16).max).where(measured, NODATA).astype("uint16")
    dn.encoding = {k: v for k, v in native.encoding.items() if k == "grid_mapping"}
    return dn.transpose(*native.dims)


def _label(image: xr.DataArray, date: int, records: Sequence[dict[str, Any]] = ()) -> str:
    ids = [r["id"] for r in items_of_date(list(records), image, date)]
    day = np.datetime_as_string(image.time.values[date], "D")
    return f"{day} ({', '.join(ids)})" if ids else str(day)


def known_band(name: str) -> str | None:
    """Return the canonical name of a band; None if ``name`` is not a band."""
    try:
        return band_name(name)
    except UnknownBandError:
        return None
