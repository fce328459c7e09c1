"""Size-weighted merging of tokens by a plan, and its inverse for dense use (ToMe, section 3)."""

from typing import overload

from torch import Tensor, nn

from alt_fast_kernels.checks import check_device, check_size
from alt_fast_kernels.dispatch import takes_kernel
from alt_fast_kernels.match import MergePlan
from alt_fast_kernels.merge.norm import check_norm, is_fusable, norm_weights
from alt_fast_kernels.merge.op import merge_op
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

    x: [B, N, C] floating point. size: [B, N] fp32 (fp64 with fp64 tokens), patches each token stands for; > 0.
    residual: [B, N, C], added to x first: the attention branch of a pre-norm block.
    norm: any module over the channels, the one before the block's MLP.
    Returns x' [B, N', C] in the (promoted) dtype of x and residual, accumulated in at least fp32, and size' [B, N'] in
    size's dtype; with norm also norm(x'). Where the kernel runs and norm is a plain LayerNorm without hooks
    (`is_fusable`), the kernel computes norm(x') too, in fp32, and returns it in the dtype of x': one pass reads and
    writes the stream once. In every other case norm is called as a module, with its hooks and under autocast.
    Differentiable in x, residual and norm; size is a count and carries no gradient.
    Raises ValueError on shapes or devices that do not fit the plan, on sizes <= 0 and on a LayerNorm of another width;
    TypeError on other dtypes and on a norm that is no module.
    """
    _check(x, size, plan, residual)
    if norm is not None:
        check_norm(norm, x.shape[2])
    merges = plan.num_slots < x.shape[1]
    if merges and takes_kernel(x) and x.shape[2] <= MAX_CHANNELS:
        weight, bias, eps = norm_weights(norm, x) if is_fusable(norm) else (None, None, 0.0)
        x, size, normed, _, _ = merge_op(x, residual, size, plan.order, plan.start, plan.num_slots, weight, bias, eps)
        if weight is not None:
            return x, size, normed
    else:
        x = x if residual is None else x + residual
        if merges:
            x, size = merge_reference(x, size, plan.slot, plan.order, plan.num_slots)
    return (x, size) if norm is None else (x, size, norm(x))


def _check(x: Tensor, size: Tensor, plan: MergePlan, residual: Tensor | None) -> None:
    """Raise unless x, the plan, size and residual fit each other."""
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N, C], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    shapes = {"slot": x.shape[:2], "order": x.shape[:2], "start": (x.shape[0], plan.num_slots + 1)}
    for name, shape in shapes.items():
        part: Tensor = getattr(plan, name)
        if part.shape != shape:
            raise ValueError(f"plan.{name} must be {tuple(shape)} to fit x, got shape {tuple(part.shape)}")
        check_device(f"plan.{name}", part, x)
    check_size(size, x)
    if residual is not None:
        if residual.shape != x.shape:
            raise ValueError(f"residual must be {tuple(x.shape)} to fit x, got shape {tuple(residual.shape)}")
        check_device("residual", residual, x)


def unmerge(x: Tensor, slot: Tensor) -> Tensor:
    """Give every token the value of its slot: x [B, N', C], slot [B, N] (a plan's, or composed) -> [B, N, C]."""
    if x.ndim != 3:
        raise ValueError(f"x must be [B, N', C], got shape {tuple(x.shape)}")
    if slot.ndim != 2 or slot.shape[0] != x.shape[0]:
        raise ValueError(f"slot must be [{x.shape[0]}, N] to fit x, got shape {tuple(slot.shape)}")
    return x.gather(1, slot.long().unsqueeze(-1).expand(-1, -1, x.shape[-1]))
