"""Matchings under the names of the published ToMe give what the paper defines, by loops."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import alt_fast
import alt_fast.compat.tome as tome
from alt_fast.compat.tome.merge import (
    MODES,
    bipartite_soft_matching,
    do_nothing,
    kth_bipartite_soft_matching,
    merge_source,
    merge_wavg,
    random_bipartite_soft_matching,
)
from alt_fast.compat.tome.utils import parse_r
from alt_fast_kernels import use_backend
from tests.oracles import match_by_loops

TOKENS = {
    "none": (0, {}),
    "class": (1, {"class_token": True}),
    "both": (2, {"class_token": True, "distill_token": True}),
}
"""Protected tokens, and the arguments that say so."""

REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(0),
    "sum": lambda x: x.sum(0),
    "amax": lambda x: x.max(0).values,
    "amin": lambda x: x.min(0).values,
    "prod": lambda x: x.prod(0),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with use_backend(request.param):
        yield


def merged_by_loops(x: Tensor, slots: list[list[int]], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """x: [B, N, C]. The tokens of every slot, reduced."""
    images = []
    for tokens, places in zip(x, slots, strict=True):
        members = [[i for i, place in enumerate(places) if place == slot] for slot in range(max(places) + 1)]
        images.append(torch.stack([reduce(tokens[members_of]) for members_of in members]))
    return torch.stack(images)


def most_similar_by_loops(tokens: Tensor, sources: list[int], targets: list[int]) -> list[int]:
    """Slots of one image, [N, C], when every source joins its most similar target."""
    tokens = tokens.double() / tokens.double().norm(dim=-1, keepdim=True)
    slots = [0] * len(tokens)
    for slot, token in enumerate(targets):
        slots[token] = slot
    for token in sources:
        slots[token] = max(range(len(targets)), key=lambda slot: float(tokens[token] @ tokens[targets[slot]]))
    return slots


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("r", [1, 4, 100])
def test_merges_and_unmerges_as_the_paper_defines_it(name: str, r: int) -> None:
    protected, options = TOKENS[name]
    metric, x = torch.randn(2, 15, 8), torch.randn(2, 15, 5)
    slots = match_by_loops(metric, r, protected)
    merge, unmerge = tome.merge.bipartite_soft_matching(metric, r, **options)
    for mode in MODES:
        expected = merged_by_loops(x, slots, REDUCE[mode])
        torch.testing.assert_close(merge(x, mode=mode), expected, rtol=0, atol=1e-5)
    merged = merge(x)  # the mean, if nothing is said
    assert merged.shape == (2, 15 - min(r, (15 - protected) // 2), 5)
    assert torch.equal(merged, merge(x, mode="mean"))
    spread = torch.stack([tokens[torch.tensor(places)] for tokens, places in zip(merged, slots, strict=True)])
    assert torch.equal(unmerge(merged), spread)


def test_order_is_unmerged_even_tokens_then_odd_ones() -> None:
    """Directions in the plane: 1 degree lies between tokens 2 and 1, 4 between 4 and 5, 30 between 6 and 7."""
    angle = torch.deg2rad(torch.tensor([320.0, 20.0, 21.0, 90.0, 204.0, 200.0, 300.0, 270.0]))
    metric, number = torch.stack([angle.cos(), angle.sin()], -1)[None], torch.arange(8.0).view(1, 8, 1)

    def order(**options: bool) -> list[float]:
        merge, _ = bipartite_soft_matching(metric, 2, **options)
        return merge(number, mode="amin").flatten().tolist()

    assert order() == [6, 0, 1, 3, 4, 7]  # by falling similarity
    assert order(class_token=True) == [0, 6, 1, 3, 4, 7]  # by index
    assert order(class_token=True, distill_token=True) == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize("r", [0, -3])
def test_r_0_changes_nothing(r: int) -> None:
    x = torch.randn(2, 9, 4)
    for matching in (bipartite_soft_matching, random_bipartite_soft_matching, kth_bipartite_soft_matching):
        merge, unmerge = matching(x, r)
        assert merge(x, mode="sum") is x
        assert unmerge(x) is x
        same, size = merge_wavg(merge, x)
        assert same is x
        assert torch.equal(size, torch.ones(2, 9, 1))
    assert bipartite_soft_matching(x[:, :1], 5)[0] is do_nothing  # one token has nobody to merge with


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("num_tokens", "k"), [(12, 2), (12, 3), (14, 4), (5, 5)])
def test_every_kth_token_takes_in_all_others(num_tokens: int, k: int) -> None:
    metric, x = torch.randn(2, num_tokens, 8), torch.randn(2, num_tokens, 3)
    targets = list(range(k - 1, num_tokens, k))
    sources = [i for i in range(num_tokens) if i not in targets]
    slots = [most_similar_by_loops(tokens, sources, targets) for tokens in metric]
    merge, unmerge = kth_bipartite_soft_matching(metric, k)
    for mode in MODES:
        expected = merged_by_loops(x, slots, REDUCE[mode])
        torch.testing.assert_close(merge(x, mode), expected, rtol=0, atol=1e-5)
    assert merge(x).shape[1] == num_tokens // k
    assert torch.equal(unmerge(merge(x))[:, targets], merge(x))
    if k == 2:
        torch.testing.assert_close(merge(x), bipartite_soft_matching(metric, num_tokens // 2)[0](x))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("r", [1, 9, 11])
def test_random_tokens_join_their_most_similar_others(r: int) -> None:
    metric, x = torch.randn(2, 12, 8), torch.randn(2, 12, 3)
    torch.manual_seed(3)
    merge, unmerge = random_bipartite_soft_matching(metric, r)
    torch.manual_seed(3)
    assert torch.equal(random_bipartite_soft_matching(metric, r)[0](x), merge(x))
    found = unmerge(torch.arange(12.0 - r).view(1, -1, 1).expand(2, -1, -1))[..., 0].int().tolist()
    for tokens, slots in zip(metric, found, strict=True):  # which ones were drawn shows in the results alone
        assert any(
            most_similar_by_loops(tokens, [i for i in range(12) if i not in targets], list(targets)) == slots
            for targets in itertools.combinations(range(12), 12 - r)
        )
    torch.testing.assert_close(merge(x), merged_by_loops(x, found, REDUCE["mean"]), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("backend")
def test_weighted_mean_over_two_layers_is_the_mean_of_all_patches() -> None:
    x = torch.randn(2, 17, 6)
    first = bipartite_soft_matching(torch.randn(2, 17, 8), 5, class_token=True)[0]
    second = bipartite_soft_matching(torch.randn(2, 12, 8), 4, class_token=True)[0]
    once, size = merge_wavg(first, x)
    twice, size = merge_wavg(second, once, size)
    source = merge_source(second, once, merge_source(first, x))
    assert source.shape == (2, 8, 17)
    assert torch.equal(source.sum(2, keepdim=True), size)
    assert torch.equal(source.sum(1), torch.ones(2, 17))
    slots = source.argmax(1).tolist()
    torch.testing.assert_close(twice, merged_by_loops(x, slots, REDUCE["mean"]), rtol=0, atol=1e-5)
    by_hand = second(once * first(torch.ones(2, 17, 1), "sum"), "sum") / size
    torch.testing.assert_close(twice, by_hand, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        merge_wavg(lambda x, mode: second(x, mode), once, source.new_ones(2, 12, 1))[0], second(once)
    )


def test_dtypes_stay() -> None:
    merge, _ = bipartite_soft_matching(torch.randn(2, 9, 8), 3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        x, size = merge_wavg(merge, torch.randn(2, 9, 4, dtype=dtype))
        assert x.dtype == size.dtype == merge(x.new_ones(2, 9, 4)).dtype == dtype
        x, size = merge_wavg(merge, torch.randn(2, 9, 4, dtype=dtype), torch.ones(2, 9, 1))
        assert (x.dtype, size.dtype) == (dtype, torch.float32)
    counts = torch.arange(18).view(2, 9, 1)
    assert merge(counts, mode="sum").sum() == counts.sum()
    assert merge(counts).dtype == torch.int64
    x = torch.randn(2, 9, 4, dtype=torch.float64)
    exact: dict[str, Any] = {"rtol": 0, "atol": 1e-14}
    torch.testing.assert_close(merge(x), merge(x, "sum") / merge(torch.ones_like(x), "sum"), **exact)
    torch.testing.assert_close(merge_wavg(merge, x)[0], merge(x), **exact)


def test_plans_list_tokens_by_slot_and_index() -> None:
    """As every plan does: sums then run in the same order each time."""
    metric = torch.randn(2, 25, 4)
    for merge, _ in (kth_bipartite_soft_matching(metric, 6), random_bipartite_soft_matching(metric, 19)):
        slot, order, start, num_slots = merge.plan  # type: ignore[attr-defined]
        for image in range(2):
            slots, joined = slot[image].tolist(), order[image, num_slots:].tolist()
            assert [slots[token] for token in order[image, :num_slots]] == list(range(num_slots))
            assert joined == sorted(joined, key=lambda token: (slots[token], token))
            counts = [sum(slots[token] < end for token in joined) for end in range(num_slots + 1)]
            assert start[image].tolist() == counts


@pytest.mark.parametrize("matching", ["bipartite", "kth", "random"])
def test_gradients(matching: str) -> None:
    metric = torch.randn(2, 9, 4, dtype=torch.float64)
    x = torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True)
    size = torch.rand(2, 9, 1, dtype=torch.float64) + 1
    merge, unmerge = {
        "bipartite": lambda: bipartite_soft_matching(metric, 3, class_token=True),
        "kth": lambda: kth_bipartite_soft_matching(metric, 3),
        "random": lambda: random_bipartite_soft_matching(metric, 5),
    }[matching]()
    for mode in MODES:
        assert gradcheck(lambda x, mode=mode: merge(x, mode), x)
    assert gradcheck(lambda x: unmerge(merge(x)), x)
    assert gradcheck(lambda x: merge_wavg(merge, x, size), x)
    learned = size.clone().requires_grad_()
    assert gradcheck(lambda x, size: merge_wavg(merge, x, size), (x, learned))
    torch.testing.assert_close(merge_wavg(merge, x, learned)[0], merge_wavg(merge, x, size)[0])


def test_gradients_of_the_kernel_are_the_references() -> None:
    metric, x, size = torch.randn(2, 9, 8), torch.randn(2, 9, 4, requires_grad=True), torch.rand(2, 9, 1) + 1
    grads = []
    for backend in ("reference", "triton"):
        with use_backend(backend):
            merge, _ = bipartite_soft_matching(metric, 4)
            out = merge_wavg(merge, x, size)[0].square().sum() + merge(x).square().sum()
            grads.append(torch.autograd.grad(out, x)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: bipartite_soft_matching(x[0], 2),
            r"metric must be \[B, N, C\] floating point, got torch.float32 of",
        ),
        (lambda x: bipartite_soft_matching(x.long(), 2), "metric must be .* got torch.int64"),
        (lambda x: bipartite_soft_matching(x / 0, 2), "metric must be finite"),
        (lambda x: bipartite_soft_matching(x, "2"), "r must be an int, got '2'"),  # type: ignore[arg-type]
        (lambda x: bipartite_soft_matching(x, torch.tensor(2.0)), r"r must be an int, got tensor\(2\.\)"),
        (lambda x: bipartite_soft_matching(x, torch.tensor([2, 3])), "r must be an int, got tensor"),
        (lambda x: bipartite_soft_matching(x, 2, distill_token=True), "needs class_token=True"),
        (lambda x: kth_bipartite_soft_matching(x / 0, 3), "metric must be finite"),
        (lambda x: kth_bipartite_soft_matching(x, 10), "k must be at most the number of tokens, 9, got 10"),
        (lambda x: random_bipartite_soft_matching(x, 9), "r must be below the number of tokens, 9, got 9"),
        (lambda x: bipartite_soft_matching(x, 2)[0](x, "max"), "mode must be one of mean, sum, .* got 'max'"),
        (lambda x: bipartite_soft_matching(x, 2)[0](x[:, 1:]), r"x must be \[2, 9, C\].* got shape \(2, 8, 4\)"),
        (lambda x: bipartite_soft_matching(x, 2)[1](x), r"x must be \[2, 7, C\].* got shape \(2, 9, 4\)"),
        (lambda x: merge_wavg(bipartite_soft_matching(x, 2)[0], x, x[..., 0]), r"size must be \(2, 9, 1\) .* \(2, 9\)"),
    ],
)
def test_bad_arguments_are_named(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(alt_fast.ArgumentError, match=message):
        call(torch.randn(2, 9, 4))


def test_schedules() -> None:
    assert parse_r(4, 8) == [8, 8, 8, 8]
    assert parse_r(4, [4, 2]) == [4, 2, 0, 0]
    assert parse_r(2, [4, 2]) == [4, 2]
    assert parse_r(3, (8, -1)) == parse_r(3, (8, -1.0)) == [16, 8, 0]
    assert parse_r(3, (8, 0.0)) == [8, 8, 8]
    for r in (-1, [1, 2, 3, 4], (8, 2.0), (8,), 0.1, "8", None, True, [0.5]):
        with pytest.raises(alt_fast.ArgumentError, match="^r |inflect"):
            parse_r(3, r)  # type: ignore[arg-type]


class VideoBlock(nn.Module):
    """A block as video models that merge write it: attention by hand, keys averaged over heads, tokens merged."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.num_heads = nn.LayerNorm(dim), nn.LayerNorm(dim), num_heads
        self.qkv, self.proj, self.mlp = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: Tensor | None, source: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_tokens, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, num_tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if size is not None:
            scores = scores + size.log()[:, None, None, :, 0]
        x = x + self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, num_tokens, dim))
        merge, _ = bipartite_soft_matching(k.mean(1), 4, class_token=True)
        source = merge_source(merge, x, source)
        x, size = merge_wavg(merge, x, size)
        return x + self.mlp(self.norm2(x)), size, source


@pytest.mark.usefixtures("backend")
def test_a_block_written_for_tome_runs_and_trains() -> None:
    blocks = [VideoBlock(32, 4), VideoBlock(32, 4)]
    x, size, source = blocks[1](*blocks[0](torch.randn(2, 17, 32), None, None))
    assert x.shape == (2, 9, 32)
    assert torch.equal(source.sum(2, keepdim=True), size)
    x.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for block in blocks for parameter in block.parameters())


def test_the_example_in_the_documentation_runs() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "token_merging.md").read_text()
    code = re.search(r"<!-- compat -->\n```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["x"].shape == (1, 189, 192)
    assert names["source"].shape == (1, 189, 197)
    assert names["model"]._tome_info["source"].shape == (1, 197 - 12 * 8, 197)
