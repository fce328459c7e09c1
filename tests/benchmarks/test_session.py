"""Rows of a session are on the disk as they are measured, and what races share is made once."""

import json
from functools import partial
from pathlib import Path

from benchmarks.session import Once, Results


def test_rows_are_in_the_file_once_they_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    results = Results(path)
    for number in range(3):
        results.add({"case": "a", "contestant": number})
        head, *rows = map(json.loads, path.read_text().splitlines())
        assert "commit" in head["provenance"]
        assert rows == results.rows == [{"case": "a", "contestant": n} for n in range(number + 1)]


def test_a_session_replaces_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    for case in ("a", "b"):
        Results(tmp_path / "results.jsonl").add({"case": case})
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()][1:] == [{"case": "b"}]


def test_what_is_asked_for_by_the_same_key_is_made_once() -> None:
    once, made = Once(), []

    def make(number: int) -> list[int]:
        made.append(number)
        return [number]

    first = once(("vit", 8), partial(make, 8))
    assert once(("vit", 13), partial(make, 13)) == [13]
    assert once(("vit", 8), partial(make, 8)) is first
    assert made == [8, 13]
