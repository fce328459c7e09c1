"""What a clip of a large film takes: both ways read the same, and the one by frame takes less."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alt_fast.measure.lines import Row
from benchmarks.apart import apart
from benchmarks.clips import AT_ONCE, BY_FRAME, main, read, take
from benchmarks.videos import parse_size, write_video


def test_a_frame_at_a_time_takes_less_for_the_same_pixels(tmp_path: Path) -> None:
    small, film = tmp_path / "small.mp4", tmp_path / "film.mp4"
    write_video(small, "libx264", 0, (64, 48), 2)
    write_video(film, "libx264", 0, (640, 480), 32)
    assert np.array_equal(read(film, 4, BY_FRAME), read(film, 4, AT_ONCE))
    by_frame, at_once = (apart(take, small, film, 32, way)["mib"] for way in (BY_FRAME, AT_ONCE))
    assert by_frame + 10 < at_once  # 28 MiB of whole frames


def test_both_are_measured_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def told(function: Any, small: Path, film: Path, frames: int, way: str) -> Row:
        assert (function, frames) == (take, 4)
        taken.append(way)
        return {"mib": 10.0 + len(taken), "seconds": 0.5}

    monkeypatch.setattr("benchmarks.clips.apart", told)
    out = tmp_path / "rows.jsonl"
    assert main(["--size", "64x48", "--frames", "4", "--rounds", "2", "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["size"], row["frames"], row["rounds"]) == ([64, 48], 4, 2)
    assert taken == [BY_FRAME, AT_ONCE, AT_ONCE, BY_FRAME]
    assert [row["ways"][way]["mib"][1] for way in (BY_FRAME, AT_ONCE)] == [12.5, 12.5]
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"64 x 48, 4 frames, {way}" for way in (BY_FRAME, AT_ONCE)
    ]


def test_bad_input_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "1"]) == 2
    assert "--rounds must be at least 2, got 1" in capsys.readouterr().err
    for text in ("4K", "1920x1081", "0x2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"as 1920x1080, in even numbers, got {text}"):
            parse_size(text)
