"""The embedded default model ``tec-s2``: one date of one tile to bytes and back.

A section is ``KLT | group flags (1 byte) | range-coded latents``; see docs/format.md.  Each date
is coded independently.  Integer networks make the latents exact on every machine
(:mod:`tec_zarr.networks.image_net`).  The analysis runs in whole numbers too, after a KLT and an
overlap in float64, so that the same pixels give the same bytes everywhere.  Weights with a
:class:`~tec_zarr.networks.pixel_net.PixelNet` decode in whole numbers.  Others decode in float32,
which may differ in the last place and so move a pixel by one DN.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tec_zarr import native
from tec_zarr.entropy.range_coder import SymbolDecoder, SymbolEncoder, words_of
from tec_zarr.entropy.tables import Tables
from tec_zarr.errors import FormatError, UnsupportedArrayError
from tec_zarr.models import klt
from tec_zarr.models.constants import (
    BLOCK,
    CHANNELS,
    COMPONENTS,
    COND_LOW,
    GROUPS,
    MEAN_GRID,
    step_size,
)
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.networks.checks import TABLES, check, frozen_net, named_model, read
from tec_zarr.networks.image_net import S2Net
from tec_zarr.networks.pixel_net import PixelSynthesis, check_pixels
from tec_zarr.networks.transform import Analysis, Synthesis, blocks_of, overlapped, with_margin
from tec_zarr.networks.walk import IntegerModel, Past

#: Rate-distortion trade of the quantiser: bits per squared error in steps, as in training.
LAMBDA = 8.0
#: A channel group is not coded if all its latents lie below this, in steps.
SILENT = 0.6
#: A channel group is not coded either if it gains less than its own bits plus this share of all
#: bits, because decoding it takes time.
WORTHWHILE = 0.012


class SymbolSink(Protocol):
    """Receiver of an encoded date's symbols: a :class:`SymbolEncoder`, or a counter of them."""

    def put(self, symbols: np.ndarray, index: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Context:
    """Side information of one section, the same in encoder and decoder."""

    spectral: klt.Klt
    condition: Tensor  # (1, 13) float32
    level: float
    channels: int = CHANNELS  # latents from here on are zero

    @property
    def quality(self) -> Tensor:
        """The level as an input of the networks, (1,) float64."""
        return torch.tensor([self.level], dtype=torch.float64)


class LatentCoder:
    """Codes the latents of one date as symbols and back, with one set of networks and tables."""

    def __init__(self, entropy: IntegerModel, tables: Tables):
        self.entropy, self.tables = entropy, tables

    @cached_property
    def compiled(self) -> native.Networks | None:
        """The networks for :mod:`tec_zarr.native`; None if that was not built."""
        return self.entropy.compiled(self.tables)

    def encode(
        self,
        latents: Tensor,
        rows: int,
        context: Context,
        weight: np.ndarray,
        sink: SymbolSink,
        past: Past | None = None,
    ) -> tuple[bytes, np.ndarray]:
        """Code latents (P, 320), in steps, of ``rows`` rows of positions into ``sink``.

        ``weight`` (320,) is the price of a squared step in bits.  Returns the byte of group flags,
        and the latents that a decoder will have: (P, 320) int32 in 1/16 step.
        """
        coded = tuple(bool((g.abs() > SILENT).any()) for g in latents.split(GROUPS, 1))
        flat = latents.double().numpy()
        decoded = np.zeros(flat.shape, np.int32)
        flags, passes, total, bits, worth = 0, [], 0.0, 0.0, 0.0
        for step in self.entropy.steps(context.condition, rows, len(flat) // rows, coded, past):
            channels, places = step.channels, step.places.numpy()
            part = np.ix_(places, np.arange(channels.start, channels.stop))
            mean, index = step.mean[0].numpy(), step.index[0].numpy()
            symbols, spent, gained = self._quantise(
                flat[part], mean / MEAN_GRID, index, weight[channels]
            )
            bits, worth = bits + spent, worth + gained
            step.write(torch.from_numpy(symbols)[None])
            decoded[part] = step.units[0]
            live = index >= self.tables.silent
            passes.append((symbols[live], index[live]))
            if not step.last:
                continue
            if step.group and worth < bits + WORTHWHILE * (total + bits):
                step.discard()
                decoded[:, channels] = 0
            else:
                flags |= 1 << step.group
                total += bits
                for coded_symbols, tables in passes:
                    sink.put(coded_symbols, tables)
            passes, bits, worth = [], 0.0, 0.0
        return bytes([flags]), decoded

    def decode(
        self,
        data: bytes,
        context: Context,
        rows: int,
        columns: int,
        past: Past | None = None,
        reference: bool = False,
    ) -> tuple[np.ndarray, Context]:
        """Decode group flags and symbols to latents, (P, 320) int32 in 1/16 step.

        The returned context says how many channels are coded (``channels``).
        """
        if not data:
            raise FormatError("a section ends after its spectral header")
        if data[0] >> len(GROUPS):
            raise FormatError(f"a section flags channel groups that do not exist ({data[0]:#04x})")
        coded = tuple(bool(data[0] >> i & 1) for i in range(len(GROUPS)))
        channels = sum(GROUPS[: 1 + max((i for i, on in enumerate(coded) if on), default=0)])
        if self.compiled and not past and not reference:
            terms = self.entropy.terms(context.condition[0].numpy())
            found = self.compiled.latents(words_of(data[1:]), *terms, rows, columns, data[0])
        else:
            decoder = SymbolDecoder(self.tables, data[1:], reference)
            found = self._walked(decoder, context, rows, columns, coded, past)
        return found, replace(context, channels=channels)

    @torch.inference_mode()
    def _walked(
        self,
        decoder: SymbolDecoder,
        context: Context,
        rows: int,
        columns: int,
        coded: tuple[bool, ...],
        past: Past | None,
    ) -> np.ndarray:
        decoded = np.zeros((rows * columns, sum(GROUPS)), np.int32)
        for step in self.entropy.steps(context.condition, rows, columns, coded, past):
            symbols = decoder.get(step.index.flatten().numpy())
            step.write(torch.from_numpy(symbols).view(step.index.shape))
            decoded[step.places.numpy(), step.channels] = step.units[0]
        return decoded

    def _quantise(
        self, latents: np.ndarray, mean: np.ndarray, index: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, float, float]:
        """Round with rate-distortion optimisation: to the nearest integer, or one towards zero.

        Returns the symbols (int32), their bits, and their gain over zero latents, in bits.
        """
        residual = latents - mean
        nearest = np.rint(residual)
        lower = nearest - np.sign(nearest)
        bits, width = self.tables.bits, self.tables.bits.shape[1] // 2
        near = np.clip(nearest, -width, width).astype(np.intp) + width
        low = np.clip(lower, -width, width).astype(np.intp) + width
        near_bits, low_bits = bits[index, near], bits[index, low]
        with np.errstate(invalid="ignore"):  # inf - inf where nothing is coded
            saved = near_bits - low_bits
        worse = weight * ((residual - lower) ** 2 - (residual - nearest) ** 2)
        pick = saved > worse
        coded = index >= self.tables.silent
        symbols = np.where(coded, np.where(pick, lower, nearest), 0)
        spent = np.where(pick, low_bits, near_bits)[coded].sum()
        gained = weight * (latents**2 - (residual - symbols) ** 2)
        return symbols.astype(np.int32), float(spent), float(gained.sum())


class TecS2(Model):
    """``tec-s2`` behind the :class:`~tec_zarr.models.protocol.Model` protocol.

    Parameters
    ----------
    net : S2Net
        Its integer layers are frozen.
    tables : Tables
        Tables of the symbols, one per scale index.
    """

    name = "tec-s2"

    def __init__(self, net: S2Net, tables: Tables, weights_sha256: str):
        self.net = net.eval().requires_grad_(False)
        self.analysis = Analysis(self.net, self.net.analysis)
        self.coder = LatentCoder(IntegerModel(self.net), tables)
        self.synthesis: Synthesis | PixelSynthesis = Synthesis(self.net)
        self.weights_sha256 = weights_sha256
        #: Hash of the weights with the entropy networks. Models with the same networks have the
        #: same latents, even if they make other pixels of them.
        self.networks_sha256 = weights_sha256

    def with_pixels(self, tensors: dict[str, Tensor], weights_sha256: str) -> TecS2:
        """Return a model with the same latents whose pixels come from a :class:`PixelNet`.

        ``tensors`` are the PixelNet's, ``weights_sha256`` is the hash of their file.
        """
        other = copy.copy(self)
        other.synthesis = PixelSynthesis(self.net, tensors)
        other.weights_sha256 = weights_sha256
        return other

    # ---- the Model protocol

    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None,
        known: np.ndarray | None = None,
    ) -> Encoded:
        """Encode float32 DN (T, C, h, w), finite and filled everywhere, C from 1 to 31.

        ``known`` marks the measured pixels; these weights do not use it.

        Of more than 12 bands the 12 components of largest variance are coded.

        Raises
        ------
        UnsupportedArrayError
            C is above 31.
        """
        del bands, known  # the tile's own KLT makes any set and order of bands alike
        check_bands(self.name, cube.shape)
        sections, crcs = [], []
        for date in cube:
            coder = SymbolEncoder(self.coder.tables)
            header, latents = self.encode_date(date, quality, coder)
            sections.append(header + coder.finish())
            crcs.append(zlib.crc32(latents))
        return Encoded(sections, crcs)

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decode to float32 DN of ``shape`` and the CRC32 of each date's latents."""
        del bands
        return self._decode(sections, np.empty(shape, np.float32), quality)

    @property
    def decode_whole(self) -> Callable[..., tuple[np.ndarray, list[int]]] | None:
        """``decode`` to uint16 DN, saturated; None if the weights do not make whole DN."""
        return self._decode_whole if isinstance(self.synthesis, PixelSynthesis) else None

    def _decode_whole(
        self, sections: list[bytes], shape: tuple[int, int, int, int], quality: float
    ) -> tuple[np.ndarray, list[int]]:
        return self._decode(sections, np.empty(shape, np.uint16), quality)

    def _decode(
        self, sections: list[bytes], out: np.ndarray, quality: float
    ) -> tuple[np.ndarray, list[int]]:
        return out, [
            latents_crc(self._decode_date(section, quality, date))
            for date, section in zip(out, sections, strict=True)
        ]

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Decode some dates of ``shape`` only, float32 DN (len(dates), C, h, w).

        Returns the CRC32 of their latents too.
        """
        out = np.empty((len(dates), *shape[1:]), np.float32)
        some = [sections[number] for number in dates]
        return out, dict(zip(dates, self._decode(some, out, quality)[1], strict=True))

    # ---- one date

    @torch.inference_mode()
    def encode_date(
        self, date: np.ndarray, quality: float, sink: SymbolSink, trade: float | None = None
    ) -> tuple[bytes, memoryview]:
        """Code (C, h, w) DN into ``sink``; return the section's header and the latents' bytes.

        A date may be coded finer than its chunk.  Then ``trade`` is the chunk's quality, at which
        bits are weighed against errors.
        """
        count, height, width = date.shape
        flat = date.reshape(count, -1).astype(np.float64)
        mean = flat.mean(axis=1)
        flat -= mean[:, None]
        covariance = flat @ flat.T / flat.shape[1]
        header, spectral = klt.write(mean, covariance, step_size(quality))
        context = context_of(spectral, quality)
        basis = spectral.basis[:, :COMPONENTS].T
        rotated = basis @ flat
        rotated += (basis @ (mean - spectral.mean))[:, None]
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        image, inside = with_margin(len(rotated), rows, columns, torch.float64)
        inside.copy_(padded(torch.from_numpy(rotated).view(-1, height, width)))
        overlapped(image, self.net.analysis_overlap.double())
        blocks = torch.zeros(rows * columns, COMPONENTS * BLOCK * BLOCK)
        lapped = blocks[:, : len(rotated) * BLOCK * BLOCK]
        lapped.view(rows, columns, -1, BLOCK, BLOCK).copy_(blocks_of(inside).permute(1, 3, 0, 2, 4))
        latents = self.analysis(blocks, context.quality, context.condition, columns)
        worth = self.worth(quality, trade)
        flags, decoded = self.coder.encode(latents, rows, context, worth, sink)
        return header + flags, checked(decoded)

    def decode_latents(
        self, section: bytes, shape: tuple[int, ...], quality: float, reference: bool = False
    ) -> tuple[np.ndarray, Context]:
        """Decode a section of ``shape`` (C, h, w) to latents, (positions, 320) int32 in 1/16 step.

        Positions are the 8 x 8 blocks, row by row.  With ``reference``, the plain Python range
        decoder is used.
        """
        count, height, width = shape
        spectral, rest = klt.read(section, count, step_size(quality))
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        context = context_of(spectral, quality)
        return self.coder.decode(rest, context, rows, columns, reference=reference)

    def _decode_date(self, section: bytes, quality: float, out: np.ndarray) -> np.ndarray:
        """Write DN into ``out`` (C, h, w); return the latents."""
        latents, context = self.decode_latents(section, out.shape, quality)
        self.synthesis(latents, context.channels, quality, context.condition, context.spectral, out)
        return latents

    def worth(self, quality: float, trade: float | None = None) -> np.ndarray:
        """Return the price in bits of a squared step of each channel, (320,).

        ``trade`` is as for :meth:`encode_date`.
        """
        steps = self.net.steps(torch.tensor([quality], dtype=torch.float64))[0, :, 0, 0]
        gain = torch.log2(steps / step_size(quality)).numpy()
        return lagrangian(quality if trade is None else trade) * np.exp2(2 * gain)


def check_bands(model: str, shape: tuple[int, ...]) -> None:
    """Raise UnsupportedArrayError if a cube of this shape has more bands than the KLT takes."""
    if not 1 <= shape[1] <= klt.MOST_BANDS:
        raise UnsupportedArrayError(
            f"{model} takes 1 to {klt.MOST_BANDS} bands, not the {shape[1]} of a chunk of "
            f"shape {shape}: split them into several arrays"
        )


def context_of(spectral: klt.Klt, quality: float) -> Context:
    """Return the side information that follows from a KLT and a quality."""
    condition = np.full(COMPONENTS + 1, COND_LOW, np.float32)
    condition[0] = np.rint(8 * (quality - 4.5))
    spread = spectral.spread[:COMPONENTS]
    condition[1 : 1 + len(spread)] = np.maximum(spread, COND_LOW)
    return Context(
        spectral,
        torch.from_numpy(condition)[None],
        float(quality),
    )


def lagrangian(quality: float) -> float:
    """Return the weight of squared error in the quantiser, in bits per squared step.

    It falls fourfold from quality 1.25 to quality 1.  There the quantiser drops detail, because
    steps coarser than those trained would cost more than they save.
    """
    return LAMBDA * 4.0 ** min((quality - 1.25) / 0.25, 0.0)


def checked(latents: np.ndarray) -> memoryview:
    """Return the bytes that the checksum of latents covers.

    They are little-endian int32, position by position.
    """
    return memoryview(np.ascontiguousarray(latents, "<i4")).cast("B")


def latents_crc(latents: np.ndarray) -> int:
    """Return the CRC32 of decoded latents."""
    return native.crc32(np.ascontiguousarray(latents, "<i4"), 0)


def padded(components: Tensor) -> Tensor:
    """Extend (K, h, w) to whole blocks by repeating the last row and column."""
    height, width = components.shape[-2:]
    return F.pad(components, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")


# ---- weights


def load(path: Path) -> TecS2:
    """Read a file that :mod:`tec_zarr.networks.files` wrote with `save_image` or `save_pixels`.

    A file of pixels names its image model, which comes from the registry.
    """
    tensors, sha256 = read(path)
    if "image_sha256" in tensors:
        image_sha256 = tensors.pop("image_sha256")
        check_pixels(tensors)
        image = named_model("tec-s2", image_sha256)
        assert isinstance(image, TecS2)
        return image.with_pixels(tensors, sha256)
    tables = read_tables(tensors, path)
    return TecS2(frozen_net(S2Net, tensors, path), tables, sha256)


def read_tables(tensors: dict[str, Tensor], path: Path) -> Tables:
    """Remove the tables from a file's ``tensors`` and return them."""
    found = {name: tensors.pop(name) for name in ("tables",) if name in tensors}
    check(found, {"tables": TABLES}, str(path))
    return Tables(found["tables"].numpy())
