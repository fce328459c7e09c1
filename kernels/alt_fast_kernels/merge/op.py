"""`torch.ops.alt_fast.merge` and its backward: the kernels as PyTorch sees them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.merge.triton import Segments


@torch.library.custom_op("alt_fast::merge", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Merge x, residual [B, N, C] -> x' [B, N', C], size' [B, N'], and with weight and bias [C] LayerNorm(x').

    size [B, N], order [B, N] and start [B, N' + 1]: see `MergePlan`. The last two results are the moments of x', mean
    and rstd [B, N'] fp32, for backward. Without weight the last three are empty.
    """
    from alt_fast_kernels.merge.triton import Inputs, Norm, Outputs, merge_fwd_launch

    outputs = _empty_outputs(x, residual, size, num_slots, weight)
    norm = None if weight is None or bias is None else Norm(weight.contiguous(), bias.contiguous(), eps)
    merge_fwd_launch(Inputs(x, residual, _segments(size, order, start), norm), Outputs(*outputs)).run()
    return outputs


@merge_op.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    num_slots: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_outputs(x, residual, size, num_slots, weight)


def _segments(size: Tensor, order: Tensor, start: Tensor) -> "Segments":
    from alt_fast_kernels.merge.triton import Segments

    return Segments(size.contiguous(), order.contiguous(), start.contiguous())


def _empty_outputs(
    x: Tensor, residual: Tensor | None, size: Tensor, num_slots: int, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, channels = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty(batch, num_slots, channels, dtype=dtype)
    new_size = size.new_empty(batch, num_slots)
    if weight is None:
        return out, new_size, out.new_empty(0), size.new_empty(0), size.new_empty(0)
    return out, new_size, torch.empty_like(out), torch.empty_like(new_size), torch.empty_like(new_size)


@torch.library.custom_op("alt_fast::merge_backward", mutates_args=())
def merge_backward_op(
    grad_out: Tensor,
    grad_normed: Tensor | None,
    out: Tensor,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (and of the residual, the same) [B, N, C], weight and bias [C] fp32.

    The last two are empty without weight or grad_normed.
    """
    from alt_fast_kernels.merge.triton import NormBackward, backward_programs, merge_bwd_launch

    grad_x = out.new_empty(*order.shape, out.shape[2])
    grad_out, segments = grad_out.contiguous(), _segments(size, order, start)
    if weight is None or grad_normed is None:
        merge_bwd_launch(grad_out, out, segments, None, grad_x).run()
        return grad_x, size.new_empty(0), size.new_empty(0)
    partial = size.new_empty(2, backward_programs(out), out.shape[2])
    norm = NormBackward(grad_normed.contiguous(), weight.contiguous(), mean, rstd, partial)
    merge_bwd_launch(grad_out, out, segments, norm, grad_x).run()
    grad_weight, grad_bias = partial.sum(1).unbind(0)
    return grad_x, grad_weight.clone(), grad_bias.clone()


@merge_backward_op.register_fake
def _(
    grad_out: Tensor,
    grad_normed: Tensor | None,
    out: Tensor,
    size: Tensor,
    order: Tensor,
    start: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = 0 if weight is None or grad_normed is None else out.shape[2]
    return out.new_empty(*order.shape, out.shape[2]), size.new_empty(channels), size.new_empty(channels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, residual, size, order, start, _, weight, bias, _ = inputs
    out, _, _, mean, rstd = output
    ctx.save_for_backward(out, size, order, start, mean, rstd, weight)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, residual, weight, bias)]
    ctx.mark_non_differentiable(output[1], mean, rstd)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    out, size, order, start, mean, rstd, weight = ctx.saved_tensors
    grad_normed = grads[1] if weight is not None else None
    if grad_out is None and grad_normed is None:
        return (None,) * 9
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grad_x, *norm_grads = merge_backward_op(grad_out, grad_normed, out, size, order, start, mean, rstd, weight)
    # x and the residual have the same gradient, weight and bias their own when LayerNorm took part.
    all_grads = (grad_x, grad_x, *(norm_grads if grad_normed is not None else (None, None)))
    grad_x, grad_residual, grad_weight, grad_bias = (
        None if dtype is None or grad is None else grad.to(dtype)
        for grad, dtype in zip(all_grads, ctx.dtypes, strict=True)
    )
    return grad_x, grad_residual, None, None, None, None, grad_weight, grad_bias, None


merge_op.register_autograd(_backward, setup_context=_save)
merge_op.register_vmap(fold_vmap(merge_op, 5))
merge_backward_op.register_vmap(fold_vmap(merge_backward_op, 8))
