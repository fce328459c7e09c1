"""What a model saw in a video: regions, their entities, and how much these decided, as a page to look at.

alt-fast explain clip.mp4 --checkpoint runs/mine --out report.html
alt-fast explain clip.mp4 --checkpoint runs/mine --out report.png
alt-fast explain clip.mp4 --checkpoint runs/mine --out overlay.webm
"""

import argparse
import sys
from collections.abc import Sequence

from alt_fast import cli
from alt_fast.errors import ArgumentError


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "explain", "Show what the model saw in a video: merged regions, the entities they aligned to, actions."
    )
    parser.add_argument("video", metavar="VIDEO", help="video file")
    cli.add_checkpoint(parser)
    cli.add_out(parser, "FILE", "page to write (.html), picture (.png) or video (.webm)")
    cli.add_labels(parser)
    cli.add_r(parser)
    cli.add_rotary(parser)
    cli.add_also_r(parser, "what a page's slider has besides that r; default: 0, half and one and a half of it")
    cli.add_corpus(parser)
    cli.add_device(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the explanation."""
    from alt_fast.data.annotations import read_labels
    from alt_fast.files import check_place
    from alt_fast.report.explanation import check_suffix

    cli.check_out(arguments)
    also_r = arguments.also_r
    if check_suffix(arguments.out) != ".html":
        if also_r is not None:
            raise ArgumentError("--also-r is for pages (.html): pictures and videos show one r")
        also_r = []
    check_place(arguments.out)
    trained = cli.load_model(arguments)
    labels = read_labels(arguments.labels) if arguments.labels else None
    trained.explain(arguments.video, labels, also_r).save(arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
