"""The TerraCodec architectures as CompressAI models, in its registry.

CompressAI 1.2.8 asks for NumPy below 2, which it does not need; see ``docs/family.md`` for how to
install both. Importing this module registers ``tec-fp``, ``tec-elic``, ``tec-tt`` and ``flextec``
in ``compressai.registry.MODELS``. The image models are CompressAI's own classes for another
number of bands, with its training, tables and range coder; the temporal ones, which it does not
have, are this package's with CompressAI's interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from tec_zarr.errors import TecError, UnsupportedArrayError
from tec_zarr.models.tokens import TOKENS, check_tokens
from tec_zarr.terracodec.codec import FamilyModel
from tec_zarr.terracodec.elic import ELIC
from tec_zarr.terracodec.flex import FlexTEC
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.layers import TableBuffers
from tec_zarr.terracodec.tt import TemporalTransformer

try:
    from compressai.models import CompressionModel, Elic2022Chandelier
    from compressai.models import FactorizedPrior as CompressAIFactorizedPrior
    from compressai.models.utils import conv, deconv
    from compressai.registry import register_model
except ImportError as error:
    raise TecError(
        "CompressAI is not installed: pip install 'tec_zarr[compressai]' && pip install --no-deps "
        f"compressai ({error})"
    ) from error

__all__ = ["TecELIC", "TecFP", "TecFlex", "TecTT", "from_compressai", "to_compressai"]


@register_model("tec-fp")
class TecFP(CompressAIFactorizedPrior):
    """CompressAI's factorised prior for Sentinel-2 bands.

    Parameters
    ----------
    bands, N, M : int
        As for `tec_zarr.terracodec.fp.FactorizedPrior`.
    """

    own = FactorizedPrior

    def __init__(self, bands: int = 12, N: int = 128, M: int = 192, **kwargs: Any) -> None:
        super().__init__(N, M, **kwargs)
        self.g_a[0], self.g_s[-1] = conv(bands, N), deconv(N, bands)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """A model of the size that the weights have."""
        model = cls(**cls.own.config_of(state_dict))
        model.load_state_dict(state_dict)
        return model


@register_model("tec-elic")
class TecELIC(Elic2022Chandelier):
    """CompressAI's ELIC for Sentinel-2 bands.

    Parameters
    ----------
    bands, N, M, groups
        As for `tec_zarr.terracodec.elic.ELIC`.
    """

    own = ELIC

    def __init__(
        self,
        bands: int = 12,
        N: int = 128,
        M: int = 192,
        groups: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(N, M, groups, **kwargs)
        self.g_a[0] = conv(bands, N, kernel_size=5, stride=2)
        self.g_s[-1] = deconv(N, bands, kernel_size=5, stride=2)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """A model of the size that the weights have."""
        model = cls(**cls.own.config_of(state_dict))
        model.load_state_dict(state_dict)
        return model


@register_model("tec-tt")
class TecTT(CompressionModel):
    """TEC-TT with CompressAI's interface; inputs are series (B, T, C, H, W).

    Parameters
    ----------
    **config
        As for `tec_zarr.terracodec.tt.TemporalTransformer`.
    """

    own: type[TemporalTransformer] = TemporalTransformer

    def __init__(self, **config: Any) -> None:
        super().__init__()
        module = self.own(**config)
        self.model = module.model  # the parameters, under the names of the published checkpoints
        self.__dict__["_module"] = module  # no second name for them

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return self._module.config

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], **config: Any) -> Self:
        """A model of the size that the weights have; heads, which they do not tell, by name."""
        model = cls(**(cls.own.config_of(state_dict) | config))
        model.load_state_dict(state_dict)
        return model

    def forward(self, series: Tensor) -> dict[str, Any]:
        """``x_hat`` (B, T, C, H, W) and the ``likelihoods`` of every date."""
        images, likelihoods = zip(*self._module.likelihoods(series), strict=True)
        return {
            "x_hat": torch.stack(images, dim=1),
            "likelihoods": {f"y{t}": part for t, part in enumerate(likelihoods)},
        }

    def aux_loss(self) -> Tensor:
        """Zero: there is no entropy bottleneck."""
        return next(self.parameters()).new_zeros(())

    def compress(self, series: Tensor, tokens: int | Sequence[int] = TOKENS) -> dict[str, Any]:
        """Streams of one series (1, T, C, H, W), H and W multiples of 64.

        Parameters
        ----------
        series : Tensor
        tokens : int or sequence of int
            FlexTEC: tokens sent of all dates or of each.

        Returns
        -------
        dict
            ``strings``, one section of this package's streams per date, and the latents'
            ``shape``, as `decompress` takes them.
        """
        if len(series) != 1 or any(n % 64 for n in series.shape[-2:]):
            raise UnsupportedArrayError(
                f"one series whose height and width are multiples of 64 at a time, not "
                f"{tuple(series.shape)}"
            )
        options = {"tokens": check_tokens(tokens, series.shape[1]), "context_tokens": None}
        with torch.inference_mode():
            latents = torch.cat([self._module.analyse(image[None]) for image in series[0]])
            sections = self._codec()._coder.encode(latents, options).sections
        return {"strings": [sections], "shape": latents.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """``x_hat`` (1, T, C, H, W) of what `compress` returned."""
        with torch.inference_mode():
            series = self._codec()._coder.decode(strings[0], 16 * shape[0], 16 * shape[1])
            images = [self._module.synthesise(*date) for date in series.inputs]
        return {"x_hat": torch.stack(images, dim=1)}

    def _codec(self) -> FamilyModel:
        """A codec of the weights as they are now; converting them takes seconds at full size."""
        return FamilyModel(self._module, "compressai", "")


@register_model("flextec")
class TecFlex(TecTT):
    """FlexTEC with CompressAI's interface; parameters as for `TecTT`."""

    own = FlexTEC


_CLASSES: dict[type[nn.Module], type[CompressionModel]] = {
    cls.own: cls for cls in (TecFP, TecELIC, TecTT, TecFlex)
}


def to_compressai(module: nn.Module) -> CompressionModel:
    """CompressAI's model with the weights of one of this package's.

    Parameters
    ----------
    module : FactorizedPrior, ELIC, TemporalTransformer or FlexTEC
        Such as `tec_zarr.terracodec.load` returns.

    Returns
    -------
    CompressionModel
        In evaluation mode, with tables for CompressAI's own range coder (FP, ELIC).
    """
    model = _CLASSES[type(module)](**module.config)
    # Integer tables follow from the weights, and each side makes its own.
    model.load_state_dict(_without_tables(module, model), strict=True)
    model.update(force=True)
    return model.eval()


def from_compressai(model: CompressionModel) -> nn.Module:
    """This package's module with the weights of a CompressAI model.

    Parameters
    ----------
    model : TecFP, TecELIC, TecTT or TecFlex

    Returns
    -------
    torch.nn.Module
        In evaluation mode; `tec_zarr.terracodec.checkpoints.save` writes it,
        `tec_zarr.terracodec.load_codec` reads that.
    """
    own = next((own for own, cls in _CLASSES.items() if type(model) is cls), None)
    if own is None:
        raise TecError(
            f"{type(model).__name__} is none of the TerraCodec architectures: "
            f"{', '.join(cls.__name__ for cls in _CLASSES.values())}"
        )
    config = model.config if isinstance(model, TecTT) else own.config_of(model.state_dict())
    module = own(**config)
    module.load_state_dict(_without_tables(model, module), strict=True)
    return module.eval()


def _without_tables(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """State of `source` with the tables of `target` in the place of its own."""
    own = target.state_dict()
    kept = {k: v for k, v in source.state_dict().items() if not k.endswith(TableBuffers.ALL)}
    return {**{k: v for k, v in own.items() if k.endswith(TableBuffers.ALL)}, **kept}
