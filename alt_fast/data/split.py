"""Hold out a part of a list for testing: its share of every class, and nothing of one source on both sides."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from alt_fast.data.annotations import Video
from alt_fast.data.rng import Stream, generator

TEST_SIZE = 0.2
"""The share that is held out where nothing else is asked for."""

_UCF, _KINETICS = re.compile(r"(.+_g\d+)_c\d+"), re.compile(r"(.+)_(\d{6})_(\d{6})")
_LONGEST = 3600  # seconds of a clip; what lies further apart is a date and a time


def source(path: Path) -> str:
    """Return what a clip was cut from, as far as its name tells; else the clip itself.

    UCF-101's v_YoYo_g01_c02 is of v_YoYo_g01, Kinetics' ID_000010_000020 of ID, in whatever folder.
    """
    if found := _UCF.fullmatch(path.stem):
        return found[1]
    if (found := _KINETICS.fullmatch(path.stem)) and 0 < int(found[3]) - int(found[2]) <= _LONGEST:
        return found[1]
    return str(path)


def by_source(videos: Sequence[Video]) -> dict[str, list[Video]]:
    """Return the videos of each source, by its name."""
    groups = defaultdict(list)
    for video in videos:
        groups[source(video.path)].append(video)
    return dict(sorted(groups.items()))


def split(videos: Sequence[Video], test_size: float, seed: int) -> tuple[list[Video], list[Video]]:
    """Return the videos to train and to test on, in their order.

    test_size: share of every class to test on, as near as whole sources allow: sources are drawn from the seed, and one
    is held out when that brings its classes nearer to their shares. Of every class something is left to train on; of a
    class of one source only, nothing is held out. The order of the list changes nothing.
    """
    groups = list(by_source(videos).values())
    counts = [Counter(video.label for video in group) for group in groups]
    total = Counter(video.label for video in videos)
    held: Counter[int] = Counter()
    tested: set[int] = set()

    def leaves_some(place: int) -> bool:
        return all(held[label] + count < total[label] for label, count in counts[place].items())

    def distance(more: Counter[int], place: int) -> float:
        return sum(abs(held[label] + more[label] - test_size * total[label]) for label in counts[place])

    order = generator(seed, Stream.SPLIT).permutation(len(groups)).tolist()
    for place in order:
        if leaves_some(place) and distance(counts[place], place) < distance(Counter(), place):
            tested.add(place)
            held += counts[place]
    for label in sorted(total):  # classes of few or large sources
        if held[label]:
            continue
        candidates = [place for place in order if counts[place][label] and leaves_some(place)]
        if candidates:
            smallest = min(candidates, key=lambda place: len(groups[place]))
            tested.add(smallest)
            held += counts[smallest]
    chosen = {video.path for place in tested for video in groups[place]}
    return [v for v in videos if v.path not in chosen], [v for v in videos if v.path in chosen]
