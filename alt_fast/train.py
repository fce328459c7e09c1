"""Train ALT. With no arguments: the whole default job on Motion Shapes, on any machine.

alt-fast train --compile
alt-fast train --config kinetics400_b16 --data.train train.csv --data.test val.csv --corpus corpus.json
torchrun --nproc-per-node 8 -m alt_fast.train --config kinetics400_b16 ... --out RUN
"""

import sys
from collections.abc import Sequence
from typing import Any

from alt_fast import cli
from alt_fast.training.config import make_parser, to_config

RESUME = "go on with the same command and --out RUN --resume"


def run(values: Any) -> int:
    """Train, test, and print the scores."""
    from alt_fast.distributed import join_world
    from alt_fast.training.loop import TerminatedError
    from alt_fast.training.run import run as run_job

    config = to_config(values)
    with join_world(config.device) as world:
        try:
            metrics = run_job(config, world)
        except TerminatedError as e:
            raise TerminatedError(f"{e}; {RESUME}") from e
    for name, value in metrics.items():
        if world.main and isinstance(value, float):
            print(f"{name:32} {value:.3f}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv, f"interrupted; {RESUME}")


if __name__ == "__main__":
    sys.exit(main())
