"""Starting point of the default model: a lapped transform and PCA in closed form.

Trained from random numbers a transform needs days; from here it beats JPEG 2000 before step one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tec_zarr.models.constants import BLOCK, CHANNELS, COMPONENTS, SCALE_OFFSET
from tec_zarr.networks.image_net import S2Net, overlap
from tec_zarr.training.data import Sampler

#: Distortion (DN) at which the transform is tuned and channels are chosen: about 44 dB.
TARGET_RMSE = 60.0


def _unit_noise(matrix: Tensor) -> Tensor:
    """Scale so that white latent noise keeps its power through the inverse."""
    return matrix * (torch.linalg.inv(matrix).square().sum() / BLOCK).sqrt()


def _blocks(x: Tensor) -> Tensor:
    """(N, K, 8h, 8w) to (N, K, h * w, 64)."""
    n, k, height, width = x.shape
    folded = x.reshape(n, k, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return folded.permute(0, 1, 2, 4, 3, 5).reshape(n, k, -1, BLOCK * BLOCK)


def _bases(blocks: Tensor) -> Tensor:
    """PCA of each component's 8 x 8 blocks, samples weighing the same: (K, 64, 64), sorted."""
    out = []
    for component in blocks.unbind(1):
        weight = 1.0 / (component.square().mean((1, 2), keepdim=True) + 100.0)
        covariance = torch.einsum("nki,nkj->ij", component * weight, component)
        out.append(torch.linalg.eigh(covariance)[1].flip(1))
    return torch.stack(out)


def _mean_rate(blocks: Tensor, bases: Tensor, distortion: float) -> Tensor:
    variance = torch.einsum("nkpi,kij->nkpj", blocks, bases).square().mean(2)
    return torch.log2(1 + variance / distortion).sum((1, 2)).mean()


def tuned_overlap(samples: Tensor, steps: int, seed: int) -> Tensor:
    """Overlap matrix (8, 8) with the least mean Gaussian rate of the blocks at the target error."""
    eye = torch.eye(BLOCK)
    matrix = (eye + 0.15 * (eye - eye.flip(0))).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam([matrix], 6e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    bases = torch.empty(0)
    for step in range(steps):
        unit = _unit_noise(matrix)
        if step % 10 == 0:
            with torch.no_grad():
                bases = _bases(_blocks(overlap(samples, unit)))
        chosen = samples[torch.randperm(len(samples), generator=generator)[:64]]
        loss = _mean_rate(_blocks(overlap(chosen, unit)), bases, TARGET_RMSE**2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return _unit_noise(matrix).detach()


def initialise(net: S2Net, sampler: Sampler, count: int = 400, seed: int = 0) -> None:
    """Set the linear transform, its inverse and the scale prior from ``count`` samples."""
    samples, sigma, _ = sampler.batch(count).rotated()
    matrix = tuned_overlap(samples[:, :6], 3 * count // 4, seed)
    with torch.no_grad():
        blocks = _blocks(overlap(samples, matrix))
        bases = _bases(blocks)
        coefficients = torch.einsum("nkpi,kij->nkpj", blocks, bases)
        variance = coefficients.square().mean(2)  # (N, K, 64)
        value = torch.log2(1 + variance / TARGET_RMSE**2).mean(0).flatten()
        chosen = value.argsort(descending=True)[:CHANNELS]
        component, frequency = chosen // BLOCK**2, chosen % BLOCK**2
        kernel = torch.zeros(CHANNELS, COMPONENTS, BLOCK * BLOCK)
        kernel[torch.arange(CHANNELS), component] = bases[component, :, frequency]
        net.analysis.copy_(kernel.flatten(1))
        net.synthesis.copy_(kernel.flatten(1).T)
        net.analysis_overlap.copy_(matrix)
        net.synthesis_overlap.copy_(torch.linalg.inv(matrix))
        # Scale index = spread of the channel's component (in the condition, quarter octaves over
        # the step) + a constant: how much of that spread falls into this frequency.
        spread = sigma.clamp_min(1.0).square()[:, :, None]
        share = torch.log2((variance + 1.0) / spread).median(0).values.flatten()[chosen]
        net.prior.zero_()
        net.prior[torch.arange(CHANNELS), 1 + component] = 1.0
        net.prior_bias.copy_(4 * (0.5 * share + SCALE_OFFSET))
