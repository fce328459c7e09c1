"""Residual add, size-weighted merge and LayerNorm in one pass over the tokens. Contract: `alt_fast_kernels.merge`.

N tokens of C channels become N' slots. Grids are flat: tiles of ROWS slots lie side by side, then images. A program
holds whole rows, BLOCK_C >= C channels, and sums in fp32. All kernels read the segments, contiguous:

    size [B, N] fp32; order [B, N] and start [B, N' + 1] int32, as `MergePlan` defines them.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.configs import Arch, arch_of, config_of
from alt_fast_kernels.launch import Launch, padded


@triton.jit
def _members(order, start, j, num_slots, valid):
    """Of slots j: the token that keeps each, where in `order` those that join it begin, and how many do."""
    first = tl.load(order + j, mask=valid, other=0)
    begin = tl.load(start + j, mask=valid, other=0)
    count = tl.load(start + j + 1, mask=valid, other=0) - begin
    return first, num_slots + begin, count


@triton.jit
def _row(
    x, residual, token, c, inside, stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL: tl.constexpr
):
    """Rows of x (+ residual) in fp32."""
    at, column = token[:, None].to(tl.int64), c[None, :].to(tl.int64)
    row = tl.load(x + at * stride_n + column * stride_c, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        branch = tl.load(residual + at * residual_stride_n + column * residual_stride_c, mask=inside, other=0.0)
        row += branch.to(tl.float32)
    return row


@triton.jit(do_not_specialize=["num_tokens", "num_slots"])
def merge_fwd_kernel(
    # reads
    x, residual, size, order, start, weight, bias,
    # writes
    out, new_size, normed, moments,
    # strides of x and residual, extents, and LayerNorm's eps
    stride_b, stride_n, stride_c, residual_stride_b, residual_stride_n, residual_stride_c,
    num_tokens, num_slots, channels, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge x + residual into slots, and normalise the slots.

    Reads x and residual [B, N, C] of any strides and floating dtypes (residual only if HAS_RESIDUAL), the segments, and
    if HAS_NORM weight and bias [C] contiguous of any floating dtype.
    Writes, contiguous, out [B, N', C] in its own dtype, new_size [B, N'] fp32, and if HAS_NORM normed [B, N', C] in its
    own dtype and moments [B, N', 2] fp32: mean and 1 / standard deviation of out, which backward needs.
    Grid: B * cdiv(N', ROWS). A program owns ROWS slots of an image.
    """
    tiles = tl.cdiv(num_slots, ROWS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    j = (tl.program_id(0) % tiles) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    valid = j < num_slots
    inside = valid[:, None] & (c[None, :] < channels)
    x += image * stride_b
    if HAS_RESIDUAL:
        residual += image * residual_stride_b
    size += image * num_tokens
    order += image * num_tokens
    start += image * (num_slots + 1)

    first, begin, count = _members(order, start, j, num_slots, valid)
    total = tl.load(size + first, mask=valid, other=1.0)
    mixed = _row(x, residual, first, c, inside, stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL)
    # The mean so far, moved towards every token that joins: one walk, and a token alone passes through bit for bit.
    for i in range(tl.max(count, 0)):
        member = i < count
        token = tl.load(order + begin + i, mask=member, other=0)
        own = tl.load(size + token, mask=member, other=0.0)
        row = _row(
            x, residual, token, c, inside & member[:, None],
            stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL,
        )  # fmt: skip
        before, total = total, total + own
        moved = mixed * (before / total)[:, None] + row * (own / total)[:, None]
        mixed = tl.where((member & (total != 0.0))[:, None], moved, mixed)

    at = image * num_slots + j
    rounded = mixed.to(out.dtype.element_ty)
    tl.store(out + at[:, None] * channels + c[None, :], rounded, mask=inside)
    tl.store(new_size + at, total, mask=valid)
    if HAS_NORM:  # of the merged tokens as stored
        y = rounded.to(tl.float32)
        mu = tl.sum(y, 1) / channels
        centred = tl.where(inside, y - mu[:, None], 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
        gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        shift = tl.load(bias + c, mask=c < channels, other=0.0).to(tl.float32)
        result = centred * inverse[:, None] * gain[None, :] + shift[None, :]
        tl.store(normed + at[:, None] * channels + c[None, :], result.to(normed.dtype.element_ty), mask=inside)
        tl.store(moments + 2 * at, mu, mask=valid)
        tl.store(moments + 2 * at + 1, inverse, mask=valid)


@triton.jit(do_not_specialize=["num_tokens", "num_slots", "num_tiles", "programs"])
def merge_bwd_kernel(
    # reads
    grad_out, grad_normed, out, size, order, start, new_size, weight, moments,
    # writes
    grad_x, partial,
    # extents
    num_tokens, num_slots, channels, num_tiles, programs,
    HAS_OUT: tl.constexpr, HAS_NORM: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_NORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x, which is also the residual's, and each program's part of those of weight and bias.

    Reads the segments, new_size [B, N'] fp32 as `merge_fwd_kernel` wrote it, grad_out [B, N', C] contiguous if HAS_OUT;
    if HAS_NORM also grad_normed [B, N', C], weight, and what `merge_fwd_kernel` wrote: out and moments.
    Writes grad_x [B, N, C] contiguous in its own dtype if NEEDS_X; partial [groups, programs, 2, C] fp32, of weight and
    of bias, if NEEDS_NORM.
    Grid: groups * programs. A group, some images with sums of their own, is num_tiles tiles of ROWS slots; a program
    owns every programs-th tile of its group. Each token has one slot, so each gradient has one writer.
    """
    c = tl.arange(0, BLOCK_C)
    tiles = tl.cdiv(num_slots, ROWS)
    if HAS_NORM:
        gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
    if NEEDS_NORM:
        sum_weight = tl.zeros([BLOCK_C], tl.float32)
        sum_bias = tl.zeros([BLOCK_C], tl.float32)
    # A fixed number of programs walks the tiles, so that each sums its part of the weights' gradient in a fixed order.
    group = tl.program_id(0) // programs
    for step in range(tl.program_id(0) % programs, num_tiles, programs):
        tile = group * num_tiles + step
        image = (tile // tiles).to(tl.int64)
        j = (tile % tiles) * ROWS + tl.arange(0, ROWS)
        valid = j < num_slots
        inside = valid[:, None] & (c[None, :] < channels)
        at = (image * num_slots + j)[:, None] * channels + c[None, :]
        grad = tl.zeros([ROWS, BLOCK_C], tl.float32)
        if HAS_OUT:
            grad += tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            pair = moments + 2 * (image * num_slots + j)
            mu = tl.load(pair, mask=valid, other=0.0)
            inverse = tl.load(pair + 1, mask=valid, other=0.0)
            y = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
            unit = tl.where(inside, (y - mu[:, None]) * inverse[:, None], 0.0)
            upstream = tl.load(grad_normed + at, mask=inside, other=0.0).to(tl.float32)
            if NEEDS_NORM:
                sum_weight += tl.sum(upstream * unit, 0)
                sum_bias += tl.sum(upstream, 0)
            upstream *= gain[None, :]
            along = tl.sum(upstream * unit, 1) / channels
            level = tl.sum(upstream, 1) / channels
            grad += (upstream - level[:, None] - unit * along[:, None]) * inverse[:, None]

        if NEEDS_X:
            tokens = image * num_tokens
            first, begin, count = _members(order + tokens, start + image * (num_slots + 1), j, num_slots, valid)
            own = tl.load(size + tokens + first, mask=valid, other=1.0)
            total = tl.load(new_size + image * num_slots + j, mask=valid, other=1.0)
            # A GPU divides by multiplying with a reciprocal, and own * (1 / own) is not 1 for every size.
            share = tl.where((count == 0) | (total == 0.0), 1.0, own / total)
            to = (tokens + first)[:, None] * channels + c[None, :]
            tl.store(grad_x + to, (grad * share[:, None]).to(grad_x.dtype.element_ty), mask=inside)
            for i in range(tl.max(count, 0)):
                member = i < count
                token = tl.load(order + tokens + begin + i, mask=member, other=0)
                own = tl.load(size + tokens + token, mask=member, other=0.0)
                share = tl.where(total == 0.0, 0.0, own / total)
                to = (tokens + token)[:, None] * channels + c[None, :]
                value = (grad * share[:, None]).to(grad_x.dtype.element_ty)
                tl.store(grad_x + to, value, mask=inside & member[:, None])
    if NEEDS_NORM:
        at = 2 * tl.program_id(0).to(tl.int64) * channels + c
        tl.store(partial + at, sum_weight, mask=c < channels)
        tl.store(partial + at + channels, sum_bias, mask=c < channels)


class Segments(NamedTuple):
    """Which tokens make up every slot, contiguous: size [B, N] fp32; a plan's order [B, N] and start [B, N' + 1]."""

    size: Tensor
    order: Tensor
    start: Tensor


class Norm(NamedTuple):
    """LayerNorm as the forward kernel reads it: weight and bias [C] contiguous."""

    weight: Tensor
    bias: Tensor
    eps: float


class Inputs(NamedTuple):
    """What the forward kernel reads: x and residual [B, N, C] of any strides, segments, and LayerNorm where wanted."""

    x: Tensor
    residual: Tensor | None
    segments: Segments
    norm: Norm | None


class Outputs(NamedTuple):
    """What the forward kernel writes: x' [B, N', C], size' [B, N']; with norm normed [B, N', C], moments [B, N', 2]."""

    out: Tensor
    new_size: Tensor
    normed: Tensor
    moments: Tensor


class NormBackward(NamedTuple):
    """LayerNorm as the backward kernel reads it: grad_normed [B, N', C], weight [C], moments [B, N', 2], contiguous."""

    grad_normed: Tensor
    weight: Tensor
    moments: Tensor


class Gradients(NamedTuple):
    """What the backward kernel writes, where wanted.

    x: [B, N, C]. partial: [groups, programs, 2, C] fp32, parts of the gradients of weight and bias (see
    `backward_programs`) to be summed over programs.
    """

    x: Tensor | None
    partial: Tensor | None


def merge_fwd_launch(inputs: Inputs, outputs: Outputs) -> Launch:
    """Write the outputs; normed and moments only with a norm."""
    x, residual, segments, norm = inputs
    batch, num_tokens, channels = x.shape
    num_slots = segments.start.shape[1] - 1
    options = _forward_options(residual is not None, norm is not None, arch_of(x.device), x.dtype, channels)
    other = x if residual is None else residual  # x stands in for what is not read
    weight, bias, eps = (x, x, 0.0) if norm is None else norm
    numbers = (*x.stride(), *other.stride(), num_tokens, num_slots, channels, eps)
    args = (x, other, *segments, weight, bias, *outputs, *numbers)
    return Launch(merge_fwd_kernel, batch * -(-num_slots // options["ROWS"]), args, options)


def merge_bwd_launch(
    grad_out: Tensor | None,
    out: Tensor,
    new_size: Tensor,
    segments: Segments,
    norm: NormBackward | None,
    grads: Gradients,
) -> Launch:
    """Write the gradients wanted. grad_out (None: zero) and out (x'): [B, N', C] contiguous; new_size: [B, N']."""
    needed = (grad_out is not None, norm is not None, grads.x is not None, grads.partial is not None)
    options = _backward_options(*needed, arch_of(out.device), out.dtype, out.shape[2])
    batch, num_slots, channels = out.shape
    num_tiles = grid = batch * -(-num_slots // options["ROWS"])
    if grads.partial is not None:
        groups, programs = grads.partial.shape[:2]
        num_tiles, grid = num_tiles // groups, groups * programs
    else:
        programs = grid
    upstream, weight, moments = (out, out, out) if norm is None else norm  # out stands in for what is not used
    written = (out if grads.x is None else grads.x, out if grads.partial is None else grads.partial)
    read = (out if grad_out is None else grad_out, upstream, out, *segments, new_size, weight, moments)
    numbers = (segments.order.shape[1], num_slots, channels, num_tiles, programs)
    return Launch(merge_bwd_kernel, grid, (*read, *written, *numbers), options)


@cache
def _forward_options(residual: bool, norm: bool, arch: Arch, dtype: torch.dtype, channels: int) -> dict[str, Any]:
    return {"HAS_RESIDUAL": residual, "HAS_NORM": norm, **_config("merge_fwd", arch, dtype, channels)}


@cache
def _backward_options(
    out: bool, norm: bool, x: bool, weights: bool, arch: Arch, dtype: torch.dtype, channels: int
) -> dict[str, Any]:
    needs = {"HAS_OUT": out, "HAS_NORM": norm, "NEEDS_X": x, "NEEDS_NORM": weights}
    return {**needs, **_config("merge_bwd", arch, dtype, channels)}


def _config(kernel: str, arch: Arch, dtype: torch.dtype, channels: int) -> dict[str, Any]:
    block_c = padded(channels)
    return {"BLOCK_C": block_c, **config_of(kernel, arch, dtype, block_c)}


BACKWARD_PROGRAMS = 512
"""Parts of the LayerNorm weights' gradient: a few programs per multiprocessor, all resident at once."""


def backward_programs(out: Tensor, groups: int) -> int:
    """Return how many programs walk a group of images for the weights' gradient. out: [B, N', C], x'."""
    batch, num_slots, channels = out.shape
    rows = _config("merge_bwd", arch_of(out.device), out.dtype, channels)["ROWS"]
    return min(BACKWARD_PROGRAMS, batch // groups * -(-num_slots // rows))
