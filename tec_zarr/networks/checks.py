"""Weights files of the embedded models, checked before anything computes with them.

A file may have come with a store (:mod:`tec_zarr.stores.embed`), so that a stranger made it. Every
tensor has to have the name, the shape, the dtype and numbers that the model's own files have:
compiled code takes its sizes from tensors, and integer networks are exact only within these ranges.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load as read_tensors
from torch import Tensor, nn

from tec_zarr.errors import FormatError
from tec_zarr.models.constants import SCALES
from tec_zarr.models.protocol import Model
from tec_zarr.models.registry import get_released
from tec_zarr.networks.image_net import IntConv

Net = TypeVar("Net", bound=nn.Module)

_FLOATS = torch.float16, torch.float32
#: Parameters of released weights reach 23, gains 0.9.
_LARGEST, _LARGEST_GAIN = 1024.0, 12.0
#: Powers of two that a channel's weights stand for: sums below 2**24 stay below 2**31 in the units
#: of what comes after, and no scale is too small for float32.
_EXPONENTS = -24.0, 0.0


@dataclass(frozen=True)
class Part:
    """What a tensor has to be: its shape (None: any length), its dtypes and its range."""

    shape: tuple[int | None, ...]
    dtypes: tuple[torch.dtype, ...]
    range: tuple[float, float] = (-math.inf, math.inf)


Layout = Mapping[str, Part]

HASH = Part((32,), (torch.uint8,))
TABLES = Part((SCALES, None), (torch.int32,))


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors of a file, and its SHA-256 (hex)."""
    data = path.read_bytes()
    return read_tensors(data), hashlib.sha256(data).hexdigest()


def check(tensors: Mapping[str, Tensor], layout: Layout, what: str) -> None:
    """Compare tensors with what they have to be.

    Raises
    ------
    FormatError
        Other names, shapes, dtypes or numbers; ``what`` says of what.
    """
    missing, strange = sorted(layout.keys() - tensors.keys()), sorted(tensors.keys() - layout)
    if missing or strange:
        raise FormatError(
            f"{what} has other tensors than it should: "
            + "; ".join(
                f"{len(names)} {which}, the first {names[0]!r}"
                for which, names in (("missing", missing), ("too many", strange))
                if names
            )
        )
    for name, part in layout.items():
        tensor = tensors[name]
        alike = len(part.shape) == tensor.ndim and all(
            wanted in (None, found)
            for wanted, found in zip(part.shape, tensor.shape, strict=True)
        )
        if not alike or tensor.dtype not in part.dtypes or not tensor.numel():
            wanted_shape = tuple("any" if n is None else n for n in part.shape)
            raise FormatError(
                f"{what}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, it should be "
                f"{' or '.join(map(str, part.dtypes))} of shape {wanted_shape}"
            )
        low, high = part.range
        if not (float(tensor.min()) >= low and float(tensor.max()) <= high):  # NaN is neither
            raise FormatError(f"{what}: {name} has numbers outside {low:g} to {high:g}")


def integer_parts(name: str, shape: tuple[int, ...]) -> dict[str, Part]:
    """The tensors of an :class:`~tec_zarr.networks.image_net.IntConv` of weights of ``shape``."""
    return {
        f"{name}.weight": Part(shape, (torch.int8,)),
        f"{name}.exponent": Part(shape[:1], (torch.int8,), _EXPONENTS),
        f"{name}.bias": Part(shape[:1], (torch.int32,)),
    }


def network_layout(net: nn.Module) -> dict[str, Part]:
    """What :func:`~tec_zarr.networks.files.net_tensors` makes of a network like ``net``."""
    integer = {name: m for name, m in net.named_modules() if isinstance(m, IntConv)}
    out: dict[str, Part] = {}
    for name, module in integer.items():
        out |= integer_parts(name, tuple(module.weight.shape))
    for name, tensor in net.state_dict().items():
        if name.rpartition(".")[0] not in integer:
            largest = _LARGEST_GAIN if name == "gain" else _LARGEST
            out[name] = Part(tuple(tensor.shape), _FLOATS, (-largest, largest))
    return out


def frozen_net(make: Callable[[], Net], tensors: Mapping[str, Tensor], path: Path) -> Net:
    """A network with what :func:`~tec_zarr.networks.files.net_tensors` made of another one.

    Parameters
    ----------
    make : callable
        Makes the network. It is called without memory first: its sizes may come from the file.

    Raises
    ------
    FormatError
        ``path`` holds another model.
    """
    with torch.device("meta"):
        shape = make()
    check(tensors, network_layout(shape), f"{path}, a {type(shape).__name__},")
    net = make()
    integer = {name: m for name, m in net.named_modules() if isinstance(m, IntConv)}
    parts = {name: list(integer_parts(name, ())) for name in integer}
    frozen = {part for names in parts.values() for part in names}
    rest = {name: tensor for name, tensor in tensors.items() if name not in frozen}
    net.load_state_dict(rest, strict=False)
    for name, module in integer.items():
        module.freeze(*(tensors[part] for part in parts[name]))
    return net


def named_model(name: str, sha256: Tensor) -> Model:
    """The model ``name`` whose weights a file names as those it builds on: released ones only.

    Raises
    ------
    WeightsMismatchError
        This package has not released them.
    """
    check({"sha256": sha256}, {"sha256": HASH}, f"the name of {name}'s weights")
    return get_released(name, sha256.numpy().tobytes().hex())
