"""Scan a list of videos: codecs, sizes, frame rates, classes, and every file that cannot be used.

python -m alt_fast.data.check train.csv --classes classes.csv --workers 8
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.decode import VideoError, decode_frames, index_video
from alt_fast.data.loader import Failure
from alt_fast.data.sampling import segment_positions
from alt_fast.data.storage import locate
from alt_fast.data.workers import LostError, Workers

_SAMPLES = 8  # frames decoded of each file, spread as training takes them


class Facts(NamedTuple):
    """About one file. rate: frames per second, None where the header has none."""

    codec: str
    size: str
    frames: int
    rate: float | None
    bytes: int


def inspect(path: str) -> Facts:
    """Index a file and decode frames all over it. Raises VideoError."""
    index = index_video(path)
    decode_frames(path, index, index.frames_at(segment_positions(_SAMPLES)))
    rate = None if index.rate is None else round(index.rate, 2)
    return Facts(index.codec, f"{index.width} x {index.height}", index.count, rate, locate(path).size)


def scan(videos: Sequence[Video], workers: int, timeout: float) -> tuple[list[Facts], list[Failure]]:
    """Inspect all files, in `workers` processes."""
    facts, failures = [], []
    with Workers(inspect, workers, timeout) as pool:
        pending = [(video.path, pool.submit(str(video.path))) for video in videos]
        for path, result in tqdm(pending, "check", unit="video", disable=None):
            try:
                facts.append(result.result())
            except VideoError as e:
                failures.append(Failure(str(path), e.cause))
            except LostError as e:
                failures.append(Failure(str(path), str(e)))
    return facts, failures


def summarize(
    videos: Sequence[Video], classes: Sequence[str], facts: Sequence[Facts], failures: Sequence[Failure]
) -> dict[str, Any]:
    """Counts, most frequent first; frames as [least, median, most]."""
    numbers = Counter(video.label for video in videos)
    frames = [fact.frames for fact in facts]
    return {
        "videos": len(videos),
        "bytes": sum(fact.bytes for fact in facts),
        "codecs": dict(Counter(fact.codec for fact in facts).most_common()),
        "sizes": dict(Counter(fact.size for fact in facts).most_common()),
        "rates": dict(Counter("none" if fact.rate is None else f"{fact.rate:g}" for fact in facts).most_common()),
        "frames": [min(frames), statistics.median(frames), max(frames)] if frames else None,
        "classes": {name: numbers[i] for i, name in enumerate(classes)},
        "unusable": [failure._asdict() for failure in failures],
    }


def print_summary(summary: dict[str, Any]) -> None:
    """A readable report."""
    print(f"{summary['videos']} videos, {summary['bytes'] / 1e6:,.1f} MB, {len(summary['unusable'])} of them unusable")
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
    for failure in summary["unusable"]:
        print(f"unusable {failure['path']}: {failure['cause']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.data.check",
        description="Scan a list of videos. Every file is indexed, and frames all over it are decoded.",
    )
    parser.add_argument("list", metavar="LIST", help="list of videos, in any form that training takes")
    parser.add_argument("--classes", metavar="FILE", help="class file, where the list does not name its classes")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--subset", choices=("train", "test"), default="train", help="rows of a list that holds both")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for one video (default 60)")
    parser.add_argument("--json", action="store_true", help="print JSON, all classes and sizes")
    arguments = parser.parse_args(argv)
    try:
        names = read_classes(arguments.classes) if arguments.classes else None
        videos, classes = read_list(arguments.list, names, arguments.root, arguments.subset)
        facts, failures = scan(videos, arguments.workers, arguments.timeout)
    except (AnnotationError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    summary = summarize(videos, classes, facts, failures)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        print_summary(summary)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
