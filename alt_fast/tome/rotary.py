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


class Turns(NamedTuple):
    """What is merged instead of a position, in fp32 (fp64 for fp64 tokens).

    table: [1 or B, N, 1 or H, 2 * D], cos and sin side by side, prefix tokens first; for `centroid` [.., D], angles.
    """

    table: Tensor
    interleaved: bool


def begin(rotary: Rotary, num_tokens: int, dtype: torch.dtype, rule: RotaryRule) -> Turns:
    """Return the turns of tokens that nothing has merged; tables without the prefix tokens get them.

    dtype: of the tokens. Raises ArgumentError when the tables hold more tokens than there are.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    cos, sin = rotary.cos.to(dtype), rotary.sin.to(dtype)
    table = _angles(cos, sin) if rule == "centroid" else torch.cat((cos, sin), -1)
    num_prefix = num_tokens - table.shape[1]
    if num_prefix < 0:
        raise ArgumentError(f"rotary positions of {table.shape[1]} tokens do not fit {num_tokens} tokens")
    if num_prefix > 0:  # a turn by no angle
        prefix = table.new_zeros(table.shape[0], num_prefix, *table.shape[2:])
        if rule != "centroid":
            prefix[..., : cos.shape[-1]] = 1
        table = torch.cat((prefix, table), 1)
    return Turns(table, rotary.interleaved)


def rotation(turns: Turns, rule: RotaryRule) -> Rotary:
    """Return what attention turns queries and keys by."""
    table, interleaved = turns
    if rule == "centroid":
        return Rotary(table.cos(), table.sin(), interleaved)
    cos, sin = table.chunk(2, -1)
    if rule == "unit":
        length = torch.hypot(cos, sin).clamp(min=torch.finfo(table.dtype).tiny)
        cos, sin = cos / length, sin / length
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


def _angles(cos: Tensor, sin: Tensor) -> Tensor:
    """The angles [.., N, H, D] of tables over a grid in raster order, which grow evenly along each of its axes.

    A table holds angles up to whole turns, which a mean must know. One step along an axis turns by less than half of
    one, so steps tell; a row ends where the first step is not repeated.
    """
    angle = torch.atan2(sin, cos)
    num_tokens = angle.shape[-3]
    if num_tokens < 2:
        return angle
    steps = _wrapped(angle.diff(dim=-3))
    step = steps[..., :1, :, :]
    off = (_wrapped(steps - step).abs() > 1e-3).flatten(-2).any(-1).reshape(-1, num_tokens - 1)[0]
    row = int(off.int().argmax()) + 1 if bool(off.any()) else num_tokens
    first = angle[..., ::row, :, :]
    if row < num_tokens:
        first = _angles(first.cos(), first.sin())
    column = torch.arange(num_tokens, device=angle.device) % row
    return first.repeat_interleave(row, -3)[..., :num_tokens, :, :] + column[:, None, None] * step


def _wrapped(angle: Tensor) -> Tensor:
    """Within half a turn of 0."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
