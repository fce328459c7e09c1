"""Entity alignment: hard forward, soft backward, reproducible noise."""

import pytest
import torch
import torch.nn.functional as F

from alt_fast_kernels import align
from alt_fast_kernels.align.reference import gumbel_noise


def test_chooses_the_most_similar_entity() -> None:
    tokens, entities = torch.randn(3, 7, 16), torch.randn(11, 16)
    index, aligned = align(tokens, entities)
    similarity = F.cosine_similarity(tokens.double()[:, :, None], entities.double(), dim=-1)
    assert torch.equal(index, similarity.argmax(-1))
    assert torch.equal(aligned, entities[index])


def test_forward_is_hard_while_training() -> None:
    tokens, entities = torch.randn(5, 8, requires_grad=True), torch.randn(4, 8)
    index, aligned = align(tokens, entities, 0.5, torch.tensor(1))
    torch.testing.assert_close(aligned, entities[index], rtol=0, atol=1e-6)


def test_gradient_is_that_of_the_soft_assignment() -> None:
    tokens, entities = torch.randn(6, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    weight, tau, seed = torch.randn(6, 5, dtype=torch.float64), 0.3, torch.tensor(7)

    def gradient(function: object) -> torch.Tensor:
        x = tokens.clone().requires_grad_()
        (function(x) * weight).sum().backward()  # type: ignore[operator]
        assert x.grad is not None
        return x.grad

    def soft(x: torch.Tensor) -> torch.Tensor:
        cosine = F.cosine_similarity(x[:, None], entities, dim=-1)
        return (cosine / tau + gumbel_noise(seed, 6, 9)).softmax(-1) @ entities

    torch.testing.assert_close(gradient(lambda x: align(x, entities, tau, seed)[1]), gradient(soft))


def test_ties_go_to_the_lower_index() -> None:
    entities = torch.eye(4).repeat(2, 1)
    index, _ = align(torch.eye(4), entities)
    assert index.tolist() == [0, 1, 2, 3]


def test_noise_is_gumbel_and_reproducible() -> None:
    noise = gumbel_noise(torch.tensor(3), 400, 500)
    assert torch.equal(noise, gumbel_noise(torch.tensor(3), 400, 500))
    assert not torch.equal(noise, gumbel_noise(torch.tensor(4), 400, 500))
    assert torch.equal(noise[:100, :100], gumbel_noise(torch.tensor(3), 100, 100))  # a function of row and column alone
    assert noise.isfinite().all()
    uniform = (-(-noise.double()).exp()).exp().flatten().sort().values
    expected = (torch.arange(uniform.numel()) + 0.5).double() / uniform.numel()
    assert (uniform - expected).abs().max() < 0.004  # Kolmogorov-Smirnov, far below 1 % for 200,000 samples
    for rows in (noise[1:], noise[:, 1:]):
        other = noise[:-1] if rows.shape[0] < 400 else noise[:, :-1]
        assert torch.corrcoef(torch.stack([rows.flatten(), other.flatten()]))[0, 1].abs() < 0.02


def test_noise_is_finite_at_the_ends_of_the_hash() -> None:
    many = gumbel_noise(torch.tensor(12345), 3000, 3000)
    assert many.isfinite().all()


def test_choices_follow_the_softmax() -> None:
    tokens, entities = torch.randn(1, 6).expand(20000, 6), torch.randn(5, 6)
    index, _ = align(tokens, entities, tau=0.5, seed=torch.tensor(0))
    share = index.bincount(minlength=5) / 20000
    expected = (F.cosine_similarity(tokens[:1, None], entities, dim=-1) / 0.5).softmax(-1)[0]
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_compared_in_fp32(dtype: torch.dtype) -> None:
    tokens, entities = torch.randn(50, 32).to(dtype), torch.randn(20, 32)
    index, aligned = align(tokens, entities)
    assert aligned.dtype == dtype
    assert torch.equal(index, align(tokens.float(), entities)[0])


def test_bad_input() -> None:
    tokens, entities = torch.randn(3, 8), torch.randn(4, 8)
    with pytest.raises(ValueError, match="entities must be"):
        align(tokens, entities[:0])
    with pytest.raises(ValueError, match="tokens must have"):
        align(tokens[:, :5], entities)
    with pytest.raises(ValueError, match="tau must be > 0"):
        align(tokens, entities, tau=0.0)
    with pytest.raises(TypeError, match="seed must be one int64"):
        align(tokens, entities, seed=torch.tensor(1.0))
