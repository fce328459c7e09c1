"""The stated MACs are those that the references execute, and bytes those of their inputs and outputs."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alt_fast_kernels import Rotary, align, match, merge, proportional_attention
from alt_fast_kernels.cost import align_cost, attention_cost, match_cost, merge_cost
from alt_fast_kernels.match.plan import sides

pytestmark = pytest.mark.reference_only


def counted_macs(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("protected", [0, 1, 2, 5])
@pytest.mark.parametrize("num_tokens", [7, 8, 50, 197])
def test_match(num_tokens: int, protected: int) -> None:
    key = torch.randn(3, num_tokens, 2, 8)
    plan = match(key, 1, protected)
    cost = match_cost(3, num_tokens, 2, 8, protected, 4)
    assert counted_macs(lambda: match(key, 1, protected)) == cost.macs
    moved = key.nbytes + plan.slot.nbytes + plan.order.nbytes + plan.start.nbytes  # start has r - 1 fewer than N
    assert cost.bytes == moved
    tokens = sides(num_tokens, protected)
    assert tokens.num_sources + tokens.num_destinations == num_tokens - protected


@pytest.mark.parametrize("destinations", [3, torch.tensor([5, 6, 20])])
def test_match_with_other_destinations(destinations: int | torch.Tensor) -> None:
    key = torch.randn(3, 50, 2, 8)
    num_listed = 50 // 3 if isinstance(destinations, int) else 3
    cost = match_cost(3, 50, 2, 8, 2, 4, num_listed)
    assert counted_macs(lambda: match(key, 1, 2, destinations)) == cost.macs
    assert cost.macs == 3 * (48 - num_listed) * num_listed * 8


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_merge(residual: bool, norm: bool) -> None:
    x = torch.randn(3, 50, 16)
    plan = match(x, 9, 1)
    parts = [x, *[x] * residual, *merge(x, torch.ones(3, 50), plan, norm=torch.nn.LayerNorm(16))[:: 2 if norm else 3]]
    cost = merge_cost(3, 50, 9, 16, 4, residual, norm)
    assert cost.bytes == sum(part.nbytes for part in parts)
    assert cost.macs == x.numel()  # every token is weighed once


def test_attention() -> None:
    q, (k, v) = torch.randn(3, 5, 2, 8), torch.randn(2, 3, 9, 2, 8)
    cost = attention_cost(3, 5, 9, 2, 8, 4)
    assert counted_macs(lambda: proportional_attention(q, k, v, torch.ones(3, 9))) == cost.macs
    assert cost.bytes == 2 * q.nbytes + k.nbytes + v.nbytes
    cos, sin = torch.randn(2, 3, 9, 1, 8).unbind(0)
    turned = attention_cost(3, 9, 9, 2, 8, 4, table_rows=3 * 9)
    assert counted_macs(lambda: proportional_attention(k, k, v, rotary=Rotary(cos, sin, True))) == turned.macs
    assert turned.bytes == 3 * k.nbytes + v.nbytes + cos.nbytes + sin.nbytes
    short = attention_cost(3, 9, 9, 2, 8, 2, table_rows=3 * 9, table_itemsize=2)
    assert short.bytes == turned.bytes / 2


def test_align() -> None:
    tokens, entities = torch.randn(11, 8), torch.randn(7, 8)
    cost = align_cost(11, 7, 8, 4)
    assert counted_macs(lambda: align(tokens, entities)) == cost.macs
    index, aligned = align(tokens, entities)
    assert cost.bytes == tokens.nbytes + entities.nbytes + aligned.nbytes + index.nbytes
    leaf = tokens.clone().requires_grad_()
    assert counted_macs(lambda: align(leaf, entities)) == 2 * cost.macs  # and the soft assignment
