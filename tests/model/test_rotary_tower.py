"""The tiny tower with rotary positions: against its formula, under every rule, wherever a backbone goes."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import alt_fast
from alt_fast import ALT, Corpus, create_model
from alt_fast.classify import main as classify
from alt_fast.errors import ArgumentError
from alt_fast.evaluate import main as evaluate
from alt_fast.inference.export import export_program
from alt_fast.inference.trained import load
from alt_fast.model.clip_weights import TINY_CONFIG, WeightsError, build_clip
from alt_fast.model.config import ModelConfig
from alt_fast.tome.rules import RotaryRule
from alt_fast.train import main as train
from alt_fast.visualize import main as visualize
from benchmarks.audit import fused_ops_on_cpu, fvcore_count
from tests.conftest import SMALL_JOB
from tests.oracles import RotaryBlock, merge_by_hand

RULES: tuple[RotaryRule, ...] = get_args(RotaryRule)


def build(corpus: Corpus | None, **options: Any) -> ALT:
    """With one layer's merging visible in the next, and weights far enough from 0 for positions to matter."""
    torch.manual_seed(0)
    model = create_model("alt_tiny", corpus, **{"backbone": "tiny_rope", "frames": 2, "r": 6} | options).eval()
    for block in model.encoder.visual.transformer.resblocks:
        nn.init.normal_(block.attn.in_proj_weight, std=0.3)
    return model


def frames() -> Tensor:
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(3))


def turned(x: Tensor) -> Tensor:
    """x [heads, 37, 32] fp64 with its patches turned pair by pair, as complex numbers."""
    angles = torch.zeros(37, 16, dtype=torch.float64)
    for patch in range(36):
        for pair in range(16):
            place = patch // 6 if pair < 8 else patch % 6  # the row, then the column
            angles[1 + patch, pair] = place * 100 ** (-(pair % 8) / 8)
    pairs = torch.view_as_complex(x.unflatten(-1, (16, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def unmerged(model: ALT, frame: Tensor) -> Tensor:
    """Tokens of one frame [3, H, W] by the formula, without merging."""
    visual = model.encoder.visual
    patches = F.unfold(frame[None], 8, stride=8)[0].T @ visual.conv1.weight.flatten(1).T
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], patches]))
    for block in visual.transformer.resblocks:
        normed = block.ln_1(x)
        q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (t.view(37, 2, 32).transpose(0, 1) for t in (q, k, v))
        weights = (turned(q) @ turned(k).transpose(1, 2) / 32**0.5).softmax(-1)
        x = x + block.attn.out_proj((weights @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x) @ visual.proj


def test_without_merging_it_is_the_formula_under_every_rule(corpus: Corpus) -> None:
    """ALT's encoder, and the tower alone, as it pretrains and among ALT's blocks."""
    model, images = build(corpus, r=0).double(), frames().double()
    expected = torch.stack([unmerged(model, frame) for frame in images])
    for rule in RULES:
        model.encoder.set_rotary(rule)
        torch.testing.assert_close(model.encoder(images).tokens, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encoder.visual(images), expected[:, 0], rtol=1e-4, atol=1e-5)
    tower = build_clip("tiny_rope").visual.double()
    tower.load_state_dict(model.encoder.visual.state_dict())
    torch.testing.assert_close(tower(images), expected[:, 0], rtol=1e-4, atol=1e-5)
    mixed = F.fold(F.unfold(images, 8, stride=8)[:, :, torch.randperm(36)], 48, 8, stride=8)
    assert not torch.allclose(tower(mixed), expected[:, 0], atol=1e-2)  # patches know their places


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_merging_equals_merging_by_hand(corpus: Corpus, rule: RotaryRule) -> None:
    model, frame = build(corpus, rotary=rule).double(), frames()[:1].double()
    visual = model.encoder.visual

    def by_hand(block: Any) -> RotaryBlock:
        def qkv(x: Tensor) -> Any:
            return (
                F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).view(-1, 3, 2, 32).unbind(1)
            )

        return RotaryBlock(qkv, angles, block.attn.out_proj, lambda x: block.mlp(block.ln_2(x)))

    def angles(places: Tensor) -> Tensor:
        turns = 100.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
        return (places[:, :, None] * turns).flatten(1).repeat_interleave(2, 1)[:, None]

    places = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).double()
    blocks = [by_hand(block) for block in visual.transformer.resblocks]
    tokens = merge_by_hand(model.encoder.embed(frame)[0], blocks, places, rule, 6, interleaved=True)
    found = model.encoder(frame).tokens
    assert found.shape[1] == 37 - 6 * len(blocks)
    torch.testing.assert_close(found[0], visual.ln_post(tokens) @ visual.proj, rtol=1e-5, atol=1e-5)


def test_rules_differ_where_tokens_merge(corpus: Corpus) -> None:
    found = {}
    for rule in RULES:
        model = build(corpus, rotary=rule)
        found[rule] = model.encoder(frames()).tokens
        assert found[rule].isfinite().all()
        other = build(corpus)
        other.encoder.set_rotary(rule)  # no weight depends on it
        assert torch.equal(other.encoder(frames()).tokens, found[rule])
    for i, rule in enumerate(RULES):
        assert all(not torch.allclose(found[rule], found[other], atol=1e-3) for other in RULES[:i])


def test_the_tower_has_no_other_positions(corpus: Corpus) -> None:
    model, plain = build(corpus), build(corpus, backbone="tiny")
    missing = plain.state_dict().keys() - model.state_dict().keys()
    assert missing == {"encoder.visual.positional_embedding"}
    assert model.state_dict().keys() < plain.state_dict().keys()
    assert build(corpus, image_size=64).encoder(torch.randn(1, 3, 64, 64)).source.shape == (1, 65)


def test_copies_and_precisions(corpus: Corpus) -> None:
    model = build(corpus, rotary="centroid")
    expected = model.encoder(frames()).tokens
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone.encoder(frames()).tokens, expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder(frames()).tokens.isfinite().all()
    double = model.double().encoder(frames().double()).tokens
    torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one whose tables are made, and one whose tables were merged: more of the same takes longer to trace."""
    monkeypatch.setitem(TINY_CONFIG, "vision_cfg", TINY_CONFIG["vision_cfg"] | {"layers": 2})


@pytest.mark.usefixtures("two_layers")
@pytest.mark.parametrize("rule", ["unit", "centroid"])
def test_compiles_and_exports(corpus: Corpus, rule: RotaryRule) -> None:
    model = build(corpus, rotary=rule, depth=1)
    video = frames().unflatten(0, (2, 2))
    expected = model.encode(video).tokens
    if rule == "unit":
        compiled = torch.compile(model.encode, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(video).tokens, expected, rtol=1e-4, atol=1e-5)
    else:
        program = export_program(model).module()
        torch.testing.assert_close(program(video[:1]), model.describe(video[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("two_layers")
def test_counters_know_every_op(corpus: Corpus) -> None:
    """Turning is elementwise, and costs no product."""
    inputs = frames().unflatten(0, (2, 2)), torch.randn(3, 64)
    plain = fvcore_count(build(corpus, backbone="tiny", depth=1), inputs)
    for rule in ("unit", "centroid"):  # the others do less
        model = build(corpus, rotary=rule, depth=1)
        assert fvcore_count(model, inputs) == plain
    with fused_ops_on_cpu():
        assert sum(fvcore_count(model, inputs).values()) == sum(plain.values())


def test_activation_checkpointing_gives_the_same_gradients(corpus: Corpus) -> None:
    model = build(corpus)

    def gradient() -> Tensor:
        model.zero_grad()
        model.encode(frames().unflatten(0, (2, 2))).tokens.square().sum().backward()
        weight = model.encoder.visual.transformer.resblocks[0].attn.in_proj_weight
        return weight.grad.clone()

    plain = gradient()
    model.encoder.activation_checkpointing = True
    assert torch.equal(gradient(), plain)
    assert plain.abs().sum() > 0


def test_bad_rules_and_backbones_without_rotary_positions(corpus: Corpus) -> None:
    with pytest.raises(ArgumentError, match="rotary must be one of mean, unit, centroid, survivor, got 'median'"):
        ModelConfig(backbone="tiny_rope", rotary="median")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="backbone 'ViT-B-16' has no rotary positions"):
        ModelConfig(rotary="unit")
    with pytest.raises(ArgumentError, match="got 'median'"):
        build(corpus).encoder.set_rotary("median")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="rotary 'mean' is for image towers with rotary positions"):
        create_model("alt_tiny", corpus).encoder.set_rotary("mean")


def test_weights_of_the_other_tower_do_not_fit(tmp_path: Path) -> None:
    for backbone, other in (("tiny", "tiny_rope"), ("tiny_rope", "tiny")):
        torch.save(build_clip(backbone).state_dict(), tmp_path / f"{backbone}.pt")
        with pytest.raises(WeightsError, match=f"do not fit '{other}'"):
            build_clip(other, str(tmp_path / f"{backbone}.pt"))


def test_apply_patch_takes_the_tower(tmp_path: Path) -> None:
    """As `visualize` does; nothing changes at r = 0, and taking it off leaves the tower as it was."""
    tower = build_clip("tiny_rope").visual
    expected = tower(frames())
    for rule in RULES:
        alt_fast.apply_patch(tower, r=0, rotary=rule)
        torch.testing.assert_close(tower(frames()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alt_fast.apply_patch(tower, r=6)(frames()), expected, atol=1e-3)
    assert torch.equal(alt_fast.remove_patch(tower)(frames()), expected)
    torch.save(build_clip("tiny_rope").state_dict(), tmp_path / "clip.pt")
    Image.new("RGB", (48, 48)).save(tmp_path / "black.png")
    command = [str(tmp_path / "black.png"), "--model", "open_clip:tiny_rope", "--weights", str(tmp_path / "clip.pt")]
    assert visualize([*command, "--r", "4", "--out", str(tmp_path / "regions.png")]) == 0


def test_the_default_job_on_it(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, is stopped and goes on to the same weights, and is tested with another rule than its own."""
    data = trained_run.parent / "data"
    options = ["--model.backbone", "tiny_rope", "--model.r", "8", "--data.root", str(data), "--frame_only", "false"]
    command = [*SMALL_JOB, *options, "--data.workers", "0"]
    assert train([*command, "--out", str(tmp_path / "whole"), "--keep", "3"]) == 0
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    for name in ("config.yaml", "environment.json", "clip.safetensors", "clip-00000002.state", "alt-00000004.state"):
        (resumed / name).write_bytes((whole / name).read_bytes())
    assert train([*command, "--out", str(resumed), "--resume"]) == 0
    expected, found = load(whole), load(resumed)
    weights = found.model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in expected.model.state_dict().items())
    assert "8 tokens merged per layer, rotary positions by the rule `mean`" in (whole / "README.md").read_text()

    capsys.readouterr()
    rows = {}
    for rule in (None, "mean", "survivor"):
        asked = [] if rule is None else ["--rotary", rule]
        assert evaluate(["--checkpoint", str(whole), "--json", "--workers", "0", *asked]) == 0
        rows[rule] = json.loads(capsys.readouterr().out)
    assert rows[None] == rows["mean"]
    expected.set_rotary("survivor")
    video = torch.randn(1, 2, 3, 48, 48)
    assert not torch.equal(expected.model.encode(video).tokens, found.model.encode(video).tokens)

    clip = str(next((data / "test").glob("*.webm")))
    assert classify([clip, "--checkpoint", str(whole), "--rotary", "unit"]) == 0
    bare = ["--head", "clip", "--backbone", "tiny_rope", "--pretrained", str(whole / "clip.safetensors")]
    assert classify([clip, *bare, "--labels", "a star", "--r", "4", "--rotary", "centroid"]) == 0
    found.explain(clip).save(tmp_path / "page.html")
    capsys.readouterr()
    assert evaluate(["--checkpoint", str(whole), "--rotary", "median"]) == 2
    assert "rotary must be one of mean, unit, centroid, survivor, got 'median'" in capsys.readouterr().err
    assert evaluate(["--checkpoint", str(trained_run), "--rotary", "unit"]) == 2
    assert "rotary 'unit' is for image towers with rotary positions" in capsys.readouterr().err
