"""Which videos names stand for: folders, globs, lists and files, each video once."""

import json
import os
from pathlib import Path

import pytest

from alt_fast.data.find import find_videos
from alt_fast.data.tables import AnnotationError
from alt_fast.errors import ArgumentError, FileError

FILES = [
    *("b/2.mp4", "b/10.AVI", "b/deep/er/x.webm", "a.mkv", "clip[1].mp4", "odd, name.mp4"),
    *(".hidden.mp4", ".git/y.mp4", "notes.md", "b/labels.srt"),
]


STARS = ("**/*.webm", "**/**/*.webm")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    return tmp_path / "clips"


def test_a_folder_is_all_its_videos(clips: Path) -> None:
    expected = ["a.mkv", "b/10.AVI", "b/2.mp4", "b/deep/er/x.webm", "clip[1].mp4", "odd, name.mp4"]
    assert find_videos([clips]) == find_videos([f"{clips}/"]) == [clips / name for name in expected]


def test_what_a_folder_holds_beside_is_counted(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders behind links are not followed, unless one is named; links to videos are."""
    (tmp_path / "linked").symlink_to(clips / "b")
    (clips / "b/linked").symlink_to(clips)
    (clips / "b/z.mp4").symlink_to(clips / "a.mkv")
    expected = [tmp_path / "linked" / name for name in ("10.AVI", "2.mp4", "deep/er/x.webm", "z.mp4")]
    assert find_videos([tmp_path / "linked", clips / "b/deep"]) == [*expected, clips / "b/deep/er/x.webm"]
    said = capsys.readouterr()
    causes = "1 hidden or no videos, 1 folders behind links"
    assert (said.out, said.err) == ("", f"{tmp_path}/linked: 4 videos; 2 passed over: {causes}\n")
    told: list[str] = []
    find_videos([clips], tell=told.append)
    assert told == [f"{clips}: 7 videos; 4 passed over: 3 hidden or no videos, 1 folders behind links"]
    (tmp_path / "links").mkdir()
    (tmp_path / "links/clips").symlink_to(clips)
    with pytest.raises(ArgumentError, match=r"links holds no videos \(.*\); passed over: 1 folders behind links$"):
        find_videos([tmp_path / "links"])


def test_a_glob_is_what_it_matches(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is hidden, and without links that lead back where `**` stands for folders."""
    assert find_videos([f"{clips}/b/*"]) == [clips / "b/10.AVI", clips / "b/2.mp4", clips / "b/labels.srt"]
    assert find_videos([f"{clips}/**/*.webm"]) == [clips / "b/deep/er/x.webm"]
    assert find_videos([f"{clips}/**/deep/**"]) == [clips / "b/deep/er/x.webm"]
    monkeypatch.chdir(clips)
    assert find_videos(["**/*.mp4"]) == [Path("b/2.mp4"), Path("clip[1].mp4"), Path("odd, name.mp4")]
    (clips / "loop").symlink_to(clips)
    (clips / "again").symlink_to(clips)
    told: list[str] = []
    assert find_videos([f"{clips}/**/*.webm"], tell=told.append) == [clips / "b/deep/er/x.webm"]
    find_videos([f"{clips}/**/**/*.webm"], tell=told.append)
    assert told == [f"{clips}/{stars}: 1 files; passed over: 2 folders behind links" for stars in STARS]
    with pytest.raises(ArgumentError, match=r"no file matches .*; passed over: 2 folders behind links$"):
        find_videos([f"{clips}/**/none*"])
    assert find_videos([f"{clips}/b**/2.mp4", f"{clips}/**.mkv"]) == [clips / "b/2.mp4", clips / "a.mkv"]
    assert find_videos([f"{clips}/**/*.webm"]) == [clips / "b/deep/er/x.webm"]
    assert find_videos([f"{clips}/loop/b/*.mp4"]) == [clips / "loop/b/2.mp4"]  # which is named
    assert find_videos([str(clips / "clip[1].mp4")]) == [clips / "clip[1].mp4"]


def test_names_keep_their_order_and_every_video_comes_once(clips: Path) -> None:
    given: list[str | Path] = [clips / "b/2.mp4", "none.mp4", clips / "b", f"{clips}/./b/2.mp4"]
    given += [f"{clips}/b/../b/10.AVI", os.path.relpath(clips / "b/2.mp4")]
    expected = [clips / "b/2.mp4", Path("none.mp4"), clips / "b/10.AVI", clips / "b/deep/er/x.webm"]
    assert find_videos(given) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "b/2.mp4 7\nb/deep/er/x.webm waving\n"),
        ("list.csv", "path,label\nb/2.mp4,7\nb/deep/er/x.webm,waving\n"),
        ("testlist01.txt", "b/2.mp4\nb/deep/er/x.webm\n"),
        ("alone.txt", "b/2.mp4\n\nb/deep/er/x.webm \n"),
    ],
)
def test_labels_of_lists_do_not_count(clips: Path, tmp_path: Path, name: str, text: str) -> None:
    expected = [clips / "b/2.mp4", clips / "b/deep/er/x.webm"]
    (clips / name).write_text(text)
    (tmp_path / name).write_text(text)
    assert find_videos([clips / name]) == find_videos([tmp_path / name], root=clips) == expected


def test_paths_alone_may_have_spaces(clips: Path) -> None:
    (clips / "list.txt").write_text("odd, name.mp4\na.mkv\n")
    assert find_videos([clips / "list.txt"]) == [clips / "odd, name.mp4", clips / "a.mkv"]


def test_lists_of_public_datasets(tmp_path: Path) -> None:
    (tmp_path / "something.json").write_text(json.dumps([{"id": 12, "template": "Pushing [something]"}]))
    assert find_videos([tmp_path / "something.json"]) == [tmp_path / "12.webm"]
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end,split\nair drumming,abc,3,13,val\n")
    (tmp_path / "air_drumming").mkdir()
    (tmp_path / "air_drumming" / "abc_000003_000013.mp4").touch()
    assert find_videos([tmp_path / "k.csv"]) == [tmp_path / "air_drumming" / "abc_000003_000013.mp4"]
    (tmp_path / "wave_test_split1.txt").write_text("w1.avi 1\nw2.avi 2\n")
    assert find_videos([f"{tmp_path}/*_test_split1.txt"]) == [tmp_path / "wave/w1.avi", tmp_path / "wave/w2.avi"]


def test_names_that_stand_for_nothing(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    for names, error, message in (
        ([], ArgumentError, "videos must not be empty"),
        (["empty"], ArgumentError, r"folder .*empty holds no videos \(.mp4, .avi, .mkv and the like\)$"),
        (["clips", "clips/*.mov"], ArgumentError, r"no file matches .*\*\.mov"),
        (["none.csv"], AnnotationError, "cannot read .*none.csv"),
        (["empty.txt"], AnnotationError, "empty.txt: the list names no videos"),
    ):
        with pytest.raises(error, match=message):
            find_videos([f"{tmp_path}/{name}" for name in names])
    with pytest.raises(ArgumentError, match="root .* has no effect without a list"):
        find_videos([clips], tmp_path)


def test_a_folder_that_cannot_be_read(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its videos are not lost without a word."""

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(FileError, match="cannot read folder .*clips: Permission denied"):
        find_videos([clips])
