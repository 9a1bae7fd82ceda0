"""TEC-ELIC: channel-group and checkerboard context with a hyperprior.

He et al., "ELIC", CVPR 2022, in the simplification that the published checkpoints use: a
channel group sees the first and the latest group, not all earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tec_zarr.terracodec.layers import (
    AttentionBlock,
    CheckerboardConv2d,
    EntropyBottleneck,
    GaussianBuffers,
    ResidualBottleneck,
    conv,
    deconv,
    round_ste,
)

__all__ = ["ELIC"]


def _blocks(channels: int) -> list[nn.Module]:
    return [ResidualBottleneck(channels) for _ in range(3)]


class _GroupContext(nn.Module):
    """Means and scales of one channel group from space, channels and hyperprior."""

    def __init__(self, group: int, with_channels: bool, M: int) -> None:
        super().__init__()
        self.context_prediction = CheckerboardConv2d(group, 2 * group)
        self.entropy_parameters = nn.Sequential(
            conv(2 * group * (1 + with_channels) + 2 * M, 2 * M, 1, 1),
            nn.ReLU(),
            conv(2 * M, 512, 1, 1),
            nn.ReLU(),
            conv(512, 2 * group, 1, 1),
        )
        self.y = nn.ModuleDict({"gaussian_conditional": GaussianBuffers()})

    def parameters_at(self, context: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales for the given spatial context and side parameters."""
        means, scales = self.entropy_parameters(torch.cat([context, side], dim=1)).chunk(2, 1)
        return means, scales


class _ChannelGroups(nn.Module):
    def __init__(self, groups: tuple[int, ...], M: int) -> None:
        super().__init__()
        self.channel_context = nn.ModuleDict(
            {
                f"y{k}": nn.Sequential(
                    conv(groups[0] + (groups[k - 1] if k > 1 else 0), 224, 5, 1),
                    nn.ReLU(),
                    conv(224, 128, 5, 1),
                    nn.ReLU(),
                    conv(128, 2 * groups[k], 5, 1),
                )
                for k in range(1, len(groups))
            }
        )
        self.latent_codec = nn.ModuleDict(
            {f"y{k}": _GroupContext(group, k > 0, M) for k, group in enumerate(groups)}
        )


class _Hyperprior(nn.Module):
    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(N)
        self.h_a = nn.Sequential(conv(M, N, 3, 1), nn.ReLU(), conv(N, N), nn.ReLU(), conv(N, N))
        self.h_s = nn.Sequential(
            deconv(N, N),
            nn.ReLU(),
            deconv(N, N * 3 // 2),
            nn.ReLU(),
            conv(N * 3 // 2, 2 * M, 3, 1),
        )


class _LatentCodec(nn.Module):
    """Named as in the published checkpoints: ``y`` (channel groups) and ``hyper``."""

    def __init__(self, groups: tuple[int, ...], N: int, M: int) -> None:
        super().__init__()
        self.groups = groups
        self.y = _ChannelGroups(groups, M)
        self.hyper = _Hyperprior(N, M)

    def group(self, k: int) -> _GroupContext:
        """Context model of channel group k."""
        return cast("_GroupContext", self.y.latent_codec[f"y{k}"])

    def side(self, k: int, decoded: list[Tensor], hyper: Tensor) -> Tensor:
        """Side parameters of group k: the hyperprior's and, from the second, the channels'."""
        if k == 0:
            return hyper
        seen = decoded[0] if k == 1 else torch.cat([decoded[0], decoded[k - 1]], dim=1)
        return torch.cat([self.y.channel_context[f"y{k}"](seen), hyper], dim=1)


def anchors(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Boolean (height, width): the cells coded in the first checkerboard pass."""
    rows = torch.arange(height, device=device)[:, None]
    return (rows + torch.arange(width, device=device)) % 2 == 0


class ELIC(nn.Module):
    """TEC-ELIC of TerraCodec 1.0.

    Parameters
    ----------
    bands : int
        Input bands: 12 (L2A) or 13 (L1C).
    N, M : int
        Width of the transforms and number of latent channels. Published: 128, 192 for
        lambda 2, 10, 40 and 192, 320 for lambda 200.
    groups : tuple of int, optional
        Latent channels per group, by default (16, 16, 32, 64, M - 128).
    """

    def __init__(
        self, bands: int = 12, N: int = 128, M: int = 192, groups: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        groups = tuple(groups or (16, 16, 32, 64, M - 128))
        self.config = {"bands": bands, "N": N, "M": M, "groups": groups}
        self.g_a = nn.Sequential(
            conv(bands, N),
            *_blocks(N),
            conv(N, N),
            *_blocks(N),
            AttentionBlock(N),
            conv(N, N),
            *_blocks(N),
            conv(N, M),
            AttentionBlock(M),
        )
        self.g_s = nn.Sequential(
            AttentionBlock(M),
            deconv(M, N),
            *_blocks(N),
            deconv(N, N),
            AttentionBlock(N),
            *_blocks(N),
            deconv(N, N),
            *_blocks(N),
            deconv(N, bands),
        )
        self.latent_codec = _LatentCodec(groups, N, M)

    @staticmethod
    def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the constructor's arguments off a state dict."""
        width, bands = state["g_a.0.weight"].shape[:2]
        groups: list[int] = []
        while (key := _context_key(len(groups))) in state:
            groups.append(state[key].shape[1])
        return {"bands": bands, "N": width, "M": sum(groups), "groups": tuple(groups)}

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct standardised images (B, C, H, W), H and W multiples of 64."""
        return self.rate_distortion(x)[0]

    def rate_distortion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction of x and the rate of each image in bits, shape (B,)."""
        y = self.g_a(x)
        codec = self.latent_codec
        z = codec.hyper.h_a(y)
        _, z_likelihood = codec.hyper.entropy_bottleneck(z)
        medians = codec.hyper.entropy_bottleneck.medians[:, None, None]
        hyper = codec.hyper.h_s(round_ste(z - medians) + medians)
        first = anchors(y.shape[-2], y.shape[-1], y.device)
        bits = -torch.log2(z_likelihood).sum(dim=(1, 2, 3))
        decoded: list[Tensor] = []
        for k, y_k in enumerate(y.split(codec.groups, dim=1)):
            context = codec.group(k)
            side = codec.side(k, decoded, hyper)
            empty = side.new_zeros(len(y), 2 * y_k.shape[1], *y.shape[-2:])
            means, scales = context.parameters_at(empty, side)
            seen = (round_ste(y_k - means) + means) * first
            late_means, late_scales = context.parameters_at(context.context_prediction(seen), side)
            means = torch.where(first, means, late_means)
            scales = torch.where(first, scales, late_scales)
            y_hat, likelihood = context.y["gaussian_conditional"](y_k, means, scales)
            bits = bits - torch.log2(likelihood).sum(dim=(1, 2, 3))
            decoded.append(y_hat)
        return self.g_s(torch.cat(decoded, dim=1)), bits


def _context_key(k: int) -> str:
    return f"latent_codec.y.latent_codec.y{k}.context_prediction.weight"
