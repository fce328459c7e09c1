"""Bipartite soft matching against an independent loop that follows the definition token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alt_fast_kernels import compose, match, max_r


def match_by_loops(metric: Tensor, r: int, protected: int) -> list[list[int]]:
    """Slots of every token; Python loops over one image at a time, double precision."""
    slots = []
    for tokens in metric.double():
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        num = len(tokens)
        even, odd = range(protected + protected % 2, num, 2), range(protected + 1 - protected % 2, num, 2)
        proposals = []
        for i in even:
            scores = [(-(tokens[i] @ tokens[j]).item(), j) for j in odd]
            if scores:
                score, partner = min(scores)  # highest similarity, then lowest index
                proposals.append((score, i, partner))
        proposals.sort(key=lambda proposal: proposal[:2])
        merged = {i: partner for _, i, partner in proposals[: min(r, max_r(num, protected))]}
        survivors = (
            [i for _, i, _ in proposals[len(merged) :]] if not protected else [i for i in even if i not in merged]
        )
        order = [*range(protected), *survivors, *odd]
        place = {token: slot for slot, token in enumerate(order)}
        slots.append([place[merged.get(i, i)] for i in range(num)])
    return slots


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("num_tokens", [6, 7, 50, 65])
def test_equals_the_definition(num_tokens: int, protected: int) -> None:
    metric = torch.randn(3, num_tokens, 16)
    for r in (1, 2, num_tokens):
        plan = match(metric, r, protected)
        assert plan.slot.tolist() == match_by_loops(metric, r, protected)
        assert plan.num_slots == num_tokens - min(r, max_r(num_tokens, protected))


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_ties_go_to_the_lower_index(protected: int) -> None:
    equal = torch.ones(2, 12, 4)
    few = torch.eye(3).repeat(4, 1)[None]  # every score is 0 or 1, most of them tied
    for metric in (equal, few):
        for r in (1, 3, 6):
            assert match(metric, r, protected).slot.tolist() == match_by_loops(metric, r, protected)


def test_takes_the_mean_over_heads_of_strided_keys() -> None:
    qkv = torch.randn(2, 21, 3, 4, 8)
    key = qkv[:, :, 1]
    assert torch.equal(match(key, 5, 1).slot, match(key.mean(2), 5, 1).slot)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 3), st.integers(0, 2**31))
def test_plan_is_a_partition(num_tokens: int, r: int, protected: int, seed: int) -> None:
    protected = min(protected, num_tokens)
    metric = torch.randn(2, num_tokens, 8, generator=torch.Generator().manual_seed(seed))
    plan = match(metric, r, protected)
    assert plan.slot.dtype == torch.int32
    for slots in plan.slot.tolist():
        assert sorted(set(slots)) == list(range(plan.num_slots))  # every slot is filled
        assert slots[:protected] == list(range(protected))
        assert all(slots.count(slot) == 1 for slot in range(protected))  # nothing merges into a protected token


def test_r_0_is_the_identity() -> None:
    plan = match(torch.randn(2, 9, 4), 0, 1)
    assert plan.slot.tolist() == [list(range(9))] * 2


def test_compose_follows_tokens_through_layers() -> None:
    first = match(torch.randn(2, 20, 8), 6, 1)
    second = match(torch.randn(2, 14, 8), 4, 1)
    both = compose(first, second)
    for image in range(2):
        for token in range(20):
            assert both.slot[image, token] == second.slot[image, first.slot[image, token]]
    assert both.num_slots == 10


def test_empty_batch() -> None:
    assert match(torch.empty(0, 10, 4), 2, 1).slot.shape == (0, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.randn(2, 8), 1), ValueError, "key must be"),
        ((torch.zeros(2, 8, 4, dtype=torch.int64), 1), TypeError, "floating point"),
        ((torch.randn(2, 8, 4), -1), ValueError, "r must be >= 0"),
        ((torch.randn(2, 8, 4), 1.5), TypeError, "r must be an int"),
        ((torch.randn(2, 8, 4), 1, 9), ValueError, "protected must be in"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        match(*arguments)
