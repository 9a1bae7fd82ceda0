"""The overlap of ``tec-s2``'s blocks on images with a margin, fast on one core."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tec_zarr.models.constants import BLOCK

HALF = BLOCK // 2


def with_margin(count: int, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An image (count, 8 rows + 8, 8 columns + 8) of rows and columns of blocks, and its inside.

    The margin is of zeros; the inside (count, 8 rows, 8 columns) is not set.
    """
    image = torch.empty(count, BLOCK * (rows + 1), BLOCK * (columns + 1), dtype=dtype)
    for edge in (slice(None, HALF), slice(-HALF, None)):
        image[:, edge] = 0.0
        image[:, :, edge] = 0.0
    return image, image[:, HALF:-HALF, HALF:-HALF]


def blocks_of(image: Tensor) -> Tensor:
    """A view (count, rows, 8, columns, 8) of an image's blocks."""
    rows, columns = image.shape[1] // BLOCK, image.shape[2] // BLOCK
    return image.unflatten(1, (rows, BLOCK)).unflatten(3, (columns, BLOCK))


def overlapped(image: Tensor, matrix: Tensor) -> Tensor:
    """Apply an 8 x 8 matrix across every inner block boundary, along columns and rows.

    The same as :func:`~tec_zarr.networks.image_net.overlap`, on an image with a margin, so that
    what is mixed lies in whole blocks. Written over ``image``.
    """
    other = torch.empty_like(image)
    # NumPy's BLAS is several times faster than torch's for so thin a product.
    thin = image.view(-1, BLOCK).numpy(), other.view(-1, BLOCK).numpy()
    np.matmul(thin[0], np.ascontiguousarray(matrix.T.numpy()), out=thin[1])
    edges = slice(None, BLOCK), slice(-BLOCK, None)
    for edge in edges:  # nothing to overlap with
        other[:, :, edge] = image[:, :, edge]
    folded = other.view(-1, BLOCK, other.shape[2])
    torch.bmm(matrix.expand(len(folded), -1, -1), folded, out=image.view(folded.shape))
    for edge in edges:
        image[:, edge] = other[:, edge]
    return image
