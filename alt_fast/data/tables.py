"""Lists as people write them, as rows: encodings, delimiters, headers and comments, before what the cells mean.

A file is in UTF-8, with or without a byte-order mark, or in UTF-16 with one; its cells are parted by commas,
semicolons, tabs or blanks; a line that begins with # is a comment.
"""

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from alt_fast.errors import AltFastError

_KINDS = "3gp asf avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""What names of video files end in, in any case."""

_DELIMITERS = ",;\t"
_BLANKS = ""  # stands for them among delimiters
_QUOTED = re.compile(r'"([^"]+)"\s+(.*)')  # a path with blanks, as pandas writes it among blanks
_LOOKED_AT = 100  # lines, to tell the delimiter
_EXCEL = re.compile(r"sep=.", re.IGNORECASE)  # a line by which Excel is told the delimiter
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_NUMBERS = re.compile(rf"(.*?\S)\s+((?:{_NUMBER.pattern}\s+)+{_NUMBER.pattern})")  # `folder 120 3`
_BEHIND_VIDEO = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))\s+(.*)", re.IGNORECASE)


class AnnotationError(AltFastError, ValueError):
    """A list or class file that cannot be used; the message names file, line and cause."""


class Pair(NamedTuple):
    """A path and its label, as they are written. `where` names file and line."""

    where: str
    path: str
    label: str


def is_video(name: str) -> bool:
    """Whether a file's name ends as that of a video."""
    return os.path.splitext(name)[1].casefold() in VIDEO_SUFFIXES


def read_text(path: Path) -> str:
    """Return a file's text, line ends as they are, without the byte-order mark. Raises AnnotationError."""
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except OSError as e:
        raise AnnotationError(f"cannot read {path}: {e}") from e
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        where = "UTF-16" if marked else f"UTF-8, byte {e.object[e.start]:#04x} in line {line}"
        raise AnnotationError(
            f"cannot read {path}: it is not in {where}; save it as UTF-8, which Excel calls CSV UTF-8"
        ) from e
    if "\0" in text:
        raise AnnotationError(
            f"cannot read {path}: it holds zero bytes, as UTF-16 without a byte-order mark does; save it as UTF-8"
        )
    return text


def content_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without blanks around them, with their numbers; blank lines and comments are left out."""
    lines = enumerate((line.strip() for line in io.StringIO(text, newline=None)), start=1)
    return ((number, line) for number, line in lines if not _is_idle(line))


def header(path: Path, text: str) -> list[str]:
    """Return the names in the first line, in lower case, if it is a header; else its cells. Raises AnnotationError."""
    return _header(path, text)[1]


def read_table(path: Path, text: str, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a table with a header, by column, each with the file and line that it begins at.

    columns: those that must be there, and hold something in every row. Raises AnnotationError.
    """
    delimiter, names, spaced = _header(path, text)
    missing = sorted(set(columns) - set(names))
    if missing:
        raise AnnotationError(f"{path}: column {missing[0]!r} is missing (found {', '.join(names) or 'nothing'})")
    doubled = [column for column in columns if names.count(column) > 1]
    if doubled:
        raise AnnotationError(f"{path}: column {doubled[0]!r} is there twice")
    rows = []
    for where, cells in list(_records(path, text, delimiter, spaced))[1:]:
        if len(cells) > len(names):
            _refuse(where, cells, delimiter)
        row = dict(zip(names, cells, strict=False))
        if not all((row.get(column) or "").strip() for column in columns):
            raise AnnotationError(f"{where}: {', '.join(columns)} must not be empty")
        rows.append((where, row))
    return rows


def read_pairs(path: Path, text: str) -> list[Pair]:
    """Return the rows of a list without a header, each a path and a label.

    What parts the two is what most of the first lines have behind the name of a video file: a comma, a semicolon, a tab
    or blanks. Among blanks the last word is the label. Raises AnnotationError for lines of another form.
    """
    lines = list(content_lines(text))
    beginning = [(f"{path}, line {number}", line) for number, line in lines[:_LOOKED_AT]]
    delimiter = _delimiter(path, beginning)
    if lines and delimiter != _BLANKS:
        cells = [_cells(where, line, delimiter) for where, line in beginning]
        first, *others = (row[0] for row in cells)
        if not any(is_video(row[0]) for row in cells) and any(is_video(row[1]) for row in cells if len(row) > 1):
            raise AnnotationError(f"{path}: the path comes first, or a header names the columns: path,label")
        if not is_video(first) and any(map(is_video, others)):  # a header, of names that read_table was not asked for
            raise AnnotationError(f"{path}: column 'path' is missing (found {', '.join(header(path, text))})")
    if lines and lines[0][1].casefold().split() == ["path", "label"]:
        lines = lines[1:]
    return [_pair(f"{path}, line {number}", line, delimiter) for number, line in lines]


def _pair(where: str, line: str, delimiter: str) -> Pair:
    cells = _cells(where, line, delimiter)
    if len(cells) < 2 or not all(cells[:2]):
        raise AnnotationError(f"{where}: expected `path label`, got {line!r}")
    if len(cells) > 2:
        _refuse(where, cells, delimiter)
    return Pair(where, *cells)


def _refuse(where: str, cells: Sequence[str], delimiter: str) -> NoReturn:
    """Raise AnnotationError for a row of more than a path and a label."""
    kinds = ["path", *("number" if _NUMBER.fullmatch(cell) else "word" for cell in cells[1:])]
    given, form = ((delimiter or " ").join(part) for part in (cells, kinds))
    raise AnnotationError(
        f"{where}: {given!r} has the form `{form}`. A video has one label, and frame counts are not read: write "
        "`path label` lines, or CSV with columns path,label"
    )


def _delimiter(path: Path, lines: Sequence[tuple[str, str]]) -> str:
    """Return what parts path from label in most lines; where no path ends as a video's, by the suffix of the list."""
    split = {delimiter: [_cells(*line, delimiter) for line in lines] for delimiter in (*_DELIMITERS, _BLANKS)}
    parted = {delimiter: [cells for cells in rows if len(cells) > 1] for delimiter, rows in split.items()}
    fitting = {delimiter: sum(is_video(cells[0]) for cells in rows) for delimiter, rows in parted.items()}
    if any(fitting.values()):
        return max(fitting, key=fitting.__getitem__)
    most = max(_DELIMITERS, key=lambda delimiter: len(parted[delimiter]))
    return most if path.suffix.lower() in (".csv", ".tsv") and parted[most] else _BLANKS


def _cells(where: str, line: str, delimiter: str) -> list[str]:
    """Split one line, which is not blank. Among blanks: the path, which may hold some, and the words behind it."""
    if delimiter != _BLANKS:
        return _split(where, line, delimiter)
    if quoted := _QUOTED.fullmatch(line):
        return [quoted[1], *quoted[2].split()]
    path, *label = line.rsplit(maxsplit=1)
    more = None if is_video(path) else _BEHIND_VIDEO.fullmatch(line) or _NUMBERS.fullmatch(line)
    return [path, *label] if more is None else [more[1], *more[2].split()]


def _split(where: str, line: str, delimiter: str) -> list[str]:
    """Return the cells of a line between delimiters. Raises AnnotationError."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as e:  # a cell longer than the 131,072 characters that the module takes
        raise AnnotationError(f"{where}: {e}") from e
    return [cell.strip() for cell in cells]


def _header(path: Path, text: str) -> tuple[str, list[str], bool]:
    """Return the delimiter, the names, and whether blanks stand around them, of the first line."""
    number, line = next(iter(content_lines(text)), (0, ""))
    delimiter = max(_DELIMITERS, key=line.count)
    cells = _split(f"{path}, line {number}", line, delimiter)
    return delimiter, [cell.casefold() for cell in cells], f"{delimiter} " in line


def _records(path: Path, text: str, delimiter: str, spaced: bool) -> Iterator[tuple[str, list[str]]]:
    """Rows, each with the file and line that it begins at. spaced: whether blanks may follow a delimiter."""
    number, start = 0, 0  # of the line that was read last, and of the row's first one: 0 between rows

    def lines() -> Iterator[str]:
        nonlocal number, start
        for number, line in enumerate(io.StringIO(text, newline=""), start=1):
            if start == 0 and _is_idle(line.strip()):
                continue
            start = start or number
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    try:
        for cells in reader:
            yield f"{path}, line {start}", cells
            start = 0
    except csv.Error as e:
        raise AnnotationError(f"{path}, line {number}: {e}") from e


def _is_idle(line: str) -> bool:
    return not line or line.startswith("#") or _EXCEL.fullmatch(line) is not None
