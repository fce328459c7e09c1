"""`torch.ops.alt_fast.attention` and `attention_packed` with their backwards: the kernels as PyTorch sees them."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alt_fast_kernels.dispatch import fold_vmap

if TYPE_CHECKING:
    from alt_fast_kernels.attention.triton import Inputs

_Pair = tuple[Tensor, Tensor]


@torch.library.custom_op("alt_fast::attention", mutates_args=())
def attention_op(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attend: q [B, N, H, D], k, v [B, M, H, D], size [B, M] -> out [B, N, H * D], and lse2 [B, H, N] for backward.

    lse2: log-sum-exp of each query's scores (scaled, and with log size) in base 2, fp32.
    """
    from alt_fast_kernels.attention.triton import attention_fwd_launch

    out, lse2 = _empty_outputs(q)
    attention_fwd_launch(_prepare(q, k, v, size, scale), out, lse2).run()
    return out, lse2


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(q)


@torch.library.custom_op("alt_fast::attention_backward", mutates_args=())
def attention_backward_op(
    grad_out: Tensor, out: Tensor, lse2: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, each contiguous."""
    grads = _contiguous_like(q), _contiguous_like(k), _contiguous_like(v)
    _run_backward(grad_out, out, lse2, _prepare(q, k, v, size, scale), grads)
    return grads


@attention_backward_op.register_fake
def _(
    grad_out: Tensor, out: Tensor, lse2: Tensor, q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _contiguous_like(q), _contiguous_like(k), _contiguous_like(v)


@torch.library.custom_op("alt_fast::attention_packed", mutates_args=())
def attention_packed_op(qkv: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Do as `attention` on a packed projection [B, N, 3, H, D], whose gradient then needs no copy either."""
    from alt_fast_kernels.attention.triton import attention_fwd_launch

    q, k, v = _unit_stride(qkv).unbind(2)
    out, lse2 = _empty_outputs(q)
    attention_fwd_launch(_prepare(q, k, v, size, scale), out, lse2).run()
    return out, lse2


@attention_packed_op.register_fake
def _(qkv: Tensor, size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _empty_outputs(qkv[:, :, 0])


@torch.library.custom_op("alt_fast::attention_packed_backward", mutates_args=())
def attention_packed_backward_op(
    grad_out: Tensor, out: Tensor, lse2: Tensor, qkv: Tensor, size: Tensor | None, scale: float
) -> Tensor:
    """Return the gradient of qkv, contiguous."""
    grad = _contiguous_like(qkv)
    q, k, v = qkv.unbind(2)
    _run_backward(grad_out, out, lse2, _prepare(q, k, v, size, scale), grad.unbind(2))
    return grad


@attention_packed_backward_op.register_fake
def _(grad_out: Tensor, out: Tensor, lse2: Tensor, qkv: Tensor, size: Tensor | None, scale: float) -> Tensor:
    return _contiguous_like(qkv)


def _run_backward(grad_out: Tensor, out: Tensor, lse2: Tensor, inputs: "Inputs", grads: tuple[Tensor, ...]) -> None:
    from alt_fast_kernels.attention.triton import Gradients, Saved, attention_bwd_launches

    saved = Saved(out, lse2, grad_out.contiguous())
    for launch in attention_bwd_launches(inputs, saved, torch.empty_like(lse2), Gradients(*grads)):
        launch.run()


def _prepare(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, scale: float) -> "Inputs":
    from alt_fast_kernels.attention.triton import Inputs

    size = None if size is None else size.float().contiguous()
    return Inputs(_unit_stride(q), _unit_stride(k), _unit_stride(v), size, scale)


def _unit_stride(x: Tensor) -> Tensor:
    """Copy a view that strides over channels: the kernels read the channels of a head as they lie."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _empty_outputs(q: Tensor) -> _Pair:
    batch, num_q, heads, dim = q.shape
    out = q.new_empty(batch, num_q, heads * dim)
    return out, q.new_empty(batch, heads, num_q, dtype=torch.float32)


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
