"""Top-1 of ONNX files beside PyTorch's, on the smallest dataset."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.onnx_accuracy import main
from tests.conftest import SMALL_LABELS, few_blocks


def test_it_scores_the_same_videos_by_all(
    onnx_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    lists = ["--list", str(shapes / "unseen.txt"), "--classes", str(shapes / "unseen_classes.csv"), "--workers", "0"]
    lists += ["--out", str(out)]
    with few_blocks():
        assert main([str(onnx_folder), *lists]) == 0
        head, *rows = capsys.readouterr().out.splitlines()
        assert head.endswith("unseen.txt: 12 videos")
        top1 = {re.split("  +", row.strip())[0]: re.findall(r"([\d.]+)%", row) for row in rows}
        assert list(top1) == ["PyTorch", "ONNX", "ONNX, int8"]
        assert top1["ONNX"] == top1["PyTorch"]
        assert top1["PyTorch"][1] == "100.0"
        (row,) = map(json.loads, out.read_text().splitlines())
        for run, shown in top1.items():
            assert [f"{100 * row['runs'][run][key]:.1f}" for key in ("top1", "same_answer")] == shown
        assert (row["videos"], len(row["provenance"]["commit"])) == (12, 40)


def test_what_cannot_be_scored_is_named(onnx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "holds no model.safetensors" in capsys.readouterr().err
    shutil.copy(onnx_folder / "model.safetensors", tmp_path)
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label\nclip.mp4,{SMALL_LABELS[0]}\n")
    (tmp_path / "clip.mp4").touch()
    with few_blocks():
        assert main([str(tmp_path), "--list", str(listed)]) == 1
    assert "has no frame_encoder.onnx: alt-fast export --onnx" in capsys.readouterr().err
