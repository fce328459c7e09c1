"""How training runs are going, from their own logs: curves, rates, speed, time left.

alt-fast watch runs/mine runs/other
"""

import argparse
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.errors import AltFastError, ArgumentError, RunError
from alt_fast.files import CONFIG, ENVIRONMENT, LOG, METRICS, read_json

_BARS = "▁▂▃▄▅▆▇█"
_DAY = 86400  # seconds
_NARROWEST = 44  # columns that a run needs
_MEASURED = ("time", "step", "steps", "loss", "lr", "clips_per_s", "wait_share", "peak_bytes", "batch_size")
"""Numbers of a line with a loss."""

_QUIET = 300  # seconds without news after which a run is said to be quiet


@dataclass
class StageLog:
    """What a run logged of one stage: objects of the log with a loss, and those with a score."""

    measured: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)


def read_log(run: Path) -> dict[str, StageLog]:
    """The stages of a run, in their order. Raises RunError when it is no run, or its log is none."""
    path = run / LOG
    stages: dict[str, StageLog] = {}
    if not path.exists() and (run / CONFIG).exists() and (run / ENVIRONMENT).exists():
        return stages  # the first steps are under way, or what comes before them
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        for line in lines:
            if line.endswith("\n") and "\0" not in line:  # the last may be under way; a crashed file system's are zeros
                entry = json.loads(line)
                stage = stages.setdefault(entry["stage"], StageLog())
                measured = "loss" in entry
                if measured and entry["loss"] is None:  # no step had a finite one
                    entry["loss"] = float("nan")
                for name in _MEASURED if measured else {"time", "step", *entry} - {"stage"}:
                    float(entry[name])
                (stage.measured if measured else stage.scores).append(entry)
    except OSError as e:
        raise RunError(f"cannot read {path}: {e.strerror}. Is {run} the folder of a run?") from e
    except (ValueError, KeyError, TypeError) as e:
        raise RunError(f"{path} is no log of a run: {e!r}") from e
    return stages


def curve(values: Sequence[float], width: int) -> str:
    """A line of bars, each the mean of its share of the values; "?" where they are not finite."""
    if not values:
        return ""
    count = max(1, min(width, len(values)))
    bounds = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(bounds)]
    finite = [value for value in means if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * scale)] if abs(value) < float("inf") else "?" for value in means)


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min" or "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def time_left(measured: Sequence[dict[str, Any]], batch_size: float) -> float:
    """Seconds to the end of a stage at the speed of its last ten lines. batch_size: clips a step."""
    last = measured[-1]
    recent = measured[-10:]
    speed = sum(entry["clips_per_s"] for entry in recent) / len(recent)
    return (last["steps"] - last["step"]) * batch_size / speed


def describe(run: Path, now: float, width: int) -> list[str]:
    """The lines about a run, none longer than `width`. now: Unix seconds. Raises RunError."""
    lines = [str(run)]
    stages = read_log(run)
    done = (run / METRICS).exists()
    if not stages:
        return [line[:width] for line in (*lines, "  nothing logged yet")]
    for name, stage in stages.items():
        lines.append("")
        lines += _describe_stage(name, stage, width)
    newest = max(entry["time"] for stage in stages.values() for entry in (*stage.measured, *stage.scores))
    lines.append("")
    if done:
        metrics = read_json(run / METRICS)
        scores = (
            f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float) and "top" in name
        )
        lines += ["finished", *(f"  {score}" for score in scores)]
    elif now - newest > _QUIET:
        lines.append(f"no news for {duration(now - newest)}: stopped, testing, or waiting")
    else:
        lines.append("running")
    return [line[:width] for line in lines]


def _describe_stage(name: str, stage: StageLog, width: int) -> list[str]:
    lines = []
    if stage.measured:
        last = stage.measured[-1]
        share = last["step"] / last["steps"]
        head = f"{name}: step {last['step']} of {last['steps']}, {share:.0%}"
        if share < 1:
            head += f", {duration(time_left(stage.measured, last['batch_size']))} left"
        losses = [entry["loss"] for entry in stage.measured]
        lines += [
            head,
            f"  loss {last['loss']:8.4f} {curve(losses, width - 16)}",
            f"  rate {last['lr']:8.2g} {curve([entry['lr'] for entry in stage.measured], width - 16)}",
            f"  {last['clips_per_s']:.1f} samples/s, waits {last['wait_share']:.0%}, "
            f"{last['peak_bytes'] / 2**30:.2f} GiB",
        ]
    names = dict.fromkeys(
        key for entry in stage.scores for key in entry if key not in ("time", "stage", "step", "steps")
    )
    for score in names:
        values = [entry[score] for entry in stage.scores if score in entry]
        lines.append(f"  {score} {values[-1]:7.3f} {curve(values, width - 28)} best {max(values):.3f}")
    return lines


def side_by_side(columns: Sequence[Sequence[str]], width: int) -> str:
    """Texts beside each other, as many as fit `width`; the others below."""
    fit = max(1, width // _NARROWEST)
    each = width // min(fit, len(columns))
    rows = []
    for start in range(0, len(columns), fit):
        group = columns[start : start + fit]
        for number in range(max(map(len, group))):
            cells = (column[number] if number < len(column) else "" for column in group)
            rows.append("".join(f"{cell:<{each}}" for cell in cells).rstrip())
        rows.append("")
    return "\n".join(rows)


def draw(runs: Sequence[Path], width: int) -> tuple[str, int]:
    """What is to be seen of all runs, with the errors of those that cannot be read, and how many these are.

    Raises AltFastError where that is all of them.
    """
    each = width // min(max(1, width // _NARROWEST), len(runs)) - 2
    columns: list[list[str]] = []
    errors: list[AltFastError] = []
    for run in runs:
        try:
            columns.append(describe(run, time.time(), each))
        except AltFastError as e:
            columns.append([str(run)[:each], "", *textwrap.wrap(f"error: {e}", max(1, each))])
            errors.append(e)
    if len(errors) == len(runs):
        raise errors[0]
    return side_by_side(columns, width), len(errors)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "watch",
        "Show how training runs are going: loss, rates, scores, speed, time left. In a terminal it looks "
        "again every few seconds until all have finished.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder; several stand side by side")
    parser.add_argument("--every", type=float, metavar="S", help="seconds between looks (default 5)")
    parser.add_argument("--once", action="store_true", help="look once")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Look, again and again."""
    every = 5.0 if arguments.every is None else arguments.every
    if not 0 < every <= _DAY:
        raise ArgumentError(f"--every must be > 0 and at most {_DAY}, got {every:g}")
    if arguments.once and arguments.every is not None:
        raise ArgumentError("--every has no effect on --once")
    while True:
        text, errors = draw(arguments.runs, shutil.get_terminal_size((100, 40)).columns)
        again = sys.stdout.isatty() and not arguments.once
        print(f"\x1b[H\x1b[J{text}" if again else text, flush=True)
        if not again or all((run / METRICS).exists() for run in arguments.runs):
            return int(errors > 0)
        time.sleep(every)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv, interrupted="")


if __name__ == "__main__":
    sys.exit(main())
