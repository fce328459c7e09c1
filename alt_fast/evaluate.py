"""Test a trained model on lists of videos.

alt-fast evaluate --checkpoint runs/mine
alt-fast evaluate --checkpoint runs/mine --list val.csv --classes classes.csv --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.errors import ArgumentError


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "evaluate",
        "Test a trained model: by default a single view, the middle frames and the center crop, on the lists of the "
        "run.",
    )
    cli.add_testing(parser)
    cli.add_list(parser, False, "videos to test on; default: the lists of the run", "the classes trained on")
    cli.add_texts(parser)
    cli.add_head(parser)
    cli.add_json(parser)
    cli.add_interpolation(parser)
    parser.add_argument(
        "--probe-alignment",
        action="store_true",
        help="also say whether the model uses its queries: top-1 with those of other videos, with entities at random; "
        "and, on Motion Shapes, whether regions align to what they show",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a page (.html) of the results")
    cli.add_also_r(parser, "with these r tested too")
    parser.add_argument(
        "--explain",
        type=int,
        default=0,
        metavar="N",
        help="with the N most confident mistakes of each list explained, as ALT sees them",
    )
    return parser


def check_report(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work, and make the folder, before the test, which may take hours."""
    from alt_fast.files import check_place

    if arguments.report is None:
        if arguments.also_r or arguments.explain:
            raise ArgumentError("--also-r and --explain are parts of a page: name it with --report FILE")
    elif arguments.report.suffix != ".html":
        raise ArgumentError(f"--report must end in .html, got {arguments.report}")
    else:
        cli.check_out(arguments, "report")
        check_place(arguments.report)
    if arguments.explain < 0:
        raise ArgumentError(f"--explain must be >= 0, got {arguments.explain}")
    if arguments.list is None and (arguments.classes or arguments.root):
        raise ArgumentError("--classes and --root belong to --list FILE: the lists of a run have their own")


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of scores, and how the clips were decoded.

    Where a list has classes that were trained on and others, the others' scores stand below.
    """
    print(f"{'list':40} {'videos':>7} {'classes':>8} {'chance':>7} {'top-1':>7} {'top-5':>7}")
    for row in rows:
        _print_row(row["list"], row)
        if "unseen" in row:
            _print_row("  never trained on", row["unseen"])
            print(f"  trained on: {', '.join(row['shared'])}")
    if any(row.get("same_tower") for row in rows):
        print(f"interpolated: {cli.SAME_TOWER}")
    for way, clips in (pair for row in rows for pair in row["ways"].items()):
        print(f"{clips} clips {way}")
    for row in rows:
        if "alignment" in row:
            print_alignment(row["list"], row["alignment"])


def print_alignment(name: str, found: dict[str, Any]) -> None:
    """Print what the probe found on a list: whether the queries are used in words, the rest as numbers."""
    from alt_fast.inference.alignment import use_text

    print(f"alignment, {name}: {use_text(found)}")
    for key, value in found.items():
        if key != "used":
            print(f"  {key.replace('_', ' '):24} {_value_text(key, value)}")


def _print_row(title: str, row: dict[str, Any]) -> None:
    scores = " ".join(f"{row[name]:7.1%}" for name in ("chance", "top1", "top5"))
    print(f"{title:40} {row['videos']:7} {row['classes']:8} {scores}")


def _value_text(name: str, value: Any) -> str:
    """Return a value of the probe as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{part} {_value_text(name, share)}" for part, share in value.items())
    if name.endswith(("chance", "top1", "error", "accuracy", "certainty", "entropy")):
        return f"{value:.1%}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def run(arguments: argparse.Namespace) -> int:
    """Test, print and report; returns 1 when a video could not be read (it counts as wrong)."""
    from alt_fast.data.annotations import read_list
    from alt_fast.distributed import join_world
    from alt_fast.inference.assess import assess
    from alt_fast.inference.lists import run_lists, trained_classes
    from alt_fast.progress import print_aside, say_nothing
    from alt_fast.tome.schedule import merge_schedule

    check_report(arguments)
    with join_world(arguments.device) as world, cli.load_tested(arguments) as (trained, testing):
        for r in arguments.also_r or ():
            merge_schedule(r, len(trained.model.encoder.schedule))
        if arguments.list:
            classes = arguments.classes or trained_classes(Path(arguments.checkpoint), trained)
            tell = print_aside if world.main else say_nothing
            lists = [(arguments.list, *read_list(arguments.list, classes, arguments.root, "test", tell=tell))]
        else:
            lists = run_lists(Path(arguments.checkpoint), trained)
        labels = [label for _, _, names in lists for label in names]
        trained.use_texts(arguments.texts, labels)
        tower = cli.check_tower(arguments, trained)
        rows, parts = [], []
        for number, (name, videos, names) in enumerate(lists, start=1):
            row, tested = score(name, videos, names, trained, testing, world)
            rows.append(row)
            if arguments.probe_alignment and world.main:
                row["alignment"] = trained.probe_alignment(videos, names, testing)
            if arguments.report:
                options = page_options(arguments, f"{number}-{Path(name).stem}", testing, world)
                parts.append(assess(row, tested, trained, options))
        for between, told in cli.load_between(arguments, tower, labels):
            for name, videos, names in lists:
                row, _ = score(name, videos, names, between, testing, world)
                rows.append({**row, "list": f"{name}, interpolated {told['interpolate']:g}", **told})
        if arguments.report and world.main:
            write_page(arguments, parts, rows[len(lists) :])
    if not world.main:
        return 0
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows)
        if arguments.report:
            print(f"report: {arguments.report}")
    failures = [failure for row in rows[: len(lists)] for failure in row["unreadable"]]
    for failure in failures[: cli.SHOWN]:
        print(f"unreadable, counted as wrong: {failure['path']}: {failure['cause']}", file=sys.stderr)
    if len(failures) > cli.SHOWN:
        print(f"unreadable, counted as wrong: {len(failures) - cli.SHOWN} more, which --json lists", file=sys.stderr)
    return 1 if failures else 0


def score(
    name: str, videos: Any, names: Sequence[str], trained: Any, testing: Any, world: Any
) -> tuple[dict[str, Any], Any]:
    """Test on a list of videos whose labels index `names`; returns its scores, and the `TestedList`.

    With `unseen_part` where the list mixes classes that were trained on with others. Raises RunError for scores that
    are not finite.
    """
    from alt_fast.inference.assess import TestedList
    from alt_fast.inference.predict import check_finite
    from alt_fast.inference.scoring import evaluate, summarize
    from alt_fast.inference.zero_shot import unseen_labels, unseen_part

    classes, unseen = trained.embed(names), unseen_labels(names, trained.seen_classes)
    shown = Path(name).name
    result = evaluate(trained.model, videos, trained.spec, classes, testing, shown, world, within=unseen)
    check_finite(result.scores[result.readable])
    row, part = summarize(name, result, len(names), testing), unseen_part(result, names, trained.seen_classes)
    mixed = part["shared"] and "unseen" in part
    return (row | part if mixed else row), TestedList(videos, names, classes, result)


def page_options(arguments: argparse.Namespace, name: str, testing: Any, world: Any) -> Any:
    """Return how a list's part of the page is made. name: of the list's folder of explained videos."""
    from alt_fast.inference.assess import AssessmentOptions

    pages = arguments.report.with_name(f"{arguments.report.stem}-explain") / name
    return AssessmentOptions(testing, arguments.also_r or (), arguments.explain, pages, world)


def write_page(
    arguments: argparse.Namespace, parts: Sequence[dict[str, Any]], between: Sequence[dict[str, Any]]
) -> None:
    """Write the page of all lists. between: scores of interpolated towers, share by share, in the order of `parts`."""
    from alt_fast.report.page import write_report

    shown = ("interpolate", "top1", "top5", "unseen")  # no paths, as the page is made for others
    for number, part in enumerate(parts):
        own = between[number :: len(parts)]
        part["interpolated"] = [{name: row[name] for name in shown if name in row} for row in own]
        part["interpolation"] = cli.SAME_TOWER if any(row["same_tower"] for row in own) else ""
    write_report(arguments.report, parts, Path(arguments.checkpoint).resolve().name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
