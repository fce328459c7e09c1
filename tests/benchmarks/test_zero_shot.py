"""What others do for zero-shot, on the smallest job: every way is tested once, and beside ALT as it is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alt_fast.corpus import Corpus
from alt_fast.errors import RunError
from alt_fast.training.config import TrainConfig
from alt_fast.training.run_folder import open_run_folder
from benchmarks import zero_shot
from benchmarks.zero_shot import WAYS, Experiment, descriptions, main, table
from tests.conftest import SMALL_JOB


def test_it_tests_every_way_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs, ways = tmp_path / "rows.jsonl", tmp_path / "runs", ["alt", "clip", "share-50", "distilled"]
    command = ["--levels", "1", "--seeds", "1", "--ways", *ways, "--out", str(out), "--runs", str(runs)]
    short = ["--", *SMALL_JOB, "--optim.epochs=1", "--pretrain.steps=1", "--data.workers=0"]
    assert main([*command, *short]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["way"] for row in rows] == ways
    assert all(row["videos"] == [36, 12] and row["provenance"]["commit"] for row in rows)
    for row in rows:
        assert [probe["videos"] for probe in row["probes"]] == ([] if row["way"] == "clip" else [36, 12])
        for probe, key in zip(row["probes"], ("test", "unseen"), strict=False):
            assert probe["top1"] == pytest.approx(row[key])
    printed = capsys.readouterr().out
    assert "| level 1 | test | unseen | gain, test | gain, unseen | seeds that gain unseen |" in printed

    folder = runs / "level1" / "seed0"
    first = load_file(folder / "plain" / "clip.safetensors")  # the only CLIP there is
    assert not (folder / "distilled" / "clip.safetensors").exists()
    name = "conv1.weight"
    plain, distilled = (load_file(folder / run / "model.safetensors") for run in ("plain", "distilled"))
    towers = [first[f"visual.{name}"], *(weights[f"encoder.visual.{name}"] for weights in (plain, distilled))]
    assert not any(torch.equal(a, b) for a, b in zip(towers, (*towers[1:], towers[0]), strict=True))

    kept = "".join(out.read_text().splitlines(keepends=True)[:2])
    out.write_text('{"provenance": {}}\n' + kept + '{"level": 1, "se')  # of others, and killed while it wrote
    monkeypatch.setattr(zero_shot, "run", None)  # nothing is trained again
    assert main([*command, *short]) == 0
    again = [json.loads(line) for line in out.read_text().splitlines()[1:] if line.endswith("}")]
    assert [{**row, "provenance": 0} for row in again] == [{**row, "provenance": 0} for row in rows]


def test_runs_of_other_options_are_not_taken_for_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(config: TrainConfig) -> None:
        with open_run_folder(config) as folder:
            (folder / "metrics.json").write_text("{}")

    monkeypatch.setattr(zero_shot, "run", finish)
    done = Experiment(2, tmp_path, ["--data.workers=1"]).train(0, "plain")
    assert Experiment(2, tmp_path, ["--data.workers=0"]).train(0, "plain") == done  # which changes no result
    with pytest.raises(RunError, match="other settings: model.query was 'entities', now 'frame'"):
        Experiment(2, tmp_path, ["--model.query=frame"]).train(0, "plain")


def test_gains_are_those_over_alt_of_the_same_seed() -> None:
    tops = {("alt", 0): (0.9, 0.5), ("alt", 1): (0.8, 0.7), ("both", 1): (0.7, 0.8), ("texts", 0): (0.9, 0.5)}
    rows = [
        {"level": 2, "seed": seed, "way": way, "test": test, "unseen": unseen}
        for (way, seed), (test, unseen) in tops.items()
    ]
    lines = table(rows, 2, ["alt", "both", "texts"]).splitlines()
    assert lines[2] == f"| {WAYS['alt'].name} | 85.0 ± 7.1 | 60.0 ± 14.1 |  |  |  |"
    assert lines[3] == f"| {WAYS['both'].name} | 70.0 | 80.0 | -10.0 | +10.0 | 1 of 1 |"
    assert lines[4].endswith("| +0.0 | +0.0 | 0 of 1 |")  # the same is no gain


def test_descriptions_are_of_what_a_name_mentions(corpus: Corpus) -> None:
    found = descriptions(["a star growing", "a starfish", "a moonlit tip"], corpus)
    assert found == {
        "a star growing": "star is a shape with five tips, growing is becoming bigger",
        "a moonlit tip": "tip is a pointed end",
    }
