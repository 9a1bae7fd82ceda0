"""Layers shared by the TerraCodec family, under the reference's parameter names.

Every layer computes in the dtype of its *input*. So the same float32 weights serve the float32
transforms and, with float64 input, ELIC's entropy path (:mod:`tec_zarr.terracodec.ledger`), without
a second copy of the model in memory. Operations after a convolution overwrite its output, because
allocating memory for an image takes as much time as the operation.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "GDN",
    "Attention",
    "AttentionBlock",
    "CheckerboardConv2d",
    "Conv2d",
    "ConvTranspose2d",
    "EntropyBottleneck",
    "GaussianBuffers",
    "Gelu",
    "LowerBound",
    "ResidualBottleneck",
    "TableBuffers",
    "conv",
    "deconv",
    "gaussian_likelihood",
    "quantize",
    "round_ste",
]


class Conv2d(nn.Conv2d):
    """2-D convolution that computes in its input's dtype."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class ConvTranspose2d(nn.ConvTranspose2d):
    """2-D transposed convolution that computes in its input's dtype."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(
            x,
            self.weight.to(x.dtype),
            self.bias.to(x.dtype),
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.output_padding,  # type: ignore[arg-type]
        )


def conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> Conv2d:
    """Make a convolution whose output is `stride` times smaller than its input."""
    return Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> ConvTranspose2d:
    """Make a transposed convolution whose output is `stride` times larger than its input."""
    return ConvTranspose2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, output_padding=stride - 1
    )


class CheckerboardConv2d(Conv2d):
    """5x5 convolution that sees only the cells of the other checkerboard colour.

    Context model of He et al., "Checkerboard Context Model for Efficient Learned Image
    Compression", CVPR 2021.
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 5, padding=2)
        row = torch.arange(5)
        other_colour = ((row[:, None] + row) % 2).float()
        self.register_buffer("mask", other_colour.expand(self.weight.shape).clone())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, (self.weight * self.mask).to(x.dtype), self.bias.to(x.dtype))


class _BoundFunction(torch.autograd.Function):
    """max(x, bound) whose gradient still pulls values below the bound back up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x >= bound)
        return torch.maximum(x, bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return grad * (inside | (grad < 0)), None


class LowerBound(nn.Module):
    """``max(x, bound)``; its gradient still pulls values below the bound back up."""

    bound: Tensor

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor([float(bound)]))

    def forward(self, x: Tensor) -> Tensor:
        return _BoundFunction.apply(x, self.bound.to(x.dtype))


class _NonNegative(nn.Module):
    """The square of a bounded parameter: keeps GDN's parameters non-negative."""

    pedestal: Tensor

    def __init__(self, minimum: float) -> None:
        super().__init__()
        pedestal = 2.0**-36
        self.register_buffer("pedestal", torch.tensor([pedestal]))
        self.lower_bound = LowerBound(math.sqrt(minimum + pedestal))

    def forward(self, x: Tensor) -> Tensor:
        return self.lower_bound(x) ** 2 - self.pedestal


class GDN(nn.Module):
    """Generalised divisive normalisation (Ballé et al. 2016), or its inverse."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_reparam = _NonNegative(1e-6)
        self.gamma_reparam = _NonNegative(0.0)
        pedestal = 2.0**-36
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + pedestal))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + pedestal))

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma_reparam(self.gamma)[:, :, None, None].to(x.dtype)
        norm = F.conv2d(x**2, gamma, self.beta_reparam(self.beta).to(x.dtype))
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class ResidualBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a skip connection (ELIC's residual block)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels // 2, 1, 1)
        self.conv2 = conv(channels // 2, channels // 2, 3, 1)
        self.conv3 = conv(channels // 2, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu_(self.conv2(F.relu_(self.conv1(x))))
        return self.conv3(inner).add_(x)


class ResidualUnit(nn.Module):
    """Residual bottleneck followed by a ReLU, as in Cheng et al. 2020."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv(channels, half, 1, 1),
            nn.ReLU(inplace=True),
            conv(half, half, 3, 1),
            nn.ReLU(inplace=True),
            conv(half, channels, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv(x).add_(x))


class AttentionBlock(nn.Module):
    """Simplified attention of Cheng et al. 2020: a trunk gated by a sigmoid mask."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(ResidualUnit(channels) for _ in range(3)))
        self.conv_b = nn.Sequential(
            *(ResidualUnit(channels) for _ in range(3)), conv(channels, channels, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv_a(x) * self.conv_b(x).sigmoid_()).add_(x)


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, with a straight-through gradient."""
    return x + (torch.round(x) - x).detach()


def quantize(x: Tensor, training: bool) -> Tensor:
    """Add uniform noise in [-1/2, 1/2) when training, round otherwise."""
    return x + torch.rand_like(x) - 0.5 if training else torch.round(x)


def gaussian_likelihood(distance: Tensor, scale: Tensor) -> Tensor:
    """Return the probability of a unit bin at `distance` from the mean of a Gaussian."""
    distance = distance.abs()
    root = math.sqrt(0.5)
    upper = 0.5 * torch.erfc(-root * (0.5 - distance) / scale)
    lower = 0.5 * torch.erfc(-root * (-0.5 - distance) / scale)
    return upper - lower


class TableBuffers(nn.Module):
    """Integer tables that a checkpoint may hold or leave empty; any size can be loaded."""

    TABLES: tuple[str, ...] = ("_offset", "_quantized_cdf", "_cdf_length")
    ALL = (*TABLES, "scale_table")

    _offset: Tensor
    _quantized_cdf: Tensor
    _cdf_length: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("_offset", "_quantized_cdf", "_cdf_length"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.TABLES:
            given = state_dict.get(prefix + name)
            if given is not None:
                setattr(self, name, getattr(self, name).new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


class EntropyBottleneck(TableBuffers):
    """Learned density per channel (Ballé et al. 2018, appendix 6.1), with integer tables.

    The density is a monotone network of widths 1-3-3-3-3-1 per channel. `update` turns it into
    cumulative tables of 16 bits, so that coding uses no floating point.
    """

    target: Tensor
    PRECISION = 16

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (1, 3, 3, 3, 3, 1)
        self.matrices = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.factors = nn.ParameterList()
        slope = 10.0 ** (1 / 5)
        for inputs, outputs in itertools.pairwise(widths):
            start = math.log(math.expm1(1 / slope / outputs))
            self.matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, outputs, 1) - 0.5))
        for width in widths[1:-1]:
            self.factors.append(nn.Parameter(torch.zeros(channels, width, 1)))
        quantiles = torch.tensor([-10.0, 0.0, 10.0])
        self.quantiles = nn.Parameter(quantiles.repeat(channels, 1, 1))
        logit = math.log(2 / 1e-9 - 1)
        self.register_buffer("target", torch.tensor([-logit, 0.0, logit]))
        self.likelihood_lower_bound = LowerBound(1e-9)

    @property
    def medians(self) -> Tensor:
        """Median of every channel, shape (C,)."""
        return self.quantiles[:, 0, 1]

    def _logits(self, x: Tensor, detach: bool = False) -> Tensor:
        """Return the cumulative logits of x, shape (C, 1, n)."""

        def parameter(value: Tensor) -> Tensor:
            return (value.detach() if detach else value).to(x.dtype)

        for layer, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(parameter(matrix)) @ x + parameter(bias)
            if layer < len(self.factors):
                x = x + torch.tanh(parameter(self.factors[layer])) * torch.tanh(x)
        return x

    def likelihood(self, x: Tensor) -> Tensor:
        """Return the probability of the unit bin around x, shape (C, 1, n)."""
        return torch.sigmoid(self._logits(x + 0.5)) - torch.sigmoid(self._logits(x - 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise x (B, C, H, W) about the medians; return it and its likelihoods."""
        channels = x.movedim(1, 0).reshape(x.shape[1], 1, -1)
        medians = self.medians[:, None, None]
        if self.training:
            channels = quantize(channels, True)
        else:
            channels = torch.round(channels - medians) + medians
        likelihood = self.likelihood_lower_bound(self.likelihood(channels))

        def restore(t: Tensor) -> Tensor:
            return t.reshape(x.shape[1], x.shape[0], *x.shape[2:]).movedim(0, 1)

        return restore(channels), restore(likelihood)

    def quantile_loss(self) -> Tensor:
        """Return the auxiliary loss that moves the quantiles to the tails of the density."""
        return (self._logits(self.quantiles, detach=True) - self.target).abs().sum()

    @torch.no_grad()
    def update(self) -> None:
        """Compute the integer tables from the density, in float64 and always on the CPU."""
        here = copy.deepcopy(self).cpu()
        quantiles = here.quantiles[:, 0].double()
        below = torch.ceil(quantiles[:, 1] - quantiles[:, 0]).clamp(min=0).int()
        above = torch.ceil(quantiles[:, 2] - quantiles[:, 1]).clamp(min=0).int()
        length = below + above + 1
        longest = int(length.max())
        grid = (quantiles[:, 1] - below)[:, None, None] + torch.arange(longest)
        probability = here.likelihood(grid)[:, 0]
        outside = torch.arange(longest) >= length[:, None]
        probability = probability.masked_fill(outside, 0.0)
        tail = (1.0 - probability.sum(1)).clamp(min=0.0)
        cdf = torch.zeros(len(length), longest + 2, dtype=torch.int32)
        for channel, n in enumerate(length.tolist()):
            weights = torch.cat([probability[channel, :n], tail[channel, None]])
            cdf[channel, 1 : n + 2] = _cumulative(weights, 1 << self.PRECISION)
        self._quantized_cdf = cdf
        self._offset = -below
        self._cdf_length = length + 2


def _cumulative(weights: Tensor, total: int) -> Tensor:
    """Return cumulative integer frequencies, each at least 1, that add up to `total`."""
    room = total - len(weights)
    frequency = 1 + torch.floor(weights / weights.sum() * room).int()
    frequency[int(frequency.argmax())] += total - int(frequency.sum())
    return frequency.cumsum(0).int()


class GaussianBuffers(TableBuffers):
    """Buffers of the reference's Gaussian conditional (ELIC).

    Streams of this package use the tables of :mod:`tec_zarr.terracodec.gaussian_tables` instead.
    """

    TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_table", torch.empty(0))
        self.register_buffer("scale_bound", torch.tensor([0.11]))
        self.likelihood_lower_bound = LowerBound(1e-9)
        self.lower_bound_scale = LowerBound(0.11)

    def forward(self, y: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise y about the means (straight through); return it and its likelihoods."""
        noisy = y - means + torch.rand_like(y) - 0.5 if self.training else torch.round(y - means)
        likelihood = gaussian_likelihood(noisy, self.lower_bound_scale(scales))
        return round_ste(y - means) + means, self.likelihood_lower_bound(likelihood)


class Gelu(nn.Module):
    """The exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the normal distribution at x."""
        return F.gelu(x)


class Attention(nn.Module):
    """Scaled dot-product attention."""

    def keys(self, x: Tensor) -> Tensor:
        """Return the keys for `forward` from their projections (B, heads, n, d)."""
        return x

    def values(self, x: Tensor) -> Tensor:
        """Return the values for `forward` from their projections (B, heads, n, d)."""
        return x

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention of queries (B, heads, m, d) to keys and values (B, heads, n, d)."""
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
