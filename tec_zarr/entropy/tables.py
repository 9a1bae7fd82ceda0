"""Integer tables of frequencies that symbols are coded with."""

from __future__ import annotations

from functools import cached_property

import constriction
import numpy as np

from tec_zarr.errors import FormatError

#: Frequencies of a table sum to 2**16; the coder works with 24-bit probabilities.
TABLE_BITS = 16


CODER_BITS = 24


#: A symbol at either end of its table is followed by how far beyond it lies.
ESCAPE_BITS = 16


class Tables:
    """Symmetric-range frequency tables, one per scale index.

    Parameters
    ----------
    frequencies : (N, 2 R + 1) integer array
        Row i holds the frequencies of the symbols ``-r_i .. r_i`` around its centre column, at
        least 1 each, zero beyond; every row sums to 2**16.  The two end symbols of a row are
        escapes.  A row with only its centre says that the symbol is always zero: such symbols are
        not coded.  These rows come first.

    Raises
    ------
    FormatError
        Other numbers than these.
    """

    def __init__(self, frequencies: np.ndarray):
        frequencies = np.asarray(frequencies, np.int64)
        if (
            frequencies.ndim != 2
            or frequencies.shape[1] % 2 == 0
            or (frequencies.sum(1) != 1 << TABLE_BITS).any()
        ):
            raise FormatError(
                f"probability tables of shape {frequencies.shape} do not sum to 2**16, "
                "or have no centre column"
            )
        centre = frequencies.shape[1] // 2
        distance = np.abs(np.arange(-centre, centre + 1))
        self.reach = np.where(frequencies != 0, distance, 0).max(1).astype(np.int32)
        # Weights may come from a stranger: decoders divide by frequencies and look for symbols
        # on both sides of the centre.
        inside = distance <= self.reach[:, None]
        if (frequencies[inside] < 1).any():
            raise FormatError("a probability table has a symbol of frequency below 1 in its range")
        self.rows = [
            row[centre - r : centre + r + 1] for row, r in zip(frequencies, self.reach, strict=True)
        ]
        #: How many tables code nothing; they come first.
        self.silent = int((self.reach == 0).sum())
        if self.reach[: self.silent].any():
            raise FormatError("a probability table that codes nothing follows one that does")

    def cumulative(self, index: int) -> np.ndarray:
        """24-bit cumulative frequencies of the coder: each symbol also gets one unit of its own."""
        row = self.rows[index]
        left = np.concatenate([[0], np.cumsum(row)[:-1]])
        scaled = left * ((1 << CODER_BITS) - len(row)) >> TABLE_BITS
        return np.append(scaled + np.arange(len(row)), 1 << CODER_BITS)

    @cached_property
    def coded(self) -> np.ndarray:
        """Which tables code anything, bool (N,)."""
        return self.reach > 0

    @cached_property
    def bits(self) -> np.ndarray:
        """Bits (N, 2 R + 1) float64 of symbols ``-R .. R``; escapes cost 16 more."""
        width = int(self.reach.max())
        out = np.full((len(self.rows), 2 * width + 1), np.inf)
        for i, (row, reach) in enumerate(zip(self.rows, self.reach, strict=True)):
            cost = -np.log2(row / (1 << TABLE_BITS)) if reach else np.array([np.inf])
            out[i, width - reach : width + reach + 1] = cost
            out[i, : width - reach + 1] = cost[0] + ESCAPE_BITS
            out[i, width + reach :] = cost[-1] + ESCAPE_BITS
            if reach == 0:
                out[i, width] = 0.0
        return out

    @cached_property
    def models(self) -> list:
        """constriction's models, in row order; None where nothing is coded."""
        return [
            constriction.stream.model.Categorical(row / (1 << TABLE_BITS), perfect=False)
            if len(row) > 1
            else None
            for row in self.rows
        ]


def integer_table(probabilities: np.ndarray) -> np.ndarray:
    """Frequencies that sum to 2**16, every symbol at least one, from probabilities of any sum."""
    total = 1 << TABLE_BITS
    scaled = probabilities / probabilities.sum() * (total - len(probabilities))
    out = np.floor(scaled).astype(np.int64) + 1
    for place in np.argsort(np.floor(scaled) - scaled, kind="stable")[: total - int(out.sum())]:
        out[place] += 1
    return out
