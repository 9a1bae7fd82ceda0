"""How chunks are encoded: the settings that both codecs and every other way in share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from tec_zarr.bounds.request import ALL, NamedBounds, resolve
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.protocol import Entry
from tec_zarr.models.registry import find_model
from tec_zarr.sentinel2 import band_names

if TYPE_CHECKING:
    from typing import Self


DTYPES = ("uint16", "int16", "float32", "float64")


QUALITY_RANGE = (1.0, 8.0)


MAX_NODATA = 16


@dataclass(frozen=True)
class ChunkSpec:
    """How chunks are encoded; decoding needs none of it.

    Parameters
    ----------
    model : str
        Name of the learned model.
    quality : float
        1 (smallest) to 8 (finest), continuous, the same scale for every model.
    bands : sequence of str, optional
        Sentinel-2 names along the band axis, in its order. A chunk of 12 bands needs none
        (L2A, B01 ... B12), nor does one of dates and 13 bands (L1C). Twelve dates of one band,
        (12, y, x), do need the band's name: they would be taken for twelve bands.
    nodata : number or sequence of numbers, optional
        Values that mean "nothing measured": kept exactly, never shown to the network, never
        the result of decoding a measured sample. NaN always is. None: no such value.
    scale : float, optional
        ``value = (DN + offset) * scale``. None: 1 for integers, 1e-4 (reflectance) for floats.
    offset : float
        DN that the values carry on top, 1000 for products of baseline 04.00 and later whose
        offset was not removed.
    weights_sha256 : str, optional
        Weights to use. None: the newest of the model; filled in at once, so that the
        configuration names them.
    max_error : number, sequence of numbers or mapping, optional
        Largest absolute error of every measured sample, in the units of the array, for all bands
        or one for each; 0 is lossless. For floating-point arrays the bound holds up to the last
        place of the dtype; 0 is bit for bit. A mapping has bounds by name: of bands, of all of
        them (``"all"``), of normalised differences by their usual names (``"ndvi"``, ``"ndwi"``,
        see `tec_zarr.sentinel2.NORMALISED_DIFFERENCES`) or as ``"nd:B08,B04"``; a band that
        nothing names is coded at ``quality``. The others are coded by the bound layer
        (``docs/error-bounds.md``), whatever ``quality`` says.
    psnr : float, optional
        Reach this PSNR (dB, peak 10,000 DN, over the measured samples of the chunk, clipped to
        0 .. 10,000 DN) with the lowest quality that does, instead of ``quality``.
    max_bytes : int, optional
        Take the highest quality whose frame has no more bytes, instead of ``quality``.
    gop : int, optional
        For temporal models: dates refer to one another only within runs of this many ("group of
        pictures"), so that fewer have to be decoded for one. None: within the whole chunk.

    Raises
    ------
    UnsupportedArrayError
        An argument out of its range.
    UnknownModelError
        No such model, and no weights given.
    """

    model: str = "tec-s2"
    quality: float = 4.0
    bands: Sequence[str] | None = None
    nodata: Sequence[float] | float | None = 0
    scale: float | None = None
    offset: float = 0.0
    weights_sha256: str | None = None
    max_error: Mapping[str, float] | Sequence[float] | float | None = None
    psnr: float | None = None
    max_bytes: int | None = None
    gop: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        low, high = QUALITY_RANGE
        if not low <= self.quality <= high:
            raise UnsupportedArrayError(
                f"quality is {self.quality}, it must be {low:g} (smallest) to {high:g} (finest)"
            )
        if self.scale is not None and not 1e-30 < self.scale < 1e30:
            raise UnsupportedArrayError(
                f"scale is {self.scale}, it must be a positive number (1e-30 to 1e30)"
            )
        if not math.isfinite(self.offset):
            raise UnsupportedArrayError(f"offset is {self.offset}, it must be a finite number")
        if len(self.fill_values) > MAX_NODATA:
            raise UnsupportedArrayError(
                f"{len(self.fill_values)} nodata values, at most {MAX_NODATA} can be kept apart"
            )
        targets = {"max_error": self.max_error, "psnr": self.psnr, "max_bytes": self.max_bytes}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise UnsupportedArrayError(f"{' and '.join(given)} were given, take one of them")
        bands = None if self.bands is None else band_names(self.bands)
        max_error: Any = self.max_error
        if isinstance(max_error, Mapping):
            max_error = NamedBounds(max_error)
            given.remove("max_error")
            if bands is not None:  # say at once which of them are not there
                resolve(max_error, len(bands), bands)
        for name in given:
            values = np.atleast_1d(np.asarray(targets[name], np.float64))
            finite = values.size and values.ndim == 1 and np.isfinite(values).all()
            if not finite or (values < 0).any():
                raise UnsupportedArrayError(f"{name} is {targets[name]}, it must be 0 or more")
        if max_error is not None and not isinstance(max_error, Mapping):
            max_error = np.asarray(max_error, np.float64).tolist()
            max_error = tuple(max_error) if isinstance(max_error, list) else max_error
        weights = self.weights_sha256 or find_model(self.model).newest
        for name, value in (
            ("quality", float(self.quality)),
            ("bands", bands),
            ("max_error", max_error),
            ("nodata", self.fill_values),
            ("offset", float(self.offset)),
            ("scale", None if self.scale is None else float(self.scale)),
            ("psnr", None if self.psnr is None else float(self.psnr)),
            ("max_bytes", None if self.max_bytes is None else int(self.max_bytes)),
            ("weights_sha256", weights),
        ):
            object.__setattr__(self, name, value)

    @property
    def fill_values(self) -> tuple[float, ...]:
        """``nodata`` as a tuple, without NaN and infinities, which are kept exactly anyway."""
        nodata = () if self.nodata is None else tuple(np.atleast_1d(self.nodata).tolist())
        return tuple(dict.fromkeys(v for v in nodata if math.isfinite(v)))

    @property
    def is_lossless(self) -> bool:
        """Whether every value comes back bit for bit."""
        if isinstance(self.max_error, Mapping):
            return self.max_error.get(ALL) == 0 and not any(self.max_error.values())
        return self.max_error is not None and not np.any(self.max_error)

    @classmethod
    def from_config(cls, configuration: dict[str, Any]) -> Self:
        """Rebuild from :meth:`to_config`; says what to do about keys of a newer tec_zarr."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(configuration) - known)
        if unknown:
            raise UnsupportedArrayError(
                f"codec 'tec' is configured with {unknown}, which this tec_zarr does not know: "
                "pip install --upgrade tec_zarr"
            )
        return cls(**configuration)

    def to_config(self) -> dict[str, Any]:
        """JSON configuration: the same for every scene, so that stores can be concatenated."""
        return json.loads(json.dumps({f.name: getattr(self, f.name) for f in fields(ChunkSpec)}))


def check_gop(spec: ChunkSpec) -> Entry:
    """Model of ``spec``; refuses a ``gop`` that it would ignore."""
    entry = find_model(spec.model)
    if spec.gop is not None and not entry.temporal:
        raise UnsupportedArrayError(
            f"gop={spec.gop} is for temporal models that have runs of dates, such as tec-tt-s2; "
            f"{spec.model} has none: leave it out"
        )
    return entry


def _check_types(spec: ChunkSpec) -> None:
    """Refuse what JSON can hold and no argument can be: metadata may come from a stranger."""
    for name, expected, fits in (
        ("model", "a name", lambda v: isinstance(v, str)),
        ("quality", "a number", _is_number),
        ("offset", "a number", _is_number),
        ("scale", "a number or None", lambda v: v is None or _is_number(v)),
        ("psnr", "a number or None", lambda v: v is None or _is_number(v)),
        ("max_bytes", "a number or None", lambda v: v is None or _is_number(v)),
        ("gop", "a whole number from 1 or None", lambda v: v is None or _is_count(v)),
        ("nodata", "a number or a list of numbers", lambda v: v is None or _are_numbers(v)),
        ("max_error", "a number, a list of numbers or a mapping of names to numbers",
         lambda v: v is None or isinstance(v, Mapping) or _are_numbers(v)),
        ("bands", "a list of band names", lambda v: v is None or _is_listing(v)),
        ("weights_sha256", "64 hex digits", lambda v: v is None or _is_sha256(v)),
    ):
        value = getattr(spec, name)
        if not fits(value):
            raise UnsupportedArrayError(f"{name} is {value!r:.80}, it must be {expected}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:  # JSON has integers of any length
        return False
    return True


def _are_numbers(value: object) -> bool:
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(plain, list | tuple):
        return all(map(_is_number, plain))
    return _is_number(plain)


def _is_listing(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def check_array(dtype: np.dtype, ndim: int) -> None:
    """Raise UnsupportedArrayError unless arrays of this dtype and rank can be encoded."""
    if dtype.newbyteorder("=").name not in DTYPES:
        raise UnsupportedArrayError(
            f"TEC encodes {', '.join(DTYPES)}, not {dtype}: cast the array first, and store "
            "classes and masks with a lossless codec (tec_zarr.encoding does that)"
        )
    if not 2 <= ndim <= 4:
        raise UnsupportedArrayError(
            f"TEC encodes (time, band, y, x), (band, y, x), (time, y, x) and (y, x), not an array "
            f"of {ndim} dimension{'s' * (ndim != 1)}: in Zarr v2 let TEC be the first codec"
        )
