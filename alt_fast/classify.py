"""Name the action in videos; in a long one, say what happens when.

alt-fast classify clip.mp4 --checkpoint runs/mine --top-k 3
alt-fast classify clip.mp4 --head clip --pretrained openai --labels "playing guitar" "surfing"
alt-fast classify match.mp4 --checkpoint runs/mine --every 1s --window 4s --out match.html
alt-fast classify clips --checkpoint runs/mine --out results.csv
torchrun --nproc-per-node 8 -m alt_fast.classify clips --checkpoint runs/mine --out results.csv
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alt_fast import cli
from alt_fast.errors import ArgumentError, RunError

if TYPE_CHECKING:
    from alt_fast.data.config import Loading
    from alt_fast.distributed import World
    from alt_fast.inference.predict import Prediction
    from alt_fast.inference.scoring import EvalConfig
    from alt_fast.inference.trained import TrainedModel

SETTINGS = ("rotary", "head", "batch_size", "compile", "loader")
"""Options that a file of results depends on, as they are given."""


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = cli.make_parser(
        "classify",
        "Name the action in videos. With --out, the same command goes on after an interruption.",
    )
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video file, folder of videos (with the folders in it, those behind links not), glob in quotes, or list "
        "(.txt, .csv, .json), as training takes it or with a path a line",
    )
    parser.add_argument("--root", metavar="DIR", help="folder that a list's paths start from; default: the list's")
    cli.add_checkpoint(parser, required=False)
    cli.add_labels(parser)
    cli.add_texts(parser)
    cli.add_corpus(parser)
    cli.add_r(parser)
    cli.add_rotary(parser)
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="labels of a video (default: 5; with --json and in .jsonl all)"
    )
    cli.add_head(parser)
    cli.add_clip(parser)
    cli.add_batch_size(parser)
    cli.add_loader(parser)
    cli.add_workers(parser)
    cli.add_device(parser)
    cli.add_compile(parser)
    cli.add_json(parser)
    cli.add_out(
        parser,
        "FILE",
        "write instead of printing: a row for each video (.csv, .jsonl); of a long one, its segments (.csv, .jsonl, "
        ".srt), or a page to look around in (.html)",
        required=False,
    )
    long = parser.add_argument_group(
        "long videos", "What happens when: one score every so often, of what is around it."
    )
    long.add_argument("--every", type=cli.seconds, metavar="TIME", help="from one score to the next, as in 1s or 500ms")
    long.add_argument("--window", type=cli.seconds, metavar="TIME", help="that a score is of (default 4s)")
    long.add_argument("--enter", type=float, metavar="P", help="probability from which a label begins (default 0.5)")
    long.add_argument("--leave", type=float, metavar="P", help="probability below which it ends (default 0.3)")
    long.add_argument("--min-length", type=cli.seconds, metavar="TIME", help="what is shorter is not told")
    return parser


def print_prediction(prediction: "Prediction") -> None:
    """Print a readable table."""
    print(prediction.video)
    for label, probability in prediction:
        print(f"  {probability:7.1%}  {label}")
    for number, frame in enumerate(prediction.frames, start=1):
        aligned = ", ".join(f"{share.entity} {share.share:.0%}" for share in frame[:4])
        print(f"  frame {number}: {aligned}")


LONG = ("window", "enter", "leave", "min_length")
"""Options that take --every."""


def tell_segments(arguments: argparse.Namespace, labels: list[str] | None, loading: "Loading") -> int:
    """Say what happens when in a long video."""
    from alt_fast.distributed import join_world
    from alt_fast.files import check_place
    from alt_fast.inference.segments import Hysteresis
    from alt_fast.inference.speed import computing
    from alt_fast.report.timeline import check_suffix, clock

    of_many = (arguments.top_k, arguments.root, arguments.batch_size) != (None, None, cli.BATCH_SIZE)
    if len(arguments.videos) != 1 or of_many or arguments.loader == "dali":
        raise ArgumentError("--every is for one video, and takes no --top-k, --root, --batch-size or --loader dali")
    with join_world(arguments.device) as world:
        if world.size > 1:
            raise ArgumentError(f"--every is for one process, and torchrun started {world.size}: leave torchrun out")
    if arguments.out is not None:
        check_suffix(arguments.out)
        if arguments.out.exists():
            raise RunError(f"{arguments.out} is there already: remove it, or choose another --out")
        check_place(arguments.out)
    rule = Hysteresis(
        **{name: value for name in ("enter", "leave", "min_length") if (value := getattr(arguments, name)) is not None}
    )
    window = 4.0 if arguments.window is None else arguments.window
    (video,) = arguments.videos
    trained = cli.open_model(arguments)
    trained.use_texts(arguments.texts, labels)
    with computing(trained.model, arguments.workers):
        found = trained.find_segments(video, labels, arguments.every, window, rule, arguments.head, loading)
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
    from alt_fast.data.config import Loading
    from alt_fast.data.find import find_videos
    from alt_fast.distributed import join_world
    from alt_fast.inference.results import check_path
    from alt_fast.inference.scoring import EvalConfig
    from alt_fast.inference.speed import compiled_for, computing
    from alt_fast.progress import print_aside, say_nothing

    labels = read_labels(arguments.labels) if arguments.labels else None
    loading = Loading(arguments.loader, arguments.workers, arguments.timeout)
    if arguments.every is not None:
        return tell_segments(arguments, labels, loading)
    for name in LONG:
        if getattr(arguments, name) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')} is for long videos: it needs --every TIME")
    if arguments.out is not None:
        check_path(arguments.out)
        if arguments.json:
            raise ArgumentError("--json has no effect on --out: .jsonl holds what it prints, a line for each video")
    testing = EvalConfig(arguments.batch_size, loading=loading, head=arguments.head)
    with join_world(arguments.device) as world:
        if world.size > 1 and arguments.out is None:
            raise ArgumentError("several processes share the work on a file: name it with --out")
        tell = print_aside if world.main else say_nothing
        videos = world.gather(find_videos(arguments.videos, arguments.root, tell))[0]  # a folder may be growing
        trained = cli.open_model(arguments)
        trained.use_texts(arguments.texts, labels)
        clips = min(arguments.batch_size, len(videos))
        compiled = compiled_for(trained.model, clips, arguments.head) if arguments.compile else nullcontext()
        with computing(trained.model, arguments.workers), compiled:
            if arguments.out is not None:
                return write_file(arguments, trained, videos, labels, testing, world)
            return print_all(arguments, trained, videos, labels, testing)


def write_file(
    arguments: argparse.Namespace,
    trained: "TrainedModel",
    videos: Sequence[Path],
    labels: Sequence[str] | None,
    testing: "EvalConfig",
    world: "World",
) -> int:
    """Write what is found to --out; returns 1 when a video could not be read."""
    from alt_fast.files import text_of
    from alt_fast.inference.predict import predict_batches, shares_of
    from alt_fast.inference.results import write_results

    few = None if arguments.out.suffix == ".jsonl" else 5  # all, as --json
    choice = trained.choice(labels, few if arguments.top_k is None else arguments.top_k)
    top_k = min(choice.top_k or len(choice.labels), len(choice.labels))
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    settings |= {"model": trained.fingerprint(), "r": list(trained.model.encoder.schedule), "top_k": top_k}
    settings |= {"labels": text_of(choice.labels), "videos": text_of([str(path) for path in videos])}
    find = partial(predict_batches, videos, trained.model, trained.spec, choice, testing)
    failed = write_results(arguments.out, top_k, settings, shares_of(len(videos), testing.batch_size), find, world)
    if world.main:
        print(f"{len(videos)} videos in {arguments.out}" + f", {failed} of them with an error" * (failed > 0))
    return int(failed > 0)


def print_all(
    arguments: argparse.Namespace,
    trained: "TrainedModel",
    videos: Sequence[Path],
    labels: Sequence[str] | None,
    testing: "EvalConfig",
) -> int:
    """Print what is found; returns 1 when a video could not be read."""
    from alt_fast.data.batch import Failure

    top_k = arguments.top_k if arguments.top_k is not None or arguments.json else 5
    results = trained.classify(videos, labels, top_k, arguments.head, errors="return", testing=testing)
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
    return cli.run(make_parser, run, argv, "interrupted; with --out, the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
