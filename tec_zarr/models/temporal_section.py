"""The header of a section of ``tec-tt-s2``: references, their weights, the spectral basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tec_zarr.errors import FormatError
from tec_zarr.models import klt
from tec_zarr.models.constants import LEVELS

if TYPE_CHECKING:
    from torch import Tensor


MOST_REFERENCES = 3


#: Weights of references: whole sixteenths, from -31 to 31.
WEIGHT_GRID, WEIGHT_LIMIT = 16, 31


#: Frequencies (row + column) that classes of weights begin with.
CLASS_STARTS = (0, 2, 5)


#: Pictures and predictions: whole sixteenths of a DN.
PICTURE_GRID = 16


#: A date that others refer to may be coded finer than them, by up to fifteen eighths of a quality.
FINER_STEPS, MOST_FINER = 8, 15


#: In place of the reference that lends its basis, in a date without references: the networks coded
#: it, not the image model.
OWN = 1


#: Bytes that the list of references cannot exceed (3 dates and 279 weights of 56 bits), nor a
#: spectral header after it.
_LONGEST_HEADER = 2048


@dataclass(frozen=True)
class Reference:
    """One date that a prediction uses: its number in the tile, its weights (classes, C)."""

    date: int
    weights: np.ndarray


def date_quality(quality: float, finer: int) -> float:
    """The quality that a date is coded with in a tile of ``quality``."""
    return min(quality + finer / FINER_STEPS, float(LEVELS))


@dataclass(frozen=True)
class Parsed:
    """What a section says before its spectral header, and the bytes from there on."""

    references: list[Reference]
    inherited: int
    finer: int
    rest: bytes
    by_image: bool = False


def decoding_order(parsed: list[Parsed], dates: Sequence[int]) -> list[int]:
    """``dates`` and all that they depend on, references before those that use them."""
    order: dict[int, None] = {}
    for number in dates:
        path = {number: None}  # dates that wait for one another
        while path:
            last = next(reversed(path))
            missing = [r.date for r in parsed[last].references if r.date not in order]
            if not missing:
                order[last] = path.pop(last)
            elif missing[0] in path:
                raise FormatError(f"date {last} of a chunk refers to itself by way of others")
            else:
                path[missing[0]] = None
    return list(order)


def write_references(references: list[Reference], date: int) -> bytes:
    bits = klt.BitWriter()
    for reference in references:
        bits.put_signed(date - reference.date, 2)
        before = WEIGHT_GRID // 2
        for weight in reference.weights.flatten().tolist():
            bits.put_signed(weight - before, 1)
            before = weight
    return bits.to_bytes()


def parse(section: bytes, date: int, shape: tuple[int, ...]) -> Parsed:
    """References of a section, and what follows them."""
    if not section:
        raise FormatError("a temporal section begins with nothing")
    count, inherited, finer = section[0] & 3, section[0] >> 2 & 3, section[0] >> 4
    if inherited > max(count, OWN):
        raise FormatError(f"a temporal section begins with {section[:1].hex()}")
    if not count:
        return Parsed([], 0, finer, section[1:], by_image=inherited != OWN)
    head = section[1 : 1 + _LONGEST_HEADER]
    bits = klt.BitReader(head)
    out = []
    for _ in range(count):
        number = date - bits.get_signed(2)
        changes = [bits.get_signed(1) for _ in range(len(CLASS_STARTS) * shape[1])]
        weights = WEIGHT_GRID // 2 + np.cumsum(changes)
        if number == date or not 0 <= number < shape[0] or np.abs(weights).max() > WEIGHT_LIMIT:
            raise FormatError(f"date {date} refers to date {number} of its chunk")
        out.append(Reference(number, weights.reshape(len(CLASS_STARTS), -1)))
    return Parsed(out, inherited, finer, section[1 + len(head) - bits.left // 8 :])


def write_spectral(
    mean: np.ndarray, missing: Tensor, bases: list[klt.Klt], step: float
) -> tuple[int, bytes, klt.Klt]:
    """Which basis the difference ``missing`` (C, 64, P) is coded in, the header and the basis.

    A basis of one's own takes dozens of bytes, which are worth it for large tiles: 0.  For small
    ones that of a reference, 1 or more, costs a little decorrelation and only the spreads.
    """
    flat = missing.flatten(1)
    covariance = (flat @ flat.T / flat.shape[1]).numpy()
    header, own = klt.write(mean, covariance, step)
    by_sample = missing.transpose(0, 1)
    covariances = (by_sample @ by_sample.transpose(1, 2) / missing.shape[2]).numpy()

    def bits(spectral: klt.Klt, data: bytes) -> float:
        used = spectral.basis[:, : spectral.used]
        variances = np.einsum("ck,fcd,dk->fk", used, covariances, used)
        spread = np.log2(1 + np.maximum(variances, 0) / (step**2 / 6)).sum() / 2
        return 8 * len(data) + missing.shape[2] * float(spread)

    trials = [(bits(own, header), 0, header, own)]
    for number, basis in enumerate(bases, start=1):
        data, spectral = _inherit(mean, covariance, basis, step)
        trials.append((bits(spectral, data), number, data, spectral))
    return min(trials, key=lambda t: t[0])[1:]


def _inherit(
    mean: np.ndarray, covariance: np.ndarray, basis: klt.Klt, step: float
) -> tuple[bytes, klt.Klt]:
    """Header of a date in the basis of another one."""
    digits = klt.mean_digits(step)
    whole = np.rint(mean / 2**digits).astype(int)
    spread = klt.quantised_spreads(
        np.einsum("ck,cd,dk->k", basis.basis, covariance, basis.basis), step
    )
    live = np.flatnonzero(spread[: klt.MOST_COMPONENTS] > klt.ACTIVE_SPREAD)
    active = int(live[-1]) + 1 if len(live) else 0
    spread = np.maximum(spread[:active], klt.ACTIVE_SPREAD + 1)
    bits = klt.BitWriter()
    changes = whole - _whole_mean(basis, digits)
    for value, before in zip(changes, [0, *changes[:-1]], strict=True):
        bits.put_signed(int(value - before), max(6 - digits, 0))
    bits.put(active, 5)
    for value, before in zip(spread, basis.spread, strict=False):
        bits.put_signed(int(before - value), 2)
    padded = klt.padded_spread(spread, len(mean))
    return bits.to_bytes(), klt.Klt(whole * 2.0**digits, basis.basis, padded)


def read_spectral(
    data: bytes, inherited: int, bases: list[klt.Klt], count: int, step: float
) -> tuple[klt.Klt, bytes]:
    if not inherited:
        return klt.read(data, count, step)
    basis = bases[inherited - 1]
    digits = klt.mean_digits(step)
    head = data[:_LONGEST_HEADER]
    bits = klt.BitReader(head)
    rice = max(6 - digits, 0)
    changes = np.cumsum([bits.get_signed(rice) for _ in range(count)])
    mean = (_whole_mean(basis, digits) + changes) * 2.0**digits
    active = bits.get(5)
    if active > min(count, klt.MOST_COMPONENTS):
        raise FormatError(f"a section of {count} bands claims {active} spectral components")
    spread = np.array([before - bits.get_signed(2) for before in basis.spread[:active]], int)
    if active and not (spread.min() > klt.ACTIVE_SPREAD and spread.max() <= klt.SPREAD_HIGH):
        raise FormatError("a section's spectral spreads are out of range")
    spectral = klt.Klt(mean, basis.basis, klt.padded_spread(spread, count))
    return spectral, data[len(head) - bits.left // 8 :]


def _whole_mean(basis: klt.Klt, digits: int) -> np.ndarray:
    return np.rint(basis.mean / 2**digits).astype(int)
