"""A fitted schedule: no worse than the constant one, within its budget, the same each time; the model left alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.measure.counting import UncountedError, count_macs
from alt_fast.measure.tower_cost import tower_cost
from tests.tome.test_patch import build, images, timm_vit

PIXELS = images(4)


def deep(**options: Any) -> nn.Module:
    """Six layers with 65 tokens of images of 64 pixels, weights large enough that merging shows."""
    torch.manual_seed(0)
    model = timm_vit(6, img_size=64, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pictures(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def agreement(model: nn.Module, schedule: Sequence[int], x: Tensor) -> float:
    """The mean cosine to the un-merged output; the model is not patched before and after."""
    with torch.no_grad():
        expected = model(x)
        merged = alt_fast.apply_patch(model, schedule)(x)
    alt_fast.remove_patch(model)
    return float(torch.cosine_similarity(merged, expected).mean())


def macs(model: nn.Module, schedule: Sequence[int], x: Tensor) -> int:
    alt_fast.apply_patch(model, schedule)
    with torch.no_grad():
        count = count_macs(lambda: model(x[:1]))
    alt_fast.remove_patch(model)
    return count


@pytest.mark.parametrize("r", [4, [0, 0, 12, 6, 0, 9], 0.2])
def test_a_schedule_agrees_no_less_than_the_r_whose_macs_it_keeps_to(r: Any) -> None:
    model, x = deep(), pictures()
    fitted = alt_fast.fit_schedule(model, x, r=r, max_evaluations=6)
    assert macs(model, fitted, x) <= macs(model, r, x)
    assert agreement(model, fitted, x) >= agreement(model, r, x)


def test_more_evaluations_find_more() -> None:
    model, x = deep(), pictures()
    found = [agreement(model, alt_fast.fit_schedule(model, x, r=5, max_evaluations=n), x) for n in (1, 15)]
    assert found[0] == agreement(model, [5] * 6, x)
    assert 1 - found[1] < 0.8 * (1 - found[0])


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_speedup_is_one_of_macs(multiple: int) -> None:
    model, x = deep(), pictures()
    plain = macs(model, [0] * 6, x)
    fitted = alt_fast.fit_schedule(model, x, 1.5, multiple=multiple, max_evaluations=4)
    assert 1.5 <= plain / macs(model, fitted, x) < 1.5 + 0.1 * multiple
    tokens = 65
    for r in fitted:
        tokens -= r
        assert r == 0 or tokens % multiple == 0
    assert alt_fast.fit_schedule(model, x, macs=plain / 1.5, multiple=multiple, max_evaluations=4) == fitted
    assert alt_fast.fit_schedule(model, x, 1) == [0] * 6
    assert alt_fast.fit_schedule(model, x, r=0, multiple=8) == [0] * 6


def test_layers_that_tolerate_merging_do_it() -> None:
    """Behind its third layer patches reach the class token no more: merging from there on changes nothing."""
    model, x = deep(), pictures()
    for block in list(model.get_submodule("blocks").children())[3:]:
        nn.init.zeros_(block.get_parameter("attn.proj.weight"))
    fitted = alt_fast.fit_schedule(model, x, r=4)
    assert sum(fitted[:2]) <= 1
    assert 1 - agreement(model, fitted, x) < 0.05 * (1 - agreement(model, [4] * 6, x))


@pytest.mark.parametrize(
    ("host", "destinations"),
    [("timm-dinov2", 2), ("timm-attention-pool", 3), ("open_clip", 2), ("ViTModel", 3), ("CLIPVisionModel", 2)],
)
def test_costs_are_what_is_counted(host: str, destinations: int) -> None:
    model = build(host).requires_grad_(False)
    cost = tower_cost(model, PIXELS[:1], 3, destinations=destinations)
    for schedule in ([0, 0, 0], [3, 2, 1], [0, 0, 5], [6, 0, 1]):
        alt_fast.apply_patch(model, schedule, destinations=destinations)
        with torch.no_grad():
            assert cost.macs(schedule) == pytest.approx(count_macs(lambda: model(PIXELS[:1])), rel=1e-9)


@pytest.mark.parametrize("host", ["open_clip", "ViTForImageClassification", "Dinov2Model"])
def test_any_host_is_fitted_the_same_each_time(host: str) -> None:
    model = build(host)
    first, again = (alt_fast.fit_schedule(model, PIXELS, r=2, max_evaluations=3) for _ in range(2))
    assert first == again
    assert len(first) == 3


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_towers_are_fitted(depth: int) -> None:
    fitted = alt_fast.fit_schedule(build("timm", depth), PIXELS, r=2)
    assert len(fitted) == depth
    assert sum(fitted) > 0


def test_the_model_is_left_as_it_was() -> None:
    model, x = deep(drop_path_rate=0.5).train(), pictures()
    alt_fast.apply_patch(model, r=3, trace_source=True)
    model.eval()(x)
    model.train()
    before = [(type(module), dict(vars(module)), module.training) for module in model.modules()]
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    alt_fast.fit_schedule(model, x, r=4, max_evaluations=5)
    assert len(calls) == 3 + 1 + 5
    assert not any(calls)
    model._forward_pre_hooks.clear()
    assert [(type(module), dict(vars(module)), module.training) for module in model.modules()] == before


def test_options_of_merging_are_those_of_the_fit() -> None:
    model, x = deep(), pictures()
    fitted = alt_fast.fit_schedule(model, x, r=[40, 0, 0, 0, 0, 0], destinations=4, prop_attn=False, max_evaluations=1)
    assert fitted == [40, 0, 0, 0, 0, 0]


class Twice(nn.Module):
    """Two towers, or one that runs twice."""

    def __init__(self, *towers: nn.Module) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, x: Tensor) -> Tensor:
        return self.towers[0](x) + self.towers[-1](x)


class Says(nn.Module):
    """Makes something else of a tower's output."""

    def __init__(self, say: Any) -> None:
        super().__init__()
        self.tower, self.say = timm_vit(), say

    def forward(self, x: Tensor) -> Any:
        return self.say(self.tower(x))


@pytest.mark.parametrize(
    ("model", "x", "options", "message"),
    [
        (timm_vit(), PIXELS, {}, "exactly one of speedup, macs and r must be given, got none"),
        (timm_vit(), PIXELS, {"speedup": 1.2, "r": 2}, "exactly one .* got speedup and r"),
        (timm_vit(), PIXELS, {"speedup": 0.5}, "speedup must be >= 1, got 0.5"),
        (timm_vit(), PIXELS, {"speedup": float("nan")}, "speedup must be >= 1, got nan"),
        (
            timm_vit(),
            PIXELS,
            {"speedup": 50},
            r"speedup=50 cannot be reached: merging saves .* factor of 1\.\d\d at most",
        ),
        (timm_vit(), PIXELS, {"macs": 0}, "macs=0 cannot be reached"),
        (timm_vit(), PIXELS, {"r": 8, "multiple": 16}, "r=8 cannot be reached: merging, by multiples of 16, saves"),
        (timm_vit(), PIXELS, {"r": 2, "multiple": 0}, "multiple must be an int >= 1, got 0"),
        (timm_vit(), PIXELS, {"r": 2, "multiple": 2.5}, "multiple must be an int >= 1, got 2.5"),
        (timm_vit(), PIXELS, {"r": 2, "max_evaluations": 0}, "max_evaluations must be an int >= 1, got 0"),
        (timm_vit(), PIXELS, {"r": 2, "step": None}, "options must be of destinations, .* got step"),
        (
            timm_vit(),
            PIXELS,
            {"r": 2, "destinations": alt_fast.OnePerCell((4, 4), (2, 2))},
            "destinations must be an int",
        ),
        (timm_vit(), PIXELS[0], {"r": 2}, r"images must be .* got torch.float32 \[3, 32, 32\]"),
        (timm_vit(), PIXELS[:0], {"r": 2}, "images must be"),
        (timm_vit(), PIXELS.byte(), {"r": 2}, "images must be .* got torch.uint8"),
        (timm_vit(), [PIXELS], {"r": 2}, "images must be .* got list"),
        (timm_vit(), PIXELS / 0, {"r": 2}, "images must have finite outputs"),
        (timm_vit(patch_size=32), PIXELS, {"r": 2}, "images must make some tokens to merge, got 2 with 1 protected"),
        (Twice(timm_vit(), timm_vit()), PIXELS, {"r": 2}, "Twice holds 2 vision towers: fit one at a time"),
        (Twice(timm_vit()), PIXELS, {"r": 2}, "each of its tower's 3 layers once, got 6 runs in a pass"),
        (nn.Conv2d(3, 4, 8), PIXELS, {"r": 2}, "Conv2d holds no vision transformer"),
        (Says(str), PIXELS, {"r": 2}, "model must return a tensor, or what holds one, got str"),
    ],
)
def test_what_cannot_be_used_is_named(model: nn.Module, x: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        alt_fast.fit_schedule(model, x, **options)


def test_what_is_no_model_or_runs_ops_that_nobody_counts_is_named() -> None:
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        alt_fast.fit_schedule("vit", PIXELS, r=2)  # type: ignore[arg-type]
    with pytest.raises(UncountedError, match="aten::linalg_qr"):
        alt_fast.fit_schedule(Says(lambda x: torch.linalg.qr(x)[0]), PIXELS, r=2)


@pytest.mark.parametrize(
    "say",
    [
        lambda x: {"other": -x, "logits": x},
        lambda x: (None, x),
        lambda x: [x],
    ],
)
def test_of_several_outputs_the_telling_one_is_compared(say: Any) -> None:
    torch.manual_seed(0)
    model = Says(say).eval()
    fitted = alt_fast.fit_schedule(model, PIXELS, r=2, max_evaluations=3)
    assert fitted == alt_fast.fit_schedule(model.tower, PIXELS, r=2, max_evaluations=3)


def test_the_example_in_the_documentation_fits_a_schedule() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "token_merging.md").read_text()
    code = re.search(r"<!-- fit_schedule -->\n```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert "speedup=1.5" in code[1]
    names: dict[str, Any] = {}
    exec(code[1].replace("randn(8,", "randn(1,").replace("speedup=1.5", "speedup=1.5, max_evaluations=2"), names)
    assert len(names["r"]) == 12
