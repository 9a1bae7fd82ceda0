"""Networks to weights files and back, integer layers as integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tec_zarr.models.intervals import IntervalTables
from tec_zarr.networks.image_net import IntConv, S2Net
from tec_zarr.networks.pixel_net import PixelNet
from tec_zarr.networks.series_net import TemporalNet


def save_image(net: S2Net, frequencies: np.ndarray, path: Path) -> None:
    """Write ``net`` with its integer layers as integers, and the tables, as safetensors."""
    out = net_tensors(net) | {"tables": torch.from_numpy(frequencies.astype(np.int32))}
    save_file({name: tensor.contiguous() for name, tensor in sorted(out.items())}, path)


#: Networks that only correct pixels or latents: eleven bits of a weight are plenty.
_SHORT = ("encoder.", "decoder.", "refine.")


def net_tensors(net: torch.nn.Module) -> dict[str, Tensor]:
    """Everything that a weights file holds of ``net``, integer layers as integers."""
    integer = {name: m for name, m in net.named_modules() if isinstance(m, IntConv)}
    out = {}
    for name, module in integer.items():
        parts = zip(("weight", "exponent", "bias"), module.integers(), strict=True)
        out |= {f"{name}.{part}": tensor for part, tensor in parts}
    for name, tensor in net.state_dict().items():
        if name.rpartition(".")[0] not in integer:
            kind = torch.float16 if name.startswith(_SHORT) else torch.float32
            out[name] = tensor.detach().to(kind)
    return out


def save_pixels(net: PixelNet, image_sha256: str, path: Path) -> None:
    """Write ``net`` and which weights' latents it makes pixels of."""
    image = torch.frombuffer(bytearray.fromhex(image_sha256), dtype=torch.uint8)
    out = net.tensors() | {"image_sha256": image}
    save_file({name: tensor.contiguous() for name, tensor in sorted(out.items())}, path)


def save_series(net: TemporalNet, frequencies: np.ndarray, image_sha256: str, path: Path) -> None:
    """Write ``net`` with its integer layers as integers, the tables, and which image model."""
    out = net_tensors(net) | {
        "tables": torch.from_numpy(frequencies.astype(np.int32)),
        "image_sha256": torch.frombuffer(bytearray.fromhex(image_sha256), dtype=torch.uint8),
    }
    save_file({name: tensor.contiguous() for name, tensor in sorted(out.items())}, path)


def save_progressive(tables: IntervalTables, temporal_sha256: str, path: Path) -> None:
    """Write the tables, and of which temporal model they are."""
    out = {
        "cumulative": torch.from_numpy(tables.cumulative.astype(np.int32)),
        "zones": torch.from_numpy(tables.zones.astype(np.int32)),
        "chances": torch.from_numpy(tables.chances.astype(np.int32)),
        "temporal_sha256": torch.frombuffer(bytearray.fromhex(temporal_sha256), dtype=torch.uint8),
    }
    save_file(out, path)
