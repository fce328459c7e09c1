"""Files that appear whole or not at all, and who may write where."""

import csv
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alt_fast.data.annotations import read_classes, read_list
from alt_fast.errors import FileError, RunError
from alt_fast.files import check_place, make_folder, sole_writer, whole_folder, write_atomically, write_csv, write_text


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(FileError, match="cannot write .*file: disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    write_atomically(path, lambda partial: partial.write_text("new"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    link, file = tmp_path / "link.txt", tmp_path / "below" / "file.txt"
    link.symlink_to("below/file.txt")
    for text in ("new", "newer"):
        check_place(link)
        write_atomically(link, lambda partial, text=text: partial.write_text(text))  # type: ignore[misc]
        assert link.is_symlink()
        assert file.read_text() == text
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["file.txt"]


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    check_place(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        write_atomically(pipe, lambda partial: partial.write_text("new"))
        assert reader.read() == "new"
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_what_is_neither_a_file_nor_a_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")  # its name may not be long
        for write in (check_place, lambda path: write_atomically(path, Path.touch)):
            for path, what in ((tmp_path, "a folder"), (Path("socket"), "no file")):
                with pytest.raises(FileError, match=f"cannot write {path}: it is {what}"):
                    write(path)


def test_what_is_no_fault_of_the_disk_is_raised_as_it_is(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "file", fail)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_are_no_utf_8_are_refused(tmp_path: Path) -> None:
    """As an argument of a command may be, or a file's name."""
    for name, write in (
        ("a.srt", lambda path: write_text(path, "surf\udcffing")),
        ("a.csv", lambda path: write_csv(path, ["label"], [["surf\udcffing"]])),
    ):
        with pytest.raises(FileError, match=rf"cannot write .*{name}: .*can't encode character '.udcff' in position"):
            write(tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"cannot make folder .*file/below: "):
        make_folder(tmp_path / "file" / "below")


def fill(folder: Path) -> None:
    for name in "abc":
        (folder / name).touch()


def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path) -> None:
    """A mount point cannot be replaced, and the folder that it is in may take nothing."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    before = folder.stat().st_ino
    with whole_folder(folder) as partial:
        fill(partial)
        assert [path.name for path in tmp_path.iterdir()] == ["mounted"]
    assert folder.stat().st_ino == before
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c"]


def test_a_folder_that_cannot_be_filled_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def refuse(source: Path, destination: Path) -> None:
        if destination == tmp_path / "b":
            raise OSError(errno.ENOSPC, "disk full")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FileError, match=f"cannot make folder {tmp_path}: disk full"), whole_folder(tmp_path) as partial:
        fill(partial)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileError, match="not empty"), whole_folder(tmp_path):
        (tmp_path / "another's").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["another's"]


def test_a_place_is_looked_at_before_the_work(tmp_path: Path) -> None:
    """Its folder is made, and nothing else is there afterwards."""
    check_place(tmp_path / "new" / "page.html")
    assert [file.name for file in tmp_path.rglob("*")] == ["new"]
    for path, message in ((tmp_path / "new", "new: it is a folder"), (Path("/proc/1/a"), "cannot write /proc/1/a: ")):
        with pytest.raises(FileError, match=message):
            check_place(path)


NAMES = [
    "# 1",
    "plain",
    "one, then another",
    'the "quoted" one',
    "two\nlines",
    "打篮球",
    "a;b",
    "semi\r\ncolon",
    " spaced ",
]


def test_names_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Commas, quotes, line ends, other scripts: as class files and as lists."""
    write_csv(tmp_path / "classes.csv", ("id", "name"), enumerate(NAMES))
    assert read_classes(tmp_path / "classes.csv") == NAMES
    rows = [(f"{name}.mp4", name) for name in NAMES]
    write_csv(tmp_path / "list.csv", ("path", "label"), rows)
    videos, names = read_list(tmp_path / "list.csv", tmp_path / "classes.csv")
    assert [(video.path.name, names[video.label]) for video in videos] == [(path, name) for path, name in rows]
    with (tmp_path / "list.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1:] == [list(row) for row in rows]


def test_one_process_writes_to_a_folder(tmp_path: Path) -> None:
    """The second is refused with the name of the first; a killed one leaves no lock, and its leftovers go."""
    hold = "import sys, pathlib, time; from alt_fast.files import sole_writer\n"
    hold += "with sole_writer(pathlib.Path(sys.argv[1])): print('here', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        (tmp_path / ".half.1-2.partial.pt").touch()
        with pytest.raises(RunError, match=rf"is being written by process {first.pid} on "), sole_writer(tmp_path):
            pass
        first.kill()
    with sole_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
