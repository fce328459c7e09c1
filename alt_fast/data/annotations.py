"""Read lists of labelled videos: our own, and the files that public datasets are distributed with.

`read_list` recognises:

| dataset | file | video file |
|---|---|---|
| any | a folder with a folder per class | LABEL/v.mp4, with any usual suffix |
| any | `path label` lines, or CSV with columns path,label | path below the root |
| any | CSV without a header: `path,label`, `path label` (VideoMAE's, InternVideo's, V-JEPA's) | path below the root |
| Kinetics | CSV (label,youtube_id,time_start,time_end,...) or JSON | ID_START_END.mp4, or LABEL/ID_START_END.mp4 |
| UCF-101 | trainlist01.txt (`Class/v.avi 1`), testlist01.txt (`Class/v.avi`) | Class/v.avi |
| HMDB-51 | a folder of CLASS_test_splitN.txt (`v.avi 1`), given as FOLDER/*_test_splitN.txt | CLASS/v.avi, or v.avi |
| Something-Something V2 | JSON of {id, label, template} | ID.webm |

A label is a class's id or its name (in `path label` lines a single word: use CSV for names with spaces). Encodings,
delimiters and comments: `tables`.
`read_classes` takes `id,name` CSV files, UCF-101's classInd.txt and Something-Something's labels.json.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from alt_fast.data.folders import read_folders
from alt_fast.data.tables import (
    AnnotationError,
    Pair,
    content_lines,
    header,
    is_video,
    read_pairs,
    read_table,
    read_text,
)
from alt_fast.files import write_csv
from alt_fast.progress import print_aside

Subset = Literal["train", "test"]

_HMDB_FILE = re.compile(r"(.+)_test_split\d\.txt")
_UCF_TRAIN, _UCF_TEST = re.compile(r"trainlist\d\d\.txt"), re.compile(r"testlist\d\d\.txt")

KINETICS = "kinetics400"
"""Stands for a file of the class names of Kinetics-400."""


LIST_COLUMNS, CLASS_COLUMNS = ("path", "label"), ("id", "name")
"""Of lists that we write, and of class files."""


class Video(NamedTuple):
    """One labelled video: path of the file, and index of its class in the class list."""

    path: Path
    label: int


@dataclass(frozen=True)
class _Row:
    """One entry before its label is looked up. `where` names file and line; `paths` are tried in turn."""

    where: str
    paths: tuple[str, ...]
    label: str


def read_classes(path: str | Path) -> list[str]:
    """Class names in the order of their ids, as text that a person would say."""
    return _numbered_classes(Path(path))[0]


def _numbered_classes(path: Path) -> tuple[list[str], int]:
    """Return class names in the order of their ids, and the first id: 0 or 1."""
    text = read_text(path)
    if path.suffix.lower() == ".json":
        numbered = [(str(number), name) for name, number in _json(path, text, dict).items()]
    elif path.suffix.lower() == ".csv":
        numbered = [(row["id"], row["name"]) for _, row in read_table(path, text, ("id", "name"))]
    else:  # UCF-101's classInd.txt: `1 ApplyEyeMakeup`
        pairs = [line.split(maxsplit=1) for _, line in content_lines(text)]
        if not all(len(pair) == 2 for pair in pairs):
            raise AnnotationError(f"{path}: expected `id,name` CSV or lines of `number name`")
        numbered = [(number, spoken(name)) for number, name in pairs]
    try:
        ids = [int(number) for number, _ in numbered]
    except ValueError as e:
        raise AnnotationError(f"{path}: class ids must be whole numbers ({e})") from e
    if not ids or sorted(ids) != list(range(min(ids), min(ids) + len(ids))) or min(ids) not in (0, 1):
        raise AnnotationError(f"{path}: class ids must be consecutive from 0 (or 1), each once")
    names = [name for _, name in sorted(zip(ids, (name for _, name in numbered), strict=True))]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise AnnotationError(f"{path}: class name {doubled[0]!r} stands for several classes")
    return names, min(ids)


def read_labels(given: Sequence[str]) -> list[str]:
    """Return labels from what a command was given: texts, and files for `read_names`, in their order.

    What ends in .txt, .csv or .json is a file, and so is what names one. Raises AnnotationError for those that are not.
    """
    files = {text for text in given if Path(text).suffix.lower() in (".txt", ".csv", ".json") or _is_file(text)}
    named = ((read_names(text) if text in files or text == KINETICS else [text]) for text in given)
    return [label for labels in named for label in labels]


def read_names(path: str) -> list[str]:
    """Names from a class file, or from a text file with one a line; "kinetics400" gives torchvision's list of them.

    Blank lines and comments (#) name nothing. Raises AnnotationError.
    """
    if path == KINETICS:
        from torchvision.models.video import R3D_18_Weights  # takes seconds

        return list(R3D_18_Weights.KINETICS400_V1.meta["categories"])
    if Path(path).suffix.lower() in (".csv", ".json"):
        return read_classes(path)
    lines = [line for _, line in content_lines(read_text(Path(path)))]
    if not lines:
        raise AnnotationError(f"{path} names no labels")
    numbered = all(re.match(r"\d+\s+\S", line) for line in lines)  # UCF-101's classInd.txt
    return read_classes(path) if numbered else lines


def read_list(
    path: str | Path,
    classes: str | Path | Sequence[str] | None = None,
    root: str | Path | None = None,
    subset: Subset = "train",
    numbers: bool = False,
    tell: Callable[[str], object] = print_aside,
) -> tuple[list[Video], list[str]]:
    """Return labelled videos, and the class names that their labels index.

    path: the list; a folder with a folder for each class; for HMDB-51 a glob of its split files. classes: a class file
    for `read_classes`, or the names; None takes the labels found, in alphabetical order, or for UCF-101 the folders.
    Labels that are numbers, and no class names, begin where the ids of the class file do. Among names alone they begin
    at 0, and one of them has to be 0 where no label is a name.
    root: where video paths start; the list's folder by default; folders have their own.
    subset: which rows of a file that holds both, as HMDB-51's do. numbers: whether labels that are numbers are names
    where no class file names them, for who only counts. tell: takes a line that says what was passed over.

    Raises AnnotationError for unreadable files, unknown formats, labels outside the classes, labels that would be one
    class in other letters, and paths named twice.
    Whether the videos exist shows when they are opened.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    first: int | None = None  # which names alone do not tell
    if isinstance(classes, str | Path):
        classes, first = _numbered_classes(Path(classes))
    if path.is_dir():
        folder, (pairs, passed_over) = path, read_folders(path)
        rows = [_row(pair) for pair in pairs]
        if passed_over:
            causes = ", ".join(f"{count} {cause}" for cause, count in passed_over.items())
            tell(f"{path}: {len(rows)} videos; {passed_over.total()} files passed over: {causes}")
    else:
        _check_whole(path)
        rows = _read_hmdb(path, subset) if "*" in path.name else _read_rows(path)
    if not rows:
        raise AnnotationError(f"{path}: the list names no videos")
    numbered = all(row.label.isdecimal() for row in rows)
    starts_at_one = first == 1 or (numbered and _UCF_TRAIN.fullmatch(path.name) is not None)
    if classes is None and numbered:
        if starts_at_one:
            rows = _labelled_by_folder(rows)
        elif numbers:
            classes = sorted({row.label for row in rows}, key=int)
        else:
            raise AnnotationError(f"{path}: its labels are numbers, so a class file is needed to name them")
    if classes is None:
        classes = _names_of(rows, path)
    classes = list(classes)
    if numbered and first is None and not starts_at_one:
        _check_numbers(rows, classes, path)
    return _look_up(rows, folder, _label_lookup({row.label for row in rows}, classes, starts_at_one)), classes


def _names_of(rows: Sequence[_Row], path: Path) -> list[str]:
    """Return the classes of a list that nothing else names. Raises AnnotationError for labels that are told alike."""
    labels: dict[str, str] = {}
    for row in rows:
        label = unicodedata.normalize("NFC", row.label)
        first = labels.setdefault(spoken(label), label)
        if first != label:
            raise AnnotationError(f"{path}: labels {first!r} and {label!r} would both be class {spoken(first)!r}")
    return sorted(labels)


def _check_numbers(rows: Sequence[_Row], names: Sequence[str], path: Path) -> None:
    """Raise AnnotationError for numbers that may count from 0 or from 1; those that are names count nothing."""
    labels = {row.label for row in rows}
    if not labels <= set(names) and all(0 < int(label) <= len(names) for label in labels):
        raise AnnotationError(f"{path}: its numbers may count from 0 or from 1, and a class file is needed to tell")


def _look_up(rows: Sequence[_Row], folder: Path, lookup: Mapping[str, int]) -> list[Video]:
    videos: list[Video] = []
    seen: dict[str, str] = {}
    for row in rows:
        label = lookup.get(row.label, lookup.get(spoken(row.label)))
        if label is None:
            raise AnnotationError(
                f"{row.where}: label {row.label!r} is not among the {len(set(lookup.values()))} classes"
            )
        found = _find(row, folder)
        first = seen.setdefault(os.path.abspath(found), row.where)  # a file may be spelled in two ways
        if first != row.where:
            raise AnnotationError(f"{row.where}: {found} was listed before ({first})")
        videos.append(Video(found, label))
    return videos


def write_list(path: Path, videos: Sequence[Video], names: Sequence[str]) -> None:
    """Write a list that `read_list` takes from anywhere: CSV of absolute paths and class names. Raises FileError."""
    write_csv(path, LIST_COLUMNS, list_rows(videos, names))


def list_rows(videos: Sequence[Video], names: Sequence[str]) -> list[tuple[Path, str]]:
    """Return the rows of `write_list`, under LIST_COLUMNS."""
    return [(video.path.absolute(), names[video.label]) for video in videos]


def merge_lists(lists: Mapping[str, tuple[Sequence[Video], Sequence[str]]]) -> tuple[list[Video], list[str], int]:
    """Return the videos of several lists, their classes, and how many videos were listed again.

    lists: videos and class names, by what errors call them. Classes are one by `name_key`, under the first of their
    names; those of the first list come first. Raises AnnotationError for a video of two classes, and for two classes of
    one list that would become one.
    """
    names: dict[str, str] = {}
    for source, (_, own) in lists.items():
        for name in own:
            first = names.setdefault(name_key(name), name)
            if first != name and first in own:
                raise AnnotationError(f"{source}: classes {first!r} and {name!r} would become one")
    place = {key: label for label, key in enumerate(names)}
    merged: dict[Path, int] = {}
    for source, (videos, own) in lists.items():
        for video in videos:
            path, label = Path(os.path.abspath(video.path)), place[name_key(own[video.label])]
            if merged.setdefault(path, label) != label:
                first, second = (list(names.values())[number] for number in (merged[path], label))
                raise AnnotationError(f"{source}: {path} is of class {second!r}, and of {first!r} in a list before")
    again = sum(len(videos) for videos, _ in lists.values()) - len(merged)
    return [Video(path, label) for path, label in merged.items()], list(names.values()), again


def read_paths(path: str | Path, root: str | Path | None = None) -> list[Path]:
    """Return the videos of a list, in its order, whatever their labels. path, root: as in `read_list`.

    A file whose lines all end as names of videos do, quoted or not, below a header `path` or none, has a path a line.
    Raises AnnotationError.
    """
    path = Path(path)
    folder = Path(root) if root is not None else path.parent
    _check_whole(path)
    if "*" in path.name:
        rows = _read_hmdb(path, "train") + _read_hmdb(path, "test")
    else:
        lines = [line.strip() for _, line in content_lines(read_text(path))]
        if lines and lines[0].strip('"').lower() == "path":
            lines = lines[1:]
        names = [line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line for line in lines]
        alone = all(map(is_video, names))
        rows = [_Row(str(path), (name,), "") for name in names] if alone else _read_rows(path)
    if not rows:
        raise AnnotationError(f"{path}: the list names no videos")
    return [_find(row, folder) for row in rows]


def _find(row: _Row, folder: Path) -> Path:
    """Return the first of a row's paths where there is something, or else its first."""
    found = folder / row.paths[0]
    if len(row.paths) > 1:
        found = next((folder / name for name in row.paths if (folder / name).exists()), found)
    return found


def spoken(name: str) -> str:
    """A class name as text: "ApplyEyeMakeup" and "apply_eye_makeup" become "apply eye makeup"."""
    name = unicodedata.normalize("NFC", name.replace("_", " "))  # as Linux writes it; macOS decomposes
    if " " not in name:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
        name = name.lower() if name != name.lower() and not name.isupper() else name
    return name.strip()


def name_key(name: str) -> str:
    """Return what two names of one class have in common: letters and digits, whatever their case and punctuation.

    Marks belong to letters, composed or not. A name without either is its own key.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN") or name


def keep_classes(
    videos: Sequence[Video], names: Sequence[str], kept: Sequence[str], source: str
) -> tuple[list[Video], list[str]]:
    """Return the videos of some classes only, and the names of these in their old order, which the labels index now.

    kept: the classes, by `name_key`; source: who names them. Raises AnnotationError for one that is not among `names`.
    """
    keys = {name_key(name): name for name in kept}
    strange = sorted(keys.keys() - {name_key(name) for name in names})
    if strange:
        raise AnnotationError(f"{source}: class {keys[strange[0]]!r} is not among the {len(names)} classes of the list")
    numbers = [number for number, name in enumerate(names) if name_key(name) in keys]
    place = {number: index for index, number in enumerate(numbers)}
    chosen = [Video(video.path, place[video.label]) for video in videos if video.label in place]
    return chosen, [names[number] for number in numbers]


def _label_lookup(labels: set[str], classes: Sequence[str], starts_at_one: bool) -> dict[str, int]:
    """Return the class of every label: by number where all are numbers and some is no name, else first by name."""
    ids = {str(index + starts_at_one): index for index in range(len(classes))}
    names = {name: index for index, name in enumerate(classes)}
    return names | ids if labels <= ids.keys() and not labels <= names.keys() else ids | names


def _labelled_by_folder(rows: Sequence[_Row]) -> list[_Row]:
    """Return UCF-101's numbered rows with the folder of each video for its number. Raises AnnotationError."""
    folders: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for row in rows:
        folder = _folder(row.paths[0])
        if folders.setdefault(row.label, folder) != folder or numbers.setdefault(folder, row.label) != row.label:
            raise AnnotationError(
                f"{row.where}: class {row.label} is in the folder {folder}, which does not fit the lines before; "
                "a class file is needed to name the classes"
            )
    return [replace(row, label=_folder(row.paths[0])) for row in rows]


def _read_rows(path: Path) -> list[_Row]:
    text = read_text(path)
    if path.suffix.lower() == ".json":
        content = _json(path, text, (list, dict))
        return _something_rows(path, content) if isinstance(content, list) else _kinetics_json_rows(path, content)
    names = header(path, text)
    for column in _SPLITS & set(names):
        _check_one_split(path, {row.get(column) or "" for _, row in read_table(path, text, ())})
    if "youtube_id" in names:
        return [
            _kinetics_row(where, row["youtube_id"], row["time_start"], row["time_end"], row["label"])
            for where, row in read_table(path, text, ("label", "youtube_id", "time_start", "time_end"))
        ]
    if {"path", "label"} <= set(names):
        table = read_table(path, text, ("path", "label"))
        return [_row(Pair(where, row["path"], row["label"])) for where, row in table]
    lines = list(content_lines(text))
    if _UCF_TEST.fullmatch(path.name) and any(is_video(line) for _, line in lines):  # paths alone, in class folders
        return [_row(Pair(f"{path}, line {number}", line, _folder(line))) for number, line in lines]
    return [_row(pair) for pair in read_pairs(path, text)]


_SPLITS = {"split", "subset"}
"""What names, in CSV and in Kinetics' JSON, whether a row is to train or to test with."""


def _check_one_split(path: Path, splits: set[str]) -> None:
    """Raise AnnotationError for a list of several: they would be trained on together. splits: "" says nothing."""
    if len(splits - {""}) > 1:
        named = ", ".join(sorted(splits - {""}))
        raise AnnotationError(f"{path} has rows of several splits, {named}: make a list of each")


def _row(pair: Pair) -> _Row:
    return _Row(pair.where, (pair.path,), pair.label)


def _folder(name: str) -> str:
    return name.split("/")[0]


def _kinetics_json_rows(path: Path, content: dict[str, Any]) -> list[_Row]:
    subsets = (entry.get("subset") for entry in content.values() if isinstance(entry, dict))
    _check_one_split(path, {str(subset or "") for subset in subsets})
    rows = []
    for youtube_id, entry in content.items():
        where = f"{path}, entry {youtube_id!r}"
        try:
            annotation = entry["annotations"]
            start, end = annotation["segment"]
            label = annotation["label"]
        except (KeyError, TypeError, ValueError) as e:
            raise AnnotationError(f"{where}: expected annotations with label and segment") from e
        rows.append(_kinetics_row(where, youtube_id, start, end, _text(where, "label", label)))
    return rows


def _kinetics_row(where: str, youtube_id: str, start: Any, end: Any, label: str) -> _Row:
    try:
        name = f"{youtube_id}_{int(float(start)):06d}_{int(float(end)):06d}.mp4"
    except (TypeError, ValueError, OverflowError) as e:
        raise AnnotationError(f"{where}: start and end must be seconds, got {start!r} and {end!r}") from e
    return _Row(where, (name, f"{label}/{name}", f"{label.replace(' ', '_')}/{name}"), label)


def _something_rows(path: Path, content: list[Any]) -> list[_Row]:
    rows = []
    for number, entry in enumerate(content, start=1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or "id" not in entry or not ("template" in entry or "label" in entry):
            raise AnnotationError(f"{where}: expected an object with id and template (or label)")
        key = "template" if "template" in entry else "label"
        label = _text(where, key, entry[key]).replace("[", "").replace("]", "")
        rows.append(_Row(where, (f"{entry['id']}.webm",), label))
    return rows


def _text(where: str, key: str, label: Any) -> str:
    """Return a label of JSON, a text or a number. Raises AnnotationError."""
    if not isinstance(label, str | int) or label == "":
        raise AnnotationError(f"{where}: {key} must be a text, got {label!r}")
    return str(label)


def _check_whole(path: Path) -> None:
    """Raise AnnotationError for one of HMDB-51's files, which a shell makes of their pattern; its labels are flags."""
    if not _HMDB_FILE.fullmatch(path.name) or "*" in path.name:
        return
    if all(re.fullmatch(r"[^/]+ [012]", line.strip()) for line in read_text(path).splitlines() if line.strip()):
        raise AnnotationError(
            f"{path} has the videos of one class of HMDB-51: give the pattern of all its files, in quotes, "
            f"as '{path.parent / '*_test_split1.txt'}'"
        )


def _read_hmdb(pattern: Path, subset: Subset) -> list[_Row]:
    """CLASS_test_splitN.txt files with `name.avi flag` lines: 1 train, 2 test, 0 neither."""
    wanted = {"train": "1", "test": "2"}[subset]
    files = sorted(pattern.parent.glob(pattern.name))
    if not files:
        raise AnnotationError(f"no file matches {pattern}")
    rows = []
    for file in files:
        match = _HMDB_FILE.fullmatch(file.name)
        if match is None:
            raise AnnotationError(f"{file}: a pattern must match HMDB-51's split files, CLASS_test_splitN.txt")
        for number, line in enumerate(read_text(file).splitlines(), start=1):  # names may begin with "#", no comments
            parts = line.split()
            if not parts:
                continue
            if len(parts) != 2 or parts[1] not in ("0", "1", "2"):
                raise AnnotationError(f"{file}, line {number}: expected `name.avi 0|1|2`, got {line!r}")
            if parts[1] == wanted:
                rows.append(_Row(f"{file}, line {number}", (f"{match[1]}/{parts[0]}", parts[0]), match[1]))
    return rows


def _json(path: Path, text: str, kinds: type | tuple[type, ...]) -> Any:
    try:
        content = json.loads(text)
    except ValueError as e:
        raise AnnotationError(f"{path} is not JSON: {e}") from e
    if not isinstance(content, kinds):
        raise AnnotationError(f"{path}: unexpected JSON, a {type(content).__name__} at the top")
    return content


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a text longer than any name
        return False
