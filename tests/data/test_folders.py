"""A folder of clips with a folder per class is a list."""

import os
from pathlib import Path

import pytest

from alt_fast.data.annotations import read_list
from alt_fast.data.storage import StorageError, locate
from alt_fast.data.tables import AnnotationError


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_folders_are_classes_and_videos_in_any_usual_format_their_clips(tmp_path: Path) -> None:
    clips = fill(tmp_path / "clips", "yo_yo/b.MOV", "yo_yo/a.mp4", "TaiChi/c.webm", "TaiChi/d e.avi")
    said: list[str] = []
    videos, classes = read_list(clips, root=tmp_path / "elsewhere", tell=said.append)
    assert classes == ["tai chi", "yo yo"]
    assert [(video.path.relative_to(clips).as_posix(), video.label) for video in videos] == [
        ("TaiChi/c.webm", 0),
        ("TaiChi/d e.avi", 0),
        ("yo_yo/a.mp4", 1),
        ("yo_yo/b.MOV", 1),
    ]
    assert not said
    assert read_list(clips, ["yo yo", "sleeping", "tai chi"])[0][0].label == 2


def test_what_is_hidden_or_no_video_or_deeper_is_passed_over_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, "run/a.mp4", "run/._a.mp4", "run/notes.txt", ".cache/b.mp4", "README.md", "c.mp4")
    fill(tmp_path / "run", "ann/b.mp4", "ann/._b.mp4", "ann/notes.txt", "ann/.cut/d.mp4", "bob/e.mp4", "bob/more/f.mp4")
    videos, classes = read_list(tmp_path)
    assert [video.path.name for video in videos] == ["a.mp4"]
    assert classes == ["run"]
    said = capsys.readouterr()
    causes = "4 hidden, beside the classes or no videos, 3 in folders inside the classes"
    assert said.err == f"{tmp_path}: 1 videos; 7 files passed over: {causes}\n"
    assert not said.out


def test_a_link_to_a_clip_is_a_clip_wherever_it_leads(tmp_path: Path) -> None:
    fill(tmp_path, "elsewhere/a.mp4")
    (tmp_path / "clips" / "run").mkdir(parents=True)
    (tmp_path / "clips" / "run" / "here.mp4").symlink_to(tmp_path / "elsewhere" / "a.mp4")
    (tmp_path / "clips" / "run" / "nowhere.mp4").symlink_to(tmp_path / "none.mp4")
    (tmp_path / "clips" / "jump").symlink_to(tmp_path / "elsewhere")
    videos, classes = read_list(tmp_path / "clips")
    assert [f"{classes[video.label]}/{video.path.name}" for video in videos] == [
        "jump/a.mp4",
        "run/here.mp4",
        "run/nowhere.mp4",
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), r"clips holds no folders: expected a folder for each class, .*clips/LABEL/\*.mp4"),
        (("a.mp4",), "clips holds videos, but no folders: expected a folder for each class"),
        (("run/a.mp4", "jump/notes.txt"), "clips/jump holds no videos$"),
        (
            ("train/run/a.mp4",),
            "clips/train holds no videos but folders, as run: if .*, name .*/clips/train$",
        ),
        (("0/a.mp4", "1/a.mp4"), "clips: its labels are numbers, so a class file is needed"),
    ],
)
def test_folders_without_classes_and_classes_without_videos_are_named(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    (tmp_path / "clips").mkdir()
    with pytest.raises(AnnotationError, match=message):
        read_list(fill(tmp_path / "clips", *names))


def test_labels_outside_the_classes_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"run: label 'run' is not among the 1 classes"):
        read_list(fill(tmp_path, "run/a.mp4"), ["jump"])


def test_a_name_that_no_list_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    try:
        with open(os.fsencode(tmp_path / "run") + b"/\xe9.mp4", "w"):
            pass
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(AnnotationError, match=r"the file name '\\udce9.mp4' is not UTF-8: rename it"):
        read_list(tmp_path)


def test_a_link_in_circles_and_a_folder_called_tar_are_no_fault_of_the_rest(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set.tar", "a/1.mp4", "b/2.mp4")
    (folder / "a" / "x.mp4").symlink_to("x.mp4")
    videos, _ = read_list(folder, None, None, "test")
    assert [str(video.path.relative_to(folder)) for video in videos] == ["a/1.mp4", "a/x.mp4", "b/2.mp4"]
    (folder / "a" / "1.mp4").write_bytes(b"some")
    assert locate(folder / "a" / "1.mp4").size == 4
    with pytest.raises(StorageError, match="no such archive: other.tar"):
        locate(folder / "other.tar" / "1.mp4")
