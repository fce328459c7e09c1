"""Result files that grow by a line at a time."""

import json
from pathlib import Path

import pytest

from alt_fast.errors import FileError
from alt_fast.measure.lines import append_row, check_rows, read_rows


def test_rows_are_added_with_where_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    check_rows(path)
    assert read_rows(path) == []
    append_row(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "cut sho')
    append_row(path, {"a": 3})
    assert [row["a"] for row in read_rows(path)] == [1, 3]
    assert "device" in json.loads(path.read_text().splitlines()[0])["provenance"]


def test_what_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    check_rows(None)
    with pytest.raises(FileError, match="cannot write .*: Is a directory"):
        check_rows(tmp_path)
    with pytest.raises(FileError, match="cannot make folder /proc/none"):
        check_rows(Path("/proc/none/rows.jsonl"))
    with pytest.raises(FileError, match="cannot write /dev/full: No space left on device"):
        append_row(Path("/dev/full"), {"a": 1})
