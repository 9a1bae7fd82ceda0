"""FlexTEC: TEC-TT with Latent Repacking and a quality chosen per date (1 to 16 tokens)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tec_zarr.models.tokens import TOKENS
from tec_zarr.terracodec.layers import round_ste
from tec_zarr.terracodec.tt import TemporalTransformer, bits_of

__all__ = ["FlexTEC"]


class FlexTEC(TemporalTransformer):
    """FlexTEC of TerraCodec 1.0; parameters as for `TemporalTransformer`.

    Token i of a window holds the i-th of 16 channel slices of all its cells, so that the
    first k tokens are a coarse version of the whole window. Trained with k drawn with
    P(k) = k / 136 and the tokens from k on replaced by learned mask tokens.
    """

    FLEXIBLE = True

    def forward(  # type: ignore[override]
        self, series: Tensor, quality: int | Sequence[int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Reconstruct a series from the first `quality` tokens of every window.

        Parameters
        ----------
        series : Tensor, shape (B, T, C, H, W), (T, C, H, W) or (C, H, W)
            Standardised reflectance; H and W multiples of 16.
        quality : int or sequence of int, optional
            Tokens kept, 1 to 16, of all dates or of each. None draws one k for all dates,
            as in training.

        Returns
        -------
        reconstruction : Tensor, shape (B, T, C, H, W)
        bits : list of int
            Estimated bits of every date, over the batch; only kept tokens count.
        """
        series = series.reshape(-1, *series.shape[-4:]) if series.ndim > 3 else series[None, None]
        dates = list(self.dates(series, quality))
        bits = [int(rate.sum().item()) for _, rate in dates]
        return torch.stack([image for image, _ in dates], dim=1), bits

    def dates(  # type: ignore[override]
        self, series: Tensor, quality: int | Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Reconstruction and rate in bits of every date, with mask tokens from `quality` on."""
        found = self.likelihoods(series, quality)
        return ((image, bits_of(likelihood, len(image))) for image, likelihood in found)

    def likelihoods(  # type: ignore[override]
        self, series: Tensor, quality: int | Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As `dates`, with the likelihoods of the tokens that are kept."""
        if quality is None:
            quality = draw_quality()
        kept = [quality] * series.shape[1] if isinstance(quality, int) else list(quality)
        model = self.entropy_model
        contexts = self.contexts()
        for image, k in zip(series.unbind(1), kept, strict=True):
            latent = self.analyse(image)
            size = latent.shape[-2:]
            tokens = model.tokens(latent)
            means, raw, features = model.predict(round_ste(tokens), contexts.joint())
            quantised, likelihood = model.bottleneck(tokens, means, raw)
            masked = (torch.arange(TOKENS, device=tokens.device) >= k)[:, None]
            shown = torch.where(masked, model.mask_token, quantised)
            hints = torch.where(masked, model.z_cur_mask_token, features)
            image = self.synthesise(model.join(shown, *size), model.join(hints, *size))
            yield image, likelihood[:, :k]
            # Teacher forcing: the next date's context has all tokens, as in training.
            latent_q = model.join(quantised, *size)
            contexts.push(latent_q.detach() if contexts.empty else latent_q)


def draw_quality() -> int:
    """Draw a number of tokens with P(k) = k / 136, as FlexTEC is trained."""
    weights = torch.arange(1, TOKENS + 1, dtype=torch.float32)
    return int(torch.multinomial(weights, 1)) + 1
