"""Residual add, size-weighted merge and LayerNorm in one pass over the tokens. Contract: `alt_fast_kernels.merge`.

N tokens of C channels become N' slots. Grids are flat: tiles of ROWS slots lie side by side, then images. A program
holds whole rows, BLOCK_C >= C channels, and sums in fp32. All kernels read the segments, contiguous:

    size [B, N] fp32; order [B, N] and start [B, N' + 1] int32, as `MergePlan` defines them.
"""

from dataclasses import dataclass
from typing import Any

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
def _total_size(own, size, order, begin, count):
    """Summed size of each slot's tokens: the survivor's own, then the merged ones' by index."""
    total = own
    for i in range(tl.max(count, 0)):
        token = tl.load(order + begin + i, mask=i < count, other=0)
        total += tl.load(size + token, mask=i < count, other=0.0)
    return total


@triton.jit
def _row(
    x, residual, token, c, inside, stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL: tl.constexpr
):
    """Rows of x (+ residual) in fp32."""
    at = token[:, None].to(tl.int64)
    row = tl.load(x + at * stride_n + c[None, :] * stride_c, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        branch = tl.load(residual + at * residual_stride_n + c[None, :] * residual_stride_c, mask=inside, other=0.0)
        row += branch.to(tl.float32)
    return row


@triton.jit
def merge_fwd_kernel(
    # reads
    x, residual, size, order, start, weight, bias,
    # writes
    out, new_size, normed, mean, rstd,
    # strides of x and residual, extents, and LayerNorm's eps
    stride_b, stride_n, stride_c, residual_stride_b, residual_stride_n, residual_stride_c,
    num_tokens, num_slots, channels, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Merge x + residual into slots, and normalise the slots.

    Reads x and residual [B, N, C] of any strides and floating dtypes (residual only if HAS_RESIDUAL), the segments, and
    if HAS_NORM weight and bias [C] contiguous of any floating dtype.
    Writes, contiguous, out [B, N', C] in its own dtype, new_size [B, N'] fp32, and if HAS_NORM normed [B, N', C] in its
    own dtype, mean and rstd [B, N'] fp32: the moments of out, which backward needs.
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
    own = tl.load(size + first, mask=valid, other=1.0)
    total = _total_size(own, size, order, begin, count)
    # A share first, then the product: a token alone in its slot has the share 1 and passes through bit for bit.
    share = own / total
    row = _row(x, residual, first, c, inside, stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL)
    mixed = row * share[:, None]
    for i in range(tl.max(count, 0)):
        member = i < count
        token = tl.load(order + begin + i, mask=member, other=0)
        share = tl.load(size + token, mask=member, other=0.0) / total
        row = _row(
            x, residual, token, c, inside & member[:, None],
            stride_n, stride_c, residual_stride_n, residual_stride_c, HAS_RESIDUAL,
        )  # fmt: skip
        mixed += row * share[:, None]

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
        tl.store(mean + at, mu, mask=valid)
        tl.store(rstd + at, inverse, mask=valid)


@triton.jit
def merge_bwd_kernel(
    # reads
    grad_out, grad_normed, out, size, order, start, weight, mean, rstd,
    # writes
    grad_x, grad_weight, grad_bias,
    # extents
    num_tokens, num_slots, channels, num_tiles,
    HAS_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of x, which is also the residual's, and each program's part of those of weight and bias.

    Reads grad_out [B, N', C] contiguous and the segments; if HAS_NORM also grad_normed [B, N', C] and what
    `merge_fwd_kernel` wrote: out, mean and rstd, and weight.
    Writes grad_x [B, N, C] contiguous in its own dtype; if HAS_NORM grad_weight and grad_bias [programs, C] fp32.
    Grid: at most num_tiles = B * cdiv(N', ROWS). A program owns every num_programs-th tile of ROWS slots; each token
    has one slot, so each gradient has one writer.
    """
    c = tl.arange(0, BLOCK_C)
    tiles = tl.cdiv(num_slots, ROWS)
    if HAS_NORM:
        gain = tl.load(weight + c, mask=c < channels, other=0.0).to(tl.float32)
        sum_weight = tl.zeros([BLOCK_C], tl.float32)
        sum_bias = tl.zeros([BLOCK_C], tl.float32)
    # A fixed number of programs walks the tiles, so that each sums its part of the weights' gradient in a fixed order.
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        image = (tile // tiles).to(tl.int64)
        j = (tile % tiles) * ROWS + tl.arange(0, ROWS)
        valid = j < num_slots
        inside = valid[:, None] & (c[None, :] < channels)
        at = (image * num_slots + j)[:, None] * channels + c[None, :]
        grad = tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            mu = tl.load(mean + image * num_slots + j, mask=valid, other=0.0)
            inverse = tl.load(rstd + image * num_slots + j, mask=valid, other=0.0)
            y = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
            unit = tl.where(inside, (y - mu[:, None]) * inverse[:, None], 0.0)
            upstream = tl.load(grad_normed + at, mask=inside, other=0.0).to(tl.float32)
            sum_weight += tl.sum(upstream * unit, 0)
            sum_bias += tl.sum(upstream, 0)
            upstream *= gain[None, :]
            along = tl.sum(upstream * unit, 1) / channels
            level = tl.sum(upstream, 1) / channels
            grad += (upstream - level[:, None] - unit * along[:, None]) * inverse[:, None]

        tokens = image * num_tokens
        first, begin, count = _members(order + tokens, start + image * (num_slots + 1), j, num_slots, valid)
        own = tl.load(size + tokens + first, mask=valid, other=1.0)
        total = _total_size(own, size + tokens, order + tokens, begin, count)
        share = own / total
        to = (tokens + first)[:, None] * channels + c[None, :]
        tl.store(grad_x + to, (grad * share[:, None]).to(grad_x.dtype.element_ty), mask=inside)
        for i in range(tl.max(count, 0)):
            member = i < count
            token = tl.load(order + tokens + begin + i, mask=member, other=0)
            share = tl.load(size + tokens + token, mask=member, other=0.0) / total
            to = (tokens + token)[:, None] * channels + c[None, :]
            value = (grad * share[:, None]).to(grad_x.dtype.element_ty)
            tl.store(grad_x + to, value, mask=inside & member[:, None])
    if HAS_NORM:
        at = tl.program_id(0) * channels + c
        tl.store(grad_weight + at, sum_weight, mask=c < channels)
        tl.store(grad_bias + at, sum_bias, mask=c < channels)


BACKWARD_PROGRAMS = 512  # partial sums of the LayerNorm weights' gradient; a few programs per multiprocessor


@dataclass(frozen=True)
class Segments:
    """Which tokens make up every slot, contiguous: size [B, N] fp32; a plan's order [B, N] and start [B, N' + 1]."""

    size: Tensor
    order: Tensor
    start: Tensor

    @property
    def head(self) -> tuple[Tensor, ...]:
        """Arguments of every kernel."""
        return self.size, self.order, self.start

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, N, N'."""
        batch, num_tokens = self.order.shape
        return batch, num_tokens, self.start.shape[1] - 1


@dataclass(frozen=True)
class Norm:
    """LayerNorm as the forward kernel reads it: weight and bias [C] contiguous."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Inputs:
    """What the forward kernel reads: x and residual [B, N, C] of any strides, segments, and LayerNorm where wanted."""

    x: Tensor
    residual: Tensor | None
    segments: Segments
    norm: Norm | None

    @property
    def head(self) -> tuple[Tensor, ...]:
        """The first arguments; x stands in for what is not read."""
        norm = (self.x, self.x) if self.norm is None else (self.norm.weight, self.norm.bias)
        return self.x, self.x if self.residual is None else self.residual, *self.segments.head, *norm

    @property
    def numbers(self) -> tuple[float, ...]:
        """The last arguments: strides of x and residual, extents and eps."""
        strides = (*self.x.stride(), *(self.x if self.residual is None else self.residual).stride())
        _, num_tokens, num_slots = self.segments.shape
        return *strides, num_tokens, num_slots, self.x.shape[2], 0.0 if self.norm is None else self.norm.eps


@dataclass(frozen=True)
class Outputs:
    """What the forward kernel writes: x' [B, N', C], size' [B, N']; with norm also normed [B, N', C], its moments."""

    out: Tensor
    new_size: Tensor
    normed: Tensor
    mean: Tensor
    rstd: Tensor


@dataclass(frozen=True)
class NormBackward:
    """LayerNorm as the backward kernel sees it.

    Read: grad_normed [B, N', C], weight [C], mean and rstd [B, N'], contiguous. Written: partial [2, programs, C] fp32
    (see `backward_programs`), sums to be added up of the gradients of weight and bias.
    """

    grad_normed: Tensor
    weight: Tensor
    mean: Tensor
    rstd: Tensor
    partial: Tensor


def _options(kernel: str, x: Tensor, arch: Arch | None) -> dict[str, Any]:
    block_c = padded(x.shape[2])
    return {"BLOCK_C": block_c, **config_of(kernel, arch or arch_of(x.device), x.dtype, block_c)}


def merge_fwd_launch(inputs: Inputs, outputs: Outputs, arch: Arch | None = None) -> Launch:
    """Write the outputs; normed, mean and rstd only with a norm."""
    options = {
        "HAS_RESIDUAL": inputs.residual is not None,
        "HAS_NORM": inputs.norm is not None,
        **_options("merge_fwd", inputs.x, arch),
    }
    batch, _, num_slots = inputs.segments.shape
    written = (outputs.out, outputs.new_size, outputs.normed, outputs.mean, outputs.rstd)
    args = (*inputs.head, *written, *inputs.numbers)
    return Launch(merge_fwd_kernel, batch * triton.cdiv(num_slots, options["ROWS"]), args, options)


def merge_bwd_launch(
    grad_out: Tensor,
    out: Tensor,
    segments: Segments,
    norm: NormBackward | None,
    grad_x: Tensor,
    arch: Arch | None = None,
) -> Launch:
    """Write grad_x [B, N, C], and the partial sums of `norm`. grad_out and out (x'): [B, N', C] contiguous."""
    options = {"HAS_NORM": norm is not None, **_options("merge_bwd", out, arch)}
    batch, num_tokens, num_slots = segments.shape
    grid = num_tiles = batch * triton.cdiv(num_slots, options["ROWS"])
    if norm is None:  # tensors that are not read or written
        grads, saved, partial = (grad_out, grad_out), (out, out, out), (out, out)
    else:
        grads, saved = (grad_out, norm.grad_normed), (norm.weight, norm.mean, norm.rstd)
        partial = (norm.partial[0], norm.partial[1])
        grid = norm.partial.shape[1]
    args = (*grads, out, *segments.head, *saved, grad_x, *partial, num_tokens, num_slots, out.shape[2], num_tiles)
    return Launch(merge_bwd_kernel, grid, args, options)


BACKWARD_PROGRAMS = 512  # partial sums of the LayerNorm weights' gradient; a few programs per multiprocessor


def backward_programs(out: Tensor, arch: Arch | None = None) -> int:
    """Return how many programs run backward with LayerNorm for x' like `out`, and so the rows of its partial sums."""
    batch, num_slots, _ = out.shape
    return min(BACKWARD_PROGRAMS, batch * triton.cdiv(num_slots, _options("merge_bwd", out, arch)["ROWS"]))
