"""Bipartite soft matching against an independent loop that follows the definition token by token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alt_fast_kernels import MergePlan, check_values, compose, match, max_r, merge, unmerge
from alt_fast_kernels.configs import arch_of, configured_for
from alt_fast_kernels.match.plan import listed_by_side
from alt_fast_kernels.match.reference import match_reference
from alt_fast_kernels.match.sorting import sorting_launches
from alt_fast_kernels.testing import assert_best_plan
from tests.oracles import match_by_loops

HALVES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("num_tokens", [6, 7, 50, 65])
def test_equals_the_definition(num_tokens: int, protected: int) -> None:
    # Sums of a few multiples of 1/8 are exact in fp32, so that no rounding decides between near ties.
    metric = torch.randint(-8, 9, (3, num_tokens, 16)).float() / 8
    metric[..., 0] = (17 - metric[..., 1:].square().sum(-1)).clamp_min(0).sqrt()
    for r in (1, 2, num_tokens):
        plan = match(metric, r, protected)
        assert_best_plan(plan, metric[:, :, None], r, protected)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("num_tokens", "heads", "dim"), [(2, 1, 1), (3, 2, 5), (64, 3, 32), (129, 2, 80), (197, 3, 64)]
)
def test_is_a_best_plan(num_tokens: int, heads: int, dim: int, dtype: torch.dtype, interpreted: bool) -> None:
    num_tokens = 99 if interpreted and num_tokens == 197 else num_tokens
    key = torch.randn(2, num_tokens, 3, heads, dim).to(dtype)[:, :, 1]  # strided, as the projection leaves it
    for protected in {0, 1, 2, min(5, num_tokens)}:
        for r in (0, 1, 13, num_tokens):
            assert_best_plan(match(key, r, protected), key, r, protected)


@pytest.mark.parametrize(("num_tokens", "protected", "r"), [(1025, 1, 100), (1370, 0, 500), (4097, 2, 1030)])
def test_long_sequences(num_tokens: int, protected: int, r: int, interpreted: bool) -> None:
    if interpreted:
        if num_tokens == 4097:
            pytest.skip("too many tiles; test_sorts_in_several_runs has what it adds")
        num_tokens, r = {1025: (262, 100), 1370: (261, 120)}[num_tokens]
    key = torch.randn(1, num_tokens, 1, 8)
    if num_tokens < 4097:
        assert_best_plan(match(key, r, protected), key, r, protected)
    same = torch.eye(8)[torch.randint(8, (1, num_tokens))][:, :, None]  # ties everywhere
    for part, expected in zip(match(same, r, protected)[:3], match_reference(same, r, protected), strict=True):
        assert torch.equal(part, expected)


@pytest.mark.kernel_only
@pytest.mark.parametrize(("protected", "r", "num_listed"), [(0, 30, None), (1, 1030, None), (1, 1500, 7)])
def test_sorts_in_several_runs(protected: int, r: int, num_listed: int | None) -> None:
    """The plan of proposals in two splits, few of them distinct, whose smaller one counts."""
    num_tokens = 2070
    odd, listed = list(range(1, num_tokens, 2)), None
    if num_listed is not None:
        odd = sorted((torch.randperm(num_tokens - protected)[:num_listed] + protected).tolist())
        listed = listed_by_side(torch.tensor(odd), num_tokens, protected).int()
    even = [token for token in range(protected, num_tokens) if token not in odd]
    num_even, num_odd = len(even), len(odd)
    rising, partner = torch.randint(5, (2, num_even)), torch.randint(num_odd, (2, num_even))
    numbers = (-5 - rising << 32) + partner
    slot = torch.full((1, num_tokens), -1, dtype=torch.int32)
    plan = MergePlan(slot, slot.clone(), slot.new_full((1, num_tokens - r + 1), -1), num_tokens - r)
    for launch in sorting_launches(numbers[None].clone(), listed, protected, plan, arch_of(numbers.device)):
        launch.run()

    proposal = numbers.min(0).values.tolist()
    ranked = sorted(range(num_even), key=lambda a: (proposal[a] >> 32, a))
    merged = sorted(ranked[:r], key=lambda a: (proposal[a] & 0xFFFFFFFF, a))
    kept = sorted(ranked[r:]) if protected else ranked[r:]
    order = [*range(protected), *(even[a] for a in kept), *odd, *(even[a] for a in merged)]
    first_odd_slot = num_tokens - r - num_odd
    slots = {token: i for i, token in enumerate(order[: num_tokens - r])}
    slots |= {even[a]: first_odd_slot + (proposal[a] & 0xFFFFFFFF) for a in merged}
    joined = torch.tensor([slots[even[a]] for a in merged])
    assert plan.order[0].tolist() == order
    assert plan.slot[0].tolist() == [slots[token] for token in range(num_tokens)]
    assert plan.start[0].tolist() == [0, *joined.bincount(minlength=num_tokens - r).cumsum(0).tolist()]


def test_images_of_every_kind_of_launch() -> None:
    for batch, num_tokens, dim in ((2, 21, 40), (2, 21, 72), (17, 21, 40), (2, 12, 160)):
        key = torch.randn(batch, num_tokens, 3, 2, dim)[:, :, 1]
        assert_best_plan(match(key, 5, 1), key, 5, 1)


def some_destinations(num_tokens: int, protected: int, number: int) -> torch.Tensor:
    """Of int32 or int64, drawn."""
    drawn = (torch.randperm(num_tokens - protected)[:number] + protected).sort().values
    return drawn.to((torch.int32, torch.int64)[int(torch.randint(2, (), device="cpu"))])


@pytest.fixture(params=[None, "sm_90"])
def arch(request: pytest.FixtureRequest, interpreted: bool) -> Iterator[None]:
    """Kernels configured as for this GPU, or an interpreted one as for Hopper, which multiplies in another way."""
    if request.param is None:
        yield
    elif interpreted:
        with configured_for(request.param):
            yield
    else:
        pytest.skip("compiled kernels are configured for the GPU at hand")


@pytest.mark.usefixtures("arch")
@pytest.mark.parametrize("sources", [9, 60, 140])  # one launch, two, and by sorting
def test_cosines_are_as_exact_as_fp32(sources: int) -> None:
    """Each source has two destinations of its own, the further one by less than TF32 tells: it joins the nearer one."""
    batch, dim = 2, 72 if sources == 60 else 64  # more than one launch takes
    source, *aside = F.normalize(torch.randn(3, batch, sources, dim, dtype=torch.float64), dim=-1)
    aside = [F.normalize(x - (x * source).sum(-1, keepdim=True) * source, dim=-1) for x in aside]
    nearer = torch.randint(2, (batch, sources))
    angle = [0.5 + 1e-5 * (nearer != place)[..., None] for place in (0, 1)]
    places = [a.cos() * source + a.sin() * x for a, x in zip(angle, aside, strict=True)]
    key = torch.stack([source, *places], 2).flatten(1, 2).float()
    destinations = torch.tensor([t for t in range(3 * sources) if t % 3])
    plan = match(key, sources, 0, destinations)
    assert torch.equal(plan.slot[:, ::3].long(), 2 * torch.arange(sources) + nearer)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("protected", [0, 1, 5])
@pytest.mark.parametrize(
    ("batch", "num_tokens", "dim"),
    [(2, 41, 24), (2, 41, 72), (1, 211, 8)],  # one launch, two, and by sorting
)
def test_any_tokens_may_be_destinations(
    batch: int, num_tokens: int, dim: int, protected: int, dtype: torch.dtype, interpreted: bool
) -> None:
    key = torch.randn(batch, num_tokens, 3, 2, dim).to(dtype)[:, :, 1]
    unprotected = num_tokens - protected
    drawn = [some_destinations(num_tokens, protected, number) for number in (1, unprotected // 3, unprotected - 1)]
    choices = [*drawn, 3, 10]
    for i in torch.randperm(5, device="cpu").tolist()[: 2 if interpreted else 5]:
        destinations = choices[i]
        most = max_r(num_tokens, protected, destinations)
        for r in (0, most // 2, num_tokens):
            plan = match(key, r, protected, destinations)
            assert_best_plan(plan, key, r, protected, destinations)
        assert plan.num_slots == num_tokens - most


@pytest.mark.parametrize("protected", [0, 1, 2])
@pytest.mark.parametrize(("batch", "num_tokens", "dim"), [(2, 47, 4), (2, 47, 72), (1, 150, 4)])
def test_ties_among_any_destinations_go_to_the_lower_index(
    batch: int, num_tokens: int, dim: int, protected: int
) -> None:
    metric = torch.eye(dim)[torch.randint(4, (batch, num_tokens))]
    for number in (1, 5, num_tokens - protected - 8):
        destinations = some_destinations(num_tokens, protected, number)
        for r in (3, num_tokens):
            plan = match(metric, r, protected, destinations)
            assert plan.slot.tolist() == match_by_loops(metric, r, protected, destinations.tolist())
            expected = match_reference(metric[:, :, None], num_tokens - plan.num_slots, protected, destinations)
            assert all(torch.equal(part, right) for part, right in zip(plan[:3], expected, strict=True))


@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("num_tokens", [37, 40])
def test_every_kth_token_is_a_list_of_tokens(num_tokens: int, protected: int) -> None:
    key = torch.randn(2, num_tokens, 2, 8)
    for k in (2, 3, 7):
        tokens = torch.tensor([t for t in range(protected, num_tokens) if t % k == k - 1])
        r = (num_tokens - protected) // 2
        plan, same = match(key, r, protected, k), match(key, r, protected, tokens)
        assert all(torch.equal(part, other) for part, other in zip(plan[:3], same[:3], strict=True))


def test_the_most_that_merges() -> None:
    assert [max_r(197, 1), max_r(197, 1, 4), max_r(197, 1, 10)] == [98, 147, 177]
    assert [max_r(9, 0), max_r(9, 0, 3), max_r(9, 0, torch.tensor([4]))] == [4, 6, 8]
    assert [max_r(2, 0, 3), max_r(0, 0, 3), max_r(5, 5, 3)] == [0, 0, 0]  # no destination
    assert max_r(3, 0, 3) == 2
    assert max_r(9, 0, torch.tensor(3)) == 6
    for k in (0, 1):
        with pytest.raises(ValueError, match=f"destinations must be >= 2, .* got {k}"):
            max_r(9, 0, k)
    identity = match(torch.randn(1, 5, 4), 3, 0, 6)
    assert (identity.num_slots, identity.slot.tolist()) == (5, [[0, 1, 2, 3, 4]])
    everything = match(torch.randn(1, 3, 4), 3, 0, torch.arange(3))
    assert everything.num_slots == 3  # nothing is left to merge


@pytest.mark.kernel_only
@pytest.mark.parametrize("num_tokens", [21, 150])
def test_destinations_out_of_order_give_a_plan_where_values_cannot_be_read(num_tokens: int) -> None:
    from alt_fast_kernels.match.op import match_op

    destinations = torch.tensor([9, 4, 4, 1])
    slot, order, start = match_op(torch.randn(1, num_tokens, 1, 6), 7, 1, destinations)
    assert sorted(order[0].tolist()) == list(range(num_tokens))
    assert sorted(set(slot[0].tolist())) == list(range(num_tokens - 7))
    assert start[0, -1] == 7


def test_wide_metrics() -> None:
    for channels in (300, 8192, 8200):  # several chunks; as many as a kernel's tile holds; PyTorch takes over
        metric = torch.randn(2, 21, channels)
        assert_best_plan(match(metric, 6, 1), metric[:, :, None], 6, 1)


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
def test_ties_go_to_the_lower_index(protected: int) -> None:
    equal = torch.ones(1, 150, 4)
    few = torch.eye(3).repeat(50, 1)[None]  # every score is 0 or 1, most of them tied
    mixed = torch.eye(4)[torch.randint(4, (2, 150))]
    for metric in (equal, few, mixed, mixed[:, :11]):
        for r in (1, 3, 6, 70):
            assert match(metric, r, protected).slot.tolist() == match_by_loops(metric, r, protected)


@pytest.mark.parametrize("protected", [0, 1])
def test_equal_tokens_tie_whatever_their_sums_round_to(protected: int) -> None:
    for batch, num_tokens, heads, dim in ((1, 11, 1, 20), (2, 35, 3, 17), (17, 9, 2, 40)):
        key = torch.randn(batch, 1, heads, dim).expand(-1, num_tokens, -1, -1).contiguous()
        expected = match_by_loops(torch.ones(batch, num_tokens, 2), 4, protected)  # as tokens that sum exactly
        assert match(key, 4, protected).slot.tolist() == expected


def test_shapes_are_known_without_values() -> None:
    key = torch.empty(2, 9, 2, 16, device="meta")
    with check_values():
        plan = match(key, 2, 1)
    assert [tuple(part.shape) for part in plan[:3]] == [(2, 9), (2, 9), (2, 8)]
    assert plan.slot.is_meta


@pytest.mark.reference_only
def test_the_reference_never_holds_all_scores() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, (tuple, list)) else (out,):
                Largest.numel = max(Largest.numel, part.numel() if isinstance(part, torch.Tensor) else 0)
            return out

    key = torch.randn(1, 4097, 1, 4)
    with Largest():
        plan = match(key, 100, 1)
    assert Largest.numel <= 1024 * 2048
    assert sorted(plan.order[0].tolist()) == list(range(4097))


def test_takes_the_mean_over_heads_of_strided_keys() -> None:
    qkv = torch.randn(2, 21, 3, 4, 8)
    key = qkv[:, :, 1]
    assert torch.equal(match(key, 5, 1).slot, match(key.mean(2), 5, 1).slot)
    assert torch.equal(match(key, 5, 1).slot, match(key.mT.contiguous().mT, 5, 1).slot)  # strided channels as well


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 3), st.integers(0, 2**31))
def test_plan_is_a_partition(num_tokens: int, r: int, protected: int, seed: int) -> None:
    protected = min(protected, num_tokens)
    torch.manual_seed(seed)
    key = torch.randn(2, num_tokens, 1, 8)
    plan = match(key, r, protected)
    assert plan.slot.dtype == plan.order.dtype == torch.int32
    for slots in plan.slot.tolist():
        assert sorted(set(slots)) == list(range(plan.num_slots))  # every slot is filled
        assert slots[:protected] == list(range(protected))
        assert all(slots.count(slot) == 1 for slot in range(protected))  # nothing merges into a protected token
    assert_best_plan(plan, key, r, protected)


@settings(deadline=None, max_examples=15)
@given(st.integers(4, 24), st.integers(1, 10), st.integers(0, 2**31))
def test_swapping_equal_tokens_changes_nothing(num_tokens: int, r: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.eye(4)[torch.randint(4, (1, num_tokens))]  # many equal tokens
    i = int(torch.randint(num_tokens, (), device="cpu"))
    same = (x[0] == x[0, i]).all(-1).nonzero()[:, 0]
    order = torch.arange(num_tokens)
    order[same] = same[torch.randperm(len(same))]
    plan, swapped = match(x, r, 1), match(x[:, order], r, 1)
    assert torch.equal(plan.slot, swapped.slot)
    size = torch.ones(1, num_tokens)
    assert torch.equal(merge(x, size, plan)[0], merge(x[:, order], size, swapped)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_key_that_is_not_finite_is_an_error_where_values_may_be_read(bad: float) -> None:
    key = torch.randn(2, 9, 2, 4)
    key[1, 4, 1, 2] = bad
    with check_values(), pytest.raises(ValueError, match="key must be finite"):
        match(key, 2, 1)


@pytest.mark.kernel_only
@pytest.mark.usefixtures("arch")
@pytest.mark.parametrize("protected", [0, 1])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1, 0x7F800001, 0x7F800000])  # the last one is infinity
@pytest.mark.parametrize(("num_tokens", "dim"), [(12, 6), (12, 72), (261, 6)])  # one launch, two, and by sorting
def test_nan_never_chooses_where_values_cannot_be_read(num_tokens: int, dim: int, bits: int, protected: int) -> None:
    """As on a GPU stream: the bad token merges last, lowest index first, and the plan stays valid."""
    key = torch.randn(1, num_tokens, 1, dim)
    bad = 4
    key[0, bad] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    from alt_fast_kernels.match.op import match_op

    slot, _, _ = match_op(key, 3, protected)
    assert (slot == slot[:, bad : bad + 1]).sum() == 1  # it merged with nothing, nothing merged into it
    hopeless = torch.full_like(key, float("nan"))
    slot, _, _ = match_op(hopeless, 3, protected)
    assert slot.tolist() == match_by_loops(torch.ones(1, num_tokens, 6), 3, protected)  # all equal: the lower index


def test_r_0_is_the_identity() -> None:
    plan = match(torch.randn(2, 9, 4), 0, 1)
    assert plan.slot.tolist() == [list(range(9))] * 2
    assert plan.num_slots == 9


def test_compose_follows_tokens_through_layers() -> None:
    first = match(torch.randn(2, 20, 8), 6, 1)
    second = match(torch.randn(2, 14, 8), 4, 1)
    both = compose(first.slot, second.slot)
    for image in range(2):
        for token in range(20):
            assert both[image, token] == second.slot[image, first.slot[image, token]]
    x = torch.randn(2, 10, 3)
    assert torch.equal(unmerge(x, both), unmerge(unmerge(x, second.slot), first.slot))
    with pytest.raises(ValueError, match=r"of the same images, got \(2, 9\) and \(1, "):
        compose(torch.zeros(2, 9), torch.zeros(1, 9))


def test_empty_batch() -> None:
    assert match(torch.empty(0, 10, 4), 2, 1).slot.shape == (0, 10)


def test_repeats_exactly() -> None:
    key = torch.randn(4, 65, 2, 16)
    plans = [match(key, 12, 1) for _ in range(3)]
    assert all(torch.equal(a, b) for plan in plans for a, b in zip(plan[:3], plans[0][:3], strict=True))


@pytest.mark.reference_only
def test_is_not_computed_in_autocast_precision() -> None:
    key = torch.randn(2, 50, 64)
    with torch.autocast(key.device.type, torch.bfloat16):
        assert torch.equal(match(key, 20, 1).slot, match(key.double(), 20, 1).slot)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((2, 8), 1), ValueError, "key must be"),
        (((2, 8, 0), 1), ValueError, "at least one channel"),
        (((2, 8, 4), -1), ValueError, "r must be >= 0"),
        (((2, 8, 4), 1.5), TypeError, "r must be an int"),
        (((2, 8, 4), True), TypeError, "r must be an int"),
        (((2, 8, 4), 1, 9), ValueError, "protected must be in"),
        (((2, 8, 4), 1, -1), ValueError, "protected must be in"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    shape, *rest = arguments
    with pytest.raises(error, match=message):
        match(torch.randn(shape), *rest)
    with pytest.raises(TypeError, match="floating point"):
        match(torch.zeros(2, 8, 4, dtype=torch.int64), 1)


@pytest.mark.parametrize(
    ("destinations", "error", "message"),
    [
        (1, ValueError, "destinations must be >= 2, every k-th token, or a tensor of tokens, got 1"),
        (True, TypeError, "destinations must be an int or a tensor, got bool"),
        ([3, 5], TypeError, "destinations must be an int or a tensor, got list"),
        (torch.tensor([3.0]), TypeError, "destinations must be int32 or int64, got torch.float32"),
        (torch.tensor([False, True, True]), TypeError, "destinations must be int32 or int64, got torch.bool"),
        (torch.tensor([], dtype=torch.int64), ValueError, r"must be \[D\], of 1 to 10 tokens, got shape \(0,\)"),
        (torch.arange(11), ValueError, r"must be \[D\], of 1 to 10 tokens, got shape \(11,\)"),
        (torch.tensor([[3, 5]]), ValueError, r"must be \[D\], of 1 to 10 tokens, got shape \(1, 2\)"),
        (torch.tensor([5, 3]), ValueError, "destinations must ascend, each token once"),
        (torch.tensor([3, 5, 5]), ValueError, "destinations must ascend, each token once"),
        (torch.tensor([0, 3]), ValueError, r"destinations must be in \[1, 11\), got 0 to 3"),
        (torch.tensor([3, 11]), ValueError, r"destinations must be in \[1, 11\), got 3 to 11"),
        (torch.tensor([3], device="meta"), ValueError, "destinations must be on .*, got meta"),
    ],
)
def test_bad_destinations(destinations: Any, error: type[Exception], message: str, device: torch.device) -> None:
    if isinstance(destinations, torch.Tensor) and not destinations.is_meta:
        destinations = destinations.to(device)
    for r in (0, 2):
        with check_values(), pytest.raises(error, match=message):
            match(torch.randn(2, 11, 5), r, 1, destinations)


def test_whatever_is_an_int_is_one() -> None:
    key = torch.randn(2, 11, 5)
    expected = match(key, 3, 1)
    for r, protected in ((np.int64(3), np.int32(1)), (torch.tensor(3, device="cpu"), 1)):
        assert torch.equal(match(key, r, protected).slot, expected.slot)
        assert torch.equal(match(key, r, protected, np.int8(2)).slot, expected.slot)
