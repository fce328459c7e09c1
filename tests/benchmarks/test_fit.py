"""A fitted schedule beside the constant r on scenes held out: the command, its file and its table."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from benchmarks.fit import main
from benchmarks.report import fit_table


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
    head, *rows = map(json.loads, results.read_text().splitlines())
    assert "provenance" in head
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
