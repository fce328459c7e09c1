"""What moved between two result files, or between a commit and HEAD; exits with 1 on any regression or other count.

    python -m benchmarks.compare OLD NEW
    python -m benchmarks.compare --against COMMIT [-k EXPRESSION] [--rounds 12] [--full] [-- PYTEST OPTIONS]

The second measures both commits, in worktrees that it makes and removes, three rounds at a time: old, new, new, old.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import against
from benchmarks.session import CUT, EVERYONE, Row

COUNTS = ("gflops", "parameters", "tunable", "norm_flops")
"""Of audited rows; the sum of `macs` is `gflops`."""

THRESHOLD = 0.05
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Change:
    """A contestant, or an audited row, in both files. change: new over old, minus 1; less is better, but for counts."""

    name: str
    what: Literal["time", "memory", "count"]
    change: float
    verdict: Literal["regression", "improvement", "changed", "noise"]


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return provenance and rows of a result file. Raises ValueError naming the file when it is none."""
    try:
        lines = map(json.loads, path.read_text().splitlines())
        rows = [row for row in lines if "whole_run" not in row]  # how long the session took
        head = rows[0]["provenance"]  # alone in its line, or of the first of rows that all have their own
        return head, rows if len(rows[0]) > 1 else rows[1:]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
        raise ValueError(f"{path} is no result file: {e}") from e


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]], threshold: float = THRESHOLD) -> list[Change]:
    """Changes of what both files have, worst first.

    Times are compared as ratios to the same run's baseline (so the baseline itself is not), since machines differ from
    run to run; without a common baseline, as seconds. They count only when the quartiles of the two runs do not overlap
    and the medians differ by more than `threshold`. Peak memory counts beyond
    `threshold`; what is counted is exact, and any difference is a change that someone has to explain.
    """
    before = {_key(row): row for row in old}
    changes = []
    for row in new:
        was = before.get(_key(row))
        if was is None or "skipped" in row or "skipped" in was:
            continue
        name = " | ".join(map(str, _key(row)))
        if "audit" in row:
            for what in (what for what in COUNTS if what in was and what in row):
                change = row[what] / was[what] - 1 if was[what] else float(row[what] != 0)
                changes.append(Change(f"{name} ({what})", "count", change, "changed" if change else "noise"))
            continue
        if row.get("baseline") != row["contestant"]:
            (t0, low0, high0), (t1, low1, high1) = _times(was, row)
            changes.append(_judge(name, "time", t0, t1, threshold, low1 <= high0 and low0 <= high1))
        if was.get("peak_bytes") and row.get("peak_bytes"):
            changes.append(_judge(name, "memory", was["peak_bytes"], row["peak_bytes"], threshold, False))
    return sorted(changes, key=lambda change: -change.change)


def missing(old: list[Row], new: list[Row]) -> list[str]:
    """What the old file measured and the new one did not, nor left to a full run."""
    there = {_key(row) for row in new if row.get("skipped") in (None, CUT)}
    return [
        " | ".join(map(str, _key(row)))
        for row in old
        if "skipped" not in row and _key(row) not in there and (row.get("case"), EVERYONE) not in there
    ]


def join(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows of several runs as of one: medians and quartiles of all their rounds.

    Rows without `times`, of older commits, must be of three rounds: their quartiles were the least and the greatest of
    these. Of what is counted or skipped the last row stands.
    """
    found: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for run in runs:
        rows = {_key(row): row for row in run}
        for key, row in rows.items():
            found.setdefault(key, []).append((row, rows.get((row.get("case"), row.get("baseline")), {})))
    return [_joined(own) for own in found.values()]


def _joined(found: list[tuple[Row, Row]]) -> Row:
    """The rows of one contestant, each with its run's baseline, as one row."""
    measured = [pair for pair in found if "seconds" in pair[0]]
    if not measured:
        return found[-1][0]
    times = [x for row, _ in measured for x in row.get("times", _in_order(row["seconds"], row["quartiles"]))]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    joined = measured[-1][0] | {"seconds": middle, "quartiles": [low, high], "rounds": len(times), "times": times}
    if "speedup" in joined:
        ratios = [x for row, baseline in measured for x in _ratios(row, baseline)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        joined |= {"speedup": middle, "speedup_quartiles": [low, high]}
    return joined


def _ratios(row: Row, baseline: Row) -> list[float]:
    """How many times faster than the baseline, by round."""
    if "times" in row:
        return [slow / fast for slow, fast in zip(baseline["times"], row["times"], strict=True)]
    return _in_order(row["speedup"], row["speedup_quartiles"])


def _in_order(middle: float, quartiles: Sequence[float]) -> list[float]:
    return [quartiles[0], middle, quartiles[1]]


def _is_compared(row: Row) -> bool:
    """Whether a row is an audited one or a contestant of a race: files of experiments have others."""
    return {"audit", "row"} <= row.keys() or {"case", "contestant"} <= row.keys()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["audit"], row["row"]) if "audit" in row else (row["case"], row["contestant"])


def _times(*rows: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Median and quartiles: of the time over the baseline's when all rows share it, else in seconds."""
    baselines = {row.get("baseline") for row in rows}
    if len(baselines) == 1 and None not in baselines:
        return [(1 / row["speedup"], *sorted(1 / ratio for ratio in row["speedup_quartiles"])) for row in rows]
    return [(row["seconds"], *row["quartiles"]) for row in rows]


def _judge(
    name: str, what: Literal["time", "memory"], old: float, new: float, threshold: float, overlap: bool
) -> Change:
    change = new / old - 1
    if overlap or abs(change) <= threshold:
        return Change(name, what, change, "noise")
    return Change(name, what, change, "regression" if change > 0 else "improvement")


def print_changes(old: list[Row], new: list[Row], threshold: float) -> int:
    """Say what moved; returns the exit status."""
    changes = compare(old, new, threshold)
    for change in changes:
        if change.verdict != "noise":
            print(f"{change.verdict:<12}{change.what:<8}{100 * change.change:+7.1f} %   {change.name}")
    for name in missing(old, new):
        print(f"{'gone':<29}   {name}")
    verdicts = Counter(change.verdict for change in changes)
    worse, better, changed = (verdicts[verdict] for verdict in ("regression", "improvement", "changed"))
    print(f"{len(changes)} compared, {worse} worse, {better} better, {changed} counts changed")
    if not changes:
        print("they have nothing in common")
    return 1 if worse or changed or not changes else 0


def compare_files(old: Path, new: Path, threshold: float) -> int:
    """Compare two result files. Raises ValueError naming the one that is none."""
    (head0, before), (head1, after) = read_results(old), read_results(new)
    before, after = ([row for row in rows if _is_compared(row)] for rows in (before, after))
    if head0["device"] != head1["device"]:
        print(f"different devices: {head0['device']}, {head1['device']}; compare ratios only with care")
    return print_changes(before, after, threshold)


def compare_commits(commit: str, selection: against.Selection, rounds: int, threshold: float) -> int:
    """Compare a commit with HEAD of the checkout that this file is in. Raises AgainstError."""
    if changed := against.uncommitted(ROOT):
        print(f"changes that are not committed are not measured: {', '.join(changed)}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        files = against.race(ROOT, commit, selection, rounds, Path(folder))
        old, new = (join([read_results(path)[1] for path in paths]) for paths in files)
    return print_changes(old, new, threshold)


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    own, options = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="OLD NEW", help="result files")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="of a median, 0.05 for 5 %% (default)")
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit and HEAD")
    parser.add_argument("-k", metavar="EXPRESSION", help="with --against: which benchmarks, as pytest selects them")
    parser.add_argument("--rounds", type=int, help="with --against: of each commit, a multiple of 3 (default 12)")
    parser.add_argument("--full", action="store_true", help="with --against: what a quick run cuts, too")
    parsed = parser.parse_args(own)
    if parsed.against is None:
        if len(parsed.files) != 2:
            parser.error(f"give two result files, or --against COMMIT; got {len(parsed.files)} files")
        if parsed.k is not None or parsed.rounds is not None or parsed.full or options:
            parser.error("-k, --rounds, --full and options of pytest go with --against")
    elif parsed.files:
        parser.error(f"--against measures: it reads no files, got {', '.join(map(str, parsed.files))}")
    rounds = 4 * against.ROUNDS if parsed.rounds is None else parsed.rounds
    if rounds < against.ROUNDS or rounds % against.ROUNDS:
        parser.error(f"--rounds must be a multiple of {against.ROUNDS}, got {rounds}")
    try:
        if parsed.against is None:
            old, new = parsed.files
            return compare_files(old, new, parsed.threshold)
        return compare_commits(
            parsed.against, against.Selection(parsed.k, parsed.full, options), rounds, parsed.threshold
        )
    except ValueError as e:
        parser.error(str(e))
    except against.AgainstError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing is compared, the worktrees are removed", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
