"""Put a trained model in a folder of its own, for others to use: weights, settings, corpus and a model card.

alt-fast export --checkpoint runs/mine --out mine --program
alt-fast export --checkpoint runs/mine --out mine --onnx --int8
"""

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from alt_fast import cli
from alt_fast.model.config import Head


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
    parser.add_argument(
        "--aoti", action="store_true", help="add video_encoder.aoti.pt2, the same compiled by AOTInductor; needs g++"
    )
    parser.add_argument(
        "--onnx",
        nargs="*",
        metavar="PART",
        help="add ONNX files, which run without PyTorch: frame_encoder and decoder, video_encoder (both in one); "
        "default: all three",
    )
    parser.add_argument("--int8", action="store_true", help="of the ONNX files also ones with weights of 8 bits")
    parser.add_argument("--head", choices=get_args(Head), help="who scores in the ONNX files; default: as the model")
    cli.add_labels(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Fill the folder, and list it."""
    from alt_fast.data.annotations import read_labels
    from alt_fast.inference.export import Programs, export

    labels = None if arguments.labels is None else read_labels(arguments.labels)
    chosen = (arguments.program, arguments.aoti, arguments.onnx, arguments.int8, arguments.head)
    export(arguments.checkpoint, arguments.out, Programs(*chosen, labels))
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
