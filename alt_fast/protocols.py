"""The paper's few-shot and zero-shot protocols: seeded draws on disk, and scores over several splits.

python -m alt_fast.protocols few-shot --list trainlist01.txt --classes classInd.txt --shots 2 4 8 16 --out draws
python -m alt_fast.protocols zero-shot --checkpoint RUN --lists testlist01.txt testlist02.txt testlist03.txt \\
    --classes classInd.txt --corpus larger.json
"""

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from alt_fast.checkpoint import CheckpointError
from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.rng import Stream, generator
from alt_fast.evaluate import add_testing_options, read_testing_options, score_list
from alt_fast.run_folder import RunError


def draw(videos: Sequence[Video], num_classes: int, shots: int, seed: int) -> list[Video]:
    """`shots` videos of every class, by class. Of one seed, more shots contain fewer.

    Raises RunError for a class with fewer videos.
    """
    drawn = []
    for label in range(num_classes):
        own = [video for video in videos if video.label == label]
        if len(own) < shots:
            raise RunError(f"class {label} has {len(own)} videos, {shots} shots were asked for")
        order = generator(seed, Stream.FEW_SHOT, sample=label).permutation(len(own))
        drawn += [own[index] for index in order[:shots]]
    return drawn


def draw_lists(
    path: Path, classes: Path | None, root: Path | None, shots: Sequence[int], seed: int, out: Path
) -> dict[Path, list[Video]]:
    """Write `out`/K-shot-seedS.csv for each number of shots K, drawn from the list at `path`; returns their videos."""
    names = None if classes is None else read_classes(classes)
    videos, names = read_list(path, names, root, "train")
    out.mkdir(parents=True, exist_ok=True)
    drawn = {out / f"{count}-shot-seed{seed}.csv": draw(videos, len(names), count, seed) for count in shots}
    for written, chosen in drawn.items():
        with written.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "label"])
            writer.writerows((video.path.absolute(), names[video.label]) for video in chosen)
    return drawn


def score_lists(arguments: argparse.Namespace) -> int:
    """Scores of a model on each list, their mean and deviation; returns the number of unreadable videos."""
    trained, testing = read_testing_options(arguments)
    rows = []
    for path in arguments.lists:
        names = read_classes(arguments.classes) if arguments.classes else None
        videos, names = read_list(path, names, arguments.root, "test")
        seen = sorted(set(names) & set(trained.classes))
        if seen:
            raise RunError(f"{path}: class {seen[0]!r} was trained on, so its score would not be zero-shot")
        rows.append(score_list(path, videos, names, trained, testing))
    summary = {name: _spread([row[name] for row in rows]) for name in ("top1", "top5")}
    if arguments.json:
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


def _few_shot(arguments: argparse.Namespace) -> None:
    few = arguments
    drawn = draw_lists(few.list, few.classes, few.root, few.shots, few.seed, few.out)
    for path, videos in drawn.items():
        print(f"{path}: {len(videos)} videos of {len({video.label for video in videos})} classes")


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation; None for that of a single value."""
    return {"mean": statistics.mean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m alt_fast.protocols", description="The paper's few-shot and zero-shot protocols."
    )
    commands = top.add_subparsers(dest="command", required=True)
    few = commands.add_parser("few-shot", help="draw training lists", description="Draw videos of every class.")
    few.add_argument("--list", required=True, metavar="FILE", help="training list to draw from")
    few.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16], metavar="K", help="videos of each class")
    few.add_argument("--seed", type=int, default=0, help="another seed draws others (default 0)")
    few.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the drawn lists")
    zero = commands.add_parser("zero-shot", help="test on unseen classes", description="Test on unseen classes.")
    add_testing_options(zero)
    zero.add_argument("--lists", required=True, nargs="+", metavar="FILE", help="test lists, one a split")
    zero.add_argument("--json", action="store_true", help="print JSON")
    for command in (few, zero):
        command.add_argument("--classes", metavar="FILE", help="class file; default: the classes that the list names")
        command.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be read (it counts as wrong)."""
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "zero-shot":
            return int(score_lists(arguments) > 0)
        if min(arguments.shots) < 1 or arguments.seed < 0:
            parser().error("--shots must be >= 1 and --seed >= 0")
        _few_shot(arguments)
    except (AnnotationError, CheckpointError, RunError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
