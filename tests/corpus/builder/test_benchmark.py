"""The corpus benchmark, on a small WordNet: its rows, and that choosers are held to the hand-made choices."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import CHOICES, main, right_choices


def test_rows(wordnet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert "commit" in rows[0]["provenance"]
    assert all(row["entities"] == sum(row["categories"].values()) for row in rows[1:3])
    assert rows[2]["entities"] < rows[1]["entities"]  # the paper's steps alone
    assert [row["chooser"] for row in rows[3:]] == ["the most frequent sense", "plain-lesk", "lesk"]
    assert all(row["choices"] == 100 for row in rows[3:])
    with pytest.raises(SystemExit):
        main(["--choosers", "magic"])
    assert "senses must be" in capsys.readouterr().err


def test_a_choice_is_right_when_it_is_among_the_right_ones(wordnet: Any) -> None:
    with CHOICES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    eating = next(i for i, row in enumerate(rows) if row["label"] == "eating burger" and row["word"] == "eat")
    assert right_choices(wordnet, lambda question: [0.0] * len(question.candidates))[eating]
    guitar = [i for i, row in enumerate(rows) if row["label"] == "playing tennis"]
    assert right_choices(wordnet, lambda q: [float(c.name == "play.v.02") for c in q.candidates])[guitar[0]] is False
