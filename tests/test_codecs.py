"""Every command that takes a video takes the codecs that people have."""

import json
from pathlib import Path

import pytest

from alt_fast import classify, explain, live
from benchmarks.clock import SharedClock
from tests.conftest import NoiseWriter

CODECS = [("h264.mp4", "libx264"), ("hevc.mp4", "libx265"), ("mpeg4.avi", "mpeg4"), ("vp9.webm", "libvpx-vp9")]


@pytest.mark.parametrize(("name", "codec"), CODECS)
def test_a_codec_is_named_told_and_explained(
    trained_run: Path,
    write_noise: NoiseWriter,
    tmp_path: Path,
    name: str,
    codec: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alt_fast.data.capture.WallClock", SharedClock)
    video, page = str(write_noise(name, codec, frames=20)), tmp_path / "page.html"
    model = ["--checkpoint", str(trained_run)]
    whole = [video, *model, "--workers", "0", "--json"]
    assert classify.main(whole) == 0
    (named,) = json.loads(capsys.readouterr().out)
    assert len(named["labels"]) == 36
    assert classify.main([*whole, "--every", "500ms", "--window", "1s", "--enter", "0.01", "--leave", "0.01"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["duration"] == pytest.approx(2, abs=0.2)
    assert told["segments"]
    assert not told["gaps"]
    assert live.main([video, *model, "--window", "400ms", "--json"]) == 0
    assert all(len(json.loads(line)["labels"]) == 36 for line in capsys.readouterr().out.splitlines())
    assert explain.main([video, *model, "--out", str(page)]) == 0
    assert page.stat().st_size > 10_000
