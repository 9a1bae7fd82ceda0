"""Load published TerraCodec weights, by way of the user's cache.

A checkpoint is read once (``torch.load(weights_only=True)`` or safetensors), checked against
the architecture, and kept as safetensors in the cache. Its SHA-256 is part of the file's name and
of the configuration of arrays, so that they decode with exactly these weights. Only `load` and
`load_codec` without a path download a file. Reading an array never does.

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
    """Load a published model, or your own of the same architecture, as a torch module.

    Parameters
    ----------
    name : str
        A key of `PUBLISHED`, such as ``"terracodec_v1_tt_s2l2a"``.
    compression : float or str, optional
        The lambda of the checkpoint: ``20``, ``"lambda-20"`` or ``"lambda-800-lronly"``.
        Not needed with `path`.
    path : path, optional
        Checkpoint on this machine: ``.pt`` or ``.ckpt`` as published, or safetensors.
        Without it the cache is searched, then the file is downloaded. If the cache holds several
        different files of the model, choose one with `sha256` or `path`.
    sha256 : str, optional
        SHA-256 (hex) that the checkpoint file or its conversion must have. The cache finds
        conversions by their own hash only. With the hash of the checkpoint file and no `path`, the
        file is downloaded again.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. Its `forward` takes and returns standardised tensors, as in the
        reference.

    Raises
    ------
    UnknownModelError
        The name, the rate or the file does not exist, the cache holds several, or the hub cannot be
        reached. The message says what to do, such as the command that gets the file.
    WeightsMismatchError
        The file has a wrong hash, missing or unexpected keys, wrong shapes, a wrong number of bands
        or weights that are not finite, or a file of the cache was changed.
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
    """Load a model as a codec and register it in this process under its stream name.

    Parameters
    ----------
    name, compression, path, sha256
        As for `load`.
    context_tokens : int, optional
        FlexTEC: see :class:`tec_zarr.terracodec.codec.FamilyModel`.

    Returns
    -------
    FamilyModel
        Arrays store its ``name``, such as ``"terracodec_v1_tt_s2l2a/lambda-20"``, as their model.

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
    """Return the device for models: ``tec_zarr.config.DEVICE``; for "auto" a GPU if present."""
    import torch

    if config.DEVICE != "auto":
        return config.DEVICE
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_cached(file: Path, name: str, sha256: str) -> FamilyModel:
    """Load a file of the cache as a codec, for streams that name their model ``name``."""
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
    """Return the converted safetensors of a model and its SHA-256.

    The checkpoint is downloaded and converted if needed.
    """
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
    """Return the wanted file of the cache, or None.

    Raises
    ------
    UnknownModelError
        There are several files, and `sha256` does not choose one.
    """
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
    """Return `file` after a check that it still has the hash in its name.

    Raises
    ------
    WeightsMismatchError
        The file was changed.
    """
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
    except Exception as error:  # the hub and its HTTP library have no common error type
        kept = ", ".join(map(hash_in_name, cached_files(name, rate)))
        raise UnknownModelError(
            (f"The cache holds {kept} of {name}, not the SHA-256 asked for.\n" if kept else "") +
            f"{published.file(rate)} could not be downloaded from {published.repository} "
            f"({type(error).__name__}: {error}).\n" + how_to_get(name, rate)
        ) from error


def _convert(
    source: Path, name: str, rate: str | None, sha256: str | None
) -> tuple[Path, str]:
    """Check a checkpoint, write it to the cache as safetensors, and return file and SHA-256.

    A file that this package wrote, given by path without a rate, is used directly.
    """
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
    # A separate folder, because other threads and processes may be converting too.
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
