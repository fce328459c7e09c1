"""Merging quality on a model and images: near to un-merged, nearer than at random, and the command's errors."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from transformers import BitImageProcessor, ViTConfig, ViTModel

from alt_fast.model.clip_weights import build_clip
from alt_fast.model.image_models import load_image_model
from benchmarks.quality import embed, main, quality
from benchmarks.report import quality_table


def folder_of_images(folder: Path) -> Path:
    """Four pictures of flat patches, which have something to merge."""
    folder.mkdir()
    torch.manual_seed(0)
    for i in range(4):
        blocks = torch.randint(0, 255, (4, 4, 3), dtype=torch.uint8)
        Image.fromarray(blocks.numpy()).resize((224, 224), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return folder


def tiny_vit(folder: Path) -> Path:
    """A ViT of transformers in a folder, with preprocessing."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_alike_tokens_merge_without_loss_and_random_ones_do_not() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    images = torch.randn(3, 3, 4, 4).repeat_interleave(40, 2).repeat_interleave(40, 3)
    before = model(images)
    (none, some) = quality(model, images, [0, 20])
    assert none["merged"] == none["random"] == [1.0, 1.0, 1.0]
    assert some["merged"][1] > some["random"][1]
    assert torch.equal(model(images), before)  # the patch is gone


def test_the_command_reports_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights, results = tmp_path / "weights.pt", tmp_path / "results.jsonl"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), weights)
    images = folder_of_images(tmp_path / "images")
    command = ["timm:test_vit", "--weights", str(weights), "--images", str(images), "--r", "2", "4"]
    assert main([*command, "--results", str(results)]) == 0
    assert "4 images" in capsys.readouterr().out
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert all("provenance" in row for row in rows)
    assert [(row["quality"], row["r"], row["images"]) for row in rows] == [
        ("timm:test_vit", 2, 4),
        ("timm:test_vit", 4, 4),
    ]


def test_models_of_transformers(tmp_path: Path) -> None:
    """The vector is the one that the model's output has for the whole image."""
    loaded = load_image_model(f"hf:{tiny_vit(tmp_path / 'model')}", None)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(embed(loaded.model, images), loaded.model(images).pooler_output)
    (row,) = quality(loaded.model, images, [2])
    assert 0 < row["merged"][0] < 1


def test_rules_for_rotary_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table each, the same where nothing merges; of towers with rotary positions only."""
    torch.manual_seed(0)
    for name in ("tiny", "tiny_rope"):
        torch.save(build_clip(name).state_dict(), tmp_path / f"{name}.pt")

    def command(name: str, *rules: str) -> list[str]:
        weights = ["--weights", str(tmp_path / f"{name}.pt"), "--results", str(tmp_path / "results.jsonl")]
        return [f"open_clip:{name}", *weights, "--images", str(images), "--r", "0", "8", "--rope", *rules]

    images = folder_of_images(tmp_path / "images")
    assert main(command("tiny_rope", "mean", "survivor")) == 0
    assert "by the rule survivor:" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(row["rotary"], row["r"]) for row in rows] == [("mean", 0), ("mean", 8), ("survivor", 0), ("survivor", 8)]
    assert rows[0]["merged"] == rows[2]["merged"] == [1.0, 1.0, 1.0]
    assert rows[1]["merged"] != rows[3]["merged"]
    assert "| open_clip:tiny_rope, survivor | 8 |" in quality_table(rows)
    for name, rule, message in (
        ("tiny", "mean", "--rope mean is for towers with rotary positions, and this VisionTransformer has none"),
        ("tiny_rope", "median", "rotary must be one of mean, unit, centroid, survivor, got 'median'"),
    ):
        with pytest.raises(SystemExit):
            main(command(name, rule))
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("keras:vit", "timm:NAME, hf:NAME or open_clip:NAME"),
        ("open_clip:ViT-B-16", "needs --weights"),
        ("timm:test_vit", "has no images"),
    ],
)
def test_what_cannot_work_is_named(
    model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [model, "--images", str(tmp_path)]
    if model.startswith("timm"):
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.pt")
        command += ["--weights", str(tmp_path / "weights.pt")]
    with pytest.raises(SystemExit):
        main(command)
    assert message in capsys.readouterr().err


def test_a_broken_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        main(["timm:test_vit", "--images", str(tmp_path), "--weights", str(tmp_path / "weights.pt")])
    assert "broken.png" in capsys.readouterr().err
