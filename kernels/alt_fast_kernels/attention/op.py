"""`torch.ops.alt_fast.attention` and `attention_packed` with their backwards: the kernels as PyTorch sees them."""

from typing import Any

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap

_Pair = tuple[Tensor, Tensor]
_Triple = tuple[Tensor, Tensor, Tensor]


@torch.library.custom_op("alt_fast::attention", mutates_args=())
def attention_op(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """q, k, v [B, N, H, D], size [B, N] -> out [B, N, H * D], and lse [B, H, N] for the backward pass."""
    from alt_fast_kernels.attention.triton import attention_fwd_launch

    out, lse = _empty_outputs(q)
    q, k, v = map(_unit_stride, (q, k, v))
    attention_fwd_launch((q, k, v, _counts(size), scale), out, lse).run()
    return out, lse


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@torch.library.custom_op("alt_fast::attention_backward", mutates_args=())
def attention_backward_op(
    grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each contiguous."""
    grads = (torch.empty_like(q, memory_format=torch.contiguous_format), *_empty_pair(k, v))
    _run_backward((grad_out, out, lse), (q, k, v), size, scale, grads)
    return grads


@attention_backward_op.register_fake
def _(
    grad_out: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q, memory_format=torch.contiguous_format), *_empty_pair(k, v)


@torch.library.custom_op("alt_fast::attention_packed", mutates_args=())
def attention_packed_op(qkv: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`attention` on a packed projection [B, N, 3, H, D], whose gradient then needs no copy either."""
    from alt_fast_kernels.attention.triton import attention_fwd_launch

    q, k, v = _unit_stride(qkv).unbind(2)
    out, lse = _empty_outputs(q)
    attention_fwd_launch((q, k, v, _counts(size), scale), out, lse).run()
    return out, lse


@attention_packed_op.register_fake
def _(qkv: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(qkv[:, :, 0])


@torch.library.custom_op("alt_fast::attention_packed_backward", mutates_args=())
def attention_packed_backward_op(
    grad_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, size: Tensor | None, scale: float
) -> Tensor:
    """Gradient of qkv, contiguous."""
    grad = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    _run_backward((grad_out, out, lse), qkv.unbind(2), size, scale, grad.unbind(2))
    return grad


@attention_packed_backward_op.register_fake
def _(grad_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, size: Tensor | None, scale: float) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _run_backward(
    saved: _Triple, qkv: tuple[Tensor, ...], size: Tensor | None, scale: float, grads: tuple[Tensor, ...]
) -> None:
    from alt_fast_kernels.attention.triton import attention_bwd_launches

    grad_out, out, lse = saved
    q, k, v = map(_unit_stride, qkv)
    grad_q, grad_k, grad_v = grads
    inputs = (q, k, v, _counts(size), scale)
    delta = torch.empty_like(lse)
    saved = (grad_out.contiguous(), out, lse)
    for launch in attention_bwd_launches(inputs, saved, delta, (grad_q, grad_k, grad_v)):
        launch.run()


def _unit_stride(x: Tensor) -> Tensor:
    """The kernels read the channels of a head as they lie; a view that strides over them is copied."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _counts(size: Tensor | None) -> Tensor | None:
    return None if size is None else size.float().contiguous()


def _empty_outputs(q: Tensor) -> _Pair:
    batch, num_q, heads, dim = q.shape
    out = q.new_empty(batch, num_q, heads * dim)
    return out, q.new_empty(batch, heads, num_q, dtype=torch.float32)


def _empty_pair(k: Tensor, v: Tensor) -> _Pair:
    return (
        torch.empty_like(k, memory_format=torch.contiguous_format),
        torch.empty_like(v, memory_format=torch.contiguous_format),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: _Pair) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.scale = scale
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*attention_backward_op(grad_out, *ctx.saved_tensors, ctx.scale), None, None)


def _backward_packed(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return attention_packed_backward_op(grad_out, *ctx.saved_tensors, ctx.scale), None, None


attention_op.register_autograd(_backward, setup_context=_save)
attention_packed_op.register_autograd(_backward_packed, setup_context=_save)
attention_op.register_vmap(fold_vmap(attention_op, 4))
attention_backward_op.register_vmap(fold_vmap(attention_backward_op, 7))
attention_packed_op.register_vmap(fold_vmap(attention_packed_op, 2))
attention_packed_backward_op.register_vmap(fold_vmap(attention_packed_backward_op, 5))
