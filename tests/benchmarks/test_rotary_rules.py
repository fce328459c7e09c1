"""Accuracy by rule for rotary positions, on the smallest job: every case once, and none twice."""

import json
from pathlib import Path

import pytest

from benchmarks import rotary_rules
from benchmarks.rotary_rules import MERGED, RULES, TRAINED, Experiment, main, table
from tests.conftest import SMALL_JOB


def test_it_measures_every_case_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rules.jsonl"
    command = ["--seeds", "0", "--r", "0", "8", "--out", str(out), "--runs", str(tmp_path / "runs")]
    short = ["--", *SMALL_JOB, "--optim.epochs", "1", "--pretrain.steps", "1", "--data.workers", "0"]
    monkeypatch.setattr(rotary_rules, "RULES", RULES[:2])  # two trainings less
    assert main([*command, "--trained", *short]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    cases = [(row["kind"], row["rotary"], row["r"]) for row in rows]
    merged = [(MERGED, rule, r) for r in (0, 8) for rule in ("mean", "unit")]
    assert cases == [*merged, (TRAINED, "mean", 0), (TRAINED, "mean", 8), (TRAINED, "unit", 8)]
    assert all(row["videos"] == [36, 12] and row["provenance"]["commit"] for row in rows)
    assert rows[0]["top1"] == rows[1]["top1"]
    printed = capsys.readouterr().out
    assert f"| {TRAINED} | test, r = 0 | test, r = 8 | unseen pairs, r = 0 | unseen pairs, r = 8 |" in printed
    assert "not measured" not in printed

    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote
    monkeypatch.setattr(rotary_rules, "run", None)  # nothing is trained again
    assert main([*command, *short]) == 0
    again = out.read_text().splitlines()
    assert [f"{line}\n" for line in again[:3]] == lines[:3]
    last, before = json.loads(again[4]), rows[3]
    assert {**last, "provenance": None} == {**before, "provenance": None}
    again_printed = capsys.readouterr().out.splitlines()[-4:]
    assert "\n".join(again_printed) in printed


def test_the_table_is_over_seeds() -> None:
    rows = [
        {"kind": MERGED, "seed": seed, "rotary": rule, "r": 4, "top1": top1, "top1_unseen_pairs": 0.5}
        for seed, rule, top1 in ((0, "mean", 0.9), (1, "mean", 0.8), (0, "unit", 0.7))
    ]
    lines = table(rows, MERGED, [0, 1], [4]).splitlines()
    assert lines[0] == "| merged without training | test, r = 4 | unseen pairs, r = 4 |"
    assert lines[2] == "| mean | 85.0 ± 7.1 | 50.0 ± 0.0 |"
    assert lines[3] == "| unit | 70.0 | 50.0 |"
    assert lines[4] == "| centroid | not measured | not measured |"


def test_what_cannot_work_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--out", str(tmp_path / "a.jsonl"), "--runs", str(tmp_path), "--", "--data.shapes.frames", "1"]
    assert main(command) == 2
    assert "frames must be >= 2, got 1" in capsys.readouterr().err


def test_rows_of_other_experiments_are_not_read(tmp_path: Path) -> None:
    own = {"kind": MERGED, "seed": 0, "options": []}
    rows = [{"provenance": {}}, {"options": [], "way": "alt"}, own, {**own, "options": ["--seed=1"]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Experiment(tmp_path / "rows.jsonl", tmp_path, []).rows() == [own]
