"""What alignment does token by token around its products over the corpus: little to compute, all bound by memory.

A program owns ROWS tokens and walks their channels, BLOCK_C at a time; tensors are contiguous, C a multiple of BLOCK_C.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.align.triton import mix
from alt_fast_kernels.configs import arch_of, config_of
from alt_fast_kernels.launch import Launch, cdiv

LN_2 = tl.constexpr(math.log(2))
TINY = tl.constexpr(1e-12)  # the least norm; a token of zeros has cosine 0 with everything


@triton.jit
def _owned(num_rows, ROWS: tl.constexpr):
    """The rows of this program, the last of all in place of what lies beyond, and which lie within."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return tl.minimum(row, num_rows - 1).to(tl.int64), row < num_rows


@triton.jit(do_not_specialize=["num_rows", "num_out"])
def align_norm_kernel(
    x, out, scale, num_rows, num_out, width, PACKED: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write scale / norm of the rows of x [M, C], fp32, to out, of which those beyond M take the last row's.

    PACKED: out is int64, and they are its lower halves; the upper ones take what an entity puts into the noise's hash.
    """
    at, inside = _owned(num_out, ROWS)
    row = tl.minimum(at, num_rows - 1)
    squares = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for c0 in range(0, width, BLOCK_C):
        tile = tl.load(x + row[:, None] * width + c0 + tl.arange(0, BLOCK_C)[None, :]).to(tl.float32)
        squares += tile * tile
    norm = tl.maximum(tl.sqrt(tl.sum(squares, 1)), TINY)
    found = scale / norm
    if PACKED:
        bits = mix(at.to(tl.uint32) + tl.full([], 0x9E3779B9, tl.uint32))
        found = (bits.to(tl.int64) << 32) | found.to(tl.uint32, bitcast=True).to(tl.int64)
    tl.store(out + at, found, mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def align_pick_kernel(
    # reads
    entities, best, index, lse,
    # writes
    aligned, chosen, stats,
    # extents
    num_tokens, width, splits,
    ROWS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Choose between the parts of the corpus, and look the entity up.

    Reads entities [K, C], and best, index and lse [splits, M], which the forward kernel wrote.
    Writes aligned [M, C] in their dtype, chosen [M] int64 and stats [M, 2] fp32: see `align_op`.
    """
    row, inside = _owned(num_tokens, ROWS)
    part = tl.arange(0, SPLITS)
    at = part[None, :].to(tl.int64) * num_tokens + row[:, None]
    there = (part < splits)[None, :]
    logit = tl.load(best + at, mask=there, other=float("-inf"))
    logit_of_best = tl.max(logit, 1)
    first = tl.min(tl.where(logit == logit_of_best[:, None], part[None, :], SPLITS), 1)  # lower parts win a tie
    first = tl.minimum(first, splits - 1)  # of what is no number
    who = tl.load(index + first.to(tl.int64) * num_tokens + row).to(tl.int64)
    sums = tl.load(lse + at, mask=there, other=float("-inf"))
    top = tl.max(sums, 1)
    total = top + tl.log2(tl.sum(tl.exp2(sums - top[:, None]), 1))
    tl.store(chosen + row, who, mask=inside)
    tl.store(stats + 2 * row, total, mask=inside)
    tl.store(stats + 2 * row + 1, tl.exp2(logit_of_best - total), mask=inside)
    for c0 in range(0, width, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)[None, :]
        tl.store(aligned + row[:, None] * width + c, tl.load(entities + who[:, None] * width + c), mask=inside[:, None])


@triton.jit(do_not_specialize=["num_tokens"])
def align_pivot_kernel(
    # reads
    grad_out, entities, mean, chosen, stats,
    # writes
    pivot,
    # extents
    num_tokens, width,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Guess the weights' mean gradient: as sure as the choice is, that of the entity chosen, else of the mean entity.

    Reads grad_out [M, C] and entities [K, C], mean [C] fp32, chosen [M] int64 and stats [M, 2]. Writes pivot [M] fp32.
    """
    row, inside = _owned(num_tokens, ROWS)
    who = tl.load(chosen + row)
    of_chosen = tl.zeros([ROWS, BLOCK_C], tl.float32)
    of_mean = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for c0 in range(0, width, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        grad = tl.load(grad_out + row[:, None] * width + c[None, :]).to(tl.float32)
        of_chosen += grad * tl.load(entities + who[:, None] * width + c[None, :]).to(tl.float32)
        of_mean += grad * tl.load(mean + c)[None, :]
    sure = tl.load(stats + 2 * row + 1)
    guess = tl.sum(of_mean, 1)
    tl.store(pivot + row, guess + sure * (tl.sum(of_chosen, 1) - guess), mask=inside)


@triton.jit(do_not_specialize=["num_tokens"])
def align_finish_kernel(
    # reads
    tokens, factor, sums, totals,
    # writes
    grad,
    # numbers
    num_tokens, width, tau,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of tokens from the sums over the corpus.

    Reads tokens [M, C]; factor [M], log2(e) / (norm * tau); sums [2, M, C] and totals [2, M] fp32, of
    `align_backward_op`. Writes grad [M, C] in the tokens' dtype: that of the unit token, through the normalisation, of
    which the part along the token does not change its cosine.
    """
    row, inside = _owned(num_tokens, ROWS)
    plane = num_tokens.to(tl.int64)
    total = tl.load(totals + plane + row)  # 1 but for the rounding of lse, which is divided out
    delta = tl.load(totals + row) / total
    to_token = tl.load(factor + row) * LN_2  # 1 / (norm * tau)
    length = to_token * tau
    along = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for c0 in range(0, width, BLOCK_C):
        at = row[:, None] * width + c0 + tl.arange(0, BLOCK_C)[None, :]
        direction = tl.load(sums + at) - delta[:, None] * tl.load(sums + plane * width + at)
        along += direction * tl.load(tokens + at).to(tl.float32)
    share = tl.sum(along, 1) * length * length
    for c0 in range(0, width, BLOCK_C):
        at = row[:, None] * width + c0 + tl.arange(0, BLOCK_C)[None, :]
        direction = tl.load(sums + at) - delta[:, None] * tl.load(sums + plane * width + at)
        across = direction - tl.load(tokens + at).to(tl.float32) * share[:, None]
        found = across * (to_token / total)[:, None]
        tl.store(grad + at, found.to(grad.dtype.element_ty), mask=inside[:, None])


def norm_launch(x: Tensor, scale: float, out: Tensor) -> Launch:
    """Write out, scale / norm of the rows of x [M, C] in fp32, or int64 (see the kernel); norms are 1e-12 at least."""
    args = (x, out, scale, len(x), len(out), x.shape[1])
    return _launch(align_norm_kernel, len(out), args, x, PACKED=out.dtype == torch.int64)


def pick_launch(
    entities: Tensor, parts: tuple[Tensor, Tensor, Tensor], aligned: Tensor, chosen: Tensor, stats: Tensor
) -> Launch:
    """Write aligned [M, C], chosen [M] int64 and stats [M, 2] fp32.

    parts: best, index and lse [splits, M], of the parts of the corpus.
    """
    splits = len(parts[0])
    args = (entities, *parts, aligned, chosen, stats, *aligned.shape, splits)
    return _launch(align_pick_kernel, len(aligned), args, aligned, SPLITS=1 << (splits - 1).bit_length())


def pivot_launch(
    grad_out: Tensor, entities: Tensor, mean: Tensor, chosen: Tensor, stats: Tensor, pivot: Tensor
) -> Launch:
    """Write pivot [M] fp32. mean: of the entities, [C] fp32."""
    args = (grad_out, entities, mean, chosen, stats, pivot, *grad_out.shape)
    return _launch(align_pivot_kernel, len(grad_out), args, grad_out)


def finish_launch(tokens: Tensor, factor: Tensor, sums: Tensor, totals: Tensor, tau: float, grad: Tensor) -> Launch:
    """Write grad [M, C]."""
    args = (tokens, factor, sums, totals, grad, *tokens.shape, tau)
    return _launch(align_finish_kernel, len(tokens), args, tokens)


def _launch(kernel: Any, num_rows: int, args: tuple[Any, ...], tokens: Tensor, **options: int) -> Launch:
    config = config_of("align_rows", arch_of(tokens.device), tokens.dtype)
    return Launch(kernel, cdiv(num_rows, config["ROWS"]), args, {**options, **config})
