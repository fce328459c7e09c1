"""A test of a model in depth: mistakes, what another r gives, what it costs, and pages that explain the worst mistakes.

Paths are shown below the folder that all videos of a list share: reports are made to be sent to others.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alt_fast.data.annotations import Video
from alt_fast.data.decode import VideoError
from alt_fast.distributed import World
from alt_fast.files import make_folder
from alt_fast.inference.alignment import use_text
from alt_fast.inference.explain import explain
from alt_fast.inference.scoring import EvalConfig, Result, evaluate
from alt_fast.inference.statistics import calibration, confusion, per_class
from alt_fast.inference.trained import TrainedModel
from alt_fast.model.config import Head
from alt_fast.progress import Progress
from alt_fast.report.page import r_text, write_page
from alt_fast.tome.schedule import merge_schedule
from alt_fast_kernels.counting import flop_formulas

_ROUNDS = 7  # an odd number: the median is one of them


@dataclass(frozen=True)
class TestedList:
    """A list of videos and its test at the model's own r. names: of the classes; classes: their embeddings [I, d]."""

    videos: Sequence[Video]
    names: Sequence[str]
    classes: Tensor
    result: Result

    @property
    def shown(self) -> list[str]:
        """The videos' paths without the folders that all share."""
        paths = [os.path.abspath(video.path) for video in self.videos]
        shared = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
        return [os.path.relpath(path, shared) for path in paths]


@dataclass(frozen=True)
class AssessmentOptions:
    """How to test, r to test at too, how many mistakes to explain, and the folder for their pages, beside the report.

    world: the processes that share the work; all of them make the report's data, and the same.
    """

    testing: EvalConfig
    also_r: Sequence[int]
    explained: int
    pages: Path
    world: World


def assess(
    row: dict[str, Any], tested: TestedList, trained: TrainedModel, options: AssessmentOptions
) -> dict[str, Any]:
    """Return all of a list's part of the page. row: of `summarize`."""
    worst = mistakes(tested.result)[: options.explained]
    return {
        **statistics_of(row, tested),
        "ladder": ladder(tested, trained, options),
        "pages": explain_videos(worst, tested, trained, options),
    }


def statistics_of(row: dict[str, Any], tested: TestedList) -> dict[str, Any]:
    """Return what a test itself tells; unreadable videos count as wrong, and stand apart in the tables."""
    result = tested.result
    scores, labels = result.scores[result.readable], result.labels[result.readable]
    shown = {str(video.path): name for video, name in zip(tested.videos, tested.shown, strict=True)}
    unreadable = [{"path": shown[failure.path], "cause": failure.cause} for failure in result.failures]
    return {
        "row": {**row, "list": Path(row["list"]).name, "unreadable": unreadable},
        "uses": use_text(row["alignment"]) if "alignment" in row else "",
        "names": list(tested.names),
        "classes": per_class(scores, labels, tested.names),
        "confusion": confusion(scores, labels),
        "calibration": calibration(scores, labels) if len(labels) else {"error": None, "bins": []},
    }


def mistakes(result: Result) -> list[int]:
    """Return the numbers of readable videos that were taken for another class, the most confident first."""
    confidence, predicted = result.scores.max(1)
    wrong = (predicted != result.labels) & result.readable
    return confidence.masked_fill(~wrong, -1).argsort(descending=True)[: int(wrong.sum())].tolist()


def ladder(tested: TestedList, trained: TrainedModel, options: AssessmentOptions) -> list[dict[str, Any]]:
    """Return top-1, mistakes, GFLOPs (10^9 multiply-accumulates of matmuls) and milliseconds of one clip, by r.

    Latency is the median of single clips, taken in turn so that a slow moment of the machine meets every r, and while
    the other processes wait.
    """
    model, classes, world, shown = trained.model, tested.classes, options.world, tested.shown
    own = model.encoder.schedule
    wanted = [own, *(merge_schedule(r, len(own)) for r in options.also_r)]
    schedules = sorted({tuple(schedule): schedule for schedule in wanted}.values(), key=sum)
    clip = torch.zeros(1, trained.spec.num_frames, 3, *trained.spec.size, device=classes.device)
    rows: list[dict[str, Any]] = []
    for schedule in schedules:
        result, name = tested.result, r_text(schedule)
        if schedule != own:
            title = f"r = {name}"
            result = evaluate(model, tested.videos, trained.spec, classes, options.testing, title, world, schedule)
        counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            model.probabilities(clip, classes, options.testing.head, schedule)
        wrong = [_mistake(result, number, shown) for number in mistakes(result)]
        row = {"r": name, "own": schedule == own, "top1": result.top(1), "mistakes": wrong}
        rows.append(row | {"gflops": counter.get_total_flops() / 2e9})
    world.gather(None)
    times: list[list[float]] = [[] for _ in schedules]
    rounds = range(_ROUNDS if world.main else 0)
    for _ in Progress(rounds, "latency", "round", shown=world.main):
        for schedule, taken in zip(schedules, times, strict=True):
            taken.append(_seconds(trained, clip, classes, options.testing.head, schedule))
    times = world.gather(times)[0]
    return [row | {"ms": 1e3 * statistics.median(taken)} for row, taken in zip(rows, times, strict=True)]


def _mistake(result: Result, number: int, shown: Sequence[str]) -> dict[str, Any]:
    confidence, predicted = result.scores[number].max(0)
    return {
        "path": shown[number],
        "label": int(result.labels[number]),
        "predicted": int(predicted),
        "confidence": confidence.item(),
    }


@torch.inference_mode()
def _seconds(
    trained: TrainedModel, clip: Tensor, classes: Tensor, head: Head, schedule: Sequence[int | float]
) -> float:
    def wait() -> None:
        if clip.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    trained.model.probabilities(clip, classes, head, schedule)
    wait()
    return time.perf_counter() - start


def explain_videos(
    numbers: Sequence[int], tested: TestedList, trained: TrainedModel, options: AssessmentOptions
) -> dict[str, str]:
    """Write an explanation of each of these videos into the folder of pages; returns their addresses by shown path."""
    folder, world, shown = options.pages, options.world, tested.shown
    if numbers:
        make_folder(folder)
    own = range(world.rank, len(numbers), world.size)
    written: dict[str, str] = {}
    for place in Progress(own, "explaining", "video", shown=world.main):
        page, number = folder / f"{place:03}.html", numbers[place]
        path = tested.videos[number].path
        try:
            found = explain(
                path, trained.model, trained.spec, tested.names, tested.classes, options.also_r, progress=False
            )
        except VideoError:
            continue  # it was readable when it was tested
        write_page(page, found)
        written[shown[number]] = quote(f"{folder.parent.name}/{folder.name}/{page.name}")
    return dict(item for share in world.gather(written) for item in share.items())
