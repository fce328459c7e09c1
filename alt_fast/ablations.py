"""The paper's ablations (Tables 5, 7, 8, C3, C4): train every row, and print the paper's table with ours beside it.

alt-fast ablations 5 C3 --seeds 0 1 2 --out runs/ablations
alt-fast ablations 8 --out runs/ablations --launch "torchrun --nproc-per-node 8" -- \\
    --config kinetics400_b16 --data.train train.csv --data.test val.csv --corpus corpus.json
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial

from alt_fast import cli
from alt_fast.errors import ArgumentError, check_seed
from alt_fast.paper.ablations import SHAPES_FEW_SHOT, TABLES, Sweep, run_all, table_text
from alt_fast.training.config import parse


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "ablations",
        "Train every row of the paper's ablation tables and print them with our scores beside the paper's. "
        "Finished rows are kept: the same command goes on after an interruption.",
        epilog="Options of alt-fast train follow after --; without any, Motion Shapes.",
    )
    parser.add_argument("tables", nargs="+", choices=list(TABLES), metavar="TABLE", help=f"any of {', '.join(TABLES)}")
    cli.add_out(parser, "DIR", "folder for all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S", help="one run of each (default 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default 1)")
    parser.add_argument(
        "--few-shot",
        metavar="OPTIONS",
        help="options of alt-fast train for a second training that starts from each row, {seed} in them is the seed; "
        "default: two videos of each unseen class on Motion Shapes, none on other data",
    )
    parser.add_argument(
        "--transfer-frames",
        type=int,
        metavar="N",
        help="frames of the runs that the few- and zero-shot columns are of; default: 32 as in the paper, in runs of "
        "their own, and on Motion Shapes those of the fully supervised runs",
    )
    parser.add_argument(
        "--launch", metavar="COMMAND", help='what runs -m alt_fast.train; "torchrun --nproc-per-node 8"'
    )
    parser.add_argument("--show", action="store_true", help="print the tables of what is there, and train nothing")
    return parser


def run(arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Train, and print the tables. options: of `alt-fast train`."""
    if arguments.show and (arguments.launch or arguments.jobs != 1):
        raise ArgumentError("--launch and --jobs have no effect on --show, which trains nothing")
    if arguments.jobs < 1:
        raise ArgumentError(f"--jobs must be >= 1, got {arguments.jobs}")
    check_seed("--seeds", *arguments.seeds)
    if arguments.transfer_frames is not None and arguments.transfer_frames < 1:
        raise ArgumentError(f"--transfer-frames must be >= 1, got {arguments.transfer_frames}")
    config, few_shot = parse(options), arguments.few_shot
    check_options(options, config.data.generate is not None)
    if config.data.generate is not None and few_shot is None:
        few_shot = SHAPES_FEW_SHOT
        if config.data.shapes.few_shot_per_class < 2:
            options = [*options, "--data.shapes.few-shot-per-class=2"]
    frames = arguments.transfer_frames
    if frames is None:
        frames = config.model.frames if config.data.generate is not None else 32
    launch = split("--launch", arguments.launch) if arguments.launch else [sys.executable]
    second = split("--few-shot", few_shot) if few_shot else None
    sweep = Sweep(config, options, second, launch, arguments.out, frames)
    if arguments.transfer_frames is not None and not sweep.transfers:
        raise ArgumentError("--transfer-frames has no effect without --few-shot or --data.unseen: no column is of them")
    if not arguments.show:
        run_all(sweep, arguments.tables, arguments.seeds, arguments.jobs)
    print("\n\n".join(table_text(sweep, table, arguments.seeds) for table in arguments.tables))
    return 0


def check_options(options: Sequence[str], generated: bool) -> None:
    """Raise ArgumentError for an option of training that every run has a value of its own for.

    generated: whether the videos are, by a seed of their own.
    """
    own = {
        "seed": "--seeds before -- says which",
        "out": "--out before -- is the folder of all",
        "resume": "they all go on where they were",
        "frame_only": "no table has it",
    }
    if generated:
        own |= {"data.root": "it is in --out", "data.shapes.seed": "it is the run's seed"}
    for option in options:
        name = option.partition("=")[0].removeprefix("--")
        if option.startswith("--") and (why := own.get(name.replace("-", "_"))):
            raise ArgumentError(f"--{name} behind -- has no effect on the runs of a table: {why}")


def split(option: str, text: str) -> list[str]:
    """Split a command line. Raises ArgumentError naming the option."""
    try:
        return shlex.split(text)
    except ValueError as e:
        raise ArgumentError(f"{option} is no command line: {e}, in {text!r}") from e


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    end = argv.index("--") if "--" in argv else len(argv)
    work = partial(run, options=argv[end + 1 :])
    return cli.run(make_parser, work, argv[:end], "interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
