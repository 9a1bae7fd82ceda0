"""Read and check checkpoints of the TerraCodec family, and write them as safetensors."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tec_zarr.errors import TecError, WeightsMismatchError
from tec_zarr.models.published import PUBLISHED
from tec_zarr.models.weights import sha256_of

if TYPE_CHECKING:
    from torch import Tensor, nn


CLASSES = {
    "fp": ("tec_zarr.terracodec.fp", "FactorizedPrior"),
    "elic": ("tec_zarr.terracodec.elic", "ELIC"),
    "tt": ("tec_zarr.terracodec.tt", "TemporalTransformer"),
    "flex": ("tec_zarr.terracodec.flex", "FlexTEC"),
}


_METADATA = "tec_zarr"


def save(module: nn.Module, path: str | os.PathLike[str]) -> str:
    """Write a model of the family and its configuration as safetensors; return the SHA-256 (hex).

    Empty integer tables of `module` are filled first, so that everyone who loads the file codes
    with the same tables.

    Raises
    ------
    TecError
        `module` is not a model of the family, or it is the copy that a codec computes with, or its
        weights are not finite.
    """
    from safetensors.torch import save_file

    classes = {cls: architecture for architecture, (_, cls) in CLASSES.items()}
    architecture = classes.get(type(module).__name__)
    if architecture is None:
        raise TecError(
            f"{path}: a {type(module).__name__} is none of the family's classes, which are "
            f"{', '.join(classes)} in tec_zarr.terracodec"
        )
    config: dict[str, Any] = dict(module.config)  # type: ignore[arg-type]
    if module.state_dict().keys() != _without_weights(architecture, config).state_dict().keys():
        raise TecError(
            f"{path}: this {type(module).__name__} is the copy that a codec computes with, which "
            "cannot be loaded again: save the module that the codec was made of"
        )
    strange = first_not_finite(module)
    if strange is not None:
        raise TecError(f"{path}: {strange} has values that are not finite: nothing was saved")
    _fill_tables(module)
    metadata = {"architecture": architecture, "config": config}
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(state, path, {_METADATA: json.dumps(metadata, sort_keys=True)})
    return sha256_of(Path(path))


def first_not_finite(module: nn.Module) -> str | None:
    """Return the name of the first parameter with a NaN or infinite value, or None."""
    return next((n for n, p in module.named_parameters() if not p.isfinite().all()), None)


def read_state(source: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return the tensors of a checkpoint, and its metadata if :func:`save` wrote it.

    Raises
    ------
    WeightsMismatchError
        The file is damaged, or cannot be read safely.
    """
    import torch

    try:
        if source.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(source, "pt") as file:
                metadata = json.loads((file.metadata() or {}).get(_METADATA, "null"))
                if metadata is not None:
                    metadata = {"architecture": metadata["architecture"],
                                "config": dict(metadata["config"])}  # fmt: skip
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
        state = torch.load(source, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
            raise TypeError("not every entry is a tensor with a name")
    except MemoryError:
        raise
    except Exception as error:  # torch, pickle, zip and safetensors have no common error type
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, pickle.UnpicklingError):  # its text advises to read the file unsafely
            reason = "it is damaged, or holds more than tensors, which could run code"
        raise WeightsMismatchError(
            f"{source} is no checkpoint that can be read safely ({reason})."
        ) from error
    return state, None


def config_of(state: dict[str, Tensor], source: Path, name: str) -> dict[str, Any]:
    """Derive the configuration of the published model `name` from its tensors.

    The prefix "model." is removed from the keys of `state` for FP and ELIC.

    Raises
    ------
    WeightsMismatchError
        A tensor that the architecture needs is missing.
    """
    architecture = PUBLISHED[name].architecture
    if architecture in ("fp", "elic"):
        for key in list(state):
            state[key.removeprefix("model.")] = state.pop(key)
    module, cls = CLASSES[architecture]
    try:
        return dict(getattr(importlib.import_module(module), cls).config_of(state))
    except (KeyError, IndexError) as error:
        raise WeightsMismatchError(
            f"{source} lacks the key {error.args[0]!r} of {name}: another architecture, or cut "
            "short."
        ) from error


def build_module(
    architecture: str, config: dict[str, Any], state: dict[str, Tensor], source: Path
) -> nn.Module:
    """Make a module and load `state`, as float32; `source` is named in messages.

    Raises
    ------
    WeightsMismatchError
        `state` does not fit the configuration, or has values that are not finite.
    """
    cls = CLASSES[architecture][1]
    try:
        module = _without_weights(architecture, config)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsMismatchError(
            f"{source} says that it holds a {cls} of {config}, which cannot be made ({error})"
        ) from error
    wanted = module.state_dict()
    missing, strange = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or strange:
        raise WeightsMismatchError(
            f"{source} does not hold a {cls}: "
            + "; ".join(
                f"{len(keys)} keys {what}, the first {keys[0]!r}"
                for what, keys in (("missing", missing), ("unexpected", strange))
                if keys
            )
        )
    # Codecs compute with float32. Checkpoints may be stored with another precision.
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsMismatchError(f"{source} does not fit a {cls}: {error}") from error
    bad = first_not_finite(module)
    if bad is not None:
        raise WeightsMismatchError(
            f"{source}: {bad} has values that are not finite: the training went wrong or the "
            "file is damaged. Get another one."
        )
    return module.eval()


def _without_weights(architecture: str, config: dict[str, Any]) -> nn.Module:
    """Make a module of the architecture on the "meta" device, where it takes no memory."""
    import torch

    module, cls = CLASSES[architecture]
    with torch.device("meta"):
        made: nn.Module = getattr(importlib.import_module(module), cls)(**config)
    return made


def _fill_tables(module: nn.Module) -> None:
    """Fill the integer tables that coding needs, and empty the large ones that it does not use."""
    from tec_zarr.terracodec.layers import EntropyBottleneck, TableBuffers

    for part in module.modules():
        if isinstance(part, EntropyBottleneck):
            if part._quantized_cdf.numel() == 0:
                part.update()
        elif isinstance(part, TableBuffers):
            for name in part.TABLES:
                setattr(part, name, getattr(part, name).new_empty(0))


def read_module(file: Path) -> nn.Module:
    """Read a module that :func:`save` wrote."""
    state, metadata = read_state(file)
    if metadata is None:
        raise TecError(f"{file} was not written by tec_zarr; load it with its path.")
    return build_module(metadata["architecture"], metadata["config"], state, file)
