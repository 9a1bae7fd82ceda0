"""Masked inference: TEC-TT predicts what clouds hide, from what it saw before.

The reference predicts cloudy tokens too, but takes the features of clear tokens from a pass
that saw the cloudy latents, and its analysis transform spreads a cloud over the clear cells
around it. Here cloudy pixels are replaced by the prediction of the date before ahead of the
analysis, and the tokens go through the decoder once, in order, each cloudy one replaced by its
predicted mean before the next is looked at: no value under a cloud reaches anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tec_zarr.models.tokens import TOKENS
from tec_zarr.terracodec.tt import TemporalTransformer, TokenDecoder, cut_windows

__all__ = ["predict_hidden"]


def predict_hidden(module: TemporalTransformer, series: Tensor, hidden: Tensor) -> Tensor:
    """Reconstruct a series, predicting the latents of hidden pixels from earlier dates.

    Parameters
    ----------
    module : TemporalTransformer
        In evaluation mode.
    series : Tensor, shape (T, C, H, W), float32
        Standardised, oldest date first; H and W multiples of 64. Hidden values do not matter.
    hidden : Tensor, shape (T, H, W), bool
        Pixels that are not seen. A latent cell with one such pixel is predicted.

    Returns
    -------
    Tensor, shape (T, C, H, W)
        Reconstruction of all pixels. Before anything was seen, the prior of the model.
    """
    model = module.entropy_model
    contexts = module.contexts()
    known = torch.zeros_like(series[:1])
    images = []
    for image, mask in zip(series[:, None], hidden[:, None, None], strict=True):
        latent = module.analyse(torch.where(mask, known, image))
        size = latent.shape[-2:]
        true = torch.round(model.tokens(latent))
        covered = F.max_pool2d(mask.float(), 16)
        guessed = cut_windows(covered, 4).bool()
        decoder = TokenDecoder(model, contexts.joint(), len(true))
        last = model.learned_zero.sym.expand(len(true), 1, -1)
        tokens, features = [], []
        for i in range(TOKENS):
            means, _, hints = decoder.advance(last)
            last = torch.where(guessed[:, i, None], torch.round(means), true[:, i, None])
            tokens.append(last)
            features.append(hints)
        latent_q = model.join(torch.cat(tokens, dim=1), *size)
        seen = module.synthesise(latent_q, model.join(torch.cat(features, dim=1), *size))
        images.append(seen[0])
        known = torch.where(mask, seen, image)
        contexts.push(latent_q)
    return torch.stack(images)
