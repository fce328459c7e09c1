"""Which videos a command is to take: files, folders, globs and lists."""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from alt_fast.data.annotations import read_paths
from alt_fast.data.tables import is_video
from alt_fast.errors import ArgumentError, FileError
from alt_fast.progress import print_aside

LIST_SUFFIXES = frozenset((".txt", ".csv", ".json"))
HIDDEN, LINKED = "hidden or no videos", "folders behind links"
"""Causes to pass over what is in a folder."""


def find_videos(
    names: Sequence[str | Path], root: str | Path | None = None, tell: Callable[[str], object] = print_aside
) -> list[Path]:
    """Return the videos that these names stand for, each once, in the order of the names.

    | name | stands for |
    |---|---|
    | a folder | all videos in it and in the folders below, sorted; neither hidden ones nor folders behind links |
    | what ends in .txt, .csv or .json | a list (`annotations.read_paths`), from `root` on |
    | what has `*`, `?` or `[` in it and is no file | files that it matches, sorted; `**`: folders, not behind links |
    | any other | a video; whether it is there shows when it is opened |

    tell: takes a line for each folder in which something was passed over, that says how much and why; what hidden
    folders hold does not count.

    Raises ArgumentError for a name that stands for no video, no names, and `root` without a list; AnnotationError for a
    list and FileError for a folder that cannot be read.
    """
    if not names:
        raise ArgumentError("videos must not be empty: name files, folders, globs or lists")
    if root is not None and not any(map(_is_list, names)):
        raise ArgumentError(f"root {root} has no effect without a list (.txt, .csv or .json)")
    found = (path for name in names for path in _find(str(name), root, tell))
    once: dict[str, Path] = {}
    for path in found:
        once.setdefault(os.path.abspath(path), path)  # a file may be spelled in two ways
    return list(once.values())


def _is_list(name: str | Path) -> bool:
    return Path(name).suffix.lower() in LIST_SUFFIXES and not os.path.isdir(name)


def _find(name: str, root: str | Path | None, tell: Callable[[str], object]) -> Sequence[Path]:
    if os.path.isdir(name):
        videos, passed_over = _walk(name)
        causes = ", ".join(f"{count} {cause}" for cause, count in passed_over.items())
        if videos and causes:
            tell(f"{name}: {len(videos)} videos; {passed_over.total()} passed over: {causes}")
        kinds = "(.mp4, .avi, .mkv and the like)" + f"; passed over: {causes}" * bool(causes)
        return _found(sorted(videos), f"the folder {name} holds no videos {kinds}")
    if _is_list(name):
        return read_paths(name, root)
    if glob.has_magic(name) and not os.path.exists(name):
        links: set[str] = set()
        found = sorted(filter(Path.is_file, set(map(Path, _matches(name, links)))))  # several `**` meet again
        linked = f"{len(links)} {LINKED}"
        if found and links:
            tell(f"{name}: {len(found)} files; passed over: {linked}")
        return _found(found, f"no file matches {name}" + f"; passed over: {linked}" * bool(links))
    return [Path(name)]


def _matches(pattern: str, links: set[str]) -> Iterator[str]:
    """What a pattern matches; `**` does not follow links, which may lead back. links: takes those to folders."""
    head, *rest = re.split(r"(?:^|(?<=/))\*\*(?:/+|$)", pattern, maxsplit=1)
    if not rest:
        yield from glob.iglob(pattern)
        return
    for base in glob.iglob(head) if head else [""]:
        for place, folders, _ in os.walk(base or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            links.update(link for name in folders if os.path.islink(link := os.path.join(place, name)))
            below = place if base else os.path.relpath(place)
            yield from _matches(os.path.join("" if below == "." else glob.escape(below), rest[0] or "*"), links)


def _walk(folder: str) -> tuple[list[Path], Counter[str]]:
    """The videos below a folder, and how much was passed over, by cause."""

    def refuse(error: OSError) -> None:
        raise FileError(f"cannot read folder {error.filename}: {error.strerror}") from error

    videos: list[Path] = []
    passed_over: Counter[str] = Counter()
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        shown = [Path(place, name) for name in files if is_video(name) and not name.startswith(".")]
        videos += shown
        passed_over[HIDDEN] += len(files) - len(shown)
        passed_over[LINKED] += sum(os.path.islink(os.path.join(place, name)) for name in folders)  # not walked into
    return videos, +passed_over


def _found(videos: Sequence[Path], complaint: str) -> Sequence[Path]:
    if not videos:
        raise ArgumentError(complaint)
    return videos
