"""Proportional attention against its formula."""

import pytest
import torch
from torch import Tensor

from alt_fast_kernels import proportional_attention


def attention_by_formula(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    if size is not None:
        scores = scores + size.double().log()[:, None, None]
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double()).flatten(2)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 17, 64])
def test_equals_the_formula_on_packed_views(num_tokens: int, sized: bool) -> None:
    q, k, v = torch.randn(2, num_tokens, 3, 4, 8).unbind(2)
    size = torch.randint(1, 3000, (2, num_tokens)).float() if sized else None
    out = proportional_attention(q, k, v, size)
    torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, size, 8**-0.5), rtol=1e-4, atol=1e-5)
    scaled = proportional_attention(q, k, v, size, scale=0.3)
    torch.testing.assert_close(scaled.double(), attention_by_formula(q, k, v, size, 0.3), rtol=1e-4, atol=1e-5)


def test_a_token_of_size_n_counts_as_n_equal_tokens() -> None:
    q, k, v = torch.randn(3, 2, 5, 2, 8).unbind(0)
    size = torch.tensor([[1.0, 3, 1, 2, 1]]).expand(2, -1)
    repeats = torch.tensor([1, 3, 1, 2, 1])
    out = proportional_attention(q, k, v, size)
    expected = proportional_attention(q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_gradient() -> None:
    q, k, v = (torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    size = torch.tensor([[1.0, 2, 5, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: proportional_attention(q, k, v, size), (q, k, v))


def test_bad_input() -> None:
    q = k = v = torch.randn(2, 5, 2, 4)
    with pytest.raises(ValueError, match="q, k, v must be"):
        proportional_attention(q, k[:, :3], v)
    with pytest.raises(ValueError, match="size must be"):
        proportional_attention(q, k, v, torch.ones(2, 4))
    with pytest.raises(ValueError, match="size must not require grad"):
        proportional_attention(q, k, v, torch.ones(2, 5, requires_grad=True))
