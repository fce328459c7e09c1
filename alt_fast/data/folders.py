"""A folder of videos with a folder for each class, read as a list."""

import os
from collections import Counter
from pathlib import Path

from alt_fast.data.tables import AnnotationError, Pair, is_video

HIDDEN, DEEPER = "hidden, beside the classes or no videos", "in folders inside the classes"
"""Causes to pass files over."""


def read_folders(folder: Path) -> tuple[list[Pair], Counter[str]]:
    """Return FOLDER/LABEL/VIDEO as rows, by label and name, and how many files were passed over, by cause.

    What is hidden, and what has no suffix of a video's, is passed over; so are files beside the classes, and videos in
    folders inside them. Raises AnnotationError for a folder without classes, a class without videos and names that no
    list can hold.
    """
    beside, classes = _entries(folder)
    if not classes:
        found = "videos, but no folders" if any(map(is_video, beside)) else "no folders"
        raise AnnotationError(f"{folder} holds {found}: expected a folder for each class, {folder}/LABEL/*.mp4")
    rows, passed_over = [], Counter({HIDDEN: len(beside)})
    for label in classes:
        files, inner = _entries(folder / label)
        videos = list(filter(_is_shown, files))
        if not videos:
            deeper = f" but folders, as {inner[0]}: if those are classes, name {folder / label}" if inner else ""
            raise AnnotationError(f"{folder / label} holds no videos{deeper}")
        rows += [Pair(str(folder / label), f"{_writable(label)}/{name}", label) for name in map(_writable, videos)]
        passed_over[HIDDEN] += len(files) - len(videos)
        passed_over[DEEPER] += sum(_count_below(folder / label / name) for name in inner)
    return rows, +passed_over


def _count_below(folder: Path) -> int:
    """How many videos a folder inside a class holds, at any depth."""
    count = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        count += sum(map(_is_shown, files))
    return count


def _is_shown(name: str) -> bool:
    return is_video(name) and not name.startswith(".")


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files, and of the folders that are not hidden."""
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry.name, _is_folder(entry)) for entry in found)
    except OSError as e:
        raise AnnotationError(f"cannot read folder {folder}: {e.strerror or e}") from e
    folders = [name for name, is_folder in entries if is_folder and not name.startswith(".")]
    return [name for name, is_folder in entries if not is_folder], folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """What `entry.is_dir` says, but of a link in circles, of which it raises; asking the file system of links alone."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _writable(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as e:
        raise AnnotationError(f"the file name {name!r} is not UTF-8: rename it") from e
    return name
