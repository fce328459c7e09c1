"""Pictures of regions."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.model.clip_weights import build_clip
from alt_fast.report.drawing import caption, draw_regions, region_rgb, write_names
from alt_fast.tome.regions import _grid
from alt_fast.visualize import main, regions
from tests.tome.test_rotary import dinov3


@pytest.fixture
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def vit(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5, **options
    )


def test_regions_of_a_timm_model(image: Image.Image) -> None:
    """As many colours as merged regions, and the model is as it was."""
    model = alt_fast.apply_patch(vit(reg_tokens=2), r=3, trace_source=True).train()
    given: Any = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    picture = regions(image, model, **given)
    assert picture.width >= 448
    assert picture.width / picture.height == 48 / 32
    assert model.training
    source = alt_fast.merge_trace(model).source[0, 3:].numpy().reshape(4, 6)
    again = regions(Image.fromarray(np.zeros((9, 9, 3), np.uint8)), model, **given)
    black_source = alt_fast.merge_trace(model).source[0, 3:].numpy().reshape(4, 6)
    pixels = np.asarray(again).reshape(4, again.height // 4, 6, again.width // 6, 3)[
        :, again.height // 8, :, again.width // 12
    ]
    for y in range(4):
        for x in range(6):
            merged = (black_source == black_source[y, x]).sum() > 1
            ink = region_rgb(int(black_source[y, x])) if merged else (0, 0, 0)
            assert pixels[y, x] == pytest.approx([0.42 * value for value in ink], abs=1)
    assert len(np.unique(source)) == 24 - 9


def test_a_tower_with_registers_and_rotary_positions(image: Image.Image) -> None:
    """Its prefix is no part of the picture, and where patches went is told of patches alone."""
    model = alt_fast.apply_patch(dinov3(num_reg_tokens=3), r=4, trace_source=True)
    picture = regions(image, model, [0.5] * 3, [0.5] * 3)
    patches = alt_fast.merge_trace(model).source[0, 4:]
    assert len(patches.unique()) == 16 - 3 * 4
    assert picture.size == (448, 448)


def test_a_grid_is_that_of_the_tokens(image: Image.Image) -> None:
    """Whatever convolution comes first, and whether there is one that makes patches."""
    model = vit(class_token=False, global_pool="avg")
    model._modules = {"stem": torch.nn.Conv2d(3, 3, 2, stride=2), **model._modules}  # found first, makes no patches
    patched = alt_fast.apply_patch(model, r=3, trace_source=True)
    assert regions(image, patched, [0.5] * 3, [0.5] * 3).size == (480, 320)
    assert _grid(torch.nn.Identity(), 17, 2, 48, 80) == (3, 5)
    assert _grid(vit(), 1 + 6 * 8, 1, 45, 61) == (6, 8)  # what is padded has a patch more than what is cut off
    assert _grid(vit(), 1 + 5 * 7, 1, 45, 61) == (5, 7)
    for tokens in (18, 13):  # of 17 and of 12 patches, which would be 3 x 4
        with pytest.raises(ArgumentError, match=r"Identity: 1[27] patches of 32 x 32 pixels make no grid of squares"):
            _grid(torch.nn.Identity(), tokens, 1, 32, 32)


def test_a_model_that_takes_any_size_is_told_one(image: Image.Image) -> None:
    config = transformers.DINOv3ViTConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = alt_fast.apply_patch(transformers.DINOv3ViTModel(config).eval(), r=2, trace_source=True)
    model.train()
    model.layer[0].eval() if hasattr(model, "layer") else model.model.layer[0].eval()
    before = [module.training for module in model.modules()]
    assert regions(image, model, [0.5] * 3, [0.5] * 3).size == (448, 448)  # of the configuration
    assert [module.training for module in model.modules()] == before
    assert regions(image, model, [0.5] * 3, [0.5] * 3, size=(32, 96)).size == (480, 160)


def test_timm_s_models_of_any_size_have_that_of_their_configuration(image: Image.Image) -> None:
    options: dict[str, Any] = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("naflexvit_base_patch16_gap", **options)
    patched = alt_fast.apply_patch(model.eval(), r=2, trace_source=True)
    assert regions(image, patched).size == (768, 768)  # twice 384
    assert regions(image, patched, size=64).size == (448, 448)


def test_models_that_know_their_input(image: Image.Image) -> None:
    clip = open_clip.CLIP(
        32,
        open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=16, image_size=64),
        open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1),
    )
    clip.visual.preprocess_cfg = {"size": (64, 64), "mean": (0.4, 0.4, 0.4), "std": (0.3, 0.3, 0.3)}
    assert regions(image, alt_fast.apply_patch(clip, r=2, trace_source=True)).width == 448
    plain = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=3)
    patched = alt_fast.apply_patch(plain, r=2, trace_source=True)
    with pytest.raises(
        ValueError, match="VisionTransformer does not say how its input is normalised: give mean and std"
    ):
        regions(image, patched)
    assert regions(image, patched, [0.5] * 3, [0.5] * 3).size == (448, 448)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "ViTModel"])
def test_models_of_transformers(image: Image.Image, name: str) -> None:
    """Their preprocessing is kept apart from them, so it must be given; the size is theirs."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(
        image_size=48, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    model = alt_fast.apply_patch(kind(config).eval(), r=5, trace_source=True)
    with pytest.raises(ValueError, match="give mean and std"):
        regions(image, model)
    picture = regions(image, model, [0.5] * 3, [0.5] * 3)
    assert picture.size == (480, 480)
    assert len(alt_fast.merge_trace(model).source[0, 1:].unique()) == 36 - 2 * 5


def test_the_command(image: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The picture of the function, also at another image size than the weights'; errors are named."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    weights, photo, out = tmp_path / "weights.pt", tmp_path / "photo.png", tmp_path / "out.png"
    torch.save(model.state_dict(), weights)
    image.save(photo)
    command = [str(photo), "--model", "timm:test_vit", "--weights", str(weights), "--out", str(out)]
    assert main([*command, "--r", "6"]) == 0
    expected = regions(image, alt_fast.apply_patch(model, r=6, trace_source=True))
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    assert main([*command, "--image-size", "64"]) == 0
    assert Image.open(out).size == (448, 448)
    torch.save(build_clip("tiny").state_dict(), tmp_path / "clip.pt")
    tower = ["--model", "open_clip:tiny", "--weights", str(tmp_path / "clip.pt")]
    assert main([str(photo), *tower, "--out", str(out)]) == 0
    assert Image.open(out).size == (480, 480)
    any_size = [str(photo), "--model", "timm:naflexvit_base_patch16_gap", "--weights", "random", "--out", str(out)]
    assert main([*any_size, "--image-size", "64"]) == 0
    assert Image.open(out).size == (448, 448)
    (tmp_path / "text.png").write_text("no picture")
    for arguments, message in [
        ([str(tmp_path / "text.png"), *command[1:]], "text.png"),
        ([str(photo), "--model", "vit", "--out", str(out)], "timm:NAME, hf:NAME or open_clip:NAME"),
        ([str(photo), "--model", "timm:none", "--out", str(out)], "none"),
        ([*command[:-1], str(tmp_path / "out.doc")], "out.doc: .doc is no format that Pillow writes"),
        ([*command[:-1], str(tmp_path / "out.psd")], "out.psd: .psd is no format that Pillow writes"),
        ([*command[:-1], str(tmp_path / "out.ico")], "out.ico: .ico holds icons, of sizes of their own"),
        ([*command, "--r", "-1"], "r must be >= 0"),
    ]:
        usage = message.startswith(("timm:NAME", "r must"))
        assert main(arguments) == (2 if usage else 1)
        assert message in capsys.readouterr().err


def test_models_without_a_trace(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="keeps no trace"):
        regions(image, alt_fast.apply_patch(vit(), r=3), [0.5] * 3, [0.5] * 3)


def test_captions_end_where_the_picture_does() -> None:
    plain = Image.new("RGB", (120, 40), "blue")
    short, long = (np.asarray(caption(plain, [line], 20)) for line in ("star", "star " * 40))
    assert short.shape == long.shape == (40 + 26 + 10, 120, 3)
    assert (short[:40] == [0, 0, 255]).all()
    assert short[40:].min() < 100  # ink
    assert (long[40:, 110:] == 255).all()
    assert (long[40:, 60:110].min(), short[40:, 60:].min()) == (long.min(), 255)


def test_texts_with_line_breaks_are_written_in_one_line() -> None:
    plain = Image.new("RGB", (300, 100), "blue")
    for broken in ("a\nb", "a\r\n  b\n", "\ta\u2028b"):
        assert np.array_equal(np.asarray(caption(plain, [broken])), np.asarray(caption(plain, ["a b"])))
        named, plainly = (np.asarray(write_names(plain, np.array([[text]]))) for text in (broken, "a b"))
        assert np.array_equal(named, plainly)


def test_names_stand_among_their_own_and_things_before_the_ground() -> None:
    plain = Image.new("RGB", (400, 400), "blue")
    names = np.full((4, 4), "ground")
    names[:2, 2:] = "kite"
    names[0, 0] = ""

    def inked() -> set[tuple[int, int]]:
        """The patches in which something is written."""
        ink = np.asarray(write_names(plain, names)) != [0, 0, 255]
        return {(y, x) for y, x in np.ndindex(4, 4) if ink[100 * y :, 100 * x :][:100, :100].any()}

    assert inked() == {(0, 2), (2, 1)}  # the ground's patch with most of it around
    names[2, 1] = "stone"
    assert (2, 1) in inked()
    names[:] = ""
    assert not inked()


def test_of_names_that_would_overlap_the_smaller_thing_s_stays() -> None:
    plain = Image.new("RGB", (300, 100), "blue")
    long = "a ground whose name needs all of it"
    alone, both = (np.asarray(write_names(plain, np.array([row]))) for row in (["", "", "x"], [long, long, "x"]))
    assert np.array_equal(alone, both)
    ink = (np.asarray(write_names(plain, np.array([[long * 3] * 3]))) != np.asarray(plain)).any((0, 2))
    assert ink.any()
    assert not ink[[0, -1]].any()  # what is too long is shortened, not cut


def test_borders_run_between_regions_only() -> None:
    labels = np.array([[0, 0], [0, 1]])
    picture = np.asarray(draw_regions(Image.new("RGB", (448, 448), (128, 128, 128)), labels, {0: 3, 1: 4}))
    tint = [0.58 * 128 + 0.42 * value for value in region_rgb(3)]
    assert picture[100, 100] == pytest.approx(tint, abs=1)
    assert picture[100, 224] == pytest.approx(tint, abs=1)  # one region on both sides
    assert picture[300, 300].tolist() == [128, 128, 128]  # a patch alone
    assert picture[300, 224].tolist() == [245, 245, 245]
    assert picture[224, 300].tolist() == [245, 245, 245]
