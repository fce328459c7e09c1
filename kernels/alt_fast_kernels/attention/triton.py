"""Flash attention in which a key counts `size` times, forward and backward. Contract: `proportional_attention`.

q [B, N, H, D], k and v [B, M, H, D] and their gradients are views with any strides over B, N and H, so no layout is
ever copied. Scores are kept in base 2, for exp2 is the hardware's exponential: so are `scale` (which holds a factor of
log2 e) and `lse2`. All sums are fp32.

A key's weight is multiplied by its size, which costs less than adding the logarithm of it; a key of size 0 is no key at
all. Only the tile behind the last full one, and every tile where a size is 0, must mask keys: `open_keys` says which
need not. Where few rows are left behind the full tiles, they are streamed NARROW at a time, if that is given.

Rotary tables turn queries and keys as they are loaded, and gradients back before they are stored; see `tiles`.

A grid is flat: tiles of BLOCK_M rows (queries, or keys) of a head lie side by side, then heads, then images. Strides
are given in units of UNIT elements: 8, a vector of 16 bytes, wherever all of them allow it.
"""

import math
from functools import cache, lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.attention.rotary import Rotary
from alt_fast_kernels.attention.tiles import (
    added,
    empty_sum,
    load_rows,
    load_tokens,
    open_keys,
    owned,
    products,
    store_gradient,
    store_rows,
    wide_rows,
)
from alt_fast_kernels.configs import SUMS_BY_PRODUCT, Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, cdiv, padded

LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))


@triton.jit
def _dots(
    query, key, size, n, num_k,
    HAS_SIZE: tl.constexpr, ROTARY: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """q k^T of a tile, minus infinity where there is no key, and how often each key counts (unused without sizes)."""
    dots = products(query, key, ROTARY)
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
    query, k, v, size, cos, sin, n, num_k, scale, k_n, v_n, table_n, top, total, mixed,
    HAS_SIZE: tl.constexpr, ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ONES: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: its largest score, sum of weights and weighted sum of values, with keys n."""
    key = load_tokens(k, cos, sin, n, num_k, k_n, table_n, ROTARY, HEAD_DIM, BLOCK_D, MASKED)
    dots, count = _dots(query, key, size, n, num_k, HAS_SIZE, ROTARY, MASKED)
    new_top = tl.maximum(top, tl.max(dots, 1) * scale)
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) if MASKED else new_top  # no key so far
    weights = tl.exp2(dots * scale - shift[:, None])
    if HAS_SIZE:
        weights *= count[None, :]
    fade = tl.exp2(top - shift)
    value = load_rows(v, n, num_k, v_n, HEAD_DIM, BLOCK_D, MASKED)
    rounded = weights.to(value.dtype)
    mixed = tl.dot(rounded, value, mixed * fade[:, None], input_precision="ieee")
    if ONES > 0:
        ones = tl.full([weights.shape[1], ONES], 1.0, tl.float32).to(value.dtype)
        total = tl.dot(rounded, ones, total * fade[:, None], input_precision="ieee")
    else:
        total = total * fade + tl.sum(weights, 1)
    return new_top, total, mixed


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h",
    "num_heads", "num_q", "num_k", "table_b", "table_n", "table_h",
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
    # tables, read if ROTARY, and their strides
    cos, sin, table_b, table_n, table_h,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr = 0, ROTARY: tl.constexpr = "none", ONES: tl.constexpr = 0,
):  # fmt: skip
    """Attend: out = softmax(q k^T * scale + log size) v by an online softmax, and the sums that backward needs.

    Reads q [B, N, H, D], k and v [B, M, H, D] of one dtype, size [B, M] fp32 (only if HAS_SIZE).
    Writes out [B, N, H * D] in that dtype and lse2 [B, H, N] fp32, log2 of each query's sum of weights; for a query
    without keys zeros and plus infinity. scale > 0: the largest product gives the largest score.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time, the last few as `wide_rows` says; BLOCK_D >= D. ONES: columns of ones, a product with which sums the weights,
    rounded as they are for the values; 0: they are added up as they are.
    """
    image, head, m = owned(num_q, num_heads, BLOCK_M)
    k += (image * k_b + head * k_h) * UNIT
    v += (image * v_b + head * v_h) * UNIT
    size += image * num_k
    cos += (image * table_b + head * table_h) * UNIT
    sin += (image * table_b + head * table_h) * UNIT

    q += (image * q_b + head * q_h) * UNIT
    query = load_tokens(
        q, cos, sin, m, num_q, q_n * UNIT, table_n * UNIT, ROTARY, HEAD_DIM, BLOCK_D, True
    )  # fmt: skip
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M, ONES] if ONES > 0 else [BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full = open_keys(size, num_k, HAS_SIZE, BLOCK_N)
    for n0 in range(0, full, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        top, total, mixed = _attend(
            query, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT, table_n * UNIT, top, total, mixed,
            HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, ONES, False,
        )  # fmt: skip
    wide = wide_rows(num_k, BLOCK_N, NARROW)
    for n0 in range(full, wide, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        top, total, mixed = _attend(
            query, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT, table_n * UNIT, top, total, mixed,
            HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, ONES, True,
        )  # fmt: skip
    if NARROW > 0:
        for n0 in tl.range(wide, num_k, NARROW, num_stages=1):
            n = n0 + tl.arange(0, NARROW)
            top, total, mixed = _attend(
                query, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT, table_n * UNIT, top, total, mixed,
                HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, ONES, True,
            )  # fmt: skip

    if ONES > 0:
        total = tl.max(total, 1)  # all columns are the same
    empty = total == 0.0
    mixed *= tl.where(empty, 0.0, 1.0 / total)[:, None]
    packed = (image * num_q * num_heads + head) * HEAD_DIM
    store_rows(out + packed, mixed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D)
    log_total = tl.where(empty, float("inf"), top + tl.log2(total))
    tl.store(lse2 + (image * num_heads + head) * num_q + m, log_total, mask=m < num_q)


@triton.jit
def _grad_q(
    query, upstream, log_total, shift, k, v, size, cos, sin, n, num_k, scale, k_n, v_n, table_n, grad,
    HAS_SIZE: tl.constexpr, ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, with that through keys n added."""
    key = load_tokens(k, cos, sin, n, num_k, k_n, table_n, ROTARY, HEAD_DIM, BLOCK_D, MASKED)
    value = load_rows(v, n, num_k, v_n, HEAD_DIM, BLOCK_D, MASKED)
    dots, count = _dots(query, key, size, n, num_k, HAS_SIZE, ROTARY, MASKED)
    weights = tl.exp2(dots * scale - log_total[:, None])
    if HAS_SIZE:
        weights *= count[None, :]
    grad_weights = tl.dot(upstream, tl.trans(value), input_precision="ieee")
    grad_scores = weights * (grad_weights - shift[:, None])
    return added(grad_scores.to(value.dtype), key, grad, ROTARY)


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h", "gq_b", "gq_n", "gq_h",
    "num_heads", "num_q", "num_k", "table_b", "table_n", "table_h",
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
    # tables, read if ROTARY, and their strides
    cos, sin, table_b, table_n, table_h,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr = 0, ROTARY: tl.constexpr = "none",
):  # fmt: skip
    """Compute the gradient of q, and delta, the weights' mean gradient, which that of k needs.

    Reads what `attention_fwd_kernel` read and wrote, and grad_out [B, N, H * D] contiguous.
    Writes delta [B, H, N] fp32 and grad_q [B, N, H, D] in its own dtype.
    Grid: B * H * cdiv(N, BLOCK_M). A program owns BLOCK_M queries of a head and streams over the keys, BLOCK_N at a
    time, the last few as `wide_rows` says, recomputing their weights from lse2.
    """
    image, head, m = owned(num_q, num_heads, BLOCK_M)
    k += (image * k_b + head * k_h) * UNIT
    v += (image * v_b + head * v_h) * UNIT
    size += image * num_k
    cos += (image * table_b + head * table_h) * UNIT
    sin += (image * table_b + head * table_h) * UNIT

    q += (image * q_b + head * q_h) * UNIT
    query = load_tokens(
        q, cos, sin, m, num_q, q_n * UNIT, table_n * UNIT, ROTARY, HEAD_DIM, BLOCK_D, True
    )  # fmt: skip
    packed = (image * num_q * num_heads + head) * HEAD_DIM
    upstream = load_rows(grad_out + packed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D, True)
    result = load_rows(out + packed, m, num_q, num_heads * HEAD_DIM, HEAD_DIM, BLOCK_D, True)
    # delta = sum over keys of P dP, by the identity of Dao et al. (arXiv 2205.14135, appendix B).
    shift = tl.sum(upstream.to(tl.float32) * result.to(tl.float32), 1)
    row = (image * num_heads + head) * num_q + m
    tl.store(delta + row, shift, mask=m < num_q)
    log_total = tl.load(lse2 + row, mask=m < num_q, other=float("inf"))
    grad = empty_sum(BLOCK_M, BLOCK_D, ROTARY)
    full = open_keys(size, num_k, HAS_SIZE, BLOCK_N)
    for n0 in range(0, full, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        grad = _grad_q(
            query, upstream, log_total, shift, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT,
            table_n * UNIT, grad, HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, False,
        )  # fmt: skip
    wide = wide_rows(num_k, BLOCK_N, NARROW)
    for n0 in range(full, wide, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        grad = _grad_q(
            query, upstream, log_total, shift, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT,
            table_n * UNIT, grad, HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, True,
        )  # fmt: skip
    if NARROW > 0:
        for n0 in tl.range(wide, num_k, NARROW, num_stages=1):
            n = n0 + tl.arange(0, NARROW)
            grad = _grad_q(
                query, upstream, log_total, shift, k, v, size, cos, sin, n, num_k, scale, k_n * UNIT, v_n * UNIT,
                table_n * UNIT, grad, HAS_SIZE, ROTARY, HEAD_DIM, BLOCK_D, True,
            )  # fmt: skip
    grad_q += (image * gq_b + head * gq_h) * UNIT
    factor = scale * LN_2  # back from base 2
    store_gradient(
        grad_q, grad, factor, cos, sin, m, num_q, gq_n * UNIT, table_n * UNIT, ROTARY, HEAD_DIM, BLOCK_D
    )  # fmt: skip


@triton.jit
def _grad_kv(
    key, value, bias, q, cos, sin, grad_out, lse2, delta, m, num_q, scale, q_n, grad_out_n, table_n, sum_k, sum_v,
    ROTARY: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, with those through queries m added."""
    query = load_tokens(q, cos, sin, m, num_q, q_n, table_n, ROTARY, HEAD_DIM, BLOCK_D, MASKED)
    upstream = load_rows(grad_out, m, num_q, grad_out_n, HEAD_DIM, BLOCK_D, MASKED)
    log_total = tl.load(lse2 + m, mask=m < num_q, other=float("inf")) if MASKED else tl.load(lse2 + m)
    shift = tl.load(delta + m, mask=m < num_q, other=0.0) if MASKED else tl.load(delta + m)
    scores = products(key, query, ROTARY) * scale + bias[:, None]
    weights = tl.exp2(scores - log_total[None, :])
    sum_v = tl.dot(weights.to(upstream.dtype), upstream, sum_v, input_precision="ieee")
    grad_weights = tl.dot(value, tl.trans(upstream), input_precision="ieee")
    grad_scores = weights * (grad_weights - shift[None, :])
    sum_k = added(grad_scores.to(upstream.dtype), query, sum_k, ROTARY)
    return sum_k, sum_v


@triton.jit(do_not_specialize=[
    "q_b", "q_n", "q_h", "k_b", "k_n", "k_h", "v_b", "v_n", "v_h", "gk_b", "gk_n", "gk_h", "gv_b", "gv_n", "gv_h",
    "num_heads", "num_q", "num_k", "table_b", "table_n", "table_h",
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
    # tables, read if ROTARY, and their strides
    cos, sin, table_b, table_n, table_h,
    HAS_SIZE: tl.constexpr, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr = 0, ROTARY: tl.constexpr = "none",
):  # fmt: skip
    """Compute the gradients of k and v.

    Reads what `attention_bwd_q_kernel` reads, less out, and the delta that it wrote.
    Writes grad_k and grad_v [B, M, H, D] in their own dtype.
    Grid: B * H * cdiv(M, BLOCK_M). A program owns BLOCK_M keys of a head and streams over the queries, BLOCK_N at a
    time, the last few as `wide_rows` says; every gradient has one owner, so there are no atomics and results repeat
    exactly.
    """
    image, head, n = owned(num_k, num_heads, BLOCK_M)  # keys
    q += (image * q_b + head * q_h) * UNIT
    grad_out += (image * num_q * num_heads + head) * HEAD_DIM
    grad_out_n = num_heads * HEAD_DIM
    lse2 += (image * num_heads + head) * num_q
    delta += (image * num_heads + head) * num_q
    cos += (image * table_b + head * table_h) * UNIT
    sin += (image * table_b + head * table_h) * UNIT

    k += (image * k_b + head * k_h) * UNIT
    key = load_tokens(
        k, cos, sin, n, num_k, k_n * UNIT, table_n * UNIT, ROTARY, HEAD_DIM, BLOCK_D, True
    )  # fmt: skip
    value = load_rows(v + (image * v_b + head * v_h) * UNIT, n, num_k, v_n * UNIT, HEAD_DIM, BLOCK_D, True)
    bias = tl.zeros([BLOCK_M], tl.float32)  # keys beyond the last are not stored
    if HAS_SIZE:  # here a logarithm is needed once, before the loop
        bias = tl.log2(tl.load(size + image * num_k + n, mask=n < num_k, other=1.0))
    sum_k = empty_sum(BLOCK_M, BLOCK_D, ROTARY)
    sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    full = num_q // BLOCK_N * BLOCK_N
    for m0 in range(0, full, BLOCK_N):
        m = m0 + tl.arange(0, BLOCK_N)  # queries
        sum_k, sum_v = _grad_kv(
            key, value, bias, q, cos, sin, grad_out, lse2, delta, m, num_q, scale, q_n * UNIT, grad_out_n,
            table_n * UNIT, sum_k, sum_v, ROTARY, HEAD_DIM, BLOCK_D, False,
        )  # fmt: skip
    wide = wide_rows(num_q, BLOCK_N, NARROW)
    for m0 in range(full, wide, BLOCK_N):
        m = m0 + tl.arange(0, BLOCK_N)
        sum_k, sum_v = _grad_kv(
            key, value, bias, q, cos, sin, grad_out, lse2, delta, m, num_q, scale, q_n * UNIT, grad_out_n,
            table_n * UNIT, sum_k, sum_v, ROTARY, HEAD_DIM, BLOCK_D, True,
        )  # fmt: skip
    if NARROW > 0:
        for m0 in tl.range(wide, num_q, NARROW, num_stages=1):
            m = m0 + tl.arange(0, NARROW)
            sum_k, sum_v = _grad_kv(
                key, value, bias, q, cos, sin, grad_out, lse2, delta, m, num_q, scale, q_n * UNIT, grad_out_n,
                table_n * UNIT, sum_k, sum_v, ROTARY, HEAD_DIM, BLOCK_D, True,
            )  # fmt: skip
    grad_k += (image * gk_b + head * gk_h) * UNIT
    factor = scale * LN_2  # back from base 2
    store_gradient(
        grad_k, sum_k, factor, cos, sin, n, num_k, gk_n * UNIT, table_n * UNIT, ROTARY, HEAD_DIM, BLOCK_D
    )  # fmt: skip
    store_rows(grad_v + (image * gv_b + head * gv_h) * UNIT, sum_v, n, num_k, gv_n * UNIT, HEAD_DIM, BLOCK_D)


class Inputs(NamedTuple):
    """What every kernel reads.

    q [B, N, H, D], k and v [B, M, H, D] with unit stride over D; size [B, M] fp32 contiguous, or None; scale > 0
    of the scores, as users give it. rotary: tables in fp32 or q's 16 bits, of equal strides, unit over D; or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    size: Tensor | None
    scale: float
    rotary: Rotary | None = None

    @property
    def tables(self) -> tuple[tuple[Tensor, Tensor], tuple[int, ...]]:
        """The last tensors of every kernel, and their strides, 0 where one row serves all; q stands in for none."""
        if self.rotary is None:
            return (self.q, self.q), (0, 0, 0)
        cos, sin, _ = self.rotary
        return (cos, sin), tuple(0 if n == 1 else s for n, s in zip(cos.shape[:3], cos.stride()[:3], strict=True))

    def launch(self, kernel: Any, rows: Tensor, args: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> Launch:
        """One program per tile of the tokens of `rows` [B, N, H, D]. grads: written views like q, k and v."""
        q, k, v, size, scale, rotary = self
        tables, table_strides = self.tables
        strides = (q.stride(), k.stride(), v.stride(), *[grad.stride() for grad in grads])
        layout = None if rotary is None else _layout(rotary)
        grid, numbers, table_numbers, options = _by_shape(
            kernel.__name__, arch_of(q.device), q.dtype, size is not None, layout,
            rows.shape, q.shape[1], k.shape[1], strides, table_strides,
        )  # fmt: skip
        head = (q, k, v, q if size is None else size)  # q stands in for a size that is not read
        return Launch(kernel, grid, (*head, *args, scale * LOG2_E, *numbers, *tables, *table_numbers), options)


VECTOR = 8
"""Elements that a thread loads at a time where strides are multiples of it."""


def _layout(rotary: Rotary) -> str:
    """ROTARY of the kernels; see `tiles`."""
    layout = "interleaved" if rotary.interleaved else "halves"
    return f"{layout}_16" if rotary.cos.itemsize == 2 else layout


def height(num_heads: int, num_rows: int, turned: bool) -> str:
    """Name the tiles ("", "_tall", "_tallest") that suit num_rows in num_heads heads of all images: 64, 128, 256 rows.

    Those of 128 cost a program eight fifths of those of 64. Those of 256 cost thirteen fifths, where tokens are turned:
    whatever is streamed is turned anew by every program. There must be two for each multiprocessor, to fill a GPU.
    """
    best, least = "", 5 * cdiv(num_rows, 64)
    for name, rows, cost in (("_tall", 128, 8), ("_tallest", 256, 13))[: 1 + turned]:
        tiles = cdiv(num_rows, rows)
        if cost * tiles < least and num_heads * tiles >= 264:
            best, least = name, cost * tiles
    return best


@lru_cache(maxsize=1024)
def _by_shape(
    kernel: str, arch: Arch, dtype: torch.dtype, has_size: bool, rotary: str | None,
    rows: tuple[int, ...], num_q: int, num_k: int, strides: tuple[tuple[int, ...], ...], table_strides: tuple[int, ...],
) -> tuple[int, tuple[int, ...], tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """Return what of a launch shapes alone decide: its grid, its numbers, those of the tables, and its options."""
    batch, num_rows, num_heads, dim = rows
    flat = [s for stride in strides for s in stride[:3]]
    scaled = (*flat, *table_strides)
    # The kernels multiply by UNIT in 32 bits; strides beyond those are numbers of 64 bits, by 1.
    unit = VECTOR if reduce(or_, scaled, dim) % VECTOR == 0 and max(scaled) < 2**31 else 1
    tall = height(batch * num_heads, num_rows, rotary is not None)
    options = _options(kernel, arch, dtype, dim, unit, has_size, rotary, tall)
    numbers = (*(s // unit for s in flat), num_heads, num_q, num_k)
    grid = batch * num_heads * cdiv(num_rows, options["BLOCK_M"])
    return grid, numbers, tuple(s // unit for s in table_strides), options


@cache
def _options(
    kernel: str, arch: Arch, dtype: torch.dtype, dim: int, unit: int, has_size: bool, rotary: str | None, tall: str
) -> dict[str, Any]:
    """Constexpr parameters and compile options."""
    name, block_d = kernel.removesuffix("_kernel"), padded(dim)
    more: dict[str, Any] = {}
    if kernel == "attention_fwd_kernel" and dtype.itemsize == 2 and (arch, rotary is not None) in SUMS_BY_PRODUCT:
        more["ONES"] = 8
    if rotary is not None:
        name, block_d, more["ROTARY"] = f"{name}_rotary", max(32, block_d), rotary  # halves of 16 at least
    config = config_of(name + tall, arch, dtype, dim)
    return {"HAS_SIZE": has_size, "UNIT": unit, "HEAD_DIM": dim, "BLOCK_D": block_d, **more, **config}


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


def attention_fwd_launch(inputs: Inputs, out: Tensor, lse2: Tensor) -> Launch:
    """Write out [B, N, H * D] and lse2 [B, H, N] (fp32)."""
    return inputs.launch(attention_fwd_kernel, inputs.q, (out, lse2), ())


def attention_bwd_launches(inputs: Inputs, saved: Saved, delta: Tensor, grads: Gradients) -> tuple[Launch, Launch]:
    """Write delta [B, H, N] fp32 and the gradients, in two launches: the first leaves delta for the second."""
    args_q = (saved.out, saved.lse2, saved.grad_out, delta, grads.q)
    args_kv = (saved.lse2, saved.grad_out, delta, grads.k, grads.v)
    return (
        inputs.launch(attention_bwd_q_kernel, inputs.q, args_q, (grads.q,)),
        inputs.launch(attention_bwd_kv_kernel, inputs.k, args_kv, (grads.k, grads.v)),
    )
