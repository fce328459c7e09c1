"""Bipartite soft matching in one program per image. Contract: `alt_fast_kernels.match`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.launch import Arch, Launch, arch_of, compile_options, padded

BLOCK = 32  # tokens per tile; 4 warps hold the score tile and its operands in registers on every target


@triton.jit
def match_kernel(
    key, metric, norm, best, partner, rank, slot, order,
    stride_b, stride_n, stride_h, stride_d,
    num_tokens, num_heads, dim, r, protected,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    # Token first_a + 2 * a is even, token first_b + 2 * b odd; both start behind the protected ones.
    first_a, first_b = protected + protected % 2, protected + 1 - protected % 2
    num_a, num_b = (num_tokens - first_a + 1) // 2, (num_tokens - first_b + 1) // 2
    key += image * stride_b
    metric += image * num_tokens * dim
    norm += image * num_tokens
    slot += image * num_tokens
    order += image * num_tokens
    best += image * num_tokens
    partner += image * num_tokens
    rank += image * num_tokens

    # The mean over heads and its norm, kept in memory: every pair of tiles reads it again (from cache).
    for n0 in range(0, num_tokens, BLOCK):
        n = n0 + tl.arange(0, BLOCK)
        squares = tl.zeros([BLOCK], tl.float32)
        for d0 in range(0, dim, BLOCK_D):
            d = d0 + tl.arange(0, BLOCK_D)
            inside = (n[:, None] < num_tokens) & (d[None, :] < dim)
            at = key + n[:, None].to(tl.int64) * stride_n + d[None, :] * stride_d
            mean = tl.zeros([BLOCK, BLOCK_D], tl.float32)
            for h in range(num_heads):
                mean += tl.load(at + h * stride_h, mask=inside, other=0.0).to(tl.float32)
            mean = mean / num_heads
            squares += tl.sum(mean * mean, 1)
            tl.store(metric + n[:, None] * dim + d[None, :], mean, mask=inside)
        tl.store(norm + n, tl.maximum(tl.sqrt(squares), 1e-12), mask=n < num_tokens)
    tl.debug_barrier()

    # Every even token's most similar odd token.
    for a0 in range(0, num_a, BLOCK):
        a = a0 + tl.arange(0, BLOCK)
        norm_a = tl.load(norm + first_a + 2 * a, mask=a < num_a, other=1.0)
        top = tl.full([BLOCK], float("-inf"), tl.float32)
        who = tl.zeros([BLOCK], tl.int32)
        for b0 in range(0, num_b, BLOCK):
            b = b0 + tl.arange(0, BLOCK)
            norm_b = tl.load(norm + first_b + 2 * b, mask=b < num_b, other=1.0)
            scores = tl.zeros([BLOCK, BLOCK], tl.float32)
            for d0 in range(0, dim, BLOCK_D):
                d = d0 + tl.arange(0, BLOCK_D)
                inside_a = (a[:, None] < num_a) & (d[None, :] < dim)
                inside_b = (b[None, :] < num_b) & (d[:, None] < dim)
                even = tl.load(metric + (first_a + 2 * a[:, None]) * dim + d[None, :], mask=inside_a, other=0.0)
                odd = tl.load(metric + (first_b + 2 * b[None, :]) * dim + d[:, None], mask=inside_b, other=0.0)
                scores = tl.dot(even / norm_a[:, None], odd / norm_b[None, :], scores, input_precision="ieee")
            scores = tl.where(scores == scores, scores, -2.0)  # not a number: below every cosine
            scores = tl.where(b[None, :] < num_b, scores, float("-inf"))
            tile_top, tile_who = tl.max(scores, 1, return_indices=True)  # the first of equal maxima
            better = tile_top > top
            top = tl.where(better, tile_top, top)
            who = tl.where(better, b0 + tile_who, who)
        tl.store(best + a, top, mask=a < num_a)
        tl.store(partner + a, who, mask=a < num_a)
    tl.debug_barrier()

    # Rank of every proposal, by counting those ahead of it: stable, and O(A^2) on at most some hundred values.
    for a0 in range(0, num_a, BLOCK):
        a = a0 + tl.arange(0, BLOCK)
        mine = tl.load(best + a, mask=a < num_a, other=0.0)
        ahead = tl.zeros([BLOCK], tl.int32)
        for c0 in range(0, num_a, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            other = tl.load(best + c, mask=c < num_a, other=float("-inf"))
            first = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (c[None, :] < a[:, None]))
            ahead += tl.sum((first & (c[None, :] < num_a)).to(tl.int32), 1)
        tl.store(rank + a, ahead, mask=a < num_a)
    tl.debug_barrier()

    # Slots. Places are counted too: survivors before a token, and merged tokens before it by (partner, index).
    first_slot_b = protected + num_a - r
    for a0 in range(0, num_a, BLOCK):
        a = a0 + tl.arange(0, BLOCK)
        my_rank = tl.load(rank + a, mask=a < num_a, other=0)
        mine = tl.load(partner + a, mask=a < num_a, other=0)
        survivors_before = tl.zeros([BLOCK], tl.int32)
        merged_before = tl.zeros([BLOCK], tl.int32)
        for c0 in range(0, num_a, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            merges = (tl.load(rank + c, mask=c < num_a, other=num_tokens) < r)[None, :]
            other = tl.load(partner + c, mask=c < num_a, other=0)
            earlier = c[None, :] < a[:, None]
            first = (other[None, :] < mine[:, None]) | ((other[None, :] == mine[:, None]) & earlier)
            survivors_before += tl.sum((earlier & (c[None, :] < num_a) & (merges == 0)).to(tl.int32), 1)
            merged_before += tl.sum((first & merges).to(tl.int32), 1)
        merged = my_rank < r
        own = protected + survivors_before
        if protected == 0:
            own = my_rank - r  # by falling score
        to = tl.where(merged, first_slot_b + mine, own)
        tl.store(slot + first_a + 2 * a, to, mask=a < num_a)
        place = tl.where(merged, num_tokens - r + merged_before, own)
        tl.store(order + place, first_a + 2 * a, mask=a < num_a)
    for b0 in range(0, num_b, BLOCK):
        b = b0 + tl.arange(0, BLOCK)
        tl.store(slot + first_b + 2 * b, first_slot_b + b, mask=b < num_b)
        tl.store(order + first_slot_b + b, first_b + 2 * b, mask=b < num_b)
    for p0 in range(0, protected, BLOCK):
        p = p0 + tl.arange(0, BLOCK)
        tl.store(slot + p, p, mask=p < protected)
        tl.store(order + p, p, mask=p < protected)


def match_launch(key: Tensor, r: int, protected: int, slot: Tensor, order: Tensor, arch: Arch | None = None) -> Launch:
    """key [B, N, H, D] any strides; writes slot and order, [B, N] int32 contiguous."""
    batch, num_tokens, num_heads, dim = key.shape
    metric = key.new_empty(batch, num_tokens, dim, dtype=torch.float32)
    norm = metric.new_empty(batch, num_tokens)
    best = metric.new_empty(batch, num_tokens)
    partner, rank = slot.new_empty(2, batch, num_tokens)
    args = (
        key,
        metric,
        norm,
        best,
        partner,
        rank,
        slot,
        order,
        *key.stride(),
        num_tokens,
        num_heads,
        dim,
        r,
        protected,
    )
    options = compile_options(arch or arch_of(key.device), num_warps=4, maxnreg=128)
    return Launch(match_kernel, batch, args, {"BLOCK": BLOCK, "BLOCK_D": min(64, padded(dim)), **options})
