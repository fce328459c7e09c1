"""Proportional attention against its formula."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from alt_fast_kernels import proportional_attention, proportional_attention_qkvpacked, use_backend
from alt_fast_kernels.launch import Launch
from alt_fast_kernels.testing import Result, assert_as_accurate


def split(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of a packed projection [B, N, 3, H, D]."""
    q, k, v = packed.unbind(2)
    return q, k, v


def attention_by_formula(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> Tensor:
    scores = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double()) * scale
    if size is not None:
        scores = scores + size.double().log()[:, None, None]
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v.double()).flatten(2)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 2, 17, 64])
def test_equals_the_formula_on_packed_views(num_tokens: int, sized: bool) -> None:
    q, k, v = split(torch.randn(2, num_tokens, 3, 4, 8))
    size = torch.randint(1, 3000, (2, num_tokens)).float() if sized else None
    out = proportional_attention(q, k, v, size)
    torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, size, 8**-0.5), rtol=1e-4, atol=1e-5)
    scaled = proportional_attention(q, k, v, size, scale=0.3)
    torch.testing.assert_close(scaled.double(), attention_by_formula(q, k, v, size, 0.3), rtol=1e-4, atol=1e-5)


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "dim"),
    [
        *((2, 32), (67, 32), (3, 40), (2, 64), (67, 64), (80, 64), (90, 64), (125, 64), (160, 64), (67, 72), (67, 80)),
        *((3, 88), (3, 96), (67, 96), (3, 104), (2, 128), (29, 128), (67, 128)),
    ],
)
def test_kernel_is_as_accurate_as_pytorch(num_tokens: int, dim: int, dtype: torch.dtype, interpreted: bool) -> None:
    """Against the formula in fp64, in both forms, forward and backward; behind full tiles much is left, or little."""
    batch = 1 if num_tokens > 3 else 4  # enough rows for a largest error to be no luck
    if not interpreted:
        batch = 140 if num_tokens == 67 else 4  # enough programs for tall tiles

    def in_parts(x: Tensor, size: Tensor) -> Tensor:
        return proportional_attention(*split(x), size)

    def draw() -> Iterator[Result]:
        qkv = torch.randn(batch, num_tokens, 3, 2, dim).to(dtype)
        size = torch.randint(1, 3000, (batch, num_tokens)).float()
        weight = torch.randn(batch, num_tokens, 2 * dim)

        def run(function: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
            leaf = qkv.to(dtype, copy=True).requires_grad_()
            out = function(leaf, size)
            (out * weight.to(out.dtype)).sum().backward()
            assert leaf.grad is not None
            return [out, leaf.grad]

        exact = run(lambda x, size: attention_by_formula(*split(x), size, dim**-0.5), torch.float64)
        with use_backend("reference"):
            at_precision = run(in_parts, dtype)
        for form in (in_parts, proportional_attention_qkvpacked):
            yield from zip(run(form, dtype), at_precision, exact, strict=True)

    assert_as_accurate(draw)


def test_long_sequences(interpreted: bool) -> None:
    num_tokens = 257 if interpreted else 1025
    qkv = torch.randn(1, num_tokens, 3, 1, 32)
    size = torch.randint(1, 9, (1, num_tokens)).float()
    upstream = torch.randn(1, num_tokens, 32)
    leaf, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    out = proportional_attention_qkvpacked(leaf, size)
    expected = attention_by_formula(*split(exact), size, 32**-0.5)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(out, leaf, upstream)
    (expected_grad,) = torch.autograd.grad(expected, exact, upstream.double())
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-3, atol=1e-5)


def test_large_logits_and_sizes() -> None:
    """Logits of some thousands, whose rounding alone moves a close second: only clear winners can be compared."""
    q, k, v = (torch.randn(1, 40, 2, 32) * 40 for _ in range(3))
    size = torch.tensor([1.0, 1e4, 5e5, 2.0]).repeat(10)[None]
    out = proportional_attention(q, k, v, size)
    assert out.isfinite().all()
    scores = torch.einsum("bnhd,bmhd->bnhm", q.double(), k.double()) * 32**-0.5 + size.double().log()[:, None, None]
    best = scores.topk(2).values
    clear = (best[..., 0] - best[..., 1] > 20)[..., None].expand(-1, -1, -1, 32).flatten(2)
    assert clear.any()
    expected = attention_by_formula(q, k, v, size, 32**-0.5)
    torch.testing.assert_close(out.double()[clear], expected[clear], rtol=1e-4, atol=1e-4)


def test_queries_and_keys_may_differ_in_number() -> None:
    q, (k, v) = torch.randn(2, 5, 2, 16), torch.randn(2, 2, 70, 2, 16)
    size = torch.randint(1, 9, (2, 70)).float()
    leaves = q.clone().requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()
    out = proportional_attention(*leaves, size)
    torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, size, 0.25), rtol=1e-4, atol=1e-5)
    exact = q.double().requires_grad_(), k.double().requires_grad_(), v.double().requires_grad_()
    out.sum().backward()
    attention_by_formula(*exact, size, 0.25).sum().backward()
    for leaf, truth in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad.double(), truth.grad, rtol=1e-4, atol=1e-5)


def test_tensors_may_begin_anywhere() -> None:
    """An odd offset allows no wide loads, whatever the strides are."""
    qkv = torch.randn(2 * 9 * 3 * 2 * 16 + 1)[1:].view(2, 9, 3, 2, 16)
    leaf, aligned = qkv.detach().requires_grad_(), qkv.clone().requires_grad_()
    for x in (leaf, aligned):
        proportional_attention_qkvpacked(x, torch.full((2, 10), 3.0)[:, 1:]).square().sum().backward()
    torch.testing.assert_close(leaf.grad, aligned.grad)


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(scale: float) -> None:
    q, k, v = torch.randn(3, 2, 9, 2, 16).unbind(0)
    size = torch.randint(1, 9, (2, 9)).float()
    out = proportional_attention(q, k, v, size, scale)
    torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, size, scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "dim", "dtype"), [(100, 16, torch.float32), (100, 40, torch.float16), (90, 40, torch.float16)]
)
def test_a_key_of_size_zero_is_no_key(num_tokens: int, dim: int, dtype: torch.dtype) -> None:
    """Padding: a whole tile of it in front, scattered and at the end, though its scores are the largest by far."""
    qkv = torch.randn(1, num_tokens, 3, 1, dim).to(dtype)
    at = torch.arange(num_tokens)
    keep = (at >= 66) & (at < num_tokens - 2) & (at % 2 == 0)
    qkv[:, ~keep, 1] *= 1000
    size = torch.where(keep, torch.randint(1, 9, (num_tokens,)), 0).float()[None]
    leaf, kept = qkv.clone().requires_grad_(), qkv.clone().requires_grad_()
    q, k, v = split(kept)
    proportional_attention_qkvpacked(leaf, size).square().sum().backward()
    proportional_attention(q, k[:, keep], v[:, keep], size[:, keep]).square().sum().backward()
    assert leaf.grad is not None
    assert kept.grad is not None
    rtol = None if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    atol = None if rtol is None else rtol * float(kept.grad.abs().max())
    torch.testing.assert_close(leaf.grad, kept.grad, rtol=rtol, atol=atol)
    assert not leaf.grad[:, ~keep, 1:].any()


def test_a_query_without_keys_gives_zeros() -> None:
    leaf = torch.randn(2, 5, 3, 2, 16, requires_grad=True)
    size = torch.ones(2, 5)
    size[1] = 0
    out = proportional_attention_qkvpacked(leaf, size)
    out.square().sum().backward()
    assert leaf.grad is not None
    assert not out[1].any()
    assert not leaf.grad[1].any()
    assert leaf.grad[0].all()
    q, none = torch.randn(2, 5, 2, 16), torch.empty(2, 0, 2, 16)
    assert not proportional_attention(q, none, none).any()


def test_strided_channels_and_broadcast_sizes() -> None:
    q, k, v = torch.randn(3, 2, 9, 8, 2).mT.unbind(0)
    size = torch.tensor([3.0]).expand(2, 9)
    out = proportional_attention(q, k, v, size)
    torch.testing.assert_close(out, proportional_attention(q, k, v), rtol=1e-4, atol=1e-5)  # equal sizes say nothing


def test_a_token_of_size_n_counts_as_n_equal_tokens() -> None:
    q, k, v = torch.randn(3, 2, 5, 2, 8).unbind(0)
    size = torch.tensor([[1.0, 3, 1, 2, 1]]).expand(2, -1)
    repeats = torch.tensor([1, 3, 1, 2, 1])
    out = proportional_attention(q, k, v, size)
    expected = proportional_attention(q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.reference_only
def test_gradient() -> None:
    q, k, v = (torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    size = torch.tensor([[1.0, 2, 5, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: proportional_attention(q, k, v, size), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sizes_count_in_full_precision(dtype: torch.dtype) -> None:
    # log(4001) and log(4095) are one number in bf16; the means that they weigh are not.
    if torch.get_default_device().type == "cuda" and dtype == torch.bfloat16:
        pytest.skip("PyTorch's attention takes masks in the query's dtype only, on a GPU")
    q, k = torch.zeros(2, 1, 2, 1, 16, dtype=dtype)
    v = torch.tensor([0.0, 1.0], dtype=dtype)[None, :, None, None].expand(1, 2, 1, 16)
    out = proportional_attention(q, k, v, torch.tensor([[7000.0, 1000.0]]))
    assert abs(out.mean().item() - 0.125) < 0.001


def test_dropout_runs_and_keeps_the_mean() -> None:
    q = k = torch.zeros(1, 50, 1, 8)
    v = torch.ones(1, 50, 1, 8)
    out = proportional_attention(q, k, v, torch.ones(1, 50), dropout_p=0.5)
    assert out.std() > 0.01
    assert 0.8 < out.mean() < 1.2


def test_wide_heads_work() -> None:
    q, k, v = torch.randn(3, 1, 6, 1, 160).unbind(0)
    out = proportional_attention(q, k, v)
    torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, None, 160**-0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.reference_only
@pytest.mark.parametrize("name", ["sdpa", "flex", "xformers"])
def test_other_backends_equal_the_formula(name: Literal["sdpa", "flex", "xformers"], device: torch.device) -> None:
    """With sizes, a size of 0 among them, and without."""
    if name == "xformers" and device.type == "cpu":
        pytest.skip("xformers runs on GPUs; that it says so is tested below")
    q, (k, v) = torch.randn(2, 5, 2, 16), torch.randn(2, 2, 19, 2, 16)
    size = torch.randint(0, 9, (2, 19)).float()
    for sizes in (size, None):
        with use_backend(attention=name):
            out = proportional_attention(q, k, v, sizes, 0.3)
            leaf = torch.stack([k, q.repeat(1, 4, 1, 1)[:, :19], v], 2)
            leaf.requires_grad_(name == "sdpa" or device.type == "cuda")
            packed = proportional_attention_qkvpacked(leaf, sizes, 0.3)
            (grad,) = torch.autograd.grad(packed.square().sum(), leaf) if leaf.requires_grad else (None,)
        torch.testing.assert_close(out.double(), attention_by_formula(q, k, v, sizes, 0.3), rtol=1e-4, atol=1e-5)
        expected = attention_by_formula(*split(leaf), sizes, 0.3)
        torch.testing.assert_close(packed.double(), expected, rtol=1e-4, atol=1e-5)
        if grad is not None:
            (exact,) = torch.autograd.grad(expected.square().sum(), leaf)
            torch.testing.assert_close(grad, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.reference_only
@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("xformers", {}, "it is not installed: pip install|it takes tensors on a GPU"),
        ("flex", {"dropout_p": 0.5}, "it does not drop weights"),
        ("triton", {"dropout_p": 0.5}, "they do not drop weights"),
        ("triton", {"scale": -1.0}, "they take a scale > 0, not -1.0"),
    ],
)
def test_a_backend_that_cannot_run_says_why(
    name: Literal["triton", "flex", "xformers"], options: dict[str, Any], why: str
) -> None:
    qkv = torch.randn(1, 5, 3, 1, 16, device="cpu")
    with use_backend(attention=name), pytest.raises(ValueError, match=f"attention='{name}' cannot run here: ({why})"):
        proportional_attention_qkvpacked(qkv, None, **options)


@pytest.mark.reference_only
def test_flex_has_no_gradient_on_a_cpu() -> None:
    qkv = torch.randn(1, 5, 3, 1, 16, device="cpu", requires_grad=True)
    with use_backend(attention="flex"), pytest.raises(ValueError, match="it has no gradient on a CPU"):
        proportional_attention_qkvpacked(qkv)


@pytest.mark.reference_only
def test_our_kernels_by_name_take_what_they_can() -> None:
    for qkv, why in (
        (torch.randn(1, 5, 3, 1, 160), "heads of up to 128 channels, not 160"),
        (torch.randn(1, 5, 3, 1, 16, dtype=torch.float64), "they take fp32, fp16 and bf16, not torch.float64"),
    ):
        with use_backend(attention="triton"), pytest.raises(ValueError, match=why):
            proportional_attention_qkvpacked(qkv)


@pytest.mark.kernel_only
@pytest.mark.parametrize("needed", ["q", "k", "v", "q v", "q k v"])
def test_only_the_gradients_needed_are_computed(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of q alone takes one launch; those of k and v need delta, which the launch of q leaves."""
    leaves = dict(zip("qkv", torch.randn(3, 2, 9, 2, 16).unbind(0), strict=True))
    for name in needed.split():
        leaves[name].requires_grad_()
    size = torch.randint(1, 9, (2, 9)).float()
    launched: list[str] = []

    def gradients() -> list[Tensor]:
        out = proportional_attention(leaves["q"], leaves["k"], leaves["v"], size)
        launched.clear()
        return list(torch.autograd.grad(out.square().sum(), [leaves[name] for name in needed.split()]))

    with use_backend("reference"):
        expected = gradients()
    run = Launch.run

    def record(self: Launch) -> None:
        launched.append(self.name)
        run(self)

    monkeypatch.setattr(Launch, "run", record)
    for grad, right in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(grad, right)
    assert launched == ["attention_bwd_q", "attention_bwd_kv"][: 1 if needed == "q" else 2]


def _loss(packed: bool, size: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(qkv: Tensor) -> Tensor:
        if packed:
            return proportional_attention_qkvpacked(qkv, size).sin().sum()
        return proportional_attention(*split(qkv), size).sin().sum()

    return loss


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_of_function_transforms(packed: bool) -> None:
    """grad, and per-sample gradients by vmap(grad): those of one backward pass per sample; of q alone, too."""
    size, samples = torch.randint(1, 9, (2, 7)).float(), torch.randn(3, 2, 7, 3, 2, 16)
    loss = _loss(packed, size)
    per_sample = torch.vmap(torch.func.grad(loss))(samples)
    k, v = torch.randn(2, 2, 7, 2, 16).unbind(0)

    def of_q(q: Tensor) -> Tensor:
        return proportional_attention(q, k, v, size).sin().sum()

    of_q_alone = torch.vmap(torch.func.grad(of_q))(samples[:, :, :, 0])
    for i, sample in enumerate(samples):
        leaf, q = sample.clone().requires_grad_(), sample[:, :, 0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(loss)(sample), expected)
        torch.testing.assert_close(per_sample[i], expected)
        torch.testing.assert_close(of_q_alone[i], torch.autograd.grad(of_q(q), q)[0])


@pytest.mark.kernel_only
@pytest.mark.parametrize("packed", [True, False])
def test_other_derivatives_are_refused(packed: bool) -> None:
    loss, qkv = _loss(packed, torch.ones(2, 7)), torch.randn(2, 7, 3, 2, 16)
    with pytest.raises(NotImplementedError, match="no formula for forward-mode"):
        torch.func.jvp(loss, (qkv,), (qkv,))
    leaf = qkv.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="no formula for a second derivative"):
        grad.sum().backward()
    with use_backend("reference"), sdpa_kernel(SDPBackend.MATH):  # as the message says
        torch.func.jvp(loss, (qkv,), (qkv,))
        leaf = qkv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        grad.sum().backward()
        assert leaf.grad is not None


def test_meta_tensors() -> None:
    qkv, size = torch.empty(2, 7, 3, 2, 16, device="meta"), torch.empty(2, 7, device="meta")
    assert proportional_attention_qkvpacked(qkv, size).shape == (2, 7, 32)
    assert proportional_attention(*split(qkv), size).shape == (2, 7, 32)


def test_empty_batch() -> None:
    qkv = torch.empty(0, 5, 3, 2, 16, requires_grad=True)
    out = proportional_attention_qkvpacked(qkv, torch.empty(0, 5))
    assert out.shape == (0, 5, 32)
    out.sum().backward()


def test_repeats_exactly() -> None:
    qkv, size = torch.randn(2, 70, 3, 2, 16), torch.randint(1, 9, (2, 70)).float()

    def once() -> Tensor:
        leaf = qkv.clone().requires_grad_()
        proportional_attention_qkvpacked(leaf, size).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(once(), once())


def test_bad_input() -> None:
    q = k = v = torch.randn(2, 5, 2, 4)
    with pytest.raises(ValueError, match="q, k, v must be"):
        proportional_attention(q, k[:, :3], v)
    with pytest.raises(ValueError, match="q, k, v must be"):
        proportional_attention(q, k[0], v[0])
    with pytest.raises(ValueError, match="size must be"):
        proportional_attention(q, k, v, torch.ones(2, 4))
    with pytest.raises(ValueError, match="size must be >= 0 everywhere, got a minimum of -1"):
        proportional_attention(q, k, v, torch.full((2, 5), -1.0))
    with pytest.raises(ValueError, match="size must be <= 65504 with fp16 tokens, got a maximum of 70000"):
        proportional_attention(q.half(), k.half(), v.half(), torch.full((2, 5), 7e4))
    with pytest.raises(ValueError, match="size must not require grad"):
        proportional_attention(q, k, v, torch.ones(2, 5, requires_grad=True))
    with pytest.raises(ValueError, match="one dtype"):
        proportional_attention(q, k.half(), v.half())
    with pytest.raises(ValueError, match="k must be on"):
        proportional_attention(q, k.to("meta"), v)
    with pytest.raises(ValueError, match="qkv must be"):
        proportional_attention_qkvpacked(q)


def test_heads_and_dropout_that_no_attention_takes() -> None:
    def packed(q: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
        return proportional_attention_qkvpacked(torch.stack((q, q, q), 2), dropout_p=dropout_p)

    def apart(q: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
        return proportional_attention(q, q, q, dropout_p=dropout_p)

    q = torch.randn(2, 5, 2, 4)
    for attend in (packed, apart):
        with pytest.raises(TypeError, match=r"q, k, v must be floating point, got torch.int32"):
            attend(q.int())
        with pytest.raises(ValueError, match="heads must have at least one channel"):
            attend(q[..., :0])
        for dropout_p in (-0.5, 1.5, float("nan")):
            with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\]"):
                attend(q, dropout_p)
