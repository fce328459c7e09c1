"""Result files that experiments of many runs grow by a line at a time, and go on with where they were stopped."""

import json
from pathlib import Path
from typing import Any

from alt_fast.errors import FileError
from alt_fast.files import make_folder
from alt_fast.measure.provenance import provenance

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the results in a file, none for none. A line that was cut short is no result. Raises FileError."""
    found = []
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as e:
        raise FileError(f"cannot read {path}, which should hold JSON lines: {e}") from e
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def check_rows(path: Path | None) -> None:
    """See before the work that rows can be added to a file, if one is given: it is there then. Raises FileError."""
    if path is not None:
        _append(path, b"")


def append_row(path: Path, row: Row) -> None:
    """Add a result, with where it was measured. Raises FileError."""
    _append(path, json.dumps({**row, "provenance": provenance()}).encode() + b"\n")


def _append(path: Path, line: bytes) -> None:
    make_folder(path.parent)
    try:
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, 2)
                if file.read() != b"\n":  # of a line that was cut short
                    file.write(b"\n")
            file.write(line)
    except OSError as e:
        raise FileError(f"cannot write {path}: {e.strerror or e}") from e
