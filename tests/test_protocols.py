"""Few-shot draws and zero-shot scores over splits."""

import json
from pathlib import Path

import pytest

from alt_fast.data.annotations import Video, read_classes, read_list
from alt_fast.protocols import draw, main
from alt_fast.run_folder import RunError
from alt_fast.train import parse


def test_draws_are_seeded_nested_and_of_every_class() -> None:
    videos = [Video(Path(f"{i}.mp4"), i % 3) for i in range(60)]
    four = draw(videos, 3, 4, seed=0)
    assert [video.label for video in four] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(four)) == 12
    assert set(draw(videos, 3, 2, seed=0)) < set(four)
    assert draw(videos, 3, 4, seed=0) == four
    assert draw(videos, 3, 4, seed=1) != four
    with pytest.raises(RunError, match="class 3 has 0 videos, 1 shots"):
        draw(videos, 4, 1, seed=0)


def test_few_shot_lists_train(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["few-shot", "--list", str(shapes / "train.txt"), "--classes", str(shapes / "classes.csv")]
    assert main([*command, "--shots", "1", "2", "--out", str(tmp_path)]) == 0
    assert "1-shot-seed0.csv: 36 videos of 36 classes" in capsys.readouterr().out
    names = read_classes(shapes / "classes.csv")
    videos, _ = read_list(tmp_path / "1-shot-seed0.csv", names)
    assert [video.label for video in videos] == list(range(36))
    everything, _ = read_list(shapes / "train.txt", names)
    assert {video.path for video in videos} <= {video.path.absolute() for video in everything}
    assert main([*command, "--shots", "3", "--out", str(tmp_path)]) == 1
    assert "class 0 has 2 videos, 3 shots were asked for" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--shots", "0", "--out", str(tmp_path)])


def test_zero_shot_scores_of_splits(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trained_run.parent / "data"
    lines = (data / "unseen.txt").read_text().splitlines()
    lists = []
    for number, split in enumerate((lines[:6], lines[4:])):
        lists.append(str(tmp_path / f"split{number}.txt"))
        Path(lists[-1]).write_text("".join(f"{line}\n" for line in split))
    command = ["zero-shot", "--checkpoint", str(trained_run), "--root", str(data), "--workers", "0"]
    unseen = ["--lists", *lists, "--classes", str(data / "unseen_classes.csv")]
    assert main([*command, *unseen, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    first, second = (row["top1"] for row in answer["lists"])
    assert answer["top1"]["mean"] == pytest.approx((first + second) / 2)
    assert answer["top1"]["deviation"] == pytest.approx(abs(first - second) / 2**0.5)
    assert main([*command, *unseen]) == 0
    assert "top1: " in capsys.readouterr().out
    seen = ["--lists", str(data / "test.txt"), "--classes", str(data / "classes.csv")]
    assert main([*command, *seen]) == 1
    assert "was trained on, so its score would not be zero-shot" in capsys.readouterr().err


def test_the_few_shot_recipe_is_the_paper_s() -> None:
    config = parse(["--config", "few_shot_b16"])
    fully = parse(["--config", "kinetics400_b16"])
    assert config.optim.lr == pytest.approx(10 * fully.optim.lr)
    assert (config.optim.batch_size, config.model.frames) == (64, 32)
