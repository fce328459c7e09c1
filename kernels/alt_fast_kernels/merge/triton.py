"""Residual add, size-weighted merge and LayerNorm in one pass over the tokens. Contract: `alt_fast_kernels.merge`."""

import triton
import triton.language as tl
from torch import Tensor

from alt_fast_kernels.launch import Arch, Launch, arch_of, compile_options, padded


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
    x, residual, size, order, start, weight, bias, out, new_size, normed, mean, rstd,
    stride_b, stride_n, stride_c, residual_stride_b, residual_stride_n, residual_stride_c,
    num_tokens, num_slots, channels, eps,
    HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
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
    grad_out, grad_normed, out, size, order, start, weight, mean, rstd, grad_x, grad_weight, grad_bias,
    num_tokens, num_slots, channels, num_tiles,
    HAS_NORM: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
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


def _rows(channels: int) -> int:
    """Rows per program: a tile of 2,048 elements, or one row."""
    return max(1, 2048 // padded(channels))


def _options(channels: int, registers: int, arch: Arch) -> dict[str, int]:
    block_c = padded(channels)
    tile = {"ROWS": _rows(channels), "BLOCK_C": block_c}
    wide = block_c > 2048
    return {**tile, **compile_options(arch, num_warps=8 if wide else 4, maxnreg=255 if wide else registers)}


def merge_fwd_launch(
    x: Tensor,
    residual: Tensor | None,
    plan: tuple[Tensor, Tensor, Tensor],
    norm: tuple[Tensor, Tensor, float] | None,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    arch: Arch | None = None,
) -> Launch:
    """x, residual [B, N, C] any strides; plan: size, order, start, contiguous. norm: weight, bias [C] and eps.

    outputs: x' [B, N', C], size' [B, N'], normed [B, N', C], mean and rstd [B, N'] (three only with norm).
    """
    batch, num_tokens, channels = x.shape
    num_slots = outputs[0].shape[1]
    weight, bias, eps = norm or (x, x, 0.0)
    branch = x if residual is None else residual
    args = (
        *(x, branch, *plan, weight, bias, *outputs, *x.stride(), *branch.stride()),
        *(num_tokens, num_slots, channels, eps),
    )
    kind = {"HAS_RESIDUAL": residual is not None, "HAS_NORM": norm is not None}
    options = {**kind, **_options(channels, 128, arch or arch_of(x.device))}
    return Launch(merge_fwd_kernel, batch * triton.cdiv(num_slots, _rows(channels)), args, options)


def merge_bwd_launch(
    grads: tuple[Tensor, Tensor | None],
    out: Tensor,
    plan: tuple[Tensor, Tensor, Tensor],
    norm: tuple[Tensor, Tensor, Tensor] | None,
    outputs: tuple[Tensor, Tensor, Tensor],
    arch: Arch | None = None,
) -> Launch:
    """grads: of x' and normed, [B, N', C] contiguous. plan: size, order, start. norm: weight, mean, rstd.

    outputs: grad of x [B, N, C], and partial sums [programs, C] of the grads of weight and bias.
    """
    batch, num_slots, channels = out.shape
    num_tokens = plan[0].shape[1]
    num_tiles = batch * triton.cdiv(num_slots, _rows(channels))
    weight, mean, rstd = norm or (out, out, out)
    grad_out, grad_normed = grads
    args = (
        *(grad_out, grad_out if grad_normed is None else grad_normed, out, *plan, weight, mean, rstd, *outputs),
        *(num_tokens, num_slots, channels, num_tiles),
    )
    grid = outputs[1].shape[0] if norm else num_tiles
    options = {"HAS_NORM": norm is not None, **_options(channels, 168, arch or arch_of(out.device))}
    return Launch(merge_bwd_kernel, grid, args, options)


def backward_programs(batch: int, num_slots: int, channels: int) -> int:
    """Programs of the backward kernel with LayerNorm, and so rows of its partial sums."""
    return min(BACKWARD_PROGRAMS, batch * triton.cdiv(num_slots, _rows(channels)))
