"""``tec-tt-s2``: the dates of one tile, each predicted from dates that are decoded already.

A date's *picture* is the DCT of the 8 x 8 blocks of every band, after the image model's overlap
matrix.  It is predicted as a weighted sum of the pictures of up to three other dates.  There is one
weight for each band and each of three classes of spatial frequency, because fine structure changes
more than coarse structure.  The difference is coded as ``tec-s2`` codes a picture, in its own KLT,
by networks that also see the prediction (:mod:`tec_zarr.networks.series_net`).  A date without
references is coded in the cheaper of two ways: as one byte and a ``tec-s2`` section, or by the
temporal networks from a prediction of zero.

Predictions determine the tables of the entropy coder, so they must be the same on every machine.
They are whole numbers of 1/16 DN.  They come from matrix products of whole numbers in float64,
whose sums stay below 2**53, and from single divisions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tec_zarr.entropy.range_coder import SymbolEncoder
from tec_zarr.entropy.tables import Tables
from tec_zarr.models import klt
from tec_zarr.models.constants import (
    BLOCK,
    CHANNELS,
    COMPONENTS,
    GROUPS,
    MEAN_GRID,
    step_size,
)
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.temporal_section import (
    OWN,
    PICTURE_GRID,
    WEIGHT_GRID,
    Parsed,
    Reference,
    date_quality,
    decoding_order,
    parse,
    read_spectral,
    write_references,
    write_spectral,
)
from tec_zarr.networks.checks import frozen_net, named_model, read
from tec_zarr.networks.image import (
    Context,
    LatentCoder,
    TecS2,
    check_bands,
    checked,
    context_of,
    latents_crc,
    padded,
    read_tables,
)
from tec_zarr.networks.image_net import overlap
from tec_zarr.networks.references import (
    CANDIDATES,
    CLASS_OF,
    choose_references,
    coding_order,
    cost_of,
    estimated_sizes,
    finer_qualities,
    thinned,
)
from tec_zarr.networks.series_net import TemporalNet
from tec_zarr.networks.walk import IntegerModel, Past

#: Fixed-point bits of the transform's matrices, of steps, and of KLT bases (see klt).
MATRIX_BITS, STEP_BITS, BASIS_BITS = 14, 8, 24


def to_blocks(x: Tensor) -> Tensor:
    """Cut images (C, 8 h, 8 w) into blocks (C, 64, h w)."""
    count, height, width = x.shape
    folded = x.view(count, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return folded.permute(0, 2, 4, 1, 3).reshape(count, BLOCK * BLOCK, -1)


def from_blocks(x: Tensor, rows: int) -> Tensor:
    """Put blocks (C, 64, h w) together to images (C, 8 h, 8 w)."""
    count, _, places = x.shape
    folded = x.view(count, BLOCK, BLOCK, rows, places // rows)
    return folded.permute(0, 3, 1, 4, 2).reshape(count, BLOCK * rows, BLOCK * places // rows)


def _whole(x: Tensor, divisor: float | Tensor = 1.0) -> Tensor:
    """Return round(x / divisor), half up, of whole float64: one division, one sum, one floor."""
    return torch.div(x, divisor).add_(0.5).floor_()  # in place, as the arrays are large


def _dct() -> Tensor:
    """Return the orthonormal two-dimensional DCT of 8 x 8 blocks, (64, 64) float64."""
    n = torch.arange(BLOCK, dtype=torch.float64)
    one = torch.cos(math.pi / 16 * (2 * n[None] + 1) * n[:, None]) / 2
    one[0] /= math.sqrt(2)
    return torch.kron(one, one)


DCT = _dct()


class Predictor:
    """Computes exact predictions: pictures (C, 64, P), float64 whole numbers of 1/16 DN."""

    def __init__(self, image: TecS2):
        grid = 2.0**MATRIX_BITS
        analysis = image.net.analysis.double().unflatten(1, (-1, BLOCK * BLOCK)) @ DCT.T
        self.analysis = _whole(analysis * grid).flatten(1)  # (320, 12 * 64)
        self.exact_analysis = image.analysis.of(analysis.flatten(1))
        synthesis = DCT @ image.net.synthesis.double().unflatten(0, (-1, BLOCK * BLOCK))
        self.synthesis = _whole(synthesis * grid).flatten(0, 1)  # (12 * 64, 320)
        self.image = image

    def steps(self, quality: float) -> Tensor:
        """Return the quantiser steps, (320, 1) in whole 1/256 DN."""
        steps = self.image.net.steps(torch.tensor([quality], dtype=torch.float64))
        return _whole(steps[0, :, :, 0] * 2.0**STEP_BITS)

    def weighted(
        self, pictures: dict[int, Tensor], references: list[Reference], bands: int, places: int
    ) -> Tensor:
        """Predict a picture (C, 64, P) from decoded ``pictures``, by date; 0 without references."""
        total = torch.zeros(bands, BLOCK * BLOCK, places, dtype=torch.float64)
        for r in references:
            weights = torch.from_numpy(r.weights).double()[CLASS_OF].T[:, :, None]
            total += weights * pictures[r.date]
        return _whole(total, WEIGHT_GRID)

    def latents(self, prediction: Tensor, spectral: klt.Klt, quality: float) -> Tensor:
        """Transform a prediction to latents in a KLT basis, (P, 320) int32 in 1/16 step."""
        used = spectral.used
        basis = torch.from_numpy(spectral.basis[:, :used] * 2.0**BASIS_BITS)
        count, _, places = prediction.shape
        components = _whole(basis.T @ prediction.reshape(count, -1), 2.0**BASIS_BITS)
        matrix = self.analysis[:, : used * BLOCK * BLOCK]
        sums = matrix @ components.reshape(-1, places)
        unit = 2.0 ** (MATRIX_BITS - STEP_BITS) * PICTURE_GRID / MEAN_GRID
        return _whole(sums, self.steps(quality) * unit).clamp(-(2**20), 2**20).int().T.contiguous()

    def picture(self, latents: Tensor, spectral: klt.Klt, quality: float) -> Tensor:
        """Transform latents (320, P), in 1/16 step, to a lapped picture (C, 64, P) without mean."""
        used = spectral.used
        matrix = self.synthesis[: used * BLOCK * BLOCK]
        scaled = latents.double() * self.steps(quality)
        unit = 2.0 ** (MATRIX_BITS + STEP_BITS) * MEAN_GRID / PICTURE_GRID
        components = _whole(matrix @ scaled, unit).reshape(used, -1)
        basis = torch.from_numpy(spectral.basis[:, :used] * 2.0**BASIS_BITS)
        picture = _whole(basis @ components, 2.0**BASIS_BITS)
        return picture.reshape(len(basis), BLOCK * BLOCK, -1)


class TecTtS2(Model):
    """``tec-tt-s2`` behind the :class:`~tec_zarr.models.protocol.Model` protocol.

    Parameters
    ----------
    image : TecS2
        Gives the transform. It also codes the dates that ``net`` does not code better.
    net : TemporalNet
        Its integer layers are frozen.
    tables : Tables
        Tables of the dates that ``net`` codes, one per scale index.
    """

    name = "tec-tt-s2"

    def __init__(self, image: TecS2, net: TemporalNet, tables: Tables, weights_sha256: str):
        self.image, self.net = image, net.eval().requires_grad_(False)
        self.coder = LatentCoder(IntegerModel(self.net), tables)
        self.predictor = Predictor(image)
        self.weights_sha256 = weights_sha256

    # ---- the Model protocol

    @torch.inference_mode()
    def encode(
        self,
        cube: np.ndarray,
        quality: float,
        bands: tuple[str, ...] | None,
        gop: int | None = None,
    ) -> Encoded:
        """Encode float32 DN (T, C, h, w), finite and filled everywhere, C from 1 to 31.

        Each date is coded alone and with the most promising references; the cheaper result is kept.
        Dates that others depend on are coded finer than ``quality`` (:func:`finer_qualities`).
        With ``gop``, dates refer to one another only within runs of that many dates.

        Raises
        ------
        UnsupportedArrayError
            C is above 31.
        """
        del bands  # the KLT of each date makes any set and order of bands alike
        check_bands(self.name, cube.shape)
        run = gop or len(cube)
        coded: list[_Date] = []
        for start in range(0, len(cube), run):
            coded += self._encode_run(cube[start : start + run], quality)
        return Encoded(
            [date.section for date in coded], [zlib.crc32(date.latents) for date in coded]
        )

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decode to float32 DN of ``shape`` and the CRC32 of each date's latents."""
        del bands
        out, crcs = self.decode_dates(sections, shape, quality, range(len(sections)))
        return out, [crcs[number] for number in range(len(sections))]

    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Decode some dates of ``shape`` only, float32 DN (len(dates), C, h, w).

        The dates that they refer to are decoded to latents, but not to pixels. Returns the CRC32
        of the latents of all these dates too.
        """
        out, done = self._decode(sections, shape, quality, dates)
        return out, {number: latents_crc(read.latents) for number, read in done.items()}

    @torch.inference_mode()
    def _decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, dict[int, ReadDate]]:
        parsed = [parse(section, date, shape) for date, section in enumerate(sections)]
        order = decoding_order(parsed, dates)
        needed = {r.date for number in order for r in parsed[number].references}
        out = np.empty((len(dates), *shape[1:]), np.float32)
        done: dict[int, ReadDate] = {}
        for number in order:
            level = date_quality(quality, parsed[number].finer)
            read = self._read(parsed[number], done, shape[1:], level, number in needed)
            if number in dates:
                self.pixels(read, level, out[dates.index(number)])
            done[number] = replace(read, prediction=None, past=None)  # free memory: both are large
        return out, done

    # ---- one date

    def _encode_run(self, cube: np.ndarray, quality: float) -> list[_Date]:
        means = [date.mean((1, 2), np.float64) for date in cube]
        step = float(step_size(quality))
        done: dict[int, _Date] = {}
        thin = [thinned(self.picture_of(*pair)) for pair in zip(cube, means, strict=True)]
        sizes = estimated_sizes(thin, step)
        order = coding_order(sizes)
        finer = finer_qualities(sizes, order)
        for number in order:
            date = cube[number]
            picture = self.picture_of(date, means[number])
            level = date_quality(quality, finer[number])
            best = self._alone(date, picture, level, quality)
            own = self._predicted(number, date, picture, level, quality, [], done)
            best = min(best, own, key=lambda d: d.cost)
            near = sorted(done, key=lambda d: abs(d - number))[:CANDIDATES]
            known = {d: done[d].picture for d in near}
            references = choose_references(picture, known, number, float(step_size(level)))
            if references:
                predicted = self._predicted(
                    number, date, picture, level, quality, references, done
                )
                best = min(best, predicted, key=lambda d: d.cost)
            # The high bits of a section's first byte say how much finer its quality is.
            head = bytes([best.section[0] | finer[number] << 4])
            done[number] = replace(best, section=head + best.section[1:])
        return [done[number] for number in range(len(cube))]

    def symbol_sink(self) -> SymbolEncoder:
        """Make the encoder of a predicted date's symbols."""
        return SymbolEncoder(self.coder.tables)

    def _alone(self, date: np.ndarray, picture: Tensor, quality: float, trade: float) -> _Date:
        sink = SymbolEncoder(self.image.coder.tables)
        header, latents = self.image.encode_date(date, quality, sink, trade)
        section = bytes([0]) + header + sink.finish()
        spectral, _ = klt.read(header, len(date), step_size(quality))
        places = np.frombuffer(latents, "<i4").reshape(-1, sum(GROUPS))
        decoded = self.decoded_picture(places, spectral, None, quality)
        cost = cost_of(section, decoded, picture, quality, trade)
        return _Date(section, latents, decoded, spectral, cost)

    def _predicted(
        self,
        number: int,
        date: np.ndarray,
        picture: Tensor,
        quality: float,
        trade: float,
        references: list[Reference],
        done: dict[int, _Date],
    ) -> _Date:
        pictures = {r.date: done[r.date].picture for r in references}
        prediction = self.predictor.weighted(pictures, references, len(date), picture.shape[2])
        missing = picture - prediction / PICTURE_GRID
        mean = date.mean((1, 2), np.float64)
        bases = [done[r.date].spectral for r in references]
        inherited, header, spectral = write_spectral(
            mean, missing, bases, float(step_size(quality))
        )
        context = context_of(spectral, quality)
        residual = self.picture_of(date, spectral.mean) - prediction / PICTURE_GRID
        rows, columns = (-(-n // BLOCK) for n in date.shape[1:])
        latents = self.latents_of(residual, context, columns)
        past = Past(self.predictor.latents(prediction, spectral, quality)[None], rows, columns)
        sink = self.symbol_sink()
        worth = self.image.worth(quality, trade)
        flags, decoded = self.coder.encode(latents, rows, context, worth, sink, past)
        section = (
            bytes([len(references) | (inherited if references else OWN) << 2])
            + write_references(references, number)
            + header
            + flags
            + sink.finish()
        )
        after = self.decoded_picture(decoded, spectral, prediction, quality)
        cost = cost_of(section, after, picture, quality, trade)
        return _Date(section, checked(decoded), after, spectral, cost)

    def latents_of(self, picture: Tensor, context: Context, columns: int) -> Tensor:
        """Transform a picture (C, 64, P), in DN, to latents (P, 320) float32, in steps."""
        spectral = context.spectral
        basis = torch.from_numpy(spectral.basis[:, : spectral.used])
        components = (basis.T @ picture.flatten(1)).view(spectral.used * BLOCK * BLOCK, -1)
        blocks = F.pad(components, (0, 0, 0, COMPONENTS * BLOCK * BLOCK - len(components))).T
        analysis = self.predictor.exact_analysis
        return analysis(blocks, context.quality, context.condition, columns)

    def _read(
        self,
        parsed: Parsed,
        done: dict[int, ReadDate],
        shape: tuple[int, ...],
        quality: float,
        needed: bool,
    ) -> ReadDate:
        prediction = past = None
        if parsed.by_image:
            latents, context = self.image.decode_latents(parsed.rest, shape, quality)
        else:
            count, height, width = shape
            rows, columns = -(-height // BLOCK), -(-width // BLOCK)
            pictures = {r.date: done[r.date].picture for r in parsed.references}
            references = parsed.references
            prediction = self.predictor.weighted(pictures, references, count, rows * columns)
            bases = [done[r.date].context.spectral for r in references]
            step = float(step_size(quality))
            spectral, rest = read_spectral(parsed.rest, parsed.inherited, bases, count, step)
            past = Past(self.predictor.latents(prediction, spectral, quality)[None], rows, columns)
            context = context_of(spectral, quality)
            latents, context = self.coder.decode(rest, context, rows, columns, past)
        picture = torch.empty(0)
        if needed:
            picture = self.decoded_picture(latents, context.spectral, prediction, quality)
        return ReadDate(latents, context, picture, prediction, past)

    def decoded_picture(
        self, latents: np.ndarray, spectral: klt.Klt, prediction: Tensor | None, quality: float
    ) -> Tensor:
        """Return the picture that predicts other dates, int32 (C, 64, P) in 1/16 DN.

        It is exact, because it leaves out the float32 corrections that pixels get.
        """
        units = torch.from_numpy(latents.T.copy())
        picture = self.predictor.picture(units, spectral, quality)
        if prediction is not None:
            picture = picture + prediction
        return picture.clamp(-(2**26), 2**26).int()

    def pixels(self, read: ReadDate, quality: float, out: np.ndarray) -> None:
        """Write float32 DN into ``out`` (C, h, w)."""
        context, latents, channels = read.context, read.latents, read.context.channels
        if read.past:
            latents = self.refined(latents, read.past, context.condition)
            channels = CHANNELS
        self.image.synthesis(
            latents, channels, quality, context.condition, context.spectral, out
        )
        if read.prediction is not None:
            # In float64: predictions are large, and a process may have let torch compute float32
            # products with lower precision.
            samples = DCT.T @ (read.prediction / PICTURE_GRID)
            blocks = from_blocks(samples, -(-out.shape[1] // BLOCK))
            whole = overlap(blocks, self.image.net.synthesis_overlap.double())
            out += whole[:, : out.shape[1], : out.shape[2]].numpy()

    def refined(self, latents: np.ndarray, past: Past, condition: Tensor) -> np.ndarray:
        """Refine decoded latents (P, 320), in 1/16 step, with the networks; float32."""
        size = past.geometry.height, past.geometry.width
        both = (torch.from_numpy(latents).float(), past.units[0].float())
        grids = (x.T.reshape(1, -1, *size) / MEAN_GRID for x in both)
        out = self.net.refine.refined(*grids, condition)
        return (MEAN_GRID * out[0].flatten(1).T).contiguous().numpy()

    def picture_of(self, date: np.ndarray, mean: np.ndarray) -> Tensor:
        """Transform (C, h, w) DN to a picture (C, 64, P), float64 in DN."""
        centred = torch.from_numpy(date.astype(np.float64) - mean[:, None, None])
        whole = padded(centred)
        return DCT @ to_blocks(overlap(whole, self.image.net.analysis_overlap.double()))


# ---- dates


@dataclass(frozen=True)
class _Date:
    """A coded date: its section, latents (bytes of the checksum), picture, basis, cost in bits."""

    section: bytes
    latents: bytes
    picture: Tensor
    spectral: klt.Klt
    cost: float


@dataclass(frozen=True)
class ReadDate:
    """A decoded date, before its pixels."""

    latents: np.ndarray
    context: Context
    picture: Tensor
    prediction: Tensor | None
    past: Past | None


# ---- weights


def load(path: Path) -> TecTtS2:
    """Read a file of :func:`tec_zarr.networks.files.save_series`.

    The image model that it names comes from the registry.
    """
    tensors, sha256 = read(path)
    image_sha256 = tensors.pop("image_sha256")
    tables = read_tables(tensors, path)
    net = frozen_net(lambda: TemporalNet.like(tensors), tensors, path)
    image = named_model("tec-s2", image_sha256)
    assert isinstance(image, TecS2)
    return TecTtS2(image, net, tables, sha256)
