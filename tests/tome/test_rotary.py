"""Rotary positions of merged tokens: the four rules against their definitions, and what merging may change."""

import math
from typing import Any, get_args

import pytest
import timm
import torch
from torch import Tensor

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.tome.rotary import begin, merge_turns, rotation
from alt_fast.tome.rules import RotaryRule
from alt_fast_kernels import MergePlan, Rotary, match, proportional_attention

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
        turns = begin(rotary, num_tokens, torch.float64, rule)
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
        begin(tables(places), 6, torch.float64, "mean" if rule != "survivor" else rule),
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
    with pytest.raises(ArgumentError, match="positions of 16 tokens do not fit 12"):
        begin(tables(grid(4, 4)), 12, torch.float32, "mean")
