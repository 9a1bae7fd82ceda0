"""What every training does: steps, checkpoints, logs, data in the background."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from queue import Queue
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tec_zarr.errors import TecError
from tec_zarr.terracodec.checkpoints import first_not_finite

LAMBDA = 8.0


#: Settings that a run may be resumed with other values of: no others keep its result what the log
#: and the first configuration say.
MAY_CHANGE = frozenset(
    {"out", "steps", "threads", "workers", "device", "checkpoint_seconds", "validate_every"}
)


Settings = TypeVar("Settings", bound=Any)


Result = TypeVar("Result")


Item = TypeVar("Item")


class Prefetch:
    """What ``makers`` make, in turns, each in a thread of its own: the network need not wait.

    The order is that of the makers, whatever the threads do.
    """

    def __init__(self, makers: Sequence[Callable[[], Any]]):
        self.queues: list[Queue] = [Queue(2) for _ in makers]
        self.turn = 0
        for make, queue in zip(makers, self.queues, strict=True):
            threading.Thread(target=self._run, args=(make, queue), daemon=True).start()

    @staticmethod
    def _run(make: Callable[[], Any], queue: Queue) -> None:
        while True:
            queue.put(make())

    def get(self) -> Any:
        self.turn += 1
        return self.queues[self.turn % len(self.queues)].get()


def hold_back(kept: list[Item], held: list[Item]) -> tuple[list[Item], list[Item]]:
    """What to train on and what to validate on, of what is not held out by its name and what is.

    Data of one's own has none of the places that are: every twentieth is held back instead.
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
    """One step of the optimiser, and of the running average of the parameters."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    optimiser.step()
    with torch.no_grad():
        slow = list(average.parameters())
        change = torch._foreach_sub(list(net.parameters()), slow)
        torch._foreach_mul_(change, 1 - decay)
        torch._foreach_add_(slow, change)


class Stepper:
    """One step of the optimiser on a loss, and of the running average of the parameters.

    On a GPU the whole step is recorded once and replayed (a CUDA graph): the networks are small, so
    that starting their kernels one by one takes longer than running them.

    Parameters
    ----------
    loss : callable
        From tensors, whose shapes are the same in every step, to a scalar.
    rates : sequence of float
        Largest learning rate of each of the optimiser's groups.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        net: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        rates: Sequence[float],
        device: str,
    ):
        self.loss, self.optimiser, self.rates = loss, optimiser, rates
        self.net, self.average = net, average
        self.device = torch.device(device)
        self.decay = torch.zeros((), device=device)
        self.graph: Any = None
        recorded = self.device.type == "cuda"
        for group in optimiser.param_groups:
            # Set here, after a checkpoint was taken up: it may come from the other kind of device.
            group["capturable"] = recorded
            group["lr"] = torch.zeros((), device=device) if recorded else 0.0
        for state in optimiser.state.values():
            state["step"] = state["step"].to(device)

    def __call__(self, share: float, decay: float, *inputs: Tensor) -> Tensor:
        """Step at ``share`` of the largest rates; returns the loss, valid until the next call."""
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            if self.device.type == "cuda":
                group["lr"].fill_(share * rate)
            else:
                group["lr"] = share * rate
        self.decay.fill_(decay)
        if self.device.type != "cuda":
            return self._step(inputs)
        if self.graph is None:
            self._record(inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.result

    def _record(self, inputs: Sequence[Tensor]) -> None:
        self.inputs = [given.clone() for given in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # steps like any other, on one batch
                self._step(self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = self._step(self.inputs)

    def _step(self, inputs: Sequence[Tensor]) -> Tensor:
        # Weights that autocast has converted must not outlive a recording.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
            loss = self.loss(*inputs)
        descend(loss, self.net, self.average, self.optimiser, self.decay)
        return loss.detach()


def adam(groups: list[dict[str, Any]] | Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """The optimiser of all trainings of the embedded models."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def check_loss(loss: Tensor, step: int) -> None:
    """Stop a training whose loss is not finite: its weights are lost, its checkpoint is not.

    On a GPU every tenth step only is looked at, as looking waits for it: what is lost stays so.
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
    """All that going on needs; a run that is killed meanwhile keeps the checkpoint before."""
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
    """The folder of a run, made if need be, with its configuration (a dataclass) in it.

    Raises
    ------
    TecError
        The run that is to be resumed there has another configuration, or there is no such device.
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
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise TecError(f"device {device!r} cannot be used here: {reason}") from error


def _check_same_run(path: Path, now: dict[str, Any]) -> None:
    """A resumed run is the one that was begun: the same model, data and loss."""
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
    """Take up what :func:`save_checkpoint` wrote, if anything; returns the steps done."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])
    except Exception as error:  # torch, pickle and zip raise their own; torch's advice is unsafe
        raise TecError(
            f"{path} is no checkpoint of this run, or damaged ({type(error).__name__}): delete it "
            "to begin anew, or choose another out"
        ) from error


@contextmanager
def reading_start(path: str) -> Iterator[None]:
    """Name the weights to start from if they cannot be read, or are another model's."""
    try:
        yield
    except (TecError, OSError):
        raise
    except Exception as error:  # torch, pickle, zip and safetensors raise their own
        raise TecError(
            f"start = {path!r} holds no weights of this model ({type(error).__name__}): it is "
            "damaged, or another model's"
        ) from error


def with_its_threads(train: Callable[[Settings], Result]) -> Callable[[Settings], Result]:
    """Have a training run with its configuration's ``threads`` of torch's, and put them back.

    Pixels of one stream may differ in the last place from one number of threads to another, so
    that a program which trains and then reads archives must not be left with other ones.
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
    """Part of the largest learning rate at ``step``: a linear warm-up, half a cosine to 2 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine)
