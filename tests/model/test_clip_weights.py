"""CLIP weights: OpenAI's and open_clip's formats give the features that open_clip itself computes."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from alt_fast import ALT, Corpus, ModelConfig, create_model
from alt_fast.model.clip_weights import WeightsError, backbones, build_clip, read_state_dict
from alt_fast.model.text import TextTower

NUMBERS = {"input_resolution": 48, "context_length": 24, "vocab_size": 49408}


def seeded_clip(quick_gelu: bool) -> open_clip.CLIP:
    """A random CLIP of the tiny shape."""
    from alt_fast.model.clip_weights import TINY_CONFIG

    torch.manual_seed(7)
    return open_clip.CLIP(**TINY_CONFIG, quick_gelu=quick_gelu).eval()


def write_openai_archive(clip: open_clip.CLIP, path: Path) -> None:
    """As OpenAI distributes CLIP: a TorchScript archive that also holds three numbers."""

    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    holder = Holder()
    for name, tensor in clip.state_dict().items():
        parent = holder
        *path_to, leaf = name.split(".")
        for part in path_to:
            if not hasattr(parent, part):
                parent.add_module(part, Holder())
            parent = getattr(parent, part)
        parent.register_buffer(leaf, tensor.detach().clone())
    for name, number in NUMBERS.items():
        holder.register_buffer(name, torch.tensor(number))
    torch.jit.script(holder).save(str(path))


def write(clip: open_clip.CLIP, form: str, folder: Path) -> Path:
    weights = {name: tensor.detach().clone() for name, tensor in clip.state_dict().items()}
    path = folder / {"open_clip safetensors": "clip.safetensors"}.get(form, "clip.pt")
    match form:
        case "openai archive":
            write_openai_archive(clip, path)
        case "openai state dict":
            torch.save(weights | {name: torch.tensor(number) for name, number in NUMBERS.items()}, path)
        case "open_clip checkpoint":
            torch.save({"epoch": 1, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
        case "open_clip safetensors":
            save_file(weights, path)
    return path


@pytest.mark.parametrize(
    "form", ["openai archive", "openai state dict", "open_clip checkpoint", "open_clip safetensors"]
)
def test_same_features_as_open_clip_at_r_0(form: str, tmp_path: Path, corpus: Corpus) -> None:
    clip = seeded_clip(quick_gelu=form.startswith("openai"))
    model = create_model("alt_tiny", corpus, pretrained=str(write(clip, form, tmp_path)), r=0).eval()
    video = torch.randn(2, 8, 3, 48, 48)
    with torch.no_grad():
        expected = clip.encode_image(video.flatten(0, 1)).unflatten(0, (2, 8))
        torch.testing.assert_close(model.encode(video).tokens[:, :, 0], expected, rtol=0, atol=1e-5)
        texts = ["a star!", "a moon", "!", "word " * 40, "a heart and a cross"]
        tokens = open_clip.SimpleTokenizer(context_length=24)(texts)
        torch.testing.assert_close(model.text(texts), clip.encode_text(tokens, normalize=True), rtol=0, atol=1e-5)


def test_texts_take_no_more_of_the_tower_than_they_have_tokens() -> None:
    """Padding, which has the number of "!", is not computed, and short texts do not wait for long ones."""
    clip = seeded_clip(quick_gelu=False)
    clip.visual = None
    lengths = []
    clip.transformer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    text = TextTower(clip)
    whole = text(["star", "a cross and a heart and a moon", "!", "star!"])
    assert lengths == [10]
    lengths.clear()
    parts = text(["star", "a cross and a heart and a moon", "!", "star!"], batch_size=2)
    assert lengths == [3, 10]
    torch.testing.assert_close(parts, whole)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's models by their names, with one thin layer a tower."""
    full = open_clip.get_model_config

    def config(name: str) -> dict[str, Any]:
        found = full(name)
        return found | {tower: found[tower] | {"layers": 1, "width": 64} for tower in ("vision_cfg", "text_cfg")}

    monkeypatch.setattr(open_clip, "get_model_config", config)


@pytest.mark.usefixtures("narrow")
def test_activation_follows_the_weights(tmp_path: Path) -> None:
    clip = seeded_clip(quick_gelu=True)
    frames = torch.randn(2, 3, 48, 48)
    other = build_clip("tiny", str(write(clip, "open_clip checkpoint", tmp_path)))  # says nothing: the backbone's GELU
    assert (other.encode_image(frames) - clip.encode_image(frames)).abs().max() > 1e-3
    assert build_clip("ViT-B-32-quickgelu").visual.transformer.resblocks[0].mlp.gelu.__class__.__name__ == "QuickGELU"


@pytest.mark.usefixtures("narrow")
def test_openai_tag_brings_quick_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = tmp_path / "downloaded.pt"
    torch.save(open_clip.CLIP(**open_clip.get_model_config("ViT-B-32")).state_dict(), saved)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda tag: str(saved))
    gelu = build_clip("ViT-B-32", "openai").visual.transformer.resblocks[0].mlp.gelu
    assert type(gelu).__name__ == "QuickGELU"


def test_other_image_sizes_interpolate_positions(tmp_path: Path) -> None:
    path = write(seeded_clip(False), "open_clip checkpoint", tmp_path)
    clip = build_clip("tiny", str(path), image_size=64)
    assert clip.visual.positional_embedding.shape == (65, 64)
    assert clip.encode_image(torch.randn(1, 3, 64, 64)).shape == (1, 64)


def test_a_download_that_fails_says_how_to_pass_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tag: dict) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(WeightsError, match=r"no route to host.*pass its path as pretrained=PATH"):
        build_clip("ViT-B-16", "openai")


def test_bad_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither a file nor a tag of ViT-B-16 .*openai"):
        build_clip("ViT-B-16", "nonsense")
    with pytest.raises(WeightsError, match="'motion_shapes' that come along are those of 'tiny', .* 'tiny_rope': set"):
        build_clip("tiny_rope", "motion_shapes")
    with pytest.raises(ValueError, match="backbone 'ViT-Z'"):
        build_clip("ViT-Z")
    assert "ViT-L-14" in backbones()
    assert "ViT-L-14-worldwide" not in backbones()  # has another tokenizer
    for backbone in ("roberta-ViT-B-32", "ViT-B-16-SigLIP"):
        with pytest.raises(ValueError, match="text tower other than CLIP's"):
            build_clip(backbone, "nonsense")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(WeightsError, match=r"cannot read CLIP weights from .*text.pt"):
        read_state_dict(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(WeightsError, match=r"cannot read CLIP weights from .*text.safetensors"):
        read_state_dict(tmp_path / "text.safetensors")
    torch.save({"state_dict": {"x": "y"}}, tmp_path / "strings.pt")
    with pytest.raises(WeightsError, match="no dictionary of tensors"):
        read_state_dict(tmp_path / "strings.pt")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="do not fit 'tiny'"):
        build_clip("tiny", str(tmp_path / "other.pt"))


def test_towers_that_cannot_be_honoured_are_refused() -> None:
    from alt_fast.model.encoder import RegionEncoder

    tiny: dict[str, Any] = {"image_size": 48, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "attentional pooling"),
        ({"pool_type": "avg"}, "pooling other"),
        ({"patch_dropout": 0.5}, "patch dropout"),
        ({"final_ln_after_pool": True}, "final norm after pooling"),
    ]
    for option, reason in cases:
        visual = open_clip.CLIP(64, tiny | option, text).visual
        with pytest.raises(ValueError, match=reason):
            RegionEncoder(visual, 2, "finetune", 8)
    with pytest.raises(ValueError, match="got Linear"):
        RegionEncoder(torch.nn.Linear(2, 2), 2, "finetune", 8)


@pytest.mark.parametrize(("name", "paper"), [("alt_b16", 124.6), ("alt_l14", 427.1)])
def test_parameter_counts_of_table_1(name: str, paper: float, corpus: Corpus) -> None:
    from alt_fast.model.config import PRESETS

    with torch.device("meta"):
        count = ALT(PRESETS[name], corpus).count_parameters() / 1e6
    assert count == pytest.approx({"alt_b16": 124.027393, "alt_l14": 426.838529}[name], abs=1e-6)
    assert abs(count / paper - 1) < 0.005


@pytest.mark.parametrize(
    ("tuning", "total", "trainable"), [("frozen", 125, 38), ("s", 129, 42), ("sm", 132, 45), ("stm", 136, 49)]
)
def test_parameter_counts_of_table_7(tuning: str, total: float, trainable: float, corpus: Corpus) -> None:
    with torch.device("meta"):
        model = ALT(ModelConfig(tuning=tuning), corpus)  # type: ignore[arg-type]
    assert model.count_parameters() / 1e6 == pytest.approx(total, rel=0.012)
    assert model.count_parameters(trainable=True) / 1e6 == pytest.approx(trainable, rel=0.015)
