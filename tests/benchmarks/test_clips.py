"""What a clip of a large film takes: both ways read the same, and the one by frame takes less."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips import AT_ONCE, BY_FRAME, main, read
from benchmarks.videos import parse_size, write_video


def test_a_frame_at_a_time_takes_less_for_the_same_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film, out = tmp_path / "film.mp4", tmp_path / "rows.jsonl"
    write_video(film, "libx264", 0, (640, 480), 8)
    assert np.array_equal(read(film, 4, BY_FRAME), read(film, 4, AT_ONCE))
    assert main(["--size", "640x480", "--frames", "32", "--rounds", "2", "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["size"], row["frames"], row["rounds"]) == ([640, 480], 32, 2)
    assert row["ways"][BY_FRAME]["mib"][1] + 10 < row["ways"][AT_ONCE]["mib"][1]  # 28 MiB of whole frames
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"640 x 480, 32 frames, {way}" for way in (BY_FRAME, AT_ONCE)
    ]


def test_bad_input_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "1"]) == 2
    assert "--rounds must be at least 2, got 1" in capsys.readouterr().err
    for text in ("4K", "1920x1081", "0x2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"as 1920x1080, in even numbers, got {text}"):
            parse_size(text)
