"""Pack a list of videos into tar archives (WebDataset's layout) with an index: few large files for slow storage.

python -m alt_fast.data.shard train.csv --classes classes.csv --out shards
python -m alt_fast.train --data.train shards/train.csv --data.test shards/val.csv --data.classes shards/classes.csv ...
"""

import argparse
import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from alt_fast.data.annotations import AnnotationError, Video, read_classes, read_list
from alt_fast.data.storage import StorageError, locate

Numbered = tuple[int, Video]


def pack(videos: Sequence[Video], classes: Sequence[str], name: str, folder: Path, max_bytes: int) -> dict[str, str]:
    """Write FOLDER/NAME-00000.tar, ..., each with its index, FOLDER/NAME.csv and FOLDER/classes.csv.

    A sample is NUMBER.EXTENSION, the file as it is, and NUMBER.json: {"path", "label", "class"}. Archives that are
    complete already stay, so an interrupted run goes on. Returns the causes of files that could not be packed, by path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    rows = []
    groups = list(enumerate(_groups(videos, max_bytes, failures)))
    for number, group in tqdm(groups, name, unit="archive", disable=None):
        archive = folder / f"{name}-{number:05}.tar"
        names = [f"{i:08}{video.path.suffix}" for i, video in group]
        if not _is_complete(archive, names):
            _write(archive, group, names, classes)
        rows += [
            (f"{archive.name}/{member}", classes[video.label]) for member, (_, video) in zip(names, group, strict=True)
        ]
    _write_csv(folder / f"{name}.csv", ("path", "label"), rows)
    _write_csv(folder / "classes.csv", ("id", "name"), enumerate(classes))
    return failures


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


def _is_complete(archive: Path, names: Sequence[str]) -> bool:
    """The index is written last, when the archive is whole."""
    index = archive.with_name(archive.name + ".json")
    return index.is_file() and archive.is_file() and list(json.loads(index.read_text())) == list(names)


def _write(archive: Path, group: Sequence[Numbered], names: Sequence[str], classes: Sequence[str]) -> None:
    partial = archive.with_name(archive.name + ".partial")
    with tarfile.open(partial, "w") as tar:
        for name, (_, video) in zip(names, group, strict=True):
            content = {"path": str(video.path), "label": video.label, "class": classes[video.label]}
            _add(tar, name, locate(video.path).read().tobytes())
            _add(tar, f"{Path(name).stem}.json", json.dumps(content).encode())
    partial.replace(archive)
    write_index(archive, set(names))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_index(archive: Path, names: set[str] | None = None) -> None:
    """Write ARCHIVE.json, {"NAME": [offset, size]}, of the members called `names`, or of all. Raises StorageError."""
    try:
        with tarfile.open(archive, "r:") as tar:
            places = {m.name: (m.offset_data, m.size) for m in tar if m.isfile() and (names is None or m.name in names)}
    except (OSError, tarfile.TarError) as e:
        raise StorageError(f"{archive} is no tar archive: {e}") from e
    index = archive.with_name(archive.name + ".json")
    partial = index.with_name(index.name + ".partial")
    partial.write_text(json.dumps(places))
    partial.replace(index)


def _write_csv(path: Path, header: tuple[str, str], rows: "Sequence[tuple[str, str]] | enumerate[str]") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 1 when a file could not be packed."""
    parser = argparse.ArgumentParser(
        prog="python -m alt_fast.data.shard",
        description="Pack a list of videos into tar archives with an index. Training and testing take the list it "
        "writes like any other, and see the same clips.",
    )
    parser.add_argument("list", metavar="LIST", nargs="+", help="list of videos; with --index, tar archives")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where to write")
    parser.add_argument("--name", help="of the archives and the new list; default: the list's own")
    parser.add_argument("--classes", metavar="FILE", help="class file, where the list does not name its classes")
    parser.add_argument("--root", metavar="DIR", help="folder that video paths start from; default: the list's")
    parser.add_argument("--subset", choices=("train", "test"), default="train", help="rows of a list that holds both")
    parser.add_argument("--max-mb", type=int, default=1024, metavar="MB", help="size of an archive (default 1024)")
    parser.add_argument("--index", action="store_true", help="only index WebDataset archives that exist already")
    arguments = parser.parse_args(argv)
    if not arguments.index and (arguments.out is None or len(arguments.list) != 1 or arguments.max_mb < 1):
        parser.error("packing takes one LIST, --out DIR, and --max-mb of at least 1")
    try:
        if arguments.index:
            for archive in arguments.list:
                write_index(Path(archive))
            return 0
        (path,) = arguments.list
        classes = read_classes(arguments.classes) if arguments.classes else None
        videos, classes = read_list(path, classes, arguments.root, arguments.subset)
        name = arguments.name or Path(path).stem
        failures = pack(videos, classes, name, arguments.out, arguments.max_mb * 2**20)
    except (AnnotationError, StorageError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(
        f"{len(videos) - len(failures)} of {len(videos)} videos in {arguments.out / name}-*.tar, listed in {name}.csv"
    )
    for video, cause in failures.items():
        print(f"not packed: {video}: {cause}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
