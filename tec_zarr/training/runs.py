"""Parts that all trainings share: steps, checkpoints, logs, data loading in the background."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tec_zarr.errors import TecError
from tec_zarr.terracodec.checkpoints import first_not_finite

#: Weight of squared error in the loss, in bits per squared step.
LAMBDA = 8.0


#: Settings that may change when a run is resumed. A change of any other would make the result
#: differ from what the log and the first configuration say.
MAY_CHANGE = frozenset(
    {"out", "steps", "threads", "workers", "device", "checkpoint_seconds", "validate_every"}
)


Settings = TypeVar("Settings", bound=Any)


Result = TypeVar("Result")


Item = TypeVar("Item")


def hold_back(kept: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    """Return the items to train on and the items to validate on.

    ``held`` are the items that are held out by name. If there are none, as in a user's own data,
    every twentieth item of ``kept`` is held out instead.
    """
    if not held:
        held, kept = kept[::20], [item for i, item in enumerate(kept) if i % 20]
    return kept or held, held


def descend(
    loss: Tensor,
    net: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    decay: float | Tensor,
) -> None:
    """Take one step of the optimiser, and update the running average of the parameters."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimiser.step()
    with torch.no_grad():
        slow = list(average.parameters())
        change = torch._foreach_sub(list(net.parameters()), slow)
        torch._foreach_mul_(change, 1 - decay)
        torch._foreach_add_(slow, change)


def adam(groups: list[dict[str, Any]] | Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """Make the optimiser of the embedded models' trainings."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def check_loss(loss: Tensor, step: int) -> None:
    """Raise TecError if the loss is not finite. The last checkpoint is not affected.

    On a GPU only every tenth step is checked, because a check waits for the device. A loss that is
    not finite stays so.
    """
    if loss.device.type == "cuda" and step % 10:
        return
    if not math.isfinite(float(loss)):
        raise TecError(
            f"the loss of step {step} is {float(loss)}: the training has gone wrong. The last "
            "checkpoint is from before; go on from it with a lower rate in another out, or look "
            "at the data"
        )


def save_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int
) -> None:
    """Write everything that a run needs to resume.

    The file is replaced at the end, so a run killed during the write keeps the previous checkpoint.

    Raises
    ------
    TecError
        A parameter is not finite.
    """
    strange = first_not_finite(net) or first_not_finite(average)
    if strange is not None:
        raise TecError(
            f"after step {step} {strange} is not finite: the training has gone wrong, and the "
            f"checkpoint {path} stays the one before"
        )
    state = {
        "net": net.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
    }
    partial = path.with_name("partial.pt")
    torch.save(state, partial)
    partial.replace(path)


def begin_run(config: Any) -> Path:
    """Make the folder of a run if needed, write its configuration (a dataclass), and return it.

    Raises
    ------
    TecError
        The run to resume has another configuration, or the device cannot be used.
    """
    _check_device(config.device)
    out = Path(config.out)
    settings = json.dumps(asdict(config), indent=1)
    if (out / "last.pt").exists():
        _check_same_run(out / "config.json", json.loads(settings))
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(settings)
    return out


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).splitlines()[0]
        raise TecError(f"device {device!r} cannot be used here: {reason}") from error


def _check_same_run(path: Path, now: dict[str, Any]) -> None:
    """Raise TecError if settings differ from those the run was begun with, `MAY_CHANGE` apart."""
    try:
        before = dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise TecError(
            f"{path} of the run to resume cannot be read ({error}): choose another out, or delete "
            "it"
        ) from error
    other = [
        key
        for key in sorted((before.keys() | now.keys()) - MAY_CHANGE)
        if key not in before or key not in now or before[key] != now[key]
    ]
    if other:
        changes = "".join(f"\n    {k}: {before.get(k)!r} -> {now.get(k)!r}" for k in other)
        raise TecError(
            f"the run in {path.parent} was begun with other settings:{changes}\nChoose another "
            "out, or delete it to begin anew"
        )


def add_to_log(out: Path, line: dict[str, Any]) -> None:
    """Append a line to the log of the run in ``out``."""
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def restore_checkpoint(
    path: Path, net: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, device: str
) -> int:
    """Restore a checkpoint of :func:`save_checkpoint` if there is one; return the steps done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except Exception as error:  # no common error type; torch's message gives unsafe advice
        raise TecError(
            f"{path} is no checkpoint of this run, or damaged ({type(error).__name__}): delete it "
            "to begin anew, or choose another out"
        ) from error


def with_its_threads(train: Callable[[Settings], Result]) -> Callable[[Settings], Result]:
    """Decorate a training to run with ``threads`` torch threads, as its configuration says.

    The number is set back afterwards. Decoded pixels may differ in the last place between numbers
    of threads, so a program that trains and then reads archives must keep its own.
    """

    @wraps(train)
    def run(config: Settings) -> Result:
        before = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            return train(config)
        finally:
            torch.set_num_threads(before)

    return run


def share_of_rate(step: int, steps: int, warm_up: int) -> float:
    """Return the share of the largest learning rate: a linear warm-up, half a cosine to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine)
