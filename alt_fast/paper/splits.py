"""Seeded draws of the paper's few-shot and zero-shot protocols, written to disk as lists of videos."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from alt_fast.data.annotations import (
    LIST_COLUMNS,
    Video,
    keep_classes,
    list_rows,
    name_key,
    read_list,
    read_names,
    write_list,
)
from alt_fast.data.rng import Stream, generator
from alt_fast.errors import RunError
from alt_fast.files import check_not_others, make_folder

RENAMED = {
    "changing wheel (not on bike)": "changing wheel",
    "cooking sausages (not on barbeque)": "cooking sausages",
    "dyeing hair": "dying hair",
    "hugging (not baby)": "hugging",
    "inflating balloons": "balloon blowing",
    "making the bed": "making bed",
    "opening bottle (not wine)": "opening bottle",
    "person collecting garbage": "garbage collecting",
    "throwing ball (not baseball or american football)": "throwing ball",
    "tying necktie": "tying tie",
    "waking up": "baby waking up",
}
"""Classes of Kinetics-600 and -700 that Kinetics-400 has under another, or a slightly wider or narrower, name."""


def draw_shots(videos: Sequence[Video], names: Sequence[str], shots: int, seed: int) -> list[Video]:
    """Return `shots` videos of every class, by class. Of one seed, more shots contain fewer.

    Raises RunError for a class with fewer videos.
    """
    drawn = []
    for label, name in enumerate(names):
        own = [video for video in videos if video.label == label]
        if len(own) < shots:
            raise RunError(f"class {name!r} has {len(own)} videos, {shots} shots were asked for")
        order = generator(seed, Stream.FEW_SHOT, sample=label).permutation(len(own))
        drawn += [own[index] for index in order[:shots]]
    return drawn


def write_shots(
    path: str | Path,
    classes: str | Path | None,
    root: str | Path | None,
    shots: Sequence[int],
    seed: int,
    out: Path,
    replace: bool = False,
) -> dict[Path, list[Video]]:
    """Write `out`/K-shot-seedS.csv for each number of shots K, drawn from the list at `path`; returns their videos.

    Raises FileError where other lists are there, unless they are to be replaced.
    """
    videos, names = read_list(path, classes, root, "train")
    drawn = {out / f"{count}-shot-seed{seed}.csv": draw_shots(videos, names, count, seed) for count in shots}
    _write(drawn, names, replace)
    return drawn


def unseen_classes(names: Iterable[str], seen: Iterable[str], renamed: Mapping[str, str] | None = None) -> list[str]:
    """Return the names that are not among `seen`, by `name_key`, sorted. renamed: other names of seen classes."""
    known = {name_key(name) for name in seen}
    known |= {name_key(new) for new, old in (renamed or {}).items() if name_key(old) in known}
    return sorted(name for name in names if name_key(name) not in known)


def write_unseen(
    path: str | Path,
    classes: str | Path | None,
    root: str | Path | None,
    unseen: Sequence[str],
    count: int,
    seed: int,
    out: Path,
) -> dict[Path, list[Video]]:
    """Write `out`/unseen-seedS.csv with the videos of `count` of the unseen classes; returns them.

    Raises RunError when there are fewer classes, and FileError where another list is there.
    """
    if len(unseen) < count:
        raise RunError(f"{path} has {len(unseen)} unseen classes, {count} were asked for")
    order = generator(seed, Stream.UNSEEN).permutation(len(unseen))
    kept = {unseen[index] for index in order[:count]}
    videos, names = read_list(path, classes, root, "test")
    chosen = [video for video in videos if names[video.label] in kept]
    drawn = {out / f"unseen-seed{seed}.csv": chosen}
    _write(drawn, names)
    return drawn


def tests_of(
    lists: Sequence[str], classes: str | None, root: str | None, chosen: Sequence[str] | None
) -> list[tuple[str, list[Video], list[str]]]:
    """Return (name, videos, class names) of every test list; with files of class names, of every list and file.

    chosen: files of class names for `read_names`, as the splits of Kinetics-600 are published: one name a line or
    `id,name` CSV. The classes that a file names are those of the test.
    """
    tests = []
    for path in lists:
        videos, names = read_list(path, classes, root, "test")
        if chosen is None:
            tests.append((path, videos, names))
        else:
            tests += [(f"{path}, {file}", *keep_classes(videos, names, read_names(file), file)) for file in chosen]
    return tests


def _write(drawn: Mapping[Path, Sequence[Video]], names: Sequence[str], replace: bool = False) -> None:
    if not replace:
        check_not_others({path: list_rows(videos, names) for path, videos in drawn.items()}, LIST_COLUMNS)
    for path, videos in drawn.items():
        make_folder(path.parent)
        write_list(path, videos, names)
