"""``tec-flex-s2``: one stream of a tile for all qualities up to that of its encoding.

FlexTEC (arXiv 2510.12670, section 3.4) repacks latents so that the first k of 16 tokens are a date
at a lower rate.  Here the 16 steps are eight qualities of two halves each.  The networks of
``tec-tt-s2`` first code a date at the lowest quality.  Then every latent is narrowed down to the
next quality (:mod:`tec_zarr.models.intervals`), with the networks' predictions at that quality.
Nothing is coded twice, and no additional network is trained.  The first half of a quality refines
the first channel groups and leaves the others as they are.

At every step a date is predicted from the same step of the dates that it refers to.  So any number
of steps can be decoded, as long as all dates of a chunk are cut to the same number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tec_zarr.entropy.range_coder import BitDecoder, BitEncoder
from tec_zarr.errors import ChecksumError, FormatError
from tec_zarr.models import klt
from tec_zarr.models.constants import BLOCK, CHANNELS, GROUPS, LEVELS, SCALES, step_size
from tec_zarr.models.intervals import (
    CLASSES,
    CONTEXTS,
    GRID,
    KINDS,
    REACH,
    Cells,
    IntervalTables,
    contexts,
)
from tec_zarr.models.progressive_section import (
    QUALITY_GRID,
    Head,
    first_half,
    header_step,
    level_qualities,
    read_head,
    read_spreads,
    spread_of,
    write_spreads,
)
from tec_zarr.models.protocol import Encoded, Model
from tec_zarr.models.temporal_section import (
    OWN,
    PICTURE_GRID,
    Reference,
    decoding_order,
    read_spectral,
    write_references,
    write_spectral,
)
from tec_zarr.models.tokens import FlexSection
from tec_zarr.networks.checks import HASH, Part, check, named_model, read
from tec_zarr.networks.image import SILENT, WORTHWHILE, check_bands, context_of
from tec_zarr.networks.levels import (
    CHANNELS_OF,
    OPEN,
    Latents,
    Level,
    Predictions,
    Series,
    checksums_of,
    keep_for_others,
    last_users,
    nearest_dates,
    network_units,
)
from tec_zarr.networks.references import (
    choose_references,
    coding_order,
    estimated_sizes,
    finer_qualities,
    thinned,
)
from tec_zarr.networks.series import ReadDate, TecTtS2
from tec_zarr.networks.walk import Past, Step

#: Lowest quality at which bits are weighed against errors. Below it the quantiser of tec-s2 drops
#: detail. A stream that goes on with finer qualities keeps it.
LEAST_TRADE = 1.25
#: Bytes of a step's check. One is enough: the checks of later steps cover the same latents again.
_CHECK = 1


class TecFlexS2(Model):
    """``tec-flex-s2`` behind the :class:`~tec_zarr.models.protocol.Model` protocol.

    Parameters
    ----------
    temporal : TecTtS2
        Gives the networks, the predictions and the pixels.
    tables : IntervalTables
        Tables for the scale indexes of its networks.
    """

    name = "tec-flex-s2"
    flexible = True

    def __init__(self, temporal: TecTtS2, tables: IntervalTables, weights_sha256: str):
        self.temporal, self.tables = temporal, tables
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

        A stream has two steps for every whole quality up to ``quality``: 16 at quality 8.
        With ``gop``, dates refer to one another only within runs of that many dates.

        Raises
        ------
        UnsupportedArrayError
            C is above 31.
        """
        del bands  # the KLT of each date makes any set and order of bands alike
        check_bands(self.name, cube.shape)
        quality = round(quality * QUALITY_GRID) / QUALITY_GRID  # the grid that sections store
        run = gop or len(cube)
        sections: list[bytes] = []
        for start in range(0, len(cube), run):
            sections += self._encode_run(cube[start : start + run], quality)
        return Encoded(sections, checksums_of(sections))

    def decode(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        bands: tuple[str, ...] | None,
    ) -> tuple[np.ndarray, list[int]]:
        """Decode to float32 DN of ``shape`` and the checksums of the latents.

        ``quality`` is not used: each section holds its own.

        Raises
        ------
        ChecksumError
            The decoded latents differ from the encoded ones.
        """
        del bands
        out, _ = self.decode_dates(sections, shape, quality, range(len(sections)))
        return out, checksums_of(sections)

    @torch.inference_mode()
    def decode_dates(
        self,
        sections: list[bytes],
        shape: tuple[int, int, int, int],
        quality: float,
        dates: Sequence[int],
    ) -> tuple[np.ndarray, dict[int, int]]:
        """Decode some dates of ``shape`` only, float32 DN (len(dates), C, h, w).

        Returns the checksums of their latents too, and of those of the dates they refer to.
        """
        del quality
        parts = [FlexSection.from_bytes(section) for section in sections]
        heads = [read_head(part.head, date, shape) for date, part in enumerate(parts)]
        order = decoding_order([head.parsed for head in heads], dates)
        uses = {n: [r.date for r in heads[n].parsed.references] for n in order}
        last = last_users(uses)
        out = np.empty((len(dates), *shape[1:]), np.float32)
        done: dict[int, Series] = {}
        for number in order:
            given = [len(parts[date].groups) for date in uses[number]]
            if min(given, default=LEVELS * 2) < len(parts[number].groups):
                raise FormatError(f"date {number} of a chunk was cut less than one it refers to")
            pixels = out[dates.index(number)] if number in dates else None
            read = self._read(
                heads[number], parts[number].groups, done, shape[1:], number in last, pixels
            )
            keep_for_others(done, number, read, last)
        return out, {number: parts[number].check() for number in order}

    # ---- one date

    def _encode_run(self, cube: np.ndarray, quality: float) -> list[bytes]:
        temporal = self.temporal
        pictures = [temporal.picture_of(date, date.mean((1, 2), np.float64)) for date in cube]
        thin = [thinned(p) for p in pictures]
        middle, *ends = (
            estimated_sizes(thin, float(step_size(q)))
            for q in (quality - int(quality) // 2, quality - int(quality) + 1, quality)
        )
        order = coding_order(middle)
        # At large steps a date passes more of its content on to others, so qualities differ.
        low, high = (finer_qualities(sizes, order) for sizes in ends)
        done: dict[int, Series] = {}
        sections: dict[int, bytes] = {}
        uses = {date: nearest_dates(date, order[:place]) for place, date in enumerate(order)}
        last = last_users(uses)
        for number in order:
            # All steps use the same weights, which are fitted to the middle step.
            known = {d: done[d].pictures[int(quality)] for d in uses[number]}
            finer = low[number], high[number]
            step = float(step_size(level_qualities(quality, finer)[int(quality) // 2]))
            references = choose_references(pictures[number], known, number, step)
            sections[number], written = self._write(
                number,
                cube[number],
                pictures[number],
                quality,
                finer,
                references,
                done,
                number in last,
            )
            keep_for_others(done, number, written, last)
        return [sections[number] for number in range(len(cube))]

    def _write(
        self,
        number: int,
        date: np.ndarray,
        picture: Tensor,
        quality: float,
        finer: tuple[int, int],
        references: list[Reference],
        done: dict[int, Series],
        needed: bool,
    ) -> tuple[bytes, Series]:
        temporal = self.temporal
        rows, columns = (-(-n // BLOCK) for n in date.shape[1:])
        predictions = Predictions(
            self.temporal, references, done, len(date), rows * columns, 2 * int(quality)
        )
        qualities = level_qualities(quality, finer)
        bases = [done[r.date].spectral for r in references]
        coarse = header_step(qualities)
        mean = date.mean((1, 2), np.float64)
        missing = picture - predictions[-1] / PICTURE_GRID
        inherited, spectral_header, spectral = write_spectral(mean, missing, bases, coarse)
        lowest = spread_of(
            picture - predictions[0] / PICTURE_GRID, spectral, float(step_size(qualities[0]))
        )
        spread_bytes, spreads = write_spreads(lowest, spectral, len(qualities))
        head = len(references) | (inherited if references else OWN) << 2 | finer[1] << 4
        data = struct.pack("<HBB", round(quality * QUALITY_GRID), finer[0], head)
        data += write_references(references, number) + spectral_header + spread_bytes
        levels = self._levels(qualities, spectral, spreads)
        # The encoder's correction is computed once, for the latents at the last step.
        residual = temporal.picture_of(date, spectral.mean) - predictions[-1] / PICTURE_GRID
        last = levels[-1]
        latents = temporal.latents_of(residual, last.context, columns).double().numpy()
        walk = _Walk(self, levels, predictions, rows, columns, needed)
        past = walk.past(2 * len(levels) - 1)
        wanted = np.rint((latents * GRID + past) * last.steps).astype(np.int64)
        groups = [part for k in range(len(levels)) for part in walk.write(k, wanted)]
        section = FlexSection(1, data, tuple(groups))
        return section.to_bytes(), Series(walk.pictures, spectral)

    def _read(
        self,
        head: Head,
        groups: Sequence[bytes],
        done: dict[int, Series],
        shape: tuple[int, ...],
        needed: bool,
        pixels: np.ndarray | None,
    ) -> Series:
        count, height, width = shape
        rows, columns = -(-height // BLOCK), -(-width // BLOCK)
        references = head.parsed.references
        predictions = Predictions(
            self.temporal, references, done, count, rows * columns, 2 * int(head.quality)
        )
        qualities = level_qualities(head.quality, (head.lowest_finer, head.parsed.finer))
        bases = [done[r.date].spectral for r in references]
        coarse = header_step(qualities)
        spectral, rest = read_spectral(
            head.parsed.rest, head.parsed.inherited, bases, count, coarse
        )
        levels = self._levels(qualities, spectral, read_spreads(rest, spectral, len(qualities)))
        if len(groups) > 2 * len(levels):
            raise FormatError(f"a date of {len(levels)} qualities has {len(groups)} steps")
        walk = _Walk(self, levels, predictions, rows, columns, needed)
        for k in range(-(-len(groups) // 2)):
            walk.read(k, groups[2 * k : 2 * k + 2])
        if pixels is not None:
            walk.pixels(pixels)
        return Series(walk.pictures, spectral)

    def _levels(
        self, qualities: list[float], spectral: klt.Klt, spreads: list[np.ndarray]
    ) -> list[Level]:
        out = []
        for quality, spread in zip(qualities, spreads, strict=True):
            # All levels use the last level's basis. The networks get the spreads of each level.
            told = context_of(replace(spectral, spread=spread), quality)
            steps = self.temporal.predictor.steps(quality)[:, 0].numpy().astype(np.int64)
            out.append(Level(quality, steps, replace(told, spectral=spectral)))
        return out


class _Walk:
    """Codes one date level by level; writer and reader share it."""

    def __init__(
        self,
        model: TecFlexS2,
        levels: list[Level],
        predictions: Predictions,
        rows: int,
        columns: int,
        needed: bool,
    ):
        self.model, self.levels, self.predictions = model, levels, predictions
        self.rows, self.columns, self.needed = rows, columns, needed
        self.entropy = model.temporal.coder.entropy
        self.silent = model.temporal.coder.tables.silent
        self.latents = Latents(rows * columns)
        #: Context of every latent, from its neighbours before the level.
        self.around = np.zeros((rows * columns, CHANNELS), np.uint8)
        #: Latents of the prediction that was asked for last, by step.
        self.pasts: dict[int, np.ndarray] = {}
        self.checks: list[bytes] = []
        #: The picture after every step, if other dates need it.
        self.pictures: list[Tensor] = []

    def write(self, number: int, wanted: np.ndarray) -> tuple[bytes, bytes]:
        """Code both halves of a level from latents (P, 320), int64 in 1/4096 DN."""
        level, state = self.levels[number], self.latents
        size = np.abs(wanted - self.past(2 * number) * level.steps) / (level.steps * GRID)
        sizes = [size[:, channels] for channels in CHANNELS_OF]
        known = [bool(state.coded[channels].any()) for channels in CHANNELS_OF]
        tried = [known[g] or g == 0 or bool((part > SILENT).any()) for g, part in enumerate(sizes)]
        # Guess the bits of each group: its half has to be known before it is coded.
        guesses = [float(np.log2(1 + 2 * np.maximum(part - 0.5, 0)).sum()) for part in sizes]
        split = first_half(guesses, tried)
        worth = self.model.temporal.image.worth(level.quality, max(level.quality, LEAST_TRADE))
        halves = BitEncoder(), BitEncoder()
        mask, total, gain, sink = 0, 0.0, 0.0, BitEncoder()
        last = -1
        for step, past in self._steps(number, tried, split):
            if step.group != last:
                before, last = state.copy(step.group), step.group
            gain += self._narrow(step, level, past, sink, wanted, worth)
            if not step.last:
                continue
            group, bits = step.group, sink.bits
            if group and not known[group] and gain < bits + WORTHWHILE * (total + bits):
                step.discard()
                state.restore(group, before)
            else:
                mask |= 1 << group
                state.coded[CHANNELS_OF[group]] = True
                total += bits
                halves[group > split].extend(sink)
            gain, sink = 0.0, BitEncoder()
        flags = bytes([mask | split << len(GROUPS)])
        first, second = self.checks[-2:]
        return first + flags + halves[0].finish(), second + halves[1].finish()

    def read(self, number: int, parts: Sequence[bytes]) -> None:
        """Decode the two halves of a level, or the first one alone."""
        level = self.levels[number]
        if any(len(part) < _CHECK for part in parts) or len(parts[0]) == _CHECK:
            raise FormatError(f"a step of quality {level.quality:g} is too short")
        flags = parts[0][_CHECK]
        mask, split = flags & (1 << len(GROUPS)) - 1, flags >> len(GROUPS)
        coded = [bool(mask >> g & 1) for g in range(len(GROUPS))]
        if not coded[0] or split >= len(GROUPS):
            raise FormatError(f"a step of quality {level.quality:g} begins with {flags:#04x}")
        coders = [BitDecoder(part[_CHECK + (half == 0) :]) for half, part in enumerate(parts)]
        for step, past in self._steps(number, coded, split, halves=len(parts)):
            self._narrow(step, level, past, coders[step.group > split])
            self.latents.coded[step.channels] = True
        for half, part in enumerate(parts):
            if self.checks[2 * number + half] != part[:_CHECK]:
                raise ChecksumError(
                    f"step {2 * number + half + 1} of a date decoded to other latents than were "
                    "encoded: this machine's arithmetic disagrees with the encoder's"
                )

    def pixels(self, out: np.ndarray) -> None:
        """Write float32 DN (C, h, w) of the last step that was read."""
        step = len(self.checks) - 1
        level = self.levels[step // 2]
        past = self.past(step)
        units = self.latents.residual(past, level.steps)
        prediction = self.predictions[step] if self.predictions.references else None
        seen = Past(network_units(past), self.rows, self.columns)
        read = ReadDate(units, level.context, torch.empty(0), prediction, seen)
        self.model.temporal.pixels(read, level.quality, out)

    def _steps(
        self, number: int, coded: Sequence[bool], split: int, halves: int = 2
    ) -> Iterator[tuple[Step, np.ndarray]]:
        """Yield the passes of a level and their predictions; note the state after each half."""
        condition = self.levels[number].context.condition
        past = self.past(2 * number)
        sizes = np.abs(self.latents.residual(past, self.levels[number].steps))
        self.around = contexts(sizes, self.rows)
        seen = Past(network_units(past), self.rows, self.columns)
        end = max(g for g in range(split + 1) if coded[g])
        for step in self.entropy.steps(condition, self.rows, self.columns, tuple(coded), seen):
            yield step, past
            if step.last and step.group == end:
                self._note(2 * number)
                if halves == 1:
                    return
                past = self.past(2 * number + 1)
                seen.replace(network_units(past))
        self._note(2 * number + 1)

    def _note(self, step: int) -> None:
        """Keep the check of the latents after ``step``, and their picture if others need it."""
        self.checks.append(self.latents.check())
        if not self.needed:
            return
        level = self.levels[step // 2]
        units = self.latents.residual(self.past(step), level.steps)
        picture = self.model.temporal.decoded_picture(
            units, level.context.spectral, self.predictions[step], level.quality
        )
        self.pictures.append(picture)

    def past(self, step: int) -> np.ndarray:
        """Return the latents of a step's prediction, (P, 320) int64 in 1/16 step of its level."""
        if not self.predictions.references:
            step = 0
        if step not in self.pasts:
            level = self.levels[step // 2]
            spectral, quality = level.context.spectral, level.quality
            found = self.model.temporal.predictor.latents(self.predictions[step], spectral, quality)
            self.pasts = {step: found.numpy().astype(np.int64)}
        return self.pasts[step]

    def _narrow(
        self,
        step: Step,
        level: Level,
        past: np.ndarray,
        coder: BitEncoder | BitDecoder,
        wanted: np.ndarray | None = None,
        worth: np.ndarray | None = None,
    ) -> float:
        """Code one pass; return the encoder's gain over zero latents, in bits (0 in a decoder)."""
        state, tables = self.latents, self.model.tables
        part = np.ix_(step.places.numpy(), np.arange(step.channels.start, step.channels.stop))
        mean, index = step.mean[0].numpy().astype(np.int64), step.index[0].numpy()
        steps = np.broadcast_to(level.steps[step.channels], mean.shape)
        base = (mean + past[part]) * steps
        low, high = state.low[part], state.high[part]
        begin = np.clip((low - base) // steps, -OPEN, OPEN)
        end = np.clip((high - base) // steps, -OPEN, OPEN)
        place = np.clip(0, begin, end)
        live = index >= self.silent
        cells = Cells(begin[live], end[live], index[live], self.around[part][live])
        goal = None if wanted is None else ((wanted[part] - base) // steps)[live]
        narrowed = tables.narrow(cells, coder, goal)
        place[live] = tables.centre(narrowed)
        for bound, old, new in ((low, cells.low, narrowed.low), (high, cells.high, narrowed.high)):
            bound[live] = np.where(new == old, bound[live], base[live] + new * steps[live])
        state.low[part], state.high[part] = low, high
        state.value[part] = base + place * steps
        units = mean + place
        step.write_units(network_units(units))
        if wanted is None or worth is None:
            return 0.0
        exact = (wanted[part] / steps - past[part]) / GRID
        error = exact - units / GRID
        return float((worth[step.channels] * (exact**2 - error**2)).sum())


# ---- weights


_LAYOUT = {
    "cumulative": Part((SCALES, 2 * REACH * GRID + 1), (torch.int32,)),
    "zones": Part((SCALES,), (torch.int32,)),
    "chances": Part((KINDS, CLASSES, CONTEXTS), (torch.int32,)),
    "temporal_sha256": HASH,
}


def load(path: Path) -> TecFlexS2:
    """Read a file of `files.save_progressive`; the temporal model comes from the registry."""
    tensors, sha256 = read(path)
    check(tensors, _LAYOUT, str(path))
    temporal = named_model("tec-tt-s2", tensors["temporal_sha256"])
    assert isinstance(temporal, TecTtS2)
    tables = IntervalTables(*(tensors[n].numpy() for n in ("cumulative", "zones", "chances")))
    return TecFlexS2(temporal, tables, sha256)
