"""What a run writes down while it trains: TensorBoard's files, and log.jsonl for everything else that reads it."""

import contextlib
import json
import math
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean

import torch
from torch.utils.tensorboard import SummaryWriter

from alt_fast.errors import FileError
from alt_fast.files import LOG, write_text
from alt_fast.progress import print_line


class Meter:
    """What the steps since it was last read or restarted were like."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self.start, self.steps, self.waited = time.monotonic(), 0, 0.0
        self.losses = defaultdict[str, list[float]](list)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside counts as waiting for data."""
        start = time.monotonic()
        yield
        self.waited += time.monotonic() - start

    def step(self, losses: Mapping[str, float]) -> None:
        """One more step is done. losses: by name, the same names for every step; NaN, too, of one that is skipped."""
        self.steps += 1
        for name, loss in losses.items():
            self.losses[name] += [loss] if math.isfinite(loss) else []

    def read(self) -> dict[str, float | None]:
        """Each loss by its name: the mean of those that are numbers, None without. clips_per_s: of all processes.
        wait_share: of the time, 0 to 1. peak_bytes, batch_size.
        """
        seconds = time.monotonic() - self.start
        values: dict[str, float | None] = {
            **{name: fmean(losses) if losses else None for name, losses in self.losses.items()},
            "clips_per_s": self.steps * self.batch_size / seconds,
            "wait_share": self.waited / seconds,
            "peak_bytes": peak_bytes(),
            "batch_size": self.batch_size,
        }
        self.restart()
        return values


def peak_bytes() -> int:
    """The most memory this process has had: allocated on its GPU, or resident where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


LOG_EVERY = 10  # steps


class RunLog:
    """The log of a run folder; every stage and restart writes to the same.

    log.jsonl has an object a line: time (Unix seconds), stage, step, steps (of the stage), and what was measured since
    the line before: loss, other losses by name (distill), lr (the largest), clips_per_s, wait_share, peak_bytes,
    batch_size; or a score, such as top1. A mean loss is null where no step had a finite one.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG
        try:
            self.writer = SummaryWriter(str(folder / "tensorboard"))
        except OSError as e:
            raise FileError(f"cannot write to {folder / 'tensorboard'}: {e}") from e
        self.lr, self.steps = 0.0, 0
        self.told = {"batch_size"}  # and what TensorBoard has of every step

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.writer.close()

    def step(self, stage: str, step: int, steps: int, losses: Mapping[str, float], lr: float) -> None:
        """Losses, by name, and rate of the step that has just been done, the step-th of `steps`."""
        self.lr, self.steps = lr, steps
        self.told |= losses.keys()
        for name, value in {**losses, "lr": lr}.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step - 1)

    def measured(self, stage: str, step: int, values: Mapping[str, float | None]) -> None:
        """What a meter read."""
        for name, value in values.items():
            if name not in self.told and value is not None:
                self.writer.add_scalar(f"{stage}/{name}", value, step - 1)
        self._write(stage, step, {"lr": self.lr, **values})

    def score(self, stage: str, step: int, **values: float) -> None:
        """Scores of a test after `step` steps."""
        for name, value in values.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)
        self._write(stage, step, values)

    def rewind(self, stage: str, step: int) -> None:
        """Take back what a stage wrote past `step`: it goes on from there. Raises FileError where it is no log.

        Lines with NULs, which file systems put in the place of what had not reached the disk when the machine went
        down, are left out: what they said is lost, and no checkpoint depends on it.
        """
        if not self.path.exists():
            return
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            if lines and not lines[-1].endswith("\n"):  # the process was killed while it wrote
                lines[-1] = "{}"
            lost = [number for number, line in enumerate(lines) if "\0" in line]
            for number in lost:
                lines[number] = "{}"
            entries = [json.loads(line) for line in lines]
            kept = [
                line
                for line, entry in zip(lines, entries, strict=True)
                if entry and (entry["stage"] != stage or entry["step"] <= step)
            ]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise FileError(f"{self.path} is no log of a run: {e!r}") from e
        if lost:
            print_line(f"{self.path}: {len(lost)} of {len(lines)} lines were lost, and are left out")
        if len(kept) < len(lines):
            write_text(self.path, "".join(kept))

    def _write(self, stage: str, step: int, values: Mapping[str, float | None]) -> None:
        entry = {"time": round(time.time(), 3), "stage": stage, "step": step, "steps": self.steps, **values}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as e:
            raise FileError(f"cannot write {self.path}: {e.strerror or e}") from e
