"""`torch.ops.alt_fast.merge` and its backward: the kernels as PyTorch sees them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.library import differentiable, fold_vmap, kernels_of, once, operator, register_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.merge.triton import Segments


def _empty(
    x: Tensor,
    residual: Tensor | None,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    num_slots: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, channels = x.shape
    dtype = x.dtype if residual is None or residual.dtype == x.dtype else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty(batch, num_slots, channels, dtype=dtype)
    new_size = size.new_empty(batch, num_slots)
    if weight is None:
        nothing = x.new_empty(0, dtype=torch.float32)
        return out, new_size, nothing, torch.empty_like(nothing)
    normed = torch.empty_like(out, dtype=normed_dtype or dtype)
    return out, new_size, normed, x.new_empty(batch, num_slots, 2, dtype=torch.float32)


@operator(
    "merge(Tensor x, Tensor? residual, Tensor size, Tensor order, Tensor start, SymInt num_slots, Tensor? weight, "
    "Tensor? bias, float eps, ScalarType? normed_dtype) -> (Tensor, Tensor, Tensor, Tensor)",
    _empty,
)
def merge_op(
    x: Tensor,
    residual: Tensor | None,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    num_slots: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    normed_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge x, residual [B, N, C] -> x' [B, N', C], size' [B, N'], and with weight and bias [C] LayerNorm(x').

    size [B, N], order [B, N] and start [B, N' + 1]: see `MergePlan`. normed_dtype: of LayerNorm(x'); None for that of
    x'. The last result are the moments of x' for backward, mean and 1 / standard deviation [B, N', 2] fp32. Without
    weight the last two are empty.
    """
    kernels = kernels_of("merge")
    outputs = _empty(x, residual, size, order, start, num_slots, weight, bias, eps, normed_dtype)
    norm = None if weight is None or bias is None else kernels.Norm(weight.contiguous(), bias.contiguous(), eps)
    inputs = kernels.Inputs(x, residual, _segments(size, order, start), norm)
    out, new_size, normed, moments = outputs
    merged_size = new_size.float()  # itself, unless sizes are fp64, which no kernel takes
    kernels.merge_fwd_launch(inputs, kernels.Outputs(out, merged_size, normed, moments)).run()
    return out, merged_size.to(new_size.dtype), normed, moments


def _segments(size: Tensor, order: Tensor, start: Tensor) -> "Segments":
    segments: Segments = kernels_of("merge").Segments(size.float().contiguous(), order.contiguous(), start.contiguous())
    return segments


def _empty_grads(
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    new_size: Tensor,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    needs_x: bool,
    needs_norm: bool,
    groups: int,
) -> tuple[Tensor, Tensor]:
    channels = out.shape[2]
    grad_x = out.new_empty(*order.shape, channels) if needs_x else out.new_empty(0)
    return grad_x, moments.new_empty(groups, 2, channels) if needs_norm else moments.new_empty(0)


@operator(
    "merge_backward(Tensor? grad_out, Tensor? grad_normed, Tensor out, Tensor new_size, Tensor size, Tensor order, "
    "Tensor start, Tensor moments, Tensor? weight, bool needs_x, bool needs_norm, SymInt groups) -> (Tensor, Tensor)",
    _empty_grads,
)
def merge_backward_op(
    grad_out: Tensor | None,
    grad_normed: Tensor | None,
    out: Tensor,
    new_size: Tensor,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    needs_x: bool,
    needs_norm: bool,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x (and of the residual, the same) [B, N, C], and of weight and bias [groups, 2, C] fp32.

    Either is empty unless needed. groups: parts of the batch, side by side, with gradients of the weights of their own.
    """
    kernels = kernels_of("merge")
    norm = None
    if weight is not None and grad_normed is not None:
        norm = kernels.NormBackward(grad_normed.contiguous(), weight.contiguous(), moments)
    grad_x = out.new_empty(*order.shape, out.shape[2]) if needs_x else None
    partial = None
    if needs_norm:
        partial = moments.new_empty(groups, kernels.backward_programs(out, groups), 2, out.shape[2])
    kernels.merge_bwd_launch(
        None if grad_out is None else grad_out.contiguous(),
        out,
        new_size.float(),
        _segments(size, order, start),
        norm,
        kernels.Gradients(grad_x, partial),
    ).run()
    return (
        out.new_empty(0) if grad_x is None else grad_x,
        moments.new_empty(0) if partial is None else partial.sum(1),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, size, order, start, _, weight, bias, *_ = inputs
    out, new_size, _, moments = output
    read = None if weight is None else out  # by the norm's backward
    ctx.save_for_backward(read, new_size, size, order, start, moments, weight)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, residual, weight, bias)]
    ctx.mark_non_differentiable(new_size, moments)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    out, *saved, weight = ctx.saved_tensors
    grad_normed = grads[1] if weight is not None else None
    needs_x, needs_residual = ctx.needs_input_grad[:2]
    needs_weight, needs_bias = (needs and grad_normed is not None for needs in ctx.needs_input_grad[6:8])
    grad_x = grad_residual = grad_weight = grad_bias = None
    to_x = (needs_x or needs_residual) and not (grad_out is None and grad_normed is None)
    to_norm = needs_weight or needs_bias
    if to_x or to_norm:
        like = grad_out if out is None else out
        shared, of_norm = _merge_backward(grad_out, grad_normed, like, *saved, weight, to_x, to_norm, 1)
        x_dtype, residual_dtype, weight_dtype, bias_dtype = ctx.dtypes
        if to_x:
            grad_x = shared.to(x_dtype) if needs_x else None
            grad_residual = shared.to(residual_dtype) if needs_residual else None
        if to_norm:  # one launch for both, unless their dtypes differ
            of_weight, of_bias = of_norm[0].to(torch.promote_types(weight_dtype, bias_dtype)).unbind(0)
            grad_weight = of_weight.to(weight_dtype) if needs_weight else None
            grad_bias = of_bias.to(bias_dtype) if needs_bias else None
    return grad_x, grad_residual, None, None, None, None, grad_weight, grad_bias, None, None


def _fold_groups(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """Fold the mapped dimension into the batch, every mapped element with a gradient of the weights of its own."""

    def run(*folded: Any) -> tuple[Tensor, Tensor]:
        *rest, groups = folded
        grads: tuple[Tensor, Tensor] = merge_backward_op(*rest, groups * info.batch_size)
        return grads

    return fold_vmap(run, 8)(info, in_dims, *args)


register_vmap(merge_op, fold_vmap(merge_op, 5))
register_vmap(merge_backward_op, _fold_groups)

_merge_backward = once(merge_backward_op)
merge = differentiable(merge_op, _save, _backward)
