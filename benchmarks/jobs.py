"""What a whole job on Motion Shapes comes to over seeds, which draw its videos and its training: every metrics.json.

python -m benchmarks.jobs --config motion_shapes --out FILE.jsonl
python -m benchmarks.jobs --config motion_shapes_2 --seeds 3 --out FILE.jsonl -- --optim.epochs=6

Towers that come along stay as they are. Stop it, and the same command goes on where it was.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.files import METRICS, read_json
from alt_fast.measure.lines import Row, append_row, check_rows, read_rows
from alt_fast.paper.ablations import spread_text
from alt_fast.training.config import parse
from alt_fast.training.run import run
from alt_fast.training.run_folder import has_result

COLUMNS = {
    "top-1": "top1",
    "unseen": "top1_unseen_pairs",
    "single frames": "frame_only_top1",
    "single frames, unseen": "frame_only_top1_unseen_pairs",
    "queries of other videos": "alignment.shuffled_top1",
    "names permuted": "alignment.permuted_entities_top1",
    "entities at random": "alignment.random_entities_top1",
    "frames align right": "alignment.frame_accuracy.all",
    "regions align right": "alignment.region_accuracy.all",
    "certainty": "alignment.certainty",
}
"""Of the table: where their numbers stand in metrics.json."""


def measured(config: str, seed: int, runs: Path, options: Sequence[str]) -> Mapping[str, Any]:
    """Return the metrics of a job, which is trained, or gone on with, unless it is done."""
    folder = runs / config
    own = ["--seed", str(seed), "--data.shapes.seed", str(seed), "--data.root", str(folder / f"data{seed}")]
    job = parse(["--config", config, *options, *own, "--out", str(folder / f"seed{seed}"), "--resume"])
    if not has_result(folder / f"seed{seed}", job):
        run(job)
    return read_json(folder / f"seed{seed}" / METRICS)


def number(metrics: Any, place: str) -> float | None:
    """Return what stands at a dotted place, in per cent; None where a job has no such number."""
    for name in place.split("."):
        metrics = (metrics or {}).get(name)
    return None if metrics is None else 100 * metrics


def table(rows: Sequence[Row]) -> str:
    """Markdown, in per cent: the seeds, then mean and sample deviation over them."""
    lines = [["", *(f"seed {row['seed']}" for row in rows), "all"], ["---", *(len(rows) + 1) * ["--:"]]]
    for column, place in COLUMNS.items():
        found = [x for row in rows if (x := number(row["metrics"], place)) is not None]
        lines.append([column, *(f"{x:.1f}" for x in found), spread_text(found)] if len(found) == len(rows) else [])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines if line)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", required=True, metavar="NAME", help="of a job on Motion Shapes")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it has is not repeated"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/jobs"), metavar="DIR", help="videos and models")
    parser.add_argument(
        "options", nargs="*", metavar="OPTION", help="after --: changes every job, as in -- --optim.epochs=6"
    )
    return parser


def work(given: argparse.Namespace) -> int:
    """Train what --out has not, and print the table."""
    check_rows(given.out)

    def known() -> dict[int, Row]:
        asked = (given.config, given.options)
        own = [row for row in read_rows(given.out) if (row.get("config"), row.get("options")) == asked]
        return {row["seed"]: row for row in own}

    for seed in range(given.seeds):
        if seed not in known():
            metrics = measured(given.config, seed, given.runs.absolute(), given.options)
            row = {"config": given.config, "seed": seed, "options": given.options, "metrics": metrics}
            append_row(given.out, row)
    print(table([known()[seed] for seed in range(given.seeds)]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
