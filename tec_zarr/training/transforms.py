"""Make the fixed transforms of a weights file of the tile model. Only training uses them.

A lapped transform is a small matrix across each block boundary, then a discrete cosine transform
of the blocks (Tran, Liang and Tu, "Lapped transform via time-domain pre- and post-filtering", IEEE
Trans. Signal Processing 51(6), 2003). The matrix maximises the coding gain on a first-order
autoregressive signal.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from tec_zarr.sentinel2 import L1C_BANDS, L2A_BANDS
from tec_zarr.training.weights import GAIN_FACTORS, USUAL_BANDS

_CORRELATION = 0.95
_BLOCKS = 5


def dct(size: int) -> np.ndarray:
    """Return the orthonormal cosine transform; entry (u, i) is frequency u at sample i."""
    u, i = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * (2 * i + 1) * u / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def _analysis(size: int, overlap: np.ndarray, blocks: int = _BLOCKS) -> np.ndarray:
    full = np.eye(size * blocks)
    for b in range(1, blocks):
        at = slice(b * size - size // 2, b * size + size // 2)
        full[at, at] = overlap
    return np.kron(np.eye(blocks), dct(size)) @ full


def overlap(size: int, rounds: int = 400) -> np.ndarray:
    """Return the matrix across a boundary, fitted by gradient descent on the coding gain."""
    half, length = size // 2, size * _BLOCKS
    one, turned = np.eye(half), np.eye(half)[::-1]
    butterfly = torch.from_numpy(np.block([[one, turned], [turned, -one]]) / np.sqrt(2))
    places = np.arange(length)
    signal = torch.from_numpy(_CORRELATION ** np.abs(np.subtract.outer(places, places)))
    blocks = torch.from_numpy(np.kron(np.eye(_BLOCKS), dct(size)))
    middle = slice(2 * size, 3 * size)

    def full(free: Tensor) -> Tensor:
        same = torch.eye(half, dtype=torch.float64)
        return butterfly @ torch.block_diag(same, free) @ butterfly

    free = (1.2 * torch.eye(half, dtype=torch.float64)).requires_grad_()
    adam = torch.optim.Adam([free], 0.02)
    edge = torch.eye(half, dtype=torch.float64)
    for _ in range(rounds):
        analysis = blocks @ torch.block_diag(edge, *[full(free)] * (_BLOCKS - 1), edge)
        spread = torch.diagonal(analysis @ signal @ analysis.T)[middle]
        norms = (torch.linalg.inv(analysis) ** 2).sum(0)[middle]
        loss = torch.log(spread * norms).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return full(free.detach()).numpy()


def gains(size: int, matrix: np.ndarray, kind: str | None, cells: int) -> np.ndarray:
    """Return the norm of the line of pixels that a unit coefficient of each frequency adds.

    Parameters
    ----------
    kind : str or None
        How values of level 1 become pixels: "repeated" or "bilinear". None at level 0.
    cells : int
        Number of values of the plane whose mean is one native value.
    """
    synthesis = np.linalg.inv(_analysis(size, matrix))
    length = size * _BLOCKS
    if cells > 1:  # the mean of sliding cells stands for the mean over all phases
        kernel = np.ones(cells) / cells
        synthesis = np.stack([np.convolve(c, kernel, "same") for c in synthesis.T], axis=1)
    if kind is not None:
        up = np.zeros((2 * length, length))
        for i in range(2 * length):
            if kind == "repeated" or cells > 1:
                up[i, i // 2] = 1
            else:
                place = (i + 0.5) / 2 - 0.5
                low = int(np.floor(place))
                up[i, max(low, 0)] += 1 - (place - low)
                up[i, min(low + 1, length - 1)] += place - low
        synthesis = up @ synthesis
    found = np.sqrt((synthesis**2).sum(axis=0))[2 * size : 3 * size]
    return np.maximum(found, 0.05 * found.max())


def usual_bases(tiles: Iterable[np.ndarray]) -> np.ndarray:
    """Return the tensor `usual_bases`: of each common set of bands, the usual principal components.

    The covariance of the means of blocks is averaged over tiles, each divided by its trace.

    Parameters
    ----------
    tiles : iterable of ndarray, (1, bands, h, w)
        DN. Only tiles with the twelve bands of L2A count.
    """
    side, total = 16, np.zeros((len(L2A_BANDS), len(L2A_BANDS)))
    for tile in tiles:
        height, width = (n // side for n in tile.shape[2:])
        if tile.shape[1] != len(L2A_BANDS) or height * width < 2 * len(L2A_BANDS):
            continue
        blocks = tile[0, :, : side * height, : side * width].astype(np.float64)
        means = blocks.reshape(-1, height, side, width, side).mean(axis=(2, 4))
        covariance = np.cov(means.reshape(len(L2A_BANDS), -1))
        total += covariance / np.trace(covariance)
    out = np.zeros((len(USUAL_BANDS), len(L1C_BANDS), len(L1C_BANDS)))
    for basis, bands in zip(out, USUAL_BANDS, strict=True):
        known = [i for i, band in enumerate(bands) if band in L2A_BANDS]  # no B10 in training
        at = [L2A_BANDS.index(bands[i]) for i in known]
        vectors = np.linalg.eigh(total[np.ix_(at, at)])[1][:, ::-1]
        vectors *= np.where(vectors.sum(axis=0) < 0, -1, 1)
        basis[np.ix_(known, range(len(known)))] = vectors
        for k, i in enumerate(sorted(set(range(len(bands))) - set(known))):
            basis[i, len(known) + k] = 1
    return np.rint(out.reshape(-1, len(L1C_BANDS)) * 2**24).astype(np.int32)


def fixed_tensors() -> dict[str, np.ndarray]:
    """Return the tensors of a weights file that training does not change."""
    out: dict[str, np.ndarray] = {}
    for size in (8, 16):
        across = overlap(size)
        out[f"overlap.{size}"], out[f"dct.{size}"] = across, dct(size)
        back = np.linalg.inv(across)
        out[f"overlap_back.{size}"] = np.rint(back * 2**14).astype(np.int32)
        out[f"dct_back.{size}"] = np.rint(dct(size) * 2**14).astype(np.int32)
        for kind in (None,) if size == 16 else ("repeated", "bilinear"):
            table = [gains(size, across, kind, cells) for cells in range(1, GAIN_FACTORS + 1)]
            name = f"gain.{size}" if kind is None else f"gain.{size}.{kind}"
            out[name] = np.rint(np.stack(table) * 2**16).astype(np.int32)
    return out
