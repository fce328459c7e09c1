"""Every method on every kind of host: what all have in common, what each claims, and what is refused."""

import copy
import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.methods import METHODS, Method, find_method
from alt_fast.methods.evit import evit_step
from alt_fast.methods.mutual import MutualPairs
from alt_fast.methods.pool import Pool, pool_layer
from alt_fast.methods.threshold import Threshold
from alt_fast.tome.patch import apply_patch
from alt_fast.tome.tokens import Attended, Step, Tokens
from tests.methods.test_rules import R, blocks_of, watch
from tests.tome.test_patch import build, images, run, timm_vit
from tests.tome.test_rotary import dinov3

ADAPTIVE = [name for name, method in METHODS.items() if method.tokens is None]
"""Their number of tokens depends on the images."""
ALL_THERE_IS = {"mpm": 1000, "threshold": -1.0}
NOTHING = {"mpm": 0, "threshold": 1.0}


@cache
def plain(host: str, depth: int) -> nn.Module:
    return build(host, depth)


def fresh(host: str = "timm", depth: int = 2) -> Any:
    return copy.deepcopy(plain(host, depth))


def patched(name: str, model: nn.Module, r: float | None = None) -> Any:
    return METHODS[name].apply(model, R.get(name, 3) if r is None else r)


def counts(model: nn.Module, x: Tensor) -> list[int]:
    """Tokens that enter the MLP of each layer."""
    return [normed.shape[1] for _, _, normed in watch(model, x)]


@pytest.mark.parametrize("host", ["open_clip", "ViTModel"])
@pytest.mark.parametrize("name", METHODS)
def test_changes_the_output_and_not_its_shape(name: str, host: str) -> None:
    model = fresh(host, depth=3)
    with torch.no_grad():
        before = run(model)
        assert patched(name, model) is model
        found, alone = run(model), run(model, images()[:1])
        assert found.shape == before.shape
        assert found.isfinite().all()
        assert not torch.allclose(found, before, atol=1e-3)
        torch.testing.assert_close(alone, found[:1], rtol=1e-3, atol=1e-3)
        assert torch.equal(run(model), found)
        torch.testing.assert_close(run(alt_fast.remove_patch(model)), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_r_of_nothing_changes_nothing(name: str) -> None:
    model = fresh()
    before = run(model)
    patched(name, model, NOTHING.get(name, 0))
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_removes_no_more_than_there_is(name: str) -> None:
    model = patched(name, fresh(depth=4), ALL_THERE_IS.get(name, 1000))
    left = counts(model, images())
    assert all(later <= earlier for earlier, later in pairwise(left))
    assert 2 <= left[-1] < 17
    assert run(model).isfinite().all()


@pytest.mark.parametrize("host", ["timm-average", "timm-distilled"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ADAPTIVE])
def test_as_many_tokens_are_left_as_it_claims(name: str, host: str) -> None:
    if name == "evit" and host == "timm-average":
        pytest.skip("EViT refuses it")
    model, claim = fresh(host, depth=4), METHODS[name].tokens
    assert claim is not None
    for r in (0, 1, 3, 1000, 0.0, 0.1, 0.5):
        protected = blocks_of(patched(name, model, r))[0].tome.protected
        assert counts(model, images(1)) == claim(16 + protected, protected, 4, r)


@pytest.mark.parametrize("r", [[3, 0, 2, 0], (2, -0.5)])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ADAPTIVE])
def test_claims_for_an_r_that_changes_from_layer_to_layer(name: str, r: Any) -> None:
    model, method = fresh(depth=4), METHODS[name]
    assert method.tokens is not None
    if name == "pool":
        for ask in (lambda: method.apply(model, r), lambda: method.tokens(17, 1, 4, r)):
            with pytest.raises(ArgumentError, match="r of pooling is one number for all layers.* got"):
                ask()
    else:
        method.apply(model, r)
        assert counts(model, images(1)) == method.tokens(17, 1, 4, r)


@pytest.mark.parametrize("name", METHODS)
def test_gives_gradients(name: str) -> None:
    model = patched(name, fresh().train())
    run(model).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert model.blocks[0].attn.qkv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_patched_models_pickle_and_copy(name: str) -> None:
    model = patched(name, fresh())
    expected = run(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(again), expected)


@pytest.mark.parametrize("name", METHODS)
def test_steps_compile_without_graph_breaks(name: str) -> None:
    """But for those that must know how many tokens the images keep: they break, and are right all the same."""
    torch.compiler.reset()
    model = patched(name, fresh())
    seen = watch(model, images())
    (at, tokens, normed), step = seen[-1], blocks_of(model)[-1].tome.step.step  # type: ignore[attr-defined]

    def call(x: Tensor, branch: Tensor, key: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        now = replace(at, tokens=replace(at.tokens, x=x), branch=branch, key=key, normed=given)
        tokens, normed = step(now)
        return tokens.x, normed, tokens.sizes(), tokens.source()

    compiled = torch.compile(call, fullgraph=name not in ADAPTIVE, backend="eager")
    assert at.normed is not None
    found = compiled(at.tokens.x, at.branch, at.key, at.normed)
    expected = tokens.x, normed, tokens.sizes(), tokens.source()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_runs_in_autocast(name: str) -> None:
    model = patched(name, fresh())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert run(model).isfinite().all()


@pytest.mark.parametrize("rope", ["dinov3", "mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_rotary_positions_go_with_the_tokens(name: str, rope: str) -> None:
    """Of an image in a batch, which may be padded, as of the image alone."""
    model = patched(name, dinov3(rope_type=rope, rope_rotate_half=rope == "dinov3"))
    x = torch.randn(3, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model(x)
        assert found.isfinite().all()
        torch.testing.assert_close(found[1:2], model(x[1:2]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rope", ["dinov3", "mixed"])
def test_a_dropped_token_moves_nobody(rope: str) -> None:
    """A mean of turns would be shorter than 1."""
    model = patched("drop", dinov3(rope_type=rope, rope_rotate_half=rope == "dinov3"))
    at = watch(model, torch.randn(1, 3, *model.patch_embed.img_size))[-1][0]
    assert at.rotary is not None
    cos, sin, _ = at.rotary
    torch.testing.assert_close(cos.square() + sin.square(), torch.ones_like(cos))


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"evit", "drop"}))
def test_merging_equal_tokens_changes_nothing(name: str) -> None:
    """Tokens that stand for more patches count more."""
    model = fresh()
    model.pos_embed = None
    x = torch.full((2, 3, 32, 32), 0.7)
    before = run(model, x)
    patched(name, model)
    assert counts(model, x)[-1] < 17
    torch.testing.assert_close(run(model, x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_images_are_padded_to_the_longest(name: str) -> None:
    """One of equal patches beside one of different ones, in both orders: an empty token is nobody's key."""
    model = fresh(depth=4)
    with torch.no_grad():
        model.pos_embed.mul_(0.05)
    patched(name, model)
    plain, rich = torch.full((1, 3, 32, 32), 0.7), images(1)
    both = torch.cat((plain, rich, plain))
    _, tokens, _ = watch(model, both)[-1]
    assert (tokens.sizes() == 0).any()
    assert (tokens.sizes() > 0).all(1).any()
    assert (tokens.sizes().sum(1) == 17).all()
    alone = torch.cat([run(model, x) for x in (plain, rich, plain)])
    torch.testing.assert_close(run(model, both), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [MutualPairs(2), Threshold(0.5)])
def test_padding_is_refused_where_it_would_be_read(step: Step) -> None:
    for prop_attn, unmerge in ((False, True), (True, False)):
        model = alt_fast.apply_patch(fresh(depth=2), 0, step=step, prop_attn=prop_attn, unmerge=unmerge)
        with pytest.raises(ArgumentError, match="needs prop_attn and unmerge"):
            run(model)
    model = alt_fast.apply_patch(fresh(depth=2), 0, step=step)
    assert len(run(model, images(1)[:0])) == 0


def test_random_pairs_are_the_same_for_all_images_and_others_in_every_layer() -> None:
    (_, first, _), (_, second, _) = watch(patched("random", fresh()), images(8))
    (_, other, _), _ = watch(patched("random", fresh()), images(1) + 1)
    slots = [plan.slot for plan, _ in second.merges]
    for slot in slots:
        assert (slot == slot[:1]).all()
    assert torch.equal(first.merges[0][0].slot[:1], other.merges[0][0].slot)
    assert not torch.equal(slots[0][:, :14], slots[1])


def test_a_dropped_patch_is_where_its_keeper_is_in_dense_features() -> None:
    model = patched("drop", fresh("ViTModel", depth=1))
    features = model(images()).last_hidden_state
    same = (features[:, 2:] == features[:, 1:-1]).all(-1)  # patches that are what the one before is
    assert same[0].nonzero().flatten().tolist() == [1, 7, 12]  # (2 i + 1) * 16 // 6, counted from the second patch


POOLED: dict[tuple[int, float], int] = {
    (12, 0): 12,
    (12, 8): 12 - 4,
    (12, 16): 12 - 8,
    (24, 8): 24 - 16,
    (12, 0.1): 12 - 7,
}
"""In a tower of so many layers, of 14 x 14 patches, at r. ToMe removes 0, 624, 1242, 2398 and 1060 tokens over all
layers, pooling 147 in each."""


@pytest.mark.parametrize(("num_layers", "r"), POOLED)
def test_pooling_meets_the_sum_of_tokens(num_layers: int, r: float) -> None:
    layer = pool_layer((14, 14), 1, num_layers, r)
    assert layer == POOLED[num_layers, r]


def test_pools_a_grid_that_is_no_square() -> None:
    model = fresh()
    model.patch_embed.img_size, model.pos_embed = (32, 48), None
    x = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    apply_patch(model, 0, step=Pool(5, (4, 6)))
    assert counts(model, x)[-1] == 1 + 2 * 3
    with pytest.raises(ArgumentError, match="over a square of patches, and there are 24"):
        patched("pool", model)(x)
    with pytest.raises(ArgumentError, match="over a grid of 5 x 5 of patches, and there are 24"):
        apply_patch(model, 0, step=Pool(5, (5, 5)))(x)


def naflex(**options: Any) -> nn.Module:
    return timm.models.NaFlexVit(timm.models.NaFlexVitCfg(embed_dim=32, depth=2, num_heads=2, **options))


WITHOUT_CLASS_TOKEN: dict[str, Callable[[], nn.Module]] = {
    "no token": lambda: fresh("timm-average"),
    "registers": lambda: timm_vit(class_token=False, reg_tokens=4, global_pool="avg"),
    "registers of NaFlexVit": lambda: naflex(class_token=False, reg_tokens=4, global_pool="avg"),
}


@pytest.mark.parametrize("host", WITHOUT_CLASS_TOKEN)
def test_evit_refuses_hosts_without_a_class_token(host: str) -> None:
    model = patched("evit", WITHOUT_CLASS_TOKEN[host]())
    with pytest.raises(ArgumentError, match="EViT needs a class token"):
        run(model)


def test_evit_takes_registers_behind_a_class_token() -> None:
    for model in (timm_vit(reg_tokens=4), naflex(class_token=True, reg_tokens=4)):
        assert run(patched("evit", model)).isfinite().all()


def test_evit_refuses_attentions_whose_query_it_cannot_find() -> None:
    x = torch.randn(1, 9, 4)
    at = Attended(Tokens(x), x, x.unsqueeze(2), 2, 1, attention=nn.Identity(), normed=x)
    with pytest.raises(ArgumentError, match="query.*not Identity"):
        evit_step(at)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a cosine above 1": (lambda: Threshold(1.5), r"cosine in \[-1, 1\], got 1.5"),
    "no cosine": (lambda: Threshold("high"), "got 'high'"),  # type: ignore[arg-type]
    "not a number": (lambda: Threshold(float("nan")), "got nan"),
    "fewer layers than none": (lambda: MutualPairs(-1), ">= 0, got -1"),
    "a part of a layer": (lambda: MutualPairs(0.5), "an int, got 0.5"),  # type: ignore[arg-type]
    "a name that is none": (lambda: find_method("tomme"), "one of tome, .*, or module:function, got 'tomme'"),
    "half a name": (lambda: find_method("math:"), "got 'math:'"),
    "a module that is none": (lambda: find_method("no_such_module:f"), "no_such_module cannot be imported"),
    "a name that a module lacks": (lambda: find_method("math:f"), "math has no f"),
    "what cannot be called": (lambda: find_method("math:pi"), "must be a function of a model and r, got float"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    ask, message = WRONG[case]
    with pytest.raises(ArgumentError, match=message):
        ask()


def test_finds_its_own_by_name_and_others_by_module_and_function(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(find_method(name) is method and method.name == name for name, method in METHODS.items())

    def halve(model: nn.Module, r: int) -> None:
        """Halve something.

        More of it.
        """

    module = types.ModuleType("somebodys")
    module.halve = halve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys", module)
    found = find_method("somebodys:halve")
    assert (found.name, found.what, found.tokens) == ("somebodys:halve", "Halve something.", None)
    assert found.apply is halve
    halve.tokens = claim = METHODS["tome"].tokens  # type: ignore[attr-defined]
    assert find_method("somebodys:halve").tokens is claim


def test_a_module_that_fails_is_told_with_its_cause(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_method.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArgumentError, match="failing_method cannot be imported: division by zero"):
        find_method("failing_method:f")


def test_a_method_is_a_value() -> None:
    assert isinstance(METHODS["pitome"], Method)
    assert all(method.values and method.source and method.what and method.r for method in METHODS.values())
    assert replace(METHODS["pitome"], name="mine").tokens is METHODS["pitome"].tokens
