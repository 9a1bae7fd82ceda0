"""Published TerraCodec weights: names, files, and getting them into the user's cache.

A checkpoint is read once (``torch.load(weights_only=True)`` or safetensors), checked against
the architecture, and kept as safetensors in the cache, named by its SHA-256. That hash goes
into the configuration of arrays, so that they decode with exactly these weights. Nothing here
downloads unless `load` is called without a path: reading an array never does.

Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tec_zarr import config
from tec_zarr.errors import UnknownModelError, WeightsMismatchError
from tec_zarr.interrupted import hidden_folder
from tec_zarr.models.published import PUBLISHED, how_to_get
from tec_zarr.models.weights import cache_folder, cached_files, hash_in_name, sha256_of
from tec_zarr.terracodec.checkpoints import build_module, config_of, read_module, read_state, save

if TYPE_CHECKING:
    from torch import nn

    from tec_zarr.terracodec.codec import FamilyModel

__all__ = ["load", "load_codec"]


def load(
    name: str,
    compression: float | str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """Load a published model (or one of yours of the same architecture) as a torch module.

    Parameters
    ----------
    name : str
        A key of `PUBLISHED`, such as ``"terracodec_v1_tt_s2l2a"``.
    compression : float or str, optional
        The lambda of the checkpoint: ``20``, ``"lambda-20"`` or ``"lambda-800-lronly"``.
        Not needed with `path`.
    path : path, optional
        Checkpoint on this machine: ``.pt`` or ``.ckpt`` as published, or safetensors.
        Without it the cache is searched, then the file is downloaded.
        Several different ones there have to be told apart by `sha256`, or by `path`.
    sha256 : str, optional
        SHA-256 (hex) that the checkpoint file or its conversion must have. The cache knows
        conversions by their own hash only: with that of the checkpoint file and no `path`, the
        file is asked for again.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. Its `forward` takes and returns standardised tensors, as the
        reference's does.

    Raises
    ------
    UnknownModelError
        No such name or rate, no such file, several in the cache, or the hub cannot be reached;
        the message says what to do, such as the command that gets the file.
    WeightsMismatchError
        Wrong hash, missing or unexpected keys, wrong shapes, wrong number of bands, weights that
        are not finite, a file of the cache that was changed.
    """
    return read_module(_find(name, compression, path, sha256)[0])


def load_codec(
    name: str,
    compression: float | str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    context_tokens: int | None = None,
) -> FamilyModel:
    """Load a model as a codec and make it known to this process under its stream name.

    Parameters
    ----------
    name, compression, path, sha256
        As for `load`.
    context_tokens : int, optional
        FlexTEC: see :class:`tec_zarr.terracodec.codec.FamilyModel`.

    Returns
    -------
    FamilyModel
        Its ``name``, such as ``"terracodec_v1_tt_s2l2a/lambda-20"``, is what arrays name as
        their model.

    Raises
    ------
    UnknownModelError, WeightsMismatchError
        As `load`.
    """
    from tec_zarr.models.registry import register_model
    from tec_zarr.terracodec.codec import FamilyModel

    file, found = _find(name, compression, path, sha256)
    rate = "" if compression is None else f"/lambda-{_rate(name, compression)}"
    module = read_module(file).to(pick_device())
    model = FamilyModel(module, name + rate, found, context_tokens)
    register_model(model.name, lambda: model, model.weights_sha256)
    return model


def pick_device() -> str:
    """Where a model goes: ``tec_zarr.config.DEVICE``, or a GPU if there is one."""
    import torch

    if config.DEVICE != "auto":
        return config.DEVICE
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_cached(file: Path, name: str, sha256: str) -> FamilyModel:
    """Codec of a file of the cache, for streams that name it ``name``."""
    from tec_zarr.terracodec.codec import FamilyModel

    family, _, rate = name.partition("/lambda-")
    module = read_module(_unchanged(file, family, rate))
    return FamilyModel(module.to(pick_device()), name, sha256)


def _find(
    name: str,
    compression: float | str | None,
    path: str | os.PathLike[str] | None,
    sha256: str | None,
) -> tuple[Path, str]:
    """Converted safetensors of a model and its SHA-256, converting or downloading where needed."""
    if name not in PUBLISHED:
        raise UnknownModelError(f"No model {name!r}; there are {', '.join(PUBLISHED)}.")
    rate = None if path and compression is None else _rate(name, compression)
    if path is not None:
        source = Path(path)
        if not source.is_file():
            raise UnknownModelError(
                f"No checkpoint at {source}.\n" + how_to_get(name, rate or _middle_rate(name))
            )
    else:
        assert rate is not None
        file = _chosen(name, rate, sha256)
        if file is not None:
            return _unchanged(file, name, rate), hash_in_name(file)
        source = _download(name, rate)
    return _convert(source, name, rate, sha256)


def _chosen(name: str, rate: str, sha256: str | None) -> Path | None:
    """The file of the cache that is meant; never one of several that only their age tells apart."""
    files = cached_files(name, rate)
    if sha256 is not None:
        return next((file for file in files if hash_in_name(file) == sha256.lower()), None)
    if len(files) > 1:
        hashes = "".join(f"\n    {hash_in_name(file)}" for file in files)
        raise UnknownModelError(
            f"{cache_folder()} holds different weights of {name}, lambda {rate}, those kept last "
            f"first:{hashes}\nSay which with sha256= or path=, or delete the others."
        )
    return files[0] if files else None


def _unchanged(file: Path, name: str, rate: str) -> Path:
    """A file of the cache that still has the hash it is named by."""
    if sha256_of(file) != hash_in_name(file):
        raise WeightsMismatchError(
            f"{file} was changed since it was written: delete it.\n" + how_to_get(name, rate)
        )
    return file


def _rate(name: str, compression: float | str | None) -> str:
    rates = PUBLISHED[name].rates
    wanted = str(compression).removeprefix("lambda-").removesuffix(".0")
    if wanted not in rates:
        raise UnknownModelError(
            f"{name} is published for lambda {', '.join(rates)}, not {compression!r}."
        )
    return wanted


def _middle_rate(name: str) -> str:
    rates = PUBLISHED[name].rates
    return rates[len(rates) // 2]


def _download(name: str, rate: str) -> Path:
    published = PUBLISHED[name]
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.hf_hub_download(published.repository, published.file(rate)))
    except Exception as error:  # the hub raises many types, its HTTP library more
        kept = ", ".join(map(hash_in_name, cached_files(name, rate)))
        raise UnknownModelError(
            (f"The cache holds {kept} of {name}, not the SHA-256 asked for.\n" if kept else "") +
            f"{published.file(rate)} could not be downloaded from {published.repository} "
            f"({type(error).__name__}: {error}).\n" + how_to_get(name, rate)
        ) from error


def _convert(
    source: Path, name: str, rate: str | None, sha256: str | None
) -> tuple[Path, str]:
    """Check a checkpoint and put it into the cache as safetensors, unless it is from there."""
    state, metadata = read_state(source)
    if metadata is not None:
        if metadata["architecture"] != PUBLISHED[name].architecture:
            raise WeightsMismatchError(
                f"{source} holds a model of architecture {metadata['architecture']!r}, {name} is "
                f"{PUBLISHED[name].architecture!r}."
            )
        config = metadata["config"]
    else:
        config = config_of(state, source, name)
    if config.get("bands") != PUBLISHED[name].bands:
        raise WeightsMismatchError(
            f"{source} is a model of {config.get('bands')} bands, {name} has "
            f"{PUBLISHED[name].bands}: load it under the name that fits, or pick another file."
        )
    given = sha256_of(source)
    if metadata is not None and rate is None:
        _check_hash(source, sha256, given)
        return source, given
    module = build_module(PUBLISHED[name].architecture, config, state, source)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    # A folder of its own: other threads and processes may be converting too.
    with hidden_folder(folder / "weights.safetensors") as part:
        written = part / "weights.safetensors"
        own = save(module, written)
        _check_hash(source, sha256, given, own)
        return written.replace(folder / f"{name}--{rate or 'own'}--{own}.safetensors"), own


def _check_hash(source: Path, wanted: str | None, *found: str) -> None:
    if wanted is not None and wanted.lower() not in found:
        raise WeightsMismatchError(
            f"{source} has SHA-256 {found[0]}, expected {wanted}: it is not the file you pinned, "
            "or it is damaged. Get it again."
        )
