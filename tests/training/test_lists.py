"""The lists of a job: folders, what is held out, what is missing, and the same again when a run goes on."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from alt_fast.data.annotations import Video, read_list
from alt_fast.errors import ArgumentError, RunError
from alt_fast.files import write_text
from alt_fast.training.config import DataConfig
from alt_fast.training.job import Lists
from alt_fast.training.lists import check_presence, count_missing, prepare_data, read_lists, say_overlap
from tests.conftest import VideoWriter


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Ten empty files of each of two classes."""
    for label in ("yo_yo", "run"):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "clips" / label / f"{i}.mp4").touch()
    return tmp_path / "clips"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_folder_is_split_into_lists_of_our_own(clips: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare_data(DataConfig(train=str(clips), root="elsewhere"), folder)
    lists = read_lists(data)
    assert lists.classes == ["run", "yo yo"]
    assert Counter(video.label for video in lists.test) == {0: 2, 1: 2}
    assert len(lists.train) == 16
    assert {video.path.parent.parent for video in lists.train + lists.test} == {clips}
    assert read_list(folder / "test.csv", lists.classes) == (lists.test, lists.classes)
    said = f"4 of 20 videos (20.0%) are held out with seed 0, listed in {folder / 'test.csv'}"
    assert said in capsys.readouterr().out


def test_a_run_that_goes_on_takes_the_lists_that_it_wrote(clips: Path, folder: Path) -> None:
    config = DataConfig(train=str(clips), test_size=0.5)
    before = read_lists(prepare_data(config, folder))
    (clips / "run" / "new.mp4").touch()
    (clips / "run" / "0.mp4").unlink()
    assert read_lists(prepare_data(config, folder)) == before
    (folder / "test.csv").unlink()  # killed between the two
    assert len(read_lists(prepare_data(config, folder)).test) == 10


def test_no_list_that_is_read_is_written(clips: Path, folder: Path) -> None:
    """As where a run is kept in the folder of its lists."""
    listed = folder / "train.csv"
    listed.write_text("path,label\n" + "".join(f"{clips}/run/{i}.mp4,run\n" for i in range(10)))
    before = listed.read_text()
    with pytest.raises(RunError, match=r"train.csv is where this run would write a list of its own"):
        prepare_data(DataConfig(train=str(listed)), folder)
    assert listed.read_text() == before


def test_numbers_of_the_test_list_begin_where_those_of_the_training_list_do(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("id,name\n1,jump\n2,run\n")
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1.mp4 1\n{name}2.mp4 2\n")
    train, test, classes = (str(tmp_path / name) for name in ("train.txt", "test.txt", "classes.csv"))
    lists = read_lists(DataConfig(train=train, test=test, classes=classes))
    assert [video.label for video in (*lists.train, *lists.test)] == [0, 1, 0, 1]


def test_the_split_has_a_share_and_a_seed(clips: Path, tmp_path: Path) -> None:
    tested = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        data = prepare_data(DataConfig(train=str(clips), test_size=0.3, split_seed=seed), tmp_path / str(seed))
        tested.append(read_lists(data).test)
    assert len(tested[0]) == len(tested[1]) == 6
    assert tested[0] != tested[1]


def test_lists_that_are_there_are_taken_as_they_are(clips: Path, folder: Path) -> None:
    write_text(clips / "train.txt", "yo_yo/0.mp4 yo_yo\nrun/0.mp4 run\n")
    data = DataConfig(train=str(clips / "train.txt"), test=str(clips / "train.txt"))
    assert prepare_data(data, folder) == data
    assert not list(folder.iterdir())
    held = read_lists(prepare_data(DataConfig(train=str(clips), test=str(clips / "train.txt")), folder))
    assert (len(held.train), len(held.test)) == (20, 2)


def test_a_class_of_one_source_is_named_and_a_list_of_such_refused(
    clips: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(clips / "one.txt", "run/0.mp4 run\nrun/1.mp4 run\nyo_yo/0.mp4 yo_yo\n")
    assert len(read_lists(prepare_data(DataConfig(train=str(clips / "one.txt")), folder)).test) == 1
    assert "1 classes have one source each and are not tested: yo yo" in capsys.readouterr().out
    write_text(clips / "none.txt", "run/0.mp4 run\nyo_yo/0.mp4 yo_yo\n")
    (folder / "test.csv").unlink()
    with pytest.raises(RunError, match=r"no class of .*none.txt has videos of two sources.*name --data.test"):
        prepare_data(DataConfig(train=str(clips / "none.txt")), folder)


def test_missing_videos_are_left_out_on_request_and_recorded(
    write_video: VideoWriter, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(name, frames=2)
    (tmp_path / "page.mp4").write_text("<html>this video is not available</html>")
    (tmp_path / "empty.mp4").touch()
    names = ["a.mp4", "b.mp4", "page.mp4", "empty.mp4", "none.mp4", "nothing.mp4"]
    write_text(tmp_path / "train.csv", "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    write_text(tmp_path / "test.csv", "path,label\nc.mp4,a\nmissing.mp4,p\n")
    given = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "test.csv"), "workers": 0}
    assert prepare_data(DataConfig(**given), folder) == DataConfig(**given)  # type: ignore[arg-type]
    data = prepare_data(DataConfig(**given, missing="skip"), folder)  # type: ignore[arg-type]
    lists = read_lists(data)
    assert [video.path.name for video in lists.train] == ["a.mp4", "b.mp4"]
    assert [video.path.name for video in lists.test] == ["c.mp4"]
    assert lists.classes == ["a", "b", "e", "n", "p"]  # also of what is missing
    out = capsys.readouterr().out
    assert (
        "data.train: 4 of 6 videos (66.7%) are missing and left out: 2 no such file, "
        "1 truncated, damaged or no video, 1 empty file\n" in out
    )
    assert "data.test: 1 of 2 videos (50.0%) are missing and left out: 1 no such file\n" in out
    assert count_missing(folder) == {"train": 4, "test": 1}
    entries = [json.loads(line) for line in (folder / "missing.jsonl").read_text().splitlines()]
    assert entries[-1] == {"list": "test", "path": str(tmp_path / "missing.mp4"), "cause": "no such file"}
    write_video("missing.mp4")
    assert read_lists(prepare_data(DataConfig(**given, missing="skip"), folder)) == lists  # type: ignore[arg-type]


def test_where_all_is_missing_the_root_is_wrong(clips: Path, folder: Path) -> None:
    with pytest.raises(
        RunError, match=r"none of the 20 videos of data.train is there \(20 empty file\), as .*\. Is data.root"
    ):
        prepare_data(DataConfig(train=str(clips), missing="skip", workers=0), folder)


def test_what_is_not_there_is_counted_before_training(
    clips: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are looked for, not opened: any that hold something count as there."""
    for path in clips.glob("*/*.mp4"):
        path.write_text("something")
    names = "".join(f"run/{i}.mp4 run\n" for i in range(12))  # two of which there are none
    write_text(clips / "list.txt", names)
    data = DataConfig(train=str(clips / "list.txt"), test=str(clips / "list.txt"), max_bad_share=0.2)
    check_presence(data, read_lists(data))
    share = "2 of 12 videos (16.7%)"
    assert capsys.readouterr().out == "".join(
        f"data.{name}: {share} are not there: 2 no such file\n" for name in ("train", "test")
    )
    with pytest.raises(RunError) as caught:
        check_presence(replace(data, max_bad_share=0.1), read_lists(data))
    assert str(caught.value) == (
        f"{share} of data.train are not there (2 no such file), more than data.max_bad_share 0.1 allows: "
        "--data.missing skip leaves them out"
    )
    nowhere = replace(data, root=str(folder), max_bad_share=1.0)
    with pytest.raises(
        RunError, match=r"none of the 12 videos of data.train is there \(12 no such file\), as .*\. Is data.root"
    ):
        check_presence(nowhere, read_lists(nowhere))
    listed = folder / "from_windows.csv"
    listed.write_text("path,label\n" + "".join(f"run\\{number}.mp4,run\n" for number in range(3)))
    windows = replace(data, train=str(listed), max_bad_share=1.0)
    with pytest.raises(RunError, match=r"\(3 no such file\), as .*\. Paths need slashes in place of backslashes"):
        check_presence(windows, read_lists(windows))


def test_videos_trained_on_and_tested_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen, new = Video(Path("clips/a.mp4"), 0), Video(Path("clips/b.mp4"), 0)
    say_overlap(Lists([seen], [new], ["run"], [], []))
    assert capsys.readouterr().out == ""
    again = Video(Path("clips/../clips/a.mp4"), 0)  # as another list spells it
    say_overlap(Lists([seen], [new, again], ["run"], [seen], ["run"]))
    assert capsys.readouterr().out.splitlines() == [
        "data.test: 1 of 2 videos are trained on, too, as clips/../clips/a.mp4",
        "data.unseen: 1 of 1 videos are trained on, too, as clips/a.mp4",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_size": 1.0}, "test_size must be in (0, 1), got 1.0"),
        ({"test_size": 0.2, "test": "a.csv"}, "leave out test or test_size"),
        ({"split_seed": -1}, "split_seed must be >= 0"),
        ({"generate": "motion_shapes", "train": "clips"}, "generate motion_shapes has lists of its own"),
        ({"generate": "motion_shapes", "test_size": 0.5}, "lists of its own, which test_size would not change"),
        ({"generate": "motion_shapes", "classes": "c.csv", "missing": "skip"}, "which classes, missing would not ch"),
        ({"train": "clips", "unseen_classes": "c.csv"}, "unseen_classes names the classes of unseen: name its vid"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        DataConfig(**settings)
    assert message in str(caught.value)
