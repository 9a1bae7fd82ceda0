"""The settings of an encoder, which every caller of it shares, and the checks on them."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tec_zarr.bounds.request import ALL, NamedBounds, resolve
from tec_zarr.codec.options import (
    are_bounds,
    are_numbers,
    is_count,
    is_listing,
    is_sha256,
    option,
    options_of,
    within,
)
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.models.protocol import Entry
from tec_zarr.models.registry import find_model
from tec_zarr.sentinel2 import band_names

if TYPE_CHECKING:
    from typing import Self


DTYPES = ("uint16", "int16", "float32", "float64")


QUALITY_RANGE = (1.0, 8.0)


MAX_NODATA = 16
"""Most values that the mask of a frame can tell apart."""


MAX_FLOAT = sys.float_info.max


def _finite(nodata: Any) -> tuple[float, ...]:
    """Return nodata values without NaN and infinities, which are always kept exactly."""
    values = () if nodata is None else tuple(np.atleast_1d(nodata).tolist())
    return tuple(dict.fromkeys(v for v in values if math.isfinite(v)))


def _bounds(max_error: Any) -> NamedBounds | tuple[float, ...] | float:
    """Return bounds as a checked mapping, or as a tuple of one for each band, or as a number."""
    if isinstance(max_error, Mapping):
        return NamedBounds(max_error)
    plain = np.asarray(max_error, np.float64).tolist()
    return tuple(plain) if isinstance(plain, list) else plain


@dataclass(frozen=True)
class ChunkSpec:
    """The settings with which chunks are encoded. Decoding does not use them.

    Chunks are (time, band, y, x), (band, y, x), (time, y, x) of one band, or (y, x), of dtype
    uint16, int16, float32 or float64.

    Each option is declared here and nowhere else (`tec_zarr.codec.options` says who reads it).

    Parameters
    ----------
    model : str
        Name of the learned model.
    quality : float
        1 (smallest) to 8 (finest), continuous, the same scale for every model.
    bands : sequence of str, optional
        Sentinel-2 names along the band axis, in its order. Chunks of 12 bands (L2A, B01 ... B12)
        and chunks of dates and 13 bands (L1C) need no names. Twelve dates of one band, (12, y, x),
        need the name of the band, because they would be taken for twelve bands.
    nodata : number or sequence of numbers, optional
        Values that mean "nothing measured". They are kept exactly, and the model does not see
        them. A measured sample is never decoded to such a value. NaN is always nodata. None: no
        value but NaN.
    scale : float, optional
        ``value = (DN + offset) * scale``. None: 1 for integers, 1e-4 (reflectance) for floats.
    offset : float
        DN that were added to the values: 1000 for products of baseline 04.00 and later whose
        offset was not removed.
    weights_sha256 : str, optional
        SHA-256 of the weights to use. None: those of the newest weights of the model, filled in
        at once so that the configuration of the codec names them.
    max_error : number, sequence of numbers or mapping, optional
        Largest absolute error of every measured sample, in the units of the array, for all bands
        or one for each. 0 is lossless, for floating-point arrays bit for bit. Other bounds of
        floating-point arrays hold up to the last place of the dtype. A mapping has bounds by
        name: of bands, of all bands (``"all"``), of normalised differences by their usual names
        (``"ndvi"``, ``"ndwi"``, see `tec_zarr.sentinel2.NORMALISED_DIFFERENCES`) or as
        ``"nd:B08,B04"``. A band without a bound is coded at ``quality``. The bound layer codes
        the other bands (``docs/error-bounds.md``); ``quality`` does not affect them.
    psnr : float, optional
        Use the lowest quality that reaches this PSNR (dB, peak 10,000 DN, over the measured
        samples of the chunk, clipped to 0 .. 10,000 DN), instead of ``quality``.
    max_bytes : int, optional
        Use the highest quality whose frame has at most this many bytes, instead of ``quality``.
    gop : int, optional
        For temporal models: dates refer to one another only within runs of this many dates
        ("group of pictures"). Short runs let a reader decode one date with fewer others. None:
        the whole chunk is one run.

    Raises
    ------
    UnsupportedArrayError
        An argument is out of its range.
    UnknownModelError
        There is no such model, and no weights are given.
    """

    model: str = option(
        "tec-s2",
        "name of the learned model",
        "a name",
        lambda v: isinstance(v, str),
        word=str,
        metavar="NAME",
    )
    quality: float = option(
        4.0,
        "1 (smallest) to 8 (finest), the same scale for every model",
        "{:g} (smallest) to {:g} (finest)".format(*QUALITY_RANGE),
        within(*QUALITY_RANGE),
        plain=float,
    )
    bands: Sequence[str] | None = option(
        None,
        "Sentinel-2 names along the band axis, in its order",
        "a list of band names",
        is_listing,
        plain=band_names,
        word=str,
        many=True,
        metavar="BAND",
    )
    nodata: Sequence[float] | float | None = option(
        0,
        "values that mean that nothing was measured, besides NaN and what the data declare",
        "a number or a list of numbers",
        lambda v: v is None or are_numbers(v),
        plain=_finite,
        many=True,
        metavar="VALUE",
    )
    scale: float | None = option(
        None,
        "value = (DN + offset) * scale; without it 1 for integers, 0.0001 for floats",
        "a positive number (1e-30 to 1e30) or None",
        within(1e-30, 1e30),
        plain=float,
    )
    offset: float = option(
        0.0,
        "DN that were added to the values: 1000 for products of baseline 04.00 and later "
        "whose offset was not removed",
        "a finite number",
        within(-MAX_FLOAT, MAX_FLOAT),
        plain=float,
        metavar="DN",
    )
    weights_sha256: str | None = option(
        None,
        "SHA-256 of the weights; without it the newest of the model",
        "64 hex digits",
        is_sha256,
        word=str,
        metavar="HEX",
    )
    max_error: Mapping[str, float] | Sequence[float] | float | None = option(
        None,
        "largest error of every sample, in the units of the data; 0: lossless. Bands and "
        "indices can have bounds of their own by name: ndvi=0.01, B04=5, nd:B8A,B04=0.02, all=50",
        "0 or more: a number, a list of numbers or a mapping of names to numbers",
        are_bounds,
        plain=_bounds,
        by_name=True,
        target=True,
        metavar="[NAME=]BOUND",
    )
    psnr: float | None = option(
        None,
        "PSNR that every chunk reaches, at the lowest quality that does; in dB",
        "0 or more",
        within(0, MAX_FLOAT),
        plain=float,
        target=True,
        metavar="DB",
    )
    max_bytes: int | None = option(
        None,
        "bytes that no chunk exceeds, at the highest quality that fits",
        "0 or more",
        within(0, MAX_FLOAT),
        plain=int,
        word=int,
        target=True,
        metavar="N",
    )
    gop: int | None = option(
        None,
        "for temporal models: dates refer to one another only within runs of this many",
        "a whole number from 1 or None",
        is_count,
        word=int,
        metavar="DATES",
    )

    def __post_init__(self) -> None:
        for name, (field, known) in options_of(ChunkSpec).items():
            value = getattr(self, name)
            if value is None and field.default is None:
                continue
            if not known.fits(value):
                raise UnsupportedArrayError(f"{name} is {value!r:.80}, it must be {known.expected}")
            object.__setattr__(self, name, known.plain(value))
        if len(self.fill_values) > MAX_NODATA:
            raise UnsupportedArrayError(
                f"{len(self.fill_values)} nodata values, at most {MAX_NODATA} can be kept apart"
            )
        targets = [name for name, (_, known) in options_of(self).items() if known.target]
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) > 1:
            raise UnsupportedArrayError(f"{' and '.join(given)} were given, take one of them")
        if isinstance(self.max_error, NamedBounds) and self.bands is not None:
            # Refuse names of bands that are not in ``bands``.
            resolve(self.max_error, len(self.bands), self.bands)
        if self.weights_sha256 is None:
            object.__setattr__(self, "weights_sha256", find_model(self.model).newest)

    @property
    def fill_values(self) -> tuple[float, ...]:
        """``nodata`` as a tuple without NaN and infinities, which are always kept exactly."""
        return _finite(self.nodata)

    @property
    def is_lossless(self) -> bool:
        """True if every value is decoded bit for bit."""
        if isinstance(self.max_error, Mapping):
            return self.max_error.get(ALL) == 0 and not any(self.max_error.values())
        return self.max_error is not None and not np.any(self.max_error)

    @classmethod
    def from_config(cls, configuration: dict[str, Any]) -> Self:
        """Rebuild from :meth:`to_config`. Keys of a newer tec_zarr raise an error that says so."""
        unknown = sorted(set(configuration) - set(options_of(cls)))
        if unknown:
            raise UnsupportedArrayError(
                f"codec 'tec' is configured with {unknown}, which this tec_zarr does not know: "
                "pip install --upgrade tec_zarr"
            )
        return cls(**configuration)

    @property
    def options(self) -> dict[str, Any]:
        """All options by name."""
        return {name: getattr(self, name) for name in options_of(self)}

    def to_config(self) -> dict[str, Any]:
        """Return the JSON configuration.

        It does not depend on the scene, so that stores can be concatenated.
        """
        return json.loads(json.dumps(self.options))


def check_gop(spec: ChunkSpec) -> Entry:
    """Return the registry's entry of the model; refuse a ``gop`` that the model would ignore."""
    entry = find_model(spec.model)
    if spec.gop is not None and "gop" not in entry.takes:
        raise UnsupportedArrayError(
            f"gop={spec.gop} is for temporal models that have runs of dates, such as tec-tt-s2; "
            f"{spec.model} has none: leave it out"
        )
    return entry


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
