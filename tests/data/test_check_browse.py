"""Looking at a dataset: the scan and the contact sheet."""

import json
import time
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alt_fast.data import check
from alt_fast.data.__main__ import main
from alt_fast.data.annotations import read_list
from tests.conftest import VideoWriter
from tests.data.test_decode import write_late


@pytest.fixture
def dataset(write_video: VideoWriter, tmp_path: Path) -> Path:
    """Three good videos, an empty file, and one that is not there."""
    write_video("a.mp4", frames=10)
    write_video("b.webm", "libvpx-vp9", frames=20, width=32)
    write_video("c.avi", "mpeg4", frames=30)
    (tmp_path / "empty.mp4").touch()
    rows = ["a.mp4,run", "b.webm,jump", "c.avi,run", "empty.mp4,run", "missing.mp4,jump"]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return tmp_path / "list.csv"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_scan(dataset: Path, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dataset), "--workers", workers, "--json"]) == 1
    summary = json.loads(capsys.readouterr().out)
    assert summary["videos"] == 5
    assert summary["codecs"] == {"h264": 1, "vp9": 1, "mpeg4": 1}
    assert summary["sizes"] == {"64 x 48": 2, "32 x 48": 1}
    assert summary["rates"] == {"10": 3}
    assert summary["frames"] == [10, 20, 30]
    assert summary["classes"] == {"jump": 2, "run": 3}
    assert summary["bytes"] == sum((dataset.parent / name).stat().st_size for name in ("a.mp4", "b.webm", "c.avi"))
    assert (summary["late"], summary["causes"]) == (0, {"empty file": 1, "no such file": 1})
    assert summary["unusable"] == [
        {"path": str(dataset.parent / "empty.mp4"), "cause": "empty file (0 bytes)"},
        {"path": str(dataset.parent / "missing.mp4"), "cause": "no such file"},
    ]


def test_report(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(dataset)]) == 1
    out = capsys.readouterr().out
    for line in (
        "5 videos",
        "2 of them unusable (40.0%)",
        "1 (20.0%): no such file",
        "h264: 1",
        "classes  2, from 2 (jump) to 3 videos (run)",
    ):
        assert line in out
    assert f"unusable {dataset.parent / 'missing.mp4'}: no such file" in out


def test_of_many_unusable_files_some_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("".join(f"{i:02}.mp4 run\n" for i in range(25)))
    arguments = ["check", str(tmp_path / "list.txt"), "--workers", "0"]
    assert main(arguments) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"unusable {tmp_path / '19.mp4'}: no such file",
        "unusable 5 more, which --json lists",
    ]
    assert main([*arguments, "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["unusable"]) == 25


def test_scan_of_a_good_list_and_of_none(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.csv").write_text("path,label\na.mp4,run\n")
    assert main(["check", str(tmp_path / "good.csv")]) == 0
    (tmp_path / "bad.csv").write_text("path,label\nempty.mp4,run\n")
    assert main(["check", str(tmp_path / "bad.csv")]) == 1
    assert "1 of them unusable" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "no.csv")]) == 1
    assert "cannot read" in capsys.readouterr().err


def test_kinetics_as_people_have_it(
    write_video: VideoWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some videos gone, some with sound alone, some cut before their first keyframe."""
    write_late(write_video("whole.mp4", gop=10), "late.mp4")
    for name in ("sound.mp4", "more.mp4"):
        with wave.open(str(tmp_path / name), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(16000))
    names = ["whole.mp4", "late.mp4", "sound.mp4", "more.mp4", "gone.mp4"]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{name},run\n" for name in names))
    assert main(["check", str(tmp_path / "list.csv"), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert "5 videos, " in out
    assert "3 of them unusable (60.0%)\n         2 (40.0%): no video stream\n         1 (20.0%): no such file\n" in out
    assert "late     1 begin before their first keyframe, which stands in for what is before it" in out
    missing = check.find_missing(read_list(tmp_path / "list.csv")[0], 0, 60)
    assert [Path(failure.path).name for failure in missing] == names[2:]


def test_a_numbered_list_is_scanned_without_a_class_file(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbered = dataset.with_name("numbered.txt")
    numbered.write_text("a.mp4 10\nb.webm 9\nc.avi 10\n")
    assert main(["check", str(numbered), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"9": 1, "10": 2}


def test_a_folder_of_class_folders_is_scanned(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, label in (("a.mp4", "run"), ("b.webm", "jump"), ("empty.mp4", "jump")):
        (dataset.parent / "clips" / label).mkdir(parents=True, exist_ok=True)
        (dataset.parent / name).rename(dataset.parent / "clips" / label / name)
    assert main(["check", str(dataset.parent / "clips")]) == 1
    assert "classes  2, from 1 (run) to 2 videos (jump)" in capsys.readouterr().out


def test_a_hanging_file_does_not_hang_the_scan(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect = check.inspect
    monkeypatch.setattr(check, "inspect", lambda path: time.sleep(1000) if "b.webm" in path else inspect(path))
    assert main(["check", str(dataset), "--timeout", "2"]) == 1
    assert "b.webm: took more than 2 s" in capsys.readouterr().out


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_contact_sheet(dataset: Path, tmp_path: Path, loader: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvidia.dali") if loader == "dali" else None
    (tmp_path / "good.csv").write_text("path,label\na.mp4,run\nb.webm,jump\nc.avi,run\n")
    out = tmp_path / "sheet.png"
    options = ["--out", str(out), "--frames", "4", "--size", "40", "--loader", loader]
    plain = ["--augment.jitter", "0", "--augment.gray", "0"]
    assert main(["browse", str(tmp_path / "good.csv"), *options, *plain, "--count", "2"]) == 0
    assert f"2 clips in {out} (loader {loader}, as asked for)" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * (16 + 40 + 4), 4 * (40 + 4), 3)
    levels = [sheet[16 + 20, column * 44 + 20].astype(int) for column in range(4)]  # frames get brighter
    assert all(later.sum() > earlier.sum() for earlier, later in pairwise(levels))
    assert all(np.ptp(level) <= 2 for level in levels)


def test_contact_sheet_of_test_views_names_what_it_cannot_read(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["browse", str(dataset), "--out", str(tmp_path / "sheet.png"), "--test"]) == 1
    assert "missing.mp4: no such file" in capsys.readouterr().err
    assert Image.open(tmp_path / "sheet.png").size == (8 * 116, 5 * 132)
    assert main(["browse", str(tmp_path / "no.csv"), "--out", str(tmp_path / "sheet.png")]) == 1
