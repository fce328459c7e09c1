"""Flash attention with log size as a bias on the keys, forward and backward. Contract: `proportional_attention`.

q [B, N, H, D], k and v [B, M, H, D] and their gradients are views with any strides over B, N and H, so no layout is
ever copied. Scores are kept in base 2, for exp2 is the hardware's exponential: so are `scale` (which holds a factor of
log2 e) and `lse2`. All sums are fp32.

A grid is flat: tiles of BLOCK_M rows (queries, or keys) of a head lie side by side, then heads, then images.
"""

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, padded

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _owned(num_rows, num_heads, BLOCK_M: tl.constexpr):
    """The image, head and rows [BLOCK_M] that this program owns."""
    tiles = tl.cdiv(num_rows, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = (tl.program_id(0) // tiles) % num_heads
    return image, head, (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def _rows(x, n, count, d, dim, stride_n):
    """A tile [BLOCK, BLOCK_D] of one head, zero outside of it."""
    at = x + n[:, None].to(tl.int64) * stride_n + d[None, :]
    return tl.load(at, mask=(n[:, None] < count) & (d[None, :] < dim), other=0.0)


@triton.jit
def _store_rows(x, tile, n, count, d, dim, stride_n):
    """The counterpart of `_rows`, in the dtype of x."""
    at = x + n[:, None].to(tl.int64) * stride_n + d[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=(n[:, None] < count) & (d[None, :] < dim))


@triton.jit
def _log2_size(size, n, count, HAS_SIZE: tl.constexpr):
    """The bias of keys n: log2 of their sizes, minus infinity beyond the last."""
    if HAS_SIZE:
        bias = tl.log2(tl.load(size + n, mask=n < count, other=1.0))
        return tl.where(n < count, bias, float("-inf"))
    return tl.where(n < count, 0.0, float("-inf"))


@triton.jit
def attention_fwd_kernel(
    # reads
    q, k, v, size,
    # writes
    out, lse2,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend: out = softmax(q k^T * scale + log size) v by an online softmax, and the sums that backward needs.

    Reads q [B, N, H, D], k and v [B, M, H, D] of one dtype, size [B, M] fp32 (only if HAS_SIZE).
    Writes out [B, N, H * D] in that dtype and lse2 [B, H, N] fp32, log2 of each query's sum of weights.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time; BLOCK_D >= D.
    """
    image, head, m = _owned(num_q, num_heads, BLOCK_M)
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
    tl.store(lse2 + (image * num_heads + head) * num_q + m, top + tl.log2(total), mask=m < num_q)


@triton.jit
def attention_bwd_q_kernel(
    # reads
    q, k, v, size, out, lse2, grad_out,
    # writes
    delta, grad_q,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gq_b, gq_n, gq_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of q, and delta, the weights' mean gradient, which that of k needs.

    Reads what `attention_fwd_kernel` read and wrote, and grad_out [B, N, H * D] contiguous.
    Writes delta [B, H, N] fp32 and grad_q [B, N, H, D] in its own dtype.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time, recomputing their weights from lse2.
    """
    image, head, m = _owned(num_q, num_heads, BLOCK_M)
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
    log_total = tl.load(lse2 + row, mask=m < num_q, other=float("inf"))
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
    grad *= scale * LN_2  # back from base 2
    _store_rows(grad_q + image * gq_b + head * gq_h, grad, m, num_q, d, dim, gq_n)


@triton.jit
def attention_bwd_kv_kernel(
    # reads
    q, k, v, size, lse2, grad_out, delta,
    # writes
    grad_k, grad_v,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gk_b, gk_n, gk_h, gv_b, gv_n, gv_h,
    num_heads, num_q, num_k, dim,
    HAS_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k and v.

    Reads what `attention_bwd_q_kernel` reads, less out, and the delta that it wrote.
    Writes grad_k and grad_v [B, M, H, D] in their own dtype.
    Grid: B * H * cdiv(M, BLOCK_M). A program owns BLOCK_M keys of a head and streams over the queries, BLOCK_N at a
    time; every gradient has one owner, so there are no atomics and results repeat exactly.
    """
    image, head, n = _owned(num_k, num_heads, BLOCK_M)  # keys
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
        log_total = tl.load(lse2 + row + m, mask=m < num_q, other=float("inf"))
        shift = tl.load(delta + row + m, mask=m < num_q, other=0.0)
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale + bias[:, None]
        weights = tl.exp2(scores - log_total[None, :])
        sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision="ieee")
        grad_weights = tl.dot(value, tl.trans(upstream), input_precision="ieee")
        grad_scores = weights * (grad_weights - shift[None, :])
        sum_k = tl.dot(grad_scores.to(query.dtype), query, sum_k, input_precision="ieee")
    sum_k *= scale * LN_2  # back from base 2
    _store_rows(grad_k + image * gk_b + head * gk_h, sum_k, n, num_k, d, dim, gk_n)
    _store_rows(grad_v + image * gv_b + head * gv_h, sum_v, n, num_k, d, dim, gv_n)


@dataclass(frozen=True)
class Inputs:
    """What every kernel reads.

    q [B, N, H, D], k and v [B, M, H, D] with unit stride over D; size [B, M] fp32 contiguous, or None; scale of the
    scores, as users give it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    size: Tensor | None
    scale: float

    @property
    def head(self) -> tuple[Tensor, ...]:
        """The first arguments of every kernel; q stands in for a size that is not read."""
        return self.q, self.k, self.v, self.q if self.size is None else self.size

    def numbers(self, *grads: Tensor) -> tuple[float, ...]:
        """The last arguments of every kernel: scale, strides (also of `grads`, views like q, k, v) and extents."""
        strides = (x.stride()[:3] for x in (self.q, self.k, self.v, *grads))
        _, num_q, num_heads, dim = self.q.shape
        return self.scale * LOG2_E, *(s for three in strides for s in three), num_heads, num_q, self.k.shape[1], dim

    def options(self, kernel: str, arch: Arch | None) -> dict[str, Any]:
        """Constexpr parameters and compile options of "attention_fwd", "attention_bwd_q" or "attention_bwd_kv"."""
        block_d = padded(self.q.shape[3])
        config = config_of(kernel, arch or arch_of(self.q.device), self.q.dtype, block_d)
        return {"HAS_SIZE": self.size is not None, "BLOCK_D": block_d, **config}


@dataclass(frozen=True)
class Saved:
    """What the backward kernels read besides: out and its gradient [B, N, H * D] contiguous; lse2 [B, H, N] fp32."""

    out: Tensor
    lse2: Tensor
    grad_out: Tensor


@dataclass(frozen=True)
class Gradients:
    """Where the backward kernels write: views like q, k and v, with unit stride over D."""

    q: Tensor
    k: Tensor
    v: Tensor


def _launch(kernel: Any, x: Tensor, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    """One program per tile of the rows (tokens) of x [B, N, H, D]."""
    batch, num_rows, num_heads, _ = x.shape
    return Launch(kernel, batch * num_heads * triton.cdiv(num_rows, options["BLOCK_M"]), args, options)


def attention_fwd_launch(inputs: Inputs, out: Tensor, lse2: Tensor, arch: Arch | None = None) -> Launch:
    """Write out [B, N, H * D] and lse2 [B, H, N] (fp32)."""
    args = (*inputs.head, out, lse2, *inputs.numbers())
    return _launch(attention_fwd_kernel, inputs.q, args, inputs.options("attention_fwd", arch))


def attention_bwd_launches(
    inputs: Inputs, saved: Saved, delta: Tensor, grads: Gradients, arch: Arch | None = None
) -> tuple[Launch, Launch]:
    """Write delta [B, H, N] fp32 and the gradients, in two launches: the first leaves delta for the second."""
    args_q = (*inputs.head, saved.out, saved.lse2, saved.grad_out, delta, grads.q, *inputs.numbers(grads.q))
    args_kv = (*inputs.head, saved.lse2, saved.grad_out, delta, grads.k, grads.v, *inputs.numbers(grads.k, grads.v))
    return (
        _launch(attention_bwd_q_kernel, inputs.q, args_q, inputs.options("attention_bwd_q", arch)),
        _launch(attention_bwd_kv_kernel, inputs.k, args_kv, inputs.options("attention_bwd_kv", arch)),
    )
