"""How runs are going, from their logs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alt_fast.watch import curve, describe, duration, main, read_log, side_by_side, time_left


def entry(step: int, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    common = {"time": 1000.0 + step, "stage": "alt", "step": step, "steps": 100, "batch_size": 4}
    return common | {"loss": loss, "lr": 0.1, "clips_per_s": 8.0, "wait_share": 0.25, "peak_bytes": 2**30} | changes


def write(run: Path, *entries: dict[str, Any], end: str = "") -> Path:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end)
    return run


def test_a_finished_run(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained_run)]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((trained_run / "metrics.json").read_text())
    for stage, steps in (("clip", 4), ("alt", 6), ("frame_only", 6)):
        assert f"{stage}: step {steps} of {steps}, 100%" in printed
    assert f"top1_unseen_pairs {metrics['top1_unseen_pairs']:.3f}" in printed
    assert "finished" in printed
    assert "\x1b" not in printed  # not a terminal: once, without control characters


def test_a_run_under_way(tmp_path: Path) -> None:
    score = {"time": 1022.0, "stage": "alt", "step": 20, "steps": 100, "top1": 0.5}
    run = write(tmp_path / "run", entry(10, 3.0), score, entry(20, 2.0), score | {"top1": 0.25}, end='{"stage": "a')
    text = "\n".join(describe(run, now=1030.0, width=60))
    assert "alt: step 20 of 100, 20%, 40 s left" in text
    assert "loss   2.0000 █▁" in text
    assert "top1   0.250 █▁ best 0.500" in text
    assert "8.0 samples/s, waits 25%, 1.00 GiB" in text
    assert text.endswith("running")
    assert "no news for 16 min" in describe(run, now=1982.0, width=60)[-1]
    assert max(map(len, describe(run, now=1030.0, width=30))) == 30
    assert describe(write(tmp_path / "new"), 0, 60)[-1] == "  nothing logged yet"


def test_a_stretch_without_a_step_taken(tmp_path: Path) -> None:
    run = write(tmp_path / "run", entry(10, 3.0), entry(20) | {"loss": None})
    assert "  loss      nan ▁?" in describe(run, now=1030.0, width=60)


def test_time_left_is_that_of_the_latest_speed() -> None:
    slow, fast = entry(10, clips_per_s=1.0), [entry(20 + i, clips_per_s=40.0) for i in range(10)]
    assert time_left([slow, *fast], 4) == pytest.approx(71 * 4 / 40)


def test_curves() -> None:
    assert curve([], 10) == ""
    assert curve([1.0, 1.0], 10) == "▁▁"
    assert curve([0.0, float("nan"), 7.0], 10) == "▁?█"
    many = curve([float(i) for i in range(1000)], 16)
    assert len(many) == 16
    assert list(many) == sorted(many)


def test_durations() -> None:
    texts = [duration(seconds) for seconds in (0, 89, 90, 3599, 3 * 3600 + 1200, 52 * 3600)]
    assert texts == ["0 s", "89 s", "2 min", "1 h 0 min", "3 h 20 min", "2 d 4 h"]


def test_runs_side_by_side() -> None:
    columns = [["a", "b"], ["c"], ["d"]]
    assert side_by_side(columns, 100).splitlines() == ["a" + " " * 49 + "c", "b", "", "d"]
    assert side_by_side(columns, 40).splitlines() == ["a", "b", "", "c", "", "d"]


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "No such file or directory. Is " in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text("[]\n")
    assert main([str(tmp_path), "--once"]) == 1
    assert "is no log of a run" in capsys.readouterr().err
    assert read_log(write(tmp_path / "a", entry(1)))["alt"].measured[0]["step"] == 1
    assert main([str(tmp_path), "--every", "0"]) == 2
    assert "--every must be > 0 and at most 86400, got 0" in capsys.readouterr().err
    for seconds in ("nan", "inf"):
        assert main([str(tmp_path), "--every", seconds]) == 2
        assert f"got {seconds}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "strange",
    [{"time": 1, "stage": "alt", "step": 3, "loss": 1.0}, {"time": 1, "stage": "alt", "step": 3, "top1": None}],
)
def test_lines_that_lack_numbers_are_no_log(
    strange: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path / "a", entry(1), strange))]) == 1
    assert "is no log of a run" in capsys.readouterr().err


def test_zeros_of_a_file_system_that_crashed_are_passed_over(tmp_path: Path) -> None:
    assert len(read_log(write(tmp_path / "a", entry(1), end="\0\0\0\n"))["alt"].measured) == 1


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    """It makes data, or its first ten steps: there is no log yet."""
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).touch()
    assert describe(tmp_path, 0, 60) == [str(tmp_path)[:60], "  nothing logged yet"]


def test_a_run_that_cannot_be_read_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write(Path("good"), entry(10))
    assert main(["good", "nowhere"]) == 1
    left, right = zip(*((line[:50].rstrip(), line[50:]) for line in capsys.readouterr().out.splitlines()), strict=True)
    assert "alt: step 10 of 100, 10%, 45 s left" in left
    assert " ".join(right).split("error: ")[1].startswith("cannot read nowhere/log.jsonl: No such file or directory.")
    assert main(["nowhere", "neither"]) == 1
    assert "error: cannot read nowhere/log.jsonl" in capsys.readouterr().err


def test_reading_logs_needs_no_pytorch(tmp_path: Path) -> None:
    run = write(tmp_path / "run", entry(10))
    script = "import sys; from alt_fast.watch import main; assert main(sys.argv[1:]) == 0"
    script += "; sys.exit(sorted({'torch', 'timm', 'open_clip', 'av'} & sys.modules.keys()) or 0)"
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script, str(run), "--once"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert "alt: step 10 of 100" in done.stdout
