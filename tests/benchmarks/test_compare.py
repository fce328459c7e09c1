"""Comparing result files: exactly one regression fails, noise does not."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compare import compare, join, main, missing
from benchmarks.session import CUT, EVERYONE


def race(
    contestant: str, seconds: float, speedup: float, spread: float = 0.01, peak: int | None = None
) -> dict[str, Any]:
    return {
        "case": "encoder",
        "contestant": contestant,
        "seconds": seconds,
        "quartiles": [seconds * (1 - spread), seconds * (1 + spread)],
        "peak_bytes": peak,
        "baseline": "plain",
        "speedup": speedup,
        "speedup_quartiles": [speedup * (1 - spread), speedup * (1 + spread)],
    }


AUDITED = {"audit": "Table 8", "row": "r = 8", "gflops": 107.656, "parameters": 124027393, "tunable": 0}
OLD = [race("plain", 2.0, 1.0, peak=100), race("ours", 1.0, 2.0, peak=60), race("theirs", 1.5, 1.33), AUDITED]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"provenance": {"device": "cpu"}}, *rows]))
    return str(path)


def test_the_same_file_has_no_regression(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", OLD)
    assert main([path, path]) == 0


@pytest.mark.parametrize(("field", "value"), [("gflops", 107.657), ("parameters", 124027394), ("tunable", 1)])
def test_a_count_that_changed_fails_either_way(
    field: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A counter that leaves something out would look like an improvement."""
    new = copy.deepcopy(OLD)
    new[3][field] = value
    paths = write(tmp_path / "a", OLD), write(tmp_path / "b", new)
    for order in (paths, paths[::-1]):
        assert main([*order]) == 1
        said = capsys.readouterr().out
        assert "0 worse, 0 better, 1 counts changed" in said
        assert f"Table 8 | r = 8 ({field})" in said


def test_files_of_experiments_have_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"tower": "dense", "tokens": 9}, {"case": "oracle", "seed": 0}, {"quality": "x", "r": 8}]
    path = write(tmp_path / "a", rows)
    assert main([path, path]) == 1
    assert "they have nothing in common" in capsys.readouterr().out


@pytest.mark.parametrize(("index", "field", "value"), [(1, "speedup", 1.7), (1, "peak_bytes", 80)])
def test_exactly_one_regression_fails(
    index: int, field: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = copy.deepcopy(OLD)
    if field == "speedup":
        new[index] = race("ours", 1.0, value, peak=60)
    else:
        new[index][field] = value
    assert main([write(tmp_path / "a", OLD), write(tmp_path / "b", new)]) == 1
    assert "1 worse, 0 better" in capsys.readouterr().out
    assert main([write(tmp_path / "b", new), write(tmp_path / "a", OLD)]) == 0  # the other way round it is better


def test_a_slower_machine_is_no_regression_of_ours() -> None:
    slow = [race("plain", 4.0, 1.0), race("ours", 2.0, 2.0)]
    assert {change.name: change.verdict for change in compare(OLD, slow)} == {"encoder | ours": "noise"}


def test_without_a_common_baseline_seconds_are_compared() -> None:
    other = [race("ours", 1.2, 2.0) | {"baseline": "another"}]
    (change,) = compare(OLD[1:2], other)
    assert change.verdict == "regression"
    assert change.change == pytest.approx(0.2)


@pytest.mark.parametrize(("speedup", "spread"), [(1.94, 0.001), (1.7, 0.3)])
def test_small_or_noisy_changes_are_noise(speedup: float, spread: float) -> None:
    (change,) = compare(OLD[1:2], [race("ours", 1.0, speedup, spread)])
    assert change.verdict == "noise"
    assert change.change == pytest.approx(2 / speedup - 1)


def test_what_is_no_longer_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [OLD[0], {"case": "encoder", "contestant": "ours", "skipped": "RuntimeError"}]
    assert missing(OLD, new) == ["encoder | ours", "encoder | theirs", "Table 8 | r = 8"]
    main([write(tmp_path / "a", OLD), write(tmp_path / "b", new)])
    assert "encoder | theirs" in capsys.readouterr().out


def test_what_a_quick_run_cut_is_not_gone() -> None:
    new = [{"case": "encoder", "contestant": "ours", "skipped": CUT}, OLD[0]]
    assert missing(OLD[:2], new) == []
    assert missing(OLD[:2], [{"case": "encoder", "contestant": EVERYONE, "skipped": CUT}]) == []


@pytest.mark.parametrize("kept", [True, False], ids=["with times", "of commits that kept none"])
def test_the_rounds_of_several_runs_are_joined(kept: bool) -> None:
    """Three rounds a run; the quartiles are those of one race of all."""
    draw, runs, times, ratios = random.Random(0), [], [], []
    for _ in range(4):
        seconds = {name: [draw.random() for _ in range(3)] for name in ("plain", "ours")}
        rows = []
        for name, own in seconds.items():
            speedups = [slow / fast for slow, fast in zip(seconds["plain"], own, strict=True)]
            row = race(name, sorted(own)[1], sorted(speedups)[1])
            row |= {"quartiles": [min(own), max(own)], "speedup_quartiles": [min(speedups), max(speedups)]}
            rows.append(row | ({"times": own} if kept else {}))
        runs.append(rows)
        times += own
        ratios += speedups
    _, ours = join(runs)
    assert ours["rounds"] == 12
    levels = (0.25, 0.5, 0.75)
    assert [ours["quartiles"][0], ours["seconds"], ours["quartiles"][1]] == pytest.approx(np.quantile(times, levels))
    low, high = ours["speedup_quartiles"]
    assert [low, ours["speedup"], high] == pytest.approx(np.quantile(ratios, levels))


def test_of_what_is_counted_or_skipped_in_several_runs_the_last_stands() -> None:
    skipped = {"case": "encoder", "contestant": "ours", "skipped": "needs a GPU"}
    newer = AUDITED | {"gflops": 1.0}
    assert join([[AUDITED, skipped], [newer, skipped]]) == [newer, skipped]


@pytest.mark.parametrize("text", ["", "no JSON", '{"case": 1}', "[]"])
def test_a_file_that_is_none_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main([write(tmp_path / "a", OLD), str(tmp_path / "bad")])
    assert stopped.value.code == 2
    assert "bad is no result file" in capsys.readouterr().err


def test_nothing_in_common_is_a_failure(tmp_path: Path) -> None:
    assert main([write(tmp_path / "a", OLD), write(tmp_path / "b", [])]) == 1
