"""Video vectors on disk: the model's, in order, and a command that goes on after an interruption."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alt_fast.extract import main
from alt_fast.inference.predict import load_video
from alt_fast.inference.trained import load
from tests.conftest import VideoWriter


@pytest.fixture
def command(trained_run: Path, tmp_path: Path) -> list[str]:
    """Seven videos, one of them not there, three in a file."""
    data = trained_run.parent / "data"
    lines = [*(data / "test.txt").read_text().splitlines()[:6], "none.webm 2"]
    (tmp_path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    command = ["--checkpoint", str(trained_run), "--list", str(tmp_path / "list.txt"), "--root", str(data)]
    return [*command, "--out", str(tmp_path / "features"), "--workers", "0", "--per-file", "3"]


def test_vectors_are_the_model_s(command: list[str], trained_run: Path, tmp_path: Path) -> None:
    assert main(command) == 1  # one is unreadable
    out = tmp_path / "features"
    files = [load_file(out / f"0000{number}.safetensors") for number in range(3)]
    vectors, labels = (torch.cat([file[name] for file in files]) for name in ("video", "label"))
    rows = [row for number in range(3) for row in json.loads((out / f"0000{number}.json").read_text())["videos"]]
    assert [row["unreadable"] is None for row in rows] == [True] * 6 + [False]
    assert labels[-1] == 2
    assert (vectors[-1] == 0).all()
    trained = load(trained_run)
    for row, vector in zip(rows[:6], vectors, strict=False):
        with torch.no_grad():
            expected = trained.model(load_video(row["path"], trained.spec), torch.zeros(1, vector.shape[0])).video[0]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_goes_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from alt_fast.inference import features as module

    features, calls = module.features, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return features(*arguments)

    monkeypatch.setattr(module, "features", interrupted)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    first = (tmp_path / "features" / "00000.safetensors").stat().st_mtime_ns
    assert main(command) == 1
    assert "unreadable, zeros" in capsys.readouterr().err
    assert len(calls) == 2 + 2
    assert (tmp_path / "features" / "00000.safetensors").stat().st_mtime_ns == first


def test_videos_of_one_colour_are_named(
    command: list[str], write_video: VideoWriter, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = Path(command[command.index("--list") + 1])
    grey = write_video("grey.mp4", frames=8)
    listed.write_text(f"{listed.read_text().splitlines()[0]}\n{grey} 1\nnone.webm 2\n")
    for _ in range(2):
        assert main(command) == 1
        *_, unreadable, blank = capsys.readouterr().err.splitlines()
        assert "none.webm: no such file" in unreadable
        assert blank == f"every frame is of one colour: {grey}"
    rows = json.loads((Path(command[command.index("--out") + 1]) / "00000.json").read_text())["videos"]
    assert [row["blank"] for row in rows] == [False, True, False]


def test_what_was_unreadable_is_tried_again(
    command: list[str], trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file alone is written again, as are vectors without their list."""
    data, out = trained_run.parent / "data", tmp_path / "features"
    listed = Path(command[command.index("--list") + 1])
    later = tmp_path / "later.webm"
    listed.write_text(listed.read_text().replace("none.webm", str(later)))
    assert main(command) == 1
    assert f"unreadable, zeros: {later}" in capsys.readouterr().err
    first = out / "00000.safetensors"
    before = first.stat().st_mtime_ns
    shutil.copy(data / listed.read_text().split()[0], later)
    assert main(command) == 0
    assert "unreadable" not in capsys.readouterr().err
    vectors = load_file(out / "00002.safetensors")["video"]
    torch.testing.assert_close(vectors[0], load_file(first)["video"][0], rtol=1e-4, atol=1e-4)
    assert first.stat().st_mtime_ns == before
    (out / "00000.json").unlink()
    assert main(command) == 0
    assert first.stat().st_mtime_ns > before


def test_another_request_does_not_mix(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 1
    capsys.readouterr()
    assert main([*command, "--crops", "3"]) == 1
    assert "begun otherwise: crops was 1, now 3. Choose another --out" in capsys.readouterr().err
    listed = Path(command[command.index("--list") + 1])
    listed.write_text(listed.read_text().replace("none.webm 2", "none.webm 3"))
    assert main(command) == 1
    assert "begun otherwise: videos was '7 (" in capsys.readouterr().err
    assert main([*command, "--per-file", "0"]) == 2
    assert "--per-file must be >= 1, got 0" in capsys.readouterr().err
