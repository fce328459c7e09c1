"""The plan of a long sequence by sorting: runs in fast memory, then places by binary search in every run.

Sort, select, sort, place. The numbers that are sorted are unique, so every order is stable: a proposal is its score
falling, then its index rising; a merged token its partner, then its index.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, config_of
from alt_fast_kernels.launch import Launch, cdiv
from alt_fast_kernels.match.plan import MergePlan

LAST = tl.constexpr(0x7FFFFFFFFFFFFFFF)
"""Behind every number that is sorted."""

INDEX = tl.constexpr(0xFFFFFFFF)
"""The lower half of one: an index."""

RUN = 1024
"""Numbers in a run, at most."""


@triton.jit
def sides_of(num_tokens, protected, num_listed, LISTED: tl.constexpr):
    """`sides` of plan.py; `token_of` tells which token a source or destination is."""
    if LISTED:
        num_sources, num_destinations = num_tokens - protected - num_listed, num_listed
        first_source, first_destination = 0, num_sources
    else:
        first_source, first_destination = protected + protected % 2, protected + 1 - protected % 2
        num_sources, num_destinations = (num_tokens - first_source + 1) // 2, (num_tokens - first_destination + 1) // 2
    return first_source, first_destination, num_sources, num_destinations


@triton.jit
def token_of(listed, first, i, inside, LISTED: tl.constexpr, base=0):
    """base (a pointer, or 0) + the tokens that are sources, or destinations, i, given where these begin."""
    return base + tl.load(listed + first + i, mask=inside, other=0) if LISTED else base + first + 2 * i


@triton.jit
def falling(score, index):
    """int64 that sort by falling score (fp32, no NaN; both zeros are one), then by rising index (int32, >= 0)."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    return ((~rising).to(tl.int64) << 32) | index.to(tl.int64)


@triton.jit
def _rank(runs, num_runs, number, RUN: tl.constexpr, STEPS: tl.constexpr, SEARCHED: tl.constexpr):
    """How many numbers in the sorted runs [num_runs, RUN = 2 ** STEPS] come before each `number`."""
    rank = tl.zeros_like(number).to(tl.int32)
    for k0 in range(0, num_runs, SEARCHED):
        k = k0 + tl.arange(0, SEARCHED)
        at = runs + k[None, :] * RUN - 1
        before = tl.zeros([number.shape[0], SEARCHED], tl.int32)
        for step in tl.static_range(STEPS + 1):
            further = before + (RUN >> step)
            inside = (k[None, :] < num_runs) & (further <= RUN)
            found = tl.load(at + further, mask=inside, other=LAST)
            before = tl.where(found < number[:, None], further, before)
        rank += tl.sum(before, 1)
    return rank


@triton.jit(do_not_specialize=["num", "splits", "num_runs"])
def match_sort_kernel(
    # reads
    numbers,
    # writes
    runs, partner,
    # extents
    num, splits, num_runs,
    PROPOSALS: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Sort runs of RUN numbers, the last one filled up with `LAST`.

    Reads numbers: with PROPOSALS [B, splits, num] int64, of which the smallest over the splits is a token's proposal
    and its lower half the partner, written to partner [B, num] int32; else [B, num] int64 to sort as they are.
    Writes runs [B, num_runs, RUN] int64. Grid: B * num_runs. A program owns a run.
    """
    image = (tl.program_id(0) // num_runs).to(tl.int64)
    run = tl.program_id(0) % num_runs
    i = run * RUN + tl.arange(0, RUN)
    if PROPOSALS:
        number = tl.full([RUN], LAST, tl.int64)
        for split in range(splits):
            number = tl.minimum(number, tl.load(numbers + (image * splits + split) * num + i, mask=i < num, other=LAST))
        tl.store(partner + image * num + i, (number & INDEX).to(tl.int32), mask=i < num)
        number = tl.where(i < num, ((number >> 32) << 32) | i, LAST)
    else:
        number = tl.load(numbers + image * num + i, mask=i < num, other=LAST)
    tl.store(runs + (image * num_runs + run) * RUN + tl.arange(0, RUN), tl.sort(number))


@triton.jit(do_not_specialize=["num_sources", "r", "num_runs"])
def match_select_kernel(
    # reads
    runs, partner,
    # writes
    rank, chosen,
    # extents
    num_sources, r, num_runs,
    RUN: tl.constexpr, STEPS: tl.constexpr, SEARCHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rank the proposals, and choose the r first.

    Reads runs [B, num_runs, RUN] int64 of (falling score, index), and partner [B, A] int32.
    Writes rank [B, A] int32, and chosen [B, r] int64: (partner, index) of those whose rank is below r, by rank.
    Grid: B * cdiv(A, BLOCK). A program owns BLOCK numbers of an image's runs.
    """
    tiles = tl.cdiv(num_sources, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)  # the filling comes last, in the last run
    runs += image * num_runs * RUN
    number = tl.load(runs + i, mask=i < num_sources, other=LAST)
    a = (number & INDEX).to(tl.int32)
    place = _rank(runs, num_runs, number, RUN, STEPS, SEARCHED)
    tl.store(rank + image * num_sources + a, place, mask=i < num_sources)
    mine = tl.load(partner + image * num_sources + a, mask=i < num_sources, other=0)
    chosen_here = (mine.to(tl.int64) << 32) | a.to(tl.int64)
    tl.store(chosen + image * r + place, chosen_here, mask=(i < num_sources) & (place < r))


@triton.jit
def _survivors_before(rank, first, r, BLOCK: tl.constexpr):
    """How many of an image's sources before `first` survive. BLOCK at a time."""
    survivors = tl.zeros([BLOCK], tl.int32)
    for c0 in range(0, first, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        survivors += (tl.load(rank + c, mask=c < first, other=0) >= r).to(tl.int32)
    return tl.sum(survivors, 0)


@triton.jit(do_not_specialize=["num_tokens", "r", "protected", "num_listed", "num_runs"])
def match_place_kernel(
    # reads
    rank, partner, runs, listed,
    # writes
    slot, order, start,
    # extents
    num_tokens, r, protected, num_listed, num_runs,
    RUN: tl.constexpr, STEPS: tl.constexpr, SEARCHED: tl.constexpr, BLOCK: tl.constexpr, COUNTED: tl.constexpr,
    LISTED: tl.constexpr = False,
):  # fmt: skip
    """Write the plan, given the rank of every proposal and the merged tokens by (partner, index).

    Reads rank and partner [B, A] int32, runs [B, num_runs, RUN] int64 of (partner, index), r of them.
    Writes slot and order [B, N] and start [B, N - r + 1], int32 contiguous (`MergePlan`).
    Grid: B * cdiv(N, BLOCK). A program owns BLOCK tokens of each kind.
    """
    tiles = tl.cdiv(num_tokens, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles) * BLOCK
    i = first + tl.arange(0, BLOCK)
    first_source, first_destination, num_sources, num_destinations = sides_of(num_tokens, protected, num_listed, LISTED)
    num_slots = num_tokens - r
    first_destination_slot = num_slots - num_destinations
    rank += image * num_sources
    runs += image * num_runs * RUN
    slot += image * num_tokens
    order += image * num_tokens
    start += image * (num_slots + 1)

    is_source = i < num_sources
    place = tl.load(rank + i, mask=is_source, other=0)
    survives = is_source & (place >= r)
    by_index = (
        _survivors_before(rank, tl.minimum(first, num_sources), r, COUNTED) + tl.cumsum(survives.to(tl.int32), 0) - 1
    )
    own = tl.where(protected == 0, place - r, protected + by_index)  # without protected tokens by falling score
    joined = first_destination_slot + tl.load(partner + image * num_sources + i, mask=is_source, other=0)
    at_slot = token_of(listed, first_source, i, is_source, LISTED, slot)
    tl.store(at_slot, tl.where(survives, own, joined), mask=is_source)
    tl.store(order + own, token_of(listed, first_source, i, is_source, LISTED), mask=survives)

    merged = tl.load(runs + i, mask=i < r, other=LAST)
    before = _rank(runs, num_runs, merged, RUN, STEPS, SEARCHED)
    at_order, a = order + num_slots + before, (merged & INDEX).to(tl.int32)
    tl.store(at_order, token_of(listed, first_source, a, i < r, LISTED), mask=i < r)

    is_destination = i < num_destinations
    joining_before = _rank(runs, num_runs, i.to(tl.int64) << 32, RUN, STEPS, SEARCHED)
    at_slot = token_of(listed, first_destination, i, is_destination, LISTED, slot)
    tl.store(at_slot, first_destination_slot + i, mask=is_destination)
    at_order = order + first_destination_slot + i
    tl.store(at_order, token_of(listed, first_destination, i, is_destination, LISTED), mask=is_destination)
    tl.store(start + first_destination_slot + i, joining_before, mask=is_destination)

    tl.store(start + i, 0, mask=i < first_destination_slot)
    tl.store(start + num_slots + i, r, mask=i < 1)
    tl.store(slot + i, i, mask=i < protected)
    tl.store(order + i, i, mask=i < protected)


@cache
def _sort_options(arch: Arch, num: int) -> dict[str, Any]:
    """RUN and how to launch, to sort `num` numbers."""
    return {**config_of("match_sort", arch, torch.float32, min(num, RUN))}


@cache
def _search_options(arch: Arch, run: int, count: bool) -> dict[str, Any]:
    options = {**config_of("match_search", arch, torch.float32), "RUN": run, "STEPS": run.bit_length() - 1}
    if not count:
        del options["COUNTED"]
    return options


def sorting_launches(
    proposals: Tensor, listed: Tensor | None, protected: int, plan: MergePlan, arch: Arch
) -> tuple[Launch, ...]:
    """Read proposals [B, splits, A] int64 (`falling`), and use them up; write the plan's int32 tensors.

    listed: int32 as of `listed_by_side`, or None where destinations are the tokens of odd index.
    """
    batch, splits, num_sources = proposals.shape
    num_tokens, r = plan.slot.shape[1], plan.slot.shape[1] - plan.num_slots
    by_score, by_partner = _sort_options(arch, num_sources), _sort_options(arch, r)
    num_runs = cdiv(num_sources, by_score["RUN"])
    runs = proposals.new_empty(batch, num_runs * by_score["RUN"])
    partner, rank = plan.slot.new_empty(batch, num_sources), plan.slot.new_empty(batch, num_sources)
    chosen = proposals  # read no more once they are sorted
    select, place = _search_options(arch, by_score["RUN"], False), _search_options(arch, by_partner["RUN"], True)
    num_listed = None
    if listed is not None:
        num_listed, place = num_tokens - protected - num_sources, {**place, "LISTED": True}
    num_chosen_runs = cdiv(r, by_partner["RUN"])  # in the place of the others, never more
    return (
        Launch(
            match_sort_kernel,
            batch * num_runs,
            (proposals, runs, partner, num_sources, splits, num_runs),
            {"PROPOSALS": True, **by_score},
        ),
        Launch(
            match_select_kernel,
            batch * cdiv(num_sources, select["BLOCK"]),
            (runs, partner, rank, chosen, num_sources, r, num_runs),
            select,
        ),
        Launch(
            match_sort_kernel,
            batch * num_chosen_runs,
            (chosen, runs, partner, r, 1, num_chosen_runs),
            {"PROPOSALS": False, **by_partner},
        ),
        Launch(
            match_place_kernel,
            batch * cdiv(num_tokens, place["BLOCK"]),
            (rank, partner, runs, listed, *plan[:3], num_tokens, r, protected, num_listed, num_chosen_runs),
            place,
        ),
    )
