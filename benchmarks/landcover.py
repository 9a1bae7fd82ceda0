"""Which pixels are cloud, water, vegetation or bare, by fixed rules on the original."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COVERS = ("cloud or snow", "water", "vegetation", "bare or built")
_BRIGHT = 2500
"""Mean DN of B02, B03 and B04 from which a pixel counts as cloud or snow."""


def normalised(cube: NDArray, bands: Sequence[str], pair: tuple[str, str]) -> NDArray[np.float64]:
    """``(a - b) / (a + b)`` of two bands of (time, band, y, x); nan where both are 0."""
    first, second = (cube[:, list(bands).index(name)].astype(np.float64) for name in pair)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first - second) / (first + second)


def land_cover(cube: NDArray[np.uint16], bands: Sequence[str]) -> NDArray[np.uint8]:
    """Index into `COVERS` of every pixel.

    Parameters
    ----------
    cube : ndarray, (time, band, y, x)
        DN of the original.
    bands : sequence of str
        With B02, B03, B04 and B08.

    Returns
    -------
    ndarray of uint8, (time, y, x)
        Bright in the visible (2500 DN): cloud or snow. Of the rest NDWI > 0: water,
        NDVI > 0.4: vegetation, everything else: bare or built.
    """
    visible = [list(bands).index(name) for name in ("B02", "B03", "B04")]
    bright = cube[:, visible].mean(axis=1) >= _BRIGHT
    water = normalised(cube, bands, ("B03", "B08")) > 0
    green = normalised(cube, bands, ("B08", "B04")) > 0.4
    return np.select([bright, water, green], [0, 1, 2], 3).astype(np.uint8)
