"""Put a trained model in a folder of its own, for others to use: weights, settings, corpus and a model card.

alt-fast export --checkpoint runs/mine --out mine --program
"""

import argparse
import sys
from collections.abc import Sequence

from alt_fast import cli


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "export",
        "Put a trained model in a folder for others: model.safetensors, which holds all that alt_fast.load "
        "needs, and its settings, corpus, scores and model card to read.",
    )
    cli.add_checkpoint(parser)
    cli.add_out(parser, "DIR", "folder to write, new or empty")
    parser.add_argument(
        "--program", action="store_true", help="add video_encoder.pt2, the video encoder by torch.export"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Fill the folder, and list it."""
    from alt_fast.inference.export import export

    export(arguments.checkpoint, arguments.out, arguments.program)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
