"""Attention of queries and keys turned by rotary tables, against its formula."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from alt_fast_kernels import Rotary, proportional_attention, proportional_attention_qkvpacked, rotate, use_backend
from alt_fast_kernels.configs import TURNS_16, configured_for
from alt_fast_kernels.testing import Result, assert_as_accurate


def turned(x: Tensor, rotary: Rotary) -> Tensor:
    """Channel by channel, in fp64."""
    dim = x.shape[-1]
    x, cos, sin = x.double(), rotary.cos.double(), rotary.sin.double()
    channels = []
    for c in range(dim):
        if rotary.interleaved:
            partner, sign = c + (1 if c % 2 == 0 else -1), -1 if c % 2 == 0 else 1
        else:
            partner, sign = (c + dim // 2) % dim, -1 if c < dim // 2 else 1
        channels.append(x[..., c] * cos[..., c] + sign * x[..., partner] * sin[..., c])
    return torch.stack(channels, -1)


def attention_by_formula(qkv: Tensor, size: Tensor | None, scale: float, rotary: Rotary) -> Tensor:
    q, k, v = qkv.double().unbind(2)
    scores = torch.einsum("bnhd,bmhd->bhnm", turned(q, rotary), turned(k, rotary)) * scale
    if size is not None:
        scores = scores + size.double().log()[:, None, None]
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)


def in_parts(qkv: Tensor, size: Tensor | None, rotary: Rotary) -> Tensor:
    q, k, v = qkv.unbind(2)
    return proportional_attention(q, k, v, size, rotary=rotary)


def packed(qkv: Tensor, size: Tensor | None, rotary: Rotary) -> Tensor:
    return proportional_attention_qkvpacked(qkv, size, rotary=rotary)


def tables(batch: int, num_tokens: int, heads: int, dim: int, interleaved: bool) -> Rotary:
    """As merging leaves them: neither of length 1, nor equal in both channels of a pair."""
    cos, sin = torch.randn(2, batch, num_tokens, heads, dim).unbind(0)
    return Rotary(cos, sin, interleaved)


def by_position(position: Tensor, dim: int, interleaved: bool) -> Rotary:
    """Tables [1, N, 1, D] of a real rotation by positions [N]."""
    angle = position[:, None] * 100 ** -torch.linspace(0, 1, dim // 2)
    angle = angle.repeat_interleave(2, -1) if interleaved else angle.repeat(1, 2)
    return Rotary(angle.cos()[None, :, None], angle.sin()[None, :, None], interleaved)


@dataclass(frozen=True)
class Draw:
    """Results on fresh inputs, and those of the formula in fp64.

    own: tables have the tokens' dtype; else they are fp32. arch: whose tiles the interpreter takes.
    """

    batch: int
    num_tokens: int
    dim: int
    interleaved: bool
    per_image: bool
    per_head: bool
    dtype: torch.dtype
    own: bool = False
    arch: str | None = None

    def __call__(self) -> Iterator[Result]:
        qkv = torch.randn(self.batch, self.num_tokens, 3, 2, self.dim).to(self.dtype)
        size = torch.randint(1, 3000, (self.batch, self.num_tokens)).float()
        places = self.batch if self.per_image else 1, self.num_tokens, 2 if self.per_head else 1
        rotary = tables(*places, self.dim, self.interleaved)
        if self.own:
            rotary = Rotary(rotary.cos.to(self.dtype), rotary.sin.to(self.dtype), self.interleaved)
        weight = torch.randn(self.batch, self.num_tokens, 2 * self.dim)

        def run(function: Callable[[Tensor, Tensor, Rotary], Tensor], dtype: torch.dtype) -> list[Tensor]:
            leaf = qkv.to(dtype, copy=True).requires_grad_()
            out = function(leaf, size, rotary)
            (out * weight.to(out.dtype)).sum().backward()
            assert leaf.grad is not None
            return [out, leaf.grad]

        scale = self.dim**-0.5
        exact = run(lambda x, size, rotary: attention_by_formula(x, size, scale, rotary), torch.float64)
        with use_backend("reference"):
            at_precision = run(in_parts, self.dtype)
        with nullcontext() if self.arch is None else configured_for(self.arch):
            for form in (in_parts, packed):
                yield from zip(run(form, self.dtype), at_precision, exact, strict=True)


@pytest.mark.reference_only
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_equals_the_formula(interleaved: bool) -> None:
    x, rotary = torch.randn(2, 5, 3, 8), tables(2, 5, 1, 8, interleaved)
    torch.testing.assert_close(rotate(x, rotary).double(), turned(x, rotary), rtol=1e-5, atol=1e-5)
    half = x.half()
    torch.testing.assert_close(rotate(half, rotary), rotate(half.float(), rotary).half(), rtol=0, atol=0)
    wide = Rotary(rotary.cos.double(), rotary.sin.double(), interleaved)
    torch.testing.assert_close(rotate(x.double(), wide), turned(x, rotary))


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "interleaved", "per_image", "per_head"),
    [
        (17, 16, True, True, True),
        (17, 40, True, False, True),
        (2, 64, True, True, False),
        (67, 64, False, False, True),
        (17, 72, False, True, False),
        (3, 72, True, True, True),
        (2, 128, False, True, True),
        (17, 128, True, False, False),
    ],
)
def test_kernel_is_as_accurate_as_pytorch(
    num_tokens: int, dim: int, interleaved: bool, per_image: bool, per_head: bool, dtype: torch.dtype, interpreted: bool
) -> None:
    """Against the formula in fp64, in both forms, forward and backward."""
    batch = 1 if num_tokens > 3 else 2  # enough rows for a largest error to be no luck
    if not interpreted:
        batch = 140 if num_tokens == 67 else 4  # enough programs for tall tiles
    assert_as_accurate(Draw(batch, num_tokens, dim, interleaved, per_image, per_head, dtype))


@pytest.mark.same_arithmetic
@pytest.mark.kernel_only
@pytest.mark.parametrize("arch", TURNS_16)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_tokens", "dim", "interleaved", "per_head", "own"),
    [
        (17, 8, True, True, True),  # of the second part of a tile there is nothing
        (17, 40, True, True, True),
        (67, 64, True, False, True),
        (67, 64, False, True, True),
        (67, 64, True, False, False),  # a short tail, which other tables have there too
        (67, 64, False, True, False),
        (17, 72, False, False, True),
        (17, 72, True, True, True),
        (17, 128, True, False, True),
    ],
)
def test_tables_of_16_bits_where_they_are_used_as_they_are(
    num_tokens: int, dim: int, interleaved: bool, per_head: bool, own: bool, dtype: torch.dtype, arch: str,
    interpreted: bool,
) -> None:  # fmt: skip
    """As accurate as turning in fp32 by the same tables. A GPU takes its own tiles, whichever it is, and so once."""
    if not interpreted and arch != TURNS_16[0]:
        pytest.skip("a GPU is of one kind")
    batch = 2 if interpreted else 140 if num_tokens == 67 else 4  # enough programs for tall tiles
    own_tiles = arch if interpreted else None
    assert_as_accurate(Draw(batch, num_tokens, dim, interleaved, True, per_head, dtype, own, own_tiles))


@pytest.mark.parametrize("interleaved", [False, True])
def test_without_sizes_and_with_padding(interleaved: bool) -> None:
    """Padding behind the last key, and heads too narrow for vectors."""
    qkv, rotary = torch.randn(2, 9, 3, 2, 6), tables(1, 9, 1, 6, interleaved)
    for form in (in_parts, packed):
        expected = attention_by_formula(qkv, None, 6**-0.5, rotary)
        torch.testing.assert_close(form(qkv, None, rotary).double(), expected, rtol=1e-4, atol=1e-5)
        size = torch.ones(2, 9)
        size[:, 7:] = 0
        leaf, kept = qkv.clone().requires_grad_(), qkv[:, :7].clone().requires_grad_()
        out = form(leaf, size, rotary)[:, :7]
        fewer = form(kept, size[:, :7], Rotary(rotary.cos[:, :7], rotary.sin[:, :7], interleaved))
        grads = [torch.autograd.grad(x.square().sum(), y)[0] for x, y in ((out, leaf), (fewer, kept))]
        for padded, cut in ((out, fewer), (grads[0][:, :7], grads[1])):  # scores of tens round to 1e-5 of a weight
            torch.testing.assert_close(padded, cut, rtol=0, atol=2e-5 * float(cut.abs().max()))
        assert not grads[0][:, 7:].any()


@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_that_turn_nothing_change_nothing(interleaved: bool) -> None:
    qkv, size = torch.randn(2, 17, 3, 2, 16), torch.randint(1, 9, (2, 17)).float()
    rotary = Rotary(torch.ones(1, 17, 1, 16), torch.zeros(1, 17, 1, 16), interleaved)
    torch.testing.assert_close(packed(qkv, size, rotary), proportional_attention_qkvpacked(qkv, size))


@pytest.mark.parametrize("interleaved", [False, True])
def test_only_distances_count(interleaved: bool) -> None:
    qkv, position = torch.randn(1, 9, 3, 2, 16), torch.randn(9) * 3
    here, there = (packed(qkv, None, by_position(position + shift, 16, interleaved)) for shift in (0, 5))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(here, proportional_attention_qkvpacked(qkv), atol=1e-2)


def test_tables_may_be_any_views_and_dtypes() -> None:
    """Halves of one tensor as timm has them, strides that differ, strided channels, an odd offset, fp16, fp64."""
    qkv = torch.randn(2, 9, 3, 2, 16)
    rotary = tables(1, 9, 1, 16, True)
    cos, sin, _ = rotary
    joint = torch.cat((sin, cos), -1)
    shifted = torch.cat((cos.new_zeros(1), cos.flatten()))[1:].view(cos.shape)
    expected = attention_by_formula(qkv, None, 0.25, rotary)
    for views in (
        (joint[..., 16:], joint[..., :16]),
        (joint[..., 16:], sin),
        (cos.mT.contiguous().mT, sin.transpose(1, 3).contiguous().transpose(1, 3)),
        (shifted, sin),
        (cos.expand(2, 9, 2, 16), sin.expand(2, 9, 2, 16)),
        (cos.double(), sin.double()),
    ):
        out = packed(qkv, None, Rotary(*views, True))
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    half = Rotary(cos.half(), sin.half(), True)
    expected = attention_by_formula(qkv, None, 0.25, half)
    torch.testing.assert_close(packed(qkv, None, half).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.reference_only
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradient_in_double_precision(interleaved: bool) -> None:
    """To q, k, v and to the tables."""
    q, k, v = (torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    cos, sin = (torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    size = torch.tensor([[1.0, 2, 5], [3, 1, 1]], dtype=torch.float64)

    def function(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return proportional_attention(q, k, v, size, rotary=Rotary(cos, sin, interleaved))

    assert torch.autograd.gradcheck(function, (q, k, v, cos, sin))


@pytest.mark.parametrize("form", [in_parts, packed])
def test_learnt_tables_have_a_gradient(form: Callable[[Tensor, Tensor | None, Rotary], Tensor]) -> None:
    qkv, rotary = torch.randn(2, 9, 3, 2, 16), tables(1, 9, 2, 16, False)
    weight = torch.randn(2, 9, 32)
    exact = [x.double().requires_grad_() for x in (qkv, rotary.cos, rotary.sin)]
    leaves = [x.clone().requires_grad_() for x in (qkv, rotary.cos, rotary.sin)]
    expected = (attention_by_formula(exact[0], None, 0.25, Rotary(exact[1], exact[2], False)) * weight).sum()
    for which in ((0, 1, 2), (0, 2)):
        given = [leaf if i in which else leaf.detach() for i, leaf in enumerate(leaves)]
        out = form(given[0], None, Rotary(given[1], given[2], False))
        grads = torch.autograd.grad((out * weight).sum(), [leaves[i] for i in which])
        truths = torch.autograd.grad(expected, [exact[i] for i in which], retain_graph=True)
        for grad, truth in zip(grads, truths, strict=True):
            torch.testing.assert_close(grad.double(), truth, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(form(qkv, None, Rotary(leaves[1], leaves[2], False)), out)


@pytest.mark.parametrize(("dim", "scale"), [(160, 0.1), (16, -0.3), (16, 0.0)])
def test_what_pytorch_attends_to_is_turned_before(dim: int, scale: float) -> None:
    qkv, size = torch.randn(2, 5, 3, 2, dim), torch.randint(1, 9, (2, 5)).float()
    rotary = tables(2, 5, 1, dim, False)
    out = proportional_attention_qkvpacked(qkv, size, scale, rotary=rotary)
    expected = attention_by_formula(qkv, size, scale, rotary)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    assert proportional_attention_qkvpacked(qkv, size, scale, 0.5, rotary).isfinite().all()


@pytest.mark.reference_only
@pytest.mark.parametrize("name", ["sdpa", "flex", "xformers"])
def test_other_backends_equal_the_formula(name: Literal["sdpa", "flex", "xformers"], device: torch.device) -> None:
    if name == "xformers" and device.type == "cpu":
        pytest.skip("xformers runs on GPUs")
    qkv, size = torch.randn(2, 5, 3, 2, 16), torch.randint(1, 9, (2, 5)).float()
    rotary = tables(1, 5, 1, 16, True)
    with use_backend(attention=name):
        outs = in_parts(qkv, size, rotary), packed(qkv, size, rotary)
    for out in outs:
        expected = attention_by_formula(qkv, size, 0.25, rotary)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_gradient_through_torch_func() -> None:
    """The same as through autograd, whose accuracy is tested above."""
    qkv, rotary = torch.randn(2, 5, 3, 2, 16), tables(2, 5, 1, 16, True)

    def loss(x: Tensor) -> Tensor:
        return packed(x, None, rotary).square().sum()

    leaf = qkv.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(qkv), torch.autograd.grad(loss(leaf), leaf)[0])


def test_an_empty_batch() -> None:
    leaf = torch.empty(0, 5, 3, 2, 16, requires_grad=True)
    out = packed(leaf, None, tables(1, 5, 1, 16, True))
    assert out.shape == (0, 5, 32)
    out.sum().backward()


def test_bad_input() -> None:
    qkv = torch.randn(2, 5, 3, 2, 4)
    q, k, v = qkv.unbind(2)
    cos, sin, _ = rotary = tables(1, 5, 2, 4, False)
    with pytest.raises(ValueError, match="rotary turns q and k alike: they must have the same N, got 3 and 5"):
        proportional_attention(q[:, :3], k, v, rotary=rotary)
    for wrong, error, why in (
        (
            Rotary(cos[:, :4], sin[:, :4], False),
            ValueError,
            "rotary.cos must be .2 or 1, 5, 2 or 1, 4., got .1, 4, 2, 4.",
        ),
        (Rotary(cos[0], sin[0], False), ValueError, "rotary.cos must be .2 or 1, 5, 2 or 1, 4., got .5, 2, 4."),
        (Rotary(cos, sin[..., :2], False), ValueError, "rotary.sin must be .2 or 1, 5, 2 or 1, 4., got .1, 5, 2, 2."),
        (
            Rotary(cos, sin[:, :, :1], False),
            ValueError,
            "rotary.sin must have the shape of rotary.cos, .1, 5, 2, 4., got",
        ),
        (Rotary(cos.long(), sin, False), TypeError, "rotary.cos must be floating, got torch.int64"),
        (Rotary(cos, sin.to("meta"), False), ValueError, "rotary.sin must be on .*, got meta"),
    ):
        with pytest.raises(error, match=why):
            proportional_attention(q, k, v, rotary=wrong)
        with pytest.raises(error, match=why):
            packed(qkv, None, wrong)
        with pytest.raises(error, match=why):
            rotate(q, wrong)
    with pytest.raises(ValueError, match="D must be even, got .2, 5, 2, 3."):
        packed(qkv[..., :3], None, Rotary(cos[..., :3], sin[..., :3], False))
    with pytest.raises(ValueError, match="D must be even, got .5, 2, 4."):
        rotate(q[0], rotary)
