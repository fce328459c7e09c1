"""Flash attention in which a key counts `size` times, forward and backward. Contract: `proportional_attention`.

q [B, N, H, D], k and v [B, M, H, D] and their gradients are views with any strides over B, N and H, so no layout is
ever copied. Scores are kept in base 2, for exp2 is the hardware's exponential: so are `scale` (which holds a factor of
log2 e) and `lse2`. All sums are fp32.

A key's weight is multiplied by its size, which costs less than adding the logarithm of it; a key of size 0 is no key at
all. Only the tile behind the last full one, and every tile where a size is 0, must mask keys: `_open_keys` says which
need not.

A grid is flat: tiles of BLOCK_M rows (queries, or keys) of a head lie side by side, then heads, then images. Strides
are given in units of UNIT elements: 8, a vector of 16 bytes, wherever all of them allow it.
"""

import math
from functools import cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, cdiv, padded

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _owned(num_rows, num_heads, BLOCK_M: tl.constexpr):
    """The image, head and rows [BLOCK_M] that this program owns."""
    tiles = tl.cdiv(num_rows, BLOCK_M)
    image = (tl.program_id(0) // (tiles * num_heads)).to(tl.int64)
    head = ((tl.program_id(0) // tiles) % num_heads).to(tl.int64)
    return image, head, (tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def _rows(x, n, count, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """A tile [BLOCK, BLOCK_D] of one head, zero outside of it. Without MASKED all rows n are inside."""
    d = tl.arange(0, BLOCK_D)
    at = x + n[:, None].to(tl.int64) * stride + d[None, :]
    if MASKED:
        return tl.load(at, mask=(n[:, None] < count) & (d[None, :] < HEAD_DIM), other=0.0)
    if HEAD_DIM < BLOCK_D:
        return tl.load(at, mask=(d < HEAD_DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def _store_rows(x, tile, n, count, stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The counterpart of `_rows`, in the dtype of x."""
    d = tl.arange(0, BLOCK_D)
    at = x + n[:, None].to(tl.int64) * stride + d[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=(n[:, None] < count) & (d[None, :] < HEAD_DIM))


@triton.jit
def _open_keys(size, num_k, HAS_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """How many keys lie in full tiles that need no mask: none, where any size is 0."""
    full = num_k // BLOCK_N * BLOCK_N
    if HAS_SIZE:
        least = tl.full([256], 1.0, tl.float32)
        for n0 in range(0, num_k, 256):
            n = n0 + tl.arange(0, 256)
            least = tl.minimum(least, tl.load(size + n, mask=n < num_k, other=1.0))
        full = tl.where(tl.min(least, 0) > 0, full, 0)
    return full


@triton.jit
def _dots(
    query, key, size, n, num_k,
    HAS_SIZE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """q k^T of a tile, minus infinity where there is no key, and how often each key counts (unused without sizes)."""
    dots = tl.dot(query, tl.trans(key), input_precision="ieee")
    count = n.to(tl.float32)
    if HAS_SIZE:
        count = tl.load(size + n, mask=n < num_k, other=0.0) if MASKED else tl.load(size + n)
        if MASKED:
            dots = tl.where((count > 0)[None, :], dots, float("-inf"))
    elif MASKED:
        dots = tl.where((n < num_k)[None, :], dots, float("-inf"))
    return dots, count


@triton.jit
def _attend(
    query, k, v, size, n, num_k, scale, k_n, v_n, top, total, mixed,
    HAS_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: its largest score, sum of weights and weighted sum of values, with keys n."""
    key = _rows(k, n, num_k, k_n, HEAD_DIM, BLOCK_D, MASKED)
    dots, count = _dots(query, key, size, n, num_k, HAS_SIZE, MASKED)
    new_top = tl.maximum(top, tl.max(dots, 1) * scale)
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top  # no key so far
    weights = tl.exp2(dots * scale - shift[:, None])
    if HAS_SIZE:
        weights *= count[None, :]
    fade = tl.exp2(top - shift)
    value = _rows(v, n, num_k, v_n, HEAD_DIM, BLOCK_D, MASKED)
    mixed = tl.dot(weights.to(value.dtype), value, mixed * fade[:, None], input_precision="ieee")
    return new_top, total * fade + tl.sum(weights, 1), mixed


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h", "num_heads", "num_q", "num_k",
])  # fmt: skip
def attention_fwd_kernel(
    # reads
    q, k, v, size,
    # writes
    out, lse2,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    num_heads, num_q, num_k,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Attend: out = softmax(q k^T * scale + log size) v by an online softmax, and the sums that backward needs.

    Reads q [B, N, H, D], k and v [B, M, H, D] of one dtype, size [B, M] fp32 (only if HAS_SIZE).
    Writes out [B, N, H * D] in that dtype and lse2 [B, H, N] fp32, log2 of each query's sum of weights; for a query
    without keys zeros and plus infinity. scale > 0: the largest product gives the largest score.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time; BLOCK_D >= D.
    """
    image, head, m = _owned(num_q, num_heads, BLOCK_M)
    k += (image * k_b + head * k_h) * UNIT
    v += (image * v_b + head * v_h) * UNIT
    size += image * num_k

    query = _rows(q + (image * q_b + head * q_h) * UNIT, m, num_q, q_n * UNIT, HEAD_DIM, BLOCK_D, True)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    open_keys = _open_keys(size, num_k, HAS_SIZE, BLOCK_N)
    for n0 in range(0, open_keys, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        top, total, mixed = _attend(
            query, k, v, size, n, num_k, scale, k_n * UNIT, v_n * UNIT, top, total, mixed,
            HAS_SIZE, HEAD_DIM, BLOCK_D, False,
        )  # fmt: skip
    for n0 in range(open_keys, num_k, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        top, total, mixed = _attend(
            query, k, v, size, n, num_k, scale, k_n * UNIT, v_n * UNIT, top, total, mixed,
            HAS_SIZE, HEAD_DIM, BLOCK_D, True,
        )  # fmt: skip

    empty = total == 0.0
    mixed *= tl.where(empty, 0.0, 1.0 / total)[:, None]
    packed = (image * num_q * num_heads + head) * HEAD_DIM
    _store_rows(out + packed, mixed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    log_total = tl.where(empty, float("inf"), top + tl.log2(total))
    tl.store(lse2 + (image * num_heads + head) * num_q + m, log_total, mask=m < num_q)


@triton.jit
def _grad_q(
    query, upstream, log_total, shift, k, v, size, n, num_k, scale, k_n, v_n, grad,
    HAS_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, with that through keys n added."""
    key = _rows(k, n, num_k, k_n, HEAD_DIM, BLOCK_D, MASKED)
    value = _rows(v, n, num_k, v_n, HEAD_DIM, BLOCK_D, MASKED)
    dots, count = _dots(query, key, size, n, num_k, HAS_SIZE, MASKED)
    weights = tl.exp2(dots * scale - log_total[:, None])
    if HAS_SIZE:
        weights *= count[None, :]
    grad_weights = tl.dot(upstream, tl.trans(value), input_precision="ieee")
    grad_scores = weights * (grad_weights - shift[:, None])
    return tl.dot(grad_scores.to(key.dtype), key, grad, input_precision="ieee")


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h", "gq_b", "gq_n", "gq_h",
    "num_heads", "num_q", "num_k",
])  # fmt: skip
def attention_bwd_q_kernel(
    # reads
    q, k, v, size, out, lse2, grad_out,
    # writes
    delta, grad_q,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gq_b, gq_n, gq_h,
    num_heads, num_q, num_k,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of q, and delta, the weights' mean gradient, which that of k needs.

    Reads what `attention_fwd_kernel` read and wrote, and grad_out [B, N, H * D] contiguous.
    Writes delta [B, H, N] fp32 and grad_q [B, N, H, D] in its own dtype.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time, recomputing their weights from lse2.
    """
    image, head, m = _owned(num_q, num_heads, BLOCK_M)
    k += (image * k_b + head * k_h) * UNIT
    v += (image * v_b + head * v_h) * UNIT
    size += image * num_k

    query = _rows(q + (image * q_b + head * q_h) * UNIT, m, num_q, q_n * UNIT, HEAD_DIM, BLOCK_D, True)
    packed = (image * num_q * num_heads + head) * HEAD_DIM
    upstream = _rows(grad_out + packed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D, True)
    result = _rows(out + packed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D, True)
    # delta = sum over keys of P dP, by the identity of Dao et al. (arXiv 2205.14135, appendix B).
    shift = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)
    row = (image * num_heads + head) * num_q + m
    tl.store(delta + row, shift, mask=m < num_q)
    log_total = tl.load(lse2 + row, mask=m < num_q, other=float("inf"))
    grad = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    open_keys = _open_keys(size, num_k, HAS_SIZE, BLOCK_N)
    for n0 in range(0, open_keys, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        grad = _grad_q(
            query, upstream, log_total, shift, k, v, size, n, num_k, scale, k_n * UNIT, v_n * UNIT, grad,
            HAS_SIZE, HEAD_DIM, BLOCK_D, False,
        )  # fmt: skip
    for n0 in range(open_keys, num_k, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        grad = _grad_q(
            query, upstream, log_total, shift, k, v, size, n, num_k, scale, k_n * UNIT, v_n * UNIT, grad,
            HAS_SIZE, HEAD_DIM, BLOCK_D, True,
        )  # fmt: skip
    grad *= scale * LN_2  # back from base 2
    _store_rows(grad_q + (image * gq_b + head * gq_h) * UNIT, grad, m, num_q, gq_n * UNIT, HEAD_DIM, BLOCK_D)


@triton.jit
def _grad_kv(
    key, value, bias, q, grad_out, lse2, delta, m, num_q, scale, q_n, grad_out_n, sum_k, sum_v,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, with those through queries m added."""
    query = _rows(q, m, num_q, q_n, HEAD_DIM, BLOCK_D, MASKED)
    upstream = _rows(grad_out, m, num_q, grad_out_n, HEAD_DIM, BLOCK_D, MASKED)
    log_total = tl.load(lse2 + m, mask=m < num_q, other=float("inf")) if MASKED else tl.load(lse2 + m)
    shift = tl.load(delta + m, mask=m < num_q, other=0.0) if MASKED else tl.load(delta + m)
    scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scale + bias[:, None]
    weights = tl.exp2(scores - log_total[None, :])
    sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision="ieee")
    grad_weights = tl.dot(value, tl.trans(upstream), input_precision="ieee")
    grad_scores = weights * (grad_weights - shift[None, :])
    sum_k = tl.dot(grad_scores.to(query.dtype), query, sum_k, input_precision="ieee")
    return sum_k, sum_v


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h", "gk_b", "gk_n", "gk_h", "gv_b", "gv_n", "gv_h",
    "num_heads", "num_q", "num_k",
])  # fmt: skip
def attention_bwd_kv_kernel(
    # reads
    q, k, v, size, lse2, grad_out, delta,
    # writes
    grad_k, grad_v,
    # numbers: strides over image, token and head, and extents
    scale,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, gk_b, gk_n, gk_h, gv_b, gv_n, gv_h,
    num_heads, num_q, num_k,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of k and v.

    Reads what `attention_bwd_q_kernel` reads, less out, and the delta that it wrote.
    Writes grad_k and grad_v [B, M, H, D] in their own dtype.
    Grid: B * H * cdiv(M, BLOCK_M). A program owns BLOCK_M keys of a head and streams over the queries, BLOCK_N at a
    time; every gradient has one owner, so there are no atomics and results repeat exactly.
    """
    image, head, n = _owned(num_k, num_heads, BLOCK_M)  # keys
    q += (image * q_b + head * q_h) * UNIT
    grad_out += (image * num_q * num_heads + head) * HEAD_DIM
    grad_out_n = num_heads * HEAD_DIM
    lse2 += (image * num_heads + head) * num_q
    delta += (image * num_heads + head) * num_q

    key = _rows(k + (image * k_b + head * k_h) * UNIT, n, num_k, k_n * UNIT, HEAD_DIM, BLOCK_D, True)
    value = _rows(v + (image * v_b + head * v_h) * UNIT, n, num_k, v_n * UNIT, HEAD_DIM, BLOCK_D, True)
    bias = tl.zeros([BLOCK_M], tl.float32)  # keys beyond the last are not stored
    if HAS_SIZE:  # here a logarithm is needed once, before the loop
        bias = tl.log2(tl.load(size + image * num_k + n, mask=n < num_k, other=1.0))
    sum_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full = num_q // BLOCK_N * BLOCK_N
    for m0 in range(0, full, BLOCK_N):
        m = m0 + tl.arange(0, BLOCK_N)  # queries
        sum_k, sum_v = _grad_kv(
            key, value, bias, q, grad_out, lse2, delta, m, num_q, scale, q_n * UNIT, grad_out_n, sum_k, sum_v,
            HEAD_DIM, BLOCK_D, False,
        )  # fmt: skip
    for m0 in range(full, num_q, BLOCK_N):
        m = m0 + tl.arange(0, BLOCK_N)
        sum_k, sum_v = _grad_kv(
            key, value, bias, q, grad_out, lse2, delta, m, num_q, scale, q_n * UNIT, grad_out_n, sum_k, sum_v,
            HEAD_DIM, BLOCK_D, True,
        )  # fmt: skip
    sum_k *= scale * LN_2  # back from base 2
    _store_rows(grad_k + (image * gk_b + head * gk_h) * UNIT, sum_k, n, num_k, gk_n * UNIT, HEAD_DIM, BLOCK_D)
    _store_rows(grad_v + (image * gv_b + head * gv_h) * UNIT, sum_v, n, num_k, gv_n * UNIT, HEAD_DIM, BLOCK_D)


class Inputs(NamedTuple):
    """What every kernel reads.

    q [B, N, H, D], k and v [B, M, H, D] with unit stride over D; size [B, M] fp32 contiguous, or None; scale > 0
    of the scores, as users give it.
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

    def launch(
        self, kernel: Any, rows: Tensor, args: tuple[Tensor, ...], grads: tuple[Tensor, ...], arch: Arch | None
    ) -> Launch:
        """One program per tile of the tokens of `rows` [B, N, H, D]. grads: written views like q, k and v."""
        batch, num_rows, num_heads, dim = rows.shape
        strides = [s for x in (self.q, self.k, self.v, *grads) for s in x.stride()[:3]]
        unit = VECTOR if reduce(or_, strides, dim) % VECTOR == 0 else 1
        arch = arch or arch_of(rows.device)
        options = _options(
            kernel.__name__, arch, self.q.dtype, dim, unit, self.size is not None, is_tall(batch * num_heads, num_rows)
        )
        numbers = (num_heads, self.q.shape[1], self.k.shape[1])
        return Launch(
            kernel,
            batch * num_heads * cdiv(num_rows, options["BLOCK_M"]),
            (*self.head, *args, self.scale * LOG2_E, *(s // unit for s in strides), *numbers),
            options,
        )


VECTOR = 8
"""Elements that a thread loads at a time where strides are multiples of it."""


def is_tall(num_heads: int, num_rows: int) -> bool:
    """Return whether tiles of 128 rows beat those of 64, each in num_heads heads of all images.

    They cost a program eight fifths as much, and there must be enough to fill a GPU: two for each multiprocessor.
    """
    tall = cdiv(num_rows, 128)
    return 8 * tall < 5 * cdiv(num_rows, 64) and num_heads * tall >= 264


@cache
def _options(
    kernel: str, arch: Arch, dtype: torch.dtype, dim: int, unit: int, has_size: bool, tall: bool
) -> dict[str, Any]:
    """Constexpr parameters and compile options."""
    name, block_d = kernel.removesuffix("_kernel"), padded(dim)
    config = config_of(f"{name}_tall" if tall else name, arch, dtype, block_d)
    return {"HAS_SIZE": has_size, "UNIT": unit, "HEAD_DIM": dim, "BLOCK_D": block_d, **config}


class Saved(NamedTuple):
    """What the backward kernels read besides: out and its gradient [B, N, H * D] contiguous; lse2 [B, H, N] fp32."""

    out: Tensor
    lse2: Tensor
    grad_out: Tensor


class Gradients(NamedTuple):
    """Where the backward kernels write: views like q, k and v, with unit stride over D."""

    q: Tensor
    k: Tensor
    v: Tensor


def attention_fwd_launch(inputs: Inputs, out: Tensor, lse2: Tensor, arch: Arch | None = None) -> Launch:
    """Write out [B, N, H * D] and lse2 [B, H, N] (fp32)."""
    return inputs.launch(attention_fwd_kernel, inputs.q, (out, lse2), (), arch)


def attention_bwd_launches(
    inputs: Inputs, saved: Saved, delta: Tensor, grads: Gradients, arch: Arch | None = None
) -> tuple[Launch, Launch]:
    """Write delta [B, H, N] fp32 and the gradients, in two launches: the first leaves delta for the second."""
    args_q = (saved.out, saved.lse2, saved.grad_out, delta, grads.q)
    args_kv = (saved.lse2, saved.grad_out, delta, grads.k, grads.v)
    return (
        inputs.launch(attention_bwd_q_kernel, inputs.q, args_q, (grads.q,), arch),
        inputs.launch(attention_bwd_kv_kernel, inputs.k, args_kv, (grads.k, grads.v), arch),
    )
