"""Streams of small TerraCodec models that are decoded for ever.

    python tests/golden_family.py

The published weights are not part of this package, so these models have weights that follow from
arithmetic on whole numbers; only their streams, bottleneck tables and powers of two are stored,
in ``tests/fixtures/family/<kind>.npz``. A file that is there already is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from test_family_codec import make, scene

from tec_zarr.terracodec.codec import FamilyModel
from tec_zarr.terracodec.layers import EntropyBottleneck

FIXTURES = Path(__file__).parent / "fixtures" / "family"
KINDS = ("fp", "elic", "tt", "flex")
SHAPE = (2, 12, 64, 80)
_CONSTANT = -99
_TABLES = ("_quantized_cdf", "_cdf_length", "_offset")


def numbers(count: int, start: int) -> np.ndarray:
    """``count`` multiples of 2**-12 in [-1, 1) from a linear congruential generator."""
    state = (np.arange(count, dtype=np.uint64) + np.uint64(start * 7919)) * np.uint64(2654435761)
    state = (state ^ (state >> np.uint64(15))) * np.uint64(2246822519) & np.uint64(0xFFFFFFFF)
    return (state >> np.uint64(19)).astype(np.float64) / 2**12 - 1


def model(kind: str, stored: Mapping[str, np.ndarray] | None = None) -> tuple[FamilyModel, dict]:
    """The small model, and what has to be stored of it: exponents of its weights, tables."""
    module = make(kind)
    parameters = [value for _, value in sorted(module.named_parameters())]
    exponents = [_exponent(value) for value in parameters]
    if stored is not None:
        exponents = stored["exponents"].tolist()
    with torch.no_grad():
        for place, (value, exponent) in enumerate(zip(parameters, exponents, strict=True)):
            if exponent != _CONSTANT:
                new = torch.from_numpy(numbers(value.numel(), place) * 2.0**exponent)
                value.copy_(new.view_as(value))
    keep = {"exponents": np.array(exponents)}
    for name, part in module.named_modules():
        if isinstance(part, EntropyBottleneck):
            if stored is None:
                part.update()
            for table in _TABLES:
                if stored is not None:
                    setattr(part, table, torch.from_numpy(stored[f"{name}.{table}"]))
                keep[f"{name}.{table}"] = getattr(part, table).numpy()
    return FamilyModel(module, f"golden/{kind}", "00" * 32), keep


def _exponent(value: torch.Tensor) -> int:
    """Power of two that keeps the spread of a random parameter."""
    spread = float(value.detach().std()) if value.numel() > 1 else 0.0
    return round(math.log2(spread * math.sqrt(3))) if spread else _CONSTANT


def main(fixtures: Path = FIXTURES) -> None:
    fixtures.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        codec, stored = model(kind)
        encoded = codec.encode(scene(*SHAPE), 3.0, None)
        for date, section in enumerate(encoded.sections):
            stored[f"section {date}"] = np.frombuffer(section, np.uint8)
        stored["latents_crc"] = np.array(encoded.latents_crc)
        pixels, _ = codec.decode(encoded.sections, SHAPE, 3.0, None)
        stored["pixels"] = np.rint(pixels[:, ::4, ::4, ::4]).astype(np.int32)
        with (fixtures / f"{kind}.npz").open("xb") as file:
            np.savez_compressed(file, **stored)


def check(file: Path) -> None:
    """Decode the streams of ``file`` and compare."""
    with np.load(file) as stored:
        codec, _ = model(file.stem, stored)
        sections = [stored[f"section {date}"].tobytes() for date in range(SHAPE[0])]
        pixels, crc = codec.decode(sections, SHAPE, 3.0, None)
        assert crc == stored["latents_crc"].tolist()
        assert np.abs(pixels[:, ::4, ::4, ::4] - stored["pixels"]).max() < 1.01


if __name__ == "__main__":
    main()
