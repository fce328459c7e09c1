"""Size-weighted merging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alt_fast_kernels import MergePlan, match, merge, unmerge


def make_case(
    batch: int, num_tokens: int, channels: int, r: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, MergePlan]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, num_tokens, channels, generator=generator)
    size = torch.randint(1, 3000, (batch, num_tokens), generator=generator).float()
    return x, size, match(x, r, 1)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 60), st.integers(0, 30), st.integers(0, 2**31))
def test_equals_the_weighted_mean_of_every_slot(num_tokens: int, r: int, seed: int) -> None:
    x, size, plan = make_case(2, num_tokens, 5, r, seed)
    merged, new_size = merge(x, size, plan)
    assert merged.shape == (2, plan.num_slots, 5)
    for image in range(2):
        for slot in range(plan.num_slots):
            members = plan.slot[image] == slot
            weights = size[image, members].double()
            expected = (x[image, members].double() * weights[:, None]).sum(0) / weights.sum()
            torch.testing.assert_close(merged[image, slot].double(), expected, rtol=1e-5, atol=1e-5)
            assert new_size[image, slot] == weights.sum()
    torch.testing.assert_close(new_size.sum(1), size.sum(1))  # sizes are conserved


def test_a_token_alone_passes_through_exactly() -> None:
    x, size, plan = make_case(2, 33, 7, 8, 0)
    merged, _ = merge(x, size, plan)
    for image in range(2):
        counts = plan.slot[image].bincount()
        for token, slot in enumerate(plan.slot[image].tolist()):
            if counts[slot] == 1:
                assert torch.equal(merged[image, slot], x[image, token])


def test_r_0_is_the_identity() -> None:
    x, size, plan = make_case(2, 10, 4, 0, 0)
    merged, new_size = merge(x, size, plan)
    assert torch.equal(merged, x)
    assert torch.equal(new_size, size)


def test_unmerge_is_constant_on_slots() -> None:
    x, size, plan = make_case(3, 30, 4, 9, 1)
    merged, _ = merge(x, size, plan)
    grid = unmerge(merged, plan)
    for image in range(3):
        for token in range(30):
            assert torch.equal(grid[image, token], merged[image, plan.slot[image, token]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_accumulates_in_fp32(dtype: torch.dtype) -> None:
    # Half precision cannot add 1 to 3000: the mean of one 0 among 3000 equal tokens would be lost.
    x = torch.tensor([[[4.0], [0.0]]], dtype=dtype)
    size = torch.tensor([[3000.0, 1000.0]])
    merged, new_size = merge(x, size, MergePlan(torch.zeros(1, 2, dtype=torch.int32), 1))
    assert merged.dtype == dtype
    assert merged.item() == 3.0
    assert new_size.item() == 4000.0


def test_gradient() -> None:
    x, size, plan = make_case(2, 9, 3, 3, 2)
    assert torch.autograd.gradcheck(lambda x: merge(x, size.double(), plan)[0], x.double().requires_grad_())


def test_empty_batch() -> None:
    plan = match(torch.empty(0, 6, 4), 2)
    merged, new_size = merge(torch.empty(0, 6, 4), torch.empty(0, 6), plan)
    assert merged.shape == (0, 4, 4)
    assert new_size.shape == (0, 4)


def test_bad_input() -> None:
    x, size, plan = make_case(2, 8, 4, 2, 0)
    with pytest.raises(ValueError, match="x must be"):
        merge(x[0], size, plan)
    with pytest.raises(ValueError, match="size must be"):
        merge(x, size[:, :5], plan)
    with pytest.raises(TypeError, match=r"size must be fp32 \(or fp64\), got torch.bfloat16"):
        merge(x, size.bfloat16(), plan)
    with pytest.raises(ValueError, match="size must not require grad"):
        merge(x, size.requires_grad_(), plan)
    with pytest.raises(ValueError, match="x must be"):
        unmerge(x, plan)
