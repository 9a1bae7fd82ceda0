"""Pixels from decoded ``tec-s2`` latents, fast on one core.

The same function as :meth:`~tec_zarr.networks.image_net.S2Net.synthesise`, which is for training,
with what depends on the weights and the quality alone prepared, silent channels and components left
out, and no copy of an image that can be avoided.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tec_zarr.models import klt
from tec_zarr.models.constants import BLOCK, CHANNELS, MEAN_GRID
from tec_zarr.networks.image_net import S2Net
from tec_zarr.networks.overlap import blocks_of, overlapped, with_margin


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
