"""Pixels to latents and back: analysis, synthesis, and the overlap of blocks between them.

The analysis runs in the whole numbers of :mod:`tec_zarr.terracodec.exact`: the same function as the
analysis of :meth:`~tec_zarr.networks.image_net.S2Net.analyse`, which is for training. Decoding does
not need it to be exact, but then the same pixels give the same bytes on every machine, so that
stores can be compared by hash, and int8 products are faster than float32.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr.models import klt
from tec_zarr.models.constants import BLOCK, CHANNELS, MEAN_GRID
from tec_zarr.networks.image_net import S2Net
from tec_zarr.terracodec.exact import ExactLinear

HALF = BLOCK // 2


class Analysis:
    """Encoder of an :class:`S2Net`, for single dates and without gradients.

    Parameters
    ----------
    net : S2Net
    transform : (320, 12 * 64) Tensor
        From the samples of a block, component by component, to latents in DN.
    """

    def __init__(self, net: S2Net, transform: Tensor) -> None:
        self.net = net
        encoder = net.encoder
        self.transform = ExactLinear(_layer(transform.float()))
        self.first = ExactLinear(_layer(encoder.first.weight, encoder.first.bias))
        convolutions: Any = [conv for block in encoder.blocks for conv in block.children()]
        self.convolutions = [ExactLinear(_layer(c.weight, c.bias)) for c in convolutions]
        self.last = ExactLinear(_layer(encoder.last.weight, encoder.last.bias))

    def of(self, transform: Tensor) -> Analysis:
        """The same analysis of samples in another form: another transform, the same correction."""
        other = copy.copy(self)
        other.transform = ExactLinear(_layer(transform.float()))
        return other

    @torch.inference_mode()
    def __call__(self, blocks: Tensor, quality: Tensor, condition: Tensor, columns: int) -> Tensor:
        """Latents (P, 320) float32, in steps.

        Parameters
        ----------
        blocks : (P, 12 * 64) Tensor
            Samples of lapped blocks in DN, row by row of blocks.
        quality : (1,) float64 Tensor
        condition : (1, 13) Tensor
        columns : int
            Blocks in a row.
        """
        steps = self.net.steps(quality)[0, :, 0, 0].float()
        linear = self.transform(blocks.float()).div_(steps)
        return self._correction(linear, condition, columns).add_(linear)

    def _correction(self, linear: Tensor, condition: Tensor, columns: int) -> Tensor:
        layer = self.net.encoder.condition
        bias = F.linear(condition.double() / 16, layer.weight.double(), layer.bias.double())
        companded = linear.mul(4.0).div_(linear.abs().add_(8.0))
        hidden = self.first(companded).add_(bias.float())
        near = _neighbours(len(linear) // columns, columns)
        for one, two in zip(self.convolutions[::2], self.convolutions[1::2], strict=True):
            inner = _convolved(F.leaky_relu(hidden, 0.1), one, near)
            hidden = _convolved(F.leaky_relu_(inner, 0.1), two, near).add_(hidden)
        return self.last(F.leaky_relu_(hidden, 0.1))


def _layer(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A convolution, or a matrix, as a linear layer of the taps side by side."""
    matrix = weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)
    layer = nn.Linear(matrix.shape[1], len(matrix))
    with torch.no_grad():
        layer.weight.copy_(matrix)
        layer.bias.copy_(torch.zeros(len(matrix)) if bias is None else bias)
    return layer


def _convolved(image: Tensor, layer: ExactLinear, near: Tensor) -> Tensor:
    """A 3 x 3 convolution of positions (P, C), zeros outside."""
    digits, exponent = layer.digits(image.reshape(1, -1))
    grid = F.pad(digits.view(2, -1, image.shape[1]), (0, 0, 0, 1))  # a row of zeros at the end
    rows = grid.index_select(1, near).view(-1, len(layer.columns[0]))
    return layer.of_digits(rows, exponent, image.new_empty(len(image), len(layer.bias)))


@lru_cache(maxsize=4)
def _neighbours(rows: int, columns: int) -> Tensor:
    """Positions (9 P,) of each position's neighbours; outside: P."""
    inside = torch.arange(rows * columns).view(1, 1, rows, columns).double()
    padded = F.pad(inside, (1, 1, 1, 1), value=rows * columns)
    return F.unfold(padded, 3)[0].T.int().flatten()


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


class Synthesis:
    """The synthesis of an :class:`S2Net`, for single dates and without gradients."""

    def __init__(self, net: S2Net):
        self.net = net
        # With latents in 1/16 step: 4 y / (8 + |y|) = 4 u / (128 + |u|), and the 4 is exact here.
        self.first = (4.0 * net.decoder.first.weight.detach()).contiguous()
        self.last = net.decoder.last.weight.detach()[:, :, 0, 0]
        #: Chunks of one archive share a quality, or few.
        self._at = lru_cache(maxsize=8)(self._prepare)

    def _prepare(self, quality: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps (320,) in DN; rows of samples for latents, hidden units and their bias."""
        steps = self.net.steps(torch.tensor([quality]))[0, :, 0, 0]
        matrix = self.net.synthesis.detach() * steps
        return steps, matrix / MEAN_GRID, matrix @ self.last, matrix @ self.net.decoder.last.bias

    @torch.inference_mode()
    def __call__(
        self,
        latents: np.ndarray,
        channels: int,
        quality: float,
        condition: Tensor,
        spectral: klt.Klt,
        out: np.ndarray,
    ) -> None:
        """Write float32 DN into ``out`` (C, h, w).

        Parameters
        ----------
        latents : (P, 320) int32 ndarray
            In 1/16 step, block by block; zero from channel ``channels`` on.
        condition : (1, 13) float32 Tensor
        """
        count, height, width = out.shape
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        used = spectral.used
        steps, by_latent, by_hidden, bias = self._at(quality)
        units = torch.from_numpy(latents)[:, :channels].float()
        hidden = self._hidden(units, condition, rows, columns)
        size = used * BLOCK * BLOCK
        if channels < CHANNELS:
            # Few latents: never make the channels that only the correction fills.
            inputs = torch.cat([units, hidden], 1)
            matrix = torch.cat([by_latent[:size, :channels], by_hidden[:size]], 1)
            blocks = _linear(inputs, matrix, bias[:size], rows)
        else:
            last = self.net.decoder.last
            corrected = _linear(hidden, self.last * steps[:, None], last.bias * steps, rows)
            corrected.addcmul_(units, steps / MEAN_GRID)
            blocks = _linear(corrected, self.net.synthesis[:size], None, rows)
        image, inside = with_margin(used, rows, columns, torch.float32)
        blocks = blocks.view(rows, columns, used, BLOCK, BLOCK)
        blocks_of(inside).copy_(blocks.permute(2, 0, 3, 1, 4))
        overlapped(image, self.net.synthesis_overlap)
        # The mean is a component that is one everywhere. NumPy multiplies, whatever precision a
        # process lets torch's products have: means are large.
        components = np.empty((used + 1, height, width), np.float32)
        components[:used] = inside[:, :height, :width].numpy()
        components[used] = 1.0
        basis = np.column_stack([spectral.basis[:, :used], spectral.mean]).astype(np.float32)
        values = torch.from_numpy(out).view(count, -1).numpy()
        np.matmul(basis, components.reshape(used + 1, -1), out=values)

    def _hidden(self, units: Tensor, condition: Tensor, rows: int, columns: int) -> Tensor:
        """The decoder's correction before its last layer, (P, 96)."""
        decoder = self.net.decoder
        size = units.abs().add_(8 * MEAN_GRID)
        companded = torch.div(units, size, out=size)
        bias = decoder.first.bias + decoder.condition(condition / 16.0)[0]
        first = self.first[:, : units.shape[1], 0, 0]
        hidden = _linear(companded, first, bias, rows).view(1, rows, columns, -1)
        hidden = hidden.permute(0, 3, 1, 2)
        for one, two in decoder.blocks:
            inner = F.conv2d(F.leaky_relu(hidden, 0.1), one.weight, one.bias, padding=1)
            inner = F.conv2d(F.leaky_relu_(inner, 0.1), two.weight, two.bias, padding=1)
            hidden = inner.add_(hidden)
        return F.leaky_relu_(hidden, 0.1).permute(0, 2, 3, 1).reshape(rows * columns, -1)


def _linear(inputs: Tensor, matrix: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """``inputs`` (P, K) times the transpose of ``matrix`` (N, K), plus ``bias``.

    As a convolution over ``rows`` images: on some processors torch's matrix product takes twice
    to four times as long.
    """
    images = inputs.view(rows, -1, 1, inputs.shape[1]).permute(0, 3, 1, 2)
    out = F.conv2d(images, matrix[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(len(inputs), -1)
