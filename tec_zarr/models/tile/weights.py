"""Reads, checks and writes a weights file of ``tec-s2``, and lays it out for the compiled core."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from tec_zarr.errors import FormatError
from tec_zarr.native.core import (
    HIDDEN,
    INDEXES,
    INPUTS,
    MOST_BANDS,
    PLAIN,
    REACH,
    SYMBOLS,
    TABLES,
    Context,
)

SHIFTS = (6, 6, 10)
GAIN_FACTORS = 8
_TOTAL = 1 << 16

TENSORS: dict[str, tuple[tuple[int, ...], type]] = {
    "context.first": ((INPUTS, HIDDEN), np.int8),
    "context.first_bias": ((HIDDEN,), np.int32),
    "context.second": ((HIDDEN, HIDDEN), np.int8),
    "context.second_bias": ((HIDDEN,), np.int32),
    "context.last": ((HIDDEN,), np.int8),
    "context.last_bias": ((1,), np.int32),
    "context.mean": ((4, MOST_BANDS), np.int16),
    "frequencies": ((TABLES, SYMBOLS), np.int32),
    "towards_zero": ((INDEXES, 2), np.uint8),
    **{
        f"{name}.{size}": ((size, size), kind)
        for size in (8, 16)
        for name, kind in (
            ("overlap", np.float64), ("dct", np.float64), ("overlap_back", np.int32),
            ("dct_back", np.int32),
        )
    },
    "gain.16": ((GAIN_FACTORS, 16), np.int32),
    "gain.8.repeated": ((GAIN_FACTORS, 8), np.int32),
    "gain.8.bilinear": ((GAIN_FACTORS, 8), np.int32),
}  # fmt: skip
"""Shape and type of each tensor."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a weights file, and the context for the core."""

    tensors: dict[str, np.ndarray]
    context: Context = field(repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def file(self) -> bytes:
        """Return the tensors as safetensors, in the order of their names."""
        names = sorted(self.tensors)
        return save({name: np.ascontiguousarray(self.tensors[name]) for name in names})

    @classmethod
    def of(cls, tensors: dict[str, np.ndarray], source: str) -> Weights:
        """Check tensors, and lay them out for the core.

        Raises
        ------
        FormatError
            A tensor is missing, or the core cannot compute with it.
        """
        if set(tensors) != set(TENSORS):
            wrong = sorted(set(tensors) ^ set(TENSORS))
            raise FormatError(f"{source} does not hold weights of tec-s2: {wrong[:5]}")
        for name, (shape, kind) in TENSORS.items():
            tensor = tensors[name]
            if tensor.shape != shape or tensor.dtype != kind:
                raise FormatError(
                    f"{source}: tensor {name} is {tensor.dtype} {tensor.shape}, it should be "
                    f"{np.dtype(kind)} {shape}"
                )
            if tensor.dtype == np.float64 and not np.isfinite(tensor).all():
                raise FormatError(f"{source}: tensor {name} is not finite")
        frequencies = tensors["frequencies"].astype(np.int64)
        if frequencies.min() < 1 or (frequencies.sum(axis=1) != _TOTAL).any():
            raise FormatError(f"{source}: a table's frequencies do not sum to {_TOTAL}")
        limits = {"context.first_bias": 1 << 24, "context.second_bias": 1 << 24,
                  "context.last_bias": 1 << 24, "context.mean": 1 << 12}  # fmt: skip
        limits |= {
            f"{name}_back.{size}": 1 << 17 for name in ("overlap", "dct") for size in (8, 16)
        }
        for name, limit in limits.items():
            if np.abs(tensors[name].astype(np.int64)).max() > limit:
                raise FormatError(f"{source}: tensor {name} has values beyond {limit}")
        for name in ("gain.16", "gain.8.repeated", "gain.8.bilinear"):
            if tensors[name].min() < 1 << 11 or tensors[name].max() > 1 << 17:
                raise FormatError(f"{source}: tensor {name} has values out of range")
        return cls(tensors, _context(tensors, frequencies))


def _context(tensors: dict[str, np.ndarray], frequencies: np.ndarray) -> Context:
    context = Context()
    for name in ("first", "first_bias", "second", "second_bias", "last", "mean"):
        context.put(name, tensors[f"context.{name}"])
    context.last_bias = int(tensors["context.last_bias"][0])
    context.shifts[:] = SHIFTS
    starts = np.zeros((TABLES, SYMBOLS + 1), np.uint32)
    starts[:, 1:] = np.cumsum(frequencies, axis=1)
    context.put("starts", starts)
    context.put("costs", np.rint(-256 * np.log2(frequencies / _TOTAL)).astype(np.int32))
    return context


def low_bits(indexes: np.ndarray) -> np.ndarray:
    """Return the number of low bits that symbols of these indexes send without a table."""
    return np.where(indexes < PLAIN + 4, 0, (indexes - PLAIN) // 4)


def table_of(indexes: np.ndarray) -> np.ndarray:
    """Return the number of the table of frequencies for each index."""
    return np.where(indexes < PLAIN + 4, indexes, PLAIN + (indexes - PLAIN) % 4)


def column_of(symbols: np.ndarray, indexes: np.ndarray) -> np.ndarray:
    """Return the column of each symbol in its table."""
    return np.clip(symbols >> low_bits(indexes), -REACH, REACH) + REACH


def read_weights(path: Path) -> Weights:
    """Read a weights file.

    Raises
    ------
    FormatError
        The file does not hold weights of ``tec-s2``.
    """
    return Weights.of(load(path.read_bytes()), str(path))


def write_weights(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Write tensors as safetensors, in the order of their names."""
    path.write_bytes(Weights.of(tensors, str(path)).file())
