"""Attention by name: our kernels, or others' with log size as a bias. Contract: `proportional_attention`.

Every function takes q [B, N, H, D], k and v [B, M, H, D], size [B, M] or None, scale and dropout_p, returns
[B, N, H * D], and raises ValueError saying why where it cannot run.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from alt_fast_kernels.attention.op import attention
from alt_fast_kernels.attention.reference import attention_reference, log_size
from alt_fast_kernels.attention.rotary import NOT_TURNED, Rotary
from alt_fast_kernels.dispatch import HAS_TRITON, KERNEL_DTYPES

MAX_HEAD_DIM = 128
"""Of our kernels' tiles."""


def why_not_triton(x: Tensor, scale: float, dropout_p: float) -> str | None:
    """Say why our kernels cannot attend to heads like x [..., D]; None where they can."""
    if not HAS_TRITON:
        return "triton is not installed"
    if x.dtype not in KERNEL_DTYPES:
        return f"they take fp32, fp16 and bf16, not {x.dtype}"
    if x.shape[-1] > MAX_HEAD_DIM:
        return f"they take heads of up to {MAX_HEAD_DIM} channels, not {x.shape[-1]}"
    if dropout_p > 0:
        return "they do not drop weights"
    if not scale > 0:
        return f"they take a scale > 0, not {scale}"
    return None


def attend_triton(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, dropout_p: float, rotary: Rotary | None = None
) -> Tensor:
    """Our kernels, which alone turn q and k as they read them."""
    _refuse("triton", why_not_triton(q, scale, dropout_p))
    out: Tensor = attention(q, k, v, size, scale, *(rotary or NOT_TURNED))[0]
    return out


def attend_flex(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, dropout_p: float) -> Tensor:
    """PyTorch's FlexAttention, compiled on a GPU."""
    _refuse("flex", "it does not drop weights" if dropout_p > 0 else None)
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    _refuse("flex", "it has no gradient on a CPU" if wants_gradient and not q.is_cuda else None)
    function = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else _flex
    return function(q, k, v, None if size is None else log_size(size, torch.float32), scale)


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def biased(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[image, key]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")  # on a CPU: right, not fast
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = flex_attention(q, k, v, score_mod=None if bias is None else biased, scale=scale)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2).flatten(2)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(_flex)


def attend_xformers(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float, dropout_p: float) -> Tensor:
    """xformers' memory-efficient attention."""
    if find_spec("xformers") is None:
        _refuse("xformers", "it is not installed: pip install 'alt-fast[gpu]'")
    _refuse("xformers", None if q.is_cuda else f"it takes tensors on a GPU, not on {q.device}")
    from xformers.ops import memory_efficient_attention

    bias = None
    if size is not None:  # its rows must begin at multiples of 8 elements
        num_k = k.shape[1]
        bias = q.new_zeros(len(q), 1, 1, -(-num_k // 8) * 8)[..., :num_k]
        bias[:, 0, 0] = log_size(size, q.dtype)
        bias = bias.expand(-1, q.shape[2], q.shape[1], -1)
    out: Tensor = memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout_p, scale=scale)
    return out.flatten(2)


ATTENTION: dict[str, Callable[..., Any]] = {
    "triton": attend_triton,
    "sdpa": attention_reference,
    "flex": attend_flex,
    "xformers": attend_xformers,
}
"""By the names of `use_backend(attention=...)`."""


def _refuse(name: str, why: str | None) -> None:
    if why is not None:
        raise ValueError(f"attention={name!r} cannot run here: {why}")
