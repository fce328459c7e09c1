"""A job over seeds, on the smallest one: every seed once, with videos of its own."""

import json
from pathlib import Path

import pytest

from benchmarks import jobs
from benchmarks.jobs import main, table
from tests.conftest import SMALL_JOB


def test_it_keeps_what_every_job_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "rows.jsonl", tmp_path / "runs"
    command = ["--config", "motion_shapes_clip", "--seeds", "2", "--out", str(out), "--runs", str(runs)]
    short = ["--", *SMALL_JOB, "--optim.epochs=1", "--pretrain.steps=1", "--data.workers=0", "--frame-only=false"]
    assert main([*command, *short]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1]
    folder = runs / "motion_shapes_clip"
    for row in rows:
        assert row["metrics"] == json.loads((folder / f"seed{row['seed']}" / "metrics.json").read_text())
        assert row["metrics"]["seed"] == row["seed"]
        assert row["provenance"]["commit"]
    videos = [(folder / f"data{seed}" / "test" / "00000.webm").read_bytes() for seed in (0, 1)]
    assert videos[0] != videos[1]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "single frames" in line] == []  # which these jobs do not train
    tested = [100 * row["metrics"]["top1"] for row in rows]
    assert any(line.startswith(f"| top-1 | {tested[0]:.1f} | {tested[1]:.1f} | ") for line in lines)
    monkeypatch.setattr(jobs, "run", None)  # nothing is trained again
    with out.open("a") as file:
        file.write('{"provenance": {}}\n')  # of other experiments
    assert main([*command, *short]) == 0
    out.unlink()
    assert main([*command, *short]) == 0
    assert len(out.read_text().splitlines()) == 2


def test_the_table_has_every_seed_and_what_they_come_to() -> None:
    rows = [
        {"seed": seed, "metrics": {"top1": top1, "alignment": {"certainty": 0.5, "frame_accuracy": {"all": top1}}}}
        for seed, top1 in ((0, 0.5), (1, 0.7))
    ]
    assert table(rows).splitlines() == [
        "|  | seed 0 | seed 1 | all |",
        "| --- | --: | --: | --: |",
        "| top-1 | 50.0 | 70.0 | 60.0 ± 14.1 |",
        "| frames align right | 50.0 | 70.0 | 60.0 ± 14.1 |",
        "| certainty | 50.0 | 50.0 | 50.0 ± 0.0 |",
    ]
