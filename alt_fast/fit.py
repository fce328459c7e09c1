"""The training loop: steps, schedule, checkpoints, and a resume that repeats an uninterrupted run exactly."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from alt_fast.checkpoint import CheckpointError, load_state, save_state
from alt_fast.distributed import World


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


class TerminatedError(RuntimeError):
    """The process was asked to end (SIGTERM), and has written a checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Steps in all, of which `warmup` rise linearly from zero; then a cosine down to `final` of the peak."""

    steps: int
    warmup: int
    final: float = 0.01

    def factor(self, step: int) -> float:
        """Learning rate of a step as a fraction of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Task:
    """What a stage trains.

    batches: from a step and on, `accumulate` of them per step and process. loss: of a batch, given its running number
    among those of all processes. A step's gradient is the mean over its batches. parallel: the wrapper of `module` that
    `loss` calls where several processes train. max_skipped: steps whose loss may be no finite number; they change
    nothing. samples: names of a step's samples. every_epoch: called with the epochs done, after each.
    """

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]
    schedule: Schedule
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, int], Tensor]
    steps_per_epoch: int
    accumulate: int = 1
    clip_grad: float | None = None
    parallel: DistributedDataParallel | None = None
    max_skipped: int = 0
    samples: Callable[[int], list[str]] = lambda step: []
    every_epoch: Callable[[int], None] | None = None


def parameter_groups(module: nn.Module, rates: Callable[[str], float], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate; those with one dimension or none (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates(name), decay), []).append(parameter)
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def fit(
    task: Task, state_path: Path, writer: SummaryWriter | None, checkpoint_every: int, world: World | None = None
) -> float:
    """Train to the last step, from the checkpoint at `state_path` when there is one. Returns seconds of training.

    The state holds weights, optimizer and step; all randomness is keyed by the step, so nothing else is needed. world:
    the processes that train together; the main one writes.

    Raises DivergedError past the allowed number of steps without a finite loss, and TerminatedError after SIGTERM, once
    the step is done and its state written.
    """
    world = world or World()
    module, schedule = task.module, task.schedule
    optimizer = torch.optim.AdamW(task.groups, betas=(0.9, 0.98), fused=True)
    step, before, skipped = 0, 0.0, 0
    if state_path.exists():
        state = load_state(state_path)
        step, before, skipped = _restore(state, state_path, task, optimizer)
    start = time.monotonic()

    def save(step: int) -> None:
        if world.main:
            content = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
            seconds = before + time.monotonic() - start
            save_state(state_path, {"task": task.name, "seconds": seconds, "skipped": skipped, **content})

    module.train()
    batches = iter(task.batches(step))
    progress = tqdm(
        range(step, schedule.steps),
        task.name,
        schedule.steps,
        initial=step,
        unit="step",
        disable=None if world.main else True,
    )
    with _termination() as terminated:
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule.factor(step)
            loss, stop = world.mean(_backward(task, batches, step, world), float(bool(terminated)))
            if math.isfinite(loss):
                _update(task, optimizer)
            else:
                skipped += 1
                named = f"{task.name}: the loss is {loss} at step {step}, on {', '.join(task.samples(step))}"
                if skipped > task.max_skipped:
                    raise DivergedError(f"{named}; try a lower learning rate")
                progress.write(f"{named}: skipped, {skipped} of at most {task.max_skipped}")
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if writer is not None:
                writer.add_scalar(f"{task.name}/loss", loss, step)
                writer.add_scalar(f"{task.name}/lr", optimizer.param_groups[0]["lr"], step)
            done = step + 1
            if done % task.steps_per_epoch == 0:
                if progress.disable and world.main:  # no terminal: a line an epoch instead of a bar
                    print(f"{task.name}: step {done} of {schedule.steps}, loss {loss:.3f}", flush=True)
                if task.every_epoch is not None:
                    task.every_epoch(done // task.steps_per_epoch)
                    module.train()
            if done % checkpoint_every == 0 or done == schedule.steps or stop:
                save(done)
            if stop and done < schedule.steps:
                raise TerminatedError(
                    f"{task.name}: asked to end; {done} of {schedule.steps} steps are in {state_path}"
                )
    return before + time.monotonic() - start


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """A list that is no longer empty once the process is asked to end."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _backward(task: Task, batches: Any, step: int, world: World) -> float:
    """Gradients of one step; returns the mean loss of this process's batches."""
    total = 0.0
    for part in range(task.accumulate):
        last = part == task.accumulate - 1
        number = (step * task.accumulate + part) * world.size + world.rank
        with contextlib.nullcontext() if last or task.parallel is None else task.parallel.no_sync():
            loss = task.loss(next(batches), number) / task.accumulate
            loss.backward()
        total += loss.item()
    return total


def _update(task: Task, optimizer: torch.optim.Optimizer) -> None:
    if task.clip_grad is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], task.clip_grad)
    optimizer.step()


def _restore(state: dict[str, Any], path: Path, task: Task, optimizer: torch.optim.Optimizer) -> tuple[int, float, int]:
    """Load a state; returns its step, the seconds trained and the steps skipped."""
    try:
        if state["task"] != task.name:
            raise CheckpointError(f"{path} is a state of {state['task']!r}, not of {task.name!r}")
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"], state["skipped"]
    except (KeyError, RuntimeError, ValueError) as e:
        raise CheckpointError(f"{path} does not fit this run: {e}") from e
