"""Videos per second on a CPU: ALT un-merged and merged, by PyTorch, by torch.compile and by onnxruntime.

    python -m benchmarks.cpu_speed [MODEL ...] [--ways eager compiled onnx] [--batch 1] [--rounds 9] [--results FILE]

Weights are random: speed does not depend on them. A video is one clip of 8 frames, decoded already. Contestants run in
turn, round by round, each time another one first; figures are medians, ratios those of the rounds' own. All must give
the same probabilities, to AGREEMENT.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alt_fast import cli
from alt_fast.data.config import AugmentConfig
from alt_fast.errors import ArgumentError
from alt_fast.inference import onnx
from alt_fast.inference.trained import TrainedModel
from alt_fast.measure.lines import append_row, check_rows
from alt_fast.measure.timing import Race
from alt_fast.model.alt import ALT
from alt_fast.model.config import PRESETS
from benchmarks.audit import CLASSES, make_model
from benchmarks.onnx_accuracy import session

MODELS = ("alt_tiny", "alt_b16")
AGREEMENT = 1e-4  # of probabilities: what tests hold ONNX files to
PLAIN, MERGED = "un-merged", "merged"

Score = Callable[[], Tensor]
"""Gives the probabilities [B, I] of its videos."""


def eager(model: ALT, video: Tensor, classes: Tensor) -> Score:
    """PyTorch, operator by operator."""
    return lambda: model.probabilities(video, classes)[0]


def compiled(model: ALT, video: Tensor, classes: Tensor) -> Score:
    """torch.compile, of this batch size only."""
    step = torch.compile(model.probabilities, dynamic=False)
    return lambda: step(video, classes)[0]


def onnxruntime(model: ALT, video: Tensor, classes: Tensor) -> Score:
    """The whole model as one ONNX file, of any batch size."""
    trained = TrainedModel(model, [], ["{}"], AugmentConfig())
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(Path(folder), onnx.build(trained, ["video_encoder"], ["any"], "alt"), int8=False)
        running = session(Path(folder) / "video_encoder.onnx")
    inputs = {"video": video.numpy(), "classes": classes.numpy()}
    return lambda: torch.from_numpy(running.run(["probabilities"], inputs)[0])


WAYS = {"eager": eager, "compiled": compiled, "onnx": onnxruntime}


def measure(name: str, ways: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Race one model in all ways, un-merged and merged. Returns seconds by contestant, and medians.

    difference: the largest of a way's probabilities from the first way's. Raises RuntimeError beyond AGREEMENT.
    """
    torch.manual_seed(0)
    preset = PRESETS[name]
    steps: dict[str, Score] = {}
    difference: dict[str, float] = {}
    for merging, r in ((PLAIN, 0), (MERGED, preset.r)):
        model = make_model(replace(preset, r=r))
        video = torch.randn(batch, preset.frames, 3, *model.image_size)
        classes = F.normalize(torch.randn(CLASSES, model.alignment.entities.shape[1]), dim=-1)
        of_ways = {way: WAYS[way](model, video, classes) for way in ways}
        with torch.inference_mode():
            expected, *others = (step() for step in of_ways.values())
        for way, found in zip(list(of_ways)[1:], others, strict=True):
            difference[f"{way}, {merging}"] = float((found - expected).abs().max())
        steps |= {f"{way}, {merging}": step for way, step in of_ways.items()}
    if wrong := {each: by for each, by in difference.items() if not by <= AGREEMENT}:
        raise RuntimeError(f"{name}: probabilities are not those of {ways[0]}, but off by {wrong}")
    race = Race()
    with torch.inference_mode():
        for contestant, step in steps.items():
            race.add(contestant, step, "cpu")
        if race.skipped:
            raise RuntimeError(f"{name}: {race.skipped}")
        order = list(steps)
        for start in range(rounds):
            for contestant in order[start % len(order) :] + order[: start % len(order)]:
                race.run(contestant)
    rates = {contestant: batch / statistics.median(seconds) for contestant, seconds in race.seconds.items()}
    speedups = {way: race.ratio(f"{way}, {PLAIN}", f"{way}, {MERGED}") for way in ways}
    return {
        "model": name,
        "r": preset.r,
        "batch": batch,
        "videos_per_second": rates,
        "speedup": speedups,
        "difference": difference,
        "seconds": race.seconds,
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu_speed", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}; both by default")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    parser.add_argument("--batch", type=int, default=1, help="videos at once (default 1)")
    parser.add_argument("--rounds", type=int, default=9, help="at least 2 (default 9)")
    parser.add_argument("--results", type=Path, metavar="FILE", help="also add JSON lines to a file")
    return parser


def work(options: argparse.Namespace) -> int:
    """Measure the models, print a line for each way, and add them to the results."""
    unknown = sorted(set(options.models) - set(MODELS))
    if unknown:
        raise ArgumentError(f"models are {', '.join(MODELS)}, got {', '.join(unknown)}")
    for name, least in (("batch", 1), ("rounds", 2)):
        if getattr(options, name) < least:
            raise ArgumentError(f"--{name} must be at least {least}, got {getattr(options, name)}")
    check_rows(options.results)
    for name in options.models or MODELS:
        row = measure(name, options.ways, options.batch, options.rounds)
        for way in options.ways:
            plain, merged = (row["videos_per_second"][f"{way}, {merging}"] for merging in (PLAIN, MERGED))
            low, middle, high = row["speedup"][way]
            print(
                f"{name}, {way}: un-merged {plain:.2f} videos/s, merged (r = {row['r']}) {merged:.2f}, "
                f"{middle:.2f} x ({low:.2f} to {high:.2f})",
                flush=True,
            )
        if options.results is not None:
            append_row(options.results, row)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
