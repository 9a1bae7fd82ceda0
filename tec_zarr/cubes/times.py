"""Stored times in a unit that later dates with clock times fit into."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

UNIT = "microseconds"
_IN_MICROSECONDS = {
    "d": 86_400_000_000, "day": 86_400_000_000, "h": 3_600_000_000, "hr": 3_600_000_000,
    "hour": 3_600_000_000, "min": 60_000_000, "minute": 60_000_000, "s": 1_000_000,
    "sec": 1_000_000, "second": 1_000_000, "ms": 1_000, "msec": 1_000, "millisecond": 1_000,
}  # fmt: skip
_SINCE = re.compile(r"\s*([a-z]+)(\s+since\s.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Finer:
    """How stored whole numbers become microseconds since the same date, as int64.

    Attributes
    ----------
    units : str
        CF units of the result.
    factor : int
        What the numbers are multiplied by.
    missing : tuple of int
        Numbers that stay as they are, because they stand for nothing.
    """

    units: str
    factor: int
    missing: tuple[int, ...]

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """The numbers in microseconds."""
        wide = stored.astype(np.int64)
        return np.where(np.isin(wide, self.missing), wide, wide * self.factor)


def finer(stored: np.ndarray, units: Any, missing: tuple[int, ...]) -> Finer | None:
    """What makes microseconds of stored times; None where they are no whole numbers of a coarser
    unit, or do not fit.

    ``missing`` are the numbers that stand for nothing (_FillValue, and NaT as xarray writes it).
    Left to itself xarray counts whole days since the first date. Clock times that are appended to
    such a store come back in other centuries, or cannot be read.
    """
    found = _SINCE.fullmatch(units) if isinstance(units, str) else None
    name = found[1].lower() if found else ""
    factor = _IN_MICROSECONDS.get(name) or _IN_MICROSECONDS.get(name.removesuffix("s"))
    if found is None or factor is None or stored.dtype.kind not in "iu":
        return None
    wide = stored.astype(np.int64)
    known = wide[~np.isin(wide, missing)]
    limit = np.iinfo(np.int64).max // factor
    if known.size and not -limit <= int(known.min()) <= int(known.max()) <= limit:
        return None
    return Finer(UNIT + found[2], factor, missing)
