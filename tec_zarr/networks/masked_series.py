"""Masked inference with ``tec-tt-s2``: what its networks expect where a date is not seen.

The temporal model codes how a date differs from a prediction of it. Here the prediction comes
from clear pixels of other dates (:mod:`tec_zarr.inpaint.regression`), the difference is zero
wherever the date is not seen, and the networks walk over the date as they do in decoding: with the
true latents of blocks that are seen, and with the mean that they predict (symbol 0) for blocks that
are not. Their scales say how sure they are.

TEC-TT's cloud inpainting (arXiv 2510.12670) is the model for this; as published it looks at
latents into which the transform has spread the cloud, and at earlier dates only.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tec_zarr.models import klt
from tec_zarr.models.constants import BLOCK, CHANNELS, GROUPS, MEAN_GRID, SCALE_OFFSET, step_size
from tec_zarr.models.registry import get_model
from tec_zarr.models.temporal_section import PICTURE_GRID
from tec_zarr.networks.image import SILENT, context_of
from tec_zarr.networks.series import MATRIX_BITS, TecTtS2
from tec_zarr.networks.walk import Past

__all__ = ["MaskedModel", "masked_model"]

QUALITY = 5.0
"""Of the latents that the networks see."""
SPILL = BLOCK // 2
"""Pixels by which a block's basis functions reach into its neighbours."""

Field = NDArray[np.float32]


@lru_cache(maxsize=4)
def masked_model(name: str = "tec-tt-s2") -> MaskedModel:
    """The embedded temporal model, ready for `tec_zarr.inpaint.regression.fill_date`."""
    model = get_model(name)
    assert isinstance(model, TecTtS2)
    return MaskedModel(model)


class MaskedModel:
    """A `tec_zarr.inpaint.samples.Refine` made of a temporal model."""

    def __init__(self, model: TecTtS2, quality: float = QUALITY) -> None:
        self.model, self.quality = model, quality

    @torch.inference_mode()
    def __call__(
        self, date: Field, estimate: Field, seen: NDArray[np.bool_]
    ) -> tuple[Field, Field]:
        """Expected difference of ``date`` to ``estimate``, both float32 DN (C, H, W), and the
        standard deviation of what remains. Where not ``seen`` (H, W), ``date`` is not looked at.
        ``estimate`` may be NaN there: pixels that are clear on no date.
        """
        model, quality = self.model, self.quality
        count = len(date)
        usual = np.nanmean(estimate, (1, 2), keepdims=True)
        estimate = np.where(np.isnan(estimate), usual, estimate)
        difference = np.where(seen, date - estimate, np.float32(0))
        residual = model.picture_of(difference, np.zeros(count))
        open_ = self._open(seen)
        step = float(step_size(quality))
        known = residual[:, :, open_.flatten()].flatten(1)
        covariance = (known @ known.T / max(known.shape[1], 1)).numpy()
        _, spectral = klt.write(np.zeros(count), covariance, step)
        context = context_of(spectral, quality)
        centred = estimate - estimate.mean((1, 2), keepdims=True)
        prediction = torch.round(model.picture_of(centred, np.zeros(count)) * PICTURE_GRID)
        rows, columns = open_.shape
        past = Past(model.predictor.latents(prediction, spectral, quality)[None], rows, columns)
        latents = model.latents_of(residual, context, columns)
        seen_latents = latents[open_.flatten()].abs()
        flags = tuple(bool((g > SILENT).any()) for g in seen_latents.split(GROUPS, 1))
        flat = latents.double().numpy()
        hidden = ~open_.flatten().numpy()
        decoded = np.zeros(flat.shape, np.int32)
        deviation = np.zeros(flat.shape, np.float32)
        for step_ in model.coder.entropy.steps(context.condition, rows, columns, flags, past):
            places = step_.places.numpy()
            average, index = step_.mean[0].numpy(), step_.index[0].numpy()
            part = np.ix_(places, np.arange(step_.channels.start, step_.channels.stop))
            symbols = np.rint(flat[part] - average / MEAN_GRID).astype(np.int32)
            symbols[hidden[places]] = 0
            symbols[index < model.coder.tables.silent] = 0
            step_.write(torch.from_numpy(symbols)[None])
            decoded[part] = step_.units[0]
            deviation[part] = np.exp2(index / 4 - SCALE_OFFSET)
        change = np.empty(date.shape, np.float32)
        condition = context.condition
        model.image.synthesis(decoded, CHANNELS, quality, condition, spectral, change)
        return change, self._in_pixels(deviation, spectral, context.quality, date.shape, rows)

    @staticmethod
    def _open(seen: NDArray[np.bool_]) -> torch.Tensor:
        """Blocks (h, w) that no unseen pixel reaches."""
        unseen = torch.from_numpy(~seen).float()[None]
        unseen = F.max_pool2d(unseen, 2 * SPILL + 1, stride=1, padding=SPILL)
        pooled = F.max_pool2d(unseen, BLOCK, stride=BLOCK, ceil_mode=True)
        return pooled[0] == 0

    def _in_pixels(
        self,
        deviation: Field,
        spectral: klt.Klt,
        quality: torch.Tensor,
        shape: tuple[int, ...],
        rows: int,
    ) -> Field:
        """Standard deviations of latents (P, 320), in steps, to those of pixels (C, H, W) DN."""
        used = spectral.used
        net = self.model.image.net
        steps = net.steps(quality.float())[0, :, :, 0]
        power = (torch.from_numpy(deviation).T * steps).square()
        matrix = (self.model.predictor.synthesis[: used * BLOCK * BLOCK] / 2.0**MATRIX_BITS).float()
        components = (matrix.square() @ power).view(used, BLOCK * BLOCK, -1).mean(1)
        basis = torch.from_numpy(spectral.basis[:, :used]).float()
        bands = (basis.square() @ components).view(1, shape[0], rows, -1)
        wide = F.interpolate(bands, scale_factor=BLOCK, mode="bilinear", align_corners=False)
        return wide[0, :, : shape[1], : shape[2]].sqrt().add(1).numpy()
