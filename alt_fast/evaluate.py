"""Test a trained model on lists of videos.

python -m alt_fast.evaluate --checkpoint runs/mine
python -m alt_fast.evaluate --checkpoint runs/mine --list val.csv --classes classes.csv --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from alt_fast.checkpoint import CheckpointError, TrainedModel, load
from alt_fast.corpus.options import add_corpus_options, use_corpus
from alt_fast.data import motion_shapes
from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.loader import LoaderName, Loading
from alt_fast.distributed import join_world, leave_world
from alt_fast.evaluation_report import ReportOptions, Tested, list_report, write_report
from alt_fast.run_folder import CONFIG, RunError, pick_device
from alt_fast.scoring import EvalConfig, evaluate, summarize
from alt_fast.tome import merge_schedule


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


def _prepare_report(arguments: argparse.Namespace, layers: int) -> None:
    """Refuse what cannot work, and make the folder, before the test, which may take hours."""
    if arguments.report is None:
        if arguments.report_r or arguments.explain:
            raise RunError("--report-r and --explain are parts of a page: name it with --report FILE")
    elif arguments.report.suffix != ".html":
        raise RunError(f"--report must end in .html, got {arguments.report}")
    else:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
    for r in arguments.report_r:
        merge_schedule(r, layers)
    if arguments.explain < 0:
        raise RunError(f"--explain must be >= 0, got {arguments.explain}")


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
        _prepare_report(arguments, len(trained.model.encoder.schedule))
        rows, reports = [], []
        for number, (name, videos, names) in enumerate(lists, start=1):
            classes = trained.model.text.classes(names, trained.templates)
            result = evaluate(trained.model, videos, trained.spec, classes, testing, Path(name).name, world)
            rows.append(summarize(name, result, len(names), testing))
            if arguments.report:
                pages = arguments.report.with_name(f"{arguments.report.stem}-explain") / f"{number}-{Path(name).stem}"
                options = ReportOptions(testing, arguments.report_r, arguments.explain, pages, world)
                reports.append(list_report(rows[-1], Tested(videos, names, classes, result), trained, options))
        if arguments.report and world.main:
            write_report(arguments.report, reports, arguments.checkpoint)
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
        if arguments.report:
            print(f"report: {arguments.report}")
    failures = [failure for row in rows for failure in row["unreadable"]]
    for failure in failures:
        print(f"unreadable, counted as wrong: {failure['path']}: {failure['cause']}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
