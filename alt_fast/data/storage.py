"""Where the bytes of a video lie: a file of its own, or a part of a tar archive.

A path ARCHIVE.tar/NAME means the member NAME of the archive, which ARCHIVE.tar.json lists as {"NAME": [offset, size]}.
One large file is read where thousands of small ones would be slow, and still at any place.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alt_fast.errors import AltFastError


class StorageError(AltFastError, ValueError):
    """There are no bytes to read; the message says why."""


@dataclass(frozen=True)
class Location:
    """`size` bytes of `path` from `offset` on; the whole file when `member` is None."""

    path: Path
    offset: int
    size: int
    member: str | None = None

    def url(self) -> str:
        """For FFmpeg."""
        file = f"file:{self.path}"  # else "12:30.mp4" would be of the protocol "12"
        return file if self.member is None else f"subfile,,start,{self.offset},end,{self.offset + self.size},,:{file}"

    def read(self) -> NDArray[np.uint8]:
        """All bytes."""
        return np.fromfile(self.path, np.uint8, self.size, offset=self.offset)


def locate(path: str | Path) -> Location:
    """Find a video. Raises StorageError for what is missing, empty, or not in its archive."""
    path = Path(path)
    name, end = str(path), str(path).find(".tar/")
    while end >= 0 and os.path.isdir(name[: end + len(".tar")]):  # folders may have such names
        end = name.find(".tar/", end + 1)
    if end >= 0:
        return _locate_member(Path(name[: end + len(".tar")]), name[end + len(".tar/") :])
    try:
        if not path.is_file():
            raise StorageError("not a regular file" if path.exists() else "no such file")
        size = path.stat().st_size
    except OSError as e:
        raise StorageError(e.strerror or str(e)) from e
    if size == 0:
        raise StorageError("empty file (0 bytes)")
    return Location(path, 0, size)


def _locate_member(archive: Path, member: str) -> Location:
    if not archive.is_file():
        raise StorageError(f"no such archive: {archive.name}")
    index = archive.with_name(archive.name + ".json")
    if not index.is_file():
        raise StorageError(f"the archive has no index {index.name}; alt-fast data shard makes archives with one")
    try:
        offset, size = _read_index(index)[member]
    except KeyError as e:
        raise StorageError(f"the archive has no member {member}") from e
    if size == 0:
        raise StorageError("empty file (0 bytes)")
    if offset + size > archive.stat().st_size:
        raise StorageError(f"the archive is truncated: it ends before {member} does")
    return Location(archive, offset, size, member)


@lru_cache(maxsize=4096)
def _read_index(path: Path) -> dict[str, tuple[int, int]]:
    try:
        return {name: (offset, size) for name, (offset, size) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise StorageError(f"{path.name} is no index of an archive: {e}") from e
