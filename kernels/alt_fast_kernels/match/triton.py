"""Bipartite soft matching in three launches. Contract: `alt_fast_kernels.match`.

The first reads the keys once, all tokens at a time: mean over heads, normalised. The second finds every even token's
best partner, the third ranks them and gives out the slots, one program per image. What passes between stays in cache.
Of N tokens, A are even and B odd, not counting the protected ones (`even_and_odd`).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, padded
from alt_fast_kernels.match.plan import MergePlan, even_and_odd


@triton.jit
def match_metric_kernel(
    # reads
    key,
    # writes
    metric,
    # strides of key, and extents
    stride_b, stride_n, stride_h, stride_d,
    num_rows, num_tokens, dim,
    NUM_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Compute what is compared: the mean of a token's keys over the heads, divided by its norm.

    Reads key [B, N, H, D] of any floating dtype and strides. Writes metric [B, N, D] fp32 contiguous.
    Grid: cdiv(B * N, ROWS). A program owns ROWS tokens, whole rows of BLOCK_D >= D channels.
    """
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
def _even_and_odd(num_tokens, protected):
    """`even_and_odd` of plan.py: even tokens are first_even + 2 * a, a < num_even; odd ones likewise."""
    first_even, first_odd = protected + protected % 2, protected + 1 - protected % 2
    return first_even, first_odd, (num_tokens - first_even + 1) // 2, (num_tokens - first_odd + 1) // 2


@triton.jit
def match_best_kernel(
    # reads
    metric,
    # writes
    best, partner,
    # extents
    num_tokens, dim, protected,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Find every even token's most similar odd token: the first of equal ones; not a number counts as -2.

    Reads metric [B, N, D] fp32. Writes best [B, A] fp32, the cosine, and partner [B, A] int32, counted among the odd.
    Grid: B * cdiv(A, BLOCK_A). A program owns BLOCK_A even tokens of an image and streams over the odd ones, BLOCK_B at
    a time and BLOCK_C channels at a time.
    """
    first_even, first_odd, num_even, num_odd = _even_and_odd(num_tokens, protected)
    tiles = tl.cdiv(num_even, BLOCK_A)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    a = (tl.program_id(0) % tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    metric += image * num_tokens * dim
    top = tl.full([BLOCK_A], float("-inf"), tl.float32)
    who = tl.zeros([BLOCK_A], tl.int32)
    for b0 in range(0, num_odd, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        scores = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        for c0 in range(0, dim, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            inside_a = (a[:, None] < num_even) & (c[None, :] < dim)
            inside_b = (b[None, :] < num_odd) & (c[:, None] < dim)
            even = tl.load(metric + (first_even + 2 * a[:, None]) * dim + c[None, :], mask=inside_a, other=0.0)
            odd = tl.load(metric + (first_odd + 2 * b[None, :]) * dim + c[:, None], mask=inside_b, other=0.0)
            scores = tl.dot(even, odd, scores, input_precision="ieee")
        scores = tl.where(scores == scores, scores, -2.0)  # not a number: below every cosine
        scores = tl.where(b[None, :] < num_odd, scores, float("-inf"))
        tile_top, tile_who = tl.max(scores, 1, return_indices=True)  # the first of equal maxima
        better = tile_top > top
        top = tl.where(better, tile_top, top)
        who = tl.where(better, b0 + tile_who, who)
    tl.store(best + image * num_even + a, top, mask=a < num_even)
    tl.store(partner + image * num_even + a, who, mask=a < num_even)


@triton.jit
def _write_ranks(best, rank, num_even, BLOCK: tl.constexpr):
    """The rank of every proposal, by counting those ahead of it: stable, and O(A^2) on at most some hundred values."""
    for a0 in range(0, num_even, BLOCK):
        a = a0 + tl.arange(0, BLOCK)
        mine = tl.load(best + a, mask=a < num_even, other=0.0)
        ahead = tl.zeros([BLOCK], tl.int32)
        for c0 in range(0, num_even, BLOCK):
            c = c0 + tl.arange(0, BLOCK)
            other = tl.load(best + c, mask=c < num_even, other=float("-inf"))
            first = (other[None, :] > mine[:, None]) | ((other[None, :] == mine[:, None]) & (c[None, :] < a[:, None]))
            ahead += tl.sum((first & (c[None, :] < num_even)).to(tl.int32), 1)
        tl.store(rank + a, ahead, mask=a < num_even)


@triton.jit
def _count_before(partner, rank, p, a, r, num_even, BLOCK: tl.constexpr):
    """Of even tokens, how many survive before index a, and how many merge before (p, a) by partner and index."""
    survive = tl.zeros([BLOCK], tl.int32)
    merge = tl.zeros([BLOCK], tl.int32)
    for c0 in range(0, num_even, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        merges = (tl.load(rank + c, mask=c < num_even, other=r) < r)[None, :]
        other = tl.load(partner + c, mask=c < num_even, other=0)
        earlier = c[None, :] < a[:, None]
        first = (other[None, :] < p[:, None]) | ((other[None, :] == p[:, None]) & earlier)
        survive += tl.sum((earlier & (c[None, :] < num_even) & (merges == 0)).to(tl.int32), 1)
        merge += tl.sum((first & merges).to(tl.int32), 1)
    return survive, merge


@triton.jit
def _place_even(partner, rank, slot, order, num_tokens, r, protected, BLOCK: tl.constexpr):
    """Slots and order of the even tokens: survivors behind the protected ones, merged ones where their partner is."""
    first_even, _, num_even, num_odd = _even_and_odd(num_tokens, protected)
    num_slots = num_tokens - r
    for a0 in range(0, num_even, BLOCK):
        a = a0 + tl.arange(0, BLOCK)
        my_rank = tl.load(rank + a, mask=a < num_even, other=0)
        mine = tl.load(partner + a, mask=a < num_even, other=0)
        survivors_before, merged_before = _count_before(partner, rank, mine, a, r, num_even, BLOCK)
        merged = my_rank < r
        own = protected + survivors_before
        if protected == 0:
            own = my_rank - r  # by falling score
        tl.store(slot + first_even + 2 * a, tl.where(merged, num_slots - num_odd + mine, own), mask=a < num_even)
        place = tl.where(merged, num_slots + merged_before, own)
        tl.store(order + place, first_even + 2 * a, mask=a < num_even)


@triton.jit
def _place_odd(partner, rank, slot, order, start, num_tokens, r, protected, BLOCK: tl.constexpr):
    """Slots and order of the odd tokens, the last ones, and where those that join each begin."""
    _, first_odd, num_even, num_odd = _even_and_odd(num_tokens, protected)
    first_slot = num_tokens - r - num_odd
    for b0 in range(0, num_odd, BLOCK):
        b = b0 + tl.arange(0, BLOCK)
        _survivors, merged_before = _count_before(partner, rank, b, tl.zeros([BLOCK], tl.int32), r, num_even, BLOCK)
        tl.store(slot + first_odd + 2 * b, first_slot + b, mask=b < num_odd)
        tl.store(order + first_slot + b, first_odd + 2 * b, mask=b < num_odd)
        tl.store(start + first_slot + b, merged_before, mask=b < num_odd)
    tl.store(start + num_tokens - r, r)


@triton.jit
def _place_protected(slot, order, start, num_tokens, r, protected, BLOCK: tl.constexpr):
    """Slots and order of the protected tokens. Nothing joins them, nor the surviving even ones."""
    _, _, _, num_odd = _even_and_odd(num_tokens, protected)
    first_odd_slot = num_tokens - r - num_odd
    for j0 in range(0, first_odd_slot, BLOCK):
        j = j0 + tl.arange(0, BLOCK)
        tl.store(start + j, 0, mask=j < first_odd_slot)
        tl.store(slot + j, j, mask=j < protected)
        tl.store(order + j, j, mask=j < protected)


@triton.jit
def match_plan_kernel(
    # reads
    best, partner,
    # working space
    rank,
    # writes
    slot, order, start,
    # extents
    num_tokens, r, protected,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rank the proposals and write the plan that merges the r best.

    Reads best [B, A] fp32 and partner [B, A] int32; rank [B, A] int32 is working space.
    Writes slot and order [B, N] and start [B, N - r + 1], int32 contiguous (`MergePlan`).
    Grid: B. A program owns an image and counts places, BLOCK tokens against BLOCK at a time.
    """
    image = tl.program_id(0).to(tl.int64)
    _, _, num_even, _ = _even_and_odd(num_tokens, protected)
    best += image * num_even
    partner += image * num_even
    rank += image * num_even
    slot += image * num_tokens
    order += image * num_tokens
    start += image * (num_tokens - r + 1)

    _write_ranks(best, rank, num_even, BLOCK)
    tl.debug_barrier()  # from here on threads read each other's ranks
    _place_even(partner, rank, slot, order, num_tokens, r, protected, BLOCK)
    _place_odd(partner, rank, slot, order, start, num_tokens, r, protected, BLOCK)
    _place_protected(slot, order, start, num_tokens, r, protected, BLOCK)


def match_launches(
    key: Tensor, protected: int, plan: MergePlan, arch: Arch | None = None
) -> tuple[Launch, Launch, Launch]:
    """Read key [B, N, H, D] of any strides; write the plan's tensors, int32 contiguous. They run in this order."""
    batch, num_tokens, num_heads, dim = key.shape
    num_even = even_and_odd(num_tokens, protected).num_even
    metric = key.new_empty(batch, num_tokens, dim, dtype=torch.float32)
    best = metric.new_empty(batch, num_even)
    partner, rank = plan.slot.new_empty(2, batch, num_even)
    arch = arch or arch_of(key.device)

    block_d, num_rows = padded(dim), batch * num_tokens
    metric_config = config_of("match_metric", arch, key.dtype, block_d)
    metric_launch = Launch(
        match_metric_kernel,
        triton.cdiv(num_rows, metric_config["ROWS"]),
        (key, metric, *key.stride(), num_rows, num_tokens, dim),
        {"NUM_HEADS": num_heads, "BLOCK_D": block_d, **metric_config},
    )
    best_config = config_of("match_best", arch, key.dtype)
    best_launch = Launch(
        match_best_kernel,
        batch * triton.cdiv(num_even, best_config["BLOCK_A"]),
        (metric, best, partner, num_tokens, dim, protected),
        {**best_config},
    )
    plan_launch = Launch(
        match_plan_kernel,
        batch,
        (best, partner, rank, *plan[:3], num_tokens, num_tokens - plan.num_slots, protected),
        {**config_of("match_plan", arch, key.dtype)},
    )
    return metric_launch, best_launch, plan_launch
