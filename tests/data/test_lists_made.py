"""Commands that count lists and make new ones: `alt-fast data stats`, `split` and `merge`."""

import json
from pathlib import Path

import pytest

from alt_fast.data.__main__ import main
from alt_fast.data.annotations import read_list
from tests.conftest import VideoWriter


def write(path: Path, *rows: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def test_stats_of_a_list(write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video("v_a_g01_c01.mp4", frames=10)
    write_video("v_a_g01_c02.mp4", frames=20, width=32)
    write_video("b.avi", "mpeg4", frames=30)
    path = write(tmp_path / "list.txt", "v_a_g01_c01.mp4 7", "v_a_g01_c02.mp4 7", "b.avi 7", "none.mp4 3")
    assert main(["stats", path, "--workers", "0", "--json"]) == 1
    stats = json.loads(capsys.readouterr().out)
    assert (stats["videos"], stats["sources"], stats["largest_source"]) == (4, 3, 2)
    assert stats["classes"] == {"3": 1, "7": 3}
    assert stats["balance"] == pytest.approx(4 / 3**0.75 / 2)
    assert stats["seconds"] == pytest.approx([1, 2, 3, 6])
    assert stats["sizes"] == {"64 x 48": 2, "32 x 48": 1}
    assert [failure["cause"] for failure in stats["unusable"]] == ["no such file"]
    assert main(["stats", path, "--workers", "0"]) == 1
    said = capsys.readouterr().out
    for line in (
        "videos   4, 0.0 MB",
        "classes  2, from 1 (3) to 3 videos (7), balance 0.88 of 1",
        "sources  3, of up to 2 videos",
        "seconds  1.0 to 3.0, median 2.0; 0.0 hours in all",
        "sizes    64 x 48: 2, 32 x 48: 1",
        "unusable 1: no such file",
    ):
        assert line in said.splitlines()


def test_stats_of_nothing_but_missing_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "list.csv", "path,label", "a.mp4,run")
    assert main(["stats", path, "--workers", "0"]) == 1
    assert "seconds" not in capsys.readouterr().out


def test_a_split_is_written_as_lists_that_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{label}/v_{label}_g{g:02}_c{c:02}.avi,{label}" for label in ("run", "yo_yo") for g in range(5) for c in (1, 2)
    ]
    path = write(tmp_path / "all.csv", "path,label", *rows)
    out = tmp_path / "lists" / "of mine"
    assert main(["split", path, "--out", str(out), "--test-size", "0.4", "--seed", "3"]) == 0
    assert f"8 videos (40.0%) in {out / 'test.csv'}\n" in capsys.readouterr().out
    train, classes = read_list(out / "train.csv")
    test, _ = read_list(out / "test.csv", classes)
    assert sorted(train + test) == sorted(read_list(path)[0])
    assert len({video.path.stem[:-4] for video in test} & {video.path.stem[:-4] for video in train}) == 0
    assert main(["split", path, "--out", str(out), "--test-size", "0.4", "--seed", "3"]) == 0  # the same once more


def test_a_split_replaces_no_list_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Above all not the one that it is of."""
    path = write(tmp_path / "train.csv", "path,label", *(f"{i}.mp4,{'ab'[i % 2]}" for i in range(10)))
    before = (tmp_path / "train.csv").read_text()
    assert main(["split", path, "--out", str(tmp_path)]) == 1
    assert f"there is another {tmp_path / 'train.csv'}: remove it, or choose another folder" in capsys.readouterr().err
    assert (tmp_path / "train.csv").read_text() == before
    assert not (tmp_path / "test.csv").exists()


def test_a_split_of_a_numbered_list_keeps_the_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "all.txt", *(f"{i}.mp4 {i % 2}" for i in range(10)))
    assert main(["split", path, "--out", str(tmp_path)]) == 0
    videos, _ = read_list(tmp_path / "test.csv", ["eating", "waving"])
    assert sorted(video.label for video in videos) == [0, 1]


def test_lists_are_merged_by_the_names_of_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips" / "YoYo").mkdir(parents=True)
    (tmp_path / "clips" / "YoYo" / "c.mp4").touch()
    first = write(tmp_path / "first.csv", "path,label", "a.mp4,run", "clips/YoYo/c.mp4,yo yo")
    second = write(tmp_path / "second" / "list.txt", "../b.mp4 Run", "d.mp4 jump")
    out = tmp_path / "merged" / "all.csv"
    assert main(["merge", first, second, str(tmp_path / "clips"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"4 videos of 3 classes in {out}; 1 were listed again\n"
    videos, classes = read_list(out)
    assert [(video.path.name, classes[video.label]) for video in videos] == [
        ("a.mp4", "run"),
        ("c.mp4", "yo yo"),
        ("b.mp4", "run"),
        ("d.mp4", "jump"),
    ]
    assert main(["merge", first, second, str(tmp_path / "clips"), "--out", str(out)]) == 0
    before = Path(first).read_text()
    assert main(["merge", first, second, "--out", first]) == 1
    assert f"there is another {first}: remove it, or choose another folder" in capsys.readouterr().err
    assert Path(first).read_text() == before


def test_classes_of_one_list_do_not_become_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = write(tmp_path / "turns.csv", "path,label", "a.mp4,turn +90", "b.mp4,turn -90")
    assert main(["merge", turns, "--out", str(tmp_path / "all.csv")]) == 1
    assert "turns.csv: classes 'turn +90' and 'turn -90' would become one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["split", "one.csv", "--out", "o", "--test-size", "1"], 2, "--test-size must be in (0, 1), got 1"),
        (["split", "one.csv", "--out", "o", "--seed", "-1"], 2, "--seed must be >= 0, got -1"),
        (["split", "one.csv", "--out", "o"], 1, "no class of one.csv has videos of two sources"),
        (["merge", "one.csv", "other.csv", "--out", "all.txt"], 2, "--out must end in .csv, got all.txt"),
        (
            ["merge", "one.csv", "other.csv", "--out", "all.csv"],
            1,
            "other.csv: {}/a.mp4 is of class 'jump', and of 'run'",
        ),
        (["merge", "numbers.txt", "--out", "all.csv"], 1, "numbers.txt: its labels are numbers, so a class file"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("one.csv"), "path,label", "a.mp4,run", "b.mp4,jump")
    write(Path("other.csv"), "path,label", "a.mp4,jump")
    write(Path("numbers.txt"), "a.mp4 1")
    assert main(command) == status
    assert message.format(tmp_path) in capsys.readouterr().err
    assert not Path("all.csv").exists()
