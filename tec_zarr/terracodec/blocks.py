"""Building blocks of TEC-TT and FlexTEC, with the names of the reference's checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tec_zarr.terracodec.layers import (
    Attention,
    Gelu,
    LowerBound,
    TableBuffers,
    conv,
    gaussian_likelihood,
    round_ste,
)

SCALE_MIN, SCALE_MAX, SCALE_LEVELS, MEAN_LEVELS = 0.01, 256.0, 256, 100
"""Grid of the reference's bottleneck: log-spaced scales and 100 fractional means."""


EPSILON = 1e-6  # of the layer normalisations


def verysoftplus(x: Tensor) -> Tensor:
    """Return 1 + x above zero and 1 / (1 - x) below: positive, with slope 1 at zero."""
    return torch.where(x > 0, 1 + x.clamp(min=0), 1 / (1 - x.clamp(max=0)))


def scale_of(raw: Tensor) -> Tensor:
    """Return the scale of a network output `raw`; it is above 0.01."""
    return verysoftplus(raw) + SCALE_MIN


def scale_grid_position(scale: Tensor) -> Tensor:
    """Return the continuous position of a scale on the log grid of 256 levels, 0.01 to 256.01."""
    span = math.log(SCALE_MAX / SCALE_MIN + 1)
    return torch.log(scale / SCALE_MIN) * ((SCALE_LEVELS - 1) / span)


class _ScaleShiftBuffers(TableBuffers):
    """Buffers of the reference's bottleneck.

    Streams of this package use the tables of :mod:`tec_zarr.terracodec.gaussian_tables` instead.
    """

    TABLES = (
        "_offset",
        "_quantized_cdf",
        "_cdf_length",
        "_indexes_table",
        "_prior_mean",
        "_prior_scale",
    )

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale_bound", torch.tensor([SCALE_MIN]))
        for name in ("_indexes_table", "_prior_mean", "_prior_scale"):
            self.register_buffer(name, torch.empty(0))
        self.likelihood_lower_bound = LowerBound(1e-9)
        self.lower_bound_scale = LowerBound(SCALE_MIN)
        self.lower_bound_zero = LowerBound(0.0)
        self.upper_bound_mean = LowerBound(-(MEAN_LEVELS - 1.0))
        self.upper_bound_scale = LowerBound(-(SCALE_LEVELS - 1.0))

    def bounded(self, position: Tensor, upper: LowerBound) -> Tensor:
        """Clip positions to the ends of a grid; the gradient still pulls them back inside."""
        return -upper(-self.lower_bound_zero(position))


class Bottleneck(nn.Module):
    """Codes ``x - round(mean)`` with a Gaussian at ``mean - round(mean)``."""

    def __init__(self) -> None:
        super().__init__()
        self._entropy_model = _ScaleShiftBuffers()

    def forward(self, x: Tensor, means: Tensor, raw_scales: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantised x and its likelihoods, as the reference's forward does."""
        model = self._entropy_model
        base = round_ste(means)
        position = scale_grid_position(scale_of(raw_scales))
        if not self.training:
            position = torch.round(position)
        level = model.bounded(position, model.upper_bound_scale)
        span = math.log(SCALE_MAX / SCALE_MIN + 1)
        scales = torch.exp(level * (span / (SCALE_LEVELS - 1))) * SCALE_MIN
        fraction = model.bounded((means - base + 0.5) * MEAN_LEVELS, model.upper_bound_mean)
        centred = x - base
        noisy = centred + torch.rand_like(x) - 0.5 if self.training else torch.round(centred)
        likelihood = gaussian_likelihood(noisy - (fraction / MEAN_LEVELS - 0.5), scales)
        return round_ste(centred) + base, model.likelihood_lower_bound(likelihood)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = _linear(width, width)
        self.k = _linear(width, width)
        self.v = _linear(width, width)
        self.proj = _linear(width, width)
        self.attention = Attention()

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of x (B, n, d), each (B, heads, n, d / heads)."""
        keys = self.attention.keys(self._split(self.k(x)))
        return keys, self.attention.values(self._split(self.v(x)))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
        """Return the attention of queries x (B, m, d).

        With `causal`, the last m keys are those of x, and a query sees no key after its own.
        """
        queries = self._split(self.q(x))
        mask = None
        if causal and x.shape[1] > 1:
            shape = (x.shape[1], keys.shape[2])
            mask = torch.ones(shape, dtype=torch.bool, device=x.device)
            mask = mask.tril(keys.shape[2] - x.shape[1])
        if len(keys) != len(queries):  # all windows share one context window
            keys = keys.expand(len(queries), -1, -1, -1)
            values = values.expand(len(queries), -1, -1, -1)
        out = self.attention(queries, keys, values, mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.fc1 = _linear(width, expansion * width)
        self.fc2 = _linear(expansion * width, width)
        self.gelu = Gelu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Attention, MLP, attention, MLP; in a decoder the second attention sees the context."""

    def __init__(self, width: int, heads: int, causal_tokens: int | None = None) -> None:
        super().__init__()
        if causal_tokens is not None:
            mask = torch.ones(causal_tokens, causal_tokens, dtype=torch.bool).triu(1)
            self.register_buffer("look_ahead_mask", mask)
        self.norm1a = nn.LayerNorm(width, eps=EPSILON)
        self.norm1b = nn.LayerNorm(width, eps=EPSILON)
        self.norm2a = nn.LayerNorm(width, eps=EPSILON)
        self.norm2b = nn.LayerNorm(width, eps=EPSILON)
        self.self_attention = _Attention(width, heads)
        self.cross_attention = _Attention(width, heads)
        self.mlp1 = _MLP(width, 4)
        self.mlp2 = _MLP(width, 4)

    def encode(self, x: Tensor) -> Tensor:
        seen = self.norm1a(x)
        x = x + self.self_attention.attend(seen, *self.self_attention.keys_values(seen))
        x = x + self.mlp1(self.norm1b(x))
        seen = self.norm2a(x)
        x = x + self.cross_attention.attend(seen, *self.cross_attention.keys_values(seen))
        return x + self.mlp2(self.norm2b(x))

    def decode(self, x: Tensor, cache: BlockCache) -> Tensor:
        seen = self.norm1a(x)
        keys, values = cache.extend(*self.self_attention.keys_values(seen))
        x = x + self.self_attention.attend(seen, keys, values, causal=True)
        x = x + self.mlp1(self.norm1b(x))
        x = x + self.cross_attention.attend(self.norm2a(x), *cache.context)
        return x + self.mlp2(self.norm2b(x))


@dataclass
class BlockCache:
    """Keys and values of one decoder block, for the context and for the tokens so far."""

    context: tuple[Tensor, Tensor]
    own: tuple[Tensor, Tensor] | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.own is not None:
            keys = torch.cat([self.own[0], keys], dim=2)
            values = torch.cat([self.own[1], values], dim=2)
        self.own = keys, values
        return self.own


class Stack(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, causal: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {f"encoder_layer_{i}": _Block(width, heads, causal) for i in range(layers)}
        )

    @property
    def blocks(self) -> list[_Block]:
        return cast("list[_Block]", list(self.layers.values()))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block.encode(x)
        return x


class Position(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self._pos = nn.Parameter(torch.randn(1, tokens, width) * 0.02)

    def at(self, start: int, stop: int) -> Tensor:
        return self._pos[:, start:stop]


class StartSymbol(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sym = nn.Parameter(torch.rand(channels) * 6 - 3)


class ChannelConstant(nn.Module):
    """Learned constant per channel that replaces the date before the first one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, channels, 1, 1))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.constant_(layer.bias, 0.01)
    return layer


def head_of(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, width),
        nn.LeakyReLU(),
        nn.Linear(width, channels),
    )


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, 1)
        self.conv2 = conv(channels, channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))))


class Dequantizer(nn.Module):
    """Makes latents for the synthesis: quantised ones plus a function of decoder features."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.process_conv = nn.Sequential(
            conv(width, channels, 1, 1), nn.LeakyReLU(), _ResidualBlock(channels)
        )

    def forward(self, latent_q: Tensor, features: Tensor) -> Tensor:
        return latent_q + self.process_conv(features)
