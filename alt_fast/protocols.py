"""The paper's few-shot, zero-shot and linear-probe protocols: seeded draws on disk, and scores over several splits.

alt-fast protocols few-shot --list trainlist01.txt --classes classInd.txt --root UCF-101 --shots 2 4 8 16 --out draws
alt-fast protocols unseen --list k600_val.csv --seen kinetics400 --count 160 --seeds 0 1 2 --out draws
alt-fast protocols zero-shot --checkpoint RUN --list testlist01.txt testlist02.txt testlist03.txt \\
    --classes classInd.txt --corpus larger.json
alt-fast protocols probe --checkpoint RUN --train trainlist01.txt trainlist02.txt trainlist03.txt \\
    --list testlist01.txt testlist02.txt testlist03.txt --classes classInd.txt
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.errors import ArgumentError, check_seed
from alt_fast.paper.config import ProbeConfig


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = cli.make_parser(
        "protocols",
        "The paper's few-shot, zero-shot and linear-probe protocols.",
    )
    commands = top.add_subparsers(dest="command", required=True, parser_class=cli.Parser)
    few = commands.add_parser("few-shot", help="draw training lists", description="Draw videos of every class.")
    cli.add_list(few, True, "training list to draw from", "those that the list names")
    few.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16], metavar="K", help="videos of each class")
    unseen = commands.add_parser(
        "unseen", help="draw unseen classes", description="Draw classes that were not trained on, as for Kinetics-600."
    )
    cli.add_list(unseen, True, "test list to draw from", "those that the list names")
    unseen.add_argument("--seen", required=True, metavar="FILE", help='class file trained on; "kinetics400" is known')
    unseen.add_argument("--count", type=int, default=160, metavar="N", help="classes to draw (default 160)")
    unseen.add_argument(
        "--keep-renamed", action="store_true", help="draw from classes that Kinetics-400 has under another name, too"
    )
    for command in (few, unseen):
        command.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="one draw each (default 0)")
        cli.add_out(command, "DIR", "folder for the drawn lists")
    zero = commands.add_parser(
        "zero-shot",
        help="test on classes never trained on",
        description="Test zero-shot as the paper and X-CLIP do, over all classes of a list. Where some of them were "
        "trained on, by name, these are named, and beside it stands the score of the others: their videos, among their "
        "names.",
    )
    zero.add_argument("--only-unseen", action="store_true", help="leave out classes that were trained on")
    zero.add_argument(
        "--names",
        nargs="+",
        metavar="FILE",
        help="names of the classes to test, one a line or id,name CSV, as the splits of Kinetics-600 are published; "
        "every list is tested with every file",
    )
    cli.add_texts(zero)
    cli.add_head(zero)
    cli.add_interpolation(zero)
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
        cli.add_testing(command)
        cli.add_list(command, True, "test lists, one a split", "those that the list names", several=True)
        cli.add_json(command)
    return top


def run(arguments: argparse.Namespace) -> int:
    """Do what the command says; returns 1 when a video could not be read (it counts as wrong)."""
    if arguments.command == "few-shot":
        return draw_few_shot(arguments)
    if arguments.command == "unseen":
        return draw_unseen(arguments)
    return test(arguments)


def draw_few_shot(arguments: argparse.Namespace) -> int:
    """Write lists of a few videos of every class."""
    from alt_fast.paper.splits import write_shots

    if min(arguments.shots) < 1:
        raise ArgumentError(f"--shots must be >= 1, got {min(arguments.shots)}")
    check_seed("--seeds", *arguments.seeds)
    for seed in arguments.seeds:
        _print_lists(
            write_shots(arguments.list, arguments.classes, arguments.root, arguments.shots, seed, arguments.out)
        )
    return 0


def draw_unseen(arguments: argparse.Namespace) -> int:
    """Write lists of videos of classes that are not among the ones seen in training."""
    from alt_fast.data.annotations import read_list, read_names
    from alt_fast.paper.splits import RENAMED, unseen_classes, write_unseen

    if arguments.count < 1:
        raise ArgumentError(f"--count must be >= 1, got {arguments.count}")
    check_seed("--seeds", *arguments.seeds)
    _, names = read_list(arguments.list, arguments.classes, arguments.root, "test")
    seen = read_names(arguments.seen)
    unseen = unseen_classes(names, seen)
    strangers = unseen_classes(names, seen, RENAMED)
    renamed = sorted(set(unseen) - set(strangers))
    print(f"{len(unseen)} of {len(names)} classes are not in {arguments.seen} by name")
    if renamed:
        what = "kept" if arguments.keep_renamed else "left out, as in the literature (--keep-renamed keeps them)"
        print(f"{len(renamed)} of them are there under another name, {what}: {', '.join(renamed)}")
    pool = unseen if arguments.keep_renamed else strangers
    for seed in arguments.seeds:
        _print_lists(
            write_unseen(arguments.list, arguments.classes, arguments.root, pool, arguments.count, seed, arguments.out)
        )
    return 0


def _print_lists(drawn: dict[Path, list[Any]]) -> None:
    from alt_fast.data.check import find_absent

    for path, videos in drawn.items():
        absent = find_absent(videos)
        gone = f", {len(absent)} of which are not there, as {absent[0].path}: is --root right?" if absent else ""
        print(f"{path}: {len(videos)} videos of {len({video.label for video in videos})} classes{gone}")


def test(arguments: argparse.Namespace) -> int:
    """Test a model on every list, and print the scores."""
    from alt_fast.distributed import join_world
    from alt_fast.paper.protocols import probe, zero_shot
    from alt_fast.paper.splits import tests_of

    lists, where = arguments.list, (arguments.classes, arguments.root)
    if arguments.command == "probe" and len(arguments.train) != len(lists):
        raise ArgumentError(f"--train names {len(arguments.train)} lists and --list {len(lists)}: one each a split")
    with join_world(arguments.device) as world, cli.load_tested(arguments) as (trained, testing):
        if arguments.command == "probe":
            warmup = min(ProbeConfig.warmup_epochs, arguments.epochs)
            config = ProbeConfig(
                arguments.lr, arguments.epochs, warmup, arguments.probe_batch_size, seed=arguments.seed
            )
            splits = list(zip(arguments.train, lists, strict=True))
            rows = probe(trained, splits, *where, testing, config)
        else:
            tests = tests_of(lists, *where, arguments.names)
            labels = [label for _, _, names in tests for label in names]
            trained.use_texts(arguments.texts, labels)
            tower = cli.check_tower(arguments, trained)
            rows = zero_shot(trained, tests, arguments.only_unseen, testing, world)
            for between, told in cli.load_between(arguments, tower, labels):
                rows += [row | told for row in zero_shot(between, tests, arguments.only_unseen, testing, world)]
    return int(world.main and report(rows, arguments.json) > 0)


def report(rows: Sequence[dict[str, Any]], as_json: bool) -> int:
    """Print scores, their mean and deviation over the lists; returns the number of unreadable videos, trained on too.

    Those of interpolated towers by themselves, share by share.
    """
    shares = dict.fromkeys(row.get("interpolate") for row in rows)
    found, *between = (summarize([row for row in rows if row.get("interpolate") == share]) for share in shares)
    if as_json:
        print(json.dumps(found | ({"interpolated": between} if between else {}), indent=2))
    else:
        print_rows(found)
        for other in between:
            print(f"interpolated {other['lists'][0]['interpolate']:g}:")
            print_rows(other)
        if any(row.get("same_tower") for row in rows):
            print(f"interpolated: {cli.SAME_TOWER}")
    unreadable = 0
    for key, what in (("not_trained_on", "not trained on"), ("unreadable", "counted as wrong")):
        for failure in (failure for row in found["lists"] for failure in row.get(key, ())):
            print(f"unreadable, {what}: {failure['path']}: {failure['cause']}", file=sys.stderr)
            unreadable += 1
    return unreadable


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return scores of lists, with mean and deviation over all classes, and over those never trained on beside it."""
    from alt_fast.paper.protocols import mean_and_deviation

    found: dict[str, Any] = {"lists": rows}
    found |= {name: mean_and_deviation([row[name] for row in rows]) for name in ("top1", "top5")}
    unseen = [row["unseen"] for row in rows if "unseen" in row]
    if unseen and any(overlaps(row) for row in rows):
        found["unseen"] = {name: mean_and_deviation([part[name] for part in unseen]) for name in ("top1", "top5")}
    return found


def print_rows(found: dict[str, Any]) -> None:
    """Print what `summarize` gives: the scores of every list, and their means."""
    for row in found["lists"]:
        print(f"{row['list']}: {scores_text(row)}")
        if overlaps(row) and "unseen" not in row:
            print("  every video is of a class that was trained on: nothing in it is zero-shot")
        elif overlaps(row):
            print(f"  never trained on: {scores_text(row['unseen'])}")
            print(f"  trained on: {', '.join(row['shared'])}")
        elif row.get("shared"):
            print(f"  trained on, left out: {', '.join(row['shared'])}")
    unseen = found.get("unseen", {})
    for name in ("top1", "top5"):
        beside = f"; never trained on: {mean_text(unseen[name])}" if unseen else ""
        print(f"{name}: {mean_text(found[name])}{beside}")


def overlaps(row: dict[str, Any]) -> bool:
    """Return whether a zero-shot test had classes that were trained on."""
    return "shared" in row and row.get("unseen", {"classes": 0})["classes"] < row["classes"]


def scores_text(row: dict[str, Any]) -> str:
    """Return a test's scores in words."""
    scores = f"top-1 {row['top1']:.1%}, top-5 {row['top5']:.1%}"
    return f"{scores} of {row['videos']} videos of {row['classes']} classes"


def mean_text(value: dict[str, Any]) -> str:
    """Return a mean with its deviation, where there is one."""
    deviation = "" if value["deviation"] is None else f" +- {value['deviation']:.1%}"
    return f"{value['mean']:.1%}{deviation}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
