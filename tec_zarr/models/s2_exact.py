"""The synthesis of ``tec-s2`` in fixed point: the same integers on every machine.

For bounded and lossless arrays a reconstruction that moves by one DN between machines is no base to
correct.  Weights are rounded to 2**-18 and every intermediate result to 2**-14 (2**-8 where it is
in DN), so that float64 holds all sums exactly: below 2**53 units, in whatever order they are
added.  It differs from the float32 synthesis by rounding alone (hundredths of a DN) and takes a
few times as long.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tec_zarr.models import klt
from tec_zarr.models.s2_net import BLOCK, Correction, S2Net, overlap

_WEIGHTS, _ACTIVATIONS, _STEPS, _DN, _BASIS = 18, 14, 10, 8, 20


def snap(x: Tensor, bits: int) -> Tensor:
    """Round half up to multiples of 2**-bits."""
    return torch.floor(x * 2.0**bits + 0.5) / 2.0**bits


def _leaky(x: Tensor) -> Tensor:
    return snap(torch.where(x > 0, x, 0.1 * x), _ACTIVATIONS)


class ExactSynthesis:
    """Latents to whole DN, by the parameters of ``net`` on their grid."""

    def __init__(self, net: S2Net):
        def weight(x: Tensor) -> Tensor:
            return snap(x.detach().double(), _WEIGHTS)

        decoder: Correction = net.decoder
        self.first = weight(decoder.first.weight[:, :, 0, 0]), weight(decoder.first.bias)
        self.condition = weight(decoder.condition.weight), weight(decoder.condition.bias)
        self.blocks = [
            [(weight(conv.weight).flatten(1), weight(conv.bias)) for conv in pair]
            for pair in decoder.blocks
        ]
        self.last = weight(decoder.last.weight[:, :, 0, 0]), weight(decoder.last.bias)
        self.synthesis = weight(net.synthesis)
        self.overlap = weight(net.synthesis_overlap)

    @torch.inference_mode()
    def pixels(
        self,
        steps: Tensor,
        channel_step: Tensor,
        condition: Tensor,
        spectral: klt.Klt,
        shape: tuple[int, ...],
    ) -> np.ndarray:
        """int32 DN of ``shape`` (C, h, w).

        Parameters
        ----------
        steps : (positions, 320) float64 Tensor
            Latents in quantiser steps, on their 1/16 grid.
        channel_step : (320,) float64 Tensor
            Quantiser step of each channel, DN.
        condition : (1, 13) float64 Tensor
            Whole numbers.
        """
        _, height, width = shape
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        used = spectral.used
        values = snap(steps + self._correction(steps, condition, rows, columns), _ACTIVATIONS)
        values = snap(values * snap(channel_step, _STEPS), _DN)
        blocks = snap(values @ self.synthesis[: used * BLOCK * BLOCK].T, _DN)
        folded = blocks.view(rows, columns, used, BLOCK, BLOCK).permute(2, 0, 3, 1, 4)
        image = folded.reshape(used, rows * BLOCK, columns * BLOCK)
        image = overlap(image, self.overlap, lambda x: snap(x, _DN))[:, :height, :width]
        basis = snap(torch.from_numpy(spectral.basis[:, :used]), _BASIS)
        pixels = basis @ image.reshape(used, -1) + torch.from_numpy(spectral.mean)[:, None]
        return torch.floor(pixels + 0.5).to(torch.int32).view(shape).numpy()

    def _correction(self, steps: Tensor, condition: Tensor, rows: int, columns: int) -> Tensor:
        bias = snap(F.linear(condition / 16.0, *self.condition), _ACTIVATIONS)
        hidden = snap(4.0 * steps / (8.0 + steps.abs()), _ACTIVATIONS)
        hidden = snap(F.linear(hidden, *self.first), _ACTIVATIONS) + bias
        for one, two in self.blocks:
            inner = _leaky(self._conv(_leaky(hidden), one, rows, columns))
            hidden = hidden + self._conv(inner, two, rows, columns)
        return snap(F.linear(_leaky(hidden), *self.last), _ACTIVATIONS)

    @staticmethod
    def _conv(x: Tensor, layer: tuple[Tensor, Tensor], rows: int, columns: int) -> Tensor:
        """3 x 3 convolution as one matrix product, which no library may reorder into fractions."""
        image = x.T.reshape(1, -1, rows, columns)
        neighbours = F.unfold(image, 3, padding=1)[0].T
        return snap(F.linear(neighbours, *layer), _ACTIVATIONS)
