"""The training loop: steps, schedule, checkpoints, and a resume that repeats an uninterrupted run exactly."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from alt_fast.checkpoint import CheckpointError, load_state, save_state


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


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

    batches: from a step and on, `accumulate` of them per step. loss: of a batch, given its running number. A step's
    gradient is the mean over its batches. every_epoch: called with the epochs done, after each.
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
    every_epoch: Callable[[int], None] | None = None


def parameter_groups(module: nn.Module, rates: Callable[[str], float], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate; those with one dimension or none (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates(name), decay), []).append(parameter)
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def fit(task: Task, state_path: Path, writer: SummaryWriter, checkpoint_every: int) -> float:
    """Train to the last step, from the checkpoint at `state_path` when there is one. Returns seconds of training.

    The state holds weights, optimizer and step; all randomness is keyed by the step, so nothing else is needed.
    """
    module, schedule = task.module, task.schedule
    optimizer = torch.optim.AdamW(task.groups, betas=(0.9, 0.98), fused=True)
    step, before = 0, 0.0
    if state_path.exists():
        state = load_state(state_path)
        step, before = _restore(state, state_path, task, optimizer)
    start = time.monotonic()

    def save(step: int) -> None:
        content = {"step": step, "module": module.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(state_path, {"task": task.name, "seconds": before + time.monotonic() - start, **content})

    module.train()
    batches = iter(task.batches(step))
    progress = tqdm(range(step, schedule.steps), task.name, schedule.steps, initial=step, unit="step", disable=None)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.factor(step)
        loss = _step(task, optimizer, batches, step)
        if not math.isfinite(loss):
            raise DivergedError(f"{task.name}: the loss is {loss} at step {step}; try a lower learning rate")
        progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
        writer.add_scalar(f"{task.name}/loss", loss, step)
        writer.add_scalar(f"{task.name}/lr", optimizer.param_groups[0]["lr"], step)
        done = step + 1
        if done % task.steps_per_epoch == 0:
            if progress.disable:  # no terminal: a line an epoch instead of a bar
                print(f"{task.name}: step {done} of {schedule.steps}, loss {loss:.3f}", flush=True)
            if task.every_epoch is not None:
                task.every_epoch(done // task.steps_per_epoch)
                module.train()
        if done % checkpoint_every == 0 or done == schedule.steps:
            save(done)
    return before + time.monotonic() - start


def _step(task: Task, optimizer: torch.optim.Optimizer, batches: Any, step: int) -> float:
    """One optimizer step; returns the mean loss of its batches."""
    total = 0.0
    for part in range(task.accumulate):
        loss = task.loss(next(batches), step * task.accumulate + part) / task.accumulate
        loss.backward()
        total += loss.item()
    if task.clip_grad is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], task.clip_grad)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _restore(state: dict[str, Any], path: Path, task: Task, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a state; returns its step and the seconds trained."""
    try:
        if state["task"] != task.name:
            raise CheckpointError(f"{path} is a state of {state['task']!r}, not of {task.name!r}")
        task.module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], state["seconds"]
    except (KeyError, RuntimeError, ValueError) as e:
        raise CheckpointError(f"{path} does not fit this run: {e}") from e
