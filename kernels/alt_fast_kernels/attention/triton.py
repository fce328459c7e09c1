"""Flash attention with log size as a bias on the keys, forward and backward. Contract: `proportional_attention`.

q, k, v and their gradients are views [B, N, H, D] with any strides over B, N and H, so no layout is ever copied. Scores
are kept in base 2: exp2 is the hardware's exponential.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.launch import Arch, Config, Launch, arch_of, compile_options, padded

LOG2_E = math.log2(math.e)


@triton.jit
def _rows(x, n, count, d, dim, stride_n):
    """A tile [BLOCK, BLOCK_D] of one head, zero outside of it."""
    at = x + n[:, None].to(tl.int64) * stride_n + d[None, :]
    return tl.load(at, mask=(n[:, None] < count) & (d[None, :] < dim), other=0.0)


@triton.jit
def _log2_size(size, n, count, HAS_SIZE: tl.constexpr):
    """The bias of keys n: log2 of their sizes, minus infinity beyond the last."""
    if HAS_SIZE:
        bias = tl.log2(tl.load(size + n, mask=n < count, other=1.0))
        return tl.where(n < count, bias, float("-inf"))
    return tl.where(n < count, 0.0, float("-inf"))


@triton.jit
def attention_fwd_kernel(
    q, k, v, size, out, lse, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(num_q, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = (tl.program_id(0) // tiles) % num_heads
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    size += image * num_k

    query = _rows(q + image * q_b + head * q_h, m, num_q, d, dim, q_n)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(0, num_k, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        key = _rows(k, n, num_k, d, dim, k_n)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores += _log2_size(size, n, num_k, HAS_SIZE)[None, :]
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weights, 1)
        value = _rows(v, n, num_k, d, dim, v_n)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
        top = new_top

    at = (image * num_q + m) * num_heads + head
    mixed = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + at[:, None] * dim + d[None, :], mixed, mask=(m[:, None] < num_q) & (d[None, :] < dim))
    tl.store(lse + (image * num_heads + head) * num_q + m, top + tl.log2(total), mask=m < num_q)


@triton.jit
def attention_bwd_q_kernel(
    q, k, v, size, out, lse, grad_out, delta, grad_q, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gq_b, gq_n, gq_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(num_q, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = (tl.program_id(0) // tiles) % num_heads
    m = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    k += image * k_b + head * k_h
    v += image * v_b + head * v_h
    size += image * num_k

    query = _rows(q + image * q_b + head * q_h, m, num_q, d, dim, q_n)
    packed = image * num_q * num_heads * dim + head * dim
    upstream = _rows(grad_out + packed, m, num_q, d, dim, num_heads * dim)
    result = _rows(out + packed, m, num_q, d, dim, num_heads * dim)
    # delta = sum over keys of P dP, by the identity of Dao et al. (arXiv 2205.14135, appendix B).
    shift = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)
    row = (image * num_heads + head) * num_q + m
    tl.store(delta + row, shift, mask=m < num_q)
    log_total = tl.load(lse + row, mask=m < num_q, other=float("inf"))
    grad = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(0, num_k, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        key = _rows(k, n, num_k, d, dim, k_n)
        value = _rows(v, n, num_k, d, dim, v_n)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        scores += _log2_size(size, n, num_k, HAS_SIZE)[None, :]
        weights = tl.exp2(scores - log_total[:, None])
        grad_weights = tl.dot(upstream, tl.trans(value), input_precision="ieee")
        grad_scores = weights * (grad_weights - shift[:, None])
        grad = tl.dot(grad_scores.to(key.dtype), key, grad, input_precision="ieee")
    grad *= scale * 0.6931471805599453  # back from base 2
    at = grad_q + image * gq_b + head * gq_h + m[:, None].to(tl.int64) * gq_n + d[None, :]
    tl.store(at, grad.to(grad_q.dtype.element_ty), mask=(m[:, None] < num_q) & (d[None, :] < dim))


@triton.jit
def attention_bwd_kv_kernel(
    q, k, v, size, lse, grad_out, delta, grad_k, grad_v, scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gk_b, gk_n, gk_h, gv_b, gv_n, gv_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(num_k, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = (tl.program_id(0) // tiles) % num_heads
    n = (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)  # keys
    d = tl.arange(0, BLOCK_D)
    q += image * q_b + head * q_h
    grad_out += image * num_q * num_heads * dim + head * dim
    row = (image * num_heads + head) * num_q

    key = _rows(k + image * k_b + head * k_h, n, num_k, d, dim, k_n)
    value = _rows(v + image * v_b + head * v_h, n, num_k, d, dim, v_n)
    bias = _log2_size(size + image * num_k, n, num_k, HAS_SIZE)
    sum_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for m0 in range(0, num_q, BLOCK_N):
        m = m0 + tl.arange(0, BLOCK_N)  # queries
        query = _rows(q, m, num_q, d, dim, q_n)
        upstream = _rows(grad_out, m, num_q, d, dim, num_heads * dim)
        log_total = tl.load(lse + row + m, mask=m < num_q, other=float("inf"))
        shift = tl.load(delta + row + m, mask=m < num_q, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale + bias[:, None]
        weights = tl.exp2(scores - log_total[None, :])
        sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision="ieee")
        grad_weights = tl.dot(value, tl.trans(upstream), input_precision="ieee")
        grad_scores = weights * (grad_weights - shift[None, :])
        sum_k = tl.dot(grad_scores.to(query.dtype), query, sum_k, input_precision="ieee")
    sum_k *= scale * 0.6931471805599453  # back from base 2
    inside = (n[:, None] < num_k) & (d[None, :] < dim)
    at = n[:, None].to(tl.int64)
    tl.store(
        grad_k + image * gk_b + head * gk_h + at * gk_n + d[None, :], sum_k.to(grad_k.dtype.element_ty), mask=inside
    )
    tl.store(
        grad_v + image * gv_b + head * gv_h + at * gv_n + d[None, :], sum_v.to(grad_v.dtype.element_ty), mask=inside
    )


def attention_config(kernel: str, dtype: torch.dtype, block_d: int, arch: Arch) -> Config:
    """The launch configuration of "fwd", "bwd_q" or "bwd_kv": the largest tiles that do not spill (see `resources`)."""
    wide = block_d == 128
    if arch == "gfx942":
        if dtype == torch.float32:
            return Config(32, 32, 4, 1)
        return Config(64, 32 if wide or kernel == "bwd_kv" else 64, 4, 1)
    if dtype == torch.float32:
        narrow = kernel == "bwd_q" if arch == "sm_80" else True
        return Config(32, 16 if wide and narrow else 32, 8, 2)
    if arch == "sm_80":
        if kernel == "bwd_kv":
            return Config(64, 64, 8, 2) if wide else Config(64, 32, 4, 2)
        return Config(64, 32 if wide and kernel == "fwd" else 64, 4, 2)
    return Config(64, 64, 8 if kernel == "bwd_kv" else 4, 2, maxnreg=255)


def _launch(kernel: object, name: str, q: Tensor, k: Tensor, args: tuple, has_size: bool, arch: Arch | None) -> Launch:
    batch, num_q, num_heads, dim = q.shape
    block_d = padded(dim)
    arch = arch or arch_of(q.device)
    config = attention_config(name, q.dtype, block_d, arch)
    rows = k.shape[1] if name == "bwd_kv" else num_q
    grid = batch * num_heads * triton.cdiv(rows, config.block_m)
    options = {
        "HAS_SIZE": has_size,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_D": block_d,
        **compile_options(arch, config.num_warps, config.num_stages, config.maxnreg),
    }
    return Launch(kernel, grid, (*args, num_heads, num_q, k.shape[1], dim), options)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, float]
"""q, k, v [B, N, H, D] with unit stride over D; size [B, N] fp32 contiguous or None; scale of the scores."""


def attention_fwd_launch(inputs: Inputs, out: Tensor, lse: Tensor, arch: Arch | None = None) -> Launch:
    """Writes out [B, N, H * D] and lse [B, H, N] (fp32, base 2)."""
    q, k, v, size, scale = inputs
    args = (q, k, v, q if size is None else size, out, lse, scale * LOG2_E, *_strides(q, k, v))
    return _launch(attention_fwd_kernel, "fwd", q, k, args, size is not None, arch)


def attention_bwd_launches(
    inputs: Inputs,
    saved: tuple[Tensor, Tensor, Tensor],
    delta: Tensor,
    grads: tuple[Tensor, Tensor, Tensor],
    arch: Arch | None = None,
) -> tuple[Launch, Launch]:
    """saved: grad of out, out ([B, N, H * D] contiguous), lse. Writes delta [B, H, N] and grads (views like q, k, v).

    The two launches run in this order: the first leaves delta for the second.
    """
    q, k, v, size, scale = inputs
    grad_out, out, lse = saved
    grad_q, grad_k, grad_v = grads
    weights = q if size is None else size
    head = (q, k, v, weights)
    args_q = (*head, out, lse, grad_out, delta, grad_q, scale * LOG2_E, *_strides(q, k, v, grad_q))
    args_kv = (*head, lse, grad_out, delta, grad_k, grad_v, scale * LOG2_E, *_strides(q, k, v, grad_k, grad_v))
    return (
        _launch(attention_bwd_q_kernel, "bwd_q", q, k, args_q, size is not None, arch),
        _launch(attention_bwd_kv_kernel, "bwd_kv", q, k, args_kv, size is not None, arch),
    )
