"""Videos per second: every way runs the same model, and is raced un-merged against merged."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cpu_speed import AGREEMENT, WAYS, eager, main
from tests.conftest import small_alt


def test_it_races_every_model_un_merged_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.jsonl"
    assert main(["alt_tiny", "--ways", "eager", "--rounds", "3", "--batch", "2", "--results", str(out)]) == 0
    (row,) = (json.loads(line) for line in out.read_text().splitlines())
    assert row["provenance"]["commit"]
    assert (row["model"], row["r"], row["batch"]) == ("alt_tiny", 4, 2)
    assert list(row["seconds"]) == ["eager, un-merged", "eager, merged"]
    assert row["difference"] == {}
    for name, seconds in row["seconds"].items():
        assert len(seconds) == 3
        assert row["videos_per_second"][name] == 2 / sorted(seconds)[1]
    assert capsys.readouterr().out.startswith("alt_tiny, eager: un-merged ")


def test_ways_give_the_same_probabilities() -> None:
    """But for what torch.compile gives, which the tests of the model hold."""
    model = small_alt(r=0, query="frame")
    video, classes = torch.randn(2, 2, 3, *model.image_size), torch.randn(3, 64)
    with torch.no_grad():
        expected, found = (WAYS[way](model, video, classes)() for way in ("eager", "onnx"))
        torch.testing.assert_close(found, expected, rtol=0, atol=AGREEMENT)


def test_a_way_that_gives_other_probabilities_is_not_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "onnx", lambda model, video, classes: lambda: eager(model, video, classes)() + 2e-4)
    with pytest.raises(RuntimeError, match="alt_tiny: probabilities are not those of eager, .*'onnx, merged': 0.0002"):
        main(["alt_tiny", "--ways", "eager", "onnx", "--rounds", "2"])


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["alt_tiny", "--ways", "eager", "--rounds", "2", "--results", "/proc/none/rows.jsonl"]) == 1
    assert "cannot make folder /proc/none" in capsys.readouterr().err


def test_what_is_no_model_or_too_small_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["alt_b32"], "models are alt_tiny, alt_b16, got alt_b32"),
        (["--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
