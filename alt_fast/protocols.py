"""The paper's few-shot, zero-shot and linear-probe protocols: seeded draws on disk, and scores over several splits.

python -m alt_fast.protocols few-shot --list trainlist01.txt --classes classInd.txt --shots 2 4 8 16 --out draws
python -m alt_fast.protocols unseen --list k600_val.csv --seen kinetics400 --count 160 --seeds 0 1 2 --out draws
python -m alt_fast.protocols zero-shot --checkpoint RUN --lists testlist01.txt testlist02.txt testlist03.txt \\
    --classes classInd.txt --corpus larger.json
python -m alt_fast.protocols probe --checkpoint RUN --train trainlist01.txt trainlist02.txt trainlist03.txt \\
    --lists testlist01.txt testlist02.txt testlist03.txt --classes classInd.txt
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alt_fast.checkpoint import CheckpointError
from alt_fast.data.annotations import AnnotationError, Subset, Video, read_classes, read_list, read_names
from alt_fast.distributed import World, join_world, leave_world
from alt_fast.draws import RENAMED, name_key, unseen_classes, write_shots, write_unseen
from alt_fast.evaluate import add_testing_options, read_testing_options
from alt_fast.extract import features
from alt_fast.probe import ProbeConfig, train_probe
from alt_fast.run_folder import RunError, pick_device
from alt_fast.scoring import Result, score_list, summarize


def zero_shot(arguments: argparse.Namespace, world: World) -> list[dict[str, Any]]:
    """Scores on each list, whose classes the model was not trained on."""
    trained, testing = read_testing_options(arguments)
    known = {name_key(name) for name in trained.classes}
    rows = []
    for path in arguments.lists:
        videos, names = _read(path, arguments, "test")
        seen = [name for name in names if name_key(name) in known]
        if seen:
            raise RunError(f"{path}: class {seen[0]!r} was trained on, so its score would not be zero-shot")
        rows.append(score_list(path, videos, names, trained, testing, world))
    return rows


def probe(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Scores on each test list of a linear layer trained on the training list beside it (Table 6)."""
    if len(arguments.train) != len(arguments.lists):
        raise RunError(
            f"--train names {len(arguments.train)} lists and --lists {len(arguments.lists)}: one each a split"
        )
    trained, testing = read_testing_options(arguments)
    trained.model.eval()
    device = pick_device(arguments.device)
    config = ProbeConfig(arguments.lr, arguments.epochs, batch_size=arguments.probe_batch_size, seed=arguments.seed)
    rows = []
    for train_path, test_path in zip(arguments.train, arguments.lists, strict=True):
        train, names = _read(train_path, arguments, "train")
        test, _ = _read(test_path, arguments, "test", names)
        vectors, failures = features(trained, train, testing, device)
        unusable = dict(failures)
        for path, cause in failures:
            print(f"unreadable, not trained on: {path}: {cause}", file=sys.stderr)
        usable = torch.tensor([str(video.path) not in unusable for video in train])
        labels = torch.tensor([video.label for video in train])
        layer = train_probe(vectors[usable], labels[usable], len(names), config)
        tested, failures = features(trained, test, testing, device)
        unusable = dict(failures)
        readable = torch.tensor([str(video.path) not in unusable for video in test])
        with torch.inference_mode():
            scores = layer(tested).softmax(-1) * readable[:, None]
        result = Result(scores, torch.tensor([video.label for video in test]), failures, readable, Counter())
        rows.append(summarize(test_path, result, len(names), testing))
    return rows


def _read(
    path: str, arguments: argparse.Namespace, subset: Subset, names: list[str] | None = None
) -> tuple[list[Video], list[str]]:
    if names is None and arguments.classes:
        names = read_classes(arguments.classes)
    return read_list(path, names, arguments.root, subset)


def report(rows: Sequence[dict[str, Any]], as_json: bool) -> int:
    """Print scores, their mean and deviation over the lists; returns the number of unreadable videos."""
    summary = {name: _spread([row[name] for row in rows]) for name in ("top1", "top5")}
    if as_json:
        print(json.dumps({"lists": rows, **summary}, indent=2))
    else:
        for row in rows:
            print(f"{row['list']}: top-1 {row['top1']:.1%}, top-5 {row['top5']:.1%} of {row['videos']} videos")
        for name, value in summary.items():
            deviation = "" if value["deviation"] is None else f" +- {value['deviation']:.1%}"
            print(f"{name}: {value['mean']:.1%}{deviation}")
    unreadable = [failure for row in rows for failure in row["unreadable"]]
    for failure in unreadable:
        print(f"unreadable, counted as wrong: {failure['path']}: {failure['cause']}", file=sys.stderr)
    return len(unreadable)


def draw_few_shot(arguments: argparse.Namespace) -> None:
    """Lists of a few videos of every class."""
    if min(arguments.shots) < 1:
        raise RunError(f"--shots must be >= 1, got {min(arguments.shots)}")
    for seed in arguments.seeds:
        _print_lists(
            write_shots(arguments.list, arguments.classes, arguments.root, arguments.shots, seed, arguments.out)
        )


def draw_unseen(arguments: argparse.Namespace) -> None:
    """Lists of videos of classes that are not among the ones seen in training."""
    _, names = _read(arguments.list, arguments, "test")
    seen = read_names(arguments.seen)
    unseen = unseen_classes(names, seen)
    strangers = unseen_classes(names, seen, RENAMED)
    renamed = sorted(set(unseen) - set(strangers))
    print(f"{len(unseen)} of {len(names)} classes are not in {arguments.seen} by name")
    if renamed:
        what = "left out" if arguments.without_renamed else "kept, as others do (--without-renamed leaves them out)"
        print(f"{len(renamed)} of them are there under another name, {what}: {', '.join(renamed)}")
    pool = strangers if arguments.without_renamed else unseen
    for seed in arguments.seeds:
        _print_lists(
            write_unseen(arguments.list, arguments.classes, arguments.root, pool, arguments.count, seed, arguments.out)
        )


def _print_lists(drawn: dict[Path, list[Video]]) -> None:
    for path, videos in drawn.items():
        print(f"{path}: {len(videos)} videos of {len({video.label for video in videos})} classes")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None for that of a single value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m alt_fast.protocols", description="The paper's few-shot, zero-shot and linear-probe protocols."
    )
    commands = top.add_subparsers(dest="command", required=True)
    few = commands.add_parser("few-shot", help="draw training lists", description="Draw videos of every class.")
    few.add_argument("--list", required=True, metavar="FILE", help="training list to draw from")
    few.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16], metavar="K", help="videos of each class")
    unseen = commands.add_parser(
        "unseen", help="draw unseen classes", description="Draw classes that were not trained on, as for Kinetics-600."
    )
    unseen.add_argument("--list", required=True, metavar="FILE", help="test list to draw from")
    unseen.add_argument("--seen", required=True, metavar="FILE", help='class file trained on; "kinetics400" is known')
    unseen.add_argument("--count", type=int, default=160, metavar="N", help="classes to draw (default 160)")
    unseen.add_argument(
        "--without-renamed", action="store_true", help="leave out classes that Kinetics-400 has under another name"
    )
    for command in (few, unseen):
        command.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="one draw each (default 0)")
        command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the drawn lists")
    zero = commands.add_parser("zero-shot", help="test on unseen classes", description="Test on unseen classes.")
    linear = commands.add_parser(
        "probe", help="linear probe", description="Train a linear layer on a frozen model's video vectors (Table 6)."
    )
    defaults = ProbeConfig()
    linear.add_argument("--train", required=True, nargs="+", metavar="FILE", help="training lists, one a split")
    linear.add_argument("--lr", type=float, default=defaults.lr, help=f"default {defaults.lr}")
    linear.add_argument("--epochs", type=int, default=defaults.epochs, metavar="N", help=f"default {defaults.epochs}")
    linear.add_argument(
        "--probe-batch-size", type=int, default=defaults.batch_size, metavar="B", help="vectors a step (default 256)"
    )
    linear.add_argument("--seed", type=int, default=0, help="of the layer's training (default 0)")
    for command in (zero, linear):
        add_testing_options(command)
        command.add_argument("--lists", required=True, nargs="+", metavar="FILE", help="test lists, one a split")
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (few, unseen, zero, linear):
        command.add_argument("--classes", metavar="FILE", help="class file; default: the classes that the list names")
        command.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be read (it counts as wrong)."""
    arguments = parser().parse_args(argv)
    draws = {"few-shot": draw_few_shot, "unseen": draw_unseen}
    world = World()
    try:
        if arguments.command in draws:
            draws[arguments.command](arguments)
            return 0
        if arguments.command == "probe":
            rows = probe(arguments)
        else:
            world = join_world(arguments.device)
            rows = zero_shot(arguments, world)
        return int(world.main and report(rows, arguments.json) > 0)
    except (AnnotationError, CheckpointError, RunError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        leave_world()


if __name__ == "__main__":
    sys.exit(main())
