"""The race of towers at their real size, on a small one."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from alt_fast.measure.ceiling import drop_last_step
from alt_fast.tome.tokens import Attended, Tokens, merge_step
from benchmarks import towers


def small() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_base_patch16_dinov3", img_size=64, embed_dim=64, depth=3, num_heads=2, num_classes=5
    )
    return model


def test_as_many_are_dropped_as_would_merge() -> None:
    x, key = torch.randn(1, 21, 8), torch.randn(1, 21, 2, 4)
    for r in (3, 0.75, 20):
        for destinations in (2, 4):
            dropped, merged = (
                step(Attended(Tokens(x), x, key, r, protected=1, destinations=destinations))[0].x
                for step in (drop_last_step, merge_step)
            )
            assert dropped.shape == merged.shape
    assert dropped.shape == (1, 6, 8)  # tokens 3, 7, 11, 15, 19 receive


def test_flops_are_attention_s_too() -> None:
    """By hand: per layer 12 width^2 MACs of a token's products, and 2 width of every pair of tokens."""
    case = towers.Case(small, (3, 64, 64), 21, lambda model, x: model(x))
    tokens = [21, 17, 14, 12]  # of 16, 12 and 9 patches a quarter goes, beside five prefix tokens
    width, hidden = 64, 4 * 64

    def macs(attended: list[int], left: list[int]) -> int:
        attention = sum(4 * n * width**2 + 2 * n**2 * width for n in attended)
        return 16 * 3 * 16**2 * width + attention + sum(2 * n * width * hidden for n in left) + 5 * width

    expected = macs([21] * 3, [21] * 3) / macs(tokens[:3], tokens[1:])
    assert towers.flop_ratio(case, 0.25, 1) == pytest.approx(expected)


def test_merged_and_dropped_beside_the_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = towers.Case(small, (3, 64, 64), 21, lambda model, x: model(x))
    monkeypatch.setattr(towers, "CASES", {"small": case})
    arguments = ["small", "--share", "0.25", "--rounds", "2", "--results", str(tmp_path / "rows.jsonl")]
    assert towers.main(arguments) == 0
    assert capsys.readouterr().out.startswith("small: 21 tokens, FLOP ratio ")
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert row["provenance"]["commit"]
    assert row["flop_ratio"] == round(towers.flop_ratio(case, 0.25, 1), 3)
    assert all(len(seconds) == 2 for seconds in row["seconds"].values())
    for option, value, message in (
        ("--share", "1.5", "r as a fraction must be in [0, 0.5]"),
        ("--results", "/proc/none/rows", "cannot make folder"),
    ):
        assert towers.main([*arguments[:-2], option, value]) in (1, 2)
        assert message in capsys.readouterr().err
    assert towers.main(["large"]) == 2
    assert "towers are small, got large" in capsys.readouterr().err
    assert towers.main(["--rounds", "1"]) == 2
    assert "--rounds must be at least 2, got 1" in capsys.readouterr().err
