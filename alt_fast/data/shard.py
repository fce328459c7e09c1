"""Pack a list of videos into tar archives (WebDataset's layout) with an index: few large files for slow storage.

alt-fast data shard train.csv --classes classes.csv --out shards
alt-fast train --data.train shards/train.csv --data.test shards/val.csv --data.classes shards/classes.csv ...
"""

import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from alt_fast.data.annotations import CLASS_COLUMNS, LIST_COLUMNS, Video
from alt_fast.data.storage import StorageError, locate
from alt_fast.data.tables import content_lines, is_video, read_text
from alt_fast.errors import FileError
from alt_fast.files import check_not_others, make_folder, read_json, write_atomically, write_csv, write_text
from alt_fast.progress import Progress

Numbered = tuple[int, Video]


def pack(videos: Sequence[Video], classes: Sequence[str], name: str, folder: Path, max_bytes: int) -> dict[str, str]:
    """Write FOLDER/NAME-00000.tar, ..., each with its index, FOLDER/NAME.csv and FOLDER/classes.csv.

    A sample is NUMBER/NAME.EXTENSION, the file as it is, and NUMBER/NAME.json: {"path", "label", "class"}. Archives
    that hold these videos already stay, so an interrupted run goes on. Returns the causes of files that could not be
    packed, by path.
    """
    make_folder(folder)
    listed = folder / f"{name}.csv"
    packed_before = listed.exists() and _is_of_archives(listed, name)
    if listed.exists() and not packed_before:
        raise FileError(f"{listed} is no list of archives {name}-*.tar: choose another --out or --name")
    if not packed_before or any(not path.name.startswith(f"{name}-") for path in folder.glob("*.tar.json")):
        check_not_others({folder / "classes.csv": enumerate(classes)}, CLASS_COLUMNS)
    for left in folder.glob(f".{name}-*.partial*"):  # by a process that was killed
        left.unlink()
    failures: dict[str, str] = {}
    rows = []
    groups = list(enumerate(_groups(videos, max_bytes, failures)))
    for number, group in Progress(groups, name, "archive"):
        archive = folder / f"{name}-{number:05}.tar"
        names = [f"{i:08}/{_stem(video.path)}{video.path.suffix}" for i, video in group]
        if not _is_complete(archive, group, names, classes):
            _write(archive, group, names, classes)
        rows += [
            (f"{archive.name}/{member}", classes[video.label]) for member, (_, video) in zip(names, group, strict=True)
        ]
    write_csv(listed, LIST_COLUMNS, rows)
    write_csv(folder / "classes.csv", CLASS_COLUMNS, enumerate(classes))
    return failures


def _is_of_archives(path: Path, name: str) -> bool:
    """Return whether a list names nothing but samples of archives NAME-00000.tar, ..."""
    _, *rows = [line for _, line in content_lines(read_text(path))] or [""]
    return all(re.match(rf"{re.escape(name)}-\d{{5,}}\.tar/", row.lstrip('"')) for row in rows)


def _groups(videos: Sequence[Video], max_bytes: int, failures: dict[str, str]) -> Iterator[list[Numbered]]:
    """The videos that exist, with their numbers, by archive."""
    group: list[Numbered] = []
    filled = 0
    for number, video in enumerate(videos):
        try:
            size = locate(video.path).size
        except StorageError as e:
            failures[str(video.path)] = str(e)
            continue
        if group and filled + size > max_bytes:
            yield group
            group, filled = [], 0
        group.append((number, video))
        filled += size
    if group:
        yield group


def _is_complete(archive: Path, group: Sequence[Numbered], names: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether the archive holds these videos under these labels; its index is written last, when it is whole."""
    index = archive.with_name(archive.name + ".json")
    if not index.is_file() or not archive.is_file():
        return False
    try:
        if list(read_json(index)) != list(names):
            return False
        with tarfile.open(archive, "r:") as tar:
            return all(
                tar.getmember(name).size == locate(video.path).size
                and _content(tar, _json_of(name)) == _about(video, classes)
                for name, (_, video) in zip(names, group, strict=True)
            )
    except (FileError, OSError, tarfile.TarError, KeyError):
        return False


def _stem(path: Path) -> str:
    """The name of a video, without dots, at the first of which WebDataset ends it, and what no list can hold."""
    return re.sub(r"[.\x00-\x1f\x7f]", "_", os.fsencode(path.stem).decode("utf-8", "replace"))


def _json_of(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".json"))


def _about(video: Video, classes: Sequence[str]) -> bytes:
    return json.dumps({"path": str(video.path), "label": video.label, "class": classes[video.label]}).encode()


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    return b"" if file is None else file.read()


def _write(archive: Path, group: Sequence[Numbered], names: Sequence[str], classes: Sequence[str]) -> None:
    def write(partial: Path) -> None:
        with tarfile.open(partial, "w") as tar:
            for name, (_, video) in zip(names, group, strict=True):
                _add(tar, name, locate(video.path).read().tobytes())
                _add(tar, _json_of(name), _about(video, classes))

    write_atomically(archive, write)
    write_index(archive, set(names))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_index(archive: Path, names: set[str] | None = None) -> None:
    """Write ARCHIVE.json, {"NAME": [offset, size]}, of the members called `names`, or of all. Raises StorageError.

    Names are as paths have them: `tar -C DIR .` calls a.mp4 "./a.mp4". Of two members of one name the last one counts,
    as where they are extracted, and a link stands for what it names in the archive. What has no bytes of its own there,
    a sparse file or a link to elsewhere, is left out, or where it is called as a video is, refused.
    """
    members: dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                name = _in_archive(member.name)
                again = member.islnk() and _in_archive(member.linkname) == name  # tar was given one file twice
                if (names is None or member.name in names) and not again:
                    members[name] = member
    except (OSError, tarfile.TarError) as e:
        raise StorageError(f"{archive} is no tar archive: {e}") from e
    places = {}
    for name in members:
        target = _target(name, members)
        if target is not None:
            places[name] = (target.offset_data, target.size)
        elif is_video(name):
            raise StorageError(f"{archive}: {name} has no bytes of its own there, as links and sparse files have none")
    write_text(archive.with_name(archive.name + ".json"), json.dumps(places))


def _target(name: str, members: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    """Return the plain file that a member is, or links to; None where there is none."""
    for _ in members:  # links may be a circle
        member = members.get(name)
        if member is None or not (member.issym() or member.islnk()):
            return member if member is not None and member.isfile() and not member.issparse() else None
        beside = posixpath.dirname(member.name) if member.issym() else ""
        name = _in_archive(posixpath.join(beside, member.linkname))
    return None


def _in_archive(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
