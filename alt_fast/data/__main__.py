"""Look at lists of videos, make new ones, pack them: `alt-fast data check`, `stats`, `split`, `merge` and so on."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alt_fast import cli
from alt_fast.data.config import AugmentConfig, ClipSpec, Loading, MotionShapesConfig
from alt_fast.errors import ArgumentError, RunError, check_seed
from alt_fast.settings import make_settings_parser

COMMANDS = {
    "check": "scan a list of videos for what cannot be used",
    "stats": "say what a list holds: classes, lengths, sizes, sources",
    "split": "hold out a part of a list for testing",
    "merge": "write one list of several",
    "browse": "draw a contact sheet of clips as the model sees them",
    "shard": "pack a list of videos into tar archives",
    "generate": "write Motion Shapes, the generated dataset",
}


def _add_list(parser: Any, *, nargs: str | None = None) -> None:
    parser.add_argument(
        "list",
        metavar="LIST",
        nargs=nargs,
        help="list of videos, in any form that training takes, or a folder with a folder per class",
    )
    parser.add_argument("--classes", metavar="FILE", help="class file, where the list does not name its classes")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--subset", choices=["train", "test"], help="rows of a list that holds both (default train)")


def _check_parser() -> Any:
    parser = cli.make_parser(
        "data check", "Scan a list of videos. Every file is indexed, and frames all over it are decoded."
    )
    _add_list(parser)
    cli.add_workers(parser)
    cli.add_json(parser)
    return parser


def _check(arguments: Any) -> int:
    from alt_fast.data.annotations import read_list
    from alt_fast.data.check import scan, summarize

    videos, classes = read_list(
        arguments.list, arguments.classes, arguments.root, arguments.subset or "train", numbers=True
    )
    facts, failures = scan(videos, arguments.workers, arguments.timeout)
    summary = summarize(videos, classes, facts, failures)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        _print_summary(summary)
    return 1 if failures else 0


def _print_summary(summary: dict[str, Any]) -> None:
    count, unusable = summary["videos"], len(summary["unusable"])
    print(f"{count} videos, {summary['bytes'] / 1e6:,.1f} MB, {unusable} of them unusable ({unusable / count:.1%})")
    for kind, number in summary["causes"].items():
        print(f"         {number} ({number / count:.1%}): {kind}")
    if summary["late"]:
        print(f"late     {summary['late']} begin before their first keyframe, which stands in for what is before it")
    for name, unit in (("codecs", ""), ("sizes", ""), ("rates", " frames/s")):
        most = list(summary[name].items())
        line = ", ".join(f"{value}{unit}: {count}" for value, count in most[:8])
        print(f"{name:8} {line}" + (f", and {len(most) - 8} more" if len(most) > 8 else ""))
    if summary["frames"]:
        least, middle, most = summary["frames"]
        print(f"frames   {least} to {most}, median {middle:g}")
    counts = summary["classes"]
    few, many = (choose(counts.items(), key=lambda pair: pair[1]) for choose in (min, max))
    print(f"classes  {len(counts)}, from {few[1]} ({few[0]}) to {many[1]} videos ({many[0]})")
    for failure in summary["unusable"][: cli.SHOWN]:
        print(f"unusable {failure['path']}: {failure['cause']}")
    if unusable > cli.SHOWN:
        print(f"unusable {unusable - cli.SHOWN} more, which --json lists")


def _stats_parser() -> Any:
    parser = cli.make_parser("data stats", "Say what a list holds: how even its classes are, lengths, sizes, sources.")
    _add_list(parser)
    cli.add_workers(parser)
    cli.add_json(parser)
    return parser


def _stats(arguments: Any) -> int:
    from alt_fast.data.annotations import read_list
    from alt_fast.data.stats import describe, lines

    videos, classes = read_list(
        arguments.list, arguments.classes, arguments.root, arguments.subset or "train", numbers=True
    )
    stats = describe(videos, classes, arguments.workers, arguments.timeout)
    print(json.dumps(stats, indent=2) if arguments.json else "\n".join(lines(stats)))
    return 1 if stats["unusable"] else 0


def _split_parser() -> Any:
    parser = cli.make_parser(
        "data split",
        "Write DIR/train.csv and DIR/test.csv: a share of every class is held out, and clips of one source, as their "
        "names tell (v_YoYo_g01_c02, ID_000010_000020), stay together.",
    )
    _add_list(parser)
    cli.add_out(parser, "DIR", "folder to write to")
    parser.add_argument("--test-size", type=float, metavar="SHARE", help="of every class to hold out (default 0.2)")
    parser.add_argument("--seed", type=int, default=0, help="draws what is held out (default 0)")
    return parser


def _split(arguments: Any) -> int:
    from alt_fast.data.annotations import LIST_COLUMNS, list_rows, read_list, write_list
    from alt_fast.data.split import TEST_SIZE, split
    from alt_fast.files import check_not_others, make_folder

    share = TEST_SIZE if arguments.test_size is None else arguments.test_size
    if not 0 < share < 1:
        raise ArgumentError(f"--test-size must be in (0, 1), got {share:g}")
    check_seed("--seed", arguments.seed)
    videos, classes = read_list(
        arguments.list, arguments.classes, arguments.root, arguments.subset or "train", numbers=True
    )
    train, test = split(videos, share, arguments.seed)
    if not test:
        raise RunError(f"no class of {arguments.list} has videos of two sources, so none can be held out")
    make_folder(arguments.out)
    parts = {"train": train, "test": test}
    tables = {arguments.out / f"{name}.csv": list_rows(part, classes) for name, part in parts.items()}
    check_not_others(tables, LIST_COLUMNS)
    for name, part in parts.items():
        write_list(arguments.out / f"{name}.csv", part, classes)
        print(f"{len(part)} videos ({len(part) / len(videos):.1%}) in {arguments.out / f'{name}.csv'}")
    return 0


def _merge_parser() -> Any:
    parser = cli.make_parser("data merge", "Write one list of several. Classes of the same name are one.")
    _add_list(parser, nargs="+")
    cli.add_out(parser, "FILE", "list to write (.csv)")
    return parser


def _merge(arguments: Any) -> int:
    from alt_fast.data.annotations import LIST_COLUMNS, list_rows, merge_lists, read_list, write_list
    from alt_fast.files import check_not_others, make_folder

    if arguments.out.suffix != ".csv":
        raise ArgumentError(f"--out must end in .csv, got {arguments.out}")
    lists = {
        path: read_list(path, arguments.classes, arguments.root, arguments.subset or "train") for path in arguments.list
    }
    videos, classes, again = merge_lists(lists)
    make_folder(arguments.out.parent)
    check_not_others({arguments.out: list_rows(videos, classes)}, LIST_COLUMNS)
    write_list(arguments.out, videos, classes)
    print(f"{len(videos)} videos of {len(classes)} classes in {arguments.out}; {again} were listed again")
    return 0


def _browse_parser() -> Any:
    parser = make_settings_parser("data browse", "Write a contact sheet (PNG) of augmented clips of a list.")
    _add_list(parser)
    cli.add_out(parser, "FILE", "picture to write")
    parser.add_argument("--count", type=int, default=8, help="clips (default 8)")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip (default 8)")
    parser.add_argument("--size", type=int, default=112, help="pixels of a frame's side (default 112)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the clips and their augmentation (default 0)")
    parser.add_argument("--epoch", type=int, default=0, help="another epoch, other augmentation (default 0)")
    parser.add_argument("--test", action="store_true", help="views as in testing, not augmented")
    cli.add_loader(parser)
    parser.add_class_arguments(AugmentConfig, "augment")
    return parser


def _browse(arguments: Any) -> int:
    import torch

    from alt_fast.data.annotations import read_list
    from alt_fast.data.browse import contact_sheet, describe
    from alt_fast.data.dataset import NO_LABEL, EvalClips, TrainClips
    from alt_fast.data.loader import Loader, open_backend
    from alt_fast.data.rng import Stream, generator
    from alt_fast.files import write_atomically

    for name, least in (("count", 1), ("frames", 1), ("size", 1), ("epoch", 0)):
        if getattr(arguments, name) < least:
            raise ArgumentError(f"--{name} must be >= {least}, got {getattr(arguments, name)}")
    check_seed("--seed", arguments.seed)
    cli.check_out(arguments)
    config = arguments.augment
    videos, classes = read_list(arguments.list, arguments.classes, arguments.root, arguments.subset or "train")
    chosen = generator(arguments.seed, Stream.SHUFFLE, arguments.epoch).permutation(len(videos))[: arguments.count]
    spec = ClipSpec(arguments.frames, (arguments.size, arguments.size), config)
    clips = EvalClips(videos, spec) if arguments.test else TrainClips(videos, spec, arguments.seed)
    keys = [(int(i), 0) if arguments.test else (arguments.epoch, int(i)) for i in chosen]
    backend, why = open_backend(arguments.loader, clips, torch.device("cpu"))
    (batch,) = Loader(clips, [keys], backend, Loading(arguments.loader))
    labels = ["no video" if label == NO_LABEL else classes[label] for label in batch.label.tolist()]
    captions = [f"{label}: {describe(clips.record(key))}" for label, key in zip(labels, keys, strict=True)]
    sheet = contact_sheet(batch, captions, config.normalize)
    write_atomically(arguments.out, lambda partial: sheet.save(partial, "PNG"))
    print(f"{len(keys)} clips in {arguments.out} (loader {why})")
    for failure in batch.failures:
        print(f"unreadable: {failure.path}: {failure.cause}", file=sys.stderr)
    return 1 if batch.failures else 0


def _shard_parser() -> Any:
    parser = cli.make_parser(
        "data shard",
        "Pack a list of videos into tar archives with an index. Training and testing take the list it "
        "writes like any other, and see the same clips. With --index, LIST are archives that exist already.",
    )
    _add_list(parser, nargs="+")
    cli.add_out(parser, "DIR", "folder to write to", required=False)
    parser.add_argument("--name", help="of the archives and the new list; default: the list's own")
    parser.add_argument("--max-mb", type=int, metavar="MB", help="size of an archive (default 1024)")
    parser.add_argument("--index", action="store_true", help="only index WebDataset archives that exist already")
    return parser


def _shard(arguments: Any) -> int:
    from alt_fast.data.annotations import read_list
    from alt_fast.data.shard import pack, write_index

    if arguments.index:
        for name in ("out", "name", "classes", "root", "subset", "max_mb"):
            if getattr(arguments, name) is not None:
                option = name.replace("_", "-")
                raise ArgumentError(f"--{option} has no effect on --index, which only indexes archives that exist")
        for archive in arguments.list:
            write_index(Path(archive))
        return 0
    max_mb = 1024 if arguments.max_mb is None else arguments.max_mb
    if arguments.out is None or len(arguments.list) != 1 or max_mb < 1:
        raise ArgumentError("packing takes one LIST, --out DIR, and --max-mb of at least 1")
    (path,) = arguments.list
    name = Path(os.path.abspath(path)).stem if arguments.name is None else arguments.name
    if not name or "*" in name or "/" in name:
        raise ArgumentError(f"--name must be given, and hold neither * nor /, got {name!r}")
    videos, classes = read_list(path, arguments.classes, arguments.root, arguments.subset or "train")
    failures = pack(videos, classes, name, arguments.out, max_mb * 2**20)
    packed = len(videos) - len(failures)
    print(f"{packed} of {len(videos)} videos in {arguments.out / name}-*.tar, listed in {name}.csv")
    for video, cause in failures.items():
        print(f"not packed: {video}: {cause}", file=sys.stderr)
    return 1 if failures else 0


def _generate_parser() -> Any:
    parser = cli.make_parser("data generate", "Write Motion Shapes, the generated dataset.")
    cli.add_out(parser, "DIR", "folder to write to")
    for name, value in asdict(MotionShapesConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value}")
    return parser


def _generate(arguments: Any) -> int:
    from alt_fast.data.motion_shapes.generate import generate

    settings = vars(arguments)
    generate(settings.pop("out"), MotionShapesConfig(**settings))
    return 0


_RUN = {
    "check": (_check_parser, _check),
    "stats": (_stats_parser, _stats),
    "split": (_split_parser, _split),
    "merge": (_merge_parser, _merge),
    "browse": (_browse_parser, _browse),
    "shard": (_shard_parser, _shard),
    "generate": (_generate_parser, _generate),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a video could not be used."""
    command, rest = cli.choose("alt-fast data", "Look at videos and pack them.", COMMANDS, argv)
    return cli.run(*_RUN[command], rest)


if __name__ == "__main__":
    sys.exit(main())
