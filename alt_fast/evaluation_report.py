"""A test of a model as one HTML page: classes, confusions, calibration, and what another r would give."""

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
from tqdm import tqdm

from alt_fast.checkpoint import TrainedModel, write_atomically
from alt_fast.data.annotations import Video
from alt_fast.data.decode import VideoError
from alt_fast.distributed import World
from alt_fast.explain import explain
from alt_fast.explain_page import fill_page, r_text, write_page
from alt_fast.scoring import EvalConfig, Result, evaluate
from alt_fast.tome import merge_schedule
from alt_fast_kernels.counting import flop_formulas

BINS = 10
_ROUNDS = 7


def calibration(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """How far confidence is from accuracy: expected calibration error over ten bins (Guo et al., 2017).

    scores: [N, I] probabilities. labels: [N]. Returns {"error": 0 to 1, "bins": of "videos", "confidence", "accuracy"}.
    """
    confidence, predicted = scores.max(1)
    right = (predicted == labels).float()
    number = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    for b in range(BINS):
        inside = number == b
        if inside.any():
            means = confidence[inside].mean().item(), right[inside].mean().item()
            bins.append({"videos": int(inside.sum()), "confidence": means[0], "accuracy": means[1]})
    error = sum(b["videos"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(labels)
    return {"error": error, "bins": bins}


def per_class(scores: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Videos, top-1 (recall), precision and what it is most often taken for, by class; None without videos."""
    predicted = scores.argmax(1)
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        own, called = labels == i, predicted == i
        wrong = predicted[own & ~called]
        rows.append(
            {
                "name": name,
                "videos": int(own.sum()),
                "top1": (called & own).sum().item() / int(own.sum()) if own.any() else None,
                "precision": (called & own).sum().item() / int(called.sum()) if called.any() else None,
                "taken_for": names[int(wrong.mode().values)] if len(wrong) else "",
            }
        )
    return rows


def confusion(scores: Tensor, labels: Tensor) -> list[list[int]]:
    """[I, I], videos of each class (row) by predicted class."""
    count = scores.shape[1]
    return torch.bincount(labels * count + scores.argmax(1), minlength=count**2).view(count, count).tolist()


@dataclass(frozen=True)
class Tested:
    """A list of videos and its test at the model's own r. names: of the classes; classes: their embeddings [I, d]."""

    videos: Sequence[Video]
    names: Sequence[str]
    classes: Tensor
    result: Result


@dataclass(frozen=True)
class ReportOptions:
    """How to test, r to test at too, how many mistakes to explain, and the folder for their pages, beside the report.

    world: the processes that share the work; all of them make the page's data, and the same.
    """

    testing: EvalConfig
    reductions: Sequence[int]
    explained: int
    pages: Path
    world: World


def ladder(tested: Tested, trained: TrainedModel, options: ReportOptions) -> list[dict[str, Any]]:
    """Top-1, mistakes, GFLOPs (10^9 multiply-accumulates of matmuls) and milliseconds of one clip, by r.

    Latency is the median of single clips, taken in turn so that a slow moment of the machine meets every r, and while
    the other processes wait.
    """
    classes = tested.classes
    encoder = trained.model.encoder
    own = encoder.schedule
    wanted = [own, *(merge_schedule(r, len(own)) for r in options.reductions)]
    schedules = sorted({tuple(schedule): schedule for schedule in wanted}.values(), key=sum)
    clip = torch.zeros(1, trained.spec.num_frames, 3, *trained.spec.size, device=classes.device)
    rows: list[dict[str, Any]] = []
    times: list[list[float]] = [[] for _ in schedules]
    world = options.world
    try:
        for schedule in schedules:
            encoder.schedule = schedule
            result = tested.result
            if schedule != own:
                name = f"r = {r_text(schedule)}"
                result = evaluate(trained.model, tested.videos, trained.spec, classes, options.testing, name, world)
            counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
            with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
                trained.model(clip, classes)
            row = {"r": r_text(schedule), "own": schedule == own, "top1": result.top(1)}
            rows.append(row | {"gflops": counter.get_total_flops() / 2e9, "mistakes": mistakes(result, tested.videos)})
        world.gather(None)
        for _ in range(_ROUNDS if world.main else 0):
            for schedule, taken in zip(schedules, times, strict=True):
                encoder.schedule = schedule
                taken.append(_seconds(trained, clip, classes))
    finally:
        encoder.schedule = own
    times = world.gather(times)[0]
    return [row | {"ms": 1e3 * statistics.median(taken)} for row, taken in zip(rows, times, strict=True)]


@torch.inference_mode()
def _seconds(trained: TrainedModel, clip: Tensor, classes: Tensor) -> float:
    def wait() -> None:
        if clip.device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    trained.model(clip, classes)
    wait()
    return time.perf_counter() - start


def list_report(row: dict[str, Any], tested: Tested, trained: TrainedModel, options: ReportOptions) -> dict[str, Any]:
    """All of a list's part of the page. row: of `summarize`."""
    data = report_data(row, tested)
    data["ladder"] = ladder(tested, trained, options)
    worst = [mistake["path"] for mistake in mistakes(tested.result, tested.videos)[: options.explained]]
    data["pages"] = explain_videos(worst, tested, trained, options)
    return data


def mistakes(result: Result, videos: Sequence[Video]) -> list[dict[str, Any]]:
    """Readable videos that were taken for another class, the most confident first."""
    confidence, predicted = result.scores.max(1)
    wrong = (predicted != result.labels) & result.readable
    order = confidence.masked_fill(~wrong, -1).argsort(descending=True)[: int(wrong.sum())]
    return [
        {
            "path": str(videos[i].path),
            "label": videos[i].label,
            "predicted": int(predicted[i]),
            "confidence": confidence[i].item(),
        }
        for i in order.tolist()
    ]


def report_data(row: dict[str, Any], tested: Tested) -> dict[str, Any]:
    """What the page shows of one list; unreadable videos count as wrong, and stand apart in the tables."""
    read = tested.result.readable
    scores, labels = tested.result.scores[read], tested.result.labels[read]
    return {
        "row": row,
        "names": list(tested.names),
        "classes": per_class(scores, labels, tested.names),
        "confusion": confusion(scores, labels),
        "calibration": calibration(scores, labels) if len(labels) else {"error": None, "bins": []},
    }


def explain_videos(
    paths: Sequence[str], tested: Tested, trained: TrainedModel, options: ReportOptions
) -> dict[str, str]:
    """Write an `explain` page for each video into the folder of pages; returns their addresses from the report."""
    folder, world = options.pages, options.world
    if paths:
        folder.mkdir(parents=True, exist_ok=True)
    own = range(world.rank, len(paths), world.size)
    written: dict[str, str] = {}
    for number in tqdm(own, "explaining", unit="video", disable=None if world.main else True):
        page = folder / f"{number:03}.html"
        try:
            found = explain(paths[number], trained, tested.names, options.reductions, tested.classes, progress=False)
        except VideoError:
            continue  # it was readable when it was tested
        write_page(page, found)
        written[paths[number]] = quote(f"{folder.parent.name}/{folder.name}/{page.name}")
    return dict(item for share in world.gather(written) for item in share.items())


def write_report(path: Path, lists: Sequence[dict[str, Any]], model: str) -> None:
    """Write the page. Raises CheckpointError when it cannot be written."""
    text = fill_page("evaluation.html", {"model": model, "lists": list(lists)})
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
