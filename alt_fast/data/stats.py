"""What a list holds, without decoding it: how even its classes are, how long its videos, how many are of one source.

alt-fast data stats train.csv
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from alt_fast.data.annotations import Video
from alt_fast.data.batch import kinds
from alt_fast.data.check import of_all
from alt_fast.data.decode import index_video
from alt_fast.data.split import by_source
from alt_fast.data.storage import locate


class Measures(NamedTuple):
    """Of one file. seconds: None where its header has no frame rate."""

    seconds: float | None
    size: str
    bytes: int


def measure(path: str) -> Measures:
    """List the packets of a file. Raises VideoError."""
    index = index_video(path)
    seconds = None if index.rate is None else index.count / index.rate
    return Measures(seconds, f"{index.width} x {index.height}", locate(path).size)


def describe(videos: Sequence[Video], classes: Sequence[str], workers: int, timeout: float) -> dict[str, Any]:
    """Return the numbers of a list, from all its files.

    balance: exp of the entropy of the classes' shares, over their number: 1 where all have the same, 1 / classes where
    one has all. seconds: [least, median, most, sum], None where no file tells. sources: see `split.source`.
    """
    measures, failures = of_all(measure, "stats", videos, workers, timeout)
    counts = Counter(video.label for video in videos)
    shares = [count / len(videos) for count in counts.values()]
    seconds = [one.seconds for one in measures if one.seconds is not None]
    sources = [len(group) for group in by_source(videos).values()]
    return {
        "videos": len(videos),
        "classes": {name: counts[label] for label, name in enumerate(classes)},
        "balance": math.exp(-sum(share * math.log(share) for share in shares)) / len(classes),
        "seconds": [min(seconds), statistics.median(seconds), max(seconds), sum(seconds)] if seconds else None,
        "sizes": dict(Counter(one.size for one in measures).most_common()),
        "bytes": sum(one.bytes for one in measures),
        "sources": len(sources),
        "largest_source": max(sources),
        "unusable": [failure._asdict() for failure in failures],
        "causes": kinds(failures),
    }


def lines(stats: dict[str, Any]) -> list[str]:
    """Return them as people read them."""
    counts = stats["classes"]
    few, many = (choose(counts, key=counts.__getitem__) for choose in (min, max))
    said = [
        f"videos   {stats['videos']}, {stats['bytes'] / 1e6:,.1f} MB",
        f"classes  {len(counts)}, from {counts[few]} ({few}) to {counts[many]} videos ({many}), "
        f"balance {stats['balance']:.2f} of 1",
        f"sources  {stats['sources']}, of up to {stats['largest_source']} videos",
    ]
    if stats["seconds"]:
        least, middle, most, total = stats["seconds"]
        said.append(f"seconds  {least:.1f} to {most:.1f}, median {middle:.1f}; {total / 3600:.1f} hours in all")
    sizes = list(stats["sizes"].items())
    said.append("sizes    " + ", ".join(f"{size}: {count}" for size, count in sizes[:8]))
    if len(sizes) > 8:
        said[-1] += f", and {len(sizes) - 8} more"
    return said + [f"unusable {count}: {kind}" for kind, count in stats["causes"].items()]
