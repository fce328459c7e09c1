"""Races as they are run: what a quick run cuts is named, and what an interrupted one measured is kept."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.session import CUT, EVERYONE, Row

RACES = """
def test_first(race):
    steps = {"ours": int, "theirs": int, "slower": int}
    race("first", steps, "ours", "theirs", rounds=3, further=["slower"], macs={"ours": 1})

def test_second(race, cut):
    cut("second")
    race("second", {"ours": int}, "ours", "ours", rounds=2)
"""

INTERRUPTED = """
def test_third(race):
    times = iter(range(3))

    def stopped():
        if next(times) == 2:
            raise KeyboardInterrupt

    race("third", {"ours": stopped}, "ours", "ours", rounds=5)
"""

COMPILED = """
import torch
from torch._dynamo.utils import counters

def power(n):
    return torch.compile(lambda x: x**n, backend="eager", dynamic=False)

def test_powers(race):
    before, x, steps = counters["stats"]["unique_graphs"], torch.ones(3), [power(n) for n in range(2, 14)]
    race("powers", {"ours": lambda: [step(x) for step in steps]}, "ours", "ours", rounds=2)
    assert counters["stats"]["unique_graphs"] - before == 12
"""

Run = Callable[..., tuple[int, str, list[Row]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs races on a CPU, with benchmarks/conftest.py: returns the exit status, what is printed, and the rows."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in [name for name in os.environ if "XDIST" in name]:
        monkeypatch.delenv(name)

    def run(text: str, *options: str) -> tuple[int, str, list[Row]]:
        races = tmp_path / f"{tmp_path.name}.py"  # a module of its own, which pytest imports once by its name
        races.write_text(text)
        plugins = [f"-p{name}" for name in ("benchmarks.conftest", "no:cacheprovider", "no:faulthandler")]
        settings = ["--benchmark-only", "--import-mode=importlib", f"--results={tmp_path / 'out.jsonl'}"]
        status = pytest.main([str(races), *plugins, *settings, *options])
        head, *rows = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert "device" in head["provenance"]
        if status == pytest.ExitCode.OK:
            last = rows.pop()
            assert last["whole_run"] > 0
            assert last["full"] == ("--full" in options)
        return status, capsys.readouterr().out, rows

    return run


def test_a_quick_run_says_what_it_cut(run: Run) -> None:
    status, out, rows = run(RACES)
    assert status == 0
    assert "\ncut: slower (first); second; --full runs them\n" in out
    assert {row["contestant"]: row["rounds"] for row in rows if "seconds" in row} == {"ours": 3, "theirs": 3}
    assert rows[2:] == [
        {"case": "first", "contestant": "slower", "skipped": CUT},
        {"case": "second", "contestant": EVERYONE, "skipped": CUT},
    ]


def test_a_full_run_cuts_nothing(run: Run) -> None:
    status, out, rows = run(RACES, "--full")
    assert status == 0
    assert "cut:" not in out
    assert [(row["case"], row["contestant"]) for row in rows] == [
        *(("first", name) for name in ("ours", "theirs", "slower")),
        ("second", "ours"),
    ]
    assert all(len(row["times"]) == row["rounds"] for row in rows)


def test_an_interrupted_run_keeps_and_shows_what_it_measured(run: Run) -> None:
    status, out, rows = run(RACES + INTERRUPTED, "--full")
    assert status == pytest.ExitCode.INTERRUPTED
    assert {row["case"] for row in rows} == {"first", "second"}
    assert re.search(r"\nfirst\n    ours .* ms .*\nwritten to .*out.jsonl\n", out, re.DOTALL)


def test_what_is_called_compiled_is(run: Run) -> None:
    """However many compilations of a function there were."""
    status, _, rows = run(COMPILED)
    assert status == 0
    assert rows[0]["rounds"] == 2
