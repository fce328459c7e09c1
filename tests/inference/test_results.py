"""A file of results: whole and in order, whoever wrote which part of it, and however often it was interrupted."""

import csv
import json
import os
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alt_fast.data.batch import Failure
from alt_fast.distributed import World
from alt_fast.errors import FileError, RunError
from alt_fast.inference.predict import EntityShare, Prediction, shares_of
from alt_fast.inference.results import Found, check_path, write_results

SHARES = shares_of(23, 3)
SETTINGS = {"r": 4, "videos": "23 (abc)"}
LABELS = ['one, then "another"', "two\nlines", "打篮球"]


def find(number: int) -> Found:
    """What is said of a video: every seventh cannot be read."""
    if number % 7 == 3:
        return Failure(f"{number}.mp4", "no such file")
    labels = [(label, (number + 1) / (place + 3)) for place, label in enumerate(LABELS)]
    return Prediction(f"{number}, 视频.mp4", labels, [[EntityShare("star", "object", 1.0)]])


@dataclass
class Finder:
    """Predicts, and is interrupted once it has predicted so many shares."""

    patience: int = 1000
    seen: list[range] = field(default_factory=list)

    def __call__(self, shares: Sequence[range]) -> Iterator[list[Found]]:
        for place, share in enumerate(shares):
            if place == self.patience:
                raise KeyboardInterrupt
            self.seen.append(share)
            yield [find(number) for number in share]


class Meeting:
    """Where threads meet that stand for processes."""

    def __init__(self, size: int) -> None:
        self.barrier, self.items = threading.Barrier(size), [None] * size
        self.interrupted = False


@dataclass(frozen=True)
class ThreadWorld(World):
    """A thread among `size` of them, which ends where it would wait for one that was interrupted."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def gather(self, item: Any) -> list[Any]:
        self.meeting.items[self.rank] = item
        self.meeting.barrier.wait(60)
        if self.meeting.interrupted:
            raise ConnectionError("one of them is gone")
        found = list(self.meeting.items)
        self.meeting.barrier.wait(60)
        return found


def write(path: Path, finder: Finder, processes: int = 1) -> int:
    meeting = Meeting(processes)

    def work(world: World) -> int:
        try:
            return write_results(path, 3, SETTINGS, SHARES, finder, world)
        except KeyboardInterrupt:
            meeting.interrupted = True
            meeting.barrier.wait(60)  # where the others do
            raise

    with ThreadPoolExecutor(processes) as pool:
        worlds = [ThreadWorld(rank, processes, meeting=meeting) for rank in range(processes)]
        return sum(pool.map(work, worlds))


def test_csv(tmp_path: Path) -> None:
    """Cells with commas, quotes, line ends and other scripts come back; what cannot be read has its cause."""
    assert write(tmp_path / "new" / "a.csv", Finder()) == 3
    with (tmp_path / "new" / "a.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = "video error label probability label_2 probability_2 label_3 probability_3"
    assert header == columns.split()
    assert len(rows) == 23
    for number, row in enumerate(rows):
        found = find(number)
        if isinstance(found, Failure):
            assert row == [found.path, found.cause, *[""] * 6]
        else:
            assert row[:2] == [found.video, ""]
            assert [(row[i], float(row[i + 1])) for i in (2, 4, 6)] == found.labels
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.csv"]


def test_json_lines(tmp_path: Path) -> None:
    assert write(tmp_path / "a.jsonl", Finder()) == 3
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    expected = [find(number) for number in range(23)]
    assert rows == [
        {"video": found.path, "error": found.cause} if isinstance(found, Failure) else found.as_dict()
        for found in expected
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_interrupted_twice_and_by_other_numbers_of_processes(tmp_path: Path, name: str) -> None:
    """No share is predicted twice, but for the one whose line was cut off; the bytes are those of one go."""
    path = tmp_path / name
    finders = [Finder(2), Finder(1), Finder()]
    with pytest.raises(KeyboardInterrupt):
        write(path, finders[0], processes=3)
    (cut_off, *_) = sorted((tmp_path / f"{name}.partial").glob("*.jsonl"))
    cut_off.write_text(cut_off.read_text()[:-9])
    with pytest.raises(KeyboardInterrupt):
        write(path, finders[1], processes=2)
    assert not path.exists()
    assert write(path, finders[2]) == 3
    assert [len(finder.seen) for finder in finders] == [6, 2, 1]
    assert {share for finder in finders for share in finder.seen} == set(SHARES)
    write(tmp_path / f"one-{name}", Finder())
    assert path.read_bytes() == (tmp_path / f"one-{name}").read_bytes()
    assert not (tmp_path / f"{name}.partial").exists()


def test_killed_before_the_last_tidying(tmp_path: Path) -> None:
    """The file is there, and so is the folder: nothing is predicted again."""
    path = tmp_path / "a.csv"
    with pytest.raises(KeyboardInterrupt):
        write(path, Finder(7))
    path.touch()
    check_path(path)
    finder = Finder()
    write(path, finder)
    assert finder.seen == [SHARES[7]]
    with pytest.raises(RunError, match=r"a\.csv is there already: remove it, or choose another --out"):
        check_path(path)


def test_other_settings_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(KeyboardInterrupt):
        write(path, Finder(1))
    with pytest.raises(RunError, match=r"a\.csv\.partial was begun otherwise: r was 4, now 0\. Choose another --out"):
        write_results(path, 3, SETTINGS | {"r": 0}, SHARES, Finder(), World())


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(KeyboardInterrupt):
        write(path, Finder(2))
    part = tmp_path / "a.csv.partial" / "00000.jsonl"
    part.write_text("\0\0\n" + part.read_text())
    with pytest.raises(FileError, match=r"cannot read .*00000\.jsonl: .*without it, the same command makes it anew"):
        write(path, Finder())
    part.unlink()
    assert write(path, Finder()) == 3


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    def predict(shares: Sequence[range]) -> Iterator[list[Found]]:
        (tmp_path / "a.csv.partial" / "00000.jsonl").mkdir()  # in the way
        yield from Finder()(shares)

    with pytest.raises(FileError, match=r"cannot write .*00000\.jsonl: "):
        write_results(tmp_path / "a.csv", 3, SETTINGS, SHARES, predict, World())


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_names_that_are_not_utf8(tmp_path: Path, suffix: str) -> None:
    def predict(shares: Sequence[range]) -> Iterator[list[Found]]:
        yield [Prediction(os.fsdecode(b"caf\xe9.mp4"), [("a", 1.0)], []), Failure(os.fsdecode(b"\xe9.mp4"), "empty")]

    path = tmp_path / f"a{suffix}"
    assert write_results(path, 1, SETTINGS, [range(2)], predict, World()) == 1
    text = path.read_text(encoding="utf-8")
    if suffix == ".csv":
        assert text == "video,error,label,probability\ncaf\\xe9.mp4,,a,1.0\n\\xe9.mp4,empty,,\n"
    else:
        assert [json.loads(line)["video"] for line in text.splitlines()] == ["caf\\xe9.mp4", "\\xe9.mp4"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_is_that_of_a_share(tmp_path: Path, suffix: str) -> None:
    """Eight MB of results, a hundredth of it at a time."""
    label = "x" * 20_000

    def predict(shares: Sequence[range]) -> Iterator[list[Found]]:
        for share in shares:
            yield [Prediction(f"{number}.mp4", [(label, 0.5)], []) for number in share]

    path = tmp_path / f"a{suffix}"
    tracemalloc.start()
    write_results(path, 1, SETTINGS, shares_of(400, 4), predict, World())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 8e6
    assert peak < 1e6
