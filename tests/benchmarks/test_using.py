"""Rates of many videos, of a long one and of a live one, and a command's start: what is run, and what is counted."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alt_fast import classify, load
from alt_fast.errors import RunError
from alt_fast.measure.timing import in_turn
from alt_fast.model.config import PRESETS
from benchmarks import using
from benchmarks.rounds import quartiles
from benchmarks.using import command, main


@pytest.fixture
def listed(trained_run: Path, tmp_path: Path) -> Path:
    """Two videos of six pictures, ten a second, with their labels."""
    folder = trained_run.parent / "data" / "test"
    path = tmp_path / "list.csv"
    videos = sorted(folder.glob("*.webm"))[:2]
    path.write_text("path,label\n" + "".join(f"{video},a square moving up\n" for video in videos))
    return path


def measure(part: str, run: Path, listed: Path, *options: str) -> dict[str, Any]:
    """Run a part twice round; returns its row."""
    out = listed.with_name("using.jsonl")
    command = [part, "--checkpoint", str(run), "--list", str(listed), "--rounds", "2", "--out", str(out), *options]
    assert main(command) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["using"], row["rounds"]) == (part, 2)
    assert row["provenance"]["commit"]
    return row


def test_every_round_begins_with_another_contestant() -> None:
    assert list(in_turn("abc", 4)) == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]


def test_many_races_the_code_and_the_commands(
    trained_run: Path, listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands are started once to warm up, and in two rounds."""
    started: list[str] = []

    def start(arguments: Sequence[str]) -> None:
        options = classify.make_parser().parse_args(arguments)
        assert (options.checkpoint, options.workers) == (str(trained_run), 0)
        started.extend(options.videos)
        options.out.touch()

    monkeypatch.setattr(using, "command", start)
    row = measure("many", trained_run, listed, "--chunk", "1", "--workers", "0")
    first, second = (line.partition(",")[0] for line in listed.read_text().splitlines()[1:])
    assert sorted(started) == sorted(3 * [str(listed), first, second])
    assert (row["videos"], row["chunk"]) == (2, 1)
    assert list(row["seconds"]) == ["classify", "evaluate", "one command", "a command for every 1"]
    for name, seconds in row["seconds"].items():
        assert len(seconds) == 2
        assert row["videos_per_second"][name] == quartiles(2 / each for each in seconds)
    for fast, slow in (("classify", "evaluate"), ("one command", "a command for every 1")):
        rounds = zip(row["seconds"][slow], row["seconds"][fast], strict=True)
        assert row["ratio"][f"{fast} beside {slow}"] == quartiles(a / b for a, b in rounds)
    assert "classify beside evaluate: " in capsys.readouterr().out


def test_many_refuses_videos_that_cannot_be_read(
    trained_run: Path, listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(using, "command", lambda arguments: Path(arguments[-1]).touch())
    (listed.parent / "broken.mp4").touch()
    listed.write_text(f"{listed.read_text()}broken.mp4,a square moving up\n")
    assert main(["many", "--checkpoint", str(trained_run), "--list", str(listed), "--workers", "0"]) == 1
    assert "list.csv has videos that cannot be read: alt-fast data check names them" in capsys.readouterr().err


def test_a_command_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(RunError, match=r"alt-fast classify exits with 2: .* unrecognized arguments: --nothing"):
        command(["a.mp4", "--nothing"])


def test_a_command_has_its_variables_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def run(words: list[str], env: dict[str, str], **options: bool) -> subprocess.CompletedProcess[str]:
        seen.append(env)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(using, "run", run)
    command([], TORCHINDUCTOR_CACHE_DIR="here")
    assert seen == [os.environ | {"TORCHINDUCTOR_CACHE_DIR": "here"}]


def test_long_counts_frames_for_places_of_windows(
    trained_run: Path, listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows of 4 s, one a second, of two frames: one and three seconds after its start, so that windows share one."""
    monkeypatch.setattr(using, "apart", lambda function, *arguments: function(*arguments))
    row = measure("long", trained_run, listed, "--length", "6s", "9s", "--workers", "0")
    assert list(row["lengths"]) == ["0.1 min", "0.15 min"]
    short, longer = row["lengths"].values()
    assert (short["windows"], short["places"], short["encoded"]) == (3, 6, 5)
    assert (longer["windows"], longer["places"], longer["encoded"]) == (6, 12, 8)
    assert 0 < short["peak_mib"][1] <= longer["peak_mib"][1]
    assert longer["seconds"] == sorted(longer["seconds"])
    assert capsys.readouterr().out.startswith("0.1 min: 3 windows, 6 places, 5 encoded, ")


def test_live_judges_a_window_s_ticks_or_every_picture(trained_run: Path, listed: Path) -> None:
    """Of 60 pictures in 6 s: ticks of the default window of two frames are two seconds apart, and one at the end."""
    row = measure("live", trained_run, listed, "--length", "6s")
    assert (row["clip_frames"], row["pictures_per_second_of_file"]) == (2, 10)
    default, every = row["windows"].values()
    assert (default["decoded"], default["judged"], default["passed_over"]) == (60, 3, 0)
    assert (every["decoded"], every["judged"], every["passed_over"]) == (60, 59, 0)
    for row in (default, every):
        share = row["judged"] / row["decoded"]
        assert row["judged_per_second"] == pytest.approx([share * rate for rate in row["decoded_per_second"]])
        assert row["cpu_seconds_per_picture"][0] > 0


def test_live_plays_a_film_of_any_size(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "using.jsonl"
    film = ["--film", "64x48", "--length", "4s", "--rounds", "2", "--out", str(out)]
    assert main(["live", "--checkpoint", str(trained_run), *film]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["film"], row["list"], row["pictures_per_second_of_file"]) == ([64, 48], None, 30)
    assert [window["decoded"] for window in row["windows"].values()] == [120, 120]


def test_a_start_is_timed_without_code_with_none_yet_and_with_it_kept(
    trained_run: Path, listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every round has a cache of its own, empty at first."""
    started: list[tuple[bool, list[str]]] = []

    def start(arguments: Sequence[str], TORCHINDUCTOR_CACHE_DIR: str) -> None:  # noqa: N803 (the variable's name)
        options = classify.make_parser().parse_args(arguments)
        assert options.videos == [listed.read_text().splitlines()[1].partition(",")[0]]
        cache = Path(TORCHINDUCTOR_CACHE_DIR)
        started.append((options.compile, [path.name for path in cache.iterdir()]))
        if options.compile:
            (cache / "code").touch()

    monkeypatch.setattr(using, "command", start)
    row = measure("start", trained_run, listed, "--workers", "0")
    assert started == 2 * [(False, []), (True, []), (True, ["code"])]
    assert {name: len(each) for name, each in row["seconds"].items()} == {
        "PyTorch": 2, "--compile": 2, "--compile again": 2,
    }  # fmt: skip
    assert "--compile again: " in capsys.readouterr().out


def test_a_preset_s_name_is_a_random_model_of_it(trained_run: Path) -> None:
    made = using.load_or_make("alt_tiny")
    assert made.model.config == PRESETS["alt_tiny"]
    assert len(made.classes) == 400
    assert using.load_or_make(str(trained_run)).classes == load(trained_run).classes


def test_names_are_embedded_as_open_clip_does(trained_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "names.jsonl"
    assert main(["names", "--checkpoint", str(trained_run), "--rounds", "2", "--out", str(out)]) == 0
    row = json.loads(out.read_text())
    assert (row["using"], row["names"]) == ("names", 36)
    assert row["difference"] < 1e-5
    assert all(len(way["names_per_s"]) == 3 for way in row["ways"].values())
    assert list(row["ways"]) == ["alt-fast", "open_clip"]


def test_open_clip_s_way_computes_the_padding(trained_run: Path) -> None:
    text, lengths = load(trained_run).model.text, []
    text.clip.transformer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    using.plainly(text, ["a star"])
    text(["a star"])
    assert lengths == [24, 4]


def test_bad_input_is_named(trained_run: Path, listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(trained_run), "--list", str(listed)]
    assert main(["live", *given, "--length", "1s"]) == 2
    assert "--length must be at least a window, 4 s, got 1 s" in capsys.readouterr().err
    assert main(["long", "--checkpoint", "nowhere", "--list", str(listed.with_name("none.csv"))]) == 1
    assert "none.csv" in capsys.readouterr().err
    for option, least in (("--rounds", 2), ("--chunk", 1)):
        assert main(["many", *given, option, str(least - 1)]) == 2
        assert f"{option} must be at least {least}, got {least - 1}" in capsys.readouterr().err
