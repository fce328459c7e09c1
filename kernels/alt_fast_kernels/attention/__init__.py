"""Proportional attention: softmax attention in which a token counts as often as the patches it stands for.

Queries and keys may be turned by rotary positions (`Rotary`) on the way.
"""

import torch
from torch import Tensor

from alt_fast_kernels.attention.backends import ATTENTION, attend_triton, why_not_triton
from alt_fast_kernels.attention.op import attention_packed
from alt_fast_kernels.attention.rotary import NOT_TURNED, Rotary, check_rotary, rotate
from alt_fast_kernels.checks import check_device, check_size, may_read_values
from alt_fast_kernels.dispatch import attention_backend, takes_kernel, to_autocast_dtype
from alt_fast_kernels.lane import open_lane

__all__ = ["Rotary", "proportional_attention", "proportional_attention_qkvpacked", "rotate"]

MAX_FP16 = torch.finfo(torch.float16).max


def _takes_ours(x: Tensor, scale: float, dropout_p: float) -> bool:
    """Return whether our kernels attend to heads like x [..., D]: where they are wanted, and can."""
    chosen = attention_backend()
    wanted = takes_kernel(x) if chosen == "auto" else chosen == "triton"
    return wanted and why_not_triton(x, scale, dropout_p) is None


def _check_heads(x: Tensor, dropout_p: float) -> None:
    """Raise unless heads like x [..., D] can be attended to with this dropout."""
    if not x.is_floating_point():
        raise TypeError(f"q, k, v must be floating point, got {x.dtype}")
    if x.shape[-1] == 0:
        raise ValueError(f"heads must have at least one channel, got shape {tuple(x.shape)}")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"dropout_p must be in [0, 1], got {dropout_p}")


def _check_size(size: Tensor | None, keys: Tensor) -> None:
    """Raise unless size suits keys [B, M, ...], and fp16 can hold it: the weights of fp16 tokens are fp16."""
    if size is None:
        return
    check_size(size, keys)
    if keys.dtype == torch.float16 and may_read_values(size) and bool((size > MAX_FP16).any()):
        raise ValueError(f"size must be <= {MAX_FP16:.0f} with fp16 tokens, got a maximum of {size.max().item()}")


def proportional_attention(
    q: Tensor, k: Tensor, v: Tensor, size: Tensor | None = None, scale: float | None = None, dropout_p: float = 0.0,
    rotary: Rotary | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale + log size) v (ToMe, eq. 1).

    q: [B, N, H, D]. k, v: [B, M, H, D]. Any strides over B, N, H: views of a packed QKV projection are read in place.
    size: [B, M] fp32 >= 0, or None for plain attention. A key of size 0 is no key: padding, which must be
        finite. A query without keys gives zeros, and no gradient. With fp16 tokens at most 65,504.
    scale: 1 / sqrt(D) by default.
    dropout_p: from 0 to 1, drops attention weights; with p > 0, D > 128 or a scale <= 0 PyTorch's attention runs.
    rotary: turns q and k alike, so their N must be the same; `rotate` says how. Tables may require grad, as learnt
        frequencies do; q and k are then turned outside of the kernels.
    Returns [B, N, H * D] in q's dtype (inside autocast, in autocast's).
    Raises ValueError on shapes, dtypes or devices that do not fit, on sizes < 0 and on a size that requires grad
    (sizes are counts); TypeError on tensors and tables that are not floating.
    """
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape != v.shape:
        raise ValueError(
            "q, k, v must be [B, N, H, D] with the same B, H, D (k and v also N), got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    _check_heads(q, dropout_p)
    check_device("k", k, q)
    check_device("v", v, q)
    open_lane(k)
    q, k, v = to_autocast_dtype(q, k, v)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v must have one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    _check_size(size, k)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    name = attention_backend()
    if name == "auto":
        name = "triton" if _takes_ours(q, scale, dropout_p) else "sdpa"
    if rotary is not None:
        if q.shape != k.shape:
            raise ValueError(
                f"rotary turns q and k alike: they must have the same N, got {q.shape[1]} and {k.shape[1]}"
            )
        check_rotary(rotary, q)
        if name == "triton" and not rotary.wants_gradient:
            return attend_triton(q, k, v, size, scale, dropout_p, rotary)
        q, k = rotate(q, rotary), rotate(k, rotary)
    return ATTENTION[name](q, k, v, size, scale, dropout_p)


def proportional_attention_qkvpacked(
    qkv: Tensor, size: Tensor | None = None, scale: float | None = None, dropout_p: float = 0.0,
    rotary: Rotary | None = None,
) -> Tensor:  # fmt: skip
    """`proportional_attention` of q, k, v = qkv.unbind(2), qkv [B, N, 3, H, D]: the gradient stays packed, uncopied."""
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must be [B, N, 3, H, D], got shape {tuple(qkv.shape)}")
    _check_heads(qkv, dropout_p)
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    if _takes_ours(qkv, scale, dropout_p) and (rotary is None or not rotary.wants_gradient):
        open_lane(qkv)
        (qkv,) = to_autocast_dtype(qkv)
        _check_size(size, qkv)
        if rotary is not None:
            check_rotary(rotary, qkv[:, :, 0])
        return attention_packed(qkv, size, scale, *(rotary or NOT_TURNED))[0]
    q, k, v = qkv.unbind(2)
    return proportional_attention(q, k, v, size, scale, dropout_p, rotary)
