"""Name the action in videos; in a long one, say what happens when.

alt-fast classify clip.mp4 --checkpoint runs/mine --top-k 3
alt-fast classify clip.mp4 --head clip --pretrained openai --labels "playing guitar" "surfing"
alt-fast classify match.mp4 --checkpoint runs/mine --every 1s --window 4s --out match.html
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from alt_fast import cli
from alt_fast.errors import ArgumentError

if TYPE_CHECKING:
    from alt_fast.inference.predict import Prediction
    from alt_fast.inference.trained import TrainedModel

BACKBONE, PRETRAINED = "ViT-B-16", "openai"


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser("classify", "Name the action in videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video file")
    cli.add_checkpoint(parser, required=False)
    cli.add_labels(parser)
    cli.add_texts(parser)
    cli.add_corpus(parser)
    cli.add_r(parser)
    cli.add_rotary(parser)
    parser.add_argument("--top-k", type=int, metavar="K", help="labels to print (default: 5, all with --json)")
    cli.add_head(parser)
    parser.add_argument(
        "--backbone", metavar="NAME", help=f"--head clip without a checkpoint: open_clip model name ({BACKBONE})"
    )
    parser.add_argument("--pretrained", metavar="TAG|FILE", help=f"... and its weights ({PRETRAINED})")
    cli.add_device(parser)
    cli.add_json(parser)
    long = parser.add_argument_group(
        "long videos", "What happens when: one score every so often, of what is around it."
    )
    long.add_argument("--every", type=cli.seconds, metavar="TIME", help="from one score to the next, as in 1s or 500ms")
    long.add_argument("--window", type=cli.seconds, metavar="TIME", help="that a score is of (default 4s)")
    long.add_argument("--enter", type=float, metavar="P", help="probability from which a label begins (default 0.5)")
    long.add_argument("--leave", type=float, metavar="P", help="probability below which it ends (default 0.3)")
    long.add_argument("--min-length", type=cli.seconds, metavar="TIME", help="what is shorter is not told (default 0s)")
    cli.add_out(long, "FILE", "segments as .csv, .jsonl or .srt, or a page to look around in, .html", required=False)
    return parser


def open_model(arguments: argparse.Namespace) -> "TrainedModel":
    """Return the checkpoint, or a bare CLIP for --head clip. Raises ArgumentError for options without an effect."""
    from alt_fast.distributed import pick_device
    from alt_fast.inference.trained import load_clip

    if arguments.head == "clip" and (arguments.corpus or arguments.categories):
        raise ArgumentError("--corpus and --categories have no effect on --head clip")
    if arguments.checkpoint is not None:
        for name in ("backbone", "pretrained"):
            if getattr(arguments, name) is not None:
                raise ArgumentError(
                    f"--{name} is for --head clip without a checkpoint: {arguments.checkpoint} has its own"
                )
        return cli.load_model(arguments)
    if arguments.head != "clip":
        raise ArgumentError(
            f"--head {arguments.head} needs --checkpoint RUN; without training, use --head clip with --backbone and "
            "--pretrained"
        )
    if arguments.labels is None:
        raise ArgumentError("--head clip without a checkpoint needs --labels")
    r = 8 if arguments.r is None else arguments.r
    device = pick_device(arguments.device)
    clip = load_clip(arguments.backbone or BACKBONE, arguments.pretrained or PRETRAINED, r).to(device)
    if arguments.rotary is not None:
        clip.set_rotary(arguments.rotary)
    return clip


def print_prediction(prediction: "Prediction") -> None:
    """Print a readable table."""
    print(prediction.video)
    for label, probability in prediction:
        print(f"  {probability:7.1%}  {label}")
    for number, frame in enumerate(prediction.frames, start=1):
        aligned = ", ".join(f"{share.entity} {share.share:.0%}" for share in frame[:4])
        print(f"  frame {number}: {aligned}")


LONG = ("window", "enter", "leave", "min_length", "out")
"""Options that take --every."""


def tell_segments(arguments: argparse.Namespace, trained: "TrainedModel", labels: list[str] | None) -> int:
    """Say what happens when in a long video."""
    from alt_fast.inference.segments import Hysteresis
    from alt_fast.report.timeline import check_suffix, clock

    if len(arguments.videos) != 1 or arguments.top_k is not None:
        raise ArgumentError("--every is for one video, and takes no --top-k")
    if arguments.out is not None:
        check_suffix(arguments.out)
    rule = Hysteresis(
        **{name: value for name in ("enter", "leave", "min_length") if (value := getattr(arguments, name)) is not None}
    )
    window = 4.0 if arguments.window is None else arguments.window
    (video,) = arguments.videos
    found = trained.find_segments(video, labels, arguments.every, window, rule, arguments.head)
    if arguments.out is not None:
        found.save(arguments.out)
    if arguments.json:
        print(json.dumps(found.as_dict(), indent=2))
        return 0
    for segment in found.segments:
        print(f"{clock(segment.start)}  {clock(segment.end)}  {segment.score:6.1%}  {segment.label}")
    for gap in found.gaps:
        print(f"{clock(gap.start)}  {clock(gap.end)}  not told: {gap.cause}", file=sys.stderr)
    told = f"{len(found.segments)} segments of {found.windows} windows; {found.encoded} frames encoded"
    print(f"{told}, for {found.windows * trained.model.config.frames} in windows", file=sys.stderr)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Classify the videos; returns 1 when one could not be read."""
    from alt_fast.data.annotations import read_labels
    from alt_fast.data.batch import Failure

    if arguments.every is None:
        for name in LONG:
            if getattr(arguments, name) is not None:
                raise ArgumentError(f"--{name.replace('_', '-')} is for long videos: it needs --every TIME")
    trained = open_model(arguments)
    labels = read_labels(arguments.labels) if arguments.labels else None
    trained.use_texts(arguments.texts, labels)
    if arguments.every is not None:
        return tell_segments(arguments, trained, labels)
    top_k = arguments.top_k if arguments.top_k is not None or arguments.json else 5
    results = trained.classify(arguments.videos, labels, top_k, arguments.head, errors="return")
    if arguments.json:
        rows = [
            {"video": found.path, "error": found.cause} if isinstance(found, Failure) else found.as_dict()
            for found in results
        ]
        print(json.dumps(rows, indent=2))
    for found in results:
        if isinstance(found, Failure):
            print(f"error: {found.path}: {found.cause}", file=sys.stderr)
        elif not arguments.json:
            print_prediction(found)
    return int(any(isinstance(found, Failure) for found in results))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return cli.run(make_parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())
