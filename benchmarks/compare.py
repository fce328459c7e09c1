"""What moved between two result files: `python -m benchmarks.compare OLD NEW`; exits with 1 on any regression."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

THRESHOLD = 0.05


@dataclass(frozen=True)
class Change:
    """A contestant, or an audited row, in both files. change: new over old, minus 1; less is better for all."""

    name: str
    what: Literal["time", "memory", "MACs"]
    change: float
    verdict: Literal["regression", "improvement", "noise"]


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Provenance and rows of a result file. Raises ValueError naming the file when it is none."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        head = rows[0]["provenance"]  # alone in its line, or of the first of rows that all have their own
        return head, rows if len(rows[0]) > 1 else rows[1:]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
        raise ValueError(f"{path} is no result file: {e}") from e


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]], threshold: float = THRESHOLD) -> list[Change]:
    """Changes of what both files have, worst first.

    Times are compared as ratios to the same run's baseline (so the baseline itself is not), since machines differ from
    run to run; without a common baseline, as seconds. They count only when the quartiles of the two runs do not overlap
    and the medians differ by more than `threshold`. Peak memory counts beyond
    `threshold`; MACs and parameters are exact, so any difference counts.
    """
    before = {_key(row): row for row in old}
    changes = []
    for row in new:
        was = before.get(_key(row))
        if was is None or "skipped" in row or "skipped" in was:
            continue
        name = " | ".join(map(str, _key(row)))
        if "audit" in row:
            for what in ("gflops", "parameters"):
                changes.append(_judge(f"{name} ({what})", "MACs", was[what], row[what], 0.0, False))
            continue
        if row.get("baseline") != row["contestant"]:
            (t0, low0, high0), (t1, low1, high1) = _times(was, row)
            changes.append(_judge(name, "time", t0, t1, threshold, low1 <= high0 and low0 <= high1))
        if was.get("peak_bytes") and row.get("peak_bytes"):
            changes.append(_judge(name, "memory", was["peak_bytes"], row["peak_bytes"], threshold, False))
    return sorted(changes, key=lambda change: -change.change)


def missing(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """What the old file measured and the new one did not."""
    measured = {_key(row) for row in new if "skipped" not in row}
    return [" | ".join(map(str, _key(row))) for row in old if "skipped" not in row and _key(row) not in measured]


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["audit"], row["row"]) if "audit" in row else (row["case"], row["contestant"])


def _times(*rows: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Median and quartiles: of the time over the baseline's when all rows share it, else in seconds."""
    baselines = {row.get("baseline") for row in rows}
    if len(baselines) == 1 and None not in baselines:
        return [(1 / row["speedup"], *sorted(1 / ratio for ratio in row["speedup_quartiles"])) for row in rows]
    return [(row["seconds"], *row["quartiles"]) for row in rows]


def _judge(
    name: str, what: Literal["time", "memory", "MACs"], old: float, new: float, threshold: float, overlap: bool
) -> Change:
    change = new / old - 1
    if overlap or abs(change) <= threshold:
        return Change(name, what, change, "noise")
    return Change(name, what, change, "regression" if change > 0 else "improvement")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="of a median, 0.05 for 5 %% (default)")
    options = parser.parse_args(arguments)
    try:
        (head0, old), (head1, new) = read_results(options.old), read_results(options.new)
    except ValueError as e:
        parser.error(str(e))
    if head0["device"] != head1["device"]:
        print(f"different devices: {head0['device']}, {head1['device']}; compare ratios only with care")
    changes = compare(old, new, options.threshold)
    for change in changes:
        if change.verdict != "noise":
            print(f"{change.verdict:<12}{change.what:<8}{100 * change.change:+7.1f} %   {change.name}")
    gone = missing(old, new)
    for name in gone:
        print(f"{'gone':<29}   {name}")
    regressions = sum(change.verdict == "regression" for change in changes)
    print(f"{len(changes)} compared, {regressions} worse, {sum(c.verdict == 'improvement' for c in changes)} better")
    if not changes:
        print("the files have nothing in common")
    return 1 if regressions or not changes else 0


if __name__ == "__main__":
    sys.exit(main())
