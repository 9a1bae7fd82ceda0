"""Reads training data: cubes in ``.npz`` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tec_zarr.errors import UnsupportedArrayError

BANDS = 12
#: Indices, in L2A order (B01 .. B12), of the bands whose native grid is 10 m.
BANDS_10M = (1, 2, 3, 7)


def fill_nodata(dn: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace nodata pixels by the mean of each band; also return the valid pixels (H, W)."""
    valid = (dn[present] > 0).all(axis=0)
    if valid.all() or not valid.any():
        return dn, valid
    out = dn.copy()
    for band in np.flatnonzero(present):
        out[band][~valid] = out[band][valid].mean()
    return out, valid


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read ``dn`` (T, 12, H, W) and ``present`` (12,) bool of one file of training data.

    Raises
    ------
    UnsupportedArrayError
        The file is damaged, lacks one of the arrays, or they have other shapes.
    """
    try:
        with np.load(path) as file:
            dn, present = file["dn"], file["present"].astype(bool)
    except Exception as error:  # numpy, zipfile and zlib have no common error; no pickle is read
        raise UnsupportedArrayError(
            f"{path} cannot be read as training data ({type(error).__name__}: {error}): it needs "
            "dn (time, 12, y, x) and present (12,)"
        ) from error
    if dn.ndim != 4 or dn.shape[1] != BANDS or present.shape != (BANDS,):
        raise UnsupportedArrayError(
            f"{path} has dn of shape {dn.shape} and present of shape {present.shape}: training "
            f"needs (time, {BANDS}, y, x) and ({BANDS},)"
        )
    return dn, present
