"""Image models by name: timm's, transformers' and open_clip's, their weights or none, with or without a head."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    LevitConfig,
    LevitForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from alt_fast.errors import ArgumentError
from alt_fast.model.image_models import RANDOM, ImageModelError, load_image_model

PICTURE = Image.new("RGB", (40, 30), (200, 10, 10))
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = ViTConfig(**SMALL, image_size=32, patch_size=8, num_labels=3)
CLIP = CLIPConfig(text_config=SMALL, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, num_labels=3)
LEVIT = LevitConfig(image_size=64, num_labels=3)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Keep a model in a folder as transformers does, with preprocessing."""
    model.save_pretrained(folder)
    side = getattr(model.config, "image_size", 32)
    BitImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny ViT as transformers keeps it."""
    return save(ViTForImageClassification(VIT), tmp_path)


def test_a_folder_of_transformers_brings_weights_and_preprocessing(folder: Path) -> None:
    loaded = load_image_model(f"hf:{folder}", None, head=True)
    pixels = loaded.transform(PICTURE)
    assert pixels.shape == (3, 32, 32)
    expected = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(loaded.model(pixels[None]).logits, expected(pixels[None]).logits)
        assert load_image_model(f"hf:{folder}", None).model(pixels[None]).last_hidden_state.shape == (1, 17, 32)


def test_random_weights_are_others(folder: Path) -> None:
    kept = load_image_model(f"hf:{folder}", None, head=True).model.state_dict()
    drawn = load_image_model(f"hf:{folder}", RANDOM, head=True).model.state_dict()
    assert kept.keys() == drawn.keys()
    assert not torch.equal(*(each["classifier.weight"] for each in (kept, drawn)))


def test_of_pictures_and_texts_the_pictures_are_taken(tmp_path: Path) -> None:
    save(CLIPModel(CLIP), tmp_path)
    for head in (False, True):
        loaded = load_image_model(f"hf:{tmp_path}", None, head=head)
        with torch.no_grad():
            assert loaded.model(loaded.transform(PICTURE)[None]).pooler_output.shape == (1, 32)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (CLIPForImageClassification, CLIP),
        (LevitForImageClassificationWithTeacher, LEVIT),  # one of two kinds of classifier
    ],
)
def test_a_trained_head_is_kept(tmp_path: Path, kind: type[PreTrainedModel], config: Any) -> None:
    expected = kind(config).eval()
    save(expected, tmp_path)
    loaded = load_image_model(f"hf:{tmp_path}", None, head=True)
    assert isinstance(loaded.model, kind)
    torch.testing.assert_close(loaded.model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    pixels = loaded.transform(PICTURE)[None].double()
    with torch.no_grad():  # in fp32 the same weights elsewhere in memory may give other last bits
        logits = [model.double()(pixels).logits for model in (loaded.model, expected)]
    torch.testing.assert_close(*logits, rtol=1e-6, atol=0)


def test_no_head_is_drawn_where_none_was_trained(tmp_path: Path) -> None:
    save(ViTModel(VIT), tmp_path)
    assert isinstance(load_image_model(f"hf:{tmp_path}", None, head=True).model, ViTModel)


@pytest.mark.parametrize("name", ["timm:test_vit", "open_clip:tiny"])
def test_random_weights_are_always_alike(name: str) -> None:
    """And what is drawn afterwards is not."""
    first, following = load_image_model(name, RANDOM).model, torch.rand(())
    second = load_image_model(name, RANDOM).model
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.rand(()) != following


def test_a_head_is_taken_on_request() -> None:
    with torch.no_grad():
        for head, width in ((False, 64), (True, 1000)):
            loaded = load_image_model("timm:test_vit", RANDOM, head=head)
            assert loaded.model(loaded.transform(PICTURE)[None]).shape == (1, width)
    assert load_image_model("timm:test_vit", RANDOM, 80).transform(PICTURE).shape == (3, 80, 80)


@pytest.mark.parametrize(
    ("name", "weights", "size", "error", "message"),
    [
        ("jax:vit", None, None, ArgumentError, "must be timm:NAME, hf:NAME or open_clip:NAME"),
        ("hf:nobody/nothing", "file.pt", None, ArgumentError, "--weights must be random or absent, got file.pt"),
        ("hf:nobody/nothing", None, 64, ArgumentError, "has a size of its own, got --image-size 64"),
        ("hf:/nowhere", None, None, ImageModelError, "cannot load hf:/nowhere"),
        ("open_clip:ViT-B-16", None, None, ArgumentError, "a tag such as openai, or random"),
        ("timm:test_vit", RANDOM, 65, ImageModelError, "has patches of 16 x 16 pixels, which do not divide 65"),
        ("timm:no_such_vit", RANDOM, None, ImageModelError, "cannot load timm:no_such_vit"),
    ],
)
def test_what_cannot_be_had_is_named(
    name: str, weights: str | None, size: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_image_model(name, weights, size)


def test_weights_of_timm_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = timm.create_model("test_vit").state_dict()
    torch.save(expected, tmp_path / "weights.pt")
    found = load_image_model("timm:test_vit", str(tmp_path / "weights.pt"), head=True).model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
