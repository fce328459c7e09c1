"""Bipartite soft matching in three launches. Contract: `alt_fast_kernels.match`.

The first reads the keys once, all tokens at a time: mean over heads, normalised. The second finds every even token's
best partner, the third ranks them and gives out the slots, one program per image. What passes between stays in cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.launch import Arch, Launch, arch_of, compile_options, padded

BLOCK_A, BLOCK_B, BLOCK_C = 32, 32, 32  # a tile of scores: even tokens by odd tokens, and channels of its operands
BLOCK = 64  # tokens that the third kernel compares with each other


@triton.jit
def match_metric_kernel(
    key, metric,
    stride_b, stride_n, stride_h, stride_d,
    num_rows, num_tokens, dim,
    NUM_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = (row[:, None] < num_rows) & (d[None, :] < dim)
    token = (row // num_tokens) * stride_b + (row % num_tokens) * stride_n
    at = key + token[:, None] + d[None, :] * stride_d
    mean = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for h in tl.static_range(NUM_HEADS):  # unrolled: all loads are under way before the first sum
        mean += tl.load(at + h * stride_h, mask=inside, other=0.0).to(tl.float32)
    mean = mean / NUM_HEADS
    norm = tl.maximum(tl.sqrt(tl.sum(mean * mean, 1)), 1e-12)
    tl.store(metric + row[:, None] * dim + d[None, :], mean / norm[:, None], mask=inside)


@triton.jit
def _parts(num_tokens, protected):
    """Token first_a + 2 * a is even, a < num_a; token first_b + 2 * b odd; both start behind the protected ones."""
    first_a, first_b = protected + protected % 2, protected + 1 - protected % 2
    return first_a, first_b, (num_tokens - first_a + 1) // 2, (num_tokens - first_b + 1) // 2


@triton.jit
def match_best_kernel(
    metric, best, partner,
    num_tokens, dim, protected,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    first_a, first_b, num_a, num_b = _parts(num_tokens, protected)
    tiles = tl.cdiv(num_a, BLOCK_A)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    a = (tl.program_id(0) % tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    metric += image * num_tokens * dim
    top = tl.full([BLOCK_A], float("-inf"), tl.float32)
    who = tl.zeros([BLOCK_A], tl.int32)
    for b0 in range(0, num_b, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        scores = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        for c0 in range(0, dim, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            inside_a = (a[:, None] < num_a) & (c[None, :] < dim)
            inside_b = (b[None, :] < num_b) & (c[:, None] < dim)
            even = tl.load(metric + (first_a + 2 * a[:, None]) * dim + c[None, :], mask=inside_a, other=0.0)
            odd = tl.load(metric + (first_b + 2 * b[None, :]) * dim + c[:, None], mask=inside_b, other=0.0)
            scores = tl.dot(even, odd, scores, input_precision="ieee")
        scores = tl.where(scores == scores, scores, -2.0)  # not a number: below every cosine
        scores = tl.where(b[None, :] < num_b, scores, float("-inf"))
        tile_top, tile_who = tl.max(scores, 1, return_indices=True)  # the first of equal maxima
        better = tile_top > top
        top = tl.where(better, tile_top, top)
        who = tl.where(better, b0 + tile_who, who)
    tl.store(best + image * num_a + a, top, mask=a < num_a)
    tl.store(partner + image * num_a + a, who, mask=a < num_a)


@triton.jit
def match_plan_kernel(
    best, partner, rank, slot, order, start,
    num_tokens, r, protected,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    first_a, first_b, num_a, num_b = _parts(num_tokens, protected)
    num_slots = num_tokens - r
    best += image * num_a
    partner += image * num_a
    rank += image * num_a
    slot += image * num_tokens
    order += image * num_tokens
    start += image * (num_slots + 1)

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
    first_slot_b = num_slots - num_b
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
        tl.store(slot + first_a + 2 * a, tl.where(merged, first_slot_b + mine, own), mask=a < num_a)
        place = tl.where(merged, num_slots + merged_before, own)
        tl.store(order + place, first_a + 2 * a, mask=a < num_a)
    for b0 in range(0, num_b, BLOCK):
        b = b0 + tl.arange(0, BLOCK)
        merged_before = tl.zeros([BLOCK], tl.int32)
        for c0 in range(0, num_a, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            merges = (tl.load(rank + c, mask=c < num_a, other=num_tokens) < r)[None, :]
            other = tl.load(partner + c, mask=c < num_a, other=0)
            merged_before += tl.sum(((other[None, :] < b[:, None]) & merges).to(tl.int32), 1)
        tl.store(slot + first_b + 2 * b, first_slot_b + b, mask=b < num_b)
        tl.store(order + first_slot_b + b, first_b + 2 * b, mask=b < num_b)
        tl.store(start + first_slot_b + b, merged_before, mask=b < num_b)
    tl.store(start + num_slots, r)
    for j0 in range(0, first_slot_b, BLOCK):  # nothing joins the protected tokens and the surviving even ones
        j = j0 + tl.arange(0, BLOCK)
        tl.store(start + j, 0, mask=j < first_slot_b)
        tl.store(slot + j, j, mask=j < protected)
        tl.store(order + j, j, mask=j < protected)


def match_launches(
    key: Tensor, r: int, protected: int, outputs: tuple[Tensor, Tensor, Tensor], arch: Arch | None = None
) -> tuple[Launch, Launch, Launch]:
    """key [B, N, H, D] any strides; writes outputs slot, order [B, N] and start [B, N - r + 1], int32 contiguous."""
    batch, num_tokens, num_heads, dim = key.shape
    num_a = (num_tokens - protected - protected % 2 + 1) // 2
    metric = key.new_empty(batch, num_tokens, dim, dtype=torch.float32)
    best = metric.new_empty(batch, num_a)
    partner, rank = outputs[0].new_empty(2, batch, num_a)
    arch = arch or arch_of(key.device)

    block_d = padded(dim)
    rows = max(1, 2048 // block_d)
    num_rows = batch * num_tokens
    of_metric = Launch(
        match_metric_kernel,
        triton.cdiv(num_rows, rows),
        (key, metric, *key.stride(), num_rows, num_tokens, dim),
        {"NUM_HEADS": num_heads, "ROWS": rows, "BLOCK_D": block_d, **compile_options(arch, num_warps=4, maxnreg=128)},
    )
    tile = {"BLOCK_A": BLOCK_A, "BLOCK_B": BLOCK_B, "BLOCK_C": BLOCK_C}
    of_best = Launch(
        match_best_kernel,
        batch * triton.cdiv(num_a, BLOCK_A),
        (metric, best, partner, num_tokens, dim, protected),
        {**tile, **compile_options(arch, num_warps=4, maxnreg=96)},
    )
    of_plan = Launch(
        match_plan_kernel,
        batch,
        (best, partner, rank, *outputs, num_tokens, r, protected),
        {"BLOCK": BLOCK, **compile_options(arch, num_warps=8)},
    )
    return of_metric, of_best, of_plan
