"""A fitted schedule beside the constant r on scenes held out: the command, its file and its table."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import alt_fast
from benchmarks.fit import main
from benchmarks.report import fit_table
from tests.benchmarks.test_quality import tiny_vit


def folder_of_frames(folder: Path, *names: str) -> Path:
    """Pictures in which no two patches are alike."""
    folder.mkdir()
    torch.manual_seed(0)
    for name in names:
        Image.fromarray(torch.randint(0, 255, (160, 160, 3), dtype=torch.uint8).numpy()).save(folder / name)
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "weights.pt"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return str(path)


def test_each_scene_is_held_out_in_turn(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    frames = folder_of_frames(tmp_path / "frames", "dog-1.png", "dog-2.png", "cat-01.png")
    results = tmp_path / "results.jsonl"
    command = ["timm:test_vit", "--weights", weights, "--images", str(frames), "--r", "10", "--evaluations", "3"]
    assert main([*command, "--results", str(results)]) == 0
    assert "r = 10  cat: constant 0." in capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert all("provenance" in row for row in rows)
    assert [(row["fitted_to"], row["held_out"], row["images"]) for row in rows] == [
        (["dog"], "cat", [2, 1]),
        (["cat"], "dog", [1, 2]),
    ]
    for row in rows:
        assert row["macs"]["fitted"] <= row["macs"]["constant"] < row["macs_unmerged"]
        assert row["on_fitted"]["fitted"]["mean"] >= row["on_fitted"]["constant"]["mean"]
        low, middle, high = row["on_held_out"]["fitted"]["quartiles"]
        assert low <= middle <= high
    assert "| timm:test_vit | 10 | dog | cat |" in fit_table(rows)


def test_rows_are_written_as_they_come(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before an interruption are in the file, and a second run adds its own."""
    frames = folder_of_frames(tmp_path / "frames", "dog-1.png", "cat-1.png")
    results = tmp_path / "results.jsonl"
    command = ["timm:test_vit", "--weights", weights, "--images", str(frames), "--evaluations", "1"]
    command += ["--r", "10", "--results", str(results)]
    whole, fits = alt_fast.fit_schedule, iter(range(2))

    def interrupted(*arguments: Any, **options: Any) -> list[int]:
        if next(fits) == 1:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(alt_fast, "fit_schedule", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main(command)
    assert len(results.read_text().splitlines()) == 1
    assert main(command) == 0
    assert [json.loads(line)["held_out"] for line in results.read_text().splitlines()] == ["cat", "cat", "dog"]


def test_models_of_transformers(tmp_path: Path) -> None:
    folder = tiny_vit(tmp_path / "model")
    frames = folder_of_frames(tmp_path / "frames", "dog-1.png", "cat-1.png")
    results = tmp_path / "results.jsonl"
    command = [f"hf:{folder}", "--images", str(frames), "--r", "2", "--evaluations", "1", "--results", str(results)]
    assert main(command) == 0
    assert {json.loads(line)["fit"] for line in results.read_text().splitlines()} == {f"hf:{folder}"}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("dog-1.png", "dog-2.png"), (), "--images must be frames of two scenes, SCENE-NUMBER.png, got those of dog"),
        ((), (), "has no images"),
        (("dog-1.png", "cat-1.png"), ("--evaluations", "0"), "max_evaluations must be an int >= 1, got 0"),
    ],
)
def test_what_cannot_work_is_named(
    names: tuple[str, ...], options: tuple[str, ...], message: str, tmp_path: Path, weights: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    frames = folder_of_frames(tmp_path / "frames", *names)
    with pytest.raises(SystemExit):
        main(["timm:test_vit", "--weights", weights, "--images", str(frames), *options])
    assert message in capsys.readouterr().err
