"""Rotary positions of merged tokens: the four rules against their definitions, and what merging may change."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import timm
import torch
import transformers
from torch import Tensor

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.rotary import _summed, begin, merge_turns, rotation
from alt_fast.tome.rules import RotaryRule
from alt_fast_kernels import MergePlan, Rotary, match, proportional_attention
from tests.oracles import RotaryBlock, merge_by_hand

RULES: tuple[RotaryRule, ...] = get_args(RotaryRule)
FREQUENCIES = torch.tensor([1.0, 0.4, 0.1, 0.03], dtype=torch.float64)


def tables(places: Tensor) -> Rotary:
    """Of places [N, axes], each turning as many pairs of a head."""
    angles = (places[:, :, None] * FREQUENCIES).flatten(1).repeat_interleave(2, 1)[None, :, None]
    return Rotary(angles.cos(), angles.sin(), interleaved=True)


def grid(*sides: int) -> Tensor:
    return torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in sides)).reshape(-1, len(sides))


def plan_of(slot: list[int]) -> MergePlan:
    """Tokens to the slots named; the first of each keeps it."""
    num_slots = max(slot) + 1
    kept = [slot.index(j) for j in range(num_slots)]
    others = sorted((j, i) for i, j in enumerate(slot) if i not in kept)
    start = [sum(j < k for j, _ in others) for k in range(num_slots + 1)]
    rows = slot, [*kept, *(i for _, i in others)], start
    of_slots, order, starts = (torch.tensor([row], dtype=torch.int32) for row in rows)
    return MergePlan(of_slots, order, starts, num_slots)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("cos", "sin"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32)],
)
def test_turns_have_16_bits_where_the_tables_and_the_tokens_have_them(
    rule: RotaryRule, cos: torch.dtype, sin: torch.dtype
) -> None:
    """Whole turns do not fit into 16 bits. One token takes up fifteen others, one after the other."""
    exact = tables(grid(4, 5))
    rotary = Rotary(exact.cos.to(cos), exact.sin.to(sin), interleaved=True)

    def turned(rotary: Rotary, tokens: torch.dtype) -> Rotary:
        turns, sizes = begin(rotary, 21, 1, tokens, rule), [1.0] * 21
        for _ in range(15):
            plan = plan_of([0, 1, 1, *range(2, len(sizes) - 1)])
            turns = merge_turns(turns, torch.tensor([sizes]), plan, rule)
            sizes = [sizes[0], sizes[1] + sizes[2], *sizes[3:]]
        return rotation(turns, rule)

    found, expected = turned(rotary, torch.bfloat16), turned(exact, torch.float64)
    short = cos == sin == torch.bfloat16 and rule != "centroid"
    assert found.cos.dtype == found.sin.dtype == (torch.bfloat16 if short else torch.float32)
    error = 0.02 if cos == torch.bfloat16 else 1e-5  # at 1 bf16 goes by steps of 0.008
    for table, of in ((found.cos, expected.cos), (found.sin, expected.sin)):
        torch.testing.assert_close(table.double(), of, rtol=0, atol=error)


@pytest.mark.parametrize("sides", [(1, 6), (3, 4), (2, 3, 4)])
def test_rules_follow_their_definitions(sides: tuple[int, ...]) -> None:
    """Two merges in a row, a prefix token before them."""
    places = grid(*sides)
    num_tokens = len(places) + 1
    first = [0, 1, 1, 2, *range(3, num_tokens - 1)]
    second = [0, 1, 1, *range(2, num_tokens - 2)]
    members = [[i for i in range(num_tokens) if second[first[i]] == j] for j in range(num_tokens - 2)]
    rotary = tables(places)
    for rule in RULES:
        turns = begin(rotary, num_tokens, 1, torch.float64, rule)
        size = torch.ones(1, num_tokens)
        turns = merge_turns(turns, size, plan_of(first), rule)
        size = torch.tensor([first], dtype=torch.float64).long().squeeze().bincount()[None].float()
        found = rotation(merge_turns(turns, size, plan_of(second), rule), rule)
        for j, group in enumerate(members):
            at = places[[i - 1 for i in group]] if j else places[:1] * 0
            each = tables(at)
            cos, sin = each.cos[0, :, 0].mean(0), each.sin[0, :, 0].mean(0)
            if rule == "unit":
                length = (cos**2 + sin**2).sqrt()
                cos, sin = cos / length, sin / length
            elif rule == "centroid":
                one = tables(at.mean(0, keepdim=True))
                cos, sin = one.cos[0, 0, 0], one.sin[0, 0, 0]
            elif rule == "survivor":
                cos, sin = each.cos[0, 0, 0], each.sin[0, 0, 0]
            torch.testing.assert_close(found.cos[0, j, 0], cos)
            torch.testing.assert_close(found.sin[0, j, 0], sin)


def attention_error(rule: RotaryRule, spread: float) -> float:
    """How far attention to one token that stands for three, `spread` apart, is from attention to all three."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 1, 16, dtype=torch.float64, generator=generator).unbind(0)
    places = torch.tensor([[0.0, 0.0], [5.0, 2.0], [2.0, 4.0], [2.0, 4.0]], dtype=torch.float64)
    three = torch.tensor([[0.0, 0.0], [0.7, 0.2], [0.2, 1.1]], dtype=torch.float64) * spread
    places = torch.cat((places[:3], places[3:] + three))
    content = torch.tensor([0, 1, 2, 3, 3, 3])
    exact = proportional_attention(q[:, content], k[:, content], v[:, content], rotary=tables(places))[:, :3]
    turns = merge_turns(
        begin(tables(places), 6, 0, torch.float64, "mean" if rule != "survivor" else rule),
        torch.ones(1, 6),
        plan_of([0, 1, 2, 3, 3, 3]),
        rule,
    )
    rotary = rotation(turns, rule) if rule != "centroid" else tables(torch.cat((places[:3], places[3:].mean(0)[None])))
    size = torch.tensor([[1.0, 1.0, 1.0, 3.0]])
    merged = proportional_attention(q, k, v, size.double(), rotary=rotary)[:, :3]
    return (merged - exact).abs().max().item()


@pytest.mark.parametrize(("rule", "order"), [("mean", 2), ("unit", 2), ("centroid", 2), ("survivor", 1)])
def test_error_falls_with_the_distance(rule: RotaryRule, order: int) -> None:
    """As its square, for all rules but the survivor's; at none it is none."""
    near, far = attention_error(rule, 0.01), attention_error(rule, 0.02)
    assert math.log2(far / near) == pytest.approx(order, abs=0.1)
    assert attention_error(rule, 0.0) < 1e-12


def dinov3(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    defaults = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5}
    rotary = {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True}
    others = {"num_reg_tokens": 4, "dynamic_img_size": True}
    model = timm.models.eva.Eva(**{**defaults, **rotary, **others, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rope", ["dinov3", "cat", "mixed"])
def test_towers_under_every_rule(rule: RotaryRule, rope: str) -> None:
    """Axial and mixed tables, the latter of every layer its own: r = 0 changes nothing, r > 0 something finite."""
    model = dinov3(rope_type=rope, rope_rotate_half=rope == "dinov3")
    x = torch.randn(2, 3, 64, 80)
    plain = model(x)
    torch.testing.assert_close(alt_fast.apply_patch(model, r=0, rotary=rule)(x), plain, rtol=1e-4, atol=1e-5)
    merged = alt_fast.apply_patch(model, r=4, rotary=rule)(x)
    assert merged.isfinite().all()
    assert not torch.allclose(merged, plain, atol=1e-4)
    assert torch.equal(alt_fast.remove_patch(model)(x), plain)


def test_the_frequencies_of_mixed_tables_learn() -> None:
    model = alt_fast.apply_patch(dinov3(rope_type="mixed", rope_rotate_half=False).train(), r=4)
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    grad = model.rope.freqs.grad
    assert grad is not None
    assert (grad.flatten(2).abs().sum(-1) > 0).all()


def test_matching_sees_keys_before_they_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant image has equal patches, wherever they are: any may merge, at a cosine of 1."""
    seen: list[Tensor] = []

    def record(key: Tensor, *rest: Any) -> MergePlan:
        seen.append(key)
        return match(key, *rest)

    monkeypatch.setattr("alt_fast.tome.tokens.match", record)
    model = alt_fast.apply_patch(dinov3(), r=4)
    model(torch.full((1, 3, 64, 64), 0.3))
    torch.testing.assert_close(seen[0][:, 5:], seen[0][:, 5:6].expand_as(seen[0][:, 5:]))


def test_bad_rules_and_tables() -> None:
    with pytest.raises(ArgumentError, match="rotary must be one of mean, unit, centroid, survivor, got 'median'"):
        alt_fast.apply_patch(dinov3(), rotary="median")  # type: ignore[arg-type]
    for num_tokens in (12, 18):
        with pytest.raises(ArgumentError, match=f"of 16 tokens do not fit {num_tokens} tokens, 1 of them a prefix"):
            begin(tables(grid(4, 4)), num_tokens, 1, torch.float32, "mean")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sides", [(14, 14), (3, 4, 5), (2, 2), (1, 6), (6, 1), (37, 40), (1, 1)])
def test_a_rounded_table_tells_its_angles(sides: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whole turns included, of which the widest grid has six; a row that ends early is one all the same."""
    places = torch.cat((grid(*sides), grid(*sides)[:-1][: sides[-1] // 2] + torch.eye(len(sides))[0] * sides[0]))
    expected = (places[:, :, None] * FREQUENCIES).flatten(1).repeat_interleave(2, 1)
    cos, sin, interleaved = tables(places)
    rounded = Rotary(cos.to(dtype), sin.to(dtype), interleaved)
    angles = begin(rounded, len(places) + 1, 1, torch.float32, "centroid").table[0, :, 0].double()
    assert torch.equal(angles[0], torch.zeros(expected.shape[1], dtype=torch.float64))
    assert (angles[1:] - expected).abs().max() < torch.finfo(dtype).eps + 1e-5


def test_every_image_may_have_a_grid_of_its_own() -> None:
    cos, sin = (torch.cat(parts) for parts in zip(*(tables(grid(*s))[:2] for s in ((4, 9), (6, 6))), strict=True))
    table = begin(Rotary(cos, sin, True), 36, 0, torch.float64, "centroid").table
    for angles, sides in zip(table[:, :, 0], ((4, 9), (6, 6)), strict=True):
        torch.testing.assert_close(angles[:, ::2], (grid(*sides)[:, :, None] * FREQUENCIES).flatten(1))


def test_angles_are_summed_as_whole_numbers() -> None:
    """Others PyTorch does not sum on a GPU that is to be deterministic."""
    for dtype, atol in ((torch.float32, 2e-4), (torch.float64, 1e-6)):
        steps = 6 * torch.rand(2, 4000, 1, 4, dtype=dtype) - 3
        found = _summed(steps)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), steps.double().cumsum(1), rtol=0, atol=atol)


def test_positions_that_are_no_grid_have_no_centroid() -> None:
    """timm drops patches in training: what is left lies anywhere."""
    for places in (grid(5, 5)[torch.randperm(25)], grid(8, 8)[torch.arange(64) % 5 > 0]):
        with pytest.raises(ArgumentError, match="'centroid' needs positions of patches in rows and columns"):
            begin(tables(places), len(places), 0, torch.float32, "centroid")
    model = dinov3(patch_drop_rate=0.5).train()
    for rule in RULES:
        alt_fast.apply_patch(model, r=2, rotary=rule)
        if rule == "centroid":
            with pytest.raises(ArgumentError, match="take another rule"):
                model(torch.randn(2, 3, 96, 96))
        else:
            assert model(torch.randn(2, 3, 96, 96)).isfinite().all()


def noisy(model: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """With weights far enough from 0 for positions to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def of_transformers(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 16}
    known = cls.config_class().to_dict()
    options = {**small, "intermediate_size": 96, "image_size": 96, "head_dim": 32, **options}
    return noisy(cls(cls.config_class(**{key: value for key, value in options.items() if key in known})))


def naflex() -> torch.nn.Module:
    torch.manual_seed(0)
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "rope_type": "axial", "pos_embed": "none"}
    return noisy(timm.create_model("naflexvit_base_patch16_gap", **options), 0.3)


def run_half(model: Any, x: Tensor) -> Tensor:
    """NaFlexVit gets patches and where they are; its tables then have their dtype."""
    if not hasattr(model, "config"):
        patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        places = grid(6, 6).long().expand(len(x), -1, -1)
        valid = torch.ones(len(x), 36, dtype=torch.bool)
        tokens: Tensor = model.forward_features(patches, patch_coord=places, patch_valid=valid)["patches"]
        return tokens
    last: Tensor = model(x).last_hidden_state
    return last


TABLES_OF_HOSTS: dict[str, Callable[[], torch.nn.Module]] = {
    "DINOv3": partial(of_transformers, "DINOv3ViTModel"),
    "MLCD, whose class token turns": partial(of_transformers, "MLCDVisionModel"),
    "Pixtral": partial(of_transformers, "PixtralVisionModel"),
    "NaFlexVit": naflex,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("host", TABLES_OF_HOSTS)
def test_r_0_changes_nothing_in_any_precision(host: str, dtype: torch.dtype) -> None:
    """An error at most twice that of the plain model, which rounds elsewhere."""
    model = TABLES_OF_HOSTS[host]()
    low, x = copy.deepcopy(model).to(dtype), torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = run_half(model.double(), x.double())
        error = (run_half(low, x.to(dtype)) - exact).abs().max()
        for rule in RULES:
            alt_fast.apply_patch(low, r=0, rotary=rule)
            assert (run_half(low, x.to(dtype)) - exact).abs().max() <= 2 * error, rule


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rope", ["dinov3", "cat"])
def test_towers_compile_as_one_graph(rule: RotaryRule, rope: str) -> None:
    torch.compiler.reset()
    model = alt_fast.apply_patch(dinov3(depth=2, rope_type=rope, rope_rotate_half=rope == "dinov3"), r=4, rotary=rule)
    x = torch.randn(2, 3, 80, 96)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_tower_with_centroids_exports() -> None:
    model, x = alt_fast.apply_patch(dinov3(depth=2), r=4, rotary="centroid"), torch.randn(2, 3, 80, 96)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x), rtol=1e-4, atol=1e-5)


def vjepa2(frames: int) -> Any:
    options = {"crop_size": 48, "frames_per_clip": frames, "mlp_ratio": 2.0, "pred_hidden_size": 64}
    return of_transformers("VJEPA2Model", **options, pred_num_hidden_layers=1, pred_num_attention_heads=2)


@pytest.mark.parametrize("frames", [4, 10, 16])
def test_a_video_may_have_other_frames_than_its_configuration(frames: int) -> None:
    """As in a model configured for them."""
    model, video = vjepa2(10), torch.randn(2, frames, 3, 48, 48)
    plain = model(video, skip_predictor=True).last_hidden_state
    other = vjepa2(frames)
    other.load_state_dict(model.state_dict())
    for rule in RULES:
        alt_fast.apply_patch(model, r=0, rotary=rule)
        found = model(video, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        for each in (model, other):
            alt_fast.apply_patch(each, r=6, rotary=rule)
        found = model(video, skip_predictor=True).last_hidden_state
        assert found.isfinite().all()
        assert not torch.allclose(found, plain, atol=1e-3)
        assert torch.equal(found, other(video, skip_predictor=True).last_hidden_state)


def by_hand(model: Any, height: int, width: int) -> list[RotaryBlock]:
    """The blocks of a timm tower, whose angles are its paper's: DINOv3's, or RoPE-ViT's of every layer and head."""

    def qkv(block: Any, x: Tensor) -> Any:
        bias = torch.cat((block.attn.q_bias, block.attn.k_bias, block.attn.v_bias))
        return torch.nn.functional.linear(block.norm1(x), block.attn.qkv.weight, bias).view(len(x), 3, 2, 16).unbind(1)

    def angles(layer: int, places: Tensor) -> Tensor:
        if model.rope_mixed:  # [2, layers, heads, D / 2], of x and y
            of_x, of_y = model.rope.freqs[:, layer]
            turns = places[:, None, 1:] * of_x + places[:, None, :1] * of_y
            return turns.repeat_interleave(2, -1)
        centres = 2 * (places + 0.5) / torch.tensor([height, width]) - 1
        periods = model.rope.temperature ** (torch.arange(4, dtype=torch.float64) / 4)
        return (2 * math.pi * centres[:, :, None] / periods).flatten(1).repeat(1, 2)[:, None]

    return [
        RotaryBlock(
            partial(qkv, block),
            partial(angles, layer),
            block.attn.proj,
            lambda x, block=block: block.mlp(block.norm2(x)),  # type: ignore[misc]
        )
        for layer, block in enumerate(model.blocks)
    ]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rope", ["dinov3", "mixed"])
@torch.no_grad()
def test_towers_equal_merging_by_hand(rule: RotaryRule, rope: str) -> None:
    """Token by token, to the precision that timm makes its tables in."""
    indexing = "ij" if rope == "dinov3" else "xy"
    model = dinov3(rope_type=rope, rope_rotate_half=rope == "dinov3", rope_grid_indexing=indexing).double()
    x = torch.randn(1, 3, 80, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    alt_fast.apply_patch(model, r=5, rotary=rule, unmerge=False)
    features = model.forward_features(x)
    alt_fast.remove_patch(model)
    tokens = model._pos_embed(model.patch_embed(x))[0][0]
    expected = merge_by_hand(tokens, by_hand(model, 5, 6), grid(5, 6), rule, 5, rope != "dinov3")
    assert features.shape == (1, 20, 32)
    torch.testing.assert_close(features[0], model.norm(expected), rtol=1e-5, atol=1e-5)
