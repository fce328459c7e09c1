"""Size-weighted merging of tokens by a plan, and its inverse for dense use (ToMe, section 3)."""

import torch
from torch import Tensor

from alt_fast_kernels.match import MergePlan
from alt_fast_kernels.merge.reference import merge_reference

__all__ = ["merge", "unmerge"]


def merge(x: Tensor, size: Tensor, plan: MergePlan) -> tuple[Tensor, Tensor]:
    """Weighted mean of the tokens of every slot.

    x: [B, N, C] floating point. size: [B, N] fp32 (fp64 with fp64 tokens), patches each token stands for; > 0.
    Returns x' [B, N', C] in x's dtype, accumulated in at least fp32, and size' [B, N'] in size's dtype.
    Differentiable in x; size is a count and carries no gradient. Raises ValueError on shapes that do not fit the plan,
    TypeError on sizes of another dtype.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N, C], got shape {tuple(x.shape)}")
    for name, shape in (("size", size.shape), ("plan.slot", plan.slot.shape)):
        if shape != x.shape[:2]:
            raise ValueError(f"{name} must be {tuple(x.shape[:2])} to fit x, got shape {tuple(shape)}")
    if size.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"size must be fp32 (or fp64), got {size.dtype}: half precision cannot count past 2048")
    if size.requires_grad:
        raise ValueError("size must not require grad: token sizes are counts")
    return merge_reference(x, size, plan.slot, plan.num_slots)


def unmerge(x: Tensor, plan: MergePlan) -> Tensor:
    """Give every original token the value of its slot: [B, N', C] -> [B, N, C]."""
    if x.ndim != 3 or x.shape[1] != plan.num_slots:
        raise ValueError(f"x must be [B, {plan.num_slots}, C] to fit the plan, got shape {tuple(x.shape)}")
    return x.gather(1, plan.slot.long().unsqueeze(-1).expand(-1, -1, x.shape[-1]))
