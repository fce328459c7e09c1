"""Scan a list of videos: codecs, sizes, frame rates, classes, and every file that cannot be used.

alt-fast data check train.csv --classes classes.csv --workers 8
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from alt_fast.data.annotations import Video
from alt_fast.data.batch import Failure, kinds
from alt_fast.data.decode import VideoError, decode_frames, index_video, open_video
from alt_fast.data.sampling import segment_positions
from alt_fast.data.storage import StorageError, locate
from alt_fast.data.workers import LostError, Workers
from alt_fast.progress import Progress

T = TypeVar("T")

_SAMPLES = 8  # frames decoded of each file, spread as training takes them


class Facts(NamedTuple):
    """About one file.

    rate: frames per second, None where the header has none. late: frames before the first keyframe.
    """

    codec: str
    size: str
    frames: int
    rate: float | None
    bytes: int
    late: int


def inspect(path: str) -> Facts:
    """Index a file and decode frames all over it. Raises VideoError."""
    index = index_video(path)
    decode_frames(path, index, index.frames_at(segment_positions(_SAMPLES)), lambda planes: planes[0][:1, :1].copy())
    rate = None if index.rate is None else round(index.rate, 2)
    return Facts(index.codec, f"{index.width} x {index.height}", index.count, rate, locate(path).size, index.first)


def scan(videos: Sequence[Video], workers: int, timeout: float) -> tuple[list[Facts], list[Failure]]:
    """Inspect all files, in `workers` processes."""
    return of_all(inspect, "check", videos, workers, timeout)


def find_missing(videos: Sequence[Video], workers: int, timeout: float) -> list[Failure]:
    """Return the videos that are not there, and files that hold no video, by opening all."""
    return of_all(open_video, "look for videos", videos, workers, timeout)[1]


def find_absent(videos: Sequence[Video]) -> list[Failure]:
    """Return the videos that are not there, and empty files, by looking for all; none is opened."""
    failures = []
    for video in Progress(videos, "look for videos", "video"):
        try:
            locate(video.path)
        except StorageError as e:
            failures.append(Failure(str(video.path), str(e)))
    return failures


def of_all(
    function: Callable[[str], T], name: str, videos: Sequence[Video], workers: int, timeout: float
) -> tuple[list[T], list[Failure]]:
    """Call a function with every path; returns what it returns, and where it raised VideoError, hung or crashed."""
    found, failures = [], []
    with Workers(function, workers, timeout) as pool:
        pending = [(video.path, pool.submit(str(video.path))) for video in videos]
        for path, result in Progress(pending, name, "video"):
            try:
                found.append(result.result())
            except VideoError as e:
                failures.append(Failure(str(path), e.cause))
            except LostError as e:
                failures.append(Failure(str(path), str(e)))
    return found, failures


def summarize(
    videos: Sequence[Video], classes: Sequence[str], facts: Sequence[Facts], failures: Sequence[Failure]
) -> dict[str, Any]:
    """Counts, most frequent first; frames as [least, median, most].

    late: files that begin before their first keyframe. causes: of the unusable ones, by kind.
    """
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
        "late": sum(fact.late > 0 for fact in facts),
        "causes": kinds(failures),
        "unusable": [failure._asdict() for failure in failures],
    }
