"""Pictures to look at models with: of files, folders and videos, or drawn."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from alt_fast.data.decode import decode_clip
from alt_fast.data.motion_shapes.level2 import captioned_frame
from alt_fast.data.tables import is_video
from alt_fast.errors import ArgumentError, FileError
from alt_fast.pictures import as_rgb

T = TypeVar("T")

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp"))


def read_images(names: Sequence[str | Path], count: int) -> list[Image.Image]:
    """Return `count` pictures, or all there are if fewer, taken evenly from what these names stand for.

    names: picture files, videos, and folders of both (their own files only, by name). Videos share evenly what the
    pictures leave of `count`, each by frames over its whole length; `count` pictures leave them nothing. Raises
    ArgumentError for no pictures, FileError naming one that cannot be read, VideoError for a video.
    """
    paths = [path for name in names for path in _files(Path(name))]
    if not paths or count < 1:
        raise ArgumentError(f"there must be a picture or a video at least in {', '.join(map(str, names))}")
    videos = sum(is_video(path.name) for path in paths)
    share = -(-max(0, count - (len(paths) - videos)) // videos) if videos else 0
    pictures = [path for path in paths if not is_video(path.name)]
    found = [read_image(path) for path in _spread(pictures, count)]
    for path in paths:
        if share and is_video(path.name):
            found += map(Image.fromarray, decode_clip(path, [(i + 0.5) / share for i in range(share)]))
    return _spread(found, count)


def read_image(path: Path) -> Image.Image:
    """Return a picture, RGB, turned as its camera meant it. Raises FileError."""
    try:
        with Image.open(path) as file:
            return as_rgb(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # SyntaxError: PNG's later chunks
        raise FileError(f"cannot read image {path}: {e}") from e


def drawn_images(count: int, size: int) -> list[Image.Image]:
    """Return frames of Motion Shapes 2, all different, always the same ones: `count` of `size` pixels."""
    return [Image.fromarray(np.asarray(captioned_frame(0, index, size).image)) for index in range(count)]


def _files(name: Path) -> Iterator[Path]:
    if not name.is_dir():
        yield name
        return
    try:
        inside = sorted(Path(entry.path) for entry in os.scandir(name) if entry.is_file())
    except OSError as e:
        raise FileError(f"cannot read folder {name}: {e.strerror}") from e
    yield from (path for path in inside if path.suffix.casefold() in SUFFIXES or is_video(path.name))


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly."""
    if len(items) <= count:
        return list(items)
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]
