"""TEC-FP, TEC-ELIC, TEC-TT and FlexTEC as codecs: DN in, one section of bytes per date out.

    DN -> standardise -> pad -> analysis (float32) -> integer symbols
       -> entropy network -> table indexes -> range coder -> section

and the same walk backwards. The transformer of TEC-TT and FlexTEC computes in whole numbers
(:mod:`tec_zarr.terracodec.exact`), ELIC's entropy network in float64 with a ledger of its indexes
(:mod:`tec_zarr.terracodec.ledger`). Encoder and decoder run the same function for the entropy part;
only the port differs through which symbols pass (`_Writer` or `_Reader`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tec_zarr.entropy.gaussian_tables import (
    MEAN_STEPS,
    SymbolDecoder,
    SymbolEncoder,
    Symbols,
    Table,
    gaussian_table,
    gaussian_table_ids,
    scale_edges,
)
from tec_zarr.entropy.range_coder import whole_words
from tec_zarr.errors import ChecksumError, FormatError, TecError, UnsupportedArrayError
from tec_zarr.models.protocol import Encoded
from tec_zarr.models.tokens import TOKENS, FlexSection, check_tokens, cut
from tec_zarr.sentinel2 import band_names
from tec_zarr.terracodec.elic import ELIC, anchors
from tec_zarr.terracodec.exact import exact
from tec_zarr.terracodec.flex import FlexTEC
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.inpainting import predict_hidden
from tec_zarr.terracodec.layers import EntropyBottleneck
from tec_zarr.terracodec.ledger import LedgerReader, LedgerWriter
from tec_zarr.terracodec.tt import (
    EntropyTransformer,
    TemporalTransformer,
    TokenDecoder,
    scale_grid_position,
    scale_of,
)

__all__ = ["STATISTICS", "FamilyModel", "FlexPreview", "Statistics", "destandardise", "standardise"]


class Statistics:
    """Mean and standard deviation of every band, in DN without the +1000 offset.

    Parameters
    ----------
    by_band : dict
        Band name to (mean, standard deviation), in the model's order.
    """

    def __init__(self, by_band: dict[str, tuple[float, float]]) -> None:
        self.bands = tuple(by_band)
        self.mean, self.std = zip(*by_band.values(), strict=True)


STATISTICS = {
    12: Statistics(
        {
            "B01": (793.243, 1160.144),
            "B02": (924.863, 1201.092),
            "B03": (1184.553, 1219.943),
            "B04": (1340.936, 1397.225),
            "B05": (1671.402, 1400.035),
            "B06": (2240.082, 1373.136),
            "B07": (2468.412, 1429.17),
            "B08": (2563.243, 1485.025),
            "B8A": (2627.704, 1447.836),
            "B09": (2711.071, 1652.703),
            "B11": (2416.714, 1471.002),
            "B12": (1849.625, 1365.307),
        }
    ),
    13: Statistics(
        {
            "B01": (1607.345, 786.523),
            "B02": (1393.068, 849.702),
            "B03": (1320.225, 875.318),
            "B04": (1373.963, 1143.578),
            "B05": (1562.536, 1126.248),
            "B06": (2110.071, 1161.98),
            "B07": (2392.832, 1273.505),
            "B08": (2321.154, 1246.79),
            "B8A": (2583.77, 1342.755),
            "B09": (838.712, 576.795),
            "B10": (21.753, 45.626),
            "B11": (2205.112, 1340.347),
            "B12": (1545.798, 1145.036),
        }
    ),
}
"""Published statistics by number of bands: 12 (L2A) and 13 (L1C)."""


def standardise(cube: npt.NDArray[np.float32], count: int, where: Sequence[int]) -> Tensor:
    """DN (T, C, h, w) to the model's input (T, count, h, w); absent bands are their mean."""
    statistics = STATISTICS[count]
    out = np.zeros((cube.shape[0], count, *cube.shape[2:]), np.float32)
    for given, band in enumerate(where):
        out[:, band] = (cube[:, given] - statistics.mean[band]) / statistics.std[band]
    return torch.from_numpy(out)


def destandardise(x: Tensor, where: Sequence[int]) -> npt.NDArray[np.float32]:
    """The model's output (T, count, h, w) to DN of the bands in `where`."""
    statistics = STATISTICS[x.shape[1]]
    wanted = list(where)
    mean = torch.tensor(statistics.mean)[wanted, None, None]
    std = torch.tensor(statistics.std)[wanted, None, None]
    return (x[:, wanted].cpu() * std + mean).numpy()


class _Writer:
    """The encoder's end of a section."""

    def __init__(self) -> None:
        self.coder = SymbolEncoder()

    def code(self, symbols: Tensor | None, ids: Symbols, tables: Callable[[int], Table]) -> Symbols:
        assert symbols is not None
        return self.coder.code(symbols.cpu().numpy().astype(np.int64), ids, tables)

    def to_bytes(self) -> bytes:
        return self.coder.to_bytes()


class _Reader:
    """The decoder's end of a section."""

    def __init__(self, data: bytes) -> None:
        self.coder = SymbolDecoder(data)

    def code(self, symbols: Tensor | None, ids: Symbols, tables: Callable[[int], Table]) -> Symbols:
        return self.coder.code(ids, tables)


class _LedgerWriter(_Writer):
    """A writer whose section starts with the ledger of its indexes."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = LedgerWriter()

    def to_bytes(self) -> bytes:
        return self.ledger.to_bytes() + super().to_bytes()


class _LedgerReader(_Reader):
    """A reader of what a `_LedgerWriter` wrote."""

    def __init__(self, data: bytes) -> None:
        self.ledger = LedgerReader(data)
        super().__init__(data[self.ledger.end :])


class _ShortWriter(_Writer):
    """A writer of one of many short streams: its end takes as few bytes as can be."""

    def to_bytes(self) -> bytes:
        return self.coder.to_shortest()


class _ShortReader(_Reader):
    """A reader of what a `_ShortWriter` wrote."""

    def __init__(self, data: bytes) -> None:
        super().__init__(whole_words(data).astype("<u4").tobytes())


_Port = _Writer | _Reader


def _crc(latents: npt.ArrayLike, start: int = 0) -> int:
    return zlib.crc32(np.ascontiguousarray(latents, "<i4").tobytes(), start)


def bottleneck_tables(bottleneck: EntropyBottleneck) -> Callable[[int], Table]:
    """Stored integer table of each channel, computing them once where a checkpoint has none."""
    if bottleneck._quantized_cdf.numel() == 0:
        bottleneck.update()
    cdfs, lengths = bottleneck._quantized_cdf.cpu().numpy(), bottleneck._cdf_length.tolist()
    offsets = bottleneck._offset.tolist()
    tables: dict[int, Table] = {}

    def table(channel: int) -> Table:
        if channel not in tables:
            edges = cdfs[channel, : lengths[channel]].astype(np.int64)
            frequencies = edges[1:] - edges[:-1]
            if len(frequencies) < 2 or frequencies.min() < 1:  # weights may come from a stranger
                raise FormatError(f"the table of channel {channel} has frequencies below 1")
            tables[channel] = Table.from_frequencies(offsets[channel], frequencies)
        return tables[channel]

    return table


class _BottleneckCoder:
    """Codes latents of an entropy bottleneck with its stored tables."""

    def __init__(self, bottleneck: EntropyBottleneck) -> None:
        self._tables = bottleneck_tables(bottleneck)
        self._medians = bottleneck.medians.detach()[:, None, None]

    def code(
        self, port: _Port, latent: Tensor | None, height: int, width: int
    ) -> tuple[Symbols, Tensor]:
        """Code one latent (C, height, width); symbols and the dequantised latent (float64)."""
        medians = self._medians
        symbols = None if latent is None else torch.round(latent - medians)
        channels = np.arange(len(medians))[:, None, None]
        ids = np.broadcast_to(channels, (len(medians), height, width))
        coded = port.code(symbols, ids, self._tables)
        return coded, torch.from_numpy(coded).to(medians.device) + medians.double()


@dataclass
class _Series:
    """Decoded dates of one cube: what the synthesis takes, and the checksum of the latents."""

    inputs: list[tuple[Tensor, ...]]
    crc: int = 0


class _FPCoder:
    multiple = 16

    def __init__(self, module: FactorizedPrior) -> None:
        self.analyse, self.synthesise = module.g_a, module.g_s
        self._bottleneck = _BottleneckCoder(module.entropy_bottleneck)

    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        sections, crc = [], 0
        for latent in latents:
            port = _Writer()
            symbols, _ = self._bottleneck.code(port, latent, *latent.shape[1:])
            sections.append(port.to_bytes())
            crc = _crc(symbols, crc)
        return Encoded(sections, crc)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> _Series:
        series = _Series([])
        for data in sections:
            port = _Reader(data)
            symbols, y_hat = self._bottleneck.code(port, None, height // 16, width // 16)
            series.crc = _crc(symbols, series.crc)
            series.inputs.append((y_hat[None].float(),))
        return series


class _ELICCoder:
    multiple = 64

    def __init__(self, module: ELIC) -> None:
        self.module = module
        self.analyse, self.synthesise = module.g_a, module.g_s
        self._bottleneck = _BottleneckCoder(module.latent_codec.hyper.entropy_bottleneck)

    def _date(
        self,
        port: _LedgerWriter | _LedgerReader,
        latent: Tensor | None,
        height: int,
        width: int,
        crc: int,
    ) -> tuple[Tensor, int]:
        codec = self.module.latent_codec
        z = None if latent is None else codec.hyper.h_a(latent[None])[0]
        symbols, z_hat = self._bottleneck.code(port, z, height // 4, width // 4)
        crc = _crc(symbols, crc)
        hyper = codec.hyper.h_s(z_hat[None])
        first = anchors(height, width, z_hat.device)
        decoded: list[Tensor] = []
        latents = [None] * len(codec.groups) if latent is None else latent.split(codec.groups)
        for k, (group, y) in enumerate(zip(codec.groups, latents, strict=True)):
            context = codec.group(k)
            side = codec.side(k, decoded, hyper)
            y_hat = side.new_zeros(1, group, height, width)
            for cells in (first, ~first):
                if cells is first:
                    seen = side.new_zeros(1, 2 * group, int(cells.sum()), 1)
                else:
                    seen = context.context_prediction(y_hat)[..., cells, None]
                means, scales = context.parameters_at(seen, side[..., cells, None])
                means, scales = means[0, ..., 0], scales[0, ..., 0]
                position = scale_grid_position(scales.clamp(min=0.11))
                # The ends of the grid are clipped away from any rounding boundary.
                position = position.clamp(max=255.25) + 0.5
                levels = port.ledger.floor(position.cpu().numpy())
                ids = gaussian_table_ids(levels, np.full_like(levels, MEAN_STEPS // 2))
                true = None if y is None else torch.round(y[:, cells].double() - means)
                coded = port.code(true, ids, gaussian_table)
                crc = _crc(coded, crc)
                y_hat[0][:, cells] = torch.from_numpy(coded).to(means) + means
            decoded.append(y_hat)
        return torch.cat(decoded, dim=1), crc

    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        sections, crc = [], 0
        for latent in latents:
            port = _LedgerWriter()
            _, crc = self._date(port, latent, latent.shape[1], latent.shape[2], crc)
            sections.append(port.to_bytes())
        return Encoded(sections, crc)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> _Series:
        series = _Series([])
        for data in sections:
            port = _LedgerReader(data)
            y_hat, series.crc = self._date(port, None, height // 16, width // 16, series.crc)
            series.inputs.append((y_hat.float(),))
        return series


class _Windows:
    """One date of TEC-TT or FlexTEC: its windows, predicted token by token.

    Parameters
    ----------
    model : EntropyTransformer
    joint : Tensor
        Context of the date.
    latent : Tensor, shape (1, C, h, w), or None
        The true latent when encoding.
    height, width : int
        h and w.
    """

    def __init__(
        self,
        model: EntropyTransformer,
        joint: Tensor,
        latent: Tensor | None,
        height: int,
        width: int,
    ) -> None:
        self.model = model
        self.size = height, width
        count = -(-height // 4) * -(-width // 4)
        self._true = None if latent is None else torch.round(model.tokens(latent)).double()
        self._decoder = TokenDecoder(model, joint, count)
        start = model.learned_zero.sym.detach().double()
        self._last = start.expand(count, 1, -1)
        self._ahead: tuple[Tensor, Tensor, Tensor] | None = None
        self.tokens: list[Tensor] = []
        self.features: list[Tensor] = []

    def look_ahead(self, count: int) -> None:
        """Predict the next `count` tokens from the true ones in one pass (encoder)."""
        assert self._true is not None
        inputs = self.model.shifted(self._true)[:, :count]
        self._ahead = self._decoder.advance(inputs)

    def _predict(self) -> tuple[Tensor, Tensor]:
        i = len(self.tokens)
        if self._ahead is not None and i < self._ahead[0].shape[1]:
            means, raw, features = (t[:, i] for t in self._ahead)
        else:
            means, raw, features = (t[:, 0] for t in self._decoder.advance(self._last))
        self.features.append(features)
        return means.double(), raw.double()

    def _append(self, token: Tensor) -> None:
        self.tokens.append(token)
        self._last = token[:, None]

    def code(self, port: _Port) -> Symbols:
        """Code the next token of every window; return its symbols."""
        means, raw = self._predict()
        steps = torch.floor(100 * means + 50.5).long().cpu().numpy()
        base, fraction = np.divmod(steps, 100)
        levels = np.searchsorted(scale_edges(), scale_of(raw).cpu().numpy())
        ids = gaussian_table_ids(levels, 2 * fraction)
        offset = torch.from_numpy(base).to(means)
        true = None if self._true is None else self._true[:, len(self.tokens)] - offset
        symbols = port.code(true, ids, gaussian_table)
        self._append(torch.from_numpy(symbols).to(means) + offset)
        return symbols + base

    def guess(self) -> None:
        """Take the rounded mean as the next token of every window: no bits."""
        means, _ = self._predict()
        self._append(torch.floor(means + 0.5))

    def give(self, token: Tensor) -> None:
        """Take `token` (windows, C) as the next one: known from elsewhere, no bits."""
        self._predict()
        self._append(token)

    def latent(self) -> Tensor:
        """Quantised latent (1, C, h, w), float64."""
        return self.model.join(torch.stack(self.tokens, dim=1), *self.size)

    def hints(self) -> Tensor:
        """Decoder features (1, d, h, w) for the synthesis, float32."""
        return self.model.join(torch.stack(self.features, dim=1), *self.size)


class _TTCoder:
    multiple = 64

    def __init__(self, module: TemporalTransformer) -> None:
        self.module = module
        self.analyse, self.synthesise = module.analyse, module.synthesise

    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        contexts = self.module.contexts()
        sections, crc = [], 0
        for t, latent in enumerate(latents.split(1)):
            port = _Writer()
            date = _Windows(contexts.model, contexts.joint(), latent, *latent.shape[-2:])
            date.look_ahead(TOKENS)
            for _ in range(TOKENS):
                crc = _crc(date.code(port), crc)
            sections.append(port.to_bytes())
            if t + 1 < len(latents):
                contexts.push(date.latent())
        return Encoded(sections, crc)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> _Series:
        contexts = self.module.contexts()
        series = _Series([])
        for t, data in enumerate(sections):
            port = _Reader(data)
            date = _Windows(contexts.model, contexts.joint(), None, height // 16, width // 16)
            for _ in range(TOKENS):
                series.crc = _crc(date.code(port), series.crc)
            latent = date.latent()
            series.inputs.append((latent.float(), date.hints()))
            if t + 1 < len(sections):
                contexts.push(latent)
        return series


class _FlexCoder(_TTCoder):
    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        qualities, context = options["tokens"], options["context_tokens"]
        contexts = self.module.contexts()
        sections, crc = [], 0
        for t, (latent, k) in enumerate(zip(latents.split(1), qualities, strict=True)):
            joint = contexts.joint()
            date = _Windows(contexts.model, joint, latent, *latent.shape[-2:])
            date.look_ahead(k)
            groups = []
            for _ in range(k):
                port = _ShortWriter()
                check = _crc(date.code(port)) & 0xFFFF
                groups.append(check.to_bytes(2, "little") + port.to_bytes())
            seen = min(k, context or k)
            if t + 1 < len(latents):
                contexts.push(self._context_latent(date, joint, seen))
            section = FlexSection(seen, b"", tuple(groups))
            crc = section.check(crc)
            sections.append(section.to_bytes())
        return Encoded(sections, crc)

    def _context_latent(self, date: _Windows, joint: Tensor, seen: int) -> Tensor:
        """Latent that later dates see: the first `seen` tokens, the others guessed."""
        known = date
        if seen < len(date.tokens):
            known = _Windows(date.model, joint, None, *date.size)
            for token in date.tokens[:seen]:
                known.give(token)
        for _ in range(len(known.tokens), TOKENS):
            known.guess()
        return known.latent()

    def decode(
        self, sections: Sequence[bytes], height: int, width: int, shown: int = TOKENS
    ) -> _Series:
        """Decode; with `shown` tokens of each date only, mask tokens stand for the others."""
        contexts = self.module.contexts()
        series = _Series([])
        for t, data in enumerate(sections):
            section = FlexSection.from_bytes(data)
            joint = contexts.joint()
            date = _Windows(contexts.model, joint, None, height // 16, width // 16)
            for i, group in enumerate(section.groups):
                symbols = date.code(_ShortReader(group[2:]))
                if (_crc(symbols) & 0xFFFF).to_bytes(2, "little") != group[:2]:
                    raise ChecksumError(
                        f"Token group {i} of date {t} does not decode to the latents that were "
                        "encoded: the stream is damaged or the weights are not the encoder's."
                    )
            series.crc = section.check(series.crc)
            if t + 1 < len(sections):
                contexts.push(self._context_latent(date, joint, section.context))
            if shown < TOKENS:
                series.inputs.append(self._masked(date, min(shown, len(section.groups))))
                continue
            for _ in range(len(date.tokens), TOKENS):
                date.guess()
            series.inputs.append((date.latent().float(), date.hints()))
        return series

    def _masked(self, date: _Windows, shown: int) -> tuple[Tensor, Tensor]:
        """Input of the synthesis as in training: mask tokens from the first hidden token on."""
        model = self.module.entropy_model

        def masked(known: list[Tensor], mask: Tensor) -> Tensor:
            rest = mask.expand(len(known[0]), TOKENS - shown, -1)
            tokens = torch.cat([torch.stack(known[:shown], dim=1).float(), rest], dim=1)
            return model.join(tokens, *date.size)

        return masked(date.tokens, model.mask_token), masked(date.features, model.z_cur_mask_token)


def _channels_last(image: Tensor) -> Tensor:
    """The same image in the layout in which a processor's convolutions are 10 to 20 % faster."""
    return image.contiguous(memory_format=torch.channels_last)


_CODERS: dict[type[nn.Module], type] = {
    FactorizedPrior: _FPCoder,
    ELIC: _ELICCoder,
    TemporalTransformer: _TTCoder,
    FlexTEC: _FlexCoder,
}


class FamilyModel:
    """A model of the TerraCodec family as :mod:`tec_zarr.codec.encode` uses models.

    Parameters
    ----------
    module : FactorizedPrior, ELIC, TemporalTransformer or FlexTEC
        FP and ELIC are used as they are; of TEC-TT and FlexTEC a converted copy is made.
    name : str
        Name in streams, such as ``"terracodec_v1_tt_s2l2a/lambda-20"``.
    weights_sha256 : str
        SHA-256 (hex) of the safetensors file the weights came from.
    context_tokens : int, optional
        FlexTEC: tokens of a date that later dates are predicted from. None takes all that are
        sent, as the reference does: smallest, but only the last date of a chunk can be
        truncated. 1 lets every date be truncated to any quality, at a cost in size.

    Raises
    ------
    UnsupportedArrayError
        `context_tokens` other than 1 to 16.

    Notes
    -----
    FP, ELIC and TT have one rate, that of their checkpoint: `quality` does not matter to them.
    For FlexTEC the 16 qualities are spread over the codec's scale: ``tokens = 2 * quality``.
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
        # A copy of its own, so that the caller's, twice as large, can go.
        self.module = exact(module) if isinstance(module, TemporalTransformer) else module
        self.context_tokens = context_tokens
        self._coder = _CODERS[type(module)](self.module)
        config: Any = module.config
        self._count = int(config["bands"])

    @property
    def device(self) -> str:
        """Kind of device that the weights are on, ``"cpu"`` or another."""
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
            Bands of the cube in its order; None means all of the model's.
        tokens : sequence of int, optional
            FlexTEC: tokens sent of each date, 1 to 16, instead of `quality`.

        Returns
        -------
        Encoded
            One section per date, and the checksum of the latents.

        Raises
        ------
        UnsupportedArrayError
            Bands that the model does not have, or a number of tokens out of range.
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
    ) -> list[Encoded]:
        """Encode cubes of one shape, each to the bytes that `encode` makes of it."""
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
                # Date by date: more at once are not faster here, and change float32 sums.
                latents = torch.cat([self._coder.analyse(_channels_last(i)) for i in x.split(1)])
            else:
                # In float64 the number of images cannot be seen after rounding.
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
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Decode what `encode` wrote; DN (T, C, h, w) and the checksum of the latents.

        FlexTEC: with fewer than 16 tokens `shown` of each date the rest is not predicted but
        masked, as in training.
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
    ) -> list[tuple[npt.NDArray[np.float32], int]]:
        """Decode the sections of several cubes of one shape, each as `decode`."""
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
        return list(zip(np.split(dn, len(chunks)), [one.crc for one in series], strict=True))

    def _series(
        self, sections: Sequence[bytes], shape: Sequence[int], shown: int = TOKENS
    ) -> _Series:
        height, width = (n + -n % self._coder.multiple for n in shape[-2:])
        if shown < TOKENS:
            self._check_flexible()
            return self._coder.decode(sections, height, width, shown)
        return self._coder.decode(sections, height, width)

    @property
    def flexible(self) -> bool:
        """Whether streams can be truncated: FlexTEC."""
        return isinstance(self._coder, _FlexCoder)

    def truncate(self, sections: Sequence[bytes], tokens: int | Sequence[int]) -> Encoded:
        """Lower the quality of a FlexTEC stream by cutting it, without any network.

        Parameters
        ----------
        sections : sequence of bytes
            From `encode`.
        tokens : int or sequence of int
            Tokens to keep of all dates or of each, 1 to 16; dates that have fewer stay as they
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
            If later dates were predicted from tokens that would be cut (see `context_tokens`):
            `recode` can do that.
        """
        self._check_flexible()
        return cut(sections, check_tokens(tokens, len(sections)))

    def recode(
        self,
        sections: Sequence[bytes],
        shape: tuple[int, int, int, int],
        tokens: int | Sequence[int],
    ) -> Encoded:
        """Lower the quality of a FlexTEC stream whose later dates need what is cut.

        The tokens that stay are decoded and coded anew, predicted from one another. Nothing else
        is lost: the sections are those that `encode` makes with this number of tokens.

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
        """A decoder of this model's streams that shows the first tokens of each date only.

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
        """Predict what clouds hide from the dates before (TEC-TT).

        Parameters
        ----------
        cube : ndarray, shape (T, C, h, w), float32
            DN, oldest date first; cloudy values are never looked at.
        cloudy : ndarray, shape (T, h, w), bool
            Pixels to predict.
        bands : sequence of str, optional
            As for `encode`.

        Returns
        -------
        ndarray, shape (T, C, h, w), float32
            DN: the prediction where cloudy, elsewhere `cube` unchanged.

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


class FlexPreview:
    """Decodes the first tokens of FlexTEC streams quickly; as :mod:`tec_zarr.codec.encode` uses
    models.

    The tokens that are not shown are what they were in training, a learned constant, where
    `FamilyModel.decode` predicts them one after the other.

    Parameters
    ----------
    model : FamilyModel
        FlexTEC.
    tokens : int
        Tokens shown of each date.
    """

    def __init__(self, model: FamilyModel, tokens: int) -> None:
        self.model, self.tokens = model, tokens
        self.name = f"{model.name}#{tokens}"
        self.weights_sha256 = model.weights_sha256

    def encode(
        self, cube: npt.NDArray[np.float32], quality: float, bands: Sequence[str] | None
    ) -> Encoded:
        """Encode as the model itself does."""
        return self.model.encode(cube, quality, bands)

    def decode(
        self,
        sections: Sequence[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: Sequence[str] | None,
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Decode as `FamilyModel.decode` does, with mask tokens for what is not shown."""
        return self.model.decode(sections, shape, quality, bands, shown=self.tokens)
