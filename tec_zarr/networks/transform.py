"""Latents from components and pictures, in the whole numbers of :mod:`tec_zarr.terracodec.exact`.

The same function as the analysis of :meth:`~tec_zarr.networks.image_net.S2Net.analyse`, which is
for training. Decoding does not need it to be exact, but then the same pixels give the same bytes on
every machine, so that stores can be compared by hash, and int8 products are faster than float32.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr.networks.image_net import S2Net
from tec_zarr.terracodec.exact import ExactLinear


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
