"""The codecs ``scale_offset`` and ``cast_value``: what CF packing says, said by Zarr itself.

EOPF products store floats as integers with these codecs (zarr 3.2 or newer, with cast-value-rs).
Readers get reflectance without decoding CF attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tec_zarr.errors import UnsupportedArrayError


def packing_of(filters: Iterable[Any] | None) -> dict[str, Any] | None:
    """Return the CF keys that say the same as an array's filters.

    Parameters
    ----------
    filters : iterable of codecs, optional
        ``zarr.Array.filters``, or the entry ``filters`` of xarray's ``encoding``.

    Returns
    -------
    dict or None
        ``dtype``, ``scale_factor`` and ``add_offset`` (values are stored integers times the factor
        plus the offset), and ``_FillValue`` if NaN has an integer. None if these are not the
        filters ``cast_value`` to integers, or ``scale_offset`` and then that one.
    """
    documents = [codec.to_dict() for codec in filters or () if hasattr(codec, "to_dict")]
    named = {str(item.get("name")): item.get("configuration") or {} for item in documents}
    if list(named) not in (["scale_offset", "cast_value"], ["cast_value"]):
        return None
    dtype = np.dtype(str(named["cast_value"].get("data_type")))
    if dtype.kind not in "iu":
        return None
    line = named.get("scale_offset", {})
    packing = {
        "dtype": dtype.name,
        "scale_factor": 1 / float(line.get("scale", 1)),
        "add_offset": float(line.get("offset", 0)),
    }
    pairs = (named["cast_value"].get("scalar_map") or {}).get("encode") or ()
    fills = [stored for value, stored in pairs if str(value).lower() == "nan"]
    return packing | ({"_FillValue": int(fills[0])} if fills else {})


def packing_codecs(packing: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the filters that say the same as CF keys. Values that do not fit raise when written.

    Raises
    ------
    UnsupportedArrayError
        The codecs are missing: zarr is older than 3.2, or cast-value-rs is not installed.
    """
    try:
        import cast_value_rs  # noqa: F401  Without it zarr fails when the first chunk is written.
        from zarr.codecs import CastValue, ScaleOffset  # type: ignore[attr-defined]
    except ImportError as error:
        raise UnsupportedArrayError(
            "the codecs scale_offset and cast_value need Python 3.12, zarr 3.2 and cast-value-rs: "
            "pip install 'tec_zarr[eopf]'"
        ) from error
    fill = packing.get("_FillValue")
    pairs: Any = None
    if fill is not None:
        pairs = {"encode": [("NaN", int(fill))], "decode": [(int(fill), "NaN")]}
    # 10000, not the 10000.000000000002 that the division of some factors gives.
    scale = round(1 / float(packing.get("scale_factor", 1)), 6)
    offset = float(packing.get("add_offset", 0))
    return (
        ScaleOffset(offset=offset, scale=scale),
        CastValue(data_type=np.dtype(packing["dtype"]).name, scalar_map=pairs),
    )
