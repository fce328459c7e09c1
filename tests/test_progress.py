"""What long work shows: a bar in a terminal, lines with the time left elsewhere, nothing where it is not shown."""

import re
import sys
import time

import pytest

from alt_fast import progress
from alt_fast.progress import Progress


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At least one in each stretch of time, also while one item takes longer than that."""
    monkeypatch.setattr(progress, "LINE_EVERY", 0.1)
    seen = []
    for item in (bar := Progress(range(4), "work", "step", initial=2, total=6)):
        bar.annotate(f"loss={item}")
        time.sleep(0.35 if item == 1 else 0.06)
        seen.append(item)
    assert seen == [0, 1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("work: ") and "/6 [" in line for line in lines)
    assert len([line for line in lines if "3/6" in line and "loss=1" in line]) >= 2
    assert re.search(r"<\d\d:\d\d", lines[-1])  # the time left
    time.sleep(0.25)
    assert capsys.readouterr().err == ""


def test_nothing_where_it_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    for _ in Progress(range(3), "work", "step", shown=False):
        time.sleep(0.03)
    assert capsys.readouterr().err == ""


def test_items_of_many_units(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The rate is that of units, however many come at once."""
    monkeypatch.setattr(progress, "LINE_EVERY", 0.25)
    for _ in Progress([range(30), range(30), range(10)], "work", "video", total=70, size=len):
        time.sleep(0.2)
    first = capsys.readouterr().err.splitlines()[0]
    rate = re.search(r" 30/70 \[.*, +([\d.]+)video/s\]", first)
    assert rate is not None, first
    assert 30 < float(rate[1]) < 300


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(Progress(iter("abc"), "work", "letter", total=3)) == ["a", "b", "c"]
    assert "100%" in capsys.readouterr().err


def test_work_that_is_left_early_stops_its_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.05)
    for _ in Progress(range(3), "work", "step"):
        break
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""
