"""Test a trained model on lists of videos.

python -m alt_fast.evaluate --checkpoint runs/mine
python -m alt_fast.evaluate --checkpoint runs/mine --list val.csv --classes classes.csv --json
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from alt_fast.checkpoint import CheckpointError, TrainedModel, load
from alt_fast.corpus.options import add_corpus_options, use_corpus
from alt_fast.data import motion_shapes
from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.dataset import ClipSpec, EvalClips, batched
from alt_fast.data.loader import Failure, Loader, LoaderName, Loading, open_backend
from alt_fast.distributed import World, join_world, leave_world
from alt_fast.model import ALT
from alt_fast.run_folder import CONFIG, RunError, pick_device


@dataclass(frozen=True)
class EvalConfig:
    """How videos are tested: `crops` x `clips` views each, clips at once, and how they are loaded."""

    batch_size: int = 32
    crops: int = 1
    clips: int = 1
    loading: Loading = field(default_factory=Loading)

    def __post_init__(self) -> None:
        for name in ("batch_size", "crops", "clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Result:
    """Scores of every video of a list, in its order.

    scores: [N, I] fp32, probabilities averaged over the views; rows of unreadable videos are zero. labels: [N].
    failures: unreadable videos; readable: [N] bool. What cannot be read counts as wrong, so that leaving out hard files
    cannot raise a score. ways: how many clips were decoded how.
    """

    scores: Tensor
    labels: Tensor
    failures: list[Failure]
    readable: Tensor
    ways: Counter[str]

    def top(self, k: int) -> float:
        """Share of videos whose class is among the k highest scores (k at most the number of classes)."""
        best = self.scores.topk(min(k, self.scores.shape[1])).indices
        hits = (best == self.labels[:, None]).any(1) & self.readable
        return hits.float().mean().item()


class Views(NamedTuple):
    """mean: [N, width] fp32, of each video's views. causes: of unreadable videos, by path. ways: clips by decoder."""

    mean: Tensor
    causes: dict[str, str]
    ways: Counter[str]


@torch.inference_mode()
def mean_over_views(
    clips: EvalClips,
    testing: EvalConfig,
    device: torch.device,
    forward: Callable[[Tensor], Tensor],
    width: int,
    name: str | None = None,
) -> Views:
    """Run every view of every video. forward: [B, T, 3, H, W] to [B, width]. name: the progress bar's; None: no bar."""
    loading = testing.loading
    backend, _ = open_backend(loading.loader, clips, device, threads=max(1, loading.workers))
    loader = Loader(clips, list(batched(clips.keys(), testing.batch_size)), backend, loading)
    results = [torch.zeros(0, width)]
    causes: dict[str, str] = {}
    for batch in tqdm(loader, name, unit="batch", disable=True if name is None else None):
        results.append(forward(batch.video).float().cpu())
        causes |= dict(batch.failures)
    mean = torch.cat(results).view(len(clips.videos), clips.views, width).mean(1)
    return Views(mean, causes, backend.counts)


def evaluate(
    model: ALT,
    videos: Sequence[Video],
    spec: ClipSpec,
    classes: Tensor,
    testing: EvalConfig,
    name: str = "test",
    world: World | None = None,
) -> Result:
    """Score videos against class embeddings [I, d]; each once, whatever the number of processes that share them."""
    world = world or World()
    model.eval()
    clips = EvalClips(videos[world.rank :: world.size], spec, testing.crops, testing.clips)

    def probabilities(video: Tensor) -> Tensor:
        return model(video, classes).logits.float().softmax(-1)

    shown = name if world.main else None
    own = mean_over_views(clips, testing, classes.device, probabilities, len(classes), shown)
    mean = torch.zeros(len(videos), len(classes))
    causes: dict[str, str] = {}
    ways: Counter[str] = Counter()
    for rank, share in enumerate(world.gather(own)):
        mean[rank :: world.size] = share.mean
        causes |= share.causes
        ways += share.ways
    readable = torch.tensor([str(video.path) not in causes for video in videos])
    labels = torch.tensor([video.label for video in videos])
    failures = [Failure(path, cause) for path, cause in causes.items()]
    return Result(mean * readable[:, None], labels, failures, readable, ways)


def add_testing_options(parser: argparse.ArgumentParser) -> None:
    """Which model to use and how, for every command that runs a trained model over lists of videos."""
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or model.safetensors")
    add_corpus_options(parser)
    parser.add_argument("--r", type=int, metavar="R", help="tokens merged away per layer; default: as trained")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="clips at once (default 32)")
    parser.add_argument("--crops", type=int, default=1, metavar="N", help="places in the picture (default 1)")
    parser.add_argument("--clips", type=int, default=1, metavar="N", help="moments in the video (default 1)")
    parser.add_argument("--loader", choices=get_args(LoaderName), default="auto", help="who crops and resizes")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="decoding processes (default 2)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for one video (default 60)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")


def read_testing_options(arguments: argparse.Namespace) -> tuple[TrainedModel, EvalConfig]:
    """What `add_testing_options` asked for, the model on its device. Raises CheckpointError, RunError or ValueError."""
    loading = Loading(arguments.loader, arguments.workers, arguments.timeout)
    testing = EvalConfig(arguments.batch_size, arguments.crops, arguments.clips, loading)
    trained = load(arguments.checkpoint)
    if arguments.r is not None:
        trained.model.encoder.set_r(arguments.r)
    trained.model.to(pick_device(arguments.device))
    use_corpus(trained.model, arguments.corpus, arguments.categories)
    return trained, testing


def run_lists(checkpoint: Path, trained: TrainedModel) -> list[tuple[str, list[Video], list[str]]]:
    """(name, videos, class names) of what a run tested on. Raises RunError when `checkpoint` is no run folder."""
    recorded = checkpoint / CONFIG
    if not recorded.is_file():
        raise RunError(f"{checkpoint} is no run folder, so name the videos to test on: --list FILE")
    data = yaml.safe_load(recorded.read_text())["data"]
    if data["generate"] == "motion_shapes":
        root = Path(data["root"] or motion_shapes.DEFAULT_ROOT)
        files = {"test": "test.txt", "unseen": "unseen.txt", "unseen_classes": "unseen_classes.csv"}
        data |= {name: str(root / file) for name, file in files.items()} | {"root": None}
    lists = [(data["test"], *read_list(data["test"], trained.classes, data["root"], "test"))]
    if data["unseen"] is not None:
        names = None if data["unseen_classes"] is None else read_classes(data["unseen_classes"])
        lists.append((data["unseen"], *read_list(data["unseen"], names, data["root"], "test")))
    return lists


def score_list(
    name: str,
    videos: Sequence[Video],
    names: Sequence[str],
    trained: TrainedModel,
    testing: EvalConfig,
    world: World | None = None,
) -> dict[str, Any]:
    """Accuracy on one list (fractions of 1), with what is needed to read it."""
    classes = trained.model.text.classes(names, trained.templates)
    result = evaluate(trained.model, videos, trained.spec, classes, testing, Path(name).name, world)
    return summarize(name, result, len(names), testing)


def summarize(name: str, result: Result, num_classes: int, testing: EvalConfig) -> dict[str, Any]:
    """A result as plain data."""
    return {
        "list": name,
        "videos": len(result.labels),
        "views": testing.crops * testing.clips,
        "classes": num_classes,
        "chance": 1 / num_classes,
        "top1": result.top(1),
        "top5": result.top(5),
        "unreadable": [failure._asdict() for failure in result.failures],
        "ways": dict(result.ways),
    }


def _check_report_options(arguments: argparse.Namespace, world: World) -> None:
    if arguments.report is None:
        if arguments.report_r or arguments.explain:
            raise RunError("--report-r and --explain are parts of a page: name it with --report FILE")
    elif arguments.report.suffix != ".html":
        raise RunError(f"--report must end in .html, got {arguments.report}")
    elif world.size > 1:
        raise RunError("--report is made by one process")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.evaluate",
        description="Test a trained model: by default a single view, the middle frames and the center crop.",
    )
    add_testing_options(parser)
    parser.add_argument("--list", metavar="FILE", help="videos to test on; default: the lists of the run")
    parser.add_argument("--classes", metavar="FILE", help="class file of --list; default: the classes trained on")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a page (.html) of the results")
    parser.add_argument("--report-r", type=int, nargs="+", default=[], metavar="R", help="with these r tested too")
    parser.add_argument(
        "--explain", type=int, default=0, metavar="N", help="with the N most confident mistakes of each list explained"
    )
    return parser


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """A table of scores, and how the clips were decoded."""
    print(f"{'list':40} {'videos':>7} {'classes':>8} {'chance':>7} {'top-1':>7} {'top-5':>7}")
    for row in rows:
        scores = " ".join(f"{row[name]:7.1%}" for name in ("chance", "top1", "top5"))
        print(f"{row['list']:40} {row['videos']:7} {row['classes']:8} {scores}")
    for way, clips in (pair for row in rows for pair in row["ways"].items()):
        print(f"{clips} clips {way}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be read (it counts as wrong)."""
    arguments = parser().parse_args(argv)
    world = join_world(arguments.device)
    try:
        trained, testing = read_testing_options(arguments)
        if arguments.list:
            names = read_classes(arguments.classes) if arguments.classes else trained.classes
            lists = [(arguments.list, *read_list(arguments.list, names, arguments.root, "test"))]
        else:
            lists = run_lists(Path(arguments.checkpoint), trained)
        _check_report_options(arguments, world)
        rows, reports = [], []
        for name, videos, names in lists:
            classes = trained.model.text.classes(names, trained.templates)
            result = evaluate(trained.model, videos, trained.spec, classes, testing, Path(name).name, world)
            rows.append(summarize(name, result, len(names), testing))
            if arguments.report:
                from alt_fast import evaluation_report as report  # it needs this module

                pages = arguments.report.with_name(f"{arguments.report.stem}-explain") / Path(name).stem
                options = report.ReportOptions(arguments.report_r, arguments.explain, pages)
                reports.append(report.list_report(rows[-1], result, videos, names, trained, testing, options))
        if arguments.report:
            report.write_report(arguments.report, reports, arguments.checkpoint)
    except (AnnotationError, CheckpointError, RunError, ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        leave_world()
    if not world.main:
        return 0
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)
    failures = [failure for row in rows for failure in row["unreadable"]]
    for failure in failures:
        print(f"unreadable, counted as wrong: {failure['path']}: {failure['cause']}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
