"""What is damaged, foreign, or asked for wrongly is one line that names it, whatever command meets it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alt_fast.__main__ import main

Damage = Callable[[Path], object]


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of a run that may be damaged."""
    copy = tmp_path / "run"
    shutil.copytree(trained_run, copy)
    return copy


def rewrite(name: str, text: str) -> Damage:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "command", "named"),
    [
        (rewrite("config.yaml", "a: [1"), ["evaluate"], "config.yaml"),
        (rewrite("config.yaml", "{}"), ["evaluate"], "config.yaml"),
        (rewrite("metrics.json", "{"), ["export"], "metrics.json"),
        (rewrite("environment.json", "[]"), ["export"], "environment.json"),
        (rewrite("log.jsonl", '{"stage": "alt", "loss": 1}\n'), ["watch"], "log.jsonl"),
        (rewrite("metrics.json", "[1]"), ["watch"], "metrics.json"),
        (rewrite("model.safetensors", "no weights"), ["evaluate"], "model.safetensors"),
    ],
)
def test_damaged_runs(
    run: Path, tmp_path: Path, damage: Damage, command: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run)
    where = ["--once", str(run)] if command == ["watch"] else ["--checkpoint", str(run)]
    more = ["--out", str(tmp_path / "out")] if command == ["export"] else []
    assert main([*command, *where, *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("content", [None, "{", "{}", '{"corpus": [{"unit": "a", "colour": 1}], "model": {}}'])
def test_weights_whose_description_is_damaged(
    run: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(run / "model.safetensors")
    metadata = {"format": "alt-fast", "version": "1"} | ({} if content is None else {"content": content})
    save_file(weights, run / "model.safetensors", metadata)
    assert main(["evaluate", "--checkpoint", str(run)]) == 1
    assert "does not fit the model it names" in capsys.readouterr().err


def test_exports_go_into_a_folder_of_their_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "file")]) == 1
    assert "is no empty folder" in capsys.readouterr().err
    assert main(["export", "--checkpoint", str(run), "--out", str(tmp_path / "folder")]) == 0
    assert {"command", "started_in", "run"} < json.loads((run / "environment.json").read_text()).keys()
    assert str(tmp_path) not in (tmp_path / "folder" / "environment.json").read_text()
    assert "command" not in json.loads((tmp_path / "folder" / "environment.json").read_text())
    assert str(run.parent) not in (tmp_path / "folder" / "README.md").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--seed", "-1"], "seed must be >= 0, got -1"),
        (["train", "--seed", str(2**128)], f"seed must be < 2**128, got {2**128}"),
        (["train", "--data.split-seed", str(2**128)], "split_seed must be < 2**128"),
        (["train", "--data.shapes.seed", str(2**128)], "seed must be < 2**128"),
        (["train", "--augment.hue", "-0.1"], "hue must be >= 0 and finite, got -0.1"),
        (["train", "--augment.contrast", "-1"], "contrast must be >= 0 and finite, got -1.0"),
        (["data", "browse", "a.csv", "--out", "b.png", "--augment.saturation", ".inf"], "saturation must be >= 0 and"),
        (["data", "browse", "a.csv", "--out", "b.png", "--seed", str(2**128)], "--seed must be < 2**128"),
        (["data", "split", "a.csv", "--out", "b", "--seed", str(2**128)], "--seed must be < 2**128"),
        (["protocols", "unseen", "--list", "a", "--seen", "b", "--out", "c", "--seeds", str(2**128)], "--seeds must"),
        (["ablations", "5", "--out", "a", "--seeds", "0", str(2**128)], "--seeds must be < 2**128"),
        (["ablations", "5", "--out", "a", "--seeds", "-1"], "--seeds must be >= 0, got -1"),
        (["train", "--data.workers", "-1"], "workers must be >= 0, got -1"),
        (["train", "--pretrain.batch-size", "0"], "batch_size must be >= 1, got 0"),
        (["train", "--optim.mixup", "-1"], "mixup must be >= 0, got -1"),
        (["train", "--optim.lr", "-1"], "lr must be >= 0, got -1"),
        (["train", "--model.image-size", "4"], "image_size must be >= 16, got 4"),
        (["train", "--conf", "mine.yaml"], "--conf"),
        (["ablations", "5", "--out", "a", "--launch", '"torchrun'], "--launch is no command line"),
        (["ablations", "5", "--out", "a", "--jobs", "0"], "--jobs must be >= 1"),
        (["protocols", "few-shot", "--list", "a", "--out", "b", "--seeds", "-1"], "--seeds must be >= 0, got -1"),
        (["protocols", "few-shot", "--lis", "a", "--out", "b"], "--list"),
        (["data", "browse", "a.csv", "--out", "b.png", "--count", "0"], "--count must be >= 1, got 0"),
        (["data", "generate", "--out", "a", "--seed", "-1"], "seed must be >= 0, got -1"),
        (
            ["classify", "a.mp4", "--head", "clip", "--labels", "x", "--device", "meta"],
            "device must be auto, cpu, cuda",
        ),
        (["classify", "a.mp4", "--head", "clip", "--labels", "x", "--backbone", "RN50"], "VisionTransformer"),
    ],
)
def test_numbers_and_names_that_cannot_be_meant(
    command: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "RN50" in command:
        from alt_fast.model import clip_weights

        monkeypatch.setattr(clip_weights, "_find_weights", lambda backbone, pretrained: (pretrained, None))
        monkeypatch.setattr(clip_weights, "read_state_dict", lambda path: {})
        monkeypatch.setattr(clip_weights, "_load_weights", lambda model, weights, what: None)
    try:
        status: object = main(command)
    except SystemExit as e:
        status = e.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(trained_run.parent / "data" / "test" / "00000.webm")
    blocked = tmp_path / "file"
    blocked.touch()
    for command, named in (
        (["explain", video, "--checkpoint", str(trained_run), "--out", str(blocked / "a.html")], "cannot make folder"),
        (["evaluate", "--checkpoint", str(trained_run), "--report", str(blocked / "a.html")], "cannot make folder"),
        (["corpus", "extend", "motion_shapes", "--labels", "x", "--out", "."], ""),
        (["train", "--out", str(blocked)], "cannot make folder"),
    ):
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert named in error


def test_texts_that_are_no_names_of_files(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = str(trained_run.parent / "data" / "test" / "00000.webm")
    long = "a person who " + "walks and " * 40 + "rests"
    assert main(["classify", video, "--checkpoint", str(trained_run), "--labels", long, "b"]) == 0
    assert long in capsys.readouterr().out
    assert main(["classify", "n" * 300 + ".mp4", "--checkpoint", str(trained_run)]) == 1
    assert os.strerror(36) in capsys.readouterr().err  # File name too long


def test_reports_of_lists_that_mix_relative_and_absolute_paths(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = trained_run.parent / "data"
    monkeypatch.chdir(data)
    lines = ["path,label", "test/00000.webm,0", f"{data / 'test' / '00003.webm'},3"]
    (data / "mixed.csv").write_text("\n".join(lines) + "\n")
    command = ["evaluate", "--checkpoint", str(trained_run), "--list", "mixed.csv", "--workers", "0"]
    assert main([*command, "--report", str(tmp_path / "page.html")]) == 0
    assert str(data) not in (tmp_path / "page.html").read_text()
