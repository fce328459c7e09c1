"""Every command that takes a video takes the codecs that people have."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from alt_fast import classify, evaluate, explain, extract, live
from alt_fast.data.__main__ import main as data
from alt_fast.inference.trained import load
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


def test_a_list_of_them_is_checked_tested_and_extracted(
    trained_run: Path, write_noise: NoiseWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each beside its first bytes alone, which are told from it."""
    videos = [write_noise(name, codec, frames=20) for name, codec in CODECS]
    broken = [video.with_stem(f"{video.stem}-broken") for video in videos]
    for whole, part in zip(videos, broken, strict=True):
        part.write_bytes(whole.read_bytes()[:200])
    label = load(trained_run).classes[0]
    listed, features = tmp_path / "list.csv", tmp_path / "features"
    listed.write_text("path,label\n" + "".join(f"{path.name},{label}\n" for path in (*videos, *broken)))

    assert data(["check", str(listed), "--workers", "0", "--json"]) == 1
    checked = json.loads(capsys.readouterr().out)
    assert checked["codecs"] == {"h264": 1, "hevc": 1, "mpeg4": 1, "vp9": 1}
    assert [failure["path"] for failure in checked["unusable"]] == list(map(str, broken))

    testing = ["--checkpoint", str(trained_run), "--list", str(listed), "--workers", "0"]
    assert evaluate.main([*testing, "--json"]) == 1
    (tested,) = json.loads(capsys.readouterr().out)
    assert [failure["path"] for failure in tested["unreadable"]] == list(map(str, broken))

    assert extract.main([*testing, "--out", str(features)]) == 1
    vectors = load_file(features / "00000.safetensors")["video"]
    assert vectors.any(1).tolist() == 4 * [True] + 4 * [False]
