"""Sentinel-2 facts the codec and its helpers share: bands, scale, offset, scene classes.

Plain Python: importing this module costs nothing and pulls in neither numpy nor torch.

The codec works on digital numbers (DN): ``reflectance = DN / 10000``. The offset of processing
baseline 04.00 is already removed, and 0 means nodata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tec_zarr.errors import TecError

__all__ = [
    "BANDS",
    "BASELINE_0400_DATE",
    "BASELINE_0400_OFFSET",
    "CLOUD_LIKE",
    "DN_PER_REFLECTANCE",
    "L1C_BANDS",
    "L2A_BANDS",
    "NODATA",
    "NORMALISED_DIFFERENCES",
    "SCL_CLASSES",
    "Band",
    "UnknownBandError",
    "UnknownBaselineError",
    "band_name",
    "band_names",
    "carries_offset",
]


class UnknownBandError(TecError):
    """A name that is not a Sentinel-2 MSI band."""


class UnknownBaselineError(TecError):
    """A value that is not a processing baseline."""


@dataclass(frozen=True)
class Band:
    """One band of the MultiSpectral Instrument.

    Attributes
    ----------
    name : str
        Canonical name, two digits: ``"B02"``, ``"B8A"``.
    common_name : str
        Name in the STAC ``eo`` extension: ``"blue"``, ``"nir08"``.
    gsd : int
        Native ground sampling distance in metres: 10, 20 or 60.
    wavelength : int
        Centre wavelength of Sentinel-2A in nanometres.
    """

    name: str
    common_name: str
    gsd: int
    wavelength: int


BANDS: dict[str, Band] = {
    band.name: band
    for band in (
        Band("B01", "coastal", 60, 443),
        Band("B02", "blue", 10, 492),
        Band("B03", "green", 10, 560),
        Band("B04", "red", 10, 665),
        Band("B05", "rededge071", 20, 704),
        Band("B06", "rededge075", 20, 741),
        Band("B07", "rededge078", 20, 783),
        Band("B08", "nir", 10, 833),
        Band("B8A", "nir08", 20, 865),
        Band("B09", "nir09", 60, 945),
        Band("B10", "cirrus", 60, 1374),
        Band("B11", "swir16", 20, 1614),
        Band("B12", "swir22", 20, 2202),
    )
}
"""Every MSI band by canonical name, in wavelength order."""

L1C_BANDS: tuple[str, ...] = tuple(BANDS)
"""The 13 bands of a top-of-atmosphere product, in the order models expect."""

L2A_BANDS: tuple[str, ...] = tuple(name for name in BANDS if name != "B10")
"""The 12 bands of a surface-reflectance product: B10 (cirrus) has no surface signal."""

DN_PER_REFLECTANCE = 10_000
"""Digital numbers per unit of reflectance (the product's QUANTIFICATION_VALUE)."""

NODATA = 0
"""The DN that means "no measurement" in every product."""

BASELINE_0400_OFFSET = 1000
"""DN that products of processing baseline 04.00 and later add to the signal.

Their metadata says ``RADIO_ADD_OFFSET`` (L1C) or ``BOA_ADD_OFFSET`` (L2A) = -1000:
``reflectance = (DN - 1000) / 10000``. Nodata stays 0.
"""

BASELINE_0400_DATE = "2022-01-25"
"""First day on which ESA produced baseline 04.00; older days may have been reprocessed."""

NORMALISED_DIFFERENCES: dict[str, tuple[str, str]] = {
    "ndvi": ("B08", "B04"),
    "gndvi": ("B08", "B03"),
    "ndwi": ("B03", "B08"),
    "mndwi": ("B03", "B11"),
    "ndmi": ("B08", "B11"),
    "ndsi": ("B03", "B11"),
    "ndbi": ("B11", "B08"),
    "nbr": ("B08", "B12"),
    "nbr2": ("B11", "B12"),
    "ndci": ("B05", "B04"),
}
"""Indices ``(first - second) / (first + second)`` by their usual names."""

SCL_CLASSES: dict[int, str] = {
    0: "no_data",
    1: "saturated_or_defective",
    2: "dark_area_pixels",
    3: "cloud_shadows",
    4: "vegetation",
    5: "not_vegetated",
    6: "water",
    7: "unclassified",
    8: "cloud_medium_probability",
    9: "cloud_high_probability",
    10: "thin_cirrus",
    11: "snow",
}
"""Values of the L2A scene classification layer (SCL)."""

CLOUD_LIKE: frozenset[int] = frozenset({0, 1, 3, 8, 9, 10})
"""SCL classes that do not show the ground: nodata, defective, shadow, cloud, cirrus."""

# Names of bands in catalogues, besides the canonical and the STAC common names
# (Earth Search, Planetary Computer, EOPF, older STAC versions, Digital Earth).
_OTHER_NAMES = {
    "aerosol": "B01",
    "aerosols": "B01",
    "coastalaerosol": "B01",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "rededge": "B05",
    "nir1": "B08",
    "nirbroad": "B08",
    "nir2": "B8A",
    "nirnarrow": "B8A",
    "narrownir": "B8A",
    "nira": "B8A",
    "watervapour": "B09",
    "watervapor": "B09",
    "swir1": "B11",
    "swir2": "B12",
    "swir3": "B12",
}
_ALIASES = {band.common_name: band.name for band in BANDS.values()} | _OTHER_NAMES
_NUMBERED = re.compile(r"b(?:and)?0?(8a|1[0-2]|[1-9])")
_RESOLUTION = re.compile(r"(?:10|20|60)m$")
#: A prefix that names the processing. Allowed before common names only, as Landsat's ``SR_B5`` is
#: not Sentinel-2's B05.
_PROCESSING = re.compile(r"^(?:nbart?|lambertian|boa|toa|sr)(?=[a-z])")
_MISSION = re.compile(r"^(?:s2|sentinel2)[a-d]?(?=[a-z])")
#: A band number followed by a description, such as GDAL's "B4, central wavelength 665 nm".
_DESCRIBED = re.compile(
    r"\s*(b(?:and)?[\s_]?\d{1,2}a?)\s*(?:,\s|\s-\s|\()\s*([^()]*)\)?\s*", re.I
)
_WAVELENGTH = re.compile(r"(?:central wavelength )?\d+(?:\.\d+)? ?(?:nm|m)", re.I)


def band_name(name: str, beside: Iterable[str] = ()) -> str:
    """Return the canonical name of a band.

    Parameters
    ----------
    name : str
        Any common spelling, in any case: ``"B2"``, ``"b02"``, ``"B02_10m"``, ``"blue"``,
        ``"red_edge_1"``, ``"nir08"``, ``"nbart_red"``, ``"B4, central wavelength 665 nm"``.
    beside : iterable of str, optional
        Names of the other bands. They decide what ``swir_2`` means: B11 beside ``swir_3`` or
        beside Digital Earth Australia's names of Sentinel-2 bands (``nbart_nir_1``), else B12.

    Returns
    -------
    str
        A key of `BANDS`.

    Raises
    ------
    UnknownBandError
        If the name is not a known spelling.

    Examples
    --------
    >>> band_name("B8a_20m"), band_name("swir16")
    ('B8A', 'B11')
    """
    found = _known(str(name), beside)
    if found is None:
        raise UnknownBandError(
            f"{name!r} is not a Sentinel-2 band. Use one of {', '.join(BANDS)} "
            f"or a common name ({', '.join(band.common_name for band in BANDS.values())})."
        )
    return found


def _known(name: str, beside: Iterable[str]) -> str | None:
    if described := _DESCRIBED.fullmatch(name):
        band, words = _known(described[1], beside), described[2]
        return band if _WAVELENGTH.fullmatch(words) or _known(words, beside) == band else None
    key = _MISSION.sub("", re.sub(r"[\s_\-]", "", name.lower()))
    for candidate in (key, _RESOLUTION.sub("", key)):
        if numbered := _NUMBERED.fullmatch(candidate):
            return f"B{numbered[1].upper():0>2}"
        common = _PROCESSING.sub("", candidate)
        if common == "swir2" and _without_swir_1(beside):
            return "B11"
        if common in _ALIASES:
            return _ALIASES[common]
    return None


def _without_swir_1(names: Iterable[str]) -> bool:
    """Return whether these names count SWIR bands from one that Sentinel-2 does not have.

    In such names ``swir_1`` is a band at 1.2 micrometres, so that ``swir_2`` is B11.
    """
    keys = {re.sub(r"[\s_\-]", "", str(name).lower()) for name in names}
    own = {f"{p}{b}" for p in ("nbar", "nbart") for b in ("nir1", "nir2", "rededge1")}
    return bool(keys & own) or any(_PROCESSING.sub("", key) == "swir3" for key in keys)


def band_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return canonical names for several bands, in the order given.

    Parameters
    ----------
    names : iterable of str
        Spellings that `band_name` understands.

    Returns
    -------
    tuple of str

    Raises
    ------
    UnknownBandError
        If one of them is unknown, or two of them are the same band.
    """
    given = tuple(names)
    canonical = tuple(band_name(name, given) for name in given)
    if len(set(canonical)) != len(canonical):
        raise UnknownBandError(
            f"Bands {given} name the same band twice (read as {canonical}). Pass each band once."
        )
    return canonical


def carries_offset(processing_baseline: str | float) -> bool:
    """Return whether products of a processing baseline carry the +1000 DN offset.

    Parameters
    ----------
    processing_baseline : str or float
        As in ``s2:processing_baseline`` or a product name: ``"05.09"``, ``"N0509"``, or the
        number 5.09, as which tables often store it.

    Returns
    -------
    bool
        True from baseline 04.00 on. This is about ESA's product: a provider may have removed
        the offset (Earth Search does, Planetary Computer does not).

    Raises
    ------
    UnknownBaselineError
        If it is not a baseline.
    """
    text = str(processing_baseline).strip()
    match = re.fullmatch(r"N?(\d{2})(\d{2})|N?(\d{1,2})\.\d{1,2}", text)
    if not match:
        raise UnknownBaselineError(
            f"{processing_baseline!r} is not a processing baseline, expected one such as '05.09', "
            "'N0509' or 5.09: correct s2:processing_baseline, or pass offset=0 or offset=1000"
        )
    return int(match[1] or match[3]) >= 4
