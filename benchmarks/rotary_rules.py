"""What rules for rotary positions do to accuracy: Motion Shapes from nothing, on `tiny_rope`, by rule and by r.

python -m benchmarks.rotary_rules --out FILE.jsonl
python -m benchmarks.rotary_rules --out FILE.jsonl --trained --seeds 0 1 2 --r 0 4 8 12

Every seed draws its own videos and its own model, which is tested merged by each rule without training again. --trained
also trains, from the seed's CLIP, merged by each rule. Stop it, and the same command goes on where it was.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from alt_fast.errors import AltFastError
from alt_fast.files import METRICS, read_json
from alt_fast.inference.lists import run_lists
from alt_fast.inference.scoring import EvalConfig
from alt_fast.inference.trained import load
from alt_fast.measure.lines import Row, append_row, check_rows, read_rows
from alt_fast.model.config import TINY_ROPE
from alt_fast.paper.ablations import spread_text
from alt_fast.tome.rules import RotaryRule
from alt_fast.training.config import parse
from alt_fast.training.run import run
from alt_fast.training.run_folder import has_result

RULES: tuple[RotaryRule, ...] = get_args(RotaryRule)
MERGED, TRAINED = "merged without training", "trained merged"
JOB = ("--config", "motion_shapes_clip", "--model.backbone", TINY_ROPE, "--frame-only", "false")
LISTS = {"top1": "test", "top1_unseen_pairs": "unseen pairs"}


@dataclass(frozen=True)
class Experiment:
    """out: result file. runs: folder of videos and runs. options: of every training, after its configuration's."""

    out: Path
    runs: Path
    options: Sequence[str]

    def rows(self) -> list[Row]:
        """What this experiment has measured so far."""
        return [row for row in read_rows(self.out) if "kind" in row and row.get("options") == list(self.options)]

    def add(self, row: Row) -> None:
        """Append a result."""
        append_row(self.out, {**row, "options": list(self.options)})

    def train(self, seed: int, name: str, options: Sequence[str] = ()) -> Path:
        """Train, or go on with it, unless it is done; returns the run folder. Raises RunError: see `has_result`."""
        folder = self.runs / f"seed{seed}" / name
        own = ["--seed", str(seed), "--data.shapes.seed", str(seed), "--data.root", str(self.runs / f"data{seed}")]
        config = parse([*JOB, *self.options, *own, *options, "--out", str(folder), "--resume"])
        if not has_result(folder, config):
            run(config)
        return folder

    def test_merged(self, seed: int, cases: Sequence[tuple[RotaryRule, int]]) -> Iterator[Row]:
        """Test the model of a seed in each of these cases, a rule and an r."""
        if not cases:
            return
        folder = self.train(seed, "base")
        trained = load(folder)
        config = parse(["--config", str(folder / "config.yaml")])
        testing = EvalConfig(config.optim.batch_size, loading=config.data.loading)
        lists = run_lists(folder, trained)
        for rule, r in cases:
            trained.set_rotary(rule)
            trained.set_r(r)
            scores = [trained.score(name, videos, names, testing) for name, videos, names in lists]
            yield {
                **{key: score["top1"] for key, score in zip(LISTS, scores, strict=True)},
                "videos": [score["videos"] for score in scores],
                "unreadable": sum(len(score["unreadable"]) for score in scores),
                "trained_with": {"rotary": config.model.rotary, "r": config.model.r},
            }

    def train_merged(self, seed: int, cases: Sequence[tuple[RotaryRule, int]]) -> Iterator[Row]:
        """Train and test a model of a seed in each of these cases, all from the same CLIP."""
        for rule, r in cases:
            folder = self.train(seed, "base")
            model = parse(["--config", str(folder / "config.yaml")]).model
            if (rule, r) != (model.rotary, model.r):
                start = ["--pretrain", "null", "--model.pretrained", str(folder / "clip.safetensors")]
                folder = self.train(seed, f"{rule}-r{r}", [*start, "--model.rotary", rule, "--model.r", str(r)])
            metrics = read_json(folder / METRICS, *LISTS)
            yield {
                **{key: metrics[key] for key in LISTS},
                "videos": [metrics["test_videos"], metrics["unseen_videos"]],
                "unreadable": len(metrics["unreadable"]),
                "trained_with": {"rotary": rule, "r": r},
            }


def table(rows: Sequence[Row], kind: str, seeds: Sequence[int], reductions: Sequence[int]) -> str:
    """Markdown: top-1 in per cent by rule and r, on both lists; mean and sample deviation over the seeds."""
    found = {(row["seed"], row["rotary"], row["r"]): row for row in rows if row["kind"] == kind}
    head = [kind, *(f"{name}, r = {r}" for name in LISTS.values() for r in reductions)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for rule in RULES:
        lines.append([rule])
        for key in LISTS:
            for r in reductions:
                # Where nothing merges, all rules are one model, which is trained once.
                known = [found.get((seed, rule, r)) or (not r and found.get((seed, "mean", r))) for seed in seeds]
                lines[-1].append(spread_text([100 * row[key] for row in known if row]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(experiment: Experiment, kind: str, seeds: Sequence[int], reductions: Sequence[int]) -> None:
    """Measure what is not in the result file yet, seed by seed."""
    work = experiment.test_merged if kind == MERGED else experiment.train_merged
    for seed in seeds:
        done = {(row["rotary"], row["r"]) for row in experiment.rows() if (row["kind"], row["seed"]) == (kind, seed)}
        asked = [(rule, r) for r in reductions for rule in RULES if r or rule == "mean" or kind == MERGED]
        cases = [case for case in asked if case not in done]
        for (rule, r), found in zip(cases, work(seed, cases), strict=True):
            experiment.add({"kind": kind, "seed": seed, "rotary": rule, "r": r, **found})


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    own, _, options = "\0".join(arguments).partition("\0--\0")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rotary_rules",
        description=(__doc__ or "").split("\n")[0],
        epilog="What stands after -- changes motion_shapes_clip, as in: -- --optim.epochs 10",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="S", help="default: 0 1 2")
    parser.add_argument("--r", type=int, nargs="+", default=[0, 4, 8, 12], metavar="R", help="default: 0 4 8 12")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON lines; what it has is not repeated"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/rotary_rules"), metavar="DIR", help="videos and models")
    parser.add_argument("--trained", action="store_true", help="also train merged by each rule at each r")
    given = parser.parse_args(own.split("\0") if own else [])
    experiment = Experiment(given.out, given.runs.absolute(), options.split("\0") if options else [])
    kinds = (MERGED, TRAINED) if given.trained else (MERGED,)
    try:
        check_rows(given.out)
        for kind in kinds:
            measure(experiment, kind, given.seeds, given.r)
    except AltFastError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    print("\n\n".join(table(experiment.rows(), kind, given.seeds, given.r) for kind in kinds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
