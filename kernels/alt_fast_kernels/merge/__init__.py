"""Size-weighted merging of tokens by a plan, and its inverse for dense use (ToMe, section 3)."""

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alt_fast_kernels.checks import check_device, check_size, may_read_values
from alt_fast_kernels.dispatch import autocast_dtype, takes_kernel, to_autocast_dtype
from alt_fast_kernels.match import MergePlan
from alt_fast_kernels.merge.norm import check_norm, is_fusable, norm_weights
from alt_fast_kernels.merge.op import merge as merge_by_kernel
from alt_fast_kernels.merge.reference import merge_reference

__all__ = ["merge", "unmerge"]

MAX_CHANNELS = 8192
"""A program of the kernels holds whole rows; wider tokens merge on PyTorch."""


@overload
def merge(
    x: Tensor, size: Tensor, plan: MergePlan, residual: Tensor | None = None, norm: None = None
) -> tuple[Tensor, Tensor]: ...


@overload
def merge(
    x: Tensor, size: Tensor, plan: MergePlan, residual: Tensor | None = None, *, norm: nn.Module
) -> tuple[Tensor, Tensor, Tensor]: ...


def merge(
    x: Tensor, size: Tensor, plan: MergePlan, residual: Tensor | None = None, norm: nn.Module | None = None
) -> tuple[Tensor, ...]:
    """Take the weighted mean of the tokens of every slot; optionally of x + residual, and with a norm of the result.

    x: [B, N, C] floating point. size: [B, N] fp32 or fp64, patches each token stands for; >= 0. A
        token of size 0, which must be finite, moves no other: where all of a slot are, the survivor stays as it is.
    residual: [B, N, C], added to x first: the attention branch of a pre-norm block.
    norm: any module over the channels, the one before the block's MLP.
    Returns x' [B, N', C] in the (promoted) dtype of x and residual, accumulated in at least fp32, and size' [B, N'] in
    size's dtype; with norm also norm(x'). Where the kernel runs and norm is a plain LayerNorm without hooks
    (`is_fusable`), the kernel computes norm(x') too, in fp32: one pass reads and writes the stream once. Of a plain
    LayerNorm, by the kernel or not, norm(x') has the dtype of x', and under autocast autocast's: that is what a Linear
    reads. Every other norm is called as a module, with its hooks and its own dtype.
    Differentiable in x, residual and norm; size is a count and carries no gradient.
    Raises ValueError on shapes or devices that do not fit the plan, on negative sizes and on a LayerNorm of another
    width; TypeError on other dtypes and on a norm that is no module.
    """
    _check(x, size, plan, residual)
    if norm is not None:
        check_norm(norm, x.shape[2])
    fused = norm if is_fusable(norm) else None
    merges = plan.num_slots < x.shape[1]
    if merges and all(map(takes_kernel, (x,) if residual is None else (x, residual))) and x.shape[2] <= MAX_CHANNELS:
        weight, bias, eps = (None, None, 0.0) if fused is None else norm_weights(fused, x)
        dtype = None if fused is None else autocast_dtype(x)
        x, size, normed, _ = merge_by_kernel(
            x, residual, size, plan.order, plan.start, plan.num_slots, weight, bias, eps, dtype
        )
        if fused is not None:
            return x, size, normed
    else:
        x = x if residual is None else x + residual
        if merges:
            x, size = merge_reference(x, size, plan.slot, plan.order, plan.num_slots)
    if norm is None:
        return x, size
    normed = norm(x)
    return x, size, normed if fused is None else to_autocast_dtype(normed)[0]


def _check(x: Tensor, size: Tensor, plan: MergePlan, residual: Tensor | None) -> None:
    """Raise unless x, the plan, size and residual fit each other."""
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N, C], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    tokens = x.shape[:2]
    _check_part("plan.slot", plan.slot, tokens, x)
    _check_part("plan.order", plan.order, tokens, x)
    _check_part("plan.start", plan.start, (tokens[0], plan.num_slots + 1), x)
    check_size(size, x)
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"residual must be {tuple(x.shape)} to fit x, got shape {tuple(residual.shape)}")
        check_device("residual", residual, x)


def _check_part(name: str, part: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if part.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)} to fit x, got shape {tuple(part.shape)}")
    check_device(name, part, x)


def unmerge(x: Tensor, slot: Tensor) -> Tensor:
    """Give every token the value of its slot: x [B, N', C], slot [B, N] (a plan's, or composed) -> [B, N, C].

    Raises ValueError for shapes that do not fit, and for other slots than 0 to N' - 1 where values may be read;
    TypeError unless slot is int32 or int64.
    """
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N', C], got shape {tuple(x.shape)}")
    if slot.ndim != 2 or slot.shape[0] != x.shape[0]:
        raise ValueError(f"slot must be [{x.shape[0]}, N] to fit x, got shape {tuple(slot.shape)}")
    if slot.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"slot must be int32 or int64, got {slot.dtype}")
    batch, num_slots, _ = x.shape
    if may_read_values(slot) and slot.numel() and not 0 <= int(slot.min()) <= int(slot.max()) < num_slots:
        raise ValueError(f"slot must be from 0 to {num_slots - 1}, got {int(slot.min())} to {int(slot.max())}")
    start = torch.arange(batch, device=x.device).unsqueeze(1) * num_slots
    return F.embedding(start + slot.long(), x.flatten(0, 1))  # copies whole rows, as `gather` does not
