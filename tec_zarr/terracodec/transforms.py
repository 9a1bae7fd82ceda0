"""Analysis and synthesis transforms of TEC-TT and FlexTEC (ELIC's, four stages of stride 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tec_zarr.terracodec.layers import AttentionBlock, ResidualUnit, conv, deconv

__all__ = ["Analysis", "Synthesis", "Transform"]


def _units(channels: int) -> list[nn.Module]:
    return [ResidualUnit(channels) for _ in range(3)]


class Analysis(nn.Module):
    """Images (B, bands, H, W) to latents (B, C, H/16, W/16)."""

    def __init__(self, bands: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = channels
        self.transforms = nn.Sequential(
            conv(bands, a),
            *_units(a),
            conv(a, b),
            *_units(b),
            AttentionBlock(b),
            conv(b, c),
            *_units(c),
            conv(c, d),
            AttentionBlock(d),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.transforms(x)


class Synthesis(nn.Module):
    """Latents (B, C, h, w) to images (B, bands, 16 h, 16 w)."""

    def __init__(self, bands: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        a, b, c, d = channels
        self.transforms = nn.Sequential(
            AttentionBlock(d),
            deconv(d, c),
            *_units(c),
            deconv(c, b),
            AttentionBlock(b),
            *_units(b),
            deconv(b, a),
            *_units(a),
            deconv(a, bands),
        )

    def forward(self, y: Tensor) -> Tensor:
        return self.transforms(y)


class Transform(nn.Module):
    """The pair, under the reference's names.

    Parameters
    ----------
    bands : int
        Input bands.
    channels : tuple of four int
        Widths of the four stages. Published: (128, 160, 192, 192).
    """

    def __init__(self, bands: int, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.analysis_transform = Analysis(bands, channels)
        self.synthesis_transform = Synthesis(bands, channels)

    @staticmethod
    def channels_of(state: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
        """Widths of the four stages, from a state dict."""
        stem = f"{prefix}analysis_transform.transforms."
        return tuple(state[f"{stem}{i}.weight"].shape[0] for i in (0, 4, 9, 13))
