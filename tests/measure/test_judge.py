"""A whole judgement on a tiny model: counted, raced, agreed, and what a claim is worth."""

import copy
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import alt_fast
from alt_fast.errors import ArgumentError
from alt_fast.measure.ceiling import dropping
from alt_fast.measure.counting import UncountedError, count_macs, inference_macs
from alt_fast.measure.judge import DROPPED, METHOD, PLAIN, Judgement, Raced, Settings, judge, race, too_fast
from alt_fast.measure.observe import Counts, block_names, count_tokens, tower_shape
from alt_fast.measure.outputs import agreement, as_tensor
from alt_fast.measure.sweep import front, sweep
from alt_fast.tome.tokens import merge_step
from tests.measure import broken


def tower(**options: Any) -> Any:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", img_size=64, num_classes=7, **options).eval()
    return model


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def counts_of(model: nn.Module, blocks: list[str], images: Tensor = IMAGES) -> Counts:
    return count_tokens(model, blocks, images, lambda: model(images))


def test_tokens_are_counted_from_outside() -> None:
    plain = tower()
    blocks = block_names(plain)
    layers = len(blocks)
    assert counts_of(plain, blocks) == Counts((17,) * layers, (17,) * layers)
    assert tower_shape(plain, IMAGES) == (17, 1, layers)
    merged = alt_fast.apply_patch(copy.deepcopy(plain), r=3)
    left = (17, 14, 11, 8, 5, 3, 2)[: layers + 1]
    assert counts_of(merged, blocks) == Counts(left[:-1], left[1:])
    assert counts_of(merged, blocks, IMAGES[:1]).mlp == left[1:]


def test_tokens_are_counted_where_they_come_second() -> None:
    torch.manual_seed(0)
    from torchvision.models import VisionTransformer

    plain = VisionTransformer(32, 8, 2, 2, 16, 32).eval()
    images = torch.randn(2, 3, 32, 32)
    blocks = block_names(plain)
    assert counts_of(alt_fast.apply_patch(copy.deepcopy(plain), r=3), blocks, images).mlp == (14, 11)


def test_a_model_whose_blocks_are_gone_is_refused() -> None:
    plain = tower()
    blocks = block_names(plain)
    idle = copy.deepcopy(plain)
    idle.blocks[-1].forward = lambda x: x
    with pytest.raises(ArgumentError, match=f"nothing ran in {blocks[-1]}"):
        counts_of(idle, blocks)
    with pytest.raises(ArgumentError, match=rf"keep the names of the model's blocks, and there is no {blocks[0]}, "):
        counts_of(nn.Sequential(plain), blocks)
    del plain.blocks[1]
    with pytest.raises(ArgumentError, match=f"there is no {blocks[-1]}"):
        counts_of(plain, blocks)
    with pytest.raises(ArgumentError, match="one vision tower that apply_patch knows, got 0"):
        block_names(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "counts",
    [Counts((17, 14), (14, 14)), Counts((17, 9), (17, 9)), Counts((17, 11), (15, 11)), Counts((12, 10), (10, 9))],
)
def test_dropping_has_the_tokens_it_is_told_wherever_they_go(counts: Counts) -> None:
    plain = tower(depth=2)
    dropped = dropping(plain, counts, IMAGES)
    assert counts_of(dropped, block_names(plain)) == counts
    assert counts_of(plain, block_names(plain)) == Counts((17, 17), (17, 17))


def test_dropping_between_blocks_leaves_them_the_library_s() -> None:
    """Whose Python is not ours: on small models a slice before a block of its own would beat the ceiling."""
    plain, own = tower(depth=2), type(tower().blocks[0])
    for counts, kept in ((Counts((17, 9), (17, 9)), True), (Counts((17, 9), (9, 9)), False)):
        dropped = dropping(plain, counts, IMAGES)
        assert [type(block) is own for block in dropped.blocks] == [kept, kept]
    sliced = copy.deepcopy(plain)
    sliced.blocks[1].register_forward_pre_hook(lambda block, args: (args[0][:, :9],))
    assert torch.equal(dropping(plain, Counts((17, 9), (17, 9)), IMAGES)(IMAGES), sliced(IMAGES))


def test_tokens_of_single_images_are_not_counted() -> None:
    """In [1, N, C] of a batch of three, 1 is no number of tokens."""
    plain = tower()
    with pytest.raises(ArgumentError, match=r"run blocks on the whole batch of 3 .*, and one got \(1, 17, "):
        count_tokens(plain, block_names(plain), IMAGES, lambda: [plain(image[None]) for image in IMAGES])


def test_dropping_computes_what_the_first_tokens_are() -> None:
    plain = tower(depth=1, global_pool="token")
    dropped = dropping(plain, Counts((17,), (5,)), IMAGES)
    assert torch.allclose(dropped(IMAGES), plain(IMAGES), atol=1e-5)  # the class token attended before


def test_macs_of_a_layer_are_what_they_must_be() -> None:
    linear = nn.Linear(8, 5)
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert count_macs(lambda: linear(x)) == 3 * 8 * 5
        assert count_macs(lambda: torch.relu(x) + x.sort(1).values) == 0
    q = torch.randn(2, 4, 6, 8)
    with torch.no_grad():
        assert count_macs(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 4 * 6 * 6 * 8)
    backward = count_macs(lambda: torch.autograd.grad(linear(x).sum(), list(linear.parameters())))
    assert backward == 3 * 8 * 5 * 2  # forward, and the weight's gradient


def test_an_op_that_nobody_counts_is_an_error() -> None:
    with pytest.raises(UncountedError, match="aten::linalg_lu_factor_ex"):
        count_macs(lambda: torch.linalg.lu_factor(torch.eye(3)))


@torch.no_grad()
def test_attention_that_would_be_a_single_op_is_counted() -> None:
    """As open_clip's and torchvision's towers have it in inference; and what profilers write is no op."""
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 5, 8)

    def attend() -> None:
        with torch.profiler.record_function("attend"):
            attention(x, x, x, need_weights=False)

    assert torch.backends.mha.get_fastpath_enabled()
    assert count_macs(attend) == 2 * (5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "naflexvit_base_patch16_siglip"])
def test_towers_with_other_parts_are_counted(name: str) -> None:
    model = timm.create_model(name, depth=1, embed_dim=48, num_heads=2, num_classes=2).eval()
    assert inference_macs(model, torch.randn(1, 3, 224, 224)) > 0


def test_a_model_and_its_ops_are_counted_alike() -> None:
    plain = tower()
    merged = alt_fast.apply_patch(copy.deepcopy(plain), r=0)
    assert inference_macs(merged, IMAGES) == inference_macs(plain, IMAGES)
    assert all(p.requires_grad for p in plain.parameters())


def test_agreement_is_one_with_itself_and_falls() -> None:
    x = torch.randn(5, 7)
    same = agreement(x, x)
    assert same["max_difference"] == 0
    assert same["same_top1"] == 1
    assert same["cosine"] == pytest.approx(1)
    other = agreement(torch.cat([x[:4], -x[4:]]), x)
    assert other["cosine"] == pytest.approx(1)  # the median
    assert agreement(torch.cat([x[:1], -x[:1]]), x[:1].repeat(2, 1))["cosine"] == pytest.approx(0, abs=1e-6)
    assert other["cosine_min"] == pytest.approx(-1)
    assert other["same_top1"] == pytest.approx(0.8)
    assert other["max_difference"] == pytest.approx(2 * x[4].abs().max().item())
    assert agreement(x[:, :3], x) == agreement(x / 0, x) == {}


def test_the_tensor_of_an_output_is_found() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    x, tokens = torch.randn(2, 3), torch.randn(2, 4, 3)
    assert as_tensor(BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=x)) is x
    assert as_tensor(BaseModelOutputWithPooling(last_hidden_state=tokens)) is tokens
    assert as_tensor((x, tokens)) is x
    with pytest.raises(ArgumentError, match="must return a tensor, or what holds one, got dict"):
        as_tensor({})


def raced(plain: list[float], method: list[float], dropped: list[float]) -> Raced:
    return Raced("inference", 8, {PLAIN: plain, METHOD: method, DROPPED: dropped}, flop_ratio=1.5)


def test_ratios_are_of_rounds() -> None:
    found = raced([4.0, 8.0, 4.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0])
    assert found.speedup == (2.0, 2.0, 2.0)
    assert found.ceiling == (4.0, 4.0, 4.0)
    assert found.share == (0.5, 0.5, 0.5)
    assert raced([1.0, 1.0], [], [1.0, 1.0]).speedup is None


def test_claims_are_measured_by_the_ceiling_and_told_beside_the_flops() -> None:
    races = [raced([2.0] * 3, [1.5] * 3, [1.25] * 3), raced([2.0] * 3, [1.5] * 3, [1.0] * 3)]
    found = Judgement("tome", 8, Counts((17,), (9,)), 1.5, {}, {}, [], races)
    assert found.verdict(1.4).possible
    assert str(found.verdict(1.4)).startswith(
        "a speed-up of 1.4 is possible here: within the FLOP ratio of 1.50, within"
    )
    assert found.verdict(1.9).possible
    assert "above the FLOP ratio of 1.50, within the ceiling of 2.00 (inference, batch 8)" in str(found.verdict(1.9))
    cheat = [raced([2.0] * 3, [0.04] * 3, [1.25] * 3)]
    found = Judgement("answers kept", 8, Counts((17,), (9,)), 1.5, {}, {}, [], cheat)
    assert not found.verdict(40).possible  # its own speed proves nothing
    noisy = [raced([2.0] * 3, [1.5] * 3, [1.25, 1.0, 0.75])]
    found = Judgement("tome", 8, Counts((17,), (9,)), 1.5, {}, {}, [], noisy)
    assert "possible here: above the FLOP ratio of 1.50, within the noise of the ceiling of 2.00" in str(
        found.verdict(2.3)
    )
    assert not found.verdict(2.4).possible
    assert not found.verdict(2.5).possible
    assert "a speed-up of 2.5 is impossible here" in str(found.verdict(2.5))
    with pytest.raises(ArgumentError, match=r"a claim needs a ceiling, and no race has one \(none was run\)"):
        Judgement("tome", 8, Counts((17,), (9,)), 1.5, {}, {}, [], []).verdict(2)
    failed = Raced("inference", 8, {PLAIN: [1.0, 1.0]}, skipped={DROPPED: "RuntimeError: no memory"})
    with pytest.raises(ArgumentError, match="RuntimeError: no memory"):
        Judgement("tome", 8, Counts((17,), (9,)), 1.5, {}, {}, [], [failed]).verdict(2)


def test_a_method_that_beats_dropping_in_most_rounds_is_too_fast() -> None:
    assert not too_fast([raced([2.0] * 4, [1.0, 0.5, 1.0, 1.0], [1.1] * 4)])
    assert not too_fast([raced([2.0] * 4, [], [1.0] * 4)])
    slow, fast = raced([2.0] * 4, [1.0] * 4, [1.0] * 4), raced([2.0] * 4, [0.5, 0.5, 0.5, 1.0], [1.0] * 4)
    (fault,) = too_fast([slow, fast])
    assert str(fault) == (
        "too fast: it is faster than the same model with as many tokens that does nothing else (2.00 times as fast in "
        "inference, batch 8)"
    )


def test_a_race_that_nobody_starts_says_why() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("pixels")

    found = race({PLAIN: Fails(), METHOD: Fails()}, IMAGES, "inference", rounds=2)
    assert found.speedup is None
    assert found.skipped == {PLAIN: "KeyError: 'pixels'", METHOD: "KeyError: 'pixels'"}


def test_a_judgement_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alt_fast.measure.judge.TOO_FAST", math.inf)  # two rounds on a busy computer say anything
    plain = tower(depth=2)
    settings = Settings(("inference", "training"), (1, 4), rounds=2)
    beside = {"public code": alt_fast.apply_patch(copy.deepcopy(plain), r=4)}
    found = judge("tome", plain, broken.right, 4, IMAGES, settings, claimed=(13, 9), beside=beside)
    assert not found.faults
    assert found.counts == Counts((17, 13), (13, 9))
    assert 1 < found.flop_ratio < 2
    assert [(raced.mode, raced.batch) for raced in found.races] == [
        (mode, batch) for mode in ("inference", "training") for batch in (1, 4)
    ]
    assert all(len(times) == 2 for raced in found.races for times in raced.seconds.values())
    assert set(found.races[0].seconds) == {PLAIN, METHOD, DROPPED, "public code"}
    assert found.beside["public code"] == pytest.approx(found.agreement)
    assert found.races[0].flop_ratio == pytest.approx(found.flop_ratio)
    assert found.as_row()["races"][0]["beside"] == {"public code": found.races[0].ratio(PLAIN, "public code")}
    memory = found.races[-1].memory
    assert memory[DROPPED] <= memory[METHOD] < memory[PLAIN]
    assert found.as_row()["races"][0]["speedup"] == found.races[0].speedup
    assert judge("x", plain, broken.claims_more, 4, IMAGES, Settings((), (1,)), (9, 1)).faults[0].name == "other tokens"


def test_a_compiled_race_runs_what_breaks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[dict[str, Any]] = []

    def compile_quickly(model: nn.Module, **options: Any) -> Any:
        compiled.append(options)
        return original(model, **{**options, "backend": "eager"})

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_quickly)
    settings = Settings(("inference-compiled", "training-compiled"), (1,), 2)
    found = judge("x", tower(depth=1), broken.breaks_the_graph, 4, IMAGES, settings)
    assert all(raced.speedup is not None for raced in found.races)
    assert found.properties["compiles without breaks"] != "yes"
    assert compiled[0]["fullgraph"]
    assert compiled[1:] == [{"dynamic": False}] * 6  # three contestants, two races, and inductor


@pytest.mark.parametrize(("options", "message"), [({"rounds": 1}, "rounds must be"), ({"batches": (0,)}, "batches")])
def test_settings_that_say_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings(**options)


def test_a_sweep_measures_every_value() -> None:
    rows = list(sweep(tower(), broken.right, [1, 6], IMAGES, batch=2, rounds=2))
    assert [row["r"] for row in rows] == [1, 6]
    assert 1 < rows[0]["flop_ratio"] < rows[1]["flop_ratio"]
    assert all(len(row["speedup"]) == 3 and len(row["seconds"][PLAIN]) == 2 for row in rows)


def test_a_setting_that_cannot_be_measured_is_a_row_that_says_why() -> None:
    def patch(model: nn.Module, r: int) -> None:
        if r == 2:
            raise RuntimeError("not with two")
        (broken.returns_patches if r == 3 else broken.right)(model, r)

    rows = list(sweep(tower(depth=1), patch, [1, 2, 3], IMAGES, batch=2, rounds=2))
    assert "speedup" in rows[0]
    assert rows[1:] == [
        {"r": 2, "skipped": "RuntimeError: not with two"},
        {"r": 3, "skipped": "it returns another shape than the model, or what is not finite"},
    ]


def test_gradients_that_cannot_be_had_are_told_with_the_error() -> None:
    def no_gradient(model: nn.Module, r: int) -> None:
        model.register_forward_hook(lambda module, args, out: out.detach())

    found = judge("x", tower(depth=1), no_gradient, 4, IMAGES, Settings((), (1,), 2))
    assert found.properties["gradients"].startswith("RuntimeError: ")


def test_a_method_that_replaces_forwards_is_asked_for_its_own_gradients() -> None:
    """A copy of such a model would run the blocks of the one that it is of."""

    def drop(model: nn.Module, r: int) -> None:
        def forward(block: Any, x: Tensor, **options: Any) -> Tensor:
            x = (x + block.attn(block.norm1(x)))[:, :-r]
            return x + block.mlp(block.norm2(x))

        for block in model.blocks:
            block.forward = partial(forward, block)

    frozen = tower(depth=2).requires_grad_(False)
    found = judge("x", frozen, drop, 4, IMAGES, Settings((), (1,), 2))
    assert found.properties["gradients"] == "yes"
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_ceiling_has_the_tokens_of_the_batch_that_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some methods leave as many tokens as the images of a batch say."""

    def as_many_as_images(model: nn.Module, r: int) -> None:
        alt_fast.apply_patch(model, r, step=lambda at: merge_step(replace(at, r=len(at.branch))))

    seen: list[Counts] = []

    def drop(model: nn.Module, counts: Counts, images: Tensor) -> nn.Module:
        seen.append(counts)
        return model

    monkeypatch.setattr("alt_fast.measure.judge.dropping", drop)
    judge("x", tower(depth=1), as_many_as_images, 1, IMAGES, Settings(("inference",), (1, 3), 2))
    assert [counts.mlp for counts in seen] == [(16,), (14,)]


def test_results_that_are_kept_are_no_saving() -> None:
    with pytest.raises(ArgumentError, match="method must compute in every call, and one on images that it saw before"):
        judge("x", tower(depth=1), broken.keeps_results, 1, IMAGES, Settings(("inference",), (3,), 2))


def test_a_patch_that_misses_is_said_to_do_nothing() -> None:
    found = judge("x", tower(depth=1), broken.nothing, 1, IMAGES, Settings(("inference",), (2,), 2))
    assert found.properties["effect"] == "none: all tokens stay, and the result"
    assert found.flop_ratio == 1


def test_the_front_is_what_nobody_beats() -> None:
    points = [(1.0, 0.99), (1.2, 0.98), (1.1, 0.97), (1.5, 0.90), (1.2, 0.95), (0.9, 0.999)]
    rows = [{"speedup": (0, speed, 0), "agreement": {"cosine": cosine}} for speed, cosine in points]
    assert front(rows) == [3, 1]  # what is no faster than the un-merged model is beaten by it
    assert front([]) == []
