"""Write the video vectors of a trained model for a list of videos; stop it, and it goes on where it was.

alt-fast extract --checkpoint runs/mine --list videos.csv --out features
torchrun --nproc-per-node 8 -m alt_fast.extract --checkpoint runs/mine --list videos.csv --out features
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from alt_fast import cli
from alt_fast.errors import ArgumentError

SETTINGS = (
    *("checkpoint", "list", "classes", "root", "corpus", "categories", "r", "rotary", "crops", "clips"),
    *("per_file", "compile"),
)
"""Options that the vectors and their files depend on."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "extract",
        "Write the video vectors of a list of videos. The same command goes on after an interruption, and tries "
        "again what could not be read.",
    )
    cli.add_testing(parser)
    cli.add_list(parser, True, "list of videos", "the classes trained on")
    parser.add_argument(
        "--subset", choices=["train", "test"], default="test", help="rows of a list that holds both (default test)"
    )
    parser.add_argument("--per-file", type=int, default=1000, metavar="N", help="videos in a file (default 1000)")
    cli.add_out(parser, "DIR", "folder to write to")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the vectors; returns 1 when a video could not be read (its vector is zeros)."""
    from alt_fast.data.annotations import read_list
    from alt_fast.distributed import join_world
    from alt_fast.files import text_of
    from alt_fast.inference.features import open_folder, write_features
    from alt_fast.inference.lists import trained_classes
    from alt_fast.model.hashing import hash_weights

    if arguments.per_file < 1:
        raise ArgumentError(f"--per-file must be >= 1, got {arguments.per_file}")
    with join_world(arguments.device) as world, cli.load_tested(arguments) as (trained, testing):
        classes = arguments.classes or trained_classes(Path(arguments.checkpoint), trained)
        videos, _ = read_list(arguments.list, classes, arguments.root, arguments.subset)
        settings = {name: getattr(arguments, name) for name in SETTINGS}
        labelled = text_of([f"{video.path} {video.label}" for video in videos])
        settings |= {"videos": labelled, "weights": hash_weights(trained.model).hexdigest()}
        with open_folder(arguments.out, settings) if world.main else nullcontext():
            failures, blank = write_features(
                trained.model, trained.spec, videos, testing, arguments.out, arguments.per_file, world
            )
    if not world.main:
        return 0
    print(f"{len(videos)} videos in {arguments.out}")
    for failure in failures:
        print(f"unreadable, zeros: {failure.path}: {failure.cause}", file=sys.stderr)
    for path in blank:
        print(f"every frame is of one colour: {path}", file=sys.stderr)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv, "interrupted; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
