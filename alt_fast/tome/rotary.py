"""Rotary positions of merged tokens: where a token stands whose patches stood in several places.

A patch at position p turns queries and keys by R(p). What should turn a token that stands for patches at p_1 ... p_n?
The true sum of their weights is, to first order in how far they lie apart, n exp(q^T mean_i R(p_i) k): the rotation
`mean`, which is a turn by the mean angle that also shrinks where the angles disagree, with log n as the bias.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alt_fast.errors import ArgumentError
from alt_fast.tome.rules import RotaryRule
from alt_fast_kernels import MergePlan, Rotary, merge
from alt_fast_kernels.checks import may_read_values

AXES = 3
"""Of a grid: frames, rows and columns."""

NEAR = 0.5
"""Radians that turns may differ by and count as equal. Rounding a table to bf16 moves them by less than 0.01, rounding
angles below 64 to it by less than 0.3. Where a row ends, some pair of channels jumps by more; where none does, all turn
so slowly that they can be followed past it."""


class Turns(NamedTuple):
    """What is merged instead of a position.

    In the tokens' dtype where the host's tables have it too, except for `centroid`; else in fp32 (fp64 tokens: fp64).

    table: [1 or B, N, 1 or H, 2 * D], cos and sin side by side, prefix tokens first; for `centroid` [.., D], angles.
    """

    table: Tensor
    interleaved: bool


def begin(rotary: Rotary, num_tokens: int, protected: int, dtype: torch.dtype, rule: RotaryRule) -> Turns:
    """Return the turns of tokens that nothing has merged; tables without the prefix tokens get them.

    num_tokens: with the prefix. protected: tokens of the prefix. dtype: of the tokens.

    Raises ArgumentError when the tables hold neither all tokens nor all but the prefix, and for `centroid` when the
    patches' are not those of a grid (`_unwrapped`).
    """
    if rule == "centroid" or not rotary.cos.dtype == rotary.sin.dtype == dtype:
        dtype = torch.promote_types(dtype, torch.float32)
    cos, sin = rotary.cos.to(dtype), rotary.sin.to(dtype)
    missing = num_tokens - cos.shape[1]
    if missing not in (0, protected):
        raise ArgumentError(
            f"rotary positions of {cos.shape[1]} tokens do not fit {num_tokens} tokens, {protected} of them a prefix"
        )
    if missing:  # a turn by no angle
        still = cos.new_zeros(cos.shape[0], missing, *cos.shape[2:])
        cos, sin = torch.cat((still + 1, cos), 1), torch.cat((still, sin), 1)
    if rule != "centroid":
        return Turns(torch.cat((cos, sin), -1), rotary.interleaved)
    angle = torch.atan2(sin, cos)
    patches = _unwrapped(angle[:, protected:])
    return Turns(torch.cat((angle[:, :protected], patches), 1), rotary.interleaved)


def rotation(turns: Turns, rule: RotaryRule) -> Rotary:
    """Return what attention turns queries and keys by."""
    table, interleaved = turns
    if rule == "centroid":
        return Rotary(table.cos(), table.sin(), interleaved)
    if rule == "unit":
        wide = table.to(torch.promote_types(table.dtype, torch.float32)).unflatten(-1, (2, -1))
        length = torch.hypot(*wide.unbind(-2)).clamp(min=torch.finfo(wide.dtype).tiny)
        table = (wide / length[..., None, :]).flatten(-2).to(table.dtype)
    cos, sin = table.chunk(2, -1)
    return Rotary(cos, sin, interleaved)


def merge_turns(turns: Turns, size: Tensor, plan: MergePlan, rule: RotaryRule) -> Turns:
    """Merge turns as the tokens, whose sizes [B, N] are those before the merge, or what they weigh in its place."""
    table = with_empty(turns.table.expand(size.shape[0], *turns.table.shape[1:]), plan)
    size = with_empty(size, plan)
    if rule == "survivor":
        kept = plan.order[:, : plan.num_slots].long()
        table = table.gather(1, kept[:, :, None, None].expand(-1, -1, *table.shape[2:]))
    else:
        table = merge(table.flatten(2), size, plan)[0].unflatten(2, table.shape[2:])
    return turns._replace(table=table)


def with_empty(x: Tensor, plan: MergePlan) -> Tensor:
    """x [B, N, ...], and zeros behind it for as many tokens as the plan has more."""
    more = plan.slot.shape[1] - x.shape[1]
    return torch.cat((x, x.new_zeros(x.shape[0], more, *x.shape[2:])), 1) if more else x


def _summed(steps: Tensor) -> Tensor:
    """Running sums of angles, in whole numbers: others PyTorch refuses on a GPU where all is to be deterministic."""
    return (steps * 2.0**32).round().long().cumsum(1).to(steps.dtype) * 2.0**-32


def _unwrapped(angle: Tensor) -> Tensor:
    """Angles [B, N, H, D] of the patches of a grid in raster order, beyond whole turns: even along each of its axes.

    A table holds angles up to whole turns, which a mean must know. Along the first line of each axis they are followed
    step by step, none of which may turn by half a turn or more; an axis ends where a step is not as the first. The
    lines predict all others, and thus their whole turns, which alone are added. So a table keeps its angles, however
    it is rounded, and nothing is read on the host.

    Raises ArgumentError, on a GPU the device's error, when the predictions fail.
    """
    num_tokens = angle.shape[1]
    if num_tokens < 2:
        return angle
    known, token = angle.detach(), torch.arange(num_tokens, device=angle.device)
    stride = torch.ones_like(known[:, 0, 0, 0], dtype=torch.int64)[:, None]  # [B, 1], between neighbours on an axis
    left = stride * num_tokens  # [B, 1], tokens that far apart
    predicted = known[:, :1]
    for _ in range(AXES):
        line = _at(known, (token * stride).clamp(max=num_tokens - 1))
        steps = _wrapped(line.diff(dim=1))
        uneven = _wrapped(steps - steps[:, :1])
        ends = (uneven.abs() > NEAR).flatten(2).any(-1) & (token[1:] < left)  # [B, N - 1]
        length = torch.where(ends.any(1, keepdim=True), ends.int().argmax(1, keepdim=True) + 1, left)
        line = torch.cat((torch.zeros_like(predicted[:, :1]), _summed(steps[:, :1] + uneven)), 1)
        predicted = predicted + _at(line, token // stride % length)
        stride, left = stride * length, (left + length - 1) // length
    turns = torch.round((predicted - known) / (2 * torch.pi))
    _check_near(predicted, known + 2 * torch.pi * turns)
    return angle + 2 * torch.pi * turns


def _at(x: Tensor, index: Tensor) -> Tensor:
    """x [B, N, H, D] at the tokens index [B, N]."""
    return x.gather(1, index[:, :, None, None].expand_as(x))


def _check_near(predicted: Tensor, found: Tensor) -> None:
    near = ((predicted - found).abs() < NEAR).all()
    message = (
        "rotary='centroid' needs positions of patches in rows and columns, each of which turns by as much as the one "
        "before it, and by less than half a turn; these are not: take another rule"
    )
    if not may_read_values(near):
        torch._assert_async(near, message)
    elif not bool(near):
        raise ArgumentError(message)


def _wrapped(angle: Tensor) -> Tensor:
    """Within half a turn of 0."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
