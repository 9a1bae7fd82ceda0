"""TEC-FP: convolutional transform and factorised prior (Ballé et al. 2017/2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tec_zarr.terracodec.layers import GDN, EntropyBottleneck, conv, deconv

__all__ = ["FactorizedPrior"]


class FactorizedPrior(nn.Module):
    """TEC-FP of TerraCodec 1.0.

    Parameters
    ----------
    bands : int
        Input bands: 12 (L2A) or 13 (L1C).
    N, M : int
        Width of the transform and number of latent channels. Published: 128, 192.
    """

    def __init__(self, bands: int = 12, N: int = 128, M: int = 192) -> None:
        super().__init__()
        self.config = {"bands": bands, "N": N, "M": M}
        self.entropy_bottleneck = EntropyBottleneck(M)
        self.g_a = nn.Sequential(
            conv(bands, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M)
        )
        self.g_s = nn.Sequential(
            deconv(M, N),
            GDN(N, inverse=True),
            deconv(N, N),
            GDN(N, inverse=True),
            deconv(N, N),
            GDN(N, inverse=True),
            deconv(N, bands),
        )

    @staticmethod
    def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the constructor's arguments off a state dict."""
        width, bands = state["g_a.0.weight"].shape[:2]
        return {"bands": bands, "N": width, "M": state["g_a.6.weight"].shape[0]}

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct standardised images (B, C, H, W), H and W multiples of 16."""
        return self.rate_distortion(x)[0]

    def rate_distortion(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction of x and the rate of each image in bits, shape (B,)."""
        y_hat, likelihood = self.entropy_bottleneck(self.g_a(x))
        return self.g_s(y_hat), -torch.log2(likelihood).sum(dim=(1, 2, 3))
