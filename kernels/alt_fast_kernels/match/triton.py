"""Bipartite soft matching. Contract: `alt_fast_kernels.match`.

Three ways, by length and number of images, that differ in nothing but time and the last bits of scores:

- a few short images: one launch, a program per image (`match_once_kernel`).
- short images: the first launch reads the keys, all tokens at a time: mean over heads, normalised. The second, a
  program per image, finds the partners and writes the plan (`match_pair_kernel`).
- long images: the first launch as above; the second finds partners, a tile of sources at a time, the destinations
  streamed and split over programs where images are few (`match_best_kernel`); then four sort (sorting.py).

What passes between launches stays in cache. Of N tokens, A are sources and B destinations, not counting the protected
ones: even and odd ones, whose places are arithmetic, or (LISTED) as `listed` int32 has them (`listed_by_side`).
"""

from functools import lru_cache, reduce
from operator import or_
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, cdiv, padded
from alt_fast_kernels.match.plan import ONE_LAUNCH_IMAGES, MergePlan, listed_by_side, sides
from alt_fast_kernels.match.sorting import falling, sides_of, sorting_launches, token_of

SHORT = 128
"""Sources, and destinations, that a program can hold: with more an image is long."""

ONE_LAUNCH_CHANNELS = 64
"""Of a head, that one launch takes: it holds all tokens of an image."""

PROGRAMS = 264
"""Programs of `match_best_kernel` that fill a GPU: two for each of 132 multiprocessors."""


@triton.jit
def _unit_rows(
    key, row, inside_row, stride_h, stride_d, dim,
    UNIT: tl.constexpr, NUM_HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The mean over heads of a token's keys, divided by its norm: [rows, BLOCK_D] fp32, 0 beyond dim and outside.

    row: where each token begins, int64. stride_h and dim are given in units of UNIT, which says that their multiples
    may be loaded UNIT at a time; the other strides are in `row`.
    """
    d = tl.arange(0, BLOCK_D)
    inside = inside_row[:, None] & (d[None, :] < dim * UNIT)
    at = key + row[:, None] + d.to(tl.int64)[None, :] * stride_d
    step = stride_h.to(tl.int64) * UNIT
    mean = tl.zeros([row.shape[0], BLOCK_D], tl.float32)
    for h in tl.static_range(NUM_HEADS):  # unrolled: all loads are under way before the first sum
        mean += tl.load(at + h * step, mask=inside, other=0.0).to(tl.float32)
    mean = mean / NUM_HEADS
    norm = tl.maximum(tl.sqrt(tl.sum(mean * mean, 1)), 1e-12)
    return mean / norm[:, None]


@triton.jit(do_not_specialize=["stride_b", "stride_n", "stride_h", "num_rows", "num_tokens", "dim"])
def match_metric_kernel(
    # reads
    key,
    # writes
    metric,
    # strides of key, and extents
    stride_b, stride_n, stride_h, stride_d,
    num_rows, num_tokens, dim,
    UNIT: tl.constexpr, NUM_HEADS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Compute what is compared: the mean of a token's keys over the heads, divided by its norm.

    Reads key [B, N, H, D] of any floating dtype and strides; all but stride_d, and D, are in units of UNIT.
    Writes metric [B, N, WIDTH >= D] fp32, filled up with zeros.
    Grid: cdiv(B * N, ROWS). A program owns ROWS tokens, whole rows of BLOCK_D >= WIDTH channels.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    token = ((row // num_tokens) * stride_b + (row % num_tokens) * stride_n) * UNIT
    unit = _unit_rows(key, token, row < num_rows, stride_h, stride_d, dim, UNIT, NUM_HEADS, BLOCK_D)
    tl.store(metric + row[:, None] * WIDTH + d[None, :], unit, mask=(row[:, None] < num_rows) & (d[None, :] < WIDTH))


@triton.jit
def _scores(
    metric, source, is_source, destination, is_destination,
    WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr, OTHER: tl.constexpr = 0.0,
):  # fmt: skip
    """Cosines of sources with destinations, rows of an image's metric [N, WIDTH]; BLOCK_C channels at a time.

    OTHER: what places behind the last destination score, 0 or NaN, which spares who asks for it a mask.
    """
    scores = tl.zeros([source.shape[0], destination.shape[0]], tl.float32)
    for c0 in range(0, WIDTH, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        left = tl.load(metric + source[:, None] * WIDTH + c[None, :], mask=is_source[:, None], other=0.0)
        right = tl.load(metric + destination[None, :] * WIDTH + c[:, None], mask=is_destination[None, :], other=OTHER)
        scores = _dot(left, right, PRECISION, scores)
    return scores


@triton.jit
def _tf32(x):
    """fp32 rounded to the ten bits that tensor cores keep of it. Not a number may become one: x - _tf32(x) does not."""
    return ((x.to(tl.int32, bitcast=True) + 0x1000) & ~0x1FFF).to(tl.float32, bitcast=True)


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr, sums=None):
    """left [A, C] @ right [C, B], and sums [A, B] where there are some, fp32. No operand is infinite.

    PRECISION "split": three products in TF32, of the operands' upper halves and of what these leave, as far as that
    matters: Triton's "tf32x3" without what it does for infinities. Most AMD targets have no TF32, so that this must not
    stand behind a return, where Triton compiles it, too.
    """
    if PRECISION == "split":
        upper_left, upper_right = _tf32(left), _tf32(right)
        dot = tl.dot(left - upper_left, upper_right, input_precision="tf32")
        dot = tl.dot(upper_left, right - upper_right, dot, input_precision="tf32")
        dot = tl.dot(upper_left, upper_right, dot, input_precision="tf32")
        dot = dot if sums is None else sums + dot  # which rounds, where tensor cores cut off
    else:
        dot = tl.dot(left, right, sums, input_precision=PRECISION)
    return dot


@triton.jit
def _first_best(score, index):
    """The maximum of every row, at least -2, and the lowest index where it is. Not a number counts as -2."""
    best = tl.max(score, 1)  # not a number only where all are
    first = tl.min(tl.where(score == best[:, None], index, 0x7FFFFFFF), 1)
    return tl.where(best > -2.0, best, -2.0), tl.where(first == 0x7FFFFFFF, 0, first)


@triton.jit(do_not_specialize=["num_tokens", "protected", "num_listed", "splits", "split_size"])
def match_best_kernel(
    # reads
    metric, listed,
    # writes
    proposals,
    # extents
    num_tokens, protected, num_listed, splits, split_size,
    WIDTH: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
    LISTED: tl.constexpr = False,
):  # fmt: skip
    """Find every source's most similar destination: the first of equal ones; not a number counts as -2.

    Reads metric [B, N, WIDTH] fp32. Writes proposals [B, splits, A] int64: falling cosine, then the destination's
    place among them; the smallest over the splits is the proposal.
    Grid: B * cdiv(A, BLOCK_A) * splits. A program owns BLOCK_A sources of an image and streams over split_size
    destinations, BLOCK_B at a time. Each place of the tile keeps its own best: the rows are reduced once, at the end.
    """
    first_source, first_destination, num_sources, num_destinations = sides_of(num_tokens, protected, num_listed, LISTED)
    tiles = tl.cdiv(num_sources, BLOCK_A)
    split = tl.program_id(0) % splits
    image = (tl.program_id(0) // splits // tiles).to(tl.int64)
    a = (tl.program_id(0) // splits % tiles) * BLOCK_A + tl.arange(0, BLOCK_A)
    j = tl.arange(0, BLOCK_B)
    first = split * split_size
    metric += image * num_tokens * WIDTH
    top = tl.full([BLOCK_A, BLOCK_B], float("-inf"), tl.float32)
    tile = tl.full([BLOCK_A, BLOCK_B], 0, tl.int32) + first
    source = token_of(listed, first_source, a, a < num_sources, LISTED)
    for b0 in range(first, tl.minimum(first + split_size, num_destinations), BLOCK_B):
        b = b0 + j
        destination = token_of(listed, first_destination, b, b < num_destinations, LISTED)
        scores = _scores(metric, source, a < num_sources, destination, b < num_destinations, WIDTH, BLOCK_C, PRECISION)
        better = (scores > top) & (b[None, :] < num_destinations)  # false for what is not a number
        top = tl.where(better, scores, top)
        tile = tl.where(better, b0, tile)
    best, partner = _first_best(top, tile + j[None, :])
    at = proposals + (image * splits + split) * num_sources + a
    tl.store(at, falling(best, partner), mask=a < num_sources)


@triton.jit
def _write_plan(
    scores, listed, slot, order, start, num_tokens, r, protected, num_listed,
    BLOCK: tl.constexpr, CHOSEN: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Choose partners by scores [BLOCK, BLOCK] of all sources and destinations, rank by counting, write the plan.

    What is no destination scores NaN. The merged ones are put in order by rank, CHOSEN at a time.
    """
    first_source, first_destination, num_sources, num_destinations = sides_of(num_tokens, protected, num_listed, LISTED)
    num_slots = num_tokens - r
    first_destination_slot = num_slots - num_destinations
    tl.static_assert(BLOCK % CHOSEN == 0)  # so that a rank of no token is never asked for
    i = tl.arange(0, BLOCK)
    best, partner = _first_best(scores, i[None, :])

    is_source = i < num_sources
    number = falling(tl.where(is_source, best, -3.0), i)
    rank = tl.sum((number[None, :] < number[:, None]).to(tl.int32), 1)
    merged = rank < r
    by_partner = tl.where(merged, partner * BLOCK + i, 0x7FFFFFFF)
    joining_before = tl.zeros([BLOCK], tl.int32)
    survivors_before = i
    for k0 in range(0, r, CHOSEN):
        k = k0 + tl.arange(0, CHOSEN)
        chosen = tl.sum(tl.where(rank[None, :] == k[:, None], by_partner[None, :], 0), 1)
        merged_before = tl.sum((by_partner[None, :] < chosen[:, None]).to(tl.int32), 1)
        source = token_of(listed, first_source, chosen % BLOCK, k < r, LISTED)
        tl.store(order + num_slots + merged_before, source, mask=k < r)
        joining = (chosen[:, None] < (i * BLOCK)[None, :]).to(tl.int32)
        before = ((chosen % BLOCK)[:, None] < i[None, :]).to(tl.int32)
        counts = tl.sum(256 * joining + before, 0)  # both in one: neither is more than CHOSEN
        joining_before += counts // 256
        survivors_before -= counts % 256
    own = tl.where(protected == 0, rank - r, protected + survivors_before)  # without protected tokens by falling score

    at_slot = token_of(listed, first_source, i, is_source, LISTED, slot)
    tl.store(at_slot, tl.where(merged, first_destination_slot + partner, own), mask=is_source)
    source = token_of(listed, first_source, i, is_source, LISTED)
    tl.store(order + own, source, mask=is_source & ~merged)
    is_destination = i < num_destinations
    at_slot = token_of(listed, first_destination, i, is_destination, LISTED, slot)
    tl.store(at_slot, first_destination_slot + i, mask=is_destination)
    destination = token_of(listed, first_destination, i, is_destination, LISTED)
    tl.store(order + first_destination_slot + i, destination, mask=is_destination)
    tl.store(start + first_destination_slot + i, joining_before, mask=is_destination)
    tl.store(start + num_slots + i, r, mask=i < 1)
    for j0 in range(0, first_destination_slot, BLOCK):
        j = j0 + i
        tl.store(start + j, 0, mask=j < first_destination_slot)
        tl.store(slot + j, j, mask=j < protected)
        tl.store(order + j, j, mask=j < protected)


@triton.jit(do_not_specialize=["num_tokens", "r", "protected", "num_listed"])
def match_pair_kernel(
    # reads
    metric, listed,
    # writes
    slot, order, start,
    # extents
    num_tokens, r, protected, num_listed,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, CHOSEN: tl.constexpr, PRECISION: tl.constexpr,
    LISTED: tl.constexpr = False,
):  # fmt: skip
    """Find the partners of short images, and write the plan that merges the r best.

    Reads metric [B, N, WIDTH] fp32. Writes slot and order [B, N] and start [B, N - r + 1], int32 contiguous.
    Grid: B. A program owns an image: BLOCK >= A, B.
    """
    image = tl.program_id(0).to(tl.int64)
    first_source, first_destination, num_sources, num_destinations = sides_of(num_tokens, protected, num_listed, LISTED)
    metric += image * num_tokens * WIDTH
    i = tl.arange(0, BLOCK)
    is_source, is_destination = i < num_sources, i < num_destinations
    source = token_of(listed, first_source, i, is_source, LISTED)
    destination = token_of(listed, first_destination, i, is_destination, LISTED)
    scores = _scores(metric, source, is_source, destination, is_destination, WIDTH, BLOCK_C, PRECISION, float("nan"))
    at, start_at = image * num_tokens, image * (num_tokens - r + 1)
    _write_plan(
        scores, listed, slot + at, order + at, start + start_at, num_tokens, r, protected, num_listed, BLOCK, CHOSEN,
        LISTED,
    )  # fmt: skip


@triton.jit(do_not_specialize=["stride_b", "stride_n", "stride_h", "num_tokens", "dim", "r", "protected", "num_listed"])
def match_once_kernel(
    # reads
    key, listed,
    # writes
    slot, order, start,
    # strides of key, and extents
    stride_b, stride_n, stride_h, stride_d,
    num_tokens, dim, r, protected, num_listed,
    UNIT: tl.constexpr, NUM_HEADS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, CHOSEN: tl.constexpr,
    PRECISION: tl.constexpr, LISTED: tl.constexpr = False,
):  # fmt: skip
    """Match short images, few of them: `match_metric_kernel` and `match_pair_kernel` in one launch.

    Reads key as the one, writes what the other writes. Grid: B. A program owns an image: BLOCK >= A, B; BLOCK_D >= D.
    """
    image = tl.program_id(0).to(tl.int64)
    first_source, first_destination, num_sources, num_destinations = sides_of(num_tokens, protected, num_listed, LISTED)
    i = tl.arange(0, BLOCK)
    is_source, is_destination = i < num_sources, i < num_destinations
    source = token_of(listed, first_source, i, is_source, LISTED)
    destination = token_of(listed, first_destination, i, is_destination, LISTED)
    at_source = (image * stride_b + source.to(tl.int64) * stride_n) * UNIT
    at_destination = (image * stride_b + destination.to(tl.int64) * stride_n) * UNIT
    left = _unit_rows(key, at_source, is_source, stride_h, stride_d, dim, UNIT, NUM_HEADS, BLOCK_D)
    right = _unit_rows(key, at_destination, is_destination, stride_h, stride_d, dim, UNIT, NUM_HEADS, BLOCK_D)
    right = tl.where(is_destination[:, None], right, float("nan"))
    scores = _dot(left, tl.trans(right), PRECISION)
    at, start_at = image * num_tokens, image * (num_tokens - r + 1)
    _write_plan(
        scores, listed, slot + at, order + at, start + start_at, num_tokens, r, protected, num_listed, BLOCK, CHOSEN,
        LISTED,
    )  # fmt: skip


class Part(NamedTuple):
    """A launch less its tensors, which come before the numbers."""

    kernel: Any
    grid: int
    numbers: tuple[int | None, ...]
    options: dict[str, Any]

    def of(self, *tensors: Tensor | None) -> Launch:
        """The launch of these tensors."""
        return Launch(self.kernel, self.grid, (*tensors, *self.numbers), self.options)


def match_launches(key: Tensor, protected: int, destinations: Tensor | None, plan: MergePlan) -> tuple[Launch, ...]:
    """Read key [B, N, H, D] of any strides; write the plan's tensors, int32 contiguous. They run in this order.

    destinations: [D] tokens, or None for those of odd index.
    """
    batch, num_tokens, _, dim = key.shape
    slot, order, start, num_slots = plan
    listed, num_listed = None, None
    if destinations is not None:
        listed, num_listed = listed_by_side(destinations, num_tokens, protected).int(), len(destinations)
    arch, r = arch_of(key.device), num_tokens - num_slots
    first, second, proposed = _parts(key.shape, key.stride(), key.dtype, arch, r, protected, num_listed)
    if second is None:
        return (first.of(key, listed, slot, order, start),)
    metric = key.new_empty(batch, num_tokens, _width(dim), dtype=torch.float32)
    if proposed is None:
        return first.of(key, metric), second.of(metric, listed, slot, order, start)
    proposals = key.new_empty(proposed, dtype=torch.int64)
    sorting = sorting_launches(proposals, listed, protected, plan, arch)
    return first.of(key, metric), second.of(metric, listed, proposals), *sorting


@lru_cache(maxsize=1024)
def _parts(
    shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, arch: Arch, r: int, protected: int,
    num_listed: int | None,
) -> tuple[Part, Part | None, tuple[int, int, int] | None]:  # fmt: skip
    """Return what shapes alone decide: the one launch for few images, or two, with the shape of what is then sorted."""
    batch, num_tokens, heads, dim = shape
    _, _, num_sources, num_destinations = sides(num_tokens, protected, num_listed)
    tile = padded(max(num_sources, num_destinations))
    either = {} if num_listed is None else {"LISTED": True}
    *scaled, stride_d = strides
    unit = 8 if reduce(or_, scaled, dim) % 8 == 0 else 1
    in_units = (*(stride // unit for stride in scaled), stride_d)
    of_key = {"UNIT": unit, "NUM_HEADS": heads}
    if tile <= SHORT and batch <= ONE_LAUNCH_IMAGES and dim <= ONE_LAUNCH_CHANNELS:
        config = config_of("match_once", arch, dtype, tile)
        once_numbers = (*in_units, num_tokens, dim // unit, r, protected, num_listed)
        options = {**config, **of_key, "BLOCK": tile, "BLOCK_D": padded(dim), **either}
        return Part(match_once_kernel, batch, once_numbers, options), None, None

    width = _width(dim)
    config = config_of("match_metric", arch, dtype, padded(width))
    options = {**config, **of_key, "BLOCK_D": padded(width), "WIDTH": width}
    metric_numbers = (*in_units, batch * num_tokens, num_tokens, dim // unit)
    first = Part(match_metric_kernel, cdiv(batch * num_tokens, config["ROWS"]), metric_numbers, options)
    if tile <= SHORT:
        config = config_of("match_pair" if width <= 128 else "match_pair_wide", arch, dtype, tile)
        options = {**config, "BLOCK": tile, "BLOCK_C": _channels(config["BLOCK_C"], width), "WIDTH": width, **either}
        return first, Part(match_pair_kernel, batch, (num_tokens, r, protected, num_listed), options), None

    config = config_of("match_best", arch, dtype, width)
    tiles_a, tiles_b = batch * cdiv(num_sources, config["BLOCK_A"]), cdiv(num_destinations, config["BLOCK_B"])
    split = cdiv(tiles_b, min(tiles_b, cdiv(PROGRAMS, max(tiles_a, 1))))  # tiles of destinations in each
    splits = cdiv(tiles_b, split)
    best_numbers = (num_tokens, protected, num_listed, splits, split * config["BLOCK_B"])
    options = {**config, "BLOCK_C": _channels(config["BLOCK_C"], width), "WIDTH": width, **either}
    best = Part(match_best_kernel, tiles_a * splits, best_numbers, options)
    return first, best, (batch, splits, num_sources)


def _channels(most: int, width: int) -> int:
    """Channels of the metric at a time: all where a program holds as many, else some that divide all widths."""
    return width if width <= most else min(most, 32)


def _width(dim: int) -> int:
    """Channels of the metric: whole sectors of memory, and whole chunks of channels."""
    return cdiv(dim, 32) * 32
