"""TEC-FP, TEC-ELIC, TEC-TT and FlexTEC as codecs: from DN to one section of bytes per date.

    DN -> standardise -> pad -> analysis (float32) -> integer symbols
       -> entropy network -> table indexes -> range coder -> section

Decoding takes the same steps backwards. :mod:`tec_zarr.terracodec.coders` codes the latents of each
architecture. The transformer of TEC-TT and FlexTEC computes in whole numbers
(:mod:`tec_zarr.terracodec.exact`). ELIC's entropy network computes in float64, with a ledger of its
indexes (:mod:`tec_zarr.terracodec.ledger`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tec_zarr.errors import FormatError, TecError, UnsupportedArrayError
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.tokens import TOKENS, FlexSection, check_tokens, cut
from tec_zarr.sentinel2 import band_names
from tec_zarr.terracodec.coders import CODERS, FlexCoder, Series
from tec_zarr.terracodec.exact import exact
from tec_zarr.terracodec.inpainting import predict_hidden
from tec_zarr.terracodec.statistics import STATISTICS, destandardise, standardise
from tec_zarr.terracodec.tt import TemporalTransformer

__all__ = ["FamilyModel", "FlexPreview"]


def _channels_last(image: Tensor) -> Tensor:
    """Convert an image to the layout in which convolutions on a CPU are 10 to 20 % faster."""
    return image.contiguous(memory_format=torch.channels_last)


class FamilyModel(Model):
    """A model of the TerraCodec family as :mod:`tec_zarr.codec.encode` uses models.

    Parameters
    ----------
    module : FactorizedPrior, ELIC, TemporalTransformer or FlexTEC
        FP and ELIC are used directly. TEC-TT and FlexTEC are converted to a copy.
    name : str
        Name in streams, such as ``"terracodec_v1_tt_s2l2a/lambda-20"``.
    weights_sha256 : str
        SHA-256 (hex) of the safetensors file the weights came from.
    context_tokens : int, optional
        FlexTEC: number of tokens of a date that later dates are predicted from. None means all
        that are sent, as in the reference. This gives the smallest streams, but only the last date
        of a chunk can be truncated. With 1, every date can be truncated to any quality, and
        streams are larger.

    Raises
    ------
    UnsupportedArrayError
        `context_tokens` other than 1 to 16.

    Notes
    -----
    FP, ELIC and TT have one rate, that of their checkpoint. They ignore `quality`.
    FlexTEC has 16 qualities, spread over the codec's scale: ``tokens = 2 * quality``.
    """

    def __init__(
        self,
        module: nn.Module,
        name: str,
        weights_sha256: str,
        context_tokens: int | None = None,
    ) -> None:
        whole = type(context_tokens) is int and 1 <= context_tokens <= TOKENS
        if not (whole or context_tokens is None):
            raise UnsupportedArrayError(
                f"{name}: context_tokens is 1 to {TOKENS}, or None for all that are sent, not "
                f"{context_tokens!r}"
            )
        self.name = name
        self.weights_sha256 = weights_sha256
        module = module.eval()
        # A copy, so that the caller can free its module, which is twice as large.
        self.module = exact(module) if isinstance(module, TemporalTransformer) else module
        self.context_tokens = context_tokens
        self._coder = CODERS[type(module)](self.module)
        config: Any = module.config
        self._count = int(config["bands"])

    @property
    def device(self) -> str:
        """Type of the device that holds the weights, such as ``"cpu"``."""
        return self._device.type

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def encode(
        self,
        cube: npt.NDArray[np.float32],
        quality: float,
        bands: Sequence[str] | None,
        *,
        tokens: Sequence[int] | None = None,
    ) -> Encoded:
        """Encode a cube.

        Parameters
        ----------
        cube : ndarray, shape (T, C, h, w), float32
            DN, every pixel filled and finite.
        quality : float
            FlexTEC: half the number of tokens sent of every date.
        bands : sequence of str, optional
            Bands of the cube, in its order. None means all bands of the model.
        tokens : sequence of int, optional
            FlexTEC: tokens sent of each date, 1 to 16, instead of `quality`.

        Returns
        -------
        Encoded
            One section per date, and the checksum of the latents.

        Raises
        ------
        UnsupportedArrayError
            The model lacks a band, or a number of tokens is out of range.
        """
        where = self._band_places(bands, cube.shape)
        if tokens is None:
            tokens = self._tokens(quality, len(cube))
        return self._encode([cube], where, check_tokens(tokens, len(cube)))[0]

    def encode_batch(
        self,
        cubes: Sequence[npt.NDArray[np.float32]],
        quality: float,
        bands: Sequence[str] | None,
        **options: Sequence[Any],
    ) -> list[Encoded]:
        """Encode cubes of one shape; each gives the same bytes as with `encode`.

        The registry's entry of a published model names no ``options``.
        """
        where = self._band_places(bands, cubes[0].shape)
        return self._encode(cubes, where, self._tokens(quality, len(cubes[0])))

    def _tokens(self, quality: float, dates: int) -> list[int]:
        return [min(TOKENS, max(1, round(2 * quality)))] * dates

    def _encode(
        self,
        cubes: Sequence[npt.NDArray[np.float32]],
        where: Sequence[int],
        tokens: Sequence[int],
    ) -> list[Encoded]:
        height, width = cubes[0].shape[-2:]
        multiple = self._coder.multiple
        margins = ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple))
        padded = np.pad(np.concatenate(cubes), margins, mode="reflect")
        options = {"tokens": tokens, "context_tokens": self.context_tokens}
        with torch.inference_mode():
            x = standardise(padded, self._count, where).to(self._device)
            if self.device == "cpu":
                # Date by date: a batch is not faster on a CPU, and changes float32 sums.
                latents = torch.cat([self._coder.analyse(_channels_last(i)) for i in x.split(1)])
            else:
                # In float64, so that the size of the batch does not change the rounded latents.
                latents = self._coder.analyse(x.double())
            return [self._coder.encode(part, options) for part in latents.split(len(cubes[0]))]

    def decode(
        self,
        sections: Sequence[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: Sequence[str] | None,
        *,
        shown: int = TOKENS,
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Decode sections of `encode` to DN (T, C, h, w) and the checksums of the latents.

        FlexTEC: `shown` is the number of tokens of each date to decode. If it is below 16, the
        other tokens are masked, as in training, instead of predicted.
        """
        return self.decode_batch([sections], shape, quality, bands, shown=shown)[0]

    def decode_batch(
        self,
        chunks: Sequence[Sequence[bytes]],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: Sequence[str] | None,
        *,
        shown: int = TOKENS,
    ) -> list[tuple[npt.NDArray[np.float32], list[int]]]:
        """Decode the sections of several cubes of one shape; each result is that of `decode`."""
        where = self._band_places(bands, shape)
        for sections in chunks:
            if len(sections) != shape[0]:
                raise FormatError(
                    f"{self.name}: {len(sections)} sections for {shape[0]} dates of a chunk of "
                    f"shape {shape}: damaged"
                )
        height, width = shape[-2:]
        with torch.inference_mode():
            series = [self._series(sections, shape, shown) for sections in chunks]
            inputs = [dates for one in series for dates in one.inputs]
            if self.device == "cpu":
                laid_out = [map(_channels_last, date) for date in inputs]
                images = torch.cat([self._coder.synthesise(*date) for date in laid_out])
            else:
                together = (torch.cat(parts) for parts in zip(*inputs, strict=True))
                images = self._coder.synthesise(*together)
            dn = destandardise(images[..., :height, :width].contiguous(), where)
        return list(zip(np.split(dn, len(chunks)), [one.crcs for one in series], strict=True))

    def _series(
        self, sections: Sequence[bytes], shape: Sequence[int], shown: int = TOKENS
    ) -> Series:
        height, width = (n + -n % self._coder.multiple for n in shape[-2:])
        if shown < TOKENS:
            self._check_flexible()
            return self._coder.decode(sections, height, width, shown)
        return self._coder.decode(sections, height, width)

    @property
    def flexible(self) -> bool:
        """Whether streams can be truncated. Only FlexTEC's can."""
        return isinstance(self._coder, FlexCoder)

    def truncate(self, sections: Sequence[bytes], tokens: int | Sequence[int]) -> Encoded:
        """Lower the quality of a FlexTEC stream by cutting it; no network runs.

        Parameters
        ----------
        sections : sequence of bytes
            From `encode`.
        tokens : int or sequence of int
            Tokens to keep, 1 to 16, of all dates or of each. Dates that have fewer stay as they
            are.

        Returns
        -------
        Encoded
            The shorter sections and their checksum.

        Raises
        ------
        TecError
            If the model is not FlexTEC.
        ContextError
            If later dates were predicted from tokens that would be cut (see `context_tokens`). Use
            `recode` instead.
        """
        self._check_flexible()
        return cut(sections, check_tokens(tokens, len(sections)))

    def recode(
        self,
        sections: Sequence[bytes],
        shape: tuple[int, int, int, int],
        tokens: int | Sequence[int],
    ) -> Encoded:
        """Lower the quality of a FlexTEC stream whose later dates depend on the tokens to cut.

        The tokens to keep are decoded and coded again, predicted from one another. The sections are
        the same as `encode` makes with this number of tokens, so nothing else is lost.

        Parameters
        ----------
        sections : sequence of bytes
            From `encode`.
        shape : tuple of int
            (T, C, h, w) of the cube.
        tokens : int or sequence of int
            As for `truncate`.

        Returns
        -------
        Encoded
            The shorter sections and their checksum.

        Raises
        ------
        TecError
            If the model is not FlexTEC.
        """
        self._check_flexible()
        wanted = check_tokens(tokens, len(sections))
        parsed = [FlexSection.from_bytes(data) for data in sections]
        kept = [min(k, len(s.groups)) for k, s in zip(wanted, parsed, strict=True)]
        context = max(section.context for section in parsed)
        with torch.inference_mode():
            series = self._series(sections, shape)
            latents = torch.cat([latent for latent, _ in series.inputs])
            return self._coder.encode(latents, {"tokens": kept, "context_tokens": context})

    def preview(self, tokens: int) -> FlexPreview:
        """Return a decoder that decodes only the first tokens of each date.

        Parameters
        ----------
        tokens : int
            1 to 15.

        Raises
        ------
        TecError
            If the model is not FlexTEC.
        """
        self._check_flexible()
        return FlexPreview(self, tokens)

    def _check_flexible(self) -> None:
        if not self.flexible:
            raise TecError(f"{self.name} has one rate; only FlexTEC streams can be truncated")

    def inpaint(
        self,
        cube: npt.NDArray[np.float32],
        cloudy: npt.NDArray[np.bool_],
        bands: Sequence[str] | None = None,
    ) -> npt.NDArray[np.float32]:
        """Predict the pixels under clouds from earlier dates (TEC-TT).

        Parameters
        ----------
        cube : ndarray, shape (T, C, h, w), float32
            DN, oldest date first. Cloudy values are not used.
        cloudy : ndarray, shape (T, h, w), bool
            Pixels to predict.
        bands : sequence of str, optional
            As for `encode`.

        Returns
        -------
        ndarray, shape (T, C, h, w), float32
            DN: the prediction in cloudy pixels, `cube` in the others.

        Raises
        ------
        TecError
            If the model is not TEC-TT.
        """
        if type(self.module) is not TemporalTransformer:
            raise TecError(f"{self.name} cannot inpaint clouds; TEC-TT models can")
        where = self._band_places(bands, cube.shape)
        height, width = cube.shape[-2:]
        bottom, right = -height % self._coder.multiple, -width % self._coder.multiple
        hidden = np.pad(cloudy, ((0, 0), (0, bottom), (0, right)), mode="reflect")
        visible = np.where(cloudy[:, None], np.float32(0), cube)
        padded = np.pad(visible, ((0, 0), (0, 0), (0, bottom), (0, right)), mode="reflect")
        with torch.inference_mode():
            x = standardise(padded, self._count, where).to(self._device)
            seen = torch.from_numpy(hidden).to(self._device)
            filled = predict_hidden(self.module, x, seen)
            predicted = destandardise(filled[..., :height, :width], where)
        return np.where(cloudy[:, None], predicted, cube)

    def _band_places(self, bands: Sequence[str] | None, shape: Sequence[int]) -> list[int]:
        known = STATISTICS[self._count].bands
        if bands is None:
            if shape[1] != self._count:
                raise UnsupportedArrayError(
                    f"{self.name} takes the {self._count} bands {', '.join(known)}, the chunk of "
                    f"shape {tuple(shape)} has {shape[1]}: name its bands (bands=...)"
                )
            return list(range(self._count))
        names = band_names(bands)
        strange = [name for name in names if name not in known]
        if strange or len(names) != shape[1]:
            raise UnsupportedArrayError(
                f"{self.name} takes bands among {', '.join(known)}; the chunk of shape "
                f"{tuple(shape)} was given {', '.join(names)}"
            )
        return [known.index(name) for name in names]


class FlexPreview(Model):
    """Decodes the first tokens of FlexTEC streams quickly; as :mod:`tec_zarr.codec.encode` uses
    models.

    It has the interface that :mod:`tec_zarr.codec.encode` uses. The other tokens are a learned
    constant, as in training. `FamilyModel.decode` predicts them one after the other instead.

    Parameters
    ----------
    model : FamilyModel
        A FlexTEC model.
    tokens : int
        Number of tokens of each date to decode.
    """

    def __init__(self, model: FamilyModel, tokens: int) -> None:
        self.model, self.tokens = model, tokens
        self.name = f"{model.name}#{tokens}"
        self.weights_sha256 = model.weights_sha256

    def encode(
        self, cube: npt.NDArray[np.float32], quality: float, bands: Sequence[str] | None
    ) -> Encoded:
        """Encode with `FamilyModel.encode`."""
        return self.model.encode(cube, quality, bands)

    def decode(
        self,
        sections: Sequence[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: Sequence[str] | None,
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Decode as `FamilyModel.decode` does, with mask tokens in place of the other tokens."""
        return self.model.decode(sections, shape, quality, bands, shown=self.tokens)
