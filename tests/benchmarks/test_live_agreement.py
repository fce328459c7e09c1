"""What `live` and `classify` say of the same windows: which ones these are, and what is counted."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from alt_fast.data.decode import VideoError, decode_frames, index_video
from alt_fast.data.find import find_videos
from alt_fast.inference.stream import Recogniser
from alt_fast.inference.trained import load
from benchmarks.live_agreement import main, string, watch
from tests.conftest import NoiseWriter


@pytest.fixture
def listed(trained_run: Path, tmp_path: Path) -> Path:
    """Four videos of six pictures, ten a second."""
    folder = trained_run.parent / "data" / "test"
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{video}\n" for video in sorted(folder.glob("*.webm"))[:4]))
    return path


def test_they_agree_where_frames_coincide(
    trained_run: Path, listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 pictures windows of 2 x 3, a tick in the middle of each part: at pictures 3 and 6, 6 and 9, and so on."""
    out = tmp_path / "agreement.jsonl"
    command = ["--checkpoint", str(trained_run), "--list", str(listed), "--workers", "0", "--out", str(out)]
    assert main([*command, "--window", "600ms"]) == 0
    assert "the same top-1 in 6 of 6 windows: 100.0%" in capsys.readouterr().out
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["videos"], row["window"], row["windows"], row["same"], row["differ"]) == (4, 0.6, 6, 6, [])
    assert row["provenance"]["commit"]
    assert main([*command, "--window", "5s"]) == 2
    assert "no window of 5 s fits into the 4 videos" in capsys.readouterr().err


def test_ticks_are_in_the_middle_of_a_window_s_parts(trained_run: Path, listed: Path, tmp_path: Path) -> None:
    tape = tmp_path / "tape.mkv"
    string(find_videos([listed]), tape)
    windows = watch(Recogniser(load(trained_run)), tape, index_video(tape), 0.6)
    assert [window.numbers for window in windows] == [range(start, start + 6) for start in range(2, 19, 3)]


def test_what_differs_is_told(
    trained_run: Path, listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where `live` says something else in every second window."""
    judge, count = Recogniser.judge, iter(range(100))

    def other(*arguments: object) -> list[tuple[str, float]]:
        return [("sleeping", 1.0)] if next(count) % 2 else judge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Recogniser, "judge", other)
    command = ["--checkpoint", str(trained_run), "--list", str(listed), "--workers", "0"]
    assert main([*command, "--window", "600ms"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "the same top-1 in 3 of 6 windows: 50.0%"
    assert len(lines) == 3
    assert all("live: sleeping  clip: a " in line for line in lines)


def test_strung_together_every_picture_is_there_at_its_time(write_noise: NoiseWriter, tmp_path: Path) -> None:
    videos = [write_noise(f"{frames}.mp4", "libx264", frames=frames) for frames in (7, 4)]
    string(videos, tmp_path / "tape.mkv")
    index = index_video(tmp_path / "tape.mkv")
    expected = [decode_frames(video, own := index_video(video), range(own.count)) for video in videos]
    assert np.array_equal(decode_frames(tmp_path / "tape.mkv", index, range(11)), np.concatenate(expected))
    assert [index.time_of(number) for number in range(index.count)] == [Fraction(number, 10) for number in range(11)]
    videos.append(write_noise("wide.mp4", "libx264", frames=2, width=96))
    with pytest.raises(VideoError, match=r"wide\.mp4: its pictures are 48 x 96, those before 48 x 64"):
        string(videos, tmp_path / "tape.mkv")
