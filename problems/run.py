"""Test a submission to one of the problems, and time it beside the reference and alt_fast's kernels.

    python -m problems.run OP [--submission FILE] [--device cpu|cuda] [--seed N] [--rounds N] [--results FILE]

Without --submission it is the problem's own submission.py, the one to beat. Exits with 1 when a test fails, or a call
that was timed: then there is no time.
"""

import argparse
import hashlib
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alt_fast import cli
from alt_fast.distributed import pick_device
from alt_fast.errors import ArgumentError
from alt_fast.measure.lines import Row, append_row, check_rows
from alt_fast.measure.timing import Race
from problems import trial

SUBMISSION = "submission"

TO_BEAT = {trial.REFERENCE: (), trial.OURS: (trial.REFERENCE,), SUBMISSION: (trial.REFERENCE, trial.OURS)}
"""With whom each contestant is compared, where they ran."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.Parser("python -m problems.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("op", metavar="OP", choices=trial.OPS, help=f"the problem: {', '.join(trial.OPS)}")
    parser.add_argument("--submission", type=Path, metavar="FILE", help="a file with custom_kernel(inputs)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU if any")
    parser.add_argument("--seed", type=int, metavar="N", help="repeat a run; by default inputs are new ones")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="of every race, 2 or more (default 15)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="add what was measured to this file, as JSON lines"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Test, race and print; returns the exit status."""
    if options.rounds < 2:
        raise ArgumentError(f"--rounds must be at least 2, got {options.rounds}")
    check_rows(options.results)
    device = pick_device(options.device)
    seed = random.SystemRandom().getrandbits(31) if options.seed is None else options.seed
    problem = trial.load_problem(options.op)
    path = ours = Path(__file__).parent / options.op / "submission.py"
    kernels = {
        trial.REFERENCE: problem.reference,
        trial.OURS: trial.load_submission(ours, f"problems.{options.op}.submission"),
    }
    if options.submission is not None:
        path, kernels[SUBMISSION] = options.submission, trial.load_submission(options.submission)
    judged, kernel = list(kernels.items())[-1]
    head = {
        "problem": options.op,
        "submission": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "seed": seed,
    }
    print(f"{options.op}: {path} on {device}; --seed {seed} repeats this")

    def record(row: Row) -> None:
        if options.results is not None:
            append_row(options.results, head | row)

    with torch.inference_mode():
        failures = _test(problem, kernel, seed, device)
        record({"tests": [dict(shape) for shape in problem.tests], "failures": failures})
        if failures:
            return 1
        for shape in problem.benchmarks[device.type]:
            print(f"\n{trial.describe(shape)}")
            try:
                race = trial.race(problem, kernels, shape, seed, device, options.rounds)
                if why := race.skipped.get(judged):
                    raise trial.SubmissionError(why)
            except trial.SubmissionError as e:
                print(f"    failed: {e}")
                record({"benchmark": dict(shape), "failure": str(e)})
                return 1
            record({"benchmark": dict(shape), **_report(race)})
    return 0


def _test(problem: trial.Problem, kernel: trial.Kernel, seed: int, device: torch.device) -> dict[str, str]:
    """Run all tests; returns why each failed, by its shape."""
    failures = {}
    for shape in problem.tests:
        name = trial.describe(shape)
        try:
            trial.test(problem, kernel, shape, seed, device)
        except trial.SubmissionError as e:
            failures[name] = str(e)
        print(f"test {name}: {'failed: ' + failures[name] if name in failures else 'passed'}")
    return failures


def _report(race: Race) -> dict[str, Any]:
    """Print a line for each contestant; returns seconds by round, and speed-ups over others as quartiles."""
    speedups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, seconds in race.seconds.items():
        line = f"    {name:<12}{statistics.median(seconds) * 1e3:10.3f} ms"
        speedups[name] = {}
        for other in TO_BEAT[name]:
            if other in race.seconds:
                low, middle, high = speedups[name][other] = race.ratio(other, name)
                line += f"   x {middle:.3f} ({low:.3f} to {high:.3f}) over {other}"
        print(line)
    for name, why in race.skipped.items():
        print(f"    {name:<12}skipped: {why}")
    peak = {name: contestant.peak_bytes for name, contestant in race.contestants.items()}
    return {"seconds": race.seconds, "speedup": speedups, "peak_bytes": peak, "skipped": race.skipped}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
