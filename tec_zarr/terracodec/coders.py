"""Code the latents of each architecture as sections of bytes, and decode them.

Encoder and decoder run the same entropy code. Only the port differs through which symbols pass: it
is a `_Writer` or a `_Reader`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tec_zarr.errors import ChecksumError, FormatError
from tec_zarr.models.protocol import Encoded
from tec_zarr.models.tokens import TOKENS, FlexSection
from tec_zarr.terracodec.blocks import scale_grid_position, scale_of
from tec_zarr.terracodec.elic import ELIC, anchors
from tec_zarr.terracodec.flex import FlexTEC
from tec_zarr.terracodec.fp import FactorizedPrior
from tec_zarr.terracodec.gaussian_tables import (
    MEAN_STEPS,
    SymbolDecoder,
    SymbolEncoder,
    Symbols,
    Table,
    gaussian_table,
    gaussian_table_ids,
    scale_edges,
    whole_words,
)
from tec_zarr.terracodec.layers import EntropyBottleneck
from tec_zarr.terracodec.ledger import LedgerReader, LedgerWriter
from tec_zarr.terracodec.tt import EntropyTransformer, TemporalTransformer, TokenDecoder


class _Writer:
    """Writes the symbols of a section."""

    def __init__(self) -> None:
        self.coder = SymbolEncoder()

    def code(self, symbols: Tensor | None, ids: Symbols, tables: Callable[[int], Table]) -> Symbols:
        assert symbols is not None
        return self.coder.code(symbols.cpu().numpy().astype(np.int64), ids, tables)

    def to_bytes(self) -> bytes:
        return self.coder.to_bytes()


class _Reader:
    """Reads the symbols of a section."""

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
    """A reader of sections of a `_LedgerWriter`."""

    def __init__(self, data: bytes) -> None:
        self.ledger = LedgerReader(data)
        super().__init__(data[self.ledger.end :])


class _ShortWriter(_Writer):
    """A writer of one of many short streams; it ends the stream with as few bytes as possible."""

    def to_bytes(self) -> bytes:
        return self.coder.to_shortest()


class _ShortReader(_Reader):
    """A reader of streams of a `_ShortWriter`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(whole_words(data).astype("<u4").tobytes())


_Port = _Writer | _Reader


def _crc(latents: npt.ArrayLike, start: int = 0) -> int:
    """Return the CRC32 of latents, continued from ``start``."""
    return zlib.crc32(np.ascontiguousarray(latents, "<i4").tobytes(), start)


def bottleneck_tables(bottleneck: EntropyBottleneck) -> Callable[[int], Table]:
    """Return a function that gives the integer table of a channel.

    The tables are computed first if the checkpoint stores none.
    """
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
        """Code one latent (C, height, width).

        Returns the symbols and the dequantised latent (float64).
        """
        medians = self._medians
        symbols = None if latent is None else torch.round(latent - medians)
        channels = np.arange(len(medians))[:, None, None]
        ids = np.broadcast_to(channels, (len(medians), height, width))
        coded = port.code(symbols, ids, self._tables)
        return coded, torch.from_numpy(coded).to(medians.device) + medians.double()


@dataclass
class Series:
    """Decoded dates of one cube: inputs of the synthesis, and checksums of the latents."""

    inputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    crcs: list[int] = field(default_factory=list)


class _FPCoder:
    multiple = 16

    def __init__(self, module: FactorizedPrior) -> None:
        self.analyse, self.synthesise = module.g_a, module.g_s
        self._bottleneck = _BottleneckCoder(module.entropy_bottleneck)

    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        sections, crcs = [], []
        for latent in latents:
            port = _Writer()
            symbols, _ = self._bottleneck.code(port, latent, *latent.shape[1:])
            sections.append(port.to_bytes())
            crcs.append(_crc(symbols))
        return Encoded(sections, crcs)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> Series:
        series = Series()
        for data in sections:
            port = _Reader(data)
            symbols, y_hat = self._bottleneck.code(port, None, height // 16, width // 16)
            series.crcs.append(_crc(symbols))
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
    ) -> tuple[Tensor, int]:
        codec = self.module.latent_codec
        z = None if latent is None else codec.hyper.h_a(latent[None])[0]
        symbols, z_hat = self._bottleneck.code(port, z, height // 4, width // 4)
        crc = _crc(symbols)
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
                # Clip to 255.25, a value away from any rounding boundary.
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
        sections, crcs = [], []
        for latent in latents:
            port = _LedgerWriter()
            _, crc = self._date(port, latent, latent.shape[1], latent.shape[2])
            sections.append(port.to_bytes())
            crcs.append(crc)
        return Encoded(sections, crcs)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> Series:
        series = Series()
        for data in sections:
            port = _LedgerReader(data)
            y_hat, crc = self._date(port, None, height // 16, width // 16)
            series.crcs.append(crc)
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
        """Code the next token of every window; return its quantised values."""
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
        """Use the rounded mean as the next token of every window; it costs no bits."""
        means, _ = self._predict()
        self._append(torch.floor(means + 0.5))

    def give(self, token: Tensor) -> None:
        """Use `token` (windows, C), which the caller knows, as the next one; it costs no bits."""
        self._predict()
        self._append(token)

    def latent(self) -> Tensor:
        """Return the quantised latent (1, C, h, w), float64."""
        return self.model.join(torch.stack(self.tokens, dim=1), *self.size)

    def hints(self) -> Tensor:
        """Return the decoder features (1, d, h, w) for the synthesis, float32."""
        return self.model.join(torch.stack(self.features, dim=1), *self.size)


class _TTCoder:
    multiple = 64

    def __init__(self, module: TemporalTransformer) -> None:
        self.module = module
        self.analyse, self.synthesise = module.analyse, module.synthesise

    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        contexts = self.module.contexts()
        sections, crcs = [], []
        for t, latent in enumerate(latents.split(1)):
            port = _Writer()
            date = _Windows(contexts.model, contexts.joint(), latent, *latent.shape[-2:])
            date.look_ahead(TOKENS)
            crc = 0
            for _ in range(TOKENS):
                crc = _crc(date.code(port), crc)
            sections.append(port.to_bytes())
            crcs.append(crc)
            if t + 1 < len(latents):
                contexts.push(date.latent())
        return Encoded(sections, crcs)

    def decode(self, sections: Sequence[bytes], height: int, width: int) -> Series:
        contexts = self.module.contexts()
        series = Series()
        for t, data in enumerate(sections):
            port = _Reader(data)
            date = _Windows(contexts.model, contexts.joint(), None, height // 16, width // 16)
            crc = 0
            for _ in range(TOKENS):
                crc = _crc(date.code(port), crc)
            series.crcs.append(crc)
            latent = date.latent()
            series.inputs.append((latent.float(), date.hints()))
            if t + 1 < len(sections):
                contexts.push(latent)
        return series


class FlexCoder(_TTCoder):
    def encode(self, latents: Tensor, options: dict[str, Any]) -> Encoded:
        qualities, context = options["tokens"], options["context_tokens"]
        contexts = self.module.contexts()
        sections, crcs = [], []
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
            crcs.append(section.check())
            sections.append(section.to_bytes())
        return Encoded(sections, crcs)

    def _context_latent(self, date: _Windows, joint: Tensor, seen: int) -> Tensor:
        """Return the latent that later dates see: the first `seen` tokens, the others guessed."""
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
    ) -> Series:
        """Decode the sections of a cube.

        If `shown` is below 16, the tokens after the first `shown` of each date are mask tokens.
        """
        contexts = self.module.contexts()
        series = Series()
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
            series.crcs.append(section.check())
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
        """Return the input of the synthesis, with mask tokens after the first `shown`."""
        model = self.module.entropy_model

        def masked(known: list[Tensor], mask: Tensor) -> Tensor:
            rest = mask.expand(len(known[0]), TOKENS - shown, -1)
            tokens = torch.cat([torch.stack(known[:shown], dim=1).float(), rest], dim=1)
            return model.join(tokens, *date.size)

        return masked(date.tokens, model.mask_token), masked(date.features, model.z_cur_mask_token)


CODERS: dict[type[nn.Module], type] = {
    FactorizedPrior: _FPCoder,
    ELIC: _ELICCoder,
    TemporalTransformer: _TTCoder,
    FlexTEC: FlexCoder,
}
