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
from tqdm import tqdm

from alt_fast.distributed import World
from alt_fast.run_log import LOG_EVERY, Meter, RunLog
from alt_fast.states import Progress, States


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
    among those of all processes. A step's gradient is the mean over its batches, of `batch_size` samples in all.
    synchronize: called before each batch with whether its gradients are to be exchanged between the processes. sharded:
    whether checkpoints are written by all processes, each its part. max_skipped: steps whose loss may be no finite
    number; they change nothing. samples: names of a step's samples. ema: decay of a mean of the weights; 0 for none.
    tested: gets the weights to test, the mean where there is one, before `every_epoch` and at the end; needed for a
    mean, and where `module` is in parts. every_epoch: called with the epochs done, after each.
    """

    name: str
    module: nn.Module
    groups: list[dict[str, Any]]
    schedule: Schedule
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, int], Tensor]
    steps_per_epoch: int
    batch_size: int
    accumulate: int = 1
    clip_grad: float | None = None
    synchronize: Callable[[bool], None] = lambda last: None
    sharded: bool = False
    max_skipped: int = 0
    samples: Callable[[int], list[str]] = lambda step: []
    ema: float = 0.0
    tested: nn.Module | None = None
    every_epoch: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Checkpoints:
    """How often a stage's state is written, in steps, and how many of the last ones stay."""

    every: int
    keep: int = 1


def parameter_groups(module: nn.Module, rates: Callable[[str], float], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate; those with one dimension or none (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates(name), decay), []).append(parameter)
    return [{"params": params, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def fit(
    task: Task, folder: Path, checkpoints: Checkpoints, log: RunLog | None = None, world: World | None = None
) -> float:
    """Train to the last step, from the last checkpoint in `folder` when there is one. Returns seconds of training.

    A checkpoint holds weights, optimizer and step; all randomness is keyed by the step, so nothing else is needed.
    world: the processes that train together; the main one writes. log: the main one's.

    Raises DivergedError past the allowed number of steps without a finite loss, and TerminatedError after SIGTERM, once
    the step is done and its state written.
    """
    world = world or World()
    module, schedule = task.module, task.schedule
    optimizer = torch.optim.AdamW(task.groups, betas=(0.9, 0.98), fused=True)
    states = States(folder, task.name, checkpoints.keep, task.sharded, world)
    progress = Progress(mean={name: weight.clone() for name, weight in _trainable(module)} if task.ema else {})
    states.restore(module, optimizer, progress)
    if log is not None:
        log.rewind(task.name, progress.step)
    before, start = progress.seconds, time.monotonic()
    module.train()
    batches = iter(task.batches(progress.step))
    bar = tqdm(
        range(progress.step, schedule.steps),
        task.name,
        schedule.steps,
        initial=progress.step,
        unit="step",
        disable=None if world.main else True,
    )
    meter = Meter(task.batch_size)
    with _termination() as terminated:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule.factor(step)
            loss, stop = world.mean(_backward(task, batches, step, world, meter), float(bool(terminated)))
            if math.isfinite(loss):
                _update(task, optimizer, progress)
            else:
                _skip(task, step, loss, progress, bar)
            optimizer.zero_grad()
            meter.step(loss)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            done = progress.step = step + 1
            epoch_ends = done % task.steps_per_epoch == 0
            if log is not None:
                log.step(task.name, done, schedule.steps, loss, optimizer.param_groups[0]["lr"])
            if done % LOG_EVERY == 0 or epoch_ends or done == schedule.steps:
                measured = meter.read()
                if log is not None:
                    log.measured(task.name, done, measured)
            if epoch_ends:
                if bar.disable and world.main:  # no terminal: a line an epoch instead of a bar
                    _print_line(task, done, measured)
                if task.every_epoch is not None:
                    _publish(task, progress)
                    task.every_epoch(done // task.steps_per_epoch)
                    module.train()
                    meter.restart()  # testing is no training
            if done % checkpoints.every == 0 or done == schedule.steps or stop:
                progress.seconds = before + time.monotonic() - start
                states.save(module, optimizer, progress)
            if stop and done < schedule.steps:
                raise TerminatedError(
                    f"{task.name}: asked to end; {done} of {schedule.steps} steps are in {states.path(done)}"
                )
    _publish(task, progress)
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


def _backward(task: Task, batches: Any, step: int, world: World, meter: Meter) -> float:
    """Gradients of one step; returns the mean loss of this process's batches."""
    total = 0.0
    for part in range(task.accumulate):
        number = (step * task.accumulate + part) * world.size + world.rank
        with meter.waiting():
            batch = next(batches)
        task.synchronize(part == task.accumulate - 1)
        loss = task.loss(batch, number) / task.accumulate
        loss.backward()
        total += loss.item()
    return total


def _update(task: Task, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    if task.clip_grad is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], task.clip_grad)
    optimizer.step()
    if progress.mean:
        # The first means would be of random weights for long, so the decay rises to its value, as in TensorFlow's.
        decay = min(task.ema, (1 + progress.step) / (10 + progress.step))
        weights = dict(_trainable(task.module))
        torch._foreach_lerp_(list(progress.mean.values()), [weights[name] for name in progress.mean], 1 - decay)


def _skip(task: Task, step: int, loss: float, progress: Progress, bar: Any) -> None:
    """Leave a step without a finite loss out. Raises DivergedError past the allowed number of them."""
    progress.skipped += 1
    named = f"{task.name}: the loss is {loss} at step {step}, on {', '.join(task.samples(step))}"
    if progress.skipped > task.max_skipped:
        raise DivergedError(f"{named}; try a lower learning rate")
    bar.write(f"{named}: skipped, {progress.skipped} of at most {task.max_skipped}")


def _print_line(task: Task, done: int, measured: dict[str, float]) -> None:
    speed, gib = measured["clips_per_s"], measured["peak_bytes"] / 2**30
    line = f"{task.name}: step {done} of {task.schedule.steps}, loss {measured['loss']:.3f}, {speed:.1f} samples/s"
    print(f"{line}, {measured['wait_share']:.0%} of the time waiting for data, {gib:.2f} GiB", flush=True)


def _trainable(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight.detach()) for name, weight in module.named_parameters() if weight.requires_grad)


@torch.no_grad()
def _publish(task: Task, progress: Progress) -> None:
    """Copy the weights to test, gathered from all processes where they are in parts."""
    if task.tested is None:
        return
    target = dict(task.tested.named_parameters())
    for name, weight in _trainable(task.module):
        source = progress.mean.get(name, weight)
        target[name].copy_(source.full_tensor() if hasattr(source, "full_tensor") else source)
