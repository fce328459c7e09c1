"""The file of a tower that comes along is the tower, in half precision, with the words that its level has."""

from pathlib import Path

import pytest
import torch

from alt_fast.data.motion_shapes import LEVELS
from alt_fast.model.clip_weights import build_clip
from alt_fast.model.text import TextTower
from benchmarks import tower
from benchmarks.tower import main, pack


def test_a_packed_tower_is_the_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower, "CAPTIONS", 600)
    torch.manual_seed(0)
    clip, level = build_clip("tiny", None, 64), LEVELS[2]
    path = tmp_path / "tower.safetensors"
    digest = pack(clip.state_dict(), level, path)
    assert digest == pack(clip.state_dict(), level, tmp_path / "again.safetensors")
    assert path.stat().st_size < 2e6
    again = build_clip("tiny", str(path), 64)
    frames = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again.visual(frames), clip.visual(frames), atol=5e-3, rtol=0)
    texts = [level.label_of(cls) for cls in level.UNSEEN] + [level.captioned_frame(7, i, 16).caption for i in range(50)]
    clip.visual = again.visual = None
    torch.testing.assert_close(TextTower(again)(texts), TextTower(clip)(texts), atol=5e-3, rtol=0)
    unknown = TextTower(again)(["zebra", "giraffe"])
    assert not torch.equal(unknown[0], unknown[1])


def test_what_a_run_s_tower_aligns_to(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(trained_run)]) == 0
    printed = capsys.readouterr().out
    for row in ("| test | frame | all |", "| test | region | object |", "| unseen | region | scene |"):
        assert row in printed
    with pytest.raises(SystemExit, match="2"):  # no run folder
        main([str(trained_run.parent)])
