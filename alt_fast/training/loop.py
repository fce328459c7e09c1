"""The training loop: steps, schedule, checkpoints, and a resume that repeats an uninterrupted run exactly."""

import contextlib
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alt_fast.distributed import World
from alt_fast.errors import AltFastError
from alt_fast.progress import Progress
from alt_fast.training.run_log import LOG_EVERY, Meter, RunLog
from alt_fast.training.schedule import Schedule, parameter_groups
from alt_fast.training.states import SAVE_SECONDS, SaveEvery, StateFiles, TrainState


class DivergedError(AltFastError, RuntimeError):
    """The loss or its gradient is no longer finite."""


class TerminatedError(AltFastError, RuntimeError):
    """The process was asked to end (SIGTERM), and has written a checkpoint."""

    status = 143  # as of a process that SIGTERM ends


@dataclass(frozen=True)
class StageSettings:
    """The numbers of a stage.

    batch_size: samples of a step, of all processes. accumulate: batches of a step in each process; a step's gradient is
    the mean over them. max_skipped: steps whose loss or gradient may not be finite; they change nothing. ema: decay of
    a moving average of the weights; 0 for none. sharded: whether every process writes its part of a checkpoint.
    """

    schedule: Schedule
    steps_per_epoch: int
    batch_size: int
    weight_decay: float
    accumulate: int = 1
    clip_grad: float | None = None
    max_skipped: int = 0
    ema: float = 0.0
    sharded: bool = False


class Stage(Protocol):
    """What is trained in one go.

    module: what trains. tested: what gets the weights to test, averaged and gathered from all processes, at the end of
    every epoch; None where that is `module` itself.
    """

    name: str
    settings: StageSettings

    @property
    def module(self) -> nn.Module: ...

    @property
    def tested(self) -> nn.Module | None: ...

    def learning_rate(self, parameter: str) -> float:
        """Return the peak rate of a parameter, by its name."""
        ...

    def batches(self, step: int) -> Iterable[Any]:
        """Return batches from a step and on, `accumulate` of them per step."""
        ...

    def loss(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Return the loss of a batch, given its running number among those of all processes.

        As "loss" what is minimised; under other names what the log is to tell besides.
        """
        ...

    def samples(self, step: int) -> list[str]:
        """Return the names of a step's samples, for messages."""
        ...

    def synchronize(self, last: bool) -> None:
        """Hear before a batch whether its gradients are to be exchanged between the processes."""
        ...

    def end_epoch(self, done: int) -> None:
        """Do what an epoch ends with; so many are done."""
        ...


def fit(stage: Stage, folder: Path, saving: SaveEvery, log: RunLog | None = None, world: World | None = None) -> float:
    """Train to the last step, from the last checkpoint in `folder` when there is one. Returns seconds of training.

    A checkpoint holds weights, optimizer and step; all randomness is keyed by the step, so nothing else is needed.
    world: the processes that train together; the main one writes. log: the main one's.

    Raises DivergedError past the allowed number of steps without a finite loss and gradient; and once the step is done
    and its state written TerminatedError after SIGTERM, and KeyboardInterrupt after Ctrl-C (a second one raises it at
    once).
    """
    world = world or World()
    trainer = _Trainer(stage, folder, saving, log, world)
    with _asked_to_end(world) as asked, contextlib.closing(_each(stage.batches(trainer.state.step))) as batches:
        for step in trainer.bar:
            own = trainer.backward(batches, step)
            stop, overdue, *means = world.mean(float(bool(asked)), float(trainer.overdue), *own.values())
            losses = dict(zip(own, means, strict=True))
            trainer.update(step, losses["loss"])
            trainer.record(losses)
            if trainer.state.step % stage.settings.steps_per_epoch == 0:
                trainer.end_epoch()
            if stop or overdue or trainer.checkpoint_is_due:
                trainer.save()
            if stop:
                raise trainer.ended(asked)
    (stop,) = world.mean(float(bool(asked)))  # since the last step began
    if stop:
        raise trainer.ended(asked)
    trainer.publish()
    return trainer.seconds


def _each(batches: Iterable[Any]) -> Generator[Any, None, None]:
    """Give them until this is closed, which ends the processes that make them."""
    yield from batches


@contextlib.contextmanager
def _asked_to_end(world: World) -> Iterator[list[int]]:
    """Give a list of the signals by which the process was asked to end: SIGTERM, or SIGINT, which is Ctrl-C.

    A second SIGINT is Python's own where there is one process; torchrun passes them on, and kills after 30 s.
    """
    asked: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        asked.append(number)
        if world.size == 1:
            signal.signal(number, before)
            os.write(2, b"\nonce this step, or test, is done a checkpoint is written; Ctrl-C again ends at once\n")

    before, term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    if before is not signal.SIG_IGN:  # as in the background of a shell
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, term)
        signal.signal(signal.SIGINT, before)


class _Trainer:
    """What the loop holds: optimizer, state, checkpoints, and how it is going."""

    def __init__(self, stage: Stage, folder: Path, saving: SaveEvery, log: RunLog | None, world: World) -> None:
        self.stage, self.settings, self.saving, self.log, self.world = stage, stage.settings, saving, log, world
        groups = parameter_groups(stage.module, stage.learning_rate, stage.settings.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        self.files = StateFiles(folder, stage.name, saving.keep, stage.settings.sharded, world)
        averaged = {name: weight.clone() for name, weight in _trainable(stage.module)} if stage.settings.ema else {}
        self.state = TrainState(ema=averaged)
        self.files.restore(stage.module, self.optimizer, self.state)
        if log is not None:
            log.rewind(stage.name, self.state.step)
        self.before, self.start = self.state.seconds, time.monotonic()
        self.saved = self.start
        self.meter = Meter(stage.settings.batch_size)
        steps = stage.settings.schedule.steps
        self.bar = Progress(
            range(self.state.step, steps), stage.name, "step", steps, initial=self.state.step, shown=world.main
        )
        stage.module.train()

    @property
    def seconds(self) -> float:
        """Of training, over all restarts."""
        return self.before + time.monotonic() - self.start

    @property
    def finished(self) -> bool:
        return self.state.step == self.settings.schedule.steps

    def ended(self, asked: Sequence[int]) -> BaseException:
        """Return what to raise, given the signals that asked for it, and say where the state is."""
        steps, path = self.settings.schedule.steps, self.files.path(self.state.step)
        said = f"{self.stage.name}: asked to end; {self.state.step} of {steps} steps are in {path}"
        if signal.SIGINT not in asked:
            return TerminatedError(said)
        if self.world.main:
            self.bar.write(said)
        return KeyboardInterrupt()

    @property
    def checkpoint_is_due(self) -> bool:
        return self.finished or self.state.step % self.saving.every == 0

    @property
    def overdue(self) -> bool:
        """Whether the last checkpoint is so old that the next one does not wait for its step."""
        return time.monotonic() - self.saved > SAVE_SECONDS

    def backward(self, batches: Iterator[Any], step: int) -> dict[str, float]:
        """Add up the gradients of one step; returns the mean losses of this process's batches, by name."""
        total: dict[str, float] = defaultdict(float)
        for part in range(self.settings.accumulate):
            number = (step * self.settings.accumulate + part) * self.world.size + self.world.rank
            with self.meter.waiting():
                batch = next(batches)
            self.stage.synchronize(part == self.settings.accumulate - 1)
            losses = self.stage.loss(batch, number)
            shares = {name: loss / self.settings.accumulate for name, loss in losses.items()}
            shares["loss"].backward()
            for name, share in shares.items():
                total[name] += share.item()
        return total

    def update(self, step: int, loss: float) -> None:
        """Take the step, or leave it out when loss or gradient is not finite. Raises DivergedError for one too many."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.settings.schedule.factor(step)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = (total.full_tensor() if isinstance(total, DTensor) else total).item()
        if math.isfinite(loss) and math.isfinite(norm):
            if self.settings.clip_grad is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_grad, total)
            self.optimizer.step()
            self._average()
        else:
            self._skip(step, f"the loss is {loss}" + f", its gradient {norm}" * math.isfinite(loss))
        self.optimizer.zero_grad()
        self.state.step = step + 1

    def _average(self) -> None:
        if self.state.ema:
            # The first means would be of random weights for long, so the decay rises to its value, as in TensorFlow's.
            decay = min(self.settings.ema, (1 + self.state.step) / (10 + self.state.step))
            weights = dict(_trainable(self.stage.module))
            torch._foreach_lerp_(list(self.state.ema.values()), [weights[name] for name in self.state.ema], 1 - decay)

    def _skip(self, step: int, what: str) -> None:
        self.state.skipped += 1
        named = f"{self.stage.name}: {what} at step {step}, on {', '.join(self.stage.samples(step))}"
        if self.state.skipped > self.settings.max_skipped:
            raise DivergedError(f"{named}; try a lower learning rate")
        if self.world.main:
            self.bar.write(f"{named}: skipped, {self.state.skipped} of at most {self.settings.max_skipped}")

    def record(self, losses: Mapping[str, float]) -> None:
        """Write the step down. losses: by name."""
        self.meter.step(losses)
        self.bar.annotate(f"loss={losses['loss']:.3f}")
        name, done, steps = self.stage.name, self.state.step, self.settings.schedule.steps
        if self.log is not None:
            self.log.step(name, done, steps, losses, max(group["lr"] for group in self.optimizer.param_groups))
        if done % LOG_EVERY == 0 or done % self.settings.steps_per_epoch == 0 or self.finished:
            measured = self.measure()
            if self.log is not None and self.bar.lines and done % self.settings.steps_per_epoch == 0:
                print(_line(name, done, steps, measured), flush=True)

    def measure(self) -> dict[str, float | None]:
        """Return what the steps were like since this was asked for, and write it down."""
        measured = self.meter.read()
        if self.log is not None:
            self.log.measured(self.stage.name, self.state.step, measured)
        return measured

    def end_epoch(self) -> None:
        """Let the stage test what it has become."""
        self.publish()
        self.stage.end_epoch(self.state.step // self.settings.steps_per_epoch)
        self.stage.module.train()
        self.meter.restart()  # testing is no training

    def save(self) -> None:
        """Write a checkpoint, and before it what led there: whoever goes on from it has no more of that."""
        if self.meter.steps:
            self.measure()
        self.state.seconds = self.seconds
        self.files.save(self.stage.module, self.optimizer, self.state)
        self.saved = time.monotonic()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the weights to test, gathered from all processes where they are in parts."""
        if self.stage.tested is None:
            return
        target = dict(self.stage.tested.named_parameters())
        for name, weight in _trainable(self.stage.module):
            source = self.state.ema.get(name, weight)
            target[name].copy_(source.full_tensor() if hasattr(source, "full_tensor") else source)


def _line(name: str, done: int, steps: int, measured: Mapping[str, float | None]) -> str:
    loss, speed, waited, size = (measured[key] for key in ("loss", "clips_per_s", "wait_share", "peak_bytes"))
    told = "no finite loss" if loss is None else f"loss {loss:.3f}"
    line = f"{name}: step {done} of {steps}, {told}, {speed:.1f} samples/s"
    return f"{line}, {waited:.0%} of the time waiting for data, {(size or 0) / 2**30:.2f} GiB"


def _trainable(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight.detach()) for name, weight in module.named_parameters() if weight.requires_grad)
